//! Triggers are created, changed and listed in a real server, over HTTP and by the command line: what is refused and with which
//! words, and that a change loses no event.

mod common;

use std::time::Duration;

use common::{Server, Start};
use serde_json::{Value, json};

const TRIGGER: &str = "/api/v3/configure/processing_engine_trigger";

/// Writes what it was given, and by which version of the plugin with which arguments.
const COPY: &str = r#"
import time

def process_writes(influxdb3_local, table_batches, args=None):
    time.sleep(float((args or {}).get("takes", "0")))
    for batch in table_batches:
        for row in batch["rows"]:
            line = LineBuilder("seen").tag("table", batch["table_name"]).int64_field("n", row["n"])
            line.string_field("version", "VERSION").string_field("args", str((args or {}).get("k")))
            influxdb3_local.write(line.time_ns(row["n"]))
"#;

fn start() -> (tempfile::TempDir, Start) {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("copy.py", COPY);
    start.plugin("other.py", &COPY.replace("VERSION", "other"));
    (root, start)
}

fn body(name: &str, spec: &str) -> Value {
    json!({
        "db": "main", "plugin_filename": "copy.py", "trigger_name": name, "trigger_specification": spec,
        "trigger_settings": {"run_async": false, "error_behavior": "log"}, "trigger_arguments": null, "disabled": false,
    })
}

fn with(mut body: Value, field: &str, value: Value) -> Value {
    body[field] = value;
    body
}

fn list(server: &Server) -> Vec<Value> {
    serde_json::from_str(&server.get(&format!("{TRIGGER}?db=main")).body).unwrap()
}

fn of_name(server: &Server, name: &str) -> Value {
    list(server).into_iter().find(|trigger| trigger["trigger_name"] == name).unwrap_or_default()
}

#[test]
fn every_refusal_is_a_400_that_names_the_field_and_the_remedy() {
    let (_root, start) = start();
    let server = start.run();
    server.create_database("main");
    let create = |body: &Value| server.post_json(TRIGGER, body);
    assert_eq!(create(&body("t", "table:cpu")).status, 200);
    assert_eq!(create(&body("s", "every:1h")).status, 200);
    let new = || body("new", "every:1h");
    let spec = |spec: &str| with(new(), "trigger_specification", json!(spec));
    let setting = |settings: Value| with(new(), "trigger_settings", settings);
    let for_creation = [
        (spec("every:0s"), "trigger_specification: failed to parse trigger from every:0s: don't support every"),
        (spec("every:500us"), "trigger_specification: failed to parse trigger from every:500us: don't support"),
        (spec("every:2y"), "trigger_specification: failed to parse trigger from every:2y: don't support every"),
        (
            spec("every:soon"),
            "trigger_specification: failed to parse trigger from every:soon: couldn't parse to duration; expected numbers with units",
        ),
        (spec("cron:* *"), "trigger_specification: failed to parse trigger from cron:* *: expected five fields"),
        (spec("cron:0 0 30 2 *"), "trigger_specification: 'cron:0 0 30 2 *' names no time from now on: check day"),
        (spec("cron:0 0 0 1 1 * 2020"), "trigger_specification: 'cron:0 0 0 1 1 * 2020' names no time from now on"),
        (spec("request: "), "trigger_specification: failed to parse trigger from request: : expected a path"),
        (spec("table:"), "trigger_specification: failed to parse trigger from table:: table name is empty"),
        (spec("tables"), "trigger_specification: failed to parse trigger from tables: expect one of the following"),
        (with(new(), "trigger_specification", json!(1)), "trigger_specification: expected a string, got 1"),
        (with(new(), "trigger_name", json!("")), "trigger_name: must not be empty"),
        (with(new(), "trigger_name", json!("n".repeat(1025))), "trigger_name: has 1025 bytes: at most 1024"),
        (with(new(), "trigger_name", Value::Null), "serde json error: missing field `trigger_name`"),
        (with(new(), "trigger_arguments", json!({"a": 1})), "trigger_arguments: 'a' must be a string, got 1"),
        (with(new(), "trigger_arguments", json!("a=1")), "trigger_arguments: expected an object"),
        (
            with(new(), "plugin_filename", json!("no.py")),
            "plugin_filename: Plugin error: reading plugin file: Plugin not",
        ),
        (with(new(), "plugin_filename", json!("../x.py")), "plugin_filename: Plugin error: reading plugin file: Path"),
        (with(new(), "disabled", json!("maybe")), "disabled: expected true or false"),
        (setting(json!({"error_behavior": "ignore"})), "error_behavior: 'ignore': expected log, retry or disable"),
        (setting(json!({"run_async": 1})), "run_async: expected true or false"),
        (setting(json!({"time_zone": "Berlin"})), "time_zone: 'Berlin' is no time zone: expected a name of the IANA"),
        (setting(json!({"missed_runs": "none"})), "missed_runs: 'none': expected skip, once or all"),
        (setting(json!({"limits": {"run_time": "x"}})), "limits.run_time: 'x' is no"),
        (setting(json!({"execution": "inline", "isolation": "process"})), "execution: an inline run is made by the"),
        (with(body("new", "table:t"), "time_zone", json!("UTC")), "time_zone: only a trigger with a schedule"),
        (with(body("new", "request:p"), "missed_runs", json!("all")), "missed_runs: only a trigger with a schedule"),
    ];
    for (body, text) in for_creation {
        let reply = create(&body);
        assert_eq!(reply.status, 400, "{body}: {}", reply.body);
        let error: Value = serde_json::from_str(&reply.body).unwrap_or_default();
        assert!(error["error"].as_str().unwrap_or_default().starts_with(text), "{text}: {}", reply.body);
    }
    let update = |name: &str, field: &str, value: Value| {
        server.put_json(TRIGGER, &json!({"db": "main", "trigger_name": name, field: value}))
    };
    for (name, field, value, text) in [
        ("t", "trigger_specification", json!("every:1s"), "trigger_specification: 'every:1s' starts another kind of"),
        ("t", "trigger_specification", json!("x"), "trigger_specification: failed to parse trigger from x: expect one"),
        (
            "s",
            "trigger_specification",
            json!("cron:0 0 31 6 *"),
            "trigger_specification: 'cron:0 0 31 6 *' names no time",
        ),
        ("t", "trigger_settings", json!({"time_zone": "UTC"}), "time_zone: only a trigger with a schedule"),
        ("t", "plugin_filename", json!("no.py"), "plugin_filename: Plugin error"),
        ("t", "trigger_arguments", json!({"a": []}), "trigger_arguments: 'a' must be a string"),
    ] {
        let reply = update(name, field, value);
        assert_eq!(reply.status, 400, "{}", reply.body);
        assert!(reply.body.contains(text), "{text}: {}", reply.body);
    }
    assert_eq!(update("no", "disabled", json!(true)).status, 404);
    assert_eq!(create(&body("t", "all_tables")).status, 409);
    assert_eq!(create(&with(body("x", "all_tables"), "db", json!("nowhere"))).status, 404);
    // Nothing of all that has left a trace.
    let names: Vec<Value> = list(&server).into_iter().map(|trigger| trigger["trigger_name"].clone()).collect();
    assert_eq!(names, ["s", "t"]);
}

#[test]
fn two_enabled_triggers_do_not_answer_requests_to_one_path() {
    let (_root, start) = start();
    start.plugin("answer.py", "def process_request(api, query, headers, body, args=None):\n    return 'x'\n");
    let server = start.run();
    server.create_database("main");
    server.create_database("other");
    let request = |db: &str, name: &str, path: &str, disabled: bool| {
        let body = with(body(name, &format!("request:{path}")), "plugin_filename", json!("answer.py"));
        server.post_json(TRIGGER, &with(with(body, "db", json!(db)), "disabled", json!(disabled)))
    };
    let taken = |reply: common::Reply| {
        assert_eq!(reply.status, 409, "{}", reply.body);
        let text = "trigger_specification: requests to 'p' are for trigger 'first' of database 'main': choose another";
        assert!(reply.body.contains(text), "{}", reply.body);
    };
    assert_eq!(request("main", "first", "p", false).status, 200);
    assert_eq!(request("main", "elsewhere", "q", false).status, 200);
    taken(request("main", "second", "p", false));
    taken(request("other", "second", "p", false));
    assert_eq!(request("other", "second", "p", true).status, 200, "disabled, it answers nobody");
    let enable = || server.post(&format!("{TRIGGER}/enable?db=other&trigger_name=second"), "");
    taken(enable());
    let update = json!({"db": "main", "trigger_name": "elsewhere", "trigger_specification": "request:p"});
    taken(server.put_json(TRIGGER, &update));
    taken(server.put_json(TRIGGER, &json!({"db": "other", "trigger_name": "second", "disabled": false})));
    assert_eq!(server.post(&format!("{TRIGGER}/disable?db=main&trigger_name=first"), "").status, 200);
    assert_eq!(enable().status, 200);
}

#[test]
fn a_change_of_anything_but_the_specification_loses_no_event() {
    let (_root, start) = start();
    let server = start.run();
    server.create_database("main");
    let settings = json!({"run_async": false, "error_behavior": "log", "execution": "deferred"});
    server.create_trigger_with("main", "t", "copy.py", "table:in", settings, json!({"takes": "0.05", "k": "0"}));
    let change = |more: Value| {
        server.update_trigger("main", "t", more);
    };
    for n in 1..=100 {
        assert_eq!(server.write("main", &format!("in n={n}i {n}")).status, 204);
        match n {
            20 => change(json!({"trigger_arguments": {"takes": "0.01", "k": "1"}})),
            40 => change(json!({"plugin_filename": "other.py"})),
            60 => change(json!({"trigger_settings": {"execution": "auto", "limits": {"run_time": "5s"}}})),
            80 => change(json!({"trigger_arguments": null, "isolation": "process"})),
            _ => {}
        }
    }
    server.sql_until("main", "SELECT count(*) AS n FROM seen", |rows| rows[0]["n"] == 100);
    let last = server.sql("main", "SELECT version, args FROM seen WHERE n = 100");
    assert_eq!((last[0]["version"].as_str(), last[0]["args"].as_str()), (Some("other"), Some("None")));
    let trigger = of_name(&server, "t");
    assert_eq!(trigger["trigger_settings"]["isolation"], "process");
    assert_eq!(trigger["trigger_settings"]["limits"], json!({"run_time": "5000ms"}));
    assert_eq!(trigger["trigger_specification"], "table:in");
}

#[test]
fn what_waits_when_the_specification_changes_is_given_and_the_new_table_from_then_on() {
    let (_root, start) = start();
    // The tables have their owners on different shards.
    let server = start.shards(4).run();
    server.create_database("main");
    let settings = json!({"run_async": false, "error_behavior": "log", "execution": "deferred"});
    let slow = json!({"takes": "0.2"});
    server.create_trigger_with("main", "t", "copy.py", "table:t0", settings, slow);
    let mut n = 0;
    let mut write = |table: &str| {
        n += 1;
        assert_eq!(server.write("main", &format!("{table} n={n}i {n}")).status, 204);
        n
    };
    let mut expected = Vec::new();
    for table in ["t1", "t2", "t3", "t4", "t5"] {
        // Two are in a run or wait.
        let before = format!("t{}", table[1..].parse::<u32>().unwrap() - 1);
        expected.push(write(&before));
        write(table);
        expected.push(write(&before));
        let spec = format!("table:{table}");
        let change = json!({"db": "main", "trigger_name": "t", "trigger_specification": spec});
        assert_eq!(server.put_json(TRIGGER, &change).status, 200);
        write(&before);
    }
    expected.push(write("t5"));
    let change = json!({"db": "main", "trigger_name": "t", "trigger_specification": "all_tables"});
    assert_eq!(server.put_json(TRIGGER, &change).status, 200);
    expected.push(write("t0"));
    let sql = "SELECT n FROM seen WHERE \"table\" <> 'seen' ORDER BY n";
    let seen = server.sql_until("main", sql, |rows| rows.len() >= expected.len());
    let seen: Vec<i64> = seen.iter().map(|row| row["n"].as_i64().unwrap()).collect();
    assert_eq!(seen, expected);
}

#[test]
fn a_trigger_on_a_table_that_is_not_there_yet_waits_for_it() {
    let (_root, start) = start();
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "t", "copy.py", "table:later", "deferred", Value::Null);
    assert_eq!(server.write("main", "other n=1i 1").status, 204);
    assert_eq!(server.write("main", "later n=2i 2").status, 204);
    let seen = server.sql_until("main", "SELECT n FROM seen", |rows| !rows.is_empty());
    assert_eq!(seen, [json!({"n": 2})]);
}

#[test]
fn a_plugin_that_cannot_run_is_taken_with_a_warning() {
    let (_root, start) = start();
    start.plugin("broken.py", "def process_writes(:\n");
    let server = start.run();
    server.create_database("main");
    let create = |name: &str, path: &str, spec: &str| {
        let (ok, out, err) =
            server.command(&["create", "trigger", "-d", "main", "--path", path, "--trigger-spec", spec, name]);
        assert!(ok && out.contains("created successfully"), "{out}{err}");
        err
    };
    let warning = create("broken", "broken.py", "all_tables");
    assert!(warning.starts_with("Warning: plugin_filename: 'broken.py': SyntaxError: "), "{warning}");
    let warning = create("wrong", "copy.py", "every:1h");
    assert!(warning.contains("the process_scheduled_call function is not present in the plugin"), "{warning}");
    assert_eq!(create("right", "copy.py", "table:x"), "");
    let sql = "SELECT trigger_name FROM system.processing_engine_logs WHERE log_level = 'WARN' ORDER BY time";
    let warned: Vec<Value> = server.sql("main", sql).into_iter().map(|row| row["trigger_name"].clone()).collect();
    assert_eq!(warned, ["broken", "wrong"]);
}

#[test]
fn the_command_line_changes_and_shows_triggers() {
    let (root, start) = start();
    start.plugin("tick.py", "def process_scheduled_call(api, call_time, args=None):\n    api.info('old')\n");
    let mut server = start.run();
    server.create_database("main");
    let run = |server: &Server, arguments: &[&str]| {
        let (ok, out, err) = server.command(arguments);
        assert!(ok, "{arguments:?}: {out}{err}");
        out
    };
    run(
        &server,
        &[
            "create",
            "trigger",
            "-d",
            "main",
            "--path",
            "tick.py",
            "--trigger-spec",
            "cron:0 8 * * 1-5",
            "--time-zone",
            "europe/berlin",
            "--missed-runs",
            "once",
            "t",
        ],
    );
    let trigger = of_name(&server, "t");
    assert_eq!(trigger["trigger_settings"]["time_zone"], "Europe/Berlin");
    assert_eq!(trigger["trigger_settings"]["missed_runs"], "once");
    let next = trigger["next_scheduled_time"].as_str().unwrap();
    assert!(next.ends_with("T07:00:00Z") || next.ends_with("T06:00:00Z"), "{next}");
    let code = root.path().join("new.py");
    std::fs::write(&code, "def process_scheduled_call(api, call_time, args=None):\n    api.info('new', args['k'])\n")
        .unwrap();
    let said = run(
        &server,
        &[
            "update",
            "trigger",
            "-d",
            "main",
            "-t",
            "t",
            "--path",
            code.to_str().unwrap(),
            "--trigger-spec",
            "every:100ms",
            "--trigger-arguments",
            "k=v",
            "--missed-runs",
            "default",
        ],
    );
    assert!(said.starts_with("Trigger t updated successfully\nLane: deferred ("), "{said}");
    let sql = "SELECT log_text FROM system.processing_engine_logs WHERE log_text = 'new v'";
    server.sql_until("main", sql, |rows| !rows.is_empty());
    let table = run(&server, &["show", "triggers", "-d", "main"]);
    assert!(table.contains("every:100ms") && table.contains("Europe/Berlin") && table.contains("skip"), "{table}");
    let (ok, _, err) = server.command(&["update", "trigger", "-d", "main", "t"]);
    assert!(!ok && err.contains("nothing to change"), "{err}");
    let (ok, _, err) = server.command(&["update", "trigger", "-d", "main", "no", "--disabled", "true"]);
    assert!(!ok && err.contains("404") && err.contains("not found: no"), "{err}");
    run(&server, &["update", "trigger", "-d", "main", "t", "--disabled", "true"]);
    assert!(server.terminate(Duration::from_secs(20)));
    let server = start.run();
    let trigger = of_name(&server, "t");
    assert_eq!((&trigger["disabled"], &trigger["next_scheduled_time"]), (&json!(true), &Value::Null));
    assert_eq!(trigger["trigger_settings"]["time_zone"], "Europe/Berlin");
    assert_eq!(trigger["trigger_arguments"], json!({"k": "v"}));
}

/// Counts what it has seen, and says so in a table of its own.
const COUNTER: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    seen = influxdb3_local.state.get("seen", [])
    seen += [row["n"] for batch in table_batches for row in batch["rows"]]
    influxdb3_local.state.put("seen", seen)
"#;

#[test]
fn the_state_of_a_trigger_follows_it_to_other_shards_and_over_a_crash_there() {
    let (_root, start) = start();
    start.plugin("counter.py", COUNTER);
    let start = start.shards(4);
    let mut server = start.run();
    server.create_database("main");
    server.create_trigger("main", "t", "counter.py", "table:t0", "auto", Value::Null);
    let there = |server: &Server, last: u64| {
        let all = serde_json::to_string(&(0..=last).collect::<Vec<_>>()).unwrap();
        let sql = "SELECT value FROM system.trigger_state WHERE key = 'seen'";
        server.sql_until("main", sql, |rows| {
            rows.first().is_some_and(|row| row["value"].as_str().is_some_and(|value| value.replace(' ', "") == all))
        });
    };
    // The tables have their owners on different shards, and a trigger is at home where its table is.
    for n in 0..16 {
        let table = format!("t{n}");
        if n > 0 {
            let change = json!({"db": "main", "trigger_name": "t", "trigger_specification": format!("table:{table}")});
            assert_eq!(server.put_json(TRIGGER, &change).status, 200);
        }
        assert_eq!(server.write("main", &format!("{table} n={n}i 1")).status, 204);
        there(&server, n);
        if n % 5 == 4 {
            server.kill();
            server = start.run();
            // What was not durable is given again, and then it is there again.
            there(&server, n);
        }
    }
}

/// Kilobytes that the server holds.
fn resident(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn many_triggers_take_little_until_they_run_and_each_has_its_own_events() {
    const TRIGGERS: usize = 400;
    let (_root, start) = start();
    let mut server = start.run();
    server.create_database("main");
    let create = |server: &Server, n: usize| {
        let mut body = body(&format!("t{n}"), &format!("table:in{n}"));
        body["trigger_arguments"] = json!({"k": n.to_string()});
        let reply = server.post_json(TRIGGER, &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
    };
    create(&server, 0);
    let before = resident(&server);
    (1..TRIGGERS).for_each(|n| create(&server, n));
    let each = (resident(&server) - before.min(resident(&server))) / TRIGGERS as u64;
    assert!(each < 100, "{each} KB for a trigger that has not run");
    for life in 0..2_u64 {
        for n in [3, 77, TRIGGERS - 1] {
            assert_eq!(server.write("main", &format!("in{n} n={life}i {}", life + 1)).status, 204);
        }
        let seen = "SELECT \"table\", args FROM seen ORDER BY n, args::int";
        let rows = server.sql_until("main", seen, |rows| rows.len() == 3 * (life as usize + 1));
        for (row, n) in rows[3 * life as usize..].iter().zip([3, 77, TRIGGERS - 1]) {
            assert_eq!(
                (row["table"].as_str(), row["args"].as_str()),
                (Some(&*format!("in{n}")), Some(&*n.to_string()))
            );
        }
        let runs = server.sql("main", "SELECT trigger_name FROM system.processing_engine_triggers WHERE run_count > 0");
        assert_eq!(runs.len(), 3, "{runs:?}");
        assert!(server.terminate(Duration::from_secs(30)), "{}", server.log_text());
        server = start.run();
    }
}
