//! The machine's own hiccups: how late a thread wakes that only wanted to sleep for a millisecond.
//!
//! Mechanism: one thread sleeps 1 ms, again and again, and records by how much each sleep overshot. A sleep that
//! overshot by several periods also records the sleeps that it swallowed, each with the lateness that it would have
//! had. What such a thread suffers (scheduler, hypervisor, interrupts, a busy neighbour), a server suffers too; a
//! latency below this figure says more about the machine than about the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::report::new_histogram;

/// What the thread asks for.
const PERIOD: Duration = Duration::from_millis(1);

/// A running meter. Dropping it without [`Meter::stop`] leaves the thread to run until the process ends.
pub struct Meter {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<Histogram<u64>>,
}

impl Meter {
    /// Starts measuring.
    pub fn start() -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopping);
        Self { stopping, thread: std::thread::spawn(move || measure(&seen)) }
    }

    /// Ends the measurement; the histogram holds nanoseconds.
    pub fn stop(self) -> Histogram<u64> {
        self.stopping.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| new_histogram())
    }
}

fn measure(stopping: &AtomicBool) -> Histogram<u64> {
    let mut histogram = new_histogram();
    // Without this the kernel may add its default slack of 50 us to each sleep.
    sharpen_timers();
    while !stopping.load(Ordering::Relaxed) {
        let start = Instant::now();
        std::thread::sleep(PERIOD);
        let late_ns = start.elapsed().saturating_sub(PERIOD).as_nanos() as u64;
        histogram.saturating_record(late_ns.max(1));
        let period_ns = PERIOD.as_nanos() as u64;
        let mut missed_ns = late_ns.saturating_sub(period_ns);
        while missed_ns > period_ns {
            histogram.saturating_record(missed_ns);
            missed_ns -= period_ns;
        }
    }
    histogram
}

/// Asks the kernel for exact wake-ups of this thread; refused is no harm, only blurrier figures.
pub fn sharpen_timers() {
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_records_about_one_sleep_a_millisecond() {
        let meter = Meter::start();
        std::thread::sleep(Duration::from_millis(100));
        let histogram = meter.stop();
        assert!(histogram.len() > 5, "only {} sleeps in 100 ms", histogram.len());
        assert!(histogram.min() < 100_000_000, "no sleep was even roughly on time");
    }
}
