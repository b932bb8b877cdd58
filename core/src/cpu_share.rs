//! How much of a core the runs of a trigger may use outside of the inline lane, over time.
//!
//! A bucket of CPU time: it fills by a share of the time that passes, holds what is filled in [`CPU_SHARE_WINDOW_MS`], and a run
//! takes out what it has cost when it is over. A run may begin while the bucket is not overdrawn; so one run may cost more than
//! there is, and those after it wait for as long as that takes to fill. No clock: instants are arguments.

use std::time::Duration;

use crate::ids::MonoNs;
use crate::limits::CPU_SHARE_WINDOW_MS;

/// All of a core: nothing is counted.
pub const WHOLE: u32 = 100;

/// The bucket of one trigger.
#[derive(Clone, Copy, Debug)]
pub struct CpuShare {
    /// Hundredths of nanoseconds, so that filling by per cent is exact.
    balance: i128,
    at: MonoNs,
}

impl CpuShare {
    /// A full one.
    pub fn new(now: MonoNs) -> Self {
        CpuShare { balance: i128::MAX, at: now }
    }

    /// A run is over that has cost `cost_ns` of CPU time.
    pub fn spend(&mut self, cost_ns: u64, percent: u32, now: MonoNs) {
        self.fill(percent, now);
        self.balance -= i128::from(cost_ns) * 100;
    }

    /// How long the next run has to wait; `None` if it need not.
    pub fn wait(&mut self, percent: u32, now: MonoNs) -> Option<Duration> {
        self.fill(percent, now);
        if percent >= WHOLE || self.balance >= 0 {
            return None;
        }
        let owed = self.balance.unsigned_abs().div_ceil(u128::from(percent.max(1)));
        Some(Duration::from_nanos(u64::try_from(owed).unwrap_or(u64::MAX)))
    }

    fn fill(&mut self, percent: u32, now: MonoNs) {
        let percent = i128::from(percent.clamp(1, WHOLE));
        let full = i128::from(CPU_SHARE_WINDOW_MS) * 1_000_000 * percent;
        self.balance = self.balance.saturating_add(i128::from(now.since(self.at)) * percent).min(full);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_trigger_waits_until_what_its_run_has_cost_beyond_its_share_is_filled() {
        let mut share = CpuShare::new(MonoNs(0));
        // Half a second is there; two seconds are spent.
        share.spend(2 * SECOND, 50, MonoNs(0));
        assert_eq!(share.wait(50, MonoNs(0)), Some(Duration::from_secs(3)));
        assert_eq!(share.wait(50, MonoNs(2 * SECOND)), Some(Duration::from_secs(1)));
        assert_eq!(share.wait(50, MonoNs(3 * SECOND)), None);
        // A larger share of what is still owed.
        share.spend(SECOND, 50, MonoNs(3 * SECOND));
        assert_eq!(share.wait(25, MonoNs(3 * SECOND)), Some(Duration::from_secs(4)));
        assert_eq!(share.wait(WHOLE, MonoNs(3 * SECOND)), None);
    }

    proptest! {
        /// Whatever runs cost: over any time, those that began cost no more than the share of it, what a full bucket holds, and
        /// the last of them.
        #[test]
        fn over_any_time_the_share_is_kept(
            percent in 1_u32..100,
            runs in proptest::collection::vec((0_u64..3 * SECOND, 0_u64..SECOND), 1..40),
        ) {
            let mut now = 0;
            let mut share = CpuShare::new(MonoNs(0));
            let mut made: Vec<(u64, u64)> = Vec::new();
            for (cost, idle) in runs {
                now += idle;
                if let Some(wait) = share.wait(percent, MonoNs(now)) {
                    prop_assert!(share.wait(percent, MonoNs(now + wait.as_nanos() as u64 - 1)).is_some());
                    now += wait.as_nanos() as u64;
                    prop_assert_eq!(share.wait(percent, MonoNs(now)), None);
                }
                now += cost;
                share.spend(cost, percent, MonoNs(now));
                made.push((now, cost));
            }
            for first in 0..made.len() {
                for last in first..made.len() {
                    let begin = made[first].0 - made[first].1;
                    let span = u128::from(made[last].0 - begin) + u128::from(CPU_SHARE_WINDOW_MS) * 1_000_000;
                    let cost: u64 = made[first..last].iter().map(|(_, cost)| cost).sum();
                    prop_assert!(u128::from(cost) * 100 <= span * u128::from(percent));
                }
            }
        }
    }
}
