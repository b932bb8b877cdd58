//! A shard's trigger set: which events wait for which trigger, and in which order they become runs.
//!
//! **Invariants.** Per trigger, events become runs in the order in which they were offered. One run of a trigger at a
//! time, unless it asked for overlap. While a run is under way its events gather, and the next run gets them all, up to the
//! bound on rows. A trigger that lags never slows a write: beyond its bound in bytes the newest event is given up, counted
//! and said.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use saltus_core::ids::{Epoch, EventId, MonoNs, Sequence, ShardId, Stream, TriggerId};
use saltus_core::limits::{CHAIN_DEPTH_MAX, TRIGGER_BACKLOG_BYTES_MAX};
use saltus_core::policy::{Lane, Policy};
use saltus_core::ports::{LogLevel, LogLine, LogText, RunEvent, TableBatch, Trigger};
use saltus_core::trigger::{ErrorBehavior, Execution, Limits, TriggerSpec};

use crate::api::TriggerStats;
use crate::clock::mono_now;
use crate::cursors::{Pending, Progress};
use crate::placement::Placement;

use super::{Message, Shard};

/// Rows were written: one write, one table.
#[derive(Clone)]
pub(crate) struct Event {
    pub tables: Vec<TableBatch>,
    /// The last byte of the request was there.
    pub received: MonoNs,
    /// The event was offered to the triggers.
    pub handed_over: MonoNs,
    pub depth: u8,
    /// How often it was tried before.
    pub attempt: u32,
    /// Rows of the first of the events that were gathered into this one.
    pub first_rows: usize,
}

impl Event {
    pub fn bytes(&self) -> usize {
        self.tables.iter().map(|t| t.batch.bytes()).sum()
    }
    pub fn rows(&self) -> usize {
        self.tables.iter().map(|t| t.batch.rows()).sum()
    }
}

/// A trigger as one shard sees it.
pub(crate) struct TriggerState {
    pub trigger: Arc<Trigger>,
    pub home: ShardId,
    queue: VecDeque<Event>,
    queued_bytes: usize,
    /// Which lane its runs take.
    /// What it may use.
    limits: Limits,
    pub policy: Policy,
    /// Runs under way.
    pub running: usize,
    /// Results of runs that are being written.
    pub writing_back: usize,
    /// Events that wait for their next attempt, beside the queue.
    pub retrying: usize,
    /// It waits until it can be run inline: the bridge will say when to ask again.
    pub preparing: bool,
    /// The version of the code that the policy knows.
    pub code: Option<u64>,
    /// What is finished, by stream.
    pub progress: HashMap<Stream, Progress, ahash::RandomState>,
    /// Events that are in the logs and not in memory, in order.
    pub backlog: VecDeque<Pending>,
    /// The next of them are being read.
    pub loading: bool,
    /// It failed and is being disabled: nothing of it is run any more.
    pub stopped: bool,
    pub measured: Measured,
}

/// What is measured of a trigger. Nanoseconds.
pub(crate) struct Measured {
    pub activation: Histogram<u64>,
    pub queue: Histogram<u64>,
    pub run: Histogram<u64>,
    pub runs: u64,
    pub errors: u64,
    pub rows: u64,
    pub events_dropped: u64,
    pub retries: u64,
    pub events_failed: u64,
    pub discarded: u64,
    pub last_error: Option<String>,
}

/// An empty histogram of nanoseconds: 3 digits up to a minute and a half, larger values count as that.
pub(crate) fn nanosecond_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 1 << 36, 3).unwrap_or_else(|_| unreachable!("the bounds are constants that fit"))
}

impl Measured {
    fn new() -> Self {
        Measured {
            activation: nanosecond_histogram(),
            queue: nanosecond_histogram(),
            run: nanosecond_histogram(),
            runs: 0,
            errors: 0,
            rows: 0,
            events_dropped: 0,
            retries: 0,
            events_failed: 0,
            discarded: 0,
            last_error: None,
        }
    }
}

/// Results of one trigger that may be on their way to the log at once.
const WRITE_BACKS_MAX: usize = 32;
/// Overlapping runs of a trigger that asked for overlap.
const OVERLAP_MAX: usize = 16;

impl TriggerState {
    fn new(trigger: Arc<Trigger>, home: ShardId, limits: Limits) -> Self {
        TriggerState {
            limits,
            policy: Policy::new(trigger.def.execution, trigger.def.isolation, mono_now()),
            trigger,
            home,
            queue: VecDeque::new(),
            queued_bytes: 0,
            running: 0,
            writing_back: 0,
            retrying: 0,
            preparing: false,
            code: None,
            progress: HashMap::default(),
            backlog: VecDeque::new(),
            loading: false,
            stopped: false,
            measured: Measured::new(),
        }
    }

    fn wants(&self, table: &str) -> bool {
        match &self.trigger.def.spec {
            TriggerSpec::Table(wanted) => **wanted == *table,
            TriggerSpec::AllTables => true,
            TriggerSpec::Every(_) | TriggerSpec::Cron(_) | TriggerSpec::Request(_) => false,
        }
    }

    /// Puts an event in line; false if it stays in the log until there is room.
    fn offer(&mut self, event: Event) -> bool {
        let full = !self.queue.is_empty() && (self.queued_bytes + event.bytes()) as u64 > self.limits.queue_bytes;
        if full || !self.backlog.is_empty() {
            self.leave_in_log(event.tables[0].id);
            return false;
        }
        self.put_in_line(event);
        true
    }

    fn put_in_line(&mut self, event: Event) {
        let EventId { stream, sequence } = event.tables[0].id;
        // An event that was handed over before is under way.
        if self.progress.entry(stream).or_default().hand_over(sequence) {
            self.queued_bytes += event.bytes();
            self.queue.push_back(event);
        }
    }

    fn leave_in_log(&mut self, EventId { stream, sequence }: EventId) {
        match self.backlog.iter_mut().find(|part| part.stream == stream) {
            Some(part) => part.to = part.to.max(sequence),
            None => self.backlog.push_back(Pending { stream, after: Sequence(sequence.0 - 1), to: sequence }),
        }
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
        if let Some(at) = self.backlog.iter().position(|part| part.stream == stream) {
            let part = &mut self.backlog[at];
            let stuck = reached <= part.after && stream.epoch != epoch;
            part.after = part.after.max(reached);
            if stuck || part.after >= part.to {
                self.backlog.remove(at);
            }
        }
        events.into_iter().for_each(|event| self.put_in_line(event));
    }

    fn may_run(&self) -> bool {
        let def = &self.trigger.def;
        // Inline runs follow each other, and come after the deferred ones that are under way.
        let overlap = if def.run_async && self.policy.lane() != Lane::Inline { OVERLAP_MAX } else { 1 };
        // An ordered trigger whose failures have consequences waits for the end of a run, writing included.
        let in_order = !def.run_async && def.error_behavior != ErrorBehavior::Log;
        let write_backs = if in_order { 1 } else { WRITE_BACKS_MAX };
        let waits = !def.run_async && self.retrying > 0;
        !self.stopped && !waits && !self.queue.is_empty() && self.running < overlap && self.writing_back < write_backs
    }

    /// All waiting events up to `rows_max` rows, at least one. Tables are listed in order of their first event.
    fn gather(&mut self, rows_max: usize) -> Option<Event> {
        let def = &self.trigger.def;
        let mut gathered = self.queue.pop_front()?;
        self.queued_bytes -= gathered.bytes();
        let mut rows = gathered.rows();
        let rows_max = match (def.execution, self.policy.lane()) {
            (Execution::Auto, Lane::Inline) => rows_max.min(self.policy.inline_rows_max()),
            _ => rows_max,
        };
        if gathered.first_rows == 0 {
            gathered.first_rows = rows;
        }
        while let Some(next) = self.queue.front() {
            // What failed is tried again as it was: the rows of others are not to suffer from it.
            let alike = next.depth == gathered.depth && next.attempt == 0 && gathered.attempt == 0;
            if rows + next.rows() > rows_max || !alike {
                break;
            }
            rows += next.rows();
            let Some(next) = self.queue.pop_front() else { break };
            self.queued_bytes -= next.bytes();
            gathered.tables.extend(next.tables);
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
    }
}

/// A run that is due.
pub(crate) struct Due {
    pub state: Rc<RefCell<TriggerState>>,
    pub event: Event,
}

/// What a new set of triggers changes for a shard.
pub(crate) struct Changes {
    /// Write triggers that are new to it.
    pub begun: Vec<TriggerId>,
    /// Triggers that are gone.
    pub ended: Vec<TriggerId>,
}

/// The triggers that matter to a shard.
#[derive(Default)]
pub(crate) struct TriggerSet {
    all: Vec<Rc<RefCell<TriggerState>>>,
    by_db: HashMap<Arc<str>, Vec<Rc<RefCell<TriggerState>>>>,
    /// Where the search for a due run begins, so that no trigger starves another.
    next: usize,
}

impl TriggerSet {
    /// The set of enabled triggers from now on. A trigger whose id stays keeps what waits for it and what was measured.
    pub fn replace(&mut self, shard: ShardId, placement: Placement, defaults: Limits, set: &[Arc<Trigger>]) -> Changes {
        let mut begun = Vec::new();
        let mut before: HashMap<TriggerId, _> =
            self.all.drain(..).map(|s| (s.borrow().trigger.def.id, s.clone())).collect();
        self.by_db.clear();
        for trigger in set {
            let home = home_of(placement, trigger);
            let limits = trigger.def.limits.over(defaults);
            let is_new = !before.contains_key(&trigger.def.id);
            let state = match before.remove(&trigger.def.id) {
                Some(state) => {
                    let mut inner = state.borrow_mut();
                    (inner.trigger, inner.limits) = (trigger.clone(), limits);
                    drop(inner);
                    state
                }
                None => Rc::new(RefCell::new(TriggerState::new(trigger.clone(), home, limits))),
            };
            // A trigger on one table matters to its home only; one on all tables matters everywhere.
            if home == shard || trigger.def.spec == TriggerSpec::AllTables {
                if is_new && matches!(trigger.def.spec, TriggerSpec::Table(_) | TriggerSpec::AllTables) {
                    begun.push(trigger.def.id);
                }
                self.by_db.entry(trigger.def.db.clone()).or_default().push(state.clone());
                self.all.push(state);
            }
        }
        let ended = before.keys().copied().collect();
        for (_, gone) in before {
            let gone = gone.borrow();
            if !gone.queue.is_empty() {
                tracing::warn!(trigger = %gone.trigger.def.name, events = gone.queue.len(), "a trigger was disabled or deleted: what waited for it is given up");
            }
        }
        Changes { begun, ended }
    }

    /// The triggers at home on this shard.
    pub fn at_home(&self, shard: ShardId) -> Vec<Rc<RefCell<TriggerState>>> {
        self.all.iter().filter(|state| state.borrow().home == shard).cloned().collect()
    }

    pub fn find(&self, id: TriggerId) -> Option<Rc<RefCell<TriggerState>>> {
        self.all.iter().find(|s| s.borrow().trigger.def.id == id).cloned()
    }

    /// The next run that is due on this shard, in turn.
    pub fn due(&mut self, shard: ShardId, rows_max: usize) -> Option<Due> {
        let count = self.all.len();
        for step in 0..count {
            let at = (self.next + step) % count;
            let state = &self.all[at];
            let mut inner = state.borrow_mut();
            if inner.home == shard && !inner.preparing && inner.may_run() {
                let Some(event) = inner.gather(rows_max) else { continue };
                inner.running += 1;
                self.next = at + 1;
                return Some(Due { state: state.clone(), event });
            }
        }
        None
    }

    /// The triggers at home on this shard that were told to run inline.
    pub fn inline_at_home(&self, shard: ShardId) -> Vec<Arc<Trigger>> {
        let states = self.all.iter().map(|s| s.borrow()).filter(|s| s.home == shard);
        states.map(|s| s.trigger.clone()).filter(|trigger| trigger.def.execution == Execution::Inline).collect()
    }

    /// Whatever triggers wait for may be there.
    pub fn ask_again(&self) {
        for state in &self.all {
            state.borrow_mut().preparing = false;
        }
    }

    /// Whether any run is under way or due.
    pub fn busy(&self, shard: ShardId) -> bool {
        self.all.iter().any(|s| {
            let s = s.borrow();
            s.home == shard && (s.running > 0 || s.writing_back > 0 || s.may_run())
        })
    }

    /// Events that wait for a run or for their next attempt.
    pub fn waiting(&self, shard: ShardId) -> usize {
        let at_home = self.all.iter().map(|s| s.borrow()).filter(|s| s.home == shard);
        at_home.map(|s| s.queue.len() + s.retrying).sum()
    }

    /// What was measured of the triggers at home here.
    pub fn stats(&self, shard: ShardId) -> Vec<TriggerStats> {
        self.all.iter().map(|s| s.borrow()).filter(|s| s.home == shard).map(|s| stats_of(&s)).collect()
    }
}

fn stats_of(state: &TriggerState) -> TriggerStats {
    let m = &state.measured;
    TriggerStats {
        def: state.trigger.def.clone(),
        home: state.home,
        activation_ns: m.activation.clone(),
        queue_ns: m.queue.clone(),
        run_ns: m.run.clone(),
        runs: m.runs,
        errors: m.errors,
        rows: m.rows,
        events_dropped: m.events_dropped,
        retries: m.retries,
        events_failed: m.events_failed,
        discarded: m.discarded,
        lane: state.policy.lane(),
        lane_reason: state.policy.reason().to_string(),
        lane_for: Duration::from_nanos(mono_now().since(state.policy.since())),
        lane_barred: state.policy.barred().map(|reason| reason.to_string()),
        last_error: m.last_error.clone(),
        backlog_events: (state.queue.len() + state.retrying) as u64,
    }
}

fn home_of(placement: Placement, trigger: &Trigger) -> ShardId {
    match &trigger.def.spec {
        TriggerSpec::Table(table) => placement.owner(&trigger.def.db, table),
        _ => placement.home(trigger.def.id),
    }
}

/// Events on their way to triggers at home elsewhere, in order.
#[derive(Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<(ShardId, TriggerId, Event)>,
    bytes: usize,
}

impl Shard {
    /// Rows of a table of `db` were written: every trigger that wants them gets them in line, here or at its home.
    pub fn offer(self: &Rc<Self>, db: &str, event: &Event) {
        let states = match self.triggers.borrow().by_db.get(db) {
            Some(states) => states.clone(),
            None => return,
        };
        let table = event.tables[0].table.clone();
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
                self.post(inner.home, inner.trigger.def.id, event.clone());
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
        if state.backlog.len() == 1 && state.backlog[0].to.0 == state.backlog[0].after.0 + 1 {
            self.log_for(&state.trigger, LogLevel::Warn, format!(
                "the trigger lags by more than {} bytes of events: further ones are read back from the log of writes when there is room; make the plugin faster, or raise the trigger's limit queue_size",
                state.limits.queue_bytes,
            ));
        }
        self.load(state);
    }

    fn report_chain(&self, trigger: &Trigger, table: &str) {
        self.counters.chains_cut.add(1);
        self.log_for(trigger, LogLevel::Error, format!(
            "not run for rows of table '{table}': they were written by a chain of more than {CHAIN_DEPTH_MAX} plugin runs, each caused by the one before; let the plugin skip its own output"
        ));
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

    /// Sends an event to a trigger's home, or keeps it until there is room.
    fn post(self: &Rc<Self>, home: ShardId, trigger: TriggerId, event: Event) {
        let mut outbox = self.outbox.borrow_mut();
        let bytes = event.bytes();
        if !outbox.waiting.is_empty() && outbox.bytes + bytes > TRIGGER_BACKLOG_BYTES_MAX {
            self.counters.events_dropped.add(1);
            tracing::error!(
                shard = self.id.0,
                "an event for a trigger on another shard was given up: its mailbox stays full"
            );
            return;
        }
        outbox.bytes += bytes;
        let idle = outbox.waiting.is_empty();
        outbox.waiting.push_back((home, trigger, event));
        drop(outbox);
        if idle && !self.deliver_posted() {
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
        while let Some((home, trigger, event)) = outbox.waiting.pop_front() {
            let Some(room) = self.shared.mailbox(home).reserve(event.bytes()) else {
                outbox.waiting.push_front((home, trigger, event));
                return false;
            };
            outbox.bytes -= event.bytes();
            room.put(|held| Message::Event { trigger, event: Box::new(event), _held: held });
        }
        true
    }
}

/// The event as the bridge takes it.
pub(crate) fn run_event(event: &Event) -> RunEvent {
    RunEvent::Writes(event.tables.clone())
}
