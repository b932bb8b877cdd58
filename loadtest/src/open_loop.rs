//! An open loop: rows at moments that were fixed before, whatever the other side does.
//!
//! For comparisons of several systems in one run: what is sent is a [`Sink`]'s matter, when it is sent is the same for all. The
//! clock is the system's monotonic one, which Python's `time.monotonic_ns()` reads too, so that a plugin on the same machine can say
//! how long after a row was sent it was entered.

use std::time::{Duration, Instant};

use anyhow::Context;

/// Takes one row.
pub trait Sink {
    /// Sends row `number`, which is due at `due_ns`, and waits for the acknowledgement.
    ///
    /// # Errors
    /// What the other side said.
    fn send(&mut self, number: u64, due_ns: u64) -> anyhow::Result<()>;
}

/// One row's moments, nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its number.
    pub number: u64,
    /// When it was meant to be sent.
    pub due_ns: u64,
    /// When it was sent.
    pub sent_ns: u64,
    /// When it was acknowledged.
    pub acknowledged_ns: u64,
}

/// A schedule.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Rows a second.
    pub rate: f64,
    /// How long.
    pub length: Duration,
    /// The number of the first row.
    pub first: u64,
}

impl Schedule {
    /// How many rows that is, at least one.
    pub fn rows(&self) -> u64 {
        ((self.length.as_secs_f64() * self.rate) as u64).max(1)
    }
}

/// Before a row is due the thread is awake for this long, so that its own wake-up is no part of the figures; asleep otherwise, as
/// the threads that are measured may share its processor.
const AWAKE: Duration = Duration::from_micros(150);

/// Sends the rows of a schedule, one after the other.
///
/// # Errors
/// The first that the sink gave.
pub fn drive(schedule: &Schedule, sink: &mut dyn Sink) -> anyhow::Result<Vec<Sent>> {
    let start_ns = now_ns() + 5_000_000;
    let mut all = Vec::with_capacity(schedule.rows() as usize);
    for row in 0..schedule.rows() {
        let due_ns = start_ns + (row as f64 * 1e9 / schedule.rate) as u64;
        let number = schedule.first + row;
        wait_until(due_ns, AWAKE);
        let sent_ns = now_ns();
        sink.send(number, due_ns).with_context(|| format!("sending row {number}"))?;
        all.push(Sent { number, due_ns, sent_ns, acknowledged_ns: now_ns() });
    }
    Ok(all)
}

/// Waits for a moment, asleep at first and awake at the end.
pub fn wait_until(due_ns: u64, awake: Duration) {
    let asleep = due_ns.saturating_sub(now_ns()).saturating_sub(awake.as_nanos() as u64);
    if asleep > 0 {
        std::thread::sleep(Duration::from_nanos(asleep));
    }
    while now_ns() < due_ns {
        std::hint::spin_loop();
    }
}

/// Nanoseconds of the system's monotonic clock: what `time.monotonic_ns()` says in Python.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Pins this thread to a processor.
///
/// # Errors
/// There is no such processor for this process.
pub fn pin_to(cpu: usize) -> anyhow::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("pinning to processor {cpu}"))
}

/// Keeps this thread, and those that it will start, off the first processors.
///
/// # Errors
/// There are no others.
pub fn keep_off(first: usize) -> anyhow::Result<()> {
    let mut mine = rustix::thread::sched_getaffinity(None).context("asking for this thread's processors")?;
    (0..first).for_each(|cpu| mine.unset(cpu));
    rustix::thread::sched_setaffinity(None, &mine).with_context(|| format!("staying off the first {first} processors"))
}

/// Keeps this thread, and what it will start, on the first processors.
///
/// # Errors
/// There are not so many.
pub fn keep_on(first: usize) -> anyhow::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    (0..first).for_each(|cpu| set.set(cpu));
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("staying on the first {first} processors"))
}

/// Asks until the answer is there, at most `within`.
///
/// # Errors
/// It never was, or what the question failed with.
pub fn until<T>(what: &str, within: Duration, mut ask: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        anyhow::ensure!(Instant::now() < end, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stalls once.
    struct Stalls;

    impl Sink for Stalls {
        fn send(&mut self, number: u64, _due_ns: u64) -> anyhow::Result<()> {
            if number == 10 {
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        }
    }

    #[test]
    fn a_stall_delays_the_rows_behind_it_and_moves_no_due_time() {
        let schedule = Schedule { rate: 1000.0, length: Duration::from_millis(40), first: 7 };
        let sent = drive(&schedule, &mut Stalls).unwrap();
        assert_eq!(sent.len(), 40);
        let due: Vec<u64> = sent.iter().map(|row| row.due_ns - sent[0].due_ns).collect();
        assert!(due.iter().enumerate().all(|(at, due)| due.abs_diff(at as u64 * 1_000_000) < 1000), "{due:?}");
        assert!(sent.iter().all(|row| row.due_ns <= row.sent_ns && row.sent_ns <= row.acknowledged_ns));
        let stalled = sent.iter().find(|row| row.number == 10).unwrap();
        let next = sent.iter().find(|row| row.number == 11).unwrap();
        assert!(stalled.acknowledged_ns - stalled.sent_ns >= 50_000_000);
        assert!(next.sent_ns - next.due_ns >= 40_000_000, "the next one was due during the stall");
    }
}
