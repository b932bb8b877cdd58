//! What plugins reach outside themselves: their log, SQL, and the catalog that keeps a trigger disabled.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::RecordBatch;
use futures_lite::StreamExt as _;
use futures_util::future::{Either, select};
use saltus_core::ids::ShardId;
use saltus_core::limits::PLUGIN_QUERY_BYTES_MAX;
use saltus_core::line_protocol::Precision;
use saltus_core::names::{INTERNAL_DB, check_db_name};
use saltus_core::ports::{LogLine, PluginHost, RunRecord, Stall, SyncWrite};
use saltus_core::query_param::QueryParam;
use saltus_core::trigger::TriggerDef;
use saltus_shards::api::WriteRequest;
use saltus_shards::engine::mono_now;

use super::LateEngine;
use crate::logs::PluginLogs;
use crate::quarantine::{Entry, Quarantine};
use crate::query::{QueryEngine, QueryError, QueryKind, QueryRequest, ScalarParam, require_distinct};
use crate::registry::Registry;
use crate::runs::RunRecords;
use crate::traces::Tracer;

/// How often it is asked whether a plugin still waits for its query.
const WANTED_LOOK: Duration = Duration::from_millis(50);

/// The plugins' host.
pub(crate) struct Host {
    logs: Arc<PluginLogs>,
    runs: Arc<RunRecords>,
    query: Arc<QueryEngine>,
    registry: Registry,
    engine: LateEngine,
    quarantine: Quarantine,
    tracer: Option<Arc<Tracer>>,
}

impl Host {
    pub(crate) fn new(
        logs: Arc<PluginLogs>,
        runs: Arc<RunRecords>,
        query: Arc<QueryEngine>,
        registry: Registry,
        engine: LateEngine,
        quarantine: Quarantine,
        tracer: Option<Arc<Tracer>>,
    ) -> Self {
        Host { logs, runs, query, registry, engine, quarantine, tracer }
    }

    /// What the quarantine keeps of a stall.
    fn entry(&self, stall: &Stall) -> Entry {
        let catalog = self.registry.catalog();
        let def = catalog.triggers.values().find(|def| def.id == stall.trigger);
        let name = |of: fn(&TriggerDef) -> String| def.map_or_else(|| "(deleted)".to_owned(), |def| of(def));
        Entry {
            code: format!("{:016x}", stall.code),
            plugin_filename: name(|def| def.plugin_filename.clone()),
            db: name(|def| def.db.to_string()),
            trigger_name: name(|def| def.name.to_string()),
            since: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
        }
    }

    fn set_stalled(&self, shard: ShardId, reason: Option<String>) {
        if let Some(engine) = self.engine.get() {
            engine.set_stalled(shard, reason);
        }
    }
}

impl PluginHost for Host {
    fn was_created(&self, db: &str) -> bool {
        self.registry.catalog().databases.contains_key(db)
    }

    fn log(&self, line: LogLine) {
        self.logs.log(line);
    }

    fn record(&self, record: RunRecord) {
        if let Some(tracer) = &self.tracer {
            tracer.run(&record);
        }
        self.runs.put(record);
    }

    fn disable(&self, trigger: &TriggerDef, reason: String) {
        self.registry.disable_failed_trigger(trigger, reason);
    }

    fn stalled(&self, stall: &Stall) {
        let entry = self.entry(stall);
        let (shard, trigger, plugin) = (stall.shard, entry.trigger_name, entry.plugin_filename);
        self.set_stalled(
            shard,
            Some(format!("shard {shard} does not come back from a run of trigger {trigger} ({plugin})")),
        );
    }

    fn quarantine(&self, stall: &Stall) {
        let entry = self.entry(stall);
        let (trigger, plugin) = (entry.trigger_name.clone(), entry.plugin_filename.clone());
        tracing::error!(shard = stall.shard.0, trigger, plugin, lasts = ?stall.lasts, "an inline run cannot be interrupted and holds up its shard: the plugin is in quarantine, its next runs are in the process lane");
        if let Err(error) = self.quarantine.add(stall.code, entry) {
            tracing::error!(%error, "the quarantine is not on the disk: the plugin may hold up a shard again after a restart");
        }
    }

    fn stall_over(&self, shard: ShardId) {
        tracing::warn!(shard = shard.0, "the shard is back");
        self.set_stalled(shard, None);
    }

    fn ask_restart(&self, reason: String) {
        tracing::error!(reason, "restart the server");
        if let Some(engine) = self.engine.get() {
            engine.ask_restart(reason);
        }
    }

    fn quarantined(&self, code: u64) -> bool {
        self.quarantine.holds(code)
    }

    fn query(&self, db: &str, sql: &str, params: &[(String, QueryParam)]) -> Result<Vec<RecordBatch>, String> {
        self.query_while(db, sql, params, &|| true)
    }

    fn query_while(
        &self,
        db: &str,
        sql: &str,
        params: &[(String, QueryParam)],
        wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<RecordBatch>, String> {
        if db != INTERNAL_DB && check_db_name(db).is_err() {
            return Err(format!("invalid database name provided: {db}"));
        }
        let params = params.iter().map(|(name, value)| (name.clone(), scalar(value))).collect();
        let request = QueryRequest { db: Some(db.to_owned()), sql: sql.to_owned(), params, kind: QueryKind::Plugin };
        let mut whole = Box::pin(bounded(self.query.execute(request)));
        let result = futures_lite::future::block_on(async {
            loop {
                match select(whole.as_mut(), pin!(self.query.pause(WANTED_LOOK))).await {
                    Either::Left((result, _)) => return result,
                    Either::Right(_) if wanted() => {}
                    // Dropped with this, the query ends.
                    Either::Right(_) => {
                        return Err(QueryError::Execution("the run is over".into()));
                    }
                }
            }
        });
        result.map_err(|error| error.plugin_text(db, sql))
    }

    fn write(&self, write: SyncWrite) -> Result<(), String> {
        let SyncWrite { db, lines, no_sync, depth } = write;
        check_target(&db)?;
        let engine = self.engine.get().ok_or("Cannot write: the server is starting")?;
        let request = WriteRequest {
            db,
            body: lines.into_bytes().into(),
            precision: Precision::Nanosecond,
            accept_partial: false,
            no_sync,
            received: mono_now(),
        };
        engine.write_of_plugin(request, depth).map_err(|cause| format!("Cannot write: {cause}"))
    }

    fn check_write(&self, shard: ShardId, db: &str, lines: &str) -> Result<bool, String> {
        check_target(db)?;
        let engine = self.engine.get().ok_or("Cannot write: the server is starting")?;
        engine.check_write(shard, db, lines).map_err(|cause| format!("Cannot write: {cause}"))
    }
}

fn check_target(db: &str) -> Result<(), String> {
    check_db_name(db).map_err(|_| format!("invalid database name: {db}"))
}

fn scalar(value: &QueryParam) -> ScalarParam {
    match value {
        QueryParam::Null => ScalarParam::Null,
        QueryParam::Bool(value) => ScalarParam::Bool(*value),
        QueryParam::Int(value) => ScalarParam::Int(*value),
        QueryParam::UInt(value) => ScalarParam::UInt(*value),
        QueryParam::Float(value) => ScalarParam::Float(*value),
        QueryParam::Text(value) => ScalarParam::String(value.clone()),
        QueryParam::Timestamp(value) => ScalarParam::TimestampNs(*value),
    }
}

/// The whole result, if it is not too large for a plugin.
async fn bounded(
    started: impl Future<Output = Result<crate::query::QueryStream, QueryError>>,
) -> Result<Vec<RecordBatch>, QueryError> {
    let mut stream = started.await?;
    // A row is a dict.
    require_distinct(&stream.schema())?;
    let (mut batches, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        bytes += batch.get_array_memory_size();
        if bytes > PLUGIN_QUERY_BYTES_MAX {
            return Err(QueryError::TooLarge(format!(
                "the result has more than {PLUGIN_QUERY_BYTES_MAX} bytes: ask for fewer columns, aggregate, or add a LIMIT"
            )));
        }
        batches.push(batch);
    }
    Ok(batches)
}
