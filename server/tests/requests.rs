//! Request triggers in a real server: what a plugin gets, what comes out of the wire, and what happens when there is too much of it.

mod common;

use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Reply, Server, Start, agent};
use serde_json::{Value, json};

const TRIGGER: &str = "/api/v3/configure/processing_engine_trigger";

/// Returns what its query says.
const RETURNS: &str = r#"
import json

def process_request(influxdb3_local, query_parameters, request_headers, request_body, args=None):
    return eval(query_parameters["returns"])
"#;

/// Returns all that it gets.
const ECHO: &str = r#"
def process_request(influxdb3_local, query_parameters, request_headers, request_body, args=None):
    request = influxdb3_local.request
    return {
        "query": query_parameters, "headers": request_headers, "body": list(request_body), "args": args,
        "method": request.method, "path": request.path, "route": request.route, "tail": request.tail,
        "all": request.query.getall("q"), "client": request.client, "cookies": request.headers.getall("Cookie"),
    }
"#;

fn start(shards: usize) -> (tempfile::TempDir, Start) {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path()).shards(shards);
    start.extra.extend(["--max-http-request-size".to_owned(), "100000".to_owned()]);
    (root, start)
}

fn settings(execution: &str) -> Value {
    json!({"run_async": false, "error_behavior": "log", "execution": execution})
}

fn create(server: &Server, path: &str, file: &str, settings: Value) {
    let name = path.rsplit(' ').next().unwrap().replace("/*", "");
    server.create_trigger_with("main", &name, file, &format!("request:{path}"), settings, Value::Null);
}

/// Status, headers by lower-case name, and body.
type Answer = (u16, Vec<(String, String)>, Vec<u8>);

fn ask(server: &Server, path: &str) -> Answer {
    answer(agent().get(format!("{}/api/v3/engine/{path}", server.url)).call().unwrap())
}

fn answer(mut response: http::Response<ureq::Body>) -> Answer {
    let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
    let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let mut body = Vec::new();
    response.body_mut().as_reader().read_to_end(&mut body).unwrap();
    (response.status().as_u16(), headers, body)
}

fn engine(server: &Server, path: &str) -> Reply {
    server.get(&format!("/api/v3/engine/{path}"))
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// A connection that speaks by hand.
fn connect(server: &Server, request: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request).unwrap();
    stream
}

fn get(server: &Server, path: &str) -> TcpStream {
    connect(server, format!("GET /api/v3/engine/{path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
}

/// Reads until `end` is there.
fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with(end) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "the connection ended after {text:?}");
        text.push(char::from(byte[0]));
    }
    text
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_a_plugin_returns_comes_out_of_the_wire_from_every_lane() {
    let (_root, start) = start(2);
    start.plugin("returns.py", RETURNS);
    let server = start.run();
    server.create_database("main");
    create(&server, "inline", "returns.py", settings("inline"));
    create(&server, "deferred", "returns.py", settings("deferred"));
    let process = json!({"run_async": false, "error_behavior": "log", "isolation": "process"});
    create(&server, "process", "returns.py", process);
    let html: &[&str] = &["text/html"];
    let json_type: &[&str] = &["application/json"];
    let table: &[(&str, u16, &[&str], &[u8])] = &[
        ("'Hello, World!'", 200, html, b"Hello, World!"),
        ("{'a': [1, None]}", 200, json_type, br#"{"a": [1, null]}"#),
        ("[1, 2]", 200, json_type, b"[1, 2]"),
        ("('made', 201)", 201, html, b"made"),
        ("({'error': 'x'}, 404)", 404, json_type, br#"{"error": "x"}"#),
        ("('x', 200, {'Content-Type': 'text/csv'})", 200, &["text/csv"], b"x"),
        ("('x', {'content-type': 'text/csv'})", 200, &["text/html", "text/csv"], b"x"),
        ("(None, 202)", 202, &["text/plain"], b"None"),
        ("('', 204)", 204, html, b""),
        ("('x', 1000)", 500, html, b"x"),
        ("('x', 101)", 500, html, b"x"),
        ("b'\\xff\\x00'", 200, &["application/octet-stream"], b"\xff\x00"),
        ("(b'\\x89PNG', 200, {'Content-Type': 'image/png'})", 200, &["image/png"], b"\x89PNG"),
        ("(418,)", 418, &[], b""),
        ("{'a'}", 200, html, b"a"),
        ("('x', 200, {'Content-Length': '999'})", 200, html, b"x"),
        ("(piece for piece in ('a', b'b', 3, 'c'))", 200, html, b"abc"),
        ("None", 500, json_type, br#"{"error":"Unsupported return type from Python function"}"#),
        (
            "('x', 200, 'no dict')",
            500,
            json_type,
            br#"{"error":"expected a dictionary in header item: (body, status, headers), (body, status) or (body, headers) is expected, got (str, int, str)"}"#,
        ),
        (
            "undefined",
            500,
            json_type,
            br#"{"error":"Python function call failed: NameError: name 'undefined' is not defined"}"#,
        ),
    ];
    for lane in ["inline", "deferred", "process"] {
        for (returns, status, content_types, body) in table {
            let (got_status, headers, got_body) = ask(&server, &format!("{lane}?returns={}", encoded(returns)));
            let of = |wanted: &str| -> Vec<String> {
                headers.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.clone()).collect()
            };
            let text = String::from_utf8_lossy(&got_body);
            assert_eq!((got_status, &got_body[..]), (*status, *body), "{lane} {returns}: {text}");
            assert_eq!(of("content-type"), *content_types, "{lane} {returns}");
            let is_success = (200..300).contains(status);
            assert_eq!(of("access-control-allow-origin").len(), usize::from(is_success), "{lane} {returns}");
            assert_eq!(of("cluster-uuid").len(), 1, "{lane} {returns}");
        }
        let cookies = encoded("('', 200, {'Set-Cookie': ['a=1', 'b=2'], 'X-Bad': 'a\\nb'})");
        let (_, headers, _) = ask(&server, &format!("{lane}?returns={cookies}"));
        let cookies = headers.iter().filter(|(name, _)| name == "set-cookie");
        assert_eq!(cookies.map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["a=1", "b=2"], "{lane}");
        assert!(headers.contains(&("x-bad".into(), String::new())), "{lane}: {headers:?}");
        let name = encoded("('', 200, {'bad name': 'x'})");
        let (status, _, body) = ask(&server, &format!("{lane}?returns={name}"));
        assert_eq!((status, String::from_utf8(body).unwrap().contains("bad name")), (500, true), "{lane}");
    }
    let rows = server.sql_until(
        "main",
        "SELECT log_text FROM system.processing_engine_logs WHERE log_level = 'ERROR' AND trigger_name = 'deferred'",
        |rows| rows.len() == 3,
    );
    let texts: Vec<&str> = rows.iter().map(|row| row["log_text"].as_str().unwrap()).collect();
    let name_error = "error running request plugin: NameError: name 'undefined' is not defined";
    assert!(texts.iter().any(|text| text.starts_with(name_error)), "{texts:?}");
}

#[test]
fn a_plugin_gets_the_request_as_influxdb_maps_it_and_the_rest_on_demand() {
    let (_root, start) = start(2);
    start.plugin("echo.py", ECHO);
    let server = start.run();
    server.create_database("main");
    create(&server, "GET,POST,PUT echo/*", "echo.py", settings("auto"));
    let shown = |text: &str| -> Value { serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}")) };

    let mut stream = connect(
        &server,
        b"PUT /api/v3/engine/echo/a%20b/c?q=1&q=%C3%A4+x&e= HTTP/1.1\r\nHost: h\r\nX-Same: 1\r\nX-SAME: 2\r\n\
          Authorization: Bearer secret\r\nX-Latin: h\xe4\r\nX-Utf8: h\xc3\xa4\r\nCookie: a\r\nCookie: b\r\n\
          Content-Length: 3\r\nConnection: close\r\n\r\n\x00\xffz",
    );
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let echo = shown(reply.split_once("\r\n\r\n").unwrap().1);
    assert_eq!(echo["query"], json!({"q": "\u{e4} x", "e": ""}));
    assert_eq!(echo["all"], json!(["1", "\u{e4} x"]));
    assert_eq!((&echo["body"], &echo["args"]), (&json!([0, 255, 122]), &Value::Null));
    let headers = echo["headers"].as_object().unwrap();
    assert_eq!((&headers["x-same"], &headers["host"]), (&json!("2"), &json!("h")));
    assert_eq!((&headers["x-latin"], &headers["x-utf8"]), (&json!("h\u{e4}"), &json!("h\u{e4}")));
    assert!(!headers.contains_key("authorization"), "{headers:?}");
    assert_eq!((&echo["method"], &echo["path"]), (&json!("PUT"), &json!("echo/a%20b/c")));
    assert_eq!((&echo["route"], &echo["tail"]), (&json!("echo"), &json!("a b/c")));
    assert_eq!(echo["cookies"], json!(["a", "b"]));
    assert!(echo["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{echo}");

    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(b"zipped").unwrap();
    let post = |body: Vec<u8>, encoding: &str| {
        let post = agent().post(format!("{}/api/v3/engine/echo", server.url)).header("content-encoding", encoding);
        let (status, _, body) = answer(post.send(&body[..]).unwrap());
        (status, String::from_utf8(body).unwrap())
    };
    let (status, text) = post(encoder.finish().unwrap(), "gzip");
    let echo = shown(&text);
    assert_eq!((status, &echo["body"]), (200, &json!(b"zipped")));
    assert_eq!(echo["headers"]["content-encoding"], "gzip", "it is passed on");
    assert_eq!(post(b"no gzip".to_vec(), "gzip").0, 400);
    assert_eq!(post(vec![b'x'; 100_001], "identity").0, 413);
}

#[test]
fn paths_are_exact_unless_a_trigger_asks_for_more_and_each_has_one_trigger() {
    let (_root, start) = start(2);
    start.plugin("echo.py", ECHO);
    start.plugin("returns.py", "def process_request(api, q, h, b, a=None):\n    return 'exact'\n");
    let server = start.run();
    server.create_database("main");
    server.create_database("other");
    create(&server, "a/b", "returns.py", settings("auto"));
    create(&server, "a/*", "echo.py", settings("auto"));
    assert_eq!(engine(&server, "a/b").body, "exact");
    for (path, tail) in [("a", ""), ("a/", ""), ("a/b/", "b/"), ("a/x/y", "x/y")] {
        let echo: Value = serde_json::from_str(&engine(&server, path).body).unwrap();
        assert_eq!(echo["tail"], tail, "{path}");
    }
    for path in ["", "b", "A/b", "/a", "a%2Fb", "ab"] {
        let reply = engine(&server, path);
        assert_eq!((reply.status, reply.content_type.as_str()), (404, "application/json"), "{path}");
        assert!(
            reply.body.starts_with(r#"{"error":"not found: no enabled trigger answers "#),
            "{path}: {}",
            reply.body
        );
    }
    let reply = server.delete("/api/v3/engine/a/b");
    assert_eq!((reply.status, reply.body.contains("'a/b' answers GET, POST, not DELETE")), (405, true), "{reply:?}");

    let body = |db: &str, name: &str, spec: &str| {
        json!({"db": db, "plugin_filename": "echo.py", "trigger_name": name, "trigger_specification": spec,
            "trigger_settings": settings("auto"), "disabled": false})
    };
    let taken = server.post_json(TRIGGER, &body("other", "t", "request:PUT a/b"));
    assert_eq!(taken.status, 409, "{}", taken.body);
    assert!(
        taken.body.contains("trigger_specification: requests to 'PUT a/b' are for trigger 'a/b'"),
        "{}",
        taken.body
    );
    let bad = server.post_json(TRIGGER, &body("other", "t", "request:FETCH a"));
    assert_eq!(
        (bad.status, bad.body.contains("trigger_specification: 'request:FETCH a'")),
        (400, true),
        "{}",
        bad.body
    );

    // The path of a trigger that is disabled is free, and no other is.
    let disable = format!("{TRIGGER}/disable?db=main&trigger_name=a/b");
    assert_eq!(server.post(&disable, "").status, 200);
    let echo: Value = serde_json::from_str(&engine(&server, "a/b").body).unwrap();
    assert_eq!(echo["tail"], "b", "what is above it answers now");
    assert_eq!(server.post_json(TRIGGER, &body("other", "t", "request:a/b")).status, 200);
    assert_eq!(server.post(&format!("{TRIGGER}/enable?db=main&trigger_name=a/b"), "").status, 409);
}

#[test]
fn what_cannot_be_loaded_is_told_and_a_changed_file_answers_the_next_request() {
    let (_root, start) = start(1);
    let file = start.plugins.join("p.py");
    std::fs::write(&file, "def process_request(api, q, h, b, a=None):\n    return (\n").unwrap();
    let server = start.run();
    server.create_database("main");
    create(&server, "p", "p.py", settings("auto"));
    let reply = engine(&server, "p");
    assert_eq!(reply.status, 500);
    assert!(reply.body.starts_with(r#"{"error":"SyntaxError: "#), "{}", reply.body);
    std::fs::write(&file, "x = 1\n").unwrap();
    let reply = engine(&server, "p");
    assert!(reply.body.contains("the process_request function is not present in the plugin."), "{}", reply.body);
    for answer in ["one", "two"] {
        std::fs::write(&file, format!("def process_request(api, q, h, b, a=None):\n    return '{answer}'\n")).unwrap();
        assert_eq!(engine(&server, "p").body, answer);
    }
}

#[test]
fn what_a_plugin_writes_is_there_when_its_answer_is() {
    let (_root, start) = start(2);
    let source = r#"
def process_request(influxdb3_local, query, headers, body, args=None):
    class Lines:
        def build(self):
            return body.decode()
    influxdb3_local.write_to_db(query["db"], Lines())
    if "streamed" in query:
        return (piece for piece in ("str", "eam"))
    return "written"
"#;
    start.plugin("w.py", source);
    let server = start.run();
    server.create_database("main");
    create(&server, "w", "w.py", settings("auto"));
    for n in 0..20 {
        let how = if n % 2 == 0 { "" } else { "&streamed=" };
        let reply = server.post(&format!("/api/v3/engine/w?db=main{how}"), &format!("t{n} n={n}i"));
        assert_eq!(reply.body, if n % 2 == 0 { "written" } else { "stream" });
        assert_eq!(server.sql("main", &format!("SELECT n FROM t{n}")), [json!({"n": n})]);
    }
    let refused = server.post("/api/v3/engine/w?db=main", "t0 n=\"text\"");
    assert_eq!(refused.status, 500);
    assert!(refused.body.contains("error writing back lines to main: Cannot write: "), "{}", refused.body);
    assert_eq!(server.post("/api/v3/engine/w?db=_bad", "m f=1").status, 500);
    assert!(server.sql("main", "SELECT * FROM system.dead_letters").is_empty(), "requests have no dead letters");
}

/// Says when it is entered, and waits for a file.
const WAITS: &str = r#"
import os, time

def process_request(influxdb3_local, query, headers, body, args=None):
    influxdb3_local.info("entered", query["n"])
    while not os.path.exists(query["until"]):
        time.sleep(0.005)
    return query["n"]
"#;

fn waiting(server: &Server, route: &str, n: usize, until: &Path) -> TcpStream {
    get(server, &format!("{route}?n={n}&until={}", until.display()))
}

fn entered(server: &Server) -> Vec<String> {
    let sql = "SELECT log_text FROM system.processing_engine_logs WHERE log_text LIKE 'entered %' ORDER BY run_id";
    server.sql("main", sql).iter().map(|row| row["log_text"].as_str().unwrap()[8..].to_owned()).collect()
}

#[test]
fn an_ordered_route_answers_one_by_one_and_says_when_too_many_wait() {
    let (root, start) = start(2);
    start.plugin("waits.py", WAITS);
    let server = start.run();
    server.create_database("main");
    let one_waits = json!({"run_async": false, "error_behavior": "log", "limits": {"queue_size": "1b"}});
    create(&server, "w", "waits.py", one_waits);
    let until = root.path().join("go on");
    let path = root.path().join("go%20on");
    let mut first = waiting(&server, "w", 0, &path);
    wait_for("the first is entered", || entered(&server) == ["0"]);
    let second = waiting(&server, "w", 1, &path);
    std::thread::sleep(Duration::from_millis(100));
    let mut third = waiting(&server, "w", 2, &path);
    let refusal = read_until(&mut third, "}");
    assert!(refusal.starts_with("HTTP/1.1 503 ") && refusal.contains("\r\nretry-after: 1\r\n"), "{refusal}");
    assert!(refusal.contains("1 requests wait for this trigger already"), "{refusal}");
    // A client that gives up makes room for another, and its request is never run.
    drop(second);
    let mut accepted = None;
    wait_for("the hang-up is noticed", || {
        let mut stream = waiting(&server, "w", 3, &path);
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let waits = stream.read(&mut [0]).is_err();
        accepted = Some(stream);
        waits
    });
    std::fs::write(&until, "").unwrap();
    let mut second = accepted.unwrap();
    second.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(read_until(&mut first, "\r\n\r\n0").starts_with("HTTP/1.1 200 "));
    assert!(read_until(&mut second, "\r\n\r\n3").starts_with("HTTP/1.1 200 "));
    assert_eq!(entered(&server), ["0", "3"], "the second was not run");
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("saltus_trigger_response_seconds_count{db=\"main\",trigger=\"w\"} 2"), "{metrics}");
}

#[test]
fn an_overlapping_route_runs_as_many_at_once_as_it_may() {
    let (root, start) = start(1);
    start.plugin("waits.py", WAITS);
    let server = start.run();
    server.create_database("main");
    let two = json!({"run_async": true, "error_behavior": "log", "limits": {"concurrency": 2}});
    create(&server, "w", "waits.py", two);
    let until = root.path().join("go");
    let mut streams: Vec<_> = (0..4).map(|n| waiting(&server, "w", n, &until)).collect();
    wait_for("two are entered", || entered(&server).len() == 2);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(entered(&server).len(), 2, "and no more");
    std::fs::write(&until, "").unwrap();
    for (n, stream) in streams.iter_mut().enumerate() {
        assert!(read_until(stream, &format!("\r\n\r\n{n}")).starts_with("HTTP/1.1 200 "));
    }
    let refused = server.post_json(
        TRIGGER,
        &json!({"db": "main", "plugin_filename": "waits.py", "trigger_name": "x", "trigger_specification": "request:x",
            "trigger_settings": {"run_async": false, "error_behavior": "log", "limits": {"concurrency": 2}},
            "disabled": false}),
    );
    assert_eq!((refused.status, refused.body.contains("limits.concurrency: ")), (400, true), "{}", refused.body);
}

#[test]
fn a_run_whose_client_has_gone_goes_on_to_its_end() {
    let (root, start) = start(1);
    let source = r#"
import os, time

def process_request(influxdb3_local, query, headers, body, args=None):
    influxdb3_local.info("entered", 0)
    while not os.path.exists(query["until"]):
        time.sleep(0.005)
    influxdb3_local.write(LineBuilder("done").int64_field("n", 1))
    return "x"
"#;
    start.plugin("w.py", source);
    let server = start.run();
    server.create_database("main");
    create(&server, "w", "w.py", settings("auto"));
    let until = root.path().join("go");
    let stream = waiting(&server, "w", 0, &until);
    wait_for("it is entered", || entered(&server) == ["0"]);
    drop(stream);
    std::thread::sleep(Duration::from_millis(50));
    std::fs::write(&until, "").unwrap();
    server.sql_until("main", "SELECT n FROM done", |rows| rows.len() == 1);
}

#[test]
fn a_run_beyond_its_deadline_is_a_504() {
    let (_root, start) = start(1);
    start.plugin("slow.py", "def process_request(api, q, h, b, a=None):\n    while True:\n        pass\n");
    let server = start.run();
    server.create_database("main");
    for (path, isolation) in [("here", "auto"), ("there", "process")] {
        let settings = json!({"run_async": false, "error_behavior": "disable", "execution": "deferred",
            "isolation": isolation, "limits": {"run_time": "200ms"}});
        create(&server, path, "slow.py", settings);
        for _ in 0..2 {
            let reply = engine(&server, path);
            assert_eq!(
                (reply.status, reply.content_type.as_str()),
                (504, "application/json"),
                "{path}: {}",
                reply.body
            );
            assert!(reply.body.contains("deadline of 200 ms"), "{path}: {}", reply.body);
        }
    }
}

#[test]
fn a_plugin_may_ask_its_own_server() {
    let (_root, start) = start(1);
    let source = r#"
import json, urllib.request

def process_request(influxdb3_local, query, headers, body, args=None):
    base = "http://" + headers["host"]
    def call(path, data=None):
        with urllib.request.urlopen(base + path, data) as reply:
            return reply.read().decode()
    if "leaf" in query:
        return "leaf"
    call("/api/v3/write_lp?db=main", b"own n=1i 1")
    rows = json.loads(call("/api/v3/query_sql?db=main&q=SELECT+n+FROM+own"))
    return [rows, call("/api/v3/engine/" + query["other"] + "?leaf=")]
"#;
    start.plugin("self.py", source);
    let server = start.run();
    server.create_database("main");
    create(&server, "one", "self.py", settings("auto"));
    create(&server, "two", "self.py", json!({"run_async": true, "error_behavior": "log"}));
    for (route, other) in [("one", "two"), ("two", "two"), ("two", "one")] {
        let reply = engine(&server, &format!("{route}?other={other}"));
        assert_eq!(reply.body, r#"[[{"n": 1}], "leaf"]"#, "{route} asks {other}");
    }
}

/// Yields, waits for a file, and yields again.
const STREAMS: &str = r#"
import os, time

def process_request(influxdb3_local, query, headers, body, args=None):
    def pieces():
        try:
            yield "first\n"
            while not os.path.exists(query["until"]):
                time.sleep(0.005)
                if "beats" in query:
                    yield "beat\n"
            if "fails" in query:
                raise KeyError("late")
            influxdb3_local.write(LineBuilder("streamed").int64_field("n", int(query["n"])))
            yield b"second\n"
        finally:
            influxdb3_local.info("over", query["n"])
    return pieces(), 207, {"Content-Type": "text/event-stream"}
"#;

#[test]
fn a_generator_is_seen_piece_by_piece_while_it_runs() {
    let (root, start) = start(2);
    start.plugin("s.py", STREAMS);
    let server = start.run();
    server.create_database("main");
    let process = json!({"run_async": false, "error_behavior": "log", "isolation": "process"});
    for (n, (path, settings)) in [("here", settings("auto")), ("there", process)].into_iter().enumerate() {
        create(&server, path, "s.py", settings);
        let until = root.path().join(path);
        let mut stream = waiting(&server, path, n, &until);
        let head = read_until(&mut stream, "6\r\nfirst\n\r\n");
        assert!(head.starts_with("HTTP/1.1 207 ") && head.contains("transfer-encoding: chunked"), "{head}");
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        std::fs::write(&until, "").unwrap();
        assert_eq!(read_until(&mut stream, "0\r\n\r\n"), "7\r\nsecond\n\r\n0\r\n\r\n");
        // The end of the answer means that what the run wrote is durable.
        assert_eq!(server.sql("main", &format!("SELECT n FROM streamed WHERE n = {n}")), [json!({"n": n})]);

        let until = root.path().join(format!("{path} fails"));
        std::fs::write(&until, "").unwrap();
        let mut stream = get(&server, &format!("{path}?n=7&fails=&until={}", encoded(&until.display().to_string())));
        let mut text = String::new();
        // How the end of the connection shows depends on what was still under way.
        let _cut = stream.read_to_string(&mut text);
        assert!(text.is_empty() || text.ends_with("first\n\r\n"), "it is cut and not ended: {text}");
        let errors = "SELECT log_text FROM system.processing_engine_logs WHERE log_level = 'ERROR'";
        let right = |rows: &[Value]| {
            rows.len() == n + 1 && rows[n]["log_text"].as_str().unwrap().contains("request plugin: KeyError: 'late'")
        };
        server.sql_until("main", errors, right);
    }
    assert_eq!(server.sql("main", "SELECT count(*) AS c FROM streamed"), [json!({"c": 2})]);
}

#[test]
fn a_generator_whose_client_hangs_up_is_closed() {
    let (root, start) = start(2);
    start.plugin("s.py", STREAMS);
    let server = start.run();
    server.create_database("main");
    let process = json!({"run_async": false, "error_behavior": "log", "isolation": "process"});
    for (n, (path, settings)) in [("here", settings("auto")), ("there", process)].into_iter().enumerate() {
        create(&server, path, "s.py", settings);
        let mut stream = get(&server, &format!("{path}?n={n}&beats=&until={}", root.path().join("never").display()));
        read_until(&mut stream, "beat\n\r\n");
        drop(stream);
        let logs = format!("SELECT log_text FROM system.processing_engine_logs WHERE log_text = 'over {n}'");
        server.sql_until("main", &logs, |rows| rows.len() == 1);
    }
    let runs = "SELECT detail FROM system.trigger_runs WHERE outcome = 'success'";
    server.sql_until("main", runs, |rows| rows.len() == 2);
}

#[test]
fn a_slow_reader_slows_the_plugin_and_fills_no_memory() {
    let (_root, start) = start(1);
    let source = r#"
def process_request(influxdb3_local, query, headers, body, args=None):
    def pieces():
        for n in range(1000):
            influxdb3_local.cache.put("made", n)
            yield b"x" * 100_000
    if "made" in query:
        return str(influxdb3_local.cache.get("made"))
    return pieces()
"#;
    start.plugin("s.py", source);
    let server = start.run();
    server.create_database("main");
    create(&server, "s", "s.py", json!({"run_async": true, "error_behavior": "log", "execution": "deferred"}));
    let mut stream = get(&server, "s");
    read_until(&mut stream, "\r\n\r\n");
    let made = || engine(&server, "s?made=").body.parse::<usize>().unwrap();
    let mut before = usize::MAX;
    wait_for("the plugin waits", || {
        std::thread::sleep(Duration::from_millis(200));
        std::mem::replace(&mut before, made()) == before
    });
    assert!(made() < 500, "100 MB were to come, and {} pieces of 100 kB were made for nobody", made());
    let mut rest = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    while !rest.ends_with(b"0\r\n\r\n") {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the stream ended early");
        rest.drain(..rest.len().saturating_sub(5));
        rest.extend_from_slice(&buffer[..read]);
    }
    assert_eq!(made(), 999);
}

#[test]
fn a_fast_plugin_earns_the_inline_lane_and_leaves_it_when_it_streams() {
    let (_root, start) = start(2);
    let source = "def process_request(api, query, headers, body, args=None):\n    if 'streamed' in query:\n        \
        return (piece for piece in ('a', 'b'))\n    return 'whole'\n";
    start.plugin("p.py", source);
    let server = start.run();
    server.create_database("main");
    let mut settings = settings("auto");
    // Nothing is said here of how fast the machine is.
    settings["limits"] = json!({"inline_budget": "8ms"});
    create(&server, "p", "p.py", settings);
    let lane = || {
        let rows = server.sql("main", "SELECT lane FROM system.processing_engine_triggers");
        rows[0]["lane"].as_str().unwrap().to_owned()
    };
    wait_for("it is inline", || {
        assert_eq!(engine(&server, "p").body, "whole");
        lane() == "inline"
    });
    assert_eq!(engine(&server, "p").body, "whole");
    assert_eq!(engine(&server, "p?streamed=").body, "ab");
    assert_eq!(lane(), "deferred");
    let stages = server.sql("main", "SELECT stage, count FROM system.trigger_latency ORDER BY stage");
    let names: Vec<&str> = stages.iter().map(|row| row["stage"].as_str().unwrap()).collect();
    assert_eq!(names, ["activation", "queue", "response", "run"]);
    assert!(stages.iter().all(|row| row["count"] == stages[0]["count"]), "{stages:?}");
    let runs = server.sql("main", "SELECT count(*) AS c FROM system.trigger_runs WHERE outcome = 'success'");
    assert_eq!(runs[0]["c"], stages[0]["count"]);
}
