//! Single rows at a fixed rate: what one write waits for its acknowledgement, and one event for its plugin.
//!
//! Mechanism:
//! 1. Every connection has its own thread and its own fixed schedule; the schedules are staggered evenly.
//! 2. A thread sleeps until its next intended moment, sends one row, waits for the reply.
//! 3. *Response time* runs from the intended moment, *service time* from the actual send. A server that stalls makes
//!    later requests leave late, and response time charges it for that; service time alone would not.
//! 4. After a warm-up, whose values are dropped, the figures are taken.
//! 5. Activation is the server's own histogram (`system.trigger_latency`), read before and after. It counts from the
//!    server's start, warm-up included; if the trigger had been active before, the report says how often.
//!
//! The exception to 2: with `--spin` the thread does not sleep but polls the clock, which removes the client's own
//! wake-up from the figures and costs a whole core.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::hiccup::{Meter, sharpen_timers};
use crate::http::{Connection, Target, encode};
use crate::progress::Progress;
use crate::report::{self, Percentiles, json_line, new_histogram, table};
use crate::server;

/// Options of `saltus-loadtest probe`.
#[derive(Args, Clone, Serialize)]
pub struct Options {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8181")]
    target: String,
    /// Database to write to; created if it does not exist
    #[arg(short, long, default_value = "loadtest")]
    database: String,
    /// Table of the generated rows
    #[arg(short, long, default_value = "probe")]
    table: String,
    /// Send the lines of this file of line protocol one by one, over and over, instead of generated rows
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Rows a second, over all connections
    #[arg(short, long, default_value_t = 500.0)]
    rate: f64,
    /// Seconds to measure
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
    /// Seconds to send before the measurement starts
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Connections, each on a thread of its own
    #[arg(short, long, default_value_t = 1)]
    connections: usize,
    /// Ask for an acknowledgement before the row is durable
    #[arg(long)]
    no_sync: bool,
    /// The trigger to report; all triggers of the database if not given
    #[arg(long)]
    trigger: Option<String>,
    /// Pin the sending threads to this processor
    #[arg(long)]
    cpu: Option<usize>,
    /// Poll the clock instead of sleeping until the next send
    #[arg(long)]
    spin: bool,
    /// Append the line of JSON to this file instead of printing it
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// What one run measured.
#[derive(Serialize)]
struct Outcome {
    sent: u64,
    errors: u64,
    first_error: Option<String>,
    latencies: Vec<Percentiles>,
    /// Activations that the server had counted before this run.
    activations_before: u64,
}

/// Runs the probe and prints what it found.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.rate > 0.0 && options.rate.is_finite(), "the rate must be above zero");
    ensure!(options.duration > 0.0 && options.warmup >= 0.0, "the duration must be above zero");
    ensure!(options.connections > 0, "at least one connection is needed");
    let target: Target = options.target.parse()?;
    server::ensure_database(&target, &options.database)?;
    let trigger = options.trigger.as_deref();
    let before = server::trigger_latency(&target, &options.database, trigger)?;

    let meter = Meter::start();
    let measured = send_all(options, &target);
    let hiccups = meter.stop();
    let measured = measured?;

    let after = server::trigger_latency(&target, &options.database, trigger)?;
    let outcome = summarize(measured, &hiccups, before, after.as_deref());
    let line = json_line("probe", options, &outcome);
    print!("{}", render(options, &outcome, after.is_some()));
    report::keep(&line, options.output.as_deref())?;
    ensure!(outcome.sent > outcome.errors, "no request succeeded");
    Ok(())
}

fn render(options: &Options, outcome: &Outcome, has_activation: bool) -> String {
    let mut text = format!(
        "{} rows at {:.0} rows/s over {} connection(s), {}\n\n{}",
        outcome.sent,
        options.rate,
        options.connections,
        if options.no_sync { "acknowledged when applied (no_sync)" } else { "acknowledged when durable" },
        table(&outcome.latencies)
    );
    if outcome.errors > 0 {
        let first = outcome.first_error.as_deref().unwrap_or("unknown");
        text += &format!("{} requests failed; the first: {first}\n", outcome.errors);
    }
    if !has_activation {
        text += "the server has no system.trigger_latency: no activation figures\n";
    }
    if outcome.activations_before > 0 {
        text += &format!("the server's figures include {} earlier activations\n", outcome.activations_before);
    }
    text + "\n"
}

/// What the sending threads bring home.
struct Measured {
    response: Histogram<u64>,
    service: Histogram<u64>,
    sent: u64,
    errors: u64,
    first_error: Option<String>,
}

fn summarize(
    measured: Measured,
    hiccups: &Histogram<u64>,
    before: Option<Vec<server::TriggerLatency>>,
    after: Option<&[server::TriggerLatency]>,
) -> Outcome {
    let activations = |rows: &[server::TriggerLatency]| {
        rows.iter().filter(|row| row.stage == "activation").map(|row| row.count).sum()
    };
    let mut latencies = vec![
        Percentiles::of("ack, from intended send", &measured.response),
        Percentiles::of("ack, from actual send", &measured.service),
    ];
    latencies.extend(after.unwrap_or_default().iter().map(|row| Percentiles {
        what: format!("{} {} {}", row.trigger_name, row.lane, row.stage),
        count: row.count,
        p50_us: row.p50_us,
        p90_us: row.p90_us,
        p99_us: row.p99_us,
        p999_us: row.p999_us,
        max_us: row.max_us,
    }));
    latencies.push(Percentiles::of("this machine's own hiccups", hiccups));
    Outcome {
        sent: measured.sent,
        errors: measured.errors,
        first_error: measured.first_error,
        latencies,
        activations_before: before.as_deref().map_or(0, activations),
    }
}

fn send_all(options: &Options, target: &Target) -> anyhow::Result<Measured> {
    let lines = match &options.file {
        Some(path) => read_lines(path)?,
        None => Vec::new(),
    };
    let start = Instant::now() + Duration::from_millis(20);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.connections)
            .map(|index| {
                let lines = &lines;
                scope.spawn(move || Sender::new(options, target, lines, index)?.run(start))
            })
            .collect();
        let mut progress = Progress::start(Duration::from_secs_f64(options.warmup + options.duration));
        while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(50));
            progress.show(|| format!("probing at {:.0} rows/s", options.rate));
        }
        drop(progress);
        let mut all =
            Measured { response: new_histogram(), service: new_histogram(), sent: 0, errors: 0, first_error: None };
        for thread in threads {
            let one = thread.join().map_err(|_| anyhow::anyhow!("a sending thread panicked"))??;
            all.response.add(&one.response)?;
            all.service.add(&one.service)?;
            all.sent += one.sent;
            all.errors += one.errors;
            all.first_error = all.first_error.or(one.first_error);
        }
        Ok(all)
    })
}

/// The data lines of a file; comments and blank lines carry nothing and are left out.
fn read_lines(path: &std::path::Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let data = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let lines: Vec<String> = data.map(str::to_owned).collect();
    ensure!(!lines.is_empty(), "{} holds no line protocol", path.display());
    Ok(lines)
}

/// One thread with one connection and one schedule.
struct Sender<'a> {
    options: &'a Options,
    connection: Connection,
    path: String,
    lines: &'a [String],
    index: usize,
    /// Between two sends of this connection.
    interval: Duration,
}

impl<'a> Sender<'a> {
    fn new(options: &'a Options, target: &Target, lines: &'a [String], index: usize) -> anyhow::Result<Self> {
        sharpen_timers();
        if let Some(cpu) = options.cpu {
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu);
            rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("pinning to processor {cpu}"))?;
        }
        Ok(Self {
            options,
            connection: Connection::open(target)?,
            path: format!("/api/v3/write_lp?db={}&precision=ns&no_sync={}", encode(&options.database), options.no_sync),
            lines,
            index,
            interval: Duration::from_secs_f64(options.connections as f64 / options.rate),
        })
    }

    fn run(mut self, start: Instant) -> anyhow::Result<Measured> {
        let mut measured =
            Measured { response: new_histogram(), service: new_histogram(), sent: 0, errors: 0, first_error: None };
        let offset = self.interval.mul_f64(self.index as f64 / self.options.connections as f64);
        let warm = start + Duration::from_secs_f64(self.options.warmup);
        let end = warm + Duration::from_secs_f64(self.options.duration);
        let mut number = 0_u32;
        loop {
            let intended = start + offset + self.interval * number;
            if intended >= end {
                return Ok(measured);
            }
            let row = self.row(number);
            self.wait_until(intended);
            let sent = Instant::now();
            let reply = self.connection.post(&self.path, row.as_bytes())?;
            let done = Instant::now();
            number += 1;
            if intended < warm {
                continue;
            }
            measured.sent += 1;
            if (200..300).contains(&reply.status) {
                measured.response.saturating_record((done - intended).as_nanos() as u64);
                measured.service.saturating_record((done - sent).as_nanos() as u64);
            } else {
                measured.errors += 1;
                measured.first_error.get_or_insert_with(|| format!("{}: {}", reply.status, reply.text()));
            }
        }
    }

    /// A line of the file, or a generated row without a timestamp: the server's clock gives it one.
    fn row(&self, number: u32) -> String {
        let global = number as usize * self.options.connections + self.index;
        match self.lines {
            [] => format!("{},connection={} value={}i", self.options.table, self.index, global),
            lines => lines[global % lines.len()].clone(),
        }
    }

    fn wait_until(&self, intended: Instant) {
        while let Some(left) = intended.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if self.options.spin {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// Coordinated omission is what this tool exists to avoid: a server that stalls once must show in many
    /// response times and in only one service time.
    #[test]
    fn one_stall_of_the_server_is_charged_to_every_request_that_it_delayed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target { authority: listener.local_addr().unwrap().to_string(), token: None };
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut block = [0_u8; 4096];
            let mut count = 0;
            while stream.read(&mut block).unwrap() > 0 {
                count += 1;
                if count == 10 {
                    std::thread::sleep(Duration::from_millis(200));
                }
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            }
        });
        let options = options(&target);
        let measured = send_all(&options, &target).unwrap();
        server.join().unwrap();
        let slow = |histogram: &Histogram<u64>| histogram.count_between(50_000_000, 120_000_000_000);
        assert_eq!(measured.errors, 0);
        assert!(slow(&measured.response) >= 10, "{} slow responses", slow(&measured.response));
        assert!(slow(&measured.service) <= 5, "{} slow services", slow(&measured.service));
    }

    fn options(target: &Target) -> Options {
        Options {
            target: format!("http://{}", target.authority),
            database: "d".to_owned(),
            table: "t".to_owned(),
            file: None,
            rate: 100.0,
            duration: 0.6,
            warmup: 0.0,
            connections: 1,
            no_sync: true,
            trigger: None,
            cpu: None,
            spin: false,
            output: None,
        }
    }
}
