//! The three write endpoints (reference, 3.3).
//!
//! They differ in their parameters and in how they say what was refused; the body is line protocol everywhere, and checked by the
//! parser, line by line. A parameter that is not known is refused: what clients of InfluxDB send and Saltus has no use for is known.

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use hyper::body::Body;
use saltus_core::line_protocol::{LineError, Precision};
use saltus_core::names::check_db_name;
use saltus_shards::api::{WriteOutcome, WriteRequest};
use serde_json::{Value, json};

use super::port::ShardPort;
use super::request::{QueryParams, query_params, read_body};
use super::response::{ErrorBody, HttpError, HttpResult, RETRY_AFTER_DEFAULT, empty};
use super::router::Ctx;

/// Bytes of a rejected line that an error shows.
const ORIGINAL_LINE_BYTES_MAX: usize = 20;
/// Parameters of the v3 endpoint; clients send their organisation to it, too.
const V3_PARAMS: [&str; 6] = ["db", "precision", "accept_partial", "no_sync", "org", "orgID"];
/// Of the v2 endpoint, where a write is always taken whole and durable.
const V2_PARAMS: [&str; 9] = ["bucket", "precision", "org", "orgID", "bucketID", "accept_partial", "no_sync", "u", "p"];
/// Of the v1 endpoint; user, password and consistency mean nothing here.
const V1_PARAMS: [&str; 10] =
    ["db", "rp", "precision", "consistency", "u", "p", "org", "orgID", "accept_partial", "no_sync"];
/// How the messages of limits begin; clients tell them by the status 422.
const LIMIT_MESSAGES: [&str; 2] =
    ["Update to schema would exceed number of", "Adding a new database would exceed limit of"];

/// Where a write goes and how it is read.
#[derive(Debug, PartialEq)]
struct Target {
    db: String,
    precision: Precision,
    accept_partial: bool,
    no_sync: bool,
}

/// `POST /api/v3/write_lp`.
pub(crate) async fn v3<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    write(ctx, parts, v3_target(query_params(parts))?, body, answer).await
}

/// `POST /api/v2/write`.
pub(crate) async fn v2<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let target = v2_target(query_params(parts)).map_err(HttpError::into_v2)?;
    write(ctx, parts, target, body, v2_answer).await.map_err(HttpError::into_v2)
}

/// `POST /write`.
pub(crate) async fn v1<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    write(ctx, parts, v1_target(query_params(parts))?, body, answer).await
}

fn v3_target(params: Option<QueryParams>) -> Result<Target, HttpError> {
    let params = params.ok_or_else(|| bad("missing query parameter 'db'"))?;
    params.only(&V3_PARAMS)?;
    let precision = match params.get("precision") {
        None | Some("auto") => Precision::Auto,
        Some(text) => unit(text).ok_or_else(|| unknown_precision(text, true))?,
    };
    Ok(Target {
        db: params.required("db")?.to_owned(),
        precision,
        accept_partial: params.flag("accept_partial", true)?,
        no_sync: params.flag("no_sync", false)?,
    })
}

fn v2_target(params: Option<QueryParams>) -> Result<Target, HttpError> {
    let params = params.unwrap_or_default();
    params.only(&V2_PARAMS)?;
    let bucket = params.get("bucket").filter(|bucket| !bucket.is_empty());
    let bucket = bucket.ok_or_else(|| bad("no org/bucket destination provided"))?;
    strict_target(&params, database(bucket, ""))
}

fn v1_target(params: Option<QueryParams>) -> Result<Target, HttpError> {
    let params = params.unwrap_or_default();
    params.only(&V1_PARAMS)?;
    let db = params.get("db").ok_or_else(|| bad("no db destination provided"))?;
    strict_target(&params, database(db, params.get("rp").unwrap_or_default()))
}

/// The database that v1 and v2 mean, for which a retention policy is a part of the name: `rp=weekly` as well as `db/weekly`, in
/// lower case. `autogen` and `default` are the database itself.
fn database(name: &str, rp: &str) -> String {
    let (db, rp) = match rp {
        "" | "''" => name.split_once('/').filter(|(_, rp)| !rp.is_empty() && !rp.contains('/')).unwrap_or((name, "")),
        rp => (name, rp),
    };
    match rp.to_lowercase().as_str() {
        "" | "autogen" | "default" => db.to_owned(),
        rp => format!("{db}/{rp}"),
    }
}

fn bad(text: impl Into<String>) -> HttpError {
    HttpError::json(StatusCode::BAD_REQUEST, text)
}

fn strict_target(params: &QueryParams, db: String) -> Result<Target, HttpError> {
    let precision = match params.get("precision") {
        None => Precision::Nanosecond,
        Some(text) => unit(text).ok_or_else(|| unknown_precision(text, false))?,
    };
    Ok(Target { db, precision, accept_partial: false, no_sync: false })
}

fn unit(text: &str) -> Option<Precision> {
    Some(match text {
        "second" | "s" => Precision::Second,
        "millisecond" | "ms" => Precision::Millisecond,
        "microsecond" | "us" | "u" => Precision::Microsecond,
        "nanosecond" | "ns" | "n" => Precision::Nanosecond,
        _ => return None,
    })
}

fn unknown_precision(text: &str, auto: bool) -> HttpError {
    let auto = if auto { "`auto`, " } else { "" };
    bad(format!(
        "serde error: unknown variant `{text}`, expected one of {auto}`second`, `s`, `millisecond`, `ms`, \
         `microsecond`, `us`, `u`, `nanosecond`, `ns`, `n` (parameter `precision`)"
    ))
}

async fn write<P, B>(
    ctx: &Ctx<'_, P>,
    parts: &Parts,
    target: Target,
    body: B,
    answer: fn(WriteOutcome) -> HttpResult,
) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    check_db_name(&target.db).map_err(|error| HttpError::json(StatusCode::BAD_REQUEST, error.to_string()))?;
    let body = read_body(&parts.headers, body, ctx.body_limit()).await?;
    let received = ctx.port.now();
    let (bytes, no_sync) = (body.len(), target.no_sync);
    let request = WriteRequest {
        db: target.db.into(),
        body,
        precision: target.precision,
        accept_partial: target.accept_partial,
        no_sync,
        received,
    };
    let Some(tracer) = &ctx.shared.parts.tracer else {
        return answer(ctx.port.write(request).await);
    };
    let db = request.db.clone();
    let outcome = answer(ctx.port.write(request).await);
    let error = outcome.as_ref().err().map(|error| error.status.to_string());
    tracer.write(&db, bytes, received, no_sync, error);
    outcome
}

/// What a client is told about a write.
fn answer(outcome: WriteOutcome) -> HttpResult {
    match outcome {
        WriteOutcome::Written { .. } => Ok(empty(StatusCode::NO_CONTENT)),
        WriteOutcome::Partial { rejected, rejected_count, .. } => Err(partial(&rejected, rejected_count)),
        WriteOutcome::Rejected(line) if is_limit(&line.message) => {
            let text = format!("{} (line {})", line.message, line.line_number);
            Err(HttpError::with_data(StatusCode::UNPROCESSABLE_ENTITY, &text, line_json(&line)))
        }
        WriteOutcome::Rejected(line) => {
            Err(HttpError::with_data(StatusCode::BAD_REQUEST, "line protocol parsing error", line_json(&line)))
        }
        WriteOutcome::Empty => Err(bad("incoming write was empty")),
        WriteOutcome::Busy { what, retry_after } => Err(HttpError::unavailable(
            format!("the server is busy: {what}; nothing was written, try again"),
            retry_after,
        )),
        WriteOutcome::Unavailable { reason } => {
            Err(HttpError::unavailable(format!("write buffer error: error from wal: {reason}"), RETRY_AFTER_DEFAULT))
        }
    }
}

/// What a client of v2 is told, where there is only a text.
fn v2_answer(outcome: WriteOutcome) -> HttpResult {
    match outcome {
        WriteOutcome::Rejected(line) => {
            let limit = is_limit(&line.message);
            let status = if limit { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
            Err(HttpError::json(status, format!("write buffer error: {}", line.refusal())))
        }
        other => answer(other),
    }
}

fn partial(rejected: &[LineError], rejected_count: usize) -> HttpError {
    let limit = rejected.iter().any(|line| is_limit(&line.message));
    let status = if limit { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
    let lines = rejected.iter().map(line_json).collect();
    let mut error = HttpError::with_data(status, "partial write of line protocol occurred", Value::Array(lines));
    if let (ErrorBody::Json(body), true) = (&mut error.body, rejected_count > rejected.len()) {
        body["lines_refused"] = rejected_count.into();
    }
    error
}

fn is_limit(message: &str) -> bool {
    LIMIT_MESSAGES.iter().any(|limit| message.starts_with(limit))
}

fn line_json(line: &LineError) -> Value {
    let shown = line.original_line.floor_char_boundary(ORIGINAL_LINE_BYTES_MAX);
    json!({
        "error_message": line.message,
        "line_number": line.line_number,
        "original_line": &line.original_line[..shown],
    })
}

#[cfg(test)]
mod tests {
    use saltus_core::line_protocol::RefusedBy;

    use super::*;

    fn params(query: &str) -> Option<QueryParams> {
        Some(QueryParams::parse(query))
    }

    #[test]
    fn targets_follow_the_three_dialects() {
        let v3 = v3_target(params("db=a&precision=ms&no_sync=true&accept_partial=false")).unwrap();
        let ms = Precision::Millisecond;
        assert_eq!(v3, Target { db: "a".into(), precision: ms, accept_partial: false, no_sync: true });
        let v3 = v3_target(params("db=a")).unwrap();
        assert_eq!(v3, Target { db: "a".into(), precision: Precision::Auto, accept_partial: true, no_sync: false });
        let v2 = v2_target(params("org=o&bucket=b%2Fc&no_sync=true")).unwrap();
        let ns = Precision::Nanosecond;
        assert_eq!(v2, Target { db: "b/c".into(), precision: ns, accept_partial: false, no_sync: false });
    }

    #[test]
    fn a_retention_policy_is_a_part_of_the_name_and_autogen_is_none() {
        for (query, db) in [
            ("db=a", "a"),
            ("db=a&rp=", "a"),
            ("db=a&rp=''", "a"),
            ("db=a&rp=autogen", "a"),
            ("db=a&rp=Default", "a"),
            ("db=a&rp=Weekly", "a/weekly"),
            ("db=a/autogen", "a"),
            ("db=a/AutoGen&rp=", "a"),
            ("db=a/Weekly", "a/weekly"),
            ("db=a/b&rp=c", "a/b/c"),
        ] {
            assert_eq!(v1_target(params(query)).unwrap().db, db, "{query}");
            if !query.contains("rp=") {
                let query = query.replace("db=", "bucket=");
                assert_eq!(v2_target(params(&query)).unwrap().db, db, "{query}");
            }
        }
        // Left to the check of names.
        for name in ["a/", "/autogen", "a/b/c", "/"] {
            assert_eq!(database(name, ""), if name == "/autogen" { "" } else { name }, "{name}");
        }
    }

    #[test]
    fn parameters_that_clients_send_are_taken_and_others_are_named() {
        for query in ["db=a&org=o&precision=nanosecond&no_sync=true", "db=a&orgID=1&accept_partial=false"] {
            assert!(v3_target(params(query)).is_ok(), "{query}");
        }
        assert!(v1_target(params("db=a&rp=r&u=me&p=secret&consistency=one&precision=u")).is_ok());
        assert!(v2_target(params("bucket=b&bucketID=1&org=&orgID=&precision=ns&accept_partial=true")).is_ok());
        for (result, expected) in [
            (v3_target(params("db=a&precison=s")), "unknown parameter `precison`; did you mean `precision`?"),
            (v3_target(params("DB=a")), "unknown parameter `DB`; did you mean `db`?"),
            (
                v3_target(params("db=a&acceptPartial=true")),
                "unknown parameter `acceptPartial`; did you mean `accept_partial`?",
            ),
            (v2_target(params("buket=a")), "unknown parameter `buket`; did you mean `bucket`?"),
            (v1_target(params("db=a&epoch=s")), "unknown parameter `epoch`; there are `db`, `rp`, `precision`"),
        ] {
            let error = result.unwrap_err();
            assert!(error.message().starts_with(expected) && error.status == 400, "{}", error.message());
        }
    }

    #[test]
    fn bad_parameters_are_named() {
        let text = |result: Result<Target, HttpError>| result.unwrap_err().message();
        assert_eq!(text(v3_target(None)), "missing query parameter 'db'");
        assert_eq!(text(v1_target(None)), "no db destination provided");
        assert_eq!(text(v2_target(params("bucket="))), "no org/bucket destination provided");
        assert_eq!(text(v3_target(params("precision=s"))), "serde error: missing field `db`");
        assert!(text(v3_target(params("db=a&precision=m"))).starts_with("serde error: unknown variant `m`"));
        assert!(text(v1_target(params("db=a&precision=auto"))).starts_with("serde error: unknown variant `auto`"));
        assert!(text(v3_target(params("db=a&no_sync=1"))).contains("no_sync=1"));
    }

    fn line(message: &str, number: u32, original: &str) -> LineError {
        let by = RefusedBy::Grammar;
        LineError { line_number: number, message: message.into(), original_line: original.into(), by }
    }

    fn body(outcome: WriteOutcome) -> (u16, String) {
        let error = answer(outcome).err().unwrap();
        let text = match &error.body {
            ErrorBody::Text(text) => text.clone(),
            ErrorBody::Json(value) => value.to_string(),
        };
        (error.status.as_u16(), text)
    }

    #[test]
    fn error_bodies_are_the_references() {
        let bad = || line("No fields were provided", 1, "cpu,host=a val= 123");
        assert_eq!(
            body(WriteOutcome::Rejected(bad())),
            (
                400,
                r#"{"error":"line protocol parsing error","data":{"error_message":"No fields were provided","line_number":1,"original_line":"cpu,host=a val= 123"}}"#
                    .into()
            )
        );
        let bad = line("No fields were provided", 2, "cpu,host=a val= 123");
        assert_eq!(
            body(WriteOutcome::Partial { rows: 2, rejected: vec![bad], rejected_count: 1 }),
            (
                400,
                r#"{"error":"partial write of line protocol occurred","data":[{"error_message":"No fields were provided","line_number":2,"original_line":"cpu,host=a val= 123"}]}"#
                    .into()
            )
        );
        assert_eq!(body(WriteOutcome::Empty), (400, r#"{"error":"incoming write was empty"}"#.into()));
        let many = WriteOutcome::Partial { rows: 2, rejected: vec![line("x", 2, "x")], rejected_count: 5 };
        assert!(body(many).1.ends_with(r#""lines_refused":5}"#));
    }

    #[test]
    fn limits_are_422() {
        let text = "Update to schema would exceed number of columns per table limit of 4096 columns";
        let (status, said) = body(WriteOutcome::Rejected(line(text, 4, "x")));
        assert!(status == 422 && said.starts_with(&format!("{{\"error\":\"{text} (line 4)\"")), "{said}");
        let rejected = vec![line("x", 1, "x"), line(text, 2, "y")];
        assert_eq!(body(WriteOutcome::Partial { rows: 0, rejected, rejected_count: 2 }).0, 422);
    }

    #[test]
    fn original_lines_are_cut_at_20_bytes_on_a_character() {
        let cut = line_json(&line("m", 1, &format!("{}\u{20ac}tail", "x".repeat(18))));
        assert_eq!(cut["original_line"], "x".repeat(18));
    }

    #[test]
    fn a_full_mailbox_asks_to_come_again() {
        let retry_after = std::time::Duration::from_millis(1200);
        let error = answer(WriteOutcome::Busy { what: "mailbox 1 is full".into(), retry_after }).err().unwrap();
        let response = error.into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/json");
    }

    #[test]
    fn the_v2_shape_has_code_and_message() {
        let error = v2_answer(WriteOutcome::Rejected(line("No fields were provided", 3, "x"))).err().unwrap();
        let error = error.into_v2();
        assert_eq!(
            error.body,
            ErrorBody::Json(json!({
                "code": "invalid",
                "message": "write buffer error: line protocol parse failed: No fields were provided (line 3): `x`",
            }))
        );
    }
}
