//! Where a shard leaves the runs of a trigger for its supervisor.
//!
//! A run that its worker can have at once is sent to it by the shard itself ([`super::offer`]), and put on the desk as one that is under
//! way: whoever waits for the worker's answer finds it there. For such a run the supervisor is not woken but by the worker's words,
//! or by the timer, if nothing is heard of it for `PROCESS_LOOK_MS`.
//!
//! # Invariants
//! 1. One shard puts, one supervisor takes. Putting is an atomic, a push on a bounded lock-free queue, a packet that there is room for,
//!    and the raising of an event descriptor or the setting of a timer; it never waits.
//! 2. `announced` counts the runs that were put and are not reported yet. A desk is closed only by the change of
//!    `announced` to [`CLOSED`], which tells the closer how many runs are still to come out of the queue; after it
//!    nothing is put. So no run is lost between a supervisor that goes and a shard that does not know.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};
use crossbeam::queue::ArrayQueue;
use rustix::event::EventfdFlags;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use saltus_core::ids::TriggerId;
use saltus_core::limits::{PROCESS_LOOK_MS, PROCESS_QUEUE_MAX};
use saltus_core::ports::{Completions, RunReport, RunRequest};

use super::Workers;
use super::offer::Offer;
use crate::ffi::time;
use crate::interpreter::failure;

/// The value of `announced` when nothing may be put any more.
const CLOSED: usize = usize::MAX;

/// What both sides of a desk share.
pub struct Desk {
    /// Raised whenever there is something to look at.
    bell: OwnedFd,
    /// Expires when a run that the shard has begun is to be looked after.
    timer: OwnedFd,
    announced: AtomicUsize,
    /// The worker, while it waits for a run.
    offer: ArrayQueue<Offer>,
    /// The trigger was disabled or deleted: nothing of its cache is kept.
    forgotten: AtomicBool,
}

impl Desk {
    /// A desk for a run that is announced.
    ///
    /// # Errors
    /// What the system said.
    fn new() -> rustix::io::Result<Self> {
        let timer_flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Desk {
            bell: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            timer: rustix::time::timerfd_create(TimerfdClockId::Monotonic, timer_flags)?,
            announced: AtomicUsize::new(1),
            offer: ArrayQueue::new(1),
            forgotten: AtomicBool::new(false),
        })
    }

    /// Offers the worker to the shard.
    pub fn offer(&self, offer: Offer) {
        self.offer.force_push(offer);
    }

    /// Takes the offer away; `None` if the shard has.
    pub fn take_offer(&self) -> Option<Offer> {
        self.offer.pop()
    }

    /// Has the timer expire once after that time; never, if it is zero.
    pub fn set_timer(&self, after: Duration) {
        let it_value = Timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos()) };
        let time = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        let set = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time);
        debug_assert!(set.is_ok(), "a timer can be set to any time");
    }

    /// Readable when the timer has expired.
    pub fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Wakes the supervisor.
    pub fn ring(&self) {
        // It fails only when the counter is full, and then the bell rings already.
        let _full = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Stops the bell and the timer's.
    pub fn silence(&self) {
        for bell in [&self.bell, &self.timer] {
            let _silent = rustix::io::read(bell, &mut [0; 8]);
        }
    }

    /// A run was reported.
    pub fn done(&self) {
        self.announced.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether the trigger was disabled or deleted.
    pub fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::SeqCst)
    }

    /// Closes the desk if every run was reported.
    pub fn close_if_empty(&self) -> bool {
        self.announced.compare_exchange(0, CLOSED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Closes the desk; how many runs are left in its queue or on the way there.
    pub fn close(&self) -> usize {
        self.announced.swap(CLOSED, Ordering::SeqCst)
    }
}

impl AsFd for Desk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// A run on the desk.
pub struct Put {
    /// The run.
    pub request: Box<RunRequest>,
    /// When the shard has given it to the worker, if it has.
    pub given: Option<Instant>,
}

/// The supervisor's side.
pub struct Takings {
    /// What is shared.
    pub desk: Arc<Desk>,
    /// The runs.
    pub runs: Receiver<Put>,
    /// Where they are reported.
    pub completions: Arc<dyn Completions>,
}

impl Takings {
    /// Reports a run that was never made.
    pub fn refuse(&self, request: RunRequest, kind: &str, why: &str) {
        self.completions.completed(RunReport::not_run(request, failure(kind, why), time::now()));
    }
}

/// Why a run was not put.
enum NotPut {
    Closed,
    Full,
}

/// The shard's side of one desk.
struct Post {
    desk: Arc<Desk>,
    queue: Sender<Put>,
}

impl Post {
    /// Makes room for one run, which must be put then; how many are announced already.
    fn announce(&self) -> Result<usize, NotPut> {
        let announce = |announced| (announced < PROCESS_QUEUE_MAX).then(|| announced + 1);
        match self.desk.announced.fetch_update(Ordering::SeqCst, Ordering::SeqCst, announce) {
            Ok(before) => Ok(before),
            Err(CLOSED) => Err(NotPut::Closed),
            Err(_) => Err(NotPut::Full),
        }
    }

    /// Puts a run that was announced after `before` others.
    fn put(&self, request: RunRequest, before: usize) {
        // While another run is under way or waits, the worker is not the shard's to have.
        let offer = if before == 0 { self.desk.take_offer() } else { None };
        let given = offer.is_some_and(|offer| offer.take_up(&request)).then(Instant::now);
        if given.is_some() {
            self.desk.set_timer(Duration::from_millis(PROCESS_LOOK_MS));
        }
        let put = self.queue.try_send(Put { request: Box::new(request), given });
        debug_assert!(put.is_ok(), "the queue has room for every run that is announced, and its taker lives");
        if given.is_none() {
            self.desk.ring();
        }
    }
}

/// One shard's way into the process lane; lives on the shard's thread.
pub struct ProcessLane {
    workers: Arc<Workers>,
    completions: Arc<dyn Completions>,
    posts: HashMap<TriggerId, Post, ahash::RandomState>,
}

impl ProcessLane {
    /// For a shard that takes reports through `completions`.
    pub fn new(workers: Arc<Workers>, completions: Arc<dyn Completions>) -> Self {
        ProcessLane { workers, completions, posts: HashMap::default() }
    }

    /// Hands a run to the worker of its trigger. Never blocks; failures are reported like those of any run.
    ///
    /// # Errors
    /// The request, when as many of the trigger's runs wait as may.
    pub fn submit(&mut self, request: RunRequest) -> Result<(), Box<RunRequest>> {
        let trigger = request.trigger.def.id;
        match self.posts.get(&trigger).map(|post| (post, post.announce())) {
            Some((post, Ok(before))) => {
                post.put(request, before);
                return Ok(());
            }
            Some((_, Err(NotPut::Full))) => return Err(Box::new(request)),
            Some((_, Err(NotPut::Closed))) | None => {}
        }
        // Desks are closed when their triggers have been quiet for long, those of deleted triggers among them.
        self.posts.retain(|_, post| post.desk.announced.load(Ordering::SeqCst) != CLOSED);
        let (queue, runs) = channel::bounded(PROCESS_QUEUE_MAX);
        let desk = match Desk::new() {
            Ok(desk) => Arc::new(desk),
            Err(error) => {
                let why = format!("no worker process can be started: {error}");
                let report = RunReport::not_run(request, failure("WorkerNotStarted", &why), time::now());
                self.completions.completed(report);
                return Ok(());
            }
        };
        let takings = Takings { desk: desk.clone(), runs, completions: self.completions.clone() };
        let post = Post { desk, queue };
        let name = request.trigger.def.name.clone();
        if !self.workers.starter.supervise(self.workers.clone(), takings, name) {
            return Err(Box::new(request));
        }
        post.put(request, 0);
        self.posts.insert(trigger, post);
        Ok(())
    }

    /// Has every supervisor look whether its run is to end early.
    pub fn ring_all(&self) {
        self.posts.values().for_each(|post| post.desk.ring());
    }

    /// The trigger was disabled or deleted: its worker ends when it has made the runs that it was given.
    pub fn forget(&mut self, trigger: TriggerId) {
        // Its runs are to end: see `RunRequest::stop`.
        let Some(Post { desk, queue }) = self.posts.remove(&trigger) else { return };
        desk.forgotten.store(true, Ordering::SeqCst);
        drop(queue);
        desk.ring();
    }
}

impl Drop for ProcessLane {
    fn drop(&mut self) {
        for (_, Post { desk, queue }) in self.posts.drain() {
            // The supervisor sees that nothing will come any more.
            drop(queue);
            desk.ring();
        }
    }
}
