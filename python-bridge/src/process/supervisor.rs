//! One trigger's worker process, seen from the server: a thread that hands it runs, serves it, and ends it.
//!
//! The thread waits for four things at once: its desk's bell, the worker's messages, the worker's standard error and the
//! worker's end. Queries run on threads of their own, so that a slow one keeps nothing else waiting.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::TryRecvError;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal};
use rustix::time::Timespec;
use saltus_core::ids::{EventId, MonoNs, RunId, TriggerId};
use saltus_core::limits::{
    CACHE_SAVE_MS, PROCESS_QUERIES_MAX, PROCESS_RESTART_PAUSE_MAX_MS, PROCESS_RESTART_PAUSE_MIN_MS, PROCESS_START_MS,
    PROCESS_STDERR_BYTES_MAX,
};
use saltus_core::ports::{
    CodeVerdict, LogLine, PluginCode, PluginError, PluginHost, QueuedWrite, RunEvent, RunReport, RunRequest, RunStop,
    SyncWrite, TableBatch,
};
use saltus_core::query_param::QueryParam;
use saltus_core::request::{PluginRequest, PluginResponse, ResponseHead};
use saltus_core::state::{State, StateChange};
use saltus_core::trigger::{TriggerDef, TriggerSpec};

use super::Workers;
use super::answers::Forward;
use super::channel::{Channel, Received, read_available};
use super::desk::Takings;
use super::memory;
use super::message::{
    Blob, CacheAsk, CacheSaid, Code, Event, Failure, FromWorker, Request, Response, Run, Table, ToWorker,
};
use super::starter::Started;
use crate::effects;
use crate::ffi::time;
use crate::global_cache::{self, Home, Who};
use crate::interpreter::failure;
use crate::prepare::Prepared;

/// Makes CPython say on the worker's standard error what each of its threads does (`saltus._setup.install`).
pub const TELL_YOUR_STACK: Signal = Signal::XCPU;
/// How long a worker that is to be killed may take to say what it does.
const STACK_MAX: Duration = Duration::from_millis(200);
/// How long a killed process may take to be gone; one that hangs in the kernel is left to it.
const GONE_MAX: Duration = Duration::from_secs(5);
/// A run without a deadline worth the name is killed after so long.
const RUN_MAX: Duration = Duration::from_secs(365 * 86_400);
/// A worker that closed its socket is about to end.
const CLOSING_MAX: Duration = Duration::from_secs(1);

/// See the header.
pub struct Supervisor {
    workers: Arc<Workers>,
    takings: Takings,
    trigger: Arc<str>,
    process: Option<Process>,
    /// Deaths since a run finished.
    deaths: u32,
    /// No process is started before.
    not_before: Option<Instant>,
    /// The run of now was handed to a worker.
    begun: bool,
    /// The worker was told to end its run, and with it itself.
    told_to_stop: bool,
    /// Whose runs they are, and whether its cache is to be kept.
    whose: Option<(TriggerId, bool)>,
}

/// A run that came to an end in the worker.
struct Done {
    result: Result<(), PluginError>,
    writes: Vec<QueuedWrite>,
    response: Option<PluginResponse>,
    state: Vec<StateChange>,
    entered: Option<MonoNs>,
    finished: MonoNs,
    cost_ns: u64,
}

/// Why a worker has no future.
enum End {
    /// It is over.
    Died(String),
    /// It did not answer in time.
    Late,
    /// The server stops and waits no longer.
    Stopped,
}

impl Supervisor {
    /// For the runs of one desk.
    pub fn new(workers: Arc<Workers>, takings: Takings, trigger: Arc<str>) -> Self {
        Supervisor {
            workers,
            takings,
            trigger,
            process: None,
            deaths: 0,
            not_before: None,
            begun: false,
            told_to_stop: false,
            whose: None,
        }
    }

    /// Makes runs until there have been none for long, or the server stops.
    pub fn live(mut self) {
        let mut idle_since = Instant::now();
        loop {
            if self.stopping() {
                // What waits was not begun; it is nobody's failure.
                self.takings.desk.close();
                break;
            }
            let request = self.takings.runs.try_recv();
            if matches!(request, Err(TryRecvError::Disconnected)) {
                // The shard is gone.
                break;
            }
            if let Ok(request) = request {
                self.workers.shared.running.fetch_add(1, Ordering::SeqCst);
                let report = self.run(*request);
                self.takings.desk.done();
                if self.begun || !self.stopping() {
                    self.takings.completions.completed(report);
                }
                self.workers.shared.running.fetch_sub(1, Ordering::SeqCst);
                idle_since = Instant::now();
                continue;
            }
            let until = idle_since + self.workers.config.idle;
            if Instant::now() >= until && self.takings.desk.close_if_empty() {
                break;
            }
            self.idle(until.max(Instant::now() + Duration::from_millis(1)));
        }
        if let Some(mut process) = self.process.take() {
            self.keep_cache(&mut process);
            tracing::info!(pid = process.pid(), trigger = %self.trigger, "a worker process is ended");
            self.end(process);
        }
    }

    /// Takes from a worker that is to be ended what the next one is to have.
    fn keep_cache(&self, process: &mut Process) {
        let Some((trigger, true)) = self.whose else { return };
        if self.takings.desk.is_forgotten() || process.channel.send(&ToWorker::GiveCache, None).is_err() {
            return;
        }
        let until = Instant::now() + Duration::from_millis(CACHE_SAVE_MS);
        while Instant::now() < until {
            match process.next(&self.takings, until) {
                Ok(Some(FromWorker::Kept { cache: Blob(cache), live })) => {
                    return self.workers.shared.vault.put(trigger, cache, &live);
                }
                Ok(Some(message)) => process.serve(message),
                Ok(None) => {}
                Err(_) => break,
            }
        }
        tracing::warn!(trigger = %self.trigger, "the cache of a worker process is lost: it did not give it away");
    }

    fn stopping(&self) -> bool {
        self.workers.shared.stopping.load(Ordering::SeqCst)
    }

    /// Serves the worker once, between runs.
    fn idle(&mut self, until: Instant) {
        let Some(mut process) = self.process.take() else {
            let mut bell = [PollFd::new(&self.takings.desk, PollFlags::IN)];
            let _again = poll(&mut bell, timeout(until).as_ref());
            return self.takings.desk.silence();
        };
        let ended = match process.next(&self.takings, until) {
            Ok(Some(
                FromWorker::Finished { .. } | FromWorker::Ready | FromWorker::Refused(_) | FromWorker::Kept { .. },
            )) => Some("said something that nobody had asked for".to_owned()),
            Ok(Some(message)) => {
                process.serve(message);
                None
            }
            Ok(None) => None,
            Err(End::Died(how)) => Some(how),
            Err(End::Late | End::Stopped) => None,
        };
        match ended {
            Some(how) => {
                let error = self.died(process, &how, "while it had no run");
                tracing::debug!(%error, "an idle worker died");
            }
            None => self.process = Some(process),
        }
    }

    fn run(&mut self, request: RunRequest) -> RunReport {
        if request.stop.cause().is_some() {
            return RunReport::not_run(request, cancelled(), time::now());
        }
        let code = request.trigger.code.refresh();
        let prepared = self.workers.shared.preparer.prepare(&code, &request.trigger.def.plugin_filename);
        let verdict = CodeVerdict { hash: code.hash, inline: prepared.inline.clone() };
        let report = match self.attempt(&request, &code, &prepared) {
            Ok(Done { result, writes, response, state, entered, finished, cost_ns }) => RunReport {
                request,
                result,
                writes,
                response,
                state,
                entered,
                finished,
                cost_ns,
                code: None,
                reached: None,
                unwound: None,
                memory: None,
            },
            Err(error) => RunReport::not_run(request, error, time::now()),
        };
        RunReport { code: Some(verdict), ..report }
    }

    fn attempt(&mut self, request: &RunRequest, code: &PluginCode, prepared: &Prepared) -> Result<Done, PluginError> {
        self.begun = false;
        let (event, rows) = event(&request.event)
            .map_err(|e| failure("WorkerNotStarted", &format!("the event cannot be shared with the worker: {e}")))?;
        let mut message = ToWorker::Run(Box::new(run_message(request, code, event)));
        let (shared, def) = (self.workers.shared.clone(), &request.trigger.def);
        let wants_cache = shared.vault.wants(def);
        self.whose = Some((def.id, wants_cache));
        let mut process = match self.process.take() {
            Some(process) => process,
            None => self.start_process(request.limits.memory_bytes)?,
        };
        (process.depth, process.trigger_id) = (request.depth, request.trigger.def.id);
        let kept = shared.vault.get(def.id).filter(|_| wants_cache);
        if process.hand_over(&mut message, code, prepared, rows.as_ref(), (&request.state, kept.as_deref())).is_err() {
            // It has died since the last run and nobody has noticed: the run has not begun.
            let error = self.died(process, "closed its connection", "while it had no run");
            tracing::debug!(%error, "an idle worker died");
            process = self.start_process(request.limits.memory_bytes)?;
            let rest = (&*request.state, kept.as_deref());
            if let Err(error) = process.hand_over(&mut message, code, prepared, rows.as_ref(), rest) {
                let how = format!("did not take the run ({error})");
                return Err(self.died(process, &how, "before the run"));
            }
        }
        self.begun = true;
        process.stop = request.stop.clone();
        process.host = request.test_host.clone().unwrap_or_else(|| self.workers.shared.host.clone());
        // The worker has it.
        shared.vault.forget(def.id);
        let kill_at = Instant::now() + request.deadline.saturating_add(self.workers.config.kill_grace).min(RUN_MAX);
        match self.serve_run(&mut process, request, kill_at) {
            Ok(done) => {
                self.deaths = 0;
                if self.told_to_stop {
                    // It takes no further run.
                    self.keep_cache(&mut process);
                    self.end(process);
                } else {
                    self.process = Some(process);
                }
                if request.stop.cause().is_some() { Err(cancelled()) } else { Ok(done) }
            }
            Err(End::Died(how)) => Err(self.died(process, &how, "during the run")),
            Err(End::Late) => Err(self.killed(process, request.deadline)),
            Err(End::Stopped) => {
                self.end(process);
                if !self.stopping() {
                    return Err(cancelled());
                }
                Err(failure(PluginError::STOPPED, "the database is shutting down"))
            }
        }
    }

    /// Serves the worker until its run is over.
    fn serve_run(&mut self, process: &mut Process, request: &RunRequest, kill_at: Instant) -> Result<Done, End> {
        let run = request.run_id;
        let slot = match &request.event {
            RunEvent::Request(asked) => asked.answer.as_ref(),
            RunEvent::Writes(_) | RunEvent::Schedule(_) => None,
        };
        let mut forward = Forward::default();
        let mut kill_at = kill_at;
        self.told_to_stop = false;
        loop {
            let cancelled = request.stop.cause().is_some();
            if (self.stopping() || cancelled) && !self.told_to_stop {
                self.told_to_stop = true;
                let _gone = process.channel.send(&ToWorker::Interrupt, None);
                kill_at = kill_at.min(Instant::now() + self.workers.config.kill_grace);
            }
            match process.next(&self.takings, kill_at) {
                Ok(Some(FromWorker::Finished {
                    run_id,
                    result,
                    writes,
                    response,
                    state,
                    entered_ns,
                    finished_ns,
                    cost_ns,
                })) if run_id == run.0 => {
                    let body = memory::read_bytes(process.attached.take().as_ref());
                    let body = body.map_err(|e| End::Died(format!("sent a response that cannot be read ({e})")))?;
                    let queued = |(db, lines): (String, String)| QueuedWrite { db: db.into(), lines, no_sync: false };
                    let changed = |(key, value): (String, Option<String>)| StateChange {
                        key: key.into(),
                        value: value.map(Into::into),
                    };
                    return Ok(Done {
                        result: result.map_err(PluginError::from),
                        writes: writes.into_iter().map(queued).collect(),
                        response: response.map(|Response { status, headers, streamed }| PluginResponse {
                            head: ResponseHead { status, headers },
                            body: (!streamed).then_some(body),
                        }),
                        state: state.into_iter().map(changed).collect(),
                        entered: entered_ns.map(MonoNs),
                        finished: MonoNs(finished_ns),
                        cost_ns,
                    });
                }
                Ok(Some(
                    FromWorker::Finished { .. } | FromWorker::Ready | FromWorker::Refused(_) | FromWorker::Kept { .. },
                )) => {
                    return Err(End::Died("said something that nobody had asked for".to_owned()));
                }
                Ok(Some(FromWorker::Stream { run_id, response })) if run_id == run.0 => {
                    let gone = !forward.begin(slot, response);
                    process.tell(&ToWorker::Room { run_id, gone });
                }
                Ok(Some(FromWorker::Piece { run_id })) if run_id == run.0 => {
                    let piece = memory::read_bytes(process.attached.take().as_ref());
                    let piece = piece.map_err(|e| End::Died(format!("sent a piece that cannot be read ({e})")))?;
                    let gone = !forward.piece(piece, kill_at, || self.stopping());
                    process.tell(&ToWorker::Room { run_id, gone });
                }
                Ok(Some(FromWorker::Write { id, .. })) if cancelled => {
                    process.tell(&ToWorker::Written { id, result: Err(effects::CANCELLED.to_owned()) });
                }
                Ok(Some(message)) => process.serve(message),
                Ok(None) if Instant::now() < kill_at => {}
                Ok(None) if self.told_to_stop => return Err(End::Stopped),
                Ok(None) => return Err(End::Late),
                Err(end) => return Err(end),
            }
        }
    }

    /// Starts a worker, if need be after a pause, and waits until its Python is up.
    fn start_process(&mut self, memory_max: u64) -> Result<Process, PluginError> {
        while let Some(when) = self.not_before.filter(|when| *when > Instant::now() && !self.stopping()) {
            let mut bell = [PollFd::new(&self.takings.desk, PollFlags::IN)];
            let _again = poll(&mut bell, timeout(when).as_ref());
            self.takings.desk.silence();
        }
        let started = self.workers.starter.start_process().map_err(|error| {
            self.deaths = self.deaths.saturating_add(1);
            self.not_before = Some(Instant::now() + pause(self.deaths));
            failure("WorkerNotStarted", &format!("the worker process cannot be started: {error}"))
        })?;
        self.workers.counters.started.fetch_add(1, Ordering::Relaxed);
        self.workers.counters.alive.fetch_add(1, Ordering::Relaxed);
        let mut process = Process::new(started, self.trigger.clone(), self.workers.shared.host.clone());
        tracing::info!(pid = process.pid(), trigger = %self.trigger, "a worker process is started");
        let hello = ToWorker::Hello {
            server: std::process::id(),
            surroundings: self.workers.shared.surroundings.clone(),
            memory_max: Some(self.workers.config.memory_max.unwrap_or(memory_max)),
        };
        if let Err(error) = process.channel.send(&hello, None) {
            return Err(self.died(process, &format!("did not take its first message ({error})"), "while it started"));
        }
        let until = Instant::now() + Duration::from_millis(PROCESS_START_MS);
        loop {
            match process.next(&self.takings, until) {
                Ok(Some(FromWorker::Ready)) => return Ok(process),
                Ok(Some(FromWorker::Refused(why))) => {
                    let _died = self.died(process, "refused to start", "while it started");
                    return Err(why.into());
                }
                Ok(None) if self.stopping() => {
                    self.end(process);
                    return Err(failure(PluginError::STOPPED, "the database is shutting down"));
                }
                Ok(None) if Instant::now() < until => {}
                Ok(Some(_)) => {
                    return Err(self.died(process, "said something that nobody had asked for", "while it started"));
                }
                Ok(None) | Err(End::Late | End::Stopped) => {
                    let how = format!("was not ready after {PROCESS_START_MS} ms");
                    return Err(self.died(process, &how, "while it started"));
                }
                Err(End::Died(how)) => return Err(self.died(process, &how, "while it started")),
            }
        }
    }

    /// Counts and says that a worker is over, and makes sure that it is.
    fn died(&mut self, mut process: Process, how: &str, when: &str) -> PluginError {
        let pid = process.pid();
        let how = match process.kill() {
            // The status says more than what was noticed first, unless we have made it ourselves.
            Some(status) if process.over_by_itself => status_text(status),
            _ => how.to_owned(),
        };
        self.workers.counters.alive.fetch_sub(1, Ordering::Relaxed);
        self.workers.counters.died.fetch_add(1, Ordering::Relaxed);
        self.deaths = self.deaths.saturating_add(1);
        self.not_before = Some(Instant::now() + pause(self.deaths));
        let words = process.last_words();
        tracing::warn!(pid, trigger = %self.trigger, %how, deaths = self.deaths, stderr = %words, "a worker process died {when}");
        let text = format!("the worker process {pid} {how} {when}");
        PluginError { traceback: words, ..failure("WorkerDied", &text) }
    }

    /// Kills a worker whose run does not end.
    fn killed(&mut self, mut process: Process, deadline: Duration) -> PluginError {
        let pid = process.pid();
        process.ask_for_stack();
        let _status = process.kill();
        self.workers.counters.alive.fetch_sub(1, Ordering::Relaxed);
        self.workers.counters.killed.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(pid, trigger = %self.trigger, ?deadline, "a worker process was killed, as its run did not end");
        let text = format!(
            "the run took longer than its deadline of {} ms and could not be interrupted; its worker process {pid} was killed",
            deadline.as_millis()
        );
        PluginError { traceback: process.last_words(), ..failure("PluginTimeout", &text) }
    }

    /// Ends a worker that has done nothing wrong.
    fn end(&self, mut process: Process) {
        let _status = process.kill();
        self.workers.counters.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a run has come to whose trigger is not what it was.
fn cancelled() -> PluginError {
    failure(PluginError::CANCELLED, effects::CANCELLED)
}

/// What the server's global cache says.
fn global(ask: CacheAsk, who: &Who) -> CacheSaid {
    let cache = global_cache::local();
    match ask {
        CacheAsk::Get { key, known } => cache.get(&key, known, who).into(),
        CacheAsk::Put { key, value, expiry } => CacheSaid::Put(match value {
            Some(Blob(bytes)) => cache.put(&key, bytes, expiry),
            None => cache.put_live(&key, expiry, who),
        }),
        CacheAsk::Delete { key } => CacheSaid::Deleted(cache.delete(&key)),
    }
}

/// How long a worker that died for the `deaths`-th time in a row stays dead at least.
fn pause(deaths: u32) -> Duration {
    match deaths {
        0 | 1 => Duration::ZERO,
        _ => {
            let pause = PROCESS_RESTART_PAUSE_MIN_MS.saturating_mul(1 << (deaths - 2).min(31));
            Duration::from_millis(pause.min(PROCESS_RESTART_PAUSE_MAX_MS))
        }
    }
}

fn timeout(until: Instant) -> Option<Timespec> {
    // A day is as good as for ever.
    let left = until.saturating_duration_since(Instant::now()).min(Duration::from_secs(86_400));
    Timespec::try_from(left).ok()
}

fn event(event: &RunEvent) -> Result<(Event, Option<OwnedFd>), arrow::error::ArrowError> {
    let tables = match event {
        RunEvent::Writes(tables) => tables,
        RunEvent::Schedule(call) => return Ok((Event::Schedule(*call), None)),
        RunEvent::Request(request) => {
            let PluginRequest { method, path, tail, query_string, query, headers, body, peer, answer } = &**request;
            let asked = Request {
                method: method.clone(),
                path: path.to_string(),
                tail: tail.clone(),
                query_string: query_string.clone(),
                query: query.clone(),
                headers: headers.clone(),
                peer: *peer,
                streams: answer.is_some(),
            };
            return Ok((Event::Request(Box::new(asked)), memory::write_bytes(body)?));
        }
    };
    let batches = tables.iter().map(|table| memory::record_batch(&table.batch)).collect::<Result<Vec<_>, _>>()?;
    let (file, segments) = memory::write(&batches)?;
    let tables = tables.iter().zip(segments).map(|(TableBatch { table, id, all_columns, .. }, rows)| {
        let EventId { stream, sequence } = id;
        let all_columns = all_columns.as_ref().map(|all| all.iter().map(ToString::to_string).collect());
        Table { name: table.to_string(), id: (stream.epoch.0, stream.shard.0, sequence.0), rows, all_columns }
    });
    Ok((Event::Writes(tables.collect()), file))
}

fn run_message(request: &RunRequest, code: &PluginCode, event: Event) -> Run {
    let TriggerDef { id, name, db, plugin_filename, arguments, .. } = &request.trigger.def;
    Run {
        run_id: request.run_id.0,
        shard: request.shard.0,
        trigger_id: id.0,
        trigger: name.to_string(),
        db: db.to_string(),
        plugin_filename: plugin_filename.clone(),
        arguments: arguments.clone(),
        code_hash: code.hash,
        code: None,
        event,
        deadline_ns: u64::try_from(request.deadline.as_nanos()).unwrap_or(u64::MAX),
        limits: request.limits,
        received_ns: request.received.0,
        depth: request.depth,
        long: request.long,
        attempt: request.attempt,
        api: request.trigger.def.api,
        time_zone: match &request.trigger.def {
            TriggerDef { spec: TriggerSpec::Every(_), .. } => None,
            def => def.timing.time_zone.clone(),
        },
        state: None,
        state_revision: request.state.revision,
        cache: None,
    }
}

/// What an exit status says, as a predicate.
fn status_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was ended by {}", signal_name(signal)),
        (None, None) => "ended".to_owned(),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGHUP => "SIGHUP",
        libc::SIGILL => "SIGILL",
        libc::SIGINT => "SIGINT",
        libc::SIGKILL => "SIGKILL (by somebody, or by the system when memory ran out)",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// A live worker process; killed when it is dropped.
struct Process {
    trigger: Arc<str>,
    child: Child,
    over: OwnedFd,
    channel: Arc<Channel>,
    stderr: Option<OwnedFd>,
    tail: VecDeque<u8>,
    /// The plugin's code that it has; none before its first run.
    code: Option<u64>,
    /// The revision of the trigger's state that it has.
    state: Option<u64>,
    /// How deep the run of now is in a chain.
    depth: u8,
    /// The trigger of that run.
    trigger_id: TriggerId,
    /// Which trigger it works for, for its log lines.
    db: Arc<str>,
    /// Where its words go: the server's host, or that of its last run, if that was a test.
    host: Arc<dyn PluginHost>,
    /// Whether its run is to end early.
    stop: Arc<RunStop>,
    /// It was killed, or is going to be.
    gone: Arc<AtomicBool>,
    queries: Arc<AtomicUsize>,
    /// What came with its last message.
    attached: Option<OwnedFd>,
    /// Its socket is closed.
    closed: bool,
    /// It ended without our doing.
    over_by_itself: bool,
    reaped: bool,
}

impl Process {
    fn new(started: Started, trigger: Arc<str>, host: Arc<dyn PluginHost>) -> Self {
        let Started { child, over, channel, stderr } = started;
        Process {
            trigger,
            child,
            over,
            channel: Arc::new(channel),
            stderr: Some(stderr),
            tail: VecDeque::new(),
            code: None,
            state: None,
            depth: 0,
            trigger_id: TriggerId(0),
            db: "".into(),
            host,
            stop: Arc::default(),
            gone: Arc::default(),
            queries: Arc::default(),
            attached: None,
            closed: false,
            over_by_itself: false,
            reaped: false,
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a run; with its code, if the worker does not have that yet.
    fn hand_over(
        &mut self,
        message: &mut ToWorker,
        code: &PluginCode,
        prepared: &Prepared,
        rows: Option<&OwnedFd>,
        (state, kept): (&State, Option<&[u8]>),
    ) -> io::Result<()> {
        if let ToWorker::Run(run) = message {
            // The worker has the state of the run before, unless it is another one now.
            run.state = (self.state != Some(state.revision))
                .then(|| state.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect());
            run.cache = kept.filter(|_| self.code.is_none()).map(|bytes| Blob(bytes.to_vec()));
            run.code = (self.code != Some(code.hash)).then(|| Code {
                source: code.source.to_string(),
                directory: code.directory.as_deref().cloned(),
                compiled: prepared.code.clone().map_err(Failure::from),
                reusable: prepared.reusable,
            });
            if *self.db != *run.db {
                self.db = run.db.as_str().into();
            }
        }
        self.tail.clear();
        self.channel.send(message, rows.map(AsFd::as_fd))?;
        self.code = Some(code.hash);
        self.state = Some(state.revision);
        Ok(())
    }

    /// The worker's next message. `None` when it is time, or when somebody has rung.
    fn next(&mut self, takings: &Takings, until: Instant) -> Result<Option<FromWorker>, End> {
        let mut closing = None;
        loop {
            if !self.closed {
                match self.channel.receive(false) {
                    Ok(Received::Message(message, file)) => {
                        self.attached = file;
                        return Ok(Some(message));
                    }
                    Ok(Received::Closed) => self.closed = true,
                    Ok(Received::Nothing) => {}
                    Err(error) => return Err(End::Died(format!("said what is not understood ({error})"))),
                }
            }
            if self.closed {
                // It goes by itself; if not, it is of no use.
                let closing = *closing.get_or_insert(Instant::now() + CLOSING_MAX);
                if self.wait(None, closing).over {
                    self.over_by_itself = true;
                } else if Instant::now() < closing {
                    continue;
                }
                return Err(End::Died("closed its connection".to_owned()));
            }
            let woken = self.wait(Some(takings), until);
            if woken.over {
                self.over_by_itself = true;
                // Its last messages are in the socket, which others may hold open.
                match self.channel.receive(false) {
                    Ok(Received::Message(message, file)) => {
                        self.attached = file;
                        return Ok(Some(message));
                    }
                    _ => return Err(End::Died("ended".to_owned())),
                }
            }
            if woken.rung || Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    /// Waits for anything, and takes what stands on standard error.
    fn wait(&mut self, takings: Option<&Takings>, until: Instant) -> Woken {
        let mut sources = vec![PollFd::new(&self.over, PollFlags::IN)];
        sources.extend(takings.map(|takings| PollFd::new(&takings.desk, PollFlags::IN)));
        sources.extend((!self.closed).then(|| PollFd::new(&self.channel, PollFlags::IN)));
        sources.extend(self.stderr.as_ref().map(|stderr| PollFd::new(stderr, PollFlags::IN)));
        let _interrupted = poll(&mut sources, timeout(until).as_ref());
        let ready = |at: usize| !sources[at].revents().is_empty();
        let woken = Woken { over: ready(0), rung: takings.is_some() && ready(1) };
        let stderr_ready = self.stderr.is_some() && ready(sources.len() - 1);
        drop(sources);
        if let Some(takings) = takings.filter(|_| woken.rung) {
            takings.desk.silence();
        }
        if stderr_ready {
            self.take_stderr();
        }
        woken
    }

    fn take_stderr(&mut self) {
        let Some(stderr) = &self.stderr else { return };
        let tail = &mut self.tail;
        let open = read_available(stderr, |bytes| {
            tail.extend(bytes);
            tail.drain(..tail.len().saturating_sub(PROCESS_STDERR_BYTES_MAX));
        });
        if !open.unwrap_or(false) {
            self.stderr = None;
        }
    }

    fn last_words(&mut self) -> String {
        self.take_stderr();
        String::from_utf8_lossy(self.tail.make_contiguous()).trim_end().to_owned()
    }

    /// Does what a message asks that is no answer to us.
    fn serve(&mut self, message: FromWorker) {
        match message {
            FromWorker::Log { run_id, level, text } => self.host.log(LogLine {
                db: self.db.clone(),
                trigger: self.trigger.clone(),
                run_id: RunId(run_id),
                level: level.into(),
                text: text.into(),
            }),
            FromWorker::Query { id, db, sql, params } => self.query(id, db, sql, params),
            FromWorker::Write { id, db, lines, no_sync } => {
                let write = SyncWrite { db: db.into(), lines, no_sync, depth: self.depth.saturating_add(1) };
                self.write(id, write);
            }
            FromWorker::Cache { id, ask } => {
                // A worker that is gone needs no answer.
                let home = Home::Worker(self.trigger_id);
                let who = Who { home, trigger: self.trigger_id, name: self.trigger.clone() };
                let _gone = self.channel.send(&ToWorker::Cached { id, said: global(ask, &who) }, None);
            }
            // Of a run that is over.
            FromWorker::Stream { run_id, .. } | FromWorker::Piece { run_id } => {
                self.tell(&ToWorker::Room { run_id, gone: true });
            }
            FromWorker::Ready | FromWorker::Refused(_) | FromWorker::Finished { .. } | FromWorker::Kept { .. } => {}
        }
    }

    fn tell(&self, message: &ToWorker) {
        // If the worker is gone, that shows when it is listened to.
        let _gone = self.channel.send(message, None);
    }

    fn write(&self, id: u64, write: SyncWrite) {
        let refuse =
            |why: String, channel: &Channel| drop(channel.send(&ToWorker::Written { id, result: Err(why) }, None));
        self.beside(
            "write",
            move |host, channel| {
                let result = host.write(write);
                // A worker that is gone needs no answer.
                let _gone = channel.send(&ToWorker::Written { id, result }, None);
            },
            refuse,
        );
    }

    fn query(&self, id: u64, db: String, sql: String, params: Vec<(String, QueryParam)>) {
        let (stop, gone) = (self.stop.clone(), self.gone.clone());
        let refuse =
            |why: String, channel: &Channel| drop(channel.send(&ToWorker::Answer { id, result: Err(why) }, None));
        self.beside(
            "query",
            move |host, channel| {
                let wanted = || stop.cause().is_none() && !gone.load(Ordering::SeqCst);
                let batches = host.query_while(&db, &sql, &params, &wanted);
                let shared = batches.and_then(|batches| {
                    memory::write(&batches).map_err(|e| format!("the result cannot be shared with the worker: {e}"))
                });
                let (file, result) = match shared {
                    Ok((file, segments)) => (file, Ok(segments)),
                    Err(why) => (None, Err(why)),
                };
                // A worker that is gone needs no answer.
                let _gone = channel.send(&ToWorker::Answer { id, result }, file.as_ref().map(AsFd::as_fd));
            },
            refuse,
        );
    }

    /// Does what takes time on a thread of its own, or refuses it.
    fn beside(
        &self,
        what: &str,
        work: impl FnOnce(&dyn PluginHost, &Channel) + Send + 'static,
        refuse: impl Fn(String, &Channel),
    ) {
        if self.queries.fetch_add(1, Ordering::SeqCst) >= PROCESS_QUERIES_MAX {
            self.queries.fetch_sub(1, Ordering::SeqCst);
            return refuse(format!("more than {PROCESS_QUERIES_MAX} queries and writes at once"), &self.channel);
        }
        let (host, channel, under_way) = (self.host.clone(), self.channel.clone(), self.queries.clone());
        let thread = std::thread::Builder::new().name(format!("saltus-{what}")).spawn(move || {
            work(host.as_ref(), &channel);
            under_way.fetch_sub(1, Ordering::SeqCst);
        });
        if let Err(error) = thread {
            self.queries.fetch_sub(1, Ordering::SeqCst);
            refuse(format!("no thread for the {what}: {error}"), &self.channel);
        }
    }

    /// Has the worker say on standard error where it hangs.
    fn ask_for_stack(&mut self) {
        if rustix::process::pidfd_send_signal(&self.over, TELL_YOUR_STACK).is_err() {
            return;
        }
        let until = Instant::now() + STACK_MAX;
        let mut said = self.tail.len();
        while Instant::now() < until {
            if self.wait_for_stderr(until) || (said > 0 && said == self.tail.len()) {
                return;
            }
            said = self.tail.len();
        }
    }

    /// Waits for a little more on standard error; true if there will be none.
    fn wait_for_stderr(&mut self, until: Instant) -> bool {
        let Some(stderr) = &self.stderr else { return true };
        let soon = until.min(Instant::now() + STACK_MAX / 10);
        let _interrupted = poll(&mut [PollFd::new(stderr, PollFlags::IN)], timeout(soon).as_ref());
        self.take_stderr();
        false
    }

    /// Kills the process and all that it has started, and waits for its end.
    fn kill(&mut self) -> Option<ExitStatus> {
        // Its queries are nobody's.
        self.gone.store(true, Ordering::SeqCst);
        if self.reaped {
            return None;
        }
        // Not reaped yet, so the number is still its own.
        let _nobody_left = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let mut over = [PollFd::new(&self.over, PollFlags::IN)];
        let until = Instant::now() + GONE_MAX;
        while poll(&mut over, timeout(until).as_ref()).is_err() && Instant::now() < until {}
        self.reaped = true;
        match self.child.try_wait() {
            Ok(status) => status,
            Err(error) => {
                tracing::warn!(%error, pid = self.child.id(), "a worker process cannot be waited for");
                None
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _status = self.kill();
    }
}

/// What happened.
struct Woken {
    over: bool,
    rung: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_begin_with_the_second_death_and_double_up_to_a_bound() {
        let pauses: Vec<_> = [0, 1, 2, 3, 4, 5, 20, u32::MAX].into_iter().map(|n| pause(n).as_millis()).collect();
        assert_eq!(pauses, [0, 0, 100, 200, 400, 800, 30_000, 30_000]);
    }
}
