//! One trigger's worker process, seen from the server: a thread that hands it runs, serves it, and ends it.
//!
//! The thread waits for five things at once: its desk's bell and timer, the worker's messages, the worker's standard error and the
//! worker's end. Queries run on threads of their own, so that a slow one keeps nothing else waiting.
//!
//! While the worker waits for a run it is offered to the shard ([`super::offer`]). So before anything of a waiting worker is heeded, its
//! message or its death, the offer is taken back; if it is gone, what was heard belongs to a run that comes over the desk.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{self, Receiver, Sender, TryRecvError, TrySendError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal};
use rustix::time::Timespec;
use saltus_core::ids::{MonoNs, RunId, TriggerId};
use saltus_core::limits::{
    CACHE_SAVE_MS, PROCESS_QUERIES_MAX, PROCESS_RESTART_PAUSE_MAX_MS, PROCESS_RESTART_PAUSE_MIN_MS, PROCESS_START_MS,
    PROCESS_STDERR_BYTES_MAX,
};
use saltus_core::ports::{
    CodeVerdict, LogLevel, LogLine, LogText, PluginCode, PluginError, PluginHost, QueuedWrite, RunEvent, RunReport,
    RunRequest, RunStop, SyncWrite,
};
use saltus_core::query_param::QueryParam;
use saltus_core::request::{PluginResponse, ResponseHead};
use saltus_core::state::{State, StateChange};

use super::Workers;
use super::answers::Forward;
use super::channel::{Attached, Channel, Packet, Received, read_available};
use super::desk::{Put, Takings};
use super::memory;
use super::message::{
    Blob, CacheAsk, CacheSaid, Code, Failure, FromWorker, Order, PluginFile, Response, Run, ToWorker,
};
use super::offer::Offer;
use super::order;
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
/// How long a thread that has made a query waits for the next one.
const HELPER_STAYS: Duration = Duration::from_secs(1);
/// What is said of a worker that breaks the rules.
const UNASKED: &str = "said something that nobody had asked for";
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
    /// The run of which it was said last that it began.
    announced: Option<RunId>,
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

/// How a run ended in the worker.
enum Outcome {
    /// It was made.
    Done(Box<Done>),
    /// It was not: the plugin's file has changed.
    Changed,
}

/// Why a run was not made.
enum NotMade {
    /// It failed.
    Failed(PluginError),
    /// Nothing of it was begun, and it is to be handed over once more: the file has changed, or the worker ended before it read the order.
    Again,
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
            announced: None,
            told_to_stop: false,
            whose: None,
        }
    }

    /// Makes runs until there have been none for long, or the server stops.
    pub fn live(mut self) {
        let mut idle_since = Instant::now();
        loop {
            let put = match self.takings.runs.try_recv() {
                Ok(put) => Some(put),
                // The shard is gone.
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) if self.stopping() => self.on_the_way(),
                Err(TryRecvError::Empty) => {
                    let until = idle_since + self.workers.config.idle;
                    if Instant::now() >= until && self.takings.desk.close_if_empty() {
                        break;
                    }
                    match self.idle(until.max(Instant::now() + Duration::from_millis(1))) {
                        Some(put) => Some(put),
                        None => continue,
                    }
                }
            };
            let Some(put) = put.filter(|put| put.given.is_some() || !self.stopping()) else {
                // What waits was not begun; it is nobody's failure.
                self.takings.desk.close();
                break;
            };
            self.workers.shared.running.fetch_add(1, Ordering::SeqCst);
            let report = self.run(put);
            self.takings.desk.done();
            if self.begun || !self.stopping() {
                self.takings.completions.completed(report);
            }
            self.workers.shared.running.fetch_sub(1, Ordering::SeqCst);
            idle_since = Instant::now();
        }
        let _withdrawn = self.takings.desk.take_offer();
        if let Some(mut process) = self.process.take() {
            self.keep_cache(&mut process);
            tracing::info!(pid = process.pid(), trigger = %self.trigger, "a worker process is ended");
            self.end(process);
        }
    }

    /// Offers the worker to the shard, if a run of the code that it has needs nothing else.
    fn offer(&self, process: &mut Process) {
        let (Some(code), Some(state)) = (process.code, process.state) else { return };
        // A file that has just changed might change unseen.
        if !process.may_be_offered {
            return;
        }
        let (orders, file) = (process.orders.clone(), process.file.clone());
        self.takings.desk.offer(Offer { orders, code, state, file });
        process.is_offered = true;
    }

    /// Takes the offer of the worker back. If it is gone, the run that the shard has for it, which is a push away.
    fn on_the_way(&mut self) -> Option<Put> {
        let was_offered = self.process.as_mut().is_some_and(|process| std::mem::take(&mut process.is_offered));
        if !was_offered || self.takings.desk.take_offer().is_some() {
            return None;
        }
        self.takings.runs.recv().ok()
    }

    /// Takes from a worker that is to be ended what the next one is to have.
    fn keep_cache(&self, process: &mut Process) {
        let Some((trigger, true)) = self.whose else { return };
        let ask = || process.orders.send(&Order::GiveCache, &Attached::Nothing);
        if self.takings.desk.is_forgotten() || ask().is_err() {
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

    /// Serves the worker once, between runs; the run that has come meanwhile, if one is known of.
    fn idle(&mut self, until: Instant) -> Option<Put> {
        let Some(mut process) = self.process.take() else {
            let mut bell = [PollFd::new(&self.takings.desk, PollFlags::IN)];
            let _again = poll(&mut bell, timeout(until).as_ref());
            self.takings.desk.silence();
            return None;
        };
        if !process.is_offered {
            self.offer(&mut process);
        }
        let heard = process.next(&self.takings, until);
        if matches!(heard, Ok(None)) {
            self.process = Some(process);
            return None;
        }
        process.heard = Some(heard);
        self.process = Some(process);
        let put = self.on_the_way();
        if put.is_none() {
            self.heed();
        }
        put
    }

    /// Heeds what was heard of the worker while it had no run.
    fn heed(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let how = match process.heard.take() {
            Some(Ok(Some(
                FromWorker::Finished { .. }
                | FromWorker::Changed { .. }
                | FromWorker::Ready
                | FromWorker::Refused(_)
                | FromWorker::Kept { .. },
            ))) => UNASKED.to_owned(),
            Some(Err(End::Died(how))) => how,
            Some(Ok(Some(message))) => {
                process.serve(message);
                self.process = Some(process);
                return;
            }
            None | Some(Ok(None) | Err(End::Late | End::Stopped)) => {
                self.process = Some(process);
                return;
            }
        };
        let error = self.died(process, &how, "while it had no run");
        tracing::debug!(%error, "an idle worker died");
    }

    fn run(&mut self, Put { request, given }: Put) -> RunReport {
        let request = *request;
        self.begun = given.is_some();
        if !self.begun && request.stop.cause().is_some() {
            return RunReport::not_run(request, cancelled(), time::now());
        }
        let (mut done, mut verdict) = (Err(NotMade::Again), None);
        if let Some(given) = given {
            self.workers.counters.direct.fetch_add(1, Ordering::Relaxed);
            verdict = self.process.as_ref().and_then(|process| process.verdict.clone());
            done = self.attend(&request, given);
        }
        // An order that was never read was not begun; a second one in a row is the worker's fault.
        for _ in 0..2 {
            match done {
                Err(NotMade::Again) if request.stop.cause().is_some() => done = Err(NotMade::Failed(cancelled())),
                Err(NotMade::Again) => done = self.attempt(&request, &mut verdict),
                _ => break,
            }
        }
        let report = match done {
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
            Err(NotMade::Failed(error)) => RunReport::not_run(request, error, time::now()),
            Err(NotMade::Again) => {
                let error = failure("WorkerDied", "WorkerDied: worker processes end before they read their orders");
                RunReport::not_run(request, error, time::now())
            }
        };
        RunReport { code: verdict, ..report }
    }

    /// Hands a run to the worker, a new one if there is none, and attends it.
    fn attempt(&mut self, request: &RunRequest, verdict: &mut Option<CodeVerdict>) -> Result<Done, NotMade> {
        // Before the look: what changes after it looks different.
        let (looked, file) = (SystemTime::now(), request.trigger.code.file().map(PluginFile::look));
        let code = request.trigger.code.refresh();
        let prepared = self.workers.shared.preparer.prepare(&code, &request.trigger.def.plugin_filename);
        *verdict = Some(CodeVerdict { hash: code.hash, inline: prepared.inline.clone() });
        self.begun = false;
        let not_shared = |e: &dyn std::fmt::Display| {
            NotMade::Failed(failure("WorkerNotStarted", &format!("the event cannot be shared with the worker: {e}")))
        };
        let (run, body) = order::of_request(request, code.hash).map_err(|e| not_shared(&e))?;
        let attached = body.into_attached().map_err(|e| not_shared(&e))?;
        let mut order = Order::Run(Box::new(run));
        let wants_cache = self.workers.shared.vault.wants(&request.trigger.def);
        let _withdrawn = self.takings.desk.take_offer();
        if let Some(process) = &mut self.process {
            process.is_offered = false;
        }
        self.heed();
        let kept = self.workers.shared.vault.get(request.trigger.def.id).filter(|_| wants_cache);
        let rest = (&*request.state, kept.as_deref());
        let start = |this: &mut Self| this.start_process(request.limits.memory_bytes).map_err(NotMade::Failed);
        let mut process = match self.process.take() {
            Some(process) => process,
            None => start(self)?,
        };
        if process.hand_over(&mut order, &code, &prepared, &attached, rest).is_err() {
            // It has died since the last run and nobody has noticed: the run has not begun.
            let error = self.died(process, "closed its connection", "while it had no run");
            tracing::debug!(%error, "an idle worker died");
            process = start(self)?;
            if let Err(error) = process.hand_over(&mut order, &code, &prepared, &attached, rest) {
                let how = format!("did not take the run ({error})");
                return Err(NotMade::Failed(self.died(process, &how, "before the run")));
            }
        }
        process.verdict.clone_from(verdict);
        process.may_be_offered = match &file {
            None => true,
            Some(file) => file.as_ref().is_some_and(|file| file.is_older_than(looked)),
        };
        process.file = file.flatten();
        self.process = Some(process);
        let done = self.attend(request, Instant::now());
        if let (Err(NotMade::Again), Some(kept)) = (&done, kept) {
            self.workers.shared.vault.put(request.trigger.def.id, kept.to_vec(), &[]);
        }
        done
    }

    /// Attends a run that the worker was given at that instant.
    fn attend(&mut self, request: &RunRequest, given: Instant) -> Result<Done, NotMade> {
        let Some(mut process) = self.process.take() else { return Err(NotMade::Again) };
        self.takings.desk.set_timer(Duration::ZERO);
        (self.begun, process.is_offered) = (true, false);
        let shared = self.workers.shared.clone();
        let def = &request.trigger.def;
        process.begin(request, &shared.host);
        self.whose = Some((def.id, shared.vault.wants(def)));
        // The worker has it.
        shared.vault.forget(def.id);
        if self.announced.replace(request.run_id) != Some(request.run_id) {
            process.say(request.run_id, LogLevel::Info, LogText::RunStarted(request.event.started()));
        }
        let kill_at = given + request.deadline.saturating_add(self.workers.config.kill_grace).min(RUN_MAX);
        match self.serve_run(&mut process, request, kill_at) {
            Ok(outcome) => {
                if self.told_to_stop {
                    // It takes no further run.
                    self.keep_cache(&mut process);
                    self.end(process);
                } else {
                    if matches!(outcome, Outcome::Done(_)) {
                        // Before the report, which may bring the next run.
                        self.offer(&mut process);
                    }
                    self.process = Some(process);
                }
                let Outcome::Done(done) = outcome else { return Err(NotMade::Again) };
                self.deaths = 0;
                if request.stop.cause().is_some() { Err(NotMade::Failed(cancelled())) } else { Ok(*done) }
            }
            Err(End::Died(how)) => {
                let orders = process.orders.clone();
                let error = self.died(process, &how, "during the run");
                // Known only now that it is gone for certain.
                Err(if orders.was_left_unread() { NotMade::Again } else { NotMade::Failed(error) })
            }
            Err(End::Late) => Err(NotMade::Failed(self.killed(process, request.deadline))),
            Err(End::Stopped) => {
                self.end(process);
                if !self.stopping() {
                    return Err(NotMade::Failed(cancelled()));
                }
                Err(NotMade::Failed(failure(PluginError::STOPPED, "the database is shutting down")))
            }
        }
    }

    /// Serves the worker until its run is over.
    fn serve_run(&mut self, process: &mut Process, request: &RunRequest, kill_at: Instant) -> Result<Outcome, End> {
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
                process.tell(&ToWorker::Interrupt);
                kill_at = kill_at.min(Instant::now() + self.workers.config.kill_grace);
            }
            match process.next(&self.takings, kill_at) {
                Ok(Some(message @ FromWorker::Finished { .. })) => {
                    return process.done(run, message).map(|done| Outcome::Done(Box::new(done)));
                }
                Ok(Some(FromWorker::Changed { run_id })) if run_id == run.0 => return Ok(Outcome::Changed),
                Ok(Some(
                    FromWorker::Changed { .. } | FromWorker::Ready | FromWorker::Refused(_) | FromWorker::Kept { .. },
                )) => {
                    return Err(End::Died(UNASKED.to_owned()));
                }
                Ok(Some(FromWorker::Stream { run_id, response })) if run_id == run.0 => {
                    let gone = !forward.begin(slot, response);
                    process.tell(&ToWorker::Room { run_id, gone });
                }
                Ok(Some(FromWorker::Piece { run_id })) if run_id == run.0 => {
                    let piece = std::mem::take(&mut process.attached).into_bytes();
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
        let (mut process, their_orders) = Process::new(started, self.trigger.clone(), self.workers.shared.host.clone());
        tracing::info!(pid = process.pid(), trigger = %self.trigger, "a worker process is started");
        let hello = ToWorker::Hello {
            server: std::process::id(),
            surroundings: self.workers.shared.surroundings.clone(),
            memory_max: Some(self.workers.config.memory_max.unwrap_or(memory_max)),
        };
        if let Err(error) = process.channel.send(&hello, &their_orders) {
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
                    return Err(self.died(process, UNASKED, "while it started"));
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

type Job = Box<dyn FnOnce() + Send>;

/// Threads that do what takes time for one worker; they stay for a while, as the next query often comes soon.
struct Helpers {
    /// Without a place in it: what is put in, somebody waits for.
    jobs: Sender<Job>,
    taken: Receiver<Job>,
}

impl Default for Helpers {
    fn default() -> Self {
        let (jobs, taken) = channel::bounded(0);
        Helpers { jobs, taken }
    }
}

impl Helpers {
    /// Has a job done by whoever waits for one, or by a new thread.
    fn take(&self, what: &str, job: Job) -> io::Result<()> {
        let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.jobs.try_send(job) else {
            return Ok(());
        };
        let taken = self.taken.clone();
        std::thread::Builder::new().name(format!("saltus-{what}")).spawn(move || {
            job();
            while let Ok(job) = taken.recv_timeout(HELPER_STAYS) {
                job();
            }
        })?;
        Ok(())
    }
}

/// A live worker process; killed when it is dropped.
struct Process {
    trigger: Arc<str>,
    child: Child,
    over: OwnedFd,
    channel: Arc<Channel>,
    /// Where its runs go: to the thread that makes them.
    orders: Arc<Channel>,
    packet: Packet,
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
    helpers: Helpers,
    /// What the check of its code has found.
    verdict: Option<CodeVerdict>,
    /// What the plugin's file was when that code was looked up, if it is one.
    file: Option<PluginFile>,
    /// The shard may give it runs of that code.
    may_be_offered: bool,
    /// It was offered, and the offer was not taken back.
    is_offered: bool,
    /// What was heard of it and has not been heeded.
    heard: Option<Result<Option<FromWorker>, End>>,
    /// What came with its last message.
    attached: Attached,
    /// Its socket is closed.
    closed: bool,
    /// It ended without our doing.
    over_by_itself: bool,
    reaped: bool,
}

impl Process {
    /// With the end of the connection for orders that it is to be given.
    fn new(started: Started, trigger: Arc<str>, host: Arc<dyn PluginHost>) -> (Self, Attached) {
        let Started { child, over, channel, orders, their_orders, stderr } = started;
        let process = Process {
            trigger,
            child,
            over,
            channel: Arc::new(channel),
            orders: Arc::new(orders),
            packet: Packet::default(),
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
            helpers: Helpers::default(),
            verdict: None,
            file: None,
            may_be_offered: false,
            is_offered: false,
            heard: None,
            attached: Attached::Nothing,
            closed: false,
            over_by_itself: false,
            reaped: false,
        };
        (process, Attached::File(their_orders))
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a run; with its code, if the worker does not have that yet.
    fn hand_over(
        &mut self,
        order: &mut Order,
        code: &PluginCode,
        prepared: &Prepared,
        attached: &Attached,
        (state, kept): (&State, Option<&[u8]>),
    ) -> io::Result<()> {
        if let Order::Run(run) = order {
            let Run { state: given, cache, code: given_code, .. } = &mut **run;
            *given = order::state(state, self.state);
            *cache = kept.filter(|_| self.code.is_none()).map(|bytes| Blob(bytes.to_vec()));
            *given_code = (self.code != Some(code.hash)).then(|| Code {
                source: code.source.to_string(),
                directory: code.directory.as_deref().cloned(),
                compiled: prepared.code.clone().map(Blob).map_err(Failure::from),
                reusable: prepared.reusable,
            });
        }
        self.orders.send(order, attached)?;
        self.code = Some(code.hash);
        Ok(())
    }

    /// A run that it was given is under way: what it says now is said for that.
    fn begin(&mut self, request: &RunRequest, host: &Arc<dyn PluginHost>) {
        self.tail.clear();
        self.state = Some(request.state.revision);
        (self.depth, self.trigger_id) = (request.depth, request.trigger.def.id);
        self.stop = request.stop.clone();
        self.host = request.test_host.as_ref().unwrap_or(host).clone();
        if *self.db != *request.trigger.def.db {
            self.db = request.trigger.def.db.clone();
        }
    }

    fn say(&self, run_id: RunId, level: LogLevel, text: LogText) {
        self.host.log(LogLine { db: self.db.clone(), trigger: self.trigger.clone(), run_id, level, text });
    }

    /// What came of a run, if the worker's message is about that one.
    fn done(&mut self, run: RunId, message: FromWorker) -> Result<Done, End> {
        let FromWorker::Finished { run_id, result, writes, response, state, entered_ns, finished_ns, cost_ns } =
            message
        else {
            return Err(End::Died(UNASKED.to_owned()));
        };
        if run_id != run.0 {
            return Err(End::Died(UNASKED.to_owned()));
        }
        let body = std::mem::take(&mut self.attached).into_bytes();
        let body = body.map_err(|e| End::Died(format!("sent a response that cannot be read ({e})")))?;
        if result.is_ok() {
            let took = entered_ns.map_or(0, |entered| finished_ns.saturating_sub(entered));
            self.say(run, LogLevel::Info, LogText::RunFinished(Duration::from_nanos(took)));
        }
        let queued = |(db, lines): (String, String)| QueuedWrite { db: db.into(), lines, no_sync: false };
        let changed =
            |(key, value): (String, Option<String>)| StateChange { key: key.into(), value: value.map(Into::into) };
        Ok(Done {
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
        })
    }

    /// The worker's next message. `None` when it is time, or when somebody has rung.
    fn next(&mut self, takings: &Takings, until: Instant) -> Result<Option<FromWorker>, End> {
        if let Some(heard) = self.heard.take() {
            return heard;
        }
        let mut closing = None;
        loop {
            if !self.closed {
                match self.channel.receive(&mut self.packet, false) {
                    Ok(Received::Message(message, attached)) => {
                        self.attached = attached;
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
                match self.channel.receive(&mut self.packet, false) {
                    Ok(Received::Message(message, attached)) => {
                        self.attached = attached;
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
        let timer = takings.map(|takings| takings.desk.timer());
        let mut sources = vec![PollFd::new(&self.over, PollFlags::IN)];
        if let (Some(takings), Some(timer)) = (takings, &timer) {
            sources.extend([PollFd::new(&takings.desk, PollFlags::IN), PollFd::new(timer, PollFlags::IN)]);
        }
        sources.extend((!self.closed).then(|| PollFd::new(&self.channel, PollFlags::IN)));
        sources.extend(self.stderr.as_ref().map(|stderr| PollFd::new(stderr, PollFlags::IN)));
        let _interrupted = poll(&mut sources, timeout(until).as_ref());
        let ready = |at: usize| !sources[at].revents().is_empty();
        let woken = Woken { over: ready(0), rung: takings.is_some() && (ready(1) || ready(2)) };
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
            FromWorker::Log { run_id, level, text } => self.say(RunId(run_id), level.into(), LogText::Said(text)),
            FromWorker::Query { id, db, sql, params } => self.query(id, db, sql, params),
            FromWorker::Write { id, db, lines, no_sync } => {
                let write = SyncWrite { db: db.into(), lines, no_sync, depth: self.depth.saturating_add(1) };
                self.write(id, write);
            }
            FromWorker::Cache { id, ask } => {
                let home = Home::Worker(self.trigger_id);
                let who = Who { home, trigger: self.trigger_id, name: self.trigger.clone() };
                self.tell(&ToWorker::Cached { id, said: global(ask, &who) });
            }
            // Of a run that is over.
            FromWorker::Stream { run_id, .. } | FromWorker::Piece { run_id } => {
                self.tell(&ToWorker::Room { run_id, gone: true });
            }
            FromWorker::Ready
            | FromWorker::Refused(_)
            | FromWorker::Finished { .. }
            | FromWorker::Changed { .. }
            | FromWorker::Kept { .. } => {}
        }
    }

    fn tell(&self, message: &ToWorker) {
        // If the worker is gone, that shows when it is listened to.
        let _gone = self.channel.send(message, &Attached::Nothing);
    }

    fn write(&self, id: u64, write: SyncWrite) {
        let refuse = |why: String, channel: &Channel| {
            drop(channel.send(&ToWorker::Written { id, result: Err(why) }, &Attached::Nothing))
        };
        self.beside(
            "write",
            move |host, channel| {
                let result = host.write(write);
                // A worker that is gone needs no answer.
                let _gone = channel.send(&ToWorker::Written { id, result }, &Attached::Nothing);
            },
            refuse,
        );
    }

    fn query(&self, id: u64, db: String, sql: String, params: Vec<(String, QueryParam)>) {
        let (stop, gone) = (self.stop.clone(), self.gone.clone());
        let refuse = |why: String, channel: &Channel| {
            drop(channel.send(&ToWorker::Answer { id, result: Err(why) }, &Attached::Nothing))
        };
        self.beside(
            "query",
            move |host, channel| {
                let wanted = || stop.cause().is_none() && !gone.load(Ordering::SeqCst);
                let batches = host.query_while(&db, &sql, &params, &wanted);
                let shared = batches.and_then(|batches| {
                    memory::write(&batches).map_err(|e| format!("the result cannot be shared with the worker: {e}"))
                });
                let (attached, result) = match shared {
                    Ok((attached, segments)) => (attached, Ok(segments)),
                    Err(why) => (Attached::Nothing, Err(why)),
                };
                // A worker that is gone needs no answer.
                let _gone = channel.send(&ToWorker::Answer { id, result }, &attached);
            },
            refuse,
        );
    }

    /// Does what takes time on another thread, or refuses it.
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
        let job = Box::new(move || {
            work(host.as_ref(), &channel);
            under_way.fetch_sub(1, Ordering::SeqCst);
        });
        if let Err(error) = self.helpers.take(what, job) {
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
        global_cache::local().lost(Home::Worker(self.trigger_id));
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
