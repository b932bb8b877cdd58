//! The worker process: a whole CPython that makes the runs of one trigger.
//!
//! # Mechanism
//! 1. The process's first thread is Python's main thread: it starts Python, says that it is ready, and makes runs one after
//!    the other. It waits for its orders itself, at a socket of its own, so nobody stands between the server and the run. While it waits,
//!    the plugin's own threads have the GIL.
//! 2. A second thread takes all other messages. It needs no GIL, so the server's end, a stop, and answers to queries are noticed
//!    whatever Python does. When the socket closes it ends the process.
//! 3. The watchdog of `deadline` interrupts runs, as in the other lanes; the server kills the process if that does not help.
//!
//! What is *not* here: the refusals of the other lanes. `os._exit`, signals, `fork` and `ctypes` hurt nobody but this process.

use std::collections::HashMap;
use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use saltus_core::ids::{Epoch, EventId, MonoNs, RoomId, RunId, Sequence, ShardId, Stream, TriggerId};
use saltus_core::limits::CACHE_SAVED_BYTES_MAX;
use saltus_core::policy;
use saltus_core::ports::{
    CodeSource, LogLine, LogText, PluginCode, PluginError, PluginHost, RunEvent, RunRecord, RunReport, RunRequest,
    SyncWrite, TableBatch, Trigger,
};
use saltus_core::query_param::QueryParam;
use saltus_core::request::{AnswerSlot, PluginRequest, PluginResponse, ResponseHead};
use saltus_core::state::{State, StateChange};
use saltus_core::trigger::{ErrorBehavior, Execution, Isolation, Timing, TriggerDef, TriggerLimits, TriggerSpec};
use serde::de::DeserializeOwned;

use super::answers::{Room, WorkerSlot};
use super::channel::{Attached, Channel, Packet, Received};
use super::message::{Blob, CacheAsk, CacheSaid, Event, FromWorker, Order, Request, Response, Run, Table, ToWorker};
use super::{memory, rows, system};
use crate::deadline;
use crate::effects::{self, Lane};
use crate::ffi::{pylifecycle, time};
use crate::global_cache::{self, Found, Store, Who};
use crate::interpreter::{Interpreter, failure};
use crate::prepare::Prepared;
use crate::runtime::Priority;
use crate::runtime::{STOP_GRACE, find_home};

/// The exit code of a process that was not started by a server.
const NOT_A_WORKER: u8 = 2;

/// The whole of a worker process, on its first thread. Standard input must be the socket that the server's runtime
/// has made ([`ProcessConfig::program`](super::ProcessConfig::program)); does not return while the server lives.
pub fn worker_main() -> ExitCode {
    let channel = system::take_socket().and_then(Channel::over);
    let channel = match channel {
        Ok(channel) => Arc::new(channel),
        Err(error) => {
            eprintln!("`saltus worker` is started by the server and not by hand: standard input is {error}");
            return ExitCode::from(NOT_A_WORKER);
        }
    };
    let Err(error) = live(&channel);
    let _gone = channel.send(&FromWorker::Refused(error.into()), &Attached::Nothing);
    ExitCode::FAILURE
}

fn live(channel: &Arc<Channel>) -> Result<Infallible, PluginError> {
    let os_error = |what: &str, error: &dyn std::fmt::Display| failure("WorkerNotStarted", &format!("{what}: {error}"));
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| os_error("the worker cannot be tied to the server", &e))?;
    let hello = channel.receive(&mut Packet::default(), true).map_err(|e| os_error("the first message", &e))?;
    let Received::Message(ToWorker::Hello { server, surroundings, memory_max }, Attached::File(orders)) = hello else {
        return Err(os_error("the first message", &"it is another one"));
    };
    let orders = Channel::over(orders).map_err(|e| os_error("the connection for orders", &e))?;
    // A server that ended before the line above has left no signal.
    if rustix::process::getppid().map(Pid::as_raw_nonzero).map(std::num::NonZeroI32::get) != i32::try_from(server).ok()
    {
        system::exit_now(1);
    }
    // If the system runs out of memory it is to end workers, not the database. Some systems forbid even that.
    let _not_allowed = std::fs::write("/proc/self/oom_score_adj", "500");

    let home = find_home().map_err(|text| failure("RuntimeError", &text))?;
    crate::native::register();
    let py = pylifecycle::initialize(&home, false, None).map_err(|text| failure("RuntimeError", &text))?;
    let mut interpreter = Interpreter::of_worker(py, &surroundings)?;
    if let Some(memory_max) = memory_max {
        limit_memory(memory_max).map_err(|e| os_error("the memory of the worker cannot be limited", &e))?;
    }

    let proxy = Arc::new(Proxy::new(channel.clone()));
    global_cache::reach_through(Box::new(ServersCache(proxy.clone())));
    let postman = Postman { proxy: proxy.clone() };
    std::thread::Builder::new()
        .name("saltus-messages".to_owned())
        .spawn(move || postman.live())
        .map_err(|e| os_error("the thread for messages", &e))?;
    let host: Arc<dyn PluginHost> = proxy.clone();
    let mut orders =
        Orders { channel: orders, packet: Packet::default(), proxy: proxy.clone(), code: None, state: Arc::default() };
    let _gone = channel.send(&FromWorker::Ready, &Attached::Nothing);
    let mut long = false;
    loop {
        let ToBeRun { request, code, prepared, cache } = match interpreter.while_waiting(|| orders.next()) {
            Task::Run(run) => *run,
            Task::GiveCache => {
                give_cache(&interpreter, channel);
                continue;
            }
        };
        if std::mem::replace(&mut long, request.long) != request.long {
            give_way(long);
        }
        if let Some(cache) = cache
            && let Err(error) = interpreter.put_cache(request.trigger.def.id, &cache)
        {
            eprintln!("the cache that was kept is lost: {}", error.message);
        }
        proxy.begin(request.deadline);
        let mut report = interpreter.run(&host, request, &code, &prepared, Lane::Deferred);
        if std::process::id() != proxy.process {
            // A child that the plugin has forked came here as well: the run is its parent's.
            system::exit_now(0);
        }
        proxy.judge(&mut report);
        interpreter.while_waiting(|| proxy.report(report));
    }
}

/// Runs that take long give way to everybody else's. Only who may do so gets a priority back: without that the next worker has it.
fn give_way(long: bool) {
    let priority = if long { Priority::Long } else { Priority::Short };
    if let Err(error) = priority.take() {
        eprintln!("this process keeps its priority: {error}");
    }
}

/// What Python's thread is to do.
enum Task {
    Run(Box<ToBeRun>),
    GiveCache,
}

/// A run and its code.
struct ToBeRun {
    request: RunRequest,
    code: Arc<PluginCode>,
    prepared: Arc<Prepared>,
    cache: Option<Vec<u8>>,
}

fn give_cache(interpreter: &Interpreter, channel: &Channel) {
    let (mut cache, mut live) = (Vec::new(), Vec::new());
    // There is one trigger in this process.
    if let Some((_, bytes, keys)) = interpreter.dump_caches().into_iter().next() {
        (cache, live) = (bytes, keys);
    }
    if cache.len() > CACHE_SAVED_BYTES_MAX {
        // Too large for a message; the server says so.
        cache = vec![0; CACHE_SAVED_BYTES_MAX + 1];
    }
    let _gone = channel.send(&FromWorker::Kept { cache: Blob(cache), live }, &Attached::Nothing);
}

/// Lets this process take so many bytes more than it has. Counts private writable memory, so neither the shared batches nor
/// address space that a library only reserves.
pub fn limit_memory(more: u64) -> std::io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let has_kb = status.lines().find_map(|line| line.strip_prefix("VmData:")?.trim().strip_suffix(" kB")?.parse().ok());
    let has_kb: u64 = has_kb.ok_or_else(|| std::io::Error::other("the system does not say what the process has"))?;
    let limit = Some(has_kb.saturating_mul(1024).saturating_add(more));
    Ok(rustix::process::setrlimit(Resource::Data, Rlimit { current: limit, maximum: limit })?)
}

/// What the server says to a question.
enum Answer {
    Rows(Result<Vec<RecordBatch>, String>),
    Written(Result<(), String>),
    Cached(CacheSaid),
}

/// What plugins reach outside of the process: the server, over the socket.
struct Proxy {
    channel: Arc<Channel>,
    /// This process; a child that a plugin forks shares the socket, but gets no answers.
    process: u32,
    asked: AtomicU64,
    /// Questions without an answer yet.
    waiting: Mutex<HashMap<u64, Sender<Answer>>>,
    /// When the run of now is to be over.
    deadline_ns: AtomicU64,
    /// Its query was given up then.
    gave_up: AtomicBool,
    /// For its streamed answer.
    room: Arc<Room>,
}

impl Proxy {
    fn new(channel: Arc<Channel>) -> Self {
        Proxy {
            channel,
            process: std::process::id(),
            asked: AtomicU64::new(0),
            waiting: Mutex::default(),
            deadline_ns: AtomicU64::new(u64::MAX),
            gave_up: AtomicBool::new(false),
            room: Arc::default(),
        }
    }

    fn begin(&self, limit: Duration) {
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        self.deadline_ns.store(time::now().0.saturating_add(limit), Ordering::Relaxed);
    }

    /// A run whose query was given up at its deadline has overrun it, whatever it made of that: the exception of the query
    /// may have left the plugin before the watchdog's came.
    fn judge(&self, report: &mut RunReport) {
        if !self.gave_up.swap(false, Ordering::Relaxed) {
            return;
        }
        let limit = report.request.deadline.as_millis();
        let timeout = failure("PluginTimeout", &format!("the run took longer than its deadline of {limit} ms"));
        report.writes.clear();
        report.response = None;
        report.result = match std::mem::replace(&mut report.result, Ok(())) {
            Err(error) if error.kind == timeout.kind => Err(error),
            Err(error) => Err(PluginError { traceback: error.traceback, ..timeout }),
            Ok(()) => Err(timeout),
        };
    }

    fn report(&self, report: RunReport) {
        let RunReport { request, result, writes, response, state, entered, finished, cost_ns, .. } = report;
        let body = response.as_ref().and_then(|response| response.body.as_ref());
        let body = body.map_or(Ok(Attached::Nothing), |body| Attached::bytes(body));
        let (result, writes, body) = match body {
            Ok(body) => (result, writes, body),
            Err(e) => {
                let text = format!("the response cannot be shared with the server: {e}");
                (Err(failure("OSError", &text)), Vec::new(), Attached::Nothing)
            }
        };
        let message = FromWorker::Finished {
            run_id: request.run_id.0,
            result: result.map_err(Into::into),
            writes: writes.into_iter().map(|write| (write.db.to_string(), write.lines)).collect(),
            response: response.map(|PluginResponse { head: ResponseHead { status, headers }, body }| Response {
                status,
                headers,
                streamed: body.is_none(),
            }),
            state: state.into_iter().map(|c| (c.key.to_string(), c.value.map(|value| value.to_string()))).collect(),
            entered_ns: entered.map(|at| at.0),
            finished_ns: finished.0,
            cost_ns,
        };
        // The rows are let go first: the server may count on their memory when it has the report.
        drop(request);
        if self.channel.send(&message, &body).is_err() {
            system::exit_now(1);
        }
    }

    /// Asks the server, and waits no longer than the run may take.
    fn ask(&self, what: &str, question: impl FnOnce(u64) -> FromWorker) -> Result<Answer, String> {
        if std::process::id() != self.process {
            return Err(format!("a forked child of a plugin cannot have {what}: only its parent is connected"));
        }
        let id = self.asked.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = channel::bounded(1);
        self.waiting.lock().insert(id, sender);
        let answer = match self.channel.send(&question(id), &Attached::Nothing) {
            Ok(()) => self.wait(what, &answer),
            Err(error) => Err(format!("{what} cannot be sent to the server: {error}")),
        };
        self.waiting.lock().remove(&id);
        answer
    }

    fn wait(&self, what: &str, answer: &Receiver<Answer>) -> Result<Answer, String> {
        loop {
            let left = self.deadline_ns.load(Ordering::Relaxed).saturating_sub(time::now().0);
            if left == 0 {
                self.gave_up.store(true, Ordering::Relaxed);
                return Err(format!("{what} had no answer when the time of its run was up"));
            }
            match answer.recv_timeout(Duration::from_nanos(left)) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err("the database is shutting down".to_owned()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// The server's global cache.
struct ServersCache(Arc<Proxy>);

impl ServersCache {
    fn ask(&self, ask: CacheAsk) -> Result<CacheSaid, String> {
        match self.0.ask("the global cache", |id| FromWorker::Cache { id, ask })? {
            Answer::Cached(said) => Ok(said),
            Answer::Rows(_) | Answer::Written(_) => Err(MIXED_UP.to_owned()),
        }
    }
}

impl Store for ServersCache {
    fn get(&self, key: &str, known: Option<u64>, _who: &Who) -> Result<Found, String> {
        match self.ask(CacheAsk::Get { key: key.to_owned(), known })? {
            CacheSaid::Same => Ok(Found::Same),
            CacheSaid::Newer { value: Blob(bytes), expiry, version } => Ok(Found::Newer { bytes, expiry, version }),
            CacheSaid::Nothing => Ok(Found::Nothing),
            CacheSaid::Elsewhere { room, place } => Ok(Found::Elsewhere { room: room.map(RoomId), place }),
            CacheSaid::Put(_) | CacheSaid::Deleted(_) => Err(MIXED_UP.to_owned()),
        }
    }

    fn put(&self, key: &str, value: Option<Vec<u8>>, expiry: Option<u64>, _who: &Who) -> Result<u64, String> {
        match self.ask(CacheAsk::Put { key: key.to_owned(), value: value.map(Blob), expiry })? {
            CacheSaid::Put(version) => Ok(version),
            _ => Err(MIXED_UP.to_owned()),
        }
    }

    fn delete(&self, key: &str) -> Result<bool, String> {
        match self.ask(CacheAsk::Delete { key: key.to_owned() })? {
            CacheSaid::Deleted(existed) => Ok(existed),
            _ => Err(MIXED_UP.to_owned()),
        }
    }
}

/// An answer to another question: a bug of ours.
const MIXED_UP: &str = "the server has answered another question";

impl PluginHost for Proxy {
    fn log(&self, line: LogLine) {
        let LogLine { run_id, level, text, .. } = line;
        // That runs begin and end the server says itself: nobody is woken for that before the plugin is entered.
        let LogText::Said(text) = text else { return };
        let message = FromWorker::Log { run_id: run_id.0, level: level.into(), text };
        // If the server is gone, so is this process, at once.
        let _gone = self.channel.send(&message, &Attached::Nothing);
    }

    fn record(&self, _record: RunRecord) {
        // Shards keep records of runs; there is none here.
    }

    fn disable(&self, _trigger: &TriggerDef, _reason: String) {
        // Shards disable triggers; there is none here.
    }

    fn query(&self, db: &str, sql: &str, params: &[(String, QueryParam)]) -> Result<Vec<RecordBatch>, String> {
        let (db, sql, params) = (db.to_owned(), sql.to_owned(), params.to_vec());
        match self.ask("the query", |id| FromWorker::Query { id, db, sql, params })? {
            Answer::Rows(result) => result,
            Answer::Written(_) | Answer::Cached(_) => Err(MIXED_UP.to_owned()),
        }
    }

    fn write(&self, write: SyncWrite) -> Result<(), String> {
        // How deep the chain is, the server knows.
        let SyncWrite { db, lines, no_sync, .. } = write;
        let db = db.to_string();
        match self.ask("the write", |id| FromWorker::Write { id, db, lines, no_sync })? {
            Answer::Written(result) => result,
            Answer::Rows(_) | Answer::Cached(_) => Err(MIXED_UP.to_owned()),
        }
    }

    fn check_write(&self, _shard: ShardId, _db: &str, _lines: &str) -> Result<bool, String> {
        // Nothing runs inline here.
        Ok(false)
    }
}

/// The next message; the process ends with its connection.
fn next<M: DeserializeOwned>(channel: &Channel, packet: &mut Packet) -> (M, Attached) {
    let code = match channel.receive(packet, true) {
        Ok(Received::Message(message, attached)) => return (message, attached),
        Ok(Received::Closed | Received::Nothing) => 0,
        Err(error) => {
            eprintln!("the connection to the server is broken: {error}");
            1
        }
    };
    system::exit_now(code)
}

/// The thread that takes messages.
struct Postman {
    proxy: Arc<Proxy>,
}

impl Postman {
    fn live(self) -> ! {
        let mut packet = Packet::default();
        loop {
            let (message, attached) = next(&self.proxy.channel, &mut packet);
            self.take(message, attached);
        }
    }

    fn take(&self, message: ToWorker, attached: Attached) {
        match message {
            ToWorker::Answer { id, result } => {
                let result = result
                    .and_then(|segments| memory::read(attached, &segments).map_err(|e| format!("the result: {e}")));
                self.answer(id, Answer::Rows(result));
            }
            ToWorker::Written { id, result } => self.answer(id, Answer::Written(result)),
            ToWorker::Cached { id, said } => self.answer(id, Answer::Cached(said)),
            ToWorker::Interrupt => {
                effects::stop();
                self.proxy.waiting.lock().clear();
                self.proxy.room.close();
                // A plugin that hears of the stop by its next call may still do something about it.
                let later = || {
                    std::thread::sleep(STOP_GRACE);
                    deadline::interrupt_all();
                };
                if std::thread::Builder::new().name("saltus-stop".to_owned()).spawn(later).is_err() {
                    deadline::interrupt_all();
                }
            }
            ToWorker::Room { run_id, gone } => self.proxy.room.told(run_id, gone),
            ToWorker::Hello { .. } => {}
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        let waiting = self.proxy.waiting.lock().remove(&id);
        if let Some(waiting) = waiting {
            // One that gave up waiting needs no answer.
            let _gone = waiting.send(answer);
        }
    }
}

/// The end of the connection that orders come by, and what was learned from earlier ones.
struct Orders {
    channel: Channel,
    packet: Packet,
    proxy: Arc<Proxy>,
    /// The code of the run before.
    code: Option<(Arc<PluginCode>, Arc<Prepared>)>,
    /// The trigger's state, as the server sent it last.
    state: Arc<State>,
}

impl Orders {
    /// Waits for what is to be done next. Needs no GIL.
    fn next(&mut self) -> Task {
        loop {
            let (order, attached) = next(&self.channel, &mut self.packet);
            let run = match order {
                Order::Run(run) => *run,
                Order::GiveCache => return Task::GiveCache,
            };
            match self.run_of(run, attached) {
                Ok(Some(run)) => return Task::Run(Box::new(run)),
                Ok(None) => {}
                Err(error) => {
                    eprintln!("an order of the server is not understood: {error}");
                    system::exit_now(1)
                }
            }
        }
    }

    /// The run of an order; `None` if it is not to be made as the plugin's file has changed.
    fn run_of(&mut self, run: Run, attached: Attached) -> Result<Option<ToBeRun>, ArrowError> {
        let proxy = &self.proxy;
        if let Some(entries) = run.state {
            let mut state = State::of_revision(run.state_revision);
            for (key, value) in entries {
                state.apply(&StateChange { key: key.into(), value: Some(value.into()) });
            }
            self.state = Arc::new(state);
        }
        if run.unless_changed.is_some_and(|file| !file.is_as_it_was()) {
            let message = FromWorker::Changed { run_id: run.run_id };
            if proxy.channel.send(&message, &Attached::Nothing).is_err() {
                system::exit_now(1);
            }
            return Ok(None);
        }
        let slot =
            || Arc::new(WorkerSlot::new(proxy.channel.clone(), proxy.room.clone(), run.run_id)) as Arc<dyn AnswerSlot>;
        let event = run_event(run.event, attached, slot)?;
        if let Some(code) = run.code {
            let hash = run.code_hash;
            let prepared = Prepared {
                code: code.compiled.map(|Blob(bytes)| bytes).map_err(Into::into),
                reusable: code.reusable,
                inline: Ok(()),
                imports: Vec::new(),
            };
            let code = PluginCode { source: code.source.into(), hash, directory: code.directory.map(Arc::new) };
            self.code = Some((Arc::new(code), Arc::new(prepared)));
        }
        let code = self.code.clone().filter(|(code, _)| code.hash == run.code_hash);
        let (code, prepared) = code.ok_or_else(|| ArrowError::IpcError("a run without its code".to_owned()))?;
        // What a run does not look at is as good as any.
        let def = TriggerDef {
            id: TriggerId(run.trigger_id),
            name: run.trigger.into(),
            db: run.db.into(),
            plugin_filename: run.plugin_filename,
            spec: TriggerSpec::AllTables,
            run_async: false,
            error_behavior: ErrorBehavior::Log,
            execution: Execution::Deferred,
            isolation: Isolation::Process,
            limits: TriggerLimits::default(),
            timing: Timing { time_zone: run.time_zone, ..Timing::default() },
            api: run.api.into(),
            arguments: run.arguments,
            disabled: false,
            disabled_reason: None,
        };
        let request = RunRequest {
            run_id: RunId(run.run_id),
            trigger: Arc::new(Trigger { def, code: Arc::new(ThisCode(code.clone())) }),
            event,
            shard: ShardId(run.shard),
            lane: policy::Lane::Process,
            deadline: Duration::from_nanos(run.deadline_ns),
            limits: run.limits,
            received: MonoNs(run.received_ns),
            depth: run.depth,
            attempt: run.attempt,
            // In the server, where what plugins do is caught.
            test_host: None,
            state: self.state.clone(),
            // The server interrupts it by a message.
            stop: Arc::default(),
            may_move: false,
            long: run.long,
        };
        Ok(Some(ToBeRun { request, code, prepared, cache: run.cache.map(|Blob(bytes)| bytes) }))
    }
}

/// The event, over what came with its order.
fn run_event(
    event: Event,
    attached: Attached,
    slot: impl FnOnce() -> Arc<dyn AnswerSlot>,
) -> Result<RunEvent, ArrowError> {
    let tables = match event {
        Event::Writes(tables) => tables,
        Event::Schedule(call) => return Ok(RunEvent::Schedule(call)),
        Event::Request(request) => {
            let Request { method, path, tail, query_string, query, headers, peer, streams } = *request;
            let (path, body, answer) = (path.into(), attached.into_bytes()?, streams.then(slot));
            let request = PluginRequest { method, path, tail, query_string, query, headers, body, peer, answer };
            return Ok(RunEvent::Request(Arc::new(request)));
        }
    };
    let bytes = attached.into_buffer()?;
    let tables = tables.into_iter().map(|table| {
        let Table { name, id: (epoch, shard, sequence), rows, all_columns } = table;
        let stream = Stream { epoch: Epoch(epoch), shard: ShardId(shard) };
        let id = EventId { stream, sequence: Sequence(sequence) };
        let all_columns = all_columns.map(|all| all.into_iter().map(Arc::from).collect());
        Ok(TableBatch { table: name.into(), batch: Arc::new(rows::read(&bytes, &rows)?), id, all_columns })
    });
    Ok(RunEvent::Writes(tables.collect::<Result<_, ArrowError>>()?))
}

/// Code that the server has looked up.
struct ThisCode(Arc<PluginCode>);

impl CodeSource for ThisCode {
    fn current(&self) -> Arc<PluginCode> {
        self.0.clone()
    }
}
