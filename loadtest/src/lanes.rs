//! How soon a plugin is entered, in each lane, and beside PostgreSQL: one run, one table.
//!
//! Mechanism:
//! 1. A *case* is a lane and a kind of acknowledgement, durable or not; with `--postgres`, PL/Python in a row trigger is two more.
//! 2. All cases get the same open loop of single rows ([`crate::open_loop`]), by turns: a slice of the first, of the second, ..., and
//!    all of that several times over, beginning with another case each time. So a machine that is slow for a while is slow for all.
//! 3. A row carries the moment at which it was due; the plugin takes the time as its first act and says the difference. It is the
//!    same measure, by the same clock, in Saltus and in PostgreSQL. Saltus' own histogram is printed beside it.
//! 4. The hiccup meter runs along, and its figures are kept by case.
//! 5. The floor ([`crate::floor`]) is more cases: what no server on this machine can be below, asleep and polling, without the drive
//!    and with it.
//! 6. At the end other servers have the inline cases once more, one after the other: one whose shard does not sleep (`--busy-poll all`,
//!    which would keep its processor from all others before), and one of two shards, where the shard that has the connection is not
//!    the one that has the table: asleep; and polling both of them, or, where there are two processors, the one that has the table, as
//!    the other one shares its processor with the client.
//!
//! What it is not: fair to PostgreSQL's strengths. It enters a row trigger within the transaction, before anything is durable, and
//! lets it change the row; Saltus enters after the write is durable, if the writer asked for that.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::json;

use crate::floor::{Disk, Floor, NOTES_WITHIN, Waiting};
use crate::hiccup::{Meter, sharpen_timers};
use crate::http::{Connection, Target, encode};
use crate::open_loop::{Schedule, Sent, Sink, drive, now_ns, pin_to, until};
use crate::postgres::Session;
use crate::private::{self, NewTrigger, Private, rows};
use crate::progress::Progress;
use crate::report::{self, Goal, Percentiles, goals_table, json_line, new_histogram};
use crate::server;

/// The database of all cases.
const DATABASE: &str = "lanes";
/// The plugin of all cases.
const ENTRY: &str = include_str!("../plugins/entry.py");
/// The lane of a shard that does not sleep.
const POLLING: &str = "inline, polling";
/// Of a slice, what is not measured.
const WARM_UP: f64 = 0.15;

/// Options of `saltus-loadtest lanes`.
#[derive(Args, Clone, Serialize)]
#[group(skip)]
pub struct Options {
    #[command(flatten)]
    server: private::Options,
    /// A PostgreSQL with PL/Python, HOST:PORT, that trusts its users; `.ci/postgres` starts one
    #[arg(long)]
    postgres: Option<String>,
    /// Its user and database
    #[arg(long, default_value = "postgres")]
    postgres_user: String,
    /// Rows a second
    #[arg(short, long, default_value_t = 500.0)]
    rate: f64,
    /// Seconds of each slice
    #[arg(long, default_value_t = 2.0)]
    slice: f64,
    /// Slices of each case
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// The client's processor; the second one if there are two, the first being the shard's
    #[arg(long)]
    cpu: Option<usize>,
    /// Append the line of JSON to this file instead of printing it
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// A system that is sent rows and knows when they entered a plugin.
trait Measured: Sink {
    /// Nanoseconds from due to entry of the rows from `first` on, of which there are `count`.
    fn entries(&mut self, first: u64, count: u64) -> anyhow::Result<HashMap<u64, u64>>;
}

/// A lane of Saltus.
struct Lane {
    connection: Connection,
    target: Target,
    path: String,
    name: String,
}

impl Lane {
    fn open(private: &Private, lane: &str, no_sync: bool) -> anyhow::Result<Self> {
        let name = format!("{lane}_{}", if no_sync { "no_sync" } else { "durable" });
        Self::open_as(private, lane, no_sync, name)
    }

    /// An inline lane, without sync, over a connection of the second shard to a table of the first.
    fn open_across(private: &Private) -> anyhow::Result<Self> {
        /// Each shard has half of the tables, and of the connections.
        const TRIES: u64 = 60;
        // A new connection goes to the shard that has fewer: these are kept until one fits.
        let mut others = Vec::new();
        for number in 0..TRIES {
            let mut lane = Self::open_as(private, "inline", true, format!("across_{number}"))?;
            lane.send(0, now_ns())?;
            let before = forwarded(&private.target)?;
            lane.send(0, now_ns())?;
            if forwarded(&private.target)? > before {
                return Ok(lane);
            }
            others.push(lane);
        }
        bail!("of {TRIES} tables none is the first shard's while the second one has the connection")
    }

    fn open_as(private: &Private, lane: &str, no_sync: bool, name: String) -> anyhow::Result<Self> {
        let settings = match lane {
            "process" => json!({"isolation": "process"}),
            lane => json!({"execution": lane}),
        };
        let trigger = NewTrigger {
            name: &name,
            file: "entry.py",
            spec: &format!("table:{name}"),
            settings,
            arguments: serde_json::Value::Null,
        };
        private.create_trigger(DATABASE, trigger)?;
        Ok(Self {
            connection: Connection::open(&private.target)?,
            target: private.target.clone(),
            path: format!("/api/v3/write_lp?db={}&precision=ns&no_sync={no_sync}", encode(DATABASE)),
            name,
        })
    }
}

/// Batches that the second shard has sent to the shards of their tables.
fn forwarded(target: &Target) -> anyhow::Result<f64> {
    let metrics = Connection::open(target)?.get("/metrics")?.text();
    let of_second = |line: &str| line.strip_prefix("saltus_shard_batches_forwarded_total{shard=\"1\"} ")?.parse().ok();
    metrics.lines().find_map(of_second).context("/metrics does not say what the second shard has forwarded")
}

impl Sink for Lane {
    fn send(&mut self, number: u64, due_ns: u64) -> anyhow::Result<()> {
        let line = format!("{} n={number}i,due={due_ns}i", self.name);
        let reply = self.connection.post(&self.path, line.as_bytes())?;
        ensure!((200..300).contains(&reply.status), "the server answered {}: {}", reply.status, reply.text());
        Ok(())
    }
}

impl Measured for Lane {
    fn entries(&mut self, first: u64, count: u64) -> anyhow::Result<HashMap<u64, u64>> {
        let name = &self.name;
        let sql = format!(
            "SELECT log_text FROM system.processing_engine_logs WHERE trigger_name = '{name}' AND log_level = 'INFO'"
        );
        until(&format!("{count} entries of {name}"), Duration::from_secs(20), || {
            let logged = rows(&self.target, DATABASE, &sql)?;
            let entry = |row: &serde_json::Value| {
                let (number, after) = row["log_text"].as_str()?.split_once(' ')?;
                Some((number.parse().ok()?, after.parse().ok()?))
            };
            let entries: HashMap<u64, u64> =
                logged.iter().filter_map(entry).filter(|(number, _)| *number >= first).collect();
            Ok((entries.len() as u64 >= count).then_some(entries))
        })
    }
}

/// PL/Python in a row trigger.
struct Postgres {
    session: Session,
}

impl Postgres {
    fn open(options: &Options, authority: &str, no_sync: bool) -> anyhow::Result<Self> {
        let user = &options.postgres_user;
        let mut session = Session::open(authority, user, user)?;
        let table = if no_sync { "probe_no_sync" } else { "probe_durable" };
        // As in the lanes: the time first, then a note of it. `MODIFY` is how a row trigger in PL/Python changes its row.
        session.query(&format!(
            "CREATE EXTENSION IF NOT EXISTS plpython3u;
             DROP TABLE IF EXISTS {table};
             CREATE TABLE {table} (n bigint, due bigint, entered bigint);
             CREATE OR REPLACE FUNCTION entered() RETURNS trigger LANGUAGE plpython3u AS $$
import time
TD['new']['entered'] = time.monotonic_ns()
return 'MODIFY'
$$;
             CREATE TRIGGER entered BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION entered();
             SET synchronous_commit = {}",
            if no_sync { "off" } else { "on" }
        ))?;
        session.prepare(&format!("INSERT INTO {table} (n, due) VALUES ($1, $2)"))?;
        Ok(Self { session })
    }
}

impl Sink for Postgres {
    fn send(&mut self, number: u64, due_ns: u64) -> anyhow::Result<()> {
        self.session.execute(&[number as i64, due_ns as i64])
    }
}

/// The tables of both sessions are known by their numbers.
impl Measured for Postgres {
    fn entries(&mut self, first: u64, count: u64) -> anyhow::Result<HashMap<u64, u64>> {
        let select = |table: &str| format!("SELECT n, entered - due FROM {table} WHERE n >= {first}");
        let sql = format!("{} UNION ALL {}", select("probe_durable"), select("probe_no_sync"));
        let number = |cell: &Option<String>| cell.as_deref()?.parse().ok();
        let found = self.session.query(&sql)?;
        let entries: HashMap<u64, u64> =
            found.iter().filter_map(|row| Some((number(row.first()?)?, number(row.get(1)?)?))).collect();
        ensure!(entries.len() as u64 >= count, "PostgreSQL has {} of {count} rows", entries.len());
        Ok(entries)
    }
}

impl Measured for Floor {
    fn entries(&mut self, first: u64, count: u64) -> anyhow::Result<HashMap<u64, u64>> {
        until(&format!("{count} rows at the floor"), NOTES_WITHIN, || {
            let entries = Floor::entries(self, first);
            Ok((entries.len() as u64 >= count).then_some(entries))
        })
    }
}

/// A case with what was measured of it.
struct Case {
    name: &'static str,
    no_sync: bool,
    /// The trigger whose own figures are printed beside, if there is one.
    trigger: Option<String>,
    system: Box<dyn Measured>,
    entry: Histogram<u64>,
    ack: Histogram<u64>,
    hiccups: Histogram<u64>,
}

impl Case {
    fn new(name: &'static str, no_sync: bool, system: impl Measured + 'static) -> Self {
        let (entry, ack, hiccups) = (new_histogram(), new_histogram(), new_histogram());
        Self { name, no_sync, trigger: None, system: Box::new(system), entry, ack, hiccups }
    }

    fn of_lane(name: &'static str, no_sync: bool, lane: Lane) -> Self {
        let trigger = Some(lane.name.clone());
        Self { trigger, ..Self::new(name, no_sync, lane) }
    }

    fn slice(&mut self, schedule: &Schedule) -> anyhow::Result<()> {
        let meter = Meter::start();
        let sent = drive(schedule, self.system.as_mut());
        self.hiccups.add(meter.stop())?;
        let sent = sent?;
        let entries = self.system.entries(schedule.first, sent.len() as u64)?;
        let cold = (sent.len() as f64 * WARM_UP) as usize;
        for Sent { number, due_ns, acknowledged_ns, .. } in &sent[cold..] {
            let entry = entries.get(number).with_context(|| format!("row {number} never entered"))?;
            self.entry.saturating_record((*entry).max(1));
            self.ack.saturating_record(acknowledged_ns - due_ns);
        }
        Ok(())
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    lane: String,
    /// Acknowledged before it is durable.
    no_sync: bool,
    /// From the moment at which a row was due to the first line of Python.
    entry: Percentiles,
    /// To the acknowledgement.
    ack: Percentiles,
    /// The server's own figure, from the last byte of the request; none for PostgreSQL.
    activation: Option<(f64, f64)>,
    /// The machine's own.
    hiccups: Percentiles,
}

/// What the run found.
#[derive(Serialize)]
struct Outcome {
    lanes: Vec<Figures>,
    goals: Vec<Goal>,
}

/// Runs all cases by turns and prints the table.
///
/// # Errors
/// A server that does not start, refuses a row, or does not run its plugin.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.rate > 0.0 && options.slice > 0.0 && options.rounds > 0, "rate, slice and rounds are above zero");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let private = start(options, cpus, &[])?;
    let mut cases = Vec::new();
    for lane in ["inline", "deferred", "process"] {
        for no_sync in [false, true] {
            cases.push(Case::of_lane(lane, no_sync, Lane::open(&private, lane, no_sync)?));
        }
    }
    let shard_cpu = (cpus > 1).then_some(0);
    for (name, waiting) in [("floor", Waiting::Asleep), ("floor, polling", Waiting::Polling)] {
        let disk = Disk::open(private.folder())?;
        cases.push(Case::new(name, false, Floor::open(waiting, shard_cpu, Some(disk))?));
        cases.push(Case::new(name, true, Floor::open(waiting, shard_cpu, None)?));
    }
    if let Some(authority) = &options.postgres {
        let both = [false, true].map(|no_sync| Postgres::open(options, authority, no_sync));
        for (no_sync, postgres) in [false, true].into_iter().zip(both) {
            cases.push(Case::new("postgres", no_sync, postgres?));
        }
    }
    sharpen_timers();
    measure(options, 1, &mut cases)?;
    let mut lanes = cases.iter().map(|case| figures(case, &private.target)).collect::<anyhow::Result<Vec<_>>>()?;
    drop((cases, private));
    if cpus > 1 {
        lanes.extend(measure_others(options, cpus)?);
    }
    let goals = goals(&lanes);
    print!("{}", render(options, &lanes));
    println!("\n{}", goals_table(&goals));
    report::keep(&json_line("lanes", options, &Outcome { lanes, goals }), options.output.as_deref())
}

/// A server whose shard has the first processor, if there is one to spare for the client.
fn start(options: &Options, cpus: usize, more: &[&str]) -> anyhow::Result<Private> {
    let pinned: &[&str] = if cpus > 1 { &["--shards", "1", "--cpus", "0"] } else { &["--shards", "1"] };
    Private::start(&options.server, &[pinned, more].concat(), &[("entry.py", ENTRY)])
}

/// The inline cases of servers that cannot be there while the others are measured.
fn measure_others(options: &Options, cpus: usize) -> anyhow::Result<Vec<Figures>> {
    let polling = start(options, cpus, &["--busy-poll", "all"])?;
    let mut cases = Vec::new();
    for no_sync in [false, true] {
        cases.push(Case::of_lane(POLLING, no_sync, Lane::open(&polling, "inline", no_sync)?));
    }
    // The drive while a processor never sleeps; the floor is on the client's, as the other one is taken.
    let disk = Disk::open(polling.folder())?;
    let usual = if cpus > 1 { Some(1) } else { None };
    cases.push(Case::new("floor beside it", false, Floor::open(Waiting::Asleep, options.cpu.or(usual), Some(disk))?));
    measure(options, 1, &mut cases)?;
    let mut all = cases.iter().map(|case| figures(case, &polling.target)).collect::<anyhow::Result<Vec<_>>>()?;
    drop((cases, polling));
    let pair = ["--shards", "2", "--cpus", "0,1"];
    all.push(measure_across(options, "across shards", &pair, cpus)?);
    let (name, which) = if cpus > 2 { ("across, polling", "all") } else { ("across, 1 polls", "0") };
    all.push(measure_across(options, name, &[&pair[..], &["--busy-poll", which]].concat(), cpus)?);
    Ok(all)
}

/// An inline lane of a table that another shard has than the connection. The client has a processor of its own if there is one.
fn measure_across(options: &Options, name: &'static str, serve: &[&str], cpus: usize) -> anyhow::Result<Figures> {
    let private = Private::start(&options.server, serve, &[("entry.py", ENTRY)])?;
    let mut cases = [Case::of_lane(name, true, Lane::open_across(&private)?)];
    measure(options, if cpus > 2 { 2 } else { 1 }, &mut cases)?;
    figures(&cases[0], &private.target)
}

/// All slices of all cases, on the client's processor: `usual`, if nothing else is said and there are several.
fn measure(options: &Options, usual: usize, cases: &mut [Case]) -> anyhow::Result<()> {
    let several = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    let Some(cpu) = options.cpu.or(several.then_some(usual)) else { return take_turns(options, cases) };
    // What is started later may run anywhere again.
    let before = rustix::thread::sched_getaffinity(None).context("asking for this thread's processors")?;
    pin_to(cpu)?;
    let measured = take_turns(options, cases);
    rustix::thread::sched_setaffinity(None, &before).context("leaving the client's processor")?;
    measured
}

fn take_turns(options: &Options, cases: &mut [Case]) -> anyhow::Result<()> {
    let length = Duration::from_secs_f64(options.slice);
    let mut progress = Progress::start(length * (options.rounds * cases.len()) as u32);
    let mut first = 1;
    let count = cases.len();
    // One slice of each for the caches, the pools and the worker processes; not kept.
    for case in cases.iter_mut() {
        let schedule = Schedule { rate: options.rate, length: length.min(Duration::from_millis(500)), first };
        case.slice(&schedule).with_context(|| format!("warming up {}", case.name))?;
        first += schedule.rows();
        (case.entry, case.ack, case.hiccups) = (new_histogram(), new_histogram(), new_histogram());
    }
    for round in 0..options.rounds {
        for turn in 0..count {
            let case = &mut cases[(round + turn) % count];
            let schedule = Schedule { rate: options.rate, length, first };
            case.slice(&schedule).with_context(|| format!("measuring {}", case.name))?;
            first += schedule.rows();
            progress.show(|| format!("{} at {:.0} rows/s", case.name, options.rate));
        }
    }
    Ok(())
}

fn figures(case: &Case, target: &Target) -> anyhow::Result<Figures> {
    let own = match &case.trigger {
        Some(trigger) => server::trigger_latency(target, DATABASE, Some(trigger))?.unwrap_or_default(),
        None => Vec::new(),
    };
    let activation = own.iter().find(|row| row.stage == "activation").map(|row| (row.p50_us, row.p99_us));
    Ok(Figures {
        lane: case.name.to_owned(),
        no_sync: case.no_sync,
        entry: Percentiles::of("entry", &case.entry),
        ack: Percentiles::of("ack", &case.ack),
        activation,
        hiccups: Percentiles::of("hiccups", &case.hiccups),
    })
}

fn render(options: &Options, lanes: &[Figures]) -> String {
    let mut text = format!(
        "microseconds from the moment at which a row was due; {} slices of {} s of each case by turns, {:.0} rows/s\n\n\
         | lane            | write   | entry p50 |       p99 |   ack p50 |       p99 | own activation p50 |       p99 | hiccups p50 |       p99 |\n\
         |-----------------|---------|----------:|----------:|----------:|----------:|-------------------:|----------:|------------:|----------:|\n",
        options.rounds, options.slice, options.rate
    );
    for Figures { lane, no_sync, entry, ack, activation, hiccups } in lanes {
        let own = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.1}"));
        let _ = writeln!(
            text,
            "| {lane:<15} | {:<7} | {:>9.1} | {:>9.1} | {:>9.1} | {:>9.1} | {:>18} | {:>9} | {:>11.1} | {:>9.1} |",
            if *no_sync { "no_sync" } else { "durable" },
            entry.p50_us,
            entry.p99_us,
            ack.p50_us,
            ack.p99_us,
            own(activation.map(|(p50, _)| p50)),
            own(activation.map(|(_, p99)| p99)),
            hiccups.p50_us,
            hiccups.p99_us,
        );
    }
    if options.postgres.is_none() {
        text += "\nPostgreSQL was not measured: --postgres HOST:PORT, see .ci/postgres\n";
    }
    text
}

/// What the design promises of these figures, and whether it holds.
fn goals(lanes: &[Figures]) -> Vec<Goal> {
    let of = |lane: &str, no_sync: bool| lanes.iter().find(|row| row.lane == lane && row.no_sync == no_sync);
    let mut goals = Vec::new();
    for no_sync in [true, false] {
        let how = if no_sync { "no_sync" } else { "durable" };
        let Some(inline) = of("inline", no_sync) else { continue };
        if no_sync {
            let own = inline.activation.map_or(f64::NAN, |(p50, _)| p50);
            goals.push(Goal::below("inline activation p50, no_sync, us", own, 50.0));
            let beyond = inline.entry.p99_us - inline.hiccups.p99_us;
            goals.push(Goal::below("inline entry p99 beyond the hiccups', no_sync, us", beyond, 100.0));
        } else {
            let beyond = inline.entry.p50_us - inline.ack.p50_us;
            goals.push(Goal::below("inline entry p50 beyond the durable ack's, us", beyond, 50.0));
        }
        if let Some(deferred) = of("deferred", no_sync) {
            let beyond = deferred.entry.p50_us - inline.entry.p50_us;
            goals.push(Goal::below(&format!("deferred entry p50 beyond inline, {how}, us"), beyond, 100.0));
            if let Some(process) = of("process", no_sync) {
                let beyond = process.entry.p50_us - deferred.entry.p50_us;
                goals.push(Goal::below(&format!("process entry p50 beyond deferred, {how}, us"), beyond, 100.0));
            }
        }
        if let Some(postgres) = of("postgres", no_sync) {
            let times = postgres.entry.p50_us / inline.entry.p50_us;
            let goal = if no_sync { Some(5.0) } else { None };
            goals.push(Goal::above(&format!("PostgreSQL's entry p50 over inline's, {how}, times"), times, goal));
            if let Some(polling) = of(POLLING, no_sync) {
                let times = postgres.entry.p50_us / polling.entry.p50_us;
                goals.push(Goal::above(&format!("the same with a polling shard, {how}, times"), times, goal));
            }
        }
        for (inline, floor) in [("inline", "floor"), (POLLING, "floor, polling")] {
            if let (true, Some(inline), Some(floor)) = (no_sync, of(inline, true), of(floor, true)) {
                let beyond = inline.entry.p50_us - floor.entry.p50_us;
                goals.push(Goal::information(
                    &format!("{} entry p50 beyond the {}'s, us", inline.lane, floor.lane),
                    beyond,
                ));
            }
        }
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(lane: &str, no_sync: bool, entry_us: u64) -> Figures {
        let of = |microseconds: u64| {
            let mut histogram = new_histogram();
            histogram.record(microseconds * 1000).unwrap();
            Percentiles::of("", &histogram)
        };
        Figures {
            lane: lane.to_owned(),
            no_sync,
            entry: of(entry_us),
            ack: of(50),
            activation: Some((20.0, 60.0)),
            hiccups: of(10),
        }
    }

    #[test]
    fn goals_are_judged_within_one_kind_of_write() {
        let lanes = [
            row("inline", true, 40),
            row("deferred", true, 150),
            row("process", true, 200),
            row("postgres", true, 300),
            row("inline", false, 200),
            row("postgres", false, 300),
        ];
        let all = goals(&lanes);
        let judged: Vec<_> = all.iter().map(|goal| (goal.what.as_str(), goal.met)).collect();
        assert_eq!(
            judged,
            [
                ("inline activation p50, no_sync, us", Some(true)),
                ("inline entry p99 beyond the hiccups', no_sync, us", Some(true)),
                ("deferred entry p50 beyond inline, no_sync, us", Some(false)),
                ("process entry p50 beyond deferred, no_sync, us", Some(true)),
                ("PostgreSQL's entry p50 over inline's, no_sync, times", Some(true)),
                ("inline entry p50 beyond the durable ack's, us", Some(false)),
                ("PostgreSQL's entry p50 over inline's, durable, times", None),
            ]
        );
    }
}
