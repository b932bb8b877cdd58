//! The engine's tables as queries read them.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use futures_util::future::BoxFuture;
use saltus_core::catalog::TableInfo;
use saltus_shards::engine::TableSnapshot;

use crate::query::{QueryError, TableScan, TableSource};
use crate::registry::Registry;

use super::LateEngine;

/// Databases of the catalog and of the engine, tables of the engine.
pub(crate) struct Tables {
    engine: LateEngine,
    registry: Registry,
}

impl Tables {
    pub(crate) fn new(engine: LateEngine, registry: Registry) -> Self {
        Tables { engine, registry }
    }
}

impl TableSource for Tables {
    fn databases(&self) -> Vec<Arc<str>> {
        let mut all: Vec<Arc<str>> = self.registry.catalog().databases.keys().cloned().collect();
        all.extend(self.engine.get().map(|e| e.databases()).unwrap_or_default());
        all.sort();
        all.dedup();
        all
    }

    fn database_exists(&self, db: &str) -> bool {
        self.registry.catalog().databases.contains_key(db) || self.engine.get().is_some_and(|e| e.has_database(db))
    }

    fn tables(&self, db: &str) -> Vec<TableInfo> {
        self.engine.get().map(|e| e.tables(db)).unwrap_or_default()
    }

    fn table(&self, db: &str, name: &str) -> Option<TableInfo> {
        self.engine.get()?.table(db, name)
    }

    fn snapshot(&self, table: &TableInfo) -> BoxFuture<'static, Result<Arc<dyn TableScan>, QueryError>> {
        let (engine, table) = (self.engine.get().cloned(), table.clone());
        Box::pin(async move {
            let engine = engine.ok_or_else(|| QueryError::Execution("the engine is still starting".into()))?;
            let snapshot = engine.snapshot(&table).await.map_err(|error| QueryError::Execution(error.to_string()))?;
            Ok(Arc::new(Snapshot(snapshot)) as Arc<dyn TableScan>)
        })
    }
}

/// A table's rows at one moment.
struct Snapshot(TableSnapshot);

impl TableScan for Snapshot {
    fn schema(&self) -> SchemaRef {
        self.0.arrow_schema().clone()
    }

    fn scan(
        &self,
        projection: Option<&[usize]>,
        time_range: Option<(i64, i64)>,
    ) -> Result<Vec<RecordBatch>, ArrowError> {
        self.0.scan(projection, time_range)
    }

    fn exact_rows(&self) -> Option<usize> {
        self.0.exact_row_count_known().then(|| self.0.row_count())
    }

    fn rows_hint(&self) -> Option<usize> {
        Some(self.0.row_count())
    }
}
