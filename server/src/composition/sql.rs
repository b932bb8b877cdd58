//! SQL for the HTTP surface: parameters in, encoded bytes out, errors as status codes; and what became of queries, for `/metrics`.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, select};
use futures_util::{Stream, StreamExt};
use http::StatusCode;
use saltus_core::limits::RESPONSE_PIECE_BYTES_MAX;
use serde_json::{Map, Value};

use crate::http::metrics::{MetricKind, MetricsSource, MetricsText};
use crate::http::query::{QueryBackend, QueryFormat, QueryHttpRequest, QueryReply};
use crate::http::response::HttpError;
use crate::query::{Format, QueryBytes, QueryEngine, QueryError, QueryKind, QueryRequest, ScalarParam};

/// When a client may ask again after others had what its query needed.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long the first rows of a short result are held back ([`beginning`]).
const ANSWER_HELD: Duration = Duration::from_millis(500);

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
            let rest = beginning(&mut result, engine.pause(ANSWER_HELD)).await.map_err(|error| http_error(&error))?;
            let body = Pieces { result, rest }.boxed();
            Ok(QueryReply { content_type: request.format.content_type(), body })
        })
    }
}

/// The first bytes of a result, held back until it is clear that a short one has no error behind its first rows: an error has a status
/// only as long as nothing was sent.
async fn beginning(result: &mut QueryBytes, patience: impl Future<Output = ()>) -> Result<Bytes, QueryError> {
    let (mut bytes, mut patience) = (Vec::new(), pin!(patience));
    while bytes.len() < RESPONSE_PIECE_BYTES_MAX {
        match select(result.next(), patience.as_mut()).await {
            Either::Left((Some(piece), _)) => bytes.extend_from_slice(&piece?),
            Either::Left((None, _)) | Either::Right(_) => break,
        }
    }
    Ok(bytes.into())
}

/// A result in pieces that a shard can pass on in one turn. It is the query: whoever drops it ends it.
struct Pieces {
    result: QueryBytes,
    rest: Bytes,
}

impl Stream for Pieces {
    type Item = Result<Bytes, String>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.rest.is_empty() {
            match std::task::ready!(self.result.poll_next_unpin(cx)) {
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(error)) => {
                    tracing::warn!(%error, "a query failed after its answer had begun: its connection is cut off");
                    return Poll::Ready(Some(Err(error.to_string())));
                }
                None => return Poll::Ready(None),
            }
        }
        let length = self.rest.len().min(RESPONSE_PIECE_BYTES_MAX);
        Poll::Ready(Some(Ok(self.rest.split_to(length))))
    }
}

impl MetricsSource for Sql {
    fn write(&self, text: &mut MetricsText) {
        let help = "Queries that ended, by how: success, error, cancelled (their clients had gone), timed_out (query-timeout), \
                    too_large (they need more than query-memory), no_memory (others had it), no_turn (query-concurrency).";
        for (outcome, count) in self.0.counts().by_outcome() {
            text.sample("saltus_queries_total", MetricKind::Counter, help, &[("outcome", outcome)], count as f64);
        }
        let (running, waiting, bytes) = self.0.load();
        for (name, help, value) in [
            ("saltus_queries_running", "Queries that run.", running),
            ("saltus_queries_waiting", "Queries that wait for others to end.", waiting),
            ("saltus_query_memory_bytes", "Bytes of query-memory that queries hold.", bytes),
        ] {
            text.sample(name, MetricKind::Gauge, help, &[], value as f64);
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
        QueryError::TimedOut(_) | QueryError::TooLarge(_) => HttpError::json(StatusCode::BAD_REQUEST, text),
        QueryError::ResourcesExhausted(_) => HttpError::unavailable(text, RETRY_AFTER),
    }
}
