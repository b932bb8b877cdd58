//! A trigger is in its lane before its first event: what its plugin imports is tried when it is created, when its files change, and at
//! the start of the server.

mod common;

use std::path::PathBuf;

use common::{Server, Start};
use serde_json::{Value, json};

/// Counts its rows; imports what is put in.
const COUNTS: &str = r#"
import os
IMPORTS

def process_writes(influxdb3_local, table_batches, args=None):
    influxdb3_local.info(f"run in {os.getpid()}")
    for batch in table_batches:
        for row in batch["rows"]:
            influxdb3_local.write(LineBuilder("out").int64_field("n", row["n"]).int64_field("pid", os.getpid()).time_ns(row["time"]))
"#;

const REFUSES: &str = "does not load in an interpreter with a GIL of its own";
const NEW: &str = "a new trigger starts deferred";

fn counts(imports: &str) -> String {
    COUNTS.replace("IMPORTS", imports)
}

fn start(root: &tempfile::TempDir) -> (Start, String) {
    (Start::new(root.path()), format!("import {}", common::module_of_one_interpreter()))
}

fn serve(start: &Start) -> Server {
    let server = start.run();
    server.create_database("main");
    server
}

/// Creates a trigger; the answer, once there is all to say.
fn create(server: &Server, name: &str, file: &str, settings: Value) -> Value {
    let answer = server.create_trigger_with("main", name, file, "table:in", settings, Value::Null);
    server.settled("main", name, answer)
}

/// Changes it, likewise.
fn update(server: &Server, name: &str, change: Value) -> Value {
    server.settled("main", name, server.update_trigger("main", name, change))
}

/// The lane and its reason, as an answer or the system table has them.
fn lane(of: &Value) -> (&str, &str) {
    (of["lane"].as_str().unwrap(), of["lane_reason"].as_str().unwrap())
}

fn warnings(answer: &Value) -> String {
    answer["warnings"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

const TRIGGERS: &str =
    "SELECT trigger_name, lane, lane_reason, run_count FROM system.processing_engine_triggers ORDER BY trigger_name";

/// Waits until a trigger that has run so often is in a lane; the reason.
fn until_lane(server: &Server, wanted: &str, runs: u64) -> String {
    let rows = server.sql_until("main", TRIGGERS, |rows| rows[0]["lane"] == wanted);
    assert_eq!(rows[0]["run_count"], runs);
    rows[0]["lane_reason"].as_str().unwrap().to_owned()
}

fn discarded(server: &Server) -> Vec<Value> {
    server.sql("main", "SELECT trigger_name, detail FROM system.trigger_runs WHERE outcome = 'discarded'")
}

/// A folder that a server takes for a virtual environment, with this module in it.
fn virtual_env(start: &mut Start, module: &str, source: &str) -> PathBuf {
    let venv = start.plugins.with_file_name("venv");
    let series = common::python("import sys; print(f'{sys.version_info[0]}.{sys.version_info[1]}')");
    let packages = venv.join(format!("lib/python{series}/site-packages"));
    std::fs::create_dir_all(&packages).unwrap();
    std::fs::write(packages.join(format!("{module}.py")), source).unwrap();
    std::fs::write(venv.join("pyvenv.cfg"), "").unwrap();
    start.extra.extend(["--virtual-env-location".to_owned(), venv.display().to_string()]);
    venv
}

#[test]
fn the_answer_to_the_creation_says_the_lane_and_the_system_table_agrees() {
    let root = tempfile::tempdir().unwrap();
    let (start, single) = start(&root);
    start.plugin("single.py", &counts(&single));
    let does_nothing = "def process_writes(influxdb3_local, table_batches, args=None):\n    pass\n";
    start.plugin("plain.py", &format!("import statistics\n\n{does_nothing}"));
    start.plugin("many.py", &format!("import threading\n\n{does_nothing}"));
    let server = serve(&start);
    let process = create(&server, "a_process", "single.py", json!({}));
    let plain = create(&server, "b_plain", "plain.py", json!({}));
    let barred = create(&server, "c_barred", "many.py", json!({}));
    let (name, reason) = lane(&process);
    assert_eq!((name, reason), ("process", format!("module {} {REFUSES}", &single["import ".len()..]).as_str()));
    assert_eq!(lane(&plain), ("deferred", format!("{NEW}, and is moved inline when its runs fit the budget").as_str()));
    assert_eq!(lane(&barred).0, "deferred");
    assert!(lane(&barred).1.starts_with(&format!("{NEW}, and is not moved inline: the static check: ")), "{barred}");
    let rows = server.sql("main", TRIGGERS);
    for (answer, row) in [&process, &plain, &barred].into_iter().zip(&rows) {
        assert_eq!((lane(answer), &row["run_count"]), (lane(row), &json!(0)));
        assert_eq!(warnings(answer), "");
    }
    assert_eq!(server.write("main", "in n=1i 1").status, 204);
    server.sql_until("main", TRIGGERS, |rows| rows.iter().all(|row| row["run_count"] == 1));
    let rows = server.sql("main", "SELECT pid FROM out");
    assert!(rows.len() == 1 && rows[0]["pid"] != server.pid(), "{rows:?}");
    assert_eq!(discarded(&server), [] as [Value; 0]);
}

#[test]
fn the_command_line_says_the_lane() {
    let root = tempfile::tempdir().unwrap();
    let (start, single) = start(&root);
    start.plugin("single.py", &counts(&single));
    start.plugin("missing.py", &counts("import no_such_module"));
    let server = serve(&start);
    // What is known of a plugin is said at once.
    create(&server, "before", "single.py", json!({}));
    let spec = ["--trigger-spec", "table:in", "--disabled", "t"];
    let (good, out, errors) =
        server.command(&[&["create", "trigger", "-d", "main", "--path", "single.py"], &spec[..]].concat());
    assert!(good, "{errors}");
    let said = format!("Lane: process (module {} {REFUSES})\n", &single["import ".len()..]);
    assert_eq!(out, format!("Trigger t created successfully\n{said}"));
    let (good, out, errors) = server.command(&["enable", "trigger", "-d", "main", "t"]);
    assert!(good, "{errors}");
    assert_eq!(out, format!("Trigger t enabled successfully\n{said}"));
    let (good, out, errors) = server.command(&["update", "trigger", "-d", "main", "--isolation", "process", "t"]);
    assert!(good, "{errors}");
    assert_eq!(out, "Trigger t updated successfully\nLane: process (chosen by the operator)\n");
    let (_, out, _) = server.command(&["disable", "trigger", "-d", "main", "t"]);
    assert_eq!(out, "Trigger t disabled successfully\n");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let warning = "Warning: plugin_filename: 'missing.py': module no_such_module is not installed: ";
    loop {
        let change = ["update", "trigger", "-d", "main", "--plugin-filename", "missing.py", "t"];
        let (_, _, errors) = server.command(&change);
        if errors.contains(warning) {
            return;
        }
        assert!(std::time::Instant::now() < end, "{errors}");
    }
}

/// As plugins do whose packages may be missing.
const CATCHES: &str = r#"
try:
    import MODULE
    missing = False
except ImportError:
    missing = True
"#;

const SAYS: &str = r#"
import os
from .needs import missing

def process_writes(influxdb3_local, table_batches, args=None):
    if missing:
        influxdb3_local.error("required packages are not installed")
        return
    influxdb3_local.info(f"run in {os.getpid()}")
"#;

#[test]
fn no_line_of_a_folder_is_seen_that_would_do_without_its_module() {
    let root = tempfile::tempdir().unwrap();
    let (start, single) = start(&root);
    let folder = start.plugins.join("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("__init__.py"), SAYS).unwrap();
    std::fs::write(folder.join("needs.py"), CATCHES.replace("import MODULE", &single)).unwrap();
    // Nobody imports it.
    std::fs::write(folder.join("check.py"), "import no_such_module\n").unwrap();
    let server = serve(&start);
    let answer = create(&server, "t", "folder", json!({}));
    assert_eq!((lane(&answer).0, warnings(&answer).as_str()), ("process", ""));
    assert_eq!(server.write("main", "in n=1i 1").status, 204);
    let lines = "SELECT log_level, log_text FROM system.processing_engine_logs";
    let is_run = |row: &Value| row["log_text"].as_str().unwrap().starts_with("run in ");
    let rows = server.sql_until("main", lines, |rows| rows.iter().any(is_run));
    assert!(rows.iter().all(|row| row["log_level"] == "INFO"), "{rows:#?}");
    assert_eq!(discarded(&server), [] as [Value; 0]);
}

#[test]
fn a_module_that_is_not_installed_is_said_with_the_remedy() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    let venv = virtual_env(&mut start, "needs_another", "import no_such_other.part\n");
    let caught = CATCHES.replace("MODULE", "no_such_optional");
    start.plugin("p.py", &counts(&format!("import no_such_module.deep\nfrom needs_another import x\n{caught}")));
    // These have another in its place, and know where to look for it.
    start.plugin("r.py", &counts("import sys\nsys.path.append('/elsewhere')\nimport no_such_neighbour"));
    start.plugin("q.py", &counts("try:\n    import no_such_fast as json\nexcept ImportError:\n    import json\n"));
    let server = serve(&start);
    let answer = create(&server, "t", "p.py", json!({}));
    let pip = venv.join("bin/pip");
    let said = warnings(&answer);
    for text in [
        "plugin_filename: 'p.py': module no_such_module is not installed: ".to_owned(),
        format!("{} install no_such_module\n", pip.display()),
        "module no_such_other, which needs_another needs, is not installed: ".to_owned(),
        "module no_such_optional is not installed (the plugin catches that): ".to_owned(),
    ] {
        assert!(said.contains(&text), "{said}");
    }
    assert_eq!(lane(&answer).0, "deferred");
    let lines = "SELECT log_text FROM system.processing_engine_logs WHERE log_level = 'WARN'";
    let logged = |rows: &[Value]| said.lines().all(|text| rows.iter().any(|row| row["log_text"] == text));
    server.sql_until("main", lines, logged);
    assert!(server.log_text().contains("module no_such_module is not installed"));
    for (name, file) in [("u", "q.py"), ("v", "r.py")] {
        assert_eq!(warnings(&create(&server, name, file, json!({}))), "");
    }
    // It is looked for again.
    let packages = std::fs::read_dir(venv.join("lib")).unwrap().next().unwrap().unwrap().path().join("site-packages");
    std::fs::create_dir_all(packages.join("no_such_module")).unwrap();
    std::fs::write(packages.join("no_such_module/deep.py"), "").unwrap();
    let said = warnings(&update(&server, "t", json!({"disabled": true})));
    assert!(!said.contains("no_such_module") && said.contains("no_such_other"), "{said}");
}

#[test]
fn an_import_that_takes_long_does_not_hold_up_the_creation() {
    let root = tempfile::tempdir().unwrap();
    let (mut start, single) = start(&root);
    let go = root.path().join("go");
    let waits =
        format!("import os, time\nwhile not os.path.exists({:?}):\n    time.sleep(0.01)\n", go.display().to_string());
    virtual_env(&mut start, "waits_long", &waits);
    start.plugin("p.py", &counts(&format!("import waits_long\n{single}")));
    let server = serve(&start);
    let answer = server.create_trigger_with("main", "t", "p.py", "table:in", json!({}), Value::Null);
    assert_eq!(lane(&answer).0, "deferred");
    let reason = lane(&answer).1;
    assert!(reason.contains("; what it imports is still being tried: "), "{reason}");
    std::fs::write(&go, "").unwrap();
    assert_eq!(lane(&server.settled("main", "t", answer)).0, "process");
    assert!(until_lane(&server, "process", 0).contains(REFUSES));
}

#[test]
fn an_import_that_crashes_needs_a_process() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    virtual_env(&mut start, "crashes", "import ctypes\nctypes.string_at(0)\n");
    start.plugin("p.py", &counts("import crashes\nimport statistics"));
    let server = serve(&start);
    let answer = create(&server, "t", "p.py", json!({}));
    assert_eq!(lane(&answer), ("process", format!("module crashes {REFUSES}").as_str()));
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_change_of_the_file_brings_the_trigger_to_a_process_and_back() {
    let root = tempfile::tempdir().unwrap();
    let (start, single) = start(&root);
    start.plugin("p.py", &counts(""));
    let server = serve(&start);
    assert_eq!(lane(&create(&server, "t", "p.py", json!({}))).0, "deferred");
    start.plugin("p.py", &counts(&single));
    assert!(until_lane(&server, "process", 0).contains(REFUSES));
    start.plugin("p.py", &counts(&format!("{single}\nimport statistics")));
    server.sql_until("main", "SELECT lane FROM system.processing_engine_triggers", |rows| rows[0]["lane"] == "process");
    start.plugin("p.py", &counts("import statistics"));
    assert_eq!(until_lane(&server, "deferred", 0), "new code starts deferred");
    // By the API, which has the new version count at once.
    let body = json!({"plugin_name": "p.py", "content": counts(&single)});
    assert_eq!(server.post_json("/api/v3/plugins/files", &body).status, 200);
    assert_eq!(lane(&update(&server, "t", json!({}))).0, "process");
    assert_eq!(server.write("main", "in n=1i 1").status, 204);
    let rows = server.sql_until("main", "SELECT pid FROM out", |rows| rows.len() == 1);
    assert_ne!(rows[0]["pid"], server.pid());
    assert_eq!(discarded(&server), [] as [Value; 0]);
    let detail = "SELECT detail FROM system.trigger_runs WHERE outcome = 'decision' ORDER BY event_time";
    let decisions: Vec<Value> = server.sql("main", detail);
    assert_eq!(decisions.len(), 3, "{decisions:?}");
}

#[test]
fn triggers_are_in_their_lanes_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let (start, single) = start(&root);
    start.plugin("p.py", &counts(&single));
    let mut server = serve(&start);
    assert_eq!(lane(&create(&server, "t", "p.py", json!({}))).0, "process");
    server.kill();
    let server = start.run();
    assert!(until_lane(&server, "process", 0).contains(REFUSES));
    assert_eq!(server.write("main", "in n=1i 1").status, 204);
    let rows = server.sql_until("main", "SELECT pid FROM out", |rows| rows.len() == 1);
    assert_ne!(rows[0]["pid"], server.pid());
    assert_eq!(discarded(&server), [] as [Value; 0]);
}

#[test]
fn who_chooses_a_lane_is_told_what_does_not_load_there() {
    let root = tempfile::tempdir().unwrap();
    let (start, single) = start(&root);
    start.plugin("p.py", &counts(&single));
    let server = serve(&start);
    for (settings, wanted, stays) in [
        (json!({"isolation": "process"}), "process", None),
        (json!({"isolation": "process", "execution": "deferred"}), "process", None),
        (json!({"execution": "inline"}), "inline", Some("execution=inline")),
        (json!({"isolation": "interpreter", "execution": "deferred"}), "deferred", Some("isolation=interpreter")),
    ] {
        let name = format!("t_{settings}");
        let answer = create(&server, &name, "p.py", settings);
        assert_eq!(lane(&answer), (wanted, "chosen by the operator"));
        let said = warnings(&answer);
        match stays {
            None => assert_eq!(said, ""),
            Some(stays) => assert!(
                said.contains(&format!("{REFUSES}, and {stays} keeps the trigger out of the process lane")),
                "{said}"
            ),
        }
    }
    let answer = create(&server, "t_deferred", "p.py", json!({"execution": "deferred"}));
    assert_eq!(lane(&answer).0, "process", "it may move");
    let answer = create(&server, "t_kept", "p.py", json!({"isolation": "interpreter"}));
    assert_eq!(lane(&answer).0, "deferred");
    assert!(warnings(&answer).contains("isolation=interpreter keeps"), "{answer}");
    let answer = update(&server, "t_kept", json!({"isolation": "auto"}));
    assert_eq!((lane(&answer).0, warnings(&answer).as_str()), ("process", ""));
}
