//! `saltus enable trigger` and `saltus disable trigger`.

use clap::{Args, Subcommand};
use http::Method;

use super::options::{DatabaseOption, ServerOptions};
use super::{CliError, say, say_lane};
use crate::config::env::Env;

/// What is enabled or disabled.
#[derive(Debug, Subcommand)]
pub(crate) enum Toggle {
    /// A trigger
    Trigger(ToggleTrigger),
}

/// Which trigger.
#[derive(Debug, Args)]
pub(crate) struct ToggleTrigger {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    /// Name of the trigger
    name: String,
}

impl Toggle {
    pub(crate) fn run(self, env: &Env, enable: bool) -> Result<(), CliError> {
        let Toggle::Trigger(args) = self;
        let db = args.database.required(env)?;
        let verb = if enable { "enable" } else { "disable" };
        let path = format!("/api/v3/configure/processing_engine_trigger/{verb}");
        let params = [("db", db.as_str()), ("trigger_name", args.name.as_str())];
        let answer = args.server.client(env, &[])?.params(Method::POST, &path, &params)?;
        say(&format!("Trigger {} {verb}d successfully", args.name));
        say_lane(&answer);
        Ok(())
    }
}
