//! The plugin API against a real server: synchronous writes, queries of real tables, the durable state over `kill -9`, and caches over
//! restarts. What one run sees of it is tested in `python-bridge`.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Server, Start};
use serde_json::{Value, json};

fn write(server: &Server, lines: &str) {
    let reply = server.post("/api/v3/write_lp?db=main&precision=nanosecond", lines);
    assert_eq!(reply.status, 204, "{}", reply.body);
}

fn serve(root: &Path, plugins: &[(&str, &str)]) -> (Start, Server) {
    let start = Start::new(root);
    for (name, source) in plugins {
        start.plugin(name, source);
    }
    let server = start.run();
    server.create_database("main");
    (start, server)
}

/// What plugins have logged, in order.
fn said(server: &Server, count: usize) -> Vec<String> {
    let sql = "SELECT log_text FROM system.processing_engine_logs WHERE log_text LIKE 'said %' OR log_level = 'ERROR' ORDER BY time";
    let rows = server.sql_until("main", sql, |rows| rows.len() >= count);
    rows.iter().map(|row| row["log_text"].as_str().unwrap().to_owned()).collect()
}

fn metric(server: &Server, name: &str) -> f64 {
    let text = server.get("/metrics").body;
    let values = text.lines().filter(|line| line.split([' ', '{']).next() == Some(name));
    values.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

const SYNC: &str = r#"
import saltus

def process_writes(influxdb3_local, table_batches, args=None):
    for row in table_batches[0]["rows"]:
        n = row["n"]
        for no_sync in (True, False):
            line = LineBuilder("out").tag("no_sync", str(no_sync)).int64_field("n", n).time_ns(row["time"])
            influxdb3_local.write_sync(line, no_sync)
            rows = influxdb3_local.query(
                "SELECT n, time FROM out WHERE no_sync = $mode AND n = $n AND time = $at",
                {"mode": str(no_sync), "n": n, "at": f"1970-01-01T00:00:00.{row['time']:09}Z"},
            )
            influxdb3_local.info("said", no_sync, rows)
        influxdb3_local.write_sync_to_db("other", LineBuilder("t").int64_field("n", n), no_sync=True)
        influxdb3_local.info("said", influxdb3_local.query("SELECT count(*) AS c FROM t", database="other"))
        for call in (
            lambda: influxdb3_local.write_sync(LineBuilder("out").string_field("n", "no number"), no_sync=True),
            lambda: influxdb3_local.write_sync_to_db("-", LineBuilder("out").int64_field("n", 1), no_sync=True),
            lambda: influxdb3_local.query("SELECT x FROM not_here"),
            lambda: influxdb3_local.query("SELECT 1", database="- -"),
        ):
            try:
                call()
            except (Exception, saltus.QueryError) as error:
                influxdb3_local.info("said", type(error).__name__, error)
"#;

#[test]
fn what_is_written_synchronously_is_there_at_once_and_failures_say_why() {
    for (settings, shards) in [(json!({"execution": "deferred"}), 2), (json!({"isolation": "process"}), 1)] {
        let root = tempfile::tempdir().unwrap();
        let start = Start::new(root.path()).shards(shards);
        start.plugin("sync.py", SYNC);
        let server = start.run();
        server.create_database("main");
        server.create_trigger_with("main", "t", "sync.py", "table:in", settings, Value::Null);
        write(&server, "in n=7i 5");
        let said = said(&server, 7);
        assert_eq!(said[0], "said True [{'n': 7, 'time': 5}]");
        assert_eq!(said[1], "said False [{'n': 7, 'time': 5}]");
        assert_eq!(said[2], "said [{'c': 1}]");
        let failed = "said Exception error writing line protocol to ";
        assert!(
            said[3].starts_with(&format!("{failed}main: Cannot write: line protocol parse failed: ")),
            "{}",
            said[3]
        );
        assert_eq!(said[4], format!("{failed}-: invalid database name: -"));
        assert_eq!(
            said[5],
            "said QueryError error: error while planning query: Error during planning: table 'public.iox.not_here' not found executing \
             query on main: SELECT x FROM not_here"
        );
        assert_eq!(said[6], "said QueryError invalid database name provided: - -");
    }
}

const TYPED: &str = r#"
import datetime

def process_writes(influxdb3_local, table_batches, args=None):
    at = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    q = influxdb3_local.query
    influxdb3_local.info("said", q(
        "SELECT n FROM m WHERE n >= $n AND f < $f AND b = $b AND time < $at ORDER BY n",
        {"n": 2, "f": 2.5, "b": True, "at": at},
    ))
    influxdb3_local.info("said", q("SELECT n FROM m WHERE time >= $at", {"at": "2023-06-01T00:00:00Z"}))
    influxdb3_local.info("said", q("SELECT n FROM m WHERE n = $n", {"n": "1"}))
    influxdb3_local.info("said", q("SELECT $nothing IS NULL AS none, 1 AS a, 2 AS a2", {"nothing": None}))
    row = q("SELECT arrow_cast(1, 'Int8') AS i, date '2024-02-29' AS d, interval '1 month 2 days' AS v, [1, 2] AS l, "
            "arrow_cast('x', 'LargeUtf8') AS t, arrow_cast(1.5, 'Decimal128(5, 2)') AS c, NULL AS z")[0]
    influxdb3_local.info("said", row)
    influxdb3_local.info("said", [r["table_name"] for r in q("SHOW TABLES") if r["table_schema"] == "iox"])
"#;

#[test]
fn queries_of_real_tables_take_typed_parameters_and_give_any_type() {
    let root = tempfile::tempdir().unwrap();
    let (_start, server) = serve(root.path(), &[("typed.py", TYPED)]);
    write(
        &server,
        "m n=1i,f=1.0,b=true 1\nm n=2i,f=2.0,b=true 2\nm n=3i,f=3.0,b=true 3\nm n=4i,f=1.0,b=true 1704067200000000001",
    );
    server.create_trigger("main", "t", "typed.py", "table:in", "deferred", Value::Null);
    write(&server, "in n=1i 5");
    let said = said(&server, 6);
    assert_eq!(
        said,
        [
            "said [{'n': 2}]",
            "said [{'n': 4}]",
            "said [{'n': 1}]",
            "said [{'none': True, 'a': 1, 'a2': 2}]",
            "said {'i': 1, 'd': datetime.date(2024, 2, 29), 'v': {'months': 1, 'days': 2, 'nanoseconds': 0}, 'l': [1, 2], 't': 'x', \
             'c': Decimal('1.50'), 'z': None}",
            "said ['in', 'm']",
        ]
    );
}

const AT_ONCE: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        for row in batch["rows"]:
            line = LineBuilder(args["to"]).int64_field("n", row["n"]).time_ns(row["time"])
            influxdb3_local.write_sync(line, no_sync=True)
            if row["n"] < 0:
                raise ValueError(row["n"])
"#;

#[test]
fn inline_a_synchronous_write_to_the_own_shard_is_applied_even_if_the_run_fails() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path()).shards(1);
    start.plugin("at_once.py", AT_ONCE);
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "t", "at_once.py", "table:in", "inline", json!({"to": "out"}));
    // Each in a run of its own: the one that fails fails as a whole.
    for n in [1, -2, 3] {
        write(&server, &format!("in n={n}i {}", n + 10));
        server.sql_until("main", &format!("SELECT n FROM out WHERE n = {n}"), |rows| rows.len() == 1);
    }
    let rows = server.sql("main", "SELECT n FROM out ORDER BY n");
    assert_eq!(rows, [json!({"n": -2}), json!({"n": 1}), json!({"n": 3})]);
    let runs = server.sql("main", "SELECT DISTINCT lane FROM system.trigger_runs");
    assert_eq!(runs, [json!({"lane": "inline"})]);
}

/// Counts in its state the rows that it derives. Every row that it derives is a new one, so a run that was made twice would show.
const COUNTING: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    count = influxdb3_local.state.get("count", 0)
    for batch in table_batches:
        for row in batch["rows"]:
            count += 1
            line = LineBuilder("derived").tag("trigger", args["name"]).int64_field("count", count).int64_field("n", row["n"])
            influxdb3_local.write(line.time_ns(count))
    influxdb3_local.state.put("count", count)
    influxdb3_local.state.put("last", {"n": row["n"], "raw": b"\x00"})
"#;

/// What a trigger's state says, and what there is of its rows: count, highest count. A row is there when it is durable, a bit later.
fn counts(server: &Server, name: &str) -> (i64, (i64, i64)) {
    let sql = format!("SELECT key, value FROM system.trigger_state WHERE trigger_name = '{name}' ORDER BY key");
    let state = server.sql("main", &sql);
    let count = state.first().map_or(0, |row| row["value"].as_str().unwrap().parse().unwrap());
    if let Some(last) = state.get(1) {
        assert!(last["value"].as_str().unwrap().ends_with(r#""raw":{"$bytes":"AA=="}}"#), "{last}");
    }
    let derived = format!("SELECT count(*) AS c, max(count) AS m FROM derived WHERE trigger = '{name}'");
    let reply = server.post_json("/api/v3/query_sql", &json!({"db": "main", "q": derived, "format": "json"}));
    let rows: Vec<Value> = serde_json::from_str(&reply.body).unwrap_or_default();
    let number = |name: &str| rows.first().and_then(|row| row[name].as_i64()).unwrap_or(0);
    (count, (number("c"), number("m")))
}

/// Waits until state and rows agree. If one had been committed without the other, they never would.
fn agree(server: &Server, names: &[&str]) -> Vec<i64> {
    let agree = |name: &&str| {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let (state, rows) = counts(server, name);
            if (state, state) == rows {
                return state;
            }
            assert!(std::time::Instant::now() < end, "{name}: the state says {state}, and there are {rows:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    names.iter().map(agree).collect()
}

#[test]
fn state_and_rows_agree_exactly_over_kills() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path()).shards(1);
    start.plugin("counting.py", COUNTING);
    let mut server = start.run();
    server.create_database("main");
    let names = ["inline", "deferred"];
    for name in names {
        server.create_trigger("main", name, "counting.py", "table:in", name, json!({"name": name}));
    }
    let mut n = 0_i64;
    for round in 0..8_u64 {
        let url = format!("{}/api/v3/write_lp?db=main&precision=nanosecond", server.url);
        let acknowledged = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let (agent, mut n) = (common::agent(), n);
                while agent.post(&url).send(format!("in n={n}i {}", n + 1)).is_ok_and(|reply| reply.status() == 204) {
                    n += 1;
                }
                n
            });
            std::thread::sleep(Duration::from_micros(150_000 + (round * 37_919) % 100_000));
            server.kill();
            writer.join().unwrap()
        });
        assert!(acknowledged > n, "it was killed during ingest");
        // The one that was under way may be there as well; it is written again.
        n = acknowledged;
        server = start.run();
        agree(&server, &names);
    }
    // What was pending is run now: every row once, and the same number in the state.
    let expected = server.sql("main", "SELECT count(*) AS c FROM in")[0]["c"].as_i64().unwrap();
    let sql = "SELECT value FROM system.trigger_state WHERE key = 'count'";
    server.sql_until("main", sql, |rows| {
        rows.len() == 2 && rows.iter().all(|row| row["value"].as_str().unwrap().parse::<i64>().unwrap() >= expected)
    });
    let counts = agree(&server, &names);
    assert!(counts.iter().all(|count| *count >= expected && *count <= expected + 8), "{counts:?} of {expected}");
}

const FAILING: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    state = influxdb3_local.state
    n = table_batches[0]["rows"][0]["n"]
    influxdb3_local.info("said", n, state.items())
    state.put("n", n)
    if n == 2:
        raise ValueError("two")
    if n == 3:
        influxdb3_local.write(LineBuilder("out").string_field("x", "no number"))
    else:
        influxdb3_local.write(LineBuilder("out").int64_field("x", n))
"#;

#[test]
fn a_run_that_fails_or_whose_rows_are_refused_changes_no_state_and_the_state_goes_with_its_trigger() {
    let root = tempfile::tempdir().unwrap();
    let (start, mut server) = serve(root.path(), &[("failing.py", FAILING)]);
    server.create_trigger("main", "t", "failing.py", "table:in", "deferred", Value::Null);
    for n in 1..=4 {
        write(&server, &format!("in n={n}i {n}"));
        let sql = "SELECT run_count FROM system.processing_engine_triggers";
        server.sql_until("main", sql, |rows| rows[0]["run_count"] == n);
        if n == 3 {
            let sql = "SELECT error_count FROM system.processing_engine_triggers";
            server.sql_until("main", sql, |rows| rows[0]["error_count"] == 2);
        }
    }
    let lines: Vec<_> = said(&server, 6).into_iter().filter(|line| line.starts_with("said")).collect();
    assert_eq!(lines, ["said 1 []", "said 2 [('n', 1)]", "said 3 [('n', 1)]", "said 4 [('n', 1)]"]);
    let state = |server: &Server| server.sql("main", "SELECT * FROM system.trigger_state");
    server.sql_until("main", "SELECT value FROM system.trigger_state", |rows| rows == [json!({"value": "4"})]);
    assert_eq!(state(&server), [json!({"trigger_name": "t", "key": "n", "value": "4", "revision": 2})]);
    let configure = "/api/v3/configure/processing_engine_trigger";
    let set = |server: &Server, what: &str| {
        assert_eq!(server.post(&format!("{configure}/{what}?db=main&trigger_name=t"), "").status, 200);
    };
    set(&server, "disable");
    assert_eq!(state(&server)[0]["value"], "4", "it is kept while the trigger is disabled");
    assert!(server.terminate(Duration::from_secs(20)));
    let mut server = start.run();
    assert_eq!(state(&server)[0]["value"], "4", "over a restart as well");
    set(&server, "enable");
    write(&server, "in n=5i 5");
    server.sql_until("main", "SELECT value, revision FROM system.trigger_state", |rows| {
        rows == [json!({"value": "5", "revision": 3})]
    });
    assert!(metric(&server, "saltus_shard_state_commits_total") >= 1.0);
    assert_eq!(server.delete(&format!("{configure}?db=main&trigger_name=t&force=true")).status, 200);
    assert_eq!(state(&server), Vec::<Value>::new());
    server.create_trigger("main", "t", "failing.py", "table:in", "deferred", Value::Null);
    server.kill();
    let server = start.run();
    assert_eq!(state(&server), Vec::<Value>::new(), "a trigger of the same name is another trigger");
}

const CACHING: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    cache = influxdb3_local.cache
    n = cache.get("n", 0) + 1
    seen = [n, cache.get("live") is not None, cache.get("short"), cache.get("g", use_global=True) if args["global"] else ""]
    row = table_batches[0]["rows"][0]
    line = LineBuilder("out").tag("name", args["name"]).tag("round", row["x"]).string_field("seen", repr(seen))
    influxdb3_local.write(line)
    cache.put("n", n)
    cache.put("live", object() if args["live"] else None)
    cache.put("short", [n], ttl=3600)
    if args["global"]:
        cache.put("g", n, use_global=True)
"#;

#[test]
fn plain_values_of_caches_are_there_again_after_an_orderly_restart_and_only_then() {
    let root = tempfile::tempdir().unwrap();
    let (start, mut server) = serve(root.path(), &[("caching.py", CACHING)]);
    let arguments = |name: &str, live: &str, global: &str| json!({"name": name, "live": live, "global": global});
    let lanes = [("inline", "", ""), ("deferred", "x", "x"), ("process", "", "")];
    for (name, live, global) in lanes {
        let settings = match name {
            "process" => json!({"isolation": "process"}),
            lane => json!({"execution": lane}),
        };
        server.create_trigger_with(
            "main",
            name,
            "caching.py",
            &format!("table:{name}"),
            settings,
            arguments(name, live, global),
        );
    }
    let settings = json!({"execution": "deferred", "restore_cache": false});
    server.create_trigger_with(
        "main",
        "without",
        "caching.py",
        "table:without",
        settings,
        arguments("without", "", ""),
    );
    let names = ["inline", "deferred", "process", "without"];
    let round = |server: &Server, at: usize| -> Vec<String> {
        for name in names {
            write(server, &format!("{name} x={at}i {at}"));
        }
        let sql = format!("SELECT name, seen FROM out WHERE round = '{at}' ORDER BY name");
        let rows = server.sql_until("main", &sql, |rows| rows.len() == names.len());
        rows.iter().map(|row| format!("{} {}", row["name"].as_str().unwrap(), row["seen"].as_str().unwrap())).collect()
    };
    let first = [
        "deferred [1, False, None, None]",
        "inline [1, False, None, '']",
        "process [1, False, None, '']",
        "without [1, False, None, '']",
    ];
    assert_eq!(round(&server, 1), first);
    assert!(server.terminate(Duration::from_secs(20)), "{}", server.log_text());
    let mut server = start.run();
    let second = [
        "deferred [2, False, [1], 1]",
        "inline [2, False, [1], '']",
        "process [2, False, [1], '']",
        "without [1, False, None, '']",
    ];
    assert_eq!(round(&server, 2), second, "{}", server.log_text());
    assert!(metric(&server, "saltus_plugin_caches_restored_total") >= 4.0);
    assert_eq!(metric(&server, "saltus_plugin_global_cache_values"), 1.0);
    server.kill();
    let server = start.run();
    assert_eq!(round(&server, 3), first, "after a crash they begin empty");
    let configure = "/api/v3/configure/processing_engine_trigger";
    for name in names {
        for what in ["disable", "enable"] {
            assert_eq!(server.post(&format!("{configure}/{what}?db=main&trigger_name={name}"), "").status, 200);
        }
    }
    let fourth = ["deferred [1, False, None, 1]", first[1], first[2], first[3]];
    assert_eq!(round(&server, 4), fourth, "a trigger that was disabled begins with an empty cache");
}

#[test]
fn missing_columns_are_none_if_the_trigger_wants_it() {
    let root = tempfile::tempdir().unwrap();
    let source = "def process_writes(api, batches, args=None):\n    for row in batches[0]['rows']:\n        api.info('said', row)\n";
    let (_start, server) = serve(root.path(), &[("rows.py", source)]);
    write(&server, "in,a=1 x=1i 1");
    let settings = json!({"execution": "deferred", "missing_columns": "none"});
    server.create_trigger_with("main", "t", "rows.py", "table:in", settings, Value::Null);
    write(&server, "in,b=2 y=2i 2");
    assert_eq!(said(&server, 1), ["said {'b': '2', 'y': 2, 'a': None, 'x': None, 'time': 2}"]);
    let row = server.sql("main", "SELECT missing_columns, restore_cache FROM system.processing_engine_triggers");
    assert_eq!(row[0]["missing_columns"], "none");
}
