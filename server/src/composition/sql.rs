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
            let mut result = answer.await.map_err(|error| http_error(&error))?;
            // A format that is written at the end has no first piece before it: its errors still have a status.
            let first = match result.next().await.transpose() {
                Ok(first) => first,
                Err(error) => return Err(http_error(&error)),
            };
            let (mut pieces, body) = mpsc::channel(PIECES_MAX);
            if let Some(first) = first {
                // There is room for the first.
                let _ = pieces.try_send(Ok(first));
            }
            engine.spawn(forward(result, pieces));
            Ok(QueryReply { content_type: request.format.content_type(), body })
        })
    }
}

/// Moves the pieces; ends the query when nobody reads any more.
async fn forward(mut result: QueryBytes, mut pieces: mpsc::Sender<Result<Bytes, String>>) {
    let mut cut = CutOff(Some(pieces.clone()));
    while let Some(piece) = result.next().await {
        if let Err(error) = &piece {
            tracing::warn!(%error, "a query failed after its answer had begun: its connection is cut off");
        }
        if pieces.send(piece.map_err(|error| error.to_string())).await.is_err() {
            break;
        }
    }
    cut.0 = None;
}

/// Cuts a body off that is dropped before its end: without an error, what is missing would not be missed.
struct CutOff(Option<mpsc::Sender<Result<Bytes, String>>>);

impl Drop for CutOff {
    fn drop(&mut self) {
        if let Some(pieces) = &mut self.0 {
            // A sender of its own always has room for one.
            let _ = pieces.try_send(Err("the query was aborted".to_owned()));
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
        QueryError::Planning(_) | QueryError::Invalid(_) => HttpError::text(StatusCode::BAD_REQUEST, text),
        QueryError::NotImplemented(_) => HttpError::text(StatusCode::METHOD_NOT_ALLOWED, text),
        QueryError::Execution(_) => HttpError::text(StatusCode::INTERNAL_SERVER_ERROR, text),
        QueryError::ResourcesExhausted(_) => HttpError::unavailable(text, RETRY_AFTER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_dropped_before_its_end_is_cut_off_and_not_short() {
        let (mut pieces, mut body) = mpsc::channel(1);
        let cut = CutOff(Some(pieces.clone()));
        for _ in 0..2 {
            pieces.try_send(Ok(Bytes::from_static(b"x"))).unwrap();
        }
        drop((cut, pieces));
        let all: Vec<_> = futures_lite::future::block_on(body.by_ref().collect());
        assert_eq!(all.len(), 3);
        assert!(all[2].is_err());
    }
}
