//! A host that remembers what it was told, and answers queries with one fixed result.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray, TimestampMillisecondArray};
use saltus_core::ids::{RunId, ShardId};
use saltus_core::ports::{
    CodeSource, Completions, LogLine, LogText, PluginCode, PluginFolder, PluginHost, RunRecord, RunReport, Stall,
    SyncWrite,
};
use saltus_core::query_param::QueryParam;
use saltus_core::trigger::TriggerDef;

/// Remembers log lines and synchronous writes.
#[derive(Default)]
pub struct Host {
    lines: Mutex<Vec<LogLine>>,
    restarts: Mutex<Vec<String>>,
    written: Mutex<Vec<SyncWrite>>,
    stalls: Mutex<Vec<&'static str>>,
    stall_told: Condvar,
}

impl Host {
    /// What the plugin itself said in one run, as `LEVEL text`.
    pub fn lines_of(&self, run_id: RunId) -> Vec<String> {
        self.all_of(run_id).into_iter().filter(|line| !line.starts_with("engine ")).collect()
    }

    /// All lines of one run; the engine's own as `engine started` and `engine finished`.
    pub fn all_of(&self, run_id: RunId) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let of_run = lines.iter().filter(|line| line.run_id == run_id);
        of_run
            .map(|line| match &line.text {
                LogText::Said(text) => format!("{} {text}", line.level.as_str()),
                LogText::RunStarted(_) => "engine started".to_owned(),
                LogText::RunFinished(took) => {
                    assert!(*took > Duration::ZERO);
                    "engine finished".to_owned()
                }
            })
            .collect()
    }
}

impl Host {
    /// What was written synchronously, and is not asked for again.
    pub fn take_written(&self) -> Vec<SyncWrite> {
        std::mem::take(&mut *self.written.lock().unwrap())
    }

    /// Why a restart was asked for.
    pub fn restarts(&self) -> Vec<String> {
        self.restarts.lock().unwrap().clone()
    }
}

impl Host {
    fn tell_stall(&self, what: &'static str) {
        self.stalls.lock().unwrap().push(what);
        self.stall_told.notify_all();
    }

    /// Waits until `what` of a stall has been told; all that was told until then, in its order.
    pub fn stalls_until(&self, what: &str) -> Vec<&'static str> {
        let limit = Duration::from_secs(60);
        let waiting = |stalls: &mut Vec<&str>| !stalls.contains(&what);
        let (stalls, waited) = self.stall_told.wait_timeout_while(self.stalls.lock().unwrap(), limit, waiting).unwrap();
        assert!(!waited.timed_out(), "{what} was never told: {stalls:?}");
        stalls.clone()
    }
}

impl PluginHost for Host {
    fn stalled(&self, _stall: &Stall) {
        self.tell_stall("stalled");
    }

    /// A disk that takes longer than the stall.
    fn quarantine(&self, _stall: &Stall) {
        self.stalls_until("over");
        self.tell_stall("in quarantine");
    }

    fn stall_over(&self, _shard: ShardId) {
        self.tell_stall("over");
    }

    fn ask_restart(&self, reason: String) {
        self.restarts.lock().unwrap().push(reason);
    }

    fn log(&self, line: LogLine) {
        self.lines.lock().unwrap().push(line);
    }

    fn record(&self, record: RunRecord) {
        unreachable!("no shard runs here that would record {record:?}");
    }

    fn disable(&self, trigger: &TriggerDef, reason: String) {
        unreachable!("no shard runs here that would disable {}: {reason}", trigger.name);
    }

    fn query(&self, db: &str, sql: &str, params: &[(String, QueryParam)]) -> Result<Vec<RecordBatch>, String> {
        if sql == "slow" {
            std::thread::sleep(Duration::from_millis(300));
        }
        if sql == "very slow" {
            std::thread::sleep(Duration::from_secs(5));
        }
        if sql == "bad" {
            return Err(format!("error: no such table executing query on {db}: {sql}"));
        }
        if sql == "params" {
            let said = params.iter().map(|(name, value)| format!("{name}={value:?}"));
            let said: ArrayRef = Arc::new(StringArray::from(said.collect::<Vec<_>>()));
            return Ok(vec![RecordBatch::try_from_iter([("param", said)]).unwrap()]);
        }
        if sql == "types" {
            return Ok(vec![crate::types::every_type()]);
        }
        if sql == "none" {
            return Ok(Vec::new());
        }
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("n", Arc::new(Int64Array::from(vec![Some(1), None]))),
            ("text", Arc::new(LargeStringArray::from(vec![db, sql]))),
            (
                "param",
                Arc::new(StringArray::from(vec![
                    params.first().map(|p| match &p.1 {
                        QueryParam::Text(text) => format!("{}={text}", p.0),
                        other => format!("{}={other:?}", p.0),
                    }),
                    None,
                ])),
            ),
            ("at", Arc::new(TimestampMillisecondArray::from(vec![5, 6]))),
        ];
        Ok(vec![RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap()])
    }

    fn write(&self, write: SyncWrite) -> Result<(), String> {
        if let Some(why) = Self::refusal(&write.db, &write.lines) {
            return Err(why);
        }
        self.written.lock().unwrap().push(write);
        Ok(())
    }

    /// Tables of this shard are those whose name begins with `own`.
    fn check_write(&self, _shard: ShardId, db: &str, lines: &str) -> Result<bool, String> {
        match Self::refusal(db, lines) {
            Some(why) => Err(why),
            None => Ok(lines.lines().all(|line| line.starts_with("own"))),
        }
    }
}

impl Host {
    fn refusal(db: &str, lines: &str) -> Option<String> {
        if db.starts_with('-') {
            return Some(format!("invalid database name: {db}"));
        }
        lines.contains("bad").then(|| "Cannot write: line protocol parse failed: No fields were provided".to_owned())
    }
}

/// Collects the reports of deferred runs.
#[derive(Default)]
pub struct Finished {
    reports: Mutex<Vec<RunReport>>,
    prepared: Mutex<usize>,
    changed: Condvar,
}

impl Finished {
    /// Whether that run was reported.
    pub fn has(&self, run_id: RunId) -> bool {
        self.reports.lock().unwrap().iter().any(|r| r.request.run_id == run_id)
    }

    /// The report of that run.
    pub fn wait(&self, run_id: RunId, until: Instant) -> RunReport {
        let mut reports = self.reports.lock().unwrap();
        loop {
            if let Some(at) = reports.iter().position(|r| r.request.run_id == run_id) {
                return reports.remove(at);
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "run {run_id:?} has not been reported");
            reports = self.changed.wait_timeout(reports, left).unwrap().0;
        }
    }
}

impl Completions for Finished {
    fn completed(&self, report: RunReport) {
        self.reports.lock().unwrap().push(report);
        self.changed.notify_all();
    }

    fn prepared(&self) {
        *self.prepared.lock().unwrap() += 1;
        self.changed.notify_all();
    }
}

/// Code that does not change, or a directory's that is read again.
#[derive(Clone)]
pub struct Code {
    /// For tracebacks.
    pub name: String,
    code: Arc<PluginCode>,
}

impl Code {
    /// A plugin given as text.
    pub fn text(source: &str) -> Self {
        Code::new("inline.py", source, None)
    }

    /// A plugin that is a file.
    pub fn file(path: &Path) -> Self {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        Code::new(&name, &std::fs::read_to_string(path).unwrap(), None)
    }

    /// A plugin that is a directory, as it is now.
    pub fn directory(path: &Path) -> Self {
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let mut files: Vec<(&str, String)> = Vec::new();
        for name in ["__init__.py", "helper.py"] {
            files.push((name, read(&path.join(name))));
        }
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        Code::folder(&path.to_string_lossy(), &files)
    }

    /// A plugin that is a folder, which need not be on the disk.
    pub fn folder(path: &str, files: &[(&str, &str)]) -> Self {
        let path = PathBuf::from(path);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let source = files.iter().find(|(name, _)| *name == "__init__.py").unwrap().1.to_owned();
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Code::new(&name, &source, Some(PluginFolder { path, files }))
    }

    fn new(name: &str, source: &str, directory: Option<PluginFolder>) -> Self {
        let mut hasher = DefaultHasher::new();
        let files = directory.as_ref().map(|folder| (&folder.path, &folder.files));
        (source, files).hash(&mut hasher);
        let directory = directory.map(Arc::new);
        let code = PluginCode { source: source.into(), hash: hasher.finish(), directory };
        Code { name: name.to_owned(), code: Arc::new(code) }
    }
}

impl CodeSource for Code {
    fn current(&self) -> Arc<PluginCode> {
        self.code.clone()
    }
}
