//! The process lane against a real server: `isolation`, what moves a trigger there by itself, and the limits that hold there.

mod common;

use std::time::{Duration, Instant};

use common::{Server, Start};
use serde_json::{Value, json};

/// Imports a module of the standard library that no interpreter with a GIL of its own can have.
const SINGLE: &str = r#"
import os
from importlib.util import find_spec

__import__(next(name for name in ("_curses", "readline", "_tkinter", "_testsinglephase") if find_spec(name)))

def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        for row in batch["rows"]:
            influxdb3_local.write(LineBuilder("out").int64_field("n", row["n"]).int64_field("pid", os.getpid()).time_ns(row["time"]))
"#;

/// Does what the row asks for.
const ASKED: &str = r#"
import ctypes

def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        for row in batch["rows"]:
            if row["ask"] == "die":
                ctypes.string_at(0)
            elif row["ask"] == "loop":
                sum(range(10**13))
            seen = influxdb3_local.query("SELECT count(*) AS n FROM in")[0]["n"]
            influxdb3_local.write(LineBuilder("out").int64_field("n", row["n"]).int64_field("seen", seen).time_ns(row["time"]))
"#;

fn trigger(server: &Server) -> Value {
    let sql = "SELECT lane, lane_reason, isolation, limits, last_error FROM system.processing_engine_triggers";
    server.sql("main", sql).remove(0)
}

fn metric(server: &Server, name: &str) -> f64 {
    let text = server.get("/metrics").body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[test]
fn a_module_that_refuses_subinterpreters_moves_its_trigger_to_a_process_and_no_event_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("single.py", SINGLE);
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "t", "single.py", "table:in", "auto", Value::Null);
    for n in 0..20 {
        assert_eq!(server.write("main", &format!("in n={n}i {}", n + 1)).status, 204);
    }
    let rows = server.sql_until("main", "SELECT n, pid FROM out ORDER BY n", |rows| rows.len() == 20);
    assert!(rows.iter().enumerate().all(|(at, row)| row["n"] == at), "{rows:?}");
    assert!(rows.iter().all(|row| row["pid"] != server.pid() && row["pid"] == rows[0]["pid"]), "{rows:?}");
    let now = trigger(&server);
    assert_eq!(now["lane"], "process", "{now}");
    let reason = now["lane_reason"].as_str().unwrap();
    assert!(reason.contains("does not load in an interpreter with a GIL of its own"), "{reason}");
    let decided = "SELECT detail FROM system.trigger_runs WHERE outcome = 'decision'";
    assert_eq!(server.sql("main", decided).len(), 1);
    assert_eq!(now["last_error"], Value::Null, "the refused import is no failure of the plugin");
    assert_eq!(metric(&server, "saltus_worker_processes"), 1.0);
}

/// As plugins do whose packages may be missing. The module does not load in an interpreter with a GIL of its own.
const CATCHES: &str = r#"
import os
try:
    import MODULE
    missing = False
except ImportError:
    missing = True

def process_writes(influxdb3_local, table_batches, args=None):
    if missing:
        influxdb3_local.error("required packages are not installed")
        return
    import WITHIN
    influxdb3_local.info(f"run in {os.getpid()}")
"#;

#[test]
fn nothing_is_seen_of_a_run_that_caught_the_refusal_of_its_module() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let single = common::module_of_one_interpreter();
    // At the top of the file, and within the function.
    start.plugin("top.py", &CATCHES.replace("MODULE", &single).replace("WITHIN", "json"));
    start.plugin("within.py", &CATCHES.replace("MODULE", "json").replace("WITHIN", &single));
    let server = start.run();
    server.create_database("main");
    for name in ["top", "within"] {
        server.create_trigger("main", name, &format!("{name}.py"), "table:in", "auto", Value::Null);
    }
    assert_eq!(server.write("main", "in n=1i 1").status, 204);
    let lines =
        "SELECT trigger_name, log_level, log_text FROM system.processing_engine_logs WHERE log_text NOT LIKE 'lane %'";
    let has_run = |rows: &[Value], name: &str| {
        rows.iter().any(|row| row["trigger_name"] == name && row["log_text"].as_str().unwrap().starts_with("run in "))
    };
    let rows = server.sql_until("main", lines, |rows| has_run(rows, "top") && has_run(rows, "within"));
    assert!(rows.iter().all(|row| row["log_level"] == "INFO"), "{rows:#?}");
    let own = format!("run in {}", server.pid());
    assert!(rows.iter().all(|row| row["log_text"] != own.as_str()), "{rows:#?}");
    let sql = "SELECT lane, last_error FROM system.processing_engine_triggers";
    let triggers = server.sql("main", sql);
    assert!(triggers.iter().all(|row| row["lane"] == "process" && row["last_error"].is_null()), "{triggers:?}");
}

#[test]
fn isolation_interpreter_keeps_the_trigger_and_says_what_the_import_said() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("single.py", SINGLE);
    let server = start.run();
    server.create_database("main");
    server.create_trigger_with("main", "t", "single.py", "table:in", json!({"isolation": "interpreter"}), Value::Null);
    assert_eq!(server.write("main", "in n=0i 1").status, 204);
    let sql = "SELECT lane, isolation, last_error FROM system.processing_engine_triggers";
    let rows = server.sql_until("main", sql, |rows| !rows[0]["last_error"].is_null());
    assert_eq!((&rows[0]["lane"], &rows[0]["isolation"]), (&json!("deferred"), &json!("interpreter")));
    assert!(
        rows[0]["last_error"].as_str().unwrap().contains("does not support loading in subinterpreters"),
        "{rows:?}"
    );
}

#[test]
fn a_worker_that_dies_or_is_killed_costs_its_run_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("asked.py", ASKED);
    let server = start.run();
    server.create_database("main");
    let settings = json!({"isolation": "process", "limits": {"run_time": "2s"}});
    server.create_trigger_with("main", "t", "asked.py", "table:in", settings, Value::Null);
    for (n, ask) in ["nothing", "die", "nothing", "loop", "nothing"].into_iter().enumerate() {
        assert_eq!(server.write("main", &format!("in n={n}i,ask=\"{ask}\" {}", n + 1)).status, 204);
        // Events that wait together are handed over together, and then one that dies takes them all.
        let done = n as u64 + 1;
        let sql = "SELECT run_count FROM system.processing_engine_triggers";
        server.sql_until("main", sql, |rows| rows[0]["run_count"] == done);
    }
    let rows = server.sql("main", "SELECT n, seen FROM out ORDER BY n");
    assert_eq!(rows, [json!({"n": 0, "seen": 1}), json!({"n": 2, "seen": 3}), json!({"n": 4, "seen": 5})]);
    let errors = "SELECT detail FROM system.trigger_runs WHERE outcome = 'error' ORDER BY event_time";
    let errors = server.sql("main", errors);
    assert!(errors[0]["detail"].as_str().unwrap().contains("was ended by SIGSEGV"), "{errors:?}");
    assert!(errors[1]["detail"].as_str().unwrap().contains("deadline of 2000 ms"), "{errors:?}");
    assert_eq!(
        (
            metric(&server, "saltus_worker_processes_died_total"),
            metric(&server, "saltus_worker_processes_killed_total")
        ),
        (1.0, 1.0)
    );
    assert_eq!(trigger(&server)["limits"], "{\"run_time\":\"2000ms\"}");
}

/// While a worker waits, the shard gives it its runs itself; a run of a file that was changed is still one of the new file.
#[test]
fn a_file_that_was_changed_counts_in_the_next_run_although_the_shard_looks_at_no_file() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let version = |n: usize| {
        format!(
            "def process_writes(influxdb3_local, table_batches, args=None):\n    for batch in table_batches:\n        \
             for row in batch['rows']:\n            \
             influxdb3_local.write(LineBuilder('out').int64_field('version', {n}).int64_field('n', row['n']))\n"
        )
    };
    start.plugin("version.py", &version(1));
    let server = start.run();
    server.create_database("main");
    server.create_trigger_with("main", "t", "version.py", "table:in", json!({"isolation": "process"}), Value::Null);
    let mut n = 0;
    let mut version_of_next = || {
        n += 1;
        assert_eq!(server.write("main", &format!("in n={n}i {n}")).status, 204);
        let rows = server.sql_until("main", &format!("SELECT version FROM out WHERE n = {n}"), |rows| rows.len() == 1);
        rows[0]["version"].as_u64()
    };
    for expected in 1..=2 {
        let direct = || metric(&server, "saltus_worker_processes_direct_runs_total");
        let before = direct();
        // Not before the last change of the file is old enough for the next one to show.
        let end = Instant::now() + Duration::from_secs(60);
        while direct() < before + 3.0 {
            assert_eq!(version_of_next(), Some(expected));
            assert!(Instant::now() < end, "the shard never gives the worker a run");
            std::thread::sleep(Duration::from_millis(20));
        }
        start.plugin("version.py", &version(expected as usize + 1));
        assert_eq!(version_of_next(), Some(expected + 1));
    }
}

#[test]
fn workers_end_with_the_server_even_if_that_is_killed() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("single.py", SINGLE);
    let mut server = start.run();
    server.create_database("main");
    server.create_trigger_with("main", "t", "single.py", "table:in", json!({"isolation": "process"}), Value::Null);
    assert_eq!(server.write("main", "in n=0i 1").status, 204);
    let rows = server.sql_until("main", "SELECT pid FROM out", |rows| rows.len() == 1);
    let worker = format!("/proc/{}/cmdline", rows[0]["pid"]);
    let cmdline = std::fs::read_to_string(&worker).unwrap();
    assert!(cmdline.contains("worker"), "{cmdline:?}");
    server.kill();
    let until = Instant::now() + Duration::from_secs(30);
    while std::fs::read_to_string(&worker).is_ok_and(|text| text.contains("worker")) {
        assert!(Instant::now() < until, "the worker outlives its server");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A plugin as it is written for any Python.
const FRAMES: &str = r#"
import numpy as np
import pandas as pd

def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        frame = pd.DataFrame(batch["rows"])
        mean = float(np.mean(frame["v"].to_numpy()))
        influxdb3_local.write(LineBuilder("out").float64_field("mean", mean).int64_field("rows", len(frame)).time_ns(int(frame["time"].max())))
"#;

#[test]
fn numpy_and_pandas_run_unmodified_from_the_servers_virtual_environment() {
    let packages = std::env::var("SALTUS_TEST_SITE_PACKAGES").unwrap_or_default();
    let Some(venv) = std::path::Path::new(&packages).ancestors().nth(3).filter(|_| !packages.is_empty()) else {
        eprintln!("not run: SALTUS_TEST_SITE_PACKAGES names no folder with numpy and pandas");
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    start.extra.extend(["--virtual-env-location".to_owned(), venv.display().to_string()]);
    start.plugin("frames.py", FRAMES);
    let server = start.run();
    server.create_database("main");
    let answer = server.create_trigger_with("main", "t", "frames.py", "table:in", json!({}), Value::Null);
    let answer = server.settled("main", "t", answer);
    // Before there is any event.
    let reason = "module numpy does not load in an interpreter with a GIL of its own";
    assert_eq!(answer, json!({"lane": "process", "lane_reason": reason, "warnings": []}));
    let now = trigger(&server);
    assert_eq!((&now["lane"], &now["lane_reason"]), (&answer["lane"], &answer["lane_reason"]));
    assert_eq!(server.write("main", "in v=1 1\nin v=2 2\nin v=6 3").status, 204);
    let rows = server.sql_until("main", "SELECT mean, rows FROM out", |rows| rows.len() == 1);
    assert_eq!(rows, [json!({"mean": 3.0, "rows": 3})]);
    assert_eq!(trigger(&server)["lane"], "process");
}
