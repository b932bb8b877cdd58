//! What a trigger did not take: `system.dead_letters`, `saltus replay`, over `kill -9`; and chains and results through the log.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Server, Start};
use serde_json::{Value, json};

/// Fails as long as a file is there; then writes what it has seen.
const BROKEN: &str = r#"
import os, time

def process_writes(influxdb3_local, table_batches, args=None):
    if os.path.exists(args["broken"]):
        raise ValueError("it is broken")
    for batch in table_batches:
        for row in batch["rows"]:
            line = LineBuilder("out").int64_field("n", row["n"]).string_field("id", batch.event_id)
            influxdb3_local.write(line.time_ns(time.time_ns()))
"#;

const LETTERS: &str = "SELECT * FROM system.dead_letters ORDER BY event_time";

fn write(server: &Server, lines: &str) {
    assert_eq!(server.write("main", lines).status, 204);
}

fn numbers(rows: &[Value]) -> Vec<i64> {
    rows.iter().map(|row| row["n"].as_i64().unwrap()).collect()
}

/// The plugin with its trigger on table `a`, broken.
fn broken(start: &Start, root: &Path, error_behavior: &str) -> Server {
    start.plugin("broken.py", BROKEN);
    let server = start.run();
    server.create_database("main");
    let broken = root.join("broken");
    std::fs::write(&broken, "").unwrap();
    let settings = json!({"run_async": false, "error_behavior": error_behavior, "execution": "deferred"});
    server.create_trigger_with("main", "t", "broken.py", "table:a", settings, json!({"broken": broken}));
    server
}

fn replay(server: &Server, body: &Value) -> (u16, String) {
    let reply = server.post_json("/api/v3/configure/dead_letters/replay", body);
    (reply.status, reply.body)
}

/// `saltus replay` as a user calls it; what it says.
fn cli(server: &Server, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_saltus"));
    command.args(["replay", "--host", &server.url, "--database", "main"]);
    let output = command.args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn what_failed_too_often_is_kept_over_a_crash_and_replayed_when_the_cause_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let mut server = broken(&start, root.path(), "retry");
    write(&server, "a,host=x n=1i 10\na n=2i 11");
    let letters = server.sql_until("main", LETTERS, |rows| rows.len() == 1);
    let letter = &letters[0];
    assert_eq!(letter["reason"], "failed");
    assert_eq!(letter["attempts"], 6);
    assert_eq!((&letter["trigger_name"], &letter["tables"], &letter["rows"]), (&json!("t"), &json!("a"), &json!(2)));
    assert_eq!(letter["event"], "a,host=x n=1i 10000000000\na n=2i 11000000000\n");
    assert_eq!(letter["error"], "ValueError: it is broken");
    assert!(letter["traceback"].as_str().unwrap().contains("in process_writes"), "{letter}");
    server.kill();

    let server = start.run();
    let after = server.sql_until("main", LETTERS, |rows| !rows.is_empty());
    assert_eq!(after, letters, "a crash changes nothing of it");
    let id = letter["letter_id"].as_str().unwrap();
    let (status, text) = replay(&server, &json!({"db": "main", "ids": ["9-9-9"]}));
    assert!(status == 404 && text.contains("9-9-9"), "{status} {text}");
    let (status, text) = replay(&server, &json!({"db": "main", "ids": ["seven"]}));
    assert!(status == 400 && text.contains("'seven' is no id"), "{status} {text}");
    let toggle = |what: &str| {
        let path = format!("/api/v3/configure/processing_engine_trigger/{what}?db=main&trigger_name=t");
        assert_eq!(server.post(&path, "").status, 200);
    };
    toggle("disable");
    let (status, text) = replay(&server, &json!({"db": "main"}));
    assert!(status == 409 && text.contains("is disabled: enable it"), "{status} {text}");
    toggle("enable");

    // Still broken: what fails again is a new letter.
    assert_eq!(replay(&server, &json!({"db": "main", "trigger_name": "t"})), (200, r#"{"replayed":1}"#.to_owned()));
    let again = server.sql_until("main", LETTERS, |rows| rows.len() == 1 && rows[0]["letter_id"] != id);
    assert_eq!(again[0]["event_ids"], letter["event_ids"], "of the same event");

    std::fs::remove_file(root.path().join("broken")).unwrap();
    let said = cli(&server, &["--trigger", "t", "--id", again[0]["letter_id"].as_str().unwrap()]);
    assert!(said.starts_with("1 dead letter(s) given to their triggers again"), "{said}");
    let out = "SELECT n, id FROM out ORDER BY time";
    let rows = server.sql_until("main", out, |rows| rows.len() == 2);
    assert_eq!(numbers(&rows), [1, 2]);
    assert_eq!(rows[0]["id"], letter["event_ids"], "under the id of its first delivery");
    server.sql_until("main", LETTERS, <[Value]>::is_empty);
    assert!(cli(&server, &[]).starts_with("There are no such dead letters"));

    let mut server = server;
    server.terminate(std::time::Duration::from_secs(20));
    let server = start.run();
    write(&server, "a n=3i 12");
    let rows = server.sql_until("main", out, |rows| rows.len() == 3);
    assert_eq!(numbers(&rows), [1, 2, 3], "and never again");
    assert_eq!(server.sql("main", LETTERS), [] as [Value; 0]);
}

#[test]
fn what_is_discarded_is_gone_for_good() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let mut server = broken(&start, root.path(), "disable");
    write(&server, "a n=1i 10");
    let letters = server.sql_until("main", LETTERS, |rows| rows.len() == 1);
    assert_eq!((&letters[0]["reason"], &letters[0]["attempts"]), (&json!("disabled"), &json!(1)));
    let said = cli(&server, &["--discard", "--yes"]);
    assert!(said.starts_with("1 dead letter(s) discarded"), "{said}");
    server.kill();
    let server = start.run();
    assert_eq!(server.sql("main", LETTERS), [] as [Value; 0]);
}

#[test]
fn what_a_trigger_lags_too_far_behind_is_one_letter_that_can_be_replayed() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    start.extra.extend(["--trigger-queue-size=1kb", "--trigger-lag-size=8kb"].map(str::to_owned));
    let server = broken(&start, root.path(), "retry");
    for n in 1..=200 {
        write(&server, &format!("a n={n}i {n}"));
    }
    let lost = "SELECT * FROM system.dead_letters WHERE reason = 'lost' ORDER BY event_time";
    let letters = server.sql_until("main", lost, |rows| !rows.is_empty());
    assert!(letters[0]["error"].as_str().unwrap().contains("trigger-lag-size"), "{letters:?}");
    assert!(letters[0]["event_ids"].as_str().unwrap().contains(".."), "a range: {letters:?}");
    std::fs::remove_file(root.path().join("broken")).unwrap();
    assert_eq!(replay(&server, &json!({"db": "main"})).0, 200);
    let rows = server.sql_until("main", "SELECT n FROM out ORDER BY n", |rows| rows.len() >= 200);
    assert_eq!(numbers(&rows), (1..=200).collect::<Vec<_>>(), "each once");
    server.sql_until("main", LETTERS, <[Value]>::is_empty);
}

#[test]
fn rows_that_a_run_writes_to_its_own_shard_are_written_once_over_kills() {
    let root = tempfile::tempdir().unwrap();
    // One shard: every table is the trigger's own.
    let start = Start::new(root.path()).shards(1);
    let mut server = broken(&start, root.path(), "retry");
    std::fs::remove_file(root.path().join("broken")).unwrap();
    for life in 0..6_i64 {
        for n in 1..=40 {
            write(&server, &format!("a n={}i {n}", life * 40 + n));
        }
        server.kill();
        server = start.run();
    }
    let sql = "SELECT n FROM out ORDER BY time";
    server.sql_until("main", sql, |rows| rows.iter().any(|row| row["n"] == 240));
    assert_eq!(numbers(&server.sql("main", sql)), (1..=240).collect::<Vec<_>>(), "each once, in order");
}

/// Writes every row again, one step further.
const ECHO: &str = r#"
import time

def process_writes(influxdb3_local, table_batches, args=None):
    time.sleep(0.005)
    for batch in table_batches:
        for row in batch["rows"]:
            line = LineBuilder("a").tag("n", row["n"]).int64_field("hop", row["hop"] + 1)
            influxdb3_local.write(line.time_ns(row["time"] + 1))
"#;

#[test]
fn a_chain_is_cut_even_if_its_events_are_read_from_the_log() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("echo.py", ECHO);
    let server = start.run();
    server.create_database("main");
    let settings = json!({
        "run_async": false, "error_behavior": "log", "execution": "deferred", "limits": {"queue_size": "1b"}
    });
    server.create_trigger_with("main", "t", "echo.py", "table:a", settings, json!({}));
    for n in 0..20 {
        write(&server, &format!("a,n={n} hop=0i {}", n * 1000));
    }
    let count = "SELECT count(*) AS rows, max(hop) AS hops FROM a";
    let rows = server.sql_until("main", count, |rows| rows[0]["rows"].as_i64().unwrap() >= 200);
    // Would there be more, they would come within the time of a few runs.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(server.sql("main", count), rows);
    assert_eq!(rows, [json!({"rows": 200, "hops": 9})], "the client's rows and nine generations");
    let metrics = server.get("/metrics").body;
    let left = metrics.lines().filter(|l| l.starts_with("saltus_shard_events_left_in_log_total"));
    assert!(left.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>() > 0.0, "{metrics}");
}
