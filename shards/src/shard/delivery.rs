//! At least once: cursors in the log, and events that are read back from it (design, "Delivery").
//!
//! # Mechanism
//! 1. When a trigger comes into force on a shard, `TriggerBegin` goes into that shard's log, and `TriggerEnd` when it goes.
//! 2. A trigger's home keeps its [`Progress`] in each stream. A task writes the cursors that have moved, at most
//!    [`CURSOR_DELAY_MS`] late; results of a run are durable before it counts as finished.
//! 3. What a trigger has not finished when the process ends is pending at the next start. It is not kept in memory but as ranges of
//!    streams, its *backlog*; so are events for which there is no room. One thread of the process reads them from the logs, a
//!    chunk at a time, as far as they are durable.
//! 4. While a trigger has a backlog, new events join it: they are given in the order of their stream.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::{self, Receiver, Sender};
use saltus_core::ids::{EventId, Sequence, TableId, TriggerId};
use saltus_core::limits::{CHAIN_DEPTH_MAX, CURSOR_DELAY_MS, TRIGGER_BACKLOG_BYTES_MAX};
use saltus_core::line_protocol::{LogParser, SchemaSource};
use saltus_core::ports::{RunEvent, TableBatch, Trigger};
use saltus_core::schema::TableSchema;
use saltus_core::trigger::TriggerSpec;

use crate::clock::mono_now;
use crate::cursors::{Left, Pending, Progress};
use crate::wal::Record;
use crate::wal::reader::{Next, read_range};

use super::schedules::scheduler_of;
use super::triggers::{Changes, Event, TriggerState, wants};
use super::{Message, Shard, Shared};

/// Chunks that may be asked for at once; more ask again.
const ORDERS_MAX: usize = 256;
/// How long a shard waits for more of a log to be durable, or for room in the reader's queue.
pub(super) const AGAIN: Duration = Duration::from_millis(2);

/// What the reader is asked for.
struct Order {
    home: saltus_core::ids::ShardId,
    trigger: Arc<Trigger>,
    left: Left,
    purpose: Purpose,
    bytes_max: usize,
}

/// What a part of a log is read for.
pub(super) enum Purpose {
    /// A trigger has not seen it.
    Backlog,
    /// A dead letter: these parts of it only.
    Replay(Vec<Pending>),
}

/// Whether something is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ordered {
    /// A chunk will come.
    Yes,
    /// It is not durable, or the reader has no room.
    NotNow,
}

/// What it has read.
pub(crate) struct Chunk {
    pub trigger: TriggerId,
    /// What was asked for.
    pub part: Pending,
    /// By which specification.
    spec: Arc<TriggerSpec>,
    /// For a dead letter.
    pub replay: bool,
    /// Everything up to there is in `events`, in `lost`, or of no interest.
    pub reached: Sequence,
    pub events: Vec<Event>,
    /// What could not be read, and why.
    pub lost: Vec<(Pending, String)>,
}

/// The way to the thread that reads logs.
pub(crate) struct Reader {
    orders: Sender<Order>,
}

impl Reader {
    /// The way to a thread, and what the thread needs.
    pub fn new() -> (Reader, ReaderThread) {
        let (orders, taken) = channel::bounded(ORDERS_MAX);
        (Reader { orders }, ReaderThread { taken })
    }
}

/// The thread's side; see [`ReaderThread::start`].
pub(crate) struct ReaderThread {
    taken: Receiver<Order>,
}

impl ReaderThread {
    /// Starts the thread. It ends with the process.
    ///
    /// # Errors
    /// What the system said.
    pub fn start(self, shared: &Arc<Shared>) -> std::io::Result<()> {
        let shared = shared.clone();
        std::thread::Builder::new().name("saltus-backlog".to_owned()).spawn(move || {
            // Behind the shards, if it shares a core with one.
            let _ = rustix::process::nice(10);
            let mut parser = LogParser::default();
            for order in self.taken {
                let home = order.home;
                let chunk = read(&shared, &mut parser, order);
                let bytes = chunk.events.iter().map(Event::bytes).sum();
                let mut chunk = Some(Box::new(chunk));
                while let Some(waits) = chunk.take() {
                    match shared.mailbox(home).reserve(bytes) {
                        Some(room) => room.put(|held| Message::Backlog { chunk: waits, _held: held }),
                        None if shared.stopping.load(Ordering::Acquire) => return,
                        None => {
                            chunk = Some(waits);
                            std::thread::sleep(AGAIN);
                        }
                    }
                }
            }
        })?;
        Ok(())
    }
}

/// The schema that a table has now: it has every column that the lines name.
struct Now<'a>(&'a str, Arc<TableSchema>);

impl SchemaSource for Now<'_> {
    fn table(&self, table: &str) -> Option<Arc<TableSchema>> {
        (table == self.0).then(|| self.1.clone())
    }
}

fn read(shared: &Shared, parser: &mut LogParser, order: Order) -> Chunk {
    let Order { trigger, left: Left { part, spec }, purpose, bytes_max, .. } = order;
    let Pending { stream, after, to } = part;
    let data_dir: PathBuf = shared.config.data_dir.clone();
    let (mut events, mut bytes, mut lost) = (Vec::new(), 0, Vec::new());
    let wanted = |table: TableId| {
        let entry = shared.directory.by_id(&trigger.def.db, table)?;
        wants(&spec, &entry.name).then_some(entry)
    };
    let asked_for = |sequence: Sequence| match &purpose {
        Purpose::Backlog => true,
        Purpose::Replay(only) => only.iter().any(|part| part.after < sequence && sequence <= part.to),
    };
    let reached = read_range(&data_dir, stream, after, to, &mut |sequence, record| {
        let Record::Write { table, parser_version, precision, base_time_ns, depth, text, .. } = record else {
            return Next::More;
        };
        if !asked_for(sequence) {
            return Next::More;
        }
        // Such a chain was cut, and said, when it was written.
        if depth > CHAIN_DEPTH_MAX {
            return Next::More;
        }
        // A table that was dropped since has no rows that a plugin could be told of.
        let Some(entry) = wanted(table) else { return Next::More };
        let body = Bytes::copy_from_slice(text);
        let schemas = Now(&entry.name, entry.schema());
        let parsed = match parser.parse(parser_version, &entry.db, &body, precision, &schemas) {
            Ok(parsed) => parsed,
            Err(why) => {
                lost.push((Pending { stream, after: Sequence(sequence.0 - 1), to: sequence }, why));
                return Next::More;
            }
        };
        for batch in parsed.batches {
            let batch = Arc::new(batch.freeze(base_time_ns));
            bytes += batch.bytes();
            let id = EventId { stream, sequence };
            events.push(event(TableBatch { table: entry.name.clone(), batch, id, all_columns: None }, depth));
        }
        if bytes >= bytes_max { Next::Stop } else { Next::More }
    });
    let reached = reached.unwrap_or_else(|why| {
        let read = events.last().and_then(Event::id).map_or(after, |id| id.sequence);
        lost.push((Pending { stream, after: read, to }, why.to_string()));
        to
    });
    let replay = matches!(purpose, Purpose::Replay(_));
    Chunk { trigger: trigger.def.id, part, spec, replay, reached, events, lost }
}

/// The rows of these parts of streams, as far as they are of tables of `db`. Blocks on the files.
///
/// # Errors
/// A part is not durable, not there any more, or has nothing for the database; or a line is not understood any more.
pub(crate) fn read_events(shared: &Shared, db: &Arc<str>, parts: &[Pending]) -> Result<Vec<TableBatch>, String> {
    let mut parser = LogParser::default();
    let mut batches = Vec::new();
    for part in parts {
        let Pending { stream, after, to } = *part;
        let id = EventId { stream, sequence: to };
        let durable = || Sequence(shared.faces[usize::from(stream.shard.0)].durable.load(Ordering::Acquire));
        let is_here = stream.epoch == shared.epoch && usize::from(stream.shard.0) < shared.faces.len();
        if stream.epoch > shared.epoch || (is_here && durable() < to) {
            return Err(format!(
                "the event {id} is not in the log: no write has that number, or it is not durable yet"
            ));
        }
        let mut lost = None;
        let read = read_range(&shared.config.data_dir, stream, after, to, &mut |sequence, record| {
            let Record::Write { table, parser_version, precision, base_time_ns, text, .. } = record else {
                return Next::More;
            };
            let Some(entry) = shared.directory.by_id(db, table) else { return Next::More };
            let (body, schemas) = (Bytes::copy_from_slice(text), Now(&entry.name, entry.schema()));
            let parsed = match parser.parse(parser_version, &entry.db, &body, precision, &schemas) {
                Ok(parsed) => parsed,
                Err(why) => {
                    lost.get_or_insert(why);
                    return Next::More;
                }
            };
            let id = EventId { stream, sequence };
            batches.extend(parsed.batches.into_iter().map(|batch| {
                let batch = Arc::new(batch.freeze(base_time_ns));
                TableBatch { table: entry.name.clone(), batch, id, all_columns: None }
            }));
            let bytes: usize = batches.iter().map(|table| table.batch.bytes()).sum();
            if bytes > TRIGGER_BACKLOG_BYTES_MAX { Next::Stop } else { Next::More }
        });
        if let Some(why) = read.err().map(|why| why.to_string()).or(lost) {
            return Err(format!("the event {id} cannot be read back: {why}"));
        }
    }
    if batches.is_empty() {
        return Err(format!(
            "there are no rows of database '{db}' in these events: they are of another database, of a table that was dropped, or no writes"
        ));
    }
    Ok(batches)
}

fn event(table: TableBatch, depth: u8) -> Event {
    Event { depth, ..Event::new(RunEvent::Writes(vec![table]), mono_now()) }
}

impl Shard {
    /// Triggers came into force on this shard, or went: says so in its log.
    pub fn note_triggers(&self, changes: &Changes) {
        // A trigger that comes into force while the server runs has given up what it had not finished in earlier lives,
        // and its end may have been lost with one of them.
        let afresh = changes.begun.iter().filter(|begun| begun.afresh && self.resumed.get()).map(|begun| begun.id);
        let ended = changes.ended.iter().copied().chain(afresh).map(|trigger| Record::TriggerEnd { trigger });
        let left = changes.left.iter().map(|trigger| Record::TriggerLeave { trigger: *trigger });
        let gone: Vec<_> = ended.chain(left).collect();
        for record in gone {
            if !self.note_trigger(&record) {
                return;
            }
        }
        for begun in &changes.begun {
            let spec = begun.spec.to_string();
            if !self.note_trigger(&Record::TriggerBegin { trigger: begun.id, spec: &spec }) {
                return;
            }
        }
    }

    fn note_trigger(&self, record: &Record<'_>) -> bool {
        let noted = self.log.append(record);
        if let Err(error) = &noted {
            tracing::warn!(shard = self.id.0, %error, "after a crash, triggers may be given events again, or not all of them");
        }
        noted.is_ok()
    }

    /// The first set of triggers of this life is known: they have what earlier lives left, before anything new comes.
    pub fn claim_backlogs(&self, set: &[Arc<Trigger>]) {
        if self.resumed.get() {
            return;
        }
        let ledger = self.ledger.take();
        self.claim_letters(&ledger, set);
        for state in self.triggers.borrow().at_home(self.id) {
            let mut inner = state.borrow_mut();
            if let Some(mark) = ledger.mark_of(inner.trigger.def.id) {
                inner.schedule = scheduler_of(&inner.trigger.def, Some(mark));
            }
            let def = &inner.trigger.def;
            let backlog = ledger.pending_in(&def.db, def.id, &def.spec);
            inner.backlog = backlog.into();
            for Left { part, .. } in inner.backlog.clone() {
                inner.progress.entry(part.stream).or_insert_with(|| Progress::begin(part.after));
            }
            if !inner.backlog.is_empty() {
                tracing::info!(trigger = %inner.trigger.def.name, streams = inner.backlog.len(), "events of an earlier life may be unfinished: they are read from the logs");
            }
        }
    }

    /// The first set of triggers of this life is in force on all shards: they go on where they were.
    pub fn resume(self: &Rc<Self>) {
        if self.resumed.replace(true) {
            return;
        }
        for state in self.triggers.borrow().at_home(self.id) {
            self.load(&mut state.borrow_mut());
        }
    }

    /// Has the next chunk of a trigger's backlog read, if there is room for it.
    pub fn load(self: &Rc<Self>, state: &mut TriggerState) {
        if state.loading || state.stopped || !state.wants_more() {
            return;
        }
        let Some(left) = state.backlog.front().cloned() else { return };
        if self.order(state, left, Purpose::Backlog) == Ordered::NotNow {
            self.load_later(state.trigger.def.id);
        }
        state.loading = true;
    }

    /// Has a part of a log read, as far as it is durable.
    pub(super) fn order(&self, state: &TriggerState, mut left: Left, purpose: Purpose) -> Ordered {
        let part = &mut left.part;
        if part.stream.epoch == self.shared.epoch {
            let face = &self.shared.faces[usize::from(part.stream.shard.0)];
            let durable = Sequence(face.durable.load(Ordering::Acquire));
            match purpose {
                Purpose::Replay(_) if durable < part.to => return Ordered::NotNow,
                _ => part.to = part.to.min(durable),
            }
        }
        if part.to <= part.after {
            return Ordered::NotNow;
        }
        let (trigger, bytes_max) = (state.trigger.clone(), state.chunk_bytes());
        match self.shared.reader.orders.try_send(Order { home: self.id, trigger, left, purpose, bytes_max }) {
            Ok(()) => Ordered::Yes,
            Err(_) => Ordered::NotNow,
        }
    }

    fn load_later(self: &Rc<Self>, trigger: TriggerId) {
        let shard = self.clone();
        self.spawn(async move {
            crate::io::net::sleep(AGAIN).await;
            let state = shard.triggers.borrow().find(trigger);
            if let Some(state) = state {
                let mut inner = state.borrow_mut();
                inner.loading = false;
                shard.load(&mut inner);
            }
        });
    }

    /// A chunk of a backlog, or of a dead letter.
    pub fn take_chunk(self: &Rc<Self>, chunk: Chunk) {
        let Some(state) = self.triggers.borrow().find(chunk.trigger) else { return };
        let mut inner = state.borrow_mut();
        self.counters.events_read_back.add(chunk.events.len() as u64);
        if chunk.replay {
            self.take_replayed(&mut inner, chunk);
        } else {
            for (part, why) in chunk.lost {
                self.counters.events_dropped.add(1);
                let left = Left { part, spec: chunk.spec.clone() };
                self.lose(&inner.trigger, &left, format!("the log cannot be read there: {why}"));
            }
            inner.take_back(chunk.part.stream, chunk.reached, chunk.events, self.shared.epoch);
            inner.loading = false;
            self.load(&mut inner);
        }
        inner.progress_moved();
        drop(inner);
        self.runnable.notify();
        self.cursors_due.notify();
    }

    /// The event needs no run any more: it was run, or given up.
    pub fn done(self: &Rc<Self>, state: &mut TriggerState, event: &Event) {
        if event.replayed {
            if let Some(replay) = &mut state.replay {
                replay.open = replay.open.saturating_sub(event.tables().len());
            }
            self.go_on_with_replay(state);
        } else if let RunEvent::Schedule(call) = &event.what {
            self.called(state, call.scheduled_ns);
        } else {
            for table in event.tables() {
                state.progress.entry(table.id.stream).or_default().finish(table.id.sequence);
            }
            state.progress_moved();
            self.cursors_due.notify();
        }
        self.load(state);
    }

    /// Writes cursors that have moved, for ever.
    pub async fn record_cursors(self: Rc<Self>) {
        loop {
            self.cursors_due.notified().await;
            crate::io::net::sleep(Duration::from_millis(CURSOR_DELAY_MS)).await;
            self.write_cursors();
        }
    }

    /// Writes cursors that have moved, now.
    pub fn write_cursors(&self) {
        for state in self.triggers.borrow().take_moved() {
            self.write_cursors_of(&mut state.borrow_mut());
        }
    }

    /// Writes those cursors of a trigger that have moved: into the frame of whatever was appended just now.
    pub fn write_cursors_of(&self, state: &mut TriggerState) {
        let trigger = state.trigger.def.id;
        state.cursors_written();
        for (stream, progress) in &mut state.progress {
            let Some(sequence) = progress.take_cursor() else { continue };
            if let Err(error) = self.log.append(&Record::Cursor { trigger, stream: *stream, sequence }) {
                tracing::debug!(shard = self.id.0, %error, "a cursor is not recorded: after a crash its events are given again");
            }
        }
    }
}
