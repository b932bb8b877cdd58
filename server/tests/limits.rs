//! Limits of triggers against a real server: memory in the interpreter lanes, and the share of a core.

mod common;

use common::{Server, Start};
use serde_json::{Value, json};

const HUNGRY: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    kept = bytearray(20_000_000)
    while True:
        kept = [kept, bytearray(20_000_000)]
"#;

const BUSY: &str = r#"
import time

def process_writes(influxdb3_local, table_batches, args=None):
    until = time.thread_time() + 0.1
    while time.thread_time() < until:
        pass
    for batch in table_batches:
        for row in batch["rows"]:
            influxdb3_local.write(LineBuilder("seen").int64_field("n", row["n"]).time_ns(row["time"]))
"#;

fn total(server: &Server, name: &str) -> f64 {
    let metrics = server.get("/metrics").body;
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn who_wants_more_memory_than_its_trigger_may_hold_is_told_so_and_the_server_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    start.plugin("hungry.py", HUNGRY);
    // To be the first to touch twenty megabytes takes longer than an inline run has.
    start.extra.extend(["--inline-deadline".into(), "300ms".into()]);
    let server = start.run();
    server.create_database("main");
    for lane in ["inline", "deferred"] {
        let settings = json!({"execution": lane, "limits": {"memory": "32mb"}});
        server.create_trigger_with("main", lane, "hungry.py", &format!("table:{lane}"), settings, Value::Null);
        assert_eq!(server.write("main", &format!("{lane} n=1i 1")).status, 204);
        let errors = format!(
            "SELECT log_text FROM system.processing_engine_logs WHERE trigger_name = '{lane}' AND log_level = 'ERROR'"
        );
        let rows = server.sql_until("main", &errors, |rows| !rows.is_empty());
        let text = rows[0]["log_text"].as_str().unwrap();
        assert!(text.contains("MemoryError: the trigger may hold 33554432 bytes of memory (limits: memory)"), "{text}");
        let runs = format!(
            "SELECT memory_peak_bytes AS peak FROM system.trigger_runs WHERE trigger_name = '{lane}' AND outcome = 'error'"
        );
        let peak = server.sql("main", &runs)[0]["peak"].as_u64().unwrap();
        assert!((20_000_000..=33_554_432).contains(&peak), "{peak}");
        let held =
            format!("SELECT memory_bytes AS held FROM system.processing_engine_triggers WHERE trigger_name = '{lane}'");
        assert!(server.sql("main", &held)[0]["held"].as_u64().unwrap() < 1_000_000);
    }
    assert_eq!(total(&server, "saltus_plugin_memory_limits_met_total"), 2.0);
    assert!(total(&server, "saltus_trigger_memory_peak_bytes{") > 40_000_000.0);
}

#[test]
fn a_trigger_that_has_used_its_share_of_a_core_waits_and_loses_nothing() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("busy.py", BUSY);
    let server = start.run();
    server.create_database("main");
    for bad in ["0%", "101%", "25", "half"] {
        let reply = server.post_json(
            "/api/v3/configure/processing_engine_trigger",
            &json!({
                "db": "main", "plugin_filename": "busy.py", "trigger_name": "t", "trigger_specification": "table:in",
                "trigger_settings": {"limits": {"cpu_share": bad}}, "disabled": false,
            }),
        );
        assert_eq!(reply.status, 400, "{bad}: {}", reply.body);
        assert!(reply.body.contains("limits.cpu_share") && reply.body.contains("1% to 100%"), "{}", reply.body);
    }
    let settings = json!({"execution": "deferred", "limits": {"cpu_share": "20%", "inline_budget": "1ms"}});
    server.create_trigger_with("main", "t", "busy.py", "table:in", settings, Value::Null);
    // A fifth of a second is saved up; each run takes half of that.
    for n in 0..8 {
        assert_eq!(server.write("main", &format!("in n={n}i {}", n + 1)).status, 204);
        let seen = format!("SELECT n FROM seen WHERE n = {n}");
        server.sql_until("main", &seen, |rows| !rows.is_empty());
    }
    assert!(total(&server, "saltus_trigger_cpu_waits_total") >= 2.0);
    let said = "SELECT log_text FROM system.processing_engine_logs WHERE log_text LIKE '%more than 20% of a core (limits: cpu_share)%'";
    assert_eq!(server.sql("main", said).len(), 1, "once a minute");
    let limits = "SELECT limits FROM system.processing_engine_triggers";
    assert_eq!(server.sql("main", limits)[0]["limits"], r#"{"cpu_share":"20%","inline_budget":"1000us"}"#);
}

/// A thread's name, the CPUs that it may use, and its nice value.
fn threads(pid: u32) -> Vec<(String, String, i64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter_map(Result::ok);
    tasks
        .filter_map(|task| {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).ok();
            let status = read("status")?;
            let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
            let stat = read("stat")?;
            let nice = stat.rsplit_once(')')?.1.split_whitespace().nth(16)?.parse().ok()?;
            Some((read("comm")?.trim().to_owned(), cpus, nice))
        })
        .collect()
}

#[test]
fn plugin_workers_and_queries_keep_off_the_cores_of_shards_or_come_after_them() {
    let root = tempfile::tempdir().unwrap();
    let server = Start::new(root.path()).shards(1).run();
    let threads = threads(server.pid());
    let named = |start: &str| threads.iter().filter(|(name, ..)| name.starts_with(start)).collect::<Vec<_>>();
    let (shard, workers, queries) = (named("saltus-shard"), named("saltus-py-0s-"), named("saltus-query-"));
    assert!(!shard.is_empty() && workers.len() >= 3 && !queries.is_empty(), "{threads:?}");
    assert!(shard[0].1.parse::<usize>().is_ok(), "the shard is pinned: {:?}", shard[0]);
    for (name, cpus, nice) in workers.iter().chain(&queries) {
        let alone = std::thread::available_parallelism().unwrap().get() == 1;
        assert!(if alone { *nice >= 10 } else { *cpus != shard[0].1 }, "{name} on {cpus} at {nice}: {threads:?}");
    }
}
