//! `query_sql`: parameters in, a stream of bytes out (reference, 3.4). Who answers is behind [`QueryBackend`]; what a result is
//! written as is said by `format`, else by the header `Accept` (`accept`).

mod accept;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http::header::ACCEPT;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use hyper::body::Body;
use serde_json::{Map, Value};

use super::port::ShardPort;
use super::request::{Fields, parse_fields, query_params, read_body};
use super::response::{HttpBody, HttpError, HttpResult, reply};
use super::router::Ctx;

/// What a question consists of.
const FIELDS: [&str; 4] = ["db", "q", "format", "params"];

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryFormat {
    /// One array of objects.
    Json,
    /// One object per line.
    JsonLines,
    /// A header, then rows.
    Csv,
    /// A table drawn in ASCII.
    Pretty,
    /// A Parquet file.
    Parquet,
}

impl QueryFormat {
    /// The format of a name in `format=`.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "json" => QueryFormat::Json,
            "json_lines" | "jsonl" => QueryFormat::JsonLines,
            "csv" => QueryFormat::Csv,
            "pretty" => QueryFormat::Pretty,
            "parquet" => QueryFormat::Parquet,
            _ => return None,
        })
    }

    /// The content type of a result.
    pub fn content_type(self) -> &'static str {
        match self {
            QueryFormat::Json => "application/json",
            QueryFormat::JsonLines => "application/jsonl",
            QueryFormat::Csv => "text/csv",
            QueryFormat::Pretty => "text/plain; charset=utf-8",
            QueryFormat::Parquet => "application/vnd.apache.parquet",
        }
    }
}

/// A query as a client sent it.
#[derive(Clone, Debug)]
pub struct QueryHttpRequest {
    /// The database, which exists.
    pub db: String,
    /// The statement.
    pub sql: String,
    /// From `format` or `Accept`.
    pub format: QueryFormat,
    /// Values of `$name`: null, booleans, numbers and texts.
    pub params: Map<String, Value>,
}

/// The answer, once its first bytes are certain to come.
pub struct QueryReply {
    /// What the bytes are.
    pub content_type: &'static str,
    /// The bytes; an error cuts the body off.
    pub body: BoxStream<'static, Result<Bytes, String>>,
}

/// Who answers queries.
pub trait QueryBackend: Send + Sync {
    /// Plans and starts a query. The future is polled on a shard's thread and only waits there; dropping it or the
    /// body ends the query.
    fn query(&self, request: QueryHttpRequest) -> BoxFuture<'static, Result<QueryReply, HttpError>>;
}

/// `GET /api/v3/query_sql`.
pub(crate) async fn get<P: ShardPort>(ctx: &Ctx<'_, P>, parts: &Parts) -> HttpResult {
    let params = query_params(parts).ok_or_else(|| HttpError::bad_request("missing query parameters 'db' and 'q'"))?;
    params.only(&FIELDS)?;
    let values = match params.get("params") {
        None => Map::new(),
        Some(text) => match serde_json::from_str(text) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return Err(HttpError::field("params", "expected a JSON object")),
            Err(error) => return Err(HttpError::field("params", error)),
        },
    };
    let format = format(&parts.headers, params.get("format"))?;
    let (db, sql) = (params.required("db")?.to_owned(), params.required("q")?.to_owned());
    run(ctx, QueryHttpRequest { db, sql, format, params: scalars(values)? }).await
}

/// `POST /api/v3/query_sql`; the content type is not looked at.
pub(crate) async fn post<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    if let Some(name) = query_params(parts).as_ref().and_then(|params| params.names().next()) {
        let fields = FIELDS.map(|field| format!("`{field}`")).join(", ");
        let text = format!("unknown parameter `{name}`; with POST, {fields} are fields of the JSON body");
        return Err(HttpError::json(StatusCode::BAD_REQUEST, text));
    }
    let body = read_body(&parts.headers, body, ctx.body_limit()).await?;
    let fields: Fields = parse_fields(&body)?;
    fields.only(&FIELDS)?;
    let values = fields.object_opt("params")?.cloned().unwrap_or_default();
    let format = format(&parts.headers, fields.text_opt("format")?)?;
    let (db, sql) = (fields.text("db")?.to_owned(), fields.text("q")?.to_owned());
    run(ctx, QueryHttpRequest { db, sql, format, params: scalars(values)? }).await
}

async fn run<P: ShardPort>(ctx: &Ctx<'_, P>, request: QueryHttpRequest) -> HttpResult {
    if !ctx.database_exists(&request.db) {
        return Err(HttpError::database_not_found(&request.db));
    }
    let answer = ctx.shared.parts.query.query(request).await?;
    Ok(reply(StatusCode::OK, Some(answer.content_type), HttpBody::stream(answer.body)))
}

fn scalars(params: Map<String, Value>) -> Result<Map<String, Value>, HttpError> {
    match params.iter().find(|(_, value)| value.is_array() || value.is_object()) {
        Some((name, _)) => {
            Err(HttpError::field("params", format_args!("'{name}' must be a null, bool, number or string")))
        }
        None => Ok(params),
    }
}

/// The format asked for: `format` decides, whatever `Accept` says.
pub(crate) fn format(headers: &HeaderMap, name: Option<&str>) -> Result<QueryFormat, HttpError> {
    let Some(name) = name else {
        let accepted: Vec<_> = headers.get_all(ACCEPT).iter().map(|value| value.as_bytes()).collect();
        return accept::format(&String::from_utf8_lossy(&accepted.join(&b", "[..])));
    };
    QueryFormat::from_name(name).ok_or_else(|| {
        HttpError::bad_request(format!(
            "serde error: unknown variant `{name}`, expected one of `json`, `json_lines`, `jsonl`, `csv`, `pretty`, \
             `parquet`"
        ))
    })
}
