//! What a run of a plugin costs besides the plugin: `cargo bench -p saltus-benches --bench bridge`.
//!
//! A plain program, since one thread must make the interpreter and use it. Each figure is the best of several rounds,
//! from outside of `run_inline`, so that it contains all that a shard pays. `cargo test` runs one tiny round.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow::datatypes::Int32Type;
use saltus_core::batch::{Batch, BatchColumn};
use saltus_core::ids::{Epoch, EventId, MonoNs, RunId, Sequence, ShardId, Stream, TriggerId};
use saltus_core::policy::Lane;
use saltus_core::ports::{
    CodeSource, Completions, LogLine, LogText, PluginCode, PluginHost, PluginRuntime, Readiness, RunEvent, RunRecord,
    RunReport, RunRequest, ShardPlugins, TableBatch, Trigger,
};
use saltus_core::schema::ColumnKind;
use saltus_core::trigger::{ErrorBehavior, Execution, Isolation, Limits, TriggerDef, TriggerLimits, TriggerSpec};
use saltus_python::{PythonConfig, PythonRuntime};

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

    fn query(&self, _db: &str, _sql: &str, _params: &[(String, String)]) -> Result<Vec<RecordBatch>, String> {
        Ok(Vec::new())
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

    fn refresh(&self) -> Arc<PluginCode> {
        self.0.clone()
    }
}

/// TSBS cpu-only: 10 tags of few values, 10 integers, time.
/// Any write's.
const ID: EventId = EventId { stream: Stream { epoch: Epoch(1), shard: ShardId(0) }, sequence: Sequence(1) };

fn cpu_rows(rows: usize) -> Arc<Batch> {
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

fn trigger(number: u64, source: &str) -> Arc<Trigger> {
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
        arguments: None,
        disabled: false,
        disabled_reason: None,
    };
    let code = PluginCode { source: source.into(), hash: number, directory: None };
    Arc::new(Trigger { def, code: Arc::new(Code(Arc::new(code))) })
}

/// The best time of one run in nanoseconds, over `rounds` rounds of `runs` runs.
fn best(lanes: &mut dyn ShardPlugins, trigger: &Arc<Trigger>, tables: &[TableBatch], rounds: u32, runs: u32) -> f64 {
    let mut best = f64::INFINITY;
    while lanes.ready_inline(trigger) != Readiness::Ready {
        std::thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..rounds {
        let begun = Instant::now();
        for run in 0..runs {
            assert_eq!(lanes.ready_inline(trigger), Readiness::Ready);
            let report = lanes.run_inline(RunRequest {
                run_id: RunId(u64::from(run)),
                trigger: trigger.clone(),
                event: RunEvent::Writes(tables.to_vec()),
                lane: Lane::Inline,
                deadline: Duration::from_secs(5),
                limits: Limits::default(),
                shard: ShardId(0),
                received: MonoNs(0),
                depth: 0,
                attempt: 0,
            });
            assert_eq!(report.result, Ok(()));
        }
        best = best.min(begun.elapsed().as_nanos() as f64 / f64::from(runs));
    }
    best
}

fn main() {
    let tiny = !std::env::args().any(|argument| argument == "--bench");
    let (rounds, runs): (u32, u32) = if tiny { (1, 2) } else { (20, 2_000) };
    let rows = if tiny { 10 } else { 5_000 };
    let runtime = PythonRuntime::start(PythonConfig::default(), Arc::new(Silent)).expect("python starts");
    let mut lanes = runtime.attach(ShardId(0), Arc::new(Silent)).expect("interpreters start");
    let mut measure = |number, source: &str, tables: &[TableBatch], rounds, runs| {
        best(lanes.as_mut(), &trigger(number, source), tables, rounds, runs)
    };
    let one = [TableBatch { table: "cpu".into(), batch: cpu_rows(1), id: ID }];
    let many = [TableBatch { table: "cpu".into(), batch: cpu_rows(rows), id: ID }];
    let few_runs = runs.div_ceil(200);

    let say = |what: &str, nanoseconds: f64| {
        if tiny {
            println!("{what}: runs");
        } else {
            println!("{what:<40}{nanoseconds:9.0} ns");
        }
    };

    let empty = measure(1, "def process_writes(api, batches, args):\n    pass\n", &one, rounds, runs);
    say("empty run, one batch", empty);
    let helpers: String =
        (0..20).map(|at| format!("LIMIT_{at} = {at}\ndef helper_{at}(x, limit=LIMIT_{at}):\n    return x\n")).collect();
    let helped = format!(
        "import json\nimport re\nWORD = re.compile('a+')\n{helpers}def process_writes(api, batches, args):\n    pass\n"
    );
    say("empty run, module with 20 helpers", measure(5, &helped, &one, rounds, runs));
    let stateful = format!("SEEN = []\n{helped}    SEEN.append(1)\n");
    say("the same with state of its own", measure(6, &stateful, &one, rounds, runs));
    let single = measure(2, "def process_writes(api, batches, args):\n    batches[0]['rows']\n", &one, rounds, runs);
    say("run that reads one row of 21 columns", single);
    let row_runs = "def process_writes(api, batches, args):\n    assert batches[0]['rows'][-1]['usage_9']\n";
    let all = measure(3, row_runs, &many, rounds, few_runs);
    say("rows to dicts, per row of 21 columns", (all - empty) / rows as f64);
    let columns =
        "def process_writes(api, batches, args):\n    for c in batches[0].columns.values():\n        memoryview(c)\n";
    let views = measure(4, columns, &many, rounds, runs);
    say("21 columns to memoryviews, any rows", views - empty);
}
