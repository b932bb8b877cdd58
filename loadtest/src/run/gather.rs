//! What was measured of one system in one scenario, put together from its slices.
//!
//! Latencies are kept one by one, with the moment at which they were due, until the end: a histogram of all, one for each second, and
//! the time line are all made of that. Time runs on from slice to slice, without the pauses in which others had their turn.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::drive::{Fate, Sent, Window};
use super::scenario::Stream;
use super::systems::Entry;
use crate::hiccup::Hiccup;
use crate::report::new_histogram;

/// One latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// When it was due, nanoseconds of the measured time of this system.
    pub at_ns: u64,
    /// Nanoseconds.
    pub ns: u64,
}

/// The latencies of one kind.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// In no order.
    pub points: Vec<Point>,
}

impl Series {
    /// All of them.
    pub fn histogram(&self) -> Histogram<u64> {
        let mut histogram = new_histogram();
        for point in &self.points {
            histogram.saturating_record(point.ns.max(1));
        }
        histogram
    }

    /// One histogram for each second, empty ones included.
    pub fn seconds(&self) -> Vec<Histogram<u64>> {
        let mut sorted = self.points.clone();
        sorted.sort_unstable_by_key(|point| point.at_ns);
        let mut seconds: Vec<Histogram<u64>> = Vec::new();
        for point in sorted {
            let second = (point.at_ns / 1_000_000_000) as usize;
            while seconds.len() <= second {
                // A full-sized one for each second of a long run would fill the memory.
                seconds.push(Histogram::new(3).unwrap_or_else(|_| new_histogram()));
            }
            // It grows as far as memory goes, so that nothing is refused.
            let _ = seconds[second].record(point.ns.max(1));
        }
        seconds
    }
}

/// What became of a stream's requests.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// Those that were due in the measured time.
    pub requests: u64,
    /// Rows in those that were done.
    pub rows: u64,
    /// Refused for want of room (503).
    pub busy: u64,
    /// Failed in another way.
    pub failed: u64,
    /// Not sent, because it was much too late.
    pub unsent: u64,
    /// Events that were acknowledged and never reached the plugin.
    pub never_entered: u64,
    /// What the first error said.
    pub first_error: Option<String>,
    /// What the system says of events that did not reach the plugin.
    pub never_entered_because: Option<String>,
}

/// A stream.
#[derive(Clone, Debug, Default)]
pub struct StreamData {
    /// From the moment at which a request was due to its answer.
    pub response: Series,
    /// From when it was sent.
    pub service: Series,
    /// From when it was due to the plugin's entry.
    pub entry: Series,
    /// The rest.
    pub counts: Counts,
}

/// A system in a scenario.
pub struct Gathered {
    /// Its name.
    pub name: String,
    /// What else there is to know of it.
    pub note: String,
    /// In the order of the scenario's.
    pub streams: Vec<StreamData>,
    /// The machine's hiccups in the same seconds.
    pub hiccups: Series,
    /// Measured time.
    pub measured: Duration,
    /// Processor time of the slices, warm-up included, and the rows that were done in it.
    pub processor: Option<(Duration, u64)>,
    /// The system's own histograms of triggers.
    pub own: Vec<crate::server::TriggerLatency>,
}

impl Gathered {
    /// Nothing yet.
    pub fn new(name: String, streams: usize) -> Self {
        Self {
            name,
            note: String::new(),
            streams: vec![StreamData::default(); streams],
            hiccups: Series::default(),
            measured: Duration::ZERO,
            processor: None,
            own: Vec::new(),
        }
    }

    /// Adds the requests of a slice; how many of each stream were acknowledged, warm-up included.
    pub fn add_requests(&mut self, streams: &[Stream], window: &Window, sent: &[Sent]) -> Vec<usize> {
        let base_ns = self.measured.as_nanos() as u64;
        for ((data, stream), sent) in self.streams.iter_mut().zip(streams).zip(sent) {
            let counted = sent.samples.iter().filter(|sample| window.counts(sample.due_ns));
            for sample in counted {
                let at_ns = base_ns + sample.due_ns - window.warm_ns;
                let point = |ns: u64| Point { at_ns, ns };
                data.counts.requests += 1;
                match sample.fate {
                    Fate::Busy => data.counts.busy += 1,
                    Fate::Failed => data.counts.failed += 1,
                    Fate::Unsent => {
                        data.counts.unsent += 1;
                        data.response.points.push(point(sample.done_ns - sample.due_ns));
                    }
                    Fate::Done => {
                        data.counts.rows += u64::from(sample.rows);
                        // A closed loop has no moment but that of sending.
                        data.response.points.push(point(sample.done_ns.saturating_sub(sample.due_ns)));
                        if stream.rate.is_some() {
                            data.service.points.push(point(sample.done_ns.saturating_sub(sample.sent_ns)));
                        }
                        if let Some(entered_ns) = sample.entered_ns {
                            data.entry.points.push(point(entered_ns.saturating_sub(sample.due_ns)));
                        }
                    }
                }
            }
            data.counts.first_error = data.counts.first_error.take().or_else(|| sent.first_error.clone());
        }
        let done = |sent: &Sent| sent.samples.iter().filter(|sample| sample.fate == Fate::Done).count();
        sent.iter().map(done).collect()
    }

    /// Adds the entries of a stream's plugin in a slice, of which `wanted` were to come; none of a schedule are wanted.
    pub fn add_entries(&mut self, stream: usize, window: &Window, wanted: usize, entries: &[Entry]) {
        let base_ns = self.measured.as_nanos() as u64;
        let data = &mut self.streams[stream];
        for entry in entries.iter().filter(|entry| window.counts(entry.due_ns)) {
            data.entry.points.push(Point { at_ns: base_ns + entry.due_ns - window.warm_ns, ns: entry.after_ns });
        }
        data.counts.never_entered += wanted.saturating_sub(entries.len()) as u64;
    }

    /// Adds the machine's hiccups and ends the slice.
    pub fn end_slice(&mut self, window: &Window, hiccups: &[Hiccup]) {
        let base_ns = self.measured.as_nanos() as u64;
        let counted = hiccups.iter().filter(|hiccup| window.counts(hiccup.at_ns));
        self.hiccups
            .points
            .extend(counted.map(|hiccup| Point { at_ns: base_ns + hiccup.at_ns - window.warm_ns, ns: hiccup.late_ns }));
        self.measured += Duration::from_nanos(window.end_ns - window.warm_ns);
    }

    /// Adds processor time and the rows that it was for.
    pub fn add_processor(&mut self, used: Option<Duration>, sent: &[Sent]) {
        let done = sent.iter().flat_map(|sent| &sent.samples).filter(|sample| sample.fate == Fate::Done);
        let rows: u64 = done.map(|sample| u64::from(sample.rows)).sum();
        if let Some(used) = used {
            let (before, rows_before) = self.processor.unwrap_or_default();
            self.processor = Some((before + used, rows_before + rows));
        }
    }

    /// Microseconds of processor time for a row, if that was seen.
    pub fn processor_us_per_row(&self) -> Option<f64> {
        let (used, rows) = self.processor?;
        (rows > 0).then(|| used.as_secs_f64() * 1e6 / rows as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::super::drive::Sample;
    use super::super::scenario::Scenario;
    use super::*;

    const WINDOW: Window = Window { start_ns: 1_000, warm_ns: 2_000, end_ns: 3_000_002_000 };

    fn sample(due_ns: u64, fate: Fate) -> Sample {
        Sample { due_ns, sent_ns: due_ns + 10, done_ns: due_ns + 110, entered_ns: None, rows: 5, fate }
    }

    #[test]
    fn warm_up_is_left_out_and_time_runs_on_from_slice_to_slice() {
        let scenario = Scenario::load("single-row").unwrap();
        let mut gathered = Gathered::new("x".to_owned(), 1);
        let sent = Sent {
            samples: vec![
                sample(1_500, Fate::Done),
                sample(2_500, Fate::Done),
                sample(2_600, Fate::Busy),
                sample(2_700, Fate::Failed),
                sample(2_800, Fate::Unsent),
            ],
            first_error: Some("why".to_owned()),
        };
        for _ in 0..2 {
            assert_eq!(gathered.add_requests(&scenario.streams, &WINDOW, std::slice::from_ref(&sent)), [2]);
            let entries = [Entry { due_ns: 1_500, after_ns: 9 }, Entry { due_ns: 2_500, after_ns: 50 }];
            gathered.add_entries(0, &WINDOW, 3, &entries);
            gathered.add_processor(Some(Duration::from_micros(20)), std::slice::from_ref(&sent));
            gathered.end_slice(&WINDOW, &[Hiccup { at_ns: 2_100, late_ns: 7 }]);
        }
        let data = &gathered.streams[0];
        let points = |series: &Series| series.points.iter().map(|p| (p.at_ns, p.ns)).collect::<Vec<_>>();
        assert_eq!(points(&data.service), [(500, 100), (3_000_000_500, 100)]);
        assert_eq!(points(&data.response), [(500, 110), (800, 110), (3_000_000_500, 110), (3_000_000_800, 110)]);
        assert_eq!(points(&data.entry), [(500, 50), (3_000_000_500, 50)]);
        assert_eq!(points(&gathered.hiccups), [(100, 7), (3_000_000_100, 7)]);
        let Counts { requests, rows, busy, failed, unsent, never_entered, .. } = data.counts;
        assert_eq!((requests, rows, busy, failed, unsent, never_entered), (8, 10, 2, 2, 2, 2));
        assert_eq!(gathered.processor_us_per_row(), Some(2.0));
        let seconds: Vec<u64> = data.service.seconds().iter().map(|second| second.len()).collect();
        assert_eq!(seconds, [1, 0, 0, 1]);
    }
}
