//! The process's Python: started once, on the main thread, and never ended (design, section 6).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::thread::CpuSet;
use saltus_core::ids::ShardId;
use saltus_core::ports::{Completions, ImportsFound, PluginCode, PluginError, PluginHost, PluginRuntime, ShardPlugins};

use crate::cache_vault::{CacheVault, VaultCounts};
use crate::deadline::{self, StallPolicy};
use crate::effects;
use crate::ffi::pystate::{self, InterpreterId};
use crate::ffi::{Object, Py, PyResult, ceval, pylifecycle};
use crate::global_cache;
use crate::interpreter::{self, Surroundings, failure, files_of, plain_error};
use crate::lanes::{Lanes, Shared};
use crate::native;
use crate::prepare::{Preparer, error_of};
use crate::process::{Imports, ProcessConfig, ProcessCounts, ProcessLane, Workers};
use crate::rooms::Directory;

/// How plugins are run.
#[derive(Clone, Debug)]
pub struct PythonConfig {
    /// Where plugins lie; only said in messages, code comes through `CodeSource`.
    pub plugin_dir: Option<PathBuf>,
    /// Added to `sys.path` of every interpreter, `.pth` files included.
    pub site_packages: Vec<PathBuf>,
    /// Variables for `os.environ` of every interpreter, over those of the process.
    pub environment: Vec<(String, String)>,
    /// Worker threads of each shard's deferred lane, at most; some are made when they are needed.
    pub deferred_workers: usize,
    /// Runs that may wait for them.
    pub queue_max: usize,
    /// Interpreters of their own that triggers with long runs may have in the whole process; each shard may have one in any case.
    pub own_interpreters: usize,
    /// Bytes that these may hold together before no more are made, with all that their triggers hold in them.
    pub own_interpreters_memory: u64,
    /// The CPUs that shards are pinned to; `None` if they may be on any. Workers use the others; where there are none, all, at
    /// the lowest priority.
    pub shard_cpus: Option<Vec<usize>>,
    /// Keep `ctypes` and its like out of this process.
    pub hardened: bool,
    /// Count what plugins allocate in this process, and keep to the limits of their triggers. Without it a plugin that allocates
    /// much is somewhat faster (`benches`).
    pub memory_limits: bool,
    /// The seed of Python's hashes; a random one, if `None`. A fixed one is for measurements: collisions are then the same each time.
    pub hash_seed: Option<u32>,
    /// An inline run that goes on so long although it was interrupted puts its code into quarantine.
    pub stall_limit: Duration,
    /// And aborts the process after so long; never, if `None`.
    pub stall_abort: Option<Duration>,
    /// After its deadline and this, a deferred run is left behind.
    pub deferred_grace: Duration,
    /// Where plain values of caches are kept from one life to the next.
    pub cache_file: Option<PathBuf>,
    /// Whether those of triggers that do not say are.
    pub restore_caches: bool,
    /// The process lane.
    pub process: ProcessConfig,
}

impl Default for PythonConfig {
    fn default() -> Self {
        PythonConfig {
            plugin_dir: None,
            site_packages: Vec::new(),
            environment: Vec::new(),
            deferred_workers: 16,
            queue_max: saltus_core::limits::DEFERRED_QUEUE_MAX,
            own_interpreters: saltus_core::limits::OWN_INTERPRETERS_MAX,
            own_interpreters_memory: saltus_core::limits::OWN_INTERPRETERS_BYTES_MAX,
            shard_cpus: None,
            hardened: false,
            memory_limits: true,
            hash_seed: None,
            stall_limit: Duration::from_millis(saltus_core::limits::STALL_LIMIT_MS),
            stall_abort: Some(Duration::from_millis(saltus_core::limits::STALL_ABORT_MS)),
            deferred_grace: Duration::from_millis(saltus_core::limits::DEFERRED_GRACE_MS),
            cache_file: None,
            restore_caches: true,
            process: ProcessConfig::default(),
        }
    }
}

/// What there is to say of caches.
#[derive(Clone, Copy, Debug)]
pub struct CacheCounts {
    /// Of those that are kept from one life to the next.
    pub vault: VaultCounts,
    /// Plain values in the global cache.
    pub global_values: usize,
    /// Their bytes, keys included.
    pub global_bytes: usize,
    /// Values that had to go because there were too many.
    pub evicted: u64,
}

/// After a stop has begun, calls of the plugin API raise; what still runs after so long is interrupted.
pub const STOP_GRACE: Duration = Duration::from_millis(250);

/// How urgent the work of a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for it, and it is soon over.
    Short,
    /// It may take long, and gives way to everybody else.
    Long,
}

impl Priority {
    /// Gives this thread of a worker process its nice value. It is told no more than that: what CPUs it has was settled when it began.
    ///
    /// # Errors
    /// What the system said: only who may gets a better one.
    pub fn take(self) -> std::io::Result<()> {
        static FIRST: OnceLock<i32> = OnceLock::new();
        let first = *FIRST.get_or_init(|| rustix::process::getpriority_process(None).unwrap_or(0));
        let nice = if self == Priority::Long && first > 0 { NICE_LONG } else { first };
        rustix::process::setpriority_process(None, nice).map_err(std::io::Error::from)
    }
}

/// How worker threads and worker processes are scheduled. A new thread inherits the CPU that its shard is pinned to, and a busy
/// one there costs the shard's wake-ups more than a millisecond: so workers have the CPUs that no shard has, of those that the
/// process could use when the runtime was started. If shards have them all, workers share them at a lower priority. Those that may take
/// long give way to the others in either case.
#[derive(Clone)]
pub struct Scheduling {
    cpus: Option<CpuSet>,
    shares: bool,
}

/// The lowest priority, beside shards.
const NICE_LONG: i32 = 19;
/// Below the shards, and far above what may take long.
const NICE_SHORT: i32 = 5;

impl Scheduling {
    fn beside(available: Option<CpuSet>, shard_cpus: Option<&[usize]>) -> Self {
        let others = available.zip(shard_cpus).map(|(mut others, shard_cpus)| {
            // A number beyond the set's size is no CPU of this process.
            shard_cpus.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU).for_each(|&cpu| others.unset(cpu));
            others
        });
        match others.filter(|others| others.count() > 0) {
            Some(others) => Scheduling { cpus: Some(others), shares: false },
            None => Scheduling { cpus: available, shares: true },
        }
    }

    fn nice(&self, priority: Priority) -> i32 {
        match priority {
            // Where no shard is, all are equal.
            _ if !self.shares => 0,
            Priority::Long => NICE_LONG,
            Priority::Short => NICE_SHORT,
        }
    }

    /// Applies it to this thread, which has the priority of those that start workers; what the system refuses stays as it was, with a
    /// warning.
    pub fn apply(&self, priority: Priority) {
        if let Some(cpus) = &self.cpus
            && let Err(error) = rustix::thread::sched_setaffinity(None, cpus)
        {
            tracing::warn!(%error, "a plugin worker stays on its shard's cpu");
        }
        let nice = self.nice(priority);
        if nice != 0
            && let Err(error) = rustix::process::setpriority_process(None, nice)
        {
            tracing::warn!(%error, "a plugin worker keeps its shard's priority");
        }
    }
}

/// The process's Python.
pub struct PythonRuntime {
    shared: Arc<Shared>,
    config: PythonConfig,
    main: InterpreterId,
    workers: Arc<Workers>,
}

impl PythonRuntime {
    /// Starts Python. Once per process, on its main thread, before any shard is pinned.
    ///
    /// # Errors
    /// No standard library to be found for the libpython that is loaded, or what Python said.
    pub fn start(config: PythonConfig, host: Arc<dyn PluginHost>) -> Result<Arc<Self>, PluginError> {
        static STARTED: AtomicBool = AtomicBool::new(false);
        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(failure("RuntimeError", "Python has been started before in this process"));
        }
        if !ceval::can_interrupt() {
            let text = format!("libpython {} does not export _PyEval_AddPendingCall", pylifecycle::version());
            return Err(failure("RuntimeError", &text));
        }
        let (limit, abort) = (config.stall_limit, config.stall_abort);
        deadline::start(StallPolicy { host: host.clone(), limit, abort });
        let home = find_home().map_err(|text| failure("RuntimeError", &text))?;
        native::register();
        effects::install().map_err(|text| failure("RuntimeError", &text))?;
        let py = pylifecycle::initialize(&home, config.memory_limits, config.hash_seed)
            .map_err(|text| failure("RuntimeError", &text))?;
        if config.hardened {
            effects::harden();
        }
        let main = prepare_main(py).map_err(|raised| plain_error(py, raised))?;
        pylifecycle::release_main(py);
        let surroundings = Surroundings {
            site_packages: config.site_packages.iter().map(|p| p.to_string_lossy().into_owned()).collect(),
            environment: config.environment.clone(),
        };
        let scheduling = Scheduling::beside(rustix::thread::sched_getaffinity(None).ok(), config.shard_cpus.as_deref());
        let preparer = Preparer::start(main, scheduling.clone())?;
        let imports = Imports::start(main, scheduling.clone(), surroundings.clone(), config.process.clone())?;
        let (stopping, running) = (AtomicBool::new(false), AtomicUsize::new(0));
        let deferred_grace = config.deferred_grace;
        let vault = CacheVault::open(config.cache_file.clone(), Self::python_series(), config.restore_caches);
        let shared = Arc::new(Shared {
            host,
            surroundings,
            scheduling,
            preparer,
            imports,
            vault,
            stopping,
            deferred_grace,
            running,
            rooms: Directory::default(),
            rooms_made: AtomicU32::new(0),
            own_interpreters: AtomicUsize::new(0),
            own_interpreters_max: (config.own_interpreters, config.own_interpreters_memory),
        });
        let workers = Workers::start(shared.clone(), config.process.clone())?;
        Ok(Arc::new(PythonRuntime { shared, config, main, workers }))
    }

    /// `sys.version`, the first word: for instance `3.13.0`.
    pub fn python_version(&self) -> String {
        pylifecycle::version().split_whitespace().next().unwrap_or_default().to_owned()
    }

    /// What this Python says of itself: version, build, compiler. Needs no runtime.
    pub fn build_text() -> String {
        pylifecycle::version()
    }

    /// The version's first two numbers, as they stand in folders' names: for instance `3.13`.
    pub fn python_series() -> String {
        let version = pylifecycle::version();
        let numbers: Vec<_> = version.split(['.', ' ']).take(2).collect();
        numbers.join(".")
    }

    /// What became of the worker processes of the process lane.
    pub fn process_counts(&self) -> ProcessCounts {
        self.workers.counts()
    }

    /// What became of caches over the last restart.
    pub fn cache_counts(&self) -> CacheCounts {
        let (global_values, global_bytes) = global_cache::local().size();
        CacheCounts { vault: self.shared.vault.counts(), global_values, global_bytes, evicted: global_cache::evicted() }
    }

    /// How many interpreters of their own triggers have, and the bytes that these hold.
    pub fn own_interpreters(&self) -> (usize, u64) {
        (self.shared.own_interpreters.load(Ordering::Relaxed), self.shared.rooms.own_bytes())
    }

    /// Compiles a plugin without running it; the names that its top level binds.
    ///
    /// # Errors
    /// `SyntaxError` and its like.
    pub fn check_source(&self, source: &str, file_name: &str) -> Result<Vec<String>, PluginError> {
        self.in_main(|py| entry_points(py, source, file_name))
    }

    /// Whether a version of a plugin may take the place of `before`, as far as that can be known without running it; `path` is
    /// where it lies.
    ///
    /// # Errors
    /// What is wrong with it: a file does not compile, or imports of its own modules lead nowhere.
    pub fn check_version(
        &self,
        path: &Path,
        code: &PluginCode,
        before: Option<&PluginCode>,
    ) -> Result<(), PluginError> {
        self.in_main(|py| wrong_with(py, path, code, before))?.map_or(Ok(()), Err)
    }

    /// Has what a version of a plugin imports tried in a process of its own, and in an interpreter with a GIL of its own; `told` is called
    /// on another thread when it is known, and must not wait. Never waits; false if too many wait for that.
    pub fn try_imports(&self, code: &Arc<PluginCode>, told: impl FnOnce(Arc<ImportsFound>) + Send + 'static) -> bool {
        self.shared.imports.ask(code, Box::new(told))
    }

    /// Does something in the main interpreter.
    fn in_main<R: Send>(&self, body: impl FnOnce(Py) -> PyResult<R> + Send) -> Result<R, PluginError> {
        let main = self.main;
        std::thread::scope(|scope| {
            // A thread of its own, as a thread stays attached to the interpreter that it has entered (`ffi`).
            let check = scope.spawn(move || {
                let py = Py::attach(main);
                let found = body(py).map_err(|raised| plain_error(py, raised));
                pystate::leave(py);
                found
            });
            check.join().unwrap_or_else(|_| Err(failure("RuntimeError", "the check of a plugin panicked")))
        })
    }
}

fn wrong_with(py: Py, path: &Path, code: &PluginCode, before: Option<&PluginCode>) -> PyResult<Option<PluginError>> {
    let files = |code: Option<&PluginCode>| match code {
        Some(PluginCode { directory: Some(folder), .. }) => files_of(py, folder),
        Some(PluginCode { source, .. }) => {
            let files = Object::dict(py)?;
            files.dict_set(py, &Object::text(py, "")?, &Object::text(py, source)?)?;
            Ok(files)
        }
        None => Object::dict(py),
    };
    let arguments = [&Object::text(py, &path.to_string_lossy())?, &files(Some(code))?, &files(before)?];
    let wrong = Object::import(py, "saltus._versions")?.call_method(py, "reason_against", arguments)?;
    if wrong.is_none() { Ok(None) } else { error_of(py, &wrong).map(Some) }
}

fn entry_points(py: Py, source: &str, file_name: &str) -> PyResult<Vec<String>> {
    let report = Object::import(py, "saltus._report")?;
    let names = report.call_method(py, "entry_points", [&Object::text(py, source)?, &Object::text(py, file_name)?])?;
    names.sequence_items(py)?.iter().map(|name| name.extract_str(py, "a name")).collect()
}

/// `datetime` first: a subinterpreter that imports it before main does ends in a crash (design, section 11).
fn prepare_main(py: Py) -> PyResult<InterpreterId> {
    Object::import(py, "datetime")?;
    interpreter::prepare(py, &Surroundings::default())?;
    Ok(pystate::current_interpreter(py))
}

impl PluginRuntime for PythonRuntime {
    fn attach(&self, shard: ShardId, completions: Arc<dyn Completions>) -> Result<Box<dyn ShardPlugins>, PluginError> {
        let PythonConfig { deferred_workers, queue_max, .. } = self.config;
        let process = ProcessLane::new(self.workers.clone(), completions.clone());
        let lanes = Lanes::start(self.shared.clone(), shard, deferred_workers, queue_max, completions, process)?;
        Ok(Box::new(lanes))
    }

    fn stop(&self, within: Duration) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        effects::stop();
        self.workers.wake_all();
        let begun = Instant::now();
        let (until, grace) = (begun + within, begun + STOP_GRACE.min(within / 2));
        let running = || self.shared.running.load(Ordering::SeqCst) > 0;
        while running() && Instant::now() < grace {
            std::thread::sleep(Duration::from_millis(1));
        }
        deadline::interrupt_all();
        // Worker processes give their caches away before they go.
        while (running() || self.workers.counts().alive > 0) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.shared.vault.save();
    }
}

/// The prefix whose standard library belongs to the libpython that is loaded: the nearest folder above the library
/// that has one, else the prefix that the build saw.
pub fn find_home() -> Result<PathBuf, String> {
    let version = pylifecycle::version();
    let mut numbers = version.split(['.', ' ']);
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let stdlib = format!("lib/python{major}.{minor}/os.py");
    let library = pylifecycle::libpython_path().and_then(|path| path.canonicalize().ok());
    let built_with = PathBuf::from(env!("SALTUS_PYTHON_PREFIX"));
    library
        .iter()
        .flat_map(|path| path.ancestors().skip(1))
        .chain([built_with.as_path()])
        .find(|prefix| prefix.join(&stdlib).is_file())
        .map(Path::to_path_buf)
        .ok_or_else(|| {
            format!(
                "no Python {major}.{minor} standard library ({stdlib}) above {} or in {}",
                library.as_deref().unwrap_or(Path::new("libpython")).display(),
                built_with.display()
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cpus: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        cpus.iter().for_each(|&cpu| set.set(cpu));
        set
    }

    #[test]
    fn workers_have_the_cpus_that_no_shard_has_or_a_lower_priority() {
        let check = |available: &[usize], shards: Option<&[usize]>, cpus: &[usize], shares: bool| {
            let scheduling = Scheduling::beside(Some(set(available)), shards);
            assert_eq!((scheduling.cpus, scheduling.shares), (Some(set(cpus)), shares));
        };
        check(&[0, 1, 2], Some(&[0, 1]), &[2], false);
        check(&[0, 1], Some(&[0, 1]), &[0, 1], true);
        check(&[0, 1], None, &[0, 1], true);
        check(&[3], Some(&[0, 100_000]), &[3], false);
        let (apart, shares) =
            (Scheduling::beside(Some(set(&[0, 1])), Some(&[0])), Scheduling::beside(None, Some(&[0])));
        assert_eq!([Priority::Short, Priority::Long].map(|priority| apart.nice(priority)), [0, 0]);
        assert_eq!([Priority::Short, Priority::Long].map(|priority| shares.nice(priority)), [NICE_SHORT, NICE_LONG]);
    }
}
