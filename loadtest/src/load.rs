//! TSBS cpu-only rows as fast as the server takes them.
//!
//! Mechanism: each connection has a thread and a range of hosts; it sends a body, waits for the answer, sends the
//! next. So this is a closed loop: it measures throughput, and its latencies are service times under full load, not
//! what a client at a fixed rate would see (that is `probe`). The clock starts after all bodies are rendered. A 503
//! is back-pressure, not an error: the body is sent again after `Retry-After`, and the pauses are counted.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{bail, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::hiccup::Meter;
use crate::http::{Connection, Target, encode};
use crate::progress::Progress;
use crate::report::{self, Percentiles, json_line, new_histogram, table};
use crate::server;
use crate::tsbs::{Dataset, Form, Source};

/// Options of `saltus-loadtest load`.
#[derive(Args, Clone, Serialize)]
pub struct Options {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8181")]
    target: String,
    /// Database to write to; created if it does not exist
    #[arg(short, long, default_value = "loadtest")]
    database: String,
    /// Rows in one request
    #[arg(long, default_value_t = 5000)]
    rows_per_body: usize,
    /// Hosts, that is series
    #[arg(long, default_value_t = 4000)]
    scale: usize,
    /// Connections, each on a thread of its own
    #[arg(short, long, default_value_t = 2)]
    connections: usize,
    /// Seconds to send
    #[arg(long, default_value_t = 30.0)]
    duration: f64,
    /// Ask for an acknowledgement before the rows are durable
    #[arg(long)]
    no_sync: bool,
    /// Append the line of JSON to this file instead of printing it
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// What one run measured.
#[derive(Serialize)]
struct Outcome {
    rows: u64,
    bytes: u64,
    seconds: f64,
    rows_per_s: f64,
    megabytes_per_s: f64,
    /// Processor time of the server, all threads; none of a server that does not say.
    cpu_us_per_row: Option<f64>,
    /// 503 answers, each followed by another try.
    pauses: u64,
    latencies: Vec<Percentiles>,
}

/// Counters that all connections add to and the progress line reads.
#[derive(Default)]
struct Totals {
    rows: AtomicU64,
    bytes: AtomicU64,
    pauses: AtomicU64,
}

/// Sends for the given time and prints what was reached.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.rows_per_body > 0, "a body needs at least one row");
    ensure!(options.duration > 0.0, "the duration must be above zero");
    ensure!(
        (1..=options.scale).contains(&options.connections),
        "every connection needs a host: --connections must be between 1 and --scale"
    );
    let target: Target = options.target.parse()?;
    server::ensure_database(&target, &options.database)?;
    let sources = render(options);

    let totals = Totals::default();
    let meter = Meter::start();
    let used_before = server::cpu_seconds(&target)?;
    let start = Instant::now();
    let acks = send_all(options, &target, sources, &totals, start);
    let seconds = start.elapsed().as_secs_f64();
    let hiccups = meter.stop();
    let acks = acks?;
    let used = server::cpu_seconds(&target)?.zip(used_before).map(|(after, before)| after - before);

    let outcome = summarize(&totals, seconds, used, &acks, &hiccups);
    let line = json_line("load", options, &outcome);
    println!(
        "{} rows of TSBS cpu-only in {seconds:.1} s over {} connection(s), {} rows a body, {}\n\n\
         {:.0} rows/s, {:.1} MB/s, {} of the server's CPU a row, {} pauses asked for by the server\n\n{}",
        outcome.rows,
        options.connections,
        options.rows_per_body,
        if options.no_sync { "acknowledged when applied (no_sync)" } else { "acknowledged when durable" },
        outcome.rows_per_s,
        outcome.megabytes_per_s,
        outcome.cpu_us_per_row.map_or_else(|| "an unknown time".to_owned(), |us| format!("{us:.2} us")),
        outcome.pauses,
        table(&outcome.latencies)
    );
    report::keep(&line, options.output.as_deref())?;
    Ok(())
}

/// Renders the bodies of all connections. The first timestamp is the present, so that two runs do not overwrite.
fn render(options: &Options) -> Vec<Source> {
    let start_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let bound = |index: usize| options.scale * index / options.connections;
    let sources: Vec<Source> = (0..options.connections)
        .map(|index| {
            Source::new(Dataset::Cpu, Form::Lines, bound(index)..bound(index + 1), options.rows_per_body, start_ns)
        })
        .collect();
    let bytes: usize = sources.iter().map(Source::bytes).sum();
    eprintln!("rendered {:.1} MB of bodies", bytes as f64 / 1e6);
    sources
}

fn send_all(
    options: &Options,
    target: &Target,
    sources: Vec<Source>,
    totals: &Totals,
    start: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let length = Duration::from_secs_f64(options.duration);
    std::thread::scope(|scope| {
        let threads: Vec<_> = sources
            .into_iter()
            .map(|source| scope.spawn(move || send(options, target, source, totals, start + length)))
            .collect();
        let mut progress = Progress::start(length);
        while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(50));
            progress.show(|| {
                let rows = totals.rows.load(Ordering::Relaxed) as f64;
                format!("{:.0} rows/s", rows / start.elapsed().as_secs_f64())
            });
        }
        drop(progress);
        let mut acks = new_histogram();
        for thread in threads {
            acks.add(&thread.join().map_err(|_| anyhow::anyhow!("a sending thread panicked"))??)?;
        }
        Ok(acks)
    })
}

/// One connection until the end.
fn send(
    options: &Options,
    target: &Target,
    mut source: Source,
    totals: &Totals,
    end: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let path = format!("/api/v3/write_lp?db={}&precision=ns&no_sync={}", encode(&options.database), options.no_sync);
    let mut connection = Connection::open(target)?;
    let mut acks = new_histogram();
    while Instant::now() < end {
        let body = source.next_body();
        loop {
            let sent = Instant::now();
            let reply = connection.post(&path, &body.text)?;
            match reply.status {
                200..=299 => {
                    acks.saturating_record(sent.elapsed().as_nanos() as u64);
                    totals.rows.fetch_add(body.rows as u64, Ordering::Relaxed);
                    totals.bytes.fetch_add(body.text.len() as u64, Ordering::Relaxed);
                    break;
                }
                503 if Instant::now() < end => {
                    totals.pauses.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_secs(reply.retry_after_s.unwrap_or(0)).max(PAUSE_MIN));
                }
                503 => break,
                status => bail!("the server answered {status}: {}", reply.text()),
            }
        }
    }
    Ok(acks)
}

/// Shortest pause after a 503.
const PAUSE_MIN: Duration = Duration::from_millis(5);

fn summarize(
    totals: &Totals,
    seconds: f64,
    used: Option<f64>,
    acks: &Histogram<u64>,
    hiccups: &Histogram<u64>,
) -> Outcome {
    let rows = totals.rows.load(Ordering::Relaxed);
    let bytes = totals.bytes.load(Ordering::Relaxed);
    Outcome {
        rows,
        bytes,
        seconds,
        rows_per_s: rows as f64 / seconds,
        megabytes_per_s: bytes as f64 / 1e6 / seconds,
        cpu_us_per_row: used.filter(|_| rows > 0).map(|used| used * 1e6 / rows as f64),
        pauses: totals.pauses.load(Ordering::Relaxed),
        latencies: vec![
            Percentiles::of("body acknowledged", acks),
            Percentiles::of("this machine's own hiccups", hiccups),
        ],
    }
}
