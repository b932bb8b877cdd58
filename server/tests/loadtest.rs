//! The load test tool against the real server: what it writes down is what happened.
//!
//! The tool is another package, so cargo does not hand its program to this test: it is built here, which costs nothing where it is
//! built already.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The tool, built as `make build` does.
fn tool() -> PathBuf {
    let server = Path::new(env!("CARGO_BIN_EXE_saltus"));
    let target = server.parent().and_then(Path::parent).unwrap();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "-p", "saltus-loadtest", "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    target.join("release/saltus-loadtest")
}

fn run(folder: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(tool());
    command.current_dir(folder).arg("run").args(words).args(["--saltus", env!("CARGO_BIN_EXE_saltus")]);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The figures of a stream: what, from when, count.
fn measures(line: &Value, stream: &str) -> Vec<(String, String, u64)> {
    let streams = line["result"]["streams"].as_array().unwrap();
    let stream = streams.iter().find(|found| found["stream"] == stream).unwrap();
    let measure = |measure: &Value| {
        let word = |name: &str| measure[name].as_str().unwrap().to_owned();
        (word("what"), word("from"), measure["summary"]["count"].as_u64().unwrap())
    };
    stream["measures"].as_array().unwrap().iter().map(measure).collect()
}

#[test]
fn scenarios_measure_every_request_and_every_entry_and_leave_files_for_people_and_programs() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["single-row", "http-trigger", "schedule", "queryable", "tsbs-devops", "mixed", "max-ingest"];
    let ran = run(folder.path(), &[&names[..], &["--seconds", "1", "--rounds", "1", "--output", "out"]].concat());
    assert!(ran.status.success(), "{}\n{}", text(&ran.stdout), text(&ran.stderr));
    assert_eq!(text(&ran.stderr), "", "no progress bar where nobody watches");

    let out = folder.path().join("out");
    let lines = std::fs::read_to_string(out.join("results.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let scenarios: Vec<&str> = lines.iter().map(|line| line["scenario"]["name"].as_str().unwrap()).collect();
    assert_eq!(scenarios, names);
    for line in &lines {
        assert!(line["machine"]["kernel"].as_str().is_some_and(|kernel| !kernel.is_empty()));
        for stream in line["result"]["streams"].as_array().unwrap() {
            for trouble in ["failed", "busy", "never_entered"] {
                assert_eq!(stream[trouble], 0, "{trouble} in {line}");
            }
        }
    }
    // Requests and entries are those that were due in the measured second, neither more nor fewer.
    let all = [("ack", "due", 500), ("ack", "sent", 500), ("entry", "due", 500)];
    let all = all.map(|(what, from, count)| (what.to_owned(), from.to_owned(), count));
    assert_eq!(measures(&lines[0], "writes"), all);
    let calls = measures(&lines[1], "calls");
    assert_eq!(calls.iter().map(|(what, ..)| what.as_str()).collect::<Vec<_>>(), ["round trip", "round trip", "entry"]);
    assert!(calls.iter().all(|(_, _, count)| *count == 500), "{calls:?}");
    let (what, _, count) = &measures(&lines[2], "inline")[0];
    assert!(what == "schedule" && (1..=100).contains(count), "{what} {count}");
    assert!(lines[6]["result"]["streams"][0]["rows_per_s"].as_f64().unwrap() > 0.0);
    assert!(lines[6]["result"]["processor_us_per_row"].as_f64().unwrap() > 0.0);

    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("| saltus | writes | entry"), "{report}");
    for name in ["single-row.png", "single-row-time.svg", "single-row-saltus-writes-ack.hgrm", "schedule.svg"] {
        assert!(out.join(name).metadata().unwrap().len() > 500, "{name}");
    }
    let hgrm = std::fs::read_to_string(out.join("single-row-saltus-writes-entry.hgrm")).unwrap();
    assert!(hgrm.contains("Total count    =          500]"), "{hgrm}");
}

#[test]
fn what_is_wrong_in_a_scenario_is_named_with_its_file_and_nothing_is_started() {
    let folder = tempfile::tempdir().unwrap();
    let scenario =
        "title = \"t\"\nabout = \"a\"\n[[stream]]\nname = \"s\"\nrates = 5\n[stream.write]\nshape = \"sensor\"\n";
    std::fs::write(folder.path().join("mine.toml"), scenario).unwrap();
    let ran = run(folder.path(), &["mine.toml"]);
    assert!(!ran.status.success());
    let said = text(&ran.stderr);
    for part in ["mine.toml", "unknown field `rates`", "line 5", "load-testing.md"] {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    assert!(!folder.path().join("loadtest-results").exists());
}
