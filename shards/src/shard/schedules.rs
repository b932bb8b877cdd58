//! Schedule triggers: one task per shard sleeps until the next time of any trigger at home here.
//!
//! # Mechanism
//! 1. The [`Agenda`] has each trigger at the next time of its schedule. When that comes, its
//!    [`Scheduler`] says what to do; a run is put in line as any other event.
//! 2. A trigger that cannot be run then is off the agenda until its run is over ([`Shard::freed`]).
//! 3. Sleeps are by the monotonic clock and end early enough to see that the wall clock was set; then everything is looked at.
//! 4. How far a trigger has come goes into the log of its home: with the rows of a run, and at the latest
//!    [`SCHEDULE_LOOK_MS`] after a run. What is not there when the process dies counts as missed.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use saltus_core::ids::{MonoNs, TriggerId};
use saltus_core::limits::SCHEDULE_LOOK_MS;
use saltus_core::ports::RunEvent;
use saltus_core::schedule::{Schedule, Scheduler, Step};
use saltus_core::trigger::TriggerDef;

use crate::clock::{mono_now, wall_now_ns};
use crate::wal::Record;

use super::Shard;
use super::run::State;
use super::triggers::{Changed, Event, TriggerState};

const LOOK: Duration = Duration::from_millis(SCHEDULE_LOOK_MS);
/// The wall clock was set if it moved against the monotonic one by so many nanoseconds between two looks.
const CLOCK_SET_NS: i64 = 100_000_000;

/// Which triggers are to be looked at, and when.
#[derive(Default)]
pub(crate) struct Agenda {
    by_time: BTreeSet<(i64, TriggerId)>,
    triggers: HashMap<TriggerId, (Option<i64>, State), ahash::RandomState>,
    /// Those that have come further than the log says.
    moved: BTreeSet<TriggerId>,
}

impl Agenda {
    /// A trigger has a schedule from now on, or another one: it is looked at.
    fn put(&mut self, id: TriggerId, state: State) {
        self.remove(id);
        self.triggers.insert(id, (None, state));
        self.set(id, Some(i64::MIN));
    }

    /// A trigger has no schedule here any more.
    fn remove(&mut self, id: TriggerId) {
        self.set(id, None);
        self.triggers.remove(&id);
    }

    fn all_due(&mut self) {
        let all: Vec<TriggerId> = self.triggers.keys().copied().collect();
        all.into_iter().for_each(|id| self.set(id, Some(i64::MIN)));
    }

    fn set(&mut self, id: TriggerId, at: Option<i64>) {
        let Some((known, _)) = self.triggers.get_mut(&id) else { return };
        if let Some(before) = std::mem::replace(known, at) {
            self.by_time.remove(&(before, id));
        }
        self.by_time.extend(at.map(|at| (at, id)));
    }

    fn next(&self) -> Option<i64> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes one off that is due.
    fn take_due(&mut self, now_ns: i64) -> Option<State> {
        let (at, id) = *self.by_time.first()?;
        if at > now_ns {
            return None;
        }
        self.set(id, None);
        self.triggers.get(&id).map(|(_, state)| state.clone())
    }
}

/// Where a trigger begins in its schedule, if it has one.
pub(crate) fn scheduler_of(def: &TriggerDef, mark: Option<saltus_core::schedule::Mark>) -> Option<Scheduler> {
    match Schedule::new(&def.spec, def.timing.time_zone.as_deref()) {
        Ok(schedule) => Some(Scheduler::new(schedule?, def.timing.missed_runs, def.timing.since_ns, mark)),
        Err(error) => {
            tracing::error!(trigger = %def.name, %error, "the trigger is not run: update it with another time zone");
            None
        }
    }
}

impl Shard {
    /// These triggers have changed: those with a schedule are on the agenda from now on, the others are not.
    pub fn look_at_schedules(&self, changed: &[Changed]) {
        let mut agenda = self.agenda.borrow_mut();
        for (id, state) in changed {
            match state.as_ref().filter(|state| state.borrow().schedule.is_some()) {
                Some(state) => agenda.put(*id, state.clone()),
                None => agenda.remove(*id),
            }
        }
        self.time_due.notify();
    }

    /// Runs schedule triggers when it is time, until the engine stops.
    pub async fn keep_time(self: Rc<Self>) {
        let mut ahead = wall_ahead();
        let mut marked = mono_now();
        while !self.stopping() {
            let now_ahead = wall_ahead();
            if (now_ahead - std::mem::replace(&mut ahead, now_ahead)).abs() > CLOCK_SET_NS {
                self.agenda.borrow_mut().all_due();
            }
            self.call_due();
            if mono_now().since(marked) >= LOOK.as_nanos() as u64 {
                marked = mono_now();
                self.write_marks();
            }
            let (next, marks_moved) = {
                let agenda = self.agenda.borrow();
                (agenda.next(), !agenda.moved.is_empty())
            };
            let until_next =
                |at: i64| Duration::from_nanos(u64::try_from(at.saturating_sub(wall_now_ns())).unwrap_or(0));
            match next.map(until_next) {
                None if !marks_moved => self.time_due.notified().await,
                pause => {
                    let pause = pause.unwrap_or(LOOK).min(LOOK);
                    futures_lite::future::or(self.time_due.notified(), crate::io::net::sleep(pause)).await;
                }
            }
        }
    }

    /// Puts in line what is due now.
    fn call_due(&self) {
        while !self.stopping() {
            let now_ns = wall_now_ns();
            let Some(state) = self.agenda.borrow_mut().take_due(now_ns) else { return };
            let mut inner = state.borrow_mut();
            let id = inner.trigger.def.id;
            loop {
                let free = inner.is_free();
                let Some(schedule) = &mut inner.schedule else { break };
                match schedule.poll(now_ns, free) {
                    Step::Run { call, on_time } => {
                        let late = u64::try_from(now_ns.saturating_sub(call.scheduled_ns)).unwrap_or(0);
                        let received = if on_time { MonoNs(mono_now().0.saturating_sub(late)) } else { mono_now() };
                        let event = Event { late: !on_time, ..Event::new(RunEvent::Schedule(call), received) };
                        inner.put_last(event);
                        self.runnable.notify();
                    }
                    Step::Wait(at) => {
                        self.agenda.borrow_mut().set(id, at);
                        break;
                    }
                    Step::Hold => break,
                }
            }
        }
    }

    /// A run of the trigger is over: what waited for that is looked at.
    pub fn freed(&self, state: &TriggerState) {
        if state.schedule.as_ref().is_some_and(Scheduler::is_held_up) {
            self.agenda.borrow_mut().set(state.trigger.def.id, Some(i64::MIN));
            self.time_due.notify();
        }
    }

    /// A scheduled call needs no run any more.
    pub fn called(&self, state: &mut TriggerState, scheduled_ns: i64) {
        let Some(schedule) = &mut state.schedule else { return };
        schedule.finish(scheduled_ns);
        let mut agenda = self.agenda.borrow_mut();
        agenda.moved.insert(state.trigger.def.id);
        if agenda.next().is_none() {
            self.time_due.notify();
        }
    }

    /// Writes down how far schedule triggers have come.
    pub fn write_marks(&self) {
        let moved = std::mem::take(&mut self.agenda.borrow_mut().moved);
        for state in moved.into_iter().filter_map(|id| self.triggers.borrow().find(id)) {
            self.write_mark_of(&mut state.borrow_mut());
        }
    }

    /// Writes down how far a trigger has come: into the frame of whatever was appended just now.
    pub fn write_mark_of(&self, state: &mut TriggerState) {
        let Some(mark) = state.schedule.as_mut().and_then(Scheduler::take_mark) else { return };
        if let Err(error) = self.log.append(&Record::ScheduleMark { trigger: state.trigger.def.id, mark }) {
            tracing::debug!(shard = self.id.0, %error, "a schedule's mark is not recorded: after a crash its last times count as missed");
        }
    }
}

/// What the wall clock is ahead of the monotonic one.
fn wall_ahead() -> i64 {
    wall_now_ns().saturating_sub(i64::try_from(mono_now().0).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::Arc;

    use saltus_core::ids::ShardId;
    use saltus_core::ports::{CodeSource, PluginCode, Trigger};
    use saltus_core::trigger::{
        ErrorBehavior, Execution, Isolation, Limits, Timing, TriggerDef, TriggerLimits, TriggerSpec,
    };

    use super::*;

    struct NoCode;

    impl CodeSource for NoCode {
        fn current(&self) -> Arc<PluginCode> {
            Arc::new(PluginCode { source: "".into(), hash: 0, directory: None })
        }
    }

    fn state(id: u64) -> State {
        let def = TriggerDef {
            id: TriggerId(id),
            name: "t".into(),
            db: "d".into(),
            plugin_filename: "p.py".into(),
            spec: TriggerSpec::Every(Duration::from_secs(1)),
            run_async: false,
            error_behavior: ErrorBehavior::Log,
            execution: Execution::Auto,
            isolation: Isolation::Auto,
            limits: TriggerLimits::default(),
            api: saltus_core::trigger::ApiSettings::default(),
            timing: Timing::default(),
            arguments: None,
            disabled: false,
            disabled_reason: None,
        };
        let trigger = Arc::new(Trigger { def, code: Arc::new(NoCode) });
        Rc::new(RefCell::new(TriggerState::new(trigger, ShardId(0), Limits::default(), Rc::default())))
    }

    #[test]
    fn the_agenda_gives_triggers_in_the_order_of_their_times_and_each_once() {
        let mut agenda = Agenda::default();
        (1..=4).for_each(|id| agenda.put(TriggerId(id), state(id)));
        agenda.remove(TriggerId(4));
        let due = |agenda: &mut Agenda, now| {
            let mut ids = Vec::new();
            while let Some(state) = agenda.take_due(now) {
                ids.push(state.borrow().trigger.def.id.0);
            }
            ids
        };
        assert_eq!(due(&mut agenda, 0), [1, 2, 3], "all are looked at first");
        for (id, at) in [(1, 30), (2, 10), (3, 20), (2, 25), (9, 1)] {
            agenda.set(TriggerId(id), Some(at));
        }
        assert_eq!(agenda.next(), Some(20));
        assert_eq!(due(&mut agenda, 25), [3, 2]);
        agenda.all_due();
        assert_eq!(due(&mut agenda, 0).len(), 3);
        assert_eq!(agenda.next(), None);
        // One that was changed is looked at again, others are where they were.
        agenda.set(TriggerId(1), Some(30));
        agenda.set(TriggerId(2), Some(40));
        agenda.put(TriggerId(2), state(2));
        assert_eq!((due(&mut agenda, 0), agenda.next()), (vec![2], Some(30)));
        agenda.remove(TriggerId(1));
        assert_eq!(agenda.next(), None);
    }
}
