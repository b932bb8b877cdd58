//! `/api/v3/configure/processing_engine_trigger` (reference, 3.7; design: every validation error is a 400 that names the
//! field). Beyond the reference: `execution`, `isolation` and `limits` in the body or in
//! `trigger_settings`, and a list by `GET`.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use hyper::body::Body;
use saltus_core::trigger::{TriggerDef, TriggerSpec};
use serde_json::{Value, json};

use super::port::ShardPort;
use super::request::{Fields, query_or_empty, query_or_json};
use super::response::{HttpBody, HttpError, HttpResult, JSON, empty, reply};
use super::router::Ctx;
use crate::config::TriggerKind;
use crate::registry::settings::{SettingError, Settings, limits_json};
use crate::registry::{NewTrigger, RegistryError};

/// `POST`: creates a trigger.
pub(crate) async fn create<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = query_or_json(parts, body, ctx.body_limit()).await?;
    let new = new_trigger(&fields, ctx.shared.parts.options.trigger_kinds.as_deref())?;
    ctx.shared.parts.registry.create_trigger(new).await?;
    Ok(empty(StatusCode::OK))
}

/// `DELETE`.
pub(crate) async fn delete<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = query_or_json(parts, body, ctx.body_limit()).await?;
    let (db, name, force) = (fields.text("db")?, fields.text("trigger_name")?, fields.flag("force", false)?);
    ctx.shared.parts.registry.delete_trigger(db, name, force).await?;
    Ok(empty(StatusCode::OK))
}

/// `POST .../enable` and `.../disable`.
pub(crate) async fn set_enabled<P: ShardPort>(ctx: &Ctx<'_, P>, parts: &Parts, enabled: bool) -> HttpResult {
    let params = query_or_empty(parts);
    let (db, name) = (params.required("db")?, params.required("trigger_name")?);
    ctx.shared.parts.registry.set_trigger_enabled(db, name, enabled).await?;
    Ok(empty(StatusCode::OK))
}

/// `GET`: the triggers of a database, or of all.
pub(crate) fn list<P: ShardPort>(ctx: &Ctx<'_, P>, parts: &Parts) -> HttpResult {
    let params = query_or_empty(parts);
    let db = params.get("db");
    if let Some(db) = db.filter(|db| !ctx.database_exists(db)) {
        return Err(RegistryError::DatabaseNotFound(db.to_owned()).into());
    }
    let catalog = ctx.shared.parts.registry.catalog();
    let wanted = catalog.triggers.values().filter(|def| db.is_none_or(|db| &*def.db == db));
    let list = Value::Array(wanted.map(|def| trigger_json(def)).collect());
    Ok(reply(StatusCode::OK, Some(JSON), HttpBody::whole(list.to_string())))
}

fn trigger_json(def: &TriggerDef) -> Value {
    json!({
        "db": &*def.db,
        "trigger_name": &*def.name,
        "trigger_id": def.id.0,
        "plugin_filename": def.plugin_filename,
        "trigger_specification": def.spec.to_string(),
        "trigger_settings": {
            "run_async": def.run_async,
            "error_behavior": def.error_behavior,
            "execution": def.execution,
            "isolation": def.isolation,
            "limits": limits_json(&def.limits),
        },
        "trigger_arguments": def.arguments,
        "disabled": def.disabled,
        "disabled_reason": def.disabled_reason,
    })
}

fn new_trigger(fields: &Fields, kinds: Option<&[TriggerKind]>) -> Result<NewTrigger, HttpError> {
    let settings = fields.object_opt("trigger_settings")?.cloned().unwrap_or_default();
    let spec = checked_spec(fields.text("trigger_specification")?, kinds)?;
    let mut settings = settings;
    // The reference's clients put settings of theirs beside the reference's own; ours may stand in the body too.
    for name in ["execution", "isolation", "limits"] {
        if let Some(value) = fields.get(name).filter(|value| !value.is_null()) {
            settings.insert(name.to_owned(), value.clone());
        }
    }
    let settings = Settings::read(&settings).map_err(setting_error)?;
    settings.check().map_err(setting_error)?;
    Ok(NewTrigger {
        db: fields.text("db")?.to_owned(),
        name: fields.text("trigger_name")?.to_owned(),
        plugin_filename: fields.text("plugin_filename")?.to_owned(),
        spec,
        settings,
        arguments: arguments(fields)?,
        disabled: fields.flag("disabled", false)?,
    })
}

fn checked_spec(text: &str, kinds: Option<&[TriggerKind]>) -> Result<TriggerSpec, HttpError> {
    let spec = TriggerSpec::parse(text).map_err(|error| HttpError::field("trigger_specification", error))?;
    let (kind, name) = match spec {
        TriggerSpec::Table(_) | TriggerSpec::AllTables => (TriggerKind::Wal, "WalRows"),
        TriggerSpec::Every(_) | TriggerSpec::Cron(_) => (TriggerKind::Schedule, "Schedule"),
        TriggerSpec::Request(_) => (TriggerKind::Request, "Request"),
    };
    if kinds.is_some_and(|kinds| !kinds.is_empty() && !kinds.contains(&kind)) {
        let text = format!("invalid request: server is configured to reject {name} plugin triggers");
        return Err(HttpError::bad_request(text));
    }
    if kind != TriggerKind::Wal {
        let message = format!("'{text}': only 'table:<TABLE_NAME>' and 'all_tables' run in this version");
        return Err(HttpError::field("trigger_specification", message));
    }
    Ok(spec)
}

fn setting_error(SettingError { field, message }: SettingError) -> HttpError {
    HttpError::field(field, message)
}

fn arguments(fields: &Fields) -> Result<Option<BTreeMap<String, String>>, HttpError> {
    let Some(object) = fields.object_opt("trigger_arguments")? else { return Ok(None) };
    let pair = |(key, value): (&String, &Value)| match value {
        Value::String(text) => Ok((key.clone(), text.clone())),
        other => Err(HttpError::field("trigger_arguments", format_args!("'{key}' must be a string, got {other}"))),
    };
    object.iter().map(pair).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use saltus_core::trigger::{ErrorBehavior, Execution, Isolation};

    use super::*;

    fn parse(body: Value) -> Result<NewTrigger, String> {
        let Value::Object(object) = body else { unreachable!() };
        new_trigger(&Fields::new(object), None).map_err(|error| {
            assert_eq!(error.status, 400);
            error.message()
        })
    }

    fn body() -> Value {
        json!({
            "db": "mydb", "plugin_filename": "p.py", "trigger_name": "t1",
            "trigger_settings": {"run_async": false, "error_behavior": "log"},
            "trigger_specification": "table:cpu", "trigger_arguments": {"k": "v"}, "disabled": false,
        })
    }

    fn with(field: &str, value: Value) -> Value {
        let mut body = body();
        body[field] = value;
        body
    }

    #[test]
    fn the_references_body_is_taken() {
        let new = parse(body()).unwrap();
        assert_eq!(new.spec, TriggerSpec::Table("cpu".into()));
        assert_eq!((new.settings.execution, new.settings.run_async), (None, Some(false)));
        assert_eq!(new.arguments.unwrap()["k"], "v");
    }

    #[test]
    fn settings_stand_in_the_body_or_in_the_settings() {
        let execution = |body| parse(body).unwrap().settings.execution;
        assert_eq!(execution(with("execution", json!("inline"))), Some(Execution::Inline));
        let settings =
            json!({"run_async": false, "error_behavior": "Retry", "execution": "inline", "limits": {"output_rows": 5}});
        let new = parse(with("trigger_settings", settings)).unwrap().settings;
        assert_eq!((new.execution, new.error_behavior), (Some(Execution::Inline), Some(ErrorBehavior::Retry)));
        assert_eq!(new.limits.output_rows, Some(5));
        assert_eq!(parse(with("isolation", json!("process"))).unwrap().settings.isolation, Some(Isolation::Process));
        let error = parse(with("execution", json!("fast"))).unwrap_err();
        assert_eq!(error, "execution: 'fast': expected auto, inline or deferred");
    }

    #[test]
    fn every_refusal_names_its_field() {
        let spec = "trigger_specification";
        for (field, value, start) in [
            (
                spec,
                json!("every:10s"),
                "trigger_specification: 'every:10s': only 'table:<TABLE_NAME>' and 'all_tables'",
            ),
            (spec, json!("request:x"), "trigger_specification: 'request:x': only"),
            (spec, json!("tables"), "trigger_specification: failed to parse trigger from tables: expect one of"),
            (spec, json!(3), "trigger_specification: expected a string"),
            ("db", Value::Null, "serde json error: missing field `db`"),
            ("trigger_arguments", json!({"n": 1}), "trigger_arguments: 'n' must be a string"),
            ("trigger_settings", json!({"error_behavior": "panic"}), "error_behavior: 'panic': expected"),
            ("disabled", json!("no"), "disabled: expected true or false"),
        ] {
            let error = parse(with(field, value)).unwrap_err();
            assert!(error.starts_with(start), "{error}");
        }
    }

    #[test]
    fn restricted_kinds_are_refused_with_the_references_text() {
        let error = checked_spec("request:x", Some(&[TriggerKind::Wal])).unwrap_err();
        assert_eq!(error.message(), "invalid request: server is configured to reject Request plugin triggers");
        assert!(checked_spec("table:x", Some(&[TriggerKind::Wal])).is_ok());
    }
}
