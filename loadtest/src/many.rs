//! What thousands of triggers, tables and databases cost, and what a write notices of them.
//!
//! Mechanism:
//! 1. Four servers, each with one shard and a watched trigger in the inline lane: one has nothing else, one many triggers on tables
//!    of their own that are never written to, one many tables of a row each, one many databases with such a table each.
//! 2. They are made over one connection, one after the other; the first hundred and the last hundred are compared. The memory is that
//!    of the process, before and after.
//! 3. Each server is stopped in good order and started again: from the start of the process until it says that it is ready.
//! 4. Slices of single rows for the watched trigger, by turns on all servers, not waiting for the disk: how soon they are
//!    acknowledged, and how soon the trigger is entered.
//! 5. The same once more while one further trigger (table, database) is made and deleted all the time.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::json;

use crate::hiccup::{Meter, sharpen_timers};
use crate::http::{Connection, Reply};
use crate::innocent::{self, Innocent};
use crate::open_loop::{Schedule, drive, keep_off};
use crate::private::{self, Private};
use crate::progress::Progress;
use crate::report::{self, Goal, Percentiles, goals_table, json_line, new_histogram};
use crate::server;

const DATABASE: &str = "many";
/// Of so many the mean is taken, of the first and of the last.
const SOME: usize = 100;
/// Between two changes in the slices beside them.
const CHANGE_PAUSE: Duration = Duration::from_millis(10);
const TRIGGER_PATH: &str = "/api/v3/configure/processing_engine_trigger";

/// Options of `saltus-loadtest many`.
#[derive(Args, Clone, Serialize)]
#[group(skip)]
pub struct Options {
    #[command(flatten)]
    server: private::Options,
    /// Triggers and tables; of databases there are a tenth
    #[arg(short, long, default_value_t = 10_000)]
    count: usize,
    /// Rows a second for the watched trigger
    #[arg(short, long, default_value_t = 500.0)]
    rate: f64,
    /// Seconds of a slice
    #[arg(long, default_value_t = 2.0)]
    slice: f64,
    /// Slices of each server, with and without changes
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Append the line of JSON to this file instead of printing it
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// What there are many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Nothing,
    Triggers,
    Tables,
    Databases,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Nothing, Kind::Triggers, Kind::Tables, Kind::Databases];

    fn name(self) -> &'static str {
        match self {
            Kind::Nothing => "nothing",
            Kind::Triggers => "triggers",
            Kind::Tables => "tables",
            Kind::Databases => "databases",
        }
    }

    fn count(self, options: &Options) -> usize {
        match self {
            Kind::Nothing => 0,
            Kind::Triggers | Kind::Tables => options.count,
            Kind::Databases => options.count / 10,
        }
    }

    /// Makes one; where there is nothing, a trigger.
    fn make(self, connection: &mut Connection, name: &str) -> anyhow::Result<()> {
        let reply = match self {
            Kind::Nothing | Kind::Triggers => {
                let trigger = json!({
                    "db": DATABASE, "plugin_filename": innocent::FILE, "trigger_name": name,
                    "trigger_specification": format!("table:{name}"), "trigger_settings": {}, "disabled": false,
                });
                connection.post_json(TRIGGER_PATH, &trigger)?
            }
            Kind::Tables => write_durably(connection, DATABASE, name)?,
            Kind::Databases => {
                taken(&connection.post_json("/api/v3/configure/database", &json!({ "db": name }))?)?;
                write_durably(connection, name, "first")?
            }
        };
        taken(&reply)
    }

    /// Deletes what [`Kind::make`] made.
    fn delete(self, connection: &mut Connection, name: &str) -> anyhow::Result<()> {
        let path = match self {
            Kind::Nothing | Kind::Triggers => format!("{TRIGGER_PATH}?db={DATABASE}&trigger_name={name}&force=true"),
            Kind::Tables => format!("/api/v3/configure/table?db={DATABASE}&table={name}"),
            Kind::Databases => format!("/api/v3/configure/database?db={name}"),
        };
        taken(&connection.delete(&path)?)
    }
}

fn write_durably(connection: &mut Connection, database: &str, table: &str) -> anyhow::Result<Reply> {
    connection.post(&format!("/api/v3/write_lp?db={database}"), format!("{table} value=1i").as_bytes())
}

fn taken(reply: &Reply) -> anyhow::Result<()> {
    ensure!((200..300).contains(&reply.status), "the server answered {}: {}", reply.status, reply.text());
    Ok(())
}

/// What making many of a kind took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Made {
    count: usize,
    first_ms: f64,
    last_ms: f64,
    worst_ms: f64,
    /// Of the process, when all are there.
    megabytes: f64,
    /// What has come with them, for each.
    kilobytes_each: f64,
    restart_s: f64,
    /// Of the process after that.
    megabytes_restarted: f64,
}

/// A server with many of one kind, and what was measured on it.
struct Subject {
    kind: Kind,
    private: Private,
    innocent: Innocent,
    made: Made,
    quiet: Measured,
    changing: Measured,
}

/// Latencies of the watched trigger's rows.
struct Measured {
    acknowledged: Histogram<u64>,
    entered: Histogram<u64>,
}

impl Measured {
    fn new() -> Self {
        Measured { acknowledged: new_histogram(), entered: new_histogram() }
    }
}

/// What is said of a server.
#[derive(Serialize)]
struct Row {
    kind: Kind,
    made: Made,
    acknowledged: Percentiles,
    entered: Percentiles,
    /// While further ones come and go.
    acknowledged_changing: Percentiles,
    entered_changing: Percentiles,
}

#[derive(Serialize)]
struct Outcome {
    rows: Vec<Row>,
    goals: Vec<Goal>,
    hiccups: Percentiles,
}

/// Makes all of them, measures and prints.
///
/// # Errors
/// A server that does not start, or does not take something.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(
        options.count >= 10 * SOME,
        "--count is at least {}: the first and the last {SOME} are compared",
        10 * SOME
    );
    ensure!(options.rate > 0.0 && options.slice > 0.0, "rate and slice are above zero");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut progress = Progress::start(Duration::from_secs(60));
    let mut subjects = Vec::new();
    for kind in Kind::ALL {
        progress.show(|| format!("making {} {}", kind.count(options), kind.name()));
        subjects.push(Subject::make(options, kind).with_context(|| format!("many {}", kind.name()))?);
    }
    if cpus > 1 {
        // The shards have the first processor.
        keep_off(1)?;
    }
    sharpen_timers();
    let meter = Meter::start();
    for round in 0..options.rounds {
        for subject in &mut subjects {
            progress.show(|| format!("round {}: beside {}", round + 1, subject.kind.name()));
            subject.measure(options).with_context(|| format!("beside {}", subject.kind.name()))?;
        }
    }
    let hiccups = Percentiles::of("this machine's own hiccups", &meter.stop());
    drop(progress);
    let rows: Vec<Row> = subjects.into_iter().map(Subject::into_row).collect();
    let goals = goals(&rows);
    print!(
        "{}\n{}\n{}\n{}",
        render_made(&rows),
        render_measured(&rows),
        goals_table(&goals),
        report::table(std::slice::from_ref(&hiccups))
    );
    report::keep(&json_line("many", options, &Outcome { rows, goals, hiccups }), options.output.as_deref())
}

impl Subject {
    fn make(options: &Options, kind: Kind) -> anyhow::Result<Self> {
        let settings = ["--shards", "1", "--cpus", "0"];
        let mut private = Private::start(&options.server, &settings, &[(innocent::FILE, innocent::SOURCE)])?;
        server::ensure_database(&private.target, DATABASE)?;
        Innocent::create(&private, DATABASE, json!({"execution": "inline"}))?.samples(&private)?;
        let made = make_many(&mut private, kind, kind.count(options))?;
        let mut innocent = Innocent::open(&private, DATABASE)?;
        // What it has of its own from the first run on is not to be measured.
        let warm = Schedule { rate: options.rate, length: Duration::from_millis(500), first: 0 };
        drive(&warm, &mut innocent)?;
        innocent.samples(&private)?;
        Ok(Subject { kind, private, innocent, made, quiet: Measured::new(), changing: Measured::new() })
    }

    /// One slice in quiet, one with changes.
    fn measure(&mut self, options: &Options) -> anyhow::Result<()> {
        let Subject { kind, private, innocent, quiet, changing, .. } = self;
        slice(options, private, innocent, quiet)?;
        let mut connection = Connection::open(&private.target)?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| come_and_go(*kind, &mut connection, &stop));
            let measured = slice(options, private, innocent, changing);
            stop.store(true, Ordering::Relaxed);
            changes.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            measured
        })
    }

    fn into_row(self) -> Row {
        let Subject { kind, made, quiet, changing, .. } = self;
        let of =
            |what: &str, histogram: &Histogram<u64>| Percentiles::of(&format!("{what} {}", kind.name()), histogram);
        Row {
            kind,
            made,
            acknowledged: of("acknowledged, beside", &quiet.acknowledged),
            entered: of("entered, beside", &quiet.entered),
            acknowledged_changing: of("acknowledged, beside changing", &changing.acknowledged),
            entered_changing: of("entered, beside changing", &changing.entered),
        }
    }
}

fn make_many(private: &mut Private, kind: Kind, count: usize) -> anyhow::Result<Made> {
    let before = private.resident_bytes()?;
    let mut connection = Connection::open(&private.target)?;
    let mut each_ms = Vec::with_capacity(count);
    for number in 0..count {
        let start = Instant::now();
        kind.make(&mut connection, &format!("m{number:06}"))?;
        each_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let after = private.resident_bytes()?;
    drop(connection);
    let restart_s = private.restart()?.as_secs_f64();
    // An empty sum is -0.0.
    let mean = |some: &[f64]| some.iter().fold(0.0, |all, each| all + each) / some.len().max(1) as f64;
    Ok(Made {
        count,
        first_ms: mean(&each_ms[..SOME.min(count)]),
        last_ms: mean(&each_ms[count.saturating_sub(SOME)..]),
        worst_ms: each_ms.iter().copied().fold(0.0, f64::max),
        megabytes: after as f64 / 1e6,
        kilobytes_each: after.saturating_sub(before) as f64 / 1e3 / count.max(1) as f64,
        restart_s,
        megabytes_restarted: private.resident_bytes()? as f64 / 1e6,
    })
}

fn slice(options: &Options, private: &Private, innocent: &mut Innocent, into: &mut Measured) -> anyhow::Result<()> {
    let schedule = Schedule { rate: options.rate, length: Duration::from_secs_f64(options.slice), first: 0 };
    for row in drive(&schedule, innocent)? {
        into.acknowledged.saturating_record(row.acknowledged_ns.saturating_sub(row.due_ns).max(1));
    }
    into.entered.add(innocent.samples(private)?)?;
    Ok(())
}

/// Makes and deletes one until told to stop.
fn come_and_go(kind: Kind, connection: &mut Connection, stop: &AtomicBool) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        kind.make(connection, "guest")?;
        std::thread::sleep(CHANGE_PAUSE);
        kind.delete(connection, "guest")?;
        std::thread::sleep(CHANGE_PAUSE);
    }
    Ok(())
}

fn goals(rows: &[Row]) -> Vec<Goal> {
    let mut goals = Vec::new();
    let alone = rows.iter().find(|row| row.kind == Kind::Nothing);
    for row in rows.iter().filter(|row| row.kind != Kind::Nothing) {
        let Made { count, last_ms, megabytes, restart_s, .. } = row.made;
        let what = format!("{count} {}", row.kind.name());
        goals.push(Goal::below(&format!("{what}: memory of the server, MB"), megabytes, 500.0));
        goals.push(Goal::below(&format!("{what}: the last {SOME} made, ms each"), last_ms, 3.0));
        goals.push(Goal::below(&format!("{what}: ready after a restart, s"), restart_s, 2.0));
        if let Some(alone) = alone {
            let ratio = row.entered.p50_us / alone.entered.p50_us.max(f64::MIN_POSITIVE);
            goals.push(Goal::information(&format!("{what}: entry p50, times that beside nothing"), ratio));
        }
    }
    goals
}

fn render_made(rows: &[Row]) -> String {
    let mut text = format!(
        "| many      |  count | first {SOME}, ms each | last {SOME} | worst | KB each | MB in all | ready again, s | MB then |\n\
         |-----------|-------:|-------------------:|---------:|------:|--------:|----------:|---------------:|--------:|\n"
    );
    for Row { kind, made, .. } in rows {
        text += &format!(
            "| {:<9} | {:>6} | {:>18.2} | {:>8.2} | {:>5.1} | {:>7.1} | {:>9.1} | {:>14.2} | {:>7.1} |\n",
            kind.name(),
            made.count,
            made.first_ms,
            made.last_ms,
            made.worst_ms,
            made.kilobytes_each,
            made.megabytes,
            made.restart_s,
            made.megabytes_restarted
        );
    }
    text
}

fn render_measured(rows: &[Row]) -> String {
    let mut text = "| beside    | ack p50, us |     p99 | entry p50 |     p99 | ack p50, while some come and go |     p99 | entry p50 |     p99 |\n\
                    |-----------|------------:|--------:|----------:|--------:|--------------------------------:|--------:|----------:|--------:|\n"
        .to_owned();
    for row in rows {
        text += &format!(
            "| {:<9} | {:>11.1} | {:>7.1} | {:>9.1} | {:>7.1} | {:>31.1} | {:>7.1} | {:>9.1} | {:>7.1} |\n",
            row.kind.name(),
            row.acknowledged.p50_us,
            row.acknowledged.p99_us,
            row.entered.p50_us,
            row.entered.p99_us,
            row.acknowledged_changing.p50_us,
            row.acknowledged_changing.p99_us,
            row.entered_changing.p50_us,
            row.entered_changing.p99_us
        );
    }
    text
}
