//! One run as the code around it sees it: what it may do, what it has reached for, and which of its effects are held.
//!
//! # Mechanism
//! - CPython says what it is about to do (audit events), and our own API says what it is asked for. In the deferred lane
//!   the first thing that can block is noted. In the inline lane it does not happen: a trigger that is left to the policy
//!   is *unwound* by a private `BaseException`, one that was told to run inline gets a `LaneError`.
//! - Unwinding is sticky: whoever swallows the exception meets it again at the next event and the next call of the API,
//!   and the run is discarded even if it returns.
//! - So that a discarded run leaves nothing behind: log lines of an inline run are held until it ends; what it does to
//!   its cache is recorded, and undone in reverse order; writes leave with a run that succeeded only. A mutable value is
//!   copied when it is first taken from the cache.
//! - An import of a module that is not there yet unwinds as well, whoever chose the lane: the module is imported on
//!   another thread, and the run is made again. What could not be imported there fails here with the same words, at once.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use saltus_core::ids::{RunId, TriggerId};
use saltus_core::limits::{INLINE_LOG_BYTES_MAX, INLINE_LOG_LINES_MAX};
use saltus_core::ports::{LogLevel, LogLine, LogText, PluginError, PluginHost, Unwound};

use crate::ffi::pyerrors::Builtin;
use crate::ffi::{Object, Py, PyResult, Raised, audit, time};
use crate::log_rate::LogRate;
use crate::native::Natives;
use crate::output;

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
    /// Its interpreter's classes.
    pub natives: Rc<Natives>,
    /// Of its interpreter.
    pub failed_imports: FailedImports,
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
    undo: RefCell<Vec<Undo>>,
    /// Something cannot be undone, so the run cannot be made again.
    final_: Cell<bool>,
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
        run_id: RunId,
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
            natives,
            failed_imports,
            unwound: RefCell::default(),
            reached: RefCell::default(),
            held: RefCell::default(),
            held_bytes: Cell::new(0),
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
        if self.lane == Lane::Deferred {
            return self.send(level, text);
        }
        let bytes = match &text {
            LogText::Said(text) => text.len(),
            LogText::RunStarted | LogText::RunFinished(_) => 0,
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

    /// The run has ended. If it is to be discarded, its effects are undone and forgotten; else its log lines are sent.
    pub fn end(&self, py: Py, overran: bool) -> (Option<Unwound>, Option<Arc<str>>) {
        if overran && self.auto && self.lane == Lane::Inline {
            self.note_unwound(Unwound::Overran);
        }
        let unwound = self.unwound.take();
        let undo = self.undo.take();
        if unwound.is_some() {
            self.held.take();
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
        (unwound, self.reached.take())
    }

    /// Sends what was held.
    pub fn flush(&self) {
        for (level, text) in self.held.take() {
            self.send(level, text);
        }
    }
}

/// Installs the look-out; before the runtime is initialised.
///
/// # Errors
/// Out of memory.
pub fn install() -> Result<(), String> {
    audit::install(heard)
}

/// An audit event on a thread that makes a run.
fn heard(py: Py, event: &str, arguments: &Object) -> PyResult<()> {
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
