//! `saltus show databases|triggers|plugins|latency|system`.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::latency::ShowLatency;
use super::options::{DatabaseOption, ServerOptions};
use super::query::{print_bytes, query};
use super::{CliError, say};
use crate::config::env::Env;
use crate::text_table::TextTable;

const FORMATS: [&str; 5] = ["pretty", "json", "jsonl", "csv", "parquet"];

/// What is shown.
#[derive(Debug, Subcommand)]
pub(crate) enum Show {
    /// Names of all databases
    Databases(ShowDatabases),
    /// Triggers of a database, or of all
    Triggers(ShowTriggers),
    /// Files of the plugins that triggers have
    Plugins(ShowPlugins),
    /// Latencies of triggers, as a table or as histograms
    Latency(ShowLatency),
    /// System tables
    System(ShowSystem),
}

impl Show {
    pub(crate) fn run(self, env: &Env) -> Result<(), CliError> {
        match self {
            Show::Databases(args) => args.run(env),
            Show::Triggers(args) => args.run(env),
            Show::Plugins(args) => args.run(env),
            Show::Latency(args) => args.run(env),
            Show::System(args) => args.run(env),
        }
    }
}

/// `show databases`.
#[derive(Debug, Args)]
pub(crate) struct ShowDatabases {
    #[command(flatten)]
    server: ServerOptions,
    /// Add the column that tells deleted databases
    #[arg(long)]
    show_deleted: bool,
    /// How to write the result
    #[arg(long, value_parser = FORMATS, default_value = "pretty")]
    format: String,
}

impl ShowDatabases {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let deleted = self.show_deleted.to_string();
        let params = [("format", self.format.as_str()), ("show_deleted", deleted.as_str())];
        let list = self.server.client(env, &[])?.params(Method::GET, "/api/v3/configure/database", &params)?;
        print_bytes(&list)
    }
}

/// `show plugins`.
#[derive(Debug, Args)]
pub(crate) struct ShowPlugins {
    #[command(flatten)]
    server: ServerOptions,
    /// How to write the result
    #[arg(long, value_parser = FORMATS, default_value = "pretty")]
    format: String,
}

impl ShowPlugins {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let sql = "SELECT plugin_name, file_name, file_path, size_bytes, last_modified FROM system.plugin_files \
                   ORDER BY plugin_name, file_name";
        let body = json!({ "db": "_internal", "q": sql, "format": self.format });
        print_bytes(&query(&self.server.client(env, &[])?, &body)?)
    }
}

/// `show triggers`.
#[derive(Debug, Args)]
pub(crate) struct ShowTriggers {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    /// How to write the result
    #[arg(long, value_parser = ["pretty", "json", "jsonl", "csv"], default_value = "pretty")]
    format: String,
}

impl ShowTriggers {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let db = self.database.database;
        let params: Vec<(&str, &str)> = db.iter().map(|db| ("db", db.as_str())).collect();
        let path = "/api/v3/configure/processing_engine_trigger";
        let body = self.server.client(env, &[])?.params(Method::GET, path, &params)?;
        let list: Vec<Value> = serde_json::from_slice(&body)
            .map_err(|error| CliError(format!("the server's answer is no list of triggers: {error}")))?;
        match self.format.as_str() {
            "json" => say(&Value::Array(list).to_string()),
            "jsonl" => list.iter().for_each(|trigger| say(&trigger.to_string())),
            "csv" => say(trigger_table(&list).csv().trim_end()),
            _ => say(&trigger_table(&list).pretty()),
        }
        Ok(())
    }
}

fn trigger_table(list: &[Value]) -> TextTable {
    let columns = ["db", "trigger_name", "plugin_filename", "trigger_specification"];
    let settings = ["execution", "isolation", "run_async", "error_behavior", "time_zone", "missed_runs"];
    let last = ["trigger_arguments", "disabled", "disabled_reason", "next_scheduled_time"];
    let mut table = TextTable::new(&[&columns[..], &settings[..], &last[..]].concat());
    for trigger in list {
        let outer = columns.iter().map(|name| cell(&trigger[name]));
        let inner = settings.iter().map(|name| cell(&trigger["trigger_settings"][name]));
        table.row(outer.chain(inner).chain(last.iter().map(|name| cell(&trigger[name]))).collect());
    }
    table
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// `show system`.
#[derive(Debug, Args)]
pub(crate) struct ShowSystem {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    #[command(subcommand)]
    what: SystemPart,
}

#[derive(Debug, Subcommand)]
enum SystemPart {
    /// Names of the system tables
    TableList {
        /// How to write the result
        #[arg(long, value_parser = FORMATS, default_value = "pretty")]
        format: String,
    },
    /// Rows of a system table
    Table {
        /// Name of the system table
        table: String,
        /// At most so many rows
        #[arg(short = 'l', long, default_value_t = 100)]
        limit: u64,
        /// Columns to order by
        #[arg(short = 'o', long, value_delimiter = ',', value_name = "COLUMN")]
        order_by: Vec<String>,
        /// Columns to show
        #[arg(short = 's', long, value_delimiter = ',', value_name = "COLUMN")]
        select: Vec<String>,
        /// How to write the result
        #[arg(long, value_parser = FORMATS, default_value = "pretty")]
        format: String,
    },
}

impl ShowSystem {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let db = self.database.required(env)?;
        let client = self.server.client(env, &[])?;
        let (sql, format) = system_sql(self.what);
        let body = json!({ "db": db, "q": sql, "format": format });
        print_bytes(&query(&client, &body)?)
    }
}

fn system_sql(part: SystemPart) -> (String, String) {
    match part {
        SystemPart::TableList { format } => {
            let sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'system' ORDER BY 1";
            (sql.to_owned(), format)
        }
        SystemPart::Table { table, limit, order_by, select, format } => {
            let columns = if select.is_empty() { "*".to_owned() } else { select.join(", ") };
            let order = if order_by.is_empty() { String::new() } else { format!(" ORDER BY {}", order_by.join(", ")) };
            (format!("SELECT {columns} FROM system.\"{table}\"{order} LIMIT {limit}"), format)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_table_is_a_query() {
        let part = SystemPart::Table {
            table: "queries".into(),
            limit: 5,
            order_by: vec!["id".into()],
            select: vec!["id".into(), "phase".into()],
            format: "csv".into(),
        };
        let (sql, format) = system_sql(part);
        assert_eq!(sql, "SELECT id, phase FROM system.\"queries\" ORDER BY id LIMIT 5");
        assert_eq!(format, "csv");
    }

    #[test]
    fn triggers_are_drawn_with_their_settings() {
        let trigger = json!({
            "db": "d", "trigger_name": "t", "plugin_filename": "p.py", "trigger_specification": "all_tables",
            "trigger_settings": {"run_async": false, "error_behavior": "log", "execution": "inline", "isolation": "auto"},
            "trigger_arguments": null, "disabled": true, "disabled_reason": "KeyError: 'x'",
        });
        let csv = trigger_table(&[trigger]).csv();
        assert_eq!(csv.lines().nth(1), Some("d,t,p.py,all_tables,inline,auto,false,log,,,,true,KeyError: 'x',"));
    }
}
