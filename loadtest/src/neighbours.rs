//! What an innocent light trigger notices of its neighbours: of evil ones, and of honest ones that have much to do.
//!
//! Mechanism, for every plugin of the shelf `python-bridge/pytests/evil` and of the heavy ones in `loadtest/plugins/heavy`, for every
//! lane of the innocent trigger and every one of its neighbour:
//! 1. A server of its own with an innocent trigger and its neighbour. By default it has the settings that a user has who gives none: a
//!    shard on every processor, and a policy that finds the neighbour's lane.
//! 2. A quiet slice: single rows at a fixed rate for the innocent one. It measures from the send of a row to its entry, by the
//!    clock of the machine, so that it sees what the server's own histogram cannot: a shard that comes late to its sockets.
//! 3. The same with rows for the evil one beside it, one every 50 ms; the slice begins with the first of them.
//! 4. All that again, `--repeats` times, with a new server each time: what the evil one left behind is not to pass for quiet.
//!
//! The verdict: the 99th percentile beside it is at most twice the quiet one, or above it by no more than what the hiccup meter saw
//! in the same slice.
//!
//! With `--cores shared` the whole server has one shard and one processor. With `--cores spare` the shard has its own, and everything
//! else the others.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};

use crate::hiccup::{Meter, sharpen_timers};
use crate::http::Connection;
use crate::innocent::{self, Innocent, write};
use crate::open_loop::{Schedule, drive, pin_to};
use crate::private::{self, NewTrigger, Private, rows};
use crate::progress::Progress;
use crate::report::{self, Percentiles, json_line, new_histogram};

const DATABASE: &str = "neighbours";
/// Honest plugins that have much to do, by name.
const HEAVY: [(&str, &str); 3] = [
    ("heavy_python", include_str!("../plugins/heavy/heavy_python.py")),
    ("heavy_numpy", include_str!("../plugins/heavy/heavy_numpy.py")),
    ("heavy_query", include_str!("../plugins/heavy/heavy_query.py")),
];
/// Beside it the 99th percentile may be so many times the quiet one.
const RATIO_MAX: f64 = 2.0;
/// Between two rows for the evil trigger.
const EVIL_PAUSE: Duration = Duration::from_millis(50);

/// Options of `saltus-loadtest neighbours`.
#[derive(Args, Clone, Serialize)]
#[group(skip)]
pub struct Options {
    #[command(flatten)]
    server: private::Options,
    /// The shelf
    #[arg(long, default_value = "python-bridge/pytests/evil")]
    evil: PathBuf,
    /// Only these plugins, by name
    #[arg(long)]
    plugin: Vec<String>,
    /// Lanes of the neighbour
    #[arg(long, default_value = "auto")]
    lane: Vec<Lane>,
    /// Lanes of the innocent trigger; all if none is given
    #[arg(long)]
    innocent: Vec<InnocentLane>,
    /// Which processors the server has
    #[arg(long, value_enum, default_value_t = Cores::Default)]
    cores: Cores,
    /// Rows a second for the innocent trigger
    #[arg(short, long, default_value_t = 200.0)]
    rate: f64,
    /// The `site-packages` of a virtual environment that the plugins have
    #[arg(long, env = "SALTUS_TEST_SITE_PACKAGES")]
    site_packages: Option<PathBuf>,
    /// Seconds of a quiet slice
    #[arg(long, default_value_t = 1.0)]
    quiet: f64,
    /// Seconds of a slice beside the evil trigger
    #[arg(long, default_value_t = 3.0)]
    beside: f64,
    /// How often each pair is tried
    #[arg(long, default_value_t = 2)]
    repeats: usize,
    /// Append the lines of JSON to this file instead of printing them
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Where the evil trigger is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Lane {
    /// On the shard's worker threads, whatever it does there.
    Deferred,
    /// In a process of its own.
    Process,
    /// Wherever the policy has it: what users have.
    Auto,
}

/// Where the innocent trigger is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum InnocentLane {
    /// On the shard's thread.
    Inline,
    /// On its worker threads.
    Deferred,
    /// In a process of its own.
    Process,
}

impl InnocentLane {
    fn name(self) -> &'static str {
        match self {
            InnocentLane::Inline => "inline",
            InnocentLane::Deferred => "deferred",
            InnocentLane::Process => "process",
        }
    }

    fn settings(self) -> Value {
        match self {
            InnocentLane::Inline | InnocentLane::Deferred => json!({"execution": self.name()}),
            InnocentLane::Process => json!({"isolation": self.name()}),
        }
    }
}

/// Which processors the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Cores {
    /// A shard on every one, as a server has that is not told otherwise.
    Default,
    /// One for everything.
    Shared,
    /// One for the shard, the others for the rest.
    Spare,
}

/// A plugin of the shelf, or one that has much to do.
struct Evil {
    name: String,
    source: String,
    honest: bool,
}

impl Evil {
    /// What its file says becomes of it in a lane.
    fn outcome(&self, lane: &str) -> &str {
        let prefix = format!("{lane}:");
        self.source.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().trim()
    }

    /// Why it is not tried, if it is not: what the lane does not promise to survive.
    fn left_out(&self, lane: Lane, has_numpy: bool) -> Option<&'static str> {
        let outcome = self.outcome("deferred");
        match (lane, outcome) {
            _ if self.source.contains("import numpy") && !has_numpy => {
                Some("there is no numpy in --site-packages (`make setup` makes a folder that has it)")
            }
            (Lane::Process, _) => None,
            (_, "refused") => Some("loads ctypes: may end the server, which --python-hardened prevents"),
            _ => None,
        }
    }
}

/// What was measured of one plugin in one lane.
#[derive(Serialize)]
struct Row {
    plugin: String,
    lane: Lane,
    innocent: InnocentLane,
    quiet: Percentiles,
    beside: Percentiles,
    hiccups_quiet: Percentiles,
    hiccups_beside: Percentiles,
    /// p99 beside over quiet.
    ratio: f64,
    /// Runs of the evil trigger that ended, were discarded, or changed its lane.
    evil_runs: u64,
    /// The last thing that became of it.
    became: String,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// At most twice.
    Holds,
    /// More than twice, but not more than the machine's own hiccups.
    Hiccups,
    /// More.
    Missed,
    /// The server is gone.
    ServerEnded,
}

impl Verdict {
    fn of(quiet: &Percentiles, beside: &Percentiles, hiccups: &Percentiles) -> Self {
        if beside.p99_us <= RATIO_MAX * quiet.p99_us {
            Self::Holds
        } else if beside.p99_us <= quiet.p99_us + hiccups.p99_us {
            Self::Hiccups
        } else {
            Self::Missed
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Hiccups => "hiccups",
            Self::Missed => "MISSED",
            Self::ServerEnded => "SERVER ENDED",
        }
    }
}

/// Runs the shelf and prints a line for each plugin and lane.
///
/// # Errors
/// No shelf, or a server that does not start or does not run the innocent trigger.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.rate > 0.0 && options.quiet > 0.0 && options.beside > 0.0, "rate and slices are above zero");
    let shelf = shelf(&options.evil, &options.plugin)?;
    let lanes = &options.lane;
    let innocents =
        if options.innocent.is_empty() { InnocentLane::value_variants() } else { options.innocent.as_slice() };
    sharpen_timers();
    println!(
        "| innocent | plugin | lane | quiet p50 | p99 | beside p50 | p99 | ratio | hiccups p99, quiet | beside | runs | became | verdict |\n\
         |---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|---|"
    );
    let seconds =
        (options.quiet + options.beside + 2.0) * (options.repeats * lanes.len() * innocents.len() * shelf.len()) as f64;
    let mut progress = Progress::start(Duration::from_secs_f64(seconds));
    let has_numpy = options.site_packages.as_ref().is_some_and(|folder| folder.join("numpy").is_dir());
    let (mut all, mut left_out) = (Vec::new(), Vec::new());
    for &lane in lanes {
        for evil in &shelf {
            if let Some(why) = evil.left_out(lane, has_numpy) {
                left_out.push(format!("{} in {}: {why}", evil.name, lane_name(lane)));
                continue;
            }
            for &innocent in innocents {
                let what = || format!("{} in {} beside an {} trigger", evil.name, lane_name(lane), innocent.name());
                progress.show(what);
                let row = trial(options, evil, (lane, innocent)).with_context(what)?;
                println!("{}", render(&row));
                if let Some(path) = &options.output {
                    report::keep(&json_line("neighbours", options, &row), Some(path))?;
                }
                all.push(row);
            }
        }
    }
    drop(progress);
    println!("\nmicroseconds from the send of a row to the entry of the innocent trigger");
    println!("left out: {}", list(&left_out));
    for &innocent in innocents {
        let of_lane: Vec<&Row> = all.iter().filter(|row| row.innocent == innocent).collect();
        let typical = typical_quiet_us(&of_lane);
        let missed = missed(&of_lane, typical);
        println!("{}: the quiet 99th percentile was {typical:.0} us in the median of all servers", innocent.name());
        println!("  more than {RATIO_MAX} times that, and beyond the machine's hiccups: {}", list(&missed));
    }
    println!("\n{}", summary(&all, innocents));
    Ok(())
}

/// The 99th percentiles of all lanes side by side, quiet and beside each plugin.
fn summary(all: &[Row], innocents: &[InnocentLane]) -> String {
    let mut text = String::from("| beside |");
    innocents.iter().for_each(|lane| text.push_str(&format!(" {}: quiet | beside | ratio |", lane.name())));
    text.push_str("\n|---|");
    text.push_str(&"--:|--:|--:|".repeat(innocents.len()));
    for rows in all.chunks(innocents.len()) {
        text.push_str(&format!("\n| `{}` |", rows[0].plugin));
        for row in rows {
            text.push_str(&format!(" {:.0} | {:.0} | {:.1} |", row.quiet.p99_us, row.beside.p99_us, row.ratio));
        }
    }
    text
}

/// The median of the quiet 99th percentiles: one that was disturbed would excuse its neighbour.
fn typical_quiet_us(all: &[&Row]) -> f64 {
    let mut quiet: Vec<f64> = all.iter().map(|row| row.quiet.p99_us).collect();
    quiet.sort_by(f64::total_cmp);
    quiet.get(quiet.len() / 2).copied().unwrap_or(0.0)
}

/// Which rows do not hold, measured by the typical quiet figure.
fn missed(all: &[&Row], typical_us: f64) -> Vec<String> {
    let is_missed = |row: &&&Row| {
        let beyond = row.beside.p99_us > RATIO_MAX * typical_us;
        row.verdict == Verdict::ServerEnded || (beyond && row.beside.p99_us > typical_us + row.hiccups_beside.p99_us)
    };
    all.iter().filter(is_missed).map(|row| format!("{} in {}", row.plugin, lane_name(row.lane))).collect()
}

fn list(what: &[String]) -> String {
    if what.is_empty() { "none".to_owned() } else { what.join("; ") }
}

fn lane_name(lane: Lane) -> &'static str {
    match lane {
        Lane::Deferred => "deferred",
        Lane::Process => "process",
        Lane::Auto => "auto",
    }
}

fn shelf(folder: &Path, only: &[String]) -> anyhow::Result<Vec<Evil>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading the shelf {}", folder.display()))?;
    let mut shelf = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".py")) else { continue };
        if only.is_empty() || only.iter().any(|wanted| wanted == name) {
            shelf.push(Evil { name: name.to_owned(), source: std::fs::read_to_string(&path)?, honest: false });
        }
    }
    for (name, source) in HEAVY {
        if only.is_empty() || only.iter().any(|wanted| wanted == name) {
            shelf.push(Evil { name: name.to_owned(), source: source.to_owned(), honest: true });
        }
    }
    shelf.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(!shelf.is_empty(), "no such plugin in {}", folder.display());
    Ok(shelf)
}

/// The slices of all repeats, put together.
struct Slices {
    quiet: Histogram<u64>,
    beside: Histogram<u64>,
    hiccups_quiet: Histogram<u64>,
    hiccups_beside: Histogram<u64>,
    evil_runs: u64,
    became: String,
    ended: bool,
}

fn trial(options: &Options, evil: &Evil, lanes: (Lane, InnocentLane)) -> anyhow::Result<Row> {
    let mut slices = Slices {
        quiet: new_histogram(),
        beside: new_histogram(),
        hiccups_quiet: new_histogram(),
        hiccups_beside: new_histogram(),
        evil_runs: 0,
        became: String::new(),
        ended: false,
    };
    for _ in 0..options.repeats {
        repeat(options, evil, lanes, &mut slices)?;
    }
    let quiet = Percentiles::of("quiet", &slices.quiet);
    let beside = Percentiles::of("beside", &slices.beside);
    let hiccups_beside = Percentiles::of("hiccups", &slices.hiccups_beside);
    let verdict = if slices.ended { Verdict::ServerEnded } else { Verdict::of(&quiet, &beside, &hiccups_beside) };
    Ok(Row {
        plugin: evil.name.clone(),
        lane: lanes.0,
        innocent: lanes.1,
        ratio: beside.p99_us / quiet.p99_us.max(f64::MIN_POSITIVE),
        quiet,
        beside,
        hiccups_quiet: Percentiles::of("hiccups", &slices.hiccups_quiet),
        hiccups_beside,
        evil_runs: slices.evil_runs,
        became: slices.became,
        verdict,
    })
}

fn repeat(options: &Options, evil: &Evil, lanes: (Lane, InnocentLane), slices: &mut Slices) -> anyhow::Result<()> {
    let mut private = start(options, evil, lanes)?;
    let mut innocent = Innocent::open(&private, DATABASE)?;
    let mut slice = |seconds: f64| {
        let schedule = Schedule { rate: options.rate, length: Duration::from_secs_f64(seconds), first: 0 };
        let meter = Meter::start();
        let sent = drive(&schedule, &mut innocent);
        let hiccups = meter.stop();
        let samples = sent.and_then(|_| innocent.samples(&private));
        samples.map(|samples| (samples, hiccups))
    };
    // The first slice is for the caches.
    slice(0.5)?;
    let (quiet, hiccups) = slice(options.quiet)?;
    slices.quiet.add(quiet)?;
    slices.hiccups_quiet.add(hiccups)?;

    let stop = AtomicBool::new(false);
    let beside = std::thread::scope(|scope| {
        let feeding = scope.spawn(|| feed_evil(&private, &stop));
        let beside = slice(options.beside);
        stop.store(true, Ordering::Relaxed);
        // A server that ended took its connections along; that is said below.
        let _ = feeding.join();
        beside
    });
    if let Some(status) = private.ended() {
        slices.ended = true;
        slices.became = status;
        return Ok(());
    }
    let (beside, hiccups) = beside?;
    slices.beside.add(beside)?;
    slices.hiccups_beside.add(hiccups)?;
    let (runs, became) = became(&private)?;
    slices.evil_runs += runs;
    slices.became = became;
    Ok(())
}

fn start(options: &Options, evil: &Evil, (lane, innocent): (Lane, InnocentLane)) -> anyhow::Result<Private> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut settings = vec!["--deferred-grace", "500ms"];
    if options.cores != Cores::Default {
        settings.extend(["--shards", "1", "--cpus", "0"]);
    }
    // lib/python3.x/site-packages
    let environment = options.site_packages.as_deref().and_then(|folder| folder.ancestors().nth(3));
    let environment = environment.map(Path::to_string_lossy);
    if let Some(folder) = &environment {
        settings.extend(["--virtual-env-location", folder]);
    }
    let evil_file = format!("{}.py", evil.name);
    let plugins = [(innocent::FILE, innocent::SOURCE), (&evil_file, &evil.source)];
    let private = std::thread::scope(|scope| {
        // The server has the processors of the thread that starts it.
        let starting = scope.spawn(|| {
            if options.cores == Cores::Shared {
                pin_to(0)?;
            }
            Private::start(&options.server, &settings, &plugins)
        });
        starting.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })?;
    if cpus > 1 && options.cores == Cores::Shared {
        // The client stays out of the way.
        pin_to(1)?;
    }
    Innocent::create(&private, DATABASE, innocent.settings())?;
    let limits = if evil.honest { json!({}) } else { json!({"run_time": "400ms", "memory": "512mb"}) };
    let settings = match lane {
        Lane::Deferred => json!({"execution": "deferred", "isolation": "interpreter", "limits": limits}),
        Lane::Process => json!({"isolation": "process", "limits": limits}),
        Lane::Auto => json!({"limits": limits}),
    };
    let (name, spec, file) = ("evil", "table:evil", &*evil_file);
    private.create_trigger(DATABASE, NewTrigger { name, file, spec, settings, arguments: Value::Null })?;
    Ok(private)
}

fn feed_evil(private: &Private, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut connection = Connection::open(&private.target)?;
    while !stop.load(Ordering::Relaxed) {
        write(&mut connection, DATABASE, "evil value=1i")?;
        std::thread::sleep(EVIL_PAUSE);
    }
    Ok(())
}

/// How many runs of the evil trigger there were, and what was the last that became of it.
fn became(private: &Private) -> anyhow::Result<(u64, String)> {
    let sql = "SELECT lane, outcome, detail FROM system.trigger_runs WHERE trigger_name = 'evil' ORDER BY event_time";
    let all = rows(&private.target, DATABASE, sql)?;
    let runs = all.iter().filter(|row| row["outcome"] != "decision").count() as u64;
    let last = all.last().map_or_else(
        || "still at its first run".to_owned(),
        |row| {
            let text = |name: &str| row[name].as_str().unwrap_or_default();
            let detail: String =
                text("detail").chars().take(60).map(|c| if c == '|' || c == '\n' { ' ' } else { c }).collect();
            format!("{} {} {detail}", text("lane"), text("outcome")).trim().to_owned()
        },
    );
    Ok((runs, last))
}

fn render(row: &Row) -> String {
    format!(
        "| {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} | {:.0} | {:.0} | {} | {} | {} |",
        row.innocent.name(),
        row.plugin,
        lane_name(row.lane),
        row.quiet.p50_us,
        row.quiet.p99_us,
        row.beside.p50_us,
        row.beside.p99_us,
        row.ratio,
        row.hiccups_quiet.p99_us,
        row.hiccups_beside.p99_us,
        row.evil_runs,
        row.became,
        row.verdict.as_str()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p99(microseconds: u64) -> Percentiles {
        let mut histogram = new_histogram();
        histogram.record(microseconds * 1000).unwrap();
        Percentiles::of("", &histogram)
    }

    #[test]
    fn twice_is_allowed_and_so_are_the_machines_hiccups() {
        assert_eq!(Verdict::of(&p99(100), &p99(199), &p99(1)), Verdict::Holds);
        assert_eq!(Verdict::of(&p99(100), &p99(900), &p99(850)), Verdict::Hiccups);
        assert_eq!(Verdict::of(&p99(100), &p99(900), &p99(50)), Verdict::Missed);
    }

    #[test]
    fn what_may_end_the_server_is_tried_in_a_process_only() {
        let source = "\"\"\"x\n\ninline: refused\ndeferred: refused\n".to_owned();
        let evil = Evil { name: "segfault".to_owned(), source, honest: false };
        assert!([Lane::Auto, Lane::Deferred].iter().all(|&lane| evil.left_out(lane, true).is_some()));
        assert!(evil.left_out(Lane::Process, true).is_none());
    }

    #[test]
    fn numpy_is_asked_for_where_it_is() {
        let (name, source) = HEAVY[1];
        let heavy = Evil { name: name.to_owned(), source: source.to_owned(), honest: true };
        assert!(heavy.left_out(Lane::Auto, false).is_some() && heavy.left_out(Lane::Auto, true).is_none());
    }
}
