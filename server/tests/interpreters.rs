//! Which interpreters deferred runs take in a real server: who takes long sits apart, and who shares live objects sits together.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{Server, Start};
use serde_json::{Value, json};

/// Computes for as many milliseconds of CPU time as a row says, and numbers its rows in its cache. `id` of an object of the interpreter
/// tells one from another.
const WORK: &str = r#"
import builtins, time

def process_writes(influxdb3_local, table_batches, args=None):
    seen = influxdb3_local.cache.get("seen", 0)
    for batch in table_batches:
        for row in batch["rows"]:
            until = time.thread_time() + row["ms"] / 1000
            while time.thread_time() < until:
                pass
            seen += 1
            influxdb3_local.write(LineBuilder("out").tag("table", batch["table_name"]).int64_field("seen", seen)
                .int64_field("interpreter", id(builtins.__dict__)).time_ns(row["time"]))
    influxdb3_local.cache.put("seen", seen)
    if args and args.get("keeps"):
        influxdb3_local.cache.put("live", object())
"#;

struct Working {
    server: Server,
    written: BTreeMap<&'static str, usize>,
    _root: tempfile::TempDir,
}

impl Working {
    fn start(extra: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut start = Start::new(root.path());
        start.extra.extend(extra.iter().map(|&flag| flag.to_owned()));
        start.plugin("work.py", WORK);
        let server = start.run();
        server.create_database("main");
        Working { server, written: BTreeMap::new(), _root: root }
    }

    fn create(&self, name: &str, arguments: Value) {
        self.server.create_trigger("main", name, "work.py", &format!("table:{name}"), "deferred", arguments);
    }

    /// Has a trigger run once, for `ms`; by the interpreter in which it did. Each run sees what the one before has kept.
    fn run(&mut self, name: &'static str, ms: u64) -> i64 {
        let written = self.written.entry(name).or_default();
        *written += 1;
        let n = *written;
        assert_eq!(self.server.write("main", &format!("{name} ms={ms}i {n}")).status, 204);
        let sql = format!("SELECT seen, interpreter FROM out WHERE \"table\" = '{name}' AND seen >= {n}");
        let rows = self.server.sql_until("main", &sql, |rows| rows.len() == 1);
        assert_eq!(rows[0]["seen"], n, "its cache came along");
        rows[0]["interpreter"].as_i64().unwrap()
    }

    /// Has a trigger run until it is in that interpreter.
    fn run_until(&mut self, name: &'static str, ms: u64, interpreter: &str) -> i64 {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            self.run(name, ms);
            if self.of(name)["interpreter"] == interpreter {
                return self.run(name, ms);
            }
        }
        panic!("never {interpreter}: {}", self.of(name));
    }

    fn of(&self, name: &str) -> Value {
        let sql = format!(
            "SELECT lane, interpreter, lane_reason FROM system.processing_engine_triggers WHERE trigger_name = '{name}'"
        );
        self.server.sql("main", &sql).remove(0)
    }

    fn reason(&self, name: &str) -> String {
        self.of(name)["lane_reason"].as_str().unwrap().to_owned()
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.server.get("/metrics").body;
        // Of all shards.
        let samples = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

#[test]
fn who_takes_long_has_an_interpreter_of_its_own_and_comes_back_when_it_does_not_any_more() {
    let mut work = Working::start(&[]);
    work.create("light", Value::Null);
    work.create("heavy", Value::Null);
    assert_eq!((&work.of("light")["lane"], &work.of("light")["interpreter"]), (&json!("deferred"), &json!("new")));
    let new = work.run("light", 0);
    assert_eq!(work.run("heavy", 0), new, "nothing is known of either");
    let shared = work.run_until("light", 0, "shared");
    assert_ne!(shared, new);
    assert_eq!(work.reason("light"), "chosen by the operator");

    let own = work.run_until("heavy", 80, "own");
    assert!(own != new && own != shared);
    let reason = work.reason("heavy");
    assert!(
        reason.starts_with("chosen by the operator; its runs take long (p90 8")
            && reason.ends_with("of CPU time): it has an interpreter of its own"),
        "{reason}"
    );
    assert_eq!(work.run("light", 0), shared, "others stay where they are");
    assert_eq!(work.metric("saltus_own_interpreters"), 1.0);
    assert!(work.metric("saltus_own_interpreters_bytes") > 1e6);
    assert_eq!(work.metric("saltus_shard_interpreter_changes_total"), 2.0);

    assert_eq!(work.run_until("heavy", 0, "shared"), shared);
    assert_eq!(work.reason("heavy"), "chosen by the operator");
    let sql = "SELECT detail FROM system.trigger_runs WHERE outcome = 'decision' AND trigger_name = 'heavy' ORDER BY event_time";
    let told = work.server.sql("main", sql);
    let told: Vec<_> = told.iter().map(|row| row["detail"].as_str().unwrap()).collect();
    assert!(told[0].starts_with("deferred: its runs take long (p90 "), "{told:?}");
    assert!(told[1].starts_with("deferred: its runs are short again (p90 "), "{told:?}");
}

#[test]
fn if_there_are_too_few_interpreters_the_heaviest_share_one_and_say_so() {
    let mut work = Working::start(&["--own-interpreters=2"]);
    for name in ["a", "b", "c"] {
        work.create(name, Value::Null);
    }
    let a = work.run_until("a", 60, "own");
    let b = work.run_until("b", 200, "own");
    let c = work.run_until("c", 120, "own");
    assert_ne!(a, b);
    assert_eq!(c, b, "the two that take longest");
    assert_eq!(work.run("a", 60), a);
    work.run("b", 200);
    for name in ["b", "c"] {
        let reason = work.reason(name);
        let crowded = "it has an interpreter of its own, which it shares with others like it: there are no more (--own-interpreters)";
        assert!(reason.ends_with(crowded), "{name}: {reason}");
    }
    assert!(!work.reason("a").contains("shares"));
    assert_eq!(work.metric("saltus_own_interpreters"), 2.0);
    // One that is gone leaves its place.
    let path = "/api/v3/configure/processing_engine_trigger?db=main&trigger_name=a&force=true";
    assert_eq!(work.server.delete(path).status, 200);
    assert_eq!(work.run("c", 120), a);
    assert!(!work.reason("c").contains("shares"));
}

#[test]
fn live_objects_in_its_cache_keep_a_trigger_where_it_is_and_are_named() {
    let mut work = Working::start(&[]);
    work.create("keeps", json!({"keeps": "yes"}));
    let new = work.run("keeps", 0);
    for _ in 0..12 {
        assert_eq!(work.run("keeps", 60), new);
    }
    assert_eq!(work.of("keeps")["interpreter"], "new");
    let why = "it stays in its interpreter: NotPlain: its cache holds live objects, which no other interpreter can have: live";
    assert!(work.reason("keeps").ends_with(why), "{}", work.reason("keeps"));
    let logged =
        "SELECT log_level, log_text FROM system.processing_engine_logs WHERE log_text LIKE 'the trigger stays in%'";
    let logged = work.server.sql("main", logged);
    assert_eq!(logged.len(), 1, "said once, not with every run: {logged:?}");
    assert_eq!(logged[0]["log_level"], "WARN");
}

#[test]
fn a_run_that_is_interrupted_moves_its_trigger_apart_and_a_neighbour_stays() {
    let mut work = Working::start(&[]);
    work.create("light", Value::Null);
    let settings =
        json!({"run_async": false, "error_behavior": "log", "execution": "deferred", "limits": {"run_time": "100ms"}});
    work.server.create_trigger_with("main", "endless", "work.py", "table:endless", settings, Value::Null);
    let shared = work.run_until("light", 0, "shared");
    assert_eq!(work.server.write("main", "endless ms=100000i 1").status, 204);
    let sql = "SELECT interpreter FROM system.processing_engine_triggers WHERE trigger_name = 'endless'";
    work.server.sql_until("main", sql, |rows| rows[0]["interpreter"] == "own");
    assert_eq!(work.run("light", 0), shared);
}

/// Puts a lock and a list, or takes them and appends to the list.
const SHARES: &str = r#"
import threading

def process_request(api, query, headers, body, args=None):
    if query.get("put"):
        api.cache.put("lock", threading.Lock(), use_global=True)
        api.cache.put("list", [object()], use_global=True)
    lock = api.cache.get("lock", use_global=True)
    found = api.cache.get("list", use_global=True)
    if lock is None or found is None:
        return {"found": False}
    with lock:
        found.append(object())
        return {"found": True, "lock": id(lock), "list": id(found), "length": len(found)}
"#;

fn ask(server: &Server, path: &str) -> Value {
    let reply = server.get(&format!("/api/v3/engine/{path}"));
    assert_eq!(reply.status, 200, "{}", reply.body);
    serde_json::from_str(&reply.body).unwrap()
}

#[test]
fn triggers_that_share_live_objects_sit_together_on_whichever_shards_they_are() {
    for shards in [1, 2] {
        let root = tempfile::tempdir().unwrap();
        let start = Start::new(root.path()).shards(shards);
        start.plugin("shares.py", SHARES);
        let server = start.run();
        server.create_database("main");
        // Enough of them that every shard is home to some.
        let names: Vec<String> = (0..8).map(|n| format!("p{n}")).collect();
        for (n, name) in names.iter().enumerate() {
            let execution = if n % 2 == 0 { "auto" } else { "deferred" };
            server.create_trigger("main", name, "shares.py", &format!("request:{name}"), execution, Value::Null);
            assert_eq!(ask(&server, name), json!({"found": false}), "before anything was put");
        }
        let put = ask(&server, "p0?put=1");
        for round in 0..3 {
            for (n, name) in names.iter().enumerate() {
                let got = ask(&server, name);
                assert_eq!((&got["lock"], &got["list"]), (&put["lock"], &put["list"]), "{name} of {shards} shards");
                assert_eq!(got["length"], json!(3 + round * names.len() + n), "{name} of {shards} shards");
            }
        }
        // Another takes its place, and everybody has the new one, wherever it is.
        let again = ask(&server, "p5?put=1");
        assert_ne!(again["lock"], put["lock"]);
        for name in &names {
            assert_eq!(ask(&server, name)["lock"], again["lock"], "{name} of {shards} shards");
        }
    }
}

#[test]
fn who_cannot_go_where_a_live_object_is_is_told_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path()).shards(2);
    start.plugin("shares.py", SHARES);
    let server = start.run();
    server.create_database("main");
    let create = |name: &str, settings: Value| {
        server.create_trigger_with("main", name, "shares.py", &format!("request:{name}"), settings, Value::Null);
    };
    let settings = |execution: &str| json!({"run_async": false, "error_behavior": "log", "execution": execution});
    create("deferred", settings("deferred"));
    create("inline", settings("inline"));
    create("process", json!({"run_async": false, "error_behavior": "log", "isolation": "process"}));
    let refused = |name: &str, words: &str| {
        let reply = server.get(&format!("/api/v3/engine/{name}"));
        assert_ne!(reply.status, 200, "{}", reply.body);
        assert!(reply.body.contains(words), "{name}: {}", reply.body);
    };
    ask(&server, "deferred?put=1");
    let place = "'lock' in the global cache is a live object in the interpreter in which trigger 'deferred' has put it";
    refused("inline", &format!("{place}: create this trigger with --execution auto or deferred; or put plain values"));
    refused("process", &format!("{place}: a trigger in a process of its own cannot have it; or put plain values"));
    ask(&server, "process?put=1");
    refused(
        "deferred",
        "in the process of trigger 'process', which has put it: create that trigger with --execution deferred and without --isolation process",
    );
    ask(&server, "inline?put=1");
    refused("deferred", "in which trigger 'inline' has put it: create that trigger with --execution deferred");
}
