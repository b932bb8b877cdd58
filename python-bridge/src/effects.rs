//! One run as the code around it sees it: what it may do, what it has reached for, and which of its effects are held.
//!
//! # Mechanism
//! - CPython says what it is about to do (audit events), and our own API says what it is asked for. In the deferred lane
//!   the first thing that can block is noted. In the inline lane it does not happen: a trigger that is left to the policy
//!   is *unwound* by a private `BaseException`, one that was told to run inline gets a `LaneError`.
//! - Unwinding is sticky: whoever swallows the exception meets it again at the next event and the next call of the API,
//!   and the run is discarded even if it returns.
//! - So that a discarded run leaves nothing behind: log lines and synchronous writes of an inline run are held until it ends;
//!   what it does to its cache is recorded, and undone in reverse order; writes leave with a run that succeeded only. A mutable
//!   value is copied when it is first taken from the cache.
//! - Changes of the trigger's state leave with a run that succeeded, whichever lane it took ([`StateView`]).
//! - When the server stops, calls of the API that reach outside raise `KeyboardInterrupt` (reference, 0.3).
//! - An import of a module that is not there yet unwinds as well, whoever chose the lane: the module is imported on
//!   another thread, and the run is made again. What could not be imported there fails here with the same words, at once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use saltus_core::ids::{RunId, ShardId, TriggerId};
use saltus_core::limits::{INLINE_LOG_BYTES_MAX, INLINE_LOG_LINES_MAX};
use saltus_core::ports::{LogLevel, LogLine, LogText, PluginError, PluginHost, QueuedWrite, RunStop, Unwound};
use saltus_core::state::{State, StateChange};

use crate::ffi::pyerrors::Builtin;
use crate::ffi::{Object, Py, PyResult, Raised, audit, time};
use crate::log_rate::LogRate;
use crate::native::Natives;
use crate::output;
use crate::refusals;

/// How long a failed import is believed.
const IMPORT_BELIEVED: Duration = Duration::from_secs(30);

/// Where a run takes place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// On the shard's thread: nothing may block.
    Inline,
    /// On a worker.
    Deferred,
}

/// Modules that could not be imported into an inline interpreter: when, and what was said.
pub type FailedImports = Rc<RefCell<HashMap<String, (Instant, PluginError)>>>;

/// Where a run stands, and what its trigger has kept.
pub struct Scope {
    /// The trigger's home.
    pub shard: ShardId,
    /// Plugin runs between the client's write and this run.
    pub depth: u8,
    /// The trigger's durable state when the run began.
    pub state: Arc<State>,
    /// Whether the run is to end early.
    pub stop: Arc<RunStop>,
    /// Whether its trigger can be run in another deferred interpreter.
    pub may_move: bool,
}

/// The trigger's state as the run sees it: as it was, with its own changes.
pub struct StateView {
    base: Arc<State>,
    changes: BTreeMap<Arc<str>, Option<Arc<str>>>,
    bytes: usize,
}

impl StateView {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<Arc<str>> {
        match self.changes.get(key) {
            Some(changed) => changed.clone(),
            None => self.base.get(key).cloned(),
        }
    }

    /// All entries, in the order of their keys.
    pub fn entries(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let mut all: BTreeMap<_, _> = self.base.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        all.extend(self.changes.iter().map(|(key, value)| (key.clone(), value.clone())));
        all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// Bytes of keys and values if `key` had a value of `value_bytes`.
    pub fn bytes_with(&self, key: &str, value_bytes: usize) -> usize {
        let before = self.get(key).map_or(0, |value| key.len() + value.len());
        self.bytes - before + key.len() + value_bytes
    }

    /// Changes a key; whether it had a value.
    pub fn set(&mut self, key: &str, value: Option<Arc<str>>) -> bool {
        let before = self.get(key).map(|value| key.len() + value.len());
        self.bytes = self.bytes - before.unwrap_or(0) + value.as_ref().map_or(0, |value| key.len() + value.len());
        self.changes.insert(key.into(), value);
        before.is_some()
    }
}

/// Which run it is, where its words go, and what it has done. Shared by the plugin's object and the thread's output.
pub struct RunInfo {
    /// The way out.
    pub host: Arc<dyn PluginHost>,
    /// The trigger's database.
    pub db: Arc<str>,
    /// The trigger.
    pub trigger: Arc<str>,
    /// Its identity: the cache's namespace.
    pub trigger_id: TriggerId,
    /// The run.
    pub run_id: RunId,
    /// Where it takes place.
    pub lane: Lane,
    /// Its lane was chosen by the policy, which can choose another.
    pub auto: bool,
    /// The trigger's home.
    pub shard: ShardId,
    /// Plugin runs between the client's write and this run.
    pub depth: u8,
    /// The trigger's durable state.
    pub state: RefCell<StateView>,
    /// Its interpreter's classes.
    pub natives: Rc<Natives>,
    /// Of its interpreter.
    pub failed_imports: FailedImports,
    /// Whether it is to end early.
    pub stop: Arc<RunStop>,
    /// Whether its trigger can be run in another deferred interpreter.
    pub may_move: bool,
    /// How many lines its trigger has written.
    rate: Arc<LogRate>,
    /// And may write.
    lines_per_second: u32,
    /// Why it is discarded.
    unwound: RefCell<Option<Unwound>>,
    /// The first thing that could have blocked.
    reached: RefCell<Option<Arc<str>>>,
    held: RefCell<Vec<(LogLevel, LogText)>>,
    held_bytes: Cell<usize>,
    held_writes: RefCell<Vec<QueuedWrite>>,
    undo: RefCell<Vec<Undo>>,
    /// Something cannot be undone, so the run cannot be made again.
    final_: Cell<bool>,
}

/// How a run has ended.
pub struct Ending {
    /// Why it is discarded.
    pub unwound: Option<Unwound>,
    /// The module whose refusal it has caught; its effects are undone, too.
    pub refused: Option<Arc<str>>,
    /// The first thing that could have blocked.
    pub reached: Option<Arc<str>>,
}

/// How an entry of the cache was before.
struct Undo {
    space: Object,
    key: Object,
    before: Option<Object>,
}

impl RunInfo {
    /// A run that begins.
    pub fn new(
        host: Arc<dyn PluginHost>,
        (db, trigger, trigger_id): (Arc<str>, Arc<str>, TriggerId),
        (run_id, scope): (RunId, Scope),
        (lane, auto): (Lane, bool),
        natives: Rc<Natives>,
        failed_imports: FailedImports,
        (rate, lines_per_second): (Arc<LogRate>, u32),
    ) -> Self {
        RunInfo {
            rate,
            lines_per_second,
            host,
            db,
            trigger,
            trigger_id,
            run_id,
            lane,
            auto,
            shard: scope.shard,
            depth: scope.depth,
            stop: scope.stop,
            may_move: scope.may_move,
            state: RefCell::new(StateView { bytes: scope.state.bytes(), base: scope.state, changes: BTreeMap::new() }),
            natives,
            failed_imports,
            unwound: RefCell::default(),
            reached: RefCell::default(),
            held: RefCell::default(),
            held_bytes: Cell::new(0),
            held_writes: RefCell::default(),
            undo: RefCell::default(),
            final_: Cell::new(false),
        }
    }

    /// Writes to `system.processing_engine_logs`; in an inline run when it has ended.
    pub fn log(&self, level: LogLevel, text: String) {
        self.tell(level, LogText::Said(text));
    }

    /// What the engine itself says of a run.
    pub fn tell(&self, level: LogLevel, text: LogText) {
        let text = match text {
            LogText::Said(text) => LogText::Said(with_plain_names(text)),
            other => other,
        };
        if self.lane == Lane::Deferred {
            return self.send(level, text);
        }
        let bytes = match &text {
            LogText::Said(text) => text.len(),
            LogText::RunStarted(_) | LogText::RunFinished(_) => 0,
        };
        let mut held = self.held.borrow_mut();
        self.held_bytes.set(self.held_bytes.get() + bytes);
        if held.len() >= INLINE_LOG_LINES_MAX || self.held_bytes.get() > INLINE_LOG_BYTES_MAX {
            if self.auto {
                // Not kept: the run is made again where lines need not be held.
                self.note_unwound(Unwound::Blocked("more log lines than can be held".into()));
                return;
            }
            self.final_.set(true);
            held.drain(..).for_each(|(level, text)| self.send(level, text));
            self.held_bytes.set(0);
        }
        held.push((level, text));
    }

    fn send(&self, level: LogLevel, text: LogText) {
        if let LogText::Said(_) = &text {
            let limit = self.lines_per_second;
            match self.rate.take(time::now(), limit) {
                None => return,
                Some(0) => {}
                Some(left_out) => {
                    let said = format!(
                        "{left_out} log lines of the trigger were left out: it may write {limit} per second (limits: log_lines_per_second)"
                    );
                    self.put(LogLevel::Warn, LogText::Said(said));
                }
            }
        }
        self.put(level, text);
    }

    fn put(&self, level: LogLevel, text: LogText) {
        self.host.log(LogLine { db: self.db.clone(), trigger: self.trigger.clone(), run_id: self.run_id, level, text });
    }

    /// Meets every call of the API: a run that is being discarded gets no further.
    pub fn go_on(&self, py: Py) -> PyResult<()> {
        match *self.unwound.borrow() {
            None => Ok(()),
            Some(_) => Err(Raised::of(py, &self.natives.unwound, "the run is discarded")),
        }
    }

    /// Meets every call of the API that reaches outside: not while the server stops, nor when the run's trigger is another now.
    pub fn alive(&self, py: Py) -> PyResult<()> {
        self.go_on(py)?;
        if STOPPING.load(Ordering::Relaxed) {
            return Err(Raised::new(py, Builtin::KeyboardInterrupt, STOPPED));
        }
        if self.stop.cause().is_some() {
            return Err(Raised::new(py, Builtin::KeyboardInterrupt, CANCELLED));
        }
        Ok(())
    }

    /// Keeps a synchronous write of an inline run until the run has ended.
    pub fn hold_write(&self, write: QueuedWrite) {
        self.held_writes.borrow_mut().push(write);
    }

    /// What was held, of a run that counts: like those of other lanes, these writes do not depend on its success.
    pub fn take_held_writes(&self) -> Vec<QueuedWrite> {
        self.held_writes.take()
    }

    /// What the run changes of its trigger's state.
    pub fn take_state_changes(&self) -> Vec<StateChange> {
        let changes = std::mem::take(&mut self.state.borrow_mut().changes);
        changes.into_iter().map(|(key, value)| StateChange { key, value }).collect()
    }

    /// The run is about to do `what`, which can block.
    pub fn reach(&self, py: Py, what: &str) -> PyResult<()> {
        self.go_on(py)?;
        if self.lane == Lane::Deferred {
            self.reached.borrow_mut().get_or_insert_with(|| what.into());
            return Ok(());
        }
        if self.auto {
            return self.unwind(py, Unwound::Blocked(what.into()));
        }
        let message = format!(
            "{what} would block the thread that ingests data, so the inline lane does not have it: create trigger '{}' with \
             --execution auto or deferred",
            self.trigger
        );
        Err(Raised::of(py, &self.natives.lane_error, &message))
    }

    /// Discards the run.
    pub fn unwind(&self, py: Py, why: Unwound) -> PyResult<()> {
        self.note_unwound(why);
        self.go_on(py)
    }

    fn note_unwound(&self, why: Unwound) {
        self.unwound.borrow_mut().get_or_insert(why);
    }

    /// The run is about to import a module that its interpreter has not.
    fn import(&self, py: Py, module: &str) -> PyResult<()> {
        self.go_on(py)?;
        if self.lane == Lane::Deferred {
            return Ok(());
        }
        let failed = self.failed_imports.borrow().get(module).filter(|(at, _)| at.elapsed() < IMPORT_BELIEVED).cloned();
        if let Some((_, error)) = failed {
            if let Some(refused) = error.refused_import() {
                refusals::note(py, &refused, module)?;
            }
            let class = if error.kind == "ModuleNotFoundError" { Builtin::ModuleNotFound } else { Builtin::Import };
            // An exception of another kind keeps its name in the words of an ImportError.
            let import = matches!(error.kind.as_str(), "ImportError" | "ModuleNotFoundError");
            let own_words = error.message.strip_prefix(&format!("{}: ", error.kind));
            let text = own_words.filter(|_| import).unwrap_or(&error.message);
            return Err(Raised::new(py, class, text));
        }
        if self.final_.get() {
            return self.reach(py, &format!("import of {module}"));
        }
        self.unwind(py, Unwound::Import(module.into()))
    }

    /// Remembers how an entry of the cache is, before it is changed.
    pub fn before_cache_change(&self, space: &Object, key: &Object, before: Option<&Object>) {
        if self.lane == Lane::Inline && !self.final_.get() {
            let undo = Undo { space: space.clone(), key: key.clone(), before: before.cloned() };
            self.undo.borrow_mut().push(undo);
        }
    }

    /// Whether the run has recorded an entry of the cache before.
    pub fn has_recorded(&self, space: &Object, key: &str, py: Py) -> bool {
        let same_key = |other: &Object| matches!(other.as_str(py), Some(Ok(other)) if other == key);
        self.undo.borrow().iter().any(|undo| undo.space.is(space) && same_key(&undo.key))
    }

    /// Something cannot be undone: the run counts, whatever comes.
    pub fn cannot_be_undone(&self) {
        self.final_.set(true);
    }

    /// The run has caught the refusal of a module that it needs: what it has done without it is not what its plugin is for.
    pub fn was_refused(&self, module: Arc<str>) {
        self.note_unwound(Unwound::ImportRefused(module));
    }

    /// The run has ended. If it is to be discarded, its effects are undone and forgotten; else its log lines are sent.
    pub fn end(&self, py: Py, overran: bool) -> Ending {
        if overran && self.auto && self.lane == Lane::Inline {
            self.note_unwound(Unwound::Overran);
        }
        let unwound = self.unwound.take();
        let undo = self.undo.take();
        if unwound.is_some() {
            self.held.take();
            self.held_writes.take();
            for Undo { space, key, before } in undo.into_iter().rev() {
                let undone = match before {
                    Some(before) => space.dict_set(py, &key, &before),
                    None => space.call_method(py, "pop", [&key, &Object::none(py)]).map(drop),
                };
                if let Err(raised) = undone {
                    crate::ffi::pyerrors::write_unraisable(py, raised);
                }
            }
        }
        let (unwound, refused) = match unwound {
            // A failure in the words of the refusal, so that the shard learns of it as of one that was not caught.
            Some(Unwound::ImportRefused(module)) => (None, Some(module)),
            other => (other, None),
        };
        Ending { unwound, refused, reached: self.reached.take() }
    }

    /// Sends what was held.
    pub fn flush(&self) {
        for (level, text) in self.held.take() {
            self.send(level, text);
        }
    }
}

/// A text in which packages of folder plugins have their folder's name, without what makes it unique (`saltus._loader`).
fn with_plain_names(text: String) -> String {
    const PATH: usize = 8;
    const VERSION: usize = "@".len() + PATH + "_".len() + 16;
    let is_version = |part: &[u8]| {
        let hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        part.len() == VERSION && part[1 + PATH] == b'_' && hex(&part[1..=PATH]) && hex(&part[PATH + 2..])
    };
    if memchr::memchr(b'@', text.as_bytes()).is_none() {
        return text;
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = memchr::memchr(b'@', rest.as_bytes()) {
        let end = at + if rest.as_bytes().get(at..at + VERSION).is_some_and(is_version) { VERSION } else { 0 };
        let kept = if end > at { at } else { at + 1 };
        plain.push_str(&rest[..kept]);
        rest = &rest[end.max(at + 1)..];
    }
    plain.push_str(rest);
    plain
}

/// The server stops: from now on calls of the API raise.
pub fn stop() {
    STOPPING.store(true, Ordering::Relaxed);
}

/// Whether calls of the API raise, because the server stops.
pub fn is_stopping() -> bool {
    STOPPING.load(Ordering::Relaxed)
}

static STOPPING: AtomicBool = AtomicBool::new(false);

/// Why a run is interrupted whose trigger is not what it was.
pub const CANCELLED: &str = "the trigger was deleted, disabled or changed while the run was under way";

/// The reference's words, 0.3.
const STOPPED: &str = "influxdb3 is shutting down; aborting plugin execution";

/// Installs the look-out; before the runtime is initialised.
///
/// # Errors
/// Out of memory.
pub fn install() -> Result<(), String> {
    audit::install(heard)
}

/// Modules by which Python code reaches memory that is not its own, or interpreters that are not. What imports them is moved
/// to a process of its own by the words of the refusal, which are CPython's for a module that knows no subinterpreters.
const NATIVE: &[&str] = &[
    "_cffi_backend",
    "_ctypes",
    "_ctypes_test",
    "_interpchannels",
    "_interpqueues",
    "_interpreters",
    "_testcapi",
    "_testinternalcapi",
    "_testlimitedcapi",
    "cffi",
    "ctypes",
];

/// From now on no interpreter of this process loads what reaches beyond it (`--python-hardened`).
pub fn harden() {
    HARDENED.store(true, Ordering::Relaxed);
    audit::hear_imports_everywhere();
}

static HARDENED: AtomicBool = AtomicBool::new(false);

fn refuse_native(py: Py, event: &str, subject: Option<&str>) -> PyResult<()> {
    if !HARDENED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let module = match (event, subject) {
        ("import", Some(module)) if NATIVE.contains(&module) => module,
        _ if event.starts_with("ctypes.") => "_ctypes",
        _ => return Ok(()),
    };
    let text = format!(
        "module {module} does not support loading in subinterpreters: --python-hardened keeps it out of the server's process"
    );
    refusals::note(py, module, module)?;
    Err(Raised::new(py, Builtin::Import, &text))
}

/// An audit event on a thread that makes a run, or an import on any.
fn heard(py: Py, event: &str, arguments: &Object) -> PyResult<()> {
    if event == "import" || event.starts_with("ctypes.") {
        let subject = arguments.sequence_items(py).ok().and_then(|all| all.first()?.extract_str(py, "").ok());
        refuse_native(py, event, subject.as_deref())?;
        if !audit::is_listening(py) {
            return Ok(());
        }
    }
    let Some(kind) = kind_of(event) else { return Ok(()) };
    let Some(run) = output::current() else { return Ok(()) };
    let first = || arguments.sequence_items(py).ok().and_then(|all| all.first()?.extract_str(py, "").ok());
    match kind {
        Kind::Import => run.import(py, &first().unwrap_or_default()),
        // Importing reads files as well. Inline nothing is imported, so there it counts.
        Kind::Files if run.lane == Lane::Deferred => match first() {
            Some(path) if event == "open" && !is_code(&path) => run.reach(py, &format!("open('{path}')")),
            _ => Ok(()),
        },
        Kind::Files | Kind::Blocks => run.reach(py, event),
    }
}

fn is_code(path: &str) -> bool {
    [".py", ".pyc", ".so", ".pth"].iter().any(|ending| path.ends_with(ending))
}

#[derive(Clone, Copy)]
enum Kind {
    Import,
    Files,
    Blocks,
}

/// What an event of CPython 3.13 means here (its table is in the library reference, "Audit events table").
fn kind_of(event: &str) -> Option<Kind> {
    let (family, rest) = event.split_once('.').unwrap_or((event, ""));
    Some(match family {
        "import" => Kind::Import,
        "open" => Kind::Files,
        "os" if matches!(rest, "putenv" | "unsetenv") => return None,
        "os" if matches!(rest, "listdir" | "scandir" | "mkdir" | "walk") => Kind::Files,
        "time" if rest == "sleep" => Kind::Blocks,
        "builtins" if matches!(rest, "input" | "input/result" | "breakpoint") => Kind::Blocks,
        "_thread" | "fcntl" | "ftplib" | "glob" | "http" | "imaplib" | "mmap" | "os" | "pathlib" | "pdb" | "poplib"
        | "pty" | "resource" | "shutil" | "signal" | "smtplib" | "socket" | "sqlite3" | "subprocess" | "syslog"
        | "tempfile" | "urllib" | "webbrowser" => Kind::Blocks,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::with_plain_names;

    #[test]
    fn what_makes_names_unique_is_not_shown() {
        for (text, shown) in [
            ("common@a4783ab5_0000000000000001.who and x@y", "common.who and x@y"),
            ("p@a4783ab5_0000000000000001", "p"),
            ("@a4783ab5_000000000000000", "@a4783ab5_000000000000000"),
            ("@a4783ab5-0000000000000001 @", "@a4783ab5-0000000000000001 @"),
            ("me@example.org @@a4783ab5_00000000000000ff\u{e9}", "me@example.org @\u{e9}"),
            ("plain", "plain"),
        ] {
            assert_eq!(with_plain_names(text.to_owned()), shown);
        }
    }
}
