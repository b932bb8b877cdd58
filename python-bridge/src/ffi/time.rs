//! The clocks of the system.

use saltus_core::ids::MonoNs;

/// CLOCK_MONOTONIC.
pub fn now() -> MonoNs {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    MonoNs(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// The clock of this thread's CPU time, readable from every thread of the process while this one lives. Not 0.
pub fn cpu_clock_of_this_thread() -> Option<i32> {
    let mut clock = 0;
    // SAFETY: the calling thread is alive; writes one clock id.
    (unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) } == 0).then_some(clock)
}

/// What a clock of [`cpu_clock_of_this_thread`] shows, in nanoseconds; `None` once its thread has ended.
pub fn of_clock(clock: i32) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; an unknown clock is an error.
    let known = unsafe { libc::clock_gettime(clock, &mut time) } == 0;
    known.then(|| time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// This thread's CPU time, in nanoseconds.
pub fn thread_cpu() -> u64 {
    of_clock(libc::CLOCK_THREAD_CPUTIME_ID).unwrap_or(0)
}
