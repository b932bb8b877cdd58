//! No acknowledged row is lost: `kill -9` during ingest, again and again, each time compared with a ledger of what was
//! acknowledged. `SALTUS_CRASH_ROUNDS` says how often (50 by default); each round starts with another number of shards. Every
//! fifty rounds begin with an empty data directory: a round reads all rows of those before it.

mod common;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use common::{Server, Start, agent};
use serde_json::Value;

const TABLES: usize = 5;
const WRITERS: usize = 4;
/// Rounds on one data directory.
const ROUNDS_PER_DIRECTORY: usize = 50;

/// What was acknowledged: table to the numbers in it.
type Ledger = Mutex<HashMap<String, Vec<i64>>>;

const TWICE: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        for row in batch["rows"]:
            influxdb3_local.write(LineBuilder("derived_" + batch["table_name"]).int64_field("twice", row["n"] * 2).time_ns(row["time"]))
"#;

fn rounds() -> usize {
    std::env::var("SALTUS_CRASH_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(50)
}

/// Writes until the server is gone; puts in the ledger what was acknowledged as durable.
fn ingest(url: &str, writer: usize, next: &AtomicI64, ledger: &Ledger, stop: &AtomicBool) {
    let agent = agent();
    while !stop.load(Ordering::Relaxed) {
        let first = next.fetch_add(20, Ordering::Relaxed);
        let table = format!("t{}", (first as usize / 20 + writer) % TABLES);
        let body: String =
            (first..first + 20).map(|n| format!("{table},writer=w{writer} n={n}i {}\n", n + 1)).collect();
        match agent.post(url).send(&body) {
            Ok(reply) if reply.status() == 204 => {
                ledger.lock().unwrap().entry(table).or_default().extend(first..first + 20);
            }
            Ok(reply) => assert_eq!(reply.status(), 503, "only back-pressure may refuse a good line"),
            Err(_) => return,
        }
    }
}

/// Every acknowledged row is there; rows that were not acknowledged may be.
fn check(server: &Server, ledger: &Ledger, round: usize) {
    for (table, acknowledged) in ledger.lock().unwrap().iter() {
        let rows = server.sql("main", &format!("SELECT n FROM {table}"));
        let mut found: Vec<i64> = rows.iter().map(|r| r["n"].as_i64().unwrap()).collect();
        found.sort_unstable();
        assert!(found.windows(2).all(|w| w[0] != w[1]), "round {round}: a row of {table} is there twice");
        let lost: Vec<_> = acknowledged.iter().filter(|n| found.binary_search(n).is_err()).collect();
        assert!(
            lost.is_empty(),
            "round {round}: {} of {} acknowledged rows of {table} are lost: {:?}\nserver log:\n{}",
            lost.len(),
            acknowledged.len(),
            &lost[..lost.len().min(10)],
            server.log_text()
        );
    }
}

#[test]
fn no_acknowledged_row_is_lost_by_kill_nine() {
    let mut left = rounds();
    while left > 0 {
        let now = left.min(ROUNDS_PER_DIRECTORY);
        crash(now);
        left -= now;
    }
}

fn crash(rounds: usize) {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("twice.py", TWICE);
    let ledger = Ledger::default();
    let next = AtomicI64::new(0);
    for round in 0..rounds {
        let shards = 1 + round % 3;
        let mut server = start.clone().shards(shards).run();
        if round == 0 {
            server.create_database("main");
            for table in 0..TABLES {
                let lane = if table % 2 == 0 { "inline" } else { "deferred" };
                server.create_trigger(
                    "main",
                    &format!("twice{table}"),
                    "twice.py",
                    &format!("table:t{table}"),
                    lane,
                    Value::Null,
                );
            }
        }
        check(&server, &ledger, round);
        let stop = AtomicBool::new(false);
        let url = format!("{}/api/v3/write_lp?db=main&precision=nanosecond", server.url);
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (url, next, ledger, stop) = (&url, &next, &ledger, &stop);
                scope.spawn(move || ingest(url, writer, next, ledger, stop));
            }
            // Not the same moment of the commit cycle each time.
            std::thread::sleep(Duration::from_micros(60_000 + (round as u64 * 7_919) % 90_000));
            kill(server.pid());
            stop.store(true, Ordering::Relaxed);
        });
        server.kill();
    }
    let server = start.run();
    check(&server, &ledger, rounds);
    let acknowledged: usize = ledger.lock().unwrap().values().map(Vec::len).sum();
    let derived: i64 = (0..TABLES)
        .map(|t| server.sql("main", &format!("SELECT count(*) AS c FROM derived_t{t}"))[0]["c"].as_i64().unwrap())
        .sum();
    println!("{rounds} rounds, {acknowledged} rows acknowledged, none lost; {derived} rows derived by the plugin");
    assert!(acknowledged > rounds * 20, "the server was killed during ingest, not before it");
    assert!(derived > 0, "the plugin ran");
}

fn kill(pid: u32) {
    std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
}
