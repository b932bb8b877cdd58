//! The bridge from outside: plugins in both lanes, against a host that only remembers.
//!
//! One process per test with `cargo nextest`; with `cargo test` all share one runtime. Each test makes its shards on
//! threads of its own, as a thread stays attached to the interpreter that it has entered.

mod api;
mod cache;
mod data;
mod deadlines;
mod deferred;
mod evil;
mod folders;
mod guard;
mod host;
mod inline;
mod kinds;
mod look_out;
mod memory;
mod process;
mod python_tests;
mod requests;
mod state;
mod stops;
mod types;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use host::{Code, Finished, Host};
use saltus_core::ids::{MonoNs, RunId, ShardId, TriggerId};
use saltus_core::policy::Lane;
use saltus_core::ports::{
    PluginRuntime, Readiness, RunEvent, RunReport, RunRequest, ShardPlugins, TableBatch, Trigger, Unwound,
};
use saltus_core::trigger::{
    ApiSettings, ErrorBehavior, Execution, Isolation, Limits, Timing, TriggerDef, TriggerLimits, TriggerSpec,
};
use saltus_python::{ProcessConfig, PythonConfig, PythonRuntime};

/// The program of worker processes.
const WORKER: &str = env!("CARGO_BIN_EXE_saltus-test-worker");
const WORKERS_MAX: usize = 6;
const WORKER_IDLE: Duration = Duration::from_secs(3);
const KILL_GRACE: Duration = Duration::from_millis(500);
/// A fraction of a C call that a test can wait for.
const STALL_LIMIT: Duration = Duration::from_millis(200);

/// Folders with numpy, pandas and pyarrow, where the machine has some.
fn site_packages() -> Vec<PathBuf> {
    let folders = std::env::var_os("SALTUS_TEST_SITE_PACKAGES").filter(|folders| !folders.is_empty());
    folders.iter().flat_map(std::env::split_paths).collect()
}

/// The one runtime of this process, and the host that it talks to.
fn runtime() -> &'static (Arc<PythonRuntime>, Arc<Host>) {
    static RUNTIME: OnceLock<(Arc<PythonRuntime>, Arc<Host>)> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let host = Arc::new(Host::default());
        let is_evil = std::env::args().any(|argument| argument.starts_with("evil::"));
        let process = ProcessConfig {
            program: Some(WORKER.into()),
            arguments: Vec::new(),
            workers_max: if is_evil { 64 } else { WORKERS_MAX },
            memory_max: Some(1024 * 1024 * 1024),
            idle: WORKER_IDLE,
            kill_grace: KILL_GRACE,
        };
        let config = PythonConfig {
            queue_max: 8,
            site_packages: site_packages(),
            process,
            deferred_grace: guard::grace(),
            hardened: is_evil,
            stall_limit: STALL_LIMIT,
            ..PythonConfig::default()
        };
        (PythonRuntime::start(config, host.clone()).expect("python starts"), host)
    })
}

/// One shard as a test uses it.
struct Shard {
    lanes: Box<dyn ShardPlugins>,
    finished: Arc<Finished>,
    host: Arc<Host>,
}

/// Runs `test` on the thread of a new shard.
fn on_shard<R: Send + 'static>(test: impl FnOnce(&mut Shard) -> R + Send + 'static) -> R {
    let thread = std::thread::spawn(move || {
        let (runtime, host) = runtime();
        let finished = Arc::new(Finished::default());
        let lanes = runtime.attach(ShardId(0), finished.clone()).expect("the shard's interpreters start");
        test(&mut Shard { lanes, finished, host: host.clone() })
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The source of a plugin of `pytests/plugins`.
fn plugin(name: &str) -> Code {
    Code::file(&plugins().join(name))
}

fn plugins() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("pytests/plugins")
}

/// A request to run `code` on `tables`, with a unique run id and a generous deadline.
fn request(code: Code, tables: Vec<TableBatch>) -> RunRequest {
    static RUNS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let run_id = RunId(RUNS.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let def = TriggerDef {
        id: TriggerId(7),
        name: "watcher".into(),
        db: "home".into(),
        plugin_filename: code.name.clone(),
        spec: TriggerSpec::AllTables,
        run_async: false,
        error_behavior: ErrorBehavior::Log,
        execution: Execution::Deferred,
        isolation: Isolation::Auto,
        limits: TriggerLimits::default(),
        timing: Timing::default(),
        api: ApiSettings::default(),
        arguments: None,
        disabled: false,
        disabled_reason: None,
    };
    RunRequest {
        run_id,
        trigger: Arc::new(Trigger { def, code: Arc::new(code) }),
        event: RunEvent::Writes(tables),
        lane: Lane::Deferred,
        deadline: Duration::from_secs(20),
        limits: Limits { log_lines_per_second: u32::MAX, ..Limits::default() },
        shard: ShardId(0),
        received: MonoNs(0),
        depth: 0,
        attempt: 0,
        test_host: None,
        state: Arc::default(),
        stop: Arc::default(),
        may_move: true,
        long: false,
    }
}

impl Shard {
    /// Runs inline, as a shard does: when it is ready, and again when a module was missing.
    fn inline(&mut self, mut request: RunRequest) -> RunReport {
        loop {
            assert_eq!(self.ready(&request), Readiness::Ready);
            let report = self.lanes.run_inline(request);
            match report.unwound {
                Some(Unwound::Import(_)) => request = report.request,
                _ => return report,
            }
        }
    }

    /// Waits until the trigger is ready for the inline lane, or cannot be.
    fn ready(&mut self, request: &RunRequest) -> Readiness {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match self.lanes.ready_inline(&request.trigger) {
                Readiness::Wait => assert!(Instant::now() < until, "it never becomes ready"),
                other => return other,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Runs deferred and waits.
    fn deferred(&mut self, request: RunRequest) -> RunReport {
        let run_id = request.run_id;
        assert!(self.lanes.submit(request).is_ok(), "the queue has room");
        self.finished.wait(run_id, Instant::now() + Duration::from_secs(60))
    }
}
