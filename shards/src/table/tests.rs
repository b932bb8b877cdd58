//! Mechanism of these tests: rows are written as plain values, put into batches by hand, and what a snapshot shows is
//! read back as a map from (tags, time) to fields. The map's insertion fails on a point that comes twice.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampNanosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Float64Type, Int32Type, Int64Type, TimestampNanosecondType, UInt64Type};
use proptest::prelude::*;
use saltus_core::batch::BatchColumn;

use super::*;

const COLUMNS: [(&str, ColumnKind); 7] = [
    ("zone", ColumnKind::Tag),
    ("host", ColumnKind::Tag),
    ("f_int", ColumnKind::Integer),
    ("a_uint", ColumnKind::UInteger),
    ("u_float", ColumnKind::Float),
    ("s_text", ColumnKind::String),
    ("b_bool", ColumnKind::Boolean),
];
const TAGS: usize = 2;
const SMALL: Bounds = Bounds { direct_rows_min: 24, tail_rows_max: 32, series_generation_max: 3 };

/// Values of [`COLUMNS`] as text, and the time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    values: [Option<u8>; 7],
    time: i64,
}

/// The tags' values and the time, and the fields' values.
type Points = BTreeMap<(Vec<Option<String>>, i64), Vec<Option<String>>>;

fn text(kind: ColumnKind, value: u8) -> String {
    match kind {
        ColumnKind::Tag => format!("tag {value}"),
        ColumnKind::String => "x".repeat(value as usize),
        ColumnKind::Boolean => (value % 2 == 1).to_string(),
        _ => value.to_string(),
    }
}

fn column(kind: ColumnKind, values: &[Option<u8>]) -> ArrayRef {
    let values = values.iter().copied();
    match kind {
        ColumnKind::Tag => {
            let texts: Vec<_> = values.map(|v| v.map(|v| text(kind, v))).collect();
            Arc::new(texts.iter().map(|v| v.as_deref()).collect::<DictionaryArray<Int32Type>>())
        }
        ColumnKind::Integer => Arc::new(values.map(|v| v.map(i64::from)).collect::<Int64Array>()),
        ColumnKind::UInteger => Arc::new(values.map(|v| v.map(u64::from)).collect::<UInt64Array>()),
        ColumnKind::Float => Arc::new(values.map(|v| v.map(f64::from)).collect::<Float64Array>()),
        ColumnKind::String => Arc::new(values.map(|v| v.map(|v| text(kind, v))).collect::<StringArray>()),
        ColumnKind::Boolean => Arc::new(values.map(|v| v.map(|v| v % 2 == 1)).collect::<BooleanArray>()),
    }
}

/// A batch of `rows` with the columns that any of them has; `fingerprints` bounds how many there are.
fn batch_of(rows: &[Row], fingerprints: u64) -> Arc<Batch> {
    let columns = COLUMNS
        .iter()
        .enumerate()
        .map(|(at, &(name, kind))| (name, kind, rows.iter().map(|row| row.values[at]).collect::<Vec<_>>()))
        .filter(|(_, _, values)| values.iter().any(Option::is_some))
        .map(|(name, kind, values)| BatchColumn { name: name.into(), kind, data: column(kind, &values) })
        .collect();
    let series = rows.iter().map(|row| {
        let mut hasher = DefaultHasher::new();
        row.values[..TAGS].hash(&mut hasher);
        hasher.finish() % fingerprints
    });
    Arc::new(Batch {
        columns,
        time: TimestampNanosecondArray::from_iter_values(rows.iter().map(|row| row.time)),
        series: series.collect(),
    })
}

fn batch(rows: &[Row]) -> Arc<Batch> {
    batch_of(rows, u64::MAX)
}

/// A row of series `host` with the integer field only.
fn row(host: u8, time: i64, value: u8) -> Row {
    Row { values: [None, Some(host), Some(value), None, None, None, None], time }
}

fn table(bounds: Bounds) -> Table {
    Table::with_bounds(TableId(7), "db".into(), "t".into(), bounds)
}

fn write(table: &mut Table, batch: Arc<Batch>) {
    let check = table.check(batch.columns.iter().map(|column| (column.name.as_ref(), column.kind)));
    assert!(check.fits());
    table.add_columns(&check.new);
    table.apply(batch);
}

fn cell(batch: &RecordBatch, name: &str, row: usize) -> Option<String> {
    let column = batch.column_by_name(name)?;
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Dictionary(_, _) => {
            let tags = column.as_dictionary::<Int32Type>();
            tags.values().as_string::<i32>().value(tags.key(row)?).to_owned()
        }
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).to_string(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).to_string(),
        DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        DataType::Boolean => column.as_boolean().value(row).to_string(),
        other => panic!("no column has type {other}"),
    })
}

fn read(batches: &[RecordBatch]) -> Points {
    let mut points = Points::new();
    for batch in batches {
        let times = batch.column_by_name("time").expect("time").as_primitive::<TimestampNanosecondType>();
        for at in 0..batch.num_rows() {
            let cells: Vec<_> = COLUMNS.iter().map(|(name, _)| cell(batch, name, at)).collect();
            let key = (cells[..TAGS].to_vec(), times.value(at));
            assert!(points.insert(key.clone(), cells[TAGS..].to_vec()).is_none(), "{key:?} comes twice");
        }
    }
    points
}

fn all(snapshot: &TableSnapshot) -> Points {
    let rows = snapshot.to_rows().expect("rows");
    assert!(rows.batches.iter().all(|batch| batch.schema() == rows.schema));
    assert_eq!(rows.schema, snapshot.schema().arrow_schema());
    read(&rows.batches)
}

/// What `rows` leave behind when they are written one after the other.
fn upsert(points: &mut Points, rows: &[Row]) {
    for row in rows {
        let cells: Vec<_> = COLUMNS.iter().zip(row.values).map(|(&(_, kind), v)| v.map(|v| text(kind, v))).collect();
        let fields = points.entry((cells[..TAGS].to_vec(), row.time)).or_insert_with(|| vec![None; 7 - TAGS]);
        for (field, cell) in fields.iter_mut().zip(&cells[TAGS..]) {
            if cell.is_some() {
                field.clone_from(cell);
            }
        }
    }
}

fn points(rows: &[Row]) -> Points {
    let mut points = Points::new();
    upsert(&mut points, rows);
    points
}

fn buffers(array: &ArrayRef) -> Vec<usize> {
    let data = array.to_data();
    let own = data.buffers().iter().map(|buffer| buffer.as_ptr() as usize);
    own.chain(data.child_data().iter().flat_map(|child| child.buffers()).map(|buffer| buffer.as_ptr() as usize))
        .collect()
}

#[test]
fn a_snapshot_goes_to_other_threads() {
    fn sendable<T: Send + Sync + Clone>() {}
    sendable::<TableSnapshot>();
}

#[test]
fn an_empty_table_has_a_schema_and_no_rows() {
    let snapshot = table(Bounds::default()).snapshot();
    assert_eq!(snapshot.arrow_schema().fields().len(), 1);
    assert!(snapshot.to_rows().expect("rows").batches.is_empty());
    assert!(snapshot.exact_row_count_known());
    assert_eq!(snapshot.row_count(), 0);
}

#[test]
fn a_large_batch_is_a_chunk_over_its_own_buffers() {
    let mut table = table(Bounds::default());
    let rows: Vec<_> = (0..limits::CHUNK_DIRECT_ROWS_MIN).map(|at| row((at % 10) as u8, at as i64, 1)).collect();
    let batch = batch(&rows);
    write(&mut table, batch.clone());
    assert_eq!(table.rows_copied(), 0);
    let scanned = table.snapshot().scan(None, None).expect("scan");
    assert_eq!(scanned.len(), 1);
    for column in &batch.columns {
        let shown = scanned[0].column_by_name(&column.name).expect("column");
        assert_eq!(buffers(shown), buffers(&column.data), "{}", column.name);
    }
    let time = scanned[0].column_by_name("time").expect("time");
    assert_eq!(buffers(time), [batch.time.values().as_ptr() as usize]);
}

#[test]
fn small_batches_gather_in_one_tail() {
    let mut table = table(Bounds::default());
    let rows: Vec<_> = (0..100).map(|at| row(at as u8 % 7, at, at as u8)).collect();
    for row in &rows {
        write(&mut table, batch(std::slice::from_ref(row)));
    }
    let snapshot = table.snapshot();
    assert_eq!(snapshot.chunks().count(), 1);
    assert_eq!(all(&snapshot), points(&rows));
    assert_eq!(table.rows_copied(), 100);
}

#[test]
fn a_full_tail_settles() {
    let mut table = table(SMALL);
    for at in 0..100 {
        write(&mut table, batch(&[row(1, at, 1)]));
    }
    let rows: Vec<_> = table.snapshot().chunks().map(|chunk| chunk.rows).collect();
    assert_eq!(rows, [32, 32, 32, 4]);
    assert_eq!(table.rows_copied(), 100);
}

#[test]
fn a_batch_that_does_not_fit_the_tail_starts_a_new_one() {
    let mut table = table(SMALL);
    for at in 0..4 {
        let rows: Vec<_> = (0..20).map(|row_at| row(1, at * 20 + row_at, 1)).collect();
        write(&mut table, batch(&rows));
    }
    let rows: Vec<_> = table.snapshot().chunks().map(|chunk| chunk.rows).collect();
    assert_eq!(rows, [20, 20, 20, 20]);
}

#[test]
fn the_tail_and_direct_chunks_may_interleave_and_the_last_applied_still_wins() {
    let mut table = table(SMALL);
    let mut oracle = Points::new();
    for turn in 0..8u8 {
        let large: Vec<_> = (0..30).map(|at| row(at, 5, turn * 2)).collect();
        let small = [row(turn, 5, turn * 2 + 1), row(turn + 8, 5, turn * 2 + 1)];
        for rows in [&large[..], &small[..]] {
            upsert(&mut oracle, rows);
            write(&mut table, batch(rows));
        }
    }
    assert_eq!(all(&table.snapshot()), oracle);
}

#[test]
fn a_column_that_comes_late_is_null_before() {
    let mut table = table(Bounds::default());
    let early = row(1, 1, 1);
    let late = Row { values: [Some(1), None, None, Some(2), Some(3), Some(4), Some(1)], time: 2 };
    for rows in [&early, &late, &row(1, 3, 3)] {
        write(&mut table, batch(std::slice::from_ref(rows)));
    }
    assert_eq!(all(&table.snapshot()), points(&[early, late, row(1, 3, 3)]));
}

#[test]
fn a_snapshot_taken_before_a_column_was_added_does_not_show_it() {
    let mut table = table(Bounds::default());
    write(&mut table, batch(&[row(1, 1, 1)]));
    let before = table.snapshot();
    table.add_columns(&[ColumnDef { name: "later".into(), kind: ColumnKind::Float }]);
    let after = table.snapshot();
    assert!(before.arrow_schema().index_of("later").is_err());
    assert_eq!(after.arrow_schema().field_with_name("later").expect("later").data_type(), &DataType::Float64);
    assert_eq!(all(&before), all(&after));
}

#[test]
fn each_row_is_copied_a_logarithmic_number_of_times() {
    const ROWS: u64 = 4000; // just below what settles
    let mut table = table(Bounds::default());
    for at in 0..ROWS {
        write(&mut table, batch(&[row(1, at as i64, 1)]));
        assert!(table.snapshot().chunks().count() <= 13, "fragments halve");
    }
    assert_eq!(table.snapshot().row_count(), ROWS as usize);
    assert!(table.rows_copied() <= ROWS * 14, "{} copies of {ROWS} rows", table.rows_copied());
}

#[test]
fn one_call_merges_fewer_rows_than_a_tail_holds() {
    let mut table = table(SMALL);
    for at in 0..500 {
        let copied = table.rows_copied();
        let rows: Vec<_> = (0..1 + at % 13).map(|row_at| row(1, at * 20 + row_at, 1)).collect();
        write(&mut table, batch(&rows));
        table.snapshot();
        // Into the tail, and once more.
        assert!(table.rows_copied() - copied < 13 + 32);
    }
}

#[test]
fn settled_chunks_are_not_merged() {
    let mut table = table(SMALL);
    for at in 0..200 {
        let rows: Vec<_> = (0..24).map(|row_at| row(1, at * 24 + row_at, 1)).collect();
        write(&mut table, batch(&rows));
    }
    assert_eq!(table.rows_copied(), 0);
    let snapshot = table.snapshot();
    assert!(snapshot.chunks().all(|chunk| chunk.rows == 24));
    assert_eq!(snapshot.chunks().count(), 200, "whole groups and the rest");
    let times: Vec<_> = snapshot.chunks().map(|chunk| chunk.time_min).collect();
    assert!(times.is_sorted());
}

#[test]
fn rows_in_order_are_never_flagged() {
    let mut table = table(SMALL);
    for time in 0..50 {
        write(&mut table, batch(&[row(1, time, 1), row(2, time, 2), row(3, time, 3)]));
    }
    let snapshot = table.snapshot();
    assert!(snapshot.exact_row_count_known());
    assert_eq!(snapshot.row_count(), 150);
    assert!(snapshot.chunks().all(|chunk| !chunk.flagged));
}

#[test]
fn a_point_written_again_flags_its_chunk_and_comes_once() {
    let mut table = table(Bounds::default());
    let rows = [row(1, 5, 1), row(2, 5, 2)];
    write(&mut table, batch(&rows));
    table.snapshot();
    write(&mut table, batch(&[row(1, 5, 9)]));
    let snapshot = table.snapshot();
    assert!(!snapshot.exact_row_count_known());
    assert_eq!(all(&snapshot), points(&[row(1, 5, 9), row(2, 5, 2)]));
}

#[test]
fn a_point_twice_in_one_batch_comes_once() {
    let mut table = table(SMALL);
    let mut rows: Vec<_> = (0..30).map(|at| row(at, 5, 1)).collect();
    rows.push(row(3, 5, 77));
    write(&mut table, batch(&rows));
    assert!(!table.snapshot().exact_row_count_known());
    assert_eq!(all(&table.snapshot()), points(&rows));
}

#[test]
fn a_row_that_only_comes_late_flags_and_stays() {
    let mut table = table(Bounds::default());
    let rows = [row(1, 5, 1), row(1, 4, 2), row(1, 3, 3)];
    for row in &rows {
        write(&mut table, batch(std::slice::from_ref(row)));
    }
    assert!(!table.snapshot().exact_row_count_known());
    assert_eq!(all(&table.snapshot()), points(&rows));
}

#[test]
fn a_later_row_replaces_the_fields_it_gives_and_no_others() {
    let mut table = table(Bounds::default());
    let first = Row { values: [None, Some(1), Some(1), Some(1), None, Some(1), None], time: 1 };
    let second = Row { values: [None, Some(1), Some(2), None, None, Some(0), Some(2)], time: 1 };
    for rows in [&first, &second] {
        write(&mut table, batch(std::slice::from_ref(rows)));
        table.snapshot();
    }
    let shown = all(&table.snapshot());
    let fields: Vec<_> = shown.values().next().expect("point").iter().map(|field| field.as_deref()).collect();
    assert_eq!(fields, [Some("2"), Some("1"), None, Some(""), Some("false")]);
}

#[test]
fn an_absent_tag_is_part_of_the_identity_even_if_fingerprints_collide() {
    let mut table = table(Bounds::default());
    let rows: Vec<_> = [[None, None], [None, Some(1)], [Some(1), None], [Some(1), Some(1)], [Some(2), Some(1)]]
        .into_iter()
        .map(|[zone, host]| Row { values: [zone, host, Some(1), None, None, None, None], time: 1 })
        .collect();
    for row in rows.iter().chain(&rows) {
        write(&mut table, batch_of(std::slice::from_ref(row), 1));
        table.snapshot();
    }
    assert_eq!(all(&table.snapshot()).len(), 5);
}

#[test]
fn chunks_without_suspect_rows_pass_a_merging_scan_untouched() {
    let mut table = table(SMALL);
    let batches: Vec<_> =
        (0..3).map(|at| batch(&(0..30).map(|row_at| row(1, at * 30 + row_at, 1)).collect::<Vec<_>>())).collect();
    for batch in &batches {
        write(&mut table, batch.clone());
    }
    write(&mut table, batch(&[row(1, 35, 9)]));
    let scanned = table.snapshot().scan(None, None).expect("scan");
    let rows: Vec<_> = scanned.iter().map(RecordBatch::num_rows).collect();
    assert_eq!(rows, [30, 29, 30, 1]);
    for (at, of) in [(0, 0), (2, 2)] {
        let shown = scanned[at].column_by_name("f_int").expect("column");
        assert_eq!(buffers(shown), buffers(&batches[of].columns[1].data));
    }
}

#[test]
fn old_snapshots_stay_as_they_were() {
    let mut table = table(SMALL);
    let mut oracle = Points::new();
    let mut seen = Vec::new();
    for turn in 0..60u8 {
        let rows: Vec<_> = (0..1 + turn % 30).map(|at| row(at, i64::from(turn % 5), turn)).collect();
        upsert(&mut oracle, &rows);
        write(&mut table, batch(&rows));
        seen.push((table.snapshot(), oracle.clone()));
    }
    for (snapshot, oracle) in seen {
        assert_eq!(all(&snapshot), oracle);
    }
}

#[test]
fn the_version_changes_with_rows_and_columns_only() {
    let mut table = table(Bounds::default());
    let mut versions = vec![table.version()];
    table.add_columns(&[ColumnDef { name: "f_int".into(), kind: ColumnKind::Integer }]);
    versions.push(table.version());
    write(&mut table, batch(&[row(1, 1, 1)]));
    versions.push(table.version());
    assert!(versions.windows(2).all(|pair| pair[0] < pair[1]));
    let now = table.version();
    table.add_columns(&[]);
    table.apply(batch(&[]));
    let (one, two) = (table.snapshot(), table.snapshot());
    assert_eq!((now, now), (table.version(), one.version()));
    assert!(Arc::ptr_eq(one.arrow_schema(), two.arrow_schema()));
}

#[test]
fn new_and_contradicting_columns_are_told_by_name() {
    let mut table = table(Bounds::default());
    write(&mut table, batch(&[row(1, 1, 1)]));
    let given = [
        ("host", ColumnKind::Tag),
        ("f_int", ColumnKind::Float),
        ("new", ColumnKind::Boolean),
        ("new", ColumnKind::Boolean),
        ("new", ColumnKind::String),
    ];
    let check = table.check(given.into_iter());
    assert!(!check.fits());
    assert_eq!(check.new, [ColumnDef { name: "new".into(), kind: ColumnKind::Boolean }]);
    let conflict = |name: &str, expected, got| ColumnConflict { name: name.into(), expected, got };
    assert_eq!(
        check.conflicts,
        [
            conflict("f_int", ColumnKind::Integer, ColumnKind::Float),
            conflict("new", ColumnKind::Boolean, ColumnKind::String),
        ]
    );
    assert_eq!(table.schema().columns().len(), 2, "a check changes nothing");
}

#[test]
fn columns_beyond_the_limit_are_counted() {
    let table = table(Bounds::default());
    let names: Vec<_> = (0..limits::COLUMNS_PER_TABLE_MAX + 3).map(|at| format!("c{at}")).collect();
    let check = table.check(names.iter().map(|name| (name.as_str(), ColumnKind::Float)));
    assert_eq!(check.columns_over_limit, 3);
    assert!(!check.fits());
    let check = table.check(names[3..].iter().map(|name| (name.as_str(), ColumnKind::Float)));
    assert!(check.fits());
}

#[test]
fn chunks_outside_the_time_range_are_left_out() {
    let mut table = table(SMALL);
    for at in 0..4 {
        let rows: Vec<_> = (0..30).map(|row_at| row(1, at * 100 + row_at, 1)).collect();
        write(&mut table, batch(&rows));
    }
    let snapshot = table.snapshot();
    let times = |range| {
        let scanned = snapshot.scan(None, Some(range)).expect("scan");
        read(&scanned).keys().map(|(_, time)| time / 100).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(times((100, 229)).into_iter().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(times((129, 129)).into_iter().collect::<Vec<_>>(), [1]);
    assert!(times((130, 199)).is_empty());
    let first = snapshot.chunks().next().expect("chunk");
    assert_eq!(first, ChunkSummary { rows: 30, time_min: 0, time_max: 29, flagged: false });
}

#[test]
fn a_projection_keeps_its_own_order_and_may_be_empty() {
    let mut table = table(SMALL);
    write(&mut table, batch(&(0..30).map(|at| row(at, 1, 1)).collect::<Vec<_>>()));
    for overwritten in [false, true] {
        let snapshot = table.snapshot();
        let schema = snapshot.arrow_schema();
        let (time, value) = (schema.index_of("time").expect("time"), schema.index_of("f_int").expect("value"));
        let scanned = snapshot.scan(Some(&[time, value]), None).expect("scan");
        let shown = scanned[0].schema();
        assert_eq!(shown.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), ["time", "f_int"]);
        let none = snapshot.scan(Some(&[]), None).expect("scan");
        assert_eq!(none.iter().map(RecordBatch::num_rows).sum::<usize>(), 30, "overwritten: {overwritten}");
        assert!(snapshot.scan(Some(&[99]), None).is_err());
        table.apply(batch(&[row(3, 1, 2)]));
    }
}

#[test]
fn bytes_are_those_of_the_chunks_and_the_tail() {
    let mut table = table(SMALL);
    let empty = table.bytes();
    for turn in 0..40u8 {
        let rows: Vec<_> = (0..1 + turn % 30).map(|at| row(at, i64::from(turn), turn)).collect();
        let before = table.bytes();
        write(&mut table, batch(&rows));
        assert!(table.bytes() > before || turn > 0);
        let snapshot = table.snapshot();
        assert_eq!(table.bytes(), snapshot.bytes() + table.series.bytes(), "nothing is counted twice or forgotten");
    }
    assert!(table.bytes() > empty + 40 * 15 * 8);
    write(&mut table, batch(&[row(1, 1000, 1)]));
    assert!(table.tail.bytes() >= 8 + 8 + 8 + 8 + 4, "value, time, fingerprint, number, key");
}

#[test]
fn a_sliced_batch_is_read_from_where_it_begins() {
    let whole = batch(&(0..20).map(|at| row(at, i64::from(at), at * 2)).collect::<Vec<_>>());
    let text = Row { values: [Some(1), Some(1), None, None, None, Some(3), Some(1)], time: 50 };
    let texts = batch(&[Row { time: 49, ..text.clone() }, text.clone(), Row { time: 51, ..text.clone() }]);
    let slice = |batch: &Batch, at, rows| {
        let columns = batch.columns.iter().map(|c| BatchColumn { data: c.data.slice(at, rows), ..c.clone() });
        Arc::new(Batch {
            columns: columns.collect(),
            time: batch.time.slice(at, rows),
            series: batch.series.slice(at, rows),
        })
    };
    let mut table = table(Bounds::default());
    write(&mut table, slice(&whole, 5, 3));
    write(&mut table, slice(&texts, 1, 2));
    write(&mut table, slice(&whole, 17, 1));
    let expected =
        [row(5, 5, 10), row(6, 6, 12), row(7, 7, 14), row(17, 17, 34), text.clone(), Row { time: 51, ..text }];
    assert_eq!(all(&table.snapshot()), points(&expected));
}

fn any_row() -> impl Strategy<Value = Row> {
    let tag = || proptest::option::weighted(0.8, 0..4u8);
    let field = || proptest::option::of(0..200u8);
    (tag(), tag(), field(), field(), field(), field(), field(), 0..12i64)
        .prop_map(|(z, h, a, b, c, d, e, time)| Row { values: [z, h, a, b, c, d, e], time })
}

/// Rows of one batch, all without the columns whose bit is not set; late ones and mostly rising ones.
fn any_rows() -> impl Strategy<Value = Vec<Row>> {
    let size = prop_oneof![5 => 1..4usize, 3 => 4..24usize, 2 => 24..60usize];
    (size.prop_flat_map(|size| proptest::collection::vec(any_row(), size)), any::<u8>(), 0..40i64).prop_map(
        |(mut rows, columns, shift)| {
            for row in &mut rows {
                row.time += shift;
                for (at, value) in row.values.iter_mut().enumerate() {
                    if columns & 1 << at == 0 {
                        *value = None;
                    }
                }
            }
            rows
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn snapshots_show_what_an_ordered_map_would(
        writes in proptest::collection::vec((any_rows(), any::<bool>()), 1..24),
        fingerprints in prop_oneof![Just(1u64), Just(3), Just(u64::MAX)],
        generation in prop_oneof![Just(1usize), Just(3), Just(1000)],
    ) {
        let mut table = table(Bounds { series_generation_max: generation, ..SMALL });
        let mut oracle = Points::new();
        let mut seen = Vec::new();
        for (rows, look) in &writes {
            upsert(&mut oracle, rows);
            write(&mut table, batch_of(rows, fingerprints));
            if *look {
                seen.push((table.snapshot(), oracle.clone()));
            }
        }
        seen.push((table.snapshot(), oracle));
        for (snapshot, oracle) in seen {
            let shown = all(&snapshot);
            prop_assert_eq!(&shown, &oracle);
            prop_assert!(snapshot.row_count() >= oracle.len());
            if snapshot.exact_row_count_known() {
                prop_assert_eq!(snapshot.row_count(), oracle.len());
            }
            let (from, to) = (10, 20);
            let inside = |points: Points| -> Points {
                points.into_iter().filter(|((_, time), _)| (from..=to).contains(time)).collect()
            };
            let scanned = snapshot.scan(None, Some((from, to))).expect("scan");
            prop_assert_eq!(inside(read_inside(&scanned, from, to)), inside(oracle));
        }
    }
}

/// As [`read`], of the rows between `from` and `to`: outside of them a scan may show versions.
fn read_inside(batches: &[RecordBatch], from: i64, to: i64) -> Points {
    let inside: Vec<_> = batches
        .iter()
        .map(|batch| {
            let times = batch.column_by_name("time").expect("time").as_primitive::<TimestampNanosecondType>();
            let keep: BooleanArray = times.values().iter().map(|time| Some((from..=to).contains(time))).collect();
            arrow::compute::filter_record_batch(batch, &keep).expect("filter")
        })
        .collect();
    read(&inside)
}
