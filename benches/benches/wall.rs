//! The cases on the clock: `cargo bench -p saltus-benches --bench wall`. `cargo test` runs each once, tiny.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use saltus_benches::cases::{CASES, Size};

/// As the server has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn cases(criterion: &mut Criterion) {
    let size = if std::env::args().any(|argument| argument == "--bench") { Size::Full } else { Size::Tiny };
    let mut group = criterion.benchmark_group("wall");
    for case in CASES {
        group.throughput(Throughput::Elements(case.units));
        group.bench_function(case.name, |bencher| {
            let mut measured = (case.make)(size);
            bencher.iter_custom(|runs| {
                let mut total = Duration::ZERO;
                for _ in 0..runs {
                    measured.reset();
                    let begun = Instant::now();
                    black_box(measured.run());
                    total += begun.elapsed();
                }
                total
            });
        });
    }
    group.finish();
}

criterion_group!(benches, cases);
criterion_main!(benches);
