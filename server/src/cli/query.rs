//! `saltus query`.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;

use clap::Args;
use http::Method;
use saltus_core::text::without_mark;
use serde_json::{Value, json};

use super::CliError;
use super::client::Client;
use super::options::{DatabaseOption, ServerOptions};
use super::write::is_standard_input;
use crate::config::env::{Env, QUERY_HOST_URL};

/// `query`.
#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    /// Server to query, if it is another one than --host [env: SALTUS_QUERY_HOST_URL or INFLUXDB3_QUERY_HOST_URL]
    #[arg(long, value_name = "URL")]
    query_host: Option<String>,
    /// Language of the query; this version knows sql
    #[arg(short = 'l', long, value_parser = ["sql", "influxql"], default_value = "sql")]
    language: String,
    /// How to write the result
    #[arg(long, value_parser = ["pretty", "json", "jsonl", "csv", "parquet"], default_value = "pretty")]
    format: String,
    /// Write the result to a file (needed for parquet)
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: Option<PathBuf>,
    /// Read the query from a file; `-` is standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
    /// The query; read from standard input if neither it nor --file is given, or if it is `-`
    sql: Vec<String>,
}

impl QueryArgs {
    pub(crate) fn run(mut self, env: &Env) -> Result<(), CliError> {
        if self.language != "sql" {
            return Err(CliError("InfluxQL is not in this version: write the query in SQL".to_owned()));
        }
        if self.format == "parquet" && self.output.is_none() {
            return Err(CliError("a parquet result goes to a file: use --output FILE".to_owned()));
        }
        if self.query_host.is_some() {
            self.server.host = self.query_host.take();
        }
        let db = self.database.required(env)?;
        let sql = text_of(self.sql, self.file)?;
        let body = json!({ "db": db, "q": sql, "format": self.format });
        let result = query(&self.server.client(env, QUERY_HOST_URL)?, &body)?;
        match self.output {
            Some(path) => std::fs::write(&path, result).map_err(|error| CliError::file(&path, error)),
            None => print_bytes(&result),
        }
    }
}

fn text_of(words: Vec<String>, file: Option<PathBuf>) -> Result<String, CliError> {
    if !words.is_empty() && words != ["-"] {
        return Ok(words.join(" "));
    }
    if let Some(path) = file.as_deref().filter(|path| !is_standard_input(path)) {
        let text = std::fs::read_to_string(path).map_err(|error| CliError::file(path, error))?;
        return Ok(without_mark(&text).to_owned());
    }
    if words.is_empty() && file.is_none() && std::io::stdin().is_terminal() {
        return Err(CliError("no query given: use the argument <SQL>, --file or standard input".to_owned()));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| CliError(format!("standard input: {error}")))?;
    Ok(without_mark(&text).to_owned())
}

/// Runs a query given as the endpoint's JSON.
pub(crate) fn query(client: &Client, body: &Value) -> Result<Vec<u8>, CliError> {
    client.json(Method::POST, "/api/v3/query_sql", body)
}

/// Prints a result as it came, with a newline at its end.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    let newline: &[u8] = if bytes.is_empty() || bytes.ends_with(b"\n") { b"" } else { b"\n" };
    match out.write_all(bytes).and_then(|()| out.write_all(newline)).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}
