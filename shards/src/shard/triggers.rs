//! A shard's trigger set: which events wait for which trigger, and in which order they become runs.
//!
//! **Invariants.** Per trigger, events become runs in the order in which they were offered. One run of a trigger at a
//! time, unless it asked for overlap. While a run is under way its events gather, and the next run gets them all, up to the
//! bound on rows. A trigger that lags never slows a write: beyond its bound in bytes the newest event is given up, counted
//! and said.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future::yield_now;
use hdrhistogram::Histogram;
use saltus_core::cpu_share::{self, CpuShare};
use saltus_core::ids::{Epoch, EventId, MonoNs, Sequence, ShardId, Stream, TriggerId};
use saltus_core::limits::{CHAIN_DEPTH_MAX, TRIGGER_BACKLOG_BYTES_MAX};
use saltus_core::policy::{Lane, Policy};
use saltus_core::ports::{LogLevel, LogLine, LogText, MemoryUse, RunEvent, RunStop, StopCause, TableBatch, Trigger};
use saltus_core::schedule::Scheduler;
use saltus_core::trigger::{ErrorBehavior, Limits, TriggerDef, TriggerKind, TriggerSpec};

use crate::api::{ScheduleStats, TriggerStats, TriggersChange};
use crate::clock::mono_now;
use crate::cursors::{Left, Pending, Progress};
use crate::dead_letters::DeadLetter;
use crate::latencies::Latencies;
use crate::placement::Placement;

use super::letters::Replay;
use super::line::Line;
use super::schedules::scheduler_of;
use super::states::Memory;

use super::{Message, Shard};

/// About what it takes to hand a run to a worker, in nanoseconds.
const SUBMIT_NS: u64 = 5_000;

/// What a trigger is to be run for. Rows that were written come as one write to one table each.
#[derive(Clone)]
pub(crate) struct Event {
    pub what: RunEvent,
    /// The last byte of the request was there; the schedule's time.
    pub received: MonoNs,
    /// The event was offered to the triggers.
    pub handed_over: MonoNs,
    pub depth: u8,
    /// How often it was tried before.
    pub attempt: u32,
    /// Rows of the first of the events that were gathered into this one.
    pub first_rows: usize,
    /// It was a dead letter: no cursor waits for it.
    pub replayed: bool,
    /// A time of a schedule that was missed: its delay says nothing of how exactly time is kept.
    pub late: bool,
}

impl Event {
    /// Something that happens now.
    pub fn new(what: RunEvent, received: MonoNs) -> Self {
        let handed_over = mono_now();
        Event { what, received, handed_over, depth: 0, attempt: 0, first_rows: 0, replayed: false, late: false }
    }

    /// The rows; none but of a write.
    pub fn tables(&self) -> &[TableBatch] {
        self.what.tables()
    }

    /// The write that it is; `None` of any other kind, which no log knows.
    pub fn id(&self) -> Option<EventId> {
        self.tables().first().map(|table| table.id)
    }

    pub fn bytes(&self) -> usize {
        self.what.bytes()
    }

    pub fn rows(&self) -> usize {
        self.what.rows()
    }
}

/// A trigger as one shard sees it.
pub(crate) struct TriggerState {
    pub trigger: Arc<Trigger>,
    pub home: ShardId,
    pub(super) queue: VecDeque<Event>,
    pub(super) queued_bytes: usize,
    /// What it may use.
    pub(super) limits: Limits,
    /// Which lane its runs take.
    pub policy: Policy,
    /// Runs under way.
    pub running: usize,
    /// Whether they are to end early.
    pub stop: Arc<RunStop>,
    /// Results of runs that are being written.
    pub writing_back: usize,
    /// Events that wait for their next attempt, beside the queue.
    pub retrying: usize,
    /// It waits until it can be run inline: the bridge will say when to ask again.
    pub preparing: bool,
    /// The version of the code that the policy knows.
    pub code: Option<u64>,
    /// The version of the code of whose imports the policy knows.
    pub looked_at: Option<u64>,
    /// The version of the code that was looked up in the quarantine.
    pub quarantine_asked: Option<u64>,
    /// What is finished, by stream.
    pub progress: HashMap<Stream, Progress, ahash::RandomState>,
    /// Events that are in the logs and not in memory, in order.
    pub backlog: VecDeque<Left>,
    /// The next of them are being read.
    pub loading: bool,
    /// Bytes that were left in the log since the backlog began, an upper estimate of what is left.
    pub lag_bytes: u64,
    /// A dead letter that is given to it again, and those that wait for that.
    pub replay: Option<Replay>,
    pub replays: VecDeque<Arc<DeadLetter>>,
    /// Where it is in its schedule, if it has one.
    pub schedule: Option<Scheduler>,
    /// Its durable state, once it was fetched.
    pub durable: Option<Memory>,
    /// Runs that have changed the state and whose changes are not in the log yet: an ordered trigger waits for them.
    pub state_changing: usize,
    /// It is not in force here any more.
    pub leaving: bool,
    /// It failed and is being disabled: nothing of it is run any more.
    pub stopped: bool,
    /// About what an inline run of it takes, in nanoseconds; too much before the first.
    inline_ns: u64,
    /// What it may use of a core, and whether its next run waits for that.
    pub cpu: CpuShare,
    pub throttled: bool,
    /// When a wait for it was last said in the log.
    pub throttle_said: Option<MonoNs>,
    pub measured: Measured,
    /// Where it says that it has events, and that its progress has moved; and whether it has.
    line: Rc<Line>,
    in_line: bool,
    has_moved: bool,
}

/// What is measured of a trigger. Nanoseconds.
pub(crate) struct Measured {
    pub activation: Latencies,
    pub queue: Latencies,
    pub run: Latencies,
    pub response: Latencies,
    pub runs: u64,
    pub errors: u64,
    pub rows: u64,
    pub events_dropped: u64,
    pub retries: u64,
    pub events_failed: u64,
    pub discarded: u64,
    /// Held after the last run, and the most of all runs.
    pub memory: Option<MemoryUse>,
    pub cpu_waits: u64,
    pub last_error: Option<String>,
}

/// An empty histogram of nanoseconds: 3 digits up to a minute and a half, larger values count as that.
pub(crate) fn nanosecond_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 1 << 36, 3).unwrap_or_else(|_| unreachable!("the bounds are constants that fit"))
}

impl Measured {
    /// A run has ended and what it wrote is applied: whoever sees the count may read its rows.
    pub fn finished(&mut self, event: &Event) {
        self.runs += 1;
        self.rows += event.rows() as u64;
    }

    fn new() -> Self {
        Measured {
            activation: Latencies::default(),
            queue: Latencies::default(),
            run: Latencies::default(),
            response: Latencies::default(),
            runs: 0,
            errors: 0,
            rows: 0,
            events_dropped: 0,
            retries: 0,
            events_failed: 0,
            discarded: 0,
            memory: None,
            cpu_waits: 0,
            last_error: None,
        }
    }
}

/// Results of one trigger that may be on their way to the log at once.
const WRITE_BACKS_MAX: usize = 32;

impl TriggerState {
    pub fn new(trigger: Arc<Trigger>, home: ShardId, limits: Limits, line: Rc<Line>) -> Self {
        TriggerState {
            limits,
            policy: Policy::new(trigger.def.execution, trigger.def.isolation, limits.inline_budget, mono_now()),
            schedule: scheduler_of(&trigger.def, None),
            trigger,
            home,
            queue: VecDeque::new(),
            queued_bytes: 0,
            running: 0,
            stop: Arc::default(),
            writing_back: 0,
            retrying: 0,
            preparing: false,
            code: None,
            looked_at: None,
            quarantine_asked: None,
            progress: HashMap::default(),
            backlog: VecDeque::new(),
            loading: false,
            lag_bytes: 0,
            replay: None,
            replays: VecDeque::new(),
            durable: None,
            state_changing: 0,
            leaving: false,
            stopped: false,
            inline_ns: u64::MAX,
            cpu: CpuShare::new(mono_now()),
            throttled: false,
            throttle_said: None,
            measured: Measured::new(),
            line,
            in_line: false,
            has_moved: false,
        }
    }

    /// It has an event.
    fn get_in_line(&mut self) {
        if !std::mem::replace(&mut self.in_line, true) {
            self.line.wait(self.trigger.def.id);
        }
    }

    /// Its progress has moved: a cursor is to be written.
    pub fn progress_moved(&mut self) {
        if !std::mem::replace(&mut self.has_moved, true) {
            self.line.moved(self.trigger.def.id);
        }
    }

    /// Its cursors are written.
    pub fn cursors_written(&mut self) {
        self.has_moved = false;
    }

    fn wants(&self, table: &str) -> bool {
        wants(&self.trigger.def.spec, table)
    }

    /// Puts an event in line; false if it stays in the log until there is room.
    fn offer(&mut self, event: Event) -> bool {
        let full = !self.queue.is_empty() && (self.queued_bytes + event.bytes()) as u64 > self.limits.queue_bytes;
        if let Some(EventId { stream, sequence }) = event.id()
            && (full || !self.backlog.is_empty())
        {
            let part = Pending { stream, after: Sequence(sequence.0 - 1), to: sequence };
            self.leave_in_log(part, &spec_of(&self.trigger.def.spec, &event), event.bytes() as u64);
            return false;
        }
        self.put_in_line(event);
        true
    }

    /// Puts an event behind those that wait, unless it is under way.
    fn put_in_line(&mut self, event: Event) {
        // An event that was handed over before is under way.
        let is_new = |EventId { stream, sequence }| self.progress.entry(stream).or_default().hand_over(sequence);
        if event.id().is_none_or(is_new) {
            self.put_last(event);
        }
    }

    fn leave_in_log(&mut self, part: Pending, spec: &TriggerSpec, bytes: u64) {
        self.lag_bytes += bytes;
        match self.backlog.iter_mut().rfind(|left| left.part.stream == part.stream) {
            Some(left) if *left.spec == *spec => left.part.to = left.part.to.max(part.to),
            _ => self.backlog.push_back(Left { part, spec: Arc::new(spec.clone()) }),
        }
    }

    /// Takes the backlog away if it is more than `bytes_max` long.
    fn give_up_backlog(&mut self, bytes_max: u64) -> Vec<Left> {
        if self.lag_bytes <= bytes_max {
            return Vec::new();
        }
        self.lag_bytes = 0;
        // A chunk that is on its way is from before: what it holds comes in, and the rest of its part is lost.
        let lost: Vec<Left> = self.backlog.drain(..).collect();
        for Left { part, .. } in &lost {
            self.progress.entry(part.stream).or_default().pass(part.to);
        }
        self.progress_moved();
        lost
    }

    /// Puts an event behind all others.
    pub fn put_last(&mut self, event: Event) {
        self.queued_bytes += event.bytes();
        self.queue.push_back(event);
        self.get_in_line();
    }

    /// Whether there is room for a part of the backlog.
    pub fn wants_more(&self) -> bool {
        self.queued_bytes <= self.chunk_bytes()
    }

    /// How much of the backlog is read at once.
    pub fn chunk_bytes(&self) -> usize {
        usize::try_from(self.limits.queue_bytes / 2).unwrap_or(usize::MAX)
    }

    /// Takes a part of the backlog. What the log of an earlier life does not hold is lost, and recovery has said so.
    pub fn take_back(&mut self, stream: Stream, reached: Sequence, events: Vec<Event>, epoch: Epoch) {
        if let Some(at) = self.backlog.iter().position(|left| left.part.stream == stream) {
            let part = &mut self.backlog[at].part;
            let stuck = reached <= part.after && stream.epoch != epoch;
            part.after = part.after.max(reached);
            if stuck || part.after >= part.to {
                self.backlog.remove(at);
            }
        }
        let bytes: usize = events.iter().map(Event::bytes).sum();
        self.lag_bytes = if self.backlog.is_empty() { 0 } else { self.lag_bytes.saturating_sub(bytes as u64) };
        events.into_iter().for_each(|event| self.put_in_line(event));
    }

    fn may_run(&self) -> bool {
        !self.queue.is_empty() && self.has_room_for_run(0)
    }

    /// Whether a run could begin, beside those under way and so many that wait.
    fn has_room_for_run(&self, waiting: usize) -> bool {
        let def = &self.trigger.def;
        // Inline runs follow each other, and come after the deferred ones that are under way.
        let overlaps = def.run_async && self.policy.lane() != Lane::Inline;
        let overlap = if overlaps { self.limits.concurrency.max(1) as usize } else { 1 };
        // An ordered trigger whose failures have consequences waits for the end of a run, writing included; so does one whose answers
        // say what is written.
        let matters = def.error_behavior != ErrorBehavior::Log || matches!(def.spec, TriggerSpec::Request(_));
        let in_order = !def.run_async && matters;
        let write_backs = if in_order { 1 } else { WRITE_BACKS_MAX };
        let waits = !def.run_async && (self.retrying > 0 || self.state_changing > 0);
        !self.stopped
            && !self.throttled
            && !waits
            && self.running + waiting < overlap
            && self.writing_back < write_backs
    }

    /// Whether an event would be run at once.
    pub fn is_free(&self) -> bool {
        self.has_room_for_run(self.queue.len())
    }

    /// The trigger was changed; what waits for it and what was measured stays. Runs under way are to end, and their events are run
    /// again as the trigger is now: whether there are any.
    fn update(&mut self, trigger: &Arc<Trigger>, limits: Limits) -> bool {
        let (before, def) = (&self.trigger.def, &trigger.def);
        let stops = before != def && self.running > 0;
        if stops {
            std::mem::take(&mut self.stop).set(StopCause::Changed);
        }
        if (before.execution, before.isolation) != (def.execution, def.isolation) {
            self.policy = Policy::new(def.execution, def.isolation, limits.inline_budget, mono_now());
            // It is to be told all that is known of the code.
            (self.code, self.looked_at) = (None, None);
        } else {
            self.policy.set_budget(limits.inline_budget);
        }
        let rescheduled = before.spec != def.spec
            || before.timing.time_zone != def.timing.time_zone
            || before.timing.since_ns != def.timing.since_ns;
        if rescheduled {
            self.schedule = scheduler_of(def, None);
        } else if let Some(schedule) = &mut self.schedule
            && before.timing.missed_runs != def.timing.missed_runs
        {
            schedule.set_missed_runs(def.timing.missed_runs);
        }
        (self.trigger, self.limits) = (trigger.clone(), limits);
        stops
    }

    /// How long its next run has to wait for the trigger's share of a core.
    fn wait_for_cpu(&mut self) -> Option<Duration> {
        let percent = self.limits.cpu_share;
        if percent >= cpu_share::WHOLE || self.policy.lane() == Lane::Inline {
            return None;
        }
        self.cpu.wait(percent, mono_now())
    }

    /// A run is over: what it has cost.
    pub fn charge(&mut self, cost_ns: u64, lane: Lane, memory: Option<MemoryUse>) {
        if lane == Lane::Inline {
            self.inline_ns = if self.inline_ns == u64::MAX { cost_ns } else { (3 * self.inline_ns + cost_ns) / 4 };
        } else {
            self.cpu.spend(cost_ns, self.limits.cpu_share, mono_now());
        }
        if let Some(memory) = memory {
            let peak = self.measured.memory.map_or(0, |before| before.peak).max(memory.peak);
            self.measured.memory = Some(MemoryUse { peak, ..memory });
        }
    }

    /// What it may use of a core.
    pub fn cpu_share(&self) -> u32 {
        self.limits.cpu_share
    }

    /// All waiting events up to `rows_max` rows, at least one. Tables are listed in order of their first event.
    fn gather(&mut self, rows_max: usize) -> Option<Event> {
        let mut gathered = self.queue.pop_front()?;
        self.queued_bytes -= gathered.bytes();
        let mut rows = gathered.rows();
        let rows_max = rows_max.min(self.policy.rows_max());
        if gathered.first_rows == 0 {
            gathered.first_rows = rows;
        }
        while let Some(next) = self.queue.front() {
            // What failed is tried again as it was: the rows of others are not to suffer from it.
            let tried = next.attempt > 0 || gathered.attempt > 0;
            let alike = next.depth == gathered.depth && next.replayed == gathered.replayed && !tried;
            let RunEvent::Writes(tables) = &mut gathered.what else { break };
            if rows + next.rows() > rows_max || !alike {
                break;
            }
            rows += next.rows();
            let Some(next) = self.queue.pop_front() else { break };
            self.queued_bytes -= next.bytes();
            if let RunEvent::Writes(further) = next.what {
                tables.extend(further);
            }
        }
        Some(gathered)
    }

    /// Stops for good; the number of events that are given up.
    pub fn stop(&mut self) -> usize {
        self.stopped = true;
        self.queued_bytes = 0;
        self.queue.drain(..).count()
    }

    /// Puts an event back in front: its run could not start, or is to be tried again.
    pub fn put_back(&mut self, event: Event) {
        self.queued_bytes += event.bytes();
        self.queue.push_front(event);
        self.get_in_line();
    }
}

/// A run that is due.
pub(crate) struct Due {
    pub state: Rc<RefCell<TriggerState>>,
    pub event: Event,
}

/// What a change of the triggers changes for a shard.
#[derive(Default)]
pub(crate) struct Changes {
    /// Write triggers that see this shard's stream from now on, or see it by another specification.
    pub begun: Vec<Begun>,
    /// Triggers that do not see it any more, and are in force.
    pub left: Vec<TriggerId>,
    /// Triggers that are not in force any more.
    pub ended: Vec<TriggerId>,
    /// Those of them that were at home here.
    pub gone: Vec<Rc<RefCell<TriggerState>>>,
}

/// A trigger that sees a stream from now on.
pub(crate) struct Begun {
    pub id: TriggerId,
    pub spec: TriggerSpec,
    /// It was not in force before, on any shard.
    pub afresh: bool,
}

type States = Vec<Rc<RefCell<TriggerState>>>;

/// The triggers that are offered rows of a database.
#[derive(Default)]
struct Offered {
    by_table: HashMap<Arc<str>, States, ahash::RandomState>,
    all_tables: States,
}

impl Offered {
    /// Those of them that rows of this table are for.
    fn of(&self, table: &str) -> States {
        self.by_table.get(table).into_iter().flatten().chain(&self.all_tables).cloned().collect()
    }
}

/// A trigger that is offered rows by a specification from the next step on, or not any more.
struct Move {
    state: Rc<RefCell<TriggerState>>,
    db: Arc<str>,
    spec: TriggerSpec,
    into: bool,
}

impl Move {
    fn of(state: &Rc<RefCell<TriggerState>>, into: bool) -> Self {
        let def = &state.borrow().trigger.def;
        Move { state: state.clone(), db: def.db.clone(), spec: def.spec.clone(), into }
    }

    fn into(state: &Rc<RefCell<TriggerState>>) -> Self {
        Self::of(state, true)
    }

    fn out(state: &Rc<RefCell<TriggerState>>) -> Self {
        Self::of(state, false)
    }
}

type ByDb = HashMap<Arc<str>, Offered, ahash::RandomState>;

/// The triggers that matter to a shard.
#[derive(Default)]
pub(crate) struct TriggerSet {
    /// In the order of their ids, so that one can go through them a few at a time.
    all: BTreeMap<TriggerId, Rc<RefCell<TriggerState>>>,
    by_id: HashMap<TriggerId, Rc<RefCell<TriggerState>>, ahash::RandomState>,
    line: Rc<Line>,
    /// Those that are offered what is written here, by database.
    by_db: ByDb,
    /// Who will be and who will not be, and what changes then: see [`super::Coming`].
    coming: Option<(Vec<Move>, Changes)>,
    /// Those that have changed since somebody took note: see [`TriggerSet::take_changed`].
    changed: BTreeSet<TriggerId>,
    /// Where every trigger is at home, on whichever shard.
    homes: HashMap<TriggerId, ShardId, ahash::RandomState>,
    /// Triggers whose next run has been found to wait for CPU time, and how long.
    pub throttled: Vec<(Rc<RefCell<TriggerState>>, Duration)>,
    /// Runs under way were told to end early, and whoever makes them does not know yet.
    pub runs_stopped: bool,
}

/// A trigger that was changed, or came or went; and what it is now, if it is at home here.
pub(crate) type Changed = (TriggerId, Option<Rc<RefCell<TriggerState>>>);

impl TriggerSet {
    /// The set of enabled triggers has changed: as a home, this shard takes events for them. A trigger whose id stays keeps what
    /// waits for it, what was measured, and its home, whatever its specification is now; if that was changed, it sees this shard's
    /// stream by the new one from the next step on.
    pub fn change(&mut self, shard: ShardId, placement: Placement, defaults: Limits, change: &TriggersChange) {
        let TriggersChange { gone, come } = change;
        // Of a change that never came further: what it would have changed is to be changed now.
        let (mut moves, mut changes) = self.coming.take().unwrap_or_default();
        let stay: HashSet<TriggerId> = come.iter().map(|trigger| trigger.def.id).collect();
        self.changed.extend(gone.iter().chain(come).map(|trigger| trigger.def.id));
        for id in gone.iter().map(|trigger| trigger.def.id).filter(|id| !stay.contains(id)) {
            self.homes.remove(&id);
            changes.ended.push(id);
            let Some(state) = self.take_out(id) else { continue };
            moves.push(Move::out(&state));
            let inner = state.borrow();
            if !inner.queue.is_empty() {
                tracing::warn!(trigger = %inner.trigger.def.name, events = inner.queue.len(), "a trigger was disabled or deleted: what waited for it is given up");
            }
            if inner.home == shard {
                changes.gone.push(state.clone());
            }
        }
        for trigger in come {
            let def = &trigger.def;
            let (id, owner) = (def.id, home_of(placement, def));
            let is_new = !self.homes.contains_key(&id);
            let home = *self.homes.entry(id).or_insert(owner);
            let limits = def.limits.over(defaults);
            let known = self.find(id);
            // A trigger on one table matters to its home and where the table is; one on all tables matters everywhere.
            let sees = owner == shard || def.spec == TriggerSpec::AllTables;
            let is_write = def.spec.kind() == TriggerKind::Write;
            let mut saw = None;
            if let Some(state) = &known {
                moves.push(Move::out(state));
                let mut inner = state.borrow_mut();
                let spec = &inner.trigger.def.spec;
                let seen = *spec == TriggerSpec::AllTables || home_of(placement, &inner.trigger.def) == shard;
                saw = seen.then(|| spec.clone());
                self.runs_stopped |= inner.update(trigger, limits);
            }
            if is_write && sees && saw.as_ref() != Some(&def.spec) {
                changes.begun.push(Begun { id, spec: def.spec.clone(), afresh: is_new });
            }
            if is_write && !sees && saw.is_some() {
                changes.left.push(id);
            }
            if !sees && home != shard {
                self.take_out(id);
                continue;
            }
            let new = || TriggerState::new(trigger.clone(), home, limits, self.line.clone());
            let state = known.unwrap_or_else(|| Rc::new(RefCell::new(new())));
            moves.push(Move::into(&state));
            self.by_id.insert(id, state.clone());
            self.all.insert(id, state);
        }
        self.coming = Some((moves, changes));
    }

    /// Those that come with the set that was given last, or were changed with it.
    pub fn coming(&self) -> States {
        let moves = self.coming.iter().flat_map(|(moves, _)| moves);
        moves.filter(|there| there.into).map(|there| there.state.clone()).collect()
    }

    fn take_out(&mut self, id: TriggerId) -> Option<Rc<RefCell<TriggerState>>> {
        self.all.remove(&id);
        self.by_id.remove(&id)
    }

    /// The triggers that have changed since the last time.
    pub fn take_changed(&mut self, shard: ShardId) -> Vec<Changed> {
        let changed = std::mem::take(&mut self.changed);
        let at_home = |id: TriggerId| self.find(id).filter(|state| state.borrow().home == shard);
        changed.into_iter().map(|id| (id, at_home(id))).collect()
    }

    /// The triggers of the change that came last are offered what is written here from now on; what that changes.
    pub fn offer_from_now_on(&mut self) -> Changes {
        let Some((moves, changes)) = self.coming.take() else { return Changes::default() };
        for Move { state, db, spec, into } in moves {
            let offered = self.by_db.entry(db).or_default();
            let states = match &spec {
                TriggerSpec::Table(table) => offered.by_table.entry(table.clone()).or_default(),
                TriggerSpec::AllTables => &mut offered.all_tables,
                _ => continue,
            };
            states.retain(|other| !Rc::ptr_eq(other, &state));
            if into {
                states.push(state);
            } else if states.is_empty()
                && let TriggerSpec::Table(table) = &spec
            {
                offered.by_table.remove(table);
            }
        }
        changes
    }

    /// Whether a trigger is offered the rows of all tables of `db`.
    pub fn see_all_tables(&self, db: &str) -> bool {
        self.by_db.get(db).is_some_and(|offered| !offered.all_tables.is_empty())
    }

    /// The triggers at home on this shard.
    pub fn at_home(&self, shard: ShardId) -> Vec<Rc<RefCell<TriggerState>>> {
        self.all.values().filter(|state| state.borrow().home == shard).cloned().collect()
    }

    pub fn find(&self, id: TriggerId) -> Option<Rc<RefCell<TriggerState>>> {
        self.by_id.get(&id).cloned()
    }

    /// Those whose cursors are to be written.
    pub fn take_moved(&self) -> States {
        self.line.take_moved().into_iter().filter_map(|id| self.find(id)).collect()
    }

    /// Requests that need no run any more; how many there were.
    pub fn pass_over(&self) -> usize {
        let line = self.line.waiting();
        line.iter().filter_map(|id| self.by_id.get(id)).map(|state| state.borrow_mut().pass_over()).sum()
    }

    /// The next run that is due, in turn.
    pub fn due(&mut self, rows_max: usize) -> Option<Due> {
        for _ in 0..self.line.len() {
            let Some(state) = self.line.next().and_then(|id| self.by_id.get(&id)) else { continue };
            let mut inner = state.borrow_mut();
            if inner.queue.is_empty() {
                // Nothing is prepared for it any more.
                (inner.in_line, inner.preparing) = (false, false);
                continue;
            }
            // Behind all others, so that no trigger starves another.
            self.line.wait(inner.trigger.def.id);
            if !inner.preparing && inner.may_run() {
                if let Some(wait) = inner.wait_for_cpu() {
                    inner.throttled = true;
                    self.throttled.push((state.clone(), wait));
                    continue;
                }
                let Some(event) = inner.gather(rows_max) else { continue };
                inner.running += 1;
                return Some(Due { state: state.clone(), event });
            }
        }
        None
    }

    /// Whether runs are due, and all of them begin within this time.
    pub fn due_within(&self, nanoseconds: u64) -> bool {
        let line = self.line.waiting();
        let in_line = line.iter().filter_map(|id| self.by_id.get(id)).map(|state| state.borrow());
        let due = in_line.filter(|s| !s.preparing && s.may_run());
        let costs = due.map(|s| if s.policy.lane() == Lane::Inline { s.inline_ns } else { SUBMIT_NS });
        let mut total = 0_u64;
        for cost in costs {
            total = total.saturating_add(cost);
        }
        total != 0 && total <= nanoseconds
    }

    /// Whatever triggers wait for may be there.
    pub fn ask_again(&self) {
        for state in self.line.waiting().iter().filter_map(|id| self.by_id.get(id)) {
            state.borrow_mut().preparing = false;
        }
    }

    /// Whether any run is under way or due.
    pub fn busy(&self, shard: ShardId) -> bool {
        self.all.values().any(|s| {
            let s = s.borrow();
            s.home == shard && (s.running > 0 || s.writing_back > 0 || s.may_run())
        })
    }

    /// Events that wait for a run or for their next attempt.
    pub fn waiting(&self, shard: ShardId) -> usize {
        let at_home = self.all.values().map(|s| s.borrow()).filter(|s| s.home == shard);
        at_home.map(|s| s.queue.len() + s.retrying).sum()
    }

    /// What was measured of some of the triggers at home here, those that come behind `after`; and the last one that was looked at, if
    /// there may be more.
    fn some_stats(&self, shard: ShardId, after: Option<TriggerId>, stats: &mut Vec<TriggerStats>) -> Option<TriggerId> {
        let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (id, state) in self.all.range((behind, Bound::Unbounded)).take(STATS_AT_ONCE) {
            last = Some(*id);
            let state = state.borrow();
            if state.home == shard {
                stats.push(stats_of(&state));
            }
        }
        last
    }
}

/// Triggers whose statistics are gathered in one turn.
const STATS_AT_ONCE: usize = 256;

fn stats_of(state: &TriggerState) -> TriggerStats {
    let m = &state.measured;
    TriggerStats {
        trigger: state.trigger.clone(),
        home: state.home,
        activation_ns: m.activation.clone(),
        queue_ns: m.queue.clone(),
        run_ns: m.run.clone(),
        response_ns: m.response.clone(),
        runs: m.runs,
        errors: m.errors,
        rows: m.rows,
        events_dropped: m.events_dropped,
        retries: m.retries,
        events_failed: m.events_failed,
        discarded: m.discarded,
        lane: state.policy.lane(),
        lane_reason: state.policy.account(),
        seat: (state.policy.lane() == Lane::Deferred).then(|| state.policy.seat()),
        lane_for: Duration::from_nanos(mono_now().since(state.policy.since())),
        lane_barred: state.policy.barred().map(|reason| reason.to_string()),
        memory: m.memory,
        cpu_waits: m.cpu_waits,
        last_error: m.last_error.clone(),
        backlog_events: (state.queue.len() + state.retrying) as u64,
        schedule: state.schedule.as_ref().map(|schedule| ScheduleStats {
            last_ns: schedule.last_run_ns(),
            next_ns: schedule.next_ns(),
            missed: schedule.missed_total(),
        }),
    }
}

/// Whether rows of a table are for a trigger of this specification.
pub(super) fn wants(spec: &TriggerSpec, table: &str) -> bool {
    match spec {
        TriggerSpec::Table(wanted) => **wanted == *table,
        TriggerSpec::AllTables => true,
        TriggerSpec::Every(_) | TriggerSpec::Cron(_) | TriggerSpec::Request(_) => false,
    }
}

/// By which specification an event is found again in its log: it may be from before the one of now.
fn spec_of(now: &TriggerSpec, event: &Event) -> TriggerSpec {
    match event.tables().first() {
        Some(table) if !wants(now, &table.table) => TriggerSpec::Table(table.table.clone()),
        _ => now.clone(),
    }
}

/// Where the table of a trigger is, or where one without a table is at home.
pub(crate) fn home_of(placement: Placement, trigger: &TriggerDef) -> ShardId {
    match &trigger.spec {
        TriggerSpec::Table(table) => placement.owner(&trigger.db, table),
        _ => placement.home(trigger.id),
    }
}

/// Events on their way to triggers at home elsewhere, in order.
///
/// **Invariant.** What a trigger has in `left` comes after all that it has in `waiting`: once an event of it was left in the log,
/// the further ones are as well, until the home was told.
#[derive(Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<(ShardId, TriggerId, Parcel)>,
    bytes: usize,
    left: BTreeMap<TriggerId, (ShardId, VecDeque<Left>)>,
}

/// Where an event went that was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Put {
    Waiting,
    LeftInLog,
}

/// What is sent to a home.
pub(crate) enum Parcel {
    Event(Box<Event>),
    Left(Left),
}

impl Parcel {
    fn bytes(&self) -> usize {
        match self {
            Parcel::Event(event) => event.bytes(),
            Parcel::Left(_) => 0,
        }
    }
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.left.is_empty()
    }

    /// `spec` is what the trigger is offered the event by.
    fn put(&mut self, home: ShardId, trigger: TriggerId, spec: &TriggerSpec, event: Event) -> Put {
        let bytes = event.bytes();
        let full = !self.waiting.is_empty() && self.bytes + bytes > TRIGGER_BACKLOG_BYTES_MAX;
        if let Some(EventId { stream, sequence }) = event.id()
            && (full || self.left.contains_key(&trigger))
        {
            let (_, parts) = self.left.entry(trigger).or_insert_with(|| (home, VecDeque::new()));
            match parts.back_mut() {
                Some(left) if *left.spec == *spec => left.part.to = left.part.to.max(sequence),
                _ => parts.push_back(Left {
                    part: Pending { stream, after: Sequence(sequence.0 - 1), to: sequence },
                    spec: Arc::new(spec.clone()),
                }),
            }
            return Put::LeftInLog;
        }
        self.bytes += bytes;
        self.waiting.push_back((home, trigger, Parcel::Event(Box::new(event))));
        Put::Waiting
    }

    /// Whither the next parcel goes, and how much room it takes.
    fn next(&self) -> Option<(ShardId, usize)> {
        let waiting = self.waiting.front().map(|(home, _, parcel)| (*home, parcel.bytes()));
        waiting.or_else(|| self.left.values().next().map(|(home, _)| (*home, 0)))
    }

    fn take(&mut self) -> Option<(TriggerId, Parcel)> {
        if let Some((_, trigger, parcel)) = self.waiting.pop_front() {
            self.bytes -= parcel.bytes();
            return Some((trigger, parcel));
        }
        let mut entry = self.left.first_entry()?;
        let trigger = *entry.key();
        let left = entry.get_mut().1.pop_front();
        if entry.get().1.is_empty() {
            entry.remove();
        }
        left.map(|left| (trigger, Parcel::Left(left)))
    }
}

impl Shard {
    /// What was measured of the triggers at home here. There may be many: others have their turn in between.
    pub async fn trigger_stats(&self) -> Vec<TriggerStats> {
        let (mut stats, mut after) = (Vec::new(), None);
        loop {
            after = self.triggers.borrow().some_stats(self.id, after, &mut stats);
            if after.is_none() {
                return stats;
            }
            yield_now().await;
        }
    }

    /// Rows of a table of `db` were written: every trigger that wants them gets them in line, here or at its home.
    pub fn offer(self: &Rc<Self>, db: &str, event: &Event) {
        let Some(table) = event.tables().first().map(|table| table.table.clone()) else { return };
        let states = match self.triggers.borrow().by_db.get(db) {
            Some(offered) => offered.of(&table),
            None => return,
        };
        for state in states {
            let mut inner = state.borrow_mut();
            if !inner.wants(&table) {
                continue;
            }
            if event.depth > CHAIN_DEPTH_MAX {
                self.report_chain(&inner.trigger, &table);
            } else if inner.home == self.id {
                self.line_up(&mut inner, event.clone());
            } else {
                self.post(&inner, event.clone());
            }
        }
    }

    fn line_up(self: &Rc<Self>, state: &mut TriggerState, event: Event) {
        if state.stopped {
            self.counters.events_dropped.add(1);
            state.measured.events_dropped += 1;
            return;
        }
        if state.offer(event) {
            self.runnable.notify();
            return;
        }
        self.counters.events_left_in_log.add(1);
        let lost = state.give_up_backlog(self.shared.config.lag_bytes);
        for left in lost {
            let why =
                format!("the trigger lagged by more than trigger-lag-size, {} bytes", self.shared.config.lag_bytes);
            state.measured.events_dropped += 1;
            self.counters.events_dropped.add(1);
            self.lose(&state.trigger, &left, why);
        }
        if let [Left { part, .. }] = state.backlog.make_contiguous()
            && part.to.0 == part.after.0 + 1
        {
            self.log_for(&state.trigger, LogLevel::Warn, format!(
                "the trigger lags by more than {} bytes of events: further ones are read back from the log of writes when there is room; make the plugin faster, or raise the trigger's limit queue_size",
                state.limits.queue_bytes,
            ));
        }
        self.load(state);
    }

    fn report_chain(&self, trigger: &Trigger, table: &str) {
        self.counters.chains_cut.add(1);
        let chain = self.chain(trigger, table);
        self.log_for(trigger, LogLevel::Error, format!(
            "not run for rows of table '{table}': they were written by a chain of more than {CHAIN_DEPTH_MAX} plugin runs, each caused by the one before (triggers: {chain}); let the plugin skip its own output"
        ));
    }

    /// The triggers whose plugins write the rows that start one another, the first one first, as far as tables know who wrote to them
    /// last; each once if they go round.
    fn chain(&self, trigger: &Trigger, table: &str) -> String {
        let db = &trigger.def.db;
        let mut names = vec![trigger.def.name.clone()];
        let mut seen = Vec::new();
        let mut next = Some(Arc::<str>::from(table));
        while let Some(table) = next.filter(|table| !seen.contains(table)) {
            let Some(link) = self.shared.directory.get(db, &table).and_then(|entry| entry.link()) else { break };
            seen.push(table);
            names.push(link.trigger.clone());
            next = link.cause.clone();
        }
        names.reverse();
        names.join(" -> ")
    }

    pub fn log_for(&self, trigger: &Trigger, level: LogLevel, text: String) {
        let run_id = saltus_core::ids::RunId(0);
        self.shared.host.log(LogLine {
            db: trigger.def.db.clone(),
            trigger: trigger.def.name.clone(),
            run_id,
            level,
            text: LogText::Said(text),
        });
    }

    /// An event from another shard.
    pub fn queue_event(self: &Rc<Self>, trigger: TriggerId, event: Event) {
        let Some(state) = self.triggers.borrow().find(trigger) else { return };
        self.line_up(&mut state.borrow_mut(), event);
    }

    /// More events for a trigger at home here are in a log: there was no room for them on the way.
    pub fn queue_left(self: &Rc<Self>, trigger: TriggerId, left: Left) {
        let Some(state) = self.triggers.borrow().find(trigger) else { return };
        let mut inner = state.borrow_mut();
        inner.leave_in_log(left.part, &left.spec, 0);
        self.load(&mut inner);
    }

    /// Sends an event to a trigger's home, or keeps it until there is room, or leaves it in the log for the home to read.
    fn post(self: &Rc<Self>, state: &TriggerState, event: Event) {
        let def = &state.trigger.def;
        let mut outbox = self.outbox.borrow_mut();
        let idle = outbox.is_empty();
        if outbox.put(state.home, def.id, &def.spec, event) == Put::LeftInLog {
            self.counters.events_left_in_log.add(1);
        }
        drop(outbox);
        if idle {
            self.deliver_all();
        }
    }

    fn deliver_all(self: &Rc<Self>) {
        if !self.deliver_posted() {
            let shard = self.clone();
            self.spawn(async move {
                while !shard.deliver_posted() {
                    crate::io::net::sleep(Duration::from_millis(1)).await;
                }
            });
        }
    }

    /// Sends what waits; true when nothing waits any more.
    fn deliver_posted(&self) -> bool {
        let mut outbox = self.outbox.borrow_mut();
        while let Some((home, bytes)) = outbox.next() {
            let Some(room) = self.shared.mailbox(home).reserve(bytes) else { return false };
            let Some((trigger, parcel)) = outbox.take() else { return true };
            room.put(|held| match parcel {
                Parcel::Event(event) => Message::Event { trigger, event, _held: held },
                Parcel::Left(left) => Message::LeftInLog { trigger, left },
            });
        }
        true
    }
}
