//! Which deferred interpreter a trigger's runs take: a run holds the GIL of its interpreter, so who computes for long sits apart
//! from those who do not.
//!
//! ```text
//!              short for a while                     long
//!    new  ------------------------->  shared  ---------------->  own
//!     |                                  ^                        ^ |
//!     |   long, or interrupted           |   short for long       | |
//!     +----------------------------------|------------------------+ |
//!                                        +--------------------------+
//! ```
//!
//! Nobody comes into the shared interpreter whose runs are not known to be short, so what is new costs no one there anything. In the
//! process lane everybody has an interpreter of its own; there `own` means the lowest priority.
//!
//! **Invariants.**
//! 1. A trigger is moved for the CPU time of its runs, never for what the clock says.
//! 2. It does not flap: each return from an interpreter of its own takes twice as long as the one before, and the cost that brings it
//!    back is half of the one that moved it out. New code starts without that past.
//! 3. What it shares with others by reference keeps it where that is, for as long as the code stays the same.

use std::sync::Arc;
use std::time::Duration;

use super::{Reason, Window};
use crate::ids::{MonoNs, RoomId};
use crate::limits::LONG_RUN_US;

/// Runs after which their costs say what a trigger is like.
const RUNS_TO_JUDGE: u32 = 8;
/// Events in the interpreter of new triggers before the shared one: as many as the inline lane asks, so that most go there at once.
const RUNS_TO_SETTLE: u32 = super::RUNS_TO_EARN;
/// One run of so many long ones is enough to move a trigger.
const LONG_AT_ONCE: u64 = 10;
/// Short runs in an interpreter of its own before a trigger comes back, and the time that passes first.
const RUNS_TO_RETURN: u32 = 64;
const RETURNS_AFTER: Duration = Duration::from_secs(10);
/// Returns beyond which that time grows no further.
const DOUBLINGS_MAX: u32 = 8;
/// A move that what a trigger's cache holds has prevented is tried again after so long.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// An event that takes longer makes a trigger one that sits apart.
const LONG_NS: u64 = LONG_RUN_US * 1000;

/// Which deferred interpreter a trigger's runs take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seat {
    /// That of the triggers of which little is known.
    New,
    /// That of the triggers whose runs are short.
    Shared,
    /// One of its own, as far as there are enough.
    Own,
    /// The one in which something lives that the trigger uses by reference.
    Beside(RoomId),
}

impl Seat {
    /// The name in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Seat::New => "new",
            Seat::Shared => "shared",
            Seat::Own => "own",
            Seat::Beside(_) => "beside",
        }
    }
}

/// Where a trigger sits, and what speaks for another seat.
#[derive(Clone, Debug)]
pub struct Seating {
    seat: Seat,
    since: MonoNs,
    /// Events of its runs in this seat.
    runs: u32,
    /// Of one event, at the 90th percentile, when it was last moved to [`Seat::Own`].
    p90_ns: u64,
    returns: u32,
    /// What keeps it where it is, and until when nothing else is tried.
    kept: Option<(Arc<str>, MonoNs)>,
    /// There are no more interpreters: it shares one with others like it.
    crowded: bool,
}

impl Seating {
    /// Of a trigger of which nothing is known.
    pub fn new(now: MonoNs) -> Self {
        Seating { seat: Seat::New, since: now, runs: 0, p90_ns: 0, returns: 0, kept: None, crowded: false }
    }

    /// Where it is to sit.
    pub fn seat(&self) -> Seat {
        self.seat
    }

    /// Something keeps it where it is.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// What an event costs, as it was when the trigger was moved for that, in nanoseconds.
    pub fn cost_ns(&self) -> u64 {
        self.p90_ns
    }

    /// Whether the next run is the first one there: it fills caches and says nothing of those to come.
    pub fn is_fresh(&self) -> bool {
        self.runs == 0
    }

    /// What is to be said of it beside the reason of its lane.
    pub fn remark(&self) -> Option<String> {
        let mut remark = match self.seat {
            Seat::Own if self.crowded => format!(
                "{}, which it shares with others like it: there are no more (--own-interpreters)",
                Reason::Long { p90: Duration::from_nanos(self.p90_ns) }
            ),
            Seat::Own => Reason::Long { p90: Duration::from_nanos(self.p90_ns) }.to_string(),
            Seat::New | Seat::Shared | Seat::Beside(_) => String::new(),
        };
        if let Some((why, _)) = &self.kept {
            let separator = if remark.is_empty() { "" } else { "; " };
            remark.push_str(separator);
            remark.push_str(&format!("it stays in its interpreter: {why}"));
        }
        (!remark.is_empty()).then_some(remark)
    }

    /// A run of `events` has ended, of which one costs `cost`, lately at most `costs`: why it moves, if it does.
    pub(super) fn ran(&mut self, events: u32, cost: u64, costs: &Window, now: MonoNs) -> Option<Reason> {
        let fresh = self.is_fresh();
        self.runs = self.runs.saturating_add(events);
        if fresh || self.kept.as_ref().is_some_and(|(_, until)| now < *until) {
            return None;
        }
        let p90 = costs.percentile(90)?;
        let long = cost >= LONG_NS * LONG_AT_ONCE || (self.runs >= RUNS_TO_JUDGE && p90 > LONG_NS);
        match self.seat {
            Seat::New | Seat::Shared if long => Some(self.apart(p90.max(cost), now)),
            Seat::New if self.runs >= RUNS_TO_SETTLE => Some(self.sit(Seat::Shared, Reason::Short, now)),
            Seat::Own => {
                let wait = (RETURNS_AFTER.as_nanos() as u64) << self.returns.min(DOUBLINGS_MAX);
                let short = self.runs >= RUNS_TO_RETURN && p90 <= LONG_NS / 2 && now.since(self.since) >= wait;
                short.then(|| {
                    self.returns += 1;
                    self.sit(Seat::Shared, Reason::ShortAgain { p90: Duration::from_nanos(p90) }, now)
                })
            }
            Seat::New | Seat::Shared | Seat::Beside(_) => None,
        }
    }

    /// A run was interrupted after this CPU time.
    pub fn overran(&mut self, cost: u64, now: MonoNs) -> Option<Reason> {
        let kept = self.kept.as_ref().is_some_and(|(_, until)| now < *until);
        (matches!(self.seat, Seat::New | Seat::Shared) && !kept).then(|| self.apart(cost, now))
    }

    fn apart(&mut self, cost: u64, now: MonoNs) -> Reason {
        self.p90_ns = cost;
        self.sit(Seat::Own, Reason::Long { p90: Duration::from_nanos(cost) }, now)
    }

    fn sit(&mut self, seat: Seat, reason: Reason, now: MonoNs) -> Reason {
        (self.seat, self.since, self.runs, self.crowded, self.kept) = (seat, now, 0, false, None);
        reason
    }

    /// Its runs are known to be short: it was in the inline lane.
    pub fn is_short(&mut self, now: MonoNs) {
        if matches!(self.seat, Seat::New | Seat::Own) {
            self.sit(Seat::Shared, Reason::Short, now);
        }
    }

    /// It cannot leave `seat` for this reason.
    pub fn keep(&mut self, seat: Seat, why: Arc<str>, now: MonoNs) {
        let until = MonoNs(now.0.saturating_add(TRIED_AGAIN_AFTER.as_nanos() as u64));
        (self.seat, self.since, self.kept) = (seat, now, Some((why, until)));
    }

    /// It is to be where something lives that it uses.
    pub fn beside(&mut self, room: RoomId, what: Arc<str>, now: MonoNs) -> Reason {
        self.sit(Seat::Beside(room), Reason::Beside(what), now)
    }

    /// Whether it shares an interpreter that it should have for itself.
    pub fn set_crowded(&mut self, crowded: bool) {
        self.crowded = crowded;
    }

    /// Nothing is known of it any more.
    pub fn forget(&mut self, now: MonoNs) {
        *self = Seating::new(now);
    }
}
