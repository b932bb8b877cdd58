//! The cases in instructions: `make bench-check`, or `cargo bench -p saltus-benches --bench counts` with `gungraun-runner` and
//! valgrind there. Every case is a process of its own, in which callgrind counts what the call of [`Measured::run`] costs and
//! nothing else. `cargo test` runs each once, tiny, without callgrind.

use saltus_benches::cases::{CASES, Measured, Size};

/// As the server has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What gungraun makes a benchmark of: each name a case, made before the counting begins.
#[allow(unused_qualifications, reason = "gungraun's macros write them")]
mod counted {
    use std::hint::black_box;

    use gungraun::prelude::*;
    use saltus_benches::cases::{Measured, Size, make};

    fn full(name: &str) -> Box<dyn Measured> {
        make(name, Size::Full)
    }

    macro_rules! counts {
        ($($name:ident),* $(,)?) => {
            /// The cases that are counted.
            pub(super) const NAMES: &[&str] = &[$(stringify!($name)),*];

            #[library_benchmark]
            // The argument is made outside of what is counted.
            $(#[bench::$name(full(stringify!($name)))])*
            fn case(mut measured: Box<dyn Measured>) -> (u64, Box<dyn Measured>) {
                // What the run made is given back with it, so that its end is not counted.
                (black_box(measured.run()), measured)
            }
        };
    }

    counts!(
        parser_known,
        parser_cold,
        parser_single_row,
        batch_building,
        apply_bulk,
        apply_single_row,
        table_snapshot,
        wal_encode_bulk,
        wal_encode_single_row,
        mailbox,
        policy_decision,
        plugin_empty_run,
        plugin_rows_to_dicts,
        plugin_columns_to_memoryview,
    );

    library_benchmark_group!(name = counts, benchmarks = case);
    main!(library_benchmark_groups = counts);

    pub(super) fn start() {
        main();
    }
}

/// Every case once, as small as it can be.
fn tiny() {
    let names: Vec<_> = CASES.iter().map(|case| case.name).collect();
    assert_eq!(counted::NAMES, names, "each case is counted");
    for case in CASES {
        let mut measured: Box<dyn Measured> = (case.make)(Size::Tiny);
        println!("{}: {}", case.name, measured.run());
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let asked = |argument: &str| arguments.iter().any(|given| given == argument);
    if asked("--units") {
        CASES.iter().for_each(|case| println!("{} {} {}", case.name, case.units, case.unit));
    } else if asked("--bench") || asked("--gungraun-run") {
        // What `cargo bench` says, and what the runner says to the process that is counted.
        counted::start();
    } else {
        tiny();
    }
}
