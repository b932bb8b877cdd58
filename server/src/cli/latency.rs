//! `saltus show latency`: the latencies of triggers as a table, or histograms as files of HdrHistogram.

use std::path::PathBuf;

use clap::Args;
use http::Method;
use serde_json::json;

use super::CliError;
use super::options::{DatabaseOption, ServerOptions, required_database};
use super::query::{print_bytes, query};
use crate::config::env::{self, Env};

/// `show latency`.
#[derive(Debug, Args)]
pub(crate) struct ShowLatency {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    /// Only this trigger
    #[arg(long, value_name = "NAME", conflicts_with = "shard")]
    trigger: Option<String>,
    /// A shard instead of a database's triggers (hlog and hgrm)
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
    /// Only this stage: activation, schedule_delay, queue, run or response; of shards commit or turn
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// How to write it; hlog and hgrm are HdrHistogram's interval log and percentile distribution
    #[arg(long, value_parser = ["pretty", "json", "jsonl", "csv", "hlog", "hgrm"], default_value = "pretty")]
    format: String,
    /// Write it to a file
    #[arg(short = 'o', long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl ShowLatency {
    pub(crate) fn run(self, env: &Env) -> Result<(), CliError> {
        let output = self.output.clone();
        let result = match self.format.as_str() {
            "hlog" | "hgrm" => self.histograms(env)?,
            _ => self.table(env)?,
        };
        match output {
            Some(path) => std::fs::write(&path, result).map_err(|error| CliError::file(&path, error)),
            None => print_bytes(&result),
        }
    }

    fn table(self, env: &Env) -> Result<Vec<u8>, CliError> {
        if self.shard.is_some() {
            let text =
                "--shard goes with --format hlog or hgrm; the figures of shards are in system.shards and /metrics";
            return Err(CliError(text.to_owned()));
        }
        let db = self.database.required(env)?;
        let mut sql = "SELECT * FROM system.trigger_latency".to_owned();
        let filters = [("trigger_name", &self.trigger), ("stage", &self.stage)];
        let filters: Vec<String> = filters
            .iter()
            .filter(|(_, value)| value.is_some())
            .map(|(column, _)| format!("{column} = ${column}"))
            .collect();
        if !filters.is_empty() {
            sql = format!("{sql} WHERE {}", filters.join(" AND "));
        }
        sql.push_str(" ORDER BY trigger_name, stage");
        let params = json!({ "trigger_name": self.trigger, "stage": self.stage });
        let body = json!({ "db": db, "q": sql, "params": params, "format": self.format });
        query(&self.server.client(env, &[])?, &body)
    }

    fn histograms(self, env: &Env) -> Result<Vec<u8>, CliError> {
        let shard = self.shard.map(|shard| shard.to_string());
        // Without a database and without a trigger: everything.
        let db = match (&self.trigger, &self.shard) {
            (Some(_), _) => Some(required_database(self.database.database, env, "--database")?),
            (None, Some(_)) => None,
            (None, None) => {
                self.database.database.or_else(|| env.first(env::DATABASE_NAME).map(|(_, db)| db.to_owned()))
            }
        };
        let params: Vec<(&str, &str)> =
            [("db", &db), ("trigger", &self.trigger), ("shard", &shard), ("stage", &self.stage)]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value.as_deref()?)))
                .chain([("format", self.format.as_str())])
                .collect();
        self.server.client(env, &[])?.params(Method::GET, "/api/v3/debug/histograms", &params)
    }
}
