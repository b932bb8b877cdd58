//! Test runs: a plugin is run once, on an interpreter of the deferred lane or in a worker process, and what it does is caught.
//!
//! Each test has a thread of its own while it lasts, since it reads files and waits. Queries are real; everything else that a plugin
//! does through its API stays here. What it does past the API (a socket, a file) is real.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use arrow::array::RecordBatch;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_channel::oneshot;
use futures_lite::future::block_on;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use saltus_core::ids::{Epoch, EventId, MonoNs, RunId, Sequence, ShardId, Stream, TriggerId};
use saltus_core::limits::{PLUGIN_TEST_OUTPUT_BYTES_MAX, PLUGIN_TESTS_MAX};
use saltus_core::line_protocol::{LineParser, Precision, SchemaSource};
use saltus_core::policy::Lane;
use saltus_core::ports::{
    LogLine, LogText, PluginError, PluginHost, QueuedWrite, RunEvent, RunRecord, RunReport, RunRequest, ScheduledCall,
    SyncWrite, TableBatch, Trigger,
};
use saltus_core::query_param::QueryParam;
use saltus_core::request::{PluginRequest, PluginResponse};
use saltus_core::schedule::Schedule;
use saltus_core::schema::TableSchema;
use saltus_core::trigger::{
    ApiSettings, ErrorBehavior, Execution, Isolation, Limits, Timing, TriggerDef, TriggerKind, TriggerSpec,
};
use saltus_shards::cursors::Pending;
use saltus_shards::engine::EngineHandle;
use serde_json::{Map, Value, json};

use super::LateEngine;
use crate::http::plugin_test::{PluginTest, PluginTests, TestInput, TestRequest};
use crate::http::response::{HttpError, RETRY_AFTER_DEFAULT};
use crate::logs::wall_clock_ns;
use crate::registry::{Registry, RegistryError};

/// The cache of tests that name none (reference, 1.6).
const SHARED_CACHE: &str = "_shared_test";
/// The schedule of a test that names none: every second (reference, 2.10).
const EVERY_SECOND: &str = "cron:* * * * * *";

/// Makes test runs.
pub(crate) struct Tester {
    engine: LateEngine,
    registry: Registry,
    host: Arc<dyn PluginHost>,
    limits: Limits,
    under_way: Arc<AtomicUsize>,
}

/// One of the places for tests.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(places: &Arc<AtomicUsize>) -> Option<Place> {
        let more = |taken| (taken < PLUGIN_TESTS_MAX).then_some(taken + 1);
        places.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Place(places.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Tester {
    pub(crate) fn new(engine: LateEngine, registry: Registry, host: Arc<dyn PluginHost>, limits: Limits) -> Self {
        // Whoever asks reads all of it.
        let limits = Limits { log_lines_per_second: u32::MAX, ..limits };
        Tester { engine, registry, host, limits, under_way: Arc::default() }
    }
}

impl PluginTests for Tester {
    fn run(&self, test: PluginTest) -> BoxFuture<'static, Result<Value, HttpError>> {
        let (Some(engine), Some(place)) = (self.engine.get().cloned(), Place::take(&self.under_way)) else {
            let text = format!("{PLUGIN_TESTS_MAX} tests are under way, as many as may; come again");
            return Box::pin(async { Err(HttpError::unavailable(text, RETRY_AFTER_DEFAULT)) });
        };
        let bench = Bench { engine, registry: self.registry.clone(), host: self.host.clone(), limits: self.limits };
        let (reply, answer) = oneshot::channel();
        let thread = std::thread::Builder::new().name("saltus-test".to_owned()).spawn(move || {
            let result = bench.test(test);
            drop(place);
            reply.send(result)
        });
        Box::pin(async move {
            let unavailable = |text: String| HttpError::unavailable(text, RETRY_AFTER_DEFAULT);
            thread.map_err(|error| unavailable(format!("no thread for the test: {error}")))?;
            answer.await.map_err(|_| unavailable("the test ended without a result".to_owned()))?
        })
    }
}

/// What one test works with.
struct Bench {
    engine: EngineHandle,
    registry: Registry,
    host: Arc<dyn PluginHost>,
    limits: Limits,
}

/// What the plugin is run for, and what of it is shown.
struct Input {
    event: RunEvent,
    shown: Map<String, Value>,
}

impl Bench {
    fn test(&self, test: PluginTest) -> Result<Value, HttpError> {
        let (code, settings) = block_on(self.registry.plugin(&test.filename)).map_err(|error| match error {
            RegistryError::Plugin(error) => {
                HttpError::field("filename", format_args!("Plugin error: reading plugin file: {error}"))
            }
            error => error.into(),
        })?;
        let zone = match &test.input {
            TestInput::Schedule { time_zone, .. } => time_zone.clone().or_else(|| settings.time_zone.clone()),
            _ => None,
        };
        let Input { event, mut shown } = match self.input(&test, zone.as_deref())? {
            Ok(input) => input,
            Err(answer) => return Ok(answer),
        };
        let trigger = Arc::new(Trigger { def: stand_in(&test, zone), code });
        let caught = Arc::new(Caught::new(self.host.clone()));
        let lane = if settings.isolation == Some(Isolation::Process) { Lane::Process } else { Lane::Deferred };
        let mut report = self.run(&trigger, &event, &caught, lane)?;
        let refused = report.result.as_ref().err().and_then(PluginError::refused_import);
        if lane != Lane::Process && settings.isolation != Some(Isolation::Interpreter) && refused.is_some() {
            caught.forget();
            report = self.run(&trigger, &event, &caught, Lane::Process)?;
        }
        let RunReport { result, writes, response, .. } = report;
        let (log_lines, mut written) = caught.take();
        written.extend(writes);
        let mut errors = Vec::new();
        if let Err(error) = &result {
            // Nothing of a run that failed would be written.
            written.clear();
            errors.push(Value::from(format!("error executing plugin: {}", plain(error))));
            if !error.traceback.is_empty() {
                shown.insert("traceback".to_owned(), error.traceback.clone().into());
            }
        }
        errors.extend(self.check(&written).into_iter().map(Value::from));
        if matches!(event, RunEvent::Request(_)) {
            shown.extend(answer_json(result.as_ref().err(), response));
        }
        let mut by_db: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for QueuedWrite { db, lines, .. } in written {
            by_db.entry(db.to_string()).or_default().push(lines.into());
        }
        shown.insert("log_lines".to_owned(), log_lines.into());
        shown.insert("database_writes".to_owned(), json!(by_db));
        shown.insert("errors".to_owned(), errors.into());
        Ok(shown.into())
    }

    fn run(
        &self,
        trigger: &Arc<Trigger>,
        event: &RunEvent,
        caught: &Arc<Caught>,
        lane: Lane,
    ) -> Result<RunReport, HttpError> {
        let run = RunRequest {
            run_id: RunId(0),
            trigger: trigger.clone(),
            event: event.clone(),
            shard: ShardId(0),
            lane,
            deadline: self.limits.run_time,
            limits: self.limits,
            received: MonoNs(0),
            depth: 0,
            attempt: 0,
            test_host: Some(caught.clone()),
            // A test begins with an empty one, and leaves nothing.
            state: Arc::default(),
            stop: Arc::default(),
            may_move: false,
            long: false,
        };
        Ok(block_on(self.engine.test_run(run))?)
    }

    /// What the plugin is given; the inner error is an answer with 200, as in the reference.
    fn input(&self, test: &PluginTest, zone: Option<&str>) -> Result<Result<Input, Value>, HttpError> {
        let db = &test.database;
        let (event, mut shown) = (|| -> Result<_, HttpError> {
            let rows = |rows| Ok((RunEvent::Writes(rows), Map::new()));
            match &test.input {
                TestInput::Lines(lines) => rows(self.parse(db, lines)?),
                TestInput::Event(id) => rows(self.recorded("event", db, vec![only(*id)])?),
                TestInput::DeadLetter(id) => rows(self.recorded("dead_letter", db, self.parts_of(db, *id)?)?),
                TestInput::Request(request) => Ok((RunEvent::Request(Arc::new(plugin_request(request))), Map::new())),
                TestInput::Schedule { schedule, .. } => {
                    let (scheduled_ns, utc_offset_secs) = next_time(schedule.as_deref(), zone)?;
                    let call = ScheduledCall { scheduled_ns, missed: 0, utc_offset_secs };
                    Ok((RunEvent::Schedule(call), Map::from_iter([("trigger_time".to_owned(), rfc3339(scheduled_ns))])))
                }
            }
        })()?;
        let is_schedule = matches!(test.input, TestInput::Schedule { .. });
        if is_schedule && !self.database_exists(db) {
            shown.insert("trigger_time".to_owned(), Value::Null);
            shown.extend(nothing());
            shown.insert("errors".to_owned(), json!([format!("database not found: {db}")]));
            return Ok(Err(shown.into()));
        }
        Ok(Ok(Input { event, shown }))
    }

    fn database_exists(&self, db: &str) -> bool {
        self.registry.catalog().databases.contains_key(db) || self.engine.has_database(db)
    }

    /// Line protocol as a write would bring it.
    fn parse(&self, db: &str, lines: &str) -> Result<Vec<TableBatch>, HttpError> {
        let body = lines.as_bytes().to_vec().into();
        let parsed = LineParser::new().parse(db, &body, Precision::Nanosecond, false, &Known(&self.engine, db));
        if let Some(error) = parsed.rejected.first() {
            let text = format!("{} (line {}: {})", error.message, error.line_number, error.original_line);
            return Err(HttpError::field("input_lp", text));
        }
        let now = wall_clock_ns();
        let stream = Stream { epoch: Epoch(0), shard: ShardId(0) };
        let number = |(at, batch): (usize, _)| (Sequence(at as u64 + 1), batch);
        let batches = parsed.batches.into_iter().enumerate().map(number);
        let table = |(sequence, batch): (Sequence, saltus_core::batch::PendingBatch)| TableBatch {
            table: batch.table.clone(),
            batch: Arc::new(batch.freeze(now)),
            id: EventId { stream, sequence },
            all_columns: None,
        };
        Ok(batches.map(table).collect())
    }

    fn recorded(&self, field: &str, db: &str, parts: Vec<Pending>) -> Result<Vec<TableBatch>, HttpError> {
        block_on(self.engine.read_events(db, parts)).map_err(|why| HttpError::field(field, why))
    }

    /// Where the rows of a dead letter are.
    fn parts_of(&self, db: &str, id: EventId) -> Result<Vec<Pending>, HttpError> {
        let letters = block_on(self.engine.dead_letters());
        let letter = letters.iter().find(|letter| letter.id == id && letter.account.db == *db);
        let text = || format!("there is no dead letter {id} of database '{db}'; see system.dead_letters");
        letter.map(|letter| letter.account.parts.clone()).ok_or_else(|| HttpError::field("dead_letter", text()))
    }

    /// What would be refused of what the plugin wanted written.
    fn check(&self, written: &[QueuedWrite]) -> Vec<String> {
        let mut errors = Vec::new();
        let mut parser = LineParser::new();
        for QueuedWrite { db, lines, .. } in written {
            if saltus_core::names::check_db_name(db).is_err() {
                errors.push(format!("invalid database name: {db}"));
                continue;
            }
            let body = lines.as_bytes().to_vec().into();
            let parsed = parser.parse(db, &body, Precision::Nanosecond, true, &Known(&self.engine, db));
            errors.extend(parsed.rejected.iter().map(|error| {
                format!("error validating line protocol for {db}: {} (line: {})", error.message, error.original_line)
            }));
        }
        errors
    }
}

fn only(EventId { stream, sequence }: EventId) -> Pending {
    Pending { stream, after: Sequence(sequence.0.saturating_sub(1)), to: sequence }
}

/// The schemas that tables have now.
struct Known<'a>(&'a EngineHandle, &'a str);

impl SchemaSource for Known<'_> {
    fn table(&self, table: &str) -> Option<Arc<TableSchema>> {
        self.0.table(self.1, table).map(|info| info.schema)
    }
}

/// The trigger that a test run takes the place of.
fn stand_in(test: &PluginTest, time_zone: Option<String>) -> TriggerDef {
    let mut hasher = DefaultHasher::new();
    test.cache_name.as_deref().unwrap_or(SHARED_CACHE).hash(&mut hasher);
    TriggerDef {
        id: TriggerId::of_test(hasher.finish()),
        name: "test".into(),
        db: test.database.as_str().into(),
        plugin_filename: test.filename.clone(),
        spec: match &test.input {
            TestInput::Schedule { schedule, .. } => spec_of(schedule.as_deref()).unwrap_or(TriggerSpec::AllTables),
            _ => TriggerSpec::AllTables,
        },
        run_async: false,
        error_behavior: ErrorBehavior::Log,
        execution: Execution::Deferred,
        isolation: Isolation::Auto,
        limits: Default::default(),
        timing: Timing { time_zone, ..Timing::default() },
        api: ApiSettings { restore_cache: Some(false), ..ApiSettings::default() },
        arguments: test.arguments.clone(),
        disabled: false,
        disabled_reason: None,
    }
}

fn plugin_request(request: &TestRequest) -> PluginRequest {
    let TestRequest { method, path, tail, query, headers, body } = request.clone();
    let mut string = form_urlencoded::Serializer::new(String::new());
    string.extend_pairs(&query);
    PluginRequest {
        method,
        path: path.into(),
        tail,
        query_string: string.finish(),
        query,
        headers,
        body,
        peer: None,
        answer: None,
    }
}

/// The specification of a schedule.
fn spec_of(schedule: Option<&str>) -> Result<TriggerSpec, HttpError> {
    let text = schedule.map_or_else(
        || EVERY_SECOND.to_owned(),
        |given| if given.contains(':') { given.to_owned() } else { format!("cron:{given}") },
    );
    let refuse = |why: String| HttpError::field("schedule", why);
    let spec = TriggerSpec::parse(&text).map_err(|error| refuse(format!("{error}{}", error.remedy())))?;
    if spec.kind() != TriggerKind::Schedule {
        return Err(refuse(format!("'{text}' is no schedule: expected a cron expression or every:DURATION")));
    }
    Ok(spec)
}

/// The next time of a schedule, and what its zone is ahead of UTC then.
fn next_time(schedule: Option<&str>, zone: Option<&str>) -> Result<(i64, Option<i32>), HttpError> {
    let spec = spec_of(schedule)?;
    // The schedule itself first, so that an error names the field that it is in.
    Schedule::new(&spec, None).map_err(|error| HttpError::field("schedule", error))?;
    let schedule = Schedule::new(&spec, zone).map_err(|error| HttpError::field("time_zone", error))?;
    let next = schedule.and_then(|schedule| {
        let next = schedule.next_after(wall_clock_ns())?;
        Some((next, schedule.utc_offset_secs(next)))
    });
    next.ok_or_else(|| HttpError::field("schedule", format!("'{spec}' never comes to a time")))
}

fn rfc3339(time_ns: i64) -> Value {
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(time_ns).unwrap_or_default());
    humantime::format_rfc3339(time).to_string().into()
}

fn nothing() -> Map<String, Value> {
    Map::from_iter([("log_lines".to_owned(), json!([])), ("database_writes".to_owned(), json!({}))])
}

/// The text of a failure, as the reference has it.
fn plain(error: &PluginError) -> &str {
    error.message.strip_prefix("ResponseError: ").unwrap_or(&error.message)
}

/// The answer of a request plugin, as its client would have had it.
fn answer_json(error: Option<&PluginError>, response: Option<PluginResponse>) -> Map<String, Value> {
    let mut shown = Map::new();
    let mut put = |name: &str, value: Value| shown.insert(name.to_owned(), value);
    if let Some(error) = error {
        let (status, text) = match error.kind.as_str() {
            "PluginTimeout" | PluginError::STUCK => (504, error.message.clone()),
            "ResponseError" => (500, plain(error).to_owned()),
            _ => (500, format!("Python function call failed: {}", error.message)),
        };
        put("status", status.into());
        put("headers", json!({}));
        put("body", json!({ "error": text }).to_string().into());
        return shown;
    }
    let Some(PluginResponse { head, body }) = response else { return shown };
    let mut headers: Map<String, Value> = Map::new();
    for (name, value) in head.headers {
        match headers.get_mut(&name) {
            None => drop(headers.insert(name, value.into())),
            Some(Value::Array(values)) => values.push(value.into()),
            Some(first) => *first = json!([first.clone(), value]),
        }
    }
    put("status", head.status.into());
    put("headers", headers.into());
    let body = body.unwrap_or_default();
    let shown_bytes = &body[..body.len().min(PLUGIN_TEST_OUTPUT_BYTES_MAX)];
    match std::str::from_utf8(shown_bytes) {
        Ok(text) => put("body", text.into()),
        Err(_) => put("body_base64", STANDARD.encode(shown_bytes).into()),
    };
    if shown_bytes.len() < body.len() {
        put("body_bytes", body.len().into());
    }
    shown
}

/// The host of a test run: keeps what the plugin says and writes.
struct Caught {
    host: Arc<dyn PluginHost>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    log_lines: Vec<String>,
    log_bytes: usize,
    left_out: usize,
    written: Vec<QueuedWrite>,
}

impl Caught {
    fn new(host: Arc<dyn PluginHost>) -> Self {
        Caught { host, kept: Mutex::default() }
    }

    fn forget(&self) {
        *self.kept.lock() = Kept::default();
    }

    fn take(&self) -> (Vec<String>, Vec<QueuedWrite>) {
        let Kept { mut log_lines, left_out, written, .. } = std::mem::take(&mut *self.kept.lock());
        if left_out > 0 {
            log_lines.push(format!("WARN: {left_out} further log lines are left out"));
        }
        (log_lines, written)
    }
}

impl PluginHost for Caught {
    fn log(&self, line: LogLine) {
        // What the engine says of every run is not of the test's.
        let LogText::Said(text) = line.text else { return };
        let mut kept = self.kept.lock();
        kept.log_bytes += text.len();
        if kept.log_bytes > PLUGIN_TEST_OUTPUT_BYTES_MAX {
            kept.left_out += 1;
        } else {
            kept.log_lines.push(format!("{}: {text}", line.level.as_str()));
        }
    }

    fn record(&self, _record: RunRecord) {
        // There is no trigger whose run it is.
    }

    fn disable(&self, _trigger: &TriggerDef, _reason: String) {
        // Likewise.
    }

    fn quarantined(&self, code: u64) -> bool {
        self.host.quarantined(code)
    }

    fn query(&self, db: &str, sql: &str, params: &[(String, QueryParam)]) -> Result<Vec<RecordBatch>, String> {
        self.host.query(db, sql, params)
    }

    fn query_while(
        &self,
        db: &str,
        sql: &str,
        params: &[(String, QueryParam)],
        wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<RecordBatch>, String> {
        self.host.query_while(db, sql, params, wanted)
    }

    /// Caught, never made, and so never refused (reference, 2.10).
    fn write(&self, write: SyncWrite) -> Result<(), String> {
        let SyncWrite { db, lines, no_sync, .. } = write;
        self.kept.lock().written.push(QueuedWrite { db, lines, no_sync });
        Ok(())
    }

    fn check_write(&self, _shard: ShardId, _db: &str, _lines: &str) -> Result<bool, String> {
        Ok(true)
    }
}
