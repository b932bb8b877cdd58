//! The execution policy: which lane a trigger's next run takes, and why (design, section 5).
//!
//! Pure: what happened goes in with its instant, a [`Decision`] comes out when the lane changes. One [`Policy`] per trigger,
//! one [`InlineBudget`] per shard.
//!
//! **Invariants.**
//! 1. With `execution=auto` a trigger is inline only while all of this holds: its code passed the static check, its cache
//!    holds plain values only, nothing bars it, and its recent runs fitted the budget when it was promoted.
//! 2. What the operator chose stays: an explicit lane never changes, and `isolation=interpreter` is never left. The one exception is
//!    code that has held up a shard: it leaves the inline lane even if the operator put it there.
//! 3. A trigger does not flap. Every demotion doubles the time and the number of runs until the next promotion, and
//!    the cost that promotes is lower than the cost that demotes. New code starts without that past.
//! 4. Costs are CPU time. What a busy machine does to the clock, or a process that is stopped for a while, changes no lane.
//! 5. Every change of lane is a decision with a reason, and decisions form a chain: one ends in the lane in which the next begins.
//!
//! Where in the deferred lane it runs is in [`seat`].

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::ids::{MonoNs, RoomId, TriggerId};
use crate::limits::{INLINE_SHARE_PERCENT_MAX, INLINE_TURN_BUDGET_US, LONG_RUN_US};
use crate::trigger::{Execution, Isolation};

pub mod seat;

use seat::{Seat, Seating};

/// Recent runs whose cost counts.
const RECENT_RUNS: usize = 128;
/// Events handled in the deferred lane before the first promotion.
const RUNS_TO_EARN: u32 = 32;
/// Events of one run that count for it: a lane that is short of time makes few runs of many events, but one says little.
const EVENTS_OF_A_RUN_MAX: u32 = 8;
/// Time in the deferred lane after the first demotion before the next promotion.
const DEMOTED_FOR: Duration = Duration::from_secs(1);
/// Demotions beyond which times and runs grow no further: 2^8 seconds, 2^8 times the runs.
const DOUBLINGS_MAX: u32 = 8;
/// A promotion needs a median of no more than so much of the budget. A worker that shares its core is interrupted, and with cold
/// caches costs several times what the same run inline does: on a busy virtual machine that is seen in more than one run of ten.
const PROMOTED_AT_PERCENT: u64 = 70;
/// And a p90 of no more than so many budgets: what is slow now and then by itself is slow by more than a disturbance.
const PROMOTED_P90_BUDGETS_MAX: u64 = 4;
/// Blocking calls of one version of the code after which it stays out of the inline lane.
const BLOCKS_MAX: u32 = 3;
/// Inline runs in a row after which one demotion is forgotten.
const FORGIVEN_AFTER: u32 = 10_000;
/// The time over which a shard's share of inline runs is taken.
const SHARE_WINDOW: Duration = Duration::from_millis(500);

/// Where a run takes place (glossary: lane).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// On the shard's own thread.
    Inline,
    /// On the shard's worker threads.
    Deferred,
    /// In a worker process.
    Process,
}

impl Lane {
    /// The name in SQL, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Inline => "inline",
            Lane::Deferred => "deferred",
            Lane::Process => "process",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is reported to the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The static check has read the code: nothing against it, or what.
    Checked(Result<(), Arc<str>>),
    /// There is new code, not checked yet.
    CodeChanged,
    /// There is new code, and an interpreter with a GIL of its own refuses what it imports: the module.
    CodeRefused(Arc<str>),
    /// A run ended, well or not, without any of the trouble below.
    Ran(Cost),
    /// An inline run reached for something that can block, and was unwound.
    Blocked(Arc<str>),
    /// A run was interrupted at its deadline after so long.
    Overran(Duration),
    /// Whether the trigger's cache holds plain values only.
    CachePlain(bool),
    /// An import was refused by an interpreter with a GIL of its own: the module.
    ImportRefused(Arc<str>),
    /// The shard has spent more on inline runs than it may, and this trigger is the costliest.
    OverBudget {
        /// Of the shard's time, in per cent.
        share_percent: u64,
    },
    /// This code has held up a shard until the watchdog gave up on it.
    Quarantined,
    /// A run could not be ended, and was left behind.
    Stuck,
    /// It cannot be moved out of the interpreter in which it is: why.
    Stays {
        /// Where that is.
        seat: Seat,
        /// What holds it there.
        why: Arc<str>,
    },
    /// It uses a live object of the global cache: it is to be run where that is.
    LivesIn {
        /// Where.
        room: RoomId,
        /// What.
        what: Arc<str>,
    },
    /// Whether it shares the interpreter that it should have for itself.
    Crowded(bool),
}

/// What a run cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// CPU time from entry to end, in nanoseconds.
    pub nanoseconds: u64,
    /// Rows that it was given.
    pub rows: usize,
    /// Rows of its first event: fewer cannot be given to a run.
    pub event_rows: usize,
}

impl Cost {
    /// The cost of a run with the first event alone, were it proportional to rows.
    fn of_one_event(self) -> u64 {
        let (event, rows) = (self.event_rows.clamp(1, self.rows.max(1)) as u128, self.rows.max(1) as u128);
        (u128::from(self.nanoseconds) * event / rows) as u64
    }

    /// About how many events it was for.
    fn events(self) -> u32 {
        u32::try_from(self.rows / self.event_rows.max(1)).unwrap_or(u32::MAX).max(1)
    }

    fn of_one_row(self) -> u64 {
        self.nanoseconds / self.rows.max(1) as u64
    }
}

/// Why a lane was chosen; its text is what people read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A new trigger.
    New,
    /// The operator said so.
    Operator,
    /// Recent runs fit the inline budget.
    Earned {
        /// Median of what a run with one event costs.
        p50: Duration,
    },
    /// The static check refuses the code.
    Check(Arc<str>),
    /// A call that can block.
    Blocked(Arc<str>),
    /// Interrupted at the deadline.
    Overran(Duration),
    /// Recent runs do not fit the budget any more.
    Slow {
        /// 99th percentile of what a run with one event costs.
        p99: Duration,
    },
    /// The shard's budget was spent, mostly by this trigger.
    OverBudget {
        /// Of the shard's time, in per cent.
        share_percent: u64,
    },
    /// The cache holds live objects.
    CacheNotPlain,
    /// There is new code.
    CodeChanged,
    /// A module does not load in an interpreter with a GIL of its own.
    ImportRefused(Arc<str>),
    /// The code held up a shard before.
    Quarantined,
    /// A run could not be ended.
    Stuck,
    /// Its first runs were short.
    Short,
    /// Its runs take long.
    Long {
        /// 90th percentile of what one event costs.
        p90: Duration,
    },
    /// Its runs took long, and do not any more.
    ShortAgain {
        /// 90th percentile of what one event costs.
        p90: Duration,
    },
    /// Something that it uses by reference is in another interpreter.
    Beside(Arc<str>),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::New => f.write_str("a new trigger starts deferred"),
            Reason::Operator => f.write_str("chosen by the operator"),
            Reason::Earned { p50 } => write!(f, "recent runs fit the inline budget: p50 {p50:?}"),
            Reason::Check(what) => write!(f, "the static check: {what}"),
            Reason::Blocked(what) => write!(f, "an inline run called what can block: {what}"),
            Reason::Overran(took) => write!(f, "a run was interrupted at its deadline after {took:?}"),
            Reason::Slow { p99 } => write!(f, "recent runs exceed the inline budget: p99 {p99:?}"),
            Reason::OverBudget { share_percent } => {
                write!(f, "inline runs took {share_percent}% of the shard, most of it this trigger")
            }
            Reason::CacheNotPlain => f.write_str("its cache holds objects that another interpreter cannot have"),
            Reason::CodeChanged => f.write_str("new code starts deferred"),
            Reason::ImportRefused(module) => {
                write!(f, "module {module} does not load in an interpreter with a GIL of its own")
            }
            Reason::Quarantined => f.write_str("this code has held up a shard before"),
            Reason::Stuck => f.write_str("a run of this code could not be ended"),
            Reason::Short => f.write_str("its first runs were short: it shares an interpreter with others like it"),
            Reason::Long { p90 } => {
                write!(f, "its runs take long (p90 {p90:?} of CPU time): it has an interpreter of its own")
            }
            Reason::ShortAgain { p90 } => {
                write!(
                    f,
                    "its runs are short again (p90 {p90:?} of CPU time): it shares an interpreter with others like it"
                )
            }
            Reason::Beside(what) => write!(f, "it runs in the interpreter in which {what} is"),
        }
    }
}

/// A change of lane, or of the interpreter within one: then both are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub at: MonoNs,
    /// The lane before.
    pub from: Lane,
    /// The lane from now on.
    pub to: Lane,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decision { from, to, reason, .. } = self;
        if from == to { write!(f, "{to}: {reason}") } else { write!(f, "{from} -> {to}: {reason}") }
    }
}

/// The policy of one trigger; see the header.
#[derive(Clone, Debug)]
pub struct Policy {
    execution: Execution,
    isolation: Isolation,
    budget_ns: u64,
    lane: Lane,
    reason: Reason,
    since: MonoNs,
    /// `None` until the static check has read this code.
    check: Option<Result<(), Arc<str>>>,
    cache_plain: bool,
    recent: Recent,
    /// Runs in the lane since the last change of it.
    runs_in_lane: u32,
    demotions: u32,
    blocks: u32,
    seating: Seating,
    /// Why it has changed its seat, until somebody asks.
    moved: Option<Reason>,
}

impl Policy {
    /// The policy of a trigger with these settings, whose inline runs should take no more than `budget` each.
    pub fn new(execution: Execution, isolation: Isolation, budget: Duration, now: MonoNs) -> Self {
        let lane = match (isolation, execution) {
            (Isolation::Process, _) => Lane::Process,
            (_, Execution::Inline) => Lane::Inline,
            (_, Execution::Auto | Execution::Deferred) => Lane::Deferred,
        };
        let chosen = isolation == Isolation::Process || execution != Execution::Auto;
        Policy {
            execution,
            isolation,
            budget_ns: nanoseconds(budget),
            lane,
            reason: if chosen { Reason::Operator } else { Reason::New },
            since: now,
            check: None,
            cache_plain: true,
            recent: Recent::default(),
            runs_in_lane: 0,
            demotions: 0,
            blocks: 0,
            seating: Seating::new(now),
            moved: None,
        }
    }

    /// The lane of the next run.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Why it is in that lane.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// Why it is in that lane, what it may expect, and what is to be said of its interpreter there: for people.
    pub fn account(&self) -> String {
        let account = match (&self.reason, self.barred()) {
            (Reason::New, None) => format!("{}, and is moved inline when its runs fit the budget", self.reason),
            (Reason::New, Some(bar)) => format!("{}, and is not moved inline: {bar}", self.reason),
            (reason, _) => reason.to_string(),
        };
        match self.seating.remark().filter(|_| self.lane == Lane::Deferred) {
            Some(remark) => format!("{account}; {remark}"),
            None => account,
        }
    }

    /// Which interpreter the next run takes if it is deferred. In the process lane [`Seat::Own`] is the lowest priority.
    pub fn seat(&self) -> Seat {
        self.seating.seat()
    }

    /// Whether its runs may be made in another deferred interpreter than the one in which it is.
    pub fn may_move(&self) -> bool {
        self.lane == Lane::Deferred && !self.seating.is_kept()
    }

    /// Whether its runs take long, and what an event of it costs then, in nanoseconds.
    pub fn long(&self) -> (bool, u64) {
        (self.seating.seat() == Seat::Own, self.seating.cost_ns())
    }

    /// Why it has changed its seat, if it has since this was asked last.
    pub fn take_moved(&mut self) -> Option<Reason> {
        self.moved.take()
    }

    /// Since when.
    pub fn since(&self) -> MonoNs {
        self.since
    }

    /// There is another budget for inline runs.
    pub fn set_budget(&mut self, budget: Duration) {
        self.budget_ns = nanoseconds(budget);
    }

    /// What keeps it out of the inline lane for now, if it is left to the policy.
    pub fn barred(&self) -> Option<Reason> {
        match &self.check {
            Some(Err(what)) => Some(Reason::Check(what.clone())),
            _ if !self.cache_plain => Some(Reason::CacheNotPlain),
            _ => None,
        }
    }

    /// Rows that a run may be given so that it fits the budget of its lane, at least one event's: others wait for it, on the shard's
    /// thread or for the interpreter, unless it has that for itself.
    pub fn rows_max(&self) -> usize {
        let budget = match (self.lane, self.execution) {
            (Lane::Inline, Execution::Auto) => self.budget_ns,
            (Lane::Deferred, _) if self.seating.seat() != Seat::Own => LONG_RUN_US * 1000,
            _ => return usize::MAX,
        };
        let row = self.recent.rows.p99().unwrap_or(0).max(1);
        usize::try_from(budget / row).unwrap_or(usize::MAX).max(1)
    }

    /// Takes note; a decision if the lane changes.
    pub fn observe(&mut self, observation: Observation, now: MonoNs) -> Option<Decision> {
        match observation {
            Observation::CodeChanged => self.new_code(now),
            Observation::CodeRefused(module) => self.new_code_refused(module, now),
            Observation::Checked(verdict) => {
                let refused = verdict.as_ref().err().cloned();
                self.check = Some(verdict);
                refused.and_then(|what| self.demote(Reason::Check(what), now))
            }
            Observation::CachePlain(plain) => {
                self.cache_plain = plain;
                if plain { None } else { self.demote(Reason::CacheNotPlain, now) }
            }
            Observation::Ran(cost) => self.ran(cost, now),
            Observation::Blocked(what) => {
                self.blocks += 1;
                self.demote(Reason::Blocked(what), now)
            }
            Observation::Overran(took) => {
                self.runs_in_lane = 0;
                if self.lane != Lane::Inline {
                    self.moved = self.seating.overran(nanoseconds(took), now);
                }
                self.demote(Reason::Overran(took), now)
            }
            Observation::OverBudget { share_percent } => self.demote(Reason::OverBudget { share_percent }, now),
            Observation::ImportRefused(module) => self.isolate(Reason::ImportRefused(module), now),
            Observation::Quarantined => self.put_away(Reason::Quarantined, now),
            Observation::Stuck => self.put_away(Reason::Stuck, now),
            Observation::Stays { seat, why } => {
                self.seating.keep(seat, why, now);
                None
            }
            Observation::LivesIn { room, what } => {
                self.moved = Some(self.seating.beside(room, what, now));
                None
            }
            Observation::Crowded(crowded) => {
                self.seating.set_crowded(crowded);
                None
            }
        }
    }

    /// Nothing that is known of the old code says anything about the new.
    fn new_code(&mut self, now: MonoNs) -> Option<Decision> {
        let mut fresh = Policy::new(self.execution, self.isolation, Duration::from_nanos(self.budget_ns), now);
        (fresh.since, fresh.reason, fresh.cache_plain) = (self.since, self.reason.clone(), self.cache_plain);
        let (before, after) = (self.lane, fresh.lane);
        (*self, self.lane) = (fresh, before);
        if before == after { None } else { Some(self.change(after, Reason::CodeChanged, now)) }
    }

    /// As [`Policy::new_code`], in one step to where the new code runs: no decision if it is there.
    fn new_code_refused(&mut self, module: Arc<str>, now: MonoNs) -> Option<Decision> {
        let (before, since) = (self.lane, self.since);
        let changed = self.new_code(now);
        let isolated = self.isolate(Reason::ImportRefused(module), now);
        if self.lane == before {
            self.since = since;
            return None;
        }
        isolated.map(|decision| Decision { from: before, ..decision }).or(changed)
    }

    fn ran(&mut self, cost: Cost, now: MonoNs) -> Option<Decision> {
        // The first one in an interpreter imports modules and fills caches; it says nothing of those to come.
        let fresh = self.runs_in_lane == 0 || (self.lane != Lane::Inline && self.seating.is_fresh());
        if !fresh {
            self.recent.push(cost);
        }
        let counted = if self.lane == Lane::Inline { 1 } else { cost.events().min(EVENTS_OF_A_RUN_MAX) };
        self.runs_in_lane = self.runs_in_lane.saturating_add(counted);
        let decision = self.judge(now);
        if decision.is_none() && self.lane != Lane::Inline {
            self.moved = self.seating.ran(counted, cost.of_one_event(), &self.recent.events, now).or(self.moved.take());
        }
        decision
    }

    /// What recent runs speak for.
    fn judge(&mut self, now: MonoNs) -> Option<Decision> {
        if self.execution != Execution::Auto {
            return None;
        }
        match self.lane {
            Lane::Process => None,
            Lane::Inline => {
                if self.runs_in_lane.is_multiple_of(FORGIVEN_AFTER) {
                    self.demotions = self.demotions.saturating_sub(1);
                }
                let p99 = self.recent.events.p99()?;
                // One outlier in a lane that is new to it is a hiccup: the deadline watches over those.
                let slow = p99 > self.budget_ns && self.runs_in_lane >= RUNS_TO_EARN;
                if slow { self.demote(Reason::Slow { p99: Duration::from_nanos(p99) }, now) } else { None }
            }
            Lane::Deferred => {
                if !self.may_be_promoted(now) {
                    return None;
                }
                let (p50, p90) = (self.recent.events.percentile(50)?, self.recent.events.percentile(90)?);
                let cheap = p50 <= self.budget_ns / 100 * PROMOTED_AT_PERCENT;
                let steady = p90 <= self.budget_ns.saturating_mul(PROMOTED_P90_BUDGETS_MAX);
                let earned = Reason::Earned { p50: Duration::from_nanos(p50) };
                (cheap && steady).then(|| self.change(Lane::Inline, earned, now))
            }
        }
    }

    fn may_be_promoted(&self, now: MonoNs) -> bool {
        let doublings = self.demotions.min(DOUBLINGS_MAX);
        let waited = self.demotions == 0
            || now.since(self.since) >= (DEMOTED_FOR.as_nanos() as u64) << doublings.saturating_sub(1);
        waited
            && self.runs_in_lane >= RUNS_TO_EARN << doublings
            && self.check == Some(Ok(()))
            && self.cache_plain
            && self.blocks < BLOCKS_MAX
    }

    fn demote(&mut self, reason: Reason, now: MonoNs) -> Option<Decision> {
        if self.lane != Lane::Inline || self.execution != Execution::Auto {
            return None;
        }
        self.demotions = self.demotions.saturating_add(1);
        Some(self.change(Lane::Deferred, reason, now))
    }

    fn isolate(&mut self, reason: Reason, now: MonoNs) -> Option<Decision> {
        let may = self.isolation == Isolation::Auto && self.execution != Execution::Inline;
        (may && self.lane != Lane::Process).then(|| self.change(Lane::Process, reason, now))
    }

    /// As [`Policy::isolate`], even if the operator has chosen the lane.
    fn put_away(&mut self, reason: Reason, now: MonoNs) -> Option<Decision> {
        let may = self.isolation == Isolation::Auto && self.lane != Lane::Process;
        may.then(|| self.change(Lane::Process, reason, now))
    }

    fn change(&mut self, to: Lane, reason: Reason, now: MonoNs) -> Decision {
        let decision = Decision { at: now, from: self.lane, to, reason: reason.clone() };
        (self.lane, self.reason, self.since, self.runs_in_lane) = (to, reason, now, 0);
        // What a run costs in one lane says little of another once it is there.
        self.recent = Recent::default();
        match (to, &self.reason) {
            (Lane::Inline, _) => self.seating.is_short(now),
            // Nothing is known of it, or of its runs there, any more.
            (Lane::Process, _) | (_, Reason::Overran(_) | Reason::CodeChanged) => self.seating.forget(now),
            (Lane::Deferred, _) => {}
        }
        decision
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The last costs.
#[derive(Clone, Debug, Default)]
struct Recent {
    /// Of a run with one event.
    events: Window,
    /// Of a row.
    rows: Window,
    next: usize,
}

impl Recent {
    fn push(&mut self, cost: Cost) {
        self.events.put(self.next, cost.of_one_event());
        self.rows.put(self.next, cost.of_one_row());
        self.next = (self.next + 1) % RECENT_RUNS;
    }
}

/// The last values of something, and what is asked of them after every run.
#[derive(Clone, Debug, Default)]
struct Window {
    values: Vec<u64>,
    p99: u64,
}

impl Window {
    /// The value of place `at`, which is the next one, or that of the oldest value of a full window.
    fn put(&mut self, at: usize, value: u64) {
        let gone = match self.values.get_mut(at) {
            Some(place) => Some(std::mem::replace(place, value)),
            None => {
                self.values.push(value);
                None
            }
        };
        // Two in a hundred values move it; the others leave it where it is.
        let ranks_moved = gone.is_none() && self.values.len().is_multiple_of(100);
        if value > self.p99 || gone.is_some_and(|gone| gone >= self.p99) || ranks_moved {
            self.p99 = self.largest_but(self.values.len() / 100);
        }
    }

    /// The 99th percentile by nearest rank: of up to 100 the largest, of 128 the second largest.
    fn p99(&self) -> Option<u64> {
        (!self.values.is_empty()).then_some(self.p99)
    }

    fn largest_but(&self, beyond: usize) -> u64 {
        let mut largest = [0_u64; RECENT_RUNS / 100 + 1];
        for &value in &self.values {
            // Kept in descending order; there are one or two.
            let mut value = value;
            for kept in &mut largest[..=beyond] {
                if value > *kept {
                    std::mem::swap(kept, &mut value);
                }
            }
        }
        largest[beyond]
    }

    /// By nearest rank.
    fn percentile(&self, percent: usize) -> Option<u64> {
        let mut values = self.values.clone();
        let at = (values.len() * percent).div_ceil(100).checked_sub(1)?;
        Some(*values.select_nth_unstable(at).1)
    }
}

/// What a shard may spend on inline runs: so much per turn of its loop, and so much of its time.
#[derive(Clone, Debug)]
pub struct InlineBudget {
    turn_spent_ns: u64,
    window_from: MonoNs,
    window_spent_ns: u64,
    spent_by: HashMap<TriggerId, u64>,
}

/// A shard that spends too much on inline runs, and who costs most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overspent {
    /// The costliest trigger of the window.
    pub by: TriggerId,
    /// Of the shard's time, in per cent.
    pub share_percent: u64,
}

impl InlineBudget {
    /// A budget of which nothing is spent.
    pub fn new(now: MonoNs) -> Self {
        InlineBudget { turn_spent_ns: 0, window_from: now, window_spent_ns: 0, spent_by: HashMap::new() }
    }

    /// A turn of the loop begins: other tasks have had theirs.
    pub fn begin_turn(&mut self) {
        self.turn_spent_ns = 0;
    }

    /// Whether another inline run may begin in this turn.
    pub fn turn_has_room(&self) -> bool {
        self.turn_spent_ns < INLINE_TURN_BUDGET_US * 1000
    }

    /// An inline run of `trigger` took `nanoseconds` and ended at `now`.
    pub fn charge(&mut self, trigger: TriggerId, nanoseconds: u64, now: MonoNs) -> Option<Overspent> {
        let window = SHARE_WINDOW.as_nanos() as u64;
        if now.since(self.window_from) > window {
            // The run that ends now began in the new window, but for one that is longer than a window.
            self.window_from = MonoNs(now.0 - nanoseconds.min(now.0).min(window));
            self.window_spent_ns = 0;
            self.spent_by.clear();
        }
        self.turn_spent_ns = self.turn_spent_ns.saturating_add(nanoseconds);
        self.window_spent_ns = self.window_spent_ns.saturating_add(nanoseconds);
        *self.spent_by.entry(trigger).or_default() += nanoseconds;
        if self.window_spent_ns.saturating_mul(100) <= window * INLINE_SHARE_PERCENT_MAX {
            return None;
        }
        let share_percent = self.window_spent_ns.saturating_mul(100) / window;
        let by = self.spent_by.iter().max_by_key(|&(id, spent)| (*spent, id.0)).map(|(id, _)| *id)?;
        // Its demotion pays for it: the others are not to follow it for the same window.
        let paid = self.spent_by.remove(&by).unwrap_or(0);
        self.window_spent_ns -= paid.min(self.window_spent_ns);
        Some(Overspent { by, share_percent })
    }
}

#[cfg(test)]
mod tests;
