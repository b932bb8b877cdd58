//! A shard's lanes.
//!
//! **Inline**: an interpreter that is made on the shard's thread and used only there; its GIL is never given up, as
//! nobody else wants it. **Deferred**: a second interpreter, shared by a few worker threads that take runs from one
//! bounded queue. A worker gives the GIL up while it waits for work and while a query runs. The caller sees to it that
//! the runs of one trigger follow each other. The third lane, a process per trigger, is in [`crate::process`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam::channel::{self, Receiver, Sender, TrySendError};
use saltus_core::ids::ShardId;
use saltus_core::policy;
use saltus_core::ports::{Completions, PluginError, PluginHost, RunReport, RunRequest, ShardPlugins};

use crate::ffi::pylifecycle::DaemonThreads;
use crate::ffi::pystate::InterpreterId;
use crate::interpreter::{Interpreter, Lane, failure};
use crate::process::ProcessLane;
use crate::runtime::Scheduling;

/// What all threads of a runtime share.
pub struct Shared {
    /// The way out for plugins.
    pub host: Arc<dyn PluginHost>,
    /// Added to `sys.path` of every interpreter.
    pub site_packages: Vec<String>,
    /// How workers are scheduled.
    pub scheduling: Scheduling,
    /// No run is begun any more.
    pub stopping: AtomicBool,
    /// Runs under way in the deferred and the process lane.
    pub running: AtomicUsize,
}

/// Implements the port.
pub struct Lanes {
    shared: Arc<Shared>,
    inline: Interpreter,
    queue: Sender<RunRequest>,
    process: ProcessLane,
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
        let inline = Interpreter::create(DaemonThreads::Refused, &shared.site_packages)?;
        let (queue, runs) = channel::bounded(queue_max.max(1));
        let mut deferred = None;
        for number in 0..workers.max(1) {
            let worker = Worker { shared: shared.clone(), runs: runs.clone(), completions: completions.clone() };
            let (ready, is_ready) = channel::bounded(1);
            std::thread::Builder::new()
                .name(format!("saltus-py-{shard}-{number}"))
                .spawn(move || worker.live(deferred, &ready))
                .map_err(|e| failure("OSError", &format!("cannot start a plugin worker: {e}")))?;
            let answer = is_ready.recv().unwrap_or_else(|_| Err(failure("RuntimeError", "a plugin worker died")));
            deferred = Some(answer?);
        }
        Ok(Lanes { shared, inline, queue, process })
    }
}

impl ShardPlugins for Lanes {
    fn run_inline(&mut self, request: RunRequest) -> RunReport {
        let code = request.trigger.code.current();
        self.inline.run(&self.shared.host, request, &code, Lane::Inline)
    }

    fn submit(&mut self, request: RunRequest) -> Result<(), Box<RunRequest>> {
        if request.lane == policy::Lane::Process {
            return self.process.submit(request);
        }
        match self.queue.try_send(request) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(request) | TrySendError::Disconnected(request)) => Err(Box::new(request)),
        }
    }
}

/// One deferred worker.
struct Worker {
    shared: Arc<Shared>,
    runs: Receiver<RunRequest>,
    completions: Arc<dyn Completions>,
}

impl Worker {
    fn live(self, shared_interpreter: Option<InterpreterId>, ready: &Sender<Result<InterpreterId, PluginError>>) {
        self.shared.scheduling.apply();
        let made = match shared_interpreter {
            None => Interpreter::create(DaemonThreads::Allowed, &self.shared.site_packages),
            Some(id) => Interpreter::join(id),
        };
        let mut interpreter = match made {
            Ok(interpreter) => interpreter,
            Err(error) => {
                let _gone = ready.send(Err(error));
                return;
            }
        };
        let id = interpreter.id();
        while let Some((request, code)) = interpreter.while_waiting(|| {
            let _first_time_only = ready.try_send(Ok(id));
            self.next()
        }) {
            let report = interpreter.run(&self.shared.host, request, &code, Lane::Deferred);
            interpreter.while_waiting(|| {
                self.completions.completed(report);
                self.shared.running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        // The interpreter lives on, but nobody runs in it: its GIL must not stay with a thread that ends.
        interpreter.abandon();
    }

    /// The next run with its newest code; `None` when the runtime stops.
    fn next(&self) -> Option<(RunRequest, Arc<saltus_core::ports::PluginCode>)> {
        let request = self.runs.recv().ok()?;
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.stopping.load(Ordering::SeqCst) {
            self.shared.running.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        let code = request.trigger.code.refresh();
        Some((request, code))
    }
}
