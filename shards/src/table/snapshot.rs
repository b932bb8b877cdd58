//! Mechanism of reading a table as it was at one moment.
//!
//! 1. Chunks that cannot have rows in the wanted time are left out.
//! 2. If no chunk left has suspects, each becomes a record batch of its own: its columns are put in the order of the
//!    schema, columns that it lacks become nulls, and no value is copied.
//! 3. Otherwise the versions of the suspects' points are merged first; see [`super::versions`].
//!
//! All of it runs where the query runs, never on the shard.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use saltus_core::catalog::TableRows;
use saltus_core::schema::TableSchema;

use super::chunk::Chunk;
use super::versions;

/// A table at one moment; immutable, cheap to clone, for any thread.
#[derive(Clone)]
pub struct TableSnapshot {
    inner: Arc<Inner>,
}

struct Inner {
    schema: Arc<TableSchema>,
    arrow_schema: Arc<OnceLock<SchemaRef>>,
    groups: Vec<Arc<[Arc<Chunk>]>>,
    recent: Vec<Arc<Chunk>>,
    version: u64,
}

/// What is known of a chunk without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkSummary {
    /// Rows in the chunk, versions of one point counted each.
    pub rows: usize,
    /// The earliest time.
    pub time_min: i64,
    /// The latest time.
    pub time_max: i64,
    /// Whether a row of it may be a later version of a point, here or in another chunk.
    pub flagged: bool,
}

impl TableSnapshot {
    pub(super) fn new(
        schema: Arc<TableSchema>,
        arrow_schema: Arc<OnceLock<SchemaRef>>,
        groups: Vec<Arc<[Arc<Chunk>]>>,
        recent: Vec<Arc<Chunk>>,
        version: u64,
    ) -> Self {
        TableSnapshot { inner: Arc::new(Inner { schema, arrow_schema, groups, recent, version }) }
    }

    /// The columns at that moment.
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.inner.schema
    }

    /// The columns as SQL sees them: sorted by name, `time` among them.
    pub fn arrow_schema(&self) -> &SchemaRef {
        self.inner.arrow_schema.get_or_init(|| self.inner.schema.arrow_schema())
    }

    /// [`super::Table::version`] at that moment.
    pub fn version(&self) -> u64 {
        self.inner.version
    }

    /// Each chunk, for pruning and statistics.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkSummary> {
        self.all().map(|chunk| ChunkSummary {
            rows: chunk.rows(),
            time_min: chunk.time_min,
            time_max: chunk.time_max,
            flagged: !chunk.suspects.is_empty(),
        })
    }

    /// Rows of all chunks, versions of one point counted each: the number of points if
    /// [`TableSnapshot::exact_row_count_known`], else no less than it.
    pub fn row_count(&self) -> usize {
        self.all().map(Chunk::rows).sum()
    }

    /// Whether [`TableSnapshot::row_count`] is exact: no row may be a version of another.
    pub fn exact_row_count_known(&self) -> bool {
        self.all().all(|chunk| chunk.suspects.is_empty())
    }

    /// Bytes that the chunks keep alive, an upper estimate.
    pub fn bytes(&self) -> usize {
        self.all().map(|chunk| chunk.bytes).sum()
    }

    /// All columns of all points, each point once.
    ///
    /// # Errors
    /// What Arrow refuses; a bug.
    pub fn to_rows(&self) -> Result<TableRows, ArrowError> {
        Ok(TableRows { schema: self.arrow_schema().clone(), batches: self.scan(None, None)? })
    }

    /// The points, each once, with the columns of [`TableSnapshot::arrow_schema`] that `projection` names, in its order.
    ///
    /// `time_range`, both ends included, leaves out chunks that have no row in it. It is no filter: of the chunks that are
    /// read all rows come, and of a point outside the range perhaps an old version, or several. The caller filters.
    ///
    /// # Errors
    /// A projection beyond the schema.
    pub fn scan(
        &self,
        projection: Option<&[usize]>,
        time_range: Option<(i64, i64)>,
    ) -> Result<Vec<RecordBatch>, ArrowError> {
        let layout = Layout::new(self.arrow_schema(), projection)?;
        let chunks: Vec<&Chunk> =
            self.all().filter(|chunk| time_range.is_none_or(|range| chunk.meets(range))).collect();
        if chunks.iter().all(|chunk| chunk.suspects.is_empty()) {
            chunks.into_iter().map(|chunk| layout.whole(chunk)).collect()
        } else {
            versions::merge(&chunks, &self.inner.schema, &layout)
        }
    }

    fn all(&self) -> impl Iterator<Item = &Chunk> {
        self.inner.groups.iter().flat_map(|group| group.iter()).chain(&self.inner.recent).map(AsRef::as_ref)
    }
}

/// Where the columns of a chunk go in the output.
pub(super) struct Layout {
    pub(super) schema: SchemaRef,
    positions: HashMap<String, usize>,
}

impl Layout {
    fn new(schema: &SchemaRef, projection: Option<&[usize]>) -> Result<Self, ArrowError> {
        let schema = match projection {
            Some(projection) => Arc::new(schema.project(projection)?),
            None => schema.clone(),
        };
        let positions = schema.fields().iter().enumerate().map(|(at, field)| (field.name().clone(), at)).collect();
        Ok(Layout { schema, positions })
    }

    /// The chunk's columns in the order of the output; `None` where it has no such column.
    pub(super) fn columns(&self, chunk: &Chunk) -> Vec<Option<ArrayRef>> {
        let mut columns = vec![None; self.schema.fields().len()];
        for column in &chunk.batch.columns {
            if let Some(&at) = self.positions.get(column.name.as_ref()) {
                columns[at] = Some(column.data.clone());
            }
        }
        if let Some(&at) = self.positions.get("time") {
            columns[at] = Some(Arc::new(chunk.batch.time.clone()));
        }
        columns
    }

    /// A record batch of `rows` rows; columns that are `None` become nulls.
    pub(super) fn record_batch(&self, columns: Vec<Option<ArrayRef>>, rows: usize) -> Result<RecordBatch, ArrowError> {
        let columns = columns
            .into_iter()
            .zip(self.schema.fields())
            .map(|(column, field)| column.unwrap_or_else(|| new_null_array(field.data_type(), rows)))
            .collect();
        // The count is said because a projection may be empty.
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
    }

    /// All rows of `chunk`, nothing copied.
    pub(super) fn whole(&self, chunk: &Chunk) -> Result<RecordBatch, ArrowError> {
        self.record_batch(self.columns(chunk), chunk.rows())
    }
}
