//! The parser against the oracle: what tests and the fuzz target share.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, UInt64Type};
use bytes::Bytes;

use super::oracle::{self, Cell, Outcome, Row, Schemas, Table};
use super::*;
use crate::batch::{Batch, BatchColumn};
use crate::limits::COLUMNS_PER_TABLE_MAX;
use crate::schema::ColumnDef;

pub(super) const BASE_NS: i64 = 1_700_000_000_123_456_789;

/// Schemas in memory.
#[derive(Default)]
pub struct Known(BTreeMap<String, Arc<TableSchema>>);

impl SchemaSource for Known {
    fn table(&self, table: &str) -> Option<Arc<TableSchema>> {
        self.0.get(table).cloned()
    }
}

impl Known {
    /// One table with these columns.
    pub fn of(table: &str, columns: &[(&str, ColumnKind)]) -> Self {
        let columns = columns.iter().map(|(name, kind)| ColumnDef { name: (*name).into(), kind: *kind }).collect();
        Known([(table.to_owned(), Arc::new(TableSchema::new(columns, 1)))].into())
    }

    pub(super) fn for_oracle(&self) -> Schemas {
        let columns =
            |schema: &TableSchema| schema.columns().iter().map(|c| (c.name.to_string(), c.kind.iox_name())).collect();
        self.0.iter().map(|(name, schema)| (name.clone(), columns(schema))).collect()
    }

    /// These schemas with the columns that `written` adds.
    pub(super) fn with(&self, written: &ParsedWrite) -> Self {
        let mut known = self.0.clone();
        for batch in &written.batches {
            let old = batch.schema.as_deref().cloned().unwrap_or_default();
            let new = batch.columns.iter().filter(|c| old.column(&c.name).is_none());
            let new: Vec<_> = new.map(|c| ColumnDef { name: c.name.clone(), kind: c.kind }).collect();
            known.insert(batch.table.to_string(), Arc::new(old.extended(&new)));
        }
        Known(known)
    }
}

pub(super) fn name_of(precision: Precision) -> &'static str {
    match precision {
        Precision::Auto => "auto",
        Precision::Second => "s",
        Precision::Millisecond => "ms",
        Precision::Microsecond => "us",
        Precision::Nanosecond => "ns",
    }
}

pub(super) fn cell(column: &BatchColumn, row: usize) -> Option<Cell> {
    if column.data.is_null(row) {
        return None;
    }
    Some(match column.kind {
        ColumnKind::Tag => {
            let array = column.data.as_dictionary::<Int32Type>();
            Cell::Tag(array.values().as_string::<i32>().value(array.keys().value(row) as usize).to_owned())
        }
        ColumnKind::Integer => Cell::Integer(column.data.as_primitive::<Int64Type>().value(row)),
        ColumnKind::UInteger => Cell::UInteger(column.data.as_primitive::<UInt64Type>().value(row)),
        ColumnKind::Float => Cell::Float(column.data.as_primitive::<Float64Type>().value(row).to_bits()),
        ColumnKind::String => Cell::Text(column.data.as_string::<i32>().value(row).to_owned()),
        ColumnKind::Boolean => Cell::Boolean(column.data.as_boolean().value(row)),
    })
}

/// A batch as the oracle says it.
pub(super) fn table_of(batch: PendingBatch) -> Table {
    let (untimed, lines, name) = (batch.untimed.clone(), batch.lines.clone(), batch.table.to_string());
    let frozen: Batch = batch.freeze(BASE_NS);
    let row = |at: usize| Row {
        line: lines.line(at),
        time: (!untimed.contains(&(at as u32))).then(|| frozen.time.value(at)),
        cells: frozen.columns.iter().filter_map(|c| Some((c.name.to_string(), cell(c, at)?))).collect(),
    };
    Table {
        name,
        columns: frozen.columns.iter().map(|c| c.name.to_string()).collect(),
        rows: (0..frozen.rows()).map(row).collect(),
    }
}

pub(super) fn outcome_of(written: ParsedWrite) -> Outcome {
    Outcome {
        tables: written.batches.into_iter().map(table_of).collect(),
        refused: written.rejected.into_iter().map(|e| (e.line_number, e.message, e.original_line)).collect(),
    }
}

/// Of a refusal the oracle knows how its text begins.
fn assert_same(mut ours: Outcome, expected: Outcome, body: &str) {
    for ((_, message, _), (_, begin, _)) in ours.refused.iter_mut().zip(&expected.refused) {
        if message.starts_with(begin.as_str()) {
            message.clone_from(begin);
        }
    }
    assert_eq!(ours, expected, "{body:?}");
}

/// Lines that are only looked at end where those end that are parsed.
fn assert_lines(written: &ParsedWrite, body: &str) {
    let (mut from, mut lines) = (0, Vec::new());
    while from < body.len() {
        let line = line_at(body.as_bytes(), from);
        lines.extend(line.counts.then(|| &body[from..line.end]));
        from = line.next;
    }
    let known = |number: u32| lines.get(number as usize - 1).copied().unwrap_or_default();
    for refused in &written.rejected {
        assert!(known(refused.line_number).ends_with(&refused.original_line), "{refused:?} of {body:?}");
    }
    let numbers = written.batches.iter().flat_map(|batch| (0..batch.rows()).map(|row| batch.lines.line(row)));
    let count = numbers.chain(written.rejected.iter().map(|line| line.line_number)).max().unwrap_or_default();
    assert!(count as usize <= lines.len(), "{body:?}");
    if written.rejected_count == written.rejected.len() && !written.batches.is_empty() {
        assert_eq!(written.line_count, lines.len(), "{body:?}");
    }
}

/// Parses with both and compares; then parses the accepted text again and compares the rows.
pub fn check(parser: &mut LineParser, body: &str, precision: Precision, partial: bool, known: &Known) {
    let bytes = Bytes::from(body.to_owned());
    let written = parser.parse("db", &bytes, precision, partial, known);
    let expected = oracle::read(body, name_of(precision), partial, COLUMNS_PER_TABLE_MAX, &known.for_oracle());
    assert_same(outcome_of(written.clone()), expected, body);
    assert_lines(&written, body);
    let later = known.with(&written);
    for batch in written.batches {
        let again = parser.parse("db", &batch.text, precision, false, &later);
        assert_eq!(again.rejected, [], "{:?}", batch.text);
        assert_eq!(again.batches.len(), 1, "{:?}", batch.text);
        let series = batch.series.clone();
        let (mut before, mut after) = (table_of(batch), table_of(again.batches[0].clone()));
        assert_eq!(series, again.batches[0].series);
        before.rows.iter_mut().chain(&mut after.rows).for_each(|row| row.line = 0);
        assert_eq!(before, after, "{body:?}");
    }
}
