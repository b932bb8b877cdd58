//! The process lane, with real worker processes.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use saltus_core::ids::TriggerId;
use saltus_core::policy::Lane;
use saltus_core::ports::{CodeSource, PluginCode, PluginError, PluginRuntime, RunReport, RunRequest, Trigger};
use saltus_core::trigger::TriggerDef;
use saltus_python::ProcessCounts;

use crate::data::{every_kind, numbered, table};
use crate::host::Code;
use crate::{KILL_GRACE, Shard, WORKER_IDLE, WORKERS_MAX, on_shard, plugin, request, runtime, site_packages};

const PID: &str = "import os\ndef process_writes(api, b, a):\n    api.info(os.getpid())\n";

impl Shard {
    /// Runs in a worker process and waits.
    pub fn process(&mut self, request: RunRequest) -> RunReport {
        let run_id = request.run_id;
        assert!(self.submit_process(request).is_ok(), "the queue has room");
        self.finished.wait(run_id, Instant::now() + Duration::from_secs(60))
    }

    fn submit_process(&mut self, request: RunRequest) -> Result<(), Box<RunRequest>> {
        self.lanes.submit(RunRequest { lane: Lane::Process, ..request })
    }

    /// Runs `source` and gives what it said.
    fn says(&mut self, source: &str) -> Vec<String> {
        let report = self.process(request(Code::text(source), vec![]));
        report.result.unwrap_or_else(|e| panic!("{} {}", e.message, e.traceback));
        self.host.lines_of(report.request.run_id)
    }

    fn fails(&mut self, source: &str) -> PluginError {
        self.process(request(Code::text(source), vec![])).result.unwrap_err()
    }

    /// Which process the trigger's worker is.
    fn pid(&mut self) -> Pid {
        pid(&self.says(PID)[0])
    }
}

fn pid(line: &str) -> Pid {
    Pid::from_raw(line.trim_start_matches("INFO ").parse().unwrap()).unwrap()
}

fn within(source: &str, limit_ms: u64) -> RunRequest {
    RunRequest { deadline: Duration::from_millis(limit_ms), ..request(Code::text(source), vec![]) }
}

/// The request as another trigger's.
fn of_trigger(id: u64, request: RunRequest) -> RunRequest {
    let def = TriggerDef { id: TriggerId(id), name: format!("t{id}").into(), ..request.trigger.def.clone() };
    let code = request.trigger.code.clone();
    RunRequest { trigger: Arc::new(Trigger { def, code }), ..request }
}

/// Waits until something holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The counts when the workers of other tests are gone.
fn counts_before() -> ProcessCounts {
    eventually("the workers of other tests are gone", || runtime().0.process_counts().alive == 0);
    runtime().0.process_counts()
}

fn is_gone(pid: Pid) -> bool {
    // A zombie is gone as well: whoever must wait for it may take its time.
    state_of(pid).is_none_or(|state| state == 'Z')
}

/// The letter of the process's state; `None` if there is no such process.
fn state_of(pid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

#[test]
fn a_run_in_a_worker_sees_and_does_what_an_inline_run_does() {
    on_shard(|shard| {
        for file in ["rows.py", "columns.py", "prints.py", "writes.py"] {
            let tables = || vec![table("cpu", every_kind()), table("mem", every_kind())];
            let inline = shard.inline(request(plugin(file), tables()));
            let process = shard.process(request(plugin(file), tables()));
            assert_eq!(process.result, inline.result, "{file}");
            assert_eq!(process.writes, inline.writes, "{file}");
            // The first four lines of that one are addresses.
            let skipped = if file == "columns.py" { 5 } else { 0 };
            let lines = |run_id| shard.host.all_of(run_id).split_off(skipped);
            assert_eq!(lines(process.request.run_id), lines(inline.request.run_id), "{file}");
        }
    });
}

#[test]
fn rows_are_seen_where_they_lie() {
    on_shard(|shard| {
        let mut said = |tables| {
            let report = shard.process(request(plugin("shared_memory.py"), tables));
            report.result.unwrap_or_else(|e| panic!("{}", e.traceback));
            shard.host.lines_of(report.request.run_id)
        };
        let few = vec![table("cpu", every_kind()), table("mem", every_kind())];
        assert_eq!(said(few), ["INFO 2 batches, 12 views, 36 buffers in a packet"]);
        let many = vec![table("cpu", every_kind()), table("mem", numbered(0, 10_000))];
        assert_eq!(said(many), ["INFO 2 batches, 9 views, 26 buffers in a mapping"]);
    });
}

#[test]
fn rows_that_a_plugin_keeps_do_not_change() {
    /// Keeps all that it was given, in three ways, and looks at all of it again.
    const KEEPS: &str = "KEPT = 'kept'\n\
        def process_writes(api, batches, a):\n    \
            kept = api.cache.get(KEPT) or []\n    \
            for batch in batches:\n        \
                column = memoryview(batch.columns['n'])\n        \
                kept.append((column[0], len(column), column, batch.__arrow_c_array__(), batch))\n    \
            api.cache.put(KEPT, kept)\n    \
            for first, rows, column, _, batch in kept:\n        \
                expected = list(range(first, first + rows))\n        \
                assert column.tolist() == expected, first\n        \
                assert [row['s'] for row in batch['rows']] == [f'text {n}' for n in expected], first\n    \
            api.info(len(kept))\n";
    on_shard(|shard| {
        // By turns few rows, which are in packets, and many, which are in shared memory.
        for round in 0..20 {
            let rows = if round % 2 == 0 { 5 } else { 5_000 };
            let tables = vec![table("cpu", numbered(round * 10_000, rows)), table("cpu", numbered(round, 3))];
            let report = shard.process(request(Code::text(KEEPS), tables));
            report.result.unwrap_or_else(|e| panic!("{}", e.traceback));
            assert_eq!(shard.host.lines_of(report.request.run_id), [format!("INFO {}", (round + 1) * 2)]);
        }
    });
}

#[test]
fn batches_of_every_length_arrive_whole() {
    const SUMS: &str = "def process_writes(api, b, a):\n    \
        for t in b:\n        \
            numbers = memoryview(t.columns['n'])\n        \
            texts = [row['s'] for row in t['rows'][-3:]] if len(numbers) < 50_000 else []\n        \
            api.info(len(numbers), sum(numbers), sum(map(len, texts)))\n";
    on_shard(|shard| {
        // Around the length of a packet, and far beyond it.
        let lengths = (1..=10).map(|n| n * 150).chain(900..920).chain([30_000, 3_000_000]);
        for rows in lengths {
            let report = shard.process(request(Code::text(SUMS), vec![table("cpu", numbered(1, rows))]));
            report.result.unwrap_or_else(|e| panic!("{}", e.traceback));
            let sum = rows * (rows + 1) / 2;
            let last = rows.saturating_sub(2).max(1)..=rows;
            let texts: usize = if rows < 50_000 { last.map(|n| format!("text {n}").len()).sum() } else { 0 };
            assert_eq!(shard.host.lines_of(report.request.run_id), [format!("INFO {rows} {sum} {texts}")]);
        }
    });
}

#[test]
fn a_worker_that_waits_is_given_its_run_by_the_shard_itself() {
    on_shard(|shard| {
        shard.pid();
        let before = runtime().0.process_counts().direct;
        // One after the other: the worker waits each time.
        for n in 0..50 {
            let report = shard.process(request(Code::text(PID), vec![table("cpu", numbered(n, 3))]));
            report.result.unwrap();
            assert_eq!(shard.host.all_of(report.request.run_id).len(), 3, "the engine's two lines and the plugin's");
        }
        assert!(runtime().0.process_counts().direct >= before + 50);
        // Several at once keep their order.
        let runs: Vec<_> = (0..40).map(|_| request(Code::text(PID), vec![])).collect();
        let ids: Vec<_> = runs.iter().map(|run| run.run_id).collect();
        runs.into_iter().for_each(|run| assert!(shard.submit_process(run).is_ok()));
        let entered: Vec<_> = ids
            .into_iter()
            .map(|id| shard.finished.wait(id, Instant::now() + Duration::from_secs(60)).entered.unwrap())
            .collect();
        assert!(entered.is_sorted(), "{entered:?}");
    });
}

/// A plugin file that is looked at before each run, as the server's registry does.
#[derive(Clone)]
struct Watched {
    path: PathBuf,
    code: Arc<Mutex<Arc<PluginCode>>>,
}

impl Watched {
    fn write(path: &Path, source: &str) -> Self {
        std::fs::write(path, source).unwrap();
        let watched = Watched { path: path.to_owned(), code: Arc::new(Mutex::new(Code::file(path).current())) };
        watched.refresh();
        watched
    }
}

impl CodeSource for Watched {
    fn current(&self) -> Arc<PluginCode> {
        self.code.lock().unwrap().clone()
    }

    fn refresh(&self) -> Arc<PluginCode> {
        *self.code.lock().unwrap() = Code::file(&self.path).current();
        self.current()
    }

    fn file(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

#[test]
fn a_file_that_was_changed_counts_in_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("watched.py");
    let source = |n: usize| format!("def process_writes(api, b, a):\n    api.info({n})\n");
    let watched = Watched::write(&path, &source(0));
    on_shard(move |shard| {
        let mut says = || {
            let run = request(Code::text(""), vec![]);
            let trigger = Trigger { def: run.trigger.def.clone(), code: Arc::new(watched.clone()) };
            let report = shard.process(RunRequest { trigger: Arc::new(trigger), ..run });
            report.result.unwrap();
            shard.host.all_of(report.request.run_id)
        };
        let expected = |n: usize| ["engine started".to_owned(), format!("INFO {n}"), "engine finished".to_owned()];
        for version in 1..3 {
            // While the file has changed just now, the supervisor looks at it; later the worker does.
            let before = runtime().0.process_counts().direct;
            eventually("the shard gives the worker its runs itself", || {
                assert_eq!(says(), expected(version - 1));
                runtime().0.process_counts().direct > before
            });
            std::fs::write(&path, source(version)).unwrap();
            assert_eq!(says(), expected(version));
        }
    });
}

#[test]
fn numpy_pandas_and_pyarrow_see_the_rows_without_a_copy() {
    if site_packages().is_empty() {
        eprintln!("not run: SALTUS_TEST_SITE_PACKAGES names no folder with numpy, pandas and pyarrow");
        return;
    }
    on_shard(|shard| {
        let report = shard.process(request(plugin("frames.py"), vec![table("cpu", every_kind())]));
        report.result.unwrap_or_else(|e| panic!("{}\n{}", e.message, e.traceback));
        assert_eq!(
            shard.host.lines_of(report.request.run_id),
            ["INFO 1 2 ['host', 'region', 'n', 'u', 'f', 's', 'b', 'time'] 1.5 ['a', 'b']"]
        );
    });
}

#[test]
fn a_worker_queries_and_its_failures_are_query_errors() {
    on_shard(|shard| {
        let report = shard.process(request(plugin("queries.py"), vec![]));
        report.result.unwrap_or_else(|e| panic!("{}", e.traceback));
        assert_eq!(
            shard.host.lines_of(report.request.run_id),
            [
                "INFO [{'n': 1, 'text': 'home', 'param': 'a=b', 'at': 5000000}, \
                 {'n': None, 'text': 'SELECT 1', 'param': None, 'at': 6000000}]",
                "INFO other",
                "INFO QueryError error: no such table executing query on home: bad",
                "INFO TypeError args['n'] must be str, int, float, bool, datetime or None, not list",
            ]
        );
    });
}

#[test]
fn threads_of_a_plugin_query_side_by_side() {
    on_shard(|shard| {
        let source = "import threading, time\ndef process_writes(api, b, a):\n    got = []\n    begun = time.time()\n    ts = \
                      [threading.Thread(target=lambda: got.append(api.query('slow')[0]['n'])) for _ in range(5)]\n    \
                      [t.start() for t in ts]\n    [t.join() for t in ts]\n    api.info(got, time.time() - begun < 1.2)\n";
        assert_eq!(shard.says(source), ["INFO [1, 1, 1, 1, 1] True"]);
    });
}

#[test]
fn a_query_that_outlasts_the_deadline_fails_its_run_and_spares_the_worker() {
    on_shard(|shard| {
        let before = shard.pid();
        let begun = Instant::now();
        let report = shard.process(within("def process_writes(api, b, a): api.query('very slow')\n", 100));
        assert_eq!(report.result.unwrap_err().kind, "PluginTimeout");
        assert!(begun.elapsed() < Duration::from_secs(3));
        assert_eq!(shard.pid(), before);
    });
}

#[test]
fn a_worker_keeps_its_cache_and_its_process_between_runs() {
    on_shard(|shard| {
        let mut pids = BTreeSet::new();
        for expected in ["INFO [1] 1 builtins", "INFO [1] 2 builtins", "INFO [1] 3 builtins"] {
            let report = shard.process(request(plugin("state.py"), vec![]));
            report.result.unwrap();
            assert_eq!(shard.host.lines_of(report.request.run_id), [expected]);
            pids.insert(shard.pid().as_raw_nonzero().get());
        }
        assert_eq!(pids.len(), 1);
        assert_ne!(*pids.first().unwrap() as u32, std::process::id());
    });
}

#[test]
fn activation_is_told_on_the_servers_clock() {
    on_shard(|shard| {
        let now = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
        };
        let before = now();
        let report = shard.process(request(Code::text(PID), vec![]));
        let (entered, finished) = (report.entered.unwrap().0, report.finished.0);
        assert!(before < entered && entered < finished && finished < now());
    });
}

#[test]
fn an_exception_comes_with_its_whole_traceback() {
    on_shard(|shard| {
        let error = shard.fails("def f(): return {}['k']\n\ndef process_writes(*a):\n    f()\n");
        assert_eq!((error.kind.as_str(), error.message.as_str()), ("KeyError", "KeyError: 'k'"));
        assert!(error.traceback.contains("line 4, in process_writes\n    f()"), "{}", error.traceback);
        assert!(error.traceback.contains("return {}['k']"), "{}", error.traceback);
        assert_eq!(shard.fails("def f(:\n").kind, "SyntaxError");
        assert_eq!(shard.fails("def process_writes(*a): raise SystemExit(4)\n").kind, "SystemExit");
    });
}

#[test]
fn an_endless_loop_is_interrupted_and_its_worker_goes_on() {
    on_shard(|shard| {
        let before = shard.pid();
        let loops = [
            "def process_writes(*a):\n    while True: pass\n",
            "def process_writes(*a):\n    while True:\n        try:\n            sum([1, 2])\n        except BaseException:\n            pass\n",
        ];
        for source in loops {
            let error = shard.process(within(source, 50)).result.unwrap_err();
            assert_eq!(error.message, "PluginTimeout: the run took longer than its deadline of 50 ms");
            assert!(error.traceback.contains("in process_writes"), "{}", error.traceback);
        }
        assert_eq!(shard.pid(), before);
    });
}

#[test]
fn a_run_that_cannot_be_interrupted_is_killed_and_says_where_it_hung() {
    let counted = counts_before();
    on_shard(move |shard| {
        let before = shard.pid();
        let begun = Instant::now();
        let waits = "import socket\n\ndef process_writes(*a):\n    a, b = socket.socketpair()\n    a.recv(1)\n";
        let error = shard.process(within(waits, 50)).result.unwrap_err();
        assert!(begun.elapsed() < KILL_GRACE + Duration::from_secs(3), "{:?}", begun.elapsed());
        assert_eq!(error.kind, "PluginTimeout");
        let expected = format!("its worker process {} was killed", before.as_raw_nonzero());
        assert!(error.message.ends_with(&expected), "{}", error.message);
        assert!(error.traceback.contains("line 5 in process_writes"), "{}", error.traceback);
        assert!(is_gone(before));
        assert_ne!(shard.pid(), before);
        assert_eq!(runtime().0.process_counts().killed, counted.killed + 1);
    });
}

#[test]
fn a_worker_that_is_stopped_is_killed_at_the_deadline() {
    on_shard(|shard| {
        let source = "import os, signal\ndef process_writes(*a): os.kill(os.getpid(), signal.SIGSTOP)\n";
        let error = shard.process(within(source, 50)).result.unwrap_err();
        assert!(error.message.contains("could not be interrupted"), "{}", error.message);
        shard.pid();
    });
}

#[test]
fn a_worker_that_closes_its_socket_is_replaced() {
    on_shard(|shard| {
        let begun = Instant::now();
        let error = shard.fails("import os\ndef process_writes(*a): os.closerange(3, 100)\n");
        assert_eq!(error.kind, "WorkerDied", "{}", error.message);
        assert!(begun.elapsed() < Duration::from_secs(5));
        shard.pid();
    });
}

#[test]
fn a_worker_that_dies_fails_its_run_and_the_next_run_gets_a_fresh_one() {
    let deaths = [
        ("import os\ndef process_writes(*a): os._exit(3)\n", "exited with code 3", ""),
        ("import os\ndef process_writes(*a):\n    os.abort()\n", "was ended by SIGABRT", "line 3 in process_writes"),
        (
            "import ctypes\ndef process_writes(*a):\n    ctypes.string_at(0)\n",
            "was ended by SIGSEGV",
            "line 3 in process_writes",
        ),
        (
            "import os, signal\ndef process_writes(*a): os.kill(os.getpid(), signal.SIGTERM)\n",
            "was ended by SIGTERM",
            "",
        ),
        (
            "import os\ndef process_writes(*a):\n    os.write(2, b'so long\\n')\n    os._exit(0)\n",
            "exited with code 0",
            "so long",
        ),
    ];
    let counted = counts_before();
    on_shard(move |shard| {
        for (source, how, words) in deaths {
            let before = shard.pid();
            let error = shard.fails(source);
            let expected = format!("WorkerDied: the worker process {} {how} during the run", before.as_raw_nonzero());
            assert_eq!((error.kind.as_str(), error.message), ("WorkerDied", expected));
            assert!(error.traceback.contains(words), "{how}: {}", error.traceback);
            assert_ne!(shard.pid(), before);
        }
        assert_eq!(runtime().0.process_counts().died, counted.died + 5);
    });
}

#[test]
fn a_worker_that_keeps_dying_is_started_after_growing_pauses() {
    on_shard(|shard| {
        let source = "import os\ndef process_writes(*a): os._exit(1)\n";
        let begun = Instant::now();
        for _ in 0..4 {
            assert_eq!(shard.fails(source).kind, "WorkerDied");
        }
        // 0, 100 and 200 ms stand between the four.
        assert!(begun.elapsed() > Duration::from_millis(300), "{:?}", begun.elapsed());
        shard.pid();
    });
}

#[test]
fn what_a_plugin_said_before_its_worker_died_is_logged() {
    on_shard(|shard| {
        let source =
            "import os\ndef process_writes(api, b, a):\n    for n in range(1000): api.info(n)\n    os._exit(1)\n";
        let report = shard.process(request(Code::text(source), vec![]));
        assert_eq!(report.result.unwrap_err().kind, "WorkerDied");
        let lines = shard.host.lines_of(report.request.run_id);
        assert_eq!((lines.len(), lines[999].as_str()), (1000, "INFO 999"));
    });
}

#[test]
fn a_worker_that_is_killed_from_outside_is_replaced() {
    let counted = counts_before();
    on_shard(move |shard| {
        let idle = shard.pid();
        rustix::process::kill_process(idle, Signal::KILL).unwrap();
        eventually("the death is noticed", || runtime().0.process_counts().died == counted.died + 1);
        let busy = shard.pid();
        assert_ne!(busy, idle);
        let run = request(Code::text("import time\ndef process_writes(*a): time.sleep(60)\n"), vec![]);
        let run_id = run.run_id;
        assert!(shard.submit_process(run).is_ok());
        std::thread::sleep(Duration::from_millis(200));
        rustix::process::kill_process(busy, Signal::KILL).unwrap();
        let error = shard.finished.wait(run_id, Instant::now() + Duration::from_secs(10)).result.unwrap_err();
        assert!(error.message.contains("was ended by SIGKILL"), "{}", error.message);
        assert_ne!(shard.pid(), busy);
    });
}

#[test]
fn a_run_just_after_its_worker_was_killed_is_made() {
    on_shard(|shard| {
        for _ in 0..5 {
            let pid = shard.pid();
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
            // The death is noticed before the run, when it is handed over, or during it.
            let report = shard.process(request(Code::text(PID), vec![]));
            match report.result {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind, "WorkerDied", "{}", error.message),
            }
        }
    });
}

#[test]
fn an_order_that_a_worker_had_not_read_when_it_died_is_the_next_ones() {
    on_shard(|shard| {
        for rows in [3, 30_000] {
            let pid = shard.pid();
            rustix::process::kill_process(pid, Signal::STOP).unwrap();
            eventually("the worker is stopped", || state_of(pid) == Some('T'));
            let run = request(Code::text(PID), vec![table("cpu", numbered(0, rows))]);
            let run_id = run.run_id;
            assert!(shard.submit_process(run).is_ok());
            // Given by the shard, or by the supervisor: when it is looked after, the worker has it, and has not read it.
            eventually("the run is under way", || !shard.host.all_of(run_id).is_empty());
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
            let report = shard.finished.wait(run_id, Instant::now() + Duration::from_secs(60));
            report.result.unwrap_or_else(|e| panic!("{}", e.message));
            let lines = shard.host.all_of(run_id);
            assert_eq!((lines.len(), lines[0].as_str()), (3, "engine started"), "made once: {lines:?}");
        }
    });
}

#[test]
fn a_worker_that_says_or_writes_what_it_likes_harms_only_its_own_run() {
    /// Descriptors 3 and 4 are the worker's ends of its connections.
    const ENDS: &str = "import os, socket, array\ndef end(n): return socket.socket(fileno=os.dup(n))\n";
    let evil = [
        // No message, one with too long a length, one of a kind that is none, and a file that is none of ours.
        "end(3).send(b'garbage')",
        "end(3).send(b'\\x00\\xff\\xff\\xff\\x7f' + b'x' * 100)",
        "end(3).send(b'\\x00\\x01\\x00\\x00\\x00\\x63')",
        "socket.send_fds(end(3), [b'\\x01\\x00\\x00\\x00\\x00'], [os.open('/dev/zero', os.O_RDONLY)])",
        "socket.send_fds(end(3), [b'\\x01\\x00\\x00\\x00\\x00'], [os.memfd_create('unsealed')])",
        "socket.send_fds(end(3), [b'\\x01\\x00\\x00\\x00\\x00'], [os.pipe()[0]] * 20)",
        // It says that another run is over.
        "end(3).send(b'\\x00\\x02\\x00\\x00\\x00\\x09\\x01')",
        "end(3).shutdown(socket.SHUT_RDWR)",
    ];
    on_shard(move |shard| {
        let neighbour = |shard: &mut Shard| {
            let report = shard.process(of_trigger(70, request(Code::text(PID), vec![table("cpu", numbered(0, 3))])));
            report.result.unwrap();
            shard.host.lines_of(report.request.run_id)
        };
        let of_neighbour = neighbour(shard);
        for line in evil {
            let before = shard.pid();
            let source = format!("{ENDS}import time\ndef process_writes(*a):\n    {line}\n    time.sleep(60)\n");
            let run = request(Code::text(&source), vec![table("cpu", numbered(0, 3))]);
            let error = shard.process(run).result.unwrap_err();
            assert_eq!(error.kind, "WorkerDied", "{line}: {}", error.message);
            assert_ne!(shard.pid(), before, "{line}");
            assert_eq!(neighbour(shard), of_neighbour, "{line}");
        }
        // What goes the other way on the connection for orders nobody heeds.
        let noise = format!(
            "{ENDS}import os\ndef process_writes(api, b, a):\n    end(4).send(b'garbage')\n    api.info(os.getpid())\n"
        );
        let before = shard.says(&noise);
        assert_eq!(shard.says(&noise), before);
        assert_eq!(shard.says(PID), before);
    });
}

#[test]
fn rows_in_shared_memory_cannot_be_changed_for_anybody_else() {
    /// Makes its mapping writable, which the system does for a copy of its own, and overwrites it.
    const WRITES: &str = "import ctypes, re\n\
        def process_writes(api, b, a):\n    \
            line = next(line for line in open('/proc/self/maps') if 'memfd:saltus-rows' in line)\n    \
            start, end = (int(n, 16) for n in re.match('([0-9a-f]+)-([0-9a-f]+)', line).groups())\n    \
            libc = ctypes.CDLL(None)\n    \
            libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]\n    \
            assert libc.mprotect(start, end - start, 3) == 0\n    \
            ctypes.memset(start, 255, end - start)\n    \
            api.info(memoryview(b[0].columns['n'])[0])\n";
    on_shard(|shard| {
        let rows = numbered(0, 10_000);
        for _ in 0..3 {
            let report = shard.process(request(Code::text(WRITES), vec![table("cpu", rows.clone())]));
            report.result.unwrap_or_else(|e| panic!("{}", e.traceback));
            assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO -1"]);
        }
        let expected = numbered(0, 10_000);
        for (column, expected) in rows.columns.iter().zip(&expected.columns) {
            assert_eq!(&column.data, &expected.data, "{}", column.name);
        }
        let sum = "def process_writes(api, b, a): api.info(sum(memoryview(b[0].columns['n'])))\n";
        let report = shard.process(request(Code::text(sum), vec![table("cpu", rows)]));
        assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO 49995000"]);
    });
}

#[test]
fn a_plugin_that_takes_too_much_memory_gets_a_memory_error() {
    on_shard(|shard| {
        let before = shard.pid();
        let error = shard.fails("def process_writes(*a):\n    [0] * (10 * 1024 ** 3 // 8)\n");
        assert_eq!(error.kind, "MemoryError", "{}", error.message);
        let error = shard.fails(
            "def process_writes(*a):\n    kept = []\n    while True: kept.append('x' * 1_000_000 + str(len(kept)))\n",
        );
        assert_eq!(error.kind, "MemoryError", "{}", error.message);
        assert_eq!(shard.pid(), before);
    });
}

#[test]
fn a_plugin_may_do_to_its_process_what_it_likes() {
    on_shard(|shard| {
        let source = "import os, signal, time\ndef process_writes(api, b, a):\n    os.chdir('/')\n    os.umask(0)\n    \
                      os.environ['SALTUS_X'] = '1'\n    seen = []\n    signal.signal(signal.SIGALRM, lambda *_: seen.append(1))\n    \
                      signal.setitimer(signal.ITIMER_REAL, 0.01)\n    time.sleep(0.1)\n    \
                      api.info(seen, os.getcwd(), os.popen('echo $SALTUS_X').read().strip())\n";
        assert_eq!(shard.says(source), ["INFO [1] / 1"]);
        assert!(std::env::var_os("SALTUS_X").is_none());
    });
}

#[test]
fn a_forked_child_that_comes_back_is_no_second_run() {
    on_shard(|shard| {
        let source = "import os\ndef process_writes(api, b, a):\n    if os.fork() == 0:\n        return\n    os.wait()\n    api.info('parent')\n";
        for _ in 0..3 {
            assert_eq!(shard.says(source), ["INFO parent"]);
        }
    });
}

#[test]
fn what_a_worker_started_is_killed_with_it() {
    on_shard(|shard| {
        let child = shard.says("import subprocess\ndef process_writes(api, b, a):\n    api.info(subprocess.Popen(['sleep', '1000']).pid)\n");
        let child = pid(&child[0]);
        assert!(!is_gone(child));
        shard.fails("import os\ndef process_writes(*a): os._exit(1)\n");
        eventually("the child is gone", || is_gone(child));
    });
}

#[test]
fn a_worker_has_no_descriptor_of_the_server() {
    // Such as one that some library has forgotten to close at `exec`.
    let leaked = rustix::io::dup(std::fs::File::open("/proc/version").unwrap()).unwrap();
    on_shard(|shard| {
        let source = "import os\ndef process_writes(api, b, a):\n    for fd in sorted(map(int, os.listdir('/proc/self/fd'))):\n        \
                      try: api.info(fd, os.readlink(f'/proc/self/fd/{fd}').split(':')[0])\n        except OSError: pass\n";
        let expected = ["INFO 0 /dev/null", "INFO 1 /dev/null", "INFO 2 pipe", "INFO 3 socket", "INFO 4 socket"];
        assert_eq!(shard.says(source), expected);
    });
    drop(leaked);
}

#[test]
fn many_log_lines_and_much_output_arrive_whole() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    for n in range(50_000): api.info(n)\n    print('y' * 60_000)\n    text = 'x' * 1_000_000\n    \
                      for n in range(60): api.write(LineBuilder('t').string_field('s', text))\n";
        let report = shard.process(request(Code::text(source), vec![]));
        report.result.unwrap();
        assert!(report.writes[0].lines.len() > 60_000_000);
        let lines = shard.host.lines_of(report.request.run_id);
        assert_eq!(lines.len(), 50_001);
        assert!(lines[..50_000].iter().enumerate().all(|(n, line)| *line == format!("INFO {n}")));
        assert_eq!(lines[50_000].len(), 60_005);
    });
}

#[test]
fn each_trigger_has_a_worker_of_its_own_up_to_a_bound() {
    counts_before();
    on_shard(|shard| {
        let mut runs = Vec::new();
        for round in 0..3 {
            for id in 0..WORKERS_MAX as u64 {
                let run = of_trigger(100 + id, request(Code::text(PID), vec![]));
                runs.push((id, round, run.run_id));
                assert!(shard.submit_process(run).is_ok());
            }
        }
        let mut pids = vec![BTreeSet::new(); WORKERS_MAX];
        for (id, _, run_id) in runs {
            shard.finished.wait(run_id, Instant::now() + Duration::from_secs(60)).result.unwrap();
            pids[id as usize].insert(shard.host.lines_of(run_id)[0].clone());
        }
        assert!(pids.iter().all(|pids| pids.len() == 1), "a trigger keeps its worker: {pids:?}");
        assert_eq!(pids.iter().flatten().collect::<BTreeSet<_>>().len(), WORKERS_MAX);
        let counts = runtime().0.process_counts();
        assert_eq!((counts.alive, counts.started >= WORKERS_MAX as u64), (WORKERS_MAX, true));
        let error = shard.process(of_trigger(999, request(Code::text(PID), vec![]))).result.unwrap_err();
        assert_eq!(error.kind, "WorkerLimit");
        assert!(error.message.contains(&format!("{WORKERS_MAX} worker processes are there")), "{}", error.message);
    });
}

#[test]
fn a_full_queue_gives_the_request_back_and_others_have_room() {
    on_shard(|shard| {
        let slow = || request(Code::text("import time\ndef process_writes(*a): time.sleep(0.01)\n"), vec![]);
        shard.pid();
        let mut accepted = Vec::new();
        let block = request(Code::text("import time\ndef process_writes(*a): time.sleep(1)\n"), vec![]);
        accepted.push(block.run_id);
        assert!(shard.submit_process(block).is_ok());
        let refused = loop {
            let run = slow();
            let run_id = run.run_id;
            match shard.submit_process(run) {
                Ok(()) => accepted.push(run_id),
                Err(refused) => break refused.run_id,
            }
        };
        assert_eq!(accepted.len(), saltus_core::limits::PROCESS_QUEUE_MAX);
        assert!(!accepted.contains(&refused));
        shard.process(of_trigger(8, request(Code::text(PID), vec![]))).result.unwrap();
        for run_id in accepted {
            shard.finished.wait(run_id, Instant::now() + Duration::from_secs(60)).result.unwrap();
        }
    });
}

#[test]
fn an_idle_worker_is_ended_and_comes_back() {
    let counted = counts_before();
    on_shard(move |shard| {
        let first = shard.pid();
        std::thread::sleep(WORKER_IDLE / 2);
        assert_eq!(shard.pid(), first);
        eventually("the idle worker is ended", || is_gone(first));
        assert_ne!(shard.pid(), first);
        assert_eq!(runtime().0.process_counts().died, counted.died);
    });
}

#[test]
fn workers_end_with_their_shards() {
    let pid = on_shard(|shard| shard.pid());
    eventually("the worker is ended", || is_gone(pid));
}

/// Not a test by itself: the server that [`workers_end_with_their_server`] kills or stops.
#[test]
#[ignore = "a part of another test, which runs it in a process of its own"]
fn server() {
    on_shard(|shard| {
        let pid = shard.pid().as_raw_nonzero();
        let busy = of_trigger(
            8,
            request(Code::text("def process_writes(api, b, a):\n    api.info('up')\n    while True: pass\n"), vec![]),
        );
        let run_id = busy.run_id;
        assert!(shard.submit_process(busy).is_ok());
        eventually("the second worker runs", || shard.host.lines_of(run_id) == ["INFO up"]);
        // A line of its own, whatever the harness has printed.
        println!("\nworker {pid}");
        let mut order = String::new();
        std::io::stdin().read_line(&mut order).unwrap();
        // One that has not begun is nobody's failure.
        let waiting = of_trigger(8, request(Code::text(PID), vec![]));
        let waiting_id = waiting.run_id;
        assert!(shard.submit_process(waiting).is_ok());
        let begun = Instant::now();
        runtime().0.stop(Duration::from_secs(10));
        let error = shard.finished.wait(run_id, Instant::now()).result.unwrap_err();
        assert!(!shard.finished.has(waiting_id));
        println!("\nstopped {} {}", error.message, begun.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn workers_end_with_their_server() {
    for kill in [true, false] {
        let mut server = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::server", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
        let worker = lines.find_map(|line| line.strip_prefix("worker ").map(pid)).unwrap();
        assert!(!is_gone(worker));
        if kill {
            server.kill().unwrap();
        } else {
            server.stdin.take().unwrap().write_all(b"stop\n").unwrap();
            let said = lines.find_map(|line| line.strip_prefix("stopped ").map(str::to_owned)).unwrap();
            assert_eq!(said, "PluginStopped: the database is shutting down true");
        }
        server.wait().unwrap();
        eventually("the worker is gone", || is_gone(worker));
    }
}

#[test]
fn what_is_not_started_by_a_server_says_so() {
    let output = Command::new(crate::WORKER).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is started by the server and not by hand"));
}
