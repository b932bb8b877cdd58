//! The machine's own hiccups: how late a thread wakes that only wanted to sleep for a millisecond.
//!
//! Mechanism: one thread sleeps 1 ms, again and again, and records by how much each sleep overshot. A sleep that
//! overshot by several periods also records the sleeps that it swallowed, each with the lateness that it would have
//! had. What such a thread suffers (scheduler, hypervisor, interrupts, a busy neighbour), a server suffers too; a
//! latency below this figure says more about the machine than about the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::open_loop::now_ns;
use crate::report::new_histogram;

/// What the thread asks for.
const PERIOD: Duration = Duration::from_millis(1);

/// A running meter. Dropping it without [`Meter::stop`] leaves the thread to run until the process ends.
pub struct Meter {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Hiccup>>,
}

/// One sleep that took too long, as they all do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hiccup {
    /// When it was to end, nanoseconds of the monotonic clock.
    pub at_ns: u64,
    /// By how much it was late, nanoseconds.
    pub late_ns: u64,
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
        let mut histogram = new_histogram();
        for hiccup in self.stop_and_list() {
            histogram.saturating_record(hiccup.late_ns);
        }
        histogram
    }

    /// Ends the measurement; all of it, in order of time.
    pub fn stop_and_list(self) -> Vec<Hiccup> {
        self.stopping.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn measure(stopping: &AtomicBool) -> Vec<Hiccup> {
    let mut hiccups = Vec::new();
    // Without this the kernel may add its default slack of 50 us to each sleep.
    sharpen_timers();
    let period_ns = PERIOD.as_nanos() as u64;
    while !stopping.load(Ordering::Relaxed) {
        let due_ns = now_ns() + period_ns;
        std::thread::sleep(PERIOD);
        let late_ns = now_ns().saturating_sub(due_ns);
        hiccups.push(Hiccup { at_ns: due_ns, late_ns: late_ns.max(1) });
        let swallowed = (1..).map(|turn| turn * period_ns).take_while(|missed_ns| late_ns > *missed_ns + period_ns);
        hiccups.extend(swallowed.map(|missed_ns| Hiccup { at_ns: due_ns + missed_ns, late_ns: late_ns - missed_ns }));
    }
    hiccups
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
