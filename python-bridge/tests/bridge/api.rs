//! The first argument of entry functions (reference, 1.1, 1.2, 1.4 and 0.3), in every lane. The index of all statements and their tests
//! is `pytests/CONFORMANCE.md`.

use saltus_core::ports::{QueuedWrite, RunReport, RunRequest, SyncWrite, Trigger, Unwound};
use saltus_core::trigger::{ApiSettings, Execution, MissingColumns, TriggerDef};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, DictionaryArray, Int64Array};
use arrow::datatypes::Int32Type;
use saltus_core::policy::Lane;
use saltus_core::schema::ColumnKind;

use crate::data::{batch, every_kind, table};
use crate::host::Code;
use crate::{Shard, on_shard, request, runtime};

/// The request with its trigger changed.
pub fn with_trigger(request: RunRequest, change: impl FnOnce(&mut TriggerDef)) -> RunRequest {
    let mut def = request.trigger.def.clone();
    change(&mut def);
    let trigger = Arc::new(Trigger { def, code: request.trigger.code.clone() });
    RunRequest { trigger, ..request }
}

fn auto(request: RunRequest) -> RunRequest {
    with_trigger(request, |def| def.execution = Execution::Auto)
}

impl Shard {
    /// Runs in every lane.
    pub fn everywhere(&mut self, make: impl Fn() -> RunRequest) -> [RunReport; 3] {
        [self.inline(make()), self.deferred(make()), self.process(make())]
    }

    /// Runs in every lane that may block.
    pub fn where_it_may_block(&mut self, make: impl Fn() -> RunRequest) -> [RunReport; 2] {
        [self.deferred(make()), self.process(make())]
    }

    /// What a run said that must succeed.
    pub fn said(&self, report: &RunReport) -> Vec<String> {
        if let Err(error) = &report.result {
            panic!("{}\n{}", error.message, error.traceback);
        }
        self.host.lines_of(report.request.run_id)
    }
}

#[test]
fn the_first_argument_has_the_type_names_and_the_members_of_the_reference() {
    on_shard(|shard| {
        let source = "import saltus\ndef process_writes(api, b, a):\n    api.info(repr(type(api)), repr(type(api.cache)))\n    \
                      api.info(*sorted(m for m in dir(api) if not m.startswith('_')))\n    assert type(api) is saltus.InfluxDB3Local\n    \
                      assert type(api.cache) is saltus.Cache and type(api.state) is saltus.State\n    try:\n        type(api)()\n    \
                      except TypeError:\n        api.info('no instances')\n";
        for report in shard.everywhere(|| request(Code::text(source), vec![])) {
            assert_eq!(
                shard.said(&report),
                [
                    "INFO <class 'builtins.PyPluginCallApi'> <class 'builtins.PyCache'>",
                    "INFO cache error event info query request state warn write write_sync write_sync_to_db write_to_db",
                    "INFO no instances"
                ]
            );
        }
    });
}

#[test]
fn log_methods_join_str_of_their_arguments_and_take_no_keywords() {
    on_shard(|shard| {
        let source = "class S:\n    def __str__(self): return 'own'\ndef process_writes(api, b, a):\n    api.info()\n    \
                      api.info('i', [{'host': 's2', 'usage': 0.89}], 's2')\n    api.warn(None, 1.5, S())\n    api.error(b'x')\n    try:\n        \
                      api.info('x', end='')\n    except TypeError as e:\n        api.info(e)\n";
        for report in shard.everywhere(|| request(Code::text(source), vec![])) {
            let expected = [
                "INFO ",
                "INFO i [{'host': 's2', 'usage': 0.89}] s2",
                "WARN None 1.5 own",
                "ERROR b'x'",
                "INFO info() takes no keyword arguments",
            ];
            assert_eq!(shard.said(&report), expected);
        }
    });
}

#[test]
fn any_object_with_build_is_written_and_what_build_raises_comes_through() {
    on_shard(|shard| {
        let source = "class Lines:\n    def build(self): return 'a x=1\\nb x=2'\nclass Bad:\n    def build(self): raise KeyError('k')\n\
                      def process_writes(api, b, a):\n    api.write(Lines())\n    api.write_to_db('other', Lines())\n    api.write(line_builder=Lines())\n    \
                      for wrong in (Bad(), 3):\n        try:\n            api.write(wrong)\n        except Exception as e:\n            \
                      api.info(type(e).__name__)\n    api.write_to_db('- no name', Lines())\n";
        for report in shard.everywhere(|| request(Code::text(source), vec![])) {
            assert_eq!(shard.said(&report), ["INFO KeyError", "INFO AttributeError"]);
            let lines = "a x=1\nb x=2";
            let write = |db: &str, lines: &str| QueuedWrite { db: db.into(), lines: lines.to_owned(), no_sync: false };
            let twice = format!("{lines}\n{lines}");
            // Nothing is validated when it is queued, not even the database's name.
            assert_eq!(report.writes, [write("home", &twice), write("other", lines), write("- no name", lines)]);
        }
    });
}

#[test]
fn a_write_to_the_internal_database_raises() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    line = LineBuilder('t').int64_field('x', 1)\n    \
                      for call in (lambda: api.write_to_db('_internal', line), lambda: api.write_sync_to_db('_internal', line, True)):\n        \
                      try:\n            call()\n        except Exception as e:\n            api.info(type(e).__name__, e)\n";
        for report in shard.everywhere(|| request(Code::text(source), vec![])) {
            let line = "INFO Exception error writing line protocol to _internal: cannot modify internal db";
            assert_eq!(shard.said(&report), [line, line]);
            assert_eq!(report.writes, []);
        }
    });
}

const SYNC: &str = "def process_writes(api, b, a):\n    line = LineBuilder('own').int64_field('x', 1)\n    \
                    assert api.write_sync(line, True) is None\n    api.write_sync(line, no_sync=False)\n    \
                    api.write_sync_to_db('other', line, no_sync=True)\n";

#[test]
fn synchronous_writes_are_made_at_once_and_stay_whatever_becomes_of_the_run() {
    on_shard(|shard| {
        let source = format!("{SYNC}    raise ValueError\n");
        for lane in [Lane::Deferred, Lane::Process] {
            let run = RunRequest { depth: 2, ..request(Code::text(&source), vec![]) };
            let report = if lane == Lane::Process { shard.process(run) } else { shard.deferred(run) };
            assert_eq!(report.result.unwrap_err().kind, "ValueError");
            assert!(report.writes.is_empty());
            let write =
                |db: &str, no_sync| SyncWrite { db: db.into(), lines: "own x=1i".to_owned(), no_sync, depth: 3 };
            assert_eq!(shard.host.take_written(), [write("home", true), write("home", false), write("other", true)]);
        }
    });
}

#[test]
fn a_synchronous_write_that_waits_keeps_its_trigger_from_the_inline_lane_and_one_that_does_not_leaves_it_alone() {
    on_shard(|shard| {
        let report = shard.deferred(request(Code::text(SYNC), vec![]));
        assert_eq!(report.reached.as_deref(), Some("write_sync() with no_sync=False"));
        let at_once = "def process_writes(api, b, a):\n    api.write_sync(LineBuilder('own').int64_field('x', 1), no_sync=True)\n";
        let report = shard.deferred(request(Code::text(at_once), vec![]));
        assert_eq!((report.reached, report.code.unwrap().inline), (None, Ok(())));
        shard.host.take_written();
    });
}

#[test]
fn inline_a_synchronous_write_is_checked_at_once_and_held_until_the_run_has_ended() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    api.write(LineBuilder('own').int64_field('x', 2))\n    \
                      api.write_sync(LineBuilder('own').int64_field('x', 1), no_sync=True)\n    try:\n        \
                      api.write_sync(LineBuilder('own_bad').int64_field('x', 1), no_sync=True)\n    except Exception as e:\n        api.info(e)\n";
        let held = QueuedWrite { db: "home".into(), lines: "own x=1i".into(), no_sync: true };
        let queued = QueuedWrite { db: "home".into(), lines: "own x=2i".into(), no_sync: false };
        let report = shard.inline(request(Code::text(source), vec![]));
        assert_eq!(
            shard.said(&report),
            [
                "INFO error writing line protocol to home: Cannot write: line protocol parse failed: No fields were provided"
            ]
        );
        assert_eq!(report.writes, [held.clone(), queued]);
        let failing = format!("{source}    1 / 0\n");
        let report = shard.inline(request(Code::text(&failing), vec![]));
        assert_eq!(report.result.unwrap_err().kind, "ZeroDivisionError");
        assert_eq!(report.writes, [held], "as in the other lanes, it does not depend on the run's success");
        assert_eq!(shard.host.take_written(), []);
    });
}

#[test]
fn inline_a_write_that_would_wait_discards_the_run_with_all_its_effects() {
    on_shard(|shard| {
        for (call, reason) in [
            ("LineBuilder('own').int64_field('x', 1), no_sync=False", "write_sync() with no_sync=False"),
            ("LineBuilder('foreign').int64_field('x', 1), no_sync=True", "write_sync() to a table of another shard"),
        ] {
            let source = format!(
                "def process_writes(api, b, a):\n    api.write_sync(LineBuilder('own').int64_field('x', 1), no_sync=True)\n    \
                 api.state.put('n', 1)\n    try:\n        api.write_sync({call})\n    except BaseException:\n        pass\n"
            );
            let report = shard.inline(auto(request(Code::text(&source), vec![])));
            assert_eq!(report.unwound, Some(Unwound::Blocked(reason.into())));
            assert!(report.writes.is_empty() && report.state.is_empty());
            let report =
                shard.inline(request(Code::text(&source.replace("except BaseException", "except KeyError")), vec![]));
            let error = report.result.unwrap_err();
            assert!(error.message.starts_with(&format!("LaneError: {reason} would block")), "{}", error.message);
        }
        assert_eq!(shard.host.take_written(), []);
    });
}

#[test]
fn synchronous_writes_that_fail_raise_a_plain_exception_with_the_words_of_the_reference() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    good, bad = LineBuilder('m').int64_field('x', 1), LineBuilder('bad').int64_field('x', 1)\n    \
                      for call in (lambda: api.write_sync(bad, True), lambda: api.write_sync_to_db('-x', good, False)):\n        try:\n            call()\n        \
                      except Exception as e:\n            api.info(type(e) is Exception, e)\n    for call in (lambda: api.write_sync(good), \
                      lambda: api.write_sync(good, 1), lambda: api.write_sync_to_db('x', good)):\n        try:\n            call()\n        \
                      except TypeError as e:\n            api.info(e)\n";
        for report in shard.where_it_may_block(|| request(Code::text(source), vec![])) {
            assert_eq!(
                shard.said(&report),
                [
                    "INFO True error writing line protocol to home: Cannot write: line protocol parse failed: No fields were provided",
                    "INFO True error writing line protocol to -x: invalid database name: -x",
                    "INFO write_sync() missing required argument 'no_sync'",
                    "INFO argument 'no_sync': 'int' object cannot be converted to 'PyBool'",
                    "INFO write_sync_to_db() missing required argument 'no_sync'",
                ]
            );
        }
        assert_eq!(shard.host.take_written(), []);
    });
}

#[test]
fn parameters_of_queries_keep_their_type() {
    on_shard(|shard| {
        let source = "import datetime, enum\nclass E(enum.IntEnum):\n    A = 4\ndef process_writes(api, b, a):\n    utc = datetime.UTC\n    \
                      args = dict(s='x', i=-1, u=2**64 - 1, f=0.5, inf=float('inf'), b=True, n=None, e=E.A, \
                      t=datetime.datetime(1970, 1, 1, 0, 0, 1, 2, tzinfo=utc))\n    api.info(*(row['param'] for row in api.query('params', args)))\n    \
                      for wrong in ({'x': [1]}, {1: 'x'}, {'x': 2**64}, 'x'):\n        try:\n            api.query('params', wrong)\n        \
                      except Exception as e:\n            api.info(type(e).__name__, e)\n";
        for report in shard.where_it_may_block(|| request(Code::text(source), vec![])) {
            assert_eq!(
                shard.said(&report),
                [
                    "INFO s=Text(\"x\") i=Int(-1) u=UInt(18446744073709551615) f=Float(0.5) inf=Float(inf) b=Bool(true) n=Null e=Int(4) \
                     t=Timestamp(1000002000)",
                    "INFO TypeError args['x'] must be str, int, float, bool, datetime or None, not list",
                    "INFO TypeError a key of args must be str, not int",
                    "INFO ValueError args['x'] does not fit the integers of SQL, -2**63 to 2**64 - 1",
                    "INFO TypeError args must be dict or None, not str",
                ]
            );
        }
    });
}

#[test]
fn a_naive_datetime_is_local_time_like_the_call_time_of_schedules() {
    on_shard(|shard| {
        let source = "import datetime\ndef process_writes(api, b, a):\n    local = datetime.datetime.fromtimestamp(1_700_000_000)\n    \
                      api.info(*(row['param'] for row in api.query('params', {'t': local})))\n";
        let report = shard.deferred(request(Code::text(source), vec![]));
        assert_eq!(shard.said(&report), ["INFO t=Timestamp(1700000000000000000)"]);
    });
}

#[test]
fn a_failed_query_raises_a_query_error_that_is_found_by_name_and_by_import() {
    on_shard(|shard| {
        let source = "import saltus\ndef process_writes(api, b, a):\n    assert api.query('none') == []\n    try:\n        api.query('bad', database='d')\n    \
                      except saltus.QueryError as e:\n        api.info(type(e).__name__, isinstance(e, Exception), e)\n    \
                      rows = api.query(query='SELECT 1', args=None, database=None)\n    api.info(rows[0]['text'], rows[1]['n'])\n";
        for report in shard.where_it_may_block(|| request(Code::text(source), vec![])) {
            assert_eq!(
                shard.said(&report),
                ["INFO QueryError True error: no such table executing query on d: bad", "INFO home None"]
            );
        }
    });
}

#[test]
fn an_async_entry_function_is_run_to_its_end() {
    on_shard(|shard| {
        let source = "import asyncio\nasync def one(api, n):\n    await asyncio.sleep(0.01)\n    api.info(n)\n    return n\n\
                      async def process_writes(api, b, a):\n    done = await asyncio.gather(*(one(api, n) for n in range(3)))\n    \
                      api.write(LineBuilder('t').int64_field('n', sum(done)))\n    api.info(asyncio.get_running_loop().is_running())\n";
        for _ in 0..2 {
            for report in shard.where_it_may_block(|| request(Code::text(source), vec![])) {
                assert_eq!(shard.said(&report), ["INFO 0", "INFO 1", "INFO 2", "INFO True"]);
                assert_eq!(report.writes.len(), 1);
            }
        }
        let verdict = shard.deferred(request(Code::text(source), vec![])).code.unwrap().inline.unwrap_err();
        assert!(verdict.contains("import of asyncio"), "{verdict}");
        let alone = "async def process_writes(api, b, a):\n    api.info(1)\n";
        let verdict = shard.deferred(request(Code::text(alone), vec![])).code.unwrap().inline.unwrap_err();
        assert_eq!(&*verdict, "async def needs an event loop, which waits (line 1)");
    });
}

#[test]
fn inline_a_coroutine_that_waits_for_nothing_ends_and_one_that_waits_is_made_elsewhere() {
    on_shard(|shard| {
        let fine = "async def helper(api):\n    api.info('helper')\nasync def process_writes(api, b, a):\n    await helper(api)\n";
        let report = shard.inline(request(Code::text(fine), vec![]));
        assert_eq!(shard.said(&report), ["INFO helper"]);
        let waits = "class W:\n    def __await__(self):\n        yield 1\nasync def process_writes(api, b, a):\n    await W()\n";
        let report = shard.inline(auto(request(Code::text(waits), vec![])));
        assert_eq!(report.unwound, Some(Unwound::Blocked("await".into())));
        let error = shard.inline(request(Code::text(waits), vec![])).result.unwrap_err();
        assert!(error.message.starts_with("LaneError: await would block"), "{}", error.message);
    });
}

#[test]
fn an_exception_of_a_coroutine_is_the_runs() {
    on_shard(|shard| {
        let source =
            "async def process_writes(api, b, a):\n    api.write(LineBuilder('t').int64_field('n', 1))\n    {}['k']\n";
        for report in shard.everywhere(|| request(Code::text(source), vec![])) {
            let error = report.result.unwrap_err();
            assert_eq!(error.message, "KeyError: 'k'");
            assert!(error.traceback.contains("in process_writes"), "{}", error.traceback);
            assert!(report.writes.is_empty());
        }
    });
}

#[test]
fn a_deadline_interrupts_a_coroutine_that_waits_for_ever() {
    on_shard(|shard| {
        let source = "import asyncio\nasync def process_writes(api, b, a):\n    await asyncio.Event().wait()\n";
        let make = || RunRequest { deadline: Duration::from_millis(300), ..request(Code::text(source), vec![]) };
        for report in shard.where_it_may_block(make) {
            let error = report.result.unwrap_err();
            assert_eq!((error.kind.as_str(), error.message.contains("deadline of 300 ms")), ("PluginTimeout", true));
        }
    });
}

fn permuted() -> Arc<saltus_core::batch::Batch> {
    let a: DictionaryArray<Int32Type> = vec![Some("1"), Some("1"), None].into_iter().collect();
    let b: DictionaryArray<Int32Type> = vec![None, Some("2"), None].into_iter().collect();
    let x: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(1), Some(3)]));
    batch(
        vec![("a", ColumnKind::Tag, Arc::new(a)), ("x", ColumnKind::Integer, x), ("b", ColumnKind::Tag, Arc::new(b))],
        3,
    )
}

#[test]
fn keys_of_a_row_are_tags_then_fields_then_time_and_absent_columns_have_none() {
    on_shard(|shard| {
        let source =
            "def process_writes(api, batches, a):\n    for row in batches[0]['rows']:\n        api.info(row)\n";
        for report in shard.everywhere(|| request(Code::text(source), vec![table("t", permuted())])) {
            assert_eq!(
                shard.said(&report),
                [
                    "INFO {'a': '1', 'x': 1, 'time': 100}",
                    "INFO {'a': '1', 'b': '2', 'x': 1, 'time': 101}",
                    "INFO {'x': 3, 'time': 102}"
                ]
            );
        }
    });
}

#[test]
fn with_missing_columns_none_a_row_has_every_column_of_the_table() {
    on_shard(|shard| {
        let source =
            "def process_writes(api, batches, a):\n    for row in batches[0]['rows']:\n        api.info(row)\n";
        let make = || {
            let mut rows = table("t", permuted());
            rows.all_columns = Some(["a", "x", "b", "later"].map(Arc::from).into_iter().collect());
            let api = ApiSettings { missing_columns: MissingColumns::None, ..ApiSettings::default() };
            with_trigger(request(Code::text(source), vec![rows]), |def| def.api = api)
        };
        for report in shard.everywhere(make) {
            assert_eq!(
                shard.said(&report),
                [
                    "INFO {'a': '1', 'b': None, 'x': 1, 'later': None, 'time': 100}",
                    "INFO {'a': '1', 'b': '2', 'x': 1, 'later': None, 'time': 101}",
                    "INFO {'a': None, 'b': None, 'x': 3, 'later': None, 'time': 102}"
                ]
            );
        }
    });
}

#[test]
fn rows_are_fresh_mutable_objects() {
    on_shard(|shard| {
        let source = "def process_writes(api, batches, a):\n    rows = batches[0]['rows']\n    rows[0]['n'] = 'changed'\n    rows.pop()\n    batches.clear()\n";
        let shared = every_kind();
        for report in shard.everywhere(|| request(Code::text(source), vec![table("cpu", shared.clone())])) {
            shard.said(&report);
        }
        let look =
            "def process_writes(api, batches, a):\n    api.info(batches[0]['rows'][0]['n'], len(batches[0]['rows']))\n";
        let report = shard.inline(request(Code::text(look), vec![table("cpu", shared)]));
        assert_eq!(shard.said(&report), ["INFO -1 2"]);
    });
}

#[test]
fn the_errors_of_line_builder_are_found_in_main() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    import __main__\n    try:\n        LineBuilder('m').build()\n    \
                      except __main__.InvalidLineError as e:\n        api.info(type(e).__name__, e, isinstance(e, __main__.InfluxDBError))\n";
        for report in shard.everywhere(|| request(Code::text(source), vec![])) {
            assert_eq!(shard.said(&report), ["INFO InvalidLineError At least one field is required: m True"]);
        }
    });
}

#[test]
fn an_uncaught_error_of_line_builder_reads_as_in_the_reference() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    api.write(LineBuilder('some_table'))\n";
        for report in shard.everywhere(|| request(Code::text(source), vec![])) {
            let error = report.result.unwrap_err();
            assert_eq!(error.message, "InvalidLineError: At least one field is required: some_table");
        }
    });
}

#[test]
fn when_the_server_stops_calls_raise_keyboard_interrupt_and_the_cache_goes_on() {
    on_shard(|shard| {
        let source = "import time\ndef process_writes(api, b, a):\n    api.info('begun')\n    said = []\n    until = time.monotonic() + 10\n    \
                      while time.monotonic() < until and not said:\n        time.sleep(0.005)\n        try:\n            api.query('none')\n        \
                      except BaseException as e:\n            said.append((type(e).__name__, str(e)))\n    \
                      for call in (lambda: api.info('x'), lambda: api.write(LineBuilder('t').int64_field('n', 1))):\n        try:\n            call()\n        \
                      except KeyboardInterrupt:\n            said.append('too')\n    api.cache.put('k', 1)\n    assert api.cache.get('k') == 1\n    \
                      raise ValueError(said)\n";
        let mut runs = Vec::new();
        for lane in [Lane::Deferred, Lane::Process] {
            let run = RunRequest { lane, ..request(Code::text(source), vec![]) };
            let run_id = run.run_id;
            assert!(shard.lanes.submit(run).is_ok());
            let until = Instant::now() + Duration::from_secs(30);
            while shard.host.lines_of(run_id).is_empty() {
                assert!(Instant::now() < until, "it begins");
                std::thread::sleep(Duration::from_millis(2));
            }
            runs.push(run_id);
        }
        use saltus_core::ports::PluginRuntime as _;
        runtime().0.stop(Duration::from_secs(5));
        for run_id in runs {
            let report = shard.finished.wait(run_id, Instant::now() + Duration::from_secs(5));
            let words = "influxdb3 is shutting down; aborting plugin execution";
            let expected = format!("ValueError: [('KeyboardInterrupt', '{words}'), 'too', 'too']");
            assert_eq!(report.result.unwrap_err().message, expected);
        }
    });
}
