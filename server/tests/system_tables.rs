//! Section 5 of the reference: the system tables, their columns and types, over HTTP and from a plugin.

mod common;

use common::{Server, Start};
use serde_json::{Value, json};

const TIME: &str = "Timestamp(Nanosecond, None)";
const TIME_MS: &str = "Timestamp(Millisecond, None)";
const TIME_S: &str = "Timestamp(Second, Some(\"+00:00\"))";
const DURATION: &str = "Duration(Nanosecond)";

/// What the reference has in every database (5.1), and what only `_internal` has (5.2). Text is `Utf8` throughout, where
/// InfluxDB 3 has `Utf8View` in some tables.
const EVERYWHERE: &[(&str, &[(&str, &str)])] = &[
    (
        "processing_engine_triggers",
        &[
            ("trigger_name", "Utf8"),
            ("plugin_filename", "Utf8"),
            ("trigger_specification", "Utf8"),
            ("disabled", "Boolean"),
            ("error_behavior", "Utf8"),
        ],
    ),
    (
        "processing_engine_trigger_arguments",
        &[("trigger_name", "Utf8"), ("argument_key", "Utf8"), ("argument_value", "Utf8")],
    ),
    (
        "processing_engine_logs",
        &[("time", TIME), ("event_time", TIME), ("trigger_name", "Utf8"), ("log_level", "Utf8"), ("log_text", "Utf8")],
    ),
    (
        "queries",
        &[
            ("id", "Utf8"),
            ("phase", "Utf8"),
            ("issue_time", TIME),
            ("query_type", "Utf8"),
            ("query_text", "Utf8"),
            ("partitions", "Int64"),
            ("parquet_files", "Int64"),
            ("plan_duration", DURATION),
            ("permit_duration", DURATION),
            ("execute_duration", DURATION),
            ("end2end_duration", DURATION),
            ("compute_duration", DURATION),
            ("max_memory", "Int64"),
            ("success", "Boolean"),
            ("running", "Boolean"),
            ("cancelled", "Boolean"),
            ("trace_id", "Utf8"),
        ],
    ),
    (
        "last_caches",
        &[
            ("table", "Utf8"),
            ("name", "Utf8"),
            ("key_column_ids", "List(UInt16)"),
            ("key_column_names", "List(Utf8)"),
            ("value_column_ids", "List(UInt16)"),
            ("value_column_names", "List(Utf8)"),
            ("count", "UInt64"),
            ("ttl", "UInt64"),
        ],
    ),
    (
        "distinct_caches",
        &[
            ("table", "Utf8"),
            ("name", "Utf8"),
            ("column_ids", "List(UInt16)"),
            ("column_names", "List(Utf8)"),
            ("max_cardinality", "UInt64"),
            ("max_age_seconds", "UInt64"),
        ],
    ),
    (
        "parquet_files",
        &[
            ("table_name", "Utf8"),
            ("path", "Utf8"),
            ("size_bytes", "UInt64"),
            ("row_count", "UInt64"),
            ("min_time", "Int64"),
            ("max_time", "Int64"),
        ],
    ),
    ("influxdb_schema", &[("measurement", "Utf8"), ("key", "Utf8"), ("data_type", "Utf8")]),
];

const INTERNAL: &[(&str, &[(&str, &str)])] = &[
    (
        "tokens",
        &[
            ("token_id", "UInt64"),
            ("name", "Utf8"),
            ("created_at", TIME_MS),
            ("description", "Utf8"),
            ("created_by_token_id", "UInt64"),
            ("updated_at", TIME_MS),
            ("updated_by_token_id", "UInt64"),
            ("expiry", TIME_MS),
            ("permissions", "Utf8"),
        ],
    ),
    (
        "plugin_files",
        &[
            ("plugin_name", "Utf8"),
            ("file_name", "Utf8"),
            ("file_path", "Utf8"),
            ("size_bytes", "Int64"),
            ("last_modified", "Int64"),
        ],
    ),
    (
        "databases",
        &[
            ("database_name", "Utf8"),
            ("retention_period_ns", "UInt64"),
            ("deleted", "Boolean"),
            ("hard_deletion_time", TIME_S),
        ],
    ),
    (
        "tables",
        &[
            ("database_name", "Utf8"),
            ("table_name", "Utf8"),
            ("column_count", "UInt64"),
            ("series_key_columns", "Utf8"),
            ("last_cache_count", "UInt64"),
            ("distinct_cache_count", "UInt64"),
            ("deleted", "Boolean"),
            ("hard_deletion_time", TIME_S),
        ],
    ),
    (
        "nodes",
        &[
            ("node_id", "Utf8"),
            ("node_catalog_id", "UInt32"),
            ("instance_id", "Utf8"),
            ("mode", "List(Utf8)"),
            ("core_count", "UInt64"),
            ("state", "Utf8"),
            ("updated_at", TIME_MS),
            ("cli_params", "Utf8"),
        ],
    ),
    ("generation_durations", &[("level", "UInt8"), ("duration_seconds", "UInt64")]),
];

/// Reads what it is told to, as a plugin of somebody who wants to see everything would.
const READER: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        for row in batch["rows"]:
            rows = influxdb3_local.query(f"SELECT * FROM system.{row['what']}", None, row["db"])
            influxdb3_local.write(LineBuilder("read").tag("what", row["what"]).int64_field("rows", len(rows)).string_field("first", repr(rows[:1])))
"#;

fn check(server: &Server, db: &str, tables: &[(&str, &[(&str, &str)])]) {
    for (table, columns) in tables {
        let sql = format!(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'system' AND table_name = '{table}'"
        );
        let there = server.sql(db, &sql);
        for (name, data_type) in *columns {
            let column = there.iter().find(|row| row["column_name"] == *name);
            let column = column.unwrap_or_else(|| panic!("{db}: system.{table} has no column {name}: {there:?}"));
            assert_eq!(column["data_type"], *data_type, "{db}: system.{table}.{name}");
        }
        for format in ["json", "jsonl", "csv", "pretty"] {
            let request = json!({"db": db, "q": format!("SELECT * FROM system.{table}"), "format": format});
            let reply = server.post_json("/api/v3/query_sql", &request);
            assert_eq!(reply.status, 200, "{db}: system.{table} as {format}: {}", reply.body);
        }
    }
}

#[test]
fn every_system_table_of_the_reference_has_its_columns_and_reads_in_every_format() {
    let root = tempfile::tempdir().unwrap();
    let server = Start::new(root.path()).run();
    server.create_database("main");
    assert_eq!(server.write("main", "in,host=a n=0i 1").status, 204);
    check(&server, "main", EVERYWHERE);
    check(&server, "_internal", EVERYWHERE);
    check(&server, "_internal", INTERNAL);
    for (table, _) in INTERNAL {
        let request = json!({"db": "main", "q": format!("SELECT * FROM system.{table}"), "format": "json"});
        let reply = server.post_json("/api/v3/query_sql", &request);
        assert_eq!(reply.status, 400, "{table} is of _internal alone: {}", reply.body);
        assert!(reply.body.contains("not found"), "{}", reply.body);
    }
}

#[test]
fn the_node_is_described_by_what_it_was_started_with() {
    let root = tempfile::tempdir().unwrap();
    let server = Start::new(root.path()).run();
    let node = server.sql("_internal", "SELECT * FROM system.nodes").remove(0);
    assert_eq!(node["mode"], json!(["core"]));
    assert_eq!(node["state"], "running");
    let given: Value = serde_json::from_str(node["cli_params"].as_str().unwrap()).unwrap();
    assert_eq!(given["without-auth"], "true");
    assert_eq!(given["node-id"], node["node_id"]);
    assert!(given.get("http-idle-timeout").is_none(), "what was not given is no parameter: {given}");
    let csv = server.post_json(
        "/api/v3/query_sql",
        &json!({"db": "_internal", "q": "SELECT mode, state FROM system.nodes", "format": "csv"}),
    );
    assert_eq!(csv.body, "mode,state\n[core],running\n");
}

#[test]
fn a_plugin_reads_every_system_table() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("reader.py", READER);
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "t", "reader.py", "table:in", "auto", Value::Null);
    let of_main = EVERYWHERE.iter().map(|(table, _)| ("main", *table));
    let of_internal = INTERNAL.iter().map(|(table, _)| ("_internal", *table));
    let all: Vec<_> = of_main.chain(of_internal).collect();
    for (n, (db, table)) in all.iter().enumerate() {
        assert_eq!(server.write("main", &format!("in what=\"{table}\",db=\"{db}\" {}", n + 1)).status, 204);
    }
    let sql = "SELECT what, rows, first FROM read ORDER BY what";
    let read = server.sql_until("main", sql, |rows| rows.len() == all.len());
    let of = |what: &str| read.iter().find(|row| row["what"] == what).unwrap();
    for what in ["processing_engine_triggers", "queries", "influxdb_schema", "plugin_files", "databases", "tables"] {
        assert!(of(what)["rows"].as_u64() > Some(0), "{what}: {read:?}");
    }
    assert!(of("nodes")["first"].as_str().unwrap().contains("'mode': ['core']"), "{read:?}");
}
