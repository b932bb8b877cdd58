//! The limit of memory in the interpreter lanes.

use std::sync::Arc;
use std::time::Duration;

use saltus_core::ids::TriggerId;
use saltus_core::policy::Lane;
use saltus_core::ports::{RunReport, RunRequest, Trigger};
use saltus_core::trigger::Limits;

use crate::host::Code;
use crate::{Shard, on_shard, request};

const MIB: u64 = 1 << 20;

fn of(trigger: u64, code: &str, limit: u64) -> RunRequest {
    let request = request(Code::text(code), vec![]);
    let mut def = request.trigger.def.clone();
    (def.id, def.name) = (TriggerId(trigger), format!("t{trigger}").into());
    let limits = Limits { memory_bytes: limit, ..request.limits };
    let code = request.trigger.code.clone();
    RunRequest { trigger: Arc::new(Trigger { def, code }), limits, deadline: Duration::from_secs(20), ..request }
}

fn run(shard: &mut Shard, lane: Lane, request: RunRequest) -> RunReport {
    match lane {
        Lane::Inline => shard.inline(request),
        _ => shard.deferred(request),
    }
}

fn in_both_lanes(test: fn(&mut Shard, Lane)) {
    on_shard(move |shard| {
        for lane in [Lane::Inline, Lane::Deferred] {
            test(shard, lane);
        }
    });
}

/// The message of a run that met its limit.
fn refused(report: &RunReport) -> &str {
    let error = report.result.as_ref().expect_err("it wants more than it may have");
    assert_eq!(error.kind, "MemoryError", "{error:?}");
    &error.message
}

#[test]
fn who_takes_more_than_its_trigger_may_hold_gets_a_memory_error_with_the_figure_and_nobody_else() {
    in_both_lanes(|shard, lane| {
        for hungry in [
            "    bytes(1 << 40)\n",
            "    [0] * (1 << 36)\n",
            "    'x' * (1 << 30)\n",
            "    rows = []\n    while True:\n        rows.append(bytearray(100_000))\n",
            "    rows = []\n    while True:\n        rows.append(object())\n",
            "    d = {}\n    while True:\n        d[len(d)] = str(len(d))\n",
            "    x = 1\n    while True:\n        x = x << 1_000_000\n",
        ] {
            let report = run(shard, lane, of(1, &format!("def process_writes(*a):\n{hungry}"), 32 * MIB));
            let message = refused(&report);
            assert!(message.contains("the trigger may hold 33554432 bytes of memory (limits: memory)"), "{message}");
            assert!(report.memory.unwrap().peak <= 32 * MIB, "{hungry}: {:?}", report.memory);
            assert!(report.memory.unwrap().held < MIB, "{hungry}: {:?} is kept", report.memory);
            let other = run(shard, lane, of(2, "def process_writes(*a):\n    bytes(64 << 20)\n", 128 * MIB));
            other.result.unwrap();
        }
    });
}

#[test]
fn what_the_cache_keeps_counts_until_it_is_given_back() {
    in_both_lanes(|shard, lane| {
        let keep = "def process_writes(api, b, a):\n    api.cache.put(str(api.event.run_id), bytearray(10 << 20))\n";
        let held: Vec<u64> = (0..3)
            .map(|_| {
                let report = run(shard, lane, of(3, keep, 35 * MIB));
                report.result.unwrap();
                report.memory.unwrap().held / MIB
            })
            .collect();
        assert_eq!(held, [10, 20, 30]);
        let message = refused(&run(shard, lane, of(3, keep, 35 * MIB))).to_owned();
        assert!(message.contains("it holds 314"), "{message}");
        let drop_it = "def process_writes(api, b, a):\n    for n in range(10_000):\n        api.cache.delete(str(n))\n";
        let report = run(shard, lane, of(3, drop_it, 35 * MIB));
        report.result.unwrap();
        assert!(report.memory.unwrap().held < MIB, "{:?}", report.memory);
    });
}

#[test]
fn a_run_that_goes_on_without_the_memory_is_told_in_the_log() {
    in_both_lanes(|shard, lane| {
        let code =
            "def process_writes(api, b, a):\n    try:\n        bytes(1 << 30)\n    except MemoryError:\n        pass\n";
        let report = run(shard, lane, of(4, code, 8 * MIB));
        report.result.as_ref().unwrap();
        let lines = shard.host.lines_of(report.request.run_id);
        assert_eq!(lines.len(), 1, "{lines:?}");
        let said =
            "WARN 1 allocations of the run failed: the trigger may hold 8388608 bytes of memory (limits: memory)";
        assert!(lines[0].starts_with(said), "{lines:?}");
    });
}

#[test]
fn a_recursion_without_end_meets_the_limit() {
    in_both_lanes(|shard, lane| {
        // Calls that take fewer arguments than there are do not count as recursion in CPython 3.13.0.
        let uncounted = "def process_writes(api, b=None, a=None, n=0):\n    process_writes(api, b, a)\n";
        let lifted = "import sys\n\ndef deeper(n):\n    return deeper(n + 1)\n\ndef process_writes(*a):\n    \
                      sys.setrecursionlimit(10**9)\n    try:\n        deeper(0)\n    finally:\n        \
                      sys.setrecursionlimit(1000)\n";
        for code in [uncounted, lifted] {
            let report = run(shard, lane, of(5, code, 64 * MIB));
            refused(&report);
            assert!(report.memory.unwrap().held < MIB, "{:?}", report.memory);
        }
    });
}

#[test]
fn threads_of_a_run_are_charged_to_its_trigger_even_after_it() {
    on_shard(|shard| {
        let code = "import threading\n\ndef grow(kept):\n    try:\n        while True:\n            kept.append(bytearray(1 << 20))\n    \
                    except MemoryError:\n        kept.append('no more')\n\ndef process_writes(api, b, a):\n    kept = []\n    \
                    api.cache.put('kept', kept)\n    thread = threading.Thread(target=grow, args=(kept,))\n    thread.start()\n    \
                    if a is None:\n        thread.join()\n        assert kept[-1] == 'no more'\n    api.info(len(kept))\n";
        let report = run(shard, Lane::Deferred, of(6, code, 32 * MIB));
        report.result.as_ref().unwrap();
        let lines = shard.host.lines_of(report.request.run_id);
        let count: u64 = lines[0].strip_prefix("INFO ").unwrap().parse().unwrap();
        assert!((25..=32).contains(&count), "{lines:?}");
        assert!(report.memory.unwrap().held > 20 * MIB);
    });
}

#[test]
fn nothing_is_left_of_runs_that_keep_nothing() {
    in_both_lanes(|shard, lane| {
        let code = "import json\n\nclass Node:\n    pass\n\ndef process_writes(api, b, a):\n    rows = json.loads(json.dumps([{'a': n} for n in \
                    range(500)]))\n    api.cache.put('last', rows[-1])\n    node = Node()\n    node.self = node\n    api.info(len(rows))\n";
        let mut held = Vec::new();
        for _ in 0..1_000 {
            let report = run(shard, lane, of(7, code, 64 * MIB));
            report.result.unwrap();
            held.push(report.memory.unwrap().held);
        }
        // Cycles wait for a full collection; what is kept of every run would be more.
        let (early, late) = (held[20..40].iter().max().unwrap(), held[980..].iter().max().unwrap());
        assert!(late < &(early + 1_000_000), "it grows: {early} at first, {late} in the end");
    });
}
