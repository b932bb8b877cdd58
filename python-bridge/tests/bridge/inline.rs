//! What a plugin sees and leaves behind, in the inline lane.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use saltus_core::ids::ShardId;
use saltus_core::ports::{QueuedWrite, RunRequest, Trigger};
use saltus_core::trigger::Limits;

use crate::data::{every_kind, table};
use crate::host::Code;
use crate::{on_shard, plugin, plugins, request, runtime};

fn error_of(source: &'static str) -> saltus_core::ports::PluginError {
    on_shard(move |shard| shard.inline(request(Code::text(source), vec![])).result.unwrap_err())
}

#[test]
fn rows_are_exact_dicts_in_the_order_of_columns() {
    on_shard(|shard| {
        let run = request(plugin("rows.py"), vec![table("cpu", every_kind())]);
        let report = shard.inline(run);
        report.result.clone().unwrap();
        assert!(report.entered.unwrap() <= report.finished);
        let lines = shard.host.all_of(report.request.run_id);
        assert_eq!(
            lines,
            [
                "engine started",
                "INFO ['table_name', 'rows'] cpu 2 True",
                "INFO {'host': 'a', 'region': 'eu', 'n': -1, 'u': 18446744073709551615, 'f': 1.5, 's': 'h\u{e4}', \
                 'b': True, 'time': 100}",
                "INFO {'host': 'b', 'n': 2, 'time': 101}",
                "INFO all ways to read a dict agree",
                "engine finished",
            ]
        );
    });
}

#[test]
fn arguments_are_none_or_a_dict_of_strings() {
    on_shard(|shard| {
        let code = || Code::text("def process_writes(api, batches, args):\n    api.info(repr(args), batches)\n");
        let report = shard.inline(request(code(), vec![]));
        assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO None []"]);
        let RunRequest { trigger, .. } = request(code(), vec![]);
        let mut def = trigger.def.clone();
        def.arguments = Some(BTreeMap::from([("a".to_owned(), "1".to_owned())]));
        let trigger = Arc::new(Trigger { def, code: trigger.code.clone() });
        let report = shard.inline(RunRequest { trigger, ..request(code(), vec![]) });
        assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO {'a': '1'} []"]);
    });
}

#[test]
fn writes_are_collected_per_database_in_call_order_and_dropped_on_failure() {
    on_shard(|shard| {
        let report = shard.inline(request(plugin("writes.py"), vec![]));
        report.result.unwrap();
        let write = |db: &str, lines: &str| QueuedWrite { db: db.into(), lines: lines.to_owned(), no_sync: false };
        assert_eq!(report.writes, [write("home", "m,t=a v=1i 5\nm v=2i"), write("other", "x y=1\nz y=2")]);
        let failing =
            "def process_writes(api, b, a):\n    api.write(LineBuilder('m').int64_field('v', 1))\n    1 / 0\n";
        let report = shard.inline(request(Code::text(failing), vec![]));
        assert!(report.writes.is_empty());
        assert_eq!(report.result.unwrap_err().message, "ZeroDivisionError: division by zero");
    });
}

#[test]
fn columns_and_capsules_show_the_very_memory_of_the_batch() {
    on_shard(|shard| {
        let batch = every_kind();
        let expected = format!(
            "INFO {} {} {}",
            batch.columns[0].data.as_dictionary::<Int32Type>().keys().values().as_ptr() as usize,
            batch.columns[2].data.as_primitive::<Int64Type>().values().as_ptr() as usize,
            batch.time.values().as_ptr() as usize,
        );
        let report = shard.inline(request(plugin("columns.py"), vec![table("cpu", batch.clone())]));
        report.result.unwrap();
        let lines = shard.host.lines_of(report.request.run_id);
        assert_eq!(lines[0], expected, "memoryview");
        assert_eq!(lines[1], expected, "__arrow_c_array__ of the columns");
        assert_eq!(lines[2], expected, "__arrow_c_array__ of the batch");
        assert_eq!(lines[3], expected, "__arrow_c_stream__ of the batch");
        assert_eq!(lines[4], "INFO i [0, 1] ['a', 'b'] q [-1, 2] Q d [True, False] 1 True");
        drop(report.request);
        let _again = shard.inline(request(Code::text("import gc\ndef process_writes(*a): gc.collect()"), vec![]));
        assert_eq!(Arc::strong_count(&batch), 1, "the plugin's objects have let go of the batch");
    });
}

#[test]
fn a_missing_function_is_named_with_its_signature() {
    assert_eq!(
        error_of("x = 1\n").message,
        "the process_writes function is not present in the plugin. Should be defined as: \
         process_writes(influxdb3_local, table_batches, args=None)"
    );
}

#[test]
fn a_traceback_names_the_file_and_shows_its_lines() {
    let error = error_of("def deep(x):\n    return x['no']\n\ndef process_writes(a, b, c):\n    deep({})\n");
    assert_eq!((error.kind.as_str(), error.message.as_str()), ("KeyError", "KeyError: 'no'"));
    assert!(error.traceback.contains("File \"inline.py\", line 2, in deep\n    return x['no']"), "{}", error.traceback);
}

#[test]
fn errors_of_every_kind_become_reports() {
    let cases = [
        (
            "def process_writes(a, b):\n    pass\n",
            "TypeError",
            "process_writes() takes 2 positional arguments but 3 were given",
        ),
        ("def process_writes(:\n", "SyntaxError", "invalid syntax (inline.py, line 1)"),
        ("import sys\ndef process_writes(*a): sys.exit(3)\n", "SystemExit", "3"),
        ("def process_writes(*a): raise KeyboardInterrupt\n", "KeyboardInterrupt", ""),
        ("def process_writes(*a): process_writes(*a)\n", "RecursionError", "maximum recursion depth exceeded"),
        ("import nothing_like_this\n", "ModuleNotFoundError", "No module named 'nothing_like_this'"),
        (
            "class E(Exception):\n  def __str__(self): 1 / 0\ndef process_writes(*a): raise E\n",
            "E",
            "<exception str() failed>",
        ),
        ("def process_writes(a, *b): a.info(x=1)\n", "TypeError", "info() takes no keyword arguments"),
        ("def process_writes(a, *b): a.write(3)\n", "AttributeError", "'int' object has no attribute 'build'"),
        (
            "import os\ndef process_writes(*a): os._exit(1)\n",
            "PermissionError",
            "os._exit would affect the whole database process and is not allowed in plugins",
        ),
        ("import os\ndef process_writes(*a): os.close(1)\n", "PermissionError", "os.close would affect"),
        ("import os\ndef process_writes(*a): os.chdir('/')\n", "PermissionError", "os.chdir would affect"),
        ("import signal\ndef process_writes(*a): signal.alarm(1)\n", "PermissionError", "signal.alarm would affect"),
        ("import time\ndef process_writes(*a): time.tzset()\n", "PermissionError", "time.tzset would affect"),
        (
            "import os\ndef process_writes(*a): os.fork()\n",
            "RuntimeError",
            "fork not supported for isolated subinterpreters",
        ),
    ];
    on_shard(move |shard| {
        for (source, kind, message) in cases {
            let error = shard.inline(request(Code::text(source), vec![])).result.unwrap_err();
            assert_eq!(error.kind, kind, "{source}");
            assert!(error.message.starts_with(&format!("{kind}: {message}")), "{source}: {}", error.message);
        }
        let fine = request(Code::text("def process_writes(*a): return 1\n"), vec![]);
        shard.inline(fine).result.unwrap();
    });
}

#[test]
fn globals_hold_the_builtins_as_c_code_expects() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a): api.info(*globals())\n";
        let report = shard.inline(request(Code::text(source), vec![]));
        report.result.unwrap();
        assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO __builtins__ process_writes"]);
    });
}

#[test]
fn what_a_plugin_returns_is_ignored() {
    on_shard(|shard| {
        for value in ["object()", "[1, 'x']", "(yield)", "NotImplemented", "type", "b'x' * 100"] {
            let source = format!("def process_writes(a, b, c):\n    return {value}\n");
            shard.inline(request(Code::text(&source), vec![])).result.unwrap();
        }
    });
}

#[test]
fn what_a_plugin_prints_goes_to_its_log() {
    on_shard(|shard| {
        let report = shard.inline(request(plugin("prints.py"), vec![]));
        report.result.unwrap();
        let lines = shard.host.lines_of(report.request.run_id);
        assert_eq!(lines, ["INFO one", "INFO two three", "ERROR wrong", "WARN 1 None", "INFO unfinished"]);
    });
}

#[test]
fn the_environment_of_a_plugin_does_not_reach_the_process() {
    on_shard(|shard| {
        let source = "import os\ndef process_writes(api, b, a):\n    os.environ['SALTUS_X'] = '1'\n    api.info(os.environ['SALTUS_X'])\n";
        let report = shard.inline(request(Code::text(source), vec![]));
        report.result.unwrap();
        assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO 1"]);
        // What C code of the process would see.
        assert!(std::env::var_os("SALTUS_X").is_none());
    });
}

#[test]
fn a_query_is_refused_inline_with_the_setting_to_change() {
    let error = error_of("def process_writes(api, b, a):\n    api.query('SELECT 1')\n");
    assert_eq!(error.kind, "LaneError");
    assert!(error.message.contains("--execution auto or deferred"), "{}", error.message);
}

#[test]
fn a_run_that_queues_too_much_fails_even_if_it_catches_that() {
    on_shard(|shard| {
        let code = "def process_writes(api, batches, args):\n    text = 'x' * 1_000_000\n    n = 0\n    try:\n        while True:\n            \
                    api.write(LineBuilder('t').string_field('s', text))\n            n += 1\n    except Exception as error:\n        \
                    api.info(type(error).__name__, n)\n";
        let report = shard.inline(request(Code::text(code), vec![]));
        assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO LimitError 67"]);
        let error = report.result.unwrap_err();
        assert!(error.message.starts_with("LimitError: the run wrote more than 67108864 bytes"), "{}", error.message);
        assert!(report.writes.is_empty());
    });
}

#[test]
fn globals_are_fresh_in_each_run_and_the_cache_keeps_live_objects() {
    on_shard(|shard| {
        for expected in ["INFO [1] 1 builtins", "INFO [1] 2 builtins", "INFO [1] 3 builtins"] {
            let report = shard.inline(request(plugin("state.py"), vec![]));
            report.result.unwrap();
            assert_eq!(shard.host.lines_of(report.request.run_id), [expected]);
        }
    });
}

#[test]
fn a_directory_plugin_keeps_its_module_until_its_content_changes() {
    on_shard(|shard| {
        let scratch = tempfile::tempdir().unwrap();
        let pack = scratch.path().join("pack");
        let copy = |version: &str| {
            std::fs::create_dir_all(&pack).unwrap();
            for file in ["__init__.py", "helper.py"] {
                std::fs::copy(plugins().join(version).join("pack").join(file), pack.join(file)).unwrap();
            }
        };
        let mut run = |code: Code| {
            let report = shard.inline(request(code, vec![]));
            report.result.unwrap();
            shard.host.lines_of(report.request.run_id).remove(0)
        };
        copy("package_v1");
        assert_eq!(run(Code::directory(&pack)), "INFO v1 1");
        assert_eq!(run(Code::directory(&pack)), "INFO v1 2");
        copy("package_v2");
        assert_eq!(run(Code::directory(&pack)), "INFO v2 1");
    });
}

#[test]
fn ten_thousand_runs_do_not_grow_the_process() {
    fn resident_kb() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
    on_shard(|shard| {
        let code = plugin("busy.py");
        let batch = every_kind();
        let mut run = |times: usize| {
            for _ in 0..times {
                let report = shard.inline(request(code.clone(), vec![table("cpu", batch.clone())]));
                assert_eq!(report.writes.len(), 1, "{:?}", report.result);
            }
        };
        run(2_000);
        let before = resident_kb();
        run(10_000);
        let grown = resident_kb().saturating_sub(before);
        assert!(grown < 4_096, "{grown} kB in 10000 runs");
    });
}

#[test]
fn a_source_is_checked_without_running_it() {
    let (runtime, _) = runtime();
    let names = runtime.check_source("import os\nX = 1\ndef process_writes(a, b, c): pass\n1 / 0\n", "p.py").unwrap();
    assert_eq!(names, ["os", "X", "process_writes"]);
    let error = runtime.check_source("def f(:\n", "p.py").unwrap_err();
    assert_eq!(error.kind, "SyntaxError");
    assert!(runtime.python_version().starts_with("3."));
}

#[test]
fn an_event_has_the_id_of_its_write_in_every_lane() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    e = api.event\n    api.info(e.kind, e.id, *e.ids, e.trigger, e.attempt, e.shard, e.scheduled_time, b[1].event_id)\n    api.info(e.run_id)\n";
        let run = || {
            let tables = vec![table("cpu", every_kind()), table("mem", every_kind())];
            RunRequest { attempt: 2, shard: ShardId(5), ..request(Code::text(source), tables) }
        };
        for report in [shard.inline(run()), shard.deferred(run()), shard.process(run())] {
            report.result.unwrap();
            let run_id = report.request.run_id;
            let name = &report.request.trigger.def.name;
            let said = format!("INFO write 3-1-17 3-1-17 3-1-17 {name} 2 5 None 3-1-17");
            assert_eq!(shard.host.lines_of(run_id), [said, format!("INFO {}", run_id.0)]);
        }
    });
}

#[test]
fn a_run_that_queues_more_rows_than_it_may_fails_and_names_the_limit_in_every_lane() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    for n in range(4):\n        try:\n            api.write(LineBuilder('t').int64_field('n', n))\n        except Exception as e:\n            api.info(type(e).__name__)\n";
        let run = |output_rows| {
            let limits = Limits { output_rows, ..Limits::default() };
            RunRequest { limits, ..request(Code::text(source), vec![]) }
        };
        for report in [shard.inline(run(3)), shard.deferred(run(3)), shard.process(run(3))] {
            let error = report.result.unwrap_err();
            assert_eq!(error.kind, "LimitError");
            assert!(error.message.contains("more than 3 rows") && error.message.contains("output_rows"), "{error}");
            assert!(report.writes.is_empty());
            assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO LimitError"]);
        }
        assert_eq!(shard.inline(run(4)).writes[0].lines.lines().count(), 4);
    });
}

#[test]
fn a_trigger_writes_no_more_log_lines_per_second_than_it_may_in_every_lane() {
    on_shard(|shard| {
        let source = "import time\ndef process_writes(api, b, a):\n    for n in range(400):\n        api.info(n)\n        print(n)\n";
        let run = || {
            let limits = Limits { log_lines_per_second: 5, ..Limits::default() };
            RunRequest { limits, ..request(Code::text(source), vec![]) }
        };
        let before = saltus_python::log_lines_left_out();
        let mut all = 0;
        for report in [shard.inline(run()), shard.deferred(run()), shard.process(run())] {
            report.result.unwrap();
            let lines = shard.host.lines_of(report.request.run_id);
            let said = lines.iter().filter(|line| line.starts_with("INFO")).count();
            assert!(said < 200, "{lines:?}");
            all += said;
        }
        assert!(all >= 5, "the first lines of a second are taken");
        assert!(saltus_python::log_lines_left_out() > before);
    });
}
