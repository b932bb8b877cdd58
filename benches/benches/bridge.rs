//! What a run of a plugin costs besides the plugin: `cargo bench -p saltus-benches --bench bridge`.
//!
//! A plain program, since one thread must make the interpreter and use it. Each figure is the best of several rounds,
//! from outside of `run_inline`, so that it contains all that a shard pays. `cargo test` runs one tiny round.

use std::time::Instant;

use saltus_benches::cases::plugins::{COLUMNS_TO_MEMORYVIEW, EMPTY, ROWS_TO_DICTS};
use saltus_benches::python::{Interpreter, cpu_rows, table_batch, trigger};
use saltus_core::ports::TableBatch;

/// The best time of one run in nanoseconds, over `rounds` rounds of `runs` runs.
fn best(number: u64, source: &str, tables: &[TableBatch], rounds: u32, runs: u32) -> f64 {
    let interpreter = Interpreter::start(std::env::var_os(UNCOUNTED).is_none());
    let trigger = trigger(number, source);
    interpreter.await_ready(&trigger);
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let begun = Instant::now();
        for _ in 0..runs {
            interpreter.run(&trigger, tables);
        }
        best = best.min(begun.elapsed().as_nanos() as f64 / f64::from(runs));
    }
    best
}

/// Makes objects of all sizes and drops them.
const ALLOCATIONS: &str = "def process_writes(api, batches, args):\n    rows = [{'n': n, 's': str(n)} for n in range(2_000)]\n    \
                           assert len(rows) == 2_000\n";
/// Set in the process that measures them without limits of memory.
const UNCOUNTED: &str = "SALTUS_BENCH_UNCOUNTED";

/// The same in a process whose allocations are not counted, in nanoseconds.
fn uncounted() -> Option<f64> {
    let output = std::process::Command::new(std::env::current_exe().ok()?).arg("--bench").env(UNCOUNTED, "1").output();
    String::from_utf8(output.ok()?.stdout).ok()?.trim().parse().ok()
}

fn main() {
    let tiny = !std::env::args().any(|argument| argument == "--bench");
    let (rounds, runs): (u32, u32) = if tiny { (1, 2) } else { (20, 2_000) };
    let rows = if tiny { 10 } else { 5_000 };
    let one = [table_batch(cpu_rows(1))];
    let many = [table_batch(cpu_rows(rows))];
    let few_runs = runs.div_ceil(200);

    if std::env::var_os(UNCOUNTED).is_some() {
        println!("{}", best(7, ALLOCATIONS, &one, rounds, few_runs));
        return;
    }
    let say = |what: &str, nanoseconds: f64| {
        if tiny {
            println!("{what}: runs");
        } else {
            println!("{what:<40}{nanoseconds:9.0} ns");
        }
    };

    let empty = best(1, EMPTY, &one, rounds, runs);
    say("empty run, one batch", empty);
    let helpers: String =
        (0..20).map(|at| format!("LIMIT_{at} = {at}\ndef helper_{at}(x, limit=LIMIT_{at}):\n    return x\n")).collect();
    let helped = format!(
        "import json\nimport re\nWORD = re.compile('a+')\n{helpers}def process_writes(api, batches, args):\n    pass\n"
    );
    say("empty run, module with 20 helpers", best(5, &helped, &one, rounds, runs));
    let stateful = format!("SEEN = []\n{helped}    SEEN.append(1)\n");
    say("the same with state of its own", best(6, &stateful, &one, rounds, runs));
    let single = "def process_writes(api, batches, args):\n    batches[0]['rows']\n";
    say("run that reads one row of 21 columns", best(2, single, &one, rounds, runs));
    let all = best(3, ROWS_TO_DICTS, &many, rounds, few_runs);
    say("rows to dicts, per row of 21 columns", (all - empty) / rows as f64);
    let views = best(4, COLUMNS_TO_MEMORYVIEW, &many, rounds, runs);
    say("21 columns to memoryviews, any rows", views - empty);
    say("run that makes 8,000 objects", best(7, ALLOCATIONS, &one, rounds, few_runs));
    if !tiny {
        say("the same without limits of memory", uncounted().expect("the other process prints a figure"));
    }
}
