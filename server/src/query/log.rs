//! The last queries, for `system.queries`: a ring in memory, lost at a restart.
//!
//! A query holds a [`RunningQuery`] while it lives. One that is dropped before it was finished was cancelled: its task was
//! aborted, because whoever asked has gone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::request::QueryRequest;
use super::system::{DurationNs, QueryRow, TimeNs};

/// Bytes of a statement that are kept.
const QUERY_TEXT_BYTES_MAX: usize = 4096;

/// The ring.
#[derive(Default)]
pub(super) struct QueryLog {
    entries_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Queries ever begun, which is the id of the last.
    begun: u64,
    /// Consecutive ids, the last of them `begun`.
    entries: VecDeque<QueryRow>,
}

impl QueryLog {
    pub(super) fn new(entries_max: usize) -> Self {
        QueryLog { entries_max, state: Mutex::default() }
    }

    /// Notes a query that has just come.
    pub(super) fn begin(self: &Arc<Self>, request: &QueryRequest) -> RunningQuery {
        let mut state = self.state();
        state.begun += 1;
        let id = state.begun;
        state.entries.push_back(received(id, request));
        while state.entries.len() > self.entries_max {
            state.entries.pop_front();
        }
        let now = Instant::now();
        RunningQuery { log: self.clone(), id, begun: now, stage_begun: now, over: false }
    }

    /// What is remembered, oldest first.
    pub(super) fn rows(&self) -> Vec<QueryRow> {
        self.state().entries.iter().cloned().collect()
    }

    fn update(&self, id: u64, change: impl FnOnce(&mut QueryRow)) {
        let mut state = self.state();
        let age = (state.begun - id) as usize;
        let at = state.entries.len().checked_sub(age + 1);
        if let Some(row) = at.and_then(|at| state.entries.get_mut(at)) {
            change(row);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn received(id: u64, request: &QueryRequest) -> QueryRow {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    QueryRow {
        id: id.to_string(),
        phase: "received".to_owned(),
        issue_time: TimeNs(nanoseconds(now)),
        query_type: request.kind.as_str().to_owned(),
        query_text: cut(&request.sql).to_owned(),
        running: true,
        ..QueryRow::default()
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(QUERY_TEXT_BYTES_MAX)]
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// One query's entry while it runs.
pub(super) struct RunningQuery {
    log: Arc<QueryLog>,
    id: u64,
    begun: Instant,
    stage_begun: Instant,
    over: bool,
}

impl RunningQuery {
    /// The permit is there.
    pub(super) fn permitted(&mut self) {
        let took = self.next_stage();
        self.log.update(self.id, |row| {
            row.phase = "permit".to_owned();
            row.permit_duration = Some(took);
        });
    }

    /// The plan is there.
    pub(super) fn planned(&mut self) {
        let took = self.next_stage();
        self.log.update(self.id, |row| {
            row.phase = "planned".to_owned();
            row.plan_duration = Some(took);
        });
    }

    /// The last row was taken.
    pub(super) fn succeed(&mut self) {
        self.end("success", |row| row.success = true);
    }

    /// It ended with an error.
    pub(super) fn fail(&mut self) {
        self.end("fail", |_| {});
    }

    /// Whether nobody has said yet how it ended.
    pub(super) fn is_open(&self) -> bool {
        !self.over
    }

    fn next_stage(&mut self) -> DurationNs {
        let now = Instant::now();
        let took = now - self.stage_begun;
        self.stage_begun = now;
        DurationNs(nanoseconds(took))
    }

    fn end(&mut self, phase: &str, change: impl FnOnce(&mut QueryRow)) {
        if self.over {
            return;
        }
        let took = self.next_stage();
        let all = DurationNs(nanoseconds(self.begun.elapsed()));
        self.over = true;
        self.log.update(self.id, |row| {
            row.phase = phase.to_owned();
            row.running = false;
            row.end2end_duration = Some(all);
            if row.plan_duration.is_some() {
                row.execute_duration = Some(took);
            }
            change(row);
        });
    }
}

impl Drop for RunningQuery {
    fn drop(&mut self) {
        if !self.over {
            self.end("cancel", |row| row.cancelled = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::QueryKind;

    fn request(sql: &str) -> QueryRequest {
        QueryRequest { db: None, sql: sql.to_owned(), params: Vec::new(), kind: QueryKind::Sql }
    }

    #[test]
    fn the_ring_keeps_the_last_and_a_forgotten_query_may_still_end() {
        let log = Arc::new(QueryLog::new(2));
        let mut first = log.begin(&request("1"));
        log.begin(&request("2")).fail();
        drop(log.begin(&request("3")));
        first.succeed();
        let rows = log.rows();
        let seen: Vec<_> = rows.iter().map(|row| (row.id.as_str(), row.phase.as_str(), row.cancelled)).collect();
        assert_eq!(seen, [("2", "fail", false), ("3", "cancel", true)]);
    }

    #[test]
    fn a_long_statement_is_cut_between_characters() {
        let log = Arc::new(QueryLog::new(1));
        let _running = log.begin(&request(&"\u{e9}".repeat(5000)));
        assert_eq!(log.rows()[0].query_text.len(), QUERY_TEXT_BYTES_MAX);
    }

    #[test]
    fn a_ring_of_nothing_remembers_nothing() {
        let log = Arc::new(QueryLog::new(0));
        log.begin(&request("1")).succeed();
        assert!(log.rows().is_empty());
    }
}
