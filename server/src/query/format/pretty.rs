//! The `pretty` format: a table drawn in ASCII.
//!
//! A column is as wide as its widest cell, so the rows are kept until the end, counted as memory of the query; their texts are
//! not: they are made twice, to be measured and to be written, a few rows at a time.

use std::fmt::Write as _;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::execution::memory_pool::MemoryReservation;
use saltus_core::limits::QUERY_ENCODE_BYTES_MAX;
use unicode_width::UnicodeWidthStr;

/// Rows that are kept, and how wide their columns are.
pub(super) struct Pretty {
    schema: SchemaRef,
    widths: Vec<usize>,
    batches: std::collections::VecDeque<(RecordBatch, Option<MemoryReservation>)>,
    /// What is written next.
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Measuring,
    Head,
    Rows,
    Over,
}

impl Pretty {
    pub(super) fn new(schema: SchemaRef) -> Self {
        let widths = schema.fields().iter().map(|field| width(field.name())).collect();
        Pretty { schema, widths, batches: std::collections::VecDeque::new(), stage: Stage::Measuring }
    }

    /// Keeps rows, for which `memory` was taken.
    pub(super) fn push(&mut self, batch: RecordBatch, memory: Option<MemoryReservation>) -> Result<(), ArrowError> {
        let mut text = String::new();
        for (column, widest) in batch.columns().iter().zip(&mut self.widths) {
            let options = options();
            let cells = ArrayFormatter::try_new(column.as_ref(), &options)?;
            for row in 0..batch.num_rows() {
                text.clear();
                let _ = write!(text, "{}", cells.value(row));
                *widest = (*widest).max(width(&text));
            }
        }
        self.batches.push_back((batch, memory));
        Ok(())
    }

    /// There are no more rows.
    pub(super) fn finish(&mut self) {
        self.stage = Stage::Head;
    }

    /// The next part of the table; empty while rows are missing and when all is written.
    pub(super) fn next(&mut self) -> Result<Vec<u8>, ArrowError> {
        let mut out = String::new();
        if self.stage == Stage::Head {
            self.rule(&mut out);
            out.push('\n');
            let schema = self.schema.clone();
            draw(&mut out, schema.fields().iter().map(|field| field.name().as_str()), &self.widths);
            self.rule(&mut out);
            out.push('\n');
            self.stage = Stage::Rows;
        }
        if self.stage != Stage::Rows {
            return Ok(out.into_bytes());
        }
        match self.batches.pop_front() {
            Some((batch, memory)) => {
                let line: usize = self.widths.iter().map(|width| width + 3).sum();
                let rows = (QUERY_ENCODE_BYTES_MAX / line.max(1)).clamp(1, batch.num_rows().max(1));
                self.rows(&mut out, &batch.slice(0, rows.min(batch.num_rows())))?;
                if rows < batch.num_rows() {
                    self.batches.push_front((batch.slice(rows, batch.num_rows() - rows), memory));
                }
            }
            None => {
                self.rule(&mut out);
                self.stage = Stage::Over;
            }
        }
        Ok(out.into_bytes())
    }

    fn rule(&self, out: &mut String) {
        for width in &self.widths {
            out.push('+');
            out.extend(std::iter::repeat_n('-', width + 2));
        }
        out.push('+');
    }

    fn rows(&self, out: &mut String, batch: &RecordBatch) -> Result<(), ArrowError> {
        let options = options();
        let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let cells: Vec<String> = columns.iter().map(|cells| cells.value(row).to_string()).collect();
            draw(out, cells.iter().map(String::as_str), &self.widths);
        }
        Ok(())
    }
}

fn options() -> FormatOptions<'static> {
    FormatOptions::default().with_display_error(true)
}

fn lines(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('\n')
}

fn width(cell: &str) -> usize {
    // The common case first: what has no sign beyond ASCII and no line end is as wide as it is long.
    if cell.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return cell.len();
    }
    lines(cell).map(UnicodeWidthStr::width).max().unwrap_or(0)
}

/// One row of the table: as many lines as its highest cell has.
fn draw<'a>(out: &mut String, cells: impl Iterator<Item = &'a str>, widths: &[usize]) {
    let mut cells: Vec<_> = cells.map(lines).collect();
    let mut firsts: Vec<Option<&str>> = cells.iter_mut().map(Iterator::next).collect();
    let mut is_first = true;
    while is_first || firsts.iter().any(Option::is_some) {
        is_first = false;
        for (line, width) in firsts.iter().zip(widths) {
            let line = line.unwrap_or_default();
            out.push_str("| ");
            out.push_str(line);
            out.extend(std::iter::repeat_n(' ', width.saturating_sub(self::width(line)) + 1));
        }
        out.push_str("|\n");
        firsts = cells.iter_mut().map(Iterator::next).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::util::pretty::pretty_format_batches_with_schema;

    use super::*;

    fn drawn(schema: SchemaRef, batches: &[RecordBatch]) -> String {
        let mut pretty = Pretty::new(schema);
        for batch in batches {
            pretty.push(batch.clone(), None).unwrap();
        }
        pretty.finish();
        let mut out = Vec::new();
        while pretty.stage != Stage::Over {
            out.extend(pretty.next().unwrap());
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn tables_are_drawn_as_arrow_draws_them() {
        let texts = ["", "plain", "two\nlines", "ends\n", "\n", "wide \u{4f60}\u{597d}", "e\u{301}", "a\tb", "\u{7}"];
        let numbers = (0..texts.len() as i64).map(|n| (n % 2 == 0).then_some(n * 1_000));
        let batch = RecordBatch::try_from_iter([
            ("text", Arc::new(StringArray::from(texts.to_vec())) as ArrayRef),
            ("a number\nin two lines", Arc::new(numbers.collect::<Int64Array>())),
        ])
        .unwrap();
        for batches in [vec![], vec![batch.clone()], vec![batch.slice(0, 2), batch.slice(5, 3)]] {
            let expected = pretty_format_batches_with_schema(batch.schema(), &batches).unwrap().to_string();
            assert_eq!(drawn(batch.schema(), &batches), expected, "{} batches", batches.len());
        }
    }

    #[test]
    fn a_long_table_is_written_in_parts() {
        let long = "x".repeat(QUERY_ENCODE_BYTES_MAX / 2);
        let column: ArrayRef = Arc::new(StringArray::from(vec![long.as_str(), "short", "short"]));
        let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
        let mut pretty = Pretty::new(batch.schema());
        pretty.push(batch, None).unwrap();
        pretty.finish();
        let mut parts = 0;
        while pretty.stage != Stage::Over {
            assert!(pretty.next().unwrap().len() < 3 * QUERY_ENCODE_BYTES_MAX);
            parts += 1;
        }
        assert!(parts > 2, "{parts}");
    }
}
