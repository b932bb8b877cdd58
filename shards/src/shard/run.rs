//! Runs: from an event that is due to a plugin that has run and results that are written.
//!
//! One task per shard makes the runs. Between two inline runs it lets other tasks of the shard go on. Deferred runs come
//! back through [`super::Finished`]; a second task takes them. No borrow of the shard is held while a plugin runs.

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use saltus_core::ids::{MonoNs, RunId, TriggerId};
use saltus_core::limits::{RETRIES_MAX, RUNS_BEFORE_ANSWER_US};
use saltus_core::policy::{Cost, Decision, Lane, Observation, Overspent};
use saltus_core::ports::{
    LogLevel, LogLine, LogText, PluginError, Readiness, RunEvent, RunOutcome, RunRecord, RunReport, RunRequest, Seated,
    ShardPlugins, StopCause, Trigger, Unwound,
};
use saltus_core::request::{PluginResponse, RequestError};
use saltus_core::trigger::{ErrorBehavior, Execution, MissingColumns, retry_pause};

use crate::clock::mono_now;
use crate::dead_letters::Reason;

use super::letters::Failure;
use super::requests;
use super::triggers::{Changed, Due, Event, TriggerState};
use super::{Finished, Shard, Told};

/// How often it is said that runs of a trigger wait for CPU time.
const THROTTLE_SAID_EVERY_NS: u64 = 60_000_000_000;

pub(super) type State = Rc<RefCell<TriggerState>>;
/// What a run's request does not say of its event; see [`Event`].
#[derive(Clone, Copy)]
pub(crate) struct Began {
    handed_over: MonoNs,
    first_rows: usize,
    replayed: bool,
    late: bool,
}

impl Began {
    fn of(event: &Event) -> Self {
        let Event { handed_over, first_rows, replayed, late, .. } = *event;
        Began { handed_over, first_rows, replayed, late }
    }
}

/// How a run failed.
pub(super) struct Failed {
    /// In a line.
    pub message: String,
    pub traceback: String,
    /// For the log.
    pub text: String,
    /// Whatever the trigger's error behaviour: its code must not run again where it is.
    pub disable: bool,
}

/// A run that is over.
pub(super) struct Ended {
    pub run_id: RunId,
    pub trigger: Arc<Trigger>,
    pub event: Event,
    /// What a request is answered if all goes well.
    pub response: Option<PluginResponse>,
}

/// A deferred run under way: what is needed when it comes back.
pub(crate) type UnderWay = RefCell<std::collections::HashMap<RunId, (State, Began)>>;

/// What there is to say of code that takes the place of other code.
fn new_code(plugins: &dyn ShardPlugins, code: u64) -> Observation {
    let refused = plugins.imports_of(code).and_then(|found| found.refused.clone());
    refused.map_or(Observation::CodeChanged, Observation::CodeRefused)
}

/// Whether a run had code in whose place there is other code by now, of which the policy knows.
fn is_outdated(state: &TriggerState, code: u64) -> bool {
    state.looked_at.is_some() && state.looked_at == state.code && state.trigger.code.current().hash != code
}

impl Shard {
    /// Makes runs for ever.
    pub async fn make_runs(self: Rc<Self>, under_way: Rc<UnderWay>) {
        loop {
            self.runnable.notified().await;
            while let Some(due) = self.next_due() {
                // Each run is a turn: others have had theirs since the last one.
                self.inline_budget.borrow_mut().begin_turn();
                if !self.start(due, &under_way) {
                    break;
                }
                crate::io::net::yield_now().await;
            }
        }
    }

    /// Lets runs begin that are due and take less than what the caller is about to do. An answer to a client is a system call that wakes
    /// another thread; the plugin need not wait for it.
    pub async fn let_cheap_runs_begin(&self) {
        if self.triggers.borrow().due_within(RUNS_BEFORE_ANSWER_US * 1000) {
            futures_lite::future::yield_now().await;
        }
    }

    fn next_due(self: &Rc<Self>) -> Option<Due> {
        let passed_over = self.triggers.borrow().pass_over();
        self.counters.requests_passed_over.add(passed_over as u64);
        let (due, throttled) = {
            let mut triggers = self.triggers.borrow_mut();
            let due = triggers.due(self.shared.config.run_rows_max);
            (due, std::mem::take(&mut triggers.throttled))
        };
        throttled.into_iter().for_each(|(state, wait)| self.throttle(state, wait));
        due
    }

    /// The next run of a trigger waits until its share of CPU time is there.
    fn throttle(self: &Rc<Self>, state: State, wait: Duration) {
        {
            let mut inner = state.borrow_mut();
            inner.measured.cpu_waits += 1;
            self.counters.cpu_waits.add(1);
            let now = mono_now();
            if inner.throttle_said.is_none_or(|said| now.since(said) >= THROTTLE_SAID_EVERY_NS) {
                inner.throttle_said = Some(now);
                let percent = inner.cpu_share();
                self.log_for(&inner.trigger, LogLevel::Warn, format!("its runs have used more than {percent}% of a core (limits: cpu_share): the next one waits for {wait:.1?}, and others as they have to"));
            }
        }
        let shard = self.clone();
        self.spawn(async move {
            crate::io::net::sleep(wait).await;
            state.borrow_mut().throttled = false;
            shard.runnable.notify();
        });
    }

    /// False if the deferred workers' queue is full: a completion will wake us.
    fn start(self: &Rc<Self>, due: Due, under_way: &Rc<UnderWay>) -> bool {
        let Due { state, event } = due;
        let Some(mut plugins) = self.plugins.borrow_mut().take() else {
            self.without_python(&state, &event);
            return true;
        };
        if !self.let_in(&state, &event, plugins.as_ref()) {
            *self.plugins.borrow_mut() = Some(plugins);
            return true;
        }
        let has_state = self.fetch_state(&mut state.borrow_mut());
        if !has_state || !self.ready(&state, plugins.as_mut()) {
            *self.plugins.borrow_mut() = Some(plugins);
            self.counters.runs_waited.add(1);
            let mut state = state.borrow_mut();
            state.running -= 1;
            state.preparing = true;
            state.put_back(event);
            return true;
        }
        let request = self.request(&state, &event);
        let began = Began::of(&event);
        let inline = state.borrow().policy.lane() == Lane::Inline;
        let refused = if inline {
            let pulse = self.turns.pulse();
            pulse.set_trigger(Some(request.trigger.def.id));
            let report = plugins.run_inline(request);
            pulse.set_trigger(None);
            *self.plugins.borrow_mut() = Some(plugins);
            self.finish(&state, Lane::Inline, began, report);
            None
        } else {
            let run_id = request.run_id;
            under_way.borrow_mut().insert(run_id, (state.clone(), began));
            let refused = plugins.submit(request).err();
            *self.plugins.borrow_mut() = Some(plugins);
            refused.inspect(|_| drop(under_way.borrow_mut().remove(&run_id)))
        };
        if refused.is_some() {
            let mut state = state.borrow_mut();
            state.running -= 1;
            state.put_back(event);
        }
        refused.is_none()
    }

    /// These triggers have changed: those that were told to run inline are to be ready for it.
    pub fn look_at_cold(&self, changed: &[Changed]) {
        let ids: HashSet<TriggerId> = changed.iter().map(|(id, _)| *id).collect();
        let triggers = changed.iter().filter_map(|(_, state)| Some(state.as_ref()?.borrow().trigger.clone()));
        let mut cold = self.cold.borrow_mut();
        cold.retain(|trigger| !ids.contains(&trigger.def.id));
        cold.extend(triggers.filter(|trigger| trigger.def.execution == Execution::Inline));
        drop(cold);
        self.warm_up();
    }

    /// Has triggers made ready for the inline lane, one after the other, before they have anything to run for.
    pub fn warm_up(&self) {
        let Some(mut plugins) = self.plugins.borrow_mut().take() else { return };
        let mut cold = self.cold.borrow_mut();
        while let Some(trigger) = cold.front() {
            if plugins.ready_inline(trigger) == Readiness::Wait {
                break;
            }
            cold.pop_front();
        }
        drop(cold);
        *self.plugins.borrow_mut() = Some(plugins);
    }

    /// Whether the trigger can be run in its lane now; what stands against the inline lane may move it to another.
    fn ready(&self, state: &State, plugins: &mut dyn ShardPlugins) -> bool {
        let mut inner = state.borrow_mut();
        match inner.policy.lane() {
            Lane::Inline => {}
            Lane::Deferred => return self.ready_deferred(&mut inner, plugins),
            Lane::Process => return true,
        }
        let trigger = inner.trigger.clone();
        // New code has earned nothing yet.
        if trigger.def.execution == Execution::Auto && inner.code != Some(trigger.code.current().hash) {
            inner.code = None;
            let observation = new_code(plugins, trigger.code.current().hash);
            self.observe(&mut inner, observation);
            return true;
        }
        match plugins.ready_inline(&trigger) {
            Readiness::Ready => true,
            Readiness::Wait => false,
            Readiness::CacheNotPlain(why) => {
                tracing::debug!(trigger = %trigger.def.name, %why, "the cache cannot move to the inline lane");
                self.observe(&mut inner, Observation::CachePlain(false));
                true
            }
        }
    }

    /// Whether a deferred run of the trigger can be submitted, where it is to sit or where it has to stay.
    fn ready_deferred(&self, state: &mut TriggerState, plugins: &mut dyn ShardPlugins) -> bool {
        let trigger = state.trigger.clone();
        let alone = state.running == 1;
        match plugins.ready_deferred(&trigger, state.policy.seat(), state.policy.long().1, alone) {
            Seated::Ready { crowded } => {
                self.observe(state, Observation::Crowded(crowded));
                true
            }
            Seated::Wait => false,
            Seated::Stays(seat, why) => {
                let text = format!("the trigger stays in the interpreter in which it is: {why}");
                self.log_for(&trigger, LogLevel::Warn, text);
                self.observe(state, Observation::Stays { seat, why });
                true
            }
        }
    }

    /// Tells the policy of code that it does not know, if its imports were tried: so a trigger is in its lane before it runs.
    fn look_at_code(&self, state: &mut TriggerState, plugins: &dyn ShardPlugins) {
        let code = state.trigger.code.current().hash;
        if state.looked_at == Some(code) {
            return;
        }
        let Some(found) = plugins.imports_of(code) else { return };
        let known = state.code.or(state.looked_at);
        state.looked_at = Some(code);
        if known.is_some_and(|known| known != code) {
            self.observe(state, new_code(plugins, code));
        } else if let Some(module) = &found.refused {
            self.observe(state, Observation::ImportRefused(module.clone()));
        }
        if state.code != Some(code) {
            state.code = Some(code);
            self.observe(state, Observation::Checked(found.inline.clone()));
        }
    }

    /// The same for triggers that have come into force or were changed.
    pub fn look_at_code_of(&self, states: &[State]) {
        let Some(plugins) = self.plugins.borrow_mut().take() else { return };
        for state in states {
            let mut inner = state.borrow_mut();
            if inner.home == self.id {
                self.look_at_code(&mut inner, plugins.as_ref());
            }
        }
        *self.plugins.borrow_mut() = Some(plugins);
    }

    /// The lane of a trigger at home here, and why.
    pub fn lane_of(&self, trigger: TriggerId) -> Option<(Lane, String)> {
        let state = self.triggers.borrow().find(trigger)?;
        let inner = state.borrow();
        (inner.home == self.id).then(|| (inner.policy.lane(), inner.policy.account()))
    }

    /// Code that has held up a shard does not get at one again: false if there is no other place for it.
    fn let_in(&self, state: &State, event: &Event, plugins: &dyn ShardPlugins) -> bool {
        let mut inner = state.borrow_mut();
        self.look_at_code(&mut inner, plugins);
        let trigger = inner.trigger.clone();
        let code = trigger.code.current().hash;
        if inner.quarantine_asked.replace(code) == Some(code) || !self.shared.host.quarantined(code) {
            return true;
        }
        self.observe(&mut inner, Observation::Quarantined);
        if inner.policy.lane() == Lane::Process {
            return true;
        }
        let reason = "its code has held up a shard before, and isolation=interpreter keeps it out of the process lane: change the code or the isolation";
        self.log_for(&trigger, LogLevel::Error, format!("the trigger is disabled: {reason}; then enable it"));
        let failure = Failure {
            reason: Reason::Disabled,
            run_id: RunId(0),
            attempts: event.attempt,
            error: reason.to_owned(),
            traceback: String::new(),
        };
        self.bury(&trigger, event.tables(), failure);
        requests::answer(event, Err(RequestError::Failed(reason.to_owned())));
        inner.running -= 1;
        self.give_up_queue(&mut inner);
        self.shared.host.disable(&trigger.def, reason.to_owned());
        false
    }

    /// The trigger is being disabled: what waits for it is given up; how many events.
    fn give_up_queue(&self, state: &mut TriggerState) -> usize {
        let given_up = state.stop();
        state.measured.events_failed += 1;
        state.measured.events_dropped += given_up as u64;
        self.counters.events_failed.add(1);
        self.counters.events_dropped.add(given_up as u64);
        given_up
    }

    /// Tells the policy, and the world what it decides.
    fn observe(&self, state: &mut TriggerState, observation: Observation) {
        let decision = state.policy.observe(observation, mono_now());
        let lane = state.policy.lane();
        if let Some(reason) = state.policy.take_moved()
            && lane == Lane::Deferred
        {
            self.counters.seat_changes.add(1);
            self.decided(&state.trigger, Decision { at: mono_now(), from: lane, to: lane, reason });
        }
        if let Some(decision) = decision {
            self.counters.lane_changes.add(1);
            self.decided(&state.trigger, decision);
        }
    }

    fn decided(&self, trigger: &Arc<Trigger>, decision: Decision) {
        self.log_for(trigger, LogLevel::Info, format!("lane {decision}"));
        let (db, name) = (trigger.def.db.clone(), trigger.def.name.clone());
        let record = RunRecord { db, trigger: name, lane: decision.to, what: RunOutcome::Decided(decision) };
        self.shared.host.record(record);
    }

    fn request(&self, state: &State, event: &Event) -> RunRequest {
        let state = state.borrow();
        let (trigger, lane, kept, stop) =
            (state.trigger.clone(), state.policy.lane(), Shard::state_for_run(&state), state.stop.clone());
        let config = &self.shared.config;
        let limits = trigger.def.limits.over(config.limits);
        let deadline = if lane == Lane::Inline { config.inline_deadline } else { limits.run_time };
        let mut event_of_run = event.what.clone();
        if trigger.def.api.missing_columns == MissingColumns::None {
            self.name_all_columns(&trigger.def.db, &mut event_of_run);
        }
        RunRequest {
            run_id: self.shared.next_run(),
            trigger,
            event: event_of_run,
            shard: self.id,
            lane,
            deadline,
            limits,
            received: event.received,
            depth: event.depth,
            attempt: event.attempt,
            test_host: None,
            state: kept,
            stop,
            may_move: state.policy.may_move(),
            long: state.policy.long().0,
        }
    }

    /// Says which columns the tables of an event have by now.
    fn name_all_columns(&self, db: &str, event: &mut RunEvent) {
        let RunEvent::Writes(tables) = event else { return };
        for table in tables {
            let entry = self.shared.directory.get(db, &table.table);
            table.all_columns =
                entry.map(|entry| entry.schema().columns().iter().map(|column| column.name.clone()).collect());
        }
    }

    fn without_python(&self, state: &State, event: &Event) {
        let mut state = state.borrow_mut();
        state.running -= 1;
        state.measured.errors += 1;
        let text = "not run: Python is not available in this server; see the log of its start";
        state.measured.last_error = Some(text.to_owned());
        self.log_for(&state.trigger, LogLevel::Error, text.to_owned());
        requests::answer(event, Err(RequestError::Unavailable(text.to_owned())));
        if let RunEvent::Schedule(call) = &event.what {
            self.called(&mut state, call.scheduled_ns);
        }
        self.freed(&state);
    }

    /// Takes finished deferred runs for ever.
    pub async fn take_finished(self: Rc<Self>, finished: Arc<Finished>, under_way: Rc<UnderWay>) {
        loop {
            let report = match poll_fn(|cx| finished.poll_next(cx)).await {
                Told::Finished(report) => *report,
                Told::Prepared => {
                    self.triggers.borrow().ask_again();
                    self.warm_up();
                    self.runnable.notify();
                    continue;
                }
            };
            let known = under_way.borrow_mut().remove(&report.request.run_id);
            if let Some((state, began)) = known {
                // A wish that found the workers' queue full may find room.
                self.triggers.borrow().ask_again();
                let lane = report.request.lane;
                self.finish(&state, lane, began, report);
            } else {
                self.triggers.borrow().ask_again();
                self.runnable.notify();
                self.take_test(report);
            }
        }
    }

    /// Measures, logs, and sends the results on their way.
    fn finish(self: &Rc<Self>, state: &State, lane: Lane, began: Began, report: RunReport) {
        if let Some(cause) = report.request.stop.cause() {
            return self.stopped_early(state, lane, began, report, cause);
        }
        let Began { handed_over, first_rows, replayed, late } = began;
        let mut report = report;
        if self.judge(state, lane, first_rows, &report) {
            report.unwound =
                report.result.as_ref().err().and_then(PluginError::refused_import).map(Unwound::ImportRefused);
        }
        if report.result.as_ref().is_err_and(|error| error.kind == PluginError::STOPPED) {
            report.unwound = Some(Unwound::Stopped);
        }
        state.borrow_mut().charge(report.cost_ns, lane, report.memory);
        let RunReport { request, result, writes, response, state: changes, entered, finished, unwound, memory, .. } =
            report;
        let RunRequest { run_id, trigger, event: what, received, depth, attempt, .. } = request;
        let event = Event { what, received, handed_over, depth, attempt, first_rows, replayed, late };
        let run = Ended { run_id, trigger, event, response };
        let def = &run.trigger.def;
        let record =
            |what| self.shared.host.record(RunRecord { db: def.db.clone(), trigger: def.name.clone(), lane, what });
        // Nobody but the policy could run it elsewhere.
        let again = |why: &Unwound| {
            // Somebody waits for a request, and may have seen what it did: nothing of it is made twice but what was undone.
            let is_request = matches!(run.event.what, RunEvent::Request(_));
            let given_up = matches!(why, Unwound::InterpreterLost | Unwound::Stopped | Unwound::Changed);
            if is_request && (given_up || requests::is_begun(&run.event)) {
                return false;
            }
            let moves = matches!(why, Unwound::Import(_) | Unwound::ImportRefused(_) | Unwound::LivesIn { .. });
            let always = given_up || moves;
            always || def.execution == Execution::Auto
        };
        let lost = unwound.as_ref().filter(|why| !again(why)).cloned();
        if let Some(why) = unwound.filter(again) {
            return self.discarded(state, run, lane, why);
        }
        let run_ns = entered.map_or(0, |entered| finished.since(entered));
        let activation_ns = entered.map(|entered| entered.since(received));
        let rows = run.event.rows();
        let error = result.as_ref().err().map(|error| error.message.clone());
        let of_write = matches!(run.event.what, RunEvent::Writes(_)) && !replayed;
        let received_at = of_write.then_some(received);
        record(RunOutcome::Ended {
            run_id,
            attempt,
            rows,
            received: received_at,
            activation_ns,
            run_ns,
            memory,
            error,
        });
        {
            let mut state = state.borrow_mut();
            state.running -= 1;
            let m = &mut state.measured;
            if let Some(entered) = entered {
                // A repetition says how long its trigger paused, not how fast it was activated.
                if attempt == 0 && !replayed && !late {
                    m.activation.record(entered.since(received));
                }
                m.queue.record(entered.since(handed_over));
                m.run.record(run_ns);
            }
        }
        match result {
            Ok(()) if writes.is_empty() && changes.is_empty() => {
                let mut inner = state.borrow_mut();
                inner.measured.finished(&run.event);
                self.done(&mut inner, &run.event);
                self.answer(&mut inner, run);
            }
            Ok(()) => self.write_back(state.clone(), run, writes, changes),
            Err(error) => {
                // What was written synchronously stays, whatever the run came to.
                if !writes.is_empty() {
                    self.write_what_stays(state.clone(), &run, writes);
                }
                state.borrow_mut().measured.finished(&run.event);
                self.plugin_failed(state, run, entered.is_some(), lost, error);
            }
        }
        self.freed(&state.borrow());
        self.let_go_of_state(&mut state.borrow_mut());
        self.runnable.notify();
        self.drained.notify();
    }

    /// A run is over whose trigger was deleted, disabled or changed while it was under way. Nothing of it counts: an event of a trigger that
    /// was changed is run again, one of a trigger that is gone is given up as those that waited.
    fn stopped_early(self: &Rc<Self>, state: &State, lane: Lane, began: Began, report: RunReport, cause: StopCause) {
        state.borrow_mut().charge(report.cost_ns, lane, report.memory);
        let RunRequest { run_id, trigger, event: what, received, depth, attempt, .. } = report.request;
        let Began { handed_over, first_rows, replayed, late } = began;
        let event = Event { what, received, handed_over, depth, attempt, first_rows, replayed, late };
        let run = Ended { run_id, trigger, event, response: None };
        self.counters.runs_discarded.add(1);
        let (db, name) = (run.trigger.def.db.clone(), run.trigger.def.name.clone());
        let what = RunOutcome::Discarded { run_id, why: Unwound::Changed };
        self.shared.host.record(RunRecord { db, trigger: name, lane, what });
        let is_request = matches!(run.event.what, RunEvent::Request(_));
        let text = match cause {
            StopCause::Gone => {
                "the run was interrupted because its trigger was disabled or deleted: nothing of it is written, and its event is not given again"
            }
            StopCause::Changed if is_request => {
                "the run was interrupted because its trigger was changed: nothing of it is written; ask again"
            }
            StopCause::Changed => {
                "the run was interrupted because its trigger was changed: nothing of it is written, and its event is run again"
            }
        };
        self.log_run(&run, LogLevel::Warn, text.to_owned());
        requests::answer(&run.event, Err(RequestError::Unavailable(text.to_owned())));
        let mut inner = state.borrow_mut();
        inner.running -= 1;
        inner.measured.discarded += 1;
        if is_request {
            self.done(&mut inner, &run.event);
        } else if cause == StopCause::Changed && !inner.stopped {
            inner.put_back(run.event);
        }
        self.freed(&inner);
        self.let_go_of_state(&mut inner);
        drop(inner);
        self.runnable.notify();
        self.drained.notify();
    }

    /// A run has left nothing behind; its event is run again, here or, if the server stops, in its next life.
    fn discarded(self: &Rc<Self>, state: &State, run: Ended, lane: Lane, why: Unwound) {
        self.counters.runs_discarded.add(1);
        let at_stop = why == Unwound::Stopped;
        let (db, trigger) = (run.trigger.def.db.clone(), run.trigger.def.name.clone());
        let what = RunOutcome::Discarded { run_id: run.run_id, why };
        self.shared.host.record(RunRecord { db, trigger, lane, what });
        if at_stop {
            const LATER: &str =
                "the run was interrupted because the server stops; its event is given again after the start";
            self.log_run(&run, LogLevel::Warn, LATER.to_owned());
        }
        let mut inner = state.borrow_mut();
        inner.running -= 1;
        inner.measured.discarded += 1;
        // What is not finished at the end is in no cursor: the next life gives it.
        if !inner.stopped && !at_stop {
            inner.put_back(run.event);
        }
        self.freed(&inner);
        self.let_go_of_state(&mut inner);
        self.runnable.notify();
        self.drained.notify();
    }

    /// A run failed: tells whoever asked, and goes on as for any failure. `lost` is why a run that would have been made again is not.
    fn plugin_failed(
        self: &Rc<Self>,
        state: &State,
        run: Ended,
        entered: bool,
        lost: Option<Unwound>,
        mut error: PluginError,
    ) {
        let told = match lost {
            // The text of a run that was to be made again is for nobody.
            Some(why) if matches!(run.event.what, RunEvent::Request(_)) => {
                error.message = format!("the run was given up: {why}");
                RequestError::Unavailable(error.message.clone())
            }
            _ => requests::request_error(&error, entered),
        };
        requests::answer(&run.event, Err(told));
        let PluginError { kind, message, traceback } = error;
        let mut text = format!("{}: {message}", run.event.what.kind().failure());
        if !traceback.is_empty() {
            text.push('\n');
            text.push_str(&traceback);
        }
        let in_force = state.borrow().policy.lane();
        let no_refuge = kind == PluginError::STUCK && in_force != Lane::Process;
        let failed = Failed { message, traceback, text, disable: no_refuge };
        self.failed(state, run, failed);
    }

    /// Lets the policy learn from a run; whether it has moved the trigger to the process lane, as that is where its modules load.
    fn judge(&self, state: &State, lane: Lane, first_rows: usize, report: &RunReport) -> bool {
        let mut inner = state.borrow_mut();
        if let Some(code) = &report.code
            && inner.code != Some(code.hash)
            && !is_outdated(&inner, code.hash)
        {
            if inner.code.is_some() {
                let found = self.plugins.borrow().as_deref().map(|plugins| new_code(plugins, code.hash));
                self.observe(&mut inner, found.unwrap_or(Observation::CodeChanged));
            }
            inner.code = Some(code.hash);
            self.observe(&mut inner, Observation::Checked(code.inline.clone()));
        }
        let took = Duration::from_nanos(report.cost_ns);
        if let Some(module) = report.result.as_ref().err().and_then(PluginError::refused_import) {
            self.observe(&mut inner, Observation::ImportRefused(module));
            return lane != Lane::Process && inner.policy.lane() == Lane::Process;
        }
        let failed_with = |kind: &str| report.result.as_ref().is_err_and(|error| error.kind == kind);
        if failed_with(PluginError::STUCK) {
            self.observe(&mut inner, Observation::Stuck);
            return false;
        }
        if failed_with(PluginError::STOPPED) {
            return false;
        }
        let overran = failed_with("PluginTimeout");
        if overran || matches!(report.unwound, Some(Unwound::Overran)) {
            // It may have been put there meanwhile.
            inner.quarantine_asked = None;
        }
        let observation = match (&report.unwound, &report.reached) {
            (Some(Unwound::Blocked(what)), _) | (None, Some(what)) => Observation::Blocked(what.clone()),
            (Some(Unwound::Overran), _) => Observation::Overran(took),
            (Some(Unwound::CacheNotPlain), _) => Observation::CachePlain(false),
            (Some(Unwound::LivesIn { room, what }), _) => Observation::LivesIn { room: *room, what: what.clone() },
            (Some(Unwound::Import(_) | Unwound::ImportRefused(_)), _) => return false,
            (Some(Unwound::InterpreterLost | Unwound::Stopped | Unwound::Changed), _) => return false,
            (None, None) if overran => Observation::Overran(took),
            (None, None) => {
                let rows = report.request.event.rows();
                Observation::Ran(Cost { nanoseconds: report.cost_ns, rows, event_rows: first_rows })
            }
        };
        self.observe(&mut inner, observation);
        if lane != Lane::Inline {
            return false;
        }
        let overspent = self.inline_budget.borrow_mut().charge(inner.trigger.def.id, report.cost_ns, report.finished);
        drop(inner);
        if let Some(Overspent { by, share_percent }) = overspent
            && let Some(costliest) = self.triggers.borrow().find(by)
        {
            self.observe(&mut costliest.borrow_mut(), Observation::OverBudget { share_percent });
        }
        false
    }

    /// A run is over, and what it wrote is durable: whoever asked gets the answer.
    pub(super) fn answer(&self, state: &mut TriggerState, run: Ended) {
        let Ended { event, response: Some(response), .. } = run else { return };
        requests::answer(&event, Ok(response));
        state.measured.response.record(mono_now().since(event.received));
    }

    pub(super) fn log_run(&self, run: &Ended, level: LogLevel, text: String) {
        let def = &run.trigger.def;
        let (db, trigger) = (def.db.clone(), def.name.clone());
        self.shared.host.log(LogLine { db, trigger, run_id: run.run_id, level, text: LogText::Said(text) });
    }

    /// A run failed, or the writing of its results: counts, logs, and does what the trigger's error behaviour asks.
    pub(super) fn failed(self: &Rc<Self>, state: &State, run: Ended, failed: Failed) {
        let Failed { mut message, traceback, text, disable } = failed;
        self.counters.runs_failed.add(1);
        self.log_run(&run, LogLevel::Error, text);
        let mut inner = state.borrow_mut();
        inner.measured.errors += 1;
        inner.measured.last_error = Some(message.clone());
        // The settings of now: the user may have changed them while the run was under way.
        let mut behavior = match run.event.what {
            RunEvent::Writes(_) | RunEvent::Schedule(_) => inner.trigger.def.error_behavior,
            // Whoever asked has the error, and may ask again (reference, 1.7).
            RunEvent::Request(_) => ErrorBehavior::Log,
        };
        if disable {
            behavior = ErrorBehavior::Disable;
            message.push_str(
                "; isolation=interpreter keeps the trigger out of the process lane, where such a run can be ended",
            );
        }
        match behavior {
            ErrorBehavior::Log => self.done(&mut inner, &run.event),
            ErrorBehavior::Retry if run.event.attempt < RETRIES_MAX => self.retry(&mut inner, state.clone(), run),
            ErrorBehavior::Retry => {
                inner.measured.events_failed += 1;
                self.counters.events_failed.add(1);
                self.give_up(&mut inner, &run, Reason::Failed, (message, traceback));
            }
            ErrorBehavior::Disable => {
                self.give_up(&mut inner, &run, Reason::Disabled, (message.clone(), traceback));
                let given_up = self.give_up_queue(&mut inner);
                let text = match run.event.what {
                    RunEvent::Writes(_) => format!(
                        "the trigger is disabled; the event is a dead letter and {given_up} waiting ones are given up; when the cause is removed, enable it, and replay the event with: saltus replay"
                    ),
                    RunEvent::Schedule(_) | RunEvent::Request(_) => format!(
                        "the trigger is disabled, and {given_up} waiting calls are given up; when the cause is removed, enable it"
                    ),
                };
                self.log_run(&run, LogLevel::Error, text);
                self.shared.host.disable(&inner.trigger.def, message);
            }
        }
    }

    /// An event is not tried again, and that is said unless its trigger ends with it. Rows that were written become a dead
    /// letter.
    fn give_up(self: &Rc<Self>, inner: &mut TriggerState, run: &Ended, reason: Reason, failed: (String, String)) {
        let attempts = run.event.attempt + 1;
        match &run.event.what {
            RunEvent::Writes(tables) => {
                let rows = run.event.rows();
                if reason == Reason::Failed {
                    self.log_run(run, LogLevel::Error, format!("the event is a dead letter after {attempts} attempts ({rows} rows): the rows are in their tables, only the plugin has not taken them; see system.dead_letters, and when the cause is removed: saltus replay"));
                }
                let (error, traceback) = failed;
                let failure = Failure { reason, run_id: run.run_id, attempts, error, traceback };
                self.bury(&run.trigger, tables, failure);
                self.done(inner, &run.event);
                // Into the frame of the dead letter.
                self.write_cursors_of(inner);
            }
            RunEvent::Schedule(call) => {
                if reason == Reason::Failed {
                    self.log_run(
                        run,
                        LogLevel::Error,
                        format!(
                            "the call scheduled for {call} is given up after {attempts} attempts; the schedule goes on"
                        ),
                    );
                }
                self.done(inner, &run.event);
            }
            RunEvent::Request(_) => self.done(inner, &run.event),
        }
    }

    /// Has the event run again after a pause. An ordered trigger waits meanwhile.
    fn retry(self: &Rc<Self>, inner: &mut TriggerState, state: State, run: Ended) {
        let attempt = run.event.attempt + 1;
        let pause = retry_pause(attempt, self.random());
        inner.retrying += 1;
        inner.measured.retries += 1;
        self.counters.runs_retried.add(1);
        self.log_run(
            &run,
            LogLevel::Warn,
            format!("attempt {attempt} of {} failed; the next one is in {pause:?}", RETRIES_MAX + 1),
        );
        let shard = self.clone();
        self.spawn(async move {
            crate::io::net::sleep(pause).await;
            {
                let mut state = state.borrow_mut();
                state.retrying -= 1;
                if !state.stopped {
                    state.put_back(Event { attempt, handed_over: mono_now(), ..run.event });
                }
            }
            shard.runnable.notify();
        });
    }

    /// A number that nobody can foresee, for jitter.
    fn random(&self) -> u64 {
        std::hash::BuildHasher::hash_one(&self.chance, mono_now().0)
    }
}
