//! The query engine over tables in memory.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, DictionaryArray, Float64Array, Int64Array, RecordBatch, RecordBatchOptions, TimestampNanosecondArray,
};
use arrow::datatypes::{Int32Type, SchemaRef};
use arrow::error::ArrowError;
use futures_lite::future::block_on;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt};
use saltus_core::catalog::TableInfo;
use saltus_core::ids::TableId;
use saltus_core::schema::{ColumnDef, ColumnKind, TableSchema};

use super::system::{LogRow, SystemRow, TimeNs, TriggerRow, batch};
use super::*;

const SECOND: i64 = 1_000_000_000;
/// 2024-01-01T00:00:00Z
const NEW_YEAR: i64 = 1_704_067_200 * SECOND;

/// A table in memory, and what was asked of it.
pub(super) struct MemoryTable {
    info: TableInfo,
    batches: Vec<RecordBatch>,
    exact: bool,
    scans: Mutex<Vec<Scanned>>,
    snapshots: Mutex<usize>,
}

#[derive(Clone, Debug, PartialEq)]
struct Scanned {
    projection: Option<Vec<usize>>,
    time_range: Option<(i64, i64)>,
}

struct MemoryScan(Arc<MemoryTable>);

impl TableScan for MemoryScan {
    fn schema(&self) -> SchemaRef {
        self.0.info.schema.arrow_schema()
    }

    fn scan(
        &self,
        projection: Option<&[usize]>,
        time_range: Option<(i64, i64)>,
    ) -> Result<Vec<RecordBatch>, ArrowError> {
        self.0.scans.lock().unwrap().push(Scanned { projection: projection.map(<[usize]>::to_vec), time_range });
        let project = |batch: &RecordBatch| match projection {
            Some(columns) => batch.project(columns),
            None => Ok(batch.clone()),
        };
        self.0.batches.iter().map(project).collect()
    }

    fn exact_rows(&self) -> Option<usize> {
        self.0.exact.then(|| self.0.batches.iter().map(RecordBatch::num_rows).sum())
    }
}

#[derive(Default)]
pub(super) struct Memory {
    databases: Mutex<BTreeMap<Arc<str>, Vec<Arc<MemoryTable>>>>,
}

impl Memory {
    pub(super) fn add(&self, table: MemoryTable) -> Arc<MemoryTable> {
        let table = Arc::new(table);
        self.databases.lock().unwrap().entry(table.info.db.clone()).or_default().push(table.clone());
        table
    }
}

impl TableSource for Memory {
    fn databases(&self) -> Vec<Arc<str>> {
        self.databases.lock().unwrap().keys().cloned().collect()
    }

    fn database_exists(&self, db: &str) -> bool {
        self.databases.lock().unwrap().contains_key(db)
    }

    fn tables(&self, db: &str) -> Vec<TableInfo> {
        let databases = self.databases.lock().unwrap();
        databases.get(db).into_iter().flatten().map(|table| table.info.clone()).collect()
    }

    fn table(&self, db: &str, name: &str) -> Option<TableInfo> {
        self.tables(db).into_iter().find(|table| *table.name == *name)
    }

    fn snapshot(&self, table: &TableInfo) -> BoxFuture<'static, Result<Arc<dyn TableScan>, QueryError>> {
        let databases = self.databases.lock().unwrap();
        let found = databases[&table.db].iter().find(|own| own.info.name == table.name).unwrap().clone();
        *found.snapshots.lock().unwrap() += 1;
        Box::pin(async move { Ok(Arc::new(MemoryScan(found)) as Arc<dyn TableScan>) })
    }
}

struct System;

impl SystemSource for System {
    fn tables(&self, _db: &str) -> Vec<(&'static str, SchemaRef)> {
        vec![(TriggerRow::TABLE, TriggerRow::schema()), (LogRow::TABLE, LogRow::schema())]
    }

    fn scan(&self, db: &str, table: &str) -> Result<RecordBatch, QueryError> {
        match table {
            TriggerRow::TABLE => batch(&[TriggerRow {
                trigger_name: format!("on_{db}"),
                execution: "deferred".to_owned(),
                run_count: 7,
                ..TriggerRow::default()
            }]),
            LogRow::TABLE => {
                let line = LogRow { log_text: "hello".to_owned(), run_id: 1, ..LogRow::at(TimeNs(NEW_YEAR)) };
                batch(&[line])
            }
            other => Err(QueryError::Execution(format!("no {other}"))),
        }
    }
}

pub(super) fn table(
    db: &str,
    name: &str,
    columns: &[(&str, ColumnKind)],
    batches: Vec<Vec<(&str, ArrayRef)>>,
) -> MemoryTable {
    let columns = columns.iter().map(|(name, kind)| ColumnDef { name: Arc::from(*name), kind: *kind }).collect();
    let schema = Arc::new(TableSchema::new(columns, 1));
    let arrow = schema.arrow_schema();
    let batch = |mut columns: Vec<(&str, ArrayRef)>| {
        columns.sort_by_key(|(name, _)| *name);
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        RecordBatch::try_new_with_options(arrow.clone(), arrays, &RecordBatchOptions::new()).unwrap()
    };
    MemoryTable {
        info: TableInfo { id: TableId(1), db: Arc::from(db), name: Arc::from(name), schema },
        batches: batches.into_iter().map(batch).collect(),
        exact: true,
        scans: Mutex::default(),
        snapshots: Mutex::default(),
    }
}

pub(super) fn tags(values: &[&str]) -> ArrayRef {
    Arc::new(values.iter().copied().collect::<DictionaryArray<Int32Type>>())
}

pub(super) fn times(seconds: &[i64]) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from_iter_values(seconds.iter().map(|at| NEW_YEAR + at * SECOND)))
}

pub(super) fn floats(values: &[f64]) -> ArrayRef {
    Arc::new(Float64Array::from(values.to_vec()))
}

const CPU: [(&str, ColumnKind); 3] =
    [("host", ColumnKind::Tag), ("usage", ColumnKind::Float), ("count", ColumnKind::Integer)];

/// Two chunks whose dictionaries differ.
fn cpu() -> MemoryTable {
    let first = vec![
        ("host", tags(&["a", "b", "a"])),
        ("usage", floats(&[1.0, 2.0, 3.0])),
        ("count", Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])) as ArrayRef),
        ("time", times(&[0, 1, 60])),
    ];
    let second = vec![
        ("host", tags(&["c", "b"])),
        ("usage", floats(&[4.0, 5.0])),
        ("count", Arc::new(Int64Array::from(vec![4, 5])) as ArrayRef),
        ("time", times(&[61, 120])),
    ];
    table("db", "cpu", &CPU, vec![first, second])
}

pub(super) fn config() -> QueryConfig {
    QueryConfig {
        threads: NonZeroUsize::new(2).unwrap(),
        memory_bytes: 64 << 20,
        max_concurrent: NonZeroUsize::new(2).unwrap(),
        timeout: Duration::from_secs(60),
        query_log_entries: 10,
        shard_cpus: Vec::new(),
    }
}

pub(super) struct Fixture {
    pub(super) engine: QueryEngine,
    pub(super) memory: Arc<Memory>,
    cpu: Arc<MemoryTable>,
}

pub(super) fn fixture() -> Fixture {
    fixture_with(config(), cpu())
}

pub(super) fn fixture_with(config: QueryConfig, cpu: MemoryTable) -> Fixture {
    let memory = Arc::new(Memory::default());
    let cpu = memory.add(cpu);
    let engine = QueryEngine::new(memory.clone(), Arc::new(System), &config).unwrap();
    Fixture { engine, memory, cpu }
}

pub(super) fn request(sql: &str) -> QueryRequest {
    QueryRequest { db: Some("db".to_owned()), sql: sql.to_owned(), params: Vec::new(), kind: QueryKind::Sql }
}

impl Fixture {
    pub(super) fn csv_of(&self, request: QueryRequest) -> Result<String, QueryError> {
        let bytes =
            block_on(async { self.engine.execute_bytes(request, Format::Csv).await?.try_collect::<Vec<_>>().await })?;
        Ok(String::from_utf8(bytes.concat()).unwrap())
    }

    /// The result without its header, rows separated by spaces.
    pub(super) fn rows(&self, sql: &str) -> String {
        let csv = self.csv_of(request(sql)).unwrap_or_else(|error| panic!("{sql}: {error}"));
        csv.lines().skip(1).collect::<Vec<_>>().join(" ")
    }

    pub(super) fn error(&self, sql: &str) -> QueryError {
        self.csv_of(request(sql)).unwrap_err()
    }

    pub(super) fn with_params(&self, sql: &str, params: &[(&str, ScalarParam)]) -> Result<String, QueryError> {
        let params = params.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let csv = self.csv_of(QueryRequest { params, ..request(sql) })?;
        Ok(csv.lines().skip(1).collect::<Vec<_>>().join(" "))
    }

    fn last_time_range(&self) -> Option<(i64, i64)> {
        self.cpu.scans.lock().unwrap().last().expect("the table was scanned").time_range
    }
}

#[test]
fn a_query_streams_json() {
    let it = fixture();
    let query = request("SELECT host, usage, time FROM cpu WHERE host = 'b' ORDER BY time");
    let bytes: Vec<_> =
        block_on(async { it.engine.execute_bytes(query, Format::Json).await.unwrap().try_collect().await }).unwrap();
    let expected = concat!(
        r#"[{"host":"b","usage":2.0,"time":"2024-01-01T00:00:01"},"#,
        r#"{"host":"b","usage":5.0,"time":"2024-01-01T00:02:00"}]"#
    );
    assert_eq!(String::from_utf8(bytes.concat()).unwrap(), expected);
}

#[test]
fn columns_come_sorted_by_name_and_blocking_gives_batches() {
    let it = fixture();
    let batches = it.engine.execute_blocking(request("SELECT * FROM cpu")).unwrap();
    let names: Vec<_> = batches[0].schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["count", "host", "time", "usage"]);
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 5);
    assert!(it.engine.execute_blocking(request("SELECT * FROM cpu WHERE usage > 100")).unwrap().is_empty());
}

#[test]
fn aggregates_group_by_tags_over_chunks_with_different_dictionaries() {
    let it = fixture();
    assert_eq!(
        it.rows("SELECT host, sum(usage), count(*) FROM cpu GROUP BY host ORDER BY host"),
        "a,4.0,2 b,7.0,2 c,4.0,1"
    );
    assert_eq!(it.rows("SELECT max(usage), min(time) FROM cpu"), "5.0,2024-01-01T00:00:00");
    assert_eq!(it.rows("SELECT approx_median(usage), last_value(usage ORDER BY time) FROM cpu"), "3.0,5.0");
}

#[test]
fn date_bin_cuts_time() {
    let it = fixture();
    let sql = "SELECT DATE_BIN(INTERVAL '1 minute', time, '1970-01-01T00:00:00Z'::TIMESTAMP) AS t, avg(usage) \
               FROM cpu GROUP BY t ORDER BY t";
    assert_eq!(it.rows(sql), "2024-01-01T00:00:00,1.5 2024-01-01T00:01:00,3.5 2024-01-01T00:02:00,5.0");
}

#[test]
fn joins_read_a_table_twice_from_one_snapshot() {
    let it = fixture();
    let sql = "SELECT a.usage, b.usage FROM cpu a JOIN cpu b ON a.host = b.host AND a.time < b.time ORDER BY 1";
    assert_eq!(it.rows(sql), "1.0,3.0 2.0,5.0");
    assert_eq!(*it.cpu.snapshots.lock().unwrap(), 1);
}

#[test]
fn only_the_columns_asked_for_are_read() {
    let it = fixture();
    it.rows("SELECT usage FROM cpu");
    assert_eq!(it.cpu.scans.lock().unwrap()[0], Scanned { projection: Some(vec![3]), time_range: None });
}

#[test]
fn count_is_answered_from_statistics_only_if_they_are_exact() {
    let it = fixture();
    assert_eq!(it.rows("SELECT count(*) FROM cpu"), "5");
    assert!(it.cpu.scans.lock().unwrap().is_empty(), "answered without a scan");
    let merged = fixture_with(config(), MemoryTable { exact: false, ..cpu() });
    assert_eq!(merged.rows("SELECT count(*) FROM cpu"), "5");
    assert_eq!(merged.cpu.scans.lock().unwrap().len(), 1);
    assert_eq!(it.rows("SELECT count(*) FROM cpu WHERE time > '2024-01-01T00:01:00'"), "2");
}

#[test]
fn bounds_on_time_reach_the_scan_and_rows_are_filtered_again() {
    let it = fixture();
    let cases = [
        ("time >= '2024-01-01T00:01:00Z'", Some((NEW_YEAR + 60 * SECOND, i64::MAX)), 3),
        ("time > '2024-01-01T00:01:00'", Some((NEW_YEAR + 60 * SECOND + 1, i64::MAX)), 2),
        ("time BETWEEN '2024-01-01' AND '2024-01-01T00:00:01'", Some((NEW_YEAR, NEW_YEAR + SECOND)), 2),
        ("time < to_timestamp_nanos(1704067201000000000)", Some((i64::MIN, NEW_YEAR + SECOND - 1)), 1),
        ("time >= TIMESTAMP '2024-01-01T00:01:00' AND host = 'b'", Some((NEW_YEAR + 60 * SECOND, i64::MAX)), 1),
        (
            "time = '2024-01-01T00:00:01' OR time = '2024-01-01T00:02:00'",
            Some((NEW_YEAR + SECOND, NEW_YEAR + 120 * SECOND)),
            2,
        ),
        ("time < to_timestamp(1704067201)", Some((i64::MIN, NEW_YEAR + SECOND - 1)), 1),
        ("host = 'a'", None, 2),
        ("usage > 1 OR time > '2030-01-01'", None, 4),
    ];
    for (predicate, range, rows) in cases {
        let sql = format!("SELECT usage FROM cpu WHERE {predicate}");
        assert_eq!(
            it.engine.execute_blocking(request(&sql)).unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(),
            rows,
            "{sql}"
        );
        assert_eq!(it.last_time_range(), range, "{predicate}");
    }
}

#[test]
fn now_is_a_constant_when_the_range_is_taken() {
    let it = fixture();
    it.rows("SELECT usage FROM cpu WHERE time > now() - INTERVAL '1 hour'");
    let (first, last) = it.last_time_range().unwrap();
    assert!(first > NEW_YEAR && last == i64::MAX);
}

#[test]
fn a_limit_stays_above_the_scan_and_a_contradiction_reads_nothing() {
    let it = fixture();
    assert_eq!(it.rows("SELECT usage FROM cpu LIMIT 2"), "1.0 2.0");
    let scans = it.cpu.scans.lock().unwrap().len();
    assert_eq!(it.rows("SELECT usage FROM cpu WHERE time > '2030-01-01' AND time < '2029-01-01'"), "");
    assert_eq!(it.cpu.scans.lock().unwrap().len(), scans);
}

#[test]
fn parameters_of_every_kind_are_bound_by_name() {
    let it = fixture();
    let bind = |sql, params: &[(&str, ScalarParam)]| it.with_params(sql, params).unwrap();
    let text = |text: &str| ScalarParam::String(text.to_owned());
    assert_eq!(bind("SELECT usage FROM cpu WHERE host = $h", &[("h", text("c"))]), "4.0");
    assert_eq!(bind("SELECT usage FROM cpu WHERE usage > $u", &[("u", ScalarParam::Float(4.5))]), "5.0");
    assert_eq!(bind("SELECT usage FROM cpu WHERE count = $c", &[("c", ScalarParam::Int(3))]), "3.0");
    assert_eq!(bind("SELECT usage FROM cpu WHERE count = $c", &[("c", ScalarParam::UInt(3))]), "3.0");
    assert_eq!(bind("SELECT usage FROM cpu WHERE count = $c", &[("c", text("3"))]), "3.0");
    assert_eq!(
        bind("SELECT $b AS b, $n IS NULL AS n", &[("b", ScalarParam::Bool(true)), ("n", ScalarParam::Null)]),
        "true,true"
    );
    assert_eq!(bind("SELECT usage FROM cpu WHERE time >= $t", &[("t", text("2024-01-01T00:01:30Z"))]), "5.0");
    assert_eq!(it.last_time_range(), Some((NEW_YEAR + 90 * SECOND, i64::MAX)));
}

#[test]
fn a_missing_parameter_is_named() {
    let it = fixture();
    let error = it.with_params("SELECT usage FROM cpu WHERE host = $h", &[]).unwrap_err();
    assert!(matches!(&error, QueryError::Planning(text) if text.contains("$h")), "{error:?}");
}

#[test]
fn show_tables_lists_user_system_and_description_tables() {
    let it = fixture();
    let csv = it.csv_of(request("SHOW TABLES")).unwrap();
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("table_catalog,table_schema,table_name,table_type"));
    let lines: Vec<_> = lines.collect();
    assert_eq!(lines[0], "public,iox,cpu,BASE TABLE");
    assert!(lines.contains(&"public,system,queries,BASE TABLE"));
    assert!(lines.contains(&"public,system,processing_engine_triggers,BASE TABLE"));
    assert!(lines.contains(&"public,information_schema,columns,VIEW"));
    let sql =
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'iox' AND table_type = 'BASE TABLE'";
    assert_eq!(it.rows(sql), "cpu");
}

#[test]
fn information_schema_names_types_as_plugins_know_them() {
    let it = fixture();
    let sql = "SELECT column_name, data_type, is_nullable FROM information_schema.columns WHERE table_name = 'cpu'";
    let csv = it.csv_of(request(sql)).unwrap();
    let lines: Vec<_> = csv.lines().skip(1).collect();
    let expected = [
        "count,Int64,YES",
        "host,\"Dictionary(Int32, Utf8)\",YES",
        "time,\"Timestamp(Nanosecond, None)\",NO",
        "usage,Float64,YES",
    ];
    assert_eq!(lines, expected);
    assert_eq!(*it.cpu.snapshots.lock().unwrap(), 0, "describing tables takes no snapshots");
    assert!(it.rows("SHOW COLUMNS FROM cpu").contains("usage"));
    assert_eq!(it.rows("SELECT schema_name FROM information_schema.schemata"), "iox system");
    assert!(it.rows("SELECT count(*) > 10 FROM information_schema.routines").contains("true"));
    assert_eq!(it.rows("SELECT * FROM information_schema.views"), "");
}

#[test]
fn names_keep_their_case() {
    let it = fixture();
    let columns = [("Host", ColumnKind::Tag), ("Value", ColumnKind::Float)];
    let rows = vec![("Host", tags(&["x"])), ("Value", floats(&[9.0])), ("time", times(&[0]))];
    it.memory.add(table("db", "My Table", &columns, vec![rows.clone()]));
    it.memory.add(table("db", "Foo", &columns, vec![rows]));
    assert_eq!(it.rows("SELECT Value FROM Foo WHERE Host = 'x'"), "9.0");
    assert_eq!(it.rows("select \"Value\" from \"My Table\""), "9.0");
    assert_eq!(it.rows("SELECT COUNT(Value), Max(Value) FROM public.iox.Foo"), "1,9.0");
    let missing = "Error during planning: table 'public.iox.foo' not found; there is a table \"Foo\"";
    assert!(it.error("SELECT * FROM foo").to_string().starts_with(missing), "{}", it.error("SELECT * FROM foo"));
}

#[test]
fn system_tables_come_from_their_source_and_the_engine() {
    let it = fixture();
    assert_eq!(it.rows("SELECT trigger_name, run_count FROM system.processing_engine_triggers"), "on_db,7");
    let logs = "SELECT log_text, event_time FROM system.processing_engine_logs WHERE time = '2024-01-01'";
    assert_eq!(it.rows(logs), "hello,2024-01-01T00:00:00");
    let schema = "SELECT key, data_type FROM system.influxdb_schema WHERE measurement = 'cpu'";
    assert_eq!(it.rows(schema), "count,integer host,tag time,timestamp usage,float");
    let internal = |sql: &str| {
        let csv = it.csv_of(QueryRequest { db: Some("_internal".to_owned()), ..request(sql) }).unwrap();
        csv.lines().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(internal("SELECT database_name, deleted FROM system.databases"), "db,false");
    assert_eq!(internal("SELECT table_name, column_count, series_key_columns FROM system.tables"), "cpu,4,host");
    assert!(it.error("SELECT * FROM system.databases").to_string().contains("not found"));
}

#[test]
fn every_system_table_can_be_written_in_every_text_format() {
    let it = fixture();
    it.rows("SELECT 1");
    for format in [Format::Json, Format::JsonLines, Format::Csv, Format::Pretty, Format::Parquet] {
        for name in ["queries", "influxdb_schema", "processing_engine_logs", "processing_engine_triggers"] {
            let query = request(&format!("SELECT * FROM system.{name}"));
            let bytes: Result<Vec<_>, _> =
                block_on(async { it.engine.execute_bytes(query, format).await?.try_collect().await });
            assert!(!bytes.unwrap_or_else(|error| panic!("{name} {format:?}: {error}")).is_empty());
        }
    }
}

#[test]
fn the_log_remembers_how_queries_ended() {
    let it = fixture();
    it.rows("SELECT 1");
    it.error("SELECT * FROM missing");
    let sql = "SELECT query_text, phase, success, running, query_type FROM system.queries ORDER BY id";
    let csv = it.csv_of(request(sql)).unwrap();
    let lines: Vec<_> = csv.lines().skip(1).collect();
    assert_eq!(lines[0], "SELECT 1,success,true,false,sql");
    assert_eq!(lines[1], "SELECT * FROM missing,fail,false,false,sql");
    assert!(lines[2].ends_with("permit,false,true,sql"), "{}", lines[2]);
}

#[test]
fn errors_have_a_kind_and_a_text_for_users() {
    let it = fixture();
    let missing = it.csv_of(QueryRequest { db: Some("x".to_owned()), ..request("SELECT 1") }).unwrap_err();
    assert_eq!(missing, QueryError::DatabaseNotFound("x".to_owned()));
    assert_eq!(missing.to_string(), "query error: database not found: x");
    let planning = |sql: &str| match it.error(sql) {
        QueryError::Planning(text) => text,
        other => panic!("{sql}: {other:?}"),
    };
    assert_eq!(planning("SELECT * FROM not_here"), "Error during planning: table 'public.iox.not_here' not found");
    assert!(planning("SELECT nope FROM cpu").contains("nope"));
    assert!(planning("SELEC 1").contains("SQL error"));
    assert!(planning("SELECT usage FROM cpu WHERE time > 'yesterday'").contains("yesterday"));
    assert!(planning("").contains("No SQL statements"));
    assert!(matches!(it.error("SELECT 1 / (count - 1) FROM cpu"), QueryError::Invalid(_)));
    let text = it.error("SELECT foo FROM not_here").plugin_text("foo", "SELECT foo FROM not_here");
    let expected = "error: error while planning query: Error during planning: table 'public.iox.not_here' not found \
                    executing query on foo: SELECT foo FROM not_here";
    assert_eq!(text, expected);
}

#[test]
fn only_questions_are_answered() {
    let it = fixture();
    let refused = [
        "INSERT INTO cpu VALUES (1)",
        "CREATE TABLE t (a INT)",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "CREATE VIEW v AS SELECT 1",
        "DROP TABLE cpu",
        "DELETE FROM cpu",
        "UPDATE cpu SET usage = 1",
        "SET datafusion.execution.batch_size = 1",
        "COPY cpu TO '/tmp/x.csv'",
        "SELECT * INTO t FROM cpu",
        "EXPLAIN INSERT INTO cpu VALUES (1)",
        "PREPARE p AS SELECT 1",
        "BEGIN",
        "SELECT 1; SELECT 2",
    ];
    for sql in refused {
        assert!(matches!(it.error(sql), QueryError::NotImplemented(_)), "{sql}: {:?}", it.error(sql));
    }
    assert!(it.rows("EXPLAIN SELECT * FROM cpu").contains("table=cpu"));
    assert!(!it.rows("SHOW ALL").contains('/'), "settings name no files");
}

#[test]
fn an_empty_table_has_columns_and_no_rows() {
    let it = fixture();
    it.memory.add(table("db", "empty", &CPU, Vec::new()));
    assert_eq!(it.csv_of(request("SELECT * FROM empty")).unwrap(), "");
    assert_eq!(it.rows("SELECT count(*), max(usage) FROM empty"), "0,");
    let stream = block_on(it.engine.execute(request("SELECT * FROM empty"))).unwrap();
    assert_eq!(stream.schema().fields().len(), 4);
}

#[test]
fn a_request_without_a_database_can_calculate() {
    let it = fixture();
    let query = |sql: &str| it.csv_of(QueryRequest { db: None, ..request(sql) });
    assert_eq!(query("SELECT 1 + 1 AS two").unwrap(), "two\n2\n");
    assert!(matches!(query("SELECT * FROM cpu"), Err(QueryError::Planning(_))));
}

/// Rows enough for several threads and many batches.
pub(super) fn large() -> MemoryTable {
    let rows = 400_000;
    let seconds: Vec<i64> = (0..rows).collect();
    let hosts: Vec<&str> = (0..rows).map(|row| if row % 2 == 0 { "a" } else { "b" }).collect();
    let columns = vec![
        ("host", tags(&hosts)),
        ("usage", floats(&seconds.iter().map(|at| *at as f64).collect::<Vec<_>>())),
        ("count", Arc::new(Int64Array::from(seconds.clone())) as ArrayRef),
        ("time", times(&seconds)),
    ];
    table("db", "cpu", &CPU, vec![columns])
}

#[test]
fn a_large_table_is_read_by_several_threads_and_every_row_once() {
    let it = fixture_with(config(), large());
    assert_eq!(
        it.rows("SELECT host, count(usage), sum(count) FROM cpu GROUP BY host ORDER BY host"),
        "a,200000,39999800000 b,200000,40000000000"
    );
    assert!(it.rows("EXPLAIN SELECT usage FROM cpu").contains("partitions=2"));
    assert_eq!(it.rows("SELECT count FROM cpu ORDER BY time DESC LIMIT 2"), "399999 399998");
    assert_eq!(it.cpu.scans.lock().unwrap().len(), 2);
}

#[test]
fn a_query_that_wants_too_much_memory_fails_and_the_next_one_works() {
    let it = fixture_with(QueryConfig { memory_bytes: 1 << 20, ..config() }, large());
    let error = it.error("SELECT * FROM cpu ORDER BY usage DESC, host");
    assert!(matches!(error, QueryError::TooLarge(_)), "{error:?}");
    assert_eq!(it.rows("SELECT max(usage) FROM cpu"), "399999.0");
}

/// Waits until `done`, at most ten seconds.
pub(super) fn eventually(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_dropped_stream_cancels_its_query_and_frees_its_permit() {
    let it = fixture_with(QueryConfig { max_concurrent: NonZeroUsize::MIN, ..config() }, large());
    let mut stream = block_on(it.engine.execute(request("SELECT usage FROM cpu"))).unwrap();
    assert!(block_on(stream.next()).unwrap().is_ok());
    let waiting = it.engine.execute(request("SELECT 1 AS one"));
    drop(stream);
    let rows: Vec<RecordBatch> = block_on(async { waiting.await.unwrap().try_collect().await }).unwrap();
    assert_eq!(rows.len(), 1);
    eventually("the log notes the cancellation", || {
        it.rows("SELECT phase FROM system.queries WHERE cancelled AND query_text = 'SELECT usage FROM cpu'") == "cancel"
    });
}

#[test]
fn a_dropped_wait_cancels_too() {
    let it = fixture_with(QueryConfig { max_concurrent: NonZeroUsize::MIN, ..config() }, large());
    let endless = "SELECT count(*) FROM cpu a CROSS JOIN cpu b CROSS JOIN cpu c WHERE a.usage + b.usage < c.usage";
    drop(it.engine.execute(request(endless)));
    assert_eq!(it.rows("SELECT 1"), "1");
}

#[test]
fn queries_beyond_the_limit_wait_their_turn() {
    let it = fixture_with(QueryConfig { max_concurrent: NonZeroUsize::MIN, ..config() }, large());
    let mut first = block_on(it.engine.execute(request("SELECT usage FROM cpu"))).unwrap();
    let mut second = Box::pin(it.engine.execute(request("SELECT 1 AS one")));
    std::thread::sleep(Duration::from_millis(50));
    assert!(block_on(futures_lite::future::poll_once(&mut second)).is_none());
    while block_on(first.next()).is_some() {}
    assert!(block_on(second).is_ok());
}

#[test]
fn a_query_whose_engine_is_gone_is_an_error_and_not_a_short_result() {
    let it = fixture_with(config(), large());
    let mut stream = block_on(it.engine.execute(request("SELECT usage FROM cpu"))).unwrap();
    it.engine.shutdown(Duration::from_secs(5));
    let mut last = None;
    while let Some(item) = block_on(stream.next()) {
        last = Some(item);
    }
    // Either end of the channel may notice first, ours or DataFusion's own: they say the same.
    assert_eq!(last.unwrap().unwrap_err(), QueryError::Execution("the query was aborted".to_owned()));
}

#[test]
fn math_functions_are_there() {
    let it = fixture();
    assert_eq!(it.rows("SELECT abs(-1.5), round(2.6), power(2.0, 3.0)"), "1.5,3.0,8.0");
    assert_eq!(
        it.rows("SELECT arrow_cast(time, 'Timestamp(Nanosecond, None)') FROM cpu LIMIT 1"),
        "2024-01-01T00:00:00"
    );
}
