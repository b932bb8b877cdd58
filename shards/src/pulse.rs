//! How long a shard's tasks hold its thread: a turn is one poll of one task, and nothing else happens on the shard meanwhile.
//!
//! # Mechanism
//! `Turns::take` surrounds every poll of every task of a shard: two readings of the clock and a few plain stores. The shard keeps
//! the histogram for itself; what other threads may ask while a turn goes on is in a [`Pulse`]: the thread, the turn's begin, and
//! whose run it is. So a turn that does not end can be seen, and a watcher of all shards wakes none of them.
//!
//! What it is not: time between turns (system calls of the reactor) is no turn. The thread's CPU time holds both.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use saltus_core::ids::TriggerId;

use crate::clock::mono_now;
use crate::shard::triggers::nanosecond_histogram;

/// What other threads see of a shard's turns.
#[derive(Debug, Default)]
pub struct Pulse {
    /// The kernel's id of the thread; 0 before it runs.
    thread: AtomicI32,
    /// When the turn under way began, monotonic nanoseconds; 0 between turns.
    began_ns: AtomicU64,
    /// The trigger whose inline run the turn is in, plus one; 0 without one.
    trigger: AtomicU64,
}

/// A turn that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The kernel's id of the shard's thread.
    pub thread: i32,
    /// What tells it from other turns of its shard: when it began, monotonic nanoseconds.
    pub began_ns: u64,
    /// For how long it has been going on.
    pub lasts: Duration,
    /// Whose inline run it is in, if any.
    pub trigger: Option<TriggerId>,
}

impl Pulse {
    /// The turn under way, if the shard is in one.
    pub fn turn(&self) -> Option<Turn> {
        let began_ns = self.began_ns.load(Ordering::Relaxed);
        let trigger = self.trigger.load(Ordering::Relaxed);
        (began_ns != 0).then(|| Turn {
            thread: self.thread.load(Ordering::Relaxed),
            began_ns,
            lasts: Duration::from_nanos(mono_now().0.saturating_sub(began_ns)),
            trigger: trigger.checked_sub(1).map(TriggerId),
        })
    }

    /// An inline run of this trigger begins (`None`: is over).
    pub(crate) fn set_trigger(&self, trigger: Option<TriggerId>) {
        self.trigger.store(trigger.map_or(0, |id| id.0 + 1), Ordering::Relaxed);
    }
}

/// What a shard measures of its turns; of its own thread only.
pub(crate) struct Turns {
    pulse: Arc<Pulse>,
    stall_ns: u64,
    kept: RefCell<Measured>,
}

/// Since the start of the shard.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Nanoseconds per turn.
    pub turn_ns: Histogram<u64>,
    /// All turns together, nanoseconds.
    pub busy_ns: u64,
    /// Turns that lasted as long as a stall.
    pub stalls: u64,
}

impl Turns {
    /// For the thread that calls. Turns of `stall` or more are counted as stalls.
    pub fn of_this_thread(pulse: Arc<Pulse>, stall: Duration) -> Rc<Self> {
        pulse.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        let stall_ns = u64::try_from(stall.as_nanos()).unwrap_or(u64::MAX);
        let kept = Measured { turn_ns: nanosecond_histogram(), busy_ns: 0, stalls: 0 };
        Rc::new(Turns { pulse, stall_ns, kept: RefCell::new(kept) })
    }

    /// Makes one turn.
    pub fn take<R>(&self, turn: impl FnOnce() -> R) -> R {
        let began = mono_now();
        self.pulse.began_ns.store(began.0, Ordering::Relaxed);
        let result = turn();
        self.pulse.began_ns.store(0, Ordering::Relaxed);
        let took = mono_now().since(began).max(1);
        // Not borrowed but while it is read, and that is no turn's business.
        if let Ok(mut kept) = self.kept.try_borrow_mut() {
            kept.turn_ns.saturating_record(took);
            kept.busy_ns += took;
            kept.stalls += u64::from(took >= self.stall_ns);
        }
        result
    }

    pub fn measured(&self) -> Measured {
        self.kept.borrow().clone()
    }

    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}

/// CPU time of this thread, in user code and in the kernel.
pub(crate) fn cpu_time_of_this_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_seen_while_it_goes_on_and_counted_when_it_is_over() {
        let pulse = Arc::new(Pulse::default());
        let turns = Turns::of_this_thread(pulse.clone(), Duration::from_nanos(1));
        assert_eq!(pulse.turn(), None);
        let seen = turns.take(|| {
            pulse.set_trigger(Some(TriggerId(0)));
            let other = pulse.clone();
            std::thread::spawn(move || other.turn()).join().unwrap().unwrap()
        });
        pulse.set_trigger(None);
        assert_eq!(seen.thread, rustix::thread::gettid().as_raw_nonzero().get());
        assert_eq!(seen.trigger, Some(TriggerId(0)));
        assert_eq!(pulse.turn(), None);
        let measured = turns.measured();
        assert_eq!((measured.turn_ns.len(), measured.stalls), (1, 1));
        assert!(measured.busy_ns >= u64::try_from(seen.lasts.as_nanos()).unwrap());
    }

    #[test]
    fn a_turn_within_a_turn_is_no_reason_to_fail() {
        let turns = Turns::of_this_thread(Arc::default(), Duration::from_secs(60));
        assert_eq!(turns.take(|| turns.take(|| 7)), 7);
        assert_eq!(turns.measured().stalls, 0);
    }
}
