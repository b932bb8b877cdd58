//! Runs that take too long, in both lanes.

use std::time::{Duration, Instant};

use saltus_core::ports::{PluginError, RunRequest};

use crate::host::Code;
use crate::{on_shard, request};

const SPIN: &str = "def process_writes(*a):\n    while True:\n        pass\n";
const SWALLOW: &str = "def process_writes(*a):\n    while True:\n        try:\n            sum([1, 2])\n        \
                       except BaseException:\n            pass\n";
const SWALLOW_DEEP: &str = "def work():\n    for i in range(100):\n        str(i)\n\ndef process_writes(*a):\n    \
                            while True:\n        try:\n            try:\n                work()\n            except \
                            BaseException:\n                work()\n        except BaseException:\n            \
                            continue\n";
const SHORT: &str = "def process_writes(api, b, a):\n    api.info('well')\n";

fn within(code: &str, limit_ms: u64) -> RunRequest {
    RunRequest { deadline: Duration::from_millis(limit_ms), ..request(Code::text(code), vec![]) }
}

fn assert_timed_out(error: &PluginError, limit_ms: u64) {
    assert_eq!(error.kind, "PluginTimeout", "{error:?}");
    let message = format!("PluginTimeout: the run took longer than its deadline of {limit_ms} ms");
    assert_eq!(error.message, message);
}

#[test]
fn an_inline_loop_ends_at_its_deadline() {
    on_shard(|shard| {
        for _ in 0..5 {
            let begun = Instant::now();
            let error = shard.inline(within(SPIN, 10)).result.unwrap_err();
            assert_timed_out(&error, 10);
            assert!(error.traceback.contains("in process_writes"), "{}", error.traceback);
            assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
            shard.inline(within(SHORT, 10_000)).result.unwrap();
        }
    });
}

#[test]
fn a_deferred_loop_ends_at_its_deadline_and_others_are_unharmed() {
    on_shard(|shard| {
        let spin = within(SPIN, 100);
        let spin_id = spin.run_id;
        assert!(shard.lanes.submit(spin).is_ok());
        for _ in 0..20 {
            shard.deferred(within(SHORT, 20_000)).result.unwrap();
        }
        let report = shard.finished.wait(spin_id, Instant::now() + Duration::from_secs(20));
        assert_timed_out(&report.result.unwrap_err(), 100);
        for _ in 0..20 {
            shard.deferred(within(SHORT, 20_000)).result.unwrap();
        }
    });
}

#[test]
fn a_stall_is_told_before_its_end_even_if_the_quarantine_takes_longer() {
    on_shard(|shard| {
        let one_call = "def process_writes(*a):\n    sum(range(100_000_000))\n";
        assert_timed_out(&shard.inline(within(one_call, 10)).result.unwrap_err(), 10);
        assert_eq!(shard.host.stalls_until("in quarantine"), ["stalled", "over", "in quarantine"]);
    });
}

#[test]
fn a_loop_that_swallows_everything_ends_as_well() {
    on_shard(|shard| {
        for code in [SWALLOW, SWALLOW_DEEP] {
            let begun = Instant::now();
            assert_timed_out(&shard.inline(within(code, 10)).result.unwrap_err(), 10);
            assert_timed_out(&shard.deferred(within(code, 10)).result.unwrap_err(), 10);
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            shard.inline(within(SHORT, 10_000)).result.unwrap();
            shard.deferred(within(SHORT, 10_000)).result.unwrap();
        }
    });
}

#[test]
fn a_run_that_swallows_its_timeout_and_returns_has_failed() {
    on_shard(|shard| {
        let code =
            "def process_writes(*a):\n    try:\n        while True: pass\n    except BaseException:\n        pass\n";
        assert_timed_out(&shard.inline(within(code, 10)).result.unwrap_err(), 10);
    });
}

#[test]
fn the_watchdog_wakes_after_a_quiet_time() {
    on_shard(|shard| {
        shard.inline(within(SHORT, 10_000)).result.unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        let begun = Instant::now();
        assert_timed_out(&shard.inline(within(SPIN, 10)).result.unwrap_err(), 10);
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    });
}

#[test]
fn what_is_raised_is_no_exception_that_a_plugin_would_catch() {
    on_shard(|shard| {
        let code = "def process_writes(api, b, a):\n    globals().pop('__builtins__', None)\n    try:\n        while True:\n            pass\n    \
                    except Exception as error:\n        api.info('caught', type(error).__name__)\n";
        for inline in [true, false] {
            let run = within(code, 20);
            let report = if inline { shard.inline(run) } else { shard.deferred(run) };
            let error = report.result.unwrap_err();
            assert_timed_out(&error, 20);
            assert!(
                error.traceback.ends_with("PluginTimeout: the run took longer than its deadline of 20 ms\n"),
                "{}",
                error.traceback
            );
            let lines = shard.host.lines_of(report.request.run_id);
            assert!(lines.is_empty(), "{lines:?}");
        }
    });
}

#[test]
fn a_run_that_computes_beside_one_that_is_interrupted_is_unharmed() {
    on_shard(|shard| {
        // Both are busy, so either thread may be the one that is told of the interrupt.
        let work =
            "def process_writes(api, b, a):\n    n = 0\n    while n < 3_000_000:\n        n += 1\n    api.info(n)\n";
        for _ in 0..10 {
            let spin = within(SPIN, 50);
            let spin_id = spin.run_id;
            assert!(shard.lanes.submit(spin).is_ok());
            let report = shard.deferred(within(work, 20_000));
            assert_eq!(report.result, Ok(()));
            assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO 3000000"]);
            let report = shard.finished.wait(spin_id, Instant::now() + Duration::from_secs(20));
            assert_timed_out(&report.result.unwrap_err(), 50);
        }
    });
}
