//! The monotonic clock, and the scheduling of worker threads.

use saltus_core::ids::MonoNs;

/// CLOCK_MONOTONIC.
pub fn now() -> MonoNs {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    MonoNs(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
