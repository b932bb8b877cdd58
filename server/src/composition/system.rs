//! The rows of the system tables, collected from registry, engine and logs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures_lite::future::block_on;
use hdrhistogram::Histogram;
use saltus_core::ids::TriggerId;
use saltus_core::names::INTERNAL_DB;
use saltus_core::ports::{RunOutcome, RunRecord};
use saltus_core::state::State;
use saltus_core::trigger::{ErrorBehavior, Execution, Isolation, MissedRuns, TriggerDef, TriggerKind};
use saltus_shards::api::{ShardStats, TriggerStats};
use saltus_shards::dead_letters::DeadLetter;

use crate::config::Config;
use crate::logs::{PluginLogs, wall_clock_ns};
use crate::query::system::{
    DeadLetterRow, DistinctCacheRow, GenerationDurationRow, LastCacheRow, LogRow, NodeRow, ParquetFileRow,
    PluginFileRow, ShardRow, SystemRow, TimeMs, TimeNs, TokenRow, TriggerArgumentRow, TriggerLatencyRow, TriggerRow,
    TriggerRunRow, TriggerStateRow, batch,
};
use crate::query::{QueryError, SystemSource};
use crate::registry::Registry;
use crate::registry::settings::{limits_json, missing_columns};
use crate::runs::RunRecords;

use super::LateEngine;

/// Where the rows come from.
pub(crate) struct System {
    engine: LateEngine,
    registry: Registry,
    logs: Arc<PluginLogs>,
    runs: Arc<RunRecords>,
    plugin_dir: Option<PathBuf>,
    node: NodeRow,
}

impl System {
    pub(crate) fn new(
        engine: LateEngine,
        registry: Registry,
        logs: Arc<PluginLogs>,
        runs: Arc<RunRecords>,
        config: &Config,
    ) -> Self {
        let node = node_row(config, &registry);
        System { engine, registry, logs, runs, plugin_dir: config.plugin_dir.clone(), node }
    }

    /// The files of all triggers' plugins, of all databases.
    fn plugin_files(&self) -> Vec<PluginFileRow> {
        let Some(root) = &self.plugin_dir else { return Vec::new() };
        let catalog = self.registry.catalog();
        let of = |def: &Arc<TriggerDef>| {
            let mut files = Vec::new();
            python_files(&root.join(&def.plugin_filename), &mut files);
            files.sort();
            let row = |path: &PathBuf| plugin_file_row(root, def, path);
            files.iter().filter_map(row).collect::<Vec<_>>()
        };
        catalog.triggers.values().flat_map(of).collect()
    }

    fn trigger_stats(&self) -> Vec<TriggerStats> {
        self.engine.get().map(|engine| block_on(engine.trigger_stats())).unwrap_or_default()
    }

    fn triggers(&self, db: &str) -> Vec<TriggerRow> {
        let stats = self.trigger_stats();
        let by_id: HashMap<TriggerId, &TriggerStats> = stats.iter().map(|s| (s.trigger.def.id, s)).collect();
        let of = |def: &TriggerDef| by_id.get(&def.id).copied();
        self.registry.catalog().triggers_of(db).map(|def| trigger_row(def, of(def))).collect()
    }

    fn arguments(&self, db: &str) -> Vec<TriggerArgumentRow> {
        let catalog = self.registry.catalog();
        let rows = catalog.triggers_of(db).flat_map(|def| {
            def.arguments.iter().flatten().map(|(key, value)| TriggerArgumentRow {
                trigger_name: def.name.to_string(),
                argument_key: key.clone(),
                argument_value: value.clone(),
            })
        });
        rows.collect()
    }

    fn logs(&self, db: &str) -> Vec<LogRow> {
        let rows = self.logs.rows(Some(db));
        rows.iter()
            .map(|row| LogRow {
                trigger_name: row.trigger.to_string(),
                log_level: row.level.as_str().to_owned(),
                log_text: row.text.to_string(),
                run_id: row.run_id.0,
                database: row.db.to_string(),
                duration_us: row.took.map(|took| took.as_nanos() as f64 / 1000.0),
                traceback: traceback_in(&row.text).map(str::to_owned),
                ..LogRow::at(TimeNs(row.time_ns))
            })
            .collect()
    }

    fn runs(&self, db: &str) -> Vec<TriggerRunRow> {
        self.runs.of(db).iter().map(|(time_ns, record)| run_row(*time_ns, record)).collect()
    }

    fn dead_letters(&self, db: &str) -> Vec<DeadLetterRow> {
        let letters = self.engine.get().map(|engine| block_on(engine.dead_letters())).unwrap_or_default();
        letters.iter().filter(|letter| letter.account.db == db).map(|letter| dead_letter_row(letter)).collect()
    }

    fn states(&self, db: &str) -> Vec<TriggerStateRow> {
        let states = self.engine.get().map(|engine| block_on(engine.trigger_states())).unwrap_or_default();
        let catalog = self.registry.catalog();
        let defs = catalog.triggers_of(db);
        let states: HashMap<TriggerId, Arc<State>> = states.into_iter().collect();
        let of = |def: &TriggerDef| states.get(&def.id).cloned();
        let rows = defs.filter_map(|def| Some((def.name.clone(), of(def)?)));
        rows.flat_map(|(name, state)| {
            let row = |(key, value): (&Arc<str>, &Arc<str>)| TriggerStateRow {
                trigger_name: name.to_string(),
                key: key.to_string(),
                value: value.to_string(),
                revision: state.revision,
            };
            state.iter().map(row).collect::<Vec<_>>()
        })
        .collect()
    }

    fn latencies(&self, db: &str) -> Vec<TriggerLatencyRow> {
        let stats = self.trigger_stats();
        stats.iter().filter(|s| *s.trigger.def.db == *db).flat_map(latency_rows).collect()
    }

    fn shards(&self) -> Vec<ShardRow> {
        let stats = self.engine.get().map(|engine| block_on(engine.shard_stats())).unwrap_or_default();
        stats.iter().map(shard_row).collect()
    }
}

impl SystemSource for System {
    fn tables(&self, db: &str) -> Vec<(&'static str, SchemaRef)> {
        fn named<R: SystemRow>() -> (&'static str, SchemaRef) {
            (R::TABLE, R::schema())
        }
        let of_every_database = [
            named::<TriggerRow>(),
            named::<TriggerArgumentRow>(),
            named::<TriggerRunRow>(),
            named::<DeadLetterRow>(),
            named::<TriggerStateRow>(),
            named::<LogRow>(),
            named::<ShardRow>(),
            named::<TriggerLatencyRow>(),
            named::<LastCacheRow>(),
            named::<DistinctCacheRow>(),
            named::<ParquetFileRow>(),
        ];
        let of_the_node =
            [named::<PluginFileRow>(), named::<TokenRow>(), named::<NodeRow>(), named::<GenerationDurationRow>()];
        let of_the_node = of_the_node.into_iter().filter(|_| db == INTERNAL_DB);
        of_every_database.into_iter().chain(of_the_node).collect()
    }

    fn scan(&self, db: &str, table: &str) -> Result<RecordBatch, QueryError> {
        match table {
            TriggerRow::TABLE => batch(&self.triggers(db)),
            TriggerArgumentRow::TABLE => batch(&self.arguments(db)),
            TriggerRunRow::TABLE => batch(&self.runs(db)),
            DeadLetterRow::TABLE => batch(&self.dead_letters(db)),
            TriggerStateRow::TABLE => batch(&self.states(db)),
            LogRow::TABLE => batch(&self.logs(db)),
            PluginFileRow::TABLE => batch(&self.plugin_files()),
            ShardRow::TABLE => batch(&self.shards()),
            TriggerLatencyRow::TABLE => batch(&self.latencies(db)),
            NodeRow::TABLE => batch(std::slice::from_ref(&self.node)),
            // There is nothing of the kind yet, and questions for it are answered so.
            LastCacheRow::TABLE => batch::<LastCacheRow>(&[]),
            DistinctCacheRow::TABLE => batch::<DistinctCacheRow>(&[]),
            ParquetFileRow::TABLE => batch::<ParquetFileRow>(&[]),
            TokenRow::TABLE => batch::<TokenRow>(&[]),
            GenerationDurationRow::TABLE => batch::<GenerationDurationRow>(&[]),
            other => Err(QueryError::Execution(format!("there is no system table '{other}'"))),
        }
    }
}

/// What is to be known of this node, which is the only one.
fn node_row(config: &Config, registry: &Registry) -> NodeRow {
    let given: serde_json::Map<_, _> =
        config.given.iter().map(|(key, value)| ((*key).to_owned(), value.as_str().into())).collect();
    NodeRow {
        node_id: config.node_id.clone(),
        node_catalog_id: 0,
        instance_id: registry.catalog().instance.to_string(),
        mode: vec!["core".to_owned()],
        core_count: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
        state: "running".to_owned(),
        updated_at: Some(TimeMs(wall_clock_ns() / 1_000_000)),
        cli_params: Some(serde_json::Value::Object(given).to_string()),
    }
}

/// A file, or the Python files of a folder.
fn python_files(path: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(path) else {
        return found.push(path.to_owned());
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|ending| ending == "py") || path.is_dir() && !path.ends_with("__pycache__") {
            python_files(&path, found);
        }
    }
}

/// The row of a file, if it is there.
fn plugin_file_row(root: &Path, def: &TriggerDef, path: &Path) -> Option<PluginFileRow> {
    let file = std::fs::metadata(path).ok()?;
    let modified = file.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(PluginFileRow {
        plugin_name: def.name.to_string(),
        file_name: path.strip_prefix(root).unwrap_or(path).display().to_string(),
        file_path: path.display().to_string(),
        size_bytes: i64::try_from(file.len()).unwrap_or(i64::MAX),
        last_modified: i64::try_from(modified.as_millis()).unwrap_or(i64::MAX),
    })
}

/// The traceback that the engine puts behind the line of a failure.
fn traceback_in(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('\n')?;
    rest.starts_with("Traceback (most recent call last)").then_some(rest)
}

fn execution(def: &TriggerDef) -> String {
    match def.execution {
        Execution::Auto => "auto",
        Execution::Inline => "inline",
        Execution::Deferred => "deferred",
    }
    .to_owned()
}

fn isolation(def: &TriggerDef) -> String {
    match def.isolation {
        Isolation::Auto => "auto",
        Isolation::Interpreter => "interpreter",
        Isolation::Process => "process",
    }
    .to_owned()
}

fn trigger_row(def: &TriggerDef, stats: Option<&TriggerStats>) -> TriggerRow {
    let behavior = match def.error_behavior {
        ErrorBehavior::Log => "log",
        ErrorBehavior::Retry => "retry",
        ErrorBehavior::Disable => "disable",
    };
    let schedule = stats.and_then(|stats| stats.schedule);
    TriggerRow {
        trigger_name: def.name.to_string(),
        plugin_filename: def.plugin_filename.clone(),
        trigger_specification: def.spec.stored_json().to_string(),
        disabled: def.disabled,
        error_behavior: behavior.to_owned(),
        execution: execution(def),
        isolation: isolation(def),
        limits: limits_json(&def.limits).to_string(),
        missing_columns: missing_columns(def.api.missing_columns).to_owned(),
        restore_cache: def.api.restore_cache,
        lane: stats.map(|s| s.lane.to_string()),
        lane_reason: stats.map(|s| s.lane_reason.clone()),
        interpreter: stats.and_then(|s| s.seat).map(|seat| seat.as_str().to_owned()),
        lane_since: stats.map(|s| TimeNs(wall_clock_ns() - i64::try_from(s.lane_for.as_nanos()).unwrap_or(0))),
        lane_barred: stats.and_then(|s| s.lane_barred.clone()),
        run_async: def.run_async,
        run_count: stats.map_or(0, |s| s.runs),
        error_count: stats.map_or(0, |s| s.errors),
        last_error: stats.and_then(|s| s.last_error.clone()),
        memory_bytes: stats.and_then(|s| s.memory).map(|memory| memory.held),
        disabled_reason: def.disabled_reason.clone(),
        time_zone: def.timing.time_zone.clone(),
        missed_runs: (def.spec.kind() == TriggerKind::Schedule).then(|| missed_runs(def).to_owned()),
        last_scheduled_time: schedule.and_then(|s| s.last_ns).map(TimeNs),
        next_scheduled_time: schedule.and_then(|s| s.next_ns).map(TimeNs),
        missed_count: schedule.map(|s| s.missed),
    }
}

fn missed_runs(def: &TriggerDef) -> &'static str {
    match def.timing.missed_runs {
        MissedRuns::Skip => "skip",
        MissedRuns::Once => "once",
        MissedRuns::All => "all",
    }
}

fn run_row(time_ns: i64, record: &RunRecord) -> TriggerRunRow {
    let row = TriggerRunRow {
        event_time: TimeNs(time_ns),
        trigger_name: record.trigger.to_string(),
        lane: record.lane.to_string(),
        ..TriggerRunRow::default()
    };
    match &record.what {
        RunOutcome::Ended { run_id, attempt, rows, activation_ns, run_ns, memory, error, .. } => TriggerRunRow {
            run_id: Some(run_id.0),
            outcome: if error.is_some() { "error" } else { "success" }.to_owned(),
            detail: error.clone(),
            attempt: Some(u64::from(*attempt)),
            rows: Some(*rows as u64),
            activation_us: activation_ns.map(|ns| ns as f64 / 1000.0),
            run_us: Some(*run_ns as f64 / 1000.0),
            memory_peak_bytes: memory.map(|memory| memory.peak),
            ..row
        },
        RunOutcome::Discarded { run_id, why } => TriggerRunRow {
            run_id: Some(run_id.0),
            outcome: "discarded".to_owned(),
            detail: Some(why.to_string()),
            ..row
        },
        RunOutcome::Decided(decision) => {
            TriggerRunRow { outcome: "decision".to_owned(), detail: Some(decision.to_string()), ..row }
        }
    }
}

fn dead_letter_row(letter: &DeadLetter) -> DeadLetterRow {
    let account = &letter.account;
    DeadLetterRow {
        event_time: TimeNs(account.time_ns),
        letter_id: letter.id.to_string(),
        trigger_name: account.trigger_name.clone(),
        reason: account.reason.as_str().to_owned(),
        attempts: u64::from(account.attempts),
        run_id: account.run_id,
        tables: account.tables.join(", "),
        rows: account.rows,
        event_ids: account.events().join(", "),
        event: account.event.clone(),
        error: account.error.clone(),
        traceback: Some(account.traceback.clone()).filter(|text| !text.is_empty()),
    }
}

fn latency_rows(stats: &TriggerStats) -> Vec<TriggerLatencyRow> {
    let row = |stage: &str, histogram: &Histogram<u64>| {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        TriggerLatencyRow {
            trigger_name: stats.trigger.def.name.to_string(),
            lane: stats.lane.to_string(),
            stage: stage.to_owned(),
            count: histogram.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1000.0,
        }
    };
    let first = if stats.schedule.is_some() { "schedule_delay" } else { "activation" };
    let mut rows = vec![row(first, &stats.activation_ns), row("queue", &stats.queue_ns), row("run", &stats.run_ns)];
    if stats.trigger.def.spec.kind() == TriggerKind::Request {
        rows.push(row("response", &stats.response_ns));
    }
    rows
}

fn shard_row(stats: &ShardStats) -> ShardRow {
    let counter = |name: &str| stats.counters.iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v);
    let gauge = |name: &str| stats.gauges.iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v as u64);
    ShardRow {
        shard: u64::from(stats.shard.0),
        core: stats.cpu.map(|cpu| cpu as u64),
        connections: stats.connections,
        tables: gauge("tables"),
        batches: counter("batches_total"),
        rows: counter("rows_written_total"),
        mailbox_bytes: gauge("mailbox_bytes"),
        wal_bytes: counter("wal_bytes_total"),
        cpu_seconds: stats.cpu_time.as_secs_f64(),
        busy_seconds: stats.busy.as_secs_f64(),
        turn_p99_us: stats.turn_ns.value_at_quantile(0.99) as f64 / 1000.0,
        turn_max_us: stats.turn_ns.max() as f64 / 1000.0,
        stalls: stats.stalls,
        healthy: stats.poisoned.is_none() && stats.short.is_none(),
        reason: stats.poisoned.clone().or_else(|| stats.short.clone()),
    }
}
