//! The command line: `saltus serve` and the client commands (reference, section 4).
//!
//! Client commands speak HTTP to a server and nothing else. A failure ends with exit code 1 and
//! `<Name> command failed: <error>` on standard error.

mod client;
mod create;
mod delete;
mod doctor;
mod latency;
mod options;
mod query;
mod replay;
mod serve;
mod show;
mod test;
mod toggle;
pub mod top;
mod update;
mod write;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::env::Env;

/// A time-series database whose Python runs on the core that ingests the data.
#[derive(Debug, Parser)]
#[command(name = "saltus", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(Box<serve::ServeArgs>),
    /// Create a database, table or trigger
    Create {
        #[command(subcommand)]
        what: create::Create,
    },
    /// Delete a database, table or trigger
    Delete {
        #[command(subcommand)]
        what: delete::Delete,
    },
    /// Show databases, triggers or system tables
    Show {
        #[command(subcommand)]
        what: show::Show,
    },
    /// Check the machine, and say what to change
    Doctor(doctor::Doctor),
    /// Watch the shards and triggers of a server
    Top(top::Top),
    /// Give events that a trigger did not take to it again
    Replay(replay::Replay),
    /// Run a plugin once and show what it would do
    Test {
        #[command(subcommand)]
        what: test::Test,
    },
    /// Change a trigger
    Update {
        #[command(subcommand)]
        what: update::Update,
    },
    /// Enable a trigger
    Enable {
        #[command(subcommand)]
        what: toggle::Toggle,
    },
    /// Disable a trigger
    Disable {
        #[command(subcommand)]
        what: toggle::Toggle,
    },
    /// Write line protocol
    #[command(visible_alias = "w")]
    Write(write::WriteArgs),
    /// Run a SQL query
    #[command(visible_alias = "q")]
    Query(query::QueryArgs),
    /// Run the plugins of one trigger, or try what plugins import; started by the server
    #[command(hide = true)]
    Worker {
        /// What for, if not for runs; looked at where the process begins
        _what: Option<String>,
    },
}

/// Why a command failed; the text is for the person at the terminal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CliError(pub String);

impl CliError {
    fn file(path: &std::path::Path, error: impl std::fmt::Display) -> Self {
        CliError(format!("{}: {error}", path.display()))
    }
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let command = match Cli::parse().command {
        // Before anything else of the process is set up: a worker closes the files that it has inherited.
        Command::Worker { .. } => return saltus_python::worker_main(),
        command => command,
    };
    let env = Env::process();
    let (name, result) = run(command, &env);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name} command failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, env: &Env) -> (&'static str, Result<(), CliError>) {
    match command {
        Command::Serve(args) => ("Serve", args.run(env)),
        Command::Create { what } => ("Create", what.run(env)),
        Command::Delete { what } => ("Delete", what.run(env)),
        Command::Show { what } => ("Show", what.run(env)),
        Command::Update { what } => ("Update", what.run(env)),
        Command::Enable { what } => ("Enable", what.run(env, true)),
        Command::Disable { what } => ("Disable", what.run(env, false)),
        Command::Doctor(args) => ("Doctor", args.run(env)),
        Command::Top(args) => ("Top", args.run(env)),
        Command::Replay(args) => ("Replay", args.run(env)),
        Command::Test { what } => ("Test", what.run(env)),
        Command::Write(args) => ("Write", args.run(env)),
        Command::Query(args) => ("Query", args.run(env)),
        Command::Worker { .. } => unreachable!("a worker does not come here"),
    }
}

/// Prints to standard output; a reader that went away ends the program quietly, as `head` expects.
fn say(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).is_err() {
        std::process::exit(0);
    }
}

/// Prints which lane a trigger has, if the answer to its change says so.
fn say_lane(answer: &[u8]) {
    let answer: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
    if let (Some(lane), Some(reason)) = (answer["lane"].as_str(), answer["lane_reason"].as_str()) {
        say(&format!("Lane: {lane} ({reason})"));
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_worker_is_a_command_that_the_help_does_not_show() {
        assert!(matches!(parse("saltus worker").unwrap(), Command::Worker { .. }));
        assert!(matches!(parse("saltus worker imports").unwrap(), Command::Worker { .. }));
        assert!(!Cli::command().render_help().to_string().contains("worker"));
    }

    #[test]
    fn no_command_prints_the_help() {
        let error = parse("saltus").unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    }

    #[test]
    fn the_references_start_is_taken() {
        let line = "saltus serve --node-id n0 --object-store file --data-dir D --plugin-dir P --http-bind \
                    127.0.0.1:8181 --without-auth --wal-flush-interval 10ms --disable-file-cache";
        let Command::Serve(args) = parse(line).unwrap() else { panic!("not serve") };
        assert_eq!(args.flags["node-id"].value, "n0");
        assert_eq!(args.flags["without-auth"].value, "true");
        assert_eq!(args.notes.len(), 2);
        assert!(args.notes[0].contains("--wal-flush-interval has no meaning here"));
    }

    #[test]
    fn short_names_and_aliases_are_taken() {
        assert!(matches!(parse("saltus w -d db -q cpu").unwrap(), Command::Write(_)));
        assert!(matches!(parse("saltus q -d db --format csv SELECT").unwrap(), Command::Query(_)));
        let line = "saltus create trigger -H http://h:1 -d db --plugin-filename p.py --trigger-spec all_tables \
                    --trigger-arguments a=1,b=2 --run-asynchronous --error-behavior retry --disabled t";
        assert!(matches!(parse(line).unwrap(), Command::Create { .. }));
        assert!(parse("saltus create trigger -d db --path p.py --trigger-spec all_tables --execution fast t").is_err());
        let line = "saltus test wal_plugin -d db --lp x --input-arguments a=1,b=2 --cache-name c p.py";
        assert!(matches!(parse(line).unwrap(), Command::Test { .. }));
        assert!(parse("saltus test wal_plugin -d db --lp x --event 1-0-1 p.py").is_err());
        assert!(parse("saltus test wal_plugin -d db p.py").is_err());
        assert!(parse("saltus test schedule_plugin -d db --schedule * p.py").is_ok());
        assert!(parse("saltus test request_plugin -d db --query a=1 --header X:1 --body b p.py").is_ok());
        assert!(matches!(parse("saltus update trigger -d db -t t -p p.py").unwrap(), Command::Update { .. }));
        let line = "saltus update trigger -d db --trigger-spec every:1s --time-zone UTC --missed-runs default \
                    --no-trigger-arguments --run-asynchronous false t";
        assert!(matches!(parse(line).unwrap(), Command::Update { .. }));
        assert!(parse("saltus update trigger -d db --missed-runs once").is_err());
        assert!(matches!(parse("saltus delete database -y x").unwrap(), Command::Delete { .. }));
        assert!(matches!(parse("saltus delete database --force x").unwrap(), Command::Delete { .. }));
    }
}
