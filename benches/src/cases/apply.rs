//! What the owner of a table pays: rows that are applied, a snapshot that is asked for.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, Int64Array, StringArray, TimestampNanosecondArray};
use saltus_core::batch::{Batch, BatchColumn};
use saltus_core::ids::TableId;
use saltus_core::schema::ColumnKind;
use saltus_shards::table::{Table, TableSnapshot};

use super::{Measured, Size, warm};

/// Rows of a large batch.
pub(super) const ROWS: usize = 5000;
/// Batches of one row in a run.
pub(super) const SINGLE: usize = 1000;
/// Rows in the tail when a snapshot is asked for.
const TAIL: usize = 500;
/// Rows after which a table is made anew, so that no run meets a table of any size.
const TABLE_ROWS_MAX: u64 = 400_000;
const TAGS: usize = 10;
const FIELDS: usize = 10;
const SERIES: usize = 4000;

/// Rows `from..from + rows` of an endless input in which 4000 series take turns: 10 tags, 10 integers and time, as in the
/// case `cpu-only` of the Time Series Benchmark Suite.
pub fn batch(from: usize, rows: usize) -> Arc<Batch> {
    let numbers = from..from + rows;
    let series: Vec<usize> = numbers.clone().map(|row| row % SERIES).collect();
    let tags = (0..TAGS).map(|tag| BatchColumn {
        name: format!("tag_{tag}").into(),
        kind: ColumnKind::Tag,
        data: tag_column(tag, &series),
    });
    let fields = (0..FIELDS).map(|field| BatchColumn {
        name: format!("usage_{field}").into(),
        kind: ColumnKind::Integer,
        data: Arc::new(Int64Array::from_iter_values(numbers.clone().map(|row| (row * 7 + field) as i64 % 100))),
    });
    Arc::new(Batch {
        columns: tags.chain(fields).collect(),
        time: TimestampNanosecondArray::from_iter_values(numbers.clone().map(|row| (row / SERIES) as i64)),
        series: series.iter().map(|&series| (series as u64 + 1).wrapping_mul(0xD6E8_FEB8_6659_FD93)).collect(),
    })
}

/// The first tag names the series; the others have few values.
fn tag_column(tag: usize, series: &[usize]) -> ArrayRef {
    let values = |series: usize| if tag == 0 { series } else { series % (tag * 3) };
    let mut texts: Vec<usize> = series.iter().map(|&series| values(series)).collect();
    texts.sort_unstable();
    texts.dedup();
    let keys = series.iter().map(|&series| texts.partition_point(|&text| text < values(series)) as i32);
    let keys = Int32Array::from_iter_values(keys);
    let texts = StringArray::from_iter_values(texts.iter().map(|text| format!("value_{text}")));
    Arc::new(DictionaryArray::new(keys, Arc::new(texts)))
}

/// An empty table that has the columns of `batch`.
pub fn table(batch: &Batch) -> Table {
    let mut table = Table::new(TableId(1), "tsbs".into(), "cpu".into());
    let check = table.check(batch.columns.iter().map(|column| (column.name.as_ref(), column.kind)));
    table.add_columns(&check.new);
    table
}

/// A table, and the batches of the next run.
struct Apply {
    table: Table,
    /// Number of the next row.
    row: usize,
    rows_per_batch: usize,
    batches: Vec<Arc<Batch>>,
    per_run: usize,
}

impl Apply {
    fn new(rows_per_batch: usize, per_run: usize) -> Self {
        let mut apply = Apply { table: table(&batch(0, 1)), row: 0, rows_per_batch, batches: Vec::new(), per_run };
        apply.begin();
        apply
    }

    /// A table that knows all series.
    fn begin(&mut self) {
        let first = batch(0, SERIES);
        self.table = table(&first);
        self.table.apply(first);
        self.row = SERIES;
    }

    fn next_batch(&mut self) -> Arc<Batch> {
        let next = batch(self.row, self.rows_per_batch);
        self.row += self.rows_per_batch;
        next
    }
}

impl Measured for Apply {
    fn reset(&mut self) {
        if self.table.rows() >= TABLE_ROWS_MAX {
            self.begin();
        }
        self.batches = (0..self.per_run).map(|_| self.next_batch()).collect();
    }

    fn run(&mut self) -> u64 {
        for batch in &self.batches {
            self.table.apply(batch.clone());
        }
        self.table.rows()
    }
}

/// Batches that become chunks of the table as they are.
pub(super) fn bulk(size: Size) -> Box<dyn Measured> {
    warm(Apply::new(size.of(ROWS), 1), 3)
}

/// Batches of one row, copied into the tail.
pub(super) fn single_rows(size: Size) -> Box<dyn Measured> {
    warm(Apply::new(1, size.of(SINGLE)), 3)
}

/// A table of which somebody wants a snapshot.
struct Snapshot {
    apply: Apply,
    snapshot: Option<TableSnapshot>,
}

impl Measured for Snapshot {
    fn reset(&mut self) {
        self.snapshot = None;
        self.apply.reset();
        self.apply.run();
    }

    fn run(&mut self) -> u64 {
        let snapshot = self.apply.table.snapshot();
        let version = snapshot.version();
        self.snapshot = Some(snapshot);
        version
    }
}

/// A snapshot of a table of 40 large chunks, with rows in the tail that have to be frozen.
pub(super) fn snapshot(size: Size) -> Box<dyn Measured> {
    let mut apply = Apply::new(size.of(ROWS), size.of(40));
    apply.reset();
    apply.run();
    (apply.rows_per_batch, apply.per_run) = (1, size.of(TAIL));
    warm(Snapshot { apply, snapshot: None }, 2)
}
