//! What an inline run may not do, what becomes of a run that tries, and how a trigger moves from lane to lane.

use std::sync::Arc;
use std::time::Duration;

use saltus_core::ids::TriggerId;
use saltus_core::ports::{Readiness, RunRequest, Trigger, Unwound};
use saltus_core::trigger::Execution;

use crate::data::{every_kind, table};
use crate::host::Code;
use crate::{Shard, on_shard, request};

/// A run of a trigger with these settings, of which there is one per `id`.
fn of(id: u64, execution: Execution, source: &str) -> RunRequest {
    let request = request(Code::text(source), vec![table("cpu", every_kind())]);
    let mut def = request.trigger.def.clone();
    (def.id, def.execution) = (TriggerId(id), execution);
    let trigger = Arc::new(Trigger { def, code: request.trigger.code.clone() });
    RunRequest { trigger, ..request }
}

fn auto(id: u64, source: &str) -> RunRequest {
    of(id, Execution::Auto, source)
}

/// Puts the lines of a function's body into a plugin.
fn plugin(body: &str) -> String {
    let lines: Vec<String> = body.lines().map(|line| format!("    {line}\n")).collect();
    format!("def process_writes(api, batches, args):\n{}", lines.concat())
}

fn said(shard: &mut Shard, run: RunRequest) -> Vec<String> {
    let run_id = run.run_id;
    let report = if shard.lanes.ready_inline(&run.trigger) == Readiness::Ready {
        shard.inline(run)
    } else {
        unreachable!("made ready before")
    };
    assert_eq!((report.unwound, report.result), (None, Ok(())));
    shard.host.lines_of(run_id)
}

/// What can block, and the event or call that says so.
const REACHES: &[(&str, &str)] = &[
    ("import time\ntime.sleep(0.001)", "time.sleep"),
    ("import socket\nsocket.socket()", "socket.__new__"),
    ("open('/etc/hostname')", "open"),
    ("import os\nos.listdir('/')", "os.listdir"),
    ("import os\nos.system('true')", "os.system"),
    ("import subprocess\nsubprocess.run(['true'])", "subprocess.Popen"),
    ("import threading\nthreading.Thread(target=int).start()", "_thread.start_joinable_thread"),
    ("api.query('SELECT 1')", "query()"),
    ("api.cache.get('x', use_global=True)", "the global cache"),
];

#[test]
fn a_run_that_reaches_for_what_can_block_is_discarded_and_leaves_nothing() {
    on_shard(|shard| {
        let seen = "api.info('got', api.cache.get('n', 0), api.cache.get('list'), api.cache.get('gone'))";
        for (number, (reach, what)) in REACHES.iter().enumerate() {
            let id = 100 + number as u64;
            let fill = plugin("api.cache.put('n', 1)\napi.cache.put('list', [1, [2]])\napi.cache.put('gone', 'here')");
            shard.inline(auto(id, &fill)).result.unwrap();
            let body = format!(
                "api.info('about to')\nprint('printed')\napi.write(LineBuilder('m').int64_field('v', 1))\n\
                 api.cache.put('n', 2)\napi.cache.get('list')[1].append(3)\napi.cache.delete('gone')\napi.cache.put('new', 1)\n{reach}"
            );
            let report = shard.inline(auto(id, &plugin(&body)));
            assert_eq!(report.unwound, Some(Unwound::Blocked((*what).into())), "{reach}: {:?}", report.result);
            assert!(report.result.is_err() && report.writes.is_empty());
            assert!(shard.host.all_of(report.request.run_id).is_empty(), "{reach}");
            let run = auto(id, &plugin(&format!("{seen}\napi.info(api.cache.get('new'))")));
            assert_eq!(shard.ready(&run), Readiness::Ready);
            assert_eq!(said(shard, run), ["INFO got 1 [1, [2]] here", "INFO None"], "{reach}");
        }
    });
}

#[test]
fn whoever_swallows_the_unwinding_meets_it_again_and_is_discarded() {
    on_shard(|shard| {
        let body = "import time\nfor _ in range(3):\n    try:\n        time.sleep(0)\n    except BaseException:\n        pass\n\
                    try:\n    api.info('still here')\nexcept BaseException:\n    pass\ntry:\n    print('here')\nexcept BaseException:\n    pass\n\
                    try:\n    api.cache.put('a', 1)\nexcept BaseException:\n    pass\n";
        let report = shard.inline(auto(1, &plugin(body)));
        assert_eq!(report.unwound, Some(Unwound::Blocked("time.sleep".into())));
        assert!(shard.host.all_of(report.request.run_id).is_empty());
        let run = auto(1, &plugin("api.info(api.cache.get('a'))"));
        assert_eq!(shard.ready(&run), Readiness::Ready);
        assert_eq!(said(shard, run), ["INFO None"]);
    });
}

#[test]
fn explicit_inline_gets_an_error_that_names_the_call_and_the_remedy() {
    on_shard(|shard| {
        for (reach, what) in REACHES.iter().filter(|(_, what)| *what != "the global cache") {
            let run = of(2, Execution::Inline, &plugin(&format!("api.info('before')\n{reach}")));
            let report = shard.inline(run);
            assert_eq!(report.unwound, None);
            let error = report.result.unwrap_err();
            assert_eq!(error.kind, "LaneError", "{reach}: {}", error.message);
            assert!(error.message.starts_with(&format!("LaneError: {what} would block")), "{}", error.message);
            assert!(
                error.message.ends_with("create trigger 'watcher' with --execution auto or deferred"),
                "{}",
                error.message
            );
            assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO before"], "what it said before is kept");
        }
    });
}

#[test]
fn a_deferred_run_says_what_could_have_blocked() {
    on_shard(|shard| {
        for (reach, what) in REACHES.iter().filter(|(_, what)| !matches!(*what, "the global cache" | "os.listdir")) {
            let report = shard.deferred(auto(3, &plugin(reach)));
            report.result.unwrap();
            let what = if *what == "open" { "open('/etc/hostname')" } else { what };
            assert_eq!(report.reached.as_deref(), Some(what));
        }
        let report = shard.deferred(auto(3, &plugin("import colorsys, json, ftplib\napi.info(1)")));
        report.result.unwrap();
        assert_eq!(report.reached, None, "imports read files, which is no event of the run");
    });
}

#[test]
fn a_module_that_is_imported_late_costs_one_discarded_run() {
    on_shard(|shard| {
        for execution in [Execution::Auto, Execution::Inline] {
            let module = if execution == Execution::Auto { "wave" } else { "chunk_of_nothing" };
            let body = format!(
                "n = api.cache.get('n', 0) + 1\napi.cache.put('n', n)\napi.info('run', n)\ntry:\n    __import__('{module}')\n    \
                                api.info('have it')\nexcept ImportError as e:\n    api.info(type(e).__name__, e)"
            );
            let run = of(4 + execution as u64, execution, &plugin(&body));
            assert_eq!(shard.ready(&run), Readiness::Ready);
            let first = shard.lanes.run_inline(run);
            assert_eq!(first.unwound, Some(Unwound::Import(module.into())));
            let report = shard.inline(first.request);
            report.result.unwrap();
            let last = match execution {
                Execution::Auto => "INFO have it".to_owned(),
                _ => format!("INFO ModuleNotFoundError No module named '{module}'"),
            };
            assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO run 1".to_owned(), last]);
        }
    });
}

#[test]
fn imports_by_statement_are_seen_to_before_the_first_run() {
    on_shard(|shard| {
        let run = auto(
            6,
            "import plistlib\nfrom xml.dom import minidom\ndef process_writes(api, b, a):\n    import netrc\n    api.info(netrc.__name__)\n",
        );
        assert_eq!(shard.lanes.ready_inline(&run.trigger), Readiness::Wait);
        assert_eq!(shard.ready(&run), Readiness::Ready);
        let report = shard.lanes.run_inline(run);
        assert_eq!((report.unwound, report.result), (None, Ok(())));
    });
}

#[test]
fn a_cache_of_plain_values_moves_from_lane_to_lane() {
    on_shard(|shard| {
        let count = plugin(
            "seen = api.cache.get('seen', [])\nseen.append(len(seen))\napi.cache.put('seen', seen, 60)\n\
             api.cache.put('all', {'a': (1, 2.5, None, True, 'x', b'y'), 'b': {3}, 'c': frozenset()})\n\
             api.info(seen, api.cache.get('all')['b'])",
        );
        let mut expected = Vec::new();
        for step in 0..6 {
            expected.push(step.to_string());
            let run = auto(7, &count);
            let run_id = run.run_id;
            let report = if step % 3 == 0 { shard.deferred(run) } else { shard.inline(run) };
            assert_eq!((report.unwound, report.result), (None, Ok(())));
            assert_eq!(shard.host.lines_of(run_id), [format!("INFO [{}] {{3}}", expected.join(", "))]);
        }
    });
}

#[test]
fn a_cache_that_cannot_move_keeps_its_trigger_where_it_is() {
    on_shard(|shard| {
        let puts = ["object()", "[lambda: 1]", "list(range(60000))"];
        for (number, value) in puts.iter().enumerate() {
            let id = 20 + number as u64;
            let fill = auto(
                id,
                &plugin(&format!(
                    "if api.cache.get('v') is None:\n    api.cache.put('v', {value})\napi.cache.put('n', 1)"
                )),
            );
            shard.deferred(fill).result.unwrap();
            let look = || auto(id, &plugin("api.info(type(api.cache.get('v')).__name__)"));
            assert!(matches!(shard.ready(&look()), Readiness::CacheNotPlain(_)), "{value}");
            let report = shard.deferred(look());
            assert_ne!(shard.host.lines_of(report.request.run_id), ["INFO NoneType"], "{value}: nothing is lost");
        }
        // Two names for one list could not be undone by a copy of each.
        shard.deferred(auto(30, &plugin("x = []\napi.cache.put('x', x)\napi.cache.put('y', x)"))).result.unwrap();
        assert!(matches!(shard.ready(&auto(30, &plugin("pass"))), Readiness::CacheNotPlain(_)));
        // One that becomes so while it is inline.
        let report = shard.inline(auto(31, &plugin("api.cache.put('x', object())")));
        assert_eq!(report.unwound, Some(Unwound::CacheNotPlain));
        shard
            .inline(auto(31, &plugin("x = [1]\napi.cache.put('x', x)\napi.cache.put('fine', 2)\nx.append(object())")))
            .result
            .unwrap();
        let report = shard.deferred(auto(31, &plugin("api.info(api.cache.get('x'), api.cache.get('fine'))")));
        assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO None 2"]);
        assert!(
            shard
                .host
                .lines_of(saltus_core::ids::RunId(0))
                .iter()
                .any(|line| line.contains("under these keys cannot: x;"))
        );
    });
}

#[test]
fn an_inline_run_that_takes_too_long_is_discarded_if_the_policy_can_move_it() {
    on_shard(|shard| {
        let spin = "api.cache.put('n', 1)\napi.info('on')\nwhile True:\n    pass";
        let run = RunRequest { deadline: Duration::from_millis(10), ..auto(8, &plugin(spin)) };
        let report = shard.inline(run);
        assert_eq!(report.unwound, Some(Unwound::Overran));
        assert_eq!(report.result.unwrap_err().kind, "PluginTimeout");
        assert!(shard.host.all_of(report.request.run_id).is_empty());
        let run = auto(8, &plugin("api.info(api.cache.get('n'))"));
        assert_eq!(shard.ready(&run), Readiness::Ready);
        assert_eq!(said(shard, run), ["INFO None"]);
    });
}

#[test]
fn a_flood_of_log_lines_is_sent_to_the_lane_that_need_not_hold_them() {
    on_shard(|shard| {
        let flood = plugin("for n in range(5000):\n    api.info(n)");
        let report = shard.inline(auto(9, &flood));
        assert_eq!(report.unwound, Some(Unwound::Blocked("more log lines than can be held".into())));
        assert!(shard.host.all_of(report.request.run_id).is_empty());
        let report = shard.inline(of(10, Execution::Inline, &flood));
        report.result.unwrap();
        assert_eq!(shard.host.lines_of(report.request.run_id).len(), 5000);
    });
}

#[test]
fn compiling_and_checking_a_plugin_is_not_charged_to_its_run() {
    on_shard(|shard| {
        // Seconds of compiling, and next to nothing of running. The deadline is CPU time, so other work does not matter.
        let functions: String =
            (0..4_000).map(|n| format!("def f{n}(x):\n    return [x + {n} for x in range({n})]\n")).collect();
        let source = format!("{functions}{}", plugin("api.info('well')"));
        let run = RunRequest { deadline: Duration::from_millis(300), ..of(11, Execution::Inline, &source) };
        let report = shard.inline(run);
        assert_eq!(report.result, Ok(()));
        assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO well"]);
    });
}

#[test]
fn a_module_that_never_stays_imported_ends_in_an_error_and_not_in_a_loop() {
    on_shard(|shard| {
        let body = "import sys\nsys.modules.pop('colorsys', None)\nimport colorsys";
        let report = shard.inline(of(40, Execution::Inline, &plugin(body)));
        assert_eq!(report.unwound, None);
        let error = report.result.unwrap_err();
        assert!(error.message.starts_with("LaneError: import of colorsys, one of too many"), "{}", error.message);
        let report = shard.inline(auto(41, &format!("{}\n", plugin(body))));
        assert!(matches!(report.unwound, Some(Unwound::Blocked(what)) if what.contains("colorsys")));
    });
}
