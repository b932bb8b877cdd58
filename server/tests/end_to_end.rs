//! The main job through the front door: line protocol in, Python on the ingesting core, SQL out, with a real server
//! process, real files, real CPython and real HTTP.

mod common;

use std::time::Duration;

use common::Start;
use serde_json::{Value, json};

const ECHO: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        influxdb3_local.info("got", batch["table_name"], len(batch["rows"]))
        if not batch["table_name"].startswith(args["from"]):
            continue
        for row in batch["rows"]:
            line = LineBuilder(args["to"]).tag("host", row["host"]).int64_field("twice", row["n"] * 2).time_ns(row["time"])
            influxdb3_local.write(line)
"#;

fn ints(rows: &[Value], key: &str) -> Vec<i64> {
    rows.iter().map(|r| r[key].as_i64().unwrap_or_else(|| panic!("{key} in {r}"))).collect()
}

#[test]
fn rows_written_over_several_connections_and_shards_are_read_back_with_sql() {
    let root = tempfile::tempdir().unwrap();
    let server = Start::new(root.path()).run();
    std::thread::scope(|scope| {
        for connection in 0..4 {
            let server = &server;
            scope.spawn(move || {
                for n in 0..50 {
                    let body: String = (0..8)
                        .map(|t| {
                            format!(
                                "table{t},host=h{connection} n={n}i,f=1.5,s=\"x\",b=true {}\n",
                                1_000_000_000_i64 * (n + 1) + t
                            )
                        })
                        .collect();
                    let reply = server.post("/api/v3/write_lp?db=main&precision=nanosecond", &body);
                    assert_eq!(reply.status, 204, "{}", reply.body);
                }
            });
        }
    });
    for table in 0..8 {
        let rows = server.sql("main", &format!("SELECT count(*) AS c, sum(n) AS s FROM table{table}"));
        assert_eq!(ints(&rows, "c"), [200]);
        assert_eq!(ints(&rows, "s"), [4 * (0..50).sum::<i64>()]);
    }
    let shards = server.sql("main", "SELECT shard, tables FROM system.shards ORDER BY shard");
    assert_eq!(shards.len(), 2, "{shards:?}");
    assert!(
        shards.iter().all(|s| s["tables"].as_i64().unwrap() > 0),
        "the tables are spread over both shards: {shards:?}"
    );
}

#[test]
fn a_trigger_runs_in_either_lane_and_its_rows_can_be_queried() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("echo.py", ECHO);
    let server = start.run();
    server.create_database("main");
    for lane in ["inline", "deferred"] {
        let (from, to) = (format!("in_{lane}"), format!("out_{lane}"));
        server.create_trigger("main", lane, "echo.py", &format!("table:{from}"), lane, json!({"from": from, "to": to}));
        let reply = server.post(
            "/api/v3/write_lp?db=main&precision=nanosecond",
            &format!("{from},host=a n=21i 100\n{from},host=b n=4i 200"),
        );
        assert_eq!(reply.status, 204, "{}", reply.body);
        let rows =
            server.sql_until("main", &format!("SELECT host, twice FROM {to} ORDER BY twice"), |rows| rows.len() == 2);
        assert_eq!(rows, [json!({"host": "b", "twice": 8}), json!({"host": "a", "twice": 42})]);
    }
    let all = "SELECT lane, stage, count, p50_us FROM system.trigger_latency WHERE stage = 'activation' ORDER BY lane";
    let latency =
        server.sql_until("main", all, |rows| rows.iter().filter(|r| r["count"].as_i64() == Some(1)).count() == 2);
    assert_eq!(latency.len(), 2, "{latency:?}");
    let logs = server.sql(
        "main",
        "SELECT trigger_name, log_level, log_text FROM system.processing_engine_logs WHERE log_text LIKE 'got in_%'",
    );
    assert_eq!(logs.len(), 2, "{logs:?}");
}

#[test]
fn an_all_tables_trigger_sees_every_table_of_its_database_from_every_shard() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("seen.py", r#"
def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        if batch["table_name"] == "seen":
            continue
        for row in batch["rows"]:
            influxdb3_local.write(LineBuilder("seen").tag("of", batch["table_name"]).int64_field("n", row["n"]).time_ns(row["time"]))
"#);
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "all", "seen.py", "all_tables", "deferred", Value::Null);
    for t in 0..10 {
        assert_eq!(server.write("main", &format!("t{t} n={t}i 1700000000000000000")).status, 204);
    }
    let rows = server.sql_until("main", "SELECT of, n FROM seen ORDER BY n", |rows| rows.len() == 10);
    assert_eq!(ints(&rows, "n"), (0..10).collect::<Vec<i64>>());
}

#[test]
fn a_plugin_that_raises_loops_or_returns_garbage_harms_nobody_else() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    start.extra.extend(["--inline-deadline".into(), "20ms".into(), "--deferred-deadline".into(), "300ms".into()]);
    start.plugin("raises.py", "def process_writes(api, batches, args):\n    return {}['no such key']\n");
    start.plugin("loops.py", "def process_writes(api, batches, args):\n    while True:\n        pass\n");
    start.plugin("garbage.py", "def process_writes(api, batches, args):\n    return [object()] * 3\n");
    start.plugin("broken.py", "def process_writes(api, batches, args)\n    pass\n");
    start.plugin("echo.py", ECHO);
    let server = start.run();
    server.create_database("main");
    for lane in ["inline", "deferred"] {
        for bad in ["raises", "loops", "garbage", "broken"] {
            server.create_trigger(
                "main",
                &format!("{bad}_{lane}"),
                &format!("{bad}.py"),
                "table:shared",
                lane,
                Value::Null,
            );
        }
        server.create_trigger(
            "main",
            &format!("echo_{lane}"),
            "echo.py",
            "table:shared",
            lane,
            json!({"from": "shared", "to": format!("out_{lane}")}),
        );
    }
    for n in 0..5 {
        let reply =
            server.post("/api/v3/write_lp?db=main&precision=nanosecond", &format!("shared,host=a n={n}i {}", n + 1));
        assert_eq!(reply.status, 204, "{}", reply.body);
    }
    for lane in ["inline", "deferred"] {
        server.sql_until("main", &format!("SELECT twice FROM out_{lane}"), |rows| rows.len() == 5);
        let log = |trigger: &str, part: &str| {
            let sql = format!(
                "SELECT log_text FROM system.processing_engine_logs WHERE trigger_name = '{trigger}_{lane}' AND log_level = 'ERROR'"
            );
            server.sql_until("main", &sql, |rows| rows.iter().any(|r| r["log_text"].as_str().unwrap().contains(part)));
        };
        log("raises", "KeyError: 'no such key'");
        log("raises", "raises.py\", line 2, in process_writes");
        log("loops", "deadline");
        log("broken", "SyntaxError");
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn new_code_in_the_file_is_what_the_next_run_runs() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let version = |n: u32| {
        format!(
            "def process_writes(api, batches, args):\n    api.write(LineBuilder('out').int64_field('version', {n}).time_ns({n}))\n"
        )
    };
    start.plugin("p.py", &version(1));
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "p", "p.py", "table:t", "deferred", Value::Null);
    assert_eq!(server.write("main", "t n=1i").status, 204);
    server.sql_until("main", "SELECT version FROM out", |rows| rows.len() == 1);
    start.plugin("p.py", &version(2));
    assert_eq!(server.write("main", "t n=1i").status, 204);
    server.sql_until("main", "SELECT version FROM out", |rows| rows.len() == 2);
}

#[test]
fn a_deferred_plugin_may_query_and_finds_the_rows_that_started_it() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("q.py", r#"
def process_writes(influxdb3_local, table_batches, args):
    rows = influxdb3_local.query("SELECT n, host, time FROM t WHERE host = $host ORDER BY n", {"host": "a"})
    influxdb3_local.write(LineBuilder("out").int64_field("rows", len(rows)).int64_field("last", rows[-1]["n"]).time_ns(rows[-1]["time"]))
    try:
        influxdb3_local.query("SELECT foo FROM not_here")
    except Exception as error:
        influxdb3_local.warn(type(error).__name__, str(error))
"#);
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "q", "q.py", "table:t", "deferred", Value::Null);
    assert_eq!(server.post("/api/v3/write_lp?db=main&precision=nanosecond", "t,host=a n=7i 5").status, 204);
    let rows = server.sql_until("main", "SELECT rows, last, time FROM out", |rows| rows.len() == 1);
    assert_eq!((rows[0]["rows"].as_i64(), rows[0]["last"].as_i64()), (Some(1), Some(7)));
    let sql = "SELECT log_text FROM system.processing_engine_logs WHERE log_level = 'WARN'";
    let warned = server.sql_until("main", sql, |rows| rows.len() == 1);
    let text = warned[0]["log_text"].as_str().unwrap();
    assert!(
        text.starts_with(
            "QueryError error: error while planning query: Error during planning: table 'public.iox.not_here' not found"
        ),
        "{text}"
    );
}

#[test]
fn a_point_written_again_replaces_the_fields_that_are_given() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let mut server = start.run();
    for lines in ["t,h=a x=1i,y=1i 10", "t,h=a x=2i 10", "t,h=b x=3i 10", "t x=4i 10"] {
        assert_eq!(server.post("/api/v3/write_lp?db=main&precision=ns", lines).status, 204);
    }
    let right = [json!({"h": "a", "x": 2, "y": 1}), json!({"h": "b", "x": 3}), json!({"x": 4})];
    assert_eq!(server.sql("main", "SELECT h, x, y FROM t ORDER BY h NULLS LAST"), right);
    server.kill();
    let server = start.run();
    assert_eq!(server.sql("main", "SELECT h, x, y FROM t ORDER BY h NULLS LAST"), right, "and after a crash");
}

#[test]
fn a_trigger_and_its_database_survive_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("echo.py", ECHO);
    let mut server = start.run();
    server.create_database("main");
    server.create_trigger("main", "echo", "echo.py", "table:t", "inline", json!({"from": "t", "to": "out"}));
    assert!(server.terminate(Duration::from_secs(20)), "it stops in time:\n{}", server.log_text());
    let server = start.run();
    assert_eq!(server.write("main", "t,host=a n=1i").status, 204);
    server.sql_until("main", "SELECT twice FROM out", |rows| rows.len() == 1);
}

#[test]
fn two_writers_who_disagree_about_a_new_column_get_one_answer_each() {
    let root = tempfile::tempdir().unwrap();
    let server = Start::new(root.path()).run();
    for round in 0..40 {
        let table = format!("fresh{round}");
        let replies: Vec<_> = std::thread::scope(|scope| {
            let writers: Vec<_> = ["v=1i", "v=1.5"]
                .into_iter()
                .map(|value| {
                    let (server, table) = (&server, &table);
                    scope.spawn(move || server.write("main", &format!("{table},w={} {value} 1", value.len())))
                })
                .collect();
            writers.into_iter().map(|w| w.join().unwrap()).collect()
        });
        let taken = replies.iter().filter(|r| r.status == 204).count();
        let refused: Vec<_> = replies.iter().filter(|r| r.status == 400).collect();
        assert_eq!((taken, refused.len()), (1, 1), "{replies:?}");
        assert!(
            refused[0].body.contains("invalid column type for column 'v', expected iox::column_type::field::"),
            "{refused:?}"
        );
        assert_eq!(ints(&server.sql("main", &format!("SELECT count(*) AS c FROM {table}")), "c"), [1]);
    }
}

#[test]
fn a_second_server_on_the_same_data_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let _server = start.run();
    let said = start.run_refused();
    assert!(said.contains("another server"), "{said}");
}

/// The largest segment below the data directory, of any stream.
fn fullest_segment(data: &std::path::Path) -> std::path::PathBuf {
    let streams = std::fs::read_dir(data.join("wal")).unwrap().map(|e| e.unwrap().path());
    let segments = streams.flat_map(|s| std::fs::read_dir(s).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>());
    let used = |path: &std::path::Path| std::fs::read(path).unwrap().iter().filter(|byte| **byte != 0).count();
    segments.max_by_key(|path| used(path)).unwrap()
}

#[test]
fn a_flipped_bit_in_the_middle_of_the_log_is_refused_with_file_and_offset() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path()).shards(1);
    let mut server = start.run();
    for n in 0..20 {
        assert_eq!(server.write("main", &format!("t n={n}i {}", 1_700_000_000_000_000_000_i64 + n)).status, 204);
    }
    server.kill();
    let path = fullest_segment(&start.data);
    let mut bytes = std::fs::read(&path).unwrap();
    // Past the segment's header and the first frames: the tenth block's record.
    bytes[10 * 4096 + 60] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let said = start.run_refused();
    assert!(said.contains(path.file_name().unwrap().to_str().unwrap()) && said.contains("offset"), "{said}");
    start.extra.push("--accept-loss".into());
    let server = start.run();
    let rows = ints(&server.sql("main", "SELECT count(*) AS c FROM t"), "c")[0];
    assert!((15..20).contains(&rows), "with --accept-loss all but the damaged range is there: {rows}");
}

#[test]
fn two_mailboxes_that_are_full_in_both_directions_refuse_and_never_wait_for_each_other() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    start.extra.extend(["--max-http-request-size", "96kb", "--mailbox-size", "384kb"].map(String::from));
    let server = start.run();
    let lines = |table: usize, from: usize| -> String {
        (from..from + 500).map(|n| format!("t{table} n={n}i {}\n", 1_700_000_000_000_000_000_i64 + n as i64)).collect()
    };
    let taken: Vec<std::sync::atomic::AtomicUsize> = (0..8).map(|_| Default::default()).collect();
    let refused = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for writer in 0..16 {
            let (server, taken, refused, lines) = (&server, &taken, &refused, &lines);
            scope.spawn(move || {
                for round in 0..20 {
                    // Each request has tables of both shards.
                    let body: String = (0..4).map(|t| lines((t + writer) % 8, (round * 16 + writer) * 500)).collect();
                    let reply = server.write("main", &body);
                    match reply.status {
                        204 => (0..4).for_each(|t| {
                            taken[(t + writer) % 8].fetch_add(500, std::sync::atomic::Ordering::Relaxed);
                        }),
                        503 => {
                            refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                        other => panic!("{other}: {}", reply.body),
                    }
                }
            });
        }
    });
    let refused = refused.into_inner();
    assert!(refused > 0, "the mailboxes were full at least once");
    for (table, taken) in taken.iter().enumerate() {
        let taken = taken.load(std::sync::atomic::Ordering::Relaxed) as i64;
        if taken > 0 {
            let found = ints(&server.sql("main", &format!("SELECT count(*) AS c FROM t{table}")), "c")[0];
            assert_eq!(found, taken, "a refused request leaves no row in any table, a taken one all of them");
        }
    }
}
