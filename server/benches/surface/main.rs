//! What the server itself costs, without the engine: a write request over HTTP, the planning of a query.
//!
//! Three ways to run it: `cargo bench -p saltus --bench surface` measures times; `surface --count NAME` runs one case once, for
//! callgrind to count what happens within [`counted`] (the bench `server_counts` of `saltus-benches` does that); `cargo test`
//! runs all, tiny. It depends on no library for benchmarks: gungraun and criterion give `syn` and `serde` features that the
//! server is built without, and DataFusion would be compiled a second time for them.

mod http;
mod query;

use std::hint::black_box;
use std::time::Instant;

/// As the server has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A case that is ready to run; the same contract as in `saltus-benches`.
trait Measured {
    /// Makes what the next run needs, and drops what the last one left. Never measured.
    fn reset(&mut self);
    /// The work. The result is a checksum: it shows that the work was done.
    fn run(&mut self) -> u64;
}

/// Something that is measured.
struct Case {
    name: &'static str,
    /// What is worked on, and how many of it a full run has.
    unit: &'static str,
    units: usize,
    /// Makes it for so many units.
    make: fn(usize) -> Box<dyn Measured>,
}

const CASES: [Case; 2] = [
    Case { name: "http_write_request", unit: "request", units: 100, make: http::writes },
    Case { name: "query_planning", unit: "query", units: 10, make: query::planning },
];

/// What callgrind counts. A function of its own, since it is found by its name.
#[inline(never)]
fn counted(measured: &mut dyn Measured) -> u64 {
    black_box(measured.run())
}

fn count(name: &str) {
    let case = CASES.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case is called {name}"));
    let mut measured = (case.make)(case.units);
    for _ in 0..2 {
        measured.reset();
        measured.run();
    }
    measured.reset();
    println!("{name}: {}", counted(measured.as_mut()));
}

/// Rounds of which the best counts, and runs of a round.
const ROUNDS: usize = 20;
const RUNS: usize = 20;

/// Prints what a run takes in nanoseconds, the mean of the best round; a tiny one that takes no time unless it is asked for.
fn wall(full: bool) {
    for case in CASES {
        let mut measured = (case.make)(if full { case.units } else { 1 });
        let mut round = |runs: usize| {
            let times = (0..runs).map(|_| {
                measured.reset();
                let begun = Instant::now();
                black_box(measured.run());
                begun.elapsed().as_nanos() as f64
            });
            times.sum::<f64>() / runs as f64
        };
        if full {
            let best = (0..ROUNDS).map(|_| round(RUNS)).fold(f64::INFINITY, f64::min);
            println!("{} {best:.0}", case.name);
        } else {
            round(1);
            println!("{}: runs", case.name);
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("--count"), Some(name)) => count(&name),
        (Some("--units"), _) => CASES.iter().for_each(|case| println!("{} {} {}", case.name, case.units, case.unit)),
        (first, _) => wall(first == Some("--bench")),
    }
}
