//! `saltus update trigger`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use http::Method;
use saltus_core::trigger::TriggerSpec;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::create::upload_as;
use super::options::{DatabaseOption, Pairs, ServerOptions, key_value, pairs_of};
use super::{CliError, say, say_lane};
use crate::config::env::Env;

const TRIGGER: &str = "/api/v3/configure/processing_engine_trigger";

/// What is updated.
#[derive(Debug, Subcommand)]
pub(crate) enum Update {
    /// Change a trigger: its plugin's code, what starts it, how it runs. What waits for it is not lost
    Trigger(Box<UpdateTrigger>),
}

impl Update {
    pub(crate) fn run(self, env: &Env) -> Result<(), CliError> {
        let Update::Trigger(args) = self;
        args.run(env)
    }
}

/// `update trigger`: what is not given stays as it is.
#[derive(Debug, Args)]
pub(crate) struct UpdateTrigger {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    /// Replace the plugin's code with this file or directory from here
    #[arg(short = 'p', long, value_name = "PATH")]
    path: Option<PathBuf>,
    /// Use another plugin: a file or directory under the server's plugin directory
    #[arg(long, value_name = "NAME")]
    plugin_filename: Option<String>,
    /// What starts it, of the kind that it has
    #[arg(long, value_name = "SPEC")]
    trigger_spec: Option<String>,
    /// What the plugin gets as args, all of it: key=value, separated by commas, or a JSON object of texts. A comma always ends a value here: for a
    /// value with commas see --trigger-argument
    #[arg(long, value_name = "KEY=VALUE,...|JSON")]
    trigger_arguments: Vec<Pairs>,
    /// One of the args, its value as it stands, commas, equals signs and line ends included; may be repeated, for instance
    /// --trigger-argument 'sql=SELECT a, b FROM t' --trigger-argument 'empty='
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    trigger_argument: Vec<(String, String)>,
    /// The plugin gets no args any more
    #[arg(long, conflicts_with_all = ["trigger_arguments", "trigger_argument"])]
    no_trigger_arguments: bool,
    /// Disable or enable it
    #[arg(long, value_name = "true|false")]
    disabled: Option<bool>,
    /// Whether runs may overlap
    #[arg(long, value_name = "true|false")]
    run_asynchronous: Option<bool>,
    /// What happens when a run fails
    #[arg(long, value_parser = ["log", "retry", "disable", "default"], ignore_case = true)]
    error_behavior: Option<String>,
    /// Where it runs
    #[arg(long, value_parser = ["auto", "inline", "deferred", "default"])]
    execution: Option<String>,
    /// Whose interpreter
    #[arg(long, value_parser = ["auto", "interpreter", "process", "default"])]
    isolation: Option<String>,
    /// What it may use, for instance run_time=5s,memory=default
    #[arg(long, value_name = "LIMIT=VALUE,...")]
    limits: Vec<Pairs>,
    /// The zone of its schedule, for instance Europe/Berlin
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// What becomes of times of its schedule that were missed
    #[arg(long, value_parser = ["skip", "once", "all", "default"])]
    missed_runs: Option<String>,
    /// Name of the trigger
    #[arg(short = 't', long = "trigger-name", value_name = "NAME", conflicts_with = "name")]
    trigger_name: Option<String>,
    /// Name of the trigger
    #[arg(required_unless_present = "trigger_name")]
    name: Option<String>,
}

impl UpdateTrigger {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let db = self.database.required(env)?;
        let client = self.server.client(env, &[])?;
        let name = self.trigger_name.or(self.name).unwrap_or_default();
        let mut body = Map::new();
        if let Some(text) = self.trigger_spec {
            let spec = TriggerSpec::parse(&text).map_err(|error| CliError(format!("{error}{}", error.remedy())))?;
            body.insert("trigger_specification".to_owned(), spec.to_string().into());
        }
        let given = !self.trigger_arguments.is_empty() || !self.trigger_argument.is_empty();
        if given || self.no_trigger_arguments {
            let arguments = pairs_of("trigger-arguments", self.trigger_arguments, self.trigger_argument)?;
            let arguments = if arguments.is_empty() { Value::Null } else { arguments.into() };
            body.insert("trigger_arguments".to_owned(), arguments);
        }
        let mut settings = Map::new();
        let limits: Map<String, Value> = pairs_of("limits", self.limits, Vec::new())?
            .into_iter()
            .map(|(name, value)| (name.replace('-', "_"), if value == "default" { Value::Null } else { value }))
            .collect();
        for (name, value) in [
            ("run_async", self.run_asynchronous.map(Value::from)),
            ("error_behavior", self.error_behavior.map(|behavior| setting(behavior.to_lowercase()))),
            ("execution", self.execution.map(setting)),
            ("isolation", self.isolation.map(setting)),
            ("time_zone", self.time_zone.map(setting)),
            ("missed_runs", self.missed_runs.map(setting)),
            ("limits", (!limits.is_empty()).then(|| limits.into())),
        ] {
            settings.extend(value.map(|value| (name.to_owned(), value)));
        }
        if !settings.is_empty() {
            body.insert("trigger_settings".to_owned(), settings.into());
        }
        body.extend(self.plugin_filename.map(|name| ("plugin_filename".to_owned(), name.into())));
        body.extend(self.disabled.map(|disabled| ("disabled".to_owned(), disabled.into())));
        if body.is_empty() && self.path.is_none() {
            return Err(CliError("nothing to change: see --help for what can be changed".to_owned()));
        }
        if let Some(path) = self.path {
            let filename = match body.get("plugin_filename") {
                Some(Value::String(name)) => name.clone(),
                _ => plugin_of(&client, &db, &name)?,
            };
            upload_as(&client, &path, filename.trim_end_matches('/'))?;
        }
        body.insert("db".to_owned(), db.into());
        body.insert("trigger_name".to_owned(), name.as_str().into());
        // Also with new code alone: the server says whether it can be run.
        let updated = client.json(Method::PUT, TRIGGER, &body.into());
        let answer = updated.map_err(|error| CliError(format!("Failed to update trigger: {error}")))?;
        say(&format!("Trigger {name} updated successfully"));
        say_lane(&answer);
        Ok(())
    }
}

/// `default` takes a setting away.
fn setting(value: String) -> Value {
    if value == "default" { Value::Null } else { value.into() }
}

/// The plugin that a trigger names.
fn plugin_of(client: &Client, db: &str, name: &str) -> Result<String, CliError> {
    let list = client.params(Method::GET, TRIGGER, &[("db", db)])?;
    let list: Vec<Value> = serde_json::from_slice(&list)
        .map_err(|error| CliError(format!("the server's answer is no list of triggers: {error}")))?;
    let found = list.iter().find(|trigger| trigger["trigger_name"] == json!(name));
    let filename = found.and_then(|trigger| trigger["plugin_filename"].as_str());
    filename.map(str::to_owned).ok_or_else(|| CliError(format!("database {db} has no trigger {name}")))
}
