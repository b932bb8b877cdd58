//! `saltus-loadtest run`: scenarios against a server, and against rivals in the same run.
//!
//! Mechanism:
//! 1. A scenario is read and checked ([`scenario`]), the systems are made ready ([`systems`]); a private server is a new one for each
//!    scenario, so that none finds what another left.
//! 2. The measured seconds are cut into slices. The systems take turns, beginning with another one each time, so that a machine which
//!    is slow for a while is slow for all. Each slice begins with a part of the warm-up.
//! 3. In a slice all streams run at once ([`drive`]), each request at a moment that was fixed before ([`pace`]), with the hiccup meter
//!    beside them. Afterwards the plugins say when they were entered.
//! 4. Everything is put together per system ([`gather`], [`outcome`]) and written: a line of JSON, raw histograms ([`files`]), plots
//!    ([`plot`]), a table ([`markdown`]), and all of it into a page of the documentation ([`publish`]).

mod drive;
mod files;
mod gather;
mod markdown;
mod outcome;
mod pace;
mod plot;
mod publish;
mod rows;
mod scenario;
mod systems;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;

use self::drive::{Lane, Window, connections, slice};
use self::gather::Gathered;
use self::outcome::{Outcome, Ran, json_lines};
use self::pace::Pace;
use self::scenario::{Scenario, Stream};
use self::systems::{System, wall_ns};
use crate::hiccup::{Meter, sharpen_timers};
use crate::open_loop::keep_off;
use crate::progress::Progress;
use crate::report::{Machine, keep};

/// Options of `saltus-loadtest run`.
#[derive(Args, Clone)]
#[group(skip)]
pub struct Options {
    /// Names of shipped scenarios, or files
    #[arg(required = true, value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// Seconds to measure on each target, instead of what the scenarios say
    #[arg(long)]
    seconds: Option<f64>,
    /// Slices to cut them into, instead of what the scenarios say
    #[arg(long)]
    rounds: Option<usize>,
    /// Folder for the results; lines of JSON are appended, everything else is replaced
    #[arg(short, long, default_value = "loadtest-results")]
    output: PathBuf,
    /// Put the report between the marks of this page, and plots and raw files into the folder of its name
    #[arg(long, value_name = "PAGE.md")]
    publish: Option<PathBuf>,
    #[command(flatten)]
    systems: systems::Options,
}

/// Lists the shipped scenarios.
///
/// # Errors
/// None, if the tests pass.
pub fn list() -> anyhow::Result<()> {
    for Scenario { name, about, .. } in Scenario::shipped()? {
        println!("{name:<20} {about}");
    }
    Ok(())
}

/// Runs scenarios one after the other.
///
/// # Errors
/// A scenario that is none, a system that does not start or fails again and again, results that cannot be written.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.seconds.is_none_or(|seconds| seconds > 0.0), "--seconds must be above zero");
    ensure!(options.rounds.is_none_or(|rounds| rounds > 0), "--rounds must be at least 1");
    options.systems.check()?;
    let load = |name: &String| Ok(Scenario::load(name)?.stretched(options.seconds, options.rounds));
    let scenarios: Vec<Scenario> = options.scenarios.iter().map(load).collect::<anyhow::Result<_>>()?;
    std::fs::create_dir_all(&options.output).with_context(|| format!("making {}", options.output.display()))?;
    sharpen_timers();
    let machine = Machine::here();
    let (mut all, mut names, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    let mut failure = None;
    let count = scenarios.len();
    for (index, scenario) in scenarios.into_iter().enumerate() {
        let name = scenario.name.clone();
        let place = format!("scenario {} of {count}, {name}", index + 1);
        let ran = match one(options, scenario, &place).with_context(|| format!("scenario {name}")) {
            Ok(ran) => ran,
            // What was measured before is reported all the same.
            Err(error) => {
                failure = Some(error);
                break;
            }
        };
        for line in json_lines(&machine, &options.systems.to_json(), &ran) {
            keep(&line, Some(&options.output.join("results.jsonl")))?;
            lines.push(line);
        }
        names.extend(files::write(&options.output, &ran)?);
        names.extend(plot::write(&options.output, &ran)?);
        println!("{}", markdown::section(&ran, "."));
        all.push(ran);
    }
    println!("{}", markdown::losses(&all));
    let command = command(std::env::args().skip(1));
    let report = markdown::report(&machine, &command, &all, ".");
    files::save(&options.output.join("report.md"), format!("# Load test\n\n{report}").as_bytes())?;
    println!("results: {}", options.output.display());
    if let Some(error) = failure {
        return Err(error);
    }
    if let Some(page) = &options.publish {
        let report = &markdown::report(&machine, &command, &all, &publish::plots_of(page));
        let results = publish::Results { report, folder: &options.output, names: &names, lines: &lines };
        publish::publish(page, &results)?;
    }
    Ok(())
}

/// How this was called: without what is secret, and without the folders of this machine.
fn command(words: impl Iterator<Item = String>) -> String {
    const LEFT_OUT: [&str; 6] = ["--token", "--saltus", "--plugin-dir", "--output", "-o", "--publish"];
    let mut kept = vec!["saltus-loadtest".to_owned()];
    let mut words = words;
    while let Some(word) = words.next() {
        let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
        if !LEFT_OUT.contains(&name) {
            kept.push(word);
        } else if value.is_none() {
            words.next();
        }
    }
    kept.join(" ")
}

/// Runs one scenario on all systems by turns. Its `place` among the others is for the progress bar.
fn one(options: &Options, scenario: Scenario, place: &str) -> anyhow::Result<Ran> {
    let systems::Opened { mut systems, left_out } = options.systems.open(&scenario)?;
    let mut gathered = Vec::new();
    for system in &mut systems {
        system.prepare(&scenario).with_context(|| format!("preparing {}", system.name()))?;
        gathered.push(Gathered::new(system.name(), scenario.streams.len()));
    }
    let mut run = Run { scenario, systems, gathered, slices: 0, base_ns: wall_ns() - REACH_NS };
    let apart = options.systems.is_private() && run.scenario.is_apart();
    let count = run.systems.len();
    let mut progress = Progress::start(run.length() * (count * run.scenario.rounds) as u32);
    // Pinned threads are the children of a thread that is pinned.
    std::thread::scope(|scope| {
        let driving = scope.spawn(move || {
            if apart {
                keep_off(run.scenario.server.shards)?;
            }
            for round in 0..run.scenario.rounds {
                for turn in 0..count {
                    let which = (round + turn) % count;
                    let name = run.gathered[which].name.clone();
                    run.turn(which, round, &mut |slice| progress.show(|| format!("{place} on {slice}")))
                        .with_context(|| format!("measuring {name}"))?;
                }
            }
            anyhow::Ok(run)
        });
        driving.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })
    .and_then(|run| run.finish(left_out))
}

/// The first row of all is so long before now, so that those of a data set whose time flies are not in the future.
const REACH_NS: u64 = 30 * 24 * 3600 * 1_000_000_000;

/// A scenario under way.
struct Run {
    scenario: Scenario,
    systems: Vec<Box<dyn System>>,
    gathered: Vec<Gathered>,
    slices: usize,
    base_ns: u64,
}

impl Run {
    /// Of a slice, with its warm-up.
    fn length(&self) -> Duration {
        self.warm_up() + self.measured()
    }

    fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.scenario.warm_up / self.scenario.rounds as f64)
    }

    fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.scenario.seconds / self.scenario.rounds as f64)
    }

    fn pace(&self, stream: &Stream) -> Option<Pace> {
        let from = stream.rate?;
        Some(Pace { from, to: stream.rate_to.unwrap_or(from), warm_up: self.warm_up(), length: self.measured() })
    }

    fn lanes(&self, system: &dyn System, round: usize) -> anyhow::Result<Vec<Lane>> {
        let base_ns = self.base_ns + REACH_NS / self.scenario.rounds as u64 * round as u64;
        let lane = |stream: &Stream| {
            let count = if stream.schedule.is_some() { 0 } else { stream.connections };
            let clients = connections(count, |index| system.client(stream, index, base_ns))
                .with_context(|| format!("stream `{}`", stream.name))?;
            Ok(Lane { pace: self.pace(stream), clients })
        };
        self.scenario.streams.iter().map(lane).collect()
    }

    /// One slice of one system.
    fn turn(&mut self, which: usize, round: usize, tell: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let lanes = self.lanes(self.systems[which].as_ref(), round)?;
        let note = format!(
            "{}, slice {} of {}",
            self.gathered[which].name,
            self.slices + 1,
            self.systems.len() * self.scenario.rounds
        );
        let used_before = self.systems[which].processor_time();
        let meter = Meter::start();
        let sliced = slice(lanes, self.warm_up(), self.measured(), &mut || tell(&note));
        let hiccups = meter.stop_and_list();
        let (window, sent) = sliced?;
        let used = self.systems[which].processor_time().zip(used_before).map(|(after, before)| after - before);
        self.gathered[which].add_processor(used, &sent);
        let done = self.gathered[which].add_requests(&self.scenario.streams, &window, &sent);
        self.add_entries(which, &window, &done)?;
        self.gathered[which].end_slice(&window, &hiccups);
        self.slices += 1;
        Ok(())
    }

    fn add_entries(&mut self, which: usize, window: &Window, done: &[usize]) -> anyhow::Result<()> {
        for (index, stream) in self.scenario.streams.iter().enumerate() {
            if self.systems[which].sees_entries(stream) {
                let entries = self.systems[which].entries(stream, done[index])?;
                self.gathered[which].add_entries(index, window, done[index], &entries);
            }
        }
        Ok(())
    }

    fn finish(mut self, left_out: Vec<systems::LeftOut>) -> anyhow::Result<Ran> {
        for (system, gathered) in self.systems.iter().zip(&mut self.gathered) {
            gathered.note = system.note();
            gathered.own = system.own_latencies()?;
            for (data, stream) in gathered.streams.iter_mut().zip(&self.scenario.streams) {
                if data.counts.never_entered > 0 {
                    data.counts.never_entered_because = system.complaint(stream);
                }
            }
        }
        let outcomes = self.gathered.into_iter().map(|gathered| Outcome::of(&self.scenario, gathered)).collect();
        let left_out = left_out.into_iter().map(|left| (left.name, left.why)).collect();
        Ok(Ran { scenario: self.scenario, outcomes, left_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_in_a_report_has_no_secrets_and_no_folders() {
        let words = "run a --token t --rival=postgres=h:1 --token=t -o /x --saltus=/y --seconds 3 -- --shards 2";
        let kept = command(words.split(' ').map(str::to_owned));
        assert_eq!(kept, "saltus-loadtest run a --rival=postgres=h:1 --seconds 3 -- --shards 2");
    }
}
