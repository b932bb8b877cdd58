//! The server's cases in instructions: callgrind over the program of the bench `surface` of the package `saltus`, whose path
//! is in `SALTUS_SURFACE_BENCH` (`make bench-check` sets it). Without it there is nothing to do: so it is for `cargo test`, which runs
//! those cases where they are.

/// Where the program is.
const PROGRAM: &str = "SALTUS_SURFACE_BENCH";

/// What gungraun makes a benchmark of.
#[allow(unused_qualifications, reason = "gungraun's macros write them")]
mod counted {
    use gungraun::prelude::*;
    use gungraun::{Callgrind, EntryPoint};

    #[binary_benchmark]
    #[bench::http_write_request("http_write_request")]
    #[bench::query_planning("query_planning")]
    fn case(name: &str) -> Command {
        let program = std::env::var(crate::PROGRAM).expect("main looks for it first");
        Command::new(program).args(["--count", name]).build()
    }

    binary_benchmark_group!(name = counts, benchmarks = case);
    main!(
        config = BinaryBenchmarkConfig::default()
            .tool(Callgrind::default().entry_point(EntryPoint::Custom("surface::counted*".to_owned())));
        binary_benchmark_groups = counts
    );

    pub(super) fn start() {
        main();
    }
}

fn main() {
    if std::env::var_os(PROGRAM).is_some() {
        counted::start();
    } else {
        println!("{PROGRAM} is not set: the cases run in `cargo test -p saltus --bench surface`");
    }
}
