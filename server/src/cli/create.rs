//! `saltus create database|table|trigger`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Subcommand};
use http::Method;
use saltus_core::trigger::TriggerSpec;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::options::{DatabaseOption, Pairs, ServerOptions, json_pairs, key_value, pairs_of, required_database};
use super::{CliError, say, say_lane};
use crate::config::env::Env;

/// What is created.
#[derive(Debug, Subcommand)]
pub(crate) enum Create {
    /// Create a database
    Database(CreateDatabase),
    /// Create an empty table
    Table(CreateTable),
    /// Create a trigger: a plugin and what starts it
    Trigger(Box<CreateTrigger>),
}

impl Create {
    pub(crate) fn run(self, env: &Env) -> Result<(), CliError> {
        match self {
            Create::Database(args) => args.run(env),
            Create::Table(args) => args.run(env),
            Create::Trigger(args) => args.run(env),
        }
    }
}

/// `create database`.
#[derive(Debug, Args)]
pub(crate) struct CreateDatabase {
    #[command(flatten)]
    server: ServerOptions,
    /// How long rows are kept, for instance 30d (stored; this version does not delete by age yet)
    #[arg(long, value_name = "TIME")]
    retention_period: Option<String>,
    /// Name of the database [env: SALTUS_DATABASE_NAME or INFLUXDB3_DATABASE_NAME]
    name: Option<String>,
}

impl CreateDatabase {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let name = required_database(self.name, env, "the argument <NAME>")?;
        let mut body = json!({ "db": name });
        if let Some(period) = self.retention_period {
            body["retention_period"] = period.into();
        }
        self.server.client(env, &[])?.json(Method::POST, "/api/v3/configure/database", &body)?;
        say(&format!("Database \"{name}\" created successfully"));
        Ok(())
    }
}

/// `create table`.
#[derive(Debug, Args)]
pub(crate) struct CreateTable {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    /// Names of the tags, in the order of the series key, separated by commas; or, for names with commas, a JSON list
    #[arg(long, value_name = "TAG,...|JSON")]
    tags: Vec<Tags>,
    /// Fields as name:type, separated by commas, or a JSON object, {"name": "type"}; types are int64, uint64, float64, utf8, bool
    #[arg(short = 'f', long, value_name = "NAME:TYPE,...|JSON")]
    fields: Vec<Fields>,
    /// Name of the table
    table: String,
}

impl CreateTable {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let db = self.database.required(env)?;
        let fields = self.fields.into_iter().flat_map(|fields| fields.0);
        let fields: Vec<Value> = fields.map(|(name, kind)| json!({ "name": name, "type": kind })).collect();
        let tags: Vec<String> = self.tags.into_iter().flat_map(|tags| tags.0).collect();
        let body = json!({ "db": db, "table": self.table, "tags": tags, "fields": fields });
        self.server.client(env, &[])?.json(Method::POST, "/api/v3/configure/table", &body)?;
        say(&format!("Table \"{db}\".\"{}\" created successfully", self.table));
        Ok(())
    }
}

/// The tags of one `--tags`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tags(Vec<String>);

impl FromStr for Tags {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with('[') {
            return serde_json::from_str(text).map(Tags).map_err(|error| format!("is no JSON list of texts: {error}"));
        }
        Ok(Tags(text.split(',').map(str::to_owned).collect()))
    }
}

/// The fields of one `--fields`, with their types.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fields(Vec<(String, String)>);

impl FromStr for Fields {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fields = match text.trim_start().starts_with('{') {
            true => json_pairs(text)?,
            false => text.split(',').map(field).collect::<Result<_, _>>()?,
        };
        for (name, kind) in &fields {
            if !["int64", "uint64", "float64", "utf8", "bool"].contains(&kind.as_str()) {
                return Err(format!("'{name}': '{kind}' is none of int64, uint64, float64, utf8, bool"));
            }
        }
        Ok(Fields(fields))
    }
}

fn field(text: &str) -> Result<(String, String), String> {
    let (name, kind) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("'{text}' is not of the form name:type; a name with a comma is given as JSON"))?;
    Ok((name.to_owned(), kind.to_owned()))
}

/// `create trigger`.
#[derive(Debug, Args)]
pub(crate) struct CreateTrigger {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    /// The plugin: a file or directory under the server's plugin directory; with --upload, here
    #[arg(long, alias = "plugin-filename", value_name = "PATH")]
    path: String,
    /// What starts it: table:TABLE, all_tables, every:DURATION, cron:EXPRESSION or request:PATH
    #[arg(long, value_name = "SPEC")]
    trigger_spec: String,
    /// What the plugin gets as args: key=value, separated by commas, or a JSON object of texts. A comma always ends a value here: for a
    /// value with commas see --trigger-argument
    #[arg(long, value_name = "KEY=VALUE,...|JSON")]
    trigger_arguments: Vec<Pairs>,
    /// One of the args, its value as it stands, commas, equals signs and line ends included; may be repeated, for instance
    /// --trigger-argument 'sql=SELECT a, b FROM t' --trigger-argument 'empty='
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    trigger_argument: Vec<(String, String)>,
    /// Create it without running it
    #[arg(long)]
    disabled: bool,
    /// Let runs overlap
    #[arg(long)]
    run_asynchronous: bool,
    /// What happens when a run fails [default: the plugin's manifest.toml, or log]
    #[arg(long, value_parser = ["log", "retry", "disable"], ignore_case = true)]
    error_behavior: Option<String>,
    /// Where it runs: on the core that ingests, on that core's worker threads, or where it does no harm [default: the
    /// plugin's manifest.toml, or auto]
    #[arg(long, value_parser = ["auto", "inline", "deferred"])]
    execution: Option<String>,
    /// Whose interpreter: the server's, one of a process of its own, or what its packages need [default: the plugin's
    /// manifest.toml, or auto]
    #[arg(long, value_parser = ["auto", "interpreter", "process"])]
    isolation: Option<String>,
    /// What it may use: run_time, memory, output_rows, log_lines_per_second, queue_size, concurrency, cpu_share,
    /// inline_budget, for instance run_time=5s,memory=256mb [default: the server's]
    #[arg(long, value_name = "LIMIT=VALUE,...")]
    limits: Vec<Pairs>,
    /// The time zone of its schedule, for instance Europe/Berlin: that of cron expressions, and of the time that the plugin is
    /// told [default: UTC, and the server's]
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// What becomes of times of its schedule that were missed: they are passed over, made up for by one run, or by one
    /// each [default: the plugin's manifest.toml, or skip]
    #[arg(long, value_parser = ["skip", "once", "all"])]
    missed_runs: Option<String>,
    /// What rows have for a column that their line does not name: no key, or None [default: the plugin's manifest.toml, or
    /// absent]
    #[arg(long, value_parser = ["absent", "none"])]
    missing_columns: Option<String>,
    /// Whether plain values of its cache are there again after a restart [default: the plugin's manifest.toml, or the
    /// server's]
    #[arg(long)]
    restore_cache: Option<bool>,
    /// Send the plugin's files to the server first
    #[arg(long)]
    upload: bool,
    /// Name of the trigger
    name: String,
}

impl CreateTrigger {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let db = self.database.required(env)?;
        let spec =
            TriggerSpec::parse(&self.trigger_spec).map_err(|error| CliError(format!("{error}{}", error.remedy())))?;
        let client = self.server.client(env, &[])?;
        let filename = if self.upload { upload(&client, Path::new(&self.path))? } else { self.path };
        let arguments = pairs_of("trigger-arguments", self.trigger_arguments, self.trigger_argument)?;
        let limits: Map<String, Value> =
            pairs_of("limits", self.limits, Vec::new())?.into_iter().map(|(k, v)| (k.replace('-', "_"), v)).collect();
        let settings = json!({
            // Not said is not the same as no: the plugin's manifest may say yes.
            "run_async": self.run_asynchronous.then_some(true),
            "error_behavior": self.error_behavior.map(|behavior| behavior.to_lowercase()),
            "execution": self.execution,
            "isolation": self.isolation,
            "limits": limits,
            "time_zone": self.time_zone,
            "missed_runs": self.missed_runs,
            "missing_columns": self.missing_columns,
            "restore_cache": self.restore_cache,
        });
        let body = json!({
            "db": db,
            "plugin_filename": filename,
            "trigger_name": self.name,
            "trigger_settings": settings,
            "trigger_specification": spec.to_string(),
            "trigger_arguments": if arguments.is_empty() { Value::Null } else { arguments.into() },
            "disabled": self.disabled,
        });
        let created = client.json(Method::POST, "/api/v3/configure/processing_engine_trigger", &body);
        let answer = created.map_err(|error| CliError(format!("Failed to create trigger: {error}")))?;
        say(&format!("Trigger {} created successfully", self.name));
        say_lane(&answer);
        Ok(())
    }
}

/// Sends a file, or all `*.py` of a directory; gives the name that the plugin has on the server.
fn upload(client: &Client, path: &Path) -> Result<String, CliError> {
    let real = path.canonicalize().map_err(|error| CliError::file(path, error))?;
    let name = real.file_name().ok_or_else(|| CliError::file(path, "is no plugin"))?.to_string_lossy().into_owned();
    upload_as(client, &real, &name)?;
    Ok(name)
}

/// Sends a file, or all `*.py` of a directory, to be the plugin of that name on the server.
pub(super) fn upload_as(client: &Client, path: &Path, name: &str) -> Result<(), CliError> {
    let real = path.canonicalize().map_err(|error| CliError::file(path, error))?;
    let read = |file: &Path| std::fs::read_to_string(file).map_err(|error| CliError::file(file, error));
    if !real.is_dir() {
        let body = json!({ "plugin_name": name, "content": read(&real)? });
        return client.json(Method::POST, "/api/v3/plugins/files", &body).map(drop);
    }
    let mut files = Vec::new();
    python_files(&real, &mut files)?;
    files.sort();
    let file = |file: &PathBuf| {
        let below = file.strip_prefix(&real).unwrap_or(file).display().to_string();
        Ok::<_, CliError>(json!({ "relative_path": below, "content": read(file)? }))
    };
    let files = files.iter().map(file).collect::<Result<Vec<_>, CliError>>()?;
    // In one piece: no run is to see a part of it.
    let body = json!({ "plugin_name": name, "files": files });
    client.json(Method::POST, "/api/v3/plugins/directory", &body).map(drop)
}

fn python_files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), CliError> {
    for entry in std::fs::read_dir(dir).map_err(|error| CliError::file(dir, error))? {
        let entry = entry.map_err(|error| CliError::file(dir, error))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(|error| CliError::file(dir, error))?);
        if kind.is_dir() && entry.file_name() != "__pycache__" {
            python_files(&path, found)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "py") {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_lists_or_json() {
        let texts = |list: &[&str]| Tags(list.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!("a,b c".parse(), Ok(texts(&["a", "b c"])));
        assert_eq!(r#"["a,b", "c"]"#.parse(), Ok(texts(&["a,b", "c"])));
        assert!("[1]".parse::<Tags>().is_err());
        let pair = |name: &str, kind: &str| (name.to_owned(), kind.to_owned());
        assert_eq!("a:b:int64,c:bool".parse(), Ok(Fields(vec![pair("a:b", "int64"), pair("c", "bool")])));
        assert_eq!(r#"{"a,b": "utf8"}"#.parse(), Ok(Fields(vec![pair("a,b", "utf8")])));
        for (text, why) in [
            ("a,b:int64", "'a' is not of the form name:type; a name with a comma is given as JSON"),
            ("a:int32", "'a': 'int32' is none of int64"),
            (r#"{"a": "int32"}"#, "'a': 'int32' is none of int64"),
            (r#"{"a": 1}"#, "'a' must be a text"),
        ] {
            let error = text.parse::<Fields>().unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
    }
}
