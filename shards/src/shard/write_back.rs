//! The results of a run, and the cursor that says that its event is finished.
//!
//! What a run wrote to tables of other shards is durable before the cursor is written; what it wrote to tables of its own shard, and
//! what it changed of its trigger's state, is in the same frame as the cursor, so that a crash takes either all or none (design,
//! "Delivery").
//!
//! **Refused lines.** A line takes no other with it: the rest of a run's output is written, and the line is shown in the log. If
//! its own text is wrong, another attempt would make it again, so the run counts as successful (a request is answered with the
//! refusal: somebody hears it). If its table refuses it, the run has failed, and the trigger's error behaviour decides; with
//! `retry` nothing is written then, since the next attempt would write the other lines once more.
//!
//! **A full disk** is no failure of a run: what it wrote waits until there is room. If the server stops before, or the trigger goes, the
//! event is not finished, and the next start gives it again. Requests do not wait, since somebody else does: they are answered with 503.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::oneshot;
use saltus_core::batch::PendingBatch;
use saltus_core::limits::REFUSED_LINES_SHOWN_MAX;
use saltus_core::line_protocol::{LineError, ParsedWrite, Precision, RefusedBy};
use saltus_core::ports::{LogLevel, QueuedWrite, RunEvent};
use saltus_core::request::RequestError;
use saltus_core::state::StateChange;
use saltus_core::trigger::ErrorBehavior;

use crate::api::{WriteOutcome, WriteRequest};
use crate::clock::mono_now;

use super::arrive::Room;
use super::requests;
use super::run::{Ended, Failed, State};
use super::{Shard, Verdict, WriteOptions};

type Replies = Vec<oneshot::Receiver<Verdict>>;

/// How long results wait between two looks at a full disk.
const SPACE_POLL: Duration = Duration::from_millis(20);

/// Which of a run's lines are written if some are refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    /// All others.
    Each,
    /// None, if a table refuses one; a line whose own text is wrong does not count.
    AllThatTablesTake,
}

/// One queued write: what of it other shards have, and what is this one's.
struct Part {
    db: Arc<str>,
    options: WriteOptions,
    own: Vec<PendingBatch>,
    others: Replies,
}

/// What could not be written of a run's output.
#[derive(Default)]
struct Unwritten {
    /// The run has failed: why, each in a text of its own.
    failures: Vec<String>,
    /// Lines that are only shown.
    shown: Vec<String>,
    /// And those that are not.
    left_out: usize,
    /// A line that its own text refuses is a failure as well.
    all_fail: bool,
    /// A failure goes by itself: whoever asked may come again.
    unavailable: bool,
    /// Not a failure: nothing is known to be written, because the disk was full until the server stopped.
    later: Option<String>,
}

impl Unwritten {
    fn fail(&mut self, db: &str, why: &str) {
        self.failures.push(failure(db, why));
    }

    /// Lines that were left out of a write.
    fn lines(&mut self, db: &str, rejected: &[LineError], count: usize) {
        for line in rejected {
            let fails = self.all_fail || line.by == RefusedBy::Table;
            let texts = if fails { &mut self.failures } else { &mut self.shown };
            match texts.len() < REFUSED_LINES_SHOWN_MAX {
                true => texts.push(failure(db, &line.refusal())),
                false => self.left_out += 1,
            }
        }
        self.left_out += count.saturating_sub(rejected.len());
    }

    /// The outcome of what was sent.
    fn outcome(&mut self, db: &str, outcome: WriteOutcome) {
        match outcome {
            WriteOutcome::Partial { rejected, rejected_count, .. } => self.lines(db, &rejected, rejected_count),
            other => {
                self.unavailable |= matches!(other, WriteOutcome::Busy { .. } | WriteOutcome::Unavailable { .. });
                if let Err(why) = verdict_of(other) {
                    self.fail(db, &why);
                }
            }
        }
    }

    /// What is said of lines that are not a failure, and of those that are too many to be shown.
    fn take_shown(&mut self) -> Vec<String> {
        let mut shown = std::mem::take(&mut self.shown);
        if self.left_out > 0 {
            shown.push(format!("{} more lines could not be written", self.left_out));
        }
        shown
    }
}

impl Shard {
    /// Writes what a run queued. Waits for room, never drops; a failure is an error of the run.
    pub(super) fn write_back(
        self: &Rc<Self>,
        state: State,
        run: Ended,
        writes: Vec<QueuedWrite>,
        changes: Vec<StateChange>,
    ) {
        let changing = usize::from(!changes.is_empty());
        {
            let mut inner = state.borrow_mut();
            inner.writing_back += 1;
            inner.state_changing += changing;
        }
        let shard = self.clone();
        self.spawn(async move {
            let mut unwritten = Unwritten::default();
            let finished = shard.write_results(&state, &run, writes, changes, &mut unwritten).await;
            {
                let mut inner = state.borrow_mut();
                inner.writing_back -= 1;
                inner.measured.finished(&run.event);
                // If it was finished, they are in the log since.
                inner.state_changing -= if finished { 0 } else { changing };
                shard.let_go_of_state(&mut inner);
            }
            let plugin = run.event.what.kind().plugin();
            let said = |why: String| format!("error running {plugin}: {why}");
            for text in unwritten.take_shown() {
                shard.log_run(&run, LogLevel::Error, said(text));
            }
            if let Some(reason) = unwritten.later.take() {
                shard.log_run(
                    &run,
                    LogLevel::Warn,
                    format!(
                        "the results of the run are not written: {reason}; its event is given again after the start"
                    ),
                );
                shard.freed(&state.borrow());
                return shard.drained.notify();
            }
            let refusal = if unwritten.unavailable { RequestError::Unavailable } else { RequestError::Failed };
            let mut failures: Vec<String> = unwritten.failures.into_iter().map(said).collect();
            let last = failures.pop();
            for text in failures {
                shard.log_run(&run, LogLevel::Error, text);
            }
            match last {
                None => {
                    let mut inner = state.borrow_mut();
                    if !finished {
                        shard.done(&mut inner, &run.event);
                    }
                    shard.answer(&mut inner, run);
                }
                // The log takes no more writes; after a restart the event is given again.
                Some(text) if finished => {
                    requests::answer(&run.event, Err(refusal(text.clone())));
                    shard.log_run(&run, LogLevel::Error, text);
                }
                Some(text) => {
                    requests::answer(&run.event, Err(refusal(text.clone())));
                    let (message, traceback) = (text.clone(), String::new());
                    shard.failed(&state, run, Failed { message, traceback, text, disable: false });
                }
            }
            shard.freed(&state.borrow());
            shard.runnable.notify();
            shard.drained.notify();
        });
    }

    /// Writes what a failed run had written synchronously and an inline lane has held.
    pub(super) fn write_what_stays(self: &Rc<Self>, state: State, run: &Ended, writes: Vec<QueuedWrite>) {
        state.borrow_mut().writing_back += 1;
        let shard = self.clone();
        let run = Ended { run_id: run.run_id, trigger: run.trigger.clone(), event: run.event.clone(), response: None };
        self.spawn(async move {
            for write in writes {
                let db = write.db.clone();
                let mut unwritten = Unwritten::default();
                if let Some(mut part) = shard.send_to_others(&state, write, &run, Lines::Each, &mut unwritten).await {
                    let others = std::mem::take(&mut part.others);
                    shard.settle(&state, &run, &part, others, &mut unwritten).await;
                    let parts = std::slice::from_mut(&mut part);
                    if let Some(own) = shard.accept_own(&state, &run, parts, &mut unwritten).await {
                        shard.log.keep_together(false);
                        shard.settle(&state, &run, &part, own.into_iter().flatten().collect(), &mut unwritten).await;
                    }
                }
                let lost = unwritten.later.take().map(|reason| failure(&db, &reason));
                for why in unwritten.take_shown().into_iter().chain(unwritten.failures).chain(lost) {
                    shard.log_run(&run, LogLevel::Error, why);
                }
            }
            let mut inner = state.borrow_mut();
            inner.writing_back -= 1;
            shard.let_go_of_state(&mut inner);
            drop(inner);
            shard.runnable.notify();
            shard.drained.notify();
        });
    }

    /// True if the event was finished together with the rows.
    async fn write_results(
        self: &Rc<Self>,
        state: &State,
        run: &Ended,
        writes: Vec<QueuedWrite>,
        changes: Vec<StateChange>,
        unwritten: &mut Unwritten,
    ) -> bool {
        if state.borrow().leaving {
            // Its trigger was deleted or disabled since it ended: its tables may be gone as well.
            return true;
        }
        let lines = match run.event.what {
            RunEvent::Request(_) => {
                unwritten.all_fail = true;
                Lines::Each
            }
            RunEvent::Writes(_) | RunEvent::Schedule(_) => match state.borrow().trigger.def.error_behavior {
                ErrorBehavior::Retry => Lines::AllThatTablesTake,
                ErrorBehavior::Log | ErrorBehavior::Disable => Lines::Each,
            },
        };
        let mut parts = Vec::with_capacity(writes.len());
        for write in writes {
            parts.extend(self.send_to_others(state, write, run, lines, unwritten).await);
        }
        for part in &mut parts {
            let others = std::mem::take(&mut part.others);
            self.settle(state, run, part, others, unwritten).await;
        }
        let accepted = match unwritten.later {
            Some(_) => None,
            None => self.accept_own(state, run, &mut parts, unwritten).await,
        };
        let Some(replies) = accepted else {
            // If its trigger has gone meanwhile, nobody is to be given the event again.
            let gone = state.borrow().leaving;
            unwritten.later = unwritten.later.take().filter(|_| !gone);
            return gone;
        };
        // No other task of this shard has had a turn since: the cursor is in the frame of the rows.
        let finished = unwritten.failures.is_empty();
        if finished {
            let mut inner = state.borrow_mut();
            inner.state_changing -= usize::from(!changes.is_empty());
            self.commit_state(&mut inner, changes);
            self.done(&mut inner, &run.event);
            self.write_cursors_of(&mut inner);
            self.write_mark_of(&mut inner);
        }
        self.log.keep_together(false);
        self.runnable.notify();
        for (part, replies) in parts.into_iter().zip(replies) {
            self.settle(state, run, &part, replies, unwritten).await;
        }
        finished
    }

    /// Waits for what becomes of what was sent; what found a full disk is sent again when there is room.
    async fn settle(
        self: &Rc<Self>,
        state: &State,
        run: &Ended,
        part: &Part,
        mut replies: Replies,
        unwritten: &mut Unwritten,
    ) {
        while !replies.is_empty() {
            let mut turned_away = Vec::new();
            let outcome = self.gather(replies, Vec::new(), 0, &mut turned_away).await;
            match outcome {
                WriteOutcome::Unavailable { reason } if part.options.waits && self.stopping() => {
                    unwritten.later = Some(reason);
                }
                outcome => unwritten.outcome(&part.db, outcome),
            }
            if turned_away.is_empty() {
                return;
            }
            if !self.wait_for_room(state, run, part.options).await {
                unwritten.later = Some(self.why_no_room());
                return;
            }
            match self.reserve(&part.db, &turned_away, Room::Wait).await {
                Ok(rooms) => replies = self.send(&part.db, turned_away, rooms, part.options),
                Err(outcome) => return unwritten.outcome(&part.db, outcome),
            }
        }
    }

    /// Waits until there is room on the disk; false if that is in vain, because the server stops or the trigger has gone.
    async fn wait_for_room(&self, state: &State, run: &Ended, options: WriteOptions) -> bool {
        let mut told = false;
        while options.waits && self.shared.faces.iter().any(|face| face.short.load().is_some()) {
            if self.stopping() || state.borrow().leaving {
                return false;
            }
            if !told {
                told = true;
                let text = format!("the results of the run wait for room on the disk: {}", self.why_no_room());
                self.log_run(run, LogLevel::Warn, text);
            }
            crate::io::net::sleep(SPACE_POLL).await;
        }
        true
    }

    fn why_no_room(&self) -> String {
        let short = self.shared.faces.iter().find_map(|face| face.short.load_full());
        short.map_or_else(|| "the disk was full".to_owned(), |reason| reason.to_string())
    }

    /// Parses a write and sends what belongs to tables of other shards; `None` if nothing is left of it.
    async fn send_to_others(
        self: &Rc<Self>,
        state: &State,
        write: QueuedWrite,
        run: &Ended,
        lines: Lines,
        unwritten: &mut Unwritten,
    ) -> Option<Part> {
        if saltus_core::names::check_db_name(&write.db).is_err() {
            unwritten.fail(&write.db, &format!("invalid database name: {}", write.db));
            return None;
        }
        let request = WriteRequest {
            db: write.db,
            body: write.lines.into_bytes().into(),
            precision: Precision::Nanosecond,
            accept_partial: true,
            no_sync: write.no_sync,
            received: mono_now(),
        };
        let whole = lines == Lines::AllThatTablesTake;
        let asked = WriteOptions::of(&request, run.event.depth.saturating_add(1));
        let waits = !matches!(run.event.what, RunEvent::Request(_));
        let options = WriteOptions { accept_partial: !whole, waits, ..asked };
        // New columns are noted by their owners first, who need room for that.
        if !self.wait_for_room(state, run, options).await {
            unwritten.later = Some(self.why_no_room());
            return None;
        }
        match self.agreed(&request, options).await {
            Ok(parsed) => self.send_parsed(request.db, parsed, run, options, unwritten).await,
            Err(outcome) => {
                unwritten.outcome(&request.db, outcome);
                None
            }
        }
    }

    async fn send_parsed(
        self: &Rc<Self>,
        db: Arc<str>,
        parsed: ParsedWrite,
        run: &Ended,
        options: WriteOptions,
        unwritten: &mut Unwritten,
    ) -> Option<Part> {
        unwritten.lines(&db, &parsed.rejected, parsed.rejected_count);
        let cause = run.event.tables().first().map(|table| &table.table);
        for batch in &parsed.batches {
            if let Some(entry) = self.shared.directory.get(&db, &batch.table) {
                entry.note_link(&run.trigger.def, cause);
            }
        }
        let is_own = |batch: &PendingBatch| self.owner_of(&db, batch) == self.id;
        let (own, others): (Vec<_>, Vec<_>) = parsed.batches.into_iter().partition(is_own);
        let rooms = match self.reserve(&db, &others, Room::Wait).await {
            Ok(rooms) => rooms,
            Err(outcome) => {
                unwritten.outcome(&db, outcome);
                return None;
            }
        };
        let others = self.send(&db, others, rooms, options);
        Some(Part { db, options, own, others })
    }

    /// Takes in what belongs to this shard, all of it in one go when there is room; what is refused at once is a failure. The
    /// caller may add to the frame that it goes into, and must end that (`keep_together`) before it waits. `None` if it is not to wait
    /// for a full disk any more.
    async fn accept_own(
        self: &Rc<Self>,
        state: &State,
        run: &Ended,
        parts: &mut [Part],
        unwritten: &mut Unwritten,
    ) -> Option<Vec<Replies>> {
        let waits = parts.iter().find(|part| part.options.waits).map(|part| part.options);
        let rooms = loop {
            if let Some(options) = waits
                && !self.wait_for_room(state, run, options).await
            {
                unwritten.later = Some(self.why_no_room());
                return None;
            }
            let reserved: Result<Vec<_>, _> = parts.iter().map(|part| self.try_reserve(&part.db, &part.own)).collect();
            match reserved {
                Ok(rooms) => break rooms,
                Err(_) => crate::io::net::sleep(super::arrive::ROOM_POLL).await,
            }
        };
        self.log.keep_together(true);
        let mut all = Vec::with_capacity(parts.len());
        for (part, rooms) in parts.iter_mut().zip(rooms) {
            let mut replies = self.send(&part.db, std::mem::take(&mut part.own), rooms, part.options);
            replies.retain_mut(|reply| match reply.try_recv() {
                // What is taken is confirmed when it is durable, not before; if nothing is, it is told at once.
                Ok(None) => true,
                Ok(Some(Verdict::Taken { rejected, rejected_count, .. })) => {
                    unwritten.lines(&part.db, &rejected, rejected_count);
                    false
                }
                Ok(Some(Verdict::Refused(error))) => {
                    unwritten.fail(&part.db, &error.refusal());
                    false
                }
                Ok(Some(Verdict::Unavailable(reason))) => {
                    unwritten.unavailable = true;
                    unwritten.fail(&part.db, &reason);
                    false
                }
                Ok(Some(Verdict::NoSpace(_))) => {
                    unreachable!("no task of this shard has had a turn since the disk had room")
                }
                Err(oneshot::Canceled) => {
                    unwritten.fail(&part.db, "the shard went away before it answered");
                    false
                }
            });
            all.push(replies);
        }
        Some(all)
    }
}

fn failure(db: &str, why: &str) -> String {
    format!("error writing back lines to {db}: Cannot write: {why}")
}

pub(crate) fn verdict_of(outcome: WriteOutcome) -> Result<(), String> {
    match outcome {
        WriteOutcome::Written { .. } | WriteOutcome::Empty => Ok(()),
        WriteOutcome::Rejected(error) => Err(error.refusal()),
        WriteOutcome::Partial { rejected_count, .. } => Err(format!("{rejected_count} lines were refused")),
        WriteOutcome::Busy { what, .. } => Err(what),
        WriteOutcome::Unavailable { reason } => Err(reason),
    }
}
