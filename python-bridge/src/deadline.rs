//! Deadlines: one watchdog thread that interrupts runs which take too long.
//!
//! # Mechanism
//! 1. Every thread that makes runs owns a [`Watched`] slot. A run writes its deadline and a fresh ticket into it, and
//!    zeroes the ticket when it is over: two atomic stores each, no lock, no system call.
//! 2. The watchdog looks at the slots when the next deadline is due. It sleeps no longer than the shortest deadline ever
//!    asked for, so a run that starts while it sleeps need not wake it; after a second without runs it sleeps until the
//!    next run wakes it.
//! 3. For an overdue run it queues a pending call on the run's interpreter, with the ticket. It never takes a GIL.
//! 4. The call is made by a thread of that interpreter between two bytecodes. On the run's own thread it raises
//!    `PluginTimeout`; on another it sets the asynchronous exception of the run's thread; if the ticket is no longer
//!    current it does nothing.
//!    A run of the inline lane is charged for what it does, not for what its machine does: overdue by the clock, it is
//!    interrupted when it has used its deadline of CPU time, or when it is overdue [`WALL_FACTOR`] times and its thread waits for
//!    something. A thread that would run if the machine let it (others have the core, the process was stopped) is not to blame.
//! 5. As long as the run goes on, 3 is repeated, faster each time. From [`REPEAT_AFTER`] interrupts on, each call queues
//!    the next before it raises, so that a plugin which catches everything in a loop is hit outside its `try` as well.
//!
//! 6. What this cannot interrupt: a single C call that does not come back, such as `sum(range(10**12))`; it ends after it. In the
//!    inline lane that is a stall: after [`StallPolicy::limit`] the host is told, which keeps the code out of that lane over
//!    restarts, and after [`StallPolicy::abort`] the process is aborted: what started it may start it again. Here too a thread
//!    that the machine keeps off is not to blame.
//!
//! Where libpython does not export `_PyEval_AddPendingCall`, the runtime refuses to start; 3.13 and 3.14 do.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use saltus_core::ids::{MonoNs, RunId, ShardId, TriggerId};
use saltus_core::ports::{PluginError, PluginHost, Stall};

use crate::effects::CANCELLED;
use crate::ffi::ceval::{self, Interrupt};
use crate::ffi::pystate::{self, InterpreterId};
use crate::ffi::{Py, time};
use crate::interpreter::failure;

/// Interrupts after which a run is interrupted at every chance.
const REPEAT_AFTER: u32 = 3;
/// Pause between two interrupts of the same run: at first, and at least.
const AGAIN_NS: u64 = 10_000_000;
const AGAIN_NS_MIN: u64 = 1_000_000;
/// Interrupts after which a run that does not end is interrupted now and then only.
const PATIENCE: u32 = 2_000;
const AGAIN_NS_LATE: u64 = 100_000_000;
/// The watchdog's shortest and longest sleep while there are runs.
const SLEEP_NS_MIN: u64 = 500_000;
const SLEEP_NS_MAX: u64 = 100_000_000;
/// Deadlines after which a run that counts CPU time is interrupted however little of it it had, unless it would use more at once.
const WALL_FACTOR: u64 = 10;
/// The shortest pause between two looks at a run that has had no CPU time.
const DOUBT_NS_MIN: u64 = 200_000;
/// The watchdog's priority: above the shards, so that one that spins on its core does not keep it off.
const WATCHDOG_NICE: i32 = -15;
/// Without runs for this long, the watchdog sleeps until it is woken.
const QUIET_NS: u64 = 1_000_000_000;

/// One thread's current run.
#[derive(Default)]
struct Slot {
    /// 0 between runs.
    ticket: AtomicU64,
    deadline_ns: AtomicU64,
    limit_ns: AtomicU64,
    interpreter: AtomicUsize,
    /// Python's identity of the thread.
    thread: AtomicU64,
    /// The clock of the thread's CPU time; 0 if only the wall clock counts.
    cpu_clock: AtomicI32,
    /// The thread's CPU time when the run began.
    began_cpu_ns: AtomicU64,
    /// The system's number of the thread.
    thread_id: AtomicI32,
    /// The overdue ticket that the watchdog had doubts about.
    doubt_ticket: AtomicU64,
    /// Interrupts that reached this run.
    delivered: AtomicU32,
    /// The ticket that the watchdog has interrupted last, when it will again, and how often it has.
    again_ticket: AtomicU64,
    again_ns: AtomicU64,
    fired: AtomicU32,
    /// A shard's thread waits for the run.
    inline: AtomicBool,
    run: AtomicU64,
    trigger: AtomicU64,
    code: AtomicU64,
    shard: AtomicU16,
    /// The run that was told as a stall, and since when.
    stalled_ticket: AtomicU64,
    /// The run that nobody wants any more.
    cancelled_ticket: AtomicU64,
}

/// Whose run it is.
#[derive(Clone, Copy)]
pub struct Whose {
    /// The run.
    pub run: RunId,
    /// Its trigger.
    pub trigger: TriggerId,
    /// Content hash of its code.
    pub code: u64,
    /// The shard that it is made for.
    pub shard: ShardId,
}

impl Whose {
    /// No run: work of the engine that has a deadline.
    pub const NOBODY: Whose = Whose { run: RunId(0), trigger: TriggerId(0), code: 0, shard: ShardId(0) };
}

/// When a run began, by both clocks.
#[derive(Clone, Copy)]
pub struct Began {
    at: MonoNs,
    /// CPU time of the thread.
    cpu_ns: u64,
}

impl Began {
    fn now() -> Self {
        Began { at: time::now(), cpu_ns: time::thread_cpu() }
    }

    /// CPU time since then. If less than `beyond` has passed at all, that is as good: it costs no system call, and no more CPU time can
    /// have been used.
    pub fn cost_ns(self, beyond: Duration) -> u64 {
        let passed = time::now().since(self.at);
        if u128::from(passed) < beyond.as_nanos() { passed } else { time::thread_cpu().saturating_sub(self.cpu_ns) }
    }
}

/// What is done about an inline run that cannot be interrupted.
#[derive(Clone)]
pub struct StallPolicy {
    /// Who is told after how long.
    pub host: Arc<dyn PluginHost>,
    /// See there.
    pub limit: Duration,
    /// The process is aborted after so long; never, if `None`.
    pub abort: Option<Duration>,
}

static STALL_POLICY: OnceLock<StallPolicy> = OnceLock::new();

#[derive(Default)]
struct Watchdog {
    slots: Mutex<Vec<Arc<Slot>>>,
    sleep: Mutex<()>,
    wake: Condvar,
    /// When it will look next; `u64::MAX` while it sleeps until woken.
    wake_ns: AtomicU64,
    shortest_ns: AtomicU64,
    tickets: AtomicU64,
}

/// Starts the watchdog's thread, on every CPU that the process may use, and above the shards where the system allows it.
pub fn start(policy: StallPolicy) {
    // A second runtime in one process does not exist.
    let _first = STALL_POLICY.set(policy);
    let _started = watchdog();
}

fn watchdog() -> &'static Watchdog {
    static WATCHDOG: OnceLock<Watchdog> = OnceLock::new();
    WATCHDOG.get_or_init(|| {
        ceval::set_decide(decide);
        std::thread::Builder::new()
            .name("saltus-watchdog".to_owned())
            .spawn(|| {
                if let Err(error) = rustix::process::nice(WATCHDOG_NICE) {
                    tracing::debug!(%error, "the watchdog has the priority of the shards");
                }
                watch(watchdog());
            })
            .expect("a thread can be started while the process starts");
        Watchdog { shortest_ns: AtomicU64::new(SLEEP_NS_MAX), tickets: AtomicU64::new(1), ..Watchdog::default() }
    })
}

thread_local! {
    static OWN: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
}

/// This thread's slot; made once, on a thread that is attached for good.
pub struct Watched {
    slot: Arc<Slot>,
}

impl Watched {
    /// Registers this thread; the deadlines of its runs are CPU time if `counts_cpu`.
    pub fn register(py: Py, counts_cpu: bool) -> Self {
        let slot = Arc::new(Slot::default());
        let clock = if counts_cpu { time::cpu_clock_of_this_thread() } else { None };
        slot.cpu_clock.store(clock.unwrap_or(0), Ordering::Relaxed);
        slot.inline.store(counts_cpu, Ordering::Relaxed);
        slot.thread_id.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        slot.interpreter.store(pystate::current_interpreter(py).as_usize(), Ordering::Relaxed);
        slot.thread.store(pystate::current_thread(py), Ordering::Relaxed);
        watchdog().slots.lock().push(slot.clone());
        OWN.set(Some(slot.clone()));
        Watched { slot }
    }

    /// A run begins; it may take `limit`.
    pub fn begin(&self, limit: Duration, whose: Whose) -> Began {
        let watchdog = watchdog();
        self.slot.run.store(whose.run.0, Ordering::Relaxed);
        self.slot.trigger.store(whose.trigger.0, Ordering::Relaxed);
        self.slot.code.store(whose.code, Ordering::Relaxed);
        self.slot.shard.store(whose.shard.0, Ordering::Relaxed);
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let began = Began::now();
        let deadline_ns = began.at.0.saturating_add(limit_ns);
        if limit_ns < watchdog.shortest_ns.load(Ordering::Relaxed) {
            watchdog.shortest_ns.fetch_min(limit_ns, Ordering::Relaxed);
        }
        self.slot.delivered.store(0, Ordering::Relaxed);
        self.slot.limit_ns.store(limit_ns, Ordering::Relaxed);
        self.slot.deadline_ns.store(deadline_ns, Ordering::Relaxed);
        self.slot.began_cpu_ns.store(began.cpu_ns, Ordering::Relaxed);
        self.slot.ticket.store(watchdog.tickets.fetch_add(1, Ordering::Relaxed), Ordering::SeqCst);
        // SeqCst: either the watchdog, which announces its sleep and then looks again, sees this ticket, or we see the
        // announcement.
        if deadline_ns >= watchdog.wake_ns.load(Ordering::SeqCst) {
            return began;
        }
        watchdog.poke();
        // What the wake-up costs is not the run's: between sleeping processors of a virtual machine it may be more than a run.
        let began = Began::now();
        self.slot.began_cpu_ns.store(began.cpu_ns, Ordering::Relaxed);
        began
    }

    /// The run is over. Whether it was interrupted, and why.
    pub fn end(&self, py: Py) -> Option<Interrupted> {
        let ticket = self.slot.ticket.swap(0, Ordering::SeqCst);
        if self.slot.delivered.load(Ordering::Relaxed) == 0 {
            return None;
        }
        // What was set by another thread's pending call and has not been raised yet would hit the next run.
        pystate::set_async_exception(py, self.slot.thread.load(Ordering::Relaxed), None);
        let why = self.slot.why(ticket);
        Some(Interrupted { text: message(&self.slot, why), why })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        watchdog().slots.lock().retain(|slot| !Arc::ptr_eq(slot, &self.slot));
    }
}

/// What a run is interrupted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its time is up.
    Deadline,
    /// The process ends; the run is not to blame.
    Stopping,
    /// Its trigger was deleted, disabled or changed.
    Cancelled,
}

/// Why a run was interrupted.
pub struct Interrupted {
    /// In words.
    pub text: String,
    /// The same.
    pub why: Why,
}

impl Interrupted {
    /// What a run that was interrupted so has come to.
    pub fn error(&self) -> PluginError {
        let kind = match self.why {
            Why::Deadline => "PluginTimeout",
            Why::Stopping => PluginError::STOPPED,
            Why::Cancelled => PluginError::CANCELLED,
        };
        failure(kind, &self.text)
    }
}

impl Slot {
    /// CPU time of the run; `None` if it does not count.
    fn cpu_used_ns(&self) -> Option<u64> {
        let clock = self.cpu_clock.load(Ordering::Relaxed);
        let cpu = if clock == 0 { None } else { time::of_clock(clock) };
        cpu.map(|cpu| cpu.saturating_sub(self.began_cpu_ns.load(Ordering::Relaxed)))
    }

    /// See [`would_run`].
    fn would_run(&self) -> bool {
        would_run(self.thread_id.load(Ordering::Relaxed))
    }

    /// What the run of this ticket is interrupted for.
    fn why(&self, ticket: u64) -> Why {
        if self.cancelled_ticket.load(Ordering::SeqCst) == ticket {
            Why::Cancelled
        } else if self.deadline_ns.load(Ordering::Relaxed) == 0 {
            Why::Stopping
        } else {
            Why::Deadline
        }
    }
}

/// Whether a thread of this process runs or waits for nothing but a processor; proc(5), state of `/proc/[pid]/stat`.
pub fn would_run(thread_id: i32) -> bool {
    let path = format!("/proc/self/task/{thread_id}/stat");
    // The name, in parentheses, may hold anything.
    std::fs::read_to_string(path).is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('R')))
}

/// Interrupts a run whose trigger is not what it was. Not from a shard's thread.
pub fn cancel(run: RunId) {
    let watchdog = watchdog();
    for slot in watchdog.slots.lock().iter() {
        let ticket = slot.ticket.load(Ordering::SeqCst);
        if ticket != 0 && slot.run.load(Ordering::Relaxed) == run.0 {
            // If another run has begun since, it has another ticket.
            slot.cancelled_ticket.store(ticket, Ordering::SeqCst);
        }
    }
    watchdog.poke();
}

/// How long the run of a thread may go on, for what waits beside it.
pub struct TimeLeft {
    slot: Arc<Slot>,
    ticket: u64,
}

impl TimeLeft {
    /// Of this thread's run, if it makes one.
    pub fn of_this_thread() -> Option<Self> {
        let slot = OWN.with_borrow(|own| own.clone())?;
        let ticket = slot.ticket.load(Ordering::SeqCst);
        (ticket != 0).then_some(TimeLeft { slot, ticket })
    }

    /// Whether there is any, or the interrupt of the run may still be under way.
    pub fn any(&self) -> bool {
        let slot = &self.slot;
        slot.ticket.load(Ordering::SeqCst) == self.ticket
            && slot.cancelled_ticket.load(Ordering::SeqCst) != self.ticket
            && slot.deadline_ns.load(Ordering::SeqCst).saturating_add(SLEEP_NS_MAX) > time::now().0
    }
}

/// Interrupts every run that is under way, as if its time were up.
pub fn interrupt_all() {
    let watchdog = watchdog();
    for slot in watchdog.slots.lock().iter() {
        slot.deadline_ns.store(0, Ordering::SeqCst);
    }
    watchdog.poke();
}

/// Why this thread's run is interrupted.
pub fn message_of_this_thread() -> String {
    let of = |slot: &Slot| message(slot, slot.why(slot.ticket.load(Ordering::SeqCst)));
    OWN.with_borrow(|own| own.as_deref().map_or_else(|| "the plugin was interrupted".to_owned(), of))
}

fn message(slot: &Slot, why: Why) -> String {
    match why {
        Why::Cancelled => CANCELLED.to_owned(),
        Why::Stopping => "the database is shutting down".to_owned(),
        Why::Deadline => {
            format!("the run took longer than its deadline of {} ms", slot.limit_ns.load(Ordering::Relaxed) / 1_000_000)
        }
    }
}

/// Step 4. Under the GIL of the run's interpreter.
fn decide(ticket: u64) -> Interrupt {
    let own = OWN.with_borrow(|own| own.clone()).filter(|slot| slot.ticket.load(Ordering::SeqCst) == ticket);
    if let Some(slot) = own {
        slot.delivered.fetch_add(1, Ordering::Relaxed);
        return Interrupt::Raise { repeat: slot.fired.load(Ordering::Relaxed) > REPEAT_AFTER };
    }
    let slots = watchdog().slots.lock();
    match slots.iter().find(|slot| slot.ticket.load(Ordering::SeqCst) == ticket) {
        Some(slot) => {
            slot.delivered.fetch_add(1, Ordering::Relaxed);
            Interrupt::RaiseIn(slot.thread.load(Ordering::Relaxed))
        }
        None => Interrupt::Nothing,
    }
}

impl Watchdog {
    fn poke(&self) {
        let _sleep = self.sleep.lock();
        self.wake.notify_one();
    }

    /// Interrupts what is overdue; when to look again, or `None` without runs.
    fn look(&self, now: u64) -> Option<u64> {
        let mut next: Option<u64> = None;
        for slot in self.slots.lock().iter() {
            let ticket = slot.ticket.load(Ordering::SeqCst);
            stall(slot, ticket, now);
            if ticket == 0 {
                continue;
            }
            let cancelled = slot.cancelled_ticket.load(Ordering::SeqCst) == ticket;
            let due = if slot.again_ticket.load(Ordering::Relaxed) == ticket {
                slot.again_ns.load(Ordering::Relaxed)
            } else if cancelled {
                0
            } else {
                slot.deadline_ns.load(Ordering::Relaxed)
            };
            let doubt = || if cancelled { None } else { doubt(slot, ticket, now) };
            let due = if due > now { due } else { doubt().unwrap_or_else(|| interrupt(slot, ticket, now)) };
            next = Some(next.map_or(due, |n| n.min(due)));
        }
        next
    }
}

/// An inline run that does not end, although it is interrupted: its shard does nothing else meanwhile.
fn stall(slot: &Slot, ticket: u64, now: u64) {
    let Some(policy) = STALL_POLICY.get() else { return };
    let told = slot.stalled_ticket.load(Ordering::Relaxed);
    let shard = ShardId(slot.shard.load(Ordering::Relaxed));
    if told != 0 && told != ticket {
        slot.stalled_ticket.store(0, Ordering::Relaxed);
        policy.host.stall_over(shard);
    }
    let deadline = slot.deadline_ns.load(Ordering::Relaxed);
    if ticket == 0 || deadline == 0 || !slot.inline.load(Ordering::Relaxed) {
        return;
    }
    let began = deadline.saturating_sub(slot.limit_ns.load(Ordering::Relaxed));
    let lasts = Duration::from_nanos(now.saturating_sub(began));
    if lasts < policy.limit || (told != ticket && is_kept_off(slot, policy.limit)) {
        return;
    }
    let stall = Stall {
        shard,
        trigger: TriggerId(slot.trigger.load(Ordering::Relaxed)),
        run_id: RunId(slot.run.load(Ordering::Relaxed)),
        code: slot.code.load(Ordering::Relaxed),
        lasts,
    };
    if told != ticket {
        slot.stalled_ticket.store(ticket, Ordering::Relaxed);
        policy.host.stalled(&stall);
        let host = policy.host.clone();
        // It writes to the disk; other runs have deadlines meanwhile.
        let writer = std::thread::Builder::new().name("saltus-stall".to_owned());
        if writer.spawn(move || host.quarantine(&stall)).is_err() {
            policy.host.quarantine(&stall);
        }
    }
    if policy.abort.is_some_and(|abort| lasts >= abort) {
        tracing::error!(?stall, "the process is aborted: the shard does not come back from a plugin's run");
        std::process::abort();
    }
}

/// Whether an overdue run may not be at fault: it has had too little CPU time. When to look again.
fn doubt(slot: &Slot, ticket: u64, now: u64) -> Option<u64> {
    let (limit, deadline) = (slot.limit_ns.load(Ordering::Relaxed), slot.deadline_ns.load(Ordering::Relaxed));
    let clock = slot.cpu_clock.load(Ordering::Relaxed);
    let fired = slot.again_ticket.load(Ordering::Relaxed) == ticket;
    if clock == 0 || deadline == 0 || fired {
        return None;
    }
    slot.doubt_ticket.store(ticket, Ordering::Relaxed);
    let missing = limit.checked_sub(slot.cpu_used_ns()?).filter(|&missing| missing > 0)?;
    let waits = now >= deadline.saturating_add(limit.saturating_mul(WALL_FACTOR - 1)) && !slot.would_run();
    if waits { None } else { Some(now + missing.max(DOUBT_NS_MIN)) }
}

/// Whether a run that lasts is one that the machine does not let go on: it has had less than half of the time, and would take more.
fn is_kept_off(slot: &Slot, of: Duration) -> bool {
    slot.cpu_used_ns().is_some_and(|used| Duration::from_nanos(used) < of / 2) && slot.would_run()
}

/// Step 3; when to do it again.
fn interrupt(slot: &Slot, ticket: u64, now: u64) -> u64 {
    let first = slot.again_ticket.swap(ticket, Ordering::Relaxed) != ticket;
    let fired = if first { 1 } else { slot.fired.load(Ordering::Relaxed).saturating_add(1) };
    slot.fired.store(fired, Ordering::Relaxed);
    ceval::interrupt_soon(InterpreterId::from_usize(slot.interpreter.load(Ordering::Relaxed)), ticket);
    let pause = if fired < PATIENCE { AGAIN_NS / u64::from(fired) } else { AGAIN_NS_LATE };
    let again = now + pause.max(AGAIN_NS_MIN);
    slot.again_ns.store(again, Ordering::Relaxed);
    again
}

/// The watchdog's thread.
fn watch(watchdog: &Watchdog) {
    let mut last_run_ns = time::now().0;
    loop {
        let now = time::now().0;
        let next = watchdog.look(now);
        if next.is_some() {
            last_run_ns = now;
        }
        let shortest = watchdog.shortest_ns.load(Ordering::Relaxed).clamp(SLEEP_NS_MIN, SLEEP_NS_MAX);
        let until = match next {
            Some(due) => due.min(now + shortest),
            None if now.saturating_sub(last_run_ns) > QUIET_NS => u64::MAX,
            None => now + shortest,
        };
        let mut sleep = watchdog.sleep.lock();
        watchdog.wake_ns.store(until, Ordering::SeqCst);
        // A run that began since the look above has not seen the announcement.
        let unseen = watchdog.slots.lock().iter().any(|slot| {
            slot.ticket.load(Ordering::SeqCst) != 0
                && slot.again_ticket.load(Ordering::Relaxed) != slot.ticket.load(Ordering::SeqCst)
                && slot.doubt_ticket.load(Ordering::Relaxed) != slot.ticket.load(Ordering::SeqCst)
                && slot.deadline_ns.load(Ordering::SeqCst) < until
        });
        if !unseen {
            if until == u64::MAX {
                watchdog.wake.wait(&mut sleep);
                last_run_ns = time::now().0;
            } else {
                let pause = until.saturating_sub(time::now().0).max(SLEEP_NS_MIN / 10);
                watchdog.wake.wait_for(&mut sleep, Duration::from_nanos(pause));
            }
        }
    }
}
