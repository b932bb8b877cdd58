//! An inline run that nothing can interrupt: the shard is held up, its code goes into quarantine, the process is aborted, and the
//! next life runs the code where it can do no harm.

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Server, Start};
use serde_json::{Value, json};

/// One C call, for as long as the rows say; a single bytecode for the interpreter.
const STALLS: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        for row in batch["rows"]:
            sum(range(row["loops"]))
            line = LineBuilder("out").int64_field("n", row["n"])
            influxdb3_local.write(line.time_ns(row["time"]))
"#;

/// More than any test waits for, about a minute.
const FOR_EVER: u64 = 3_000_000_000;

fn start(root: &Path, limits: [&str; 2]) -> Start {
    let mut start = Start::new(root);
    start.extra.extend(limits.map(str::to_owned));
    start.plugin("stalls.py", STALLS);
    start
}

fn trigger(server: &Server, isolation: &str) {
    server.create_database("main");
    let settings = json!({
        "run_async": false, "error_behavior": "retry", "execution": "inline", "isolation": isolation,
        "limits": {"run_time": "1s"}
    });
    server.create_trigger_with("main", "t", "stalls.py", "table:a", settings, json!({}));
}

/// Asks again and again, each time on a connection that may be dealt to another shard.
fn health_until(server: &Server, status: u16) -> String {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(200)))
            .http_status_as_error(false)
            .build()
            .into();
        if let Ok(mut answer) = agent.get(format!("{}/health", server.url)).call()
            && answer.status().as_u16() == status
        {
            return answer.body_mut().read_to_string().unwrap();
        }
        assert!(Instant::now() < end, "/health never said {status}\n{}", server.log_text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The write's own answer does not come while its shard is held up.
fn write_and_leave(server: &Server, lines: String) {
    let url = format!("{}/api/v3/write_lp?db=main", server.url);
    std::thread::spawn(move || drop(common::agent().post(url).send(lines)));
}

const LANE: &str = "SELECT lane, lane_reason FROM system.processing_engine_triggers";

#[test]
fn code_that_holds_up_a_shard_ends_the_process_and_is_isolated_in_the_next_life() {
    let root = tempfile::tempdir().unwrap();
    let start = start(root.path(), ["--stall-limit=500ms", "--stall-abort=3s"]);
    let mut server = start.run();
    trigger(&server, "auto");
    assert_eq!(server.write("main", "a n=1i,loops=1i 1").status, 204);
    server.sql_until("main", "SELECT n FROM out", |rows| rows.len() == 1);
    write_and_leave(&server, format!("a n=2i,loops={FOR_EVER}i 2"));
    let reason = health_until(&server, 503);
    assert!(reason.contains("does not come back from a run of trigger t (stalls.py)"), "{reason}");
    let status = server.wait(Duration::from_secs(30));
    assert_eq!(status.signal(), Some(6), "SIGABRT: {status}\n{}", server.log_text());
    let log = server.log_text();
    assert!(log.contains("the plugin is in quarantine") && log.contains("the process is aborted"), "{log}");

    let server = start.run();
    assert!(server.log_text().contains("this version of a plugin is in quarantine"), "{}", server.log_text());
    // The event that was under way is given again; in its process it is ended at its deadline, and meanwhile nobody waits.
    let rows = server.sql_until("main", LANE, |rows| rows[0]["lane"] == "process");
    assert_eq!(rows[0]["lane_reason"], "this code has held up a shard before");
    let errors = "SELECT log_text FROM system.processing_engine_logs WHERE log_level = 'ERROR'";
    server.sql_until("main", errors, |rows| !rows.is_empty());
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.write("main", "b n=1i 1").status, 204);

    // Other code is another matter.
    start.plugin("stalls.py", &STALLS.replace("sum(range(row[\"loops\"]))", "pass"));
    let moved = server.sql_until("main", LANE, |rows| rows[0]["lane"] == "inline");
    assert_eq!(moved[0]["lane_reason"], "new code starts deferred");
    server.sql_until("main", "SELECT n FROM out", |rows| rows.len() == 2);
}

#[test]
fn a_stall_that_ends_is_over_and_the_code_is_out_of_the_shard() {
    let root = tempfile::tempdir().unwrap();
    let start = start(root.path(), ["--stall-limit=200ms", "--stall-abort=0s"]);
    let server = start.run();
    trigger(&server, "auto");
    write_and_leave(&server, "a n=1i,loops=60000000i 1".to_owned());
    health_until(&server, 503);
    health_until(&server, 200);
    let rows = server.sql_until("main", LANE, |rows| rows[0]["lane"] == "process");
    assert_eq!(rows[0]["lane_reason"], "this code has held up a shard before");
    assert!(server.log_text().contains("the shard is back"), "{}", server.log_text());
}

#[test]
fn code_in_quarantine_that_may_not_be_isolated_is_not_run() {
    let root = tempfile::tempdir().unwrap();
    let start = start(root.path(), ["--stall-limit=200ms", "--stall-abort=0s"]);
    let server = start.run();
    trigger(&server, "interpreter");
    write_and_leave(&server, "a n=1i,loops=60000000i 1".to_owned());
    health_until(&server, 503);
    health_until(&server, 200);
    let sql = "SELECT disabled, disabled_reason FROM system.processing_engine_triggers";
    let rows = server.sql_until("main", sql, |rows| rows[0]["disabled"] == true);
    let reason = rows[0]["disabled_reason"].as_str().unwrap();
    assert!(reason.contains("held up a shard before") && reason.contains("isolation=interpreter"), "{reason}");
    let letters: Vec<Value> = server.sql_until("main", "SELECT * FROM system.dead_letters", |rows| !rows.is_empty());
    assert_eq!(letters[0]["event"], "a n=1i,loops=60000000i 1000000000\n");
}

/// `t` does not end its second run; `u`, on another table of the same shard, does its work.
fn stuck(root: &Path, isolation: &str) -> Server {
    let mut start = Start::new(root).shards(1);
    start.extra.push("--deferred-grace=300ms".to_owned());
    start.plugin("stalls.py", STALLS);
    start.plugin("works.py", STALLS);
    let server = start.run();
    server.create_database("main");
    for (name, file, table) in [("t", "stalls.py", "a"), ("u", "works.py", "b")] {
        let settings = json!({
            "run_async": false, "error_behavior": "log", "execution": "deferred", "isolation": isolation,
            "limits": {"run_time": "500ms"}
        });
        server.create_trigger_with("main", name, file, &format!("table:{table}"), settings, json!({}));
    }
    assert_eq!(server.write("main", "a n=1i,loops=1i 1").status, 204);
    server.sql_until("main", "SELECT n FROM out", |rows| rows.len() == 1);
    assert_eq!(server.write("main", &format!("a n=2i,loops={FOR_EVER}i 2")).status, 204);
    for n in 10..30 {
        assert_eq!(server.write("main", &format!("b n={n}i,loops=1i {n}")).status, 204);
        std::thread::sleep(Duration::from_millis(50));
    }
    server
}

#[test]
fn a_deferred_run_that_cannot_be_ended_costs_others_time_but_no_event() {
    let root = tempfile::tempdir().unwrap();
    let server = stuck(root.path(), "auto");
    let lane = format!("{LANE} WHERE trigger_name = 't'");
    let rows = server.sql_until("main", &lane, |rows| rows[0]["lane"] == "process");
    assert_eq!(rows[0]["lane_reason"], "a run of this code could not be ended");
    assert_eq!(server.write("main", "a n=3i,loops=1i 3").status, 204);
    let rows = server.sql_until("main", "SELECT n FROM out ORDER BY n", |rows| rows.len() == 22);
    let numbers: Vec<i64> = rows.iter().map(|row| row["n"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [1, 3].into_iter().chain(10..30).collect::<Vec<_>>());
    let errors = "SELECT log_text FROM system.processing_engine_logs WHERE log_level = 'ERROR'";
    let errors = server.sql("main", errors);
    assert!(
        errors.len() == 1 && errors[0]["log_text"].as_str().unwrap().contains("its interpreter is given up"),
        "{errors:?}"
    );
    assert_eq!(server.get("/health").status, 200, "one is no reason to restart");
}

#[test]
fn a_deferred_run_that_cannot_be_ended_nor_isolated_disables_its_trigger() {
    let root = tempfile::tempdir().unwrap();
    let server = stuck(root.path(), "interpreter");
    let sql = "SELECT disabled_reason FROM system.processing_engine_triggers WHERE trigger_name = 't' AND disabled";
    let rows = server.sql_until("main", sql, |rows| !rows.is_empty());
    let reason = rows[0]["disabled_reason"].as_str().unwrap();
    assert!(reason.contains("isolation=interpreter keeps the trigger out of the process lane"), "{reason}");
    let letters = server.sql("main", "SELECT reason, event FROM system.dead_letters");
    assert!(letters.len() == 1 && letters[0]["event"].as_str().unwrap().starts_with("a n=2i"), "{letters:?}");
    server.sql_until("main", "SELECT n FROM out WHERE n >= 10", |rows| rows.len() == 20);
}

/// Of each thread of a process: name, nice value, and on how many CPUs it may run.
fn threads(pid: u32) -> Vec<(String, i64, u32)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let nice = rest.split_whitespace().nth(16)?.parse().ok()?;
        let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:"))?.trim().replace(',', "");
        let cpus = mask.chars().filter_map(|digit| digit.to_digit(16)).map(u32::count_ones).sum();
        Some((name.to_owned(), nice, cpus))
    };
    tasks.filter_map(|task| of(task.ok()?)).collect()
}

#[test]
fn workers_and_the_watchdog_are_not_pinned_to_a_shard_and_have_priorities_of_their_own() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path(), ["--stall-limit=2s", "--stall-abort=0s"]).run();
    let threads = threads(server.pid());
    let all = std::thread::available_parallelism().unwrap().get() as u32;
    let named = |prefix: &str| threads.iter().filter(|(name, ..)| name.starts_with(prefix)).collect::<Vec<_>>();
    let (watchdog, workers) = (named("saltus-watchdo"), named("saltus-py-"));
    assert_eq!(watchdog.len(), 1, "{threads:?}");
    assert!(watchdog[0].2 == all && watchdog[0].1 <= 0, "{watchdog:?}");
    assert!(workers.len() >= 4 && workers.iter().all(|(_, _, cpus)| *cpus == all), "{workers:?}");
    let shards = threads.iter().filter(|(_, nice, cpus)| *cpus == 1 && *nice == 0).count();
    if all > 1 {
        assert!(shards >= 2, "the shards are pinned: {threads:?}");
    }
    // As many shards as CPUs share them with the workers: those of new triggers behind those of known ones, all of them behind the shards.
    if all <= 2 {
        let of_new = |name: &str| ["n-0", "n-1"].iter().any(|end| name.ends_with(end));
        for (name, nice, _) in workers {
            assert!(if of_new(name) { *nice == 19 } else { (1..19).contains(nice) }, "{name} at {nice}: {threads:?}");
        }
    }
}
