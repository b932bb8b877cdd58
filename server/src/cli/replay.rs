//! `saltus replay`: gives dead letters to their triggers again, or discards them.

use clap::Args;
use http::Method;
use serde_json::{Map, Value};

use super::options::{DatabaseOption, ServerOptions, confirm};
use super::{CliError, say};
use crate::config::env::Env;

/// `replay`.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    /// Only those of this trigger
    #[arg(long, value_name = "TRIGGER")]
    trigger: Option<String>,
    /// Only this one: a letter_id of system.dead_letters; may be repeated
    #[arg(long, value_name = "LETTER")]
    id: Vec<String>,
    /// Do not replay them: they are not wanted any more
    #[arg(long)]
    discard: bool,
    /// Do not ask
    #[arg(short = 'y', long)]
    yes: bool,
}

impl Replay {
    pub(crate) fn run(self, env: &Env) -> Result<(), CliError> {
        let db = self.database.required(env)?;
        let mut body = Map::from_iter([("db".to_owned(), Value::from(db.as_str()))]);
        if let Some(trigger) = self.trigger {
            body.insert("trigger_name".to_owned(), trigger.into());
        }
        if !self.id.is_empty() {
            body.insert("ids".to_owned(), self.id.into());
        }
        let what = if self.discard { "discard" } else { "replay" };
        if self.discard
            && !self.yes
            && !confirm(&format!("Are you sure you want to discard dead letters of database \"{db}\"?"))?
        {
            return Err(CliError("Cannot discard dead letters without confirmation".to_owned()));
        }
        let path = format!("/api/v3/configure/dead_letters/{what}");
        let answer = self.server.client(env, &[])?.json(Method::POST, &path, &body.into())?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let count = |what: &str| answer.get(what).and_then(Value::as_u64);
        say(&match (count("replayed"), count("discarded")) {
            (Some(0), _) | (_, Some(0)) => "There are no such dead letters".to_owned(),
            (Some(n), _) => format!(
                "{n} dead letter(s) given to their triggers again; those that succeed leave system.dead_letters"
            ),
            (_, Some(n)) => format!("{n} dead letter(s) discarded"),
            (None, None) => "The server's answer is not understood".to_owned(),
        });
        Ok(())
    }
}
