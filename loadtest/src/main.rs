//! `saltus-loadtest`: measures a server from outside, over the wire only.
//!
//! Goals: figures that somebody else can repeat. Latencies count from the moment at which a request was *meant* to be
//! sent, so that a stalled server cannot hide behind a client that politely waited (coordinated omission). Beside
//! every figure stands what the machine itself did in the same seconds (the hiccup meter), and every result is also
//! one line of JSON with commit, kernel and processor.
//!
//! Non-goals: it links no crate of the engine, so it can tell no secret that a client could not see, and it works on
//! any server with the InfluxDB 3 HTTP API.
//!
//! [`run`] is the tool: scenarios, rivals, plots. The other commands answer one question each. In reading order: [`probe`] (fixed rate, single rows), [`load`] (as fast as the server takes it), [`tsbs`] (the
//! rows of `load`), [`hiccup`], [`http`] and [`server`] (what is asked of it), [`report`], [`progress`]. Scenarios that start a
//! server of their own ([`private`]) and compare within one run: [`lanes`] (with [`open_loop`], [`floor`] and [`postgres`]), [`scaling`],
//! [`neighbours`] and [`many`] (with [`innocent`]).
#![forbid(unsafe_code)]

mod floor;
mod hiccup;
mod http;
mod innocent;
mod lanes;
mod load;
mod many;
mod neighbours;
mod open_loop;
mod postgres;
mod private;
mod probe;
mod progress;
mod report;
mod run;
mod scaling;
mod server;
mod tsbs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measure a Saltus (or any InfluxDB 3 compatible) server from outside.
#[derive(Parser)]
#[command(name = "saltus-loadtest", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The kinds of measurement.
#[derive(Subcommand)]
enum Command {
    /// Scenarios, against a private server or any other, beside rivals if wanted: percentiles, plots, a table.
    Run(Box<run::Options>),
    /// The scenarios that are part of the program.
    Scenarios,
    /// Single-row writes at a fixed rate: how long an acknowledgement and a plugin's activation take.
    Probe(probe::Options),
    /// TSBS cpu-only rows as fast as the server takes them: how many rows a second.
    Load(load::Options),
    /// Inline, deferred and process lane side by side, and PostgreSQL with PL/Python: how soon a plugin is entered.
    Lanes(lanes::Options),
    /// Whether two shards run twice the Python of one.
    Scaling(scaling::Options),
    /// What an innocent inline trigger notices of evil ones on its shard.
    Neighbours(neighbours::Options),
    /// What thousands of triggers, tables and databases cost, and what a write notices of them.
    Many(many::Options),
}

fn main() -> ExitCode {
    match carry_out(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Causes in one line, and no backtrace: what goes wrong here is outside of this program.
            eprintln!("saltus-loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(options) => run::run(&options),
        Command::Scenarios => run::list(),
        Command::Probe(options) => probe::run(&options),
        Command::Load(options) => load::run(&options),
        Command::Lanes(options) => lanes::run(&options),
        Command::Scaling(options) => scaling::run(&options),
        Command::Neighbours(options) => neighbours::run(&options),
        Command::Many(options) => many::run(&options),
    }
}
