//! The process lane: each trigger's plugin runs in a worker process of its own, `saltus worker`.
//!
//! # Mechanism
//! 1. A shard puts a run on the [`desk`] of its trigger: a bounded queue and an event descriptor, nothing that waits.
//! 2. The [`supervisor`] thread of that trigger starts the worker when it has none, attaches the run's [`rows`] or body to its [`order`] and
//!    sends it to the [`worker`] over a socket pair ([`channel`], [`message`]). What is short is in the packet, and the rest in sealed
//!    shared memory ([`memory`]).
//! 3. A worker that waits for its next run is offered to the shard ([`offer`]), which gives it the run itself, if the worker has the code
//!    and the packet has room for the rows: there is one wake-up between the shard and the plugin. The supervisor is at the
//!    other end of the run, and looks after it.
//! 4. The worker, a whole CPython with one interpreter, makes the run as the other lanes do. What the plugin logs and asks goes to the
//!    supervisor over another socket pair; what it queues comes with the result.
//! 5. A run that overruns its deadline is interrupted inside the worker; a worker that does not answer within a grace is
//!    killed, with every process that it started. A worker that dies fails the run that it had, and no other; the
//!    next run gets a fresh one, after a pause that doubles while it keeps dying. An order that the worker had not read when it died is
//!    the next one's.
//!
//! What plugins import is tried, before they run, in a process that does nothing else: [`imports`] starts it, [`trial`] is what it does.
//!
//! # Invariants
//! 1. A worker has one run at a time, and runs of one trigger keep their order.
//! 2. Every run that was accepted is reported once, unless the server stops before it has begun.
//! 3. Nothing that a worker does can end the server or another worker. It holds no descriptor of the server but its ends of
//!    the socket pairs and of the pipe that is its standard error. No memory is shared that somebody may write: what is in a packet is
//!    copied, and files are sealed before they are sent, and refused if they are not when they are received. So rows that a plugin
//!    keeps never change, and a worker that writes where it should not harms itself.
//! 4. A worker never outlives the server: it is killed by the system when the thread that started it ends, and ends itself
//!    when the socket closes.

mod answers;
mod channel;
mod desk;
mod imports;
mod memory;
mod message;
mod offer;
mod order;
mod rows;
mod starter;
mod supervisor;
mod system;
mod trial;
mod worker;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use saltus_core::limits;
use saltus_core::ports::PluginError;

pub use desk::ProcessLane;
pub use imports::Imports;

use crate::lanes::Shared;
use starter::Starter;

/// The last argument of a process that tries imports, and makes no runs.
const TRIES_IMPORTS: &str = "imports";

/// The whole of a process that the server starts, on its first thread: a worker, or one that tries imports. Standard input must be the
/// socket that the server's runtime has made ([`ProcessConfig::program`]); does not return while the server lives.
pub fn worker_main() -> ExitCode {
    match std::env::args_os().next_back() {
        Some(last) if last == TRIES_IMPORTS => trial::trial_main(),
        _ => worker::worker_main(),
    }
}

/// How worker processes are run.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// The program; `None` is the one that runs.
    pub program: Option<PathBuf>,
    /// Its arguments. It must call [`worker_main`].
    pub arguments: Vec<OsString>,
    /// Worker processes at once.
    pub workers_max: usize,
    /// Bytes that a worker may take beyond what it needs to start; beyond it, allocations fail in the plugin.
    pub memory_max: Option<u64>,
    /// A worker without runs for so long is ended.
    pub idle: Duration,
    /// From a run's deadline to the end of a worker that does not answer.
    pub kill_grace: Duration,
}

impl Default for ProcessConfig {
    fn default() -> Self {
        ProcessConfig {
            program: None,
            arguments: vec!["worker".into()],
            workers_max: limits::PROCESS_WORKERS_MAX,
            memory_max: None,
            idle: Duration::from_secs(limits::PROCESS_IDLE_SECS),
            kill_grace: Duration::from_millis(limits::PROCESS_KILL_GRACE_MS),
        }
    }
}

/// What became of worker processes since the start of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessCounts {
    /// Started.
    pub started: u64,
    /// Ended by themselves, or by somebody else.
    pub died: u64,
    /// Killed because a run did not end after its deadline.
    pub killed: u64,
    /// Runs that shards gave to workers themselves.
    pub direct: u64,
    /// Alive now.
    pub alive: usize,
}

#[derive(Default)]
struct Counters {
    started: AtomicU64,
    died: AtomicU64,
    killed: AtomicU64,
    direct: AtomicU64,
    alive: AtomicUsize,
}

/// All worker processes of a runtime.
pub struct Workers {
    shared: Arc<Shared>,
    config: ProcessConfig,
    counters: Counters,
    starter: Starter,
}

impl Workers {
    /// Starts the thread that starts workers. It lives as long as the process, and uses the CPUs and the priority that
    /// `shared` says, which workers inherit.
    ///
    /// # Errors
    /// What the system said.
    pub fn start(shared: Arc<Shared>, config: ProcessConfig) -> Result<Arc<Self>, PluginError> {
        let starter = Starter::start(shared.scheduling.clone(), config.clone())?;
        Ok(Arc::new(Workers { shared, config, counters: Counters::default(), starter }))
    }

    /// What became of worker processes.
    pub fn counts(&self) -> ProcessCounts {
        let Counters { started, died, killed, direct, alive } = &self.counters;
        ProcessCounts {
            started: started.load(Ordering::Relaxed),
            died: died.load(Ordering::Relaxed),
            killed: killed.load(Ordering::Relaxed),
            direct: direct.load(Ordering::Relaxed),
            alive: alive.load(Ordering::Relaxed),
        }
    }

    /// Makes every supervisor look at `Shared::stopping`.
    pub fn wake_all(&self) {
        self.starter.wake_all();
    }
}
