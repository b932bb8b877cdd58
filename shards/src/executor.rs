//! Starts one pinned glommio executor per shard and says clearly why when that cannot be done.
//!
//! Every task of a shard runs in one latency queue: a wake from another thread into a queue that is not latency-bound can
//! wait for up to 100 ms. The first sleep of an executor registers with the kernel's membarrier and may take 50 ms, so it is
//! taken at start, where nobody waits.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use crate::pulse::Turns;
use futures_util::FutureExt;
use glommio::{ExecutorJoinHandle, Latency, LocalExecutorBuilder, Placement as CpuPlacement, Shares, TaskQueueHandle};

/// The queue that all tasks of a shard run in.
#[derive(Clone, Copy)]
pub struct ShardQueue(TaskQueueHandle);

impl ShardQueue {
    /// Runs a task on this shard; each of its polls is one of `turns`. A panic in it is contained; `panicked` is called with its
    /// text.
    pub(crate) fn spawn(
        self,
        turns: Rc<Turns>,
        task: impl Future<Output = ()> + 'static,
        panicked: impl FnOnce(String) + 'static,
    ) {
        let contained = async move {
            let mut task = std::pin::pin!(std::panic::AssertUnwindSafe(task).catch_unwind());
            let outcome = std::future::poll_fn(|cx| turns.take(|| task.as_mut().poll(cx))).await;
            if let Err(panic) = outcome {
                panicked(panic_text(&*panic));
            }
        };
        match glommio::spawn_local_into(contained, self.0) {
            Ok(task) => drop(task.detach()),
            Err(error) => tracing::error!(%error, "a task could not be started: its queue is gone"),
        }
    }
}

/// The text of a caught panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

/// A shard's thread.
pub struct ShardThread(ExecutorJoinHandle<()>);

impl ShardThread {
    /// Waits for its end.
    pub fn join(self) -> Result<(), String> {
        self.0.join().map_err(|error| error.to_string())
    }
}

/// What a shard does when it has nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// It sleeps, and the kernel wakes it.
    Sleep,
    /// It looks for work for ever, and its core is taken.
    Poll,
}

/// Longer than any process lives.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Starts a shard's thread, pinned to `cpu` if given, and runs `body` on it.
///
/// # Errors
/// A text with the remedy: io_uring missing or forbidden, locked memory too small, no such CPU.
pub fn start<F>(
    name: &str,
    cpu: Option<usize>,
    idle: Idle,
    body: impl FnOnce(ShardQueue) -> F + Send + 'static,
) -> Result<ShardThread, String>
where
    F: Future<Output = ()> + 'static,
{
    let placement = cpu.map_or(CpuPlacement::Unbound, CpuPlacement::Fixed);
    let builder = LocalExecutorBuilder::new(placement).name(name);
    let builder = match idle {
        Idle::Sleep => builder,
        Idle::Poll => builder.spin_before_park(FOR_EVER),
    };
    builder
        .spawn(move || async move {
            crate::priority::be_prompt();
            glommio::timer::sleep(Duration::from_micros(1)).await;
            let queue = glommio::executor().create_task_queue(
                Shares::Static(1000),
                Latency::Matters(Duration::from_millis(1)),
                "shard",
            );
            match glommio::spawn_local_into(body(ShardQueue(queue)), queue) {
                Ok(task) => task.await,
                Err(error) => tracing::error!(%error, "the shard's first task could not be started"),
            }
        })
        .map(ShardThread)
        .map_err(|error| explain(name, cpu, &error.to_string()))
}

fn explain(name: &str, cpu: Option<usize>, error: &str) -> String {
    let cpu =
        cpu.map_or_else(String::new, |c| format!(" on CPU {c} (--cpus must name CPUs that this process may use)"));
    format!(
        "{name} could not start{cpu}: {error}; see `ulimit -l` (locked memory) and /proc/sys/kernel/io_uring_disabled"
    )
}

/// Bytes of locked memory that one shard's rings need (glommio asks for this much).
pub const MEMLOCK_PER_SHARD: u64 = 512 * 1024;

/// Checks what the kernel must offer before any shard starts.
///
/// # Errors
/// A text that names what is missing and what to set.
pub fn check_kernel(shards: usize) -> Result<(), String> {
    if let Ok(text) = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        && text.trim() == "2"
    {
        return Err(
            "io_uring is disabled on this machine: set `sysctl kernel.io_uring_disabled=0` and start again".into()
        );
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let needed = MEMLOCK_PER_SHARD * shards as u64;
    match limit {
        Some(bytes) if bytes < needed => Err(format!(
            "{shards} shards need {needed} bytes of locked memory and the limit is {bytes}: raise it with `ulimit -l {}` or `LimitMEMLOCK=infinity` in the service unit, or start fewer shards (--shards)",
            needed / 1024
        )),
        _ => Ok(()),
    }
}
