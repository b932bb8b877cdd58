//! `saltus-loadtest`: measures a server from outside, over the wire only.
//!
//! Goals: figures that somebody else can repeat. Latencies count from the moment at which a request was *meant* to be
//! sent, so that a stalled server cannot hide behind a client that politely waited (coordinated omission). Beside
//! every figure stands what the machine itself did in the same seconds (the hiccup meter), and every result is also
//! one line of JSON with commit, kernel and processor.
//!
//! Non-goals: it links no crate of the engine, so it can tell no secret that a client could not see, and it works on
//! any server with the InfluxDB 3 HTTP API. It renders no plots yet.
//!
//! In reading order: [`probe`] (fixed rate, single rows), [`load`] (as fast as the server takes it), [`tsbs`] (the
//! rows of `load`), [`hiccup`], [`http`] and [`server`] (what is asked of it), [`report`], [`progress`].
#![forbid(unsafe_code)]

mod hiccup;
mod http;
mod load;
mod probe;
mod progress;
mod report;
mod server;
mod tsbs;

use clap::{Parser, Subcommand};

/// Measure a Saltus (or any InfluxDB 3 compatible) server from outside.
#[derive(Parser)]
#[command(name = "saltus-loadtest", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The two kinds of measurement.
#[derive(Subcommand)]
enum Command {
    /// Single-row writes at a fixed rate: how long an acknowledgement and a plugin's activation take.
    Probe(probe::Options),
    /// TSBS cpu-only rows as fast as the server takes them: how many rows a second.
    Load(load::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Probe(options) => probe::run(&options),
        Command::Load(options) => load::run(&options),
    }
}
