//! Many triggers, tables and databases, against a real server: each trigger runs for what is its own, whatever becomes of the others.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Server, Start};
use serde_json::{Value, json};

/// Says who ran for which table and row; for the same row it says the same, so that it may be given again.
const SAYS: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        for row in batch["rows"]:
            line = LineBuilder("said").tag("trigger", args["me"]).tag("source", batch["table_name"])
            influxdb3_local.write(line.int64_field("n", row["n"]).time_ns(row["n"]))

def process_scheduled_call(influxdb3_local, call_time, args=None):
    pass

def process_request(influxdb3_local, query_parameters, request_headers, request_body, args=None):
    return {"me": args["me"]}
"#;

fn serve(root: &Path) -> (Start, Server) {
    let start = Start::new(root);
    start.plugin("says.py", SAYS);
    let server = start.run();
    server.create_database("main");
    (start, server)
}

fn create(server: &Server, name: &str, spec: &str) {
    server.create_trigger_with("main", name, "says.py", spec, json!({}), json!({"me": name}));
}

fn trigger_path(name: &str, what: &str) -> String {
    format!("/api/v3/configure/processing_engine_trigger{what}?db=main&trigger_name={name}")
}

/// What was said: trigger, table and row.
type Said = BTreeSet<(String, String, i64)>;

/// Writes row `n` to these tables, and waits until these triggers, and nobody else, have said so.
fn write_and_expect(server: &Server, n: i64, tables: &[usize], runs: impl Fn(usize) -> bool, said: &mut Said) {
    let lines: String = tables.iter().map(|table| format!("w{table} n={n}i\n")).collect();
    let reply = server.write("main", &lines);
    assert_eq!(reply.status, 204, "{}", reply.body);
    said.extend(tables.iter().filter(|t| runs(**t)).map(|t| (format!("t{t}"), format!("w{t}"), n)));
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let of = |row: &Value| (text(row, "trigger"), text(row, "source"), row["n"].as_i64().unwrap());
    let rows = server.sql_until("main", "SELECT trigger, source, n FROM said", |rows| rows.len() >= said.len());
    assert_eq!(rows.iter().map(of).collect::<Said>(), *said);
}

#[test]
fn of_two_thousand_triggers_each_runs_for_its_own_table_whatever_becomes_of_the_others() {
    const TRIGGERS: usize = 2_000;
    let root = tempfile::tempdir().unwrap();
    let (start, mut server) = serve(root.path());
    for number in 0..TRIGGERS {
        create(&server, &format!("t{number}"), &format!("table:w{number}"));
    }
    let tables: Vec<usize> = (0..TRIGGERS).step_by(53).collect();
    let mut said = Said::new();
    write_and_expect(&server, 1, &tables, |_| true, &mut said);

    server.kill();
    server = start.run();
    write_and_expect(&server, 2, &tables, |_| true, &mut said);

    let (deleted, disabled) = (|t: usize| t.is_multiple_of(3), |t: usize| t % 3 == 1);
    for &table in &tables {
        let name = format!("t{table}");
        if deleted(table) {
            assert_eq!(server.delete(&format!("{}&force=true", trigger_path(&name, ""))).status, 200);
        } else if disabled(table) {
            assert_eq!(server.post(&trigger_path(&name, "/disable"), "").status, 200);
        }
    }
    write_and_expect(&server, 3, &tables, |t| !deleted(t) && !disabled(t), &mut said);
    // Those beside them are as they were.
    let beside: Vec<usize> = tables.iter().map(|t| t + 1).collect();
    write_and_expect(&server, 4, &beside, |t| t < TRIGGERS, &mut said);

    assert!(server.terminate(Duration::from_secs(20)));
    server = start.run();
    write_and_expect(&server, 5, &tables, |t| !deleted(t) && !disabled(t), &mut said);
    for &table in tables.iter().filter(|t| disabled(**t)) {
        assert_eq!(server.post(&trigger_path(&format!("t{table}"), "/enable"), "").status, 200);
    }
    write_and_expect(&server, 6, &tables, |t| !deleted(t), &mut said);
    let listed = server.sql("main", "SELECT count(*) AS n FROM system.processing_engine_triggers");
    assert_eq!(listed[0]["n"].as_u64(), Some((TRIGGERS - tables.iter().filter(|t| deleted(**t)).count()) as u64));
}

#[test]
fn of_many_paths_each_leads_to_its_trigger_and_one_that_was_given_up_is_free() {
    const PATHS: usize = 200;
    let root = tempfile::tempdir().unwrap();
    let (start, mut server) = serve(root.path());
    for number in 0..PATHS {
        create(&server, &format!("r{number}"), &format!("request:p{number}"));
    }
    let asked = |server: &Server, path: &str| {
        let reply = server.get(&format!("/api/v3/engine/{path}"));
        (reply.status, serde_json::from_str::<Value>(&reply.body).unwrap()["me"].as_str().unwrap_or("").to_owned())
    };
    let answers = |name: &str| (200, name.to_owned());
    assert_eq!(asked(&server, "p0"), answers("r0"));
    assert_eq!(asked(&server, "p117"), answers("r117"));

    let moved = json!({"db": "main", "trigger_name": "r117", "trigger_specification": "request:elsewhere"});
    assert_eq!(server.put_json("/api/v3/configure/processing_engine_trigger", &moved).status, 200);
    assert_eq!(asked(&server, "p117").0, 404);
    assert_eq!(asked(&server, "elsewhere"), answers("r117"));
    create(&server, "heir", "request:p117");
    assert_eq!(asked(&server, "p117"), answers("heir"));
    assert_eq!(server.post(&trigger_path("r5", "/disable"), "").status, 200);
    assert_eq!(asked(&server, "p5").0, 404);
    create(&server, "other", "request:p5");
    let refused = server.post(&trigger_path("r5", "/enable"), "");
    assert!(refused.status == 409 && refused.body.contains("are for trigger 'other'"), "{}", refused.body);

    server.kill();
    server = start.run();
    for (path, name) in [("p117", "heir"), ("elsewhere", "r117"), ("p5", "other"), ("p199", "r199")] {
        assert_eq!(asked(&server, path), answers(name));
    }
}

#[test]
fn schedules_go_on_when_others_come_and_go() {
    const SCHEDULES: usize = 40;
    let root = tempfile::tempdir().unwrap();
    let (_start, server) = serve(root.path());
    (0..SCHEDULES).for_each(|number| create(&server, &format!("s{number}"), "every:1s"));
    let runs = |server: &Server, right: &dyn Fn(&BTreeMap<String, u64>) -> bool| {
        let of = |rows: &[Value]| -> BTreeMap<String, u64> {
            let name = |row: &Value| row["trigger_name"].as_str().unwrap().to_owned();
            rows.iter().map(|row| (name(row), row["run_count"].as_u64().unwrap())).collect()
        };
        let sql = "SELECT trigger_name, run_count FROM system.processing_engine_triggers";
        of(&server.sql_until("main", sql, |rows| right(&of(rows))))
    };
    let all_ran = |runs: &BTreeMap<String, u64>| runs.values().all(|count| *count >= 1);
    runs(&server, &all_ran);
    for number in (0..SCHEDULES).step_by(2) {
        assert_eq!(server.delete(&format!("{}&force=true", trigger_path(&format!("s{number}"), ""))).status, 200);
    }
    let slower = json!({"db": "main", "trigger_name": "s1", "trigger_specification": "every:1000h"});
    assert_eq!(server.put_json("/api/v3/configure/processing_engine_trigger", &slower).status, 200);
    create(&server, "late", "every:1s");
    let before = runs(&server, &|_| true);
    assert_eq!(before.len(), SCHEDULES / 2 + 1);
    let after = runs(&server, &|now| {
        now.iter().all(|(name, count)| name == "s1" || *count >= before.get(name).copied().unwrap_or(0) + 2)
    });
    assert!(after["s1"] <= before["s1"] + 1, "a run that was due when it was changed may have come");
}

/// Tables come, and some go, while others look: what was acknowledged is there, and can be read.
#[test]
fn whoever_looks_while_tables_come_and_go_sees_all_that_were_acknowledged() {
    const TABLES: usize = 300;
    let root = tempfile::tempdir().unwrap();
    let (_start, server) = serve(root.path());
    let stays = |number: usize| !number.is_multiple_of(3);
    let (acknowledged, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (server, acknowledged, done) = (&server, &acknowledged, &done);
        let looks = scope.spawn(move || {
            loop {
                let (there, last) = (acknowledged.load(Ordering::SeqCst), done.load(Ordering::SeqCst));
                let sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'iox'";
                let rows = server.sql("main", sql);
                let names: BTreeSet<&str> = rows.iter().filter_map(|row| row["table_name"].as_str()).collect();
                let missing = (0..there).filter(|n| stays(*n)).find(|n| !names.contains(format!("c{n}").as_str()));
                assert_eq!(missing, None, "of {there}");
                if let Some(newest) = (0..there).rev().find(|n| stays(*n)) {
                    let rows = server.sql("main", &format!("SELECT v FROM c{newest}"));
                    assert_eq!(rows[0]["v"].as_u64(), Some(newest as u64));
                }
                if last {
                    return names.len();
                }
            }
        });
        for number in 0..TABLES {
            assert_eq!(server.write("main", &format!("c{number} v={number}i")).status, 204);
            acknowledged.store(number + 1, Ordering::SeqCst);
            if !stays(number) {
                assert_eq!(server.delete(&format!("/api/v3/configure/table?db=main&table=c{number}")).status, 200);
            }
        }
        done.store(true, Ordering::SeqCst);
        assert_eq!(looks.join().unwrap(), (0..TABLES).filter(|n| stays(*n)).count());
    });
}

#[test]
fn of_many_databases_each_has_its_own_tables_and_one_that_is_deleted_takes_no_other_along() {
    const DATABASES: usize = 200;
    let root = tempfile::tempdir().unwrap();
    let (start, mut server) = serve(root.path());
    for number in 0..DATABASES {
        if number % 2 == 0 {
            server.create_database(&format!("d{number}"));
        }
        // The others are made by their first row.
        assert_eq!(server.write(&format!("d{number}"), &format!("t v={number}i")).status, 204);
    }
    for number in (0..DATABASES).step_by(5) {
        assert_eq!(server.delete(&format!("/api/v3/configure/database?db=d{number}")).status, 200);
    }
    server.kill();
    server = start.run();
    let listed = server.sql("_internal", "SELECT database_name FROM system.databases");
    let listed: BTreeSet<String> = listed.iter().map(|row| row["database_name"].as_str().unwrap().to_owned()).collect();
    for number in 0..DATABASES {
        let name = format!("d{number}");
        assert_eq!(listed.contains(&name), number % 5 != 0, "{name}");
        if number % 5 != 0 {
            assert_eq!(server.sql(&name, "SELECT v FROM t")[0]["v"].as_u64(), Some(number as u64));
        }
    }
    let gone = server.post_json("/api/v3/query_sql", &json!({"db": "d0", "q": "SELECT 1", "format": "json"}));
    assert_eq!(gone.status, 404, "{}", gone.body);
}
