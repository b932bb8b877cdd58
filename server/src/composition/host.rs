//! What plugins reach outside themselves: their log, SQL, and the catalog that keeps a trigger disabled.

use std::sync::Arc;

use arrow::array::RecordBatch;
use saltus_core::ports::{LogLine, PluginHost, RunRecord};
use saltus_core::trigger::TriggerDef;

use crate::logs::PluginLogs;
use crate::query::{QueryEngine, QueryKind, QueryRequest, ScalarParam};
use crate::registry::Registry;
use crate::runs::RunRecords;

/// The plugins' host.
pub(crate) struct Host {
    logs: Arc<PluginLogs>,
    runs: Arc<RunRecords>,
    query: Arc<QueryEngine>,
    registry: Registry,
}

impl Host {
    pub(crate) fn new(
        logs: Arc<PluginLogs>,
        runs: Arc<RunRecords>,
        query: Arc<QueryEngine>,
        registry: Registry,
    ) -> Self {
        Host { logs, runs, query, registry }
    }
}

impl PluginHost for Host {
    fn log(&self, line: LogLine) {
        self.logs.log(line);
    }

    fn record(&self, record: RunRecord) {
        self.runs.put(record);
    }

    fn disable(&self, trigger: &TriggerDef, reason: String) {
        self.registry.disable_failed_trigger(trigger, reason);
    }

    fn query(&self, db: &str, sql: &str, params: &[(String, String)]) -> Result<Vec<RecordBatch>, String> {
        let params = params.iter().map(|(name, value)| (name.clone(), ScalarParam::String(value.clone()))).collect();
        let request = QueryRequest { db: Some(db.to_owned()), sql: sql.to_owned(), params, kind: QueryKind::Plugin };
        self.query.execute_blocking(request).map_err(|error| error.plugin_text(db, sql))
    }
}
