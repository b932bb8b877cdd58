//! `/metrics`: what is counted, as Prometheus text.
//!
//! Names are `saltus_<part>_<what>_<unit>[_total]`. Histograms become summaries in seconds with the quantiles 0.5, 0.9,
//! 0.99 and 0.999: the buckets of an HDR histogram are too many to scrape. All samples of a family stand together, so a
//! [`MetricsText`] collects families and writes them at the end.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use saltus_shards::api::{ShardStats, TriggerStats};

use super::status::{VERSION, revision};
use crate::logs::PluginLogs;

/// What Prometheus expects.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const QUANTILES: [(&str, f64); 4] = [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("0.999", 0.999)];
const NS_PER_S: f64 = 1e9;

/// A further part of `/metrics`.
pub trait MetricsSource: Send + Sync {
    /// Adds its samples. Called on a shard's thread: must not block.
    fn write(&self, text: &mut MetricsText);
}

/// What kind of number a family holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises.
    Counter,
    /// Goes both ways.
    Gauge,
    /// Quantiles of a histogram.
    Summary,
}

struct Family {
    name: String,
    kind: MetricKind,
    help: &'static str,
    samples: String,
}

/// Labels of a sample: names are constants, values are escaped.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

/// The families collected so far, in order of first mention.
#[derive(Default)]
pub struct MetricsText {
    families: Vec<Family>,
}

impl MetricsText {
    /// No families.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sample of a counter or gauge; the first mention of a name fixes its kind and help.
    pub fn sample(&mut self, name: &str, kind: MetricKind, help: &'static str, labels: Labels<'_>, value: f64) {
        let samples = &mut self.family(name, kind, help).samples;
        let _ = writeln!(samples, "{name}{} {value}", braces(labels, None));
    }

    /// Adds a histogram of nanoseconds as a summary in seconds.
    pub fn summary(&mut self, name: &str, help: &'static str, labels: Labels<'_>, histogram: &Histogram<u64>) {
        let samples = &mut self.family(name, MetricKind::Summary, help).samples;
        for (text, quantile) in QUANTILES {
            let value =
                if histogram.is_empty() { f64::NAN } else { histogram.value_at_quantile(quantile) as f64 / NS_PER_S };
            let _ = writeln!(samples, "{name}{} {}", braces(labels, Some(text)), number(value));
        }
        let sum = histogram.mean() * histogram.len() as f64 / NS_PER_S;
        let _ = writeln!(samples, "{name}_sum{} {sum}", braces(labels, None));
        let _ = writeln!(samples, "{name}_count{} {}", braces(labels, None), histogram.len());
    }

    /// The whole text.
    pub fn finish(self) -> String {
        let mut out = String::new();
        for family in self.families {
            let kind = match family.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Summary => "summary",
            };
            let _ = write!(out, "# HELP {0} {1}\n# TYPE {0} {kind}\n{2}", family.name, family.help, family.samples);
        }
        out + "# EOF\n"
    }

    fn family(&mut self, name: &str, kind: MetricKind, help: &'static str) -> &mut Family {
        let at = self.families.iter().position(|family| family.name == name).unwrap_or_else(|| {
            self.families.push(Family { name: name.to_owned(), kind, help, samples: String::new() });
            self.families.len() - 1
        });
        &mut self.families[at]
    }
}

/// Prometheus writes NaN in this case, and so does Rust; the sign and infinities cannot occur.
fn number(value: f64) -> String {
    value.to_string()
}

fn braces(labels: Labels<'_>, quantile: Option<&str>) -> String {
    let own = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    let all: Vec<String> = own.chain(quantile.map(|q| format!("quantile=\"{q}\""))).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The process itself.
pub(crate) fn process(text: &mut MetricsText, started: SystemTime) {
    let since_epoch = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let help = "Start of the process, seconds since the epoch.";
    text.sample("saltus_process_start_time_seconds", MetricKind::Gauge, help, &[], since_epoch);
    let labels = [("version", VERSION), ("revision", revision())];
    text.sample("saltus_build_info", MetricKind::Gauge, "What runs here; always 1.", &labels, 1.0);
}

/// What every shard counts.
pub(crate) fn shards(text: &mut MetricsText, shards: &[ShardStats]) {
    for stats in shards {
        let shard = stats.shard.to_string();
        let labels = [("shard", shard.as_str())];
        let open = "Open connections.";
        text.sample("saltus_shard_connections", MetricKind::Gauge, open, &labels, stats.connections as f64);
        let poisoned = "1 if the shard takes no writes, see /health.";
        let value = if stats.poisoned.is_some() { 1.0 } else { 0.0 };
        text.sample("saltus_shard_poisoned", MetricKind::Gauge, poisoned, &labels, value);
        for (name, value) in &stats.counters {
            let help = "Counted by the shard since start.";
            text.sample(&format!("saltus_shard_{name}"), MetricKind::Counter, help, &labels, *value as f64);
        }
        for (name, value) in &stats.gauges {
            let help = "Measured by the shard now.";
            text.sample(&format!("saltus_shard_{name}"), MetricKind::Gauge, help, &labels, *value);
        }
        let help = "From append to durable, per round of the log.";
        text.summary("saltus_shard_commit_seconds", help, &labels, &stats.commit_ns);
    }
}

/// What every trigger counts.
pub(crate) fn triggers(text: &mut MetricsText, triggers: &[TriggerStats]) {
    for stats in triggers {
        let labels = [("db", &*stats.def.db), ("trigger", &*stats.def.name)];
        let counters = [
            ("saltus_trigger_runs_total", "Runs finished.", stats.runs),
            ("saltus_trigger_errors_total", "Runs that failed.", stats.errors),
            ("saltus_trigger_rows_total", "Rows handed to runs.", stats.rows),
            ("saltus_trigger_retries_total", "Events tried again after a failure, once per time.", stats.retries),
            ("saltus_trigger_events_failed_total", "Events given up after failures.", stats.events_failed),
            ("saltus_trigger_events_dropped_total", "Events given up, the backlog being full.", stats.events_dropped),
        ];
        for (name, help, value) in counters {
            text.sample(name, MetricKind::Counter, help, &labels, value as f64);
        }
        let help = "Events waiting.";
        text.sample("saltus_trigger_backlog_events", MetricKind::Gauge, help, &labels, stats.backlog_events as f64);
        let summaries = [
            ("saltus_trigger_activation_seconds", "Last byte received, to plugin entered.", &stats.activation_ns),
            ("saltus_trigger_queue_seconds", "Event handed over, to plugin entered.", &stats.queue_ns),
            ("saltus_trigger_run_seconds", "Plugin entered, to returned.", &stats.run_ns),
        ];
        for (name, help, histogram) in summaries {
            text.summary(name, help, &labels, histogram);
        }
    }
}

/// The log ring.
pub(crate) fn logs(text: &mut MetricsText, logs: &PluginLogs) {
    let help = "Plugin log lines that found no room.";
    text.sample("saltus_plugin_log_lines_dropped_total", MetricKind::Counter, help, &[], logs.dropped() as f64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use saltus_core::ids::ShardId;

    fn shard(id: u16) -> ShardStats {
        let mut commit_ns = Histogram::new(3).unwrap();
        commit_ns.record(1_000_000).unwrap();
        commit_ns.record(3_000_000).unwrap();
        ShardStats {
            shard: ShardId(id),
            cpu: None,
            connections: 2,
            counters: vec![("rows_written_total", 5)],
            gauges: vec![("mailbox_bytes", 1.5)],
            commit_ns,
            poisoned: None,
            tables: Vec::new(),
        }
    }

    fn name_is_valid(name: &str) -> bool {
        !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    }

    #[test]
    fn families_stand_together_and_every_line_is_valid() {
        let mut text = MetricsText::new();
        process(&mut text, SystemTime::now());
        shards(&mut text, &[shard(0), shard(1)]);
        logs(&mut text, &PluginLogs::new());
        let text = text.finish();
        assert!(text.ends_with("# EOF\n"));
        let mut family = String::new();
        let mut seen = Vec::new();
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = help.split(' ').next().unwrap().to_owned();
                assert!(name_is_valid(&family) && !seen.contains(&family), "{family}");
                seen.push(family.clone());
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                assert!(kind.starts_with(&family));
            } else {
                assert!(line.starts_with(&family), "{line} is not of {family}");
                let (_, value) = line.rsplit_once(' ').unwrap();
                value.parse::<f64>().unwrap();
            }
        }
        assert!(text.contains("saltus_shard_rows_written_total{shard=\"1\"} 5\n"), "{text}");
    }

    #[test]
    fn histograms_are_summaries_in_seconds() {
        let mut text = MetricsText::new();
        shards(&mut text, &[shard(0)]);
        let text = text.finish();
        assert!(text.contains("saltus_shard_commit_seconds_count{shard=\"0\"} 2\n"), "{text}");
        let sum = text.lines().find_map(|l| l.strip_prefix("saltus_shard_commit_seconds_sum{shard=\"0\"} ")).unwrap();
        assert!((sum.parse::<f64>().unwrap() - 0.004).abs() < 1e-5);
        let p99 = text.lines().find_map(|l| l.split_once("quantile=\"0.99\"} ").map(|(_, v)| v)).unwrap();
        assert!((p99.parse::<f64>().unwrap() - 0.003).abs() < 1e-5);
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(braces(&[("trigger", "a\"b\\c\nd")], None), r#"{trigger="a\"b\\c\nd"}"#);
    }
}
