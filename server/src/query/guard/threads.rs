//! Threads of queries: each query under way has one to itself.
//!
//! A few idle ones are kept, so that a short query does not pay for the start of a thread. They run on CPUs that no shard is
//! pinned to, if there are any, and at nice 10: where they share one with a shard, the shard goes first. A thread that has
//! worked for a query that is not young any more stands further behind, for good, and is not used again.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

use crossbeam::queue::ArrayQueue;
use rustix::thread::CpuSet;

/// Room for the recursion of parsers, planners and destructors over the deepest statement (`QUERY_DEPTH_MAX`), at 32 KB a level. It is
/// address space; memory is what is used of it.
pub(crate) const THREAD_STACK_BYTES: usize = 64 << 20;

/// How much below the shards query threads stand.
const THREAD_NICE: i32 = 10;

/// Threads that are kept when they have nothing to do.
const IDLE_MAX: usize = 8;

/// Work for one thread.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Where threads of queries run, and how they are called.
#[derive(Clone)]
pub(crate) struct ThreadPlace {
    cpus: Option<CpuSet>,
    count: Arc<AtomicUsize>,
}

impl ThreadPlace {
    /// Beside the shards' CPUs, if there are others.
    pub(crate) fn beside(shards: &[Option<usize>]) -> Self {
        ThreadPlace { cpus: other_cpus(shards), count: Arc::new(AtomicUsize::new(0)) }
    }

    /// The next name.
    pub(crate) fn name(&self) -> String {
        format!("saltus-query-{}", self.count.fetch_add(1, Ordering::Relaxed))
    }

    /// Puts the calling thread there.
    pub(crate) fn take(&self) {
        // Refused only where even that is forbidden; queries are then where shards are, or as urgent.
        if let Some(cpus) = &self.cpus {
            let _ = rustix::thread::sched_setaffinity(None, cpus);
        }
        let _ = rustix::process::nice(THREAD_NICE);
    }
}

/// The CPUs that no shard is pinned to; `None` if there are none, or nobody knows.
fn other_cpus(shards: &[Option<usize>]) -> Option<CpuSet> {
    let mut others = rustix::thread::sched_getaffinity(None).ok()?;
    for cpu in shards {
        others.unset((*cpu)?);
    }
    (others.count() > 0).then_some(others)
}

thread_local! {
    static BEHIND: Cell<bool> = const { Cell::new(false) };
}

/// Lets the calling thread stand further behind, once.
pub(super) fn stand_behind(nice: i32) {
    if !BEHIND.replace(true) {
        let _ = rustix::process::nice(nice - THREAD_NICE);
    }
}

/// Starts and keeps the threads.
pub(crate) struct Threads {
    place: ThreadPlace,
    /// Threads that wait for work.
    idle: Arc<ArrayQueue<Sender<Job>>>,
}

impl Threads {
    pub(crate) fn new(place: ThreadPlace) -> Self {
        Threads { place, idle: Arc::new(ArrayQueue::new(IDLE_MAX)) }
    }

    /// Gives the job to a thread that waits, or gives it back. Never blocks.
    pub(crate) fn give(&self, mut job: Job) -> Result<(), Job> {
        while let Some(thread) = self.idle.pop() {
            match thread.send(job) {
                Ok(()) => return Ok(()),
                Err(unsent) => job = unsent.0,
            }
        }
        Err(job)
    }

    /// Gives the job to a thread that waits or to a new one.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn run(&self, job: Job) -> std::io::Result<()> {
        match self.give(job) {
            Ok(()) => Ok(()),
            Err(job) => self.start(job),
        }
    }

    fn start(&self, first: Job) -> std::io::Result<()> {
        let (place, idle) = (self.place.clone(), Arc::downgrade(&self.idle));
        let work = move || {
            place.take();
            first();
            // One that stands behind is of no use to the next query; without the pool nobody gives it any.
            while !BEHIND.get() {
                let (sender, jobs) = channel::<Job>();
                if idle.upgrade().is_none_or(|idle| idle.push(sender).is_err()) {
                    return;
                }
                let Ok(job) = jobs.recv() else { return };
                job();
            }
        };
        std::thread::Builder::new().name(self.place.name()).stack_size(THREAD_STACK_BYTES).spawn(work).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn name_of(threads: &Threads) -> String {
        let (sender, name) = channel();
        threads.run(Box::new(move || drop(sender.send(std::thread::current().name().unwrap().to_owned())))).unwrap();
        name.recv().unwrap()
    }

    fn until(done: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !done() {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_thread_is_used_again_unless_it_stands_behind() {
        let threads = Threads::new(ThreadPlace::beside(&[]));
        let first = name_of(&threads);
        until(|| threads.idle.len() == 1);
        assert_eq!(name_of(&threads), first);
        until(|| threads.idle.len() == 1);
        threads.run(Box::new(|| stand_behind(19))).unwrap();
        let second = name_of(&threads);
        assert_ne!(second, first);
        until(|| threads.idle.len() == 1);
        let busy = threads.give(Box::new(|| {}));
        assert!(busy.is_ok());
    }
}
