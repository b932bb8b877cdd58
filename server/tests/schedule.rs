//! Schedule triggers in a real server: exact times in every lane, missed times, and what outlives a restart.

mod common;

use std::time::Duration;

use common::{Server, Start};
use serde_json::{Value, json};

/// Writes when it was called and for which time, and takes as long as it is told.
const TICK: &str = r#"
import time

def process_scheduled_call(influxdb3_local, call_time, args=None):
    args = args or {}
    event = influxdb3_local.event
    line = LineBuilder(args.get("to", "ticks")).int64_field("at", time.time_ns())
    line.int64_field("scheduled", event.scheduled_time_ns).int64_field("missed", event.missed)
    line.string_field("call_time", call_time.isoformat()).string_field("text", event.scheduled_time)
    influxdb3_local.write(line.time_ns(time.time_ns()))
    if "takes" in args:
        time.sleep(float(args["takes"]))
"#;

/// As little as can be, so that it is cheap on any machine.
const QUICK: &str = r#"
import time

class Line:
    def __init__(self, text):
        self.text = text

    def build(self):
        return self.text

def process_scheduled_call(influxdb3_local, call_time, args=None):
    event, now = influxdb3_local.event, time.time_ns()
    line = f"auto at={now}i,scheduled={event.scheduled_time_ns}i,missed={event.missed}i {now}"
    influxdb3_local.write(Line(line))
"#;

const SECOND: i64 = 1_000_000_000;

struct Tick {
    at: i64,
    scheduled: i64,
    missed: i64,
}

fn ticks(server: &Server, table: &str, at_least: usize) -> Vec<Tick> {
    let sql = format!("SELECT at, scheduled, missed FROM {table} ORDER BY at");
    let rows = server.sql_until("main", &sql, |rows| rows.len() >= at_least);
    let number = |row: &Value, name: &str| row[name].as_i64().unwrap();
    rows.iter()
        .map(|row| Tick { at: number(row, "at"), scheduled: number(row, "scheduled"), missed: number(row, "missed") })
        .collect()
}

fn start() -> (tempfile::TempDir, Start) {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("tick.py", TICK);
    (root, start)
}

fn settings(more: Value) -> Value {
    let mut settings = json!({"run_async": false, "error_behavior": "log"});
    for (name, value) in more.as_object().unwrap() {
        settings[name] = value.clone();
    }
    settings
}

fn trigger(server: &Server, name: &str) -> Value {
    let sql = "SELECT trigger_name, CAST(last_scheduled_time AS BIGINT) AS last, \
               CAST(next_scheduled_time AS BIGINT) AS next, missed_runs, time_zone, missed_count, disabled, disabled_reason \
               FROM system.processing_engine_triggers";
    let rows = server.sql("main", sql);
    rows.into_iter().find(|row| row["trigger_name"] == name).unwrap_or_else(|| panic!("no trigger {name}"))
}

/// Often, for the one that is to show that it is cheap.
fn period(name: &str) -> i64 {
    if name == "auto" { SECOND / 200 } else { SECOND / 10 }
}

#[test]
fn calls_come_at_the_multiples_of_their_period_in_every_lane() {
    let (_root, start) = start();
    start.plugin("quick.py", QUICK);
    let server = start.run();
    server.create_database("main");
    for (name, lane) in [
        ("inline", json!({"execution": "inline"})),
        ("deferred", json!({"execution": "deferred"})),
        ("process", json!({"isolation": "process"})),
        // Nothing is said here of how fast the machine is.
        ("auto", json!({"execution": "auto", "limits": {"inline_budget": "8ms"}})),
    ] {
        let to = json!({"to": name});
        // What may sleep is never run on the shard itself, unless it is told to.
        let file = if name == "auto" { "quick.py" } else { "tick.py" };
        let spec = format!("every:{}ms", period(name) / 1_000_000);
        server.create_trigger_with("main", name, file, &spec, settings(lane), to);
    }
    for name in ["inline", "deferred", "process", "auto"] {
        let ticks = ticks(&server, name, 10);
        for tick in &ticks {
            assert_eq!(tick.scheduled % period(name), 0, "{name}");
            assert!(tick.at >= tick.scheduled, "{name}: before its time");
        }
        // One call for a time, and what was passed over in between is told.
        for pair in ticks.windows(2) {
            assert_eq!(pair[1].scheduled - pair[0].scheduled, (pair[1].missed + 1) * period(name), "{name}");
        }
    }
    // A plugin that can do no harm moves to the shard itself.
    server.sql_until(
        "main",
        "SELECT lane FROM system.processing_engine_triggers WHERE trigger_name = 'auto'",
        |rows| rows[0]["lane"] == "inline",
    );
    let stages = "SELECT count FROM system.trigger_latency WHERE trigger_name = 'inline' AND stage = 'schedule_delay'";
    assert!(server.sql("main", stages)[0]["count"].as_i64().unwrap() >= 9);
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("saltus_trigger_schedule_delay_seconds_count{db=\"main\",trigger=\"inline\"}"));
    let logs = "SELECT log_text FROM system.processing_engine_logs WHERE trigger_name = 'inline' ORDER BY time LIMIT 1";
    let first = server.sql("main", logs)[0]["log_text"].as_str().unwrap().to_owned();
    assert!(first.starts_with("starting execution with scheduled time 20") && first.ends_with(" UTC"), "{first}");
}

#[test]
fn a_run_longer_than_the_period_is_followed_by_what_was_asked() {
    let (_root, start) = start();
    let server = start.run();
    server.create_database("main");
    for policy in ["skip", "once", "all"] {
        let settings = settings(json!({"execution": "deferred", "missed_runs": policy}));
        let args = json!({"to": policy, "takes": "0.45"});
        server.create_trigger_with("main", policy, "tick.py", "every:200ms", settings, args);
    }
    let period = SECOND / 5;
    let skip = ticks(&server, "skip", 4);
    for pair in skip.windows(2) {
        assert_eq!(pair[1].scheduled - pair[0].scheduled, (pair[1].missed + 1) * period);
        assert!(pair[1].missed >= 2, "a run of 450 ms makes two times pass");
        assert!(pair[1].at - pair[1].scheduled < period, "it waits for a time of the schedule");
    }
    let once = ticks(&server, "once", 4);
    for pair in once.windows(2) {
        assert_eq!(pair[1].scheduled - pair[0].scheduled, (pair[1].missed + 1) * period);
        assert!(pair[1].missed >= 1);
    }
    let all = ticks(&server, "all", 4);
    for pair in all.windows(2) {
        assert_eq!((pair[1].scheduled - pair[0].scheduled, pair[1].missed), (period, 0));
    }
    assert!(trigger(&server, "skip")["missed_count"].as_i64().unwrap() >= 6);
    assert_eq!(trigger(&server, "all")["missed_count"], 0);
}

#[test]
fn overlapping_runs_are_made_only_if_they_are_allowed() {
    let (_root, start) = start();
    let server = start.run();
    server.create_database("main");
    let settings = settings(json!({"execution": "deferred", "run_async": true}));
    let args = json!({"to": "ticks", "takes": "0.5"});
    server.create_trigger_with("main", "t", "tick.py", "every:200ms", settings, args);
    let ticks = ticks(&server, "ticks", 6);
    for pair in ticks.windows(2) {
        assert_eq!((pair[1].scheduled - pair[0].scheduled, pair[1].missed), (SECOND / 5, 0));
    }
}

#[test]
fn times_that_pass_while_the_server_is_down_are_missed_and_made_up_for_as_asked() {
    let (_root, start) = start();
    let mut server = start.run();
    server.create_database("main");
    for policy in ["skip", "once", "all"] {
        let settings = settings(json!({"missed_runs": policy, "time_zone": "Asia/Tokyo"}));
        server.create_trigger_with("main", policy, "tick.py", "cron:* * * * * *", settings, json!({"to": policy}));
    }
    for policy in ["skip", "once", "all"] {
        ticks(&server, policy, 1);
    }
    assert!(server.terminate(Duration::from_secs(20)));
    let last = |server: &Server, policy: &str| trigger(server, policy)["last"].as_i64().unwrap();
    std::thread::sleep(Duration::from_millis(3200));
    let server = start.run();
    for policy in ["skip", "once", "all"] {
        let before = last(&server, policy);
        assert!(before > 0 && trigger(&server, policy)["next"].as_i64().unwrap() > before);
        server.sql_until("main", &format!("SELECT sum(missed) AS missed, count(*) AS n FROM {policy}"), |rows| {
            rows[0]["n"].as_i64().unwrap() >= 5
        });
        let ticks = ticks(&server, policy, 5);
        // The first call behind the gap.
        let gap = ticks.windows(2).find(|pair| pair[1].at - pair[0].at > 2 * SECOND).expect("the server was down");
        let (between, missed) = ((gap[1].scheduled - gap[0].scheduled) / SECOND, gap[1].missed);
        let late = gap[1].at - gap[1].scheduled;
        match policy {
            "skip" => assert!(between >= 3 && missed == between - 1 && late < SECOND, "{between} {missed} {late}"),
            "once" => assert!(between >= 3 && missed == between - 1, "{between} {missed}"),
            _ => assert!(between == 1 && missed == 0 && late > SECOND, "{between} {missed} {late}"),
        }
        // Each time is run once.
        assert!(ticks.windows(2).all(|pair| pair[0].scheduled < pair[1].scheduled));
    }
    let text = server.sql("main", "SELECT call_time, text, scheduled FROM skip ORDER BY at LIMIT 1");
    let (call_time, exact) = (text[0]["call_time"].as_str().unwrap(), text[0]["text"].as_str().unwrap());
    assert_eq!(exact, call_time, "the trigger's own time zone");
    assert!(exact.ends_with("+09:00"), "{exact}");
}

#[test]
fn a_crash_gives_a_time_again_that_was_not_finished() {
    let (_root, start) = start();
    let mut server = start.run();
    server.create_database("main");
    // It is under way when the process dies.
    let settings = settings(json!({"missed_runs": "once", "execution": "deferred"}));
    server.create_trigger_with("main", "t", "tick.py", "every:2s", settings.clone(), json!({"takes": "30"}));
    let started = "SELECT log_text FROM system.processing_engine_logs WHERE log_text LIKE 'starting%'";
    server.sql_until("main", started, |rows| rows.len() == 1);
    server.kill();
    start.plugin("tick.py", &TICK.replace("if \"takes\" in args", "if False"));
    let server = start.run();
    let ticks = ticks(&server, "ticks", 2);
    assert!(ticks[0].at - ticks[0].scheduled >= 0 && ticks[1].scheduled > ticks[0].scheduled);
}

/// Fails until it was called so often.
const FAILS: &str = r#"
def process_scheduled_call(influxdb3_local, call_time, args=None):
    event = influxdb3_local.event
    if event.attempt < int(args["fails"]):
        raise ValueError(f"attempt {event.attempt}")
    line = LineBuilder("done").int64_field("attempt", event.attempt).int64_field("scheduled", event.scheduled_time_ns)
    influxdb3_local.write(line.time_ns(event.scheduled_time_ns))
"#;

#[test]
fn failures_are_logged_tried_again_or_disable_the_trigger() {
    let (_root, start) = start();
    start.plugin("fails.py", FAILS);
    let server = start.run();
    server.create_database("main");
    for (behavior, fails) in [("log", "1"), ("retry", "2"), ("disable", "1")] {
        let settings = json!({"run_async": false, "error_behavior": behavior});
        server.create_trigger_with("main", behavior, "fails.py", "every:1s", settings, json!({"fails": fails}));
    }
    let done = server.sql_until("main", "SELECT attempt, scheduled FROM done ORDER BY time", |rows| rows.len() >= 2);
    assert!(done.iter().all(|row| row["attempt"] == 2 && row["scheduled"].as_i64().unwrap() % SECOND == 0));
    server.sql_until(
        "main",
        "SELECT disabled, disabled_reason FROM system.processing_engine_triggers WHERE trigger_name = 'disable'",
        |rows| rows[0]["disabled"] == true && rows[0]["disabled_reason"] == "ValueError: attempt 0",
    );
    let errors = "SELECT log_text FROM system.processing_engine_logs WHERE trigger_name = 'log' AND log_level = 'ERROR' \
                  ORDER BY time";
    let errors = server.sql_until("main", errors, |rows| rows.len() >= 2);
    let text = errors[0]["log_text"].as_str().unwrap();
    assert!(text.starts_with("error executing schedule plugin: ValueError: attempt 0\nTraceback"), "{text}");
    // It goes on with the next time after it is enabled, and has missed nothing.
    let path = "/api/v3/configure/processing_engine_trigger/enable?db=main&trigger_name=disable";
    assert_eq!(server.post(path, "").status, 200);
    let runs = "SELECT log_text FROM system.processing_engine_logs WHERE trigger_name = 'disable' AND log_text LIKE 'starting%'";
    server.sql_until("main", runs, |rows| rows.len() >= 2);
}

#[test]
fn a_period_of_a_millisecond_keeps_its_times() {
    let (_root, start) = start();
    let count = "def process_scheduled_call(influxdb3_local, call_time, args=None):\n    \
                 cache = influxdb3_local.cache\n    event = influxdb3_local.event\n    \
                 runs, missed = cache.get('runs', 0) + 1, cache.get('missed', 0) + event.missed\n    \
                 cache.put('runs', runs)\n    cache.put('missed', missed)\n    \
                 if runs == 1:\n        cache.put('first', event.scheduled_time_ns)\n    \
                 if runs == 2000:\n        span = event.scheduled_time_ns - cache.get('first')\n        \
                 influxdb3_local.info(f'{runs + missed - 1} {span // 1000000} {span % 1000000}')\n";
    start.plugin("count.py", count);
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "t", "count.py", "every:1ms", "inline", Value::Null);
    let sql = "SELECT log_text FROM system.processing_engine_logs WHERE log_level = 'INFO' AND log_text LIKE '% 0'";
    let said = server.sql_until("main", sql, |rows| rows.len() == 1);
    let numbers: Vec<i64> =
        said[0]["log_text"].as_str().unwrap().split(' ').map(|number| number.parse().unwrap()).collect();
    // The first call may have missed some before it, which no span knows.
    assert!((numbers[0] - numbers[1]) < 1000 && numbers[0] >= numbers[1], "{numbers:?}");
}
