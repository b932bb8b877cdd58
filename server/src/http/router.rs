//! From method and path to a handler (reference, 3.2).

use std::fmt::Display;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    HeaderName,
};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use saltus_core::names::INTERNAL_DB;

use super::connection::Activity;
use super::port::ShardPort;
use super::response::{HttpBody, HttpError, HttpResult, empty};
use super::{
    Shared, databases, dead_letters, engine, histograms, plugin_test, plugins, query, request, status, tables,
    triggers, write,
};

const CLUSTER_UUID: HeaderName = HeaderName::from_static("cluster-uuid");
const DATABASE: &str = "/api/v3/configure/database";
const RETENTION: &str = "/api/v3/configure/database/retention_period";
const TABLE: &str = "/api/v3/configure/table";
const TRIGGER: &str = "/api/v3/configure/processing_engine_trigger";
const TRIGGER_ENABLE: &str = "/api/v3/configure/processing_engine_trigger/enable";
const TRIGGER_DISABLE: &str = "/api/v3/configure/processing_engine_trigger/disable";
const TOKEN_PREFIX: &str = "/api/v3/configure/token";
const DEAD_LETTERS_REPLAY: &str = "/api/v3/configure/dead_letters/replay";
const DEAD_LETTERS_DISCARD: &str = "/api/v3/configure/dead_letters/discard";
const PLUGIN_FILES: &str = "/api/v3/plugins/files";

/// What a handler works with.
pub(crate) struct Ctx<'a, P> {
    pub(crate) shared: &'a Shared,
    pub(crate) port: &'a P,
}

impl<P: ShardPort> Ctx<'_, P> {
    pub(crate) fn body_limit(&self) -> usize {
        self.shared.parts.options.request_bytes_max
    }

    /// Whether a database was created, or made by a write.
    pub(crate) fn database_exists(&self, db: &str) -> bool {
        db == INTERNAL_DB
            || self.shared.parts.registry.catalog().databases.contains_key(db)
            || self.port.databases().iter().any(|name| **name == *db)
    }
}

/// Answers one request.
pub(crate) async fn handle<P, B>(
    shared: &Shared,
    port: &P,
    activity: &Rc<Activity>,
    request: Request<B>,
) -> Response<HttpBody>
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let (parts, body) = request.into_parts();
    let in_hand = activity.take_in_hand();
    let body = Watched { body, ended: false, activity: activity.clone() };
    let ctx = Ctx { shared, port };
    let mut response = route(&ctx, &parts, body).await.unwrap_or_else(HttpError::into_response);
    let uuid = shared.parts.registry.catalog().instance.to_string();
    if let Ok(value) = HeaderValue::from_str(&uuid) {
        response.headers_mut().insert(CLUSTER_UUID, value);
    }
    response.body_mut().hold(in_hand);
    response
}

async fn route<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    if parts.method == Method::OPTIONS {
        return Ok(preflight());
    }
    request::check_authorization(&parts.headers)?;
    let path = parts.uri.path();
    match (parts.method.as_str(), path) {
        ("POST", "/api/v3/write_lp") => write::v3(ctx, parts, body).await,
        ("POST", "/api/v2/write") => write::v2(ctx, parts, body).await,
        ("POST", "/write") => write::v1(ctx, parts, body).await,
        ("GET", "/api/v3/query_sql") => query::get(ctx, parts).await,
        ("POST", "/api/v3/query_sql") => query::post(ctx, parts, body).await,
        ("GET", "/health" | "/api/v1/health") => status::health(ctx),
        ("GET" | "POST", "/ping") => status::ping(ctx),
        ("GET", "/metrics") => status::metrics(ctx).await,
        ("GET", histograms::PATH) => histograms::get(ctx, parts).await,
        ("GET", DATABASE) => databases::list(ctx, parts).await,
        ("POST", DATABASE) => databases::create(ctx, parts, body).await,
        ("PUT", DATABASE) => databases::update(ctx, parts, body).await,
        ("DELETE", DATABASE) => databases::delete(ctx, parts).await,
        ("POST", RETENTION) => databases::set_retention(ctx, parts).await,
        ("DELETE", RETENTION) => databases::clear_retention(ctx, parts).await,
        ("POST", TABLE) => tables::create(ctx, parts, body).await,
        ("DELETE", TABLE) => tables::delete(ctx, parts).await,
        ("GET", TRIGGER) => triggers::list(ctx, parts),
        ("POST", TRIGGER) => triggers::create(ctx, parts, body).await,
        ("PUT", TRIGGER) => triggers::update(ctx, parts, body).await,
        ("DELETE", TRIGGER) => triggers::delete(ctx, parts, body).await,
        ("POST", TRIGGER_ENABLE) => triggers::set_enabled(ctx, parts, true).await,
        ("POST", TRIGGER_DISABLE) => triggers::set_enabled(ctx, parts, false).await,
        ("POST", DEAD_LETTERS_REPLAY) => dead_letters::replay(ctx, parts, body).await,
        ("POST", DEAD_LETTERS_DISCARD) => dead_letters::discard(ctx, parts, body).await,
        ("POST", PLUGIN_FILES) => plugins::create(ctx, parts, body).await,
        ("PUT", PLUGIN_FILES) => plugins::update(ctx, parts, body).await,
        ("POST", "/api/v3/plugin_test/wal") => plugin_test::wal(ctx, parts, body).await,
        ("POST", "/api/v3/plugin_test/schedule") => plugin_test::schedule(ctx, parts, body).await,
        ("POST", "/api/v3/plugin_test/request") => plugin_test::request(ctx, parts, body).await,
        (_, path) if let Some(path) = path.strip_prefix(engine::PREFIX) => engine::ask(ctx, parts, path, body).await,
        _ if path.starts_with(TOKEN_PREFIX) => {
            Err(HttpError::text(StatusCode::METHOD_NOT_ALLOWED, "endpoint disabled, started without auth"))
        }
        _ => Err(HttpError::text(StatusCode::NOT_FOUND, "Not found")),
    }
}

fn preflight() -> Response<HttpBody> {
    let mut response = empty(StatusCode::NO_CONTENT);
    let any = HeaderValue::from_static("*");
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, any.clone());
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, any.clone());
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, any);
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    response
}

/// A request body that tells when we wait for the peer to send more of it.
struct Watched<B: Body> {
    body: B,
    /// It was read to its end.
    ended: bool,
    activity: Rc<Activity>,
}

impl<B: Body + Unpin> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        this.activity.set_awaiting(frame.is_pending());
        this.ended |= matches!(frame, Poll::Ready(None | Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Body> Drop for Watched<B> {
    fn drop(&mut self) {
        self.activity.set_awaiting(false);
        if !self.ended && !self.body.is_end_stream() {
            self.activity.leave_unread();
        }
    }
}
