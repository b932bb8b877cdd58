//! What is read from a request: parameters, fields of JSON, bodies.

use std::io::Read as _;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use futures_lite::future::{poll_fn, yield_now};
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use hyper::body::Body;
use serde_json::{Map, Value};

use super::response::HttpError;
use super::strict::{check_names, params_of, parse_object};

/// What gzip begins with; no text does.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// Bytes decompressed between two looks at what else the shard has to do.
const GUNZIP_STEP_BYTES: usize = 128 * 1024;

/// The parameters of a query string, decoded; of a repeated one the last counts.
#[derive(Clone, Debug, Default)]
pub struct QueryParams(Vec<(String, String)>);

impl QueryParams {
    /// Reads a query string.
    pub fn parse(query: &str) -> Self {
        QueryParams(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// A parameter's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that must be there.
    ///
    /// # Errors
    /// The reference's text.
    pub fn required(&self, name: &str) -> Result<&str, HttpError> {
        self.get(name).ok_or_else(|| HttpError::bad_request(format!("serde error: missing field `{name}`")))
    }

    /// A parameter that is `true` or `false`.
    ///
    /// # Errors
    /// Any other text.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, HttpError> {
        match self.get(name) {
            None => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(HttpError::bad_request(format!(
                "serde error: provided string was not `true` or `false`: {name}={other}"
            ))),
        }
    }

    /// Refuses what is none of the parameters of a path, and what is given twice: nothing is ignored.
    ///
    /// # Errors
    /// 400 with the parameter, and the one that was probably meant or all that there are.
    pub fn only(&self, known: &[&str]) -> Result<(), HttpError> {
        check_names(self.names(), known, "parameter", "")?;
        let again = |(at, name): &(usize, &str)| self.names().take(*at).any(|before| before == *name);
        match self.names().enumerate().find(again) {
            None => Ok(()),
            Some((_, name)) => {
                Err(HttpError::json(StatusCode::BAD_REQUEST, format!("parameter `{name}` is given twice")))
            }
        }
    }

    /// The names of all parameters, in the order of the query string.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// The parameters as a JSON object of strings.
    fn into_object(self) -> Map<String, Value> {
        self.0.into_iter().map(|(key, value)| (key, Value::String(value))).collect()
    }
}

/// A JSON object whose fields are taken by name; every error names the field.
#[derive(Clone, Debug, Default)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// The fields of an object.
    pub fn new(object: Map<String, Value>) -> Self {
        Fields(object)
    }

    /// Refuses a field that is not one of `known`.
    ///
    /// # Errors
    /// The field, and the nearest that there is.
    pub fn only(&self, known: &[&str]) -> Result<(), HttpError> {
        check_names(self.0.keys().map(String::as_str), known, "field", "")
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Whether a field is there, even as null.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A text, if it is there.
    ///
    /// # Errors
    /// It is no text.
    pub fn text_opt(&self, name: &str) -> Result<Option<&str>, HttpError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(HttpError::field(name, format_args!("expected a string, got {other}"))),
        }
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// It is missing or no text.
    pub fn text(&self, name: &str) -> Result<&str, HttpError> {
        self.text_opt(name)?.ok_or_else(|| missing(name))
    }

    /// A boolean; in a query string it is a text.
    ///
    /// # Errors
    /// It is neither.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, HttpError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::String(text)) if text == "true" => Ok(true),
            Some(Value::String(text)) if text == "false" => Ok(false),
            Some(other) => Err(HttpError::field(name, format_args!("expected true or false, got {other}"))),
        }
    }

    /// An object, if it is there.
    ///
    /// # Errors
    /// It is no object.
    pub fn object_opt(&self, name: &str) -> Result<Option<&Map<String, Value>>, HttpError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => Err(HttpError::field(name, format_args!("expected an object, got {other}"))),
        }
    }

    /// A list that must be there.
    ///
    /// # Errors
    /// It is missing or no list.
    pub fn list(&self, name: &str) -> Result<&[Value], HttpError> {
        match self.get(name) {
            None => Err(missing(name)),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(HttpError::field(name, format_args!("expected a list, got {other}"))),
        }
    }
}

fn missing(name: &str) -> HttpError {
    HttpError::json(StatusCode::BAD_REQUEST, format!("serde json error: missing field `{name}`"))
}

/// The parameters of a request, if it has a query string (even an empty one).
pub fn query_params(parts: &Parts) -> Option<QueryParams> {
    parts.uri.query().map(QueryParams::parse)
}

/// The fields of the query string if there is one, else of the JSON body; no others than `known`.
///
/// # Errors
/// As [`json_fields`].
pub async fn query_or_json<B>(parts: &Parts, body: B, limit: usize, known: &[&str]) -> Result<Fields, HttpError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    match parts.uri.query() {
        Some(_) => Ok(Fields(params_of(parts, known)?.into_object())),
        None => json_body(parts, body, limit, known).await,
    }
}

/// The fields of a JSON body that says that it is one; no others than `known`, and no parameters beside it.
///
/// # Errors
/// 415 without the content type, 400 for anything but an object of known fields.
pub async fn json_fields<B>(parts: &Parts, body: B, limit: usize, known: &[&str]) -> Result<Fields, HttpError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    if let Some(name) = query_params(parts).as_ref().and_then(|params| params.names().next()) {
        let text = format!("unknown parameter `{name}`; this path takes the fields of a JSON body, and no parameters");
        return Err(HttpError::json(StatusCode::BAD_REQUEST, text));
    }
    json_body(parts, body, limit, known).await
}

/// The fields of a JSON body, whatever stands in the query string.
///
/// # Errors
/// As [`json_fields`].
pub async fn json_body<B>(parts: &Parts, body: B, limit: usize, known: &[&str]) -> Result<Fields, HttpError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    if !is_json(&parts.headers) {
        let text = "unacceptable content-type, expected: application/json";
        return Err(HttpError::json(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    let fields = parse_fields(&read_body(&parts.headers, body, limit).await?)?;
    fields.only(known)?;
    Ok(fields)
}

/// The fields of JSON text.
///
/// # Errors
/// 400 for anything but an object whose fields are there once each.
pub fn parse_fields(body: &[u8]) -> Result<Fields, HttpError> {
    parse_object(body).map(Fields)
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return false };
    let mime = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    mime == "application/json" || (mime.starts_with("application/") && mime.ends_with("+json"))
}

/// The whole body of a path that takes text, decompressed; bounded before and after.
///
/// # Errors
/// 413 beyond `limit`, 400 for an unknown encoding, broken compression, and a body that is compressed and does not say so.
pub async fn read_body<B>(headers: &HeaderMap, body: B, limit: usize) -> Result<Bytes, HttpError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let (body, packed) = unpacked(headers, body, limit).await?;
    if !packed && body.starts_with(&GZIP_MAGIC) {
        return Err(looks_like_gzip(""));
    }
    Ok(body)
}

/// What [`read_body`] does on a path that takes anything: a body that is compressed and does not say so is meant to be, if its
/// type is not one of text.
///
/// # Errors
/// As [`read_body`].
pub async fn read_any_body<B>(headers: &HeaderMap, body: B, limit: usize) -> Result<Bytes, HttpError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let (body, packed) = unpacked(headers, body, limit).await?;
    if !packed && body.starts_with(&GZIP_MAGIC) && (is_json(headers) || !is_binary(headers)) {
        return Err(looks_like_gzip(", or Content-Type: application/gzip if it is to stay compressed"));
    }
    Ok(body)
}

/// The body, and whether it was compressed.
async fn unpacked<B>(headers: &HeaderMap, body: B, limit: usize) -> Result<(Bytes, bool), HttpError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let gzip = is_gzip(headers)?;
    let raw = collect(headers, body, limit).await?;
    // An empty body is empty, whatever it is said to be.
    if gzip && !raw.is_empty() { Ok((gunzip(&raw, limit).await?, true)) } else { Ok((raw, false)) }
}

/// Whether a body is compressed: names in any case, `x-gzip` is gzip, and nothing or `identity` is no coding (RFC 9110, 8.4.1).
fn is_gzip(headers: &HeaderMap) -> Result<bool, HttpError> {
    let mut gzip = false;
    for value in headers.get_all(CONTENT_ENCODING) {
        for coding in value.to_str().unwrap_or("?").split(',').map(str::trim) {
            match coding.to_ascii_lowercase().as_str() {
                "" | "identity" => {}
                "gzip" | "x-gzip" if !gzip => gzip = true,
                _ => {
                    let what = "send the body as it is, or once as gzip with Content-Encoding: gzip";
                    return Err(bad_body(format!("unacceptable content-encoding: {coding}: {what}")));
                }
            }
        }
    }
    Ok(gzip)
}

/// Whether a body says that it is something else than text; a form is what clients say that do not know.
fn is_binary(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return false };
    let mime = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    !mime.is_empty() && !mime.starts_with("text/") && mime != "application/x-www-form-urlencoded"
}

fn looks_like_gzip(or: &str) -> HttpError {
    bad_body(format!("the body looks like gzip, which its headers do not say: send Content-Encoding: gzip{or}"))
}

fn bad_body(text: String) -> HttpError {
    HttpError::json(StatusCode::BAD_REQUEST, text)
}

fn too_large(limit: usize) -> HttpError {
    let remedy = "send it in several, or raise --max-http-request-size";
    let text = format!("max request size ({limit} bytes) exceeded: {remedy}");
    HttpError::json(StatusCode::PAYLOAD_TOO_LARGE, text)
}

async fn collect<B>(headers: &HeaderMap, mut body: B, limit: usize) -> Result<Bytes, HttpError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let announced: Option<usize> =
        headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| bad_body(format!("error reading request body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + rest.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        if first.is_empty() && rest.is_empty() {
            // A body in one piece, the common case, is not copied.
            first = data;
            continue;
        }
        if rest.is_empty() {
            rest.reserve(announced.unwrap_or(2 * (first.len() + data.len())));
            rest.extend_from_slice(&std::mem::take(&mut first));
        }
        rest.extend_from_slice(&data);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

async fn gunzip(raw: &[u8], limit: usize) -> Result<Bytes, HttpError> {
    let mut decoder = MultiGzDecoder::new(raw);
    let mut out = BytesMut::with_capacity(raw.len().saturating_mul(4).min(limit));
    let mut step = vec![0; 16 * 1024];
    let mut since_yield = 0;
    loop {
        let read = decoder.read(&mut step).map_err(|error| bad_body(format!("error decoding gzip stream: {error}")))?;
        if read == 0 {
            return Ok(out.freeze());
        }
        if out.len() + read > limit {
            return Err(too_large(limit));
        }
        out.extend_from_slice(&step[..read]);
        since_yield += read;
        if since_yield >= GUNZIP_STEP_BYTES {
            since_yield = 0;
            yield_now().await;
        }
    }
}

/// Checks the shape of an `Authorization` header; what it says is not looked at while the server runs without
/// authentication.
///
/// # Errors
/// The reference's 400.
pub fn check_authorization(headers: &HeaderMap) -> Result<(), HttpError> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(()) };
    if value.to_str().is_ok_and(is_well_formed) {
        return Ok(());
    }
    Err(HttpError::bad_request(
        "Authorization header was malformed, the request was not in the form of 'Authorization: <auth-scheme> <token>', supported \
         auth-schemes are Bearer, Token and Basic",
    ))
}

fn is_well_formed(value: &str) -> bool {
    use base64::Engine as _;
    let Some((scheme, token)) = value.split_once(' ') else { return false };
    if token.is_empty() || token.contains(' ') {
        return false;
    }
    match scheme {
        "Bearer" | "Token" => true,
        "Basic" => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(token).unwrap_or_default();
            decoded.iter().filter(|&&byte| byte == b':').count() == 1 && std::str::from_utf8(&decoded).is_ok()
        }
        _ => false,
    }
}
