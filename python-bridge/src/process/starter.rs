//! The thread that starts worker processes and their supervisors.
//!
//! It lives as long as the server, because the system kills a worker when the thread that started it ends. Workers inherit its
//! CPUs and its priority, which are those of the runtime's other workers.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};
use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags};
use saltus_core::ports::PluginError;

use super::channel::Channel;
use super::desk::{Desk, Takings};
use super::supervisor::Supervisor;
use super::{ProcessConfig, Workers};
use crate::interpreter::failure;
use crate::runtime::{Priority, Scheduling};

/// Orders that may wait for the thread; more of them give runs back to their shards.
const ORDERS_MAX: usize = 256;
/// A worker takes its messages at once, unless it is stopped by somebody.
const SENDING_MAX: Duration = Duration::from_secs(5);

/// A process that was started and has not said anything yet.
pub struct Started {
    /// To be waited for, once.
    pub child: Child,
    /// Readable when it is over.
    pub over: OwnedFd,
    /// To talk to it.
    pub channel: Channel,
    /// Where its orders go.
    pub orders: Channel,
    /// The other end of that, which it is to be given.
    pub their_orders: OwnedFd,
    /// What it says on its standard error; does not block.
    pub stderr: OwnedFd,
}

enum Order {
    Supervise { workers: Arc<Workers>, takings: Takings, trigger: Arc<str> },
    Start { reply: Sender<io::Result<Started>> },
}

/// See the header.
pub struct Starter {
    orders: Sender<Order>,
    /// The desks of all supervisors; written by the thread, read at the stop.
    desks: Arc<Mutex<Vec<Weak<Desk>>>>,
}

impl Starter {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the system said.
    pub fn start(scheduling: Scheduling, config: ProcessConfig) -> Result<Self, PluginError> {
        let (orders, taken) = channel::bounded(ORDERS_MAX);
        let desks = Arc::new(Mutex::new(Vec::new()));
        let thread = Thread { config, desks: desks.clone(), supervisors: Arc::new(()) };
        std::thread::Builder::new()
            .name("saltus-starter".to_owned())
            .spawn(move || {
                scheduling.apply(Priority::Short);
                thread.live(&taken);
            })
            .map_err(|e| failure("OSError", &format!("cannot start the thread of the process lane: {e}")))?;
        Ok(Starter { orders, desks })
    }

    /// Has a supervisor started for a desk; false if too many wait for that. Never blocks.
    pub fn supervise(&self, workers: Arc<Workers>, takings: Takings, trigger: Arc<str>) -> bool {
        self.orders.try_send(Order::Supervise { workers, takings, trigger }).is_ok()
    }

    /// Has a worker process started, and waits for that. Not for shards.
    ///
    /// # Errors
    /// What the system said.
    pub fn start_process(&self) -> io::Result<Started> {
        let (reply, answer) = channel::bounded(1);
        let gone = || io::Error::other("the thread that starts worker processes is gone");
        self.orders.send(Order::Start { reply }).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }

    /// Rings every desk.
    pub fn wake_all(&self) {
        for desk in self.desks.lock().iter().filter_map(Weak::upgrade) {
            desk.ring();
        }
    }
}

struct Thread {
    config: ProcessConfig,
    desks: Arc<Mutex<Vec<Weak<Desk>>>>,
    /// Each supervisor holds a clone.
    supervisors: Arc<()>,
}

impl Thread {
    fn live(self, orders: &Receiver<Order>) {
        for order in orders {
            match order {
                Order::Start { reply } => {
                    let _gone = reply.send(start(&self.config));
                }
                Order::Supervise { workers, takings, trigger } => self.supervise(workers, takings, trigger),
            }
        }
    }

    fn supervise(&self, workers: Arc<Workers>, takings: Takings, trigger: Arc<str>) {
        let max = self.config.workers_max;
        if Arc::strong_count(&self.supervisors) > max {
            let why = format!(
                "{max} worker processes are there, which is as many as there may be; raise the limit, or give triggers that \
                 need no process of their own another lane"
            );
            return refuse_all(&takings, "WorkerLimit", &why);
        }
        let mut desks = self.desks.lock();
        desks.retain(|desk| desk.strong_count() > 0);
        desks.push(Arc::downgrade(&takings.desk));
        drop(desks);
        let (handed_over, taken) = channel::bounded::<(Takings, Arc<()>)>(1);
        let thread = std::thread::Builder::new().name("saltus-process".to_owned()).spawn(move || {
            if let Ok((takings, _alive)) = taken.recv() {
                workers.shared.scheduling.apply(Priority::Short);
                Supervisor::new(workers, takings, trigger).live();
            }
        });
        match thread {
            Ok(_) => drop(handed_over.send((takings, self.supervisors.clone()))),
            Err(error) => {
                refuse_all(
                    &takings,
                    "WorkerNotStarted",
                    &format!("the supervisor of a worker cannot be started: {error}"),
                );
            }
        }
    }
}

/// Reports every run of a desk as not made, and closes it.
fn refuse_all(takings: &Takings, kind: &str, why: &str) {
    for _ in 0..takings.desk.close() {
        match takings.runs.recv_timeout(SENDING_MAX) {
            Ok(put) => takings.refuse(*put.request, kind, why),
            Err(_) => return,
        }
    }
}

/// The program of worker processes.
pub fn program(config: &ProcessConfig) -> Command {
    // By this name the very program that runs is found, even if its file was replaced since.
    let mut command = Command::new(config.program.as_deref().unwrap_or(Path::new("/proc/self/exe")));
    // A group of its own: the terminal's signals do not reach it, and what it starts can be killed with it.
    command
        .arg0(config.program.as_deref().unwrap_or(Path::new("saltus")))
        .args(&config.arguments)
        .stdout(Stdio::null())
        .process_group(0);
    command
}

fn start(config: &ProcessConfig) -> io::Result<Started> {
    let (channel, theirs) = Channel::pair()?;
    channel.limit_sending(SENDING_MAX)?;
    let (orders, their_orders) = Channel::pair()?;
    orders.limit_sending(SENDING_MAX)?;
    let mut child = program(config).stdin(Stdio::from(theirs)).stderr(Stdio::piped()).spawn()?;
    let mut watch = || {
        let stderr = OwnedFd::from(child.stderr.take().ok_or_else(|| io::Error::other("no pipe for standard error"))?);
        rustix::io::ioctl_fionbio(&stderr, true)?;
        let over = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok((stderr, over))
    };
    match watch() {
        Ok((stderr, over)) => Ok(Started { child, over, channel, orders, their_orders, stderr }),
        Err(error) => {
            let _over_already = child.kill();
            let _status = child.wait();
            Err(error)
        }
    }
}
