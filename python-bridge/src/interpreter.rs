//! One thread's side of one interpreter: makes it fit for plugins, and makes runs in it.
//!
//! # Mechanism of a run
//! 1. The code object is looked up by content hash, or compiled (one cache per thread).
//! 2. The module body is executed in fresh globals (reference, 1.8), unless `saltus._reuse` has found that nobody can tell: then
//!    its globals are kept from the first run on. A directory plugin is imported instead and keeps its module until its
//!    content changes.
//! 3. The entry function is called with positional arguments. The deadline counts from before 2 to after 3.
//! 4. An exception becomes three strings; no Python object leaves this file.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use saltus_core::ports::{
    LogLevel, LogText, PluginCode, PluginError, PluginHost, QueuedWrite, RunEvent, RunReport, RunRequest,
};

use crate::deadline::Watched;
use crate::ffi::pyerrors::{self, Builtin};
use crate::ffi::pylifecycle::{self, DaemonThreads};
use crate::ffi::pystate::{self, InterpreterId};
use crate::ffi::{Object, Py, PyResult, Raised, time};
use crate::native::local::{Local, RunInfo};
use crate::native::{Natives, table_batch};
use crate::output;
use std::sync::Arc;

/// Compiled plugins kept per thread; beyond it the cache starts again.
const CODE_CACHE_MAX: usize = 1024;

/// The plugin API, in the order in which it is loaded.
const API: &[(&str, &str)] = &[
    ("saltus.errors", include_str!("../python/saltus/errors.py")),
    ("saltus.line_builder", include_str!("../python/saltus/line_builder.py")),
    ("saltus._report", include_str!("../python/saltus/_report.py")),
    ("saltus._reuse", include_str!("../python/saltus/_reuse.py")),
    ("saltus._loader", include_str!("../python/saltus/_loader.py")),
    ("saltus._setup", include_str!("../python/saltus/_setup.py")),
    ("saltus", include_str!("../python/saltus/__init__.py")),
];

/// The reference's text, 1.2.
const NO_PROCESS_WRITES: &str = "the process_writes function is not present in the plugin. Should be defined as: \
                                 process_writes(influxdb3_local, table_batches, args=None)";

/// An interpreter as one thread uses it; never leaves the thread.
pub struct Interpreter {
    py: Py,
    natives: Rc<Natives>,
    watched: Watched,
    code: HashMap<u64, Compiled, std::hash::BuildHasherDefault<HashIsKey>>,
    describe: Object,
    reason_against_reuse: Object,
    load_directory: Object,
    process_writes: Object,
}

/// A plugin file as this thread runs it.
struct Compiled {
    code: Object,
    /// Nobody can tell kept globals from fresh ones.
    reusable: bool,
    /// The entry function with the globals that it keeps alive, once they were made.
    kept: Option<Object>,
}

/// Content hashes are spread well enough to be used as they are.
#[derive(Default)]
struct HashIsKey(u64);

impl std::hash::Hasher for HashIsKey {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only u64 keys")
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// What a run may do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// On the shard's thread: nothing may block.
    Inline,
    /// On a worker.
    Deferred,
}

impl Interpreter {
    /// Makes an interpreter on this thread and prepares it.
    ///
    /// # Errors
    /// What Python said.
    pub fn create(daemons: DaemonThreads, site_packages: &[String]) -> Result<Self, PluginError> {
        let py = pylifecycle::new_interpreter(daemons).map_err(|text| failure("RuntimeError", &text))?;
        prepare(py, site_packages).map_err(|raised| plain_error(py, raised))?;
        Interpreter::over(py)
    }

    /// Prepares the main interpreter of a worker process, which this thread holds.
    ///
    /// # Errors
    /// What Python said.
    pub fn of_worker(py: Py, site_packages: &[String]) -> Result<Self, PluginError> {
        prepare_in(py, site_packages, true).map_err(|raised| plain_error(py, raised))?;
        Interpreter::over(py)
    }

    /// Attaches this thread to an interpreter that [`Interpreter::create`] made on another.
    ///
    /// # Errors
    /// What Python said.
    pub fn join(interpreter: InterpreterId) -> Result<Self, PluginError> {
        Interpreter::over(Py::attach(interpreter))
    }

    fn over(py: Py) -> Result<Self, PluginError> {
        let find = || {
            Ok(Interpreter {
                py,
                natives: Natives::find(py)?,
                watched: Watched::register(py),
                code: HashMap::default(),
                describe: Object::import(py, "saltus._report")?.getattr(py, "describe")?,
                reason_against_reuse: Object::import(py, "saltus._reuse")?.getattr(py, "reason_against")?,
                load_directory: Object::import(py, "saltus._loader")?.getattr(py, "load_directory")?,
                process_writes: Object::interned(py, "process_writes")?,
            })
        };
        find().map_err(|raised| plain_error(py, raised))
    }

    /// Which interpreter it is.
    pub fn id(&self) -> InterpreterId {
        pystate::current_interpreter(self.py)
    }

    /// Lets other threads of the interpreter run while `body` waits.
    pub fn while_waiting<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        self.py.detach(body)
    }

    /// This thread ends: it lets go of the GIL and of everything it holds in the interpreter.
    pub fn abandon(self) {
        let py = self.py;
        drop(self);
        pystate::leave(py);
    }

    /// Makes one run of `code`.
    pub fn run(&mut self, host: &Arc<dyn PluginHost>, request: RunRequest, code: &PluginCode, lane: Lane) -> RunReport {
        let def = &request.trigger.def;
        let info = Rc::new(RunInfo {
            host: host.clone(),
            db: def.db.clone(),
            trigger: def.name.clone(),
            trigger_id: def.id,
            run_id: request.run_id,
            may_block: lane == Lane::Deferred,
        });
        info.tell(LogLevel::Info, LogText::RunStarted);
        output::begin(info.clone());
        let mut entered = None;
        self.watched.begin(request.deadline);
        let outcome = self.call(&request, code, info.clone(), || entered = Some(time::now()));
        let interrupted = self.watched.end(self.py);
        let finished = time::now();
        let result = match (outcome, interrupted) {
            (Ok(writes), None) => Ok(writes),
            (Ok(_), Some(text)) => Err(failure("PluginTimeout", &text)),
            (Err(raised), interrupted) => {
                let mut error = self.describe(raised, &request, code);
                if let Some(text) = interrupted {
                    let traceback = std::mem::take(&mut error.traceback);
                    error = PluginError { traceback, ..failure("PluginTimeout", &text) };
                }
                Err(error)
            }
        };
        output::end();
        let (result, writes) = match result {
            Ok(writes) => {
                let took = entered.map_or(Duration::ZERO, |entered| Duration::from_nanos(finished.since(entered)));
                info.tell(LogLevel::Info, LogText::RunFinished(took));
                (Ok(()), writes)
            }
            Err(error) => (Err(error), Vec::new()),
        };
        RunReport { request, result, writes, entered, finished }
    }

    fn call(
        &mut self,
        request: &RunRequest,
        code: &PluginCode,
        info: Rc<RunInfo>,
        entered: impl FnOnce(),
    ) -> PyResult<Vec<QueuedWrite>> {
        let py = self.py;
        let entry = match &code.directory {
            None => self.load_file(request, code)?,
            Some(directory) => self.load_directory(directory, code)?,
        };
        let RunEvent::Writes(tables) = &request.event;
        let batches = tables
            .iter()
            .map(|table| table_batch::make(py, &self.natives, table.clone()))
            .collect::<PyResult<Vec<_>>>()?;
        let batches = Object::list(py, batches)?;
        let arguments = match &request.trigger.def.arguments {
            None => Object::none(py),
            Some(arguments) => {
                let dict = Object::dict(py)?;
                for (key, value) in arguments {
                    dict.dict_set(py, &Object::text(py, key)?, &Object::text(py, value)?)?;
                }
                dict
            }
        };
        let local = self.natives.local.instance(py, Local::new(info, self.natives.clone()))?;
        entered();
        // Whatever it returns is ignored, as in InfluxDB 3.
        drop(entry.call(py, [&local, &batches, &arguments])?);
        match local.payload(&self.natives.local) {
            Some(local) => local.take_writes(py),
            None => Ok(Vec::new()),
        }
    }

    /// The entry function: kept, or out of the module body executed in fresh globals.
    fn load_file(&mut self, request: &RunRequest, code: &PluginCode) -> PyResult {
        let py = self.py;
        if !self.code.contains_key(&code.hash) {
            let compiled = self.compile(request, code)?;
            if self.code.len() >= CODE_CACHE_MAX {
                self.code.clear();
            }
            self.code.insert(code.hash, compiled);
        }
        let compiled = self.code.get_mut(&code.hash).expect("it was there or has just been put there");
        if let Some(entry) = &compiled.kept {
            return Ok(entry.clone());
        }
        let globals = Object::dict(py)?;
        drop(Object::eval(py, &compiled.code, &globals)?);
        let entry = globals.dict_get(py, &self.process_writes)?;
        let entry = entry.ok_or_else(|| Raised::new(py, Builtin::Runtime, NO_PROCESS_WRITES))?;
        if compiled.reusable {
            compiled.kept = Some(entry.clone());
        }
        Ok(entry)
    }

    fn compile(&self, request: &RunRequest, code: &PluginCode) -> PyResult<Compiled> {
        let py = self.py;
        let file_name = &request.trigger.def.plugin_filename;
        let compiled = Object::compile(py, &code.source, file_name)?;
        let (source, name) = (Object::text(py, &code.source)?, Object::text(py, file_name)?);
        let reason = self.reason_against_reuse.call(py, [&source, &name])?;
        Ok(Compiled { code: compiled, reusable: reason.is_none(), kept: None })
    }

    fn load_directory(&self, directory: &std::path::Path, code: &PluginCode) -> PyResult {
        let py = self.py;
        let path = Object::text(py, &directory.to_string_lossy())?;
        let module = self.load_directory.call(py, [&path, &Object::uint(py, code.hash)?])?;
        module.getattr_key(py, &self.process_writes).map_err(|raised| {
            drop(raised.take(py));
            Raised::new(py, Builtin::Runtime, NO_PROCESS_WRITES)
        })
    }

    fn describe(&self, raised: Raised, request: &RunRequest, code: &PluginCode) -> PluginError {
        let py = self.py;
        let exception = raised.take(py);
        let described = (|| {
            let file_name = Object::text(py, &request.trigger.def.plugin_filename)?;
            let source = Object::text(py, &code.source)?;
            let parts = self.describe.call(py, [&exception, &file_name, &source])?.sequence_items(py)?;
            let text = |at: usize| parts[at].extract_str(py, "a part of a report");
            Ok(PluginError { kind: text(0)?, message: text(1)?, traceback: text(2)? })
        })();
        let mut error = described.unwrap_or_else(|raised: Raised| {
            // For instance a second MemoryError: the type's name is all that can be had.
            drop(raised.take(py));
            failure(&exception.type_name(py), "the exception could not be printed")
        });
        // The reference shows its own messages about entry functions without a type name.
        if error.message == format!("RuntimeError: {NO_PROCESS_WRITES}") {
            NO_PROCESS_WRITES.clone_into(&mut error.message);
            error.traceback.clear();
        }
        error
    }
}

/// Loads the plugin API into this thread's new interpreter and closes what must be closed.
pub fn prepare(py: Py, site_packages: &[String]) -> PyResult<()> {
    prepare_in(py, site_packages, false)
}

/// `own_process`: nobody but the plugin is hurt by what it does to the process.
fn prepare_in(py: Py, site_packages: &[String], own_process: bool) -> PyResult<()> {
    for (name, source) in API {
        let code = Object::compile(py, source, &format!("<{name}>"))?;
        Object::exec_module(py, name, &code)?;
    }
    let package = Object::import(py, "saltus")?;
    package.setattr(py, "__path__", &Object::list(py, Vec::new())?)?;
    for (name, _) in API {
        if let Some((_, child)) = name.split_once('.') {
            package.setattr(py, child, &Object::import(py, name)?)?;
        }
    }
    let paths = site_packages.iter().map(|p| Object::text(py, p)).collect::<PyResult<Vec<_>>>()?;
    let own_process = Object::bool(py, own_process);
    Object::import(py, "saltus._setup")?.call_method(py, "install", [&Object::list(py, paths)?, &own_process])?;
    Ok(())
}

/// An exception without the help of `saltus._report`, which may be what failed.
pub fn plain_error(py: Py, raised: Raised) -> PluginError {
    let exception = raised.take(py);
    let kind = exception.type_name(py);
    let text = exception.str(py).and_then(|s| s.extract_str(py, "str()")).unwrap_or_else(|raised| {
        pyerrors::write_unraisable(py, raised);
        String::new()
    });
    failure(&kind, &text)
}

/// A failure of that kind without a traceback.
pub fn failure(kind: &str, text: &str) -> PluginError {
    PluginError { kind: kind.to_owned(), message: format!("{kind}: {text}"), traceback: String::new() }
}
