//! SQL for the HTTP surface: parameters in, encoded bytes out, errors as status codes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_channel::mpsc;
use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use serde_json::{Map, Value};

use crate::http::query::{QueryBackend, QueryFormat, QueryHttpRequest, QueryReply};
use crate::http::response::HttpError;
use crate::query::{Format, QueryBytes, QueryEngine, QueryError, QueryKind, QueryRequest, ScalarParam};

/// Pieces of a body that wait for the connection.
const PIECES_MAX: usize = 2;
/// When a client may ask again after the queries' memory was used up.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Answers with the query engine.
pub(crate) struct Sql(Arc<QueryEngine>);

impl Sql {
    pub(crate) fn new(query: Arc<QueryEngine>) -> Self {
        Sql(query)
    }
}

impl QueryBackend for Sql {
    fn query(&self, request: QueryHttpRequest) -> BoxFuture<'static, Result<QueryReply, HttpError>> {
        let format = format(request.format);
        let query = QueryRequest {
            db: Some(request.db),
            sql: request.sql,
            params: params(request.params),
            kind: QueryKind::Sql,
        };
        let answer = self.0.execute_bytes(query, format);
        let engine = self.0.clone();
        Box::pin(async move {
            let result = answer.await.map_err(|error| http_error(&error))?;
            let (pieces, body) = mpsc::channel(PIECES_MAX);
            engine.spawn(forward(result, pieces));
            Ok(QueryReply { content_type: request.format.content_type(), body })
        })
    }
}

/// Moves the pieces; ends the query when nobody reads any more.
async fn forward(mut result: QueryBytes, mut pieces: mpsc::Sender<Result<Bytes, String>>) {
    while let Some(piece) = result.next().await {
        if pieces.send(piece.map_err(|error| error.to_string())).await.is_err() {
            return;
        }
    }
}

fn format(format: QueryFormat) -> Format {
    match format {
        QueryFormat::Json => Format::Json,
        QueryFormat::JsonLines => Format::JsonLines,
        QueryFormat::Csv => Format::Csv,
        QueryFormat::Pretty => Format::Pretty,
        QueryFormat::Parquet => Format::Parquet,
    }
}

fn params(params: Map<String, Value>) -> Vec<(String, ScalarParam)> {
    params.into_iter().map(|(name, value)| (name, scalar(value))).collect()
}

fn scalar(value: Value) -> ScalarParam {
    match value {
        Value::Bool(value) => ScalarParam::Bool(value),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => ScalarParam::Int(int),
            (None, Some(uint)) => ScalarParam::UInt(uint),
            (None, None) => ScalarParam::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => ScalarParam::String(text),
        Value::Null | Value::Array(_) | Value::Object(_) => ScalarParam::Null,
    }
}

fn http_error(error: &QueryError) -> HttpError {
    let text = error.to_string();
    match error {
        QueryError::DatabaseNotFound(db) => HttpError::database_not_found(db),
        QueryError::Planning(_) => HttpError::text(StatusCode::BAD_REQUEST, text),
        QueryError::NotImplemented(_) => HttpError::text(StatusCode::METHOD_NOT_ALLOWED, text),
        QueryError::Execution(_) => HttpError::text(StatusCode::INTERNAL_SERVER_ERROR, text),
        QueryError::ResourcesExhausted(_) => HttpError::unavailable(text, RETRY_AFTER),
    }
}
