//! `/api/v3/configure/table` (reference, 3.6).

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use hyper::body::Body;
use saltus_core::names::{INTERNAL_DB, check_db_name};
use saltus_core::schema::{ColumnDef, ColumnKind};
use serde_json::Value;

use super::databases::check_hard_delete;
use super::port::ShardPort;
use super::request::{Fields, json_fields};
use super::response::{HttpError, HttpResult, empty};
use super::router::Ctx;
use super::strict::{check_names, params_of};
use crate::registry::RegistryError;

/// `POST`: an empty table; makes the database if needed.
pub(crate) async fn create<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = json_fields(parts, body, ctx.body_limit(), &["db", "table", "tags", "fields"]).await?;
    let (db, table) = (fields.text("db")?, fields.text("table")?);
    if db == INTERNAL_DB {
        return Err(RegistryError::Internal.into());
    }
    check_db_name(db).map_err(|error| HttpError::json(StatusCode::BAD_REQUEST, error.to_string()))?;
    ctx.port.create_table(db, table, columns(&fields)?).await?;
    Ok(empty(StatusCode::OK))
}

/// `DELETE`: the table with its rows, at once.
pub(crate) async fn delete<P: ShardPort>(ctx: &Ctx<'_, P>, parts: &Parts) -> HttpResult {
    let params = params_of(parts, &["db", "table", "hard_delete_at"])?;
    let (db, table) = (params.required("db")?, params.required("table")?);
    check_hard_delete(&params, "table", table)?;
    if !ctx.database_exists(db) {
        return Err(RegistryError::DatabaseNotFound(db.to_owned()).into());
    }
    ctx.port.drop_table(db, table).await?;
    Ok(empty(StatusCode::OK))
}

/// Tags first, in the order given: that is the series key.
fn columns(fields: &Fields) -> Result<Vec<ColumnDef>, HttpError> {
    let mut columns = Vec::new();
    for tag in fields.list("tags")? {
        let Value::String(name) = tag else {
            return Err(HttpError::field("tags", format_args!("expected a list of strings, got {tag}")));
        };
        columns.push(ColumnDef { name: name.as_str().into(), kind: ColumnKind::Tag });
    }
    if let Some(list) = fields.get("fields") {
        let Value::Array(list) = list else {
            return Err(HttpError::field("fields", format_args!("expected a list, got {list}")));
        };
        for field in list {
            columns.push(field_column(field)?);
        }
    }
    Ok(columns)
}

fn field_column(field: &Value) -> Result<ColumnDef, HttpError> {
    let refuse = |message: String| Err(HttpError::field("fields", message));
    let Value::Object(object) = field else {
        return refuse(format!("expected {{\"name\": ..., \"type\": ...}}, got {field}"));
    };
    check_names(object.keys().map(String::as_str), &["name", "type"], "field", " in `fields`")?;
    let Some(Value::String(name)) = object.get("name") else {
        return refuse(format!("expected a name, as in {{\"name\": \"v\", \"type\": \"float64\"}}, got {field}"));
    };
    let kind = match object.get("type").map(|kind| kind.as_str().unwrap_or_default()) {
        Some("utf8") => ColumnKind::String,
        Some("int64") => ColumnKind::Integer,
        Some("uint64") => ColumnKind::UInteger,
        Some("float64") => ColumnKind::Float,
        Some("bool") => ColumnKind::Boolean,
        _ => {
            let given = object.get("type").map_or("no type".to_owned(), |kind| match kind {
                Value::String(text) => format!("unknown type '{text}'"),
                other => format!("unknown type {other}"),
            });
            return refuse(format!("'{name}': {given}, expected utf8, int64, uint64, float64 or bool"));
        }
    };
    Ok(ColumnDef { name: name.as_str().into(), kind })
}
