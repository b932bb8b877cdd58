//! Queries that want too much: memory, time, clients that have gone.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Reply, Server, Start};

/// Rows of the table `m`: an integer from zero on, and a short text.
const ROWS: usize = 150_000;

fn start(root: &std::path::Path, flags: &[&str]) -> Server {
    let mut start = Start::new(root).shards(1);
    start.extra.extend(flags.iter().map(|flag| (*flag).to_owned()));
    let server = start.run();
    for part in 0..3 {
        let rows = (part * ROWS / 3)..((part + 1) * ROWS / 3);
        let lines: String = rows.map(|n| format!("m a={n}i,s=\"text {n}\" {}\n", n + 1)).collect();
        let reply = server.post("/api/v3/write_lp?db=d&precision=nanosecond&no_sync=true", &lines);
        assert_eq!(reply.status, 204, "{}", reply.body);
    }
    server
}

fn ask(server: &Server, sql: &str, format: &str) -> Reply {
    server.post_json("/api/v3/query_sql", &json!({"db": "d", "q": sql, "format": format}))
}

/// Kilobytes of `/proc/.../status`.
fn kilobytes(server: &Server, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn metric(server: &Server, name: &str) -> f64 {
    let metrics = server.get("/metrics").body;
    let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}:\n{metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A connection on which a question was asked and nothing is read.
fn asked(server: &Server, sql: &str, format: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let body = json!({"db": "d", "q": sql, "format": format}).to_string();
    let head = format!("POST /api/v3/query_sql HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    stream
}

/// What no machine is to make, and in which format it is asked for.
const TOO_LARGE: &[(&str, &str)] = &[
    ("SELECT repeat('x', 2000000000)", "json"),
    ("SELECT repeat('x', 2000000000)", "pretty"),
    ("SELECT repeat('x', 2000000000)", "parquet"),
    ("SELECT repeat(cast(a AS varchar), 100000) FROM m", "json"),
    ("SELECT repeat(s, 10000) FROM m", "csv"),
    ("SELECT s, repeat('x', 10000000) FROM m", "csv"),
    ("SELECT lpad('x', 2000000000, 'y')", "json"),
    ("SELECT rpad(s, 200000) FROM m", "json"),
    ("SELECT replace(repeat('a', 4000000), 'a', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb')", "json"),
    ("SELECT regexp_replace(repeat('a', 4000000), 'a', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb', 'g')", "json"),
    ("SELECT concat(repeat('a', 100000000), repeat('b', 100000000))", "json"),
    ("SELECT repeat('a', 60000000) || repeat('b', 60000000)", "json"),
    ("SELECT range(0, 1000000000)", "json"),
    ("SELECT array_repeat(1, 1000000000)", "json"),
    ("SELECT array_resize(make_array(1), 1000000000)", "json"),
    ("SELECT unnest(array_repeat(repeat('x', 1000), 1000000))", "json"),
    ("SELECT array_agg(repeat(s, 1000)) FROM m", "json"),
    ("SELECT string_agg(repeat(s, 1000), ',') FROM m", "json"),
    ("SELECT array_agg(a) OVER (ORDER BY time ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) FROM m", "json"),
    ("SELECT x.s AS p, y.s AS q FROM m x, m y WHERE x.a < 300 ORDER BY p, q", "json"),
    ("SELECT x.a, x.s, y.s FROM m x, m y WHERE x.a < 100", "pretty"),
];

/// What takes little, although a long value is that of many rows; and its answer.
const REPEATED: &[(&str, &str)] = &[
    ("SELECT max(length(l.s)) AS n FROM m, (SELECT repeat('x', 50000) AS s) l", "50000"),
    (
        "SELECT max(length(l.s)) AS n FROM (SELECT repeat('x', 1000000) AS s, 5 AS t) l JOIN m ON l.t > m.a % 1000",
        "1000000",
    ),
    ("SELECT max(cardinality(l.s)) AS n FROM m, (SELECT range(0, 2000) AS s) l", "2000"),
    (
        "SELECT max(length(f)) AS n FROM (SELECT first_value(s) OVER (ORDER BY a) AS f FROM (SELECT a, CASE WHEN a = 0 THEN \
      repeat('x', 50000) ELSE s END AS s FROM m))",
        "50000",
    ),
    (
        "SELECT max(length(f)) AS n FROM (SELECT max(s) OVER () AS f FROM (SELECT a, CASE WHEN a = 5 THEN repeat('z', 50000) \
      ELSE s END AS s FROM m))",
        "50000",
    ),
    ("SELECT max(length(f)) AS n FROM (SELECT (SELECT repeat('x', 50000)) AS f FROM m)", "50000"),
    ("SELECT max(length(cast(array_repeat(a, 200) AS varchar))) AS n FROM m", "1600"),
];

/// A value, or a row of a result, that is too large whatever memory there is.
const TOO_LONG: &[(&str, &str)] = &[
    ("SELECT repeat('x', 2000000000)", "json"),
    ("SELECT length(repeat('x', 2000000000))", "csv"),
    ("SELECT lpad('x', 2000000000)", "csv"),
    ("SELECT unnest(range(0, 300000000))", "jsonl"),
    ("SELECT repeat('x', 200000000) AS a, repeat('x', 200000000) AS b", "csv"),
    ("SELECT repeat('x', 200000000) || repeat('y', 200000000)", "pretty"),
    ("SELECT s, repeat(s, 300000000) FROM m", "parquet"),
];

#[test]
fn a_value_has_a_bound_of_its_own() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path(), &["--query-memory", "4gb"]);
    for (sql, format) in TOO_LONG {
        let reply = ask(&server, sql, format);
        assert_eq!(reply.status, 400, "{sql}: {}", &reply.body[..reply.body.len().min(300)]);
        assert!(reply.body.contains("at most 268435456"), "{sql}: {}", reply.body);
    }
    let peak = kilobytes(&server, "VmHWM:");
    assert!(peak < 2 * 1024 * 1024, "{peak} KB");
    let sum = ask(&server, "SELECT sum(value) AS s FROM generate_series(1, 1000000)", "json");
    assert!(sum.body.contains("500000500000"), "{}", sum.body);
}

#[test]
fn no_query_takes_more_memory_than_queries_may_have() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path(), &["--query-memory", "100mb"]);
    assert_eq!(ask(&server, "SELECT count(*) FROM m", "json").status, 200);
    let before = kilobytes(&server, "VmRSS:");
    for (sql, format) in TOO_LARGE {
        until("memory is given back", || metric(&server, "saltus_query_memory_bytes") == 0.0);
        let reply = ask(&server, sql, format);
        assert_eq!(reply.status, 400, "{sql}: {}", &reply.body[..reply.body.len().min(300)]);
        let body: Value =
            serde_json::from_str(&reply.body).unwrap_or_else(|error| panic!("{sql}: {error}: {}", reply.body));
        let text = body["error"].as_str().unwrap();
        assert!(text.contains("--query-memory"), "{sql}: {text}");
        assert_eq!(reply.content_type, "application/json", "{sql}");
    }
    for (sql, answer) in REPEATED {
        let reply = ask(&server, sql, "csv");
        assert_eq!((reply.status, reply.body.trim()), (200, format!("n\n{answer}").as_str()), "{sql}");
    }
    let peak = kilobytes(&server, "VmHWM:") - before;
    assert!(peak < 400 * 1024, "{peak} KB at most, beside a bound of 100 MB");
    assert_eq!(metric(&server, "saltus_queries_total{outcome=\"too_large\"}"), TOO_LARGE.len() as f64);
    until("all memory is given back", || metric(&server, "saltus_query_memory_bytes") == 0.0);
    // What fits is as it was, one value of 20 MB among them, and no shard was held up by it.
    let large = ask(&server, "SELECT repeat('x', 20000000) AS s", "csv");
    assert_eq!((large.status, large.body.len()), (200, 20_000_003));
    for format in ["json", "jsonl", "csv", "pretty"] {
        let reply = ask(&server, "SELECT a, s FROM m", format);
        assert_eq!((reply.status, reply.body.matches("text ").count()), (200, ROWS), "{format}");
    }
    assert!(!server.log_text().contains("held up"), "{}", server.log_text());
}

/// Goes through all pairs of rows, for minutes, and finds none.
const ENDLESS: &str = "SELECT count(*) FROM m x, m y WHERE sin(x.a + y.a) > 2";

#[test]
fn a_query_ends_with_its_client_and_takes_nobodys_turn() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path(), &["--query-threads", "1", "--query-concurrency", "4", "--query-memory", "400mb"]);
    // More than there are threads for one query; and one whose rows nobody reads.
    let mut long: Vec<TcpStream> = (0..3).map(|_| asked(&server, ENDLESS, "json")).collect();
    let running =
        "SELECT count(*) AS n FROM system.queries WHERE running AND query_text LIKE 'SELECT count(*) FROM m x%'";
    server.sql_until("d", running, |rows| rows[0]["n"] == 3);
    for _ in 0..3 {
        assert_eq!(ask(&server, "SELECT 1 AS one", "json").body, r#"[{"one":1}]"#);
    }
    assert_eq!(server.sql("d", running)[0]["n"], 3, "they still run");
    // The bound of queries at once: this one waits, and gives up with its client.
    long.push(asked(&server, "SELECT x.a, y.s FROM m x, m y WHERE sin(x.a + y.a) > 2", "pretty"));
    until("four run", || metric(&server, "saltus_queries_running") == 4.0);
    let waiting = asked(&server, "SELECT 2", "json");
    until("one waits", || metric(&server, "saltus_queries_waiting") == 1.0);
    drop(waiting);
    until("none waits", || metric(&server, "saltus_queries_waiting") == 0.0);
    drop(long);
    until("all have ended", || metric(&server, "saltus_queries_running") == 0.0);
    assert_eq!(metric(&server, "saltus_queries_total{outcome=\"cancelled\"}"), 5.0);
    until("their memory is given back", || metric(&server, "saltus_query_memory_bytes") == 0.0);
    // In every format, in the middle of its rows.
    for format in ["json", "jsonl", "csv", "pretty", "parquet"] {
        // Drawn at the end, it would hold more and more.
        let few = if format == "pretty" { "WHERE sin(x.a + y.a) > 2" } else { "" };
        let mut stream = asked(&server, &format!("SELECT x.a, x.s, y.s AS t FROM m x, m y {few}"), format);
        if !matches!(format, "pretty" | "parquet") {
            let mut some = [0; 1000];
            stream.read_exact(&mut some).unwrap();
        }
        until("it runs", || metric(&server, "saltus_queries_running") == 1.0);
        drop(stream);
        until(format, || metric(&server, "saltus_queries_running") == 0.0);
    }
    assert!(server.log_text().contains("a query was cancelled"), "{}", server.log_text());
}

#[test]
fn a_query_whose_time_is_over_says_the_setting() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path(), &["--query-timeout", "1s"]);
    for (sql, format) in [
        (ENDLESS, "json"),
        (ENDLESS, "pretty"),
        ("SELECT count(*) FROM m x JOIN m y ON x.a % 2 = y.a % 2", "json"),
        ("WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t", "json"),
        ("SELECT count(*) FROM generate_series(1, 100000000000000)", "csv"),
    ] {
        let reply = ask(&server, sql, format);
        assert_eq!(reply.status, 400, "{sql}: {}", reply.body);
        assert!(
            reply.body.contains("did not end within 1s") && reply.body.contains("--query-timeout"),
            "{}",
            reply.body
        );
    }
    // One that notices late is answered for before it has ended.
    until("all are counted", || metric(&server, "saltus_queries_total{outcome=\"timed_out\"}") == 5.0);
    assert_eq!(ask(&server, "SELECT 1 AS one", "json").body, r#"[{"one":1}]"#);
}
