//! `execution=auto` against a real server: a trigger earns the inline lane, loses it, and nobody notices but the clock.

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Server, Start};
use serde_json::{Value, json};

/// Numbers its events in its cache, and does what a row asks for.
const PLUGIN: &str = r#"
from zoneinfo import ZoneInfo

def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        for row in batch["rows"]:
            seen = influxdb3_local.cache.get("seen", [0])
            seen[0] += 1
            influxdb3_local.cache.put("seen", seen)
            if row["ask"] == "file":
                ZoneInfo.no_cache("Europe/Berlin" if row["n"] >= 0 else "UTC")
            elif row["ask"] == "time":
                for _ in range(4_000_000):
                    pass
            influxdb3_local.write(LineBuilder("out").int64_field("n", row["n"]).int64_field("seen", seen[0]).time_ns(row["time"]))
"#;

/// Asks for nothing until it is inline, so that no run before says what a later one will do.
fn write(server: &Server, n: usize, ask: &str) {
    assert_eq!(server.write("main", &format!("in n={n}i,ask=\"{ask}\" {}", n + 1)).status, 204);
}

fn trigger(server: &Server) -> Value {
    let sql = "SELECT lane, lane_reason, lane_barred, execution FROM system.processing_engine_triggers";
    server.sql("main", sql).remove(0)
}

/// Writes single rows until the trigger is in the lane; the number of the next row.
fn write_until(server: &Server, lane: &str, mut n: usize) -> usize {
    for _ in 0..200 {
        for _ in 0..50 {
            write(server, n, "nothing");
            n += 1;
        }
        if trigger(server)["lane"] == lane {
            return n;
        }
    }
    panic!("never {lane}: {}\n{:#?}", trigger(server), decisions(server));
}

/// Events may gather in one run.
fn rows_of(runs: &[Value]) -> u64 {
    runs.iter().map(|run| run["rows"].as_u64().unwrap()).sum()
}

fn decisions(server: &Server) -> Vec<String> {
    let sql = "SELECT detail FROM system.trigger_runs WHERE outcome = 'decision' ORDER BY event_time";
    server.sql("main", sql).iter().map(|row| row["detail"].as_str().unwrap().to_owned()).collect()
}

/// Every event was handled once, in order, and the cache came along.
fn assert_each_once(server: &Server, count: usize) {
    let rows = server.sql_until("main", "SELECT n, seen FROM out ORDER BY n", |rows| rows.len() == count);
    for (at, row) in rows.iter().enumerate() {
        assert_eq!((row["n"].as_u64(), row["seen"].as_u64()), (Some(at as u64), Some(at as u64 + 1)));
    }
}

#[test]
fn a_cheap_trigger_earns_the_inline_lane_and_loses_it_without_a_trace_in_its_results() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    // Nothing is said here of how fast the machine is.
    start.extra.push("--inline-budget=8ms".into());
    start.plugin("p.py", PLUGIN);
    let server = start.run();
    server.create_database("main");
    let body = json!({"db": "main", "plugin_filename": "p.py", "trigger_name": "t", "trigger_specification": "table:in",
        "trigger_settings": {"run_async": false, "error_behavior": "log"}});
    let reply = server.post_json("/api/v3/configure/processing_engine_trigger", &body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let new = trigger(&server);
    assert_eq!(
        (&new["execution"], &new["lane"]),
        (&json!("auto"), &json!("deferred")),
        "the default, and where it begins"
    );

    let mut n = write_until(&server, "inline", 0);
    assert!(trigger(&server)["lane_reason"].as_str().unwrap().starts_with("recent runs fit the inline budget: p50 "));
    assert_each_once(&server, n);

    // What can block.
    write(&server, n, "file");
    n += 1;
    assert_each_once(&server, n);
    assert_eq!(trigger(&server)["lane_reason"], "an inline run called what can block: open");
    let discarded = server.sql(
        "main",
        "SELECT detail, rows FROM system.trigger_runs WHERE outcome = 'discarded' AND detail LIKE '%block%'",
    );
    assert_eq!(discarded, [json!({"detail": "it reached for what can block: open"})]);

    // What takes too long.
    n = write_until(&server, "inline", n);
    write(&server, n, "time");
    n += 1;
    assert_each_once(&server, n);
    let reason = trigger(&server)["lane_reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("a run was interrupted at its deadline after "), "{reason}");

    let decisions = decisions(&server);
    let ways: Vec<&str> = decisions.iter().map(|text| text.split(':').next().unwrap()).collect();
    assert_eq!(ways[..3], ["deferred -> inline", "inline -> deferred", "deferred -> inline"], "{decisions:?}");
    let logged = "SELECT log_text FROM system.processing_engine_logs WHERE log_text LIKE 'lane %'";
    assert_eq!(server.sql("main", logged).len(), decisions.len());
    let errors = server.sql("main", "SELECT log_text FROM system.processing_engine_logs WHERE log_level = 'ERROR'");
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn what_bars_a_trigger_from_the_inline_lane_is_shown() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("p.py", "def process_writes(api, batches, args=None):\n    return [row['n'] ** row['n'] for b in batches for row in b['rows']]\n");
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "checked", "p.py", "table:in", "auto", Value::Null);
    server.create_trigger("main", "told", "p.py", "table:in", "inline", Value::Null);
    for n in 0..3 {
        assert_eq!(server.write("main", &format!("in n={n}i {n}")).status, 204);
    }
    let sql = "SELECT trigger_name, lane, lane_reason, lane_barred FROM system.processing_engine_triggers ORDER BY trigger_name";
    let rows = server.sql_until("main", sql, |rows| !rows[0]["lane_barred"].is_null());
    assert_eq!(rows[0]["lane_barred"], "the static check: ** with a variable exponent (line 2)");
    assert_eq!((&rows[1]["lane"], &rows[1]["lane_reason"]), (&json!("inline"), &json!("chosen by the operator")));
    let runs = "SELECT lane, outcome, attempt, rows, activation_us, run_us FROM system.trigger_runs WHERE trigger_name = 'told'";
    let runs = server.sql_until("main", runs, |rows| rows_of(rows) == 3);
    let run = &runs[0];
    assert_eq!((&run["lane"], &run["outcome"], &run["attempt"]), (&json!("inline"), &json!("success"), &json!(0)));
    assert!(run["activation_us"].as_f64().unwrap() > 0.0 && run["run_us"].as_f64().unwrap() > 0.0, "{run}");
}

#[test]
fn a_trigger_that_is_told_to_run_inline_gets_an_error_where_it_would_block() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("p.py", "import time\ndef process_writes(api, batches, args=None):\n    time.sleep(0.001)\n");
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "t", "p.py", "table:in", "inline", Value::Null);
    assert_eq!(server.write("main", "in n=1i 1").status, 204);
    let sql = "SELECT last_error FROM system.processing_engine_triggers WHERE error_count = 1";
    let rows = server.sql_until("main", sql, |rows| rows.len() == 1);
    let error = rows[0]["last_error"].as_str().unwrap();
    assert!(error.starts_with("LaneError: time.sleep would block the thread that ingests data"), "{error}");
    assert!(error.ends_with("create trigger 't' with --execution auto or deferred"), "{error}");
}

#[test]
fn nobody_is_demoted_for_a_machine_that_stops_the_process_now_and_then() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    // Far more than a run costs, and far less than the process is stopped for.
    start.extra.push("--inline-budget=8ms".into());
    start.plugin(
        "p.py",
        "def process_writes(influxdb3_local, table_batches, args=None):\n    for n in range(40_000):\n        pass\n",
    );
    let server = start.run();
    server.create_database("main");
    server.create_trigger_with(
        "main",
        "t",
        "p.py",
        "table:in",
        json!({"run_async": false, "error_behavior": "log"}),
        json!({}),
    );
    let n = write_until(&server, "inline", 0);
    let pid = server.pid().to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    let stopping = AtomicBool::new(true);
    let runs = "SELECT count(*) AS n FROM system.trigger_runs WHERE lane = 'inline' AND run_us > 20000";
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stopping.load(Ordering::Relaxed) {
                signal("-STOP");
                std::thread::sleep(Duration::from_millis(30));
                signal("-CONT");
                std::thread::sleep(Duration::from_millis(15));
            }
        });
        let end = Instant::now() + Duration::from_secs(60);
        let mut n = n;
        // By the clock these are ten times what a run may cost.
        let mut disturbed = 0;
        while disturbed < 8 && Instant::now() < end {
            for _ in 0..50 {
                write(&server, n, "nothing");
                n += 1;
            }
            disturbed = server.sql("main", runs)[0]["n"].as_u64().unwrap();
        }
        stopping.store(false, Ordering::Relaxed);
        assert!(disturbed >= 8, "{disturbed} runs were under way while the process was stopped");
    });
    assert_eq!(trigger(&server)["lane"], "inline", "{:#?}", decisions(&server));
    assert_eq!(decisions(&server).len(), 1, "{:#?}", decisions(&server));
}
