//! What became of queries, counted for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};

use super::QueryError;

/// Counters that only rise.
#[derive(Debug, Default)]
pub struct QueryCounts {
    succeeded: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    timed_out: AtomicU64,
    too_large: AtomicU64,
    no_memory: AtomicU64,
    no_turn: AtomicU64,
}

impl QueryCounts {
    /// The counters by what they count, for a label.
    pub fn by_outcome(&self) -> [(&'static str, u64); 7] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("success", read(&self.succeeded)),
            ("error", read(&self.failed)),
            ("cancelled", read(&self.cancelled)),
            ("timed_out", read(&self.timed_out)),
            ("too_large", read(&self.too_large)),
            ("no_memory", read(&self.no_memory)),
            ("no_turn", read(&self.no_turn)),
        ]
    }

    pub(super) fn succeed(&self) {
        self.succeeded.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn cancel(&self) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
    }

    /// A query that did not get to run.
    pub(super) fn refuse(&self) {
        self.no_turn.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fail(&self, error: &QueryError) {
        let counter = match error {
            QueryError::TimedOut(_) => &self.timed_out,
            QueryError::TooLarge(_) => &self.too_large,
            QueryError::ResourcesExhausted(_) => &self.no_memory,
            _ => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
