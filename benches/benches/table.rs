//! What a table costs beyond the cases of `wall`: a snapshot after every row, and scans.
//!
//! The batches are made before and dropped after the clock runs; a server pays for that elsewhere. Every measurement of
//! writing starts with an empty table, so that growth is part of the figure.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use saltus_benches::cases::apply::{batch, table};
use saltus_core::batch::Batch;
use saltus_shards::table::Table;

const BATCH_ROWS: usize = 5000;
const BATCHES: usize = 40;
const SINGLE_ROWS: usize = 1000;

fn apply_all(mut table: Table, batches: &[Arc<Batch>]) -> Table {
    for batch in batches {
        table.apply(batch.clone());
    }
    table
}

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("table_apply");
    group.sample_size(10);
    let single: Vec<_> = (0..SINGLE_ROWS).map(|at| batch(at, 1)).collect();
    group.throughput(Throughput::Elements(SINGLE_ROWS as u64));
    group.bench_function("single_rows_each_with_a_snapshot", |b| {
        b.iter_batched(
            || table(&single[0]),
            |mut table| {
                for batch in &single {
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
    let clean = apply_all(table(&batches[0]), &batches).snapshot();
    group.bench_function("nothing_overwritten", |b| b.iter(|| clean.scan(None, None)));
    let mut flagged = apply_all(table(&batches[0]), &batches);
    flagged.apply(batches[BATCHES / 2].clone());
    let flagged = flagged.snapshot();
    group.bench_function("one_batch_overwritten", |b| b.iter(|| flagged.scan(None, None)));
    group.finish();
}

criterion_group!(benches, apply, scan);
criterion_main!(benches);
