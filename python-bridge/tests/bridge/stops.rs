//! Runs that are told to end early, because their trigger was deleted, disabled or changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use saltus_core::ids::TriggerId;
use saltus_core::policy::Lane;
use saltus_core::ports::{PluginError, RunRequest, StopCause, Trigger};

use crate::host::Code;
use crate::{on_shard, request};

/// What a run may be doing: it says `begun` first, and goes on for longer than any test.
const BUSY: &[(&str, &str)] = &[
    ("sleeps", "    import time\n    time.sleep(100)\n"),
    ("sleeps often", "    import time\n    for _ in range(1000):\n        time.sleep(0.1)\n"),
    ("computes", "    while True:\n        pass\n"),
    (
        "swallows everything",
        "    import time\n    while True:\n        try:\n            time.sleep(0.2)\n        except BaseException:\n            pass\n",
    ),
    (
        "writes on",
        "    import time\n    while True:\n        try:\n            time.sleep(0.05)\n            api.write_sync(LineBuilder('late').int64_field('n', 1), no_sync=True)\n        except Exception:\n            pass\n",
    ),
];

/// The queue's own bound is far above.
const WITHIN: Duration = Duration::from_secs(10);

fn stopped(lane: Lane) {
    on_shard(move |shard| {
        for (at, (what, body)) in BUSY.iter().enumerate() {
            let code = format!(
                "def process_writes(api, b, a):\n    api.write(LineBuilder('queued').int64_field('n', 1))\n    api.state.put('k', 1)\n    api.info('begun')\n{body}"
            );
            for cause in [StopCause::Gone, StopCause::Changed] {
                let plain = request(Code::text(&code), vec![]);
                let def = saltus_core::trigger::TriggerDef {
                    id: TriggerId(100 + at as u64),
                    name: format!("t{at}").into(),
                    ..plain.trigger.def.clone()
                };
                let trigger = Arc::new(Trigger { def, code: plain.trigger.code.clone() });
                let run = RunRequest { trigger, lane, deadline: Duration::from_secs(300), ..plain };
                let (run_id, stop) = (run.run_id, run.stop.clone());
                assert!(shard.lanes.submit(run).is_ok());
                let until = Instant::now() + Duration::from_secs(60);
                while !shard.host.lines_of(run_id).iter().any(|line| line == "INFO begun") {
                    assert!(Instant::now() < until, "{what}: it never begins");
                    std::thread::sleep(Duration::from_millis(2));
                }
                stop.set(cause);
                shard.lanes.stop_runs();
                let report = shard.finished.wait(run_id, Instant::now() + WITHIN);
                let error = report.result.unwrap_err();
                assert_eq!(error.kind, PluginError::CANCELLED, "{what}: {error:?}");
                assert!(error.message.contains("deleted, disabled or changed"), "{what}: {error:?}");
                assert!(report.writes.is_empty() && report.state.is_empty(), "{what}: nothing of it counts");
                shard.host.take_written();
            }
        }
        // Whatever they did, the next one finds an interpreter.
        let run =
            RunRequest { lane, ..request(Code::text("def process_writes(api, b, a):\n    api.info('on')\n"), vec![]) };
        let run_id = run.run_id;
        assert!(shard.lanes.submit(run).is_ok());
        shard.finished.wait(run_id, Instant::now() + Duration::from_secs(60)).result.unwrap();
        assert!(shard.host.take_written().is_empty(), "nothing is written by a run that is over");
    });
}

#[test]
fn a_deferred_run_that_nobody_wants_any_more_is_interrupted() {
    stopped(Lane::Deferred);
}

#[test]
fn a_run_in_a_process_that_nobody_wants_any_more_is_interrupted() {
    stopped(Lane::Process);
}

#[test]
fn a_run_that_waits_in_line_is_not_begun() {
    on_shard(|shard| {
        for lane in [Lane::Deferred, Lane::Process] {
            let run = RunRequest {
                lane,
                ..request(Code::text("def process_writes(api, b, a):\n    api.info('x')\n"), vec![])
            };
            let run_id = run.run_id;
            run.stop.set(StopCause::Changed);
            assert!(shard.lanes.submit(run).is_ok());
            let report = shard.finished.wait(run_id, Instant::now() + Duration::from_secs(60));
            assert_eq!(report.result.unwrap_err().kind, PluginError::CANCELLED);
            assert!(shard.host.lines_of(run_id).is_empty());
        }
    });
}
