//! A shard's lanes.
//!
//! **Inline**: an interpreter that is made on the shard's thread and whose plugins run only there. Its GIL is given up for
//! one purpose: a helper thread takes it to import what a plugin needs, since imports read files; inline runs wait
//! meanwhile, the shard does not. **Deferred**: a second interpreter, shared by a few worker threads that take runs from
//! one bounded queue. A worker gives the GIL up while it waits for work and while a query runs. The caller sees to it that
//! the runs of one trigger follow each other. **Process**: in [`crate::process`].
//!
//! The cache of a trigger that is left to the policy is in the interpreter in which it ran last, and moves with it: as
//! bytes, taken out under the GIL of the one and put in under that of the other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender, TrySendError};
use saltus_core::ids::{RunId, ShardId, TriggerId};
use saltus_core::limits::{DEFERRED_DEADLINE_MS, INLINE_IMPORTS_MAX};
use saltus_core::policy;
use saltus_core::ports::{
    Completions, LogLevel, LogLine, LogText, PluginCode, PluginError, PluginHost, Readiness, RunReport, RunRequest,
    ShardPlugins, Trigger, Unwound,
};
use saltus_core::trigger::Execution;

use crate::effects::Lane;
use crate::ffi::pystate::InterpreterId;
use crate::interpreter::{Interpreter, Lent, failure};
use crate::prepare::{Prepared, Preparer};
use crate::process::ProcessLane;
use crate::runtime::Scheduling;

/// What a helper may take for one import.
const IMPORT_DEADLINE: Duration = Duration::from_millis(DEFERRED_DEADLINE_MS);

/// Versions of code whose imports are remembered; beyond it they are looked at again.
const VERSIONS_MAX: usize = 4096;

/// What all threads of a runtime share.
pub struct Shared {
    /// The way out for plugins.
    pub host: Arc<dyn PluginHost>,
    /// Added to `sys.path` of every interpreter.
    pub site_packages: Vec<String>,
    /// How workers are scheduled.
    pub scheduling: Scheduling,
    /// Compiles plugins.
    pub preparer: Preparer,
    /// No run is begun any more.
    pub stopping: AtomicBool,
    /// Runs under way in the deferred and the process lane.
    pub running: AtomicUsize,
}

/// Implements the port.
pub struct Lanes {
    shared: Arc<Shared>,
    completions: Arc<dyn Completions>,
    inline: Option<Inline>,
    queue: Sender<Job>,
    helper: Sender<Errand>,
    caches: HashMap<TriggerId, CacheHome>,
    /// By content hash: what runs wanted to import late.
    wanted: HashMap<u64, Wanted>,
    /// Content hashes of code whose imports were seen to.
    imported: HashSet<u64>,
    process: ProcessLane,
}

/// Who has the inline interpreter.
enum Inline {
    /// The shard's thread.
    Here(Interpreter),
    /// Perhaps the helper; when it is done, the answer comes.
    Lent(Lent, Receiver<Imported>),
}

type Imported = Vec<(String, PluginError)>;

/// Modules that the runs of one version of a plugin wanted.
#[derive(Default)]
struct Wanted {
    /// Nobody has tried to import them yet.
    pending: Vec<String>,
    /// How often each was wanted so far.
    times: HashMap<String, u32>,
}

/// Where the cache of a trigger is that is left to the policy; deferred at first.
enum CacheHome {
    Inline,
    /// A worker takes it out.
    Moving(Receiver<Result<Vec<u8>, String>>),
}

/// What a deferred worker does.
enum Job {
    /// A run; its cache if it was in the inline interpreter.
    Run(Box<RunRequest>, Vec<u8>),
    /// Takes a trigger's cache out of the deferred interpreter.
    TakeCache(TriggerId, Sender<Result<Vec<u8>, String>>),
}

/// What the helper does for the inline interpreter.
struct Errand {
    modules: Vec<String>,
    directory: Option<Arc<PluginCode>>,
    done: Sender<Imported>,
}

impl Lanes {
    /// Makes both interpreters and starts the workers; returns when all are ready.
    ///
    /// # Errors
    /// What Python or the system said.
    pub fn start(
        shared: Arc<Shared>,
        shard: ShardId,
        workers: usize,
        queue_max: usize,
        completions: Arc<dyn Completions>,
        process: ProcessLane,
    ) -> Result<Self, PluginError> {
        let inline = Interpreter::create(Lane::Inline, &shared.site_packages)?;
        let (queue, jobs) = channel::bounded(queue_max.max(1));
        let mut deferred = None;
        for number in 0..workers.max(1) {
            let worker = Worker { shared: shared.clone(), jobs: jobs.clone(), completions: completions.clone() };
            let (ready, is_ready) = channel::bounded(1);
            std::thread::Builder::new()
                .name(format!("saltus-py-{shard}-{number}"))
                .spawn(move || worker.live(deferred, &ready))
                .map_err(|e| failure("OSError", &format!("cannot start a plugin worker: {e}")))?;
            let answer = is_ready.recv().unwrap_or_else(|_| Err(failure("RuntimeError", "a plugin worker died")));
            deferred = Some(answer?);
        }
        let (helper, errands) = channel::bounded(1);
        let (interpreter, wake, scheduling) = (inline.id(), completions.clone(), shared.scheduling.clone());
        std::thread::Builder::new()
            .name(format!("saltus-py-{shard}-import"))
            .spawn(move || help(interpreter, &errands, wake.as_ref(), &scheduling))
            .map_err(|e| failure("OSError", &format!("cannot start an import helper: {e}")))?;
        let inline = Some(Inline::Here(inline));
        let (caches, wanted, imported) = Default::default();
        Ok(Lanes { shared, completions, inline, queue, helper, caches, wanted, imported, process })
    }

    /// The inline interpreter, unless the helper has it.
    fn here(&mut self) -> Option<&mut Interpreter> {
        if let Some(Inline::Lent(_, done)) = &self.inline
            && let Ok(failed) = done.try_recv()
        {
            self.take_back(failed);
        }
        match self.inline.as_mut() {
            Some(Inline::Here(interpreter)) => Some(interpreter),
            _ => None,
        }
    }

    fn take_back(&mut self, failed: Imported) {
        let Some(Inline::Lent(lent, _)) = self.inline.take() else { unreachable!("asked while it is lent") };
        let interpreter = lent.take_back();
        for (module, error) in failed {
            tracing::info!(module, error = %error.message, "a module could not be imported for the inline lane");
            interpreter.import_failed(module, error);
        }
        self.inline = Some(Inline::Here(interpreter));
    }

    /// Has the helper import; true if it will.
    fn lend(&mut self, modules: Vec<String>, directory: Option<Arc<PluginCode>>) -> bool {
        let (done, is_done) = channel::bounded(1);
        let Some(Inline::Here(interpreter)) = self.inline.take() else { unreachable!("asked while it is here") };
        // The helper waits for the GIL, or finds it free.
        if self.helper.try_send(Errand { modules, directory, done }).is_err() {
            self.inline = Some(Inline::Here(interpreter));
            return false;
        }
        self.inline = Some(Inline::Lent(interpreter.lend(), is_done));
        true
    }

    /// Brings the cache of a trigger into the inline interpreter.
    fn fetch_cache(&mut self, trigger: TriggerId) -> Readiness {
        let answer = match self.caches.get(&trigger) {
            Some(CacheHome::Inline) => return Readiness::Ready,
            Some(CacheHome::Moving(answer)) => match answer.try_recv() {
                Ok(answer) => answer,
                Err(channel::TryRecvError::Empty) => return Readiness::Wait,
                Err(channel::TryRecvError::Disconnected) => Err("the worker that had it died".to_owned()),
            },
            None => {
                let (tell, answer) = channel::bounded(1);
                if self.queue.try_send(Job::TakeCache(trigger, tell)).is_ok() {
                    self.caches.insert(trigger, CacheHome::Moving(answer));
                }
                return Readiness::Wait;
            }
        };
        self.caches.remove(&trigger);
        let Some(Inline::Here(interpreter)) = &self.inline else { return Readiness::Wait };
        match answer.and_then(|bytes| interpreter.put_cache(trigger, &bytes).map_err(|error| error.message)) {
            Ok(()) => {
                self.caches.insert(trigger, CacheHome::Inline);
                Readiness::Ready
            }
            Err(why) => Readiness::CacheNotPlain(why.into()),
        }
    }

    /// Takes the cache of a trigger out of the inline interpreter, for a deferred run. `None`: not now.
    fn give_cache(&mut self, request: &RunRequest) -> Option<Vec<u8>> {
        let def = &request.trigger.def;
        match self.caches.get(&def.id) {
            None => return Some(Vec::new()),
            // It was on its way; what the worker took out comes back with the next run.
            Some(CacheHome::Moving(answer)) => {
                let taken = match answer.try_recv() {
                    Ok(taken) => taken,
                    Err(channel::TryRecvError::Empty) => return None,
                    Err(channel::TryRecvError::Disconnected) => Ok(Vec::new()),
                };
                self.caches.remove(&def.id);
                return Some(taken.unwrap_or_default());
            }
            Some(CacheHome::Inline) => {}
        }
        let taken = self.here()?.take_what_can_be_of_cache(def.id);
        self.caches.remove(&def.id);
        let (bytes, lost) = taken.unwrap_or_else(|why| (Vec::new(), vec![format!("all of it: {why}")]));
        if !lost.is_empty() {
            let text = format!(
                "the trigger moves to the deferred lane, and what its cache holds under these keys cannot: {}; keep plain \
                 values in it, or create the trigger with --execution deferred",
                lost.join(", ")
            );
            tell(self.shared.host.as_ref(), request, text);
        }
        Some(bytes)
    }

    /// What is to be done before the code of a trigger can run inline.
    fn ready_code(&mut self, trigger: &Trigger, code: &Arc<PluginCode>, prepared: &Prepared) -> Readiness {
        let wanted =
            self.wanted.get_mut(&code.hash).map(|wanted| std::mem::take(&mut wanted.pending)).unwrap_or_default();
        let first_time = !self.imported.contains(&code.hash);
        let Some(interpreter) = self.here() else { return Readiness::Wait };
        let mut modules = wanted;
        let mut directory = None;
        if first_time {
            modules.extend(interpreter.missing(&prepared.imports));
            directory = code.directory.is_some().then(|| code.clone());
        }
        if self.imported.len() >= VERSIONS_MAX {
            self.imported.clear();
            self.wanted.clear();
        }
        if modules.is_empty() && directory.is_none() {
            self.imported.insert(code.hash);
            return Readiness::Ready;
        }
        tracing::debug!(trigger = %trigger.def.name, ?modules, "modules are imported for the inline lane");
        if self.lend(modules, directory) {
            self.imported.insert(code.hash);
        }
        Readiness::Wait
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        // An interpreter's objects may be released under its GIL only.
        if let Some(Inline::Lent(lent, _)) = self.inline.take() {
            drop(lent.take_back());
        }
    }
}

fn tell(host: &dyn PluginHost, request: &RunRequest, text: String) {
    let def = &request.trigger.def;
    let (db, trigger, run_id) = (def.db.clone(), def.name.clone(), RunId(0));
    host.log(LogLine { db, trigger, run_id, level: LogLevel::Warn, text: LogText::Said(text) });
}

impl ShardPlugins for Lanes {
    fn ready_inline(&mut self, trigger: &Trigger) -> Readiness {
        if self.here().is_none() {
            return Readiness::Wait;
        }
        let code = trigger.code.current();
        let wants = self.wanted.get(&code.hash).is_some_and(|wanted| !wanted.pending.is_empty());
        if wants || !self.imported.contains(&code.hash) {
            let Some(prepared) = self.shared.preparer.known(code.hash) else {
                let wake = self.completions.clone();
                // If the queue is full the run compiles its code itself.
                let asked = self.shared.preparer.ask(&code, &trigger.def.plugin_filename, move || wake.prepared());
                return if asked { Readiness::Wait } else { Readiness::Ready };
            };
            let ready = self.ready_code(trigger, &code, &prepared);
            if ready != Readiness::Ready {
                return ready;
            }
        }
        match trigger.def.execution {
            Execution::Auto => self.fetch_cache(trigger.def.id),
            Execution::Inline | Execution::Deferred => Readiness::Ready,
        }
    }

    fn run_inline(&mut self, request: RunRequest) -> RunReport {
        let code = request.trigger.code.current();
        let prepared = self.shared.preparer.prepare(&code, &request.trigger.def.plugin_filename);
        while let Some(Inline::Lent(_, done)) = &self.inline {
            // Only for callers that did not ask whether it is ready.
            let failed = done.recv().unwrap_or_default();
            self.take_back(failed);
        }
        let Some(Inline::Here(interpreter)) = self.inline.as_mut() else { unreachable!("taken back above") };
        let mut report = interpreter.run(&self.shared.host, request, &code, &prepared, Lane::Inline);
        if let Some(Unwound::Import(module)) = &report.unwound {
            let wanted = self.wanted.entry(code.hash).or_default();
            let times = wanted.times.entry(module.to_string()).or_default();
            *times += 1;
            // A failure is tried again now and then; what was imported and is not there is another matter.
            let in_vain = *times > 2 && !interpreter.import_has_failed(module);
            if in_vain || wanted.times.len() > INLINE_IMPORTS_MAX {
                let what = format!("import of {module}, one of too many while it runs,");
                let text =
                    format!("{what} would block the thread that ingests data: import it at the top of the plugin");
                report.result = Err(failure("LaneError", &text));
                let auto = report.request.trigger.def.execution == Execution::Auto;
                report.unwound = auto.then(|| Unwound::Blocked(what.into()));
            } else {
                wanted.pending.push(module.to_string());
            }
        }
        report
    }

    fn submit(&mut self, request: RunRequest) -> Result<(), Box<RunRequest>> {
        if request.lane == policy::Lane::Process {
            return self.process.submit(request);
        }
        if self.queue.is_full() {
            return Err(Box::new(request));
        }
        let Some(cache) = self.give_cache(&request) else { return Err(Box::new(request)) };
        match self.queue.try_send(Job::Run(Box::new(request), cache)) {
            Ok(()) => Ok(()),
            // This thread alone sends, and it has seen room: only the workers' end is left.
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => match job {
                Job::Run(request, _) => Err(request),
                Job::TakeCache(..) => unreachable!("sent a run"),
            },
        }
    }
}

/// The helper's life: imports into an interpreter that another thread runs plugins in.
fn help(interpreter: InterpreterId, errands: &Receiver<Errand>, wake: &dyn Completions, scheduling: &Scheduling) {
    scheduling.apply();
    while let Ok(Errand { modules, directory, done }) = errands.recv() {
        // Attached for one errand only: the GIL belongs to the shard.
        let failed = match Interpreter::join(interpreter) {
            Ok(helper) => {
                if let Some(code) = &directory
                    && let Some(path) = &code.directory
                {
                    helper.import_directory(path, code.hash, IMPORT_DEADLINE);
                }
                let failed = helper.import_all(&modules, IMPORT_DEADLINE);
                helper.abandon();
                failed
            }
            Err(error) => modules.into_iter().map(|module| (module, error.clone())).collect(),
        };
        let _gone = done.send(failed);
        wake.prepared();
    }
}

/// One deferred worker.
struct Worker {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    completions: Arc<dyn Completions>,
}

impl Worker {
    fn live(self, shared_interpreter: Option<InterpreterId>, ready: &Sender<Result<InterpreterId, PluginError>>) {
        self.shared.scheduling.apply();
        let made = match shared_interpreter {
            None => Interpreter::create(Lane::Deferred, &self.shared.site_packages),
            Some(id) => Interpreter::join(id),
        };
        let mut interpreter = match made {
            Ok(interpreter) => interpreter,
            Err(error) => {
                let _gone = ready.send(Err(error));
                return;
            }
        };
        let id = interpreter.id();
        while let Some(next) = interpreter.while_waiting(|| {
            let _first_time_only = ready.try_send(Ok(id));
            self.next()
        }) {
            match next {
                Next::TakeCache(trigger, answer) => {
                    let _gone = answer.send(interpreter.take_cache(trigger));
                    self.completions.prepared();
                }
                Next::Run { request, cache, code, prepared } => {
                    if let Err(error) = interpreter.put_cache(request.trigger.def.id, &cache) {
                        tell(self.shared.host.as_ref(), &request, format!("the cache is lost: {}", error.message));
                    }
                    let report = interpreter.run(&self.shared.host, *request, &code, &prepared, Lane::Deferred);
                    interpreter.while_waiting(|| {
                        self.completions.completed(report);
                        self.shared.running.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        }
        // The interpreter lives on, but nobody runs in it: its GIL must not stay with a thread that ends.
        interpreter.abandon();
    }

    /// What to do next, a run with its newest code; `None` when the runtime stops.
    fn next(&self) -> Option<Next> {
        let (request, cache) = match self.jobs.recv().ok()? {
            Job::TakeCache(trigger, answer) => return Some(Next::TakeCache(trigger, answer)),
            Job::Run(request, cache) => (request, cache),
        };
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.stopping.load(Ordering::SeqCst) {
            self.shared.running.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        let code = request.trigger.code.refresh();
        let prepared = self.shared.preparer.prepare(&code, &request.trigger.def.plugin_filename);
        Some(Next::Run { request, cache, code, prepared })
    }
}

enum Next {
    TakeCache(TriggerId, Sender<Result<Vec<u8>, String>>),
    Run { request: Box<RunRequest>, cache: Vec<u8>, code: Arc<PluginCode>, prepared: Arc<Prepared> },
}
