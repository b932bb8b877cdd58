//! One thread's side of one interpreter: makes it fit for plugins, and makes runs in it.
//!
//! # Mechanism of a run
//! 1. The code object is looked up by content hash, or made from what [`crate::prepare`] has compiled (one cache per thread).
//! 2. The module body is executed in fresh globals (reference, 1.8), unless `saltus._reuse` has found that nobody can tell: then
//!    its globals are kept from the first run on. A directory plugin is imported instead, from the snapshot of its version and
//!    under a name of its own (`saltus._loader`), and keeps its module until its content changes.
//! 3. The entry function is called with positional arguments. The deadline counts from before 2 to after 3.
//! 4. An exception becomes three strings; no Python object leaves this file.
//! 5. A run that is to be discarded has its effects undone ([`crate::effects`]).

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use saltus_core::ids::{RoomId, TriggerId};
use saltus_core::limits::INLINE_CACHE_ITEMS_MAX;
use saltus_core::ports::{
    CodeVerdict, LogLevel, LogText, MemoryUse, PluginCode, PluginError, PluginFolder, PluginHost, QueuedWrite,
    RunEvent, RunReport, RunRequest,
};
use saltus_core::request::PluginResponse;
use saltus_core::trigger::{Execution, Isolation, TriggerKind};
use serde::{Deserialize, Serialize};

use crate::coroutine;
use crate::deadline::{Interrupted, Watched, Whose, Why};
use crate::deferred::Taker;
use crate::effects::{self, Ending, FailedImports, Lane, RunInfo, Scope};
use crate::entry::{self, Entries};
use crate::ffi::audit;
use crate::ffi::pyerrors;
use crate::ffi::pylifecycle::{self, DaemonThreads};
use crate::ffi::pymem::{self, Account};
use crate::ffi::pystate::{self, InterpreterId};
use crate::ffi::{Object, Py, PyResult, Raised, time};
use crate::log_rate::LogRate;
use crate::memory_limit;
use crate::native::Natives;
use crate::native::answer::AnswerStream;
use crate::native::local::{EventInfo, Local};
use crate::output;
use crate::prepare::{Prepared, error_of};
use crate::refusals::{self, Refusals};
use std::sync::Arc;

/// Compiled plugins kept per thread; beyond it the cache starts again.
const CODE_CACHE_MAX: usize = 1024;

/// The plugin API, in the order in which it is loaded.
const API: &[(&str, &str)] = &[
    ("saltus.errors", include_str!("../python/saltus/errors.py")),
    ("saltus.event", include_str!("../python/saltus/event.py")),
    ("saltus.request", include_str!("../python/saltus/request.py")),
    ("saltus._json", include_str!("../python/saltus/_json.py")),
    ("saltus._response", include_str!("../python/saltus/_response.py")),
    ("saltus.line_builder", include_str!("../python/saltus/line_builder.py")),
    ("saltus._report", include_str!("../python/saltus/_report.py")),
    ("saltus._versions", include_str!("../python/saltus/_versions.py")),
    ("saltus._type_checking", include_str!("../python/saltus/_type_checking.py")),
    ("saltus._reuse", include_str!("../python/saltus/_reuse.py")),
    ("saltus._inline", include_str!("../python/saltus/_inline.py")),
    ("saltus._plain", include_str!("../python/saltus/_plain.py")),
    ("saltus._prepare", include_str!("../python/saltus/_prepare.py")),
    ("saltus._refusals", include_str!("../python/saltus/_refusals.py")),
    ("saltus._loader", include_str!("../python/saltus/_loader.py")),
    ("saltus._builtins", include_str!("../python/saltus/_builtins.py")),
    ("saltus._async", include_str!("../python/saltus/_async.py")),
    ("saltus._query", include_str!("../python/saltus/_query.py")),
    ("saltus._state", include_str!("../python/saltus/_state.py")),
    ("saltus._sleep", include_str!("../python/saltus/_sleep.py")),
    ("saltus._threads", include_str!("../python/saltus/_threads.py")),
    ("saltus._canary", include_str!("../python/saltus/_canary.py")),
    ("saltus._setup", include_str!("../python/saltus/_setup.py")),
    ("saltus", include_str!("../python/saltus/__init__.py")),
];

/// What an interpreter finds around it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Surroundings {
    /// Added to `sys.path`.
    pub site_packages: Vec<String>,
    /// Variables for `os.environ`, over those of the process.
    pub environment: Vec<(String, String)>,
}

/// An interpreter as one thread uses it; never leaves the thread.
pub struct Interpreter {
    py: Py,
    natives: Rc<Natives>,
    watched: Watched,
    code: HashMap<u64, Compiled, std::hash::BuildHasherDefault<HashIsKey>>,
    /// What could not be imported here.
    failed_imports: FailedImports,
    log_rates: HashMap<TriggerId, Arc<LogRate>>,
    /// The memory of triggers, if it is counted in this process.
    accounts: HashMap<TriggerId, Option<&'static Account>>,
    describe: Object,
    known_folder: Object,
    load_folder: Object,
    marshal_loads: Object,
    restore_builtins: Object,
    refusals: Refusals,
    entries: Entries,
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
    /// The entry functions with the globals that they keep alive, by kind, once they were made.
    kept: [Option<Object>; TriggerKind::ALL.len()],
    /// What it imports was tried before its first run.
    tried: bool,
}

/// What a run that went well leaves.
#[derive(Default)]
struct Outcome {
    writes: Vec<QueuedWrite>,
    response: Option<PluginResponse>,
}

/// The module of an import as `saltus._prepare` writes it.
pub fn module_of(import: &str) -> &str {
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
    pub fn create(lane: Lane, surroundings: &Surroundings) -> Result<Self, PluginError> {
        let daemons = match lane {
            Lane::Inline => DaemonThreads::Refused,
            Lane::Deferred => DaemonThreads::Allowed,
        };
        let py = pylifecycle::new_interpreter(daemons).map_err(|text| failure("RuntimeError", &text))?;
        prepare(py, surroundings).map_err(|raised| plain_error(py, raised))?;
        Interpreter::over(py, lane)
    }

    /// It is this deferred interpreter.
    pub fn is_room(&self, room: RoomId) {
        self.natives.room.set(Some(room));
    }

    /// Prepares the main interpreter of a worker process, which this thread holds.
    ///
    /// # Errors
    /// What Python said.
    pub fn of_worker(py: Py, surroundings: &Surroundings) -> Result<Self, PluginError> {
        prepare_in(py, surroundings, true).map_err(|raised| plain_error(py, raised))?;
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
                known_folder: Object::import(py, "saltus._loader")?.getattr(py, "known")?,
                load_folder: Object::import(py, "saltus._loader")?.getattr(py, "load")?,
                failed_imports: FailedImports::default(),
                log_rates: HashMap::new(),
                accounts: HashMap::new(),
                marshal_loads: Object::import(py, "marshal")?.getattr(py, "loads")?,
                restore_builtins: Object::import(py, "saltus._builtins")?.getattr(py, "restore")?,
                refusals: Refusals::find(py)?,
                entries: Entries::find(py)?,
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
        self.code.insert(hash, Compiled { code, reusable: prepared.reusable, kept: Default::default(), tried: false });
        Ok(())
    }

    /// The refusal of a module that the code imports, if its trigger may move to where it loads. It is tried before the first run, so that
    /// nothing of a run is seen that is then made elsewhere, whatever the plugin makes of the refusal.
    fn refused_beforehand(
        &mut self,
        request: &RunRequest,
        code: &PluginCode,
        prepared: &Prepared,
    ) -> Option<PluginError> {
        let def = &request.trigger.def;
        let may_move = def.isolation == Isolation::Auto && def.execution != Execution::Inline;
        if !may_move || self.install(code.hash, prepared).is_err() {
            return None;
        }
        let compiled = self.code.get_mut(&code.hash)?;
        if std::mem::replace(&mut compiled.tried, true) {
            return None;
        }
        let missing = self.missing(&prepared.imports);
        let failed = self.import_all(&missing, request.deadline);
        // What else is wrong with a module the run will say.
        failed.into_iter().map(|(_, error)| error).find(|error| error.refused_import().is_some())
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
        let host = request.test_host.as_ref().unwrap_or(host);
        let def = &request.trigger.def;
        let auto = def.execution == Execution::Auto;
        let whose = (def.db.clone(), def.name.clone(), def.id);
        if lane == Lane::Deferred
            && let Some(refused) = self.refused_beforehand(&request, code, prepared)
        {
            let verdict = CodeVerdict { hash: code.hash, inline: prepared.inline.clone() };
            return RunReport { code: Some(verdict), ..RunReport::not_run(request, refused, time::now()) };
        }
        let (natives, failed_imports) = (self.natives.clone(), self.failed_imports.clone());
        let (run_id, def_id) = (request.run_id, def.id);
        let rate = self.log_rates.entry(def.id).or_insert_with(|| LogRate::of(def.id)).clone();
        let rate = (rate, request.limits.log_lines_per_second);
        let scope = Scope {
            shard: request.shard,
            depth: request.depth,
            state: request.state.clone(),
            stop: request.stop.clone(),
            may_move: request.may_move,
        };
        let run = (run_id, scope);
        let info = Rc::new(RunInfo::new(host.clone(), whose, run, (lane, auto), natives, failed_imports, rate));
        info.tell(LogLevel::Info, LogText::RunStarted(request.event.started()));
        let verdict = CodeVerdict { hash: code.hash, inline: prepared.inline.clone() };
        if let Err(error) = self.install(code.hash, prepared) {
            info.flush();
            return RunReport { code: Some(verdict), ..RunReport::not_run(request, error, time::now()) };
        }
        let account = self.account(def_id, request.limits.memory_bytes);
        output::begin(info.clone());
        let mut entered = None;
        let whose = Whose { run: run_id, trigger: def_id, code: code.hash, shard: request.shard };
        // CPU time: others may run on this processor, or in this interpreter, meanwhile.
        let began = self.watched.begin(request.deadline, whose);
        let mut call = || self.call(&request, code, &info, || entered = Some(time::now()));
        let outcome = match account {
            Some(account) => pymem::charge(account, call),
            None => call(),
        };
        // A cheap inline run is not worth another look at the clock of CPU time.
        let cheap = if lane == Lane::Inline { request.limits.inline_budget / 2 } else { Duration::ZERO };
        let cost_ns = began.cost_ns(cheap);
        let outcome = outcome.map_err(|raised| raised.take(py));
        audit::listen(py, false);
        let interrupted = self.watched.end(py);
        let finished = time::now();
        let overran = interrupted.as_ref().is_some_and(|interrupted| interrupted.why == Why::Deadline);
        if lane == Lane::Deferred {
            self.restore_builtins(&info);
        }
        // A trigger that is told to stay has what its plugin makes of it.
        let def = &request.trigger.def;
        let stays = def.isolation == Isolation::Interpreter || def.execution == Execution::Inline;
        let may_move = !stays && interrupted.is_none();
        if let Some(module) = self.refusals.of_run(py, code).filter(|_| may_move) {
            info.was_refused(module);
        }
        let Ending { unwound, refused, reached } = info.end(py, overran);
        let result = match self.account_for(outcome, interrupted, &request, code) {
            Ok(_) if unwound.is_some() => Err(failure("Unwound", "the run is discarded")),
            result => refusals::instead(result, refused),
        };
        let result = self.say_limit_of_memory(result, account, request.limits.memory_bytes, &info);
        output::end();
        let mut writes = info.take_held_writes();
        let (result, response, state) = match result {
            Ok(Outcome { writes: queued, response }) => {
                let took = entered.map_or(Duration::ZERO, |entered| Duration::from_nanos(finished.since(entered)));
                info.tell(LogLevel::Info, LogText::RunFinished(took));
                writes.extend(queued);
                (Ok(()), response, info.take_state_changes())
            }
            Err(error) => (Err(error), None, Vec::new()),
        };
        if unwound.is_none() {
            info.flush();
        }
        let memory = account.map(|account| MemoryUse { held: account.held(), peak: account.peak() });
        let code = Some(verdict);
        RunReport {
            request,
            result,
            writes,
            response,
            state,
            entered,
            finished,
            cost_ns,
            code,
            reached,
            unwound,
            memory,
        }
    }

    /// What came of a run, in words if it failed: an interrupt is the reason, whatever the plugin made of it.
    fn account_for<T>(
        &self,
        outcome: Result<T, Object>,
        interrupted: Option<Interrupted>,
        request: &RunRequest,
        code: &PluginCode,
    ) -> Result<T, PluginError> {
        if request.stop.cause().is_some() {
            return Err(failure(PluginError::CANCELLED, effects::CANCELLED));
        }
        match (outcome, interrupted) {
            (Ok(outcome), None) => Ok(outcome),
            (Ok(_), Some(interrupted)) => Err(interrupted.error()),
            (Err(exception), None) => {
                let error = self.describe(&exception, request, code);
                let told = error.kind == "KeyboardInterrupt" && effects::is_stopping();
                Err(if told { PluginError { kind: PluginError::STOPPED.to_owned(), ..error } } else { error })
            }
            (Err(exception), Some(interrupted)) => {
                let PluginError { traceback, .. } = self.describe(&exception, request, code);
                Err(PluginError { traceback, ..interrupted.error() })
            }
        }
    }

    fn account(&mut self, trigger: TriggerId, limit: u64) -> Option<&'static Account> {
        let interpreter = self.id();
        let account = *self.accounts.entry(trigger).or_insert_with(|| memory_limit::account_of(interpreter, trigger));
        account.inspect(|account| account.begin(limit))
    }

    /// Says by how much a run has met the limit of its trigger's memory, whatever it made of that.
    fn say_limit_of_memory<T>(
        &self,
        result: Result<T, PluginError>,
        account: Option<&'static Account>,
        limit: u64,
        info: &RunInfo,
    ) -> Result<T, PluginError> {
        let refused = account.map_or(0, Account::take_refused);
        // CPython loses the exception where not even that can be made, for instance when a frame of a deep recursion is unwound.
        let lost = |error: &PluginError| refused > 0 && error.message.ends_with("error return without exception set");
        let failed = result.as_ref().is_err_and(|error| error.kind == "MemoryError" || lost(error));
        if refused == 0 && !failed {
            return result;
        }
        if account.is_some() {
            memory_limit::count_met();
        }
        let holds = account.map(|account| format!("; it holds {} bytes after the run", account.held()));
        let figure =
            format!("the trigger may hold {limit} bytes of memory (limits: memory){}", holds.unwrap_or_default());
        if info.lane == Lane::Deferred && refused > 0 {
            // What is left in cycles of references is not to stand in the way of the next run.
            pymem::collect_garbage(self.py);
        }
        match result {
            Err(error) if failed => {
                let own_words = error.message.strip_prefix("MemoryError: ").filter(|words| !words.is_empty());
                let own_words = own_words.map(|words| format!("{words}; ")).unwrap_or_default();
                let PluginError { traceback, .. } = error;
                Err(PluginError { traceback, ..failure("MemoryError", &format!("{own_words}{figure}")) })
            }
            result => {
                info.tell(LogLevel::Warn, LogText::Said(format!("{refused} allocations of the run failed: {figure}")));
                result
            }
        }
    }

    /// Others run in this interpreter as well.
    fn restore_builtins(&self, info: &RunInfo) {
        let py = self.py;
        match self.restore_builtins.call(py, []).and_then(|names| names.extract_str(py, "names")) {
            Ok(names) if names.is_empty() => {}
            Ok(names) => {
                let text =
                    format!("the plugin has changed builtins, which are not its own: {names}; they are put back");
                info.tell(LogLevel::Warn, LogText::Said(text));
            }
            Err(raised) => pyerrors::write_unraisable(py, raised),
        }
    }

    fn call(
        &mut self,
        request: &RunRequest,
        code: &PluginCode,
        info: &Rc<RunInfo>,
        entered: impl FnOnce(),
    ) -> PyResult<Outcome> {
        let py = self.py;
        let kind = request.event.kind();
        let entry = match &code.directory {
            None => {
                audit::listen(py, true);
                self.load_file(code.hash, kind)?
            }
            // What a package executes when it is imported may do anything: in the inline lane, on the thread that prepares it.
            Some(folder) => {
                let module = self.load_folder(folder, code.hash)?;
                let entry = self.entries.in_module(py, &module, kind)?;
                audit::listen(py, true);
                entry
            }
        };
        let event = self.entries.event_arguments(py, &self.natives, request)?;
        let arguments = entry::trigger_arguments(py, request)?;
        let local = self.natives.local.instance(py, Local::new(info.clone(), EventInfo::of(request)))?;
        entered();
        let returned = entry::call(py, &entry, &local, &event, &arguments)?;
        let returned = coroutine::settle(py, info, returned)?;
        let response = match &request.event {
            RunEvent::Request(asked) => {
                let stream = AnswerStream::new(info.clone(), asked.answer.clone());
                Some(self.entries.response(py, &self.natives, &returned, stream)?)
            }
            // Whatever they return is ignored, as in InfluxDB 3.
            RunEvent::Writes(_) | RunEvent::Schedule(_) => None,
        };
        let writes = match local.payload(&self.natives.local) {
            Some(local) => local.take_writes(py)?,
            None => Vec::new(),
        };
        Ok(Outcome { writes, response })
    }

    /// The entry function: kept, or out of the module body executed in fresh globals.
    fn load_file(&mut self, hash: u64, kind: TriggerKind) -> PyResult {
        let py = self.py;
        let compiled = self.code.get_mut(&hash).expect("installed before the run");
        if let Some(entry) = &compiled.kept[kind as usize] {
            return Ok(entry.clone());
        }
        let globals = Object::dict(py)?;
        drop(Object::eval(py, &compiled.code, &globals)?);
        let entry = self.entries.in_globals(py, &globals, kind)?;
        if compiled.reusable {
            compiled.kept[kind as usize] = Some(entry.clone());
        }
        Ok(entry)
    }

    fn load_folder(&self, folder: &PluginFolder, hash: u64) -> PyResult {
        let py = self.py;
        let (path, hash) = (Object::text(py, &folder.path.to_string_lossy())?, Object::uint(py, hash)?);
        let known = self.known_folder.call(py, [&path, &hash])?;
        if !known.is_none() {
            return Ok(known);
        }
        self.load_folder.call(py, [&path, &hash, &files_of(py, folder)?])
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
    pub fn take_cache(&self, trigger: TriggerId, taker: Taker) -> Result<Vec<u8>, String> {
        let py = self.py;
        let take = || {
            let key = Object::uint(py, trigger.0)?;
            let Some(space) = self.natives.cache_spaces.dict_get(py, &key)? else { return Ok(Vec::new()) };
            let plain = Object::import(py, "saltus._plain")?;
            let bytes = match taker {
                Taker::Inline => {
                    let most = Object::uint(py, INLINE_CACHE_ITEMS_MAX as u64)?;
                    plain.call_method(py, "dump", [&space, &most])?
                }
                Taker::Deferred => plain.call_method(py, "dump_whole", [&space])?,
            };
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

    /// What of all triggers' caches can be kept: per trigger the bytes, and the keys of the rest.
    pub fn dump_caches(&self) -> Vec<(TriggerId, Vec<u8>, Vec<String>)> {
        let py = self.py;
        let dump = || {
            let plain = Object::import(py, "saltus._plain")?;
            let mut all = Vec::new();
            for (trigger, space) in self.natives.cache_spaces.dict_items(py)? {
                // The global space is below 0, and its plain values are in `global_cache`.
                let Ok(trigger) = u64::try_from(trigger.extract_i64(py)?) else { continue };
                let dumped = plain.call_method(py, "dump_what_can_be", [&space])?.sequence_items(py)?;
                let live = dumped[1].sequence_items(py)?;
                let live = live.iter().map(|key| key.extract_str(py, "a key")).collect::<PyResult<_>>()?;
                all.push((TriggerId(trigger), dumped[0].as_bytes(py).unwrap_or_default().to_vec(), live));
            }
            Ok(all)
        };
        dump().unwrap_or_else(|raised| {
            pyerrors::write_unraisable(py, raised);
            Vec::new()
        })
    }

    /// Drops a trigger's cache.
    pub fn drop_cache(&self, trigger: TriggerId) {
        let py = self.py;
        let dropped = Object::uint(py, trigger.0)
            .and_then(|key| self.natives.cache_spaces.call_method(py, "pop", [&key, &Object::none(py)]));
        if let Err(raised) = dropped {
            pyerrors::write_unraisable(py, raised);
        }
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

    /// Whether importing, logging and threads work here; interrupted after `within`.
    ///
    /// # Errors
    /// What does not work.
    pub fn check(&self, within: Duration) -> Result<(), String> {
        let py = self.py;
        self.watched.begin(within, Whose::NOBODY);
        let checked = Object::import(py, "saltus._canary").and_then(|canary| canary.call_method(py, "check", []));
        let interrupted = self.watched.end(py);
        match (checked, interrupted) {
            (Ok(_), None) => Ok(()),
            (Err(raised), _) => Err(plain_error(py, raised).message),
            (Ok(_), Some(interrupted)) => Err(interrupted.text),
        }
    }

    /// Brings imports, as a helper of the thread whose interpreter this is; what became of each.
    pub fn import_all(&self, modules: &[String], within: Duration) -> Vec<(String, PluginError)> {
        let py = self.py;
        let mut failed = Vec::new();
        for what in modules {
            self.watched.begin(within, Whose::NOBODY);
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
    pub fn import_directory(&self, folder: &PluginFolder, hash: u64, within: Duration) {
        let py = self.py;
        self.watched.begin(within, Whose::NOBODY);
        let loaded = self.load_folder(folder, hash);
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

    fn describe(&self, exception: &Object, request: &RunRequest, code: &PluginCode) -> PluginError {
        let py = self.py;
        let described = (|| {
            let file_name = Object::text(py, &request.trigger.def.plugin_filename)?;
            let source = Object::text(py, &code.source)?;
            error_of(py, &self.describe.call(py, [exception, &file_name, &source])?)
        })();
        let mut error = described.unwrap_or_else(|raised: Raised| {
            // For instance a second MemoryError: the type's name is all that can be had.
            drop(raised.take(py));
            failure(&exception.type_name(py), "the exception could not be printed")
        });
        // The reference shows its own messages about entry functions without a type name.
        let missing = request.event.kind().entry_missing();
        if error.message.strip_prefix("RuntimeError: ") == Some(missing) {
            missing.clone_into(&mut error.message);
            error.traceback.clear();
        }
        error
    }
}

/// The files of a folder as a dict of texts.
pub fn files_of(py: Py, folder: &PluginFolder) -> PyResult {
    let files = Object::dict(py)?;
    for (name, text) in &folder.files {
        files.dict_set(py, &Object::text(py, name)?, &Object::text(py, text)?)?;
    }
    Ok(files)
}

/// Loads the plugin API into this thread's new interpreter and closes what must be closed.
pub fn prepare(py: Py, surroundings: &Surroundings) -> PyResult<()> {
    prepare_in(py, surroundings, false)
}

/// Makes a module of ours.
pub fn load_module(py: Py, name: &str, source: &str) -> PyResult {
    let code = Object::compile(py, source, &format!("<{name}>"))?;
    Object::exec_module(py, name, &code)
}

/// `own_process`: nobody but the plugin is hurt by what it does to the process.
fn prepare_in(py: Py, surroundings: &Surroundings, own_process: bool) -> PyResult<()> {
    for (name, source) in API {
        load_module(py, name, source)?;
    }
    let package = Object::import(py, "saltus")?;
    package.setattr(py, "__path__", &Object::list(py, Vec::new())?)?;
    for (name, _) in API {
        if let Some((_, child)) = name.split_once('.') {
            package.setattr(py, child, &Object::import(py, name)?)?;
        }
    }
    let texts = |texts: &mut dyn Iterator<Item = &String>| {
        let texts = texts.map(|text| Object::text(py, text)).collect::<PyResult<Vec<_>>>()?;
        Object::list(py, texts)
    };
    let paths = texts(&mut surroundings.site_packages.iter())?;
    let environment = texts(&mut surroundings.environment.iter().flat_map(|(name, value)| [name, value]))?;
    let own_process = Object::bool(py, own_process);
    Object::import(py, "saltus._setup")?.call_method(py, "install", [&paths, &environment, &own_process])?;
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
