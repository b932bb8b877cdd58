//! The process's Python: started once, on the main thread, and never ended (design, section 6).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::CpuSet;
use saltus_core::ids::ShardId;
use saltus_core::ports::{Completions, PluginError, PluginHost, PluginRuntime, ShardPlugins};

use crate::deadline;
use crate::effects;
use crate::ffi::pystate::{self, InterpreterId};
use crate::ffi::{Object, Py, PyResult, ceval, pylifecycle};
use crate::interpreter::{self, failure, plain_error};
use crate::lanes::{Lanes, Shared};
use crate::native;
use crate::prepare::Preparer;
use crate::process::{ProcessConfig, ProcessCounts, ProcessLane, Workers};

/// How plugins are run.
#[derive(Clone, Debug)]
pub struct PythonConfig {
    /// Where plugins lie; only said in messages, code comes through `CodeSource`.
    pub plugin_dir: Option<PathBuf>,
    /// Added to `sys.path` of every interpreter, `.pth` files included.
    pub site_packages: Vec<PathBuf>,
    /// Worker threads of each shard's deferred lane; at least one is made.
    pub deferred_workers: usize,
    /// Runs that may wait for them.
    pub queue_max: usize,
    /// Workers share their CPUs with shards, so they run at the lowest priority.
    pub shared_cores: bool,
    /// The process lane.
    pub process: ProcessConfig,
}

impl Default for PythonConfig {
    fn default() -> Self {
        PythonConfig {
            plugin_dir: None,
            site_packages: Vec::new(),
            deferred_workers: 2,
            queue_max: saltus_core::limits::DEFERRED_QUEUE_MAX,
            shared_cores: true,
            process: ProcessConfig::default(),
        }
    }
}

/// How worker threads are scheduled. A new thread inherits the CPU that its shard is pinned to; a worker may use every
/// CPU that the process could use when the runtime was started.
#[derive(Clone)]
pub struct Scheduling {
    cpus: Option<CpuSet>,
    shared_cores: bool,
}

impl Scheduling {
    /// Applies it to this thread; what the system refuses stays as it was, with a warning.
    pub fn apply(&self) {
        if let Some(cpus) = &self.cpus
            && let Err(error) = rustix::thread::sched_setaffinity(None, cpus)
        {
            tracing::warn!(%error, "a plugin worker stays on its shard's cpu");
        }
        if self.shared_cores
            && let Err(error) = rustix::process::nice(19)
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
        let home = find_home().map_err(|text| failure("RuntimeError", &text))?;
        native::register();
        effects::install().map_err(|text| failure("RuntimeError", &text))?;
        let py = pylifecycle::initialize(&home).map_err(|text| failure("RuntimeError", &text))?;
        let main = prepare_main(py).map_err(|raised| plain_error(py, raised))?;
        pylifecycle::release_main(py);
        let site_packages = config.site_packages.iter().map(|p| p.to_string_lossy().into_owned()).collect();
        let cpus = rustix::thread::sched_getaffinity(None).ok();
        let scheduling = Scheduling { cpus, shared_cores: config.shared_cores };
        let preparer = Preparer::start(main)?;
        let (stopping, running) = (AtomicBool::new(false), AtomicUsize::new(0));
        let shared = Arc::new(Shared { host, site_packages, scheduling, preparer, stopping, running });
        let workers = Workers::start(shared.clone(), config.process.clone())?;
        Ok(Arc::new(PythonRuntime { shared, config, main, workers }))
    }

    /// `sys.version`, the first word: for instance `3.13.0`.
    pub fn python_version(&self) -> String {
        pylifecycle::version().split_whitespace().next().unwrap_or_default().to_owned()
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

    /// Compiles a plugin without running it; the names that its top level binds.
    ///
    /// # Errors
    /// `SyntaxError` and its like.
    pub fn check_source(&self, source: &str, file_name: &str) -> Result<Vec<String>, PluginError> {
        let main = self.main;
        std::thread::scope(|scope| {
            // A thread of its own, as a thread stays attached to the interpreter that it has entered (`ffi`).
            let check = scope.spawn(move || {
                let py = Py::attach(main);
                let names = entry_points(py, source, file_name).map_err(|raised| plain_error(py, raised));
                pystate::leave(py);
                names
            });
            check.join().unwrap_or_else(|_| Err(failure("RuntimeError", "the check of a plugin panicked")))
        })
    }
}

fn entry_points(py: Py, source: &str, file_name: &str) -> PyResult<Vec<String>> {
    let report = Object::import(py, "saltus._report")?;
    let names = report.call_method(py, "entry_points", [&Object::text(py, source)?, &Object::text(py, file_name)?])?;
    names.sequence_items(py)?.iter().map(|name| name.extract_str(py, "a name")).collect()
}

/// `datetime` first: a subinterpreter that imports it before main does ends in a crash (design, section 11).
fn prepare_main(py: Py) -> PyResult<InterpreterId> {
    Object::import(py, "datetime")?;
    interpreter::prepare(py, &[])?;
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
        deadline::interrupt_all();
        self.workers.wake_all();
        let until = Instant::now() + within;
        while self.shared.running.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
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
