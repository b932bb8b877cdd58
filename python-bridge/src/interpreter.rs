//! One thread's side of one interpreter: makes it fit for plugins, and makes runs in it.
//!
//! # Mechanism of a run
//! 1. The code object is looked up by content hash, or made from what [`crate::prepare`] has compiled (one cache per thread).
//! 2. The module body is executed in fresh globals (reference, 1.8), unless `saltus._reuse` has found that nobody can tell: then
//!    its globals are kept from the first run on. A directory plugin is imported instead and keeps its module until its
//!    content changes.
//! 3. The entry function is called with positional arguments. The deadline counts from before 2 to after 3.
//! 4. An exception becomes three strings; no Python object leaves this file.
//! 5. A run that is to be discarded has its effects undone ([`crate::effects`]).

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use saltus_core::ids::TriggerId;
use saltus_core::limits::INLINE_CACHE_ITEMS_MAX;
use saltus_core::ports::{
    CodeVerdict, LogLevel, LogText, PluginCode, PluginError, PluginHost, QueuedWrite, RunEvent, RunReport, RunRequest,
};
use saltus_core::trigger::Execution;

use crate::deadline::Watched;
use crate::effects::{FailedImports, Lane, RunInfo};
use crate::ffi::audit;
use crate::ffi::pyerrors::{self, Builtin};
use crate::ffi::pylifecycle::{self, DaemonThreads};
use crate::ffi::pystate::{self, InterpreterId};
use crate::ffi::{Object, Py, PyResult, Raised, time};
use crate::log_rate::LogRate;
use crate::native::local::{EventInfo, Local};
use crate::native::{Natives, table_batch};
use crate::output;
use crate::prepare::{Prepared, error_of};
use std::sync::Arc;

/// Compiled plugins kept per thread; beyond it the cache starts again.
const CODE_CACHE_MAX: usize = 1024;

/// The plugin API, in the order in which it is loaded.
const API: &[(&str, &str)] = &[
    ("saltus.errors", include_str!("../python/saltus/errors.py")),
    ("saltus.event", include_str!("../python/saltus/event.py")),
    ("saltus.line_builder", include_str!("../python/saltus/line_builder.py")),
    ("saltus._report", include_str!("../python/saltus/_report.py")),
    ("saltus._reuse", include_str!("../python/saltus/_reuse.py")),
    ("saltus._inline", include_str!("../python/saltus/_inline.py")),
    ("saltus._plain", include_str!("../python/saltus/_plain.py")),
    ("saltus._prepare", include_str!("../python/saltus/_prepare.py")),
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
    /// What could not be imported here.
    failed_imports: FailedImports,
    log_rates: HashMap<TriggerId, Arc<LogRate>>,
    describe: Object,
    load_directory: Object,
    marshal_loads: Object,
    process_writes: Object,
}

/// An interpreter whose GIL another thread may have. It can only be taken back.
pub struct Lent {
    interpreter: Interpreter,
    let_go: pystate::LetGo,
}

impl Lent {
    /// Takes it back; waits for whoever has its GIL.
    pub fn take_back(self) -> Interpreter {
        self.let_go.take_again();
        self.interpreter
    }
}

/// A plugin file as this thread runs it.
struct Compiled {
    code: Object,
    /// Nobody can tell kept globals from fresh ones.
    reusable: bool,
    /// The entry function with the globals that it keeps alive, once they were made.
    kept: Option<Object>,
}

/// The module of an import as `saltus._prepare` writes it.
fn module_of(import: &str) -> &str {
    import.split_once(':').map_or(import, |(module, _)| module)
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

impl Interpreter {
    /// Makes an interpreter on this thread and prepares it.
    ///
    /// # Errors
    /// What Python said.
    pub fn create(lane: Lane, site_packages: &[String]) -> Result<Self, PluginError> {
        let daemons = match lane {
            Lane::Inline => DaemonThreads::Refused,
            Lane::Deferred => DaemonThreads::Allowed,
        };
        let py = pylifecycle::new_interpreter(daemons).map_err(|text| failure("RuntimeError", &text))?;
        prepare(py, site_packages).map_err(|raised| plain_error(py, raised))?;
        Interpreter::over(py, lane)
    }

    /// Prepares the main interpreter of a worker process, which this thread holds.
    ///
    /// # Errors
    /// What Python said.
    pub fn of_worker(py: Py, site_packages: &[String]) -> Result<Self, PluginError> {
        prepare_in(py, site_packages, true).map_err(|raised| plain_error(py, raised))?;
        Interpreter::over(py, Lane::Deferred)
    }

    /// Attaches this thread to an interpreter that [`Interpreter::create`] made on another.
    ///
    /// # Errors
    /// What Python said.
    pub fn join(interpreter: InterpreterId) -> Result<Self, PluginError> {
        Interpreter::over(Py::attach(interpreter), Lane::Deferred)
    }

    fn over(py: Py, lane: Lane) -> Result<Self, PluginError> {
        let find = || {
            Ok(Interpreter {
                py,
                natives: Natives::find(py)?,
                watched: Watched::register(py, lane == Lane::Inline),
                code: HashMap::default(),
                describe: Object::import(py, "saltus._report")?.getattr(py, "describe")?,
                load_directory: Object::import(py, "saltus._loader")?.getattr(py, "load_directory")?,
                failed_imports: FailedImports::default(),
                log_rates: HashMap::new(),
                marshal_loads: Object::import(py, "marshal")?.getattr(py, "loads")?,
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

    /// Takes over code that was prepared; not counted as part of any run.
    ///
    /// # Errors
    /// Why it does not compile.
    pub fn install(&mut self, hash: u64, prepared: &Prepared) -> Result<(), PluginError> {
        if self.code.contains_key(&hash) {
            return Ok(());
        }
        let py = self.py;
        let marshalled = prepared.code.as_ref().map_err(Clone::clone)?;
        let load = || self.marshal_loads.call(py, [&Object::bytes(py, marshalled)?]);
        let code = load().map_err(|raised| plain_error(py, raised))?;
        if self.code.len() >= CODE_CACHE_MAX {
            self.code.clear();
        }
        self.code.insert(hash, Compiled { code, reusable: prepared.reusable, kept: None });
        Ok(())
    }

    /// Makes one run of `code`.
    pub fn run(
        &mut self,
        host: &Arc<dyn PluginHost>,
        request: RunRequest,
        code: &PluginCode,
        prepared: &Prepared,
        lane: Lane,
    ) -> RunReport {
        let py = self.py;
        let def = &request.trigger.def;
        let auto = def.execution == Execution::Auto;
        let whose = (def.db.clone(), def.name.clone(), def.id);
        let (natives, failed_imports) = (self.natives.clone(), self.failed_imports.clone());
        let run_id = request.run_id;
        let rate = self.log_rates.entry(def.id).or_insert_with(|| LogRate::of(def.id)).clone();
        let rate = (rate, request.limits.log_lines_per_second);
        let info = Rc::new(RunInfo::new(host.clone(), whose, run_id, (lane, auto), natives, failed_imports, rate));
        info.tell(LogLevel::Info, LogText::RunStarted);
        let verdict = CodeVerdict { hash: code.hash, inline: prepared.inline.clone() };
        if let Err(error) = self.install(code.hash, prepared) {
            info.flush();
            return RunReport { code: Some(verdict), ..RunReport::not_run(request, error, time::now()) };
        }
        output::begin(info.clone());
        let mut entered = None;
        // Others may run on this CPU, or in this interpreter, while a deferred run does.
        let began = if lane == Lane::Inline { time::now().0 } else { time::thread_cpu() };
        self.watched.begin(request.deadline);
        let outcome = self.call(&request, code, &info, || entered = Some(time::now()));
        audit::listen(py, false);
        let interrupted = self.watched.end(py);
        let finished = time::now();
        let ended = if lane == Lane::Inline { finished.0 } else { time::thread_cpu() };
        let overran = interrupted.as_ref().is_some_and(|interrupted| !interrupted.stopping);
        let (unwound, reached) = info.end(py, overran);
        let result = match (outcome, interrupted) {
            (Ok(writes), None) => Ok(writes),
            (Ok(_), Some(interrupted)) => Err(failure("PluginTimeout", &interrupted.text)),
            (Err(raised), interrupted) => {
                let mut error = self.describe(raised, &request, code);
                if let Some(interrupted) = interrupted {
                    let traceback = std::mem::take(&mut error.traceback);
                    error = PluginError { traceback, ..failure("PluginTimeout", &interrupted.text) };
                }
                Err(error)
            }
        };
        let result = match result {
            Ok(_) if unwound.is_some() => Err(failure("Unwound", "the run is discarded")),
            result => result,
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
        if unwound.is_none() {
            info.flush();
        }
        let cost_ns = ended.saturating_sub(began);
        RunReport { request, result, writes, entered, finished, cost_ns, code: Some(verdict), reached, unwound }
    }

    fn call(
        &mut self,
        request: &RunRequest,
        code: &PluginCode,
        info: &Rc<RunInfo>,
        entered: impl FnOnce(),
    ) -> PyResult<Vec<QueuedWrite>> {
        let py = self.py;
        let entry = match &code.directory {
            None => {
                audit::listen(py, true);
                self.load_file(code.hash)?
            }
            // A package reads its files when it is imported: in the inline lane, on the thread that prepares it.
            Some(directory) => {
                let entry = self.load_directory(directory, code.hash)?;
                audit::listen(py, true);
                entry
            }
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
        let ids = tables.iter().map(|table| table.id).collect();
        let output_rows_max = request.limits.output_rows;
        let event = EventInfo { ids, attempt: request.attempt, shard: request.shard, output_rows_max };
        let local = self.natives.local.instance(py, Local::new(info.clone(), event))?;
        entered();
        // Whatever it returns is ignored, as in InfluxDB 3.
        drop(entry.call(py, [&local, &batches, &arguments])?);
        match local.payload(&self.natives.local) {
            Some(local) => local.take_writes(py),
            None => Ok(Vec::new()),
        }
    }

    /// The entry function: kept, or out of the module body executed in fresh globals.
    fn load_file(&mut self, hash: u64) -> PyResult {
        let py = self.py;
        let compiled = self.code.get_mut(&hash).expect("installed before the run");
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

    fn load_directory(&self, directory: &std::path::Path, hash: u64) -> PyResult {
        let py = self.py;
        let path = Object::text(py, &directory.to_string_lossy())?;
        let module = self.load_directory.call(py, [&path, &Object::uint(py, hash)?])?;
        module.getattr_key(py, &self.process_writes).map_err(|raised| {
            drop(raised.take(py));
            Raised::new(py, Builtin::Runtime, NO_PROCESS_WRITES)
        })
    }

    /// Those of `imports` that this interpreter does not have, and has not lately failed to get.
    pub fn missing(&self, imports: &[String]) -> Vec<String> {
        let py = self.py;
        if imports.is_empty() {
            return Vec::new();
        }
        let ask = || {
            let imports = imports.iter().map(|what| Object::text(py, what)).collect::<PyResult<Vec<_>>>()?;
            let loader = Object::import(py, "saltus._loader")?;
            let missing = loader.call_method(py, "missing", [&Object::list(py, imports)?])?.sequence_items(py)?;
            missing.iter().map(|what| what.extract_str(py, "an import")).collect::<PyResult<Vec<_>>>()
        };
        let missing = ask().unwrap_or_else(|raised| {
            pyerrors::write_unraisable(py, raised);
            Vec::new()
        });
        let failed = self.failed_imports.borrow();
        missing.into_iter().filter(|what| !failed.contains_key(module_of(what))).collect()
    }

    /// Remembers that a module could not be imported here.
    pub fn import_failed(&self, module: String, error: PluginError) {
        self.failed_imports.borrow_mut().insert(module, (std::time::Instant::now(), error));
    }

    /// Whether a module could not be imported here when it was tried last.
    pub fn import_has_failed(&self, module: &str) -> bool {
        self.failed_imports.borrow().contains_key(module)
    }

    /// Takes a trigger's cache out, if another interpreter can have it.
    ///
    /// # Errors
    /// What in it is not plain; it stays then.
    pub fn take_cache(&self, trigger: TriggerId) -> Result<Vec<u8>, String> {
        let py = self.py;
        let take = || {
            let key = Object::uint(py, trigger.0)?;
            let Some(space) = self.natives.cache_spaces.dict_get(py, &key)? else { return Ok(Vec::new()) };
            let most = Object::uint(py, INLINE_CACHE_ITEMS_MAX as u64)?;
            let bytes = Object::import(py, "saltus._plain")?.call_method(py, "dump", [&space, &most])?;
            self.natives.cache_spaces.call_method(py, "pop", [&key])?;
            Ok(bytes.as_bytes(py).unwrap_or_default().to_vec())
        };
        take().map_err(|raised| plain_error(py, raised).message)
    }

    /// Takes a trigger's cache out; the keys of what no other interpreter can have, which is lost.
    pub fn take_what_can_be_of_cache(&self, trigger: TriggerId) -> Result<(Vec<u8>, Vec<String>), String> {
        let py = self.py;
        let take = || {
            let key = Object::uint(py, trigger.0)?;
            let Some(space) = self.natives.cache_spaces.dict_get(py, &key)? else { return Ok(Default::default()) };
            let taken = Object::import(py, "saltus._plain")?.call_method(py, "dump_what_can_be", [&space])?;
            let taken = taken.sequence_items(py)?;
            self.natives.cache_spaces.call_method(py, "pop", [&key])?;
            let lost = taken[1].sequence_items(py)?;
            let lost = lost.iter().map(|key| key.extract_str(py, "a key")).collect::<PyResult<_>>()?;
            Ok((taken[0].as_bytes(py).unwrap_or_default().to_vec(), lost))
        };
        take().map_err(|raised| plain_error(py, raised).message)
    }

    /// Puts a trigger's cache in, as another interpreter gave it.
    ///
    /// # Errors
    /// What Python said.
    pub fn put_cache(&self, trigger: TriggerId, bytes: &[u8]) -> Result<(), PluginError> {
        let py = self.py;
        if bytes.is_empty() {
            return Ok(());
        }
        let put = || {
            let space = self.marshal_loads.call(py, [&Object::bytes(py, bytes)?])?;
            self.natives.cache_spaces.dict_set(py, &Object::uint(py, trigger.0)?, &space)
        };
        put().map_err(|raised| plain_error(py, raised))
    }

    /// Brings imports, as a helper of the thread whose interpreter this is; what became of each.
    pub fn import_all(&self, modules: &[String], within: Duration) -> Vec<(String, PluginError)> {
        let py = self.py;
        let mut failed = Vec::new();
        for what in modules {
            self.watched.begin(within);
            let bring = || {
                let loader = Object::import(py, "saltus._loader")?;
                loader.call_method(py, "bring", [&Object::text(py, what)?])
            };
            let brought = bring();
            self.watched.end(py);
            if let Err(raised) = brought {
                failed.push((module_of(what).to_owned(), plain_error(py, raised)));
            }
        }
        failed
    }

    /// Imports a directory plugin, likewise.
    pub fn import_directory(&self, directory: &std::path::Path, hash: u64, within: Duration) {
        let py = self.py;
        self.watched.begin(within);
        let loaded = self.load_directory(directory, hash);
        self.watched.end(py);
        if let Err(raised) = loaded {
            // The run will meet it again and say it.
            drop(raised.take(py));
        }
    }

    /// Lets another thread of the interpreter have its GIL.
    pub fn lend(self) -> Lent {
        let let_go = self.py.let_go();
        Lent { interpreter: self, let_go }
    }

    fn describe(&self, raised: Raised, request: &RunRequest, code: &PluginCode) -> PluginError {
        let py = self.py;
        let exception = raised.take(py);
        let described = (|| {
            let file_name = Object::text(py, &request.trigger.def.plugin_filename)?;
            let source = Object::text(py, &code.source)?;
            error_of(py, &self.describe.call(py, [&exception, &file_name, &source])?)
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
