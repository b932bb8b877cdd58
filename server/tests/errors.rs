//! What happens to a trigger whose runs fail: `error_behavior` log, retry and disable, in both lanes.

mod common;

use common::{Server, Start};
use serde_json::{Value, json};

/// Fails as often as it is told for each event, then writes what it has seen. Counts in its cache, which outlives a run.
const FAILS: &str = r#"
import time

def process_writes(influxdb3_local, table_batches, args=None):
    rows = [row for batch in table_batches for row in batch["rows"]]
    for row in rows:
        failed = influxdb3_local.cache.get(str(row["n"]), 0)
        if failed < row["fails"]:
            influxdb3_local.cache.put(str(row["n"]), failed + 1)
            raise ValueError(f"no {failed + 1} of {row['n']}")
    for row in rows:
        line = LineBuilder(args["to"]).int64_field("n", row["n"]).int64_field("together", len(rows))
        influxdb3_local.write(line.int64_field("at", time.time_ns()).time_ns(row["time"]))
"#;

fn settings(lane: &str, error_behavior: &str, run_async: bool) -> Value {
    json!({"run_async": run_async, "error_behavior": error_behavior, "execution": lane})
}

fn event(server: &Server, table: &str, n: u32, fails: u32) {
    assert_eq!(server.write("main", &format!("{table} n={n}i,fails={fails}i {n}")).status, 204);
}

fn numbers(rows: &[Value]) -> Vec<i64> {
    rows.iter().map(|row| row["n"].as_i64().unwrap()).collect()
}

fn logged(server: &Server, trigger: &str, level: &str) -> Vec<String> {
    let sql = format!(
        "SELECT log_text FROM system.processing_engine_logs WHERE trigger_name = '{trigger}' AND log_level = '{level}' \
         ORDER BY event_time"
    );
    server.sql("main", &sql).iter().map(|row| row["log_text"].as_str().unwrap().to_owned()).collect()
}

fn metric(server: &Server, name: &str, trigger: &str) -> f64 {
    let text = server.get("/metrics").body;
    let line = text.lines().find(|l| l.starts_with(name) && l.contains(&format!("trigger=\"{trigger}\"")));
    line.and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no {name} of {trigger} in\n{text}"))
}

#[test]
fn a_failed_event_is_tried_again_before_those_behind_it() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("fails.py", FAILS);
    let server = start.run();
    server.create_database("main");
    for lane in ["inline", "deferred"] {
        let (table, out) = (format!("in_{lane}"), format!("out_{lane}"));
        let to = json!({"to": out});
        server.create_trigger_with(
            "main",
            lane,
            "fails.py",
            &format!("table:{table}"),
            settings(lane, "retry", false),
            to,
        );
        // Compiled and imported by then: events would gather meanwhile.
        event(&server, &table, 0, 0);
        let sql = format!("SELECT n, together FROM {out} ORDER BY at");
        server.sql_until("main", &sql, |rows| rows.len() == 1);
        event(&server, &table, 1, 2);
        for n in 2..=4 {
            event(&server, &table, n, 0);
        }
        let rows = server.sql_until("main", &sql, |rows| rows.len() == 5);
        assert_eq!(numbers(&rows)[1], 1, "the failed event comes first: {rows:?}");
        assert_eq!(rows[1]["together"], 1, "and alone, as it was");
        let warnings = logged(&server, lane, "WARN");
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[1].starts_with("attempt 2 of 6 failed; the next one is in "), "{warnings:?}");
        let errors = logged(&server, lane, "ERROR");
        assert!(errors.len() == 2 && errors[0].contains("no 1 of 1") && errors[0].contains("Traceback"), "{errors:?}");
        assert_eq!(metric(&server, "saltus_trigger_retries_total", lane), 2.0);
        assert_eq!(metric(&server, "saltus_trigger_events_failed_total", lane), 0.0);
    }
}

#[test]
fn an_event_that_fails_too_often_is_a_dead_letter_and_the_next_one_is_run() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("fails.py", FAILS);
    let server = start.run();
    server.create_database("main");
    server.create_trigger_with(
        "main",
        "t",
        "fails.py",
        "table:a",
        settings("deferred", "retry", false),
        json!({"to": "out"}),
    );
    event(&server, "a", 1, 100);
    event(&server, "a", 2, 0);
    let rows = server.sql_until("main", "SELECT n FROM out", |rows| !rows.is_empty());
    assert_eq!(numbers(&rows), [2]);
    let errors = logged(&server, "t", "ERROR");
    assert_eq!(errors.len(), 7, "six attempts and a last word: {errors:?}");
    assert!(errors[6].starts_with("the event is a dead letter after 6 attempts (1 rows)"), "{}", errors[6]);
    assert_eq!(metric(&server, "saltus_trigger_retries_total", "t"), 5.0);
    assert_eq!(metric(&server, "saltus_trigger_events_failed_total", "t"), 1.0);
    let stored = server.sql("main", "SELECT n FROM a ORDER BY n");
    assert_eq!(numbers(&stored), [1, 2], "the rows themselves are where they belong");
}

#[test]
fn an_overlapping_trigger_goes_on_while_a_failed_event_pauses() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("fails.py", FAILS);
    let server = start.run();
    server.create_database("main");
    server.create_trigger_with(
        "main",
        "t",
        "fails.py",
        "table:a",
        settings("deferred", "retry", true),
        json!({"to": "out"}),
    );
    event(&server, "a", 1, 5);
    server.sql_until("main", "SELECT log_text FROM system.processing_engine_logs WHERE log_level = 'WARN'", |rows| {
        rows.len() == 5
    });
    // It pauses for 800 ms at least; this one overtakes it.
    event(&server, "a", 2, 0);
    let rows = server.sql_until("main", "SELECT n FROM out ORDER BY at", |rows| rows.len() == 2);
    assert_eq!(numbers(&rows), [2, 1]);
}

#[test]
fn results_that_cannot_be_written_are_a_failure_of_the_run() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("fails.py", FAILS);
    let server = start.run();
    server.create_database("main");
    assert_eq!(server.write("main", "out n=\"text\" 1").status, 204, "so that an integer does not fit");
    server.create_trigger_with(
        "main",
        "t",
        "fails.py",
        "table:a",
        settings("deferred", "disable", false),
        json!({"to": "out"}),
    );
    event(&server, "a", 1, 0);
    let sql = "SELECT disabled_reason FROM system.processing_engine_triggers WHERE disabled";
    let rows = server.sql_until("main", sql, |rows| rows.len() == 1);
    let reason = rows[0]["disabled_reason"].as_str().unwrap();
    assert!(reason.contains("error writing back lines to main"), "{reason}");
}

#[test]
fn a_trigger_that_failed_stays_disabled_with_its_reason_until_it_is_enabled() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("fails.py", FAILS);
    let mut server = start.run();
    server.create_database("main");
    for lane in ["inline", "deferred"] {
        let to = json!({"to": format!("out_{lane}")});
        let table = format!("table:in_{lane}");
        server.create_trigger_with("main", lane, "fails.py", &table, settings(lane, "disable", false), to);
        event(&server, &format!("in_{lane}"), 1, 1);
    }
    let sql = "SELECT trigger_name, disabled_reason FROM system.processing_engine_triggers WHERE disabled ORDER BY trigger_name";
    let both = |rows: &[Value]| rows.len() == 2;
    let before = server.sql_until("main", sql, both);
    assert!(before.iter().all(|row| row["disabled_reason"] == "ValueError: no 1 of 1"), "{before:?}");
    event(&server, "in_inline", 2, 0);
    event(&server, "in_deferred", 2, 0);

    assert!(server.terminate(std::time::Duration::from_secs(20)), "{}", server.log_text());
    let server = start.run();
    assert_eq!(server.sql("main", sql), before, "a restart changes nothing");
    for lane in ["inline", "deferred"] {
        let path = format!("/api/v3/configure/processing_engine_trigger/enable?db=main&trigger_name={lane}");
        assert_eq!(server.post(&path, "").status, 200);
        event(&server, &format!("in_{lane}"), 3, 0);
        let rows = server.sql_until("main", &format!("SELECT n FROM out_{lane}"), |rows| !rows.is_empty());
        assert_eq!(numbers(&rows), [3], "what came while it was disabled is not delivered");
    }
    let enabled = server.sql("main", "SELECT disabled, disabled_reason FROM system.processing_engine_triggers");
    assert!(enabled.iter().all(|row| row["disabled"] == false && row["disabled_reason"].is_null()), "{enabled:?}");
}
