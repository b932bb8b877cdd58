//! An interpreter to run plugins in, and what they are given.
//!
//! Python starts once per process, and one thread makes its interpreter and uses it; so all cases of a thread share one.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::datatypes::Int32Type;
use saltus_core::batch::{Batch, BatchColumn};
use saltus_core::ids::{Epoch, EventId, MonoNs, RunId, Sequence, ShardId, Stream, TriggerId};
use saltus_core::policy::Lane;
use saltus_core::ports::{
    CodeSource, Completions, LogLine, LogText, PluginCode, PluginHost, PluginRuntime, Readiness, RunEvent, RunRecord,
    RunReport, RunRequest, ShardPlugins, SyncWrite, TableBatch, Trigger,
};
use saltus_core::query_param::QueryParam;
use saltus_core::schema::ColumnKind;
use saltus_core::trigger::{
    ApiSettings, ErrorBehavior, Execution, Isolation, Limits, Timing, TriggerDef, TriggerLimits, TriggerSpec,
};
use saltus_python::{PythonConfig, PythonRuntime};

/// Any write's.
const ID: EventId = EventId { stream: Stream { epoch: Epoch(1), shard: ShardId(0) }, sequence: Sequence(1) };
/// What a run may take: far more than it does, even under an instrument that slows it down a hundred times.
const DEADLINE: Duration = Duration::from_secs(60);

struct Silent;

impl PluginHost for Silent {
    fn log(&self, line: LogLine) {
        if let LogText::Said(text) = line.text {
            println!("{text}");
        }
    }

    fn record(&self, _record: RunRecord) {}

    fn disable(&self, trigger: &TriggerDef, reason: String) {
        unreachable!("no shard runs here that would disable {}: {reason}", trigger.name);
    }

    fn query(&self, _db: &str, _sql: &str, _params: &[(String, QueryParam)]) -> Result<Vec<RecordBatch>, String> {
        Ok(Vec::new())
    }

    fn write(&self, _write: SyncWrite) -> Result<(), String> {
        Ok(())
    }

    fn check_write(&self, _shard: ShardId, _db: &str, _lines: &str) -> Result<bool, String> {
        Ok(true)
    }
}

impl Completions for Silent {
    fn completed(&self, _report: RunReport) {}
    fn prepared(&self) {}
}

struct Code(Arc<PluginCode>);

impl CodeSource for Code {
    fn current(&self) -> Arc<PluginCode> {
        self.0.clone()
    }
}

/// What a process has of Python.
struct Started {
    /// Stays as long as the thread, since its threads serve the interpreter.
    _runtime: Arc<PythonRuntime>,
    lanes: Box<dyn ShardPlugins>,
    /// Number of the next run.
    run: u64,
}

thread_local! {
    static STARTED: RefCell<Option<Rc<RefCell<Started>>>> = const { RefCell::new(None) };
}

/// This thread's interpreter.
#[derive(Clone)]
pub struct Interpreter(Rc<RefCell<Started>>);

impl Interpreter {
    /// The interpreter of this thread, started if it is the first time; `memory_limits` counts then only.
    ///
    /// # Panics
    /// If Python does not start, or was started by another thread.
    pub fn start(memory_limits: bool) -> Self {
        STARTED.with_borrow_mut(|started| {
            let started = started.get_or_insert_with(|| {
                let config = PythonConfig {
                    memory_limits,
                    hash_seed: Some(0),
                    // No shard is pinned here: threads beside the one that is measured need not give way to anybody.
                    shard_cpus: Some(Vec::new()),
                    stall_limit: DEADLINE,
                    ..PythonConfig::default()
                };
                let runtime = PythonRuntime::start(config, Arc::new(Silent)).expect("python starts");
                let lanes = runtime.attach(ShardId(0), Arc::new(Silent)).expect("interpreters start");
                Rc::new(RefCell::new(Started { _runtime: runtime, lanes, run: 0 }))
            });
            Interpreter(started.clone())
        })
    }

    /// Waits until the trigger's code is compiled and its modules are there.
    pub fn await_ready(&self, trigger: &Arc<Trigger>) {
        while self.0.borrow_mut().lanes.ready_inline(trigger) != Readiness::Ready {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What a shard does for one inline run.
    ///
    /// # Panics
    /// If the plugin raises, or is not ready.
    pub fn run(&self, trigger: &Arc<Trigger>, tables: &[TableBatch]) {
        let mut started = self.0.borrow_mut();
        assert_eq!(started.lanes.ready_inline(trigger), Readiness::Ready);
        started.run += 1;
        let run_id = RunId(started.run);
        let report = started.lanes.run_inline(RunRequest {
            run_id,
            trigger: trigger.clone(),
            event: RunEvent::Writes(tables.to_vec()),
            lane: Lane::Inline,
            deadline: DEADLINE,
            limits: Limits::default(),
            shard: ShardId(0),
            received: MonoNs(0),
            depth: 0,
            attempt: 0,
            test_host: None,
            state: Arc::default(),
            stop: Arc::default(),
            may_move: false,
            long: false,
        });
        assert_eq!(report.result, Ok(()));
    }
}

/// A trigger on all tables whose plugin has this source; one number for each source.
pub fn trigger(number: u64, source: &str) -> Arc<Trigger> {
    let def = TriggerDef {
        id: TriggerId(number),
        name: "bench".into(),
        db: "bench".into(),
        plugin_filename: "bench.py".to_owned(),
        spec: TriggerSpec::AllTables,
        run_async: false,
        error_behavior: ErrorBehavior::Log,
        execution: Execution::Inline,
        isolation: Isolation::Auto,
        limits: TriggerLimits::default(),
        timing: Timing::default(),
        api: ApiSettings::default(),
        arguments: None,
        disabled: false,
        disabled_reason: None,
    };
    let code = PluginCode { source: source.into(), hash: number, directory: None };
    Arc::new(Trigger { def, code: Arc::new(Code(Arc::new(code))) })
}

/// What a plugin sees of a write of these rows.
pub fn table_batch(batch: Arc<Batch>) -> TableBatch {
    TableBatch { table: "cpu".into(), batch, id: ID, all_columns: None }
}

/// Rows as in the case `cpu-only` of the Time Series Benchmark Suite: 10 tags of few values, 10 integers, time.
pub fn cpu_rows(rows: usize) -> Arc<Batch> {
    let tag = |at: usize| -> BatchColumn {
        let values = StringArray::from((0..16).map(|v| format!("tag_{at}_value_{v}")).collect::<Vec<_>>());
        let keys = (0..rows).map(|row| (row % 16) as i32).collect::<Vec<_>>();
        let data: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::new(keys.into(), Arc::new(values)));
        BatchColumn { name: format!("tag{at}").into(), kind: ColumnKind::Tag, data }
    };
    let field = |at: usize| -> BatchColumn {
        let values = (0..rows).map(|row| 1_000 + ((row * 31 + at) % 100_000) as i64).collect::<Vec<_>>();
        let data: ArrayRef = Arc::new(Int64Array::from(values));
        BatchColumn { name: format!("usage_{at}").into(), kind: ColumnKind::Integer, data }
    };
    let columns = (0..10).map(tag).chain((0..10).map(field)).collect();
    let time =
        TimestampNanosecondArray::from((0..rows as i64).map(|r| 1_700_000_000_000_000_000 + r).collect::<Vec<_>>());
    Arc::new(Batch { columns, time, series: vec![0; rows].into() })
}
