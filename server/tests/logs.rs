//! `system.processing_engine_logs` over restarts, and the files of plugins.

mod common;

use common::Start;
use serde_json::{Value, json};

const TALKS: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        for row in batch["rows"]:
            influxdb3_local.info(f"seen {row['n']}")
            if row["n"] == 2:
                raise KeyError("two")
"#;

const SAID: &str = "SELECT time, log_text, log_level, run_id, traceback, database FROM system.processing_engine_logs \
                    WHERE trigger_name = 't' AND (log_level = 'ERROR' OR log_text LIKE 'seen%') ORDER BY time";

#[test]
fn what_plugins_said_is_there_after_a_kill_and_what_the_engine_said_of_runs_after_an_orderly_stop() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("talks.py", TALKS);
    let mut server = start.run();
    server.create_database("main");
    server.create_database("other");
    server.create_trigger("main", "t", "talks.py", "table:in", "deferred", Value::Null);
    for n in [1, 2] {
        assert_eq!(server.write("main", &format!("in n={n}i {n}")).status, 204);
        server.sql_until("main", SAID, |rows| rows.iter().any(|row| row["log_text"] == json!(format!("seen {n}"))));
    }
    let before = server.sql_until("main", SAID, |rows| rows.len() == 3);
    assert_eq!(before[2]["log_level"], "ERROR");
    let traceback = before[2]["traceback"].as_str().unwrap();
    assert!(traceback.contains("line 7, in process_writes") && traceback.contains("KeyError: 'two'"), "{traceback}");
    assert!(before[0].get("traceback").is_none(), "{}", before[0]);
    server.kill();
    let mut server = start.run();
    // The edge of the crash may be given again.
    let said = server.sql("main", SAID);
    assert_eq!(said[..3], before, "after a kill");
    assert_eq!(server.sql("other", SAID), Vec::<Value>::new(), "of its own database only");

    assert_eq!(server.write("main", "in n=3i 3").status, 204);
    let took = "SELECT duration_us FROM system.processing_engine_logs WHERE log_text LIKE 'finished execution%'";
    server.sql_until("main", took, |rows| rows.last().is_some_and(|row| row["duration_us"].as_f64().unwrap() > 0.0));
    let before = server.sql("main", took);
    assert!(server.terminate(std::time::Duration::from_secs(20)));
    let server = start.run();
    assert_eq!(server.sql("main", took), before, "after an orderly stop");
    let seen = server.sql("main", SAID);
    assert_eq!(seen.last().unwrap()["log_text"], "seen 3");
    let mut times: Vec<_> = seen.iter().map(|row| row["time"].to_string()).collect();
    times.dedup();
    assert_eq!(times.len(), seen.len(), "nothing is kept twice: {seen:?}");
}

#[test]
fn the_files_of_plugins_are_a_system_table() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("talks.py", TALKS);
    std::fs::create_dir(root.path().join("plugins/pack")).unwrap();
    start.plugin("pack/__init__.py", TALKS);
    start.plugin("pack/helper.py", "X = 1\n");
    let server = start.run();
    server.create_database("main");
    for (name, plugin) in [("one", "talks.py"), ("many", "pack")] {
        server.create_trigger("main", name, plugin, "table:in", "deferred", Value::Null);
    }
    let files =
        "SELECT plugin_name, file_name, size_bytes, last_modified > 0 AS dated FROM system.plugin_files ORDER BY 1, 2";
    let row = |trigger: &str, file: &str, size: usize| json!({"plugin_name": trigger, "file_name": file, "size_bytes": size, "dated": true});
    let rows = [
        row("many", "pack/__init__.py", TALKS.len()),
        row("many", "pack/helper.py", 6),
        row("one", "talks.py", TALKS.len()),
    ];
    assert_eq!(server.sql("_internal", files), rows);
}
