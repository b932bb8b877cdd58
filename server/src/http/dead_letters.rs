//! `/api/v3/configure/dead_letters/replay` and `/discard`: gives events that a trigger did not take to it again, or ends them. An
//! addition to the reference; the letters themselves are rows of `system.dead_letters`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use hyper::body::Body;
use saltus_core::ids::{EventId, TriggerId};
use saltus_shards::dead_letters::DeadLetter;
use serde_json::{Value, json};

use super::port::ShardPort;
use super::request::{Fields, query_or_json};
use super::response::{HttpBody, HttpError, HttpResult, JSON, reply};
use super::router::Ctx;
use crate::registry::RegistryError;

/// Which letters.
const FIELDS: [&str; 3] = ["db", "trigger_name", "ids"];

/// `POST .../replay`.
pub(crate) async fn replay<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = query_or_json(parts, body, ctx.body_limit(), &FIELDS).await?;
    let mut by_trigger: BTreeMap<TriggerId, HashSet<EventId>> = BTreeMap::new();
    for letter in wanted(ctx, &fields).await? {
        by_trigger.entry(letter.trigger).or_default().insert(letter.id);
    }
    let catalog = ctx.shared.parts.registry.catalog();
    let mut triggers = Vec::new();
    for (id, ids) in by_trigger {
        let def = catalog.triggers.values().find(|def| def.id == id);
        let Some(def) = def else {
            let text = "the trigger was deleted: nothing can take its dead letters; discard them";
            return Err(HttpError::text(StatusCode::CONFLICT, text));
        };
        if def.disabled {
            let text = format!("trigger '{}' is disabled: enable it before its dead letters are replayed", def.name);
            return Err(HttpError::text(StatusCode::CONFLICT, text));
        }
        triggers.push((def.clone(), ids));
    }
    let mut replayed = 0;
    for (def, ids) in triggers {
        replayed += ctx.port.replay_dead_letters(&def, ids).await?;
    }
    Ok(answer("replayed", replayed))
}

/// `POST .../discard`.
pub(crate) async fn discard<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = query_or_json(parts, body, ctx.body_limit(), &FIELDS).await?;
    let ids = wanted(ctx, &fields).await?.iter().map(|letter| letter.id).collect();
    Ok(answer("discarded", ctx.port.discard_dead_letters(ids).await?))
}

fn answer(what: &str, count: usize) -> http::Response<HttpBody> {
    reply(StatusCode::OK, Some(JSON), HttpBody::whole(json!({ what: count }).to_string()))
}

/// The letters of `db`: all, those of `trigger_name`, or those that `ids` names, which must all be there.
async fn wanted<P: ShardPort>(ctx: &Ctx<'_, P>, fields: &Fields) -> Result<Vec<Arc<DeadLetter>>, HttpError> {
    let (db, trigger) = (fields.text("db")?, fields.text_opt("trigger_name")?);
    if !ctx.database_exists(db) {
        return Err(RegistryError::DatabaseNotFound(db.to_owned()).into());
    }
    let ids = ids(fields)?;
    let mut letters = ctx.port.dead_letters().await;
    letters.retain(|letter| {
        let account = &letter.account;
        account.db == db
            && trigger.is_none_or(|name| account.trigger_name == name)
            && ids.as_ref().is_none_or(|ids| ids.contains(&letter.id))
    });
    let missing = |id: &&EventId| !letters.iter().any(|letter| letter.id == **id);
    if let Some(id) = ids.iter().flatten().find(missing) {
        let text = format!("there is no dead letter {id} of this trigger and database; see system.dead_letters");
        return Err(HttpError::text(StatusCode::NOT_FOUND, text));
    }
    Ok(letters)
}

fn ids(fields: &Fields) -> Result<Option<Vec<EventId>>, HttpError> {
    let parse = |text: &str| text.trim().parse().map_err(|error| HttpError::field("ids", error));
    match fields.get("ids") {
        None => Ok(None),
        Some(Value::String(list)) => list.split(',').map(parse).collect::<Result<_, _>>().map(Some),
        Some(Value::Array(list)) => {
            let text = |id: &Value| match id.as_str() {
                Some(text) => parse(text),
                None => Err(HttpError::field("ids", format_args!("expected texts, got {id}"))),
            };
            list.iter().map(text).collect::<Result<_, _>>().map(Some)
        }
        Some(other) => Err(HttpError::field("ids", format_args!("expected a list of ids, got {other}"))),
    }
}
