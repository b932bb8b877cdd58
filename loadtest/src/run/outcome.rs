//! The figures of a scenario, and the line of JSON that keeps them.

use hdrhistogram::Histogram;
use serde::Serialize;

use super::gather::{Counts, Gathered, Series};
use super::scenario::{Scenario, Stream};
use crate::report::Machine;
use crate::server::TriggerLatency;

/// Quantiles that every summary has, in percent.
const PERCENTILES: [f64; 10] = [25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999, 99.9999];

/// The shape of a set of latencies, nanoseconds.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Summary {
    /// How many.
    pub count: u64,
    /// Smallest.
    pub min_ns: u64,
    /// Largest.
    pub max_ns: u64,
    /// Mean.
    pub mean_ns: f64,
    /// Standard deviation.
    pub deviation_ns: f64,
    /// Percent and nanoseconds.
    pub percentiles: Vec<(f64, u64)>,
}

impl Summary {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            count: histogram.len(),
            min_ns: if histogram.is_empty() { 0 } else { histogram.min() },
            max_ns: histogram.max(),
            mean_ns: histogram.mean(),
            deviation_ns: histogram.stdev(),
            percentiles: PERCENTILES
                .iter()
                .map(|percent| (*percent, histogram.value_at_percentile(*percent)))
                .collect(),
        }
    }

    /// One of the percentiles that it has; 0 for another.
    pub fn at(&self, percent: f64) -> u64 {
        self.percentiles.iter().find(|(kept, _)| *kept == percent).map_or(0, |(_, ns)| *ns)
    }
}

/// What a latency is of, and from when.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Measure {
    /// `ack`, `entry`, `query`, `round trip`, `queryable` or `schedule`.
    pub what: &'static str,
    /// `due` (response time) or `sent` (service time).
    pub from: &'static str,
    /// The figures.
    pub summary: Summary,
    /// One by one.
    #[serde(skip)]
    pub series: Series,
    /// All of them.
    #[serde(skip)]
    pub histogram: Histogram<u64>,
}

impl PartialEq for Series {
    fn eq(&self, other: &Self) -> bool {
        self.points == other.points
    }
}

impl Measure {
    fn new(what: &'static str, from: &'static str, series: Series) -> Self {
        let histogram = series.histogram();
        Self { what, from, summary: Summary::of(&histogram), series, histogram }
    }

    /// For tables and legends.
    pub fn label(&self) -> String {
        if self.from == "sent" { format!("{}, from send", self.what) } else { self.what.to_owned() }
    }
}

/// A stream's figures.
#[derive(Clone, Debug, Serialize)]
pub struct StreamOutcome {
    /// Its name.
    pub stream: String,
    /// What it does.
    pub kind: &'static str,
    /// Requests that were answered, a second.
    pub requests_per_s: f64,
    /// Rows, a second.
    pub rows_per_s: f64,
    /// What became of the requests.
    #[serde(flatten)]
    pub counts: Counts,
    /// Latencies.
    pub measures: Vec<Measure>,
}

/// One system in one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Its name.
    pub target: String,
    /// What else there is to know of it.
    pub note: String,
    /// Measured seconds.
    pub seconds: f64,
    /// Its streams.
    pub streams: Vec<StreamOutcome>,
    /// The machine's own in the same seconds.
    pub hiccups: Summary,
    /// Processor time for a row, microseconds; only of private servers.
    pub processor_us_per_row: Option<f64>,
    /// The server's own histograms of triggers, since its start.
    pub own: Vec<TriggerLatency>,
    /// The hiccups one by one.
    #[serde(skip)]
    pub hiccup_series: Series,
}

impl Outcome {
    /// Of what was gathered.
    pub fn of(scenario: &Scenario, gathered: Gathered) -> Self {
        let seconds = gathered.measured.as_secs_f64();
        let processor_us_per_row = gathered.processor_us_per_row();
        let streams = gathered.streams.into_iter().zip(&scenario.streams).map(|(data, stream)| {
            let answered = data.counts.requests - data.counts.busy - data.counts.failed - data.counts.unsent;
            let what = answer_of(stream);
            let all = [
                Measure::new(what, "due", data.response),
                Measure::new(what, "sent", data.service),
                Measure::new(if stream.schedule.is_some() { "schedule" } else { "entry" }, "due", data.entry),
            ];
            StreamOutcome {
                stream: stream.name.clone(),
                kind: stream.kind(),
                requests_per_s: answered as f64 / seconds,
                rows_per_s: data.counts.rows as f64 / seconds,
                counts: data.counts,
                measures: all.into_iter().filter(|measure| measure.summary.count > 0).collect(),
            }
        });
        Self {
            streams: streams.collect(),
            target: gathered.name,
            note: gathered.note,
            seconds,
            hiccups: Summary::of(&gathered.hiccups.histogram()),
            processor_us_per_row,
            own: gathered.own,
            hiccup_series: gathered.hiccups,
        }
    }

    /// The measures of all streams.
    pub fn measures(&self) -> impl Iterator<Item = (&StreamOutcome, &Measure)> {
        self.streams.iter().flat_map(|stream| stream.measures.iter().map(move |measure| (stream, measure)))
    }
}

/// The word for what ends a request of a stream.
fn answer_of(stream: &Stream) -> &'static str {
    match stream.kind() {
        "write" => "ack",
        "visible" => "queryable",
        "request" => "round trip",
        kind => kind,
    }
}

/// A scenario that was run.
pub struct Ran {
    /// The scenario.
    pub scenario: Scenario,
    /// Its systems, the first being the one that the others are compared with.
    pub outcomes: Vec<Outcome>,
    /// Rivals that do not fit: name and why.
    pub left_out: Vec<(String, String)>,
}

/// One line of JSON for each system: machine, options, scenario, figures.
pub fn json_lines(machine: &Machine, options: &serde_json::Value, ran: &Ran) -> Vec<String> {
    let line = |outcome| {
        let line = serde_json::json!({
            "command": "run", "machine": machine, "options": options, "scenario": ran.scenario, "result": outcome,
        });
        line.to_string()
    };
    ran.outcomes.iter().map(line).collect()
}
