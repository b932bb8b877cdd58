//! Finds out whether what plugins import loads, before they run: where nothing of a shard waits, and no plugin is.
//!
//! # Mechanism
//! 1. The thread `saltus-imports` takes versions of plugins from a bounded queue. It lives in the main interpreter, where it reads the
//!    import statements (`saltus._imports`); what is loaded there, every interpreter has.
//! 2. The rest is imported in a process of its own ([`super::trial`]), one module after the other. It is started when it is needed, and
//!    ended when it has nothing to do, has too many modules, does not answer within `IMPORT_TRIAL_MS`, or crashes: a module that ends
//!    it does not load in an interpreter with a GIL of its own.
//! 3. What loads, and what is refused, is kept for the life of the server. A module that is not there is looked for again with the next
//!    plugin that names it.
//!
//! A thread and a process, as an interpreter is never destroyed (ADR 1) and an import may never come back.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use rustix::process::{Pid, Signal};
use saltus_core::limits::{
    IMPORT_FINDINGS_MAX, IMPORT_TRIAL_IDLE_SECS, IMPORT_TRIAL_MODULES_MAX, IMPORT_TRIAL_MS, IMPORT_TRIALS_MAX,
};
use saltus_core::ports::{ImportFailure, ImportTrouble, ImportsFound, PluginCode, PluginError};

use super::trial::{self, FromTrial, Outcome, ToTrial};
use super::{ProcessConfig, TRIES_IMPORTS, starter};
use crate::ffi::pystate::InterpreterId;
use crate::ffi::{Object, Py, PyResult};
use crate::interpreter::{self, Surroundings, failure, files_of, module_of, plain_error};
use crate::runtime::{Priority, Scheduling};

/// What is found is kept in so many maps, each of which is replaced as a whole.
const MAPS: usize = 64;

/// Is told what was found; called on the thread that finds out.
pub type Told = Box<dyn FnOnce(Arc<ImportsFound>) + Send>;

struct Job {
    code: Arc<PluginCode>,
    told: Told,
}

/// See the header.
pub struct Imports {
    known: Arc<Findings>,
    jobs: Sender<Job>,
}

impl Imports {
    /// Starts the thread in the main interpreter, to which nobody may be attached for good.
    ///
    /// # Errors
    /// What the system said about a new thread.
    pub fn start(
        main: InterpreterId,
        scheduling: Scheduling,
        surroundings: Surroundings,
        config: ProcessConfig,
    ) -> Result<Self, PluginError> {
        let known = Arc::<Findings>::default();
        let (jobs, queue) = channel::bounded(IMPORT_TRIALS_MAX);
        let trials = Trials { config, surroundings, process: None, tried: HashMap::new() };
        let kept = known.clone();
        std::thread::Builder::new()
            .name("saltus-imports".to_owned())
            .spawn(move || {
                // The process inherits it.
                scheduling.apply(Priority::Long);
                live(main, &queue, &kept, trials);
            })
            .map_err(|e| failure("OSError", &format!("cannot start the thread that tries imports: {e}")))?;
        Ok(Imports { known, jobs })
    }

    /// What is known of a version, by its hash. Never waits.
    pub fn known(&self, code: u64) -> Option<Arc<ImportsFound>> {
        self.known.get(code)
    }

    /// Has the imports of a version tried, again if something was wrong with them. Never waits; false if the queue is full.
    pub fn ask(&self, code: &Arc<PluginCode>, told: Told) -> bool {
        self.jobs.try_send(Job { code: code.clone(), told }).is_ok()
    }

    /// What is known of a version; if it is nothing, it is waited for, not longer than `within`. Not on a shard's thread, and not with
    /// a GIL that others want.
    pub fn wait(&self, code: &Arc<PluginCode>, within: Duration) -> Option<Arc<ImportsFound>> {
        let known = self.known(code.hash);
        if known.is_some() {
            return known;
        }
        let (tell, told) = channel::bounded(1);
        // If nobody takes the job, nobody holds the sender.
        let _taken = self.ask(code, Box::new(move |found| drop(tell.send(found))));
        told.recv_timeout(within).ok()
    }
}

/// What was found, by hash of the code.
struct Findings([ArcSwap<HashMap<u64, Arc<ImportsFound>>>; MAPS]);

impl Default for Findings {
    fn default() -> Self {
        Findings(std::array::from_fn(|_| ArcSwap::default()))
    }
}

impl Findings {
    fn map(&self, code: u64) -> &ArcSwap<HashMap<u64, Arc<ImportsFound>>> {
        &self.0[(code % MAPS as u64) as usize]
    }

    fn get(&self, code: u64) -> Option<Arc<ImportsFound>> {
        self.map(code).load().get(&code).cloned()
    }

    fn put(&self, code: u64, found: Arc<ImportsFound>) {
        let mut all = HashMap::clone(&self.map(code).load());
        if all.len() >= IMPORT_FINDINGS_MAX / MAPS {
            all.clear();
        }
        all.insert(code, found);
        self.map(code).store(Arc::new(all));
    }
}

fn live(main: InterpreterId, jobs: &Receiver<Job>, known: &Findings, mut trials: Trials) {
    let py = Py::attach(main);
    if let Err(raised) = interpreter::load_module(py, "saltus._imports", trial::IMPORTS) {
        tracing::error!(error = %plain_error(py, raised).message, "imports of plugins are not tried before they run");
        return;
    }
    while let Some(Job { code, told }) = py.detach(|| trials.next(jobs)) {
        let before = known.get(code.hash).filter(|found| found.troubles.is_empty() && found.untried.is_none());
        let found = before.unwrap_or_else(|| {
            let found = match statements(py, &code) {
                Ok((imports, inline)) => py.detach(|| trials.try_all(&imports, inline)),
                Err(raised) => {
                    // The check of its source says why.
                    drop(raised.take(py));
                    ImportsFound {
                        refused: None,
                        troubles: Vec::new(),
                        untried: None,
                        inline: Err("it does not compile".into()),
                    }
                }
            };
            let found = Arc::new(found);
            known.put(code.hash, found.clone());
            found
        });
        py.detach(|| told(found));
    }
}

/// What comes of an import that fails (`saltus._imports`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    Needed,
    Caught,
    Optional,
}

type Statements = (Vec<(String, Weight)>, Result<(), Arc<str>>);

fn statements(py: Py, code: &PluginCode) -> PyResult<Statements> {
    let source = Object::text(py, &code.source)?;
    let (path, files) = match &code.directory {
        Some(folder) => (Object::text(py, &folder.path.to_string_lossy())?, files_of(py, folder)?),
        None => (Object::text(py, "")?, Object::none(py)),
    };
    let named = Object::import(py, "saltus._imports")?.call_method(py, "named", [&source, &path, &files])?;
    let named = named.sequence_items(py)?;
    let import = |item: &Object| {
        let item = item.sequence_items(py)?;
        let weight = match item[1].extract_str(py, "a weight")?.as_str() {
            "needed" => Weight::Needed,
            "caught" => Weight::Caught,
            _ => Weight::Optional,
        };
        Ok((item[0].extract_str(py, "an import")?, weight))
    };
    let imports = named[0].sequence_items(py)?.iter().map(import).collect::<PyResult<_>>()?;
    let inline = match named[1].is_none() {
        true => Ok(()),
        false => Err(named[1].extract_str(py, "a reason")?.into()),
    };
    Ok((imports, inline))
}

/// The process, and what it has found.
struct Trials {
    config: ProcessConfig,
    surroundings: Surroundings,
    process: Option<Process>,
    /// Of what loads, and of what is refused.
    tried: HashMap<String, Outcome>,
}

/// Why an import has no outcome.
enum Stop {
    /// It ended the process.
    Crashed(String),
    /// In words.
    Because(String),
}

impl Trials {
    /// The next job; while there is none for long, there is no process.
    fn next(&mut self, jobs: &Receiver<Job>) -> Option<Job> {
        if self.process.is_some() {
            match jobs.recv_timeout(Duration::from_secs(IMPORT_TRIAL_IDLE_SECS)) {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Timeout) => self.process = None,
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        jobs.recv().ok()
    }

    fn try_all(&mut self, imports: &[(String, Weight)], inline: Result<(), Arc<str>>) -> ImportsFound {
        let until = Instant::now() + Duration::from_millis(IMPORT_TRIAL_MS);
        let mut found = ImportsFound { refused: None, troubles: Vec::new(), untried: None, inline };
        for (what, weight) in imports {
            let module = Arc::<str>::from(module_of(what));
            let outcome = match self.outcome(what, until) {
                Ok(outcome) => outcome,
                Err(why) => {
                    tracing::warn!(%module, why, "what a plugin imports is not tried: its first run finds out");
                    found.untried = Some(why.into());
                    break;
                }
            };
            let wrong = match outcome {
                Outcome::Loads => continue,
                Outcome::Refused => {
                    found.refused.get_or_insert(module);
                    continue;
                }
                Outcome::Missing(missing) => ImportFailure::Missing(missing.into()),
                Outcome::Fails(error) => ImportFailure::Raises(error.into()),
            };
            let known = found.troubles.iter().any(|trouble| trouble.module == module && trouble.what == wrong);
            if *weight != Weight::Optional && !known {
                found.troubles.push(ImportTrouble { module, what: wrong, caught: *weight == Weight::Caught });
            }
        }
        found
    }

    fn outcome(&mut self, what: &str, until: Instant) -> Result<Outcome, String> {
        if let Some(known) = self.tried.get(what) {
            return Ok(known.clone());
        }
        let outcome = match self.attempt(what, until) {
            Ok(outcome) => outcome,
            Err(Stop::Crashed(how)) => {
                tracing::warn!(
                    module = module_of(what),
                    how,
                    "the import of a module ends its process, if that has an interpreter with a GIL of its own"
                );
                Outcome::Refused
            }
            Err(Stop::Because(why)) => return Err(why),
        };
        if matches!(outcome, Outcome::Loads | Outcome::Refused) {
            if self.tried.len() >= IMPORT_FINDINGS_MAX {
                self.tried.clear();
            }
            self.tried.insert(what.to_owned(), outcome.clone());
        }
        Ok(outcome)
    }

    fn attempt(&mut self, what: &str, until: Instant) -> Result<Outcome, Stop> {
        let question = ToTrial::Try(what.to_owned());
        // One that has ended since, for whatever reason, does not listen.
        let asked = self.process.take().filter(|process| process.say(&question).is_ok());
        let mut process = match asked {
            Some(process) => process,
            None => {
                let process = Process::start(&self.config, &self.surroundings, until)?;
                process.say(&question)?;
                process
            }
        };
        match process.hear(until, &format!("the import of {}", module_of(what)))? {
            FromTrial::Tried { outcome, modules } => {
                self.process = Some(process).filter(|_| modules <= IMPORT_TRIAL_MODULES_MAX);
                Ok(outcome)
            }
            FromTrial::Refused(why) => Err(Stop::Because(why)),
            FromTrial::Ready => Err(Stop::Because("the process that tries imports is not understood".to_owned())),
        }
    }
}

/// A process that tries imports; dropping it ends it, with all that it has started.
struct Process {
    child: Child,
    socket: BufReader<UnixStream>,
}

impl Process {
    fn start(config: &ProcessConfig, surroundings: &Surroundings, until: Instant) -> Result<Self, Stop> {
        let spawn = || -> std::io::Result<Process> {
            let (ours, theirs) = UnixStream::pair()?;
            let mut command = starter::program(config);
            command.arg(TRIES_IMPORTS).stdin(Stdio::from(OwnedFd::from(theirs))).stderr(Stdio::null());
            Ok(Process { child: command.spawn()?, socket: BufReader::new(ours) })
        };
        let not_started =
            |error: std::io::Error| Stop::Because(format!("the process that tries imports cannot be started: {error}"));
        let mut process = spawn().map_err(not_started)?;
        process.say(&ToTrial::Hello { server: std::process::id(), surroundings: surroundings.clone() })?;
        match process.hear(until, "the start of the process that tries imports") {
            Ok(FromTrial::Ready) => Ok(process),
            Ok(FromTrial::Refused(why)) => Err(Stop::Because(why)),
            Ok(FromTrial::Tried { .. }) => Err(Stop::Because("nothing was to be tried yet".to_owned())),
            Err(Stop::Crashed(why) | Stop::Because(why)) => Err(Stop::Because(why)),
        }
    }

    fn say(&self, message: &ToTrial) -> Result<(), Stop> {
        trial::say(self.socket.get_ref(), message)
            .map_err(|error| Stop::Because(format!("the process that tries imports does not listen: {error}")))
    }

    /// The next message, which answers `what`.
    fn hear(&mut self, until: Instant, what: &str) -> Result<FromTrial, Stop> {
        let slow = || Stop::Because(format!("{what} takes longer than {IMPORT_TRIAL_MS} ms"));
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(slow());
        }
        let mut line = String::new();
        let read = self.socket.get_ref().set_read_timeout(Some(left)).and_then(|()| self.socket.read_line(&mut line));
        match read {
            Ok(0) => Err(self.how_it_ended()),
            Ok(_) => serde_json::from_str(&line)
                .map_err(|error| Stop::Because(format!("the process that tries imports is not understood: {error}"))),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                Err(slow())
            }
            Err(error) => Err(Stop::Because(format!("the process that tries imports does not answer: {error}"))),
        }
    }

    fn how_it_ended(&mut self) -> Stop {
        const CRASHES: [Signal; 5] = [Signal::SEGV, Signal::ABORT, Signal::BUS, Signal::ILL, Signal::FPE];
        match self.child.wait() {
            Ok(status) if CRASHES.iter().any(|signal| status.signal() == Some(signal.as_raw())) => {
                Stop::Crashed(status.to_string())
            }
            Ok(status) => Stop::Because(format!("the process that tries imports has ended: {status}")),
            Err(error) => Stop::Because(format!("the process that tries imports is lost: {error}")),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its group first: it is known by the number of a process that is not reaped yet.
        let _gone = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
