//! Runs: from an event that is due to a plugin that has run and results that are written.
//!
//! One task per shard makes the runs. Between two inline runs it lets other tasks of the shard go on. Deferred runs come
//! back through [`super::Finished`]; a second task takes them. No borrow of the shard is held while a plugin runs.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use saltus_core::ids::MonoNs;
use saltus_core::line_protocol::Precision;
use saltus_core::ports::{LogLevel, LogLine, LogText, PluginError, QueuedWrite, RunReport, RunRequest};
use saltus_core::trigger::Execution;

use crate::api::{WriteOutcome, WriteRequest};
use crate::clock::mono_now;

use super::arrive::Room;
use super::triggers::{Due, Event, TriggerState, run_event};
use super::{Finished, Shard};

type State = Rc<RefCell<TriggerState>>;

/// A deferred run under way: what is needed when it comes back.
pub(crate) type UnderWay = RefCell<std::collections::HashMap<saltus_core::ids::RunId, (State, MonoNs)>>;

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
        let inline = request.trigger.def.execution == Execution::Inline;
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
        let trigger = state.borrow().trigger.clone();
        let config = &self.shared.config;
        let deadline = match trigger.def.execution {
            Execution::Inline => config.inline_deadline,
            Execution::Deferred => config.deferred_deadline,
        };
        RunRequest {
            run_id: self.shared.next_run(),
            trigger,
            event: run_event(event),
            deadline,
            received: event.received,
            depth: event.depth,
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
        let ok = result.is_ok();
        {
            let mut state = state.borrow_mut();
            state.running -= 1;
            let m = &mut state.measured;
            m.runs += 1;
            let saltus_core::ports::RunEvent::Writes(tables) = &request.event;
            m.rows += tables.iter().map(|t| t.batch.rows() as u64).sum::<u64>();
            if let Some(entered) = entered {
                m.activation.saturating_record(entered.since(request.received).max(1));
                m.queue.saturating_record(entered.since(handed_over).max(1));
                m.run.saturating_record(finished.since(entered).max(1));
            }
            if let Err(error) = &result {
                m.errors += 1;
                m.last_error = Some(error.message.clone());
            }
        }
        if let Err(error) = result {
            self.log_failure(&request, &error);
        }
        if ok && !writes.is_empty() {
            self.write_back(state.clone(), request, writes);
        }
        self.runnable.notify();
        self.drained.notify();
    }

    fn log_failure(&self, request: &RunRequest, error: &PluginError) {
        self.counters.runs_failed.add(1);
        let mut text = format!("error executing wal plugin: {}", error.message);
        if !error.traceback.is_empty() {
            text.push('\n');
            text.push_str(&error.traceback);
        }
        self.log_run(request, LogLevel::Error, text);
    }

    fn log_run(&self, request: &RunRequest, level: LogLevel, text: String) {
        let def = &request.trigger.def;
        let (db, trigger) = (def.db.clone(), def.name.clone());
        self.shared.host.log(LogLine { db, trigger, run_id: request.run_id, level, text: LogText::Said(text) });
    }

    /// Writes what a run queued. Waits for room, never drops; a failure is an error of the run.
    fn write_back(self: &Rc<Self>, state: State, request: RunRequest, writes: Vec<QueuedWrite>) {
        state.borrow_mut().writing_back += 1;
        let shard = self.clone();
        self.spawn(async move {
            for write in writes {
                let db = write.db.clone();
                if let Err(why) = shard.write_lines(write, request.depth).await {
                    shard.counters.runs_failed.add(1);
                    let text =
                        format!("error running wal plugin: error writing back lines to {db}: Cannot write: {why}");
                    state.borrow_mut().measured.errors += 1;
                    state.borrow_mut().measured.last_error = Some(text.clone());
                    shard.log_run(&request, LogLevel::Error, text);
                }
            }
            state.borrow_mut().writing_back -= 1;
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
