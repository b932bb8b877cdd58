//! What `/metrics` says of the interpreters and the worker processes.

use std::sync::Arc;

use saltus_python::PythonRuntime;

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
        text.sample("saltus_worker_processes", MetricKind::Gauge, "Worker processes alive.", &[], counts.alive as f64);
    }
}
