//! Rows back to line protocol, for people: what an event was, in an account of its failure.

use std::fmt::Write as _;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, UInt64Type};

use crate::batch::{Batch, BatchColumn};
use crate::schema::ColumnKind;

/// Appends the rows of `batch` to `out`, a line each, as long as `out` has at most `bytes_max` bytes; how many were. Parsed again,
/// the lines give the same rows.
pub fn render(table: &str, batch: &Batch, out: &mut String, bytes_max: usize) -> usize {
    for row in 0..batch.rows() {
        let before = out.len();
        render_row(table, batch, row, out);
        if out.len() > bytes_max {
            out.truncate(before);
            return row;
        }
    }
    batch.rows()
}

fn render_row(table: &str, batch: &Batch, row: usize, out: &mut String) {
    escaped(table, &[',', ' ', '\\'], out);
    let present = |column: &&BatchColumn| column.data.is_valid(row);
    for tag in batch.columns.iter().filter(|c| c.kind == ColumnKind::Tag).filter(present) {
        out.push(',');
        escaped(&tag.name, &[',', '=', ' ', '\\'], out);
        out.push('=');
        let tags = tag.data.as_dictionary::<Int32Type>();
        if let Some(key) = tags.key(row) {
            escaped(tags.values().as_string::<i32>().value(key), &[',', '=', ' ', '\\'], out);
        }
    }
    let mut before = ' ';
    for field in batch.columns.iter().filter(|c| c.kind != ColumnKind::Tag).filter(present) {
        out.push(before);
        before = ',';
        escaped(&field.name, &[',', '=', ' ', '\\'], out);
        out.push('=');
        render_value(field, row, out);
    }
    // Writing to a string does not fail.
    let _ok = writeln!(out, " {}", batch.time.value(row));
}

fn render_value(field: &BatchColumn, row: usize, out: &mut String) {
    let data = &field.data;
    let _ok = match field.kind {
        ColumnKind::Tag => Ok(()),
        ColumnKind::Integer => write!(out, "{}i", data.as_primitive::<Int64Type>().value(row)),
        ColumnKind::UInteger => write!(out, "{}u", data.as_primitive::<UInt64Type>().value(row)),
        ColumnKind::Float => write!(out, "{:?}", data.as_primitive::<Float64Type>().value(row)),
        ColumnKind::Boolean => write!(out, "{}", data.as_boolean().value(row)),
        ColumnKind::String => {
            out.push('"');
            escaped(data.as_string::<i32>().value(row), &['"', '\\'], out);
            out.push('"');
            Ok(())
        }
    };
}

fn escaped(text: &str, special: &[char], out: &mut String) {
    for c in text.chars() {
        if special.contains(&c) {
            out.push('\\');
        }
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::line_protocol::{LineParser, Precision, SchemaSource};
    use crate::schema::TableSchema;

    struct Nothing;

    impl SchemaSource for Nothing {
        fn table(&self, _table: &str) -> Option<Arc<TableSchema>> {
            None
        }
    }

    fn parsed(lines: &str) -> Batch {
        let body = bytes::Bytes::copy_from_slice(lines.as_bytes());
        let mut parsed = LineParser::new().parse("main", &body, Precision::Nanosecond, false, &Nothing);
        assert_eq!(parsed.rejected, []);
        parsed.batches.remove(0).freeze(0)
    }

    #[test]
    fn rendered_rows_are_the_lines_they_came_from() {
        let lines = "my\\ table,a\\,b=c\\=d,z=\u{e9} f=1.5,i=-3i,s=\"say \\\"x\\\\\\\"\",t=true,u=7u 10\n\
                     my\\ table f=1e300 -5\n\
                     my\\ table,z=w t=false 11\n";
        let mut out = String::new();
        let batch = parsed(lines);
        assert_eq!(render("my table", &batch, &mut out, 1 << 20), 3);
        let mut again = String::new();
        render("my table", &parsed(&out), &mut again, 1 << 20);
        assert_eq!(out, again);
        assert_eq!(out, lines);
    }

    #[test]
    fn backslashes_are_doubled_wherever_they_stand() {
        let lines = "m\\\\,a\\\\b=C:\\\\,k\\\\=x\\\\\\\\y f\\\\=1.0 10\n";
        let mut out = String::new();
        let batch = parsed(lines);
        render("m\\", &batch, &mut out, 1 << 20);
        assert_eq!(out, lines);
    }

    #[test]
    fn what_is_too_long_is_cut_between_rows() {
        let batch = parsed("t f=1 1\nt f=2 2\nt f=3 3\n");
        let mut out = String::new();
        assert_eq!(render("t", &batch, &mut out, 20), 2);
        assert_eq!(out, "t f=1.0 1\nt f=2.0 2\n");
    }
}
