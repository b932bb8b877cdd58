//! Plugins that catch the refusal of a module, as they catch a package that is not installed: with `isolation=auto` they get the
//! module all the same, in a process of their own.

mod common;

use common::{Server, Start};
use serde_json::{Value, json};

/// The statement that fails where interpreters have a GIL of their own; `single` if it does not.
const FIND: &str = r#"
from importlib.util import find_spec
import importlib
NAME = next(name for name in ("_curses", "readline", "_tkinter", "_testsinglephase") if find_spec(name))
"#;

/// Says whether it has the module, and where it runs.
const SAY: &str = r#"
import os

def say(influxdb3_local, table_batches, single):
    if single is None:
        influxdb3_local.error("the package is not installed")
    for batch in table_batches:
        for row in batch["rows"]:
            line = LineBuilder("out").int64_field("n", row["n"]).bool_field("has", single is not None)
            influxdb3_local.write(line.int64_field("pid", os.getpid()).time_ns(row["time"]))
"#;

const AT_THE_TOP: &str = r#"
try:
    single = importlib.import_module(NAME)
except ImportError:
    single = None

def process_writes(influxdb3_local, table_batches, args=None):
    say(influxdb3_local, table_batches, single)
"#;

const IN_THE_RUN: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    try:
        import_needed = importlib.import_module(NAME)
    except ImportError:
        influxdb3_local.error("the package is not installed")
        return
    say(influxdb3_local, table_batches, import_needed)
"#;

/// A library that does without what it cannot have, when it is imported and when it is used.
const LIBRARY: &str = r#"
try:
    single = importlib.import_module(NAME)
except ImportError:
    single = None

slow = single is None

def works():
    try:
        importlib.import_module(NAME)
    except ImportError:
        pass
"#;

const USES_LIBRARY: &str = r#"
import sys
sys.path.insert(0, LIBRARIES)
import library_with_a_slower_way

def process_writes(influxdb3_local, table_batches, args=None):
    library_with_a_slower_way.works()
    say(influxdb3_local, table_batches, None if library_with_a_slower_way.slow else True)
"#;

/// Puts an extension that is refused beside a source of the same name.
const BESIDE_ITS_SOURCE: &str = r#"
import os, shutil, sys
if not os.path.exists(LIBRARIES):
    os.makedirs(LIBRARIES)
    shutil.copy(find_spec(NAME).origin, LIBRARIES)
    with open(os.path.join(LIBRARIES, NAME + ".py"), "w") as source:
        source.write("answer = 42\n")
    sys.path.insert(0, LIBRARIES)

def process_writes(influxdb3_local, table_batches, args=None):
    say(influxdb3_local, table_batches, importlib.import_module(NAME).answer)
"#;

fn lane(server: &Server) -> Value {
    server.sql("main", "SELECT lane FROM system.processing_engine_triggers").remove(0)["lane"].take()
}

/// Writes three rows, one after the other, and gives what came of them.
fn rows_of(server: &Server) -> Vec<Value> {
    for n in 0..3 {
        assert_eq!(server.write("main", &format!("in n={n}i {}", n + 1)).status, 204);
        let sql = "SELECT n, has, pid FROM out ORDER BY n";
        server.sql_until("main", sql, |rows| rows.len() == n + 1);
    }
    server.sql("main", "SELECT n, has, pid FROM out ORDER BY n")
}

fn moves(name: &str, write: impl Fn(&Start), execution: &str) {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    write(&start);
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "t", name, "table:in", execution, Value::Null);
    let rows = rows_of(&server);
    assert!(rows.iter().all(|row| row["has"] == true && row["pid"] != server.pid()), "{execution}: {rows:?}");
    assert_eq!(lane(&server), "process", "{execution}");
}

#[test]
fn a_plugin_that_catches_the_refusal_of_a_module_gets_it_in_a_process() {
    for execution in ["auto", "deferred"] {
        moves("top.py", |start| start.plugin("top.py", &[FIND, SAY, AT_THE_TOP].concat()), execution);
        moves("run.py", |start| start.plugin("run.py", &[FIND, SAY, IN_THE_RUN].concat()), execution);
    }
}

#[test]
fn so_does_a_plugin_that_is_a_directory_and_catches_it_in_one_of_its_files() {
    let files = |start: &Start| {
        let directory = start.plugins.join("folder");
        std::fs::create_dir_all(&directory).unwrap();
        let entry = "from .inner import say, single\n\
                     def process_writes(influxdb3_local, table_batches, args=None):\n    say(influxdb3_local, table_batches, single)\n";
        std::fs::write(directory.join("__init__.py"), entry).unwrap();
        std::fs::write(directory.join("inner.py"), [FIND, SAY, AT_THE_TOP].concat()).unwrap();
    };
    for execution in ["auto", "deferred"] {
        moves("folder", files, execution);
    }
}

#[test]
fn what_a_library_does_without_is_no_reason_for_a_process() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let libraries = root.path().join("libraries");
    std::fs::create_dir_all(&libraries).unwrap();
    std::fs::write(libraries.join("library_with_a_slower_way.py"), [FIND, LIBRARY].concat()).unwrap();
    let place = format!("LIBRARIES = {:?}\n", libraries.to_str().unwrap());
    start.plugin("uses.py", &[&place, SAY, USES_LIBRARY].concat());
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "t", "uses.py", "table:in", "auto", Value::Null);
    let rows = rows_of(&server);
    assert!(rows.iter().all(|row| row["has"] == false && row["pid"] == server.pid()), "{rows:?}");
    assert_ne!(lane(&server), "process");
}

#[test]
fn a_trigger_that_is_told_to_stay_has_what_the_plugin_makes_of_the_refusal() {
    for settings in [json!({"isolation": "interpreter"}), json!({"execution": "inline"})] {
        let root = tempfile::tempdir().unwrap();
        let start = Start::new(root.path());
        start.plugin("top.py", &[FIND, SAY, AT_THE_TOP].concat());
        let server = start.run();
        server.create_database("main");
        server.create_trigger_with("main", "t", "top.py", "table:in", settings, Value::Null);
        let rows = rows_of(&server);
        assert!(rows.iter().all(|row| row["has"] == false && row["pid"] == server.pid()), "{rows:?}");
    }
}

#[test]
fn the_source_beside_an_extension_that_is_refused_takes_its_place() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let place = format!("LIBRARIES = {:?}\n", root.path().join("libraries").to_str().unwrap());
    start.plugin("uses.py", &[&place, FIND, SAY, BESIDE_ITS_SOURCE].concat());
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "t", "uses.py", "table:in", "deferred", Value::Null);
    let rows = rows_of(&server);
    assert!(rows.iter().all(|row| row["has"] == true && row["pid"] == server.pid()), "{rows:?}");
}

#[test]
fn a_test_of_such_a_plugin_shows_the_run_in_the_process() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("top.py", &[FIND, SAY, AT_THE_TOP].concat());
    let server = start.run();
    server.create_database("main");
    let body = json!({"filename": "top.py", "database": "main", "input_lp": "in n=0i 1"});
    let answer: Value = serde_json::from_str(&server.post_json("/api/v3/plugin_test/wal", &body).body).unwrap();
    assert_eq!(answer["errors"], json!([]), "{answer}");
    let written = answer["database_writes"]["main"][0].as_str().unwrap();
    assert!(written.contains("has=t"), "{answer}");
}
