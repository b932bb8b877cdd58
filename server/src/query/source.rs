//! The ports of the query side: where tables and the rows of system tables come from. The composition implements both.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use futures_util::future::BoxFuture;
use saltus_core::catalog::TableInfo;

use super::QueryError;

/// The tables of all databases.
pub trait TableSource: Send + Sync + 'static {
    /// Every database except `_internal`.
    fn databases(&self) -> Vec<Arc<str>>;

    /// Whether there is such a database; `_internal` is not asked for. Asked by each query.
    fn database_exists(&self, db: &str) -> bool;

    /// The tables of a database; none if there is no such database.
    fn tables(&self, db: &str) -> Vec<TableInfo>;

    /// The table of exactly that name. Asked by each query.
    fn table(&self, db: &str, name: &str) -> Option<TableInfo>;

    /// The table's rows as they are now. Called once per query and table, on the query runtime.
    fn snapshot(&self, table: &TableInfo) -> BoxFuture<'static, Result<Arc<dyn TableScan>, QueryError>>;
}

/// A table's rows at one moment.
pub trait TableScan: Send + Sync + 'static {
    /// The columns, `TableSchema::arrow_schema` at that moment.
    fn schema(&self) -> SchemaRef;

    /// The rows, every point exactly once, in batches of the projected schema (in the order of `projection`; an empty
    /// projection gives batches without columns that still count their rows).
    ///
    /// `time_range` is inclusive at both ends. Rows outside may be given, rows inside must be.
    ///
    /// # Errors
    /// What Arrow said while versions were merged.
    fn scan(
        &self,
        projection: Option<&[usize]>,
        time_range: Option<(i64, i64)>,
    ) -> Result<Vec<RecordBatch>, ArrowError>;

    /// How many points there are, if that is known without a merge of versions. DataFusion answers `COUNT(*)` from it, so a
    /// number that may be wrong must not be given.
    fn exact_rows(&self) -> Option<usize>;

    /// About how many rows a scan touches: decides whether a query is worth several threads. Never used for an answer.
    fn rows_hint(&self) -> Option<usize> {
        self.exact_rows()
    }
}

/// The rows of system tables. `queries`, `influxdb_schema` and, in `_internal`, `databases` and `tables` are there without
/// it; a table of the same name given here replaces them.
pub trait SystemSource: Send + Sync + 'static {
    /// The system tables of a database (of `_internal` too) and their columns.
    fn tables(&self, db: &str) -> Vec<(&'static str, SchemaRef)>;

    /// The rows of one of them now. Called on the query runtime, once per query and table.
    ///
    /// # Errors
    /// Why the rows cannot be had.
    fn scan(&self, db: &str, table: &str) -> Result<RecordBatch, QueryError>;
}
