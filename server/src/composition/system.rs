//! The rows of the system tables, collected from registry, engine and logs.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures_lite::future::block_on;
use hdrhistogram::Histogram;
use saltus_core::ports::{RunOutcome, RunRecord};
use saltus_core::trigger::{ErrorBehavior, Execution, Isolation, TriggerDef};
use saltus_shards::api::{ShardStats, TriggerStats};

use crate::logs::{PluginLogs, wall_clock_ns};
use crate::query::system::{
    LogRow, ShardRow, SystemRow, TimeNs, TriggerArgumentRow, TriggerLatencyRow, TriggerRow, TriggerRunRow, batch,
};
use crate::query::{QueryError, SystemSource};
use crate::registry::Registry;
use crate::registry::settings::limits_json;
use crate::runs::RunRecords;

use super::LateEngine;

/// Where the rows come from.
pub(crate) struct System {
    engine: LateEngine,
    registry: Registry,
    logs: Arc<PluginLogs>,
    runs: Arc<RunRecords>,
}

impl System {
    pub(crate) fn new(engine: LateEngine, registry: Registry, logs: Arc<PluginLogs>, runs: Arc<RunRecords>) -> Self {
        System { engine, registry, logs, runs }
    }

    fn trigger_stats(&self) -> Vec<TriggerStats> {
        self.engine.get().map(|engine| block_on(engine.trigger_stats())).unwrap_or_default()
    }

    fn triggers(&self, db: &str) -> Vec<TriggerRow> {
        let stats = self.trigger_stats();
        let of = |def: &TriggerDef| stats.iter().find(|s| s.def.id == def.id);
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
                ..LogRow::at(TimeNs(row.time_ns))
            })
            .collect()
    }

    fn runs(&self, db: &str) -> Vec<TriggerRunRow> {
        self.runs.of(db).iter().map(|(time_ns, record)| run_row(*time_ns, record)).collect()
    }

    fn latencies(&self, db: &str) -> Vec<TriggerLatencyRow> {
        let stats = self.trigger_stats();
        stats.iter().filter(|s| &*s.def.db == db).flat_map(latency_rows).collect()
    }

    fn shards(&self) -> Vec<ShardRow> {
        let stats = self.engine.get().map(|engine| block_on(engine.shard_stats())).unwrap_or_default();
        stats.iter().map(shard_row).collect()
    }
}

impl SystemSource for System {
    fn tables(&self, _db: &str) -> Vec<(&'static str, SchemaRef)> {
        fn named<R: SystemRow>() -> (&'static str, SchemaRef) {
            (R::TABLE, R::schema())
        }
        vec![
            named::<TriggerRow>(),
            named::<TriggerArgumentRow>(),
            named::<TriggerRunRow>(),
            named::<LogRow>(),
            named::<ShardRow>(),
            named::<TriggerLatencyRow>(),
        ]
    }

    fn scan(&self, db: &str, table: &str) -> Result<RecordBatch, QueryError> {
        match table {
            TriggerRow::TABLE => batch(&self.triggers(db)),
            TriggerArgumentRow::TABLE => batch(&self.arguments(db)),
            TriggerRunRow::TABLE => batch(&self.runs(db)),
            LogRow::TABLE => batch(&self.logs(db)),
            ShardRow::TABLE => batch(&self.shards()),
            TriggerLatencyRow::TABLE => batch(&self.latencies(db)),
            other => Err(QueryError::Execution(format!("there is no system table '{other}'"))),
        }
    }
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
    TriggerRow {
        trigger_name: def.name.to_string(),
        plugin_filename: def.plugin_filename.clone(),
        trigger_specification: def.spec.stored_json().to_string(),
        disabled: def.disabled,
        error_behavior: behavior.to_owned(),
        execution: execution(def),
        isolation: isolation(def),
        limits: limits_json(&def.limits).to_string(),
        lane: stats.map(|s| s.lane.to_string()),
        lane_reason: stats.map(|s| s.lane_reason.clone()),
        lane_since: stats.map(|s| TimeNs(wall_clock_ns() - i64::try_from(s.lane_for.as_nanos()).unwrap_or(0))),
        lane_barred: stats.and_then(|s| s.lane_barred.clone()),
        run_async: def.run_async,
        run_count: stats.map_or(0, |s| s.runs),
        error_count: stats.map_or(0, |s| s.errors),
        last_error: stats.and_then(|s| s.last_error.clone()),
        disabled_reason: def.disabled_reason.clone(),
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
        RunOutcome::Ended { run_id, attempt, rows, activation_ns, run_ns, error } => TriggerRunRow {
            run_id: Some(run_id.0),
            outcome: if error.is_some() { "error" } else { "success" }.to_owned(),
            detail: error.clone(),
            attempt: Some(u64::from(*attempt)),
            rows: Some(*rows as u64),
            activation_us: activation_ns.map(|ns| ns as f64 / 1000.0),
            run_us: Some(*run_ns as f64 / 1000.0),
            ..row
        },
        RunOutcome::Discarded { run_id, why } => TriggerRunRow {
            run_id: Some(run_id.0),
            outcome: "discarded".to_owned(),
            detail: Some(why.to_string()),
            ..row
        },
        RunOutcome::Decided(decision) => TriggerRunRow {
            outcome: "decision".to_owned(),
            detail: Some(format!("{} -> {}: {}", decision.from, decision.to, decision.reason)),
            ..row
        },
    }
}

fn latency_rows(stats: &TriggerStats) -> [TriggerLatencyRow; 3] {
    let row = |stage: &str, histogram: &Histogram<u64>| {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        TriggerLatencyRow {
            trigger_name: stats.def.name.to_string(),
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
    [row("activation", &stats.activation_ns), row("queue", &stats.queue_ns), row("run", &stats.run_ns)]
}

fn shard_row(stats: &ShardStats) -> ShardRow {
    let counter = |name: &str| stats.counters.iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v);
    let gauge = |name: &str| stats.gauges.iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v as u64);
    ShardRow {
        shard: u64::from(stats.shard.0),
        core: stats.cpu.map(|cpu| cpu as u64),
        connections: stats.connections,
        tables: stats.tables.len() as u64,
        batches: counter("batches_total"),
        rows: counter("rows_written_total"),
        mailbox_bytes: gauge("mailbox_bytes"),
        wal_bytes: counter("wal_bytes_total"),
        healthy: stats.poisoned.is_none(),
        reason: stats.poisoned.clone(),
    }
}
