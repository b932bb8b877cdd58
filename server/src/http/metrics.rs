//! `/metrics`: what is counted, as Prometheus text.
//!
//! Names are `saltus_<part>_<what>_<unit>[_total]`. Histograms become summaries in seconds with the quantiles 0.5, 0.9,
//! 0.99 and 0.999: the buckets of an HDR histogram are too many to scrape. All samples of a family stand together, so a
//! [`MetricsText`] collects families and writes them at the end.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use saltus_core::trigger::TriggerKind;
use saltus_shards::api::{ShardStats, TriggerStats};

use super::status::{VERSION, revision};
use crate::logs::PluginLogs;

/// What Prometheus expects.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const QUANTILES: [(&str, f64); 4] = [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("0.999", 0.999)];
const NS_PER_S: f64 = 1e9;

/// What the shards' counters count, by the end of their names.
const SHARD_COUNTERS: &[(&str, &str)] = &[
    ("batches_total", "Batches of rows of one table taken."),
    ("rows_written_total", "Rows taken."),
    ("lines_rejected_total", "Lines of line protocol refused."),
    ("bytes_parsed_total", "Bytes of line protocol parsed."),
    ("batches_forwarded_total", "Batches sent to the shard that owns their table."),
    ("writes_refused_full_total", "Writes answered with 503 because a mailbox was full."),
    ("events_dropped_total", "Events that triggers at home here did not take."),
    ("events_left_in_log_total", "Events left in the log of writes, there being no room for them in memory."),
    ("events_read_back_total", "Events read back from a log of writes."),
    ("chains_cut_total", "Events not made because plugins had triggered each other too often in a row."),
    ("runs_failed_total", "Runs that failed."),
    ("runs_retried_total", "Events run again after a failure, once per time."),
    ("runs_discarded_total", "Runs discarded, their events to be run again in another lane."),
    ("inline_waits_total", "Runs that waited for an interpreter to be prepared or for their state."),
    ("lane_changes_total", "Changes of triggers' lanes."),
    ("interpreter_changes_total", "Changes of triggers' interpreters in the deferred lane."),
    ("events_failed_total", "Events given up after failures."),
    ("state_commits_total", "Changes of triggers' durable states."),
    ("cpu_waits_total", "Runs that waited for their trigger's share of a core."),
    ("dead_letters_total", "Dead letters made."),
    ("dead_letters_forgotten_total", "Dead letters ended because there were too many."),
    ("panics_total", "Tasks that panicked and were contained; each is a bug."),
    ("wal_rounds_total", "Rounds of the log: one write and one sync each."),
    ("wal_bytes_total", "Bytes written to the log."),
    ("rows_recovered_total", "Rows read from the log at the start."),
    ("connections_accepted_total", "Connections accepted."),
    ("plugin_requests_total", "Requests that came to triggers at home here."),
    ("plugin_requests_refused_total", "Requests to triggers for which there was no room."),
    ("plugin_requests_passed_over_total", "Requests not run: their clients had gone, or they had waited for too long."),
];
/// What the shards' gauges say, by the end of their names.
const SHARD_GAUGES: &[(&str, &str)] = &[
    ("mailbox_items", "Messages that wait in the shard's mailbox."),
    ("mailbox_bytes", "Bytes of batches under way to the shard."),
    ("tables", "Tables that the shard owns."),
    ("table_rows", "Rows in memory, overwritten versions included."),
    ("table_bytes", "Bytes of rows in memory, estimated."),
    ("writes_waiting", "Writes that wait for their round of the log."),
    ("dead_letters", "Dead letters of triggers at home here."),
];

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
        let (quantiles, sum_ns) = summarise(histogram);
        for ((text, _), value_ns) in QUANTILES.iter().zip(quantiles) {
            let value = value_ns.map_or(f64::NAN, |ns| ns as f64 / NS_PER_S);
            let _ = writeln!(samples, "{name}{} {}", braces(labels, Some(text)), number(value));
        }
        let _ = writeln!(samples, "{name}_sum{} {}", braces(labels, None), sum_ns / NS_PER_S);
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

/// The values at [`QUANTILES`], and the sum of all: in one pass, as a histogram is long and a shard waits meanwhile.
fn summarise(histogram: &Histogram<u64>) -> ([Option<u64>; QUANTILES.len()], f64) {
    let mut values = [None; QUANTILES.len()];
    let (mut so_far, mut sum) = (0_u64, 0.0);
    for step in histogram.iter_recorded() {
        let count = step.count_since_last_iteration();
        so_far += count;
        sum += histogram.median_equivalent(step.value_iterated_to()) as f64 * count as f64;
        for (value, (_, quantile)) in values.iter_mut().zip(QUANTILES) {
            if value.is_none() && so_far as f64 >= quantile * histogram.len() as f64 {
                *value = Some(step.value_iterated_to());
            }
        }
    }
    (values, sum)
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
    let help = "Processor time of the process, all threads, in the kernel or not.";
    text.sample("saltus_process_cpu_seconds_total", MetricKind::Counter, help, &[], process_cpu_s());
    let labels = [("version", VERSION), ("revision", revision())];
    text.sample("saltus_build_info", MetricKind::Gauge, "What runs here; always 1.", &labels, 1.0);
}

fn process_cpu_s() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// What every shard counts.
pub(crate) fn shards(text: &mut MetricsText, shards: &[ShardStats]) {
    for stats in shards {
        let shard = stats.shard.to_string();
        let labels = [("shard", shard.as_str())];
        let help = "1; the core that the shard is pinned to, empty if it is not.";
        let cpu = stats.cpu.map(|cpu| cpu.to_string()).unwrap_or_default();
        text.sample("saltus_shard_info", MetricKind::Gauge, help, &[labels[0], ("cpu", cpu.as_str())], 1.0);
        let open = "Open connections.";
        text.sample("saltus_shard_connections", MetricKind::Gauge, open, &labels, stats.connections as f64);
        let poisoned = "1 if the log of the shard has failed: it takes no writes until a restart, see /health.";
        let value = if stats.poisoned.is_some() { 1.0 } else { 0.0 };
        text.sample("saltus_shard_poisoned", MetricKind::Gauge, poisoned, &labels, value);
        let full = "1 while the shard refuses writes because the disk of the data directory is full or read-only.";
        let is_full = if stats.short.is_some() { 1.0 } else { 0.0 };
        text.sample("saltus_shard_disk_full", MetricKind::Gauge, full, &labels, is_full);
        let writable = "1 if the shard takes writes, see /health.";
        let takes = if stats.short.is_none() && stats.poisoned.is_none() { 1.0 } else { 0.0 };
        text.sample("saltus_shard_writable", MetricKind::Gauge, writable, &labels, takes);
        for (name, value) in &stats.counters {
            let name_in_full = format!("saltus_shard_{name}");
            text.sample(&name_in_full, MetricKind::Counter, help_of(SHARD_COUNTERS, name), &labels, *value as f64);
        }
        for (name, value) in &stats.gauges {
            let name_in_full = format!("saltus_shard_{name}");
            text.sample(&name_in_full, MetricKind::Gauge, help_of(SHARD_GAUGES, name), &labels, *value);
        }
        let help = "CPU time of the shard's thread, system calls included.";
        text.sample("saltus_shard_cpu_seconds_total", MetricKind::Counter, help, &labels, stats.cpu_time.as_secs_f64());
        let help = "Time in which tasks held the shard.";
        text.sample("saltus_shard_busy_seconds_total", MetricKind::Counter, help, &labels, stats.busy.as_secs_f64());
        let help = "Turns of at least loop-stall-limit: a task held the shard for so long.";
        text.sample("saltus_shard_stalls_total", MetricKind::Counter, help, &labels, stats.stalls as f64);
        let help = "From append to durable, per round of the log.";
        text.summary("saltus_shard_commit_seconds", help, &labels, &stats.commit_ns);
        let help = "For how long one task held the shard, per turn.";
        text.summary("saltus_shard_turn_seconds", help, &labels, &stats.turn_ns);
    }
}

fn help_of(known: &[(&str, &'static str)], name: &str) -> &'static str {
    known.iter().find(|(known, _)| *known == name).map_or(NO_HELP, |(_, help)| help)
}

/// Of something new in a shard's statistics; a test looks for it.
pub const NO_HELP: &str = "Not described.";

/// What every trigger counts.
pub(crate) fn triggers(text: &mut MetricsText, triggers: &[TriggerStats]) {
    for stats in triggers {
        let def = &stats.trigger.def;
        let labels = [("db", &*def.db), ("trigger", &*def.name)];
        let counters = [
            ("saltus_trigger_runs_total", "Runs finished.", stats.runs),
            ("saltus_trigger_errors_total", "Runs that failed.", stats.errors),
            ("saltus_trigger_rows_total", "Rows handed to runs.", stats.rows),
            ("saltus_trigger_retries_total", "Events tried again after a failure, once per time.", stats.retries),
            ("saltus_trigger_events_failed_total", "Events given up after failures.", stats.events_failed),
            ("saltus_trigger_cpu_waits_total", "Runs that waited for the trigger's share of a core.", stats.cpu_waits),
            ("saltus_trigger_events_dropped_total", "Events given up, the backlog being full.", stats.events_dropped),
        ];
        for (name, help, value) in counters {
            text.sample(name, MetricKind::Counter, help, &labels, value as f64);
        }
        if let Some(schedule) = &stats.schedule {
            let help = "Times of the schedule that were passed over.";
            let missed = schedule.missed as f64;
            text.sample("saltus_trigger_schedule_missed_total", MetricKind::Counter, help, &labels, missed);
        }
        if let Some(memory) = stats.memory {
            let help = "Bytes of memory that the trigger holds after its last run, in an interpreter.";
            text.sample("saltus_trigger_memory_bytes", MetricKind::Gauge, help, &labels, memory.held as f64);
            let help = "Bytes of memory that the trigger has held at most, in an interpreter.";
            text.sample("saltus_trigger_memory_peak_bytes", MetricKind::Gauge, help, &labels, memory.peak as f64);
        }
        let help = "1 for the lane of the next run.";
        let lane = stats.lane.to_string();
        let with_lane = [labels[0], labels[1], ("lane", lane.as_str())];
        text.sample("saltus_trigger_lane", MetricKind::Gauge, help, &with_lane, 1.0);
        let help = "Runs discarded, their events to be run again in another lane.";
        text.sample("saltus_trigger_discarded_total", MetricKind::Counter, help, &labels, stats.discarded as f64);
        let help = "Events waiting.";
        text.sample("saltus_trigger_backlog_events", MetricKind::Gauge, help, &labels, stats.backlog_events as f64);
        if stats.queue_ns.is_empty() && stats.response_ns.is_empty() {
            // Of thousands of triggers most may never have run: what there is not is not said of each.
            continue;
        }
        let summaries = [
            match stats.schedule {
                None => (
                    "saltus_trigger_activation_seconds",
                    "Last byte received, to plugin entered.",
                    &stats.activation_ns,
                ),
                Some(_) => (
                    "saltus_trigger_schedule_delay_seconds",
                    "Time of the schedule, to plugin entered.",
                    &stats.activation_ns,
                ),
            },
            ("saltus_trigger_queue_seconds", "Event handed over, to plugin entered.", &stats.queue_ns),
            ("saltus_trigger_run_seconds", "Plugin entered, to returned.", &stats.run_ns),
        ];
        for (name, help, histogram) in summaries {
            text.summary(name, help, &labels, histogram);
        }
        if def.spec.kind() == TriggerKind::Request {
            let help = "Last byte of the request received, to its answer.";
            text.summary("saltus_trigger_response_seconds", help, &labels, &stats.response_ns);
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
    use std::time::Duration;

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
            turn_ns: commit_ns.clone(),
            commit_ns,
            busy: Duration::from_millis(500),
            cpu_time: Duration::from_millis(750),
            stalls: 1,
            poisoned: None,
            short: None,
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
    fn quantiles_in_one_pass_are_those_of_the_histogram() {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 1 << 36, 3).unwrap();
        assert_eq!(summarise(&histogram), ([None; 4], 0.0));
        for n in 1..=5000_u64 {
            histogram.record(n * n % 1_000_003 + 1).unwrap();
        }
        let (values, sum) = summarise(&histogram);
        assert_eq!(values.map(Option::unwrap), QUANTILES.map(|(_, quantile)| histogram.value_at_quantile(quantile)));
        let mean = sum / histogram.len() as f64;
        assert!((mean / histogram.mean() - 1.0).abs() < 1e-9, "{mean} and {}", histogram.mean());
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(braces(&[("trigger", "a\"b\\c\nd")], None), r#"{trigger="a\"b\\c\nd"}"#);
    }
}
