//! What `/metrics` says of the interpreters and the worker processes.

use std::sync::Arc;

use saltus_python::{CacheCounts, PythonRuntime};

use crate::http::metrics::{MetricKind, MetricsSource, MetricsText};

/// The runtime as a part of `/metrics`.
pub(crate) struct Plugins(pub(crate) Arc<PythonRuntime>);

impl MetricsSource for Plugins {
    fn write(&self, text: &mut MetricsText) {
        let counts = self.0.process_counts();
        let mut counter = |name: &str, help: &'static str, value: u64| {
            text.sample(name, MetricKind::Counter, help, &[], value as f64);
        };
        counter(
            "saltus_plugin_output_dropped_bytes_total",
            "Bytes that plugins printed and the log had no room for.",
            saltus_python::dropped_bytes(),
        );
        counter(
            "saltus_plugin_log_lines_left_out_total",
            "Log lines of plugins beyond what their triggers may write.",
            saltus_python::log_lines_left_out(),
        );
        counter(
            "saltus_plugin_memory_limits_met_total",
            "Runs that wanted more memory than their triggers may hold.",
            saltus_python::memory_limits_met(),
        );
        counter("saltus_worker_processes_started_total", "Worker processes started.", counts.started);
        counter(
            "saltus_worker_processes_died_total",
            "Worker processes that ended by themselves or by somebody else.",
            counts.died,
        );
        counter(
            "saltus_worker_processes_killed_total",
            "Worker processes killed because a run did not end after its deadline.",
            counts.killed,
        );
        counter(
            "saltus_worker_processes_direct_runs_total",
            "Runs that shards gave to worker processes with no thread in between.",
            counts.direct,
        );
        caches(text, &self.0.cache_counts());
        let mut gauge = |name: &str, help: &'static str, value: u64| {
            text.sample(name, MetricKind::Gauge, help, &[], value as f64);
        };
        let (own, bytes) = self.0.own_interpreters();
        gauge("saltus_own_interpreters", "Interpreters of their own for triggers whose runs take long.", own as u64);
        gauge("saltus_own_interpreters_bytes", "Memory that these hold, with all that their triggers hold.", bytes);
        text.sample("saltus_worker_processes", MetricKind::Gauge, "Worker processes alive.", &[], counts.alive as f64);
    }
}

/// Caches over restarts, and the global one.
fn caches(text: &mut MetricsText, counts: &CacheCounts) {
    let CacheCounts { vault, global_values, global_bytes, evicted } = *counts;
    let mut sample = |name: &str, kind: MetricKind, help: &'static str, value: f64| {
        text.sample(name, kind, help, &[], value);
    };
    let help = "Caches of triggers and values of the global cache that were there again after the last restart.";
    sample("saltus_plugin_caches_restored_total", MetricKind::Counter, help, vault.restored as f64);
    let help = "Entries of caches that were not kept because they are live objects.";
    sample("saltus_plugin_cache_live_entries_lost_total", MetricKind::Counter, help, vault.live as f64);
    let help = "Caches that were not kept because they are too large.";
    sample("saltus_plugin_caches_too_large_total", MetricKind::Counter, help, vault.too_large as f64);
    let help = "Bytes of kept caches that wait for the first run of their trigger.";
    sample("saltus_plugin_caches_kept_bytes", MetricKind::Gauge, help, vault.bytes as f64);
    let help = "Plain values in the global cache.";
    sample("saltus_plugin_global_cache_values", MetricKind::Gauge, help, global_values as f64);
    let help = "Bytes of the plain values in the global cache, keys included.";
    sample("saltus_plugin_global_cache_bytes", MetricKind::Gauge, help, global_bytes as f64);
    let help = "Values of the global cache that had to go because there were too many.";
    sample("saltus_plugin_global_cache_evicted_total", MetricKind::Counter, help, evicted as f64);
}
