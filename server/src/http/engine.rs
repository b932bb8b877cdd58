//! `/api/v3/engine/...`: requests that plugins answer (reference, 1.7).
//!
//! The path behind the prefix is looked up as it was sent, without decoding. What the plugin sees of a request is made here, and so
//! is HTTP of what it answers; in between, see `saltus_shards::answer`.

use std::fmt::Display;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HeaderName, PROXY_AUTHENTICATE, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::body::Body;
use saltus_core::request::{PluginRequest, RequestError, ResponseHead};
use saltus_shards::answer::Answer;
use saltus_shards::engine::Routed;

use super::paths;
use super::port::ShardPort;
use super::request::read_any_body;
use super::response::{HttpBody, HttpError, HttpResult, RETRY_AFTER_DEFAULT};
use super::router::Ctx;

/// Where request triggers answer.
pub(crate) const PREFIX: &str = "/api/v3/engine/";
/// What says how a message is sent is the server's business: a plugin that is wrong about it would break the connection.
const FRAMING: [HeaderName; 7] =
    [CONNECTION, CONTENT_LENGTH, PROXY_AUTHENTICATE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// Any method.
pub(crate) async fn ask<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, path: &str, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let mut method = parts.method.as_str();
    let mut routed = ctx.port.route(method, path);
    if method == "HEAD" && matches!(routed, Routed::OtherMethods(_)) {
        // Who answers GET answers HEAD: hyper leaves the body out.
        let as_get = ctx.port.route("GET", path);
        if matches!(as_get, Routed::To { .. }) {
            (method, routed) = ("GET", as_get);
        }
    }
    let (target, route, tail) = match routed {
        Routed::To { target, route, tail } => (target, route, tail),
        Routed::OtherMethods(methods) => {
            let listed: Vec<&str> = methods.split(", ").filter(|method| *method != "HEAD").collect();
            let mut allowed = paths::allowed(&listed);
            if methods.contains("HEAD") && !allowed.contains("HEAD") {
                allowed = format!("HEAD, {allowed}");
            }
            let text = format!("Method not allowed: '{path}' answers {methods}, not {method}");
            return Err(HttpError::method_not_allowed(text, allowed));
        }
        Routed::Nothing => {
            let text = format!("not found: no enabled trigger answers {PREFIX}{path}");
            return Err(HttpError::json(StatusCode::NOT_FOUND, text));
        }
    };
    let body = read_any_body(&parts.headers, body, ctx.body_limit()).await?;
    let received = ctx.port.now();
    let query_string = parts.uri.query().unwrap_or_default();
    let request = PluginRequest {
        method: method.to_owned(),
        path: route.into(),
        tail,
        query_string: query_string.to_owned(),
        query: form_urlencoded::parse(query_string.as_bytes()).into_owned().collect(),
        headers: headers(&parts.headers),
        body,
        peer: parts.extensions.get::<SocketAddr>().copied(),
        answer: None,
    };
    ctx.activity.set_in_plugin(true);
    let answer = ctx.port.ask_plugin(target, request, received).await;
    ctx.activity.set_in_plugin(false);
    match answer {
        Answer::Whole(head, body) => response(head, HttpBody::whole(body)),
        Answer::Streamed(head, pieces) => response(head, HttpBody::pieces(pieces)),
        Answer::Failed(error) => Err(failure(error)),
    }
}

fn failure(error: RequestError) -> HttpError {
    match error {
        RequestError::Failed(text) => HttpError::json(StatusCode::INTERNAL_SERVER_ERROR, text),
        RequestError::TimedOut(text) => HttpError::json(StatusCode::GATEWAY_TIMEOUT, text),
        RequestError::Unavailable(text) => HttpError::unavailable(text, RETRY_AFTER_DEFAULT),
    }
}

/// The headers as a plugin sees them: text of whatever bytes, and no credentials.
fn headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let visible = headers.iter().filter(|(name, _)| *name != AUTHORIZATION);
    visible.map(|(name, value)| (name.as_str().to_owned(), text_of(value.as_bytes()))).collect()
}

/// UTF-8, or else each byte as the character of that number.
fn text_of(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|&byte| char::from(byte)).collect(),
    }
}

/// HTTP of a plugin's answer. A value that no header can have is sent empty, as in InfluxDB 3.
fn response(head: ResponseHead, body: HttpBody) -> HttpResult {
    let ResponseHead { status, headers } = head;
    let mut response = Response::new(body);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.status_mut() = status;
    for (name, value) in headers {
        let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
            let text = format!("the plugin's answer has a header whose name is none: {name:?}");
            return Err(HttpError::json(StatusCode::INTERNAL_SERVER_ERROR, text));
        };
        if !FRAMING.contains(&header) {
            let value = HeaderValue::from_str(&value).unwrap_or_else(|_| HeaderValue::from_static(""));
            response.headers_mut().append(header, value);
        }
    }
    if status.is_success() {
        let any = HeaderValue::from_static("*");
        response.headers_mut().entry(ACCESS_CONTROL_ALLOW_ORIGIN).or_insert(any);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(status: u16, headers: &[(&str, &str)]) -> Result<Response<HttpBody>, HttpError> {
        let headers = headers.iter().map(|(name, value)| (String::from(*name), String::from(*value))).collect();
        response(ResponseHead { status, headers }, HttpBody::whole("x"))
    }

    #[test]
    fn headers_are_text_whatever_their_bytes_and_without_credentials() {
        let mut map = HeaderMap::new();
        map.insert("X-Utf8", HeaderValue::from_bytes("h\u{e4}".as_bytes()).unwrap());
        map.insert("x-latin", HeaderValue::from_bytes(b"h\xe4").unwrap());
        map.insert("authorization", HeaderValue::from_static("Bearer secret"));
        map.append("x-many", HeaderValue::from_static("1"));
        map.append("x-many", HeaderValue::from_static("2"));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut seen = headers(&map);
        seen.sort();
        let latin = pair("x-latin", "h\u{e4}");
        assert_eq!(seen, [latin, pair("x-many", "1"), pair("x-many", "2"), pair("x-utf8", "h\u{e4}")]);
    }

    #[test]
    fn answers_keep_repeated_headers_and_never_those_of_the_connection() {
        let answer = built(201, &[("Set-Cookie", "a"), ("set-cookie", "b"), ("Content-Length", "99"), ("X", "a\nb")]);
        let answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a", "b"]);
        assert!(answer.headers().get("content-length").is_none());
        assert_eq!(answer.headers()["x"], "", "a value with a newline would be two headers");
        assert_eq!(answer.headers()["access-control-allow-origin"], "*");
        let own = built(200, &[("Access-Control-Allow-Origin", "https://a")]).unwrap();
        assert_eq!(own.headers().get_all("access-control-allow-origin").iter().count(), 1);
        assert!(built(404, &[]).unwrap().headers().get("access-control-allow-origin").is_none());
    }

    #[test]
    fn a_name_that_is_no_headers_is_an_error_that_shows_it() {
        let error = built(200, &[("bad name", "x")]).err().unwrap();
        assert_eq!((error.status, error.message().contains("\"bad name\"")), (StatusCode::INTERNAL_SERVER_ERROR, true));
    }
}
