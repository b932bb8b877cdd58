//! The results of a run, and the cursor that says that its event is finished.
//!
//! What a run wrote to tables of other shards is durable before the cursor is written; what it wrote to tables of its own shard, and
//! what it changed of its trigger's state, is in the same frame as the cursor, so that a crash takes either all or none (design,
//! "Delivery").

use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;
use saltus_core::batch::PendingBatch;
use saltus_core::line_protocol::{LineError, Precision};
use saltus_core::ports::{LogLevel, QueuedWrite};
use saltus_core::request::RequestError;
use saltus_core::state::StateChange;

use crate::api::{WriteOutcome, WriteRequest};
use crate::clock::mono_now;

use super::arrive::{Room, refusal};
use super::requests;
use super::run::{Ended, Failed, State};
use super::{Shard, Verdict, WriteOptions};

type Replies = Vec<oneshot::Receiver<Verdict>>;

/// One queued write: what of it other shards have, and what is this one's.
struct Part {
    db: Arc<str>,
    options: WriteOptions,
    own: Vec<PendingBatch>,
    others: Replies,
    rejected: Vec<LineError>,
    rejected_count: usize,
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
            let mut failures = Vec::new();
            let finished = shard.write_results(&state, &run, writes, changes, &mut failures).await;
            {
                let mut inner = state.borrow_mut();
                inner.writing_back -= 1;
                inner.measured.finished(&run.event);
                // If it was finished, they are in the log since.
                inner.state_changing -= if finished { 0 } else { changing };
                shard.let_go_of_state(&mut inner);
            }
            let plugin = run.event.what.kind().plugin();
            let failures = failures.into_iter().map(|why| format!("error running {plugin}: {why}"));
            let mut failures: Vec<String> = failures.collect();
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
                    requests::answer(&run.event, Err(RequestError::Failed(text.clone())));
                    shard.log_run(&run, LogLevel::Error, text);
                }
                Some(text) => {
                    requests::answer(&run.event, Err(RequestError::Failed(text.clone())));
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
                let written = match shard.send_to_others(write, &run).await {
                    Ok(None) => Ok(()),
                    Ok(Some(mut part)) => {
                        let mut refused = Vec::new();
                        let own = shard.accept_own(std::slice::from_mut(&mut part), &mut refused).await;
                        shard.log.keep_together(false);
                        let replies = own.into_iter().flatten().chain(part.others).collect();
                        let outcome = shard.gather(replies, part.rejected, part.rejected_count).await;
                        verdict_of(outcome)
                    }
                    Err(why) => Err(why),
                };
                if let Err(why) = written {
                    shard.log_run(&run, LogLevel::Error, failure(&db, &why));
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
        failures: &mut Vec<String>,
    ) -> bool {
        if state.borrow().leaving {
            // Its trigger was deleted or disabled since it ended: its tables may be gone as well.
            return true;
        }
        let mut parts = Vec::with_capacity(writes.len());
        for write in writes {
            let db = write.db.clone();
            match self.send_to_others(write, run).await {
                Ok(part) => parts.extend(part),
                Err(why) => failures.push(failure(&db, &why)),
            }
        }
        for part in &mut parts {
            let outcome = self.gather(std::mem::take(&mut part.others), Vec::new(), 0).await;
            failures.extend(verdict_of(outcome).err().map(|why| failure(&part.db, &why)));
        }
        let replies = self.accept_own(&mut parts, failures).await;
        // No other task of this shard has had a turn since: the cursor is in the frame of the rows.
        let finished = failures.is_empty();
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
            let outcome = self.gather(replies, part.rejected, part.rejected_count).await;
            failures.extend(verdict_of(outcome).err().map(|why| failure(&part.db, &why)));
        }
        finished
    }

    /// Parses a write and sends what belongs to tables of other shards; `None` if there was nothing in it.
    async fn send_to_others(self: &Rc<Self>, write: QueuedWrite, run: &Ended) -> Result<Option<Part>, String> {
        saltus_core::names::check_db_name(&write.db).map_err(|_| format!("invalid database name: {}", write.db))?;
        let request = WriteRequest {
            db: write.db,
            body: write.lines.into_bytes().into(),
            precision: Precision::Nanosecond,
            accept_partial: false,
            no_sync: write.no_sync,
            received: mono_now(),
        };
        let options = WriteOptions::of(&request, run.event.depth.saturating_add(1));
        let parsed = match self.agreed(&request, options).await {
            Ok(parsed) => parsed,
            Err(outcome) => return verdict_of(outcome).map(|()| None),
        };
        let cause = run.event.tables().first().map(|table| &table.table);
        for batch in &parsed.batches {
            if let Some(entry) = self.shared.directory.get(&request.db, &batch.table) {
                entry.note_link(&run.trigger.def, cause);
            }
        }
        let is_own = |batch: &PendingBatch| self.owner_of(&request.db, batch) == self.id;
        let (own, others): (Vec<_>, Vec<_>) = parsed.batches.into_iter().partition(is_own);
        let rooms = match self.reserve(&request.db, &others, Room::Wait).await {
            Ok(rooms) => rooms,
            Err(outcome) => return verdict_of(outcome).map(|()| None),
        };
        let others = self.send(&request.db, others, rooms, options);
        let (rejected, rejected_count) = (parsed.rejected, parsed.rejected_count);
        Ok(Some(Part { db: request.db, options, own, others, rejected, rejected_count }))
    }

    /// Takes in what belongs to this shard, all of it in one go when there is room; what is refused at once is a failure. The
    /// caller may add to the frame that it goes into, and must end that (`keep_together`) before it waits.
    async fn accept_own(self: &Rc<Self>, parts: &mut [Part], failures: &mut Vec<String>) -> Vec<Replies> {
        let rooms = loop {
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
                // What is taken is confirmed when it is durable, not before.
                Ok(Some(Verdict::Taken { .. }) | None) => true,
                Ok(Some(Verdict::Refused(error))) => {
                    failures.push(failure(&part.db, &refusal(&error)));
                    false
                }
                Ok(Some(Verdict::Unavailable(reason))) => {
                    failures.push(failure(&part.db, &reason));
                    false
                }
                Err(oneshot::Canceled) => {
                    failures.push(failure(&part.db, "the shard went away before it answered"));
                    false
                }
            });
            all.push(replies);
        }
        all
    }
}

fn failure(db: &str, why: &str) -> String {
    format!("error writing back lines to {db}: Cannot write: {why}")
}

pub(crate) fn verdict_of(outcome: WriteOutcome) -> Result<(), String> {
    match outcome {
        WriteOutcome::Written { .. } | WriteOutcome::Empty => Ok(()),
        WriteOutcome::Rejected(error) => Err(refusal(&error)),
        WriteOutcome::Partial { rejected_count, .. } => Err(format!("{rejected_count} lines were refused")),
        WriteOutcome::Busy { what, .. } => Err(what),
        WriteOutcome::Unavailable { reason } => Err(reason),
    }
}
