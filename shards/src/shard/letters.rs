//! Dead letters: what a trigger did not take, kept until it is replayed or discarded ([`crate::dead_letters`]).
//!
//! A trigger's home holds its dead letters, or any shard if the trigger is not in force. A replay moves the letter to the home, where
//! its rows are read from the logs a chunk at a time and run as events of their own, behind what is in line. What fails
//! again becomes a new letter; then the old one is ended.

use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;
use saltus_core::ids::{EventId, RunId, Sequence, Stream, TriggerId};
use saltus_core::limits::{DEAD_LETTER_EVENT_BYTES_MAX, DEAD_LETTER_TRACEBACK_BYTES_MAX, DEAD_LETTERS_BYTES_MAX};
use saltus_core::line_protocol::render;
use saltus_core::ports::{LogLevel, TableBatch, Trigger};
use saltus_core::trigger::TriggerSpec;

use crate::clock::wall_now_ns;
use crate::cursors::{Left, Pending};
use crate::dead_letters::{Account, DeadLetter, Reason, parts_of};
use crate::wal::Record;

use super::Shard;
use super::delivery::{AGAIN, Chunk, Ordered, Purpose};
use super::triggers::{TriggerState, home_of};

/// A dead letter that is being given to its trigger again.
pub(crate) struct Replay {
    letter: Arc<DeadLetter>,
    /// What has not been read yet.
    left: VecDeque<Pending>,
    reading: bool,
    /// Events that were read and are not done.
    pub open: usize,
}

/// What failed, in words.
pub(crate) struct Failure {
    pub reason: Reason,
    pub run_id: RunId,
    pub attempts: u32,
    pub error: String,
    pub traceback: String,
}

impl Shard {
    /// A run for these rows failed for the last time. What is not in a log cannot be a dead letter.
    pub fn bury(&self, trigger: &Trigger, tables: &[TableBatch], failure: Failure) {
        if tables.is_empty() {
            return;
        }
        let Failure { reason, run_id, attempts, error, traceback } = failure;
        let mut names: Vec<String> = Vec::new();
        let mut event = String::new();
        for table in tables {
            if !names.iter().any(|name| **name == *table.table) {
                names.push(table.table.to_string());
            }
            render(&table.table, &table.batch, &mut event, DEAD_LETTER_EVENT_BYTES_MAX);
        }
        let account = Account {
            reason,
            run_id: Some(run_id.0),
            attempts,
            tables: names,
            rows: Some(tables.iter().map(|table| table.batch.rows() as u64).sum()),
            event,
            error,
            traceback: cut(traceback, DEAD_LETTER_TRACEBACK_BYTES_MAX),
            ..self.account(trigger, parts_of(tables.iter().map(|table| table.id)))
        };
        self.keep_letter(trigger, account);
    }

    /// Nothing of a part of a stream was attempted.
    pub fn lose(&self, trigger: &Trigger, Left { part, spec }: &Left, why: String) {
        let part = *part;
        let first = EventId { stream: part.stream, sequence: Sequence(part.after.0 + 1) };
        let text = format!(
            "lost: the events {first} to {} of its stream, which may hold some for this trigger: {why}; they are a dead letter: see system.dead_letters, and replay it with: saltus replay",
            part.to.0
        );
        self.log_for(trigger, LogLevel::Error, text);
        let tables = match &**spec {
            TriggerSpec::Table(table) => vec![table.to_string()],
            _ => Vec::new(),
        };
        let account = Account { reason: Reason::Lost, error: why, tables, ..self.account(trigger, vec![part]) };
        self.keep_letter(trigger, account);
    }

    fn account(&self, trigger: &Trigger, parts: Vec<Pending>) -> Account {
        Account {
            db: trigger.def.db.to_string(),
            trigger_name: trigger.def.name.to_string(),
            time_ns: wall_now_ns(),
            reason: Reason::Lost,
            run_id: None,
            attempts: 0,
            tables: Vec::new(),
            rows: None,
            event: String::new(),
            error: String::new(),
            traceback: String::new(),
            parts,
        }
    }

    fn keep_letter(&self, trigger: &Trigger, account: Account) {
        self.counters.dead_letters.add(1);
        let id = trigger.def.id;
        match self.log.append(&Record::DeadLetter { trigger: id, account: &account.encode() }) {
            Ok(sequence) => {
                let id = EventId { stream: Stream { epoch: self.shared.epoch, shard: self.id }, sequence };
                self.letters.borrow_mut().insert(Arc::new(DeadLetter { id, trigger: trigger.def.id, account }));
                self.forget_surplus();
            }
            Err(error) => {
                let (events, why) = (account.events().join(", "), &account.error);
                let text = format!(
                    "the dead letter cannot be kept: {error}; its events are {events}, which failed with: {why}"
                );
                self.log_for(trigger, LogLevel::Error, text);
            }
        }
    }

    /// Ends the oldest letters as long as there are too many.
    fn forget_surplus(&self) {
        loop {
            let surplus = self.letters.borrow().surplus(DEAD_LETTERS_BYTES_MAX);
            let Some(oldest) = surplus else { return };
            self.counters.dead_letters_forgotten.add(1);
            tracing::warn!(shard = self.id.0, letter = %oldest, "the oldest dead letter is forgotten: there are more than {DEAD_LETTERS_BYTES_MAX} bytes of them; replay or discard some");
            self.end_letter(oldest);
        }
    }

    /// The letter needs no keeping any more; where that stands in the log, if it was here.
    fn end_letter(&self, id: EventId) -> Option<Sequence> {
        self.letters.borrow_mut().remove(id)?;
        let EventId { stream, sequence } = id;
        self.log
            .append(&Record::DeadLetterEnd { stream, sequence })
            .inspect_err(
                |error| tracing::warn!(letter = %id, %error, "after a crash, an ended dead letter may be back"),
            )
            .ok()
    }

    /// The letters of earlier lives that are this shard's to keep.
    pub fn claim_letters(&self, ledger: &crate::cursors::Ledger, set: &[Arc<Trigger>]) {
        let placement = self.shared.directory.placement();
        let by_id: HashMap<TriggerId, &Arc<Trigger>> = set.iter().map(|trigger| (trigger.def.id, trigger)).collect();
        for letter in ledger.dead_letters() {
            let trigger = by_id.get(&letter.trigger);
            let home =
                trigger.map_or_else(|| placement.home(letter.trigger), |trigger| home_of(placement, &trigger.def));
            if home == self.id {
                self.letters.borrow_mut().insert(letter.clone());
            }
        }
        self.forget_surplus();
    }

    /// Gives letters away, for another shard to keep.
    pub fn give_letters(&self, ids: &HashSet<EventId>) -> Vec<Arc<DeadLetter>> {
        let mut letters = self.letters.borrow_mut();
        ids.iter().filter_map(|id| letters.remove(*id)).collect()
    }

    /// Ends those of the letters that are here; answers with their number when that is durable.
    pub fn discard_letters(self: &Rc<Self>, ids: &HashSet<EventId>, reply: oneshot::Sender<usize>) {
        let ended: Vec<Option<Sequence>> = {
            let here: Vec<EventId> = self.letters.borrow().iter().map(|l| l.id).filter(|id| ids.contains(id)).collect();
            here.into_iter().map(|id| self.end_letter(id)).collect()
        };
        let last = ended.iter().flatten().max().copied().unwrap_or_default();
        let shard = self.clone();
        self.spawn(async move {
            while shard.face().durable.load(std::sync::atomic::Ordering::Acquire) < last.0 && !shard.stopping() {
                crate::io::net::sleep(AGAIN).await;
            }
            let _gone = reply.send(ended.len());
        });
    }

    /// Keeps letters and gives them to their trigger again, if its home is here; how many.
    pub fn replay_letters(self: &Rc<Self>, letters: Vec<Arc<DeadLetter>>) -> usize {
        let mut replayed = 0;
        for letter in letters {
            self.letters.borrow_mut().insert(letter.clone());
            let Some(state) = self.triggers.borrow().find(letter.trigger) else { continue };
            let mut inner = state.borrow_mut();
            if inner.home != self.id || inner.stopped {
                continue;
            }
            let under_way = inner.replay.iter().map(|r| r.letter.id).chain(inner.replays.iter().map(|l| l.id));
            if !under_way.into_iter().any(|id| id == letter.id) {
                inner.replays.push_back(letter);
            }
            replayed += 1;
            self.go_on_with_replay(&mut inner);
        }
        replayed
    }

    /// The next step of what a trigger has to be given again.
    pub fn go_on_with_replay(self: &Rc<Self>, state: &mut TriggerState) {
        loop {
            let Some(replay) = &mut state.replay else {
                let Some(letter) = state.replays.pop_front() else { return };
                let left = letter.account.parts.iter().copied().collect();
                state.replay = Some(Replay { letter, left, reading: false, open: 0 });
                continue;
            };
            if replay.reading || replay.open > 0 || state.stopped {
                return;
            }
            let Some(first) = replay.left.front().copied() else {
                let letter = replay.letter.clone();
                self.end_letter(letter.id);
                state.replay = None;
                self.log_for(&state.trigger, LogLevel::Info, format!("the dead letter {} was replayed", letter.id));
                continue;
            };
            replay.reading = true;
            // Neighbours in one stream are read in one go.
            let only: Vec<Pending> = replay.left.iter().take_while(|p| p.stream == first.stream).copied().collect();
            let to = only.iter().map(|part| part.to).max().unwrap_or(first.to);
            let after = only.iter().map(|part| part.after).min().unwrap_or(first.after);
            let part = Pending { stream: first.stream, after, to };
            let spec = Arc::new(spec_of(&replay.letter.account, &state.trigger.def.spec));
            if self.order(state, Left { part, spec }, Purpose::Replay(only)) == Ordered::NotNow {
                let (shard, trigger) = (self.clone(), state.trigger.def.id);
                self.spawn(async move {
                    crate::io::net::sleep(AGAIN).await;
                    let state = shard.triggers.borrow().find(trigger);
                    if let Some(state) = state {
                        let mut inner = state.borrow_mut();
                        if let Some(replay) = &mut inner.replay {
                            replay.reading = false;
                        }
                        shard.go_on_with_replay(&mut inner);
                    }
                });
            }
            return;
        }
    }

    /// A chunk of a letter that is replayed.
    pub fn take_replayed(self: &Rc<Self>, state: &mut TriggerState, chunk: Chunk) {
        let Some(replay) = &mut state.replay else { return };
        replay.reading = false;
        let missing = (chunk.events.is_empty() && chunk.reached < chunk.part.to)
            .then(|| format!("the log does not hold what is beyond record {}", chunk.reached.0));
        if let Some(why) = chunk.lost.first().map(|(_, why)| why).or(missing.as_ref()) {
            let id = replay.letter.id;
            let text = format!("the dead letter {id} cannot be replayed: {why}; it is kept");
            state.replay = None;
            self.log_for(&state.trigger, LogLevel::Error, text);
            return self.go_on_with_replay(state);
        }
        for part in replay.left.iter_mut().filter(|part| part.stream == chunk.part.stream) {
            part.after = part.after.max(chunk.reached);
        }
        replay.left.retain(|part| part.after < part.to);
        replay.open = chunk.events.len();
        for event in chunk.events {
            state.put_last(super::triggers::Event { replayed: true, ..event });
        }
        self.go_on_with_replay(state);
    }
}

/// Which writes of a dead letter's parts were for its trigger: its specification may have been changed since.
fn spec_of(account: &Account, now: &TriggerSpec) -> TriggerSpec {
    match account.tables.as_slice() {
        [] => now.clone(),
        [table] => TriggerSpec::Table(table.as_str().into()),
        _ => TriggerSpec::AllTables,
    }
}

fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
        text.push_str("\n... (cut)");
    }
    text
}
