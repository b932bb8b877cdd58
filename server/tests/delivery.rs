//! At-least-once delivery of write events against a real server: over `kill -9`, beyond the memory bound, and what is not delivered.

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Server, Start};
use serde_json::{Value, json};

/// Appends what it sees to a file, slowly: a line per row, `n id`.
const SLOW: &str = r#"
import os
import time

def process_writes(influxdb3_local, table_batches, args=None):
    while os.path.exists(args["file"] + ".wait"):
        time.sleep(0.01)
    for batch in table_batches:
        for row in batch["rows"]:
            time.sleep(float(args["pause"]))
            with open(args["file"], "a") as out:
                out.write(f"{row['n']} {batch.event_id}\n")
"#;

struct Seen {
    n: u64,
    id: String,
}

fn seen(file: &Path) -> Vec<Seen> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = |line: &str| {
        let (n, id) = line.split_once(' ')?;
        Some(Seen { n: n.parse().ok()?, id: id.to_owned() })
    };
    text.lines().filter_map(line).collect()
}

fn until(what: &str, right: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !right() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server with the plugin and a database, and the file that the plugin writes.
fn serve(root: &Path) -> (Start, Server, PathBuf) {
    let start = Start::new(root);
    start.plugin("slow.py", SLOW);
    let server = start.run();
    server.create_database("main");
    (start, server, root.join("seen"))
}

/// `enable` or `disable`.
fn set(server: &Server, what: &str) {
    let path = format!("/api/v3/configure/processing_engine_trigger/{what}?db=main&trigger_name=t");
    assert_eq!(server.post(&path, "").status, 200);
}

fn trigger(server: &Server, file: &Path, pause: &str, settings: Value) {
    let arguments = json!({"file": file.to_str().unwrap(), "pause": pause});
    server.create_trigger_with("main", "t", "slow.py", "table:in", settings, arguments);
}

fn write(server: &Server, n: u64) {
    assert_eq!(server.write("main", &format!("in n={n}i {}", n + 1)).status, 204);
}

/// All of `0..count` were seen, each first after the one before; an id belongs to one event for ever.
fn assert_in_order(seen: &[Seen], count: u64) {
    let mut first = Vec::new();
    let mut ids = std::collections::HashMap::new();
    for Seen { n, id } in seen {
        if !first.contains(n) {
            first.push(*n);
        }
        assert_eq!(ids.entry(id.clone()).or_insert(*n), n, "{id} is two events");
    }
    assert_eq!(first, (0..count).collect::<Vec<_>>());
}

#[test]
fn every_acknowledged_row_is_seen_over_kills_and_only_the_edge_twice() {
    let root = tempfile::tempdir().unwrap();
    let (start, mut server, file) = serve(root.path());
    trigger(&server, &file, "0.005", json!({"execution": "deferred"}));
    let mut n = 0;
    for round in 0..6 {
        for _ in 0..60 {
            write(&server, n);
            n += 1;
        }
        // At the start, in the middle, and after the last one.
        let wanted = [0, n / 3, n][round % 3];
        until("some are seen", || seen(&file).len() as u64 >= wanted);
        server.kill();
        server = start.run();
    }
    until("all are seen", || seen(&file).last().is_some_and(|last| last.n + 1 == n));
    assert_in_order(&seen(&file), n);
    // A run of many events that was under way, and what was finished in the last 50 ms.
    let twice = seen(&file).len() as u64 - n;
    assert!(twice <= 6 * 80, "{twice} events were given again");
    assert!(server.terminate(Duration::from_secs(20)));
    let before = seen(&file).len();
    let server = start.run();
    write(&server, n);
    until("the new one is seen", || seen(&file).last().is_some_and(|last| last.n == n));
    assert_eq!(seen(&file).len(), before + 1, "after an orderly stop nothing is given again");
}

#[test]
fn a_trigger_that_lags_gets_its_events_from_the_log_once_and_in_order() {
    let root = tempfile::tempdir().unwrap();
    let (_start, server, file) = serve(root.path());
    let wait = file.with_extension("wait");
    std::fs::write(&wait, "").unwrap();
    trigger(&server, &file, "0.001", json!({"execution": "deferred", "limits": {"queue_size": "2kb"}}));
    for n in 0..1000 {
        write(&server, n);
    }
    std::fs::remove_file(&wait).unwrap();
    until("all are seen", || seen(&file).len() >= 1000);
    let seen = seen(&file);
    assert_eq!(seen.iter().map(|s| s.n).collect::<Vec<_>>(), (0..1000).collect::<Vec<_>>());
    let metrics = server.get("/metrics").body;
    let total = |name: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    assert!(total("saltus_shard_events_left_in_log_total") > 100.0, "the queue was never full");
    assert_eq!(total("saltus_shard_events_read_back_total"), total("saltus_shard_events_left_in_log_total"));
    assert_eq!(total("saltus_trigger_events_dropped_total"), 0.0);
}

#[test]
fn what_is_written_while_a_trigger_is_disabled_is_not_delivered_even_over_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let (start, mut server, file) = serve(root.path());
    write(&server, 100);
    trigger(&server, &file, "0", json!({"execution": "deferred"}));
    write(&server, 0);
    until("the first is seen", || seen(&file).len() == 1);
    set(&server, "disable");
    write(&server, 101);
    server.kill();
    server = start.run();
    write(&server, 102);
    set(&server, "enable");
    write(&server, 1);
    until("the second is seen", || seen(&file).len() >= 2);
    server.kill();
    server = start.run();
    write(&server, 2);
    until("the third is seen", || seen(&file).last().is_some_and(|last| last.n == 2));
    assert_in_order(&seen(&file), 3);
}

#[test]
fn what_a_trigger_had_not_finished_when_it_was_disabled_is_given_up() {
    let root = tempfile::tempdir().unwrap();
    let (start, mut server, file) = serve(root.path());
    trigger(&server, &file, "3", json!({"execution": "deferred"}));
    write(&server, 0);
    server.kill();
    server = start.run();
    // It is being given again, and takes its time.
    set(&server, "disable");
    server.kill();
    server = start.run();
    set(&server, "enable");
    write(&server, 1);
    server.kill();
    server = start.run();
    until("the one that was written after it was enabled", || !seen(&file).is_empty());
    assert_eq!(seen(&file)[0].n, 1);
    drop(server);
}

/// Writes each row to twelve other tables.
const SPREADS: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        for row in batch["rows"]:
            for table in range(12):
                line = LineBuilder(f"out{table}").tag("by", args["by"]).int64_field("n", row["n"])
                influxdb3_local.write(line.time_ns(row["time"]))
"#;

/// Appends `table n` of what it sees to a file.
const SEES: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    with open(args["file"], "a") as out:
        for batch in table_batches:
            for row in batch["rows"]:
                out.write(f"{batch['table_name']} {row['n']}\n")
"#;

/// A set of triggers came into force shard by shard. The first shard went on with its backlog at once, and what its plugins
/// wrote was no event yet where it was written, or went to a home that did not know its trigger: it was lost, and the cursor
/// passed it.
#[test]
fn what_plugins_write_while_the_server_starts_is_seen_by_every_trigger() {
    let root = tempfile::tempdir().unwrap();
    let (start, mut server, file) = serve(root.path());
    start.plugin("spreads.py", SPREADS);
    start.plugin("sees.py", SEES);
    let create = |name: String, plugin: &str, spec: &str, arguments: Value| {
        server.create_trigger_with("main", &name, plugin, spec, json!({"execution": "deferred"}), arguments);
    };
    let of = |number: usize| file.with_extension(number.to_string());
    for number in 0..6 {
        create(format!("s{number}"), "spreads.py", &format!("table:in{number}"), json!({"by": format!("b{number}")}));
        create(format!("all{number}"), "sees.py", "all_tables", json!({"file": of(number).to_str().unwrap()}));
    }
    let mut n = 0;
    for round in 0..5 {
        for number in 0..6 {
            assert_eq!(server.write("main", &format!("in{number} n={n}i {}", n + 1)).status, 204);
            n += 1;
        }
        // Most of it is not run yet, so that the next life begins with it.
        server.kill();
        server = start.clone().shards(3 + round).run();
    }
    for number in 0..6 {
        // Each row, and twelve that were made of it.
        let seen = || {
            let text = std::fs::read_to_string(of(number)).unwrap_or_default();
            text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>().len()
        };
        until(&format!("all{number} has seen all of it"), || seen() == 13 * n);
    }
}

#[test]
fn what_was_written_before_a_change_of_the_specification_is_given_after_a_crash_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let (start, server, file) = serve(root.path());
    drop(server);
    let start = start.shards(4);
    let mut server = start.run();
    let wait = file.with_extension("wait");
    let arguments = json!({"file": file.to_str().unwrap(), "pause": "0"});
    server.create_trigger_with("main", "t", "slow.py", "table:t0", json!({"execution": "deferred"}), arguments);
    let mut expected = std::collections::BTreeSet::new();
    let mut n = 0;
    // The tables have their owners on different shards; at the end the trigger is on all of them.
    let specs = ["table:t1", "table:t2", "table:t3", "table:t4", "all_tables", "table:t5"];
    for (round, spec) in specs.into_iter().enumerate() {
        std::fs::write(&wait, "").unwrap();
        let before = if round == 5 { 0 } else { round };
        let write = |table: usize, n: u64| {
            assert_eq!(server.write("main", &format!("t{table} n={n}i {}", n + 1)).status, 204);
        };
        for _ in 0..4 {
            write(before, n);
            expected.insert(n);
            n += 1;
        }
        // Not the trigger's, by the old specification.
        if round != 5 {
            write(9, n);
            n += 1;
        }
        let change = json!({"db": "main", "trigger_name": "t", "trigger_specification": spec});
        assert_eq!(server.put_json("/api/v3/configure/processing_engine_trigger", &change).status, 200);
        for _ in 0..2 {
            write(round.min(4) + 1, n);
            expected.insert(n);
            n += 1;
        }
        // Not the trigger's any more, unless it is on all tables.
        write(before, n);
        if spec == "all_tables" {
            expected.insert(n);
        }
        n += 1;
        server.kill();
        std::fs::remove_file(&wait).unwrap();
        server = start.run();
        until(&format!("all are seen after {spec}"), || {
            seen(&file).iter().map(|seen| seen.n).collect::<std::collections::BTreeSet<_>>().len() >= expected.len()
        });
    }
    let all: std::collections::BTreeSet<_> = seen(&file).iter().map(|seen| seen.n).collect();
    assert_eq!(all, expected);
}

/// Says that it was entered, and does not end by itself while a file is there.
const STUBBORN: &str = r#"
import os
import time

def process_writes(influxdb3_local, table_batches, args=None):
    with open(args["file"] + ".entered", "a") as out:
        out.write("x")
    while os.path.exists(args["file"] + ".wait"):
        time.sleep(0.01)
    if os.path.exists(args["file"] + ".fail"):
        raise ValueError("not today")
    for batch in table_batches:
        with open(args["file"], "a") as out:
            out.writelines(f"{row['n']} {batch.event_id}\n" for row in batch["rows"])
"#;

/// A server that gives runs four seconds at its end and itself one after that, and a trigger that is disabled by a failure.
fn serve_stubborn(root: &Path, settings: Value) -> (Start, Server, PathBuf) {
    let mut start = Start::new(root);
    start.plugin("slow.py", STUBBORN);
    start.extra.extend(["--shutdown-timeout".into(), "5s".into()]);
    let server = start.run();
    server.create_database("main");
    let file = root.join("seen");
    trigger(&server, &file, "0", settings);
    (start, server, file)
}

#[test]
fn a_run_that_is_cut_off_by_a_stop_is_made_again_and_disables_nothing() {
    for settings in [
        json!({"execution": "deferred", "error_behavior": "disable"}),
        json!({"isolation": "process", "error_behavior": "disable"}),
        json!({"execution": "deferred", "error_behavior": "log"}),
    ] {
        let root = tempfile::tempdir().unwrap();
        let (start, mut server, file) = serve_stubborn(root.path(), settings.clone());
        let (wait, entered) = (file.with_extension("wait"), file.with_extension("entered"));
        std::fs::write(&wait, "").unwrap();
        write(&server, 0);
        until("it is entered", || entered.exists());
        assert!(server.terminate(Duration::from_secs(20)), "{settings}: with the run interrupted all is in order");
        assert!(seen(&file).is_empty());
        std::fs::remove_file(&wait).unwrap();
        let server = start.run();
        until("the event is given again", || seen(&file).len() == 1);
        let sql = "SELECT disabled, error_count FROM system.processing_engine_triggers";
        assert_eq!(server.sql("main", sql), [json!({"disabled": false, "error_count": 0})], "{settings}");
        let sql =
            "SELECT count(*) AS n FROM system.processing_engine_logs WHERE log_text LIKE '%because the server stops%'";
        assert_eq!(server.sql("main", sql), [json!({"n": 1})], "{settings}");
        assert_eq!(server.sql("main", "SELECT count(*) AS n FROM system.dead_letters"), [json!({"n": 0})]);
    }
}

#[test]
fn an_event_that_waits_for_its_next_attempt_at_a_stop_gets_it_after_the_start() {
    let root = tempfile::tempdir().unwrap();
    let (start, mut server, file) =
        serve_stubborn(root.path(), json!({"execution": "deferred", "error_behavior": "retry"}));
    let fail = file.with_extension("fail");
    std::fs::write(&fail, "").unwrap();
    write(&server, 0);
    let sql = "SELECT error_count FROM system.processing_engine_triggers";
    server.sql_until("main", sql, |rows| rows[0]["error_count"].as_u64() >= Some(1));
    assert!(server.terminate(Duration::from_secs(20)));
    std::fs::remove_file(&fail).unwrap();
    let _server = start.run();
    until("the event is given again", || seen(&file).len() == 1);
}
