//! `/api/v3/configure/processing_engine_trigger` (reference, 3.7; design: every validation error is a 400 that names the
//! field). Beyond the reference: settings of ours in the body or in `trigger_settings`, a list by `GET`, and changes by `PUT`.
//!
//! What is wrong with a plugin's code does not keep its trigger from being made, as in the reference, whose bodies are empty:
//! it is said in a header `saltus-warning`, in the body and in the trigger's log. The body says as well which lane the trigger has, and why.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use hyper::body::Body;
use saltus_core::ids::RunId;
use saltus_core::limits::IMPORT_TRIAL_WAIT_MS;
use saltus_core::ports::{LogLevel, LogLine, LogText};
use saltus_core::schedule::{Schedule, utc_text};
use saltus_core::trigger::{TriggerDef, TriggerSpec};
use serde_json::{Map, Value, json};

use super::port::ShardPort;
use super::request::{Fields, query_or_json};
use super::response::{HttpBody, HttpError, HttpResult, JSON, empty, reply};
use super::router::Ctx;
use super::strict::{check_names, params_of};
use crate::config::TriggerKind;
use crate::logs::wall_clock_ns;
use crate::registry::imports::Changed;
use crate::registry::settings::{NAMES as SETTINGS, SettingError, Settings, SettingsChange, limits_json};
use crate::registry::{NewTrigger, RegistryError, TriggerChange};

const WARNING: HeaderName = HeaderName::from_static("saltus-warning");
/// Settings that may stand in the body as well: the reference's clients put theirs beside the reference's own.
const OURS: [&str; 7] =
    ["execution", "isolation", "limits", "time_zone", "missed_runs", "missing_columns", "restore_cache"];

/// What a trigger is made of and what of it can be changed: the reference's fields, `node_spec`, which clusters of InfluxDB 3 have and
/// which says nothing here, and [`OURS`].
const FIELDS: [&str; 15] = [
    "db",
    "plugin_filename",
    "trigger_name",
    "trigger_settings",
    "trigger_specification",
    "trigger_arguments",
    "disabled",
    "node_spec",
    OURS[0],
    OURS[1],
    OURS[2],
    OURS[3],
    OURS[4],
    OURS[5],
    OURS[6],
];

/// `POST`: creates a trigger.
pub(crate) async fn create<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = query_or_json(parts, body, ctx.body_limit(), &FIELDS).await?;
    let new = new_trigger(&fields, ctx.shared.parts.options.trigger_kinds.as_deref())?;
    let (db, name) = (new.db.clone(), new.name.clone());
    let changed = ctx.shared.parts.registry.create_trigger(new, patience(ctx)).await?;
    Ok(answer(ctx, (&db, &name), changed))
}

/// `PUT`: changes what the body names of a trigger.
pub(crate) async fn update<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = query_or_json(parts, body, ctx.body_limit(), &FIELDS).await?;
    let change = change_of(&fields, ctx.shared.parts.options.trigger_kinds.as_deref())?;
    let (db, name) = (change.db.clone(), change.name.clone());
    let changed = ctx.shared.parts.registry.update_trigger(change, patience(ctx)).await?;
    Ok(answer(ctx, (&db, &name), changed))
}

/// For how long a change waits for what is found of its plugin's imports.
fn patience<P: ShardPort>(ctx: &Ctx<'_, P>) -> impl Future<Output = ()> + 'static {
    ctx.port.sleep(Duration::from_millis(IMPORT_TRIAL_WAIT_MS))
}

fn answer<P>(ctx: &Ctx<'_, P>, (db, name): (&str, &str), changed: Changed) -> Response<HttpBody> {
    let Changed { warnings, lane, lane_reason } = changed;
    let body = json!({ "lane": lane.as_str(), "lane_reason": lane_reason, "warnings": warnings });
    let mut response = reply(StatusCode::OK, Some(JSON), HttpBody::whole(body.to_string()));
    for text in warnings {
        // A header is one line of visible characters.
        let line: String = text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
        if let Ok(value) = HeaderValue::from_str(&line) {
            response.headers_mut().append(WARNING, value);
        }
        let (db, trigger, text) = (db.into(), name.into(), LogText::Said(text));
        ctx.shared.parts.logs.log(LogLine { db, trigger, run_id: RunId(0), level: LogLevel::Warn, text });
    }
    response
}

/// `DELETE`.
pub(crate) async fn delete<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = query_or_json(parts, body, ctx.body_limit(), &["db", "trigger_name", "force"]).await?;
    let (db, name, force) = (fields.text("db")?, fields.text("trigger_name")?, fields.flag("force", false)?);
    ctx.shared.parts.registry.delete_trigger(db, name, force).await?;
    Ok(empty(StatusCode::OK))
}

/// `POST .../enable` and `.../disable`.
pub(crate) async fn set_enabled<P: ShardPort>(ctx: &Ctx<'_, P>, parts: &Parts, enabled: bool) -> HttpResult {
    let params = params_of(parts, &["db", "trigger_name"])?;
    let (db, name) = (params.required("db")?, params.required("trigger_name")?);
    let registry = &ctx.shared.parts.registry;
    if !enabled {
        registry.disable_trigger(db, name).await?;
        return Ok(empty(StatusCode::OK));
    }
    let changed = registry.enable_trigger(db, name, patience(ctx)).await?;
    Ok(answer(ctx, (db, name), changed))
}

/// `GET`: the triggers of a database, or of all.
pub(crate) fn list<P: ShardPort>(ctx: &Ctx<'_, P>, parts: &Parts) -> HttpResult {
    let params = params_of(parts, &["db"])?;
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
    let schedule = Schedule::new(&def.spec, def.timing.time_zone.as_deref()).ok().flatten();
    let next = schedule.as_ref().filter(|_| !def.disabled).and_then(|schedule| schedule.next_after(wall_clock_ns()));
    let is_schedule = schedule.is_some();
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
            "time_zone": def.timing.time_zone,
            "missed_runs": is_schedule.then_some(def.timing.missed_runs),
            "missing_columns": def.api.missing_columns,
            "restore_cache": def.api.restore_cache,
        },
        "trigger_arguments": def.arguments,
        "disabled": def.disabled,
        "disabled_reason": def.disabled_reason,
        "next_scheduled_time": next.map(utc_text),
    })
}

fn new_trigger(fields: &Fields, kinds: Option<&[TriggerKind]>) -> Result<NewTrigger, HttpError> {
    let spec = checked_spec(fields.text("trigger_specification")?, kinds)?;
    let settings = Settings::read(&settings_of(fields)?).map_err(setting_error)?;
    settings.check_kind(spec.kind()).map_err(setting_error)?;
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

fn change_of(fields: &Fields, kinds: Option<&[TriggerKind]>) -> Result<TriggerChange, HttpError> {
    let spec = fields.text_opt("trigger_specification")?.map(|text| checked_spec(text, kinds)).transpose()?;
    let disabled = fields.get("disabled").map(|_| fields.flag("disabled", false)).transpose()?;
    Ok(TriggerChange {
        db: fields.text("db")?.to_owned(),
        name: fields.text("trigger_name")?.to_owned(),
        plugin_filename: fields.text_opt("plugin_filename")?.map(str::to_owned),
        spec,
        settings: SettingsChange::read(&settings_of(fields)?).map_err(setting_error)?,
        // Null takes them away.
        arguments: fields.has("trigger_arguments").then(|| arguments(fields)).transpose()?,
        disabled,
    })
}

/// All settings of a body.
fn settings_of(fields: &Fields) -> Result<Map<String, Value>, HttpError> {
    let mut settings = fields.object_opt("trigger_settings")?.cloned().unwrap_or_default();
    check_names(settings.keys().map(String::as_str), &SETTINGS, "field", " in `trigger_settings`")?;
    for name in OURS.into_iter().filter(|name| fields.has(name)) {
        if settings.contains_key(name) {
            return Err(HttpError::field(name, "is given twice: beside `trigger_settings` and in it"));
        }
        settings.insert(name.to_owned(), fields.get(name).cloned().unwrap_or_default());
    }
    Ok(settings)
}

fn checked_spec(text: &str, kinds: Option<&[TriggerKind]>) -> Result<TriggerSpec, HttpError> {
    let spec = TriggerSpec::parse(text).map_err(|error| {
        let remedy = error.remedy();
        HttpError::field("trigger_specification", format_args!("{error}{remedy}"))
    })?;
    spec.check().map_err(|why| {
        HttpError::field("trigger_specification", format_args!("failed to parse trigger from {text}: {why}"))
    })?;
    let (kind, name) = match spec {
        TriggerSpec::Table(_) | TriggerSpec::AllTables => (TriggerKind::Wal, "WalRows"),
        TriggerSpec::Every(_) | TriggerSpec::Cron(_) => (TriggerKind::Schedule, "Schedule"),
        TriggerSpec::Request(_) => (TriggerKind::Request, "Request"),
    };
    if kinds.is_some_and(|kinds| !kinds.is_empty() && !kinds.contains(&kind)) {
        let text = format!("invalid request: server is configured to reject {name} plugin triggers");
        return Err(HttpError::bad_request(text));
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
                json!("cron:0 0"),
                "trigger_specification: failed to parse trigger from cron:0 0: expected five fields (minute hour",
            ),
            (spec, json!("request:"), "trigger_specification: failed to parse trigger from request:: expected a path"),
            (spec, json!("every:9"), "trigger_specification: failed to parse trigger from every:9: couldn't parse"),
            ("time_zone", json!("UTC"), "time_zone: only a trigger with a schedule"),
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
    fn a_change_names_what_it_changes_and_no_more() {
        let change = |body: Value| {
            let Value::Object(object) = body else { unreachable!() };
            change_of(&Fields::new(object), None).map_err(|error| error.message())
        };
        let named = json!({"db": "d", "trigger_name": "t"});
        let nothing = change(named.clone()).unwrap();
        assert_eq!((nothing.spec, nothing.arguments, nothing.disabled), (None, None, None));
        assert_eq!((nothing.plugin_filename, nothing.settings), (None, SettingsChange::default()));
        let mut all = named.clone();
        all["trigger_arguments"] = Value::Null;
        all["disabled"] = json!(true);
        all["trigger_specification"] = json!("every:1s");
        let all = change(all).unwrap();
        assert_eq!((all.arguments, all.disabled), (Some(None), Some(true)));
        assert_eq!(all.spec.unwrap().to_string(), "every:1s");
        for (field, value, start) in [
            ("trigger_name", Value::Null, "serde json error: missing field `trigger_name`"),
            ("trigger_specification", json!("never"), "trigger_specification: failed to parse"),
            ("trigger_settings", json!({"missed_runs": 1}), "missed_runs: expected a string"),
            ("trigger_arguments", json!([]), "trigger_arguments: expected an object"),
            ("disabled", json!(0), "disabled: expected true or false"),
        ] {
            let mut body = named.clone();
            body[field] = value;
            let error = change(body).unwrap_err();
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
