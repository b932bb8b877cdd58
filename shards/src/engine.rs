//! Start, use and stop of the engine.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use futures_lite::future::block_on;
use saltus_core::catalog::TableInfo;
use saltus_core::ids::{Epoch, EventId, MonoNs, ShardId, TriggerId};
use saltus_core::limits::MAILBOX_ITEMS_MAX;
use saltus_core::line_protocol::LineParser;
use saltus_core::policy::{InlineBudget, Lane};
use saltus_core::ports::{PluginHost, PluginRuntime, RunReport, RunRequest, TableBatch};
use saltus_core::request::PluginRequest;
use saltus_core::schema::ColumnDef;
use saltus_core::state::State;
use saltus_core::trigger::TriggerDef;

use crate::answer::{self, Answer};
use crate::api::{
    EngineConfig, Health, ShardStats, TableError, TriggerStats, TriggersChange, WriteOutcome, WriteRequest,
};
pub use crate::clock::mono_now;
use crate::cursors::Pending;
use crate::data_dir::{DataDir, Life};
use crate::dead_letters::DeadLetter;
use crate::directory::Directory;
use crate::executor::{self, ShardThread};
pub use crate::io::net::ShardStream;
use crate::io::net::{Accepted, Acceptor};
use crate::local::{Notify, Once};
use crate::mailbox::Mailbox;
use crate::placement::Placement;
use crate::pulse::{Pulse, Turns};
pub use crate::shard::requests::{Routed, Target};
use crate::shard::triggers::home_of;
use crate::shard::{
    Arrival, Coming, Face, Finished, Message, Shard, Shared, arrive, delivery, log, own, run, stats, triggers,
    write_back,
};
use crate::states::Shelf;
pub use crate::table::TableSnapshot;
use crate::wal::settle::{settle_old, settle_own};
use crate::wal::{self, RecoveryReport};

/// A future that stays on its shard.
pub type LocalBoxFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// What is done with a connection; implemented by `server`.
pub trait ConnectionService: Send + Sync {
    /// Serves one connection until it ends; runs on the shard's thread.
    fn serve(&self, shard: ShardHandle, stream: ShardStream, peer: SocketAddr) -> LocalBoxFuture<()>;
}

/// The engine, seen from any thread.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

impl EngineHandle {
    /// How many shards.
    pub fn shards(&self) -> usize {
        self.shared.mailboxes.len()
    }

    /// Databases that have at least one table, sorted.
    pub fn databases(&self) -> Vec<Arc<str>> {
        self.shared.directory.databases()
    }

    /// Whether a database has tables.
    pub fn has_database(&self, db: &str) -> bool {
        self.shared.directory.has_database(db)
    }

    /// The tables of a database, sorted by name.
    pub fn tables(&self, db: &str) -> Vec<TableInfo> {
        self.shared.directory.tables(db).iter().map(|entry| entry.info()).collect()
    }

    /// One table.
    pub fn table(&self, db: &str, name: &str) -> Option<TableInfo> {
        self.shared.directory.get(db, name).map(|entry| entry.info())
    }

    /// The rows of a table as of now: every acknowledged write is in it. Without a hop to the owner when nothing changed
    /// since the last reader.
    ///
    /// # Errors
    /// `NotFound` when the table was dropped meanwhile, `Unavailable` when its owner does not answer.
    pub async fn snapshot(&self, table: &TableInfo) -> Result<TableSnapshot, TableError> {
        let gone = || TableError::NotFound(table.name.to_string());
        let entry = self.shared.directory.get(&table.db, &table.name).filter(|e| e.id == table.id).ok_or_else(gone)?;
        if let Some(fresh) = entry.fresh() {
            return Ok(TableSnapshot::clone(&fresh));
        }
        let id = table.id;
        let snapshot = self.ask(entry.owner, |reply| Message::Snapshot { table: id, reply }).await?;
        snapshot.map(|s| TableSnapshot::clone(&s)).ok_or_else(gone)
    }

    /// Makes an empty table; durable when it returns.
    ///
    /// # Errors
    /// See [`TableError`].
    pub async fn create_table(&self, db: &str, name: &str, columns: Vec<ColumnDef>) -> Result<TableInfo, TableError> {
        let owner = self.shared.directory.placement().owner(db, name);
        let (db, name) = (Arc::from(db), Arc::from(name));
        let made = self.ask(owner, |reply| Message::CreateTable { db, name, columns, reply }).await?;
        made.map(|entry| entry.info())
    }

    /// Drops a table; durable when it returns.
    ///
    /// # Errors
    /// See [`TableError`].
    pub async fn drop_table(&self, db: &str, name: &str) -> Result<(), TableError> {
        let owner = self.shared.directory.placement().owner(db, name);
        let (db, name) = (Arc::from(db), Arc::from(name));
        self.ask(owner, |reply| Message::DropTable { db, name, reply }).await?
    }

    /// Changes the set of triggers in force on all shards; it is changed when this returns. A trigger whose id stays keeps its
    /// backlog and statistics. Blocks; changes are made one after the other.
    pub fn change_triggers(&self, change: TriggersChange) {
        let change = Arc::new(change);
        for step in Coming::ALL {
            let answers: Vec<_> = self.shard_ids().map(|shard| self.tell_change(shard, &change, step)).collect();
            for (shard, answer) in self.shard_ids().zip(answers) {
                if answer.is_none_or(|answer| block_on(answer).is_err()) {
                    tracing::error!(%shard, ?step, "the shard did not take a change of the triggers: it is stopping");
                }
            }
        }
    }

    /// The code of these triggers has changed, or more is known of it than before: shards look at it. Waits for nothing; a shard whose
    /// mailbox is full looks with the next run.
    pub fn note_code(&self, triggers: &[TriggerId]) {
        let triggers = Arc::<[TriggerId]>::from(triggers);
        for shard in self.shard_ids() {
            if let Some(room) = self.shared.mailbox(shard).reserve(0) {
                let triggers = triggers.clone();
                room.put(|_| Message::Code { triggers });
            }
        }
    }

    /// The lane of a trigger that is in force, and why it has it.
    pub async fn lane_of(&self, trigger: TriggerId) -> Option<(Lane, String)> {
        for shard in self.shard_ids() {
            if let Ok(Some(lane)) = self.ask(shard, |reply| Message::Lane { trigger, reply }).await {
                return Some(lane);
            }
        }
        None
    }

    /// Sends a step of a change, as soon as there is room for it: what is left out once is missing for ever.
    fn tell_change(&self, shard: ShardId, change: &Arc<TriggersChange>, step: Coming) -> Option<oneshot::Receiver<()>> {
        let room = loop {
            match self.shared.mailbox(shard).reserve(0) {
                Some(room) => break room,
                None if self.shared.stopping.load(Ordering::Acquire) => return None,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let (reply, answer) = oneshot::channel();
        room.put(|_| Message::Triggers { change: change.clone(), step, reply });
        Some(answer)
    }

    /// Statistics of all triggers in force.
    pub async fn trigger_stats(&self) -> Vec<TriggerStats> {
        let mut all = Vec::new();
        for shard in self.shard_ids() {
            all.extend(self.ask(shard, |reply| Message::TriggerStats { reply }).await.unwrap_or_default());
        }
        all
    }

    /// The durable states of all triggers that have one, disabled ones included.
    pub async fn trigger_states(&self) -> Vec<(TriggerId, Arc<State>)> {
        let mut all = self.shared.shelf.all();
        for shard in self.shard_ids() {
            all.extend(self.ask(shard, |reply| Message::States { reply }).await.unwrap_or_default());
        }
        all.sort_by_key(|(trigger, _)| *trigger);
        all
    }

    /// Ends the state of a deleted trigger, which is not in force any more.
    pub async fn end_state(&self, trigger: TriggerId) {
        let keeper = self.shared.directory.placement().home(trigger);
        if let Err(error) = self.ask(keeper, |reply| Message::EndState { trigger, reply }).await {
            tracing::debug!(trigger = trigger.0, %error, "the state of a deleted trigger stays in the log");
        }
    }

    /// Forgets the states of triggers that do not exist: their end was lost with a crash.
    pub fn retain_states(&self, exists: impl Fn(TriggerId) -> bool) {
        self.shared.shelf.retain(exists);
    }

    /// What triggers did not take, oldest first.
    pub async fn dead_letters(&self) -> Vec<Arc<DeadLetter>> {
        let mut all = Vec::new();
        for shard in self.shard_ids() {
            all.extend(self.ask(shard, |reply| Message::DeadLetters { reply }).await.unwrap_or_default());
        }
        all.sort_by_key(|letter| (letter.account.time_ns, letter.id));
        all
    }

    /// Gives dead letters to their trigger again; how many of them it gets. None if it is not in force.
    ///
    /// # Errors
    /// [`TableError::Unavailable`]: a shard does not answer; no letter is lost.
    pub async fn replay_dead_letters(&self, trigger: &TriggerDef, ids: HashSet<EventId>) -> Result<usize, TableError> {
        let ids = Arc::new(ids);
        let home = home_of(self.shared.directory.placement(), trigger);
        let mut letters = Vec::new();
        for shard in self.shard_ids() {
            let ids = ids.clone();
            letters.extend(self.ask(shard, |reply| Message::GiveLetters { ids, reply }).await?);
        }
        letters.sort_by_key(|letter| letter.id);
        self.ask(home, |reply| Message::Replay { letters, reply }).await
    }

    /// Ends dead letters; how many there were. It is durable when it returns.
    ///
    /// # Errors
    /// [`TableError::Unavailable`]: a shard does not answer.
    pub async fn discard_dead_letters(&self, ids: HashSet<EventId>) -> Result<usize, TableError> {
        let ids = Arc::new(ids);
        let mut ended = 0;
        for shard in self.shard_ids() {
            let ids = ids.clone();
            ended += self.ask(shard, |reply| Message::DiscardLetters { ids, reply }).await?;
        }
        Ok(ended)
    }

    /// Statistics of all shards.
    pub async fn shard_stats(&self) -> Vec<ShardStats> {
        let mut all = Vec::new();
        for shard in self.shard_ids() {
            all.extend(self.ask(shard, |reply| Message::Stats { reply }).await.ok());
        }
        all
    }

    /// What each shard's thread does, by shard; to be looked at whenever one likes.
    pub fn pulses(&self) -> Vec<Arc<Pulse>> {
        self.shared.faces.iter().map(|face| face.pulse.clone()).collect()
    }

    /// Whether all shards take writes, and come back from their plugins.
    pub fn health(&self) -> Health {
        let faces = self.shared.faces.iter();
        let reasons =
            faces.flat_map(|face| [face.refuses.load_full(), face.stalled.load_full(), face.short.load_full()]);
        let reasons = reasons.chain([self.shared.restart_wanted.load_full()]);
        let mut health = Health::default();
        for reason in reasons.flatten() {
            // A full disk is the same for all shards.
            if !health.reasons.contains(&reason) {
                health.reasons.push(reason.to_string());
            }
        }
        health
    }

    /// The number of this life of the process on its data directory, if the manifest had it when the engine started: on a full disk
    /// it has it later, and who noted it before would take the manifest for an older copy at the next start.
    pub fn noted_epoch(&self) -> Option<Epoch> {
        self.shared.epoch_is_noted.then_some(self.shared.epoch)
    }

    /// Has the manifest know the generation of the catalog: an older copy of it is told by that. Blocks.
    pub fn note_catalog(&self, generation: u64) {
        let noted = self.shared.keeper.change_now(move |manifest| manifest.catalog = manifest.catalog.max(generation));
        if let Err(error) = noted {
            tracing::warn!(%error, "the manifest does not know of the last change of the catalog");
        }
    }

    /// Something is lost that only a restart brings back.
    pub fn ask_restart(&self, reason: String) {
        self.shared.restart_wanted.store(Some(Arc::new(reason)));
    }

    /// A shard does not come back from a plugin's run, for this reason; or has come back.
    pub fn set_stalled(&self, shard: ShardId, reason: Option<String>) {
        if let Some(face) = self.shared.faces.get(usize::from(shard.0)) {
            face.stalled.store(reason.map(Arc::new));
        }
    }

    /// A write from any thread (the engine's own and the tokio side's): waits for room instead of `Busy`.
    pub async fn write(&self, request: WriteRequest) -> WriteOutcome {
        let shard = self.shared.least_loaded();
        let request = Box::new(request);
        match self.ask(shard, |reply| Message::Write { request, depth: 0, reply }).await {
            Ok(outcome) => outcome,
            Err(error) => WriteOutcome::Unavailable { reason: error.to_string() },
        }
    }

    /// Makes a test run of a plugin: nothing that it wants written is written, and no record of it is kept. `run_id` and `shard` are
    /// set here; the shard is the same for the same trigger, so that its cache is found again.
    ///
    /// # Errors
    /// It could not be made; the text says why.
    pub async fn test_run(&self, mut run: RunRequest) -> Result<RunReport, TableError> {
        let shard = self.shared.directory.placement().home(run.trigger.def.id);
        (run.run_id, run.shard, run.received) = (self.shared.next_run(), shard, mono_now());
        let run = Box::new(run);
        let report = self.ask(shard, |reply| Message::Test { run, reply }).await?;
        report.map_err(TableError::Unavailable)
    }

    /// Reads the rows of writes back from the logs: of one event, or of the parts of a dead letter. The files are read on a thread of
    /// their own.
    ///
    /// # Errors
    /// Nothing is there that can be read, or no thread; the text says why.
    pub async fn read_events(&self, db: &str, parts: Vec<Pending>) -> Result<Vec<TableBatch>, String> {
        let (shared, db) = (self.shared.clone(), Arc::from(db));
        let (reply, answer) = oneshot::channel();
        std::thread::Builder::new()
            .name("saltus-events".to_owned())
            .spawn(move || reply.send(delivery::read_events(&shared, &db, &parts)))
            .map_err(|error| format!("no thread to read the log: {error}"))?;
        answer.await.unwrap_or_else(|_| Err("the thread that read the log ended without an answer".to_owned()))
    }

    /// A plugin's write, from a thread that may block: waits for room and for the outcome.
    ///
    /// # Errors
    /// The cause, in words.
    pub fn write_of_plugin(&self, request: WriteRequest, depth: u8) -> Result<(), String> {
        let mut request = Box::new(request);
        let answer = loop {
            let shard = self.shared.least_loaded();
            if let Some(room) = self.shared.mailbox(shard).reserve(0) {
                let (reply, answer) = oneshot::channel();
                room.put(|_| Message::Write { request, depth, reply });
                break answer;
            }
            if self.shared.stopping.load(Ordering::Acquire) {
                return Err("the server is stopping".to_owned());
            }
            std::thread::sleep(Duration::from_millis(1));
            request.received = mono_now();
        };
        match block_on(answer) {
            Ok(WriteOutcome::Empty) => Err("incoming write was empty".to_owned()),
            Ok(outcome) => write_back::verdict_of(outcome),
            Err(oneshot::Canceled) => Err("the server is stopping".to_owned()),
        }
    }

    /// Whether all of a write would go to tables of `shard`, and would be taken as things are. Never blocks.
    ///
    /// # Errors
    /// The cause, in words.
    pub fn check_write(&self, shard: ShardId, db: &str, lines: &str) -> Result<bool, String> {
        let body = bytes::Bytes::copy_from_slice(lines.as_bytes());
        match arrive::owners_of(&self.shared.directory, db, &body)?.as_slice() {
            [] => Err("incoming write was empty".to_owned()),
            owners => Ok(owners.iter().all(|owner| *owner == shard)),
        }
    }

    fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards()).map(|s| ShardId(s as u16))
    }

    /// Says something to a shard and waits for its answer.
    async fn ask<R>(
        &self,
        shard: ShardId,
        message: impl FnOnce(oneshot::Sender<R>) -> Message,
    ) -> Result<R, TableError> {
        let room = self
            .shared
            .mailbox(shard)
            .reserve(0)
            .ok_or_else(|| TableError::Unavailable(format!("the mailbox of shard {shard} is full; try again")))?;
        let (reply, answer) = oneshot::channel();
        room.put(|_| message(reply));
        answer.await.map_err(|_| TableError::Unavailable(format!("shard {shard} is stopping")))
    }
}

/// A write under way, until it is answered or nobody waits for its answer any more.
struct Flying<'a>(&'a Shard);

impl<'a> Flying<'a> {
    fn new(shard: &'a Shard) -> Self {
        shard.writes_in_flight.set(shard.writes_in_flight.get() + 1);
        Flying(shard)
    }
}

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        self.0.writes_in_flight.set(self.0.writes_in_flight.get() - 1);
        self.0.drained.notify();
    }
}

/// A shard, seen from its own thread.
#[derive(Clone)]
pub struct ShardHandle {
    shard: Rc<Shard>,
    engine: EngineHandle,
}

impl ShardHandle {
    /// Which.
    pub fn id(&self) -> ShardId {
        self.shard.id
    }

    /// The whole engine.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// Parses, routes, logs and applies a client's write.
    pub async fn write(&self, request: WriteRequest) -> WriteOutcome {
        let _flying = Flying::new(&self.shard);
        let no_sync = request.no_sync;
        let outcome = self.shard.write(request, 0, arrive::Room::Refuse).await;
        if no_sync {
            self.shard.let_cheap_runs_begin().await;
        }
        outcome
    }

    /// Who answers a request on `path`, behind `/api/v3/engine/`.
    pub fn route(&self, method: &str, path: &str) -> Routed {
        self.shard.route(method, path)
    }

    /// Has a trigger answer a request whose last byte came at `received`. Whoever drops the future hangs up.
    pub async fn ask_plugin(&self, target: Target, mut request: PluginRequest, received: MonoNs) -> Answer {
        let (slot, waiting) = answer::slot();
        request.answer = Some(slot);
        self.shard.send_request(target, Arc::new(request), received);
        waiting.answer().await
    }

    /// Runs a task on this shard; a panic in it is contained and counted.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.shard.spawn(task);
    }

    /// Waits on the shard's timer. The future is not `Send`.
    pub async fn sleep(&self, time: Duration) {
        crate::io::net::sleep(time).await;
    }

    /// Whether the engine is stopping: finish the request in hand and close.
    pub fn stopping(&self) -> bool {
        self.shard.stopping()
    }

    /// Resolves when the engine starts to stop.
    pub async fn stopped(&self) {
        self.shard.stopped.wait().await;
    }
}

/// Why the engine did not start; the text names the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

impl StartError {
    fn of(error: impl std::fmt::Display) -> Self {
        StartError(error.to_string())
    }
}

/// A running engine.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Vec<ShardThread>,
    /// Bound, and not yet listened on.
    listener: Option<std::net::TcpListener>,
    local_addr: SocketAddr,
    drained: Arc<AtomicBool>,
    lock: Arc<wal::DataDirLock>,
}

/// What a shard that has recovered tells: its number and what it found in the logs.
type Recovered = Result<(ShardId, RecoveryReport), String>;

/// What a shard's thread is started with.
struct Birth {
    id: ShardId,
    shared: Arc<Shared>,
    python: Option<Arc<dyn PluginRuntime>>,
    service: Arc<dyn ConnectionService>,
    lock: Arc<wal::DataDirLock>,
    ready: mpsc::Sender<Recovered>,
    go: oneshot::Receiver<()>,
    drained: Arc<AtomicBool>,
}

impl Engine {
    /// Binds the address, begins a life on the data directory, recovers and starts the shards. Blocks until every shard serves its
    /// mailbox; connections wait in the socket's backlog until [`Engine::accept_connections`].
    ///
    /// # Errors
    /// Anything that keeps it from serving, with the remedy.
    pub fn start(
        config: EngineConfig,
        data_dir: DataDir,
        python: Option<Arc<dyn PluginRuntime>>,
        host: Arc<dyn PluginHost>,
        service: Arc<dyn ConnectionService>,
    ) -> Result<Engine, StartError> {
        let placement = Placement::new(config.cpus.len());
        executor::check_kernel(placement.shards()).map_err(StartError)?;
        let listener = listen(config.http_bind)?;
        let local_addr = listener.local_addr().map_err(StartError::of)?;
        let Life { lock, epoch, is_noted: epoch_is_noted, known, keeper } =
            data_dir.begin_life().map_err(StartError::of)?;
        tracing::info!(shards = placement.shards(), cpus = ?config.cpus, epoch = epoch.0, "placement");
        let (reader, reader_thread) = delivery::Reader::new();
        let shared = Arc::new(Shared {
            reader,
            shelf: Shelf::default(),
            mailboxes: (0..placement.shards()).map(|_| Mailbox::new(MAILBOX_ITEMS_MAX, config.mailbox_bytes)).collect(),
            faces: (0..placement.shards()).map(|_| Face::default()).collect(),
            directory: Directory::new(placement),
            config,
            epoch,
            epoch_is_noted,
            known,
            keeper,
            host,
            runs: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            restart_wanted: arc_swap::ArcSwapOption::empty(),
        });
        reader_thread.start(&shared).map_err(StartError::of)?;
        let mut engine = Engine {
            shared,
            threads: Vec::new(),
            listener: Some(listener),
            local_addr,
            drained: Arc::new(AtomicBool::new(true)),
            lock,
        };
        engine.start_shards(python, service)?;
        Ok(engine)
    }

    fn start_shards(
        &mut self,
        python: Option<Arc<dyn PluginRuntime>>,
        service: Arc<dyn ConnectionService>,
    ) -> Result<(), StartError> {
        let (ready, is_ready) = mpsc::channel();
        let mut starts = Vec::new();
        for at in 0..self.shared.mailboxes.len() {
            let (start, go) = oneshot::channel();
            starts.push(start);
            let birth = Birth {
                id: ShardId(at as u16),
                shared: self.shared.clone(),
                python: python.clone(),
                service: service.clone(),
                lock: self.lock.clone(),
                ready: ready.clone(),
                go,
                drained: self.drained.clone(),
            };
            let cpu = self.shared.config.cpus[at];
            let idle = match self.shared.config.busy_poll.get(at) {
                Some(true) => executor::Idle::Poll,
                _ => executor::Idle::Sleep,
            };
            let name = format!("saltus-shard-{at}");
            let thread = executor::start(&name, cpu, idle, move |queue| live(birth, queue));
            self.threads.push(thread.map_err(StartError)?);
        }
        drop(ready);
        let mut found = None;
        for _ in 0..self.threads.len() {
            match is_ready.recv() {
                Ok(Ok((_, report))) => found = Some(report),
                Ok(Err(why)) => return Err(StartError(why)),
                Err(_) => return Err(StartError("a shard ended while it started; its log line says why".into())),
            }
        }
        if let Some(report) = found {
            self.settle(&report);
        }
        for start in starts {
            // A shard that has ended meanwhile is found when it is joined.
            let _ = start.send(());
        }
        Ok(())
    }

    /// Cuts the logs of earlier lives to what was found in them: every shard has read them. If the disk is too full for a word of
    /// it, the next start does.
    fn settle(&self, report: &RecoveryReport) {
        let shared = &self.shared;
        match settle_old(&shared.config.data_dir, &shared.keeper, shared.epoch, report) {
            Ok(settled) if settled.files > 0 => {
                tracing::info!(
                    files = settled.files,
                    bytes = settled.bytes,
                    "logs of earlier lives are cut to what they hold"
                );
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "logs of earlier lives stay as large as they are until the next start")
            }
        }
    }

    /// Starts to take connections: once everything that a client may ask for is in force. Later calls do nothing.
    pub fn accept_connections(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        // Nobody but the start has written to it yet, so there is room soon.
        let room = loop {
            match self.shared.mailboxes[0].reserve(0) {
                Some(room) => break room,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        room.put(|_| Message::Arrival(Arrival::Listen(listener)));
    }

    /// The handle for other threads.
    pub fn handle(&self) -> EngineHandle {
        EngineHandle { shared: self.shared.clone() }
    }

    /// The address that is listened on (of use with port 0).
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops accepting; the shards finish what is in hand, commit their last frames and end. Waits for nothing but room in
    /// their mailboxes, at most `within`.
    pub fn stop(self, within: Duration) -> Stopping {
        let end = Instant::now() + within;
        let Engine { shared, threads, drained, .. } = self;
        shared.stopping.store(true, Ordering::Release);
        for mailbox in &shared.mailboxes {
            while Instant::now() < end {
                if let Some(room) = mailbox.reserve(0) {
                    room.put(|_| Message::Stop);
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            for thread in threads {
                if let Err(error) = thread.join() {
                    tracing::error!(%error, "a shard ended badly");
                }
            }
            let ends: Vec<_> = shared.faces.iter().filter_map(|face| face.ended.load_full()).map(|end| *end).collect();
            if let Err(error) = settle_own(&shared.config.data_dir, &shared.keeper, ends) {
                tracing::warn!(%error, "the log of this life stays as large as it is until the next start");
            }
            let _ = done.send(());
        });
        Stopping { is_done, drained, joined: false }
    }
}

/// An engine on its way to its end.
pub struct Stopping {
    is_done: mpsc::Receiver<()>,
    drained: Arc<AtomicBool>,
    joined: bool,
}

impl Stopping {
    /// Waits until the shards have ended, at most `within`. True if they have, and all was drained.
    pub fn wait(&mut self, within: Duration) -> bool {
        self.joined = self.joined || self.is_done.recv_timeout(within).is_ok();
        self.joined && self.drained.load(Ordering::Acquire)
    }
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener, StartError> {
    std::net::TcpListener::bind(address).map_err(|error| {
        StartError(format!(
            "cannot listen on {address}: {error}; is another server running there? choose another with --http-bind"
        ))
    })
}

/// A shard's life: recover, report, serve, drain.
async fn live(birth: Birth, queue: executor::ShardQueue) {
    let Birth { id, shared, python, service, lock, ready, go, drained } = birth;
    let finished = Finished::new();
    let (shard, report) = match bring_up(id, &shared, queue, python, &finished, &lock).await {
        Ok(brought) => brought,
        Err(why) => {
            // Nobody is to wait for it at the stop.
            shared.faces[usize::from(id.0)].idle.store(true, Ordering::SeqCst);
            drop(ready.send(Err(why)));
            return;
        }
    };
    drop(ready.send(Ok((id, report))));
    // Nobody is served before every shard has recovered: a table's trigger or another shard's schema may be needed.
    if go.await.is_err() {
        return;
    }
    let under_way = Rc::new(run::UnderWay::default());
    shard.spawn(shard.clone().commit_rounds());
    shard.spawn(shard.clone().record_cursors());
    shard.spawn(shard.clone().keep_time());
    shard.spawn(shard.clone().make_runs(under_way.clone()));
    shard.spawn(shard.clone().take_finished(finished, under_way));
    let engine = EngineHandle { shared: shared.clone() };
    shard.spawn(shard.clone().serve_mailbox(move |shard, arrival| match arrival {
        Arrival::Listen(listener) => shard.spawn(deal_connections(shard.clone(), Acceptor::adopt(listener))),
        Arrival::Connection(accepted) => serve_connection(shard, &engine, &service, accepted),
    }));
    shard.stopped.wait().await;
    if shard.drain().await {
        shard.face().ended.store(Some(Arc::new(shard.log.end())));
    } else {
        drained.store(false, Ordering::Release);
    }
    if let Some(plugins) = shard.plugins.borrow_mut().as_mut() {
        plugins.rest();
    }
}

async fn bring_up(
    id: ShardId,
    shared: &Arc<Shared>,
    queue: executor::ShardQueue,
    python: Option<Arc<dyn PluginRuntime>>,
    finished: &Arc<Finished>,
    lock: &wal::DataDirLock,
) -> Result<(Rc<Shard>, RecoveryReport), String> {
    let plugins = match python {
        Some(python) => Some(python.attach(id, finished.clone()).map_err(|e| format!("shard {id}: Python: {e}"))?),
        None => None,
    };
    let log = log::Log::new(id, shared);
    let shard = Rc::new(Shard {
        id,
        shared: shared.clone(),
        queue,
        turns: Turns::of_this_thread(shared.faces[usize::from(id.0)].pulse.clone(), shared.config.loop_stall),
        parser: RefCell::new(LineParser::new()),
        owner: RefCell::new(own::Owner::new()),
        log,
        triggers: RefCell::new(triggers::TriggerSet::default()),
        plugins: RefCell::new(plugins),
        routes: RefCell::default(),
        tests: RefCell::default(),
        runnable: Notify::default(),
        cold: RefCell::default(),
        inline_budget: RefCell::new(InlineBudget::new(mono_now())),
        outbox: RefCell::new(triggers::Outbox::default()),
        ledger: RefCell::default(),
        letters: RefCell::default(),
        resumed: Cell::new(false),
        cursors_due: Notify::default(),
        agenda: RefCell::default(),
        time_due: Notify::default(),
        stopped: Once::default(),
        drained: Notify::default(),
        counters: stats::Counters::new(),
        writes_in_flight: Cell::new(0),
        chance: ahash::RandomState::new(),
    });
    let report = shard.recover(lock)?;
    shard.log.begin().await?;
    Ok((shard, report))
}

/// Accepts on one shard and deals to the least loaded.
async fn deal_connections(shard: Rc<Shard>, acceptor: Acceptor) {
    loop {
        match acceptor.accept().await {
            Ok(_) if shard.stopping() => return,
            Ok(accepted) => deal(&shard, accepted).await,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted; trying again in 100 ms (too many open files? see `ulimit -n`)");
                crate::io::net::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn deal(shard: &Rc<Shard>, accepted: Accepted) {
    let to = shard.shared.least_loaded();
    shard.counters.connections_accepted.add(1);
    shard.shared.faces[usize::from(to.0)].connections.fetch_add(1, Ordering::Relaxed);
    loop {
        if let Some(room) = shard.shared.mailbox(to).reserve(0) {
            room.put(|_| Message::Arrival(Arrival::Connection(accepted)));
            return;
        }
        crate::io::net::sleep(Duration::from_millis(1)).await;
    }
}

/// Gives a connection's place back, however its task ends.
struct Connected(Rc<Shard>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.face().connections.fetch_sub(1, Ordering::Relaxed);
        self.0.drained.notify();
    }
}

fn serve_connection(
    shard: &Rc<Shard>,
    engine: &EngineHandle,
    service: &Arc<dyn ConnectionService>,
    accepted: Accepted,
) {
    let connected = Connected(shard.clone());
    let Some((stream, peer)) = accepted.bind() else { return };
    let handle = ShardHandle { shard: shard.clone(), engine: engine.clone() };
    let serving = service.serve(handle, stream, peer);
    shard.spawn(async move {
        let _connected = connected;
        serving.await;
    });
}
