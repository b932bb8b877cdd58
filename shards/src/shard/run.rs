//! Runs: from an event that is due to a plugin that has run and results that are written.
//!
//! One task per shard makes the runs. Between two inline runs it lets other tasks of the shard go on. Deferred runs come
//! back through [`super::Finished`]; a second task takes them. No borrow of the shard is held while a plugin runs.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use saltus_core::ids::{MonoNs, RunId};
use saltus_core::limits::RETRIES_MAX;
use saltus_core::line_protocol::Precision;
use saltus_core::policy::{Cost, Lane, Observation, Overspent};
use saltus_core::ports::{
    LogLevel, LogLine, LogText, PluginError, QueuedWrite, Readiness, RunEvent, RunOutcome, RunRecord, RunReport,
    RunRequest, ShardPlugins, Trigger, Unwound,
};
use saltus_core::trigger::{ErrorBehavior, Execution, retry_pause};

use crate::api::{WriteOutcome, WriteRequest};
use crate::clock::mono_now;

use super::arrive::Room;
use super::triggers::{Due, Event, TriggerState, run_event};
use super::{Finished, Shard, Told};

type State = Rc<RefCell<TriggerState>>;
/// Of the event of a run: when it was handed over, and the rows of the first event in it.
type Began = (MonoNs, usize);

/// A run that is over.
struct Ended {
    run_id: RunId,
    trigger: Arc<Trigger>,
    event: Event,
}

/// A deferred run under way: what is needed when it comes back.
pub(crate) type UnderWay = RefCell<std::collections::HashMap<RunId, (State, Began)>>;

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

    fn next_due(&self) -> Option<Due> {
        self.triggers.borrow_mut().due(self.id, self.shared.config.run_rows_max)
    }

    /// False if the deferred workers' queue is full: a completion will wake us.
    fn start(self: &Rc<Self>, due: Due, under_way: &Rc<UnderWay>) -> bool {
        let Due { state, event } = due;
        let Some(mut plugins) = self.plugins.borrow_mut().take() else {
            self.without_python(&state);
            return true;
        };
        if !self.ready(&state, plugins.as_mut()) {
            *self.plugins.borrow_mut() = Some(plugins);
            self.counters.runs_waited.add(1);
            let mut state = state.borrow_mut();
            state.running -= 1;
            state.preparing = true;
            state.put_back(event);
            return true;
        }
        let request = self.request(&state, &event);
        let (handed_over, first_rows) = (event.handed_over, event.first_rows);
        let inline = state.borrow().policy.lane() == Lane::Inline;
        let refused = if inline {
            let report = plugins.run_inline(request);
            *self.plugins.borrow_mut() = Some(plugins);
            self.finish(&state, Lane::Inline, (handed_over, first_rows), report);
            None
        } else {
            let run_id = request.run_id;
            under_way.borrow_mut().insert(run_id, (state.clone(), (handed_over, first_rows)));
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
        if inner.policy.lane() != Lane::Inline {
            return true;
        }
        let trigger = inner.trigger.clone();
        // New code has earned nothing yet.
        if trigger.def.execution == Execution::Auto && inner.code != Some(trigger.code.current().hash) {
            inner.code = None;
            self.observe(&mut inner, Observation::CodeChanged);
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

    /// Tells the policy, and the world what it decides.
    fn observe(&self, state: &mut TriggerState, observation: Observation) {
        let Some(decision) = state.policy.observe(observation, mono_now()) else { return };
        self.counters.lane_changes.add(1);
        let def = &state.trigger.def;
        let text = format!("lane {} -> {}: {}", decision.from, decision.to, decision.reason);
        self.log_for(&state.trigger, LogLevel::Info, text);
        let (db, trigger) = (def.db.clone(), def.name.clone());
        self.shared.host.record(RunRecord { db, trigger, lane: decision.to, what: RunOutcome::Decided(decision) });
    }

    fn request(&self, state: &State, event: &Event) -> RunRequest {
        let (trigger, lane) = {
            let state = state.borrow();
            (state.trigger.clone(), state.policy.lane())
        };
        let config = &self.shared.config;
        let limits = trigger.def.limits.over(config.limits);
        let deadline = if lane == Lane::Inline { config.inline_deadline } else { limits.run_time };
        RunRequest {
            run_id: self.shared.next_run(),
            trigger,
            event: run_event(event),
            shard: self.id,
            lane,
            deadline,
            limits,
            received: event.received,
            depth: event.depth,
            attempt: event.attempt,
        }
    }

    fn without_python(&self, state: &State) {
        let mut state = state.borrow_mut();
        state.running -= 1;
        state.measured.errors += 1;
        let text = "not run: Python is not available in this server; see the log of its start";
        state.measured.last_error = Some(text.to_owned());
        self.log_for(&state.trigger, LogLevel::Error, text.to_owned());
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
            }
        }
    }

    /// Measures, logs, and sends the results on their way.
    fn finish(self: &Rc<Self>, state: &State, lane: Lane, (handed_over, first_rows): Began, report: RunReport) {
        let mut report = report;
        if self.judge(state, lane, first_rows, &report) {
            report.unwound =
                report.result.as_ref().err().and_then(PluginError::refused_import).map(Unwound::ImportRefused);
        }
        let RunReport { request, result, writes, entered, finished, unwound, .. } = report;
        let RunRequest { run_id, trigger, event: RunEvent::Writes(tables), received, depth, attempt, .. } = request;
        let run = Ended { run_id, trigger, event: Event { tables, received, handed_over, depth, attempt, first_rows } };
        let def = &run.trigger.def;
        let record =
            |what| self.shared.host.record(RunRecord { db: def.db.clone(), trigger: def.name.clone(), lane, what });
        // Nobody but the policy could run it elsewhere.
        let again = |why: &Unwound| {
            def.execution == Execution::Auto || matches!(why, Unwound::Import(_) | Unwound::ImportRefused(_))
        };
        if let Some(why) = unwound.filter(again) {
            self.counters.runs_discarded.add(1);
            record(RunOutcome::Discarded { run_id, why });
            let mut inner = state.borrow_mut();
            inner.running -= 1;
            inner.measured.discarded += 1;
            if !inner.stopped {
                inner.put_back(run.event);
            }
            self.runnable.notify();
            return;
        }
        let run_ns = entered.map_or(0, |entered| finished.since(entered));
        let activation_ns = entered.map(|entered| entered.since(received));
        let rows = run.event.rows();
        let error = result.as_ref().err().map(|error| error.message.clone());
        record(RunOutcome::Ended { run_id, attempt, rows, activation_ns, run_ns, error });
        {
            let mut state = state.borrow_mut();
            state.running -= 1;
            let m = &mut state.measured;
            m.runs += 1;
            m.rows += rows as u64;
            if let Some(entered) = entered {
                // A repetition says how long its trigger paused, not how fast it was activated.
                if attempt == 0 {
                    m.activation.saturating_record(entered.since(received).max(1));
                }
                m.queue.saturating_record(entered.since(handed_over).max(1));
                m.run.saturating_record(run_ns.max(1));
            }
        }
        match result {
            Ok(()) if writes.is_empty() => self.done(&mut state.borrow_mut(), &run.event),
            Ok(()) => self.write_back(state.clone(), run, writes),
            Err(error) => {
                let mut text = format!("error executing wal plugin: {}", error.message);
                if !error.traceback.is_empty() {
                    text.push('\n');
                    text.push_str(&error.traceback);
                }
                self.failed(state, run, error.message, text);
            }
        }
        self.runnable.notify();
        self.drained.notify();
    }

    /// Lets the policy learn from a run; whether it has moved the trigger to the process lane, as that is where its modules load.
    fn judge(&self, state: &State, lane: Lane, first_rows: usize, report: &RunReport) -> bool {
        let mut inner = state.borrow_mut();
        if let Some(code) = &report.code
            && inner.code != Some(code.hash)
        {
            if inner.code.is_some() {
                self.observe(&mut inner, Observation::CodeChanged);
            }
            inner.code = Some(code.hash);
            self.observe(&mut inner, Observation::Checked(code.inline.clone()));
        }
        let took = Duration::from_nanos(report.cost_ns);
        if let Some(module) = report.result.as_ref().err().and_then(PluginError::refused_import) {
            self.observe(&mut inner, Observation::ImportRefused(module));
            return lane != Lane::Process && inner.policy.lane() == Lane::Process;
        }
        let overran = report.result.as_ref().is_err_and(|error| error.kind == "PluginTimeout");
        let observation = match (&report.unwound, &report.reached) {
            (Some(Unwound::Blocked(what)), _) | (None, Some(what)) => Observation::Blocked(what.clone()),
            (Some(Unwound::Overran), _) => Observation::Overran(took),
            (Some(Unwound::CacheNotPlain), _) => Observation::CachePlain(false),
            (Some(Unwound::Import(_) | Unwound::ImportRefused(_)), _) => return false,
            (None, None) if overran => Observation::Overran(took),
            (None, None) => {
                let RunEvent::Writes(tables) = &report.request.event;
                let rows = tables.iter().map(|t| t.batch.rows()).sum();
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

    fn log_run(&self, run: &Ended, level: LogLevel, text: String) {
        let def = &run.trigger.def;
        let (db, trigger) = (def.db.clone(), def.name.clone());
        self.shared.host.log(LogLine { db, trigger, run_id: run.run_id, level, text: LogText::Said(text) });
    }

    /// A run failed, or the writing of its results: counts, logs `text`, and does what the trigger's error behaviour asks.
    fn failed(self: &Rc<Self>, state: &State, run: Ended, message: String, text: String) {
        self.counters.runs_failed.add(1);
        self.log_run(&run, LogLevel::Error, text);
        let mut inner = state.borrow_mut();
        inner.measured.errors += 1;
        inner.measured.last_error = Some(message.clone());
        // The settings of now: the user may have changed them while the run was under way.
        match inner.trigger.def.error_behavior {
            ErrorBehavior::Log => self.done(&mut inner, &run.event),
            ErrorBehavior::Retry if run.event.attempt < RETRIES_MAX => self.retry(&mut inner, state.clone(), run),
            ErrorBehavior::Retry => {
                self.done(&mut inner, &run.event);
                inner.measured.events_failed += 1;
                self.counters.events_failed.add(1);
                let attempts = run.event.attempt + 1;
                let rows = run.event.rows();
                self.log_run(&run, LogLevel::Error, format!("the event is given up after {attempts} attempts ({rows} rows); the rows are in their tables, only the plugin has not seen them"));
            }
            ErrorBehavior::Disable => {
                let given_up = inner.stop();
                inner.measured.events_failed += 1;
                inner.measured.events_dropped += given_up as u64;
                self.counters.events_failed.add(1);
                self.counters.events_dropped.add(given_up as u64);
                self.log_run(&run, LogLevel::Error, format!("the trigger is disabled, as its error behaviour asks; {given_up} waiting events are given up; enable it when the cause is removed"));
                self.shared.host.disable(&inner.trigger.def, message);
            }
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

    /// Writes what a run queued. Waits for room, never drops; a failure is an error of the run.
    fn write_back(self: &Rc<Self>, state: State, run: Ended, writes: Vec<QueuedWrite>) {
        state.borrow_mut().writing_back += 1;
        let shard = self.clone();
        self.spawn(async move {
            let mut failure = None;
            for write in writes {
                let db = write.db.clone();
                if let Err(why) = shard.write_lines(write, run.event.depth).await {
                    let text =
                        format!("error running wal plugin: error writing back lines to {db}: Cannot write: {why}");
                    if let Some(before) = failure.replace(text) {
                        shard.log_run(&run, LogLevel::Error, before);
                    }
                }
            }
            state.borrow_mut().writing_back -= 1;
            match failure {
                Some(text) => shard.failed(&state, run, text.clone(), text),
                None => shard.done(&mut state.borrow_mut(), &run.event),
            }
            shard.runnable.notify();
            shard.drained.notify();
        });
    }

    async fn write_lines(self: &Rc<Self>, write: QueuedWrite, depth: u8) -> Result<(), String> {
        saltus_core::names::check_db_name(&write.db).map_err(|_| format!("invalid database name: {}", write.db))?;
        let request = WriteRequest {
            db: write.db,
            body: write.lines.into_bytes().into(),
            precision: Precision::Nanosecond,
            accept_partial: false,
            no_sync: false,
            received: mono_now(),
        };
        match self.write(request, depth.saturating_add(1), Room::Wait).await {
            WriteOutcome::Written { .. } | WriteOutcome::Empty => Ok(()),
            WriteOutcome::Rejected(error) => {
                Err(format!("line protocol parse failed: {} (line {})", error.message, error.line_number))
            }
            WriteOutcome::Partial { rejected_count, .. } => Err(format!("{rejected_count} lines were refused")),
            WriteOutcome::Busy { what, .. } => Err(what),
            WriteOutcome::Unavailable { reason } => Err(reason),
        }
    }
}
