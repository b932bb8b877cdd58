//! Goals: what it costs the owner of a table to apply rows of 21 columns (10 tags, 10 integers, time), as in the TSBS
//! `cpu-only` set, with 4000 series.
//!
//! Measured is [`Table::apply`] alone. The batches are made before and dropped after the clock runs; a server pays for
//! that elsewhere. Every measurement starts with an empty table and fills it with the same rows, so that growth is part
//! of the figure.

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, Int64Array, StringArray, TimestampNanosecondArray};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use saltus_core::batch::{Batch, BatchColumn};
use saltus_core::ids::TableId;
use saltus_core::schema::ColumnKind;
use saltus_shards::table::Table;

const TAGS: usize = 10;
const FIELDS: usize = 10;
const SERIES: usize = 4000;
const BATCH_ROWS: usize = 5000;
const BATCHES: usize = 40;
const SINGLE_ROWS: usize = 20_000;

/// Rows `from..from + rows` of an endless input in which the series take turns.
fn batch(from: usize, rows: usize) -> Arc<Batch> {
    let numbers = from..from + rows;
    let series: Vec<usize> = numbers.clone().map(|row| row % SERIES).collect();
    let tags = (0..TAGS).map(|tag| BatchColumn {
        name: format!("tag_{tag}").into(),
        kind: ColumnKind::Tag,
        data: tag_column(tag, &series),
    });
    let fields = (0..FIELDS).map(|field| BatchColumn {
        name: format!("usage_{field}").into(),
        kind: ColumnKind::Integer,
        data: Arc::new(Int64Array::from_iter_values(numbers.clone().map(|row| (row * 7 + field) as i64 % 100))),
    });
    Arc::new(Batch {
        columns: tags.chain(fields).collect(),
        time: TimestampNanosecondArray::from_iter_values(numbers.clone().map(|row| (row / SERIES) as i64)),
        series: series.iter().map(|&series| (series as u64 + 1).wrapping_mul(0xD6E8_FEB8_6659_FD93)).collect(),
    })
}

/// The first tag names the series; the others have few values.
fn tag_column(tag: usize, series: &[usize]) -> ArrayRef {
    let values = |series: usize| if tag == 0 { series } else { series % (tag * 3) };
    let mut texts: Vec<usize> = series.iter().map(|&series| values(series)).collect();
    texts.sort_unstable();
    texts.dedup();
    let keys = series.iter().map(|&series| texts.partition_point(|&text| text < values(series)) as i32);
    let keys = Int32Array::from_iter_values(keys);
    let texts = StringArray::from_iter_values(texts.iter().map(|text| format!("value_{text}")));
    Arc::new(DictionaryArray::new(keys, Arc::new(texts)))
}

fn table(batches: &[Arc<Batch>]) -> Table {
    let mut table = Table::new(TableId(1), "tsbs".into(), "cpu".into());
    let check = table.check(batches[0].columns.iter().map(|column| (column.name.as_ref(), column.kind)));
    table.add_columns(&check.new);
    table
}

fn apply_all(mut table: Table, batches: &[Arc<Batch>]) -> Table {
    for batch in batches {
        table.apply(batch.clone());
    }
    black_box(table.bytes());
    table
}

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("table_apply");
    group.sample_size(10);
    let large: Vec<_> = (0..BATCHES).map(|at| batch(at * BATCH_ROWS, BATCH_ROWS)).collect();
    group.throughput(Throughput::Elements((BATCHES * BATCH_ROWS) as u64));
    group.bench_function("batches_of_5000_rows", |b| {
        b.iter_batched(|| table(&large), |table| apply_all(table, &large), BatchSize::PerIteration);
    });
    let single: Vec<_> = (0..SINGLE_ROWS).map(|at| batch(at, 1)).collect();
    group.throughput(Throughput::Elements(SINGLE_ROWS as u64));
    group.bench_function("single_rows", |b| {
        b.iter_batched(|| table(&single), |table| apply_all(table, &single), BatchSize::PerIteration);
    });
    group.throughput(Throughput::Elements(1000));
    group.bench_function("single_rows_each_with_a_snapshot", |b| {
        b.iter_batched(
            || table(&single),
            |mut table| {
                for batch in &single[..1000] {
                    table.apply(batch.clone());
                    black_box(table.snapshot());
                }
                table
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn scan(c: &mut Criterion) {
    let mut group = c.benchmark_group("table_scan");
    group.sample_size(10);
    let batches: Vec<_> = (0..BATCHES).map(|at| batch(at * BATCH_ROWS, BATCH_ROWS)).collect();
    group.throughput(Throughput::Elements((BATCHES * BATCH_ROWS) as u64));
    let clean = apply_all(table(&batches), &batches).snapshot();
    group.bench_function("nothing_overwritten", |b| b.iter(|| clean.scan(None, None)));
    let mut flagged = apply_all(table(&batches), &batches);
    flagged.apply(batches[BATCHES / 2].clone());
    let flagged = flagged.snapshot();
    group.bench_function("one_batch_overwritten", |b| b.iter(|| flagged.scan(None, None)));
    group.finish();
}

criterion_group!(benches, apply, scan);
criterion_main!(benches);
