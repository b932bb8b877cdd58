//! A shard: one pinned core with everything it owns.
//!
//! **Invariant.** All state here is touched by the shard's own thread only, in short borrows that are never held across an
//! `await` nor across a plugin call. What other threads read is in [`crate::directory`]; what they send comes through the
//! mailbox and passes [`Shard::take`], the one loop in which owner state changes for others.
//!
//! The life of a write: [`arrive`] parses and routes on the core that received it, [`own`] decides, logs and applies on the
//! table's core, [`log`] makes it durable and releases the acknowledgement, [`triggers`] activates.

pub(crate) mod arrive;
pub(crate) mod delivery;
pub(crate) mod letters;
mod line;
pub(crate) mod log;
pub(crate) mod own;
pub(crate) mod recover;
pub(crate) mod requests;
pub(crate) mod run;
pub(crate) mod schedules;
pub(crate) mod states;
pub(crate) mod stats;
pub(crate) mod tables;
pub(crate) mod triggers;
pub(crate) mod write_back;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use crossbeam::queue::ArrayQueue;
use futures_channel::oneshot;
use futures_util::task::AtomicWaker;
use saltus_core::batch::PendingBatch;
use saltus_core::ids::{Epoch, EventId, MonoNs, RunId, Sequence, ShardId, Stream, TableId, TriggerId};
use saltus_core::line_protocol::{LineError, LineParser};
use saltus_core::policy::{InlineBudget, Lane};
use saltus_core::ports::{Completions, PluginHost, RunReport, RunRequest, ShardPlugins, TableBatch, Trigger};
use saltus_core::request::PluginRequest;
use saltus_core::route::Routes;
use saltus_core::schema::ColumnDef;
use saltus_core::state::State;

use crate::api::{EngineConfig, ShardStats, TableError, TriggerStats, TriggersChange, WriteOutcome, WriteRequest};
use crate::cursors::Left;
use crate::dead_letters::{DeadLetter, DeadLetters};
use crate::directory::{Directory, TableEntry};
use crate::executor::ShardQueue;
use crate::io::net::Accepted;
use crate::local::{Notify, Once};
use crate::mailbox::{Held, Mailbox};
use crate::pulse::{Pulse, Turns};
use crate::states::Shelf;
use crate::table::TableSnapshot;
use crate::wal::WrittenTo;
use crate::wal::keeper::ManifestKeeper;
use crate::wal::manifest::Manifest;

/// What shards share: nothing here is locked on the data path.
pub(crate) struct Shared {
    pub config: EngineConfig,
    pub epoch: Epoch,
    /// The manifest had it at the start.
    pub epoch_is_noted: bool,
    /// What the log of earlier lives must hold.
    pub known: Arc<Manifest>,
    /// Who writes the manifest.
    pub keeper: ManifestKeeper,
    pub directory: Directory,
    pub mailboxes: Vec<Arc<Mailbox<Message>>>,
    pub faces: Vec<Face>,
    pub reader: delivery::Reader,
    /// States of triggers that are not in force.
    pub shelf: Shelf,
    pub host: Arc<dyn PluginHost>,
    pub runs: AtomicU64,
    pub stopping: AtomicBool,
    /// Why a restart is asked for.
    pub restart_wanted: ArcSwapOption<String>,
}

/// What a shard shows of itself without being asked.
#[derive(Default)]
pub(crate) struct Face {
    /// Why it takes no writes.
    pub refuses: ArcSwapOption<String>,
    /// What its disk lacks: it takes no writes until that is there again.
    pub short: ArcSwapOption<String>,
    /// Where its stream ended, at an orderly stop.
    pub ended: ArcSwapOption<(Stream, Option<WrittenTo>)>,
    /// Which plugin's run it does not come back from.
    pub stalled: ArcSwapOption<String>,
    /// Open connections, for dealing them out.
    pub connections: AtomicUsize,
    /// Its log is durable up to this sequence.
    pub durable: AtomicU64,
    /// What its thread does now.
    pub pulse: Arc<Pulse>,
    /// At the stop: it has nothing left to do, unless another shard gives it something.
    pub idle: AtomicBool,
}

impl Shared {
    /// The shard with the fewest connections.
    pub fn least_loaded(&self) -> ShardId {
        let at = (0..self.faces.len()).min_by_key(|&i| self.faces[i].connections.load(Ordering::Relaxed)).unwrap_or(0);
        ShardId(at as u16)
    }

    pub fn mailbox(&self, shard: ShardId) -> &Arc<Mailbox<Message>> {
        &self.mailboxes[usize::from(shard.0)]
    }

    pub fn next_run(&self) -> RunId {
        RunId(self.runs.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// How a write is to be treated, whoever sent it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteOptions {
    pub accept_partial: bool,
    pub no_sync: bool,
    pub received: MonoNs,
    /// Plugin runs between the client's write and this one.
    pub depth: u8,
    /// Results of a run: a full disk is waited for, not told.
    pub waits: bool,
}

impl WriteOptions {
    /// As the request asks; `depth` runs after a client's write.
    pub fn of(request: &WriteRequest, depth: u8) -> Self {
        let WriteRequest { accept_partial, no_sync, received, .. } = *request;
        WriteOptions { accept_partial, no_sync, received, depth, waits: false }
    }
}

/// One table's part of a write, on its way to the owner.
pub(crate) struct Delivery {
    pub db: Arc<str>,
    pub batch: PendingBatch,
    pub options: WriteOptions,
    pub reply: oneshot::Sender<Verdict>,
    /// The room it takes; given back when it is durable.
    pub held: Held<Message>,
}

/// What the owner says of a [`Delivery`].
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Taken, but for the lines named (numbers are the request's).
    Taken { rows: usize, rejected: Vec<LineError>, rejected_count: usize },
    /// Nothing taken because of this line.
    Refused(LineError),
    /// Nothing taken; the reason is not the lines.
    Unavailable(String),
    /// Nothing taken, as the disk is full: here are the rows of a write that waits for it.
    NoSpace(Box<PendingBatch>),
}

/// What comes from the network's side.
pub(crate) enum Arrival {
    /// A socket to listen on: this shard deals the connections.
    Listen(std::net::TcpListener),
    /// A connection to serve.
    Connection(Accepted),
}

/// Everything that may be said to a shard. Each variant tells what its loss would mean.
pub(crate) enum Message {
    /// Something for the connection side of this shard. Lost: the peer sees a reset.
    Arrival(Arrival),
    /// Rows. Lost: the reply slot is dropped and the client gets 503, never an acknowledgement.
    Deliver(Box<Delivery>),
    /// May these columns be added? Added if so. Lost: as `Deliver`.
    Ensure { db: Arc<str>, table: Arc<str>, columns: Vec<ColumnDef>, reply: oneshot::Sender<Result<(), String>> },
    /// An event for a trigger whose home is here. Lost: counted at the sender.
    Event { trigger: TriggerId, event: Box<triggers::Event>, _held: Held<Message> },
    /// A request for a trigger whose home is here. Lost: its slot is dropped, and the client gets 503.
    Request { trigger: TriggerId, request: Arc<PluginRequest>, received: MonoNs, _held: Held<Message> },
    /// A test run of a plugin. Lost: as `Request`.
    Test { run: Box<RunRequest>, reply: oneshot::Sender<Result<RunReport, String>> },
    /// Events of a trigger whose home is here, read from a log. Lost: only with the shard; its trigger waits for them.
    Backlog { chunk: Box<delivery::Chunk>, _held: Held<Message> },
    /// A write from a thread that is no shard. Lost: as `Deliver`.
    Write { request: Box<WriteRequest>, depth: u8, reply: oneshot::Sender<WriteOutcome> },
    /// Publish and answer with all rows of a table. Lost: the query fails.
    Snapshot { table: TableId, reply: oneshot::Sender<Option<Arc<TableSnapshot>>> },
    /// Make a table. Lost: as `Deliver`.
    CreateTable {
        db: Arc<str>,
        name: Arc<str>,
        columns: Vec<ColumnDef>,
        reply: oneshot::Sender<Result<Arc<TableEntry>, TableError>>,
    },
    /// Drop a table. Lost: as `Deliver`.
    DropTable { db: Arc<str>, name: Arc<str>, reply: oneshot::Sender<Result<(), TableError>> },
    /// A change of the triggers in force. Never lost while the engine runs: the sender waits for room.
    Triggers { change: Arc<TriggersChange>, step: Coming, reply: oneshot::Sender<()> },
    /// Further events of a trigger whose home is here are in a log. Lost: counted at the sender.
    LeftInLog { trigger: TriggerId, left: Left },
    /// The dead letters. Lost: the reader sees one shard less.
    DeadLetters { reply: oneshot::Sender<Vec<Arc<DeadLetter>>> },
    /// Give these dead letters away. Lost: the caller says so.
    GiveLetters { ids: Arc<HashSet<EventId>>, reply: oneshot::Sender<Vec<Arc<DeadLetter>>> },
    /// Keep these dead letters and give them to their trigger again. Lost: they come back with the next start.
    Replay { letters: Vec<Arc<DeadLetter>>, reply: oneshot::Sender<usize> },
    /// End these dead letters. Lost: the caller says so.
    DiscardLetters { ids: Arc<HashSet<EventId>>, reply: oneshot::Sender<usize> },
    /// The durable states of triggers at home here. Lost: the reader sees one shard less.
    States { reply: oneshot::Sender<Vec<(TriggerId, Arc<State>)>> },
    /// A trigger was deleted: end its state. Lost: it stays in the log, and nobody asks for it.
    EndState { trigger: TriggerId, reply: oneshot::Sender<()> },
    /// Statistics. Lost: the reader sees one shard less.
    Stats { reply: oneshot::Sender<ShardStats> },
    /// Statistics of triggers. Lost: likewise.
    TriggerStats { reply: oneshot::Sender<Vec<TriggerStats>> },
    /// The code of these triggers has changed, or more is known of it. Lost: seen with the next run.
    Code { triggers: Arc<[TriggerId]> },
    /// The lane of a trigger, and why, if it is at home here. Lost: the reader says what it knows.
    Lane { trigger: TriggerId, reply: oneshot::Sender<Option<(Lane, String)>> },
    /// Finish what is in hand and end. Never lost: the stopping flag says the same.
    Stop,
}

const _: () = assert!(size_of::<Message>() <= 96, "messages are moved through the queue by value");

/// Where deferred workers put finished runs: bounded by the runs that can be under way.
pub(crate) struct Finished {
    queue: ArrayQueue<RunReport>,
    prepared: AtomicBool,
    waker: AtomicWaker,
}

/// What the bridge tells a shard.
pub(crate) enum Told {
    /// A deferred run is over.
    Finished(Box<RunReport>),
    /// Something that a trigger waits for may be there.
    Prepared,
}

impl Finished {
    pub fn new() -> Arc<Self> {
        // One place per queued run and per worker; more cannot be under way.
        Arc::new(Finished {
            queue: ArrayQueue::new(saltus_core::limits::DEFERRED_QUEUE_MAX * 2),
            prepared: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        })
    }

    pub fn poll_next(&self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Told> {
        let next = || {
            let report = self.queue.pop().map(|report| Told::Finished(Box::new(report)));
            report.or_else(|| self.prepared.swap(false, Ordering::AcqRel).then_some(Told::Prepared))
        };
        if let Some(told) = next() {
            return std::task::Poll::Ready(told);
        }
        self.waker.register(cx.waker());
        next().map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    }
}

impl Completions for Finished {
    fn completed(&self, report: RunReport) {
        if self.queue.push(report).is_err() {
            tracing::error!("a finished run found no room in the completion queue; its trigger stays busy");
        }
        self.waker.wake();
    }

    fn prepared(&self) {
        self.prepared.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// How a change of the triggers comes into force: each step on all shards, before the next begins on any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coming {
    /// The homes know their triggers, and what earlier lives left for them: no event comes to a home that would not take it.
    Known,
    /// Every shard offers them what is written there, so no run writes rows that are not seen.
    Offered,
    /// What earlier lives left is read and run.
    Running,
}

impl Coming {
    /// In order.
    pub const ALL: [Coming; 3] = [Coming::Known, Coming::Offered, Coming::Running];
}

/// A shard's own state.
pub(crate) struct Shard {
    pub id: ShardId,
    pub shared: Arc<Shared>,
    pub queue: ShardQueue,
    /// What its tasks' polls are measured with.
    pub turns: Rc<Turns>,
    pub parser: RefCell<LineParser>,
    pub owner: RefCell<own::Owner>,
    pub log: log::Log,
    pub triggers: RefCell<triggers::TriggerSet>,
    pub plugins: RefCell<Option<Box<dyn ShardPlugins>>>,
    /// Who answers which requests, wherever that is.
    pub routes: RefCell<Routes<requests::Target>>,
    /// Test runs under way, and who waits for them.
    pub tests: RefCell<HashMap<RunId, oneshot::Sender<Result<RunReport, String>>>>,
    pub runnable: Notify,
    /// Triggers that are to be ready for the inline lane before their first event.
    pub cold: RefCell<VecDeque<Arc<Trigger>>>,
    /// What inline runs may cost, all triggers together.
    pub inline_budget: RefCell<InlineBudget>,
    pub outbox: RefCell<triggers::Outbox>,
    /// What the logs of earlier lives say of triggers, until they are known.
    pub ledger: RefCell<crate::cursors::Ledger>,
    /// What triggers did not take.
    pub letters: RefCell<DeadLetters>,
    /// The first set of triggers of this life is in force.
    pub resumed: Cell<bool>,
    /// Cursors may have moved.
    pub cursors_due: Notify,
    /// When schedule triggers are to be looked at.
    pub agenda: RefCell<schedules::Agenda>,
    /// The agenda has changed.
    pub time_due: Notify,
    pub stopped: Once,
    pub drained: Notify,
    pub counters: stats::Counters,
    pub writes_in_flight: Cell<usize>,
    /// Seeds of jitter.
    pub chance: ahash::RandomState,
}

impl Shard {
    /// Runs a task on this shard; a panic is contained, counted and logged. If owner state was in use when it happened, the
    /// shard takes no more writes: nobody knows what state it is in.
    pub fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let shard = self.clone();
        self.queue.spawn(self.turns.clone(), task, move |text| shard.panicked(&text));
    }

    fn panicked(&self, text: &str) {
        self.counters.panics.add(1);
        tracing::error!(shard = self.id.0, panic = text, "a task panicked; it is contained");
        if self.owner.try_borrow_mut().is_err() || self.log.is_borrowed() {
            self.refuse(format!(
                "shard {} is poisoned: a task panicked while it changed tables: {text}; restart the server",
                self.id
            ));
        }
    }

    /// From now on writes are refused with this reason.
    pub fn refuse(&self, reason: String) {
        tracing::error!(shard = self.id.0, %reason, "the shard takes no more writes");
        self.face().refuses.store(Some(Arc::new(reason)));
    }

    pub fn face(&self) -> &Face {
        &self.shared.faces[usize::from(self.id.0)]
    }

    pub fn stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// The one loop in which others' wishes change this shard.
    pub async fn serve_mailbox(self: Rc<Self>, on_arrival: impl Fn(&Rc<Shard>, Arrival)) {
        let mailbox = self.shared.mailbox(self.id).clone();
        loop {
            let message = std::future::poll_fn(|cx| mailbox.poll_pop(cx)).await;
            match message {
                Message::Arrival(arrival) => on_arrival(&self, arrival),
                Message::Stop => self.stopped.set(),
                other => self.take(other),
            }
        }
    }

    /// One step of a change of the triggers.
    fn put_in_force(self: &Rc<Self>, change: &TriggersChange, step: Coming) {
        let placement = self.shared.directory.placement();
        match step {
            Coming::Known => {
                let runs_stopped = {
                    let mut triggers = self.triggers.borrow_mut();
                    triggers.change(self.id, placement, self.shared.config.limits, change);
                    std::mem::take(&mut triggers.runs_stopped)
                };
                if let Some(plugins) = self.plugins.borrow_mut().as_mut().filter(|_| runs_stopped) {
                    plugins.stop_runs();
                }
                let coming = self.triggers.borrow().coming();
                self.look_at_code_of(&coming);
                self.claim_backlogs(&change.come);
            }
            Coming::Offered => {
                let changes = self.triggers.borrow_mut().offer_from_now_on();
                requests::change_routes(&mut self.routes.borrow_mut(), placement, change);
                self.note_triggers(&changes);
                self.part_with(&changes.gone);
            }
            Coming::Running => {
                self.resume();
                let changed = self.triggers.borrow_mut().take_changed(self.id);
                self.look_at_schedules(&changed);
                self.look_at_cold(&changed);
                self.runnable.notify();
            }
        }
    }

    fn take(self: &Rc<Self>, message: Message) {
        match message {
            Message::Deliver(delivery) => self.accept(*delivery),
            Message::Ensure { db, table, columns, reply } => drop(reply.send(self.ensure(&db, &table, &columns))),
            Message::Event { trigger, event, _held } => self.queue_event(trigger, *event),
            Message::Request { trigger, request, received, _held } => self.take_request(trigger, request, received),
            Message::Test { run, reply } => self.submit_test(*run, reply),
            Message::Backlog { chunk, _held } => self.take_chunk(*chunk),
            Message::Write { request, depth, reply } => {
                let shard = self.clone();
                self.spawn(async move {
                    let outcome = shard.write(*request, depth, arrive::Room::Wait).await;
                    drop(reply.send(outcome));
                });
            }
            Message::Snapshot { table, reply } => drop(reply.send(self.publish(table))),
            Message::CreateTable { db, name, columns, reply } => self.create_table(db, name, columns, reply),
            Message::DropTable { db, name, reply } => self.drop_table(&db, &name, reply),
            Message::Triggers { change, step, reply } => {
                self.put_in_force(&change, step);
                let _ = reply.send(());
            }
            Message::LeftInLog { trigger, left } => self.queue_left(trigger, left),
            Message::DeadLetters { reply } => drop(reply.send(self.letters.borrow().iter().cloned().collect())),
            Message::GiveLetters { ids, reply } => drop(reply.send(self.give_letters(&ids))),
            Message::Replay { letters, reply } => drop(reply.send(self.replay_letters(letters))),
            Message::DiscardLetters { ids, reply } => self.discard_letters(&ids, reply),
            Message::States { reply } => drop(reply.send(self.states())),
            Message::EndState { trigger, reply } => self.end_state(trigger, reply),
            Message::Stats { reply } => drop(reply.send(self.stats())),
            Message::TriggerStats { reply } => {
                let shard = self.clone();
                self.spawn(async move { drop(reply.send(shard.trigger_stats().await)) });
            }
            Message::Code { triggers } => {
                let known: Vec<_> = {
                    let set = self.triggers.borrow();
                    triggers.iter().filter_map(|id| set.find(*id)).collect()
                };
                self.look_at_code_of(&known);
            }
            Message::Lane { trigger, reply } => drop(reply.send(self.lane_of(trigger))),
            Message::Arrival(_) | Message::Stop => unreachable!("taken by the mailbox loop"),
        }
    }

    /// A trigger's view of one table's rows.
    fn table_batch(&self, table: &Arc<str>, batch: &Arc<saltus_core::batch::Batch>, sequence: Sequence) -> TableBatch {
        let stream = Stream { epoch: self.shared.epoch, shard: self.id };
        let id = EventId { stream, sequence };
        TableBatch { table: table.clone(), batch: batch.clone(), id, all_columns: None }
    }
}
