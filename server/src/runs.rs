//! What became of runs, and what the policy decided: the rows of `system.trigger_runs`.
//!
//! A shard puts a record into a lock-free ring, stamped with the wall clock, and is done; when the ring is full the oldest
//! record goes. Readers move records from the ring to the kept rows, of which the newest [`RUN_RECORDS_MAX`] stay.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use parking_lot::Mutex;
use saltus_core::limits::RUN_RECORDS_MAX;
use saltus_core::ports::RunRecord;

use crate::logs::wall_clock_ns;

/// A record and the wall clock when it was made, nanoseconds since the epoch.
pub type Stamped = (i64, Arc<RunRecord>);

/// The ring of records.
pub struct RunRecords {
    ring: ArrayQueue<(i64, RunRecord)>,
    kept: Mutex<VecDeque<Stamped>>,
}

impl Default for RunRecords {
    fn default() -> Self {
        RunRecords { ring: ArrayQueue::new(RUN_RECORDS_MAX), kept: Mutex::default() }
    }
}

impl RunRecords {
    /// Keeps a record. Lock-free.
    pub fn put(&self, record: RunRecord) {
        drop(self.ring.force_push((wall_clock_ns(), record)));
    }

    /// The kept records of a database, oldest first.
    pub fn of(&self, db: &str) -> Vec<Stamped> {
        let mut kept = self.kept.lock();
        // What comes in meanwhile is for the next reader.
        for _ in 0..RUN_RECORDS_MAX {
            let Some((at, record)) = self.ring.pop() else { break };
            kept.push_back((at, Arc::new(record)));
        }
        let surplus = kept.len().saturating_sub(RUN_RECORDS_MAX);
        kept.drain(..surplus);
        kept.iter().filter(|(_, record)| &*record.db == db).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use saltus_core::ids::RunId;
    use saltus_core::policy::Lane;
    use saltus_core::ports::{RunOutcome, Unwound};

    use super::*;

    fn record(db: &str, run: u64) -> RunRecord {
        let what = RunOutcome::Discarded { run_id: RunId(run), why: Unwound::Overran };
        RunRecord { db: db.into(), trigger: "t".into(), lane: Lane::Inline, what }
    }

    #[test]
    fn the_newest_records_are_kept_in_order_and_by_database() {
        let records = RunRecords::default();
        records.put(record("other", 0));
        for run in 0..RUN_RECORDS_MAX as u64 + 10 {
            records.put(record("main", run));
        }
        assert!(records.of("other").is_empty(), "the oldest made room");
        let run_of = |(_, record): &Stamped| match record.what {
            RunOutcome::Discarded { run_id, .. } => run_id.0,
            _ => unreachable!("only these were put"),
        };
        let runs: Vec<u64> = records.of("main").iter().map(run_of).collect();
        assert_eq!(runs.len(), RUN_RECORDS_MAX);
        assert!(runs[0] == 10 && runs.is_sorted());
        records.put(record("main", 1_000_000));
        let again: Vec<u64> = records.of("main").iter().map(run_of).collect();
        assert_eq!((again.len(), again[0], again.last()), (RUN_RECORDS_MAX, 11, Some(&1_000_000)));
    }
}
