//! Deferred runs that do not end, and what they leave behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use saltus_core::ids::{RunId, TriggerId};
use saltus_core::ports::{PluginError, RunReport, RunRequest, Trigger, Unwound};

use crate::host::Code;
use crate::{Shard, on_shard, request};

/// After its deadline and this, a run is left behind. Tests of other files wait for interrupts on machines that are busy.
pub fn grace() -> Duration {
    let runs = |tests: &str| std::env::args().any(|argument| argument.starts_with(tests));
    match (runs("guard::"), runs("evil::")) {
        (true, _) => Duration::from_millis(300),
        (_, true) => Duration::from_secs(1),
        _ => Duration::from_secs(60),
    }
}

/// One operation of C code, with the GIL, for longer than any test.
const HOLDS_THE_GIL: &str = "def process_writes(*a):\n    sum(range(10 ** 11))\n";
/// Waits in a system call, without the GIL, for what never comes.
const WAITS: &str = "import socket\n\ndef process_writes(*a):\n    a, b = socket.socketpair()\n    a.recv(1)\n";
const SHORT: &str = "import logging\n\ndef process_writes(api, b, a):\n    logging.getLogger('x').info('y')\n    \
                     api.info(f\"cached {api.cache.get('n')}\")\n    api.cache.put('n', 1)\n";

fn of(trigger: u64, code: &str, limit_ms: u64) -> RunRequest {
    let request = RunRequest { deadline: Duration::from_millis(limit_ms), ..request(Code::text(code), vec![]) };
    let mut def = request.trigger.def.clone();
    (def.id, def.name) = (TriggerId(trigger), format!("t{trigger}").into());
    let code = request.trigger.code.clone();
    RunRequest { trigger: Arc::new(Trigger { def, code }), ..request }
}

fn submit(shard: &mut Shard, request: RunRequest) -> RunId {
    let run_id = request.run_id;
    assert!(shard.lanes.submit(request).is_ok());
    run_id
}

fn wait(shard: &Shard, run_id: RunId) -> RunReport {
    shard.finished.wait(run_id, Instant::now() + Duration::from_secs(60))
}

fn assert_stuck(report: &RunReport, why: &str) {
    let error = report.result.as_ref().unwrap_err();
    assert_eq!(error.kind, PluginError::STUCK, "{error:?}");
    assert!(error.message.starts_with("PluginTimeout: ") && error.message.contains(why), "{error:?}");
}

fn cached(shard: &mut Shard, trigger: u64) -> Vec<String> {
    loop {
        let run_id = submit(shard, of(trigger, SHORT, 20_000));
        let report = wait(shard, run_id);
        // It had begun in an interpreter that was given up meanwhile: as a shard does, again.
        if report.unwound == Some(Unwound::InterpreterLost) {
            continue;
        }
        report.result.unwrap();
        return shard.host.lines_of(run_id);
    }
}

#[test]
fn a_sleep_ends_at_the_deadline() {
    on_shard(|shard| {
        for code in [
            "import time\n\ndef process_writes(*a):\n    time.sleep(1e9)\n",
            "from time import sleep\n\ndef process_writes(*a):\n    sleep(10 ** 9)\n",
        ] {
            let run_id = submit(shard, of(1, code, 100));
            let error = wait(shard, run_id).result.unwrap_err();
            assert_eq!(error.kind, "PluginTimeout", "{code}: {error:?}");
            assert!(error.traceback.contains("in process_writes"), "{}", error.traceback);
        }
        for (argument, kind) in [("-1", "ValueError"), ("'x'", "TypeError"), ("1e300", "OverflowError")] {
            let code = format!("import time\n\ndef process_writes(*a):\n    time.sleep({argument})\n");
            let run_id = submit(shard, of(1, &code, 20_000));
            assert_eq!(wait(shard, run_id).result.unwrap_err().kind, kind, "as CPython's own");
        }
    });
}

#[test]
fn a_run_that_waits_for_ever_is_left_behind_and_nobody_else_notices() {
    on_shard(|shard| {
        assert_eq!(cached(shard, 2), ["INFO cached None"]);
        // More than there are workers.
        let lock = "import threading\n\ndef process_writes(*a):\n    threading.Event().wait()\n";
        for code in [WAITS, lock, WAITS, lock] {
            let run_id = submit(shard, of(1, code, 100));
            assert_eq!(cached(shard, 2), ["INFO cached 1"], "while one waits");
            assert_stuck(&wait(shard, run_id), "its thread is left behind");
        }
        assert_eq!(cached(shard, 2), ["INFO cached 1"], "the interpreter is the same");
        assert_eq!(shard.host.restarts(), [] as [String; 0]);
    });
}

#[test]
fn an_interpreter_whose_gil_is_held_is_given_up_and_the_innocent_run_again() {
    on_shard(|shard| {
        assert_eq!(cached(shard, 2), ["INFO cached None"]);
        for round in 1..=3 {
            // It has begun, lets go of the GIL for a query, and does not get it back.
            let code = "def process_writes(api, b, a):\n    api.query('slow')\n    api.info('through')\n";
            let innocent = submit(shard, of(3, code, 20_000));
            std::thread::sleep(Duration::from_millis(100));
            let guilty = submit(shard, of(1, HOLDS_THE_GIL, 100));
            assert_stuck(&wait(shard, guilty), "cannot be interrupted");
            let report = wait(shard, innocent);
            if report.result.is_ok() {
                continue;
            }
            assert_eq!(report.unwound, Some(Unwound::InterpreterLost), "{:?}", report.result);
            let again = submit(shard, report.request);
            wait(shard, again).result.unwrap();
            assert!(shard.host.lines_of(again).contains(&"INFO through".to_owned()), "round {round}");
        }
        assert_eq!(cached(shard, 2), ["INFO cached None"], "a new interpreter");
        let said = shard.host.lines_of(RunId(0));
        assert!(said.iter().any(|line| line.contains("what its cache held there is lost")), "{said:?}");
        let restarts = shard.host.restarts();
        assert!(restarts.len() == 1 && restarts[0].starts_with("3 interpreters were given up"), "{restarts:?}");
    });
}

#[test]
fn the_guard_is_not_kept_by_a_worker_that_cannot_come_in() {
    on_shard(|shard| {
        assert_eq!(cached(shard, 2), ["INFO cached None"]);
        let guilty = submit(shard, of(1, HOLDS_THE_GIL, 1_000));
        std::thread::sleep(Duration::from_millis(200));
        // More than the workers that there are: another one is hired, who needs the GIL.
        let innocent: Vec<RunId> = (10..15).map(|trigger| submit(shard, of(trigger, SHORT, 20_000))).collect();
        assert_stuck(&wait(shard, guilty), "cannot be interrupted");
        for run_id in innocent {
            let report = wait(shard, run_id);
            if report.unwound == Some(Unwound::InterpreterLost) {
                let again = submit(shard, report.request);
                wait(shard, again).result.unwrap();
            } else {
                report.result.unwrap();
            }
        }
    });
}

#[test]
fn a_lock_that_an_interrupted_run_has_left_costs_it_its_interpreter() {
    on_shard(|shard| {
        assert_eq!(cached(shard, 2), ["INFO cached None"]);
        let code =
            "import logging\n\ndef process_writes(*a):\n    logging._lock.acquire()\n    while True:\n        pass\n";
        let run_id = submit(shard, of(1, code, 100));
        assert_stuck(&wait(shard, run_id), "it has left its interpreter unusable");
        assert_eq!(cached(shard, 2), ["INFO cached None"], "logging works, in a new interpreter");
    });
}
