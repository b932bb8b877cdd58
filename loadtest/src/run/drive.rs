//! One slice: all streams of a scenario at the same time, on threads of their own.
//!
//! Mechanism:
//! 1. A stream's requests have numbers and, from its [`Pace`], moments. Its connections take the numbers in order, each the next one
//!    as soon as it is free; it renders the request, waits for the moment, sends, waits for the answer.
//! 2. A connection that waits for a slow answer therefore holds up no other; only when all of them wait do requests leave late. How
//!    late is part of the response time, which runs from the moment that was fixed before.
//! 3. A stream without a pace is a closed loop: a request is due when the connection is free, and a refused one is sent again.
//! 4. What is still unsent when the slice has taken twice as long as planned is not sent any more. It is listed with the time that it
//!    has waited, so that a server that cannot keep up does not look better the less it takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::pace::Pace;
use crate::hiccup::sharpen_timers;
use crate::open_loop::{now_ns, wait_until};

/// So many failures of one connection in a row end the run.
const FAILURES_MAX: u32 = 20;
/// Longest pause that a refusing server is granted.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Shortest.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// From the decision to begin to the first moment.
const LEAD: Duration = Duration::from_millis(20);

/// One connection of a stream.
pub trait Client: Send {
    /// Makes request `number`, which is due at `due_ns` of the monotonic clock; how many rows it has.
    fn prepare(&mut self, number: u64, due_ns: u64) -> u32;

    /// Sends what was prepared and waits for the answer.
    ///
    /// # Errors
    /// The connection does not work.
    fn send(&mut self) -> anyhow::Result<Answer>;
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// A plugin answered it, which had been entered then (monotonic clock).
    Entered(u64),
    /// The server has no room and wants to be left alone for so long.
    Busy(Duration),
    /// The server would not.
    Refused(String),
}

/// Why a request has no latency, if it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was done.
    Done,
    /// No room.
    Busy,
    /// An error.
    Failed,
    /// It was too late to send it.
    Unsent,
}

/// One request's moments, nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was meant to be sent.
    pub due_ns: u64,
    /// When it was.
    pub sent_ns: u64,
    /// When it was answered.
    pub done_ns: u64,
    /// When the plugin was entered that answered it.
    pub entered_ns: Option<u64>,
    /// Rows in it.
    pub rows: u32,
    /// What became of it.
    pub fate: Fate,
}

/// A stream, ready to go.
pub struct Lane {
    /// When its requests are due; `None` for a closed loop.
    pub pace: Option<Pace>,
    /// Its connections.
    pub clients: Vec<Box<dyn Client>>,
}

/// What a stream did in a slice.
#[derive(Debug, Default)]
pub struct Sent {
    /// All requests, warm-up included, in no order.
    pub samples: Vec<Sample>,
    /// What the first error said.
    pub first_error: Option<String>,
}

/// When a slice began and what of it counts.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Its first moment.
    pub start_ns: u64,
    /// The first that is measured.
    pub warm_ns: u64,
    /// The end.
    pub end_ns: u64,
}

impl Window {
    fn new(warm_up: Duration, length: Duration) -> Self {
        let start_ns = now_ns() + LEAD.as_nanos() as u64;
        let warm_ns = start_ns + warm_up.as_nanos() as u64;
        Self { start_ns, warm_ns, end_ns: warm_ns + length.as_nanos() as u64 }
    }

    /// Whether a request that was due then counts.
    pub fn counts(&self, due_ns: u64) -> bool {
        (self.warm_ns..self.end_ns).contains(&due_ns)
    }

    fn give_up_ns(&self) -> u64 {
        const GRACE_NS: u64 = 1_000_000_000;
        self.end_ns + (self.end_ns - self.start_ns).max(GRACE_NS)
    }
}

/// Runs a slice. `tell` is called now and then from this thread.
///
/// # Errors
/// A connection that fails again and again.
pub fn slice(
    lanes: Vec<Lane>,
    warm_up: Duration,
    length: Duration,
    tell: &mut dyn FnMut(),
) -> anyhow::Result<(Window, Vec<Sent>)> {
    let window = Window::new(warm_up, length);
    let tickets: Vec<AtomicU64> = lanes.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (Lane { pace, clients }, tickets) in lanes.into_iter().zip(&tickets) {
            let spawn = |client| scope.spawn(move || Driver { pace, tickets, window, client }.run());
            threads.push(clients.into_iter().map(spawn).collect::<Vec<_>>());
        }
        // A slice may have no threads: a schedule needs none.
        while now_ns() < window.end_ns || !threads.iter().flatten().all(|thread| thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
            tell();
        }
        let mut all = Vec::new();
        for lane in threads {
            let mut sent = Sent::default();
            for thread in lane {
                let one = thread.join().map_err(|_| anyhow::anyhow!("a sending thread panicked"))??;
                sent.samples.extend(one.samples);
                sent.first_error = sent.first_error.or(one.first_error);
            }
            all.push(sent);
        }
        Ok((window, all))
    })
}

/// One connection at work.
struct Driver<'a> {
    pace: Option<Pace>,
    tickets: &'a AtomicU64,
    window: Window,
    client: Box<dyn Client>,
}

impl Driver<'_> {
    fn run(mut self) -> anyhow::Result<Sent> {
        sharpen_timers();
        let mut sent = Sent::default();
        let mut failures = 0;
        while let Some((number, due_ns)) = self.next() {
            let rows = self.client.prepare(number, due_ns);
            if now_ns() > self.window.give_up_ns() {
                let now_ns = now_ns();
                let sample =
                    Sample { due_ns, sent_ns: now_ns, done_ns: now_ns, entered_ns: None, rows, fate: Fate::Unsent };
                sent.samples.push(sample);
                continue;
            }
            let (sample, error) = self.exchange(due_ns, rows);
            failures = if sample.fate == Fate::Failed { failures + 1 } else { 0 };
            sent.samples.push(sample);
            if let Some(error) = error {
                ensure!(failures < FAILURES_MAX, "{FAILURES_MAX} requests in a row failed, the last one with: {error}");
                sent.first_error.get_or_insert(error);
            }
        }
        Ok(sent)
    }

    /// The next request's number and moment; waits for a closed loop's first one only.
    fn next(&self) -> Option<(u64, u64)> {
        let number = self.tickets.fetch_add(1, Ordering::Relaxed);
        match &self.pace {
            Some(pace) => Some((number, self.window.start_ns + pace.due(number)?.as_nanos() as u64)),
            None => {
                wait_until(self.window.start_ns, Duration::ZERO);
                let now_ns = now_ns();
                (now_ns < self.window.end_ns).then_some((number, now_ns))
            }
        }
    }

    fn exchange(&mut self, due_ns: u64, rows: u32) -> (Sample, Option<String>) {
        if let Some(pace) = &self.pace {
            wait_until(due_ns, pace.awake());
        }
        let sent_ns = now_ns();
        let mut entered_ns = None;
        let (fate, error) = loop {
            match self.client.send() {
                Ok(Answer::Done) => break (Fate::Done, None),
                Ok(Answer::Entered(at_ns)) => {
                    entered_ns = Some(at_ns);
                    break (Fate::Done, None);
                }
                Ok(Answer::Busy(pause)) => {
                    if self.pace.is_some() || now_ns() > self.window.end_ns {
                        break (Fate::Busy, None);
                    }
                    std::thread::sleep(pause.clamp(PAUSE_MIN, PAUSE_MAX));
                }
                Ok(Answer::Refused(text)) => break (Fate::Failed, Some(text)),
                Err(error) => break (Fate::Failed, Some(format!("{error:#}"))),
            }
        };
        (Sample { due_ns, sent_ns, done_ns: now_ns(), entered_ns, rows, fate }, error)
    }
}

/// Connections for a stream, made one after the other.
///
/// # Errors
/// What the first that cannot be made says.
pub fn connections(
    count: usize,
    mut open: impl FnMut(usize) -> anyhow::Result<Box<dyn Client>>,
) -> anyhow::Result<Vec<Box<dyn Client>>> {
    (0..count).map(|index| open(index).with_context(|| format!("opening connection {index}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Connection, Target};
    use std::io::{Read, Write};
    use std::net::TcpListener;

    struct Posts(Connection);

    impl Client for Posts {
        fn prepare(&mut self, _number: u64, _due_ns: u64) -> u32 {
            1
        }

        fn send(&mut self) -> anyhow::Result<Answer> {
            let reply = self.0.post("/", b"x")?;
            Ok(match reply.status {
                204 => Answer::Done,
                503 => Answer::Busy(Duration::ZERO),
                _ => Answer::Refused(reply.text()),
            })
        }
    }

    /// A server that answers with what the function says of each request's number; it may sleep meanwhile.
    fn server(connections: usize, answer: fn(usize) -> &'static str) -> (Target, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target { authority: listener.local_addr().unwrap().to_string(), token: None };
        let thread = std::thread::spawn(move || {
            let count = std::sync::Arc::new(AtomicU64::new(0));
            let serve = |_| {
                let (mut stream, _) = listener.accept().unwrap();
                let count = std::sync::Arc::clone(&count);
                std::thread::spawn(move || {
                    let mut block = [0_u8; 4096];
                    while stream.read(&mut block).unwrap() > 0 {
                        let number = count.fetch_add(1, Ordering::Relaxed) as usize;
                        stream.write_all(format!("HTTP/1.1 {}\r\n\r\n", answer(number)).as_bytes()).unwrap();
                    }
                })
            };
            let threads: Vec<_> = (0..connections).map(serve).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        (target, thread)
    }

    fn drive(
        rate: Option<f64>,
        connections: usize,
        answer: fn(usize) -> &'static str,
    ) -> (Window, anyhow::Result<Sent>) {
        let (target, thread) = server(connections, answer);
        let open = |_| Ok(Box::new(Posts(Connection::open(&target)?)) as Box<dyn Client>);
        let clients = super::connections(connections, open).unwrap();
        let (warm_up, length) = (Duration::from_millis(100), Duration::from_millis(600));
        let pace = rate.map(|rate| Pace { from: rate, to: rate, warm_up, length });
        let result = slice(vec![Lane { pace, clients }], warm_up, length, &mut || {});
        thread.join().unwrap();
        match result {
            Ok((window, mut sent)) => (window, Ok(sent.remove(0))),
            Err(error) => (Window::new(warm_up, length), Err(error)),
        }
    }

    fn stall(number: usize) -> &'static str {
        if number == 20 {
            std::thread::sleep(Duration::from_millis(200));
        }
        "204 No Content"
    }

    fn slow(sent: &Sent, of: fn(&Sample) -> u64) -> usize {
        sent.samples.iter().filter(|sample| of(sample) > 50_000_000).count()
    }

    /// Coordinated omission is what this tool exists to avoid: a server that stalls once must show in many response times, and in
    /// only one service time.
    #[test]
    fn one_stall_is_charged_to_every_request_that_was_due_during_it() {
        let (window, sent) = drive(Some(100.0), 1, stall);
        let sent = sent.unwrap();
        assert_eq!(sent.samples.len(), 70);
        assert_eq!(sent.samples.iter().filter(|sample| window.counts(sample.due_ns)).count(), 60);
        assert!(slow(&sent, |sample| sample.done_ns - sample.due_ns) >= 10);
        assert_eq!(slow(&sent, |sample| sample.done_ns - sample.sent_ns), 1);
    }

    #[test]
    fn a_stalled_connection_does_not_hold_up_the_others() {
        let (_, sent) = drive(Some(100.0), 4, stall);
        let sent = sent.unwrap();
        assert_eq!(sent.samples.len(), 70);
        assert!(slow(&sent, |sample| sample.done_ns - sample.due_ns) < 5, "only what was in the stalled connection");
    }

    #[test]
    fn a_server_that_cannot_keep_up_is_charged_for_what_was_never_sent() {
        let (_, sent) = drive(Some(1000.0), 1, |_| {
            std::thread::sleep(Duration::from_millis(20));
            "204 No Content"
        });
        let sent = sent.unwrap();
        assert_eq!(sent.samples.len(), 700, "nothing is forgotten");
        let unsent: Vec<_> = sent.samples.iter().filter(|sample| sample.fate == Fate::Unsent).collect();
        assert!(unsent.len() > 300, "{}", unsent.len());
        assert!(unsent.iter().all(|sample| sample.done_ns - sample.due_ns > 900_000_000), "at least what it waited");
    }

    #[test]
    fn a_closed_loop_sends_again_what_was_refused_for_want_of_room_and_an_open_one_counts_it() {
        let every_third = |number: usize| if number.is_multiple_of(3) { "503 Full" } else { "204 No Content" };
        let (_, closed) = drive(None, 2, every_third);
        let closed = closed.unwrap();
        let busy = |sent: &Sent| sent.samples.iter().filter(|sample| sample.fate == Fate::Busy).count();
        assert!(busy(&closed) <= 2 && closed.samples.len() > 20, "{} of {}", busy(&closed), closed.samples.len());
        let (_, open) = drive(Some(100.0), 2, every_third);
        assert_eq!(busy(&open.unwrap()), 24);
    }

    #[test]
    fn errors_are_counted_and_a_server_that_only_fails_ends_the_run() {
        let error = |number: usize| if number == 5 { "400 Bad\r\nContent-Length: 0" } else { "204 No Content" };
        let (_, sent) = drive(Some(100.0), 1, error);
        let sent = sent.unwrap();
        assert_eq!(sent.samples.iter().filter(|sample| sample.fate == Fate::Failed).count(), 1);
        let (_, sent) = drive(Some(100.0), 1, |_| "500 No\r\nContent-Length: 0");
        assert!(sent.unwrap_err().to_string().contains("20 requests in a row failed"));
    }
}
