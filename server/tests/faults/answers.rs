//! Answers of SQL that must be right, and errors of queries that say what to write instead.
//!
//! Statements and their answers are beside the query engine (`server/src/query/mended`); here are the ways in and out: HTTP in
//! every format, plugins in every lane, the command line.

use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::common::{Reply, Server, Start};

/// Answers with what a query gives: its rows, or the error's text.
const ASKS: &str = r#"
import json

def process_request(influxdb3_local, query_parameters, request_headers, request_body, args=None):
    asked = json.loads(request_body)
    try:
        return {"rows": influxdb3_local.query(asked["q"], asked.get("params"))}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
"#;

const LINES: &str = "\
a,h=x v=1i,w=1i,s=\"text\" 1704067200000000000\n\
b,h=x v=2i 1704067200000000000\n\
Home,room=k Temp=21.5 1704067200000000000\n\
ends i=9223372036854775807i,u=18446744073709551615u 1704067200000000000\n\
ends i=1i,u=1u 1704067201000000000\n";

fn server(root: &std::path::Path) -> Server {
    let start = Start::new(root);
    start.plugin("asks.py", ASKS);
    let server = start.run();
    assert_eq!(server.post("/api/v3/write_lp?db=d&precision=ns", LINES).status, 204);
    server
}

fn post(server: &Server, sql: &str, format: &str, params: &Value) -> Reply {
    server.post_json("/api/v3/query_sql", &json!({"db": "d", "q": sql, "format": format, "params": params}))
}

fn get(server: &Server, sql: &str, format: &str) -> Reply {
    let q: String = sql.bytes().map(|byte| format!("%{byte:02X}")).collect();
    server.get(&format!("/api/v3/query_sql?db=d&format={format}&q={q}"))
}

const FORMATS: [&str; 5] = ["json", "jsonl", "csv", "pretty", "parquet"];

/// A statement, and words of the error that it is refused with, as the user's.
const REFUSED: [(&str, &[&str]); 16] = [
    ("SELECT i + 1 FROM ends", &["integer overflow in 9223372036854775807 + 1", "DOUBLE"]),
    ("SELECT sum(i) FROM ends", &["integer overflow in sum(", "DECIMAL"]),
    ("SELECT sum(u) FROM ends", &["integer overflow in sum("]),
    ("SELECT i * i FROM ends", &["integer overflow"]),
    ("SELECT s::BIGINT FROM a", &["Cannot cast string 'text'"]),
    ("SELECT v / 0 FROM a", &["ivide by zero"]),
    ("SELECT * FROM a WHERE s ~ '('", &["'(' is no regular expression"]),
    ("SELECT * FROM a WHERE s = 1", &["single quotes"]),
    ("SELECT to_timestamp(s, '%Y') FROM a", &["'text'"]),
    ("SELECT * FROM a WHERE time > 10", &["to_timestamp"]),
    ("SELECT now() - '1 day'", &["INTERVAL '1 day'"]),
    ("SELECT * FROM home", &["there is a table \"Home\""]),
    ("SELECT temp FROM Home", &["There is a column \"Temp\""]),
    ("SELECT * FROM Home WHERE room = \"a\"", &["single quotes: 'a'"]),
    ("SELECT date_bin_gapfill(INTERVAL '1 minute', time) FROM a", &["not in this version", "generate_series"]),
    ("SELECT v FROM a WHERE v = $x", &["$x", "no parameters are given"]),
];

#[test]
fn the_users_errors_are_400_in_every_format_and_in_plugins() {
    let root = tempfile::tempdir().unwrap();
    let server = server(root.path());
    for (sql, words) in REFUSED {
        let mut replies: Vec<(String, Reply)> =
            FORMATS.iter().map(|format| (format!("POST {format}"), post(&server, sql, format, &json!({})))).collect();
        replies.push(("GET json".to_owned(), get(&server, sql, "json")));
        for (way, reply) in replies {
            assert_eq!(reply.status, 400, "{way} {sql}: {}", reply.body);
            let text = reply.body.replace("\\\"", "\"");
            assert!(words.iter().all(|word| text.contains(word)), "{way} {sql}: {text}");
        }
    }
    server.create_trigger("d", "asks", "asks.py", "request:asks", "deferred", json!({}));
    for (sql, words) in REFUSED {
        let reply = server.post("/api/v3/engine/asks", &json!({"q": sql}).to_string());
        let body: Value = serde_json::from_str(&reply.body).unwrap();
        let text = body["error"].as_str().unwrap();
        assert!(text.starts_with("QueryError: error: "), "{sql}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{sql}: {text}");
    }
    let (ok, out, errors) = server.command(&["query", "-d", "d", "SELECT sum(i) FROM ends"]);
    assert!(!ok && errors.contains("integer overflow in sum("), "{out}{errors}");
}

#[test]
fn parameters_are_named_over_http() {
    let root = tempfile::tempdir().unwrap();
    let server = server(root.path());
    let cases = [
        ("SELECT v FROM a WHERE s = $x", json!({"x": 1}), "parameter $x is the integer 1"),
        ("SELECT v FROM a WHERE time > $since", json!({"since": 10}), "parameter $since is the integer 10"),
        ("SELECT v FROM a WHERE time > $since", json!({"since": "soon"}), "parameter $since is the text 'soon'"),
        ("SELECT v FROM a WHERE v = $x", json!({"y": 1}), "the parameters given are $y"),
        ("SELECT v FROM a WHERE s ~ $p", json!({"p": "["}), "parameter $p is the text '['"),
        ("SELECT v FROM a WHERE v = $x", json!({"x": [1]}), "'x' must be"),
    ];
    for (sql, params, words) in cases {
        let reply = post(&server, sql, "json", &params);
        assert_eq!(reply.status, 400, "{sql}: {}", reply.body);
        assert!(reply.body.contains(words), "{sql}: {}", reply.body);
    }
}

#[test]
fn two_columns_of_one_name_are_refused_where_a_row_can_hold_one() {
    let root = tempfile::tempdir().unwrap();
    let server = server(root.path());
    let twice = [
        ("SELECT a.v, b.v FROM a JOIN b ON a.h = b.h", "'v'"),
        ("SELECT * FROM a JOIN b ON a.h = b.h", "'h'"),
        ("SELECT * FROM a JOIN b USING (h)", "'time'"),
        ("SELECT a.*, b.v FROM a, b", "'v'"),
    ];
    server.create_trigger("d", "asks", "asks.py", "request:asks", "deferred", json!({}));
    for (sql, name) in twice {
        for format in FORMATS {
            let reply = post(&server, sql, format, &json!({}));
            let maps = ["json", "jsonl", "parquet"].contains(&format);
            assert_eq!(reply.status, if maps { 400 } else { 200 }, "{format} {sql}: {}", reply.body);
            if maps {
                assert!(reply.body.contains(name) && reply.body.contains(" AS "), "{format} {sql}: {}", reply.body);
            }
        }
        let reply = server.post("/api/v3/engine/asks", &json!({"q": sql}).to_string());
        assert!(reply.body.contains(name) && reply.body.contains(" AS "), "{sql}: {}", reply.body);
    }
    let once = server.sql("d", "SELECT a.v, b.v AS v_b, h FROM a JOIN b USING (h)");
    assert_eq!(once, [json!({"v": 1, "v_b": 2, "h": "x"})]);
    let reply = server.post("/api/v3/engine/asks", &json!({"q": "SELECT a.v, b.v AS v_b FROM a, b"}).to_string());
    assert_eq!(
        reply.body,
        r#"{"rows":[{"v":1,"v_b":2}]}"#.replace(":[{", ": [{").replace("\":1,", "\": 1, ").replace("_b\":2", "_b\": 2")
    );
}

/// The whole answer as it comes, until the server closes.
fn raw(server: &Server, sql: &str, format: &str) -> Vec<u8> {
    let body = json!({"db": "d", "q": sql, "format": format}).to_string();
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    write!(
        stream,
        "POST /api/v3/query_sql HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = Vec::new();
    // A connection that is cut off may end with a reset.
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn an_error_in_a_late_batch_is_no_complete_answer() {
    let root = tempfile::tempdir().unwrap();
    let server = server(root.path());
    let late = "SELECT 10 / (value - 900000) AS v FROM generate_series(1, 1000000)";
    for format in ["json", "jsonl", "csv"] {
        let answer = raw(&server, late, format);
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{format}");
        assert!(answer.len() > 100_000, "{format}: the first batches have come");
        assert!(!answer.ends_with(b"0\r\n\r\n"), "{format}: the body must not be ended as if it were whole");
    }
    for format in ["pretty", "parquet"] {
        let answer = raw(&server, late, format);
        assert!(
            answer.starts_with(b"HTTP/1.1 400"),
            "{format}: {}",
            String::from_utf8_lossy(&answer[..answer.len().min(200)])
        );
    }
    let whole = raw(&server, "SELECT value FROM generate_series(1, 1000000)", "csv");
    assert!(whole.ends_with(b"0\r\n\r\n"));
    assert!(server.log_text().contains("a query failed after its answer had begun"));
    let failed = server.sql("d", "SELECT count(*) AS n FROM system.queries WHERE phase = 'fail'");
    assert_eq!(failed, [json!({"n": 5})]);
}
