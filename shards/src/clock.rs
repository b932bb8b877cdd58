//! The two clocks of the engine, and nothing else that knows the time.

use rustix::time::{ClockId, clock_gettime};
use saltus_core::ids::MonoNs;

/// Nanoseconds of `CLOCK_MONOTONIC` now; comparable with every other reading in this process, whichever crate took it.
pub fn mono_now() -> MonoNs {
    let now = clock_gettime(ClockId::Monotonic);
    MonoNs(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// Nanoseconds since the epoch now.
pub fn wall_now_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Wall-clock timestamps that never repeat and never go back: what rows without a timestamp get, one per write, so that
/// two writes in a row never overwrite each other.
#[derive(Debug, Default)]
pub struct RisingClock {
    last_ns: i64,
}

impl RisingClock {
    /// The next timestamp: now, or one nanosecond after the last.
    pub fn next_ns(&mut self) -> i64 {
        self.after(wall_now_ns())
    }

    fn after(&mut self, now_ns: i64) -> i64 {
        self.last_ns = now_ns.max(self.last_ns + 1);
        self.last_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_rise_even_when_the_wall_clock_does_not() {
        let mut clock = RisingClock::default();
        assert_eq!(clock.after(100), 100);
        assert_eq!(clock.after(100), 101);
        assert_eq!(clock.after(50), 102);
        assert_eq!(clock.after(1000), 1000);
    }
}
