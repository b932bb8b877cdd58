//! Whole requests against a fake shard: routes, headers, bodies, without a socket.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_lite::future::block_on;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use saltus_core::catalog::TableInfo;
use saltus_core::ids::{Epoch, EventId, MonoNs, ShardId, TableId, TriggerId};
use saltus_core::request::{PluginRequest, ResponseHead};
use saltus_core::schema::{ColumnDef, TableSchema};
use saltus_core::trigger::TriggerDef;
use saltus_shards::answer::Answer;
use saltus_shards::api::{Health, ShardStats, TableError, TriggerStats, WriteOutcome, WriteRequest};
use saltus_shards::dead_letters::DeadLetter;
use saltus_shards::engine::{Routed, Target};
use serde_json::{Value, json};
use uuid::Uuid;

use super::connection::Activity;
use super::plugin_test::{PluginTest, PluginTests};
use super::port::ShardPort;
use super::query::{QueryBackend, QueryFormat, QueryHttpRequest, QueryReply};
use super::response::{HttpBody, HttpError};
use super::{HttpOptions, HttpParts, Shared, paths, router};
use crate::logs::PluginLogs;
use crate::registry::tests::{FakeEngine, open};

/// A shard that remembers writes.
#[derive(Clone)]
struct FakeShard {
    engine: FakeEngine,
    writes: Rc<RefCell<Vec<WriteRequest>>>,
    reasons: Vec<String>,
}

impl ShardPort for FakeShard {
    fn now(&self) -> MonoNs {
        MonoNs(7)
    }
    async fn write(&self, request: WriteRequest) -> WriteOutcome {
        self.writes.borrow_mut().push(request);
        WriteOutcome::Written { rows: 1 }
    }
    fn databases(&self) -> Vec<Arc<str>> {
        self.engine.databases.lock().clone()
    }
    fn has_database(&self, db: &str) -> bool {
        self.engine.databases.lock().iter().any(|name| **name == *db)
    }
    async fn create_table(&self, db: &str, name: &str, columns: Vec<ColumnDef>) -> Result<TableInfo, TableError> {
        saltus_core::names::check_new_table(name, &columns)?;
        let id = TableId::new(Epoch(1), ShardId(0), 1);
        let schema = Arc::new(TableSchema::new(columns, 1));
        Ok(TableInfo { id, db: db.into(), name: name.into(), schema })
    }
    async fn drop_table(&self, _db: &str, name: &str) -> Result<(), TableError> {
        Err(TableError::NotFound(name.to_owned()))
    }
    fn health(&self) -> Health {
        Health { reasons: self.reasons.clone() }
    }
    fn route(&self, method: &str, path: &str) -> Routed {
        let target = Target { trigger: TriggerId(1), home: ShardId(0) };
        match (method, path.split_once('/')) {
            ("GET" | "POST", None) if path == "echo" => Routed::To { target, route: path.to_owned(), tail: None },
            ("GET" | "POST", Some(("echo", tail))) => {
                Routed::To { target, route: "echo".to_owned(), tail: Some(tail.to_owned()) }
            }
            (_, None) if path == "echo" => Routed::OtherMethods("GET, POST".to_owned()),
            _ => Routed::Nothing,
        }
    }
    async fn ask_plugin(&self, _target: Target, request: PluginRequest, received: MonoNs) -> Answer {
        let text = format!("{received:?} {request:?}");
        Answer::Whole(ResponseHead { status: 201, headers: Vec::new() }, text.into())
    }
    async fn shard_stats(&self) -> Vec<ShardStats> {
        Vec::new()
    }
    async fn trigger_stats(&self) -> Vec<TriggerStats> {
        Vec::new()
    }
    async fn dead_letters(&self) -> Vec<Arc<DeadLetter>> {
        Vec::new()
    }
    async fn replay_dead_letters(&self, _trigger: &TriggerDef, _ids: HashSet<EventId>) -> Result<usize, TableError> {
        Ok(0)
    }
    async fn discard_dead_letters(&self, _ids: HashSet<EventId>) -> Result<usize, TableError> {
        Ok(0)
    }
    fn sleep(&self, _time: Duration) -> impl Future<Output = ()> + 'static {
        std::future::pending()
    }
    fn stopped(&self) -> impl Future<Output = ()> + 'static {
        std::future::pending()
    }
}

/// Answers every query with its own text.
struct Echo;

impl QueryBackend for Echo {
    fn query(&self, request: QueryHttpRequest) -> BoxFuture<'static, Result<QueryReply, HttpError>> {
        Box::pin(async move {
            let text = format!("{}|{}|{}", request.db, request.sql, Value::Object(request.params));
            let body = futures_util::stream::iter([Ok(Bytes::from(text))]);
            Ok(QueryReply { content_type: request.format.content_type(), body: Box::pin(body) })
        })
    }
}

impl PluginTests for Echo {
    fn run(&self, test: PluginTest) -> BoxFuture<'static, Result<Value, HttpError>> {
        Box::pin(async move { Ok(json!({ "said": format!("{test:?}") })) })
    }
}

struct Server {
    shared: Shared,
    shard: FakeShard,
    _dir: tempfile::TempDir,
}

impl Server {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (registry, engine) = open(dir.path());
        let options = HttpOptions {
            request_bytes_max: 1000,
            idle_timeout: Duration::from_secs(75),
            request_timeout: Duration::from_secs(60),
            shutdown_timeout: Duration::from_secs(30),
            trigger_kinds: None,
        };
        let logs = Arc::new(PluginLogs::new());
        let parts = HttpParts {
            options,
            registry,
            query: Arc::new(Echo),
            tests: Arc::new(Echo),
            logs,
            tracer: None,
            metrics: Vec::new(),
        };
        let shared = Shared { parts, process_id: Uuid::new_v4(), started: SystemTime::now() };
        let shard = FakeShard { engine, writes: Rc::default(), reasons: Vec::new() };
        Server { shared, shard, _dir: dir }
    }

    fn send(&self, request: Request<Full<Bytes>>) -> Response<HttpBody> {
        let activity = Rc::new(Activity::new());
        block_on(router::handle(&self.shared, &self.shard, &activity, request))
    }

    fn call(&self, method: &str, uri: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        text_of(self.send(request.body(Full::new(body.into())).unwrap()))
    }

    fn json(&self, method: &str, uri: &str, body: &Value) -> (u16, String) {
        self.call(method, uri, &[("content-type", "application/json; charset=utf-8")], body.to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.parts.registry.stop();
    }
}

fn text_of(response: Response<HttpBody>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = block_on(response.into_body().collect()).unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

const WRITE: &str = "/api/v3/write_lp?db=db";

#[test]
fn a_write_reaches_the_shard_whole() {
    let server = Server::new();
    assert_eq!(server.call("POST", &format!("{WRITE}&precision=s&no_sync=true"), &[], "m f=1"), (204, String::new()));
    let writes = server.shard.writes.borrow();
    assert_eq!((&*writes[0].db, &*writes[0].body), ("db", &b"m f=1"[..]));
    assert_eq!((writes[0].no_sync, writes[0].received), (true, MonoNs(7)));
}

fn gzip(text: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_bodies_are_bounded_on_both_sides() {
    let server = Server::new();
    let encoded = [("content-encoding", "gzip")];
    assert_eq!(server.call("POST", WRITE, &encoded, gzip(b"m f=1")).0, 204);
    assert_eq!(&*server.shard.writes.borrow()[0].body, b"m f=1");
    let remedy = "send it in several, or raise --max-http-request-size";
    let too_large = (413, error(&format!("max request size (1000 bytes) exceeded: {remedy}")));
    assert_eq!(server.call("POST", WRITE, &encoded, gzip(&[b'x'; 1001])), too_large);
    assert_eq!(server.call("POST", WRITE, &[], vec![b'x'; 1001]), too_large);
    assert_eq!(server.call("POST", WRITE, &[], vec![b'x'; 1000]).0, 204);
    let (status, text) = server.call("POST", WRITE, &encoded, "no gzip");
    assert_eq!((status, text.contains("error decoding gzip stream: ")), (400, true));
    let (status, text) = server.call("POST", WRITE, &[("content-encoding", "br")], "x");
    assert_eq!((status, text.contains("unacceptable content-encoding: br")), (400, true));
}

#[test]
fn codings_are_read_as_http_has_them_and_others_are_named() {
    let server = Server::new();
    let packed = gzip(b"m f=1");
    for coding in ["gzip", "GZIP", "x-gzip", "X-GZip", " gzip ", "identity, gzip", "gzip,"] {
        let answer = server.call("POST", WRITE, &[("content-encoding", coding)], packed.clone());
        assert_eq!(answer, (204, String::new()), "{coding:?}");
        assert_eq!(&*server.shard.writes.borrow_mut().pop().unwrap().body, b"m f=1", "{coding:?}");
    }
    for coding in ["", "identity", "Identity", ","] {
        assert_eq!(server.call("POST", WRITE, &[("content-encoding", coding)], "m f=1").0, 204, "{coding:?}");
    }
    for (coding, named) in [("br", "br"), ("deflate", "deflate"), ("gzip, zstd", "zstd"), ("gzip, gzip", "gzip")] {
        let (status, text) = server.call("POST", WRITE, &[("content-encoding", coding)], "x");
        let begin = format!("{{\"error\":\"unacceptable content-encoding: {named}: send the body");
        assert!(status == 400 && text.starts_with(&begin), "{coding}: {text}");
    }
    // What is compressed and does not say so; a plugin may want it like that.
    for path in [WRITE, "/api/v3/query_sql", "/api/v3/engine/echo", "/write?db=a", "/api/v2/write?bucket=a"] {
        let (status, text) = server.call("POST", path, &[], packed.clone());
        assert!(status == 400 && text.contains("the body looks like gzip"), "{path}: {status} {text}");
    }
    let file = [("content-type", "application/gzip")];
    assert_eq!(server.call("POST", "/api/v3/engine/echo", &file, packed.clone()).0, 201);
    assert_eq!(server.call("POST", WRITE, &[("content-encoding", "gzip")], "").0, 204, "an empty body is empty");
}

#[test]
fn bad_names_are_400() {
    let server = Server::new();
    let name = server.call("POST", "/api/v3/write_lp?db=_x", &[], "m f=1");
    assert_eq!(name, (400, r#"{"error":"db name did not start with a number or letter"}"#.to_owned()));
    let v2 = server.call("POST", "/api/v2/write?bucket=_x", &[], "m f=1");
    assert_eq!(v2, (400, r#"{"code":"invalid","message":"db name did not start with a number or letter"}"#.to_owned()));
    assert_eq!(server.call("POST", "/api/v3/write_lp", &[], ""), (400, error("missing query parameter 'db'")));
}

/// An error as it is sent.
fn error(text: &str) -> String {
    json!({ "error": text }).to_string()
}

#[test]
fn unknown_paths_are_404_and_other_methods_405_with_those_that_there_are() {
    let server = Server::new();
    for path in ["/nope", "/query", "/api/v3/query_influxql", "/", "/api/v3/configure/last_cache"] {
        for method in ["GET", "HEAD", "POST", "DELETE", "TRACE"] {
            let (status, text) = server.call(method, path, &[], "");
            assert_eq!((status, text.starts_with(r#"{"error":"Not found: "#)), (404, true), "{method} {path}: {text}");
        }
    }
    for (path, methods, _) in paths::PATHS {
        let allowed = paths::allowed(methods);
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "FOO"] {
            let request = Request::builder().method(method).uri(path).body(Full::default()).unwrap();
            let response = server.send(request);
            let is_405 = response.status() == StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(is_405, !allowed.split(", ").any(|one| one == method), "{method} {path}");
            assert_ne!(response.status(), StatusCode::NOT_FOUND, "{method} {path}");
            if is_405 {
                assert_eq!(response.headers()["allow"], allowed.as_str(), "{method} {path}");
                assert_eq!(response.headers()["content-type"], "application/json");
            }
        }
        let options = server.send(Request::builder().method("OPTIONS").uri(path).body(Full::default()).unwrap());
        assert_eq!(
            (options.status(), options.headers()["allow"].to_str().unwrap()),
            (StatusCode::NO_CONTENT, &*allowed)
        );
    }
    let token = server.call("POST", "/api/v3/configure/token/admin", &[], "");
    assert_eq!(token, (405, error("endpoint disabled, started without auth")));
    let v2 = server.call("GET", "/api/v2/write", &[], "");
    assert!(v2.1.starts_with(r#"{"code":"method not allowed","message":"Method not allowed: "#), "{v2:?}");
}

#[test]
fn names_that_a_path_does_not_have_are_refused_everywhere() {
    const DATABASE: &str = "/api/v3/configure/database";
    const TRIGGER: &str = "/api/v3/configure/processing_engine_trigger";
    let server = Server::new();
    server.shard.engine.databases.lock().push("db".into());
    let trigger =
        json!({"db": "db", "plugin_filename": "p.py", "trigger_name": "t", "trigger_specification": "table:x"});
    let with = |name: &str, value: Value| {
        let mut body = trigger.clone();
        body[name] = value;
        body
    };
    for (method, path, body, text) in [
        (
            "POST",
            DATABASE,
            json!({"db": "a", "retention": "1d"}),
            "unknown field `retention`; did you mean `retention_period`?",
        ),
        (
            "PUT",
            DATABASE,
            json!({"db": "a", "retentionPeriod": "1d"}),
            "unknown field `retentionPeriod`; did you mean `retention_period`?",
        ),
        (
            "POST",
            "/api/v3/configure/database?db=a",
            json!({"db": "a"}),
            "unknown parameter `db`; this path takes the fields of a JSON body",
        ),
        (
            "POST",
            "/api/v3/configure/table",
            json!({"db": "a", "table": "t", "tags": [], "field": []}),
            "unknown field `field`; did you mean `fields`?",
        ),
        (
            "POST",
            "/api/v3/configure/table",
            json!({"db": "a", "table": "t", "tags": [], "fields": [{"name": "f", "kind": "int64"}]}),
            "unknown field `kind` in `fields`; there are `name`, `type`",
        ),
        (
            "POST",
            TRIGGER,
            with("trigger_setings", json!({})),
            "unknown field `trigger_setings`; did you mean `trigger_settings`?",
        ),
        (
            "POST",
            TRIGGER,
            with("trigger_settings", json!({"errorBehavior": "disable"})),
            "unknown field `errorBehavior` in `trigger_settings`; did you mean `error_behavior`?",
        ),
        ("POST", TRIGGER, with("trigger_settings", json!({"limits": {"memry": "1gb"}})), "limits: 'memry' is no limit"),
        ("POST", TRIGGER, with("timezone", json!("UTC")), "unknown field `timezone`; did you mean `time_zone`?"),
        ("PUT", TRIGGER, json!({"db": "db", "trigger_name": "t", "enabled": true}), "unknown field `enabled`; "),
        (
            "PUT",
            TRIGGER,
            json!({"db": "db", "trigger_name": "t", "trigger_settings": {"Execution": "inline"}}),
            "unknown field `Execution` in `trigger_settings`; did you mean `execution`?",
        ),
        (
            "DELETE",
            TRIGGER,
            json!({"db": "db", "trigger_name": "t", "forced": true}),
            "unknown field `forced`; did you mean `force`?",
        ),
        ("POST", "/api/v3/configure/dead_letters/replay", json!({"db": "db", "id": []}), "unknown field `id`; "),
        (
            "POST",
            "/api/v3/plugins/files",
            json!({"plugin_name": "x.py", "contents": ""}),
            "unknown field `contents`; did you mean `content`?",
        ),
        (
            "POST",
            "/api/v3/plugin_test/wal",
            json!({"filename": "p", "database": "db", "input_lines": ""}),
            "unknown field `input_lines`; ",
        ),
        (
            "POST",
            "/api/v3/plugin_test/schedule",
            json!({"filename": "p", "database": "db", "input_lp": ""}),
            "unknown field `input_lp`; ",
        ),
        (
            "POST",
            "/api/v3/plugin_test/request",
            json!({"filename": "p", "database": "db", "header": {}}),
            "unknown field `header`; did you mean `headers`?",
        ),
    ] {
        let (status, answer) = server.json(method, path, &body);
        assert!(status == 400 && answer.contains(text), "{method} {path} {body}: {status} {answer}");
    }
    for (method, uri, text) in [
        (
            "GET",
            "/api/v3/configure/database?format=json&showDeleted=true",
            "unknown parameter `showDeleted`; did you mean `show_deleted`?",
        ),
        ("DELETE", "/api/v3/configure/database?db=a&data_only=true", "unknown parameter `data_only`; "),
        ("DELETE", "/api/v3/configure/database?db=a&db=b", "parameter `db` is given twice"),
        ("POST", "/api/v3/configure/database/retention_period?db=a&period=1d", "unknown parameter `period`; "),
        (
            "DELETE",
            "/api/v3/configure/database/retention_period?db=a&duration=1d",
            "unknown parameter `duration`; there is `db` only",
        ),
        (
            "DELETE",
            "/api/v3/configure/table?db=a&table_name=t",
            "unknown parameter `table_name`; did you mean `table`?",
        ),
        ("GET", "/api/v3/configure/processing_engine_trigger?database=a", "unknown parameter `database`; "),
        (
            "DELETE",
            "/api/v3/configure/processing_engine_trigger?db=a&name=t",
            "unknown parameter `name`; did you mean `trigger_name`?",
        ),
        (
            "POST",
            "/api/v3/configure/processing_engine_trigger/disable?db=a&trigger=t",
            "unknown parameter `trigger`; did you mean `trigger_name`?",
        ),
        ("GET", "/api/v3/debug/histograms?trigger_name=t", "unknown parameter `trigger_name`; did you mean `trigger`?"),
        (
            "GET",
            "/api/v3/configure/processing_engine_trigger?db=%ff",
            "parameter `db` of the query string is not UTF-8",
        ),
        ("GET", "/api/v3/query_sql?db=a&q=50%", "parameter `q` of the query string has a `%`"),
    ] {
        let (status, answer) = server.call(method, uri, &[], "");
        assert!(status == 400 && answer.contains(text), "{method} {uri}: {status} {answer}");
    }
    let list = server.call("GET", "/api/v3/configure/database?format=csv", &[], "");
    assert_eq!(list.1, "iox::database\n_internal\ndb\n", "nothing was made");
    // What clients of InfluxDB 3 send is taken.
    assert_eq!(server.json("POST", TRIGGER, &with("node_spec", json!("all"))).0, 200);
    let file = json!({"plugin_name": "x.py", "content": ""});
    assert_eq!(server.json("POST", "/api/v3/plugins/files?db=db", &file).0, 200);
}

#[test]
fn json_bodies_have_every_name_once() {
    let server = Server::new();
    let header = [("content-type", "application/json")];
    let text = r#"{"db": "a", "db": "b"}"#;
    let answer = server.call("POST", "/api/v3/configure/database", &header, text);
    assert_eq!(answer, (400, error("serde json error: duplicate field `db` at line 1 column 16")));
}

#[test]
fn plugins_get_the_whole_request_and_unknown_paths_are_json() {
    let server = Server::new();
    let headers = [("x-a", "1"), ("authorization", "Bearer secret"), ("content-encoding", "gzip")];
    let (status, text) = server.call("POST", "/api/v3/engine/echo/a%20b?q=1&q=%202", &headers, gzip(b"body"));
    assert_eq!(status, 201);
    for part in ["MonoNs(7)", "\"POST\"", "path: \"echo\"", "tail: Some(\"a%20b\")", "(\"q\", \" 2\")", "b\"body\""] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("secret"), "{text}");
    for (method, path) in [("GET", "nope"), ("PUT", ""), ("HEAD", "nope")] {
        let (status, text) = server.call(method, &format!("/api/v3/engine/{path}"), &[], "");
        let expected = error(&format!("not found: no enabled trigger answers /api/v3/engine/{path}"));
        assert_eq!((status, text), (404, expected));
    }
    let put = server.send(Request::builder().method("PUT").uri("/api/v3/engine/echo").body(Full::default()).unwrap());
    assert_eq!(put.headers()["allow"], "GET, HEAD, POST, OPTIONS");
    let (status, text) = text_of(put);
    assert_eq!((status, text.contains("'echo' answers GET, POST, not PUT")), (405, true));
    let (status, text) = server.call("HEAD", "/api/v3/engine/echo", &[], "");
    assert_eq!((status, text.contains("method: \"GET\"")), (201, true), "{text}");
    let remedy = "send it in several, or raise --max-http-request-size";
    let too_large = (413, error(&format!("max request size (1000 bytes) exceeded: {remedy}")));
    assert_eq!(server.call("POST", "/api/v3/engine/echo", &[], vec![b'x'; 1001]), too_large);
}

#[test]
fn tests_of_plugins_name_what_they_lack() {
    let server = Server::new();
    let test = |kind: &str, body: &Value| server.json("POST", &format!("/api/v3/plugin_test/{kind}"), body);
    let body = json!({"filename": "p.py", "database": "db", "input_lp": "m f=1", "input_arguments": {"k": "v"}});
    assert!(test("wal", &body).1.contains("Lines"));
    let body = json!({"filename": "p.py", "database": "db", "input_arguments": {"k": "v"}});
    assert!(test("schedule", &body).1.contains("Schedule { schedule: None, time_zone: None }"));
    assert!(test("request", &body).1.contains("GET"));
    let error = |body| test("wal", &body);
    assert_eq!(
        error(json!({"database": "db"})),
        (400, r#"{"error":"serde json error: missing field `filename`"}"#.into())
    );
    let text = r#"{"error":"input_arguments: 'k' must be a string, got 1"}"#.to_owned();
    assert_eq!(
        error(json!({"filename": "p", "database": "d", "input_lp": "", "input_arguments": {"k": 1}})),
        (400, text)
    );
}

#[test]
fn every_answer_names_the_instance_and_successes_may_be_read_from_anywhere() {
    let server = Server::new();
    let get = |path: &str| server.send(Request::builder().uri(path).body(Full::default()).unwrap());
    let uuid = server.shared.parts.registry.catalog().instance.to_string();
    let (good, bad) = (get("/ping"), get("/nope"));
    assert_eq!(good.headers()["cluster-uuid"], uuid.as_str());
    assert_eq!(bad.headers()["cluster-uuid"], uuid.as_str());
    assert_eq!(good.headers()["access-control-allow-origin"], "*");
    assert!(bad.headers().get("access-control-allow-origin").is_none());
    assert_eq!(good.headers()["x-influxdb-build"], "Core");
    let options = Request::builder().method("OPTIONS").uri("/x").body(Full::default()).unwrap();
    let preflight = server.send(options);
    assert_eq!(preflight.status(), StatusCode::NO_CONTENT);
    assert_eq!(preflight.headers()["access-control-max-age"], "86400");
}

#[test]
fn authorization_headers_are_checked_for_their_shape_only() {
    let server = Server::new();
    let status = |value: &str| server.call("GET", "/ping", &[("authorization", value)], "").0;
    for good in ["Bearer x", "Token x", "Basic OnRva2Vu"] {
        assert_eq!(status(good), 200, "{good}");
    }
    for bad in ["bearer x", "Bearer  x", "Bearer", "Basic dG9rZW4=", "Digest x"] {
        assert_eq!(status(bad), 400, "{bad}");
    }
    let (_, text) = server.call("GET", "/ping", &[("authorization", "x")], "");
    assert!(text.starts_with("{\"error\":\"Authorization header was malformed"));
}

#[test]
fn health_gives_the_reasons() {
    let mut server = Server::new();
    assert_eq!(server.call("GET", "/health", &[], ""), (200, "OK".to_owned()));
    server.shard.reasons = vec!["shard 0: log poisoned".to_owned()];
    assert_eq!(server.call("GET", "/api/v1/health", &[], ""), (503, "shard 0: log poisoned".to_owned()));
}

#[test]
fn queries_are_passed_on_with_format_and_parameters() {
    let server = Server::new();
    let missing = server.call("GET", "/api/v3/query_sql?db=db&q=SELECT+1", &[], "");
    assert_eq!(missing, (404, r#"{"error":"query error: database not found: db"}"#.to_owned()));
    server.shard.engine.databases.lock().push("db".into());
    let body = json!({"db": "db", "q": "SELECT $n", "format": "csv", "params": {"n": 1}}).to_string();
    assert_eq!(server.call("POST", "/api/v3/query_sql", &[], body), (200, r#"db|SELECT $n|{"n":1}"#.to_owned()));
    let uri = "/api/v3/query_sql?db=db&q=SELECT+1&params=%7B%22a%22%3A%5B1%5D%7D";
    assert_eq!(server.call("GET", uri, &[], "").0, 400);
    for (uri, body, what) in [
        ("/api/v3/query_sql?db=db&q=SELECT+1&fromat=csv", None, "unknown parameter `fromat`; did you mean `format`?"),
        ("/api/v3/query_sql?db=db", Some("{}"), "unknown parameter `db`; with POST, `db`, `q`"),
        (
            "/api/v3/query_sql",
            Some(r#"{"db":"db","q":"SELECT 1","parms":{}}"#),
            "unknown field `parms`; did you mean `params`?",
        ),
        (
            "/api/v3/query_sql",
            Some(r#"{"db":"db","sql":"SELECT 1"}"#),
            "unknown field `sql`; there are `db`, `q`, `format`",
        ),
    ] {
        let (status, text) = server.call(body.map_or("GET", |_| "POST"), uri, &[], body.unwrap_or_default());
        assert_eq!((status, text.contains(what)), (400, true), "{uri}: {text}");
    }
    let none = server.call("GET", "/api/v3/query_sql", &[], "");
    assert_eq!(none, (400, error("missing query parameters 'db' and 'q'")));
}

#[test]
fn the_accept_header_decides_where_format_does_not() {
    let format = |accept: Option<&str>, name: Option<&str>| {
        let mut headers = http::HeaderMap::new();
        accept.map(|value| headers.insert("accept", value.parse().unwrap()));
        super::query::format(&headers, name).map_err(|error| error.message())
    };
    assert_eq!(format(None, None), Ok(QueryFormat::Json));
    assert_eq!(format(Some("text/csv"), None), Ok(QueryFormat::Csv));
    assert_eq!(format(Some("text/html,application/xml"), None), Ok(QueryFormat::Json));
    assert_eq!(format(Some("*/*"), Some("json_lines")), Ok(QueryFormat::JsonLines));
    assert_eq!(format(Some("image/png"), Some("csv")), Ok(QueryFormat::Csv));
    assert!(format(Some("image/png"), None).unwrap_err().starts_with("invalid mime type (image/png)"));
    assert!(format(None, Some("xml")).unwrap_err().starts_with("serde error: unknown variant `xml`"));
}

#[test]
fn databases_are_created_listed_and_deleted() {
    let server = Server::new();
    let path = "/api/v3/configure/database";
    assert_eq!(server.json("POST", path, &json!({"db": "a", "retention_period": "30d"})), (200, String::new()));
    let again = server.json("POST", path, &json!({"db": "a"}));
    assert_eq!(again, (409, error("attempted to create a resource that already exists: database 'a'")));
    let list = server.call("GET", &format!("{path}?format=json"), &[], "");
    assert_eq!(list, (200, r#"[{"iox::database":"_internal"},{"iox::database":"a"}]"#.to_owned()));
    assert_eq!(server.call("GET", path, &[], "").0, 400);
    assert_eq!(server.call("POST", &format!("{path}/retention_period?db=a&duration=1d"), &[], "").0, 204);
    assert_eq!(server.call("DELETE", &format!("{path}?db=a&hard_delete_at=2030-01-01"), &[], "").0, 400);
    assert_eq!(server.call("DELETE", &format!("{path}?db=a"), &[], "").0, 200);
    assert_eq!(server.call("DELETE", &format!("{path}?db=a"), &[], ""), (404, error("Database not found a")));
    assert_eq!(server.call("POST", path, &[], "{}").0, 415);
}

#[test]
fn tables_have_typed_columns() {
    let server = Server::new();
    let path = "/api/v3/configure/table";
    let body = json!({"db": "a", "table": "t", "tags": ["x"], "fields": [{"name": "f", "type": "int64"}]});
    assert_eq!(server.json("POST", path, &body), (200, String::new()));
    let body = json!({"db": "a", "table": "t", "tags": [], "fields": [{"name": "f", "type": "int32"}]});
    let (status, text) = server.json("POST", path, &body);
    assert_eq!((status, text.contains("unknown type 'int32'")), (400, true));
    let body = json!({"db": "a", "table": "t", "tags": ["time"], "fields": []});
    let (status, text) = server.json("POST", path, &body);
    assert_eq!((status, text.contains("tags: 'time' is a reserved column")), (400, true));
    server.shard.engine.databases.lock().push("a".into());
    let gone = server.call("DELETE", &format!("{path}?db=a&table=t"), &[], "");
    assert_eq!(gone, (404, error("Table not found t")));
}

#[test]
fn triggers_live_through_their_endpoints() {
    let server = Server::new();
    server.shard.engine.databases.lock().push("db".into());
    let path = "/api/v3/configure/processing_engine_trigger";
    let body = json!({
        "db": "db", "plugin_filename": "p.py", "trigger_name": "t", "execution": "inline",
        "trigger_settings": {"run_async": false, "error_behavior": "log"},
        "trigger_specification": "table:cpu", "disabled": false,
    });
    let (status, answer) = server.json("POST", path, &body);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let lane = json!({"lane": "inline", "lane_reason": "chosen by the operator", "warnings": []});
    assert_eq!((status, answer), (200, lane));
    assert_eq!(server.json("POST", path, &body).0, 409);
    assert_eq!(*server.shard.engine.in_force.lock(), ["t"]);
    let (_, list) = server.call("GET", &format!("{path}?db=db"), &[], "");
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list[0]["trigger_settings"]["execution"], "inline");
    assert_eq!(list[0]["trigger_specification"], "table:cpu");
    assert_eq!(server.call("DELETE", &format!("{path}?db=db&trigger_name=t"), &[], "").0, 409);
    assert_eq!(server.call("POST", &format!("{path}/disable?db=db&trigger_name=t"), &[], "").0, 200);
    assert!(server.shard.engine.in_force.lock().is_empty());
    assert_eq!(server.call("POST", &format!("{path}/enable?db=db&trigger_name=t"), &[], "").0, 200);
    assert_eq!(server.call("DELETE", &format!("{path}?db=db&trigger_name=t&force=true"), &[], "").0, 200);
    let gone = server.call("POST", &format!("{path}/enable?db=db&trigger_name=t"), &[], "");
    assert_eq!(gone, (404, error("the requested resource was not found: t")));
}

#[test]
fn uploads_stay_inside_the_plugin_directory() {
    let server = Server::new();
    let path = "/api/v3/plugins/files";
    let file = |name: &str| json!({"plugin_name": name, "content": "x = 1\n"});
    assert_eq!(server.json("POST", path, &file("deep/new.py")), (200, String::new()));
    let (status, text) = server.json("POST", path, &file("../out.py"));
    assert_eq!((status, text.contains("Path traversal detected")), (400, true));
    let (status, text) = server.json("PUT", path, &file("no_such_trigger"));
    assert_eq!((status, text.contains("Plugin not found: no_such_trigger")), (400, true));
}

#[test]
fn metrics_end_as_they_should() {
    let (status, text) = Server::new().call("GET", "/metrics", &[], "");
    assert_eq!(status, 200);
    assert!(text.contains("# TYPE saltus_process_start_time_seconds gauge\n"));
    assert!(text.ends_with("# EOF\n"));
}
