//! A shard's lanes.
//!
//! **Inline**: an interpreter that is made on the shard's thread and whose plugins run only there. Its GIL is given up for
//! one purpose: a helper thread takes it to import what a plugin needs, since imports read files; inline runs wait
//! meanwhile, the shard does not. **Deferred**: further interpreters ([`crate::rooms`]), each shared by a few worker threads
//! ([`crate::deferred`]). A worker gives the GIL up while it waits for work and while a query runs. The caller sees to it that the runs of one trigger
//! follow each other. **Process**: in [`crate::process`].
//!
//! The cache of a trigger that is left to the policy is in the interpreter in which it ran last, and moves with it: as
//! bytes, taken out under the GIL of the one and put in under that of the other. In an interpreter of a new life it is what
//! [`crate::cache_vault`] has kept; a trigger that was disabled begins with an empty one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};
use saltus_core::ids::{RunId, ShardId, TriggerId};
use saltus_core::limits::{CACHE_SAVE_MS, DEFERRED_DEADLINE_MS, INLINE_IMPORTS_MAX};
use saltus_core::policy::{self, seat::Seat};
use saltus_core::ports::{
    Completions, ImportsFound, LogLevel, LogLine, LogText, PluginCode, PluginError, PluginHost, Readiness, RunReport,
    RunRequest, Seated, ShardPlugins, Trigger, Unwound,
};
use saltus_core::trigger::{Execution, TriggerDef};

use crate::cache_vault::CacheVault;
use crate::deferred::{CacheIn, Job, Run, Taker};
use crate::effects::Lane;
use crate::ffi::pystate::InterpreterId;
use crate::interpreter::{Interpreter, Lent, Surroundings, failure};
use crate::prepare::{Prepared, Preparer};
use crate::process::{Imports, ProcessLane};
use crate::rooms::{Directory, Rooms};
use crate::runtime::{Priority, Scheduling};

/// What a helper may take for one import.
const IMPORT_DEADLINE: Duration = Duration::from_millis(DEFERRED_DEADLINE_MS);

/// Versions of code whose imports are remembered; beyond it they are looked at again.
const VERSIONS_MAX: usize = 4096;

/// What all threads of a runtime share.
pub struct Shared {
    /// The way out for plugins.
    pub host: Arc<dyn PluginHost>,
    /// What every interpreter finds.
    pub surroundings: Surroundings,
    /// How workers are scheduled.
    pub scheduling: Scheduling,
    /// Compiles plugins.
    pub preparer: Preparer,
    /// Tries what plugins import.
    pub imports: Imports,
    /// Caches of earlier lives, and for the next.
    pub vault: CacheVault,
    /// No run is begun any more.
    pub stopping: AtomicBool,
    /// After its deadline and this, a deferred run is left behind.
    pub deferred_grace: Duration,
    /// Runs under way in the deferred and the process lane.
    pub running: AtomicUsize,
    /// The deferred interpreters.
    pub rooms: Directory,
    /// How many of them were made.
    pub rooms_made: AtomicU32,
    /// Of those, the ones for triggers whose runs take long, and how many of them there may be.
    pub own_interpreters: AtomicUsize,
    /// See there: number and bytes.
    pub own_interpreters_max: (usize, u64),
}

/// Implements the port.
pub struct Lanes {
    shared: Arc<Shared>,
    completions: Arc<dyn Completions>,
    inline: Option<Inline>,
    rooms: Rooms,
    helper: Sender<Errand>,
    caches: HashMap<TriggerId, CacheHome>,
    /// Triggers that were disabled since they ran: their caches begin empty.
    forgotten: HashSet<TriggerId>,
    /// Of those, the ones that the inline interpreter does not know yet, as the helper had it.
    to_forget: Vec<TriggerId>,
    /// Inline by order: those whose cache of an earlier life was seen to.
    restored: HashSet<TriggerId>,
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

/// What the helper does for the inline interpreter.
struct Errand {
    modules: Vec<String>,
    directory: Option<Arc<PluginCode>>,
    cache: Option<(TriggerId, Arc<[u8]>)>,
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
        let inline = Interpreter::create(Lane::Inline, &shared.surroundings)?;
        let rooms = Rooms::start(shared.clone(), shard, workers, queue_max, completions.clone())?;
        let (helper, errands) = channel::bounded(1);
        let (interpreter, wake, scheduling) = (inline.id(), completions.clone(), shared.scheduling.clone());
        std::thread::Builder::new()
            .name(format!("saltus-py-{shard}-import"))
            .spawn(move || help(interpreter, &errands, wake.as_ref(), &scheduling))
            .map_err(|e| failure("OSError", &format!("cannot start an import helper: {e}")))?;
        let inline = Some(Inline::Here(inline));
        let (caches, wanted, imported) = Default::default();
        let (forgotten, to_forget, restored) = Default::default();
        Ok(Lanes {
            shared,
            completions,
            inline,
            rooms,
            helper,
            caches,
            forgotten,
            to_forget,
            restored,
            wanted,
            imported,
            process,
        })
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
        self.to_forget.drain(..).for_each(|trigger| interpreter.drop_cache(trigger));
        self.inline = Some(Inline::Here(interpreter));
    }

    /// Has the helper import and fill a cache; true if it will.
    fn lend(
        &mut self,
        modules: Vec<String>,
        directory: Option<Arc<PluginCode>>,
        cache: Option<(TriggerId, Arc<[u8]>)>,
    ) -> bool {
        let (done, is_done) = channel::bounded(1);
        let Some(Inline::Here(interpreter)) = self.inline.take() else { unreachable!("asked while it is here") };
        // The helper waits for the GIL, or finds it free.
        if self.helper.try_send(Errand { modules, directory, cache, done }).is_err() {
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
                let job = Job::TakeCache(trigger, Taker::Inline, tell, self.completions.clone());
                if self.rooms.of(trigger).send(job).is_ok() {
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

    /// Fills the cache of a trigger that was told to run inline, in its first run of this life.
    fn restore_inline(&mut self, def: &TriggerDef) -> Readiness {
        if !self.restored.insert(def.id) || !self.shared.vault.wants(def) {
            return Readiness::Ready;
        }
        let Some(cache) = self.shared.vault.get(def.id) else { return Readiness::Ready };
        if self.lend(Vec::new(), None, Some((def.id, cache))) {
            self.shared.vault.forget(def.id);
        } else {
            self.restored.remove(&def.id);
        }
        Readiness::Wait
    }

    /// What a deferred run finds in its cache, given what was taken from the inline interpreter.
    fn cache_for(&mut self, def: &TriggerDef, taken: Vec<u8>) -> CacheIn {
        let wants = self.shared.vault.wants(def);
        if self.forgotten.remove(&def.id) {
            return CacheIn::Fresh(Arc::new([]));
        }
        if !taken.is_empty() {
            return CacheIn::Fresh(taken.into());
        }
        if self.rooms.has_run(def.id) {
            // It has ended a run with it, or runs where it is again.
            self.shared.vault.forget(def.id);
            return CacheIn::Stays;
        }
        match self.shared.vault.get(def.id).filter(|_| wants) {
            Some(kept) => CacheIn::Fresh(kept),
            None => CacheIn::Stays,
        }
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
        if self.lend(modules, directory, None) {
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

pub fn tell(host: &dyn PluginHost, request: &RunRequest, text: String) {
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
            Execution::Inline => self.restore_inline(&trigger.def),
            Execution::Deferred => Readiness::Ready,
        }
    }

    fn ready_deferred(&mut self, trigger: &Trigger, seat: Seat, cost_ns: u64, alone: bool) -> Seated {
        let id = trigger.def.id;
        // What is in the inline interpreter, or on the way to it, comes along with the run.
        self.rooms.seat(id, seat, cost_ns, alone && !self.caches.contains_key(&id))
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
        let trigger = request.trigger.def.id;
        if self.rooms.of(trigger).is_full() {
            return Err(Box::new(request));
        }
        let Some(taken) = self.give_cache(&request) else { return Err(Box::new(request)) };
        let cache = match self.rooms.take_brought(trigger).filter(|_| taken.is_empty()) {
            // Whatever was kept of an earlier life was in it.
            Some(brought) => {
                self.shared.vault.forget(trigger);
                CacheIn::Fresh(brought.into())
            }
            None => self.cache_for(&request.trigger.def, taken),
        };
        let (room, lost) = self.rooms.enter(trigger);
        if lost {
            let text = "the interpreter that the trigger ran in was given up because of another plugin's run: what its cache held there is lost";
            tell(self.shared.host.as_ref(), &request, text.to_owned());
        }
        match room.send(Job::Run(Run { request: Box::new(request), cache, home: self.completions.clone() })) {
            Ok(()) => Ok(()),
            // This thread has seen room; a worker may have given a job back since, or another shard has sent one.
            Err(Job::Run(run)) => Err(run.request),
            Err(_) => unreachable!("sent a run"),
        }
    }

    fn imports_of(&self, code: u64) -> Option<Arc<ImportsFound>> {
        self.shared.imports.known(code)
    }

    fn forget(&mut self, trigger: TriggerId) {
        self.shared.vault.forget(trigger);
        let here = self.here().map(|interpreter| interpreter.drop_cache(trigger)).is_some();
        if !here {
            self.to_forget.push(trigger);
        }
        self.restored.insert(trigger);
        self.caches.remove(&trigger);
        if let Some(room) = self.rooms.forget(trigger) {
            self.forgotten.insert(trigger);
            // If there is no room, the next run sees to it.
            let _full = room.send(Job::DropCache(trigger));
        }
        self.process.forget(trigger);
    }

    fn stop_runs(&mut self) {
        self.rooms.all().for_each(|room| room.nudge());
        self.process.ring_all();
    }

    fn rest(&mut self) {
        let until = Instant::now() + Duration::from_millis(CACHE_SAVE_MS);
        if let Some(Inline::Lent(_, done)) = &self.inline
            && let Ok(failed) = done.recv_deadline(until)
        {
            self.take_back(failed);
        }
        let mut kept = self.here().map(|interpreter| interpreter.dump_caches()).unwrap_or_default();
        let asked: Vec<_> = self
            .rooms
            .all()
            .map(|room| {
                let (tell, told) = channel::bounded(1);
                room.send(Job::DumpCaches(tell)).is_ok().then_some(told)
            })
            .collect();
        for told in asked {
            match told.and_then(|told| told.recv_deadline(until).ok()) {
                Some(deferred) => kept.extend(deferred),
                None => tracing::warn!(
                    "caches of a deferred interpreter are not kept for the next start: its workers are busy"
                ),
            }
        }
        let here = self.rooms.ran().filter(|(_, room)| self.rooms.all().any(|mine| Arc::ptr_eq(mine, room)));
        here.for_each(|(trigger, _)| self.shared.vault.forget(trigger));
        for (trigger, cache, live) in kept {
            self.shared.vault.put(trigger, cache, &live);
        }
    }
}

/// The helper's life: imports into an interpreter that another thread runs plugins in.
fn help(interpreter: InterpreterId, errands: &Receiver<Errand>, wake: &dyn Completions, scheduling: &Scheduling) {
    scheduling.apply(Priority::Short);
    while let Ok(Errand { modules, directory, cache, done }) = errands.recv() {
        // Attached for one errand only: the GIL belongs to the shard.
        let failed = match Interpreter::join(interpreter) {
            Ok(helper) => {
                if let Some(code) = &directory
                    && let Some(folder) = &code.directory
                {
                    helper.import_directory(folder, code.hash, IMPORT_DEADLINE);
                }
                let failed = helper.import_all(&modules, IMPORT_DEADLINE);
                if let Some((trigger, bytes)) = cache
                    && let Err(error) = helper.put_cache(trigger, &bytes)
                {
                    tracing::warn!(trigger = trigger.0, error = %error.message, "the cache of an earlier life is lost");
                }
                helper.abandon();
                failed
            }
            Err(error) => modules.into_iter().map(|module| (module, error.clone())).collect(),
        };
        let _gone = done.send(failed);
        wake.prepared();
    }
}
