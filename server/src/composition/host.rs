//! What plugins reach outside themselves: their log and SQL.

use std::sync::Arc;

use arrow::array::RecordBatch;
use saltus_core::ports::{LogLine, PluginHost};

use crate::logs::PluginLogs;
use crate::query::{QueryEngine, QueryKind, QueryRequest, ScalarParam};

/// The plugins' host.
pub(crate) struct Host {
    logs: Arc<PluginLogs>,
    query: Arc<QueryEngine>,
}

impl Host {
    pub(crate) fn new(logs: Arc<PluginLogs>, query: Arc<QueryEngine>) -> Self {
        Host { logs, query }
    }
}

impl PluginHost for Host {
    fn log(&self, line: LogLine) {
        self.logs.log(line);
    }

    fn query(&self, db: &str, sql: &str, params: &[(String, String)]) -> Result<Vec<RecordBatch>, String> {
        let params = params.iter().map(|(name, value)| (name.clone(), ScalarParam::String(value.clone()))).collect();
        let request = QueryRequest { db: Some(db.to_owned()), sql: sql.to_owned(), params, kind: QueryKind::Plugin };
        self.query.execute_blocking(request).map_err(|error| error.plugin_text(db, sql))
    }
}
