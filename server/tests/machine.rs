//! Settings that the kernel has to follow: huge pages, cores, shards that poll.

mod common;

use std::time::Duration;

use common::Start;
use serde_json::{Value, json};

/// Writes the number of each row it sees.
const COPY: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        for row in batch["rows"]:
            influxdb3_local.write(LineBuilder("seen").int64_field("n", row["n"]).time_ns(row["time"]))
"#;

/// A line of `/proc/PID/status`.
fn status_of(pid: u32, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()))
}

#[test]
fn a_shard_that_polls_does_all_that_one_that_sleeps_does_and_stops_as_well() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path()).shards(1);
    start.plugin("copy.py", COPY);
    let cpu = status_of(std::process::id(), "Cpus_allowed_list:").unwrap();
    let first: String = cpu.chars().take_while(char::is_ascii_digit).collect();
    start.extra.extend(["--cpus", &first, "--busy-poll", "all"].map(String::from));
    let mut server = start.run();
    server.create_database("main");
    server.create_trigger("main", "inline", "copy.py", "table:a", "inline", Value::Null);
    server.create_trigger("main", "deferred", "copy.py", "table:b", "deferred", Value::Null);
    for n in 0..50 {
        let table = if n % 2 == 0 { "a" } else { "b" };
        let no_sync = n % 3 == 0;
        let path = format!("/api/v3/write_lp?db=main&no_sync={no_sync}");
        assert_eq!(server.post(&path, &format!("{table} n={n}i {}", n + 1)).status, 204);
    }
    let sql = "SELECT n FROM seen ORDER BY n";
    let seen = server.sql_until("main", sql, |rows| rows.len() == 50);
    assert_eq!(seen, (0..50).map(|n| json!({"n": n})).collect::<Vec<_>>());
    assert!(server.terminate(Duration::from_secs(20)));
}

#[test]
fn a_server_keeps_off_huge_pages_and_to_the_cores_it_was_given() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path()).shards(1);
    start.extra.extend(["--huge-pages", "off"].map(String::from));
    let nodes = std::fs::read_dir("/sys/devices/system/node")
        .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() == "node0")));
    if nodes {
        start.extra.extend(["--numa", "0"].map(String::from));
    }
    let server = start.run();
    // Kernels before 5.0 do not say.
    if let Some(enabled) = status_of(server.pid(), "THP_enabled:") {
        assert_eq!(enabled, "0");
    }
    if nodes {
        let of_node = std::fs::read_to_string("/sys/devices/system/node/node0/cpulist").unwrap();
        let cpus = status_of(server.pid(), "Cpus_allowed_list:").unwrap();
        assert!(!cpus.is_empty());
        // All of them are on this machine, where nothing else restricts this process.
        if status_of(std::process::id(), "Cpus_allowed_list:").as_deref() == Some(of_node.trim()) {
            assert_eq!(cpus, of_node.trim());
        }
    }
    let mut start = Start::new(root.path());
    start.extra.extend(["--numa", "4095"].map(String::from));
    assert!(start.run_refused().contains("NUMA node 4095"));
}
