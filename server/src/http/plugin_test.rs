//! `/api/v3/plugin_test/{wal,schedule,request}`: runs a plugin once and shows what it would have done (reference, 2.10 and 3.8).
//! The request's kind is an addition, as are `event` and `dead_letter`, which take the rows out of the log.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::StatusCode;
use http::request::Parts;
use hyper::body::Body;
use saltus_core::ids::EventId;
use serde_json::Value;

use super::port::ShardPort;
use super::request::{Fields, json_fields};
use super::response::{HttpBody, HttpError, HttpResult, JSON, reply};
use super::router::Ctx;

/// The fields of every test.
const COMMON: [&str; 4] = ["filename", "database", "input_arguments", "cache_name"];

/// What is to be tested, and with what.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginTest {
    /// As in a trigger.
    pub filename: String,
    /// The database that the plugin belongs to.
    pub database: String,
    /// What the plugin gets as `args`.
    pub arguments: Option<BTreeMap<String, String>>,
    /// Tests of the same name share a cache.
    pub cache_name: Option<String>,
    /// What it is run for.
    pub input: TestInput,
}

/// What the plugin is run for.
#[derive(Clone, Debug, PartialEq)]
pub enum TestInput {
    /// Line protocol with times in nanoseconds.
    Lines(String),
    /// The rows of a write.
    Event(EventId),
    /// The rows of a dead letter.
    DeadLetter(EventId),
    /// The next time of a schedule.
    Schedule {
        /// Every second, if there is none.
        schedule: Option<String>,
        /// As of a trigger.
        time_zone: Option<String>,
    },
    /// A request.
    Request(Box<TestRequest>),
}

/// A request that nobody sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestRequest {
    /// `GET` if nothing is said.
    pub method: String,
    /// Of the trigger.
    pub path: String,
    /// Below it.
    pub tail: Option<String>,
    /// Parameters.
    pub query: Vec<(String, String)>,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

/// Who makes test runs.
pub trait PluginTests: Send + Sync {
    /// Makes one; what came of it, as JSON.
    fn run(&self, test: PluginTest) -> BoxFuture<'static, Result<Value, HttpError>>;
}

/// `POST .../wal`
pub(crate) async fn wal<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    answer(ctx, parts, body, &["input_lp", "event", "dead_letter"], rows).await
}

/// `POST .../schedule`
pub(crate) async fn schedule<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let input = |fields: &Fields| {
        let text = |name: &str| Ok::<_, HttpError>(fields.text_opt(name)?.map(str::to_owned));
        Ok(TestInput::Schedule { schedule: text("schedule")?, time_zone: text("time_zone")? })
    };
    answer(ctx, parts, body, &["schedule", "time_zone"], input).await
}

/// `POST .../request`
pub(crate) async fn request<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let own = ["method", "path", "tail", "query", "headers", "body", "body_base64"];
    answer(ctx, parts, body, &own, |fields| Ok(TestInput::Request(Box::new(test_request(fields)?)))).await
}

async fn answer<P, B>(
    ctx: &Ctx<'_, P>,
    parts: &Parts,
    body: B,
    own: &[&'static str],
    input: impl FnOnce(&Fields) -> Result<TestInput, HttpError>,
) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let known = [&COMMON[..], own].concat();
    let fields = json_fields(parts, body, ctx.body_limit(), &known).await?;
    let test = PluginTest {
        filename: fields.text("filename")?.to_owned(),
        database: fields.text("database")?.to_owned(),
        arguments: arguments(&fields)?,
        cache_name: fields.text_opt("cache_name")?.map(str::to_owned),
        input: input(&fields)?,
    };
    let answer = ctx.shared.parts.tests.run(test).await?;
    Ok(reply(StatusCode::OK, Some(JSON), HttpBody::whole(answer.to_string())))
}

fn rows(fields: &Fields) -> Result<TestInput, HttpError> {
    let id = |name: &str| {
        let parse = |text: &str| text.trim().parse().map_err(|error| HttpError::field(name, error));
        fields.text_opt(name)?.map(parse).transpose()
    };
    match (fields.text_opt("input_lp")?, id("event")?, id("dead_letter")?) {
        (Some(lines), None, None) => Ok(TestInput::Lines(lines.to_owned())),
        (None, Some(event), None) => Ok(TestInput::Event(event)),
        (None, None, Some(letter)) => Ok(TestInput::DeadLetter(letter)),
        (None, None, None) => {
            Err(fields.text("input_lp").err().unwrap_or_else(|| HttpError::field("input_lp", "missing")))
        }
        _ => Err(HttpError::field("input_lp", "give one of input_lp, event and dead_letter")),
    }
}

/// A JSON object of texts.
fn arguments(fields: &Fields) -> Result<Option<BTreeMap<String, String>>, HttpError> {
    let Some(object) = fields.object_opt("input_arguments")? else { return Ok(None) };
    let pair = |(key, value): (&String, &Value)| match value {
        Value::String(text) => Ok((key.clone(), text.clone())),
        other => Err(HttpError::field("input_arguments", format_args!("'{key}' must be a string, got {other}"))),
    };
    object.iter().map(pair).collect::<Result<_, _>>().map(Some)
}

fn test_request(fields: &Fields) -> Result<TestRequest, HttpError> {
    let text = |name: &str| fields.text_opt(name);
    let body = match (text("body")?, text("body_base64")?) {
        (Some(_), Some(_)) => return Err(HttpError::field("body", "give one of body and body_base64")),
        (Some(body), None) => Bytes::copy_from_slice(body.as_bytes()),
        (None, Some(body)) => STANDARD.decode(body).map_err(|error| HttpError::field("body_base64", error))?.into(),
        (None, None) => Bytes::new(),
    };
    let query = match fields.get("query") {
        Some(Value::String(query)) => form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        _ => pairs(fields, "query")?,
    };
    let headers = pairs(fields, "headers")?;
    Ok(TestRequest {
        method: text("method")?.unwrap_or("GET").to_owned(),
        path: text("path")?.unwrap_or("test").to_owned(),
        tail: text("tail")?.map(str::to_owned),
        query,
        headers: headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect(),
        body,
    })
}

/// An object whose values are texts or lists of texts.
fn pairs(fields: &Fields, name: &str) -> Result<Vec<(String, String)>, HttpError> {
    let Some(object) = fields.object_opt(name)? else { return Ok(Vec::new()) };
    let mut pairs = Vec::new();
    for (key, value) in object {
        let values = match value {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        for value in values {
            let Value::String(text) = value else {
                return Err(HttpError::field(
                    name,
                    format_args!("'{key}' must be a string or a list of them, got {value}"),
                ));
            };
            pairs.push((key.clone(), text.clone()));
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        let Value::Object(object) = value else { unreachable!() };
        Fields::new(object)
    }

    #[test]
    fn rows_come_from_one_place() {
        let id: EventId = "3-0-17".parse().unwrap();
        let rows_of = |value| rows(&fields(value)).map_err(|error| error.message());
        assert_eq!(rows_of(json!({"input_lp": "m f=1"})), Ok(TestInput::Lines("m f=1".into())));
        assert_eq!(rows_of(json!({"event": "3-0-17"})), Ok(TestInput::Event(id)));
        assert_eq!(rows_of(json!({"dead_letter": "3-0-17"})), Ok(TestInput::DeadLetter(id)));
        assert_eq!(rows_of(json!({})), Err("serde json error: missing field `input_lp`".into()));
        assert!(rows_of(json!({"event": "x"})).unwrap_err().starts_with("event: 'x' is no id"));
        assert!(rows_of(json!({"event": "3-0-17", "input_lp": ""})).unwrap_err().starts_with("input_lp: give one"));
    }

    #[test]
    fn requests_have_many_values_and_any_bytes() {
        let given = json!({"method": "PUT", "tail": "a/b", "query": {"q": ["1", "2"]}, "headers": {"X-A": "1"},
            "body_base64": "AP8="});
        let request = test_request(&fields(given)).unwrap();
        assert_eq!((request.method.as_str(), request.tail.as_deref()), ("PUT", Some("a/b")));
        assert_eq!(request.query, [("q".to_owned(), "1".to_owned()), ("q".to_owned(), "2".to_owned())]);
        assert_eq!((request.headers[0].0.as_str(), &request.body[..]), ("x-a", &[0, 255][..]));
        let request = test_request(&fields(json!({"query": "a=1&b=%20"}))).unwrap();
        assert_eq!((request.method.as_str(), request.query[1].1.as_str()), ("GET", " "));
        for (given, field) in [
            (json!({"body": "x", "body_base64": ""}), "body: give one"),
            (json!({"body_base64": "?"}), "body_base64: "),
            (json!({"query": {"a": 1}}), "query: 'a' must be a string or a list"),
            (json!({"headers": 1}), "headers: expected an object"),
        ] {
            let error = test_request(&fields(given)).unwrap_err().message();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
