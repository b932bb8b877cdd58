//! From method and path to a handler (reference, 3.2). Which paths there are is in `paths`.

use std::fmt::Display;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    ALLOW, CONNECTION, HeaderName,
};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use saltus_core::names::INTERNAL_DB;

use super::connection::Activity;
use super::paths::Endpoint;
use super::port::ShardPort;
use super::response::{HttpBody, HttpError, HttpResult, empty};
use super::strict::check_query_string;
use super::{
    Shared, databases, dead_letters, engine, histograms, paths, plugin_test, plugins, query, request, status, tables,
    triggers, write,
};

const CLUSTER_UUID: HeaderName = HeaderName::from_static("cluster-uuid");
const TOKEN_PREFIX: &str = "/api/v3/configure/token";
/// What a client is told whose body trickles in, or stays away.
const BODY_LATE: &str =
    "the request's body did not come in time: see --http-request-timeout and --http-idle-timeout; nothing was done";
/// Errors below it have the shape of the v2 API.
const V2_PREFIX: &str = "/api/v2/";

/// What a handler works with.
pub(crate) struct Ctx<'a, P> {
    pub(crate) shared: &'a Shared,
    pub(crate) port: &'a P,
    pub(crate) activity: &'a Activity,
}

impl<P: ShardPort> Ctx<'_, P> {
    pub(crate) fn body_limit(&self) -> usize {
        self.shared.parts.options.request_bytes_max
    }

    /// Whether a database was created, or made by a write.
    pub(crate) fn database_exists(&self, db: &str) -> bool {
        db == INTERNAL_DB
            || self.shared.parts.registry.catalog().databases.contains_key(db)
            || self.port.has_database(db)
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
    let ctx = Ctx { shared, port, activity };
    let is_v2 = parts.uri.path().starts_with(V2_PREFIX);
    let shaped = |error: HttpError| if is_v2 { error.into_v2() } else { error };
    let mut answer = route(&ctx, &parts, body).await;
    if activity.body_late() {
        answer = Err(HttpError::json(StatusCode::REQUEST_TIMEOUT, BODY_LATE));
    }
    activity.begin_answer();
    let mut response = answer.unwrap_or_else(|error| shaped(error).into_response());
    if activity.body_late() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
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
    let path = parts.uri.path();
    if parts.method == Method::OPTIONS {
        return Ok(preflight(path));
    }
    request::check_authorization(&parts.headers)?;
    if let Some(path) = path.strip_prefix(engine::PREFIX) {
        return engine::ask(ctx, parts, path, body).await;
    }
    let Some((endpoint, methods)) = paths::find(path) else {
        if path.starts_with(TOKEN_PREFIX) {
            return Err(HttpError::method_not_allowed("endpoint disabled, started without auth", "OPTIONS"));
        }
        return Err(paths::not_found(path));
    };
    check_query_string(parts.uri.query().unwrap_or_default())?;
    // hyper sends no body with an answer to HEAD.
    let method = match parts.method.as_str() {
        "HEAD" if methods.contains(&"GET") => "GET",
        method => method,
    };
    match (endpoint, method) {
        (Endpoint::WriteV3, "POST") => write::v3(ctx, parts, body).await,
        (Endpoint::WriteV2, "POST") => write::v2(ctx, parts, body).await,
        (Endpoint::WriteV1, "POST") => write::v1(ctx, parts, body).await,
        (Endpoint::Query, "GET") => query::get(ctx, parts).await,
        (Endpoint::Query, "POST") => query::post(ctx, parts, body).await,
        (Endpoint::Health, "GET") => status::health(ctx),
        (Endpoint::Ping, "GET" | "POST") => status::ping(ctx),
        (Endpoint::Metrics, "GET") => status::metrics(ctx).await,
        (Endpoint::Histograms, "GET") => histograms::get(ctx, parts).await,
        _ => configure(ctx, parts, (endpoint, method, methods), body).await,
    }
}

async fn configure<P, B>(
    ctx: &Ctx<'_, P>,
    parts: &Parts,
    (endpoint, method, methods): (Endpoint, &str, &[&str]),
    body: B,
) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    match (endpoint, method) {
        (Endpoint::Database, "GET") => databases::list(ctx, parts).await,
        (Endpoint::Database, "POST") => databases::create(ctx, parts, body).await,
        (Endpoint::Database, "PUT") => databases::update(ctx, parts, body).await,
        (Endpoint::Database, "DELETE") => databases::delete(ctx, parts).await,
        (Endpoint::Retention, "POST") => databases::set_retention(ctx, parts).await,
        (Endpoint::Retention, "DELETE") => databases::clear_retention(ctx, parts).await,
        (Endpoint::Table, "POST") => tables::create(ctx, parts, body).await,
        (Endpoint::Table, "DELETE") => tables::delete(ctx, parts).await,
        (Endpoint::Trigger, "GET") => triggers::list(ctx, parts),
        (Endpoint::Trigger, "POST") => triggers::create(ctx, parts, body).await,
        (Endpoint::Trigger, "PUT") => triggers::update(ctx, parts, body).await,
        (Endpoint::Trigger, "DELETE") => triggers::delete(ctx, parts, body).await,
        (Endpoint::TriggerEnable, "POST") => triggers::set_enabled(ctx, parts, true).await,
        (Endpoint::TriggerDisable, "POST") => triggers::set_enabled(ctx, parts, false).await,
        (Endpoint::LettersReplay, "POST") => dead_letters::replay(ctx, parts, body).await,
        (Endpoint::LettersDiscard, "POST") => dead_letters::discard(ctx, parts, body).await,
        (Endpoint::PluginFiles, "POST") => plugins::create(ctx, parts, body).await,
        (Endpoint::PluginFiles, "PUT") => plugins::update(ctx, parts, body).await,
        (Endpoint::PluginFolder, "POST") => plugins::create_folder(ctx, parts, body).await,
        (Endpoint::PluginFolder, "PUT") => plugins::update_folder(ctx, parts, body).await,
        (Endpoint::TestWal, "POST") => plugin_test::wal(ctx, parts, body).await,
        (Endpoint::TestSchedule, "POST") => plugin_test::schedule(ctx, parts, body).await,
        (Endpoint::TestRequest, "POST") => plugin_test::request(ctx, parts, body).await,
        _ => {
            let (path, allowed) = (parts.uri.path(), paths::allowed(methods));
            let text = format!("Method not allowed: {path} takes {allowed}, not {method}");
            Err(HttpError::method_not_allowed(text, allowed))
        }
    }
}

fn preflight(path: &str) -> Response<HttpBody> {
    let mut response = empty(StatusCode::NO_CONTENT);
    let any = HeaderValue::from_static("*");
    let headers = response.headers_mut();
    let allowed = paths::find(path).map(|(_, methods)| paths::allowed(methods));
    if let Some(value) = allowed.and_then(|allowed| HeaderValue::from_str(&allowed).ok()) {
        headers.insert(ALLOW, value);
    }
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

/// The body's error, or that it is too late.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchedError<E> {
    #[error("{0}")]
    Body(E),
    #[error("it did not come in time")]
    Late,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = WatchedError<B::Error>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WatchedError<B::Error>>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        let bytes = match &frame {
            Poll::Ready(Some(Ok(frame))) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        this.activity.set_awaiting(frame.is_pending(), bytes);
        this.ended |= matches!(frame, Poll::Ready(None | Some(Err(_))));
        if frame.is_pending() && this.activity.body_late() {
            return Poll::Ready(Some(Err(WatchedError::Late)));
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(WatchedError::Body)))
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
        self.activity.end_body();
        if !self.ended && !self.body.is_end_stream() {
            self.activity.leave_unread();
        }
    }
}
