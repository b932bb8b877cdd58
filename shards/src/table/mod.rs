//! A table in memory, owned by one shard.
//!
//! Invariants:
//! - Every applied row is in exactly one place: in a settled chunk, in a fragment, or in the tail. Chunks never change;
//!   the tail is touched by the owner alone. So a snapshot is a clone of `Arc`s, and old snapshots stay as they were.
//! - A batch of `CHUNK_DIRECT_ROWS_MIN` rows or more is a settled chunk as it is: its buffers are the table's. A smaller
//!   one is copied into the tail, which is frozen when it is full or when a snapshot is asked for. A frozen tail that is
//!   too small to settle is a fragment.
//! - Settled chunks are not merged again here. Fragments are, geometrically: of two neighbours the older has at least
//!   twice the rows of all that are newer, or they become one. So there are O(log n) fragments, and a row is copied
//!   once into the tail, once when its fragment is the newest, and then only when its fragment grows by half.
//! - One call merges fewer than [`limits::TAIL_ROWS_MAX`] rows: a fragment of half as many settles. The shard is not to
//!   stall, and a table of chunks of 4096 rows and more scans well; to make larger ones (up to
//!   `limits::CHUNK_ROWS_MAX`) is left to sealing, which rewrites all rows anyway and runs off the shard.
//! - A row that may overwrite is a *suspect* of its chunk. A point written twice has at least one suspect among its
//!   versions, all of them but the first. So a snapshot without suspects has every point once and is read as it is.
//! - Rows carry numbers in the order in which they were applied. Chunks need not: the tail may hold rows on both sides
//!   of a settled chunk.
//!
//! What this is not: it knows no log, no clock and no other thread, and it does not check what it is given. Whoever calls
//! [`Table::apply`] has made sure, through [`Table::check`] and [`Table::add_columns`], that the schema has every column
//! of the batch with its kind.
#![forbid(unsafe_code)]

mod builder;
mod chunk;
mod series;
mod snapshot;
mod tail;
mod versions;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, OnceLock};

use arrow::datatypes::SchemaRef;
use saltus_core::batch::Batch;
use saltus_core::catalog::TableInfo;
use saltus_core::ids::TableId;
use saltus_core::limits;
use saltus_core::schema::{ColumnDef, ColumnKind, TableSchema};

use chunk::{Chunk, Order};
use series::SeriesTimes;
pub use snapshot::{ChunkSummary, TableSnapshot};
use tail::Tail;

/// Bytes beyond which a tail is frozen, however few its rows.
const TAIL_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes beyond which a fragment settles, however few its rows: copying it again would stall the shard.
const FRAGMENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Series in one of the two generations of the memory of last times; 24 bytes each, taken only as needed.
const SERIES_GENERATION_MAX: usize = 256 * 1024;
/// Settled chunks that a snapshot shares by one `Arc`.
const GROUP_CHUNKS: usize = 64;

const _: () = assert!(
    TAIL_BYTES_MAX + limits::WAL_RECORD_BYTES_MAX < i32::MAX as usize,
    "a tail with one more batch has text that Arrow's 32-bit offsets can reach"
);
const _: () = assert!(
    limits::TAIL_ROWS_MAX.ilog2() as usize * FRAGMENT_BYTES_MAX < i32::MAX as usize / 2,
    "so has a merge of all fragments"
);
const _: () = assert!(limits::TAIL_ROWS_MAX <= limits::CHUNK_ROWS_MAX, "merging ends long before it is forbidden");

/// A table in memory; see the module's head.
pub struct Table {
    id: TableId,
    db: Arc<str>,
    name: Arc<str>,
    schema: Arc<TableSchema>,
    /// The schema as SQL sees it, made by the first reader and shared by all snapshots of this schema.
    arrow_schema: Arc<OnceLock<SchemaRef>>,
    bounds: Bounds,
    series: SeriesTimes,
    settled: Settled,
    /// Chunks that may still be merged, oldest first.
    fragments: Vec<Arc<Chunk>>,
    tail: Tail,
    /// Number of the next row.
    order_next: u64,
    rows_copied: u64,
    chunks_bytes: usize,
    version: u64,
    /// The snapshot of this version, once somebody asked for it; dropped at the next change so that it holds no memory.
    published: Option<TableSnapshot>,
}

/// The bounds that shape a table; tests use small ones.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    direct_rows_min: usize,
    tail_rows_max: usize,
    series_generation_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            direct_rows_min: limits::CHUNK_DIRECT_ROWS_MIN,
            tail_rows_max: limits::TAIL_ROWS_MAX,
            series_generation_max: SERIES_GENERATION_MAX,
        }
    }
}

/// What a batch's columns are to a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaCheck {
    /// Columns that the table does not have, once each, in the order given.
    pub new: Vec<ColumnDef>,
    /// Columns that the table has with another kind, or that were given with two kinds.
    pub conflicts: Vec<ColumnConflict>,
    /// How many columns too many the table would have with the new ones.
    pub columns_over_limit: usize,
}

impl SchemaCheck {
    /// Whether the columns fit, perhaps after the new ones are added.
    pub fn fits(&self) -> bool {
        self.conflicts.is_empty() && self.columns_over_limit == 0
    }
}

/// A column that is written with another kind than it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnConflict {
    /// The key, unescaped.
    pub name: Arc<str>,
    /// The kind that the column has.
    pub expected: ColumnKind,
    /// The kind that was written.
    pub got: ColumnKind,
}

impl Table {
    /// An empty table without columns.
    pub fn new(id: TableId, db: Arc<str>, name: Arc<str>) -> Table {
        Table::with_bounds(id, db, name, Bounds::default())
    }

    fn with_bounds(id: TableId, db: Arc<str>, name: Arc<str>, bounds: Bounds) -> Table {
        Table {
            id,
            db,
            name,
            schema: Arc::default(),
            arrow_schema: Arc::default(),
            bounds,
            series: SeriesTimes::new(bounds.series_generation_max),
            settled: Settled::default(),
            fragments: Vec::new(),
            tail: Tail::new(),
            order_next: 0,
            rows_copied: 0,
            chunks_bytes: 0,
            version: 0,
            published: None,
        }
    }

    /// The table's identity.
    pub fn id(&self) -> TableId {
        self.id
    }

    /// The columns now.
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    /// The table as others see it.
    pub fn info(&self) -> TableInfo {
        TableInfo { id: self.id, db: self.db.clone(), name: self.name.clone(), schema: self.schema.clone() }
    }

    /// Which of `columns` are new and which contradict the table or one another. Changes nothing.
    pub fn check<'a>(&self, columns: impl Iterator<Item = (&'a str, ColumnKind)>) -> SchemaCheck {
        let mut check = SchemaCheck::default();
        let mut met = HashMap::new();
        for (name, got) in columns {
            let expected = match self.schema.column(name) {
                Some(column) => column.kind,
                None => match met.entry(name) {
                    Entry::Occupied(first) => *first.get(),
                    Entry::Vacant(unmet) => {
                        check.new.push(ColumnDef { name: name.into(), kind: got });
                        *unmet.insert(got)
                    }
                },
            };
            if expected != got {
                check.conflicts.push(ColumnConflict { name: name.into(), expected, got });
            }
        }
        let columns = self.schema.columns().len() + check.new.len();
        check.columns_over_limit = columns.saturating_sub(limits::COLUMNS_PER_TABLE_MAX);
        check
    }

    /// Adds columns that [`Table::check`] called new.
    pub fn add_columns(&mut self, new: &[ColumnDef]) {
        if new.is_empty() {
            return;
        }
        self.schema = Arc::new(self.schema.extended(new));
        self.arrow_schema = Arc::default();
        self.changed();
    }

    /// Writes the rows of `batch`, each replacing the fields that it gives of a point that is there.
    pub fn apply(&mut self, batch: Arc<Batch>) {
        let rows = batch.rows();
        if rows == 0 {
            return;
        }
        debug_assert!(batch.columns.iter().all(|c| self.schema.column(&c.name).is_some_and(|own| own.kind == c.kind)));
        let suspects = self.observe(&batch);
        let order = Order::From(self.order_next);
        self.order_next += rows as u64;
        self.changed();
        if rows >= self.bounds.direct_rows_min {
            self.settle(Arc::new(Chunk::new(batch, order, suspects)));
        } else {
            self.append_to_tail(&batch, &order, &suspects);
        }
    }

    /// Rises with every change of rows or columns.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The table as it is now. Freezes the tail, unless nothing changed since the last snapshot.
    pub fn snapshot(&mut self) -> TableSnapshot {
        if let Some(published) = &self.published {
            return published.clone();
        }
        self.freeze_tail();
        let mut recent = self.settled.open.clone();
        recent.extend_from_slice(&self.fragments);
        let snapshot = TableSnapshot::new(
            self.schema.clone(),
            self.arrow_schema.clone(),
            self.settled.groups.clone(),
            recent,
            self.version,
        );
        self.published = Some(snapshot.clone());
        snapshot
    }

    /// Rows applied, versions of one point counted each.
    pub fn rows(&self) -> u64 {
        self.order_next
    }

    /// Bytes that the table keeps alive, an upper estimate but for what the tail's vectors hold in reserve. Kept up with
    /// every change, so asking costs nothing.
    pub fn bytes(&self) -> usize {
        self.chunks_bytes + self.tail.bytes() + self.series.bytes()
    }

    /// Rows that were copied so far, into the tail or from chunk to chunk.
    pub fn rows_copied(&self) -> u64 {
        self.rows_copied
    }

    fn changed(&mut self) {
        self.version += 1;
        self.published = None;
    }

    /// The rows of `batch` that may overwrite.
    fn observe(&mut self, batch: &Batch) -> Vec<u32> {
        let mut suspects = Vec::new();
        for (row, (&series, &time)) in batch.series.iter().zip(batch.time.values()).enumerate() {
            if self.series.observe(series, time) {
                suspects.push(row as u32);
            }
        }
        suspects
    }

    fn append_to_tail(&mut self, batch: &Batch, order: &Order, suspects: &[u32]) {
        // Frozen before it would outgrow its bound, the tail's vectors are not doubled for the last few rows.
        if self.tail.rows() + batch.rows() > self.bounds.tail_rows_max {
            self.freeze_tail();
        }
        self.tail.append(batch, order, suspects);
        self.rows_copied += batch.rows() as u64;
        if self.tail.rows() >= self.bounds.tail_rows_max || self.tail.bytes() >= TAIL_BYTES_MAX {
            self.freeze_tail();
        }
    }

    fn freeze_tail(&mut self) {
        if let Some(chunk) = self.tail.freeze() {
            self.add_fragment(Arc::new(chunk));
        }
    }

    fn add_fragment(&mut self, chunk: Arc<Chunk>) {
        if self.is_large(&chunk) {
            return self.settle(chunk);
        }
        self.chunks_bytes += chunk.bytes;
        self.fragments.push(chunk);
        let from = self.merge_from();
        if from + 1 == self.fragments.len() {
            return;
        }
        let parts = self.fragments.split_off(from);
        self.chunks_bytes -= parts.iter().map(|part| part.bytes).sum::<usize>();
        if let Some(whole) = Tail::merged(&parts) {
            self.rows_copied += whole.rows() as u64;
            // Merged with all that it had to be, it only settles or stays.
            if self.is_large(&whole) {
                self.settle(Arc::new(whole));
            } else {
                self.chunks_bytes += whole.bytes;
                self.fragments.push(Arc::new(whole));
            }
        }
    }

    /// The first of the fragments that have to become one with the newest.
    fn merge_from(&self) -> usize {
        let rows_settle = self.bounds.tail_rows_max / 2;
        let mut from = self.fragments.len() - 1;
        let mut rows = self.fragments[from].rows();
        while from > 0 && rows < rows_settle && self.fragments[from - 1].rows() < 2 * rows {
            from -= 1;
            rows += self.fragments[from].rows();
        }
        from
    }

    fn is_large(&self, chunk: &Chunk) -> bool {
        chunk.rows() >= self.bounds.tail_rows_max / 2 || chunk.bytes >= FRAGMENT_BYTES_MAX
    }

    fn settle(&mut self, chunk: Arc<Chunk>) {
        self.chunks_bytes += chunk.bytes;
        self.settled.push(chunk);
    }
}

/// Chunks that stay as they are. Full groups are shared whole, so that a snapshot of many chunks stays cheap.
#[derive(Default)]
struct Settled {
    groups: Vec<Arc<[Arc<Chunk>]>>,
    open: Vec<Arc<Chunk>>,
}

impl Settled {
    fn push(&mut self, chunk: Arc<Chunk>) {
        self.open.push(chunk);
        if self.open.len() == GROUP_CHUNKS {
            self.groups.push(self.open.drain(..).collect());
        }
    }
}
