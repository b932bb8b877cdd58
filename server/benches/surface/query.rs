//! The planning of a query: the statement parsed, the table found, its snapshot taken, logical and physical plan made and
//! optimised. Nothing is computed.

use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use futures_lite::future::block_on;
use futures_util::future::BoxFuture;
use saltus::query::{
    QueryConfig, QueryEngine, QueryError, QueryKind, QueryRequest, SystemSource, TableScan, TableSource,
};
use saltus_core::catalog::TableInfo;
use saltus_core::ids::{Epoch, ShardId, TableId};
use saltus_core::schema::{ColumnDef, ColumnKind, TableSchema};

use super::Measured;

/// What a dashboard asks.
const SQL: &str = "SELECT date_bin(INTERVAL '1 minute', time) AS minute, hostname, avg(usage_user) AS mean, max(usage_system) AS \
                   peak FROM cpu WHERE time >= '2016-01-01T00:00:00Z' AND time < '2016-01-01T01:00:00Z' AND region = \
                   'eu-west-1' GROUP BY minute, hostname ORDER BY minute, hostname LIMIT 100";

/// One table of 10 tags and 10 integers without rows.
#[derive(Clone)]
struct Tables(TableInfo);

impl TableScan for Tables {
    fn schema(&self) -> SchemaRef {
        self.0.schema.arrow_schema()
    }

    fn scan(
        &self,
        _projection: Option<&[usize]>,
        _time_range: Option<(i64, i64)>,
    ) -> Result<Vec<RecordBatch>, ArrowError> {
        unreachable!("a plan is not computed")
    }

    fn exact_rows(&self) -> Option<usize> {
        Some(1_000_000)
    }
}

impl TableSource for Tables {
    fn databases(&self) -> Vec<Arc<str>> {
        vec![self.0.db.clone()]
    }

    fn database_exists(&self, db: &str) -> bool {
        *self.0.db == *db
    }

    fn tables(&self, _db: &str) -> Vec<TableInfo> {
        vec![self.0.clone()]
    }

    fn table(&self, _db: &str, name: &str) -> Option<TableInfo> {
        (*self.0.name == *name).then(|| self.0.clone())
    }

    fn snapshot(&self, _table: &TableInfo) -> BoxFuture<'static, Result<Arc<dyn TableScan>, QueryError>> {
        let scan = Arc::new(self.clone());
        Box::pin(async move { Ok(scan as Arc<dyn TableScan>) })
    }
}

struct NoSystem;

impl SystemSource for NoSystem {
    fn tables(&self, _db: &str) -> Vec<(&'static str, SchemaRef)> {
        Vec::new()
    }

    fn scan(&self, _db: &str, table: &str) -> Result<RecordBatch, QueryError> {
        Err(QueryError::Execution(format!("there is no table {table}")))
    }
}

struct Planning {
    engine: QueryEngine,
    request: QueryRequest,
    queries: usize,
}

impl Measured for Planning {
    fn reset(&mut self) {}

    fn run(&mut self) -> u64 {
        for _ in 0..self.queries {
            block_on(self.engine.plan(&self.request)).expect("the query can be planned");
        }
        self.queries as u64
    }
}

/// The same query planned so many times.
pub(super) fn planning(queries: usize) -> Box<dyn Measured> {
    let tags = ["hostname", "region", "datacenter", "rack", "os", "arch", "team", "service", "version", "environment"];
    let fields = ["user", "system", "idle", "nice", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];
    let tags = tags.iter().map(|name| ColumnDef { name: (*name).into(), kind: ColumnKind::Tag });
    let fields =
        fields.iter().map(|name| ColumnDef { name: format!("usage_{name}").into(), kind: ColumnKind::Integer });
    let schema = Arc::new(TableSchema::new(tags.chain(fields).collect(), 1));
    let id = TableId::new(Epoch(1), ShardId(0), 1);
    let tables = Tables(TableInfo { id, db: "benchmark".into(), name: "cpu".into(), schema });
    let one = NonZeroUsize::MIN;
    let config = QueryConfig {
        threads: one,
        memory_bytes: 1 << 30,
        max_concurrent: one,
        timeout: std::time::Duration::from_secs(60),
        query_log_entries: 1,
        shard_cpus: Vec::new(),
    };
    let engine = QueryEngine::new(Arc::new(tables), Arc::new(NoSystem), &config).expect("the runtime starts");
    let request =
        QueryRequest { db: Some("benchmark".into()), sql: SQL.into(), params: Vec::new(), kind: QueryKind::Sql };
    Box::new(Planning { engine, request, queries })
}
