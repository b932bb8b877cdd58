//! Whether two shards run twice the Python of one.
//!
//! Mechanism: a server with two shards and a trigger in the inline lane of each, both with a plugin that only computes. Slices
//! follow each other, over and over: load for the first, for the second, for both. Load is a write every millisecond or two,
//! so that there is always something to run for; the runs are counted by the server and read when it is idle again.
//! In the same round a loop of this program runs on one processor and on two: what the machine itself gives for twice the
//! processors, which is less than twice where they share a core, or with others.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::hiccup::Meter;
use crate::http::{Connection, Target, encode};
use crate::open_loop::{pin_to, until};
use crate::private::{self, NewTrigger, Private, rows};
use crate::progress::Progress;
use crate::report::{self, Goal, Percentiles, json_line, table};
use crate::server;

const DATABASE: &str = "scaling";
const BUSY: &str = include_str!("../plugins/busy.py");
/// Tables among which one of each shard is looked for; all on one shard is a chance of one in ten thousand.
const TABLES: usize = 14;
/// Connections that keep one table busy: the acceptor deals them to both shards.
const CONNECTIONS: usize = 2;

/// Options of `saltus-loadtest scaling`.
#[derive(Args, Clone, Serialize)]
#[group(skip)]
pub struct Options {
    #[command(flatten)]
    server: private::Options,
    /// Turns of the plugin's loop: about 8 ms
    #[arg(long, default_value_t = 100_000)]
    loops: u64,
    /// Seconds of each slice
    #[arg(long, default_value_t = 3.0)]
    slice: f64,
    /// Rounds, of which the best counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Append the line of JSON to this file instead of printing it
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// What one round reached.
#[derive(Clone, Copy, Debug, Serialize)]
struct Round {
    /// Runs a second with load for one shard only.
    first_alone: f64,
    second_alone: f64,
    /// With load for both.
    both: f64,
    /// Turns of a loop a second, on one processor and on two.
    machine_one: f64,
    machine_two: f64,
}

impl Round {
    fn ratio(&self) -> f64 {
        self.both / ((self.first_alone + self.second_alone) / 2.0)
    }

    fn machine_ratio(&self) -> f64 {
        self.machine_two / self.machine_one
    }
}

#[derive(Serialize)]
struct Outcome {
    rounds: Vec<Round>,
    goals: Vec<Goal>,
    latencies: Vec<Percentiles>,
}

/// Runs all rounds and prints them.
///
/// # Errors
/// One processor only, a server that does not start, or a plugin that does not run.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.rounds > 0 && options.slice > 0.0, "rounds and slice are above zero");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    ensure!(cpus >= 2, "two shards need two processors, and this process may use {cpus}");
    let settings = ["--shards", "2", "--cpus", "0,1", "--inline-deadline", "1s"];
    let private = Private::start(&options.server, &settings, &[("busy.py", BUSY)])?;
    let pair = one_of_each_shard(options, &private)?;
    let meter = Meter::start();
    let rounds = measure(options, &private.target, &pair)?;
    let hiccups = meter.stop();

    let best = |of: fn(&Round) -> f64| rounds.iter().map(of).fold(0.0, f64::max);
    let one = best(|round| (round.first_alone + round.second_alone) / 2.0);
    let goals = vec![
        Goal::above("two shards over one, best of each", best(|round| round.both) / one, Some(1.9)),
        Goal::above("two shards over one, best round", best(Round::ratio), None),
        Goal::above("two processors over one, the machine itself", best(Round::machine_ratio), None),
    ];
    let latencies = vec![Percentiles::of("this machine's own hiccups", &hiccups)];
    print!("{}", render(&rounds));
    println!("\n{}\n{}", ratios(&goals), table(&latencies));
    report::keep(&json_line("scaling", options, &Outcome { rounds, goals, latencies }), options.output.as_deref())
}

/// Ratios need two digits.
fn ratios(goals: &[Goal]) -> String {
    let line = |goal: &Goal| {
        let met = goal.met.map_or("", |met| if met { ", met" } else { ", missed" });
        let wanted = goal.goal.map_or_else(String::new, |wanted| format!(" (goal {wanted:.1}{met})"));
        format!("{}: {:.2}{wanted}\n", goal.what, goal.figure)
    };
    goals.iter().map(line).collect()
}

fn render(rounds: &[Round]) -> String {
    let mut text = "| round | shard 0 alone, runs/s | shard 1 alone | both | ratio | machine's ratio |\n\
                    |------:|----------------------:|--------------:|-----:|------:|----------------:|\n"
        .to_owned();
    for (number, round) in rounds.iter().enumerate() {
        text += &format!(
            "| {:>5} | {:>21.1} | {:>13.1} | {:>4.1} | {:>5.2} | {:>15.2} |\n",
            number + 1,
            round.first_alone,
            round.second_alone,
            round.both,
            round.ratio(),
            round.machine_ratio()
        );
    }
    text
}

/// Triggers, and so tables, of which the first is at home on shard 0 and the second on shard 1.
fn one_of_each_shard(options: &Options, private: &Private) -> anyhow::Result<[String; 2]> {
    let mut connection = Connection::open(&private.target)?;
    for number in 0..TABLES {
        let name = format!("w{number}");
        let trigger = NewTrigger {
            name: &name,
            file: "busy.py",
            spec: &format!("table:{name}"),
            settings: json!({"execution": "inline"}),
            arguments: json!({"loops": options.loops.to_string()}),
        };
        private.create_trigger(DATABASE, trigger)?;
        let path = format!("/api/v3/write_lp?db={}&no_sync=true", encode(DATABASE));
        let reply = connection.post(&path, format!("{name} warm=true").as_bytes())?;
        ensure!((200..300).contains(&reply.status), "the server answered {}: {}", reply.status, reply.text());
    }
    let sql = "SELECT trigger_name, log_text FROM system.processing_engine_logs WHERE log_level = 'INFO'";
    until("each shard has run a plugin", Duration::from_secs(20), || {
        let said = rows(&private.target, DATABASE, sql)?;
        let on = |shard: &str| {
            let row = said.iter().find(|row| row["log_text"].as_str() == Some(shard))?;
            row["trigger_name"].as_str().map(str::to_owned)
        };
        Ok(on("shard 0").zip(on("shard 1")).map(|(first, second)| [first, second]))
    })
}

fn measure(options: &Options, target: &Target, pair: &[String; 2]) -> anyhow::Result<Vec<Round>> {
    let length = Duration::from_secs_f64(options.slice);
    let [first, second] = pair;
    // One of each that does not count.
    runs(target, &[first, second], Duration::from_millis(500))?;
    let mut progress = Progress::start(length * (options.rounds * 5) as u32);
    let mut all = Vec::new();
    for round in 0..options.rounds {
        let mut step = |what: &str| progress.show(|| format!("round {}: {what}", round + 1));
        step("shard 0");
        let first_alone = runs(target, &[first], length)?;
        step("shard 1");
        let second_alone = runs(target, &[second], length)?;
        step("both");
        let both = runs(target, &[first, second], length)?;
        step("the machine itself");
        let machine_one = turns(&[0], length / 3)?;
        let machine_two = turns(&[0, 1], length / 3)?;
        all.push(Round { first_alone, second_alone, both, machine_one, machine_two });
    }
    Ok(all)
}

/// Runs a second of these triggers, with load for them and for nobody else.
fn runs(target: &Target, triggers: &[&String], length: Duration) -> anyhow::Result<f64> {
    let before = counted(target, triggers)?;
    let stop = AtomicBool::new(false);
    let seconds = std::thread::scope(|scope| {
        let stop = &stop;
        let start = Instant::now();
        let threads: Vec<_> = triggers
            .iter()
            .flat_map(|table| (0..CONNECTIONS).map(move |_| scope.spawn(move || feed(target, table, stop))))
            .collect();
        std::thread::sleep(length);
        stop.store(true, Ordering::Relaxed);
        let seconds = start.elapsed().as_secs_f64();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a sending thread panicked"))??;
        }
        anyhow::Ok(seconds)
    })?;
    let after = counted(target, triggers)?;
    Ok((after - before) as f64 / seconds)
}

/// A write now and then, always before the run of the last one is over.
fn feed(target: &Target, table: &str, stop: &AtomicBool) -> anyhow::Result<()> {
    let path = format!("/api/v3/write_lp?db={}&no_sync=true", encode(DATABASE));
    let body = format!("{table} value=1i");
    let mut connection = Connection::open(target)?;
    while !stop.load(Ordering::Relaxed) {
        let reply = connection.post(&path, body.as_bytes())?;
        ensure!((200..300).contains(&reply.status), "the server answered {}: {}", reply.status, reply.text());
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Runs of these triggers since the server's start; asked until they do not rise any more.
fn counted(target: &Target, triggers: &[&String]) -> anyhow::Result<u64> {
    let mut last = None;
    until("the last runs are over", Duration::from_secs(20), || {
        let all =
            server::trigger_latency(target, DATABASE, None)?.context("the server has no system.trigger_latency")?;
        let mine = all.iter().filter(|row| row.stage == "run" && triggers.contains(&&row.trigger_name));
        let count: u64 = mine.map(|row| row.count).sum();
        let settled = last.replace(count) == Some(count);
        if !settled {
            std::thread::sleep(Duration::from_millis(30));
        }
        Ok(settled.then_some(count))
    })
}

/// Turns a second of a loop of this program, on the given processors.
fn turns(cpus: &[usize], length: Duration) -> anyhow::Result<f64> {
    let end = Instant::now() + length;
    std::thread::scope(|scope| {
        let threads: Vec<_> = cpus
            .iter()
            .map(|&cpu| {
                scope.spawn(move || {
                    pin_to(cpu)?;
                    let (mut turns, mut value) = (0_u64, 1_u64);
                    while Instant::now() < end {
                        for _ in 0..1000 {
                            value = std::hint::black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                        }
                        turns += 1000;
                    }
                    anyhow::Ok(turns)
                })
            })
            .collect();
        let mut sum = 0;
        for thread in threads {
            sum += thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(sum as f64 / length.as_secs_f64())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_compares_both_with_the_mean_of_each_alone() {
        let round = Round { first_alone: 90.0, second_alone: 110.0, both: 190.0, machine_one: 5.0, machine_two: 9.0 };
        assert_eq!((round.ratio(), round.machine_ratio()), (1.9, 1.8));
        assert!(render(&[round]).contains("190.0 |  1.90 |            1.80 |"), "{}", render(&[round]));
    }
}
