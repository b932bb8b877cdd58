//! What a shard counts. Plain cells: only its own thread touches them.

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::api::ShardStats;
use crate::pulse::cpu_time_of_this_thread;

use super::Shard;
use super::triggers::nanosecond_histogram;

/// A number that only rises.
#[derive(Default)]
pub(crate) struct Counter(Cell<u64>);

impl Counter {
    pub fn add(&self, more: u64) {
        self.0.set(self.0.get() + more);
    }
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// One shard's counters, by their metric names.
pub(crate) struct Counters {
    pub rows_written: Counter,
    pub batches: Counter,
    pub lines_rejected: Counter,
    pub bytes_parsed: Counter,
    pub batches_forwarded: Counter,
    pub writes_refused_full: Counter,
    pub events_dropped: Counter,
    /// Events for which there was no room in memory.
    pub events_left_in_log: Counter,
    /// Events read from a log: those, and those of earlier lives.
    pub events_read_back: Counter,
    pub chains_cut: Counter,
    pub runs_failed: Counter,
    pub runs_retried: Counter,
    pub runs_discarded: Counter,
    pub runs_waited: Counter,
    pub lane_changes: Counter,
    pub seat_changes: Counter,
    pub events_failed: Counter,
    /// Changes of triggers' states in the log.
    pub state_commits: Counter,
    pub cpu_waits: Counter,
    /// Dead letters made.
    pub dead_letters: Counter,
    /// Dead letters ended because there were too many.
    pub dead_letters_forgotten: Counter,
    pub panics: Counter,
    pub wal_rounds: Counter,
    pub wal_bytes: Counter,
    pub rows_recovered: Counter,
    pub connections_accepted: Counter,
    /// Requests that came to triggers at home here.
    pub requests: Counter,
    /// Requests for which there was no room.
    pub requests_refused: Counter,
    /// Requests that were not run: their clients had gone, or they had waited for too long.
    pub requests_passed_over: Counter,
    pub commit_ns: RefCell<Histogram<u64>>,
}

impl Counters {
    pub fn new() -> Self {
        Counters {
            rows_written: Counter::default(),
            batches: Counter::default(),
            lines_rejected: Counter::default(),
            bytes_parsed: Counter::default(),
            batches_forwarded: Counter::default(),
            writes_refused_full: Counter::default(),
            events_dropped: Counter::default(),
            events_left_in_log: Counter::default(),
            events_read_back: Counter::default(),
            chains_cut: Counter::default(),
            runs_failed: Counter::default(),
            runs_retried: Counter::default(),
            runs_discarded: Counter::default(),
            runs_waited: Counter::default(),
            lane_changes: Counter::default(),
            seat_changes: Counter::default(),
            events_failed: Counter::default(),
            state_commits: Counter::default(),
            cpu_waits: Counter::default(),
            dead_letters: Counter::default(),
            dead_letters_forgotten: Counter::default(),
            panics: Counter::default(),
            wal_rounds: Counter::default(),
            wal_bytes: Counter::default(),
            rows_recovered: Counter::default(),
            connections_accepted: Counter::default(),
            requests: Counter::default(),
            requests_refused: Counter::default(),
            requests_passed_over: Counter::default(),
            commit_ns: RefCell::new(nanosecond_histogram()),
        }
    }

    fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("batches_total", self.batches.get()),
            ("rows_written_total", self.rows_written.get()),
            ("lines_rejected_total", self.lines_rejected.get()),
            ("bytes_parsed_total", self.bytes_parsed.get()),
            ("batches_forwarded_total", self.batches_forwarded.get()),
            ("writes_refused_full_total", self.writes_refused_full.get()),
            ("events_dropped_total", self.events_dropped.get()),
            ("events_left_in_log_total", self.events_left_in_log.get()),
            ("events_read_back_total", self.events_read_back.get()),
            ("chains_cut_total", self.chains_cut.get()),
            ("runs_failed_total", self.runs_failed.get()),
            ("runs_retried_total", self.runs_retried.get()),
            ("runs_discarded_total", self.runs_discarded.get()),
            ("inline_waits_total", self.runs_waited.get()),
            ("lane_changes_total", self.lane_changes.get()),
            ("interpreter_changes_total", self.seat_changes.get()),
            ("events_failed_total", self.events_failed.get()),
            ("state_commits_total", self.state_commits.get()),
            ("cpu_waits_total", self.cpu_waits.get()),
            ("dead_letters_total", self.dead_letters.get()),
            ("dead_letters_forgotten_total", self.dead_letters_forgotten.get()),
            ("panics_total", self.panics.get()),
            ("wal_rounds_total", self.wal_rounds.get()),
            ("wal_bytes_total", self.wal_bytes.get()),
            ("rows_recovered_total", self.rows_recovered.get()),
            ("connections_accepted_total", self.connections_accepted.get()),
            ("plugin_requests_total", self.requests.get()),
            ("plugin_requests_refused_total", self.requests_refused.get()),
            ("plugin_requests_passed_over_total", self.requests_passed_over.get()),
        ]
    }
}

impl Shard {
    pub fn stats(&self) -> ShardStats {
        let owner = self.owner.borrow();
        let (tables, sizes) = (owner.tables.len(), owner.tables.sizes());
        let turns = self.turns.measured();
        let mailbox = self.shared.mailbox(self.id);
        let connections = self.face().connections.load(Ordering::Relaxed) as u64;
        ShardStats {
            shard: self.id,
            cpu: self.shared.config.cpus.get(usize::from(self.id.0)).copied().flatten(),
            connections,
            counters: self.counters.list(),
            gauges: vec![
                ("mailbox_items", mailbox.items() as f64),
                ("mailbox_bytes", mailbox.bytes() as f64),
                ("tables", tables as f64),
                ("table_rows", sizes.rows as f64),
                ("table_bytes", sizes.bytes as f64),
                ("writes_waiting", owner.waiting.len() as f64),
                ("dead_letters", self.letters.borrow().len() as f64),
            ],
            commit_ns: self.counters.commit_ns.borrow().clone(),
            turn_ns: turns.turn_ns,
            busy: Duration::from_nanos(turns.busy_ns),
            cpu_time: cpu_time_of_this_thread(),
            stalls: turns.stalls,
            poisoned: self.face().refuses.load().as_ref().map(|reason| reason.to_string()),
            short: self.face().short.load().as_ref().map(|reason| reason.to_string()),
        }
    }
}
