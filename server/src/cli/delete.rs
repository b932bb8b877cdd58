//! `saltus delete database|table|trigger`.

use clap::{Args, Subcommand};
use http::Method;

use super::options::{DatabaseOption, ServerOptions, confirm, required_database};
use super::{CliError, say};
use crate::config::env::Env;

/// What is deleted.
#[derive(Debug, Subcommand)]
pub(crate) enum Delete {
    /// Delete a database with its tables and triggers
    Database(DeleteDatabase),
    /// Delete a table
    Table(DeleteTable),
    /// Delete a trigger
    Trigger(DeleteTrigger),
}

impl Delete {
    pub(crate) fn run(self, env: &Env) -> Result<(), CliError> {
        match self {
            Delete::Database(args) => args.run(env),
            Delete::Table(args) => args.run(env),
            Delete::Trigger(args) => args.run(env),
        }
    }
}

/// `delete database`.
#[derive(Debug, Args)]
pub(crate) struct DeleteDatabase {
    #[command(flatten)]
    server: ServerOptions,
    /// When data goes for good: now, default, never (this version deletes at once)
    #[arg(long, value_name = "WHEN")]
    hard_delete: Option<String>,
    /// Do not ask
    #[arg(short = 'y', long, alias = "force")]
    yes: bool,
    /// Name of the database [env: SALTUS_DATABASE_NAME or INFLUXDB3_DATABASE_NAME]
    name: Option<String>,
}

impl DeleteDatabase {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let name = required_database(self.name, env, "the argument <NAME>")?;
        if !self.yes && !confirm(&format!("Are you sure you want to delete database \"{name}\"?"))? {
            return Err(CliError("Cannot delete database without confirmation".to_owned()));
        }
        let mut params = vec![("db", name.as_str())];
        params.extend(self.hard_delete.as_deref().map(|when| ("hard_delete_at", when)));
        self.server.client(env, &[])?.params(Method::DELETE, "/api/v3/configure/database", &params)?;
        say(&format!("Database \"{name}\" deleted successfully"));
        Ok(())
    }
}

/// `delete table`.
#[derive(Debug, Args)]
pub(crate) struct DeleteTable {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    /// When data goes for good: now, default, never (this version deletes at once)
    #[arg(long, value_name = "WHEN")]
    hard_delete: Option<String>,
    /// Do not ask
    #[arg(short = 'y', long, alias = "force")]
    yes: bool,
    /// Name of the table
    table: String,
}

impl DeleteTable {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let (db, table) = (self.database.required(env)?, self.table);
        if !self.yes && !confirm(&format!("Are you sure you want to delete table \"{db}\".\"{table}\"?"))? {
            return Err(CliError("Cannot delete table without confirmation".to_owned()));
        }
        let mut params = vec![("db", db.as_str()), ("table", table.as_str())];
        params.extend(self.hard_delete.as_deref().map(|when| ("hard_delete_at", when)));
        self.server.client(env, &[])?.params(Method::DELETE, "/api/v3/configure/table", &params)?;
        say(&format!("Table \"{db}\".\"{table}\" deleted successfully"));
        Ok(())
    }
}

/// `delete trigger`.
#[derive(Debug, Args)]
pub(crate) struct DeleteTrigger {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    /// Delete it although it is enabled
    #[arg(long)]
    force: bool,
    /// Name of the trigger
    name: String,
}

impl DeleteTrigger {
    fn run(self, env: &Env) -> Result<(), CliError> {
        let db = self.database.required(env)?;
        let mut params = vec![("db", db.as_str()), ("trigger_name", self.name.as_str())];
        if self.force {
            params.push(("force", "true"));
        }
        let path = "/api/v3/configure/processing_engine_trigger";
        self.server.client(env, &[])?.params(Method::DELETE, path, &params)?;
        say(&format!("Trigger {} deleted successfully", self.name));
        Ok(())
    }
}
