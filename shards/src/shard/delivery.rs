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
use saltus_core::ids::{EventId, Sequence, Stream, TableId, TriggerId};
use saltus_core::limits::CURSOR_DELAY_MS;
use saltus_core::line_protocol::{LineParser, SchemaSource};
use saltus_core::ports::{TableBatch, Trigger};
use saltus_core::schema::TableSchema;
use saltus_core::trigger::TriggerSpec;

use crate::clock::mono_now;
use crate::cursors::{Pending, Progress};
use crate::wal::Record;
use crate::wal::reader::{Next, read_range};

use super::triggers::{Event, TriggerState};
use super::{Message, Shard, Shared};

/// Chunks that may be asked for at once; more ask again.
const ORDERS_MAX: usize = 256;
/// How long a shard waits for more of a log to be durable, or for room in the reader's queue.
const AGAIN: Duration = Duration::from_millis(2);

/// What the reader is asked for.
struct Order {
    home: saltus_core::ids::ShardId,
    trigger: Arc<Trigger>,
    part: Pending,
    bytes_max: usize,
}

/// What it has read.
pub(crate) struct Chunk {
    pub trigger: TriggerId,
    pub stream: Stream,
    /// Everything up to there is in `events`, or of no interest.
    pub reached: Sequence,
    pub events: Vec<Event>,
    /// Why it came no further.
    pub error: Option<String>,
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
            let mut parser = LineParser::new();
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

fn read(shared: &Shared, parser: &mut LineParser, order: Order) -> Chunk {
    let Order { trigger, part: Pending { stream, after, to }, bytes_max, .. } = order;
    let data_dir: PathBuf = shared.config.data_dir.clone();
    let (mut events, mut bytes, mut error) = (Vec::new(), 0, None);
    let wanted = |table: TableId| {
        let entry = shared.directory.by_id(&trigger.def.db, table)?;
        let wanted = match &trigger.def.spec {
            TriggerSpec::Table(name) => **name == *entry.name,
            _ => trigger.def.spec == TriggerSpec::AllTables,
        };
        wanted.then_some(entry)
    };
    let reached = read_range(&data_dir, stream, after, to, &mut |sequence, record| {
        let Record::Write { table, precision, base_time_ns, text, .. } = record else { return Next::More };
        // A table that was dropped since has no rows that a plugin could be told of.
        let Some(entry) = wanted(table) else { return Next::More };
        let body = Bytes::copy_from_slice(text);
        let schemas = Now(&entry.name, entry.schema());
        let parsed = parser.parse(&entry.db, &body, precision, false, &schemas);
        if let Some(line) = parsed.rejected.first() {
            error =
                Some(format!("the line {:?}, accepted before, is refused now: {}", line.original_line, line.message));
            return Next::More;
        }
        for batch in parsed.batches {
            let batch = Arc::new(batch.freeze(base_time_ns));
            bytes += batch.bytes();
            events.push(event(TableBatch { table: entry.name.clone(), batch, id: EventId { stream, sequence } }));
        }
        if bytes >= bytes_max { Next::Stop } else { Next::More }
    });
    let reached = reached.unwrap_or_else(|why| {
        error = Some(why.to_string());
        to
    });
    Chunk { trigger: trigger.def.id, stream, reached, events, error }
}

fn event(table: TableBatch) -> Event {
    let now = mono_now();
    Event { tables: vec![table], received: now, handed_over: now, depth: 0, attempt: 0, first_rows: 0 }
}

impl Shard {
    /// Triggers came into force on this shard, or went: says so in its log.
    pub fn note_triggers(&self, begun: &[TriggerId], ended: &[TriggerId]) {
        // A trigger that comes into force while the server runs has given up what it had not finished in earlier lives,
        // and its end may have been lost with one of them.
        let afresh = begun.iter().filter(|_| self.resumed.get());
        let ended = ended.iter().chain(afresh).map(|trigger| Record::TriggerEnd { trigger: *trigger });
        let begun = begun.iter().map(|trigger| Record::TriggerBegin { trigger: *trigger });
        for record in ended.chain(begun) {
            if let Err(error) = self.log.append(&record) {
                tracing::warn!(shard = self.id.0, %error, "after a crash, triggers may be given events again");
                return;
            }
        }
    }

    /// The first set of triggers of this life is in force: they go on where they were.
    pub fn resume(self: &Rc<Self>) {
        if self.resumed.replace(true) {
            return;
        }
        let ledger = self.ledger.take();
        for state in self.triggers.borrow().at_home(self.id) {
            let mut inner = state.borrow_mut();
            inner.backlog = ledger.pending(inner.trigger.def.id).into();
            let begun: Vec<_> = inner.backlog.iter().map(|part| (part.stream, Progress::begin(part.after))).collect();
            inner.progress.extend(begun);
            if !inner.backlog.is_empty() {
                tracing::info!(trigger = %inner.trigger.def.name, streams = inner.backlog.len(), "events of an earlier life may be unfinished: they are read from the logs");
            }
            self.load(&mut inner);
        }
    }

    /// Has the next chunk of a trigger's backlog read, if there is room for it.
    pub fn load(self: &Rc<Self>, state: &mut TriggerState) {
        if state.loading || state.stopped || !state.wants_more() {
            return;
        }
        let Some(part) = state.backlog.front().copied() else { return };
        let mut durable = part;
        if part.stream.epoch == self.shared.epoch {
            let face = &self.shared.faces[usize::from(part.stream.shard.0)];
            durable.to = part.to.min(Sequence(face.durable.load(Ordering::Acquire)));
        }
        let order =
            Order { home: self.id, trigger: state.trigger.clone(), part: durable, bytes_max: state.chunk_bytes() };
        if durable.to <= part.after || self.shared.reader.orders.try_send(order).is_err() {
            self.load_later(state.trigger.def.id);
        }
        state.loading = true;
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

    /// A chunk of a backlog.
    pub fn take_chunk(self: &Rc<Self>, chunk: Chunk) {
        let Chunk { trigger, stream, reached, events, error } = chunk;
        let Some(state) = self.triggers.borrow().find(trigger) else { return };
        let mut inner = state.borrow_mut();
        if let Some(error) = error {
            self.counters.events_dropped.add(1);
            tracing::error!(trigger = %inner.trigger.def.name, ?stream, %error, "events cannot be read back from the log");
        }
        self.counters.events_read_back.add(events.len() as u64);
        inner.take_back(stream, reached, events, self.shared.epoch);
        inner.loading = false;
        self.load(&mut inner);
        drop(inner);
        self.runnable.notify();
        self.cursors_due.notify();
    }

    /// The event needs no run any more: it was run, or given up.
    pub fn done(self: &Rc<Self>, state: &mut TriggerState, event: &Event) {
        for table in &event.tables {
            state.progress.entry(table.id.stream).or_default().finish(table.id.sequence);
        }
        self.cursors_due.notify();
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
        for state in self.triggers.borrow().at_home(self.id) {
            let mut inner = state.borrow_mut();
            let trigger = inner.trigger.def.id;
            for (stream, progress) in &mut inner.progress {
                let Some(sequence) = progress.take_cursor() else { continue };
                if let Err(error) = self.log.append(&Record::Cursor { trigger, stream: *stream, sequence }) {
                    tracing::debug!(shard = self.id.0, %error, "a cursor is not recorded: after a crash its events are given again");
                }
            }
        }
    }
}
