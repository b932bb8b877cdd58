//! What all shards and the query side may know of tables: read-only views.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::ids::TableId;
use crate::schema::TableSchema;

/// One table as others see it.
#[derive(Clone, Debug)]
pub struct TableInfo {
    /// Identity with generation.
    pub id: TableId,
    /// The database it belongs to.
    pub db: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its columns now.
    pub schema: Arc<TableSchema>,
}

/// A table's rows at one moment: immutable chunks, each an Arrow record batch of the columns it has.
///
/// `batches` all have `schema` (columns sorted by name, `time` among them) and hold every acknowledged row exactly once:
/// overwritten versions are already merged away.
#[derive(Clone, Debug)]
pub struct TableRows {
    /// The schema that SQL sees.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
}
