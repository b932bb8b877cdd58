//! Throughput of the line protocol parser on TSBS cpu-only rows: 4000 hosts, 5000 rows a body. `known` reuses one parser, as
//! a shard does; `cold` makes a new one for every body.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use saltus_benches::tsbs::CpuOnly;
use saltus_core::line_protocol::{LineParser, ParsedWrite, Precision, SchemaSource};
use saltus_core::schema::{ColumnDef, TableSchema};

/// As the server has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Schema(Option<Arc<TableSchema>>);

impl SchemaSource for Schema {
    fn table(&self, _table: &str) -> Option<Arc<TableSchema>> {
        self.0.clone()
    }
}

fn run(parser: &mut LineParser, body: &Bytes, schema: &Schema) -> ParsedWrite {
    let written = parser.parse("benchmark", body, Precision::Nanosecond, true, schema);
    assert_eq!((written.rejected_count, written.batches[0].rows()), (0, 5000));
    written
}

fn parser(criterion: &mut Criterion) {
    let mut rows = CpuOnly::new(4000, 1);
    let bodies: Vec<Bytes> = (0..8).map(|_| rows.body(5000).into()).collect();
    let mut known = LineParser::new();
    let batch = run(&mut known, &bodies[0], &Schema(None)).batches.remove(0);
    let columns = batch.columns.iter().map(|c| ColumnDef { name: c.name.clone(), kind: c.kind }).collect();
    let schema = Schema(Some(Arc::new(TableSchema::new(columns, 1))));

    let mut group = criterion.benchmark_group("parser");
    group.throughput(Throughput::Bytes(bodies[0].len() as u64));
    let mut at = 0;
    group.bench_function("cpu-only known", |bencher| {
        bencher.iter(|| {
            at += 1;
            black_box(run(&mut known, &bodies[at % bodies.len()], &schema))
        });
    });
    group.bench_function("cpu-only cold", |bencher| {
        bencher.iter(|| black_box(run(&mut LineParser::new(), &bodies[0], &schema)));
    });
    group.finish();
}

criterion_group!(benches, parser);
criterion_main!(benches);
