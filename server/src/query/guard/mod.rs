//! What one query may cost: time, memory, and the patience of whoever asked (ADR 15).
//!
//! Every query has a [`Guard`]. It is known to the threads that work for the query ([`current`]), so that what is deep inside
//! of DataFusion finds it: functions (`functions`), expressions that are evaluated in inner loops (`exprs`), operators
//! (`nodes`). They ask it at least once per batch whether to go on, and for memory before they take it.
//!
//! - A query runs on threads of its own (`threads`): one that computes for minutes without looking up takes them from nobody.
//! - A query whose client has gone, and one whose time is over, ends at its next look at the guard.
//! - Memory is counted per query and for all together (`memory`): one that wants more than there is at all is told so;
//!   one that only finds none now may come again.

mod budget;
mod cells;
mod depth;
mod estimate;
mod exprs;
mod functions;
mod joins;
mod memory;
mod nodes;
mod pieces;
#[cfg(test)]
mod tests;
mod threads;
mod values;
mod windows;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use datafusion::error::{DataFusionError, Result};
use tokio::sync::Notify;

use super::QueryError;

pub(super) use depth::check_depth;
pub(super) use estimate::batch_bytes;
pub(super) use exprs::Checkpoints;
pub(super) use functions::BoundedFunctions;
pub(super) use memory::{AllMemory, QueryMemory};
pub(super) use threads::{Job, THREAD_STACK_BYTES, ThreadPlace, Threads};

/// How long a query is under way before its threads stand behind those of younger ones.
const YOUNG: Duration = Duration::from_millis(200);

/// How much below the shards the threads of a query stand that is not young any more.
const OLD_NICE: i32 = 19;

/// Says to all queries that the engine closes.
#[derive(Default)]
pub(super) struct Closing {
    closed: AtomicBool,
    wake: Notify,
}

impl Closing {
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_waiters();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    async fn closed(&self) {
        let closed = self.wake.notified();
        tokio::pin!(closed);
        // From here on it is woken; before, it sees the flag.
        closed.as_mut().enable();
        if !self.is_closed() {
            closed.await;
        }
    }
}

/// The bounds of one query, and how far it has come to them.
pub(super) struct Guard {
    begun: Instant,
    timeout: Duration,
    /// When its time is over, in nanoseconds after `begun`.
    deadline_ns: AtomicU64,
    /// The result waits for its reader, whose time is not the query's.
    reader_waits: AtomicBool,
    cancelled: AtomicBool,
    timed_out: AtomicBool,
    /// The plan is there. Before, a function that would make something large is not evaluated.
    executing: AtomicBool,
    wake: Notify,
    memory: Arc<QueryMemory>,
    closing: Arc<Closing>,
}

impl Guard {
    pub(super) fn new(timeout: Duration, memory: Arc<QueryMemory>, closing: Arc<Closing>) -> Arc<Self> {
        Arc::new(Guard {
            begun: Instant::now(),
            timeout,
            deadline_ns: AtomicU64::new(nanoseconds(timeout)),
            reader_waits: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            timed_out: AtomicBool::new(false),
            executing: AtomicBool::new(false),
            wake: Notify::new(),
            memory,
            closing,
        })
    }

    /// What the query holds.
    pub(super) fn memory(&self) -> &Arc<QueryMemory> {
        &self.memory
    }

    /// Nobody waits for the query any more.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// The plan is there.
    pub(super) fn set_executing(&self) {
        self.executing.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_executing(&self) -> bool {
        self.executing.load(Ordering::Relaxed)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire) || self.closing.is_closed()
    }

    pub(super) fn has_timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Acquire)
    }

    /// Whether to go on; asked once per batch or more often.
    ///
    /// # Errors
    /// The query is to end.
    pub(super) fn check(&self) -> Result<()> {
        match self.verdict() {
            None => Ok(()),
            Some(error) => Err(DataFusionError::External(Box::new(error))),
        }
    }

    /// Why the query is to end, if it is.
    pub(super) fn verdict(&self) -> Option<QueryError> {
        if self.is_cancelled() {
            return Some(super::error::aborted());
        }
        let age = self.begun.elapsed();
        if nanoseconds(age) >= self.deadline_ns.load(Ordering::Relaxed) && !self.reader_waits.load(Ordering::Relaxed) {
            self.timed_out.store(true, Ordering::Release);
        }
        if self.has_timed_out() {
            return Some(self.too_slow());
        }
        if age >= YOUNG {
            threads::stand_behind(OLD_NICE);
        }
        None
    }

    /// Resolves when the query is to end.
    pub(super) async fn over(&self) -> QueryError {
        loop {
            if let Some(error) = self.verdict() {
                return error;
            }
            let at = self.begun + Duration::from_nanos(self.deadline_ns.load(Ordering::Relaxed));
            // While the reader waits, the deadline moves later without a word.
            let soon = Instant::now() + Duration::from_millis(50);
            tokio::select! {
                () = self.wake.notified() => {}
                () = self.closing.closed() => {}
                () = tokio::time::sleep_until(at.max(soon).into()) => {}
            }
        }
    }

    /// Waits for the reader with `wait`, and does not count that time. `None`: the engine closes.
    pub(super) async fn while_reader_waits<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let begun = Instant::now();
        self.reader_waits.store(true, Ordering::Relaxed);
        let out = tokio::select! {
            biased;
            out = wait => Some(out),
            () = self.closing.closed() => None,
        };
        self.deadline_ns.fetch_add(nanoseconds(begun.elapsed()), Ordering::Relaxed);
        self.reader_waits.store(false, Ordering::Relaxed);
        out
    }

    /// The error of a query that was cut off, whatever DataFusion made of it; `error` if it was not.
    pub(super) fn explain(&self, error: QueryError) -> QueryError {
        match error {
            _ if self.has_timed_out() => self.too_slow(),
            _ if self.is_cancelled() => super::error::aborted(),
            QueryError::ResourcesExhausted(_) => self.memory.refusal(),
            other => other,
        }
    }

    /// The query did not answer in time, and its thread did not say so itself.
    pub(super) fn late(&self) -> QueryError {
        self.timed_out.store(true, Ordering::Release);
        self.too_slow()
    }

    fn too_slow(&self) -> QueryError {
        let timeout = humantime::format_duration(self.timeout);
        QueryError::TimedOut(format!(
            "the query did not end within {timeout}, the time that a query may take (setting --query-timeout): narrow it, by \
             a range of time for example, or raise the setting"
        ))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Guard>>> = const { RefCell::new(None) };
}

/// The guard of the query that this thread works for.
pub(super) fn current() -> Option<Arc<Guard>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Asks the guard of the query that this thread works for, if it works for one.
///
/// # Errors
/// The query is to end.
pub(super) fn check() -> Result<()> {
    CURRENT.with_borrow(|guard| guard.as_ref().map_or(Ok(()), |guard| guard.check()))
}

/// Makes the guard known to this thread until the value is dropped.
pub(super) fn enter(guard: &Arc<Guard>) -> Entered {
    CURRENT.set(Some(guard.clone()));
    Entered
}

/// Makes the guard known to this thread for good: it works for no other query.
pub(super) fn settle(guard: &Arc<Guard>) {
    CURRENT.set(Some(guard.clone()));
}

/// While it is there, this thread works for a query.
pub(super) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}
