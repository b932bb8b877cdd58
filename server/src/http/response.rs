//! Answers: bodies, and errors in the shapes that clients parse (reference, 3.1 and 3.3).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use saltus_shards::answer::Pieces;
use saltus_shards::api::TableError;
use serde_json::{Value, json};

use super::connection::InHand;
use crate::registry::plugins::PluginFileError;
use crate::registry::{RegistryError, StoreError};

/// The content type of JSON.
pub const JSON: &str = "application/json";
/// The content type of text.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// A failure in the middle of a streamed body; the client sees the body cut off.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BodyError(String);

/// The body of an answer: whole, or a stream that another thread feeds.
pub struct HttpBody {
    content: Content,
    /// Kept until the body is done: while it is there, the connection is not idle.
    in_hand: Option<InHand>,
}

enum Content {
    Whole(Option<Bytes>),
    Stream(BoxStream<'static, Result<Bytes, String>>),
    Pieces(Pieces),
}

impl HttpBody {
    /// A whole body.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        HttpBody { content: Content::Whole((!bytes.is_empty()).then_some(bytes)), in_hand: None }
    }

    /// A body that is fed piece by piece.
    pub fn stream(pieces: BoxStream<'static, Result<Bytes, String>>) -> Self {
        HttpBody { content: Content::Stream(pieces), in_hand: None }
    }

    /// A body that a plugin makes.
    pub fn pieces(pieces: Pieces) -> Self {
        HttpBody { content: Content::Pieces(pieces), in_hand: None }
    }

    /// Marks the request as worked on until the body is done.
    pub(crate) fn hold(&mut self, in_hand: InHand) {
        self.in_hand = Some(in_hand);
    }
}

impl Body for HttpBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let piece = match &mut this.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(Ok)),
            Content::Stream(pieces) => pieces.as_mut().poll_next(cx),
            Content::Pieces(pieces) => pieces.poll_next(cx),
        };
        if let Poll::Ready(None) = piece {
            this.in_hand = None;
        }
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(BodyError)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Content::Stream(_) | Content::Pieces(_) => SizeHint::default(),
        }
    }
}

/// What a handler gives back.
pub type HttpResult = Result<Response<HttpBody>, HttpError>;

/// An answer without a body.
pub fn empty(status: StatusCode) -> Response<HttpBody> {
    reply(status, None, HttpBody::whole(Bytes::new()))
}

/// An answer with a body; successful ones may be read by pages from anywhere.
pub fn reply(status: StatusCode, content_type: Option<&str>, body: HttpBody) -> Response<HttpBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if let Some(value) = content_type.and_then(|text| HeaderValue::from_str(text).ok()) {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    if status.is_success() {
        response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    }
    response
}

/// An error on its way to the client.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpError {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: ErrorBody,
    /// When to come again, if that helps.
    pub retry_after: Option<Duration>,
    /// The methods that would be taken, of a 405.
    pub allow: Option<String>,
}

/// The body of an error.
#[derive(Clone, Debug, PartialEq)]
pub enum ErrorBody {
    /// A text, which is sent as `{"error": text}`.
    Text(String),
    /// A JSON document.
    Json(Value),
}

impl HttpError {
    /// A text; sent as [`HttpError::json`] sends it.
    pub fn text(status: StatusCode, text: impl Into<String>) -> Self {
        HttpError { status, body: ErrorBody::Text(text.into()), retry_after: None, allow: None }
    }

    /// `{"error": text}`.
    pub fn json(status: StatusCode, text: impl Into<String>) -> Self {
        HttpError { status, body: ErrorBody::Json(json!({ "error": text.into() })), retry_after: None, allow: None }
    }

    /// `{"error": text, "data": data}`.
    pub fn with_data(status: StatusCode, text: &str, data: Value) -> Self {
        let body = ErrorBody::Json(json!({ "error": text, "data": data }));
        HttpError { status, body, retry_after: None, allow: None }
    }

    /// A 405 that says which methods there are, as in the header `Allow`.
    pub fn method_not_allowed(text: impl Into<String>, methods: impl Into<String>) -> Self {
        HttpError { allow: Some(methods.into()), ..Self::json(StatusCode::METHOD_NOT_ALLOWED, text) }
    }

    /// A 400.
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::text(StatusCode::BAD_REQUEST, text)
    }

    /// A 400 that names the field.
    pub fn field(field: &str, message: impl std::fmt::Display) -> Self {
        Self::json(StatusCode::BAD_REQUEST, format!("{field}: {message}"))
    }

    /// A 503 that asks to come again.
    pub fn unavailable(text: impl Into<String>, retry_after: Duration) -> Self {
        HttpError { retry_after: Some(retry_after), ..Self::json(StatusCode::SERVICE_UNAVAILABLE, text) }
    }

    /// What a query on a missing database gets.
    pub fn database_not_found(db: &str) -> Self {
        Self::json(StatusCode::NOT_FOUND, format!("query error: database not found: {db}"))
    }

    /// The text that a person should read.
    pub fn message(&self) -> String {
        match &self.body {
            ErrorBody::Text(text) => text.clone(),
            ErrorBody::Json(value) => match value.get("error").or_else(|| value.get("message")) {
                Some(Value::String(text)) => text.clone(),
                _ => value.to_string(),
            },
        }
    }

    /// The same error in the shape of the v2 write endpoint.
    pub fn into_v2(self) -> Self {
        let code = match self.status {
            StatusCode::UNAUTHORIZED => "unauthorized",
            StatusCode::FORBIDDEN => "forbidden",
            StatusCode::NOT_FOUND => "not found",
            StatusCode::METHOD_NOT_ALLOWED => "method not allowed",
            StatusCode::PAYLOAD_TOO_LARGE => "request too large",
            StatusCode::UNPROCESSABLE_ENTITY => "unprocessable entity",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            status if status.is_client_error() => "invalid",
            _ => "internal error",
        };
        let body = ErrorBody::Json(json!({ "code": code, "message": self.message() }));
        HttpError { body, ..self }
    }

    /// The answer.
    pub fn into_response(self) -> Response<HttpBody> {
        let body = match self.body {
            ErrorBody::Text(text) => json!({ "error": text }),
            ErrorBody::Json(value) => value,
        };
        let mut response = reply(self.status, Some(JSON), HttpBody::whole(body.to_string()));
        if self.status == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of the body is not read as a request.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(methods) = self.allow.and_then(|methods| HeaderValue::from_str(&methods).ok()) {
            response.headers_mut().insert(ALLOW, methods);
        }
        if let Some(time) = self.retry_after {
            let seconds = time.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// How long a client should wait when nobody can say better.
pub(crate) const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

impl From<RegistryError> for HttpError {
    fn from(error: RegistryError) -> Self {
        let text = error.to_string();
        match error {
            RegistryError::Exists(_) | RegistryError::Running(_) => Self::text(StatusCode::CONFLICT, text),
            RegistryError::DatabaseNotFound(_) | RegistryError::TriggerNotFound(_) => {
                Self::text(StatusCode::NOT_FOUND, text)
            }
            RegistryError::Plugin(PluginFileError::Io { .. }) | RegistryError::Upload(PluginFileError::Io { .. }) => {
                Self::json(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
            RegistryError::Name(_)
            | RegistryError::Invalid { .. }
            | RegistryError::Internal
            | RegistryError::Plugin(_)
            | RegistryError::Upload(_) => Self::json(StatusCode::BAD_REQUEST, text),
            RegistryError::PathTaken { .. } => Self::json(StatusCode::CONFLICT, text),
            RegistryError::Limit(_) => Self::json(StatusCode::UNPROCESSABLE_ENTITY, text),
            RegistryError::Store(StoreError::Short(_)) => Self::unavailable(text, RETRY_AFTER_DEFAULT),
            RegistryError::Store(_) => Self::json(StatusCode::INTERNAL_SERVER_ERROR, text),
            RegistryError::Engine(_) | RegistryError::Unavailable(_) => Self::unavailable(text, RETRY_AFTER_DEFAULT),
        }
    }
}

impl From<TableError> for HttpError {
    fn from(error: TableError) -> Self {
        let text = error.to_string();
        match error {
            TableError::Exists { .. } => Self::text(StatusCode::CONFLICT, text),
            TableError::NotFound(_) => Self::text(StatusCode::NOT_FOUND, text),
            TableError::Invalid(_) => Self::json(StatusCode::BAD_REQUEST, text),
            TableError::Limit(_) => Self::json(StatusCode::UNPROCESSABLE_ENTITY, text),
            TableError::Unavailable(_) => Self::unavailable(text, RETRY_AFTER_DEFAULT),
        }
    }
}
