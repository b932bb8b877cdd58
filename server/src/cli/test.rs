//! `saltus test wal_plugin|schedule_plugin|request_plugin`: runs a plugin of the server once and prints what it would have done.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{ArgGroup, Args, Subcommand};
use http::Method;
use serde_json::{Map, Value, json};

use super::options::{DatabaseOption, Pairs, ServerOptions, key_value, pairs_of};
use super::{CliError, say};
use crate::config::env::Env;

/// What is tested.
#[derive(Debug, Subcommand)]
pub(crate) enum Test {
    /// Run a plugin for rows
    #[command(name = "wal_plugin")]
    Wal(WalPlugin),
    /// Run a plugin for a time of a schedule
    #[command(name = "schedule_plugin")]
    Schedule(SchedulePlugin),
    /// Run a plugin for a request
    #[command(name = "request_plugin")]
    Request(RequestPlugin),
}

impl Test {
    pub(crate) fn run(self, env: &Env) -> Result<(), CliError> {
        match self {
            Test::Wal(args) => args.run(env),
            Test::Schedule(args) => args.run(env),
            Test::Request(args) => args.run(env),
        }
    }
}

/// What every test has.
#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    /// What the plugin gets as args: key=value, separated by commas, or a JSON object of texts. A comma always ends a value here: for a
    /// value with commas see --input-argument
    #[arg(long, value_name = "KEY=VALUE,...|JSON")]
    input_arguments: Vec<Pairs>,
    /// One of the args, its value as it stands, commas, equals signs and line ends included; may be repeated, for instance
    /// --input-argument 'sql=SELECT a, b FROM t' --input-argument 'empty='
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    input_argument: Vec<(String, String)>,
    /// Tests of the same name share a cache [default: one for all]
    #[arg(long, value_name = "NAME")]
    cache_name: Option<String>,
    /// The plugin: a file or directory under the server's plugin directory
    filename: String,
}

impl Common {
    /// Sends the test and prints what came of it.
    fn send(self, env: &Env, kind: &str, mut body: Map<String, Value>) -> Result<(), CliError> {
        let db = self.database.required(env)?;
        body.insert("filename".to_owned(), self.filename.into());
        body.insert("database".to_owned(), db.into());
        if let Some(name) = self.cache_name {
            body.insert("cache_name".to_owned(), name.into());
        }
        if !self.input_arguments.is_empty() || !self.input_argument.is_empty() {
            let arguments = pairs_of("input-arguments", self.input_arguments, self.input_argument)?;
            body.insert("input_arguments".to_owned(), arguments.into());
        }
        let path = format!("/api/v3/plugin_test/{kind}");
        let answer = self.server.client(env, &[])?.json(Method::POST, &path, &body.into())?;
        let answer: Value = serde_json::from_slice(&answer)
            .map_err(|error| CliError(format!("the server's answer is no JSON: {error}")))?;
        say(&format!("{answer:#}"));
        Ok(())
    }
}

/// `test wal_plugin`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("rows").required(true))]
pub(crate) struct WalPlugin {
    /// The rows: line protocol, times in nanoseconds
    #[arg(long, group = "rows", value_name = "LINES")]
    lp: Option<String>,
    /// The rows: a local file of line protocol
    #[arg(long, group = "rows", value_name = "FILE")]
    file: Option<PathBuf>,
    /// The rows: those of this write on the server, such as 3-0-17 (influxdb3_local.event.id)
    #[arg(long, group = "rows", value_name = "EVENT")]
    event: Option<String>,
    /// The rows: those of this dead letter on the server, a letter_id of system.dead_letters
    #[arg(long, group = "rows", value_name = "LETTER")]
    from_dead_letter: Option<String>,
    #[command(flatten)]
    common: Common,
}

impl WalPlugin {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let lines = match &self.file {
            Some(file) => Some(std::fs::read_to_string(file).map_err(|error| CliError::file(file, error))?),
            None => self.lp,
        };
        let given = [("input_lp", lines), ("event", self.event), ("dead_letter", self.from_dead_letter)];
        let body = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))).collect();
        self.common.send(env, "wal", body)
    }
}

/// `test schedule_plugin`.
#[derive(Debug, Args)]
pub(crate) struct SchedulePlugin {
    /// The schedule whose next time the plugin is told: a cron expression, or every:DURATION [default: every second]
    #[arg(long, value_name = "CRON")]
    schedule: Option<String>,
    /// The zone of the schedule, for instance Europe/Berlin
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    #[command(flatten)]
    common: Common,
}

impl SchedulePlugin {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let schedule = self.schedule.map(|schedule| ("schedule".to_owned(), schedule.into()));
        let zone = self.time_zone.map(|zone| ("time_zone".to_owned(), zone.into()));
        self.common.send(env, "schedule", schedule.into_iter().chain(zone).collect())
    }
}

/// `test request_plugin`.
#[derive(Debug, Args)]
pub(crate) struct RequestPlugin {
    /// The method [default: GET, or POST with a body]
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// What stands below the trigger's path, for a trigger request:PATH/*
    #[arg(long, value_name = "TAIL")]
    path_tail: Option<String>,
    /// A parameter; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    query: Vec<(String, String)>,
    /// A header; may be repeated
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// The body
    #[arg(long, value_name = "TEXT", conflicts_with = "body_file")]
    body: Option<String>,
    /// The body: a local file
    #[arg(long, value_name = "FILE")]
    body_file: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

impl RequestPlugin {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let bytes = match (&self.body, &self.body_file) {
            (Some(text), _) => Some(text.clone().into_bytes()),
            (None, Some(file)) => Some(std::fs::read(file).map_err(|error| CliError::file(file, error))?),
            (None, None) => None,
        };
        let method = self.method.unwrap_or_else(|| if bytes.is_some() { "POST" } else { "GET" }.to_owned());
        let mut body = Map::from_iter([("method".to_owned(), method.into())]);
        body.insert("query".to_owned(), lists(self.query));
        body.insert("headers".to_owned(), lists(self.header));
        if let Some(tail) = self.path_tail {
            body.insert("tail".to_owned(), tail.into());
        }
        if let Some(bytes) = bytes {
            body.insert("body_base64".to_owned(), STANDARD.encode(bytes).into());
        }
        self.common.send(env, "request", body)
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("'{text}' is not of the form name: value"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Names with all their values.
fn lists(pairs: Vec<(String, String)>) -> Value {
    let mut lists = Map::new();
    for (name, value) in pairs {
        if let Value::Array(values) = lists.entry(name).or_insert_with(|| json!([])) {
            values.push(value.into());
        }
    }
    lists.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_names_keep_all_values() {
        let pair = |text: &str| key_value(text).unwrap();
        assert_eq!(lists(vec![pair("a=1"), pair("b=2"), pair("a=3")]), json!({"a": ["1", "3"], "b": ["2"]}));
        assert_eq!(header("X-A:  b: c ").unwrap(), ("X-A".to_owned(), "b: c".to_owned()));
        assert!(header("x").is_err());
    }
}
