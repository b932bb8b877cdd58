//! How promptly the kernel lets a shard's thread run when it wakes on a core that it shares.
//!
//! The fair scheduler of Linux 6.6 and newer (EEVDF) protects whoever it has just picked until that one's slice is over, 2.8 ms on one
//! core, however low its priority: several threads of a plugin beside a shard delayed its wake-ups by that much. A thread that asks for
//! a shorter slice than the others breaks into them (`PREEMPT_SHORT`), and gets no more of the core than before. Slices can be
//! asked for since Linux 6.12 (`sched_setattr(2)`, `sched_runtime`); older kernels ignore it.

/// Nanoseconds; the shortest that the kernel grants.
const SLICE_NS: u64 = 100_000;

/// `SCHED_FLAG_RESET_ON_FORK`: threads that this one starts are not to be as prompt.
const RESET_ON_FORK: u64 = 1;

/// Asks for short slices for this thread.
#[allow(unsafe_code, reason = "no library wraps this system call")]
pub fn be_prompt() {
    let nice = rustix::process::getpriority_process(None).unwrap_or(0);
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(0),
        sched_policy: libc::SCHED_OTHER.unsigned_abs(),
        sched_flags: RESET_ON_FORK,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: SLICE_NS,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: thread 0 is this one; the kernel reads `size` bytes of the struct, which lives through the call.
    let refused = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } != 0;
    if refused {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "the shard's thread has slices as long as everybody's");
    }
}
