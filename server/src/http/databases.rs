//! `/api/v3/configure/database` (reference, 3.6).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use hyper::body::Body;
use saltus_core::names::INTERNAL_DB;
use serde_json::{Value, json};

use super::port::ShardPort;
use super::query::{QueryFormat, QueryHttpRequest};
use super::request::{QueryParams, json_fields};
use super::response::{HttpBody, HttpError, HttpResult, empty, reply};
use super::router::Ctx;
use super::strict::params_of;
use crate::text_table::TextTable;

const NAME_COLUMN: &str = "iox::database";

/// `GET`: the names, in the format asked for.
pub(crate) async fn list<P: ShardPort>(ctx: &Ctx<'_, P>, parts: &Parts) -> HttpResult {
    let params = params_of(parts, &["format", "show_deleted"])?;
    let format = params.required("format")?;
    let format = QueryFormat::from_name(format).ok_or_else(|| {
        HttpError::field(
            "format",
            format_args!("unknown format `{format}`, expected one of `json`, `jsonl`, `csv`, `pretty`, `parquet`"),
        )
    })?;
    let show_deleted = params.flag("show_deleted", false)?;
    if format == QueryFormat::Parquet {
        return list_parquet(ctx).await;
    }
    let body = render(&names(ctx), format, show_deleted);
    Ok(reply(StatusCode::OK, Some(format.content_type()), HttpBody::whole(body)))
}

fn names<P: ShardPort>(ctx: &Ctx<'_, P>) -> BTreeSet<Arc<str>> {
    let catalog = ctx.shared.parts.registry.catalog();
    let created = catalog.databases.keys().cloned();
    created.chain(ctx.port.databases()).chain([INTERNAL_DB.into()]).collect()
}

fn render(names: &BTreeSet<Arc<str>>, format: QueryFormat, show_deleted: bool) -> String {
    let object = |name: &Arc<str>| match show_deleted {
        true => json!({ NAME_COLUMN: &**name, "deleted": false }),
        false => json!({ NAME_COLUMN: &**name }),
    };
    match format {
        QueryFormat::Json => Value::Array(names.iter().map(object).collect()).to_string(),
        QueryFormat::JsonLines => names.iter().map(|name| format!("{}\n", object(name))).collect(),
        QueryFormat::Csv => table(names, show_deleted).csv(),
        QueryFormat::Pretty | QueryFormat::Parquet => table(names, show_deleted).pretty(),
    }
}

fn table(names: &BTreeSet<Arc<str>>, show_deleted: bool) -> TextTable {
    let headings = [NAME_COLUMN, "deleted"];
    let columns = if show_deleted { 2 } else { 1 };
    let mut table = TextTable::new(&headings[..columns]);
    for name in names {
        let cells = [name.to_string(), "false".to_owned()];
        table.row(cells[..columns].to_vec());
    }
    table
}

async fn list_parquet<P: ShardPort>(ctx: &Ctx<'_, P>) -> HttpResult {
    let sql = format!("SELECT database_name AS \"{NAME_COLUMN}\" FROM system.databases ORDER BY database_name");
    let (db, format) = (INTERNAL_DB.to_owned(), QueryFormat::Parquet);
    let request = QueryHttpRequest { db, sql, format, params: serde_json::Map::new() };
    let answer = ctx.shared.parts.query.query(request).await?;
    Ok(reply(StatusCode::OK, Some(answer.content_type), HttpBody::stream(answer.body)))
}

/// `POST`: creates.
pub(crate) async fn create<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = json_fields(parts, body, ctx.body_limit(), &["db", "retention_period"]).await?;
    let db = fields.text("db")?;
    let retention = retention("retention_period", fields.text_opt("retention_period")?)?;
    ctx.shared.parts.registry.create_database(db, retention).await?;
    note_retention(db, retention);
    Ok(empty(StatusCode::OK))
}

/// `PUT`: sets or clears the retention period.
pub(crate) async fn update<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = json_fields(parts, body, ctx.body_limit(), &["db", "retention_period"]).await?;
    let retention = retention("retention_period", fields.text_opt("retention_period")?)?;
    put_retention(ctx, fields.text("db")?, retention).await?;
    Ok(empty(StatusCode::OK))
}

/// `POST database/retention_period`.
pub(crate) async fn set_retention<P: ShardPort>(ctx: &Ctx<'_, P>, parts: &Parts) -> HttpResult {
    let params = params_of(parts, &["db", "duration"])?;
    let retention = retention("duration", Some(params.required("duration")?))?;
    put_retention(ctx, params.required("db")?, retention).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// `DELETE database/retention_period`.
pub(crate) async fn clear_retention<P: ShardPort>(ctx: &Ctx<'_, P>, parts: &Parts) -> HttpResult {
    put_retention(ctx, params_of(parts, &["db"])?.required("db")?, None).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn put_retention<P: ShardPort>(ctx: &Ctx<'_, P>, db: &str, retention: Option<Duration>) -> Result<(), HttpError> {
    ctx.shared.parts.registry.update_database(db, retention).await?;
    note_retention(db, retention);
    Ok(())
}

/// `DELETE`: the database with its tables and triggers, at once.
pub(crate) async fn delete<P: ShardPort>(ctx: &Ctx<'_, P>, parts: &Parts) -> HttpResult {
    let params = params_of(parts, &["db", "hard_delete_at"])?;
    let db = params.required("db")?;
    check_hard_delete(&params, "database", db)?;
    ctx.shared.parts.registry.delete_database(db).await?;
    Ok(empty(StatusCode::OK))
}

/// The parameter `hard_delete_at`: everything is deleted at once in this version, and the log says so if that is not what
/// was asked for.
pub(crate) fn check_hard_delete(params: &QueryParams, what: &str, name: &str) -> Result<(), HttpError> {
    match params.get("hard_delete_at") {
        None | Some("now") => Ok(()),
        Some("never" | "default") => {
            tracing::warn!(what, name, "hard_delete_at is not kept in this version: it is deleted now, for good");
            Ok(())
        }
        Some(other) => Err(HttpError::field(
            "hard_delete_at",
            format_args!("'{other}': this version deletes at once, so only 'now', 'default' and 'never' are taken"),
        )),
    }
}

fn retention(field: &str, text: Option<&str>) -> Result<Option<Duration>, HttpError> {
    let Some(text) = text else { return Ok(None) };
    let period = humantime::parse_duration(text).map_err(|error| {
        HttpError::field(field, format_args!("Cannot parse the given human time: {error}; for instance \"30d\""))
    })?;
    Ok(Some(period))
}

fn note_retention(db: &str, retention: Option<Duration>) {
    if let Some(period) = retention {
        let period = humantime::format_duration(period);
        tracing::warn!(db, %period, "retention period stored; this version does not delete by age yet");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_in_every_format() {
        let names: BTreeSet<Arc<str>> = ["b".into(), "a".into()].into();
        assert_eq!(render(&names, QueryFormat::Json, false), r#"[{"iox::database":"a"},{"iox::database":"b"}]"#);
        assert_eq!(
            render(&names, QueryFormat::JsonLines, true),
            "{\"iox::database\":\"a\",\"deleted\":false}\n{\"iox::database\":\"b\",\"deleted\":false}\n"
        );
        assert_eq!(render(&names, QueryFormat::Csv, false), "iox::database\na\nb\n");
        assert!(render(&names, QueryFormat::Pretty, false).contains("| iox::database |"));
    }

    #[test]
    fn retention_periods_are_human_times() {
        assert_eq!(retention("retention_period", Some("30d")).unwrap(), Some(Duration::from_secs(30 * 86400)));
        let error = retention("duration", Some("soon")).unwrap_err();
        assert!(error.message().starts_with("duration: Cannot parse the given human time: "));
    }
}
