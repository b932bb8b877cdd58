//! Runs: from an event that is due to a plugin that has run and results that are written.
//!
//! One task per shard makes the runs. Between two inline runs it lets other tasks of the shard go on. Deferred runs come
//! back through [`super::Finished`]; a second task takes them. No borrow of the shard is held while a plugin runs.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use saltus_core::ids::{MonoNs, RunId};
use saltus_core::limits::RETRIES_MAX;
use saltus_core::line_protocol::Precision;
use saltus_core::policy::Lane;
use saltus_core::ports::{LogLevel, LogLine, LogText, QueuedWrite, RunEvent, RunReport, RunRequest, Trigger};
use saltus_core::trigger::{ErrorBehavior, retry_pause};

use crate::api::{WriteOutcome, WriteRequest};
use crate::clock::mono_now;

use super::arrive::Room;
use super::triggers::{Due, Event, TriggerState, run_event};
use super::{Finished, Shard};

type State = Rc<RefCell<TriggerState>>;

/// A run that is over.
struct Ended {
    run_id: RunId,
    trigger: Arc<Trigger>,
    event: Event,
}

/// A deferred run under way: what is needed when it comes back.
pub(crate) type UnderWay = RefCell<std::collections::HashMap<RunId, (State, MonoNs)>>;

impl Shard {
    /// Makes runs for ever.
    pub async fn make_runs(self: Rc<Self>, under_way: Rc<UnderWay>) {
        loop {
            self.runnable.notified().await;
            while let Some(due) = self.next_due() {
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
        let request = self.request(&state, &event);
        let handed_over = event.handed_over;
        let Some(mut plugins) = self.plugins.borrow_mut().take() else {
            self.without_python(&state);
            return true;
        };
        let inline = state.borrow().policy.lane() == Lane::Inline;
        let refused = if inline {
            let report = plugins.run_inline(request);
            *self.plugins.borrow_mut() = Some(plugins);
            self.finish(&state, handed_over, report);
            None
        } else {
            let run_id = request.run_id;
            under_way.borrow_mut().insert(run_id, (state.clone(), handed_over));
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

    fn request(&self, state: &State, event: &Event) -> RunRequest {
        let (trigger, lane) = {
            let state = state.borrow();
            (state.trigger.clone(), state.policy.lane())
        };
        let config = &self.shared.config;
        let deadline = if lane == Lane::Inline { config.inline_deadline } else { config.deferred_deadline };
        RunRequest {
            run_id: self.shared.next_run(),
            trigger,
            event: run_event(event),
            lane,
            deadline,
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
            let report = poll_fn(|cx| finished.poll_next(cx)).await;
            let known = under_way.borrow_mut().remove(&report.request.run_id);
            if let Some((state, handed_over)) = known {
                self.finish(&state, handed_over, report);
            }
        }
    }

    /// Measures, logs, and sends the results on their way.
    fn finish(self: &Rc<Self>, state: &State, handed_over: MonoNs, report: RunReport) {
        let RunReport { request, result, writes, entered, finished } = report;
        let RunRequest { run_id, trigger, event: RunEvent::Writes(tables), received, depth, attempt, .. } = request;
        let run = Ended { run_id, trigger, event: Event { tables, received, handed_over, depth, attempt } };
        {
            let mut state = state.borrow_mut();
            state.running -= 1;
            let m = &mut state.measured;
            m.runs += 1;
            m.rows += run.event.rows() as u64;
            if let Some(entered) = entered {
                // A repetition says how long its trigger paused, not how fast it was activated.
                if attempt == 0 {
                    m.activation.saturating_record(entered.since(received).max(1));
                }
                m.queue.saturating_record(entered.since(handed_over).max(1));
                m.run.saturating_record(finished.since(entered).max(1));
            }
        }
        match result {
            Ok(()) if writes.is_empty() => {}
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
            ErrorBehavior::Log => {}
            ErrorBehavior::Retry if run.event.attempt < RETRIES_MAX => self.retry(&mut inner, state.clone(), run),
            ErrorBehavior::Retry => {
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
            if let Some(text) = failure {
                shard.failed(&state, run, text.clone(), text);
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
