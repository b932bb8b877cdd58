//! Nothing acknowledged is lost: `kill -9` during ingest, again and again, in each round with another number of shards, and
//! each time compared with a ledger of what was acknowledged and with what the plugins say that they were given.
//!
//! `SALTUS_CRASH_ROUNDS` says how often (40 by default). Every 40 rounds begin with an empty data directory: a round reads all
//! rows of those before it. Every seventh round ends by SIGTERM instead, after which nothing may be given again.
//!
//! What is checked of rows is here, what is checked of events is in `evidence.rs`.

#[path = "../common/mod.rs"]
mod common;
mod evidence;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use common::{Server, Start, agent};
use evidence::{Evidence, TABLES};

const WRITERS: usize = 4;
/// Lines of one request.
const LINES: i64 = 20;
/// Rounds on one data directory.
const ROUNDS_PER_DIRECTORY: usize = 40;
/// Of so many rounds one ends in an orderly way.
const ORDERLY_EVERY: usize = 7;

/// What was acknowledged: table to the numbers in it.
type Ledger = Mutex<HashMap<String, Vec<i64>>>;

fn rounds() -> usize {
    std::env::var("SALTUS_CRASH_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(ROUNDS_PER_DIRECTORY)
}

/// Writes until the server is gone; puts in the ledger what was acknowledged as durable.
fn ingest(url: &str, writer: usize, next: &AtomicI64, ledger: &Ledger, stop: &AtomicBool) {
    let agent = agent();
    while !stop.load(Ordering::Relaxed) {
        let first = next.fetch_add(LINES, Ordering::Relaxed);
        let table = format!("t{}", ((first / LINES) as usize + writer) % TABLES);
        let body: String =
            (first..first + LINES).map(|n| format!("{table},writer=w{writer} n={n}i {}\n", n + 1)).collect();
        match agent.post(url).send(&body) {
            Ok(reply) if reply.status() == 204 => {
                ledger.lock().unwrap().entry(table).or_default().extend(first..first + LINES);
            }
            Ok(reply) => assert_eq!(reply.status(), 503, "only back-pressure may refuse a good line"),
            Err(_) => return,
        }
    }
}

/// Every acknowledged row is there; rows that were not acknowledged may be.
fn check_rows(server: &Server, ledger: &Ledger, round: usize) {
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
fn no_acknowledged_row_and_no_event_is_lost_by_kill_nine() {
    let mut left = rounds();
    let mut total = evidence::Counts::default();
    while left > 0 {
        let now = left.min(ROUNDS_PER_DIRECTORY);
        total += crash(now);
        left -= now;
    }
    println!("in all {} rounds:\n{total}", rounds());
}

fn crash(rounds: usize) -> evidence::Counts {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    // An inline run that is given all of a backlog may take longer than the 10 ms of every day.
    start.extra.extend(["--inline-deadline".into(), "1s".into()]);
    let mut evidence = Evidence::new(&start, root.path());
    let ledger = Ledger::default();
    let next = AtomicI64::new(0);
    for round in 0..rounds {
        let shards = 1 + round % 3;
        let mut server = start.clone().shards(shards).run();
        if round == 0 {
            server.create_database("main");
            evidence.create_triggers(&server);
        }
        check_rows(&server, &ledger, round);
        let orderly = round % ORDERLY_EVERY == ORDERLY_EVERY - 1;
        let stop = AtomicBool::new(false);
        let url = format!("{}/api/v3/write_lp?db=main&precision=nanosecond", server.url);
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (url, next, ledger, stop) = (&url, &next, &ledger, &stop);
                scope.spawn(move || ingest(url, writer, next, ledger, stop));
            }
            // Not the same moment of the commit cycle each time, and at times before the last life's events are given again.
            std::thread::sleep(Duration::from_micros(40_000 + (round as u64 * 7_919) % 110_000));
            if orderly {
                assert!(server.terminate(Duration::from_secs(60)), "no orderly end:\n{}", server.log_text());
            } else {
                kill(server.pid());
            }
            stop.store(true, Ordering::Relaxed);
        });
        if !orderly {
            server.kill();
        }
        evidence.check_edge(&format!("round {round}, {shards} shard(s)"), orderly);
    }
    let server = start.run();
    check_rows(&server, &ledger, rounds);
    let acknowledged = ledger.lock().unwrap();
    evidence.check_all(&acknowledged, &server);
    let rows: usize = acknowledged.values().map(Vec::len).sum();
    assert!(rows as i64 > rounds as i64 * LINES, "the server was killed during ingest, not before it");
    println!("{rounds} rounds, {rows} rows acknowledged, none lost");
    evidence.counts()
}

fn kill(pid: u32) {
    std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
}
