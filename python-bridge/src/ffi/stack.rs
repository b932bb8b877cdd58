//! `signal.h`: where another thread of this process is.
//!
//! # Mechanism
//! 1. Whoever asks puts the thread's id into [`WANTED`] and sends the thread [`SIGNAL`].
//! 2. The handler runs on that thread, between two of its instructions. If the thread is the one that is wanted, it walks its own
//!    stack and puts the addresses of its frames into [`FRAMES`]; then it says so in [`DONE`]. It allocates nothing, takes no lock
//!    and leaves `errno` as it was. A signal that comes late, or from somebody else, finds nobody wanted and does nothing.
//! 3. Whoever asked reads the addresses; names are found later, on its own thread (`crate::stack`).
//!
//! The signal is `SIGURG`: by default it is ignored, so it is nobody's way to end a process, and a system call that it interrupts
//! goes on (`SA_RESTART`), but for the ring's wait, whose caller expects that.
//!
//! The walk follows the unwind tables of what is loaded. glibc 2.35 and newer find them without a lock; with an older one the
//! walk could wait for a thread that loads a library, so there is no walk then.

use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Frames that are recorded at most.
const FRAMES_MAX: usize = 192;
const SIGNAL: c_int = libc::SIGURG;
/// A thread that does not answer for so long is in a system call that no signal gets through to.
const PATIENCE: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// The thread that is to record its stack; 0 for none.
static WANTED: AtomicI32 = AtomicI32::new(0);
/// The thread that has.
static DONE: AtomicI32 = AtomicI32::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);
static FRAMES: [AtomicUsize; FRAMES_MAX] = [const { AtomicUsize::new(0) }; FRAMES_MAX];
/// One asks at a time.
static ASKING: Mutex<()> = Mutex::new(());

/// The addresses of a thread's frames, the innermost first, those of the signal handler before them. `None` if the thread is gone,
/// does not answer, or this system has no safe way to ask.
pub fn frames_of(thread: i32) -> Option<Vec<usize>> {
    let _asking = ASKING.lock();
    if thread <= 0 || !installed() {
        return None;
    }
    DONE.store(0, Ordering::Relaxed);
    WANTED.store(thread, Ordering::Release);
    let process = c_int::try_from(std::process::id()).ok()?;
    // SAFETY: the call only sends a signal, to a thread of this process; its handler is `record`.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, SIGNAL) } == 0;
    let end = Instant::now() + PATIENCE;
    while sent && DONE.load(Ordering::Acquire) != thread && Instant::now() < end {
        std::thread::sleep(LOOK_EVERY);
    }
    WANTED.store(0, Ordering::Release);
    if DONE.load(Ordering::Acquire) != thread {
        return None;
    }
    let count = COUNT.load(Ordering::Relaxed).min(FRAMES_MAX);
    Some(FRAMES[..count].iter().map(|frame| frame.load(Ordering::Relaxed)).collect())
}

/// Puts the handler in place, unless the signal is somebody else's.
fn installed() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| walks_without_lock() && is_free() && install())
}

/// Whether the C library finds unwind tables without a lock.
fn walks_without_lock() -> bool {
    // SAFETY: the name ends with a zero; RTLD_DEFAULT searches what is loaded.
    !unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr()) }.is_null()
}

fn is_free() -> bool {
    // SAFETY: all zeros is a value of this C struct.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action the call only writes the present one to `now`.
    let asked = unsafe { libc::sigaction(SIGNAL, std::ptr::null(), &raw mut now) } == 0;
    asked && [libc::SIG_DFL, libc::SIG_IGN].contains(&now.sa_sigaction)
}

fn install() -> bool {
    // What the walk loads or binds when it is used first, it loads here and not in a handler.
    backtrace::trace(|_| true);
    // SAFETY: all zeros is a value of this C struct: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int) = record;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `action` is whole, and its handler has the signature for these flags and does only what a handler may (see `record`).
    unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) == 0 }
}

/// The handler. Async-signal-safe: atomics, `gettid`, and a walk along tables that were loaded before.
extern "C" fn record(_signal: c_int) {
    // SAFETY: the location of this thread's errno is valid while the thread runs.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let kept = unsafe { *errno };
    // SAFETY: the call has no preconditions.
    let me = unsafe { libc::gettid() };
    if WANTED.compare_exchange(me, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        let mut count = 0;
        // SAFETY: what the synchronised form guards is the finding of names, and no name is looked for; on Linux a walk shares
        // nothing with others.
        unsafe {
            backtrace::trace_unsynchronized(|frame| {
                FRAMES[count].store(frame.ip() as usize, Ordering::Relaxed);
                count += 1;
                count < FRAMES_MAX
            });
        }
        COUNT.store(count, Ordering::Relaxed);
        DONE.store(me, Ordering::Release);
    }
    // SAFETY: as above.
    unsafe { *errno = kept };
}
