//! How many log lines a trigger may write: so many per second, whichever threads its runs are made on.
//!
//! The first lines of each second are taken. What was left out is said with the next line that is taken, and counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use saltus_core::ids::{MonoNs, TriggerId};

const NS_PER_S: u64 = 1_000_000_000;

/// Lines of all triggers that were left out since the start.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);
/// Each trigger's rate; asked once per interpreter and trigger.
static RATES: Mutex<Option<HashMap<TriggerId, Arc<LogRate>>>> = Mutex::new(None);

/// Log lines of plugins that were left out, because their triggers had written as many as they may.
pub fn log_lines_left_out() -> u64 {
    LEFT_OUT.load(Ordering::Relaxed)
}

/// The lines of one trigger.
#[derive(Debug, Default)]
pub struct LogRate {
    /// The second that is counted, above 32 bits with the lines in it.
    now: AtomicU64,
    /// Left out and not said yet.
    left_out: AtomicU64,
}

impl LogRate {
    /// The one of that trigger.
    pub fn of(trigger: TriggerId) -> Arc<LogRate> {
        RATES.lock().get_or_insert_default().entry(trigger).or_default().clone()
    }

    /// Whether a line may be written; with how many were left out before it.
    pub fn take(&self, at: MonoNs, limit: u32) -> Option<u64> {
        let second = (at.0 / NS_PER_S) & u64::from(u32::MAX);
        let counted =
            self.now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| match (now >> 32, now as u32) {
                (of, lines) if of == second && lines >= limit => None,
                (of, lines) if of == second => Some(of << 32 | u64::from(lines + 1)),
                _ => Some(second << 32 | 1),
            });
        if counted.is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            LEFT_OUT.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_lines_of_each_second_are_taken_and_the_others_counted() {
        let rate = LogRate::default();
        let at = |ms: u64| MonoNs(5 * NS_PER_S + ms * 1_000_000);
        let taken: Vec<_> = [0, 1, 2, 3, 999, 1000, 1001].into_iter().map(|ms| rate.take(at(ms), 2)).collect();
        assert_eq!(taken, [Some(0), Some(0), None, None, None, Some(3), Some(0)]);
        assert_eq!(rate.take(at(1002), 2), None);
    }
}
