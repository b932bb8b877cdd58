//! The seams between crates: what `shards` calls and `python-bridge` implements, and what `python-bridge` calls and
//! `server` implements. Both sides know only this file.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;

use crate::batch::Batch;
use crate::ids::{EventId, MonoNs, RoomId, RunId, ShardId, TriggerId};
use crate::policy::seat::Seat;
use crate::policy::{Decision, Lane};
use crate::query_param::QueryParam;
use crate::request::{PluginRequest, PluginResponse};
use crate::state::{State, StateChange};
use crate::trigger::{Limits, TriggerDef, TriggerKind};

/// One version of a plugin's source.
#[derive(Clone, Debug)]
pub struct PluginCode {
    /// The source text (of `__init__.py` for a directory plugin).
    pub source: Arc<str>,
    /// Hash of the content; equal hashes are equal code. For a directory: of all its files.
    pub hash: u64,
    /// For a directory plugin: where it came from, and all of it.
    pub directory: Option<Arc<PluginFolder>>,
}

/// One version of a plugin that is a folder: a snapshot, from which alone its runs import.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PluginFolder {
    /// Where it lies.
    pub path: std::path::PathBuf,
    /// Its `.py` files: the path in it, and the text.
    pub files: Vec<(String, String)>,
}

/// Where a trigger's code comes from; implemented by the registry in `server`.
pub trait CodeSource: Send + Sync {
    /// The version that counts; never blocks.
    fn current(&self) -> Arc<PluginCode>;

    /// The same, after a look at what can be looked at quickly. May block on file I/O: never called on a shard's thread.
    fn refresh(&self) -> Arc<PluginCode> {
        self.current()
    }

    /// The file that [`CodeSource::refresh`] looks at, if there is one: while it does not change, `current` is as good. Never blocks.
    fn file(&self) -> Option<&Path> {
        None
    }
}

/// Why a run is to end before it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// Its trigger was deleted or disabled: what it did and will do counts for nothing.
    Gone,
    /// Its trigger was changed: its event is run again as the trigger is now.
    Changed,
}

/// Whether runs are to end before they have: set by the shard, looked at by whoever makes them. Never blocks.
#[derive(Debug, Default)]
pub struct RunStop(AtomicU8);

impl RunStop {
    /// From now on they are to end. A trigger that is gone does not come back.
    pub fn set(&self, cause: StopCause) {
        let number = match cause {
            StopCause::Changed => 1,
            StopCause::Gone => 2,
        };
        self.0.fetch_max(number, Ordering::SeqCst);
    }

    /// Why they are to end, if they are.
    pub fn cause(&self) -> Option<StopCause> {
        match self.0.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(StopCause::Changed),
            _ => Some(StopCause::Gone),
        }
    }
}

/// A trigger ready to run.
pub struct Trigger {
    /// What the catalog says.
    pub def: TriggerDef,
    /// Its code.
    pub code: Arc<dyn CodeSource>,
}

/// One table's rows for a write trigger.
#[derive(Clone, Debug)]
pub struct TableBatch {
    /// The table.
    pub table: Arc<str>,
    /// Its rows: the very buffers that the table holds.
    pub batch: Arc<Batch>,
    /// The write that they come from.
    pub id: EventId,
    /// For a trigger that wants rows with every column of the table: their names in the table's order.
    pub all_columns: Option<Arc<[Arc<str>]>>,
}

/// A time that a schedule has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ScheduledCall {
    /// The exact time of the schedule, nanoseconds since the epoch.
    pub scheduled_ns: i64,
    /// Times of the schedule since the last run that were passed over.
    pub missed: u64,
    /// What the trigger's own time zone is ahead of UTC then; `None` without such a zone: the server's local time is told.
    pub utc_offset_secs: Option<i32>,
}

/// The scheduled time, as the reference writes it (1.4).
impl fmt::Display for ScheduledCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", chrono::DateTime::from_timestamp_nanos(self.scheduled_ns))
    }
}

/// What a run is for.
#[derive(Clone, Debug)]
pub enum RunEvent {
    /// Rows were written; in order per table.
    Writes(Vec<TableBatch>),
    /// It is time.
    Schedule(ScheduledCall),
    /// Somebody asks.
    Request(Arc<PluginRequest>),
}

impl RunEvent {
    /// Which entry function it is for.
    pub fn kind(&self) -> TriggerKind {
        match self {
            RunEvent::Writes(_) => TriggerKind::Write,
            RunEvent::Schedule(_) => TriggerKind::Schedule,
            RunEvent::Request(_) => TriggerKind::Request,
        }
    }

    /// The rows that it brings, by table; none if it is of another kind.
    pub fn tables(&self) -> &[TableBatch] {
        match self {
            RunEvent::Writes(tables) => tables,
            RunEvent::Schedule(_) | RunEvent::Request(_) => &[],
        }
    }

    /// How many rows it brings.
    pub fn rows(&self) -> usize {
        self.tables().iter().map(|table| table.batch.rows()).sum()
    }

    /// Bytes that it holds in memory.
    pub fn bytes(&self) -> usize {
        match self {
            RunEvent::Writes(tables) => tables.iter().map(|table| table.batch.bytes()).sum(),
            RunEvent::Schedule(_) => 0,
            RunEvent::Request(request) => request.bytes(),
        }
    }

    /// What is said when its run begins.
    pub fn started(&self) -> Started {
        match self {
            RunEvent::Writes(_) => Started::Write,
            RunEvent::Schedule(call) => Started::Schedule { scheduled_ns: call.scheduled_ns },
            RunEvent::Request(_) => Started::Request,
        }
    }
}

/// One run to be made.
#[derive(Clone)]
pub struct RunRequest {
    /// Identity of the run.
    pub run_id: RunId,
    /// Whose run.
    pub trigger: Arc<Trigger>,
    /// What for.
    pub event: RunEvent,
    /// The trigger's home.
    pub shard: ShardId,
    /// Where it is made.
    pub lane: Lane,
    /// Interrupted when it takes longer.
    pub deadline: Duration,
    /// What it may use.
    pub limits: Limits,
    /// When the last byte of the (oldest) request arrived: activation is measured from here.
    pub received: MonoNs,
    /// How many plugin runs stand between the client's write and this event; 0 for a client's write.
    pub depth: u8,
    /// How often this event was tried before.
    pub attempt: u32,
    /// A test run: this takes the place of the process's host, and catches what the plugin does.
    pub test_host: Option<Arc<dyn PluginHost>>,
    /// The trigger's durable state as the run sees it.
    pub state: Arc<State>,
    /// Whether it is to end early.
    pub stop: Arc<RunStop>,
    /// Whether it can be made in another deferred interpreter.
    pub may_move: bool,
    /// Its trigger's runs take long: in the process lane it gives way to others.
    pub long: bool,
}

/// Lines that a run wants written when it succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedWrite {
    /// The database.
    pub db: Arc<str>,
    /// Line protocol, nanosecond timestamps.
    pub lines: String,
    /// `write_sync(no_sync=True)` of an inline run, which was held: applied at once, and even if the run failed.
    pub no_sync: bool,
}

/// What `write_sync` writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncWrite {
    /// The database.
    pub db: Arc<str>,
    /// Line protocol, nanosecond timestamps.
    pub lines: String,
    /// Done when it is applied, not when it is durable.
    pub no_sync: bool,
    /// Plugin runs between the client's write and this one.
    pub depth: u8,
}

/// A failure in the plugin or in loading it, as plain strings (no Python object leaves its interpreter).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PluginError {
    /// The exception's type name, for instance `KeyError`; `Timeout` and `MemoryError` included.
    pub kind: String,
    /// `"{TypeName}: {message}"` (reference, 1.2).
    pub message: String,
    /// The formatted traceback, or empty.
    pub traceback: String,
}

impl PluginError {
    /// The kind of a run that did not end although it was interrupted, and was left behind.
    pub const STUCK: &str = "PluginStuck";

    /// The kind of a run that was interrupted because the server stops: its trigger is not to blame, and its event not finished.
    pub const STOPPED: &str = "PluginStopped";

    /// The kind of a run that was interrupted because its trigger was deleted, disabled or changed.
    pub const CANCELLED: &str = "PluginCancelled";

    /// The module whose import an interpreter with a GIL of its own has refused, if that was the failure: libraries wrap
    /// CPython's words into their own, so the whole account is searched.
    pub fn refused_import(&self) -> Option<Arc<str>> {
        const WORDS: &str = " does not support loading in subinterpreters";
        if self.kind != "ImportError" {
            return None;
        }
        let account = [&self.message, &self.traceback];
        let before = account.iter().find_map(|text| text.split_once(WORDS))?.0;
        Some(before.rsplit(|c: char| c.is_whitespace()).next().unwrap_or_default().into())
    }
}

/// Why an inline run was discarded. It has left nothing behind, and its event is to be run again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unwound {
    /// It reached for something that can block: what.
    Blocked(Arc<str>),
    /// It needs a module that its interpreter does not have yet, and reading files takes time.
    Import(Arc<str>),
    /// It put something into its cache that no other interpreter can have, or met it there.
    CacheNotPlain,
    /// It was interrupted at its deadline.
    Overran,
    /// It needs a module that does not load in an interpreter with a GIL of its own, and moves to a process.
    ImportRefused(Arc<str>),
    /// A deferred run, not to blame: its interpreter was given up because of another one.
    InterpreterLost,
    /// The server stops, and had no time for it to end.
    Stopped,
    /// Its trigger was changed meanwhile.
    Changed,
    /// It uses something by reference that is in another deferred interpreter.
    LivesIn {
        /// Which.
        room: RoomId,
        /// What.
        what: Arc<str>,
    },
}

impl fmt::Display for Unwound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unwound::Blocked(what) => write!(f, "it reached for what can block: {what}"),
            Unwound::Import(module) => write!(f, "module {module} has to be imported first"),
            Unwound::CacheNotPlain => f.write_str("a cache value cannot move between interpreters"),
            Unwound::Overran => f.write_str("it was interrupted at its deadline"),
            Unwound::ImportRefused(module) => write!(f, "module {module} needs a process of its own"),
            Unwound::Stopped => f.write_str("it was interrupted because the server stops"),
            Unwound::Changed => f.write_str("its trigger was changed while it was under way"),
            Unwound::LivesIn { what, .. } => write!(f, "{what} is in another interpreter"),
            Unwound::InterpreterLost => f.write_str("its interpreter was given up because of another plugin's run"),
        }
    }
}

/// Which code a run had, and what the static check says of it.
#[derive(Clone, Debug)]
pub struct CodeVerdict {
    /// [`PluginCode::hash`]
    pub hash: u64,
    /// Nothing against the inline lane, or what.
    pub inline: Result<(), Arc<str>>,
}

/// What is known of the imports of one version of a plugin, which were tried where nothing else is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportsFound {
    /// A module that does not load in an interpreter with a GIL of its own.
    pub refused: Option<Arc<str>>,
    /// What else is wrong with modules.
    pub troubles: Vec<ImportTrouble>,
    /// Why not all imports were tried, in words: runs find out.
    pub untried: Option<Arc<str>>,
    /// Nothing against the inline lane, or what.
    pub inline: Result<(), Arc<str>>,
}

/// A module that a plugin imports and cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportTrouble {
    /// As the plugin's import statement names it.
    pub module: Arc<str>,
    /// What is wrong with it.
    pub what: ImportFailure,
    /// The plugin catches that, and goes on without it.
    pub caught: bool,
}

/// Why a module cannot be imported in any lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportFailure {
    /// This module, which it is or needs, is not installed.
    Missing(Arc<str>),
    /// Its import raises: what.
    Raises(Arc<str>),
}

/// What came of a run.
pub struct RunReport {
    /// The request, given back.
    pub request: RunRequest,
    /// Success, or why not.
    pub result: Result<(), PluginError>,
    /// To be applied if the run succeeded, but for those that say otherwise.
    pub writes: Vec<QueuedWrite>,
    /// What a request is answered, if the run succeeded.
    pub response: Option<PluginResponse>,
    /// What it changes of its trigger's state, if it succeeded.
    pub state: Vec<StateChange>,
    /// When the plugin's entry function was entered (glossary: activation); `None` if it never was.
    pub entered: Option<MonoNs>,
    /// When it was over.
    pub finished: MonoNs,
    /// Nanoseconds of CPU time that the run cost its thread, whatever the clock says: a machine that is busy makes nobody costly. Of an
    /// inline run that was over within half its budget, the time that passed.
    pub cost_ns: u64,
    /// Its code; `None` if it did not come that far.
    pub code: Option<CodeVerdict>,
    /// The first thing in a deferred run that could have blocked.
    pub reached: Option<Arc<str>>,
    /// If the run was discarded: why. Then `result` is an error that nobody needs to see.
    pub unwound: Option<Unwound>,
    /// What its trigger holds of memory, where that is counted.
    pub memory: Option<MemoryUse>,
}

/// Memory of a trigger in an interpreter, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// After the run.
    pub held: u64,
    /// At most, since the run began.
    pub peak: u64,
}

impl RunReport {
    /// A run that failed before its plugin was entered.
    pub fn not_run(request: RunRequest, error: PluginError, at: MonoNs) -> Self {
        RunReport {
            request,
            result: Err(error),
            writes: Vec::new(),
            response: None,
            state: Vec::new(),
            entered: None,
            finished: at,
            cost_ns: 0,
            code: None,
            reached: None,
            unwound: None,
            memory: None,
        }
    }
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// `INFO`
    Info,
    /// `WARN`
    Warn,
    /// `ERROR`
    Error,
}

impl LogLevel {
    /// The text in `system.processing_engine_logs`.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Info => "INFO",
            LogLevel::Warn => "WARN",
            LogLevel::Error => "ERROR",
        }
    }
}

/// One line for `system.processing_engine_logs`.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// The trigger's database.
    pub db: Arc<str>,
    /// The trigger.
    pub trigger: Arc<str>,
    /// The run.
    pub run_id: RunId,
    /// Severity.
    pub level: LogLevel,
    /// What is said.
    pub text: LogText,
}

/// What a log line says. What the engine says of every run is put into words by the reader, not on the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogText {
    /// A plugin's own words, or a failure with its traceback.
    Said(String),
    /// A run begins.
    RunStarted(Started),
    /// A run ended well after so long.
    RunFinished(Duration),
}

/// What a run begins for, as far as the log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Started {
    /// Rows were written.
    Write,
    /// It is time.
    Schedule {
        /// [`ScheduledCall::scheduled_ns`]
        scheduled_ns: i64,
    },
    /// Somebody asks.
    Request,
}

/// The text of the reference, 1.4.
impl fmt::Display for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Started::Write => f.write_str("starting execution of wal plugin."),
            Started::Schedule { scheduled_ns } => {
                let time = chrono::DateTime::from_timestamp_nanos(*scheduled_ns);
                write!(f, "starting execution with scheduled time {time}")
            }
            Started::Request => f.write_str("starting execution of request plugin."),
        }
    }
}

/// What the engine keeps of a run, and of each change of a trigger's lane: a row of `system.trigger_runs`.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// The trigger's database.
    pub db: Arc<str>,
    /// The trigger.
    pub trigger: Arc<str>,
    /// The lane of the run; the new lane of a decision.
    pub lane: Lane,
    /// What it is about.
    pub what: RunOutcome,
}

/// What became of a run.
#[derive(Clone, Debug)]
pub enum RunOutcome {
    /// A run that counts.
    Ended {
        /// The run.
        run_id: RunId,
        /// How often the event had failed before.
        attempt: u32,
        /// Rows that the plugin was given.
        rows: usize,
        /// When the last byte of the write was received that it is for; `None` of schedules, requests and what was read back.
        received: Option<MonoNs>,
        /// Nanoseconds from the last byte of the request to the entry of the plugin, if it was entered.
        activation_ns: Option<u64>,
        /// Nanoseconds from entry to end.
        run_ns: u64,
        /// Memory of the trigger, where it is counted.
        memory: Option<MemoryUse>,
        /// The error's text, if it failed.
        error: Option<String>,
    },
    /// A run that left nothing behind; its event is run again.
    Discarded {
        /// The run.
        run_id: RunId,
        /// Why.
        why: Unwound,
    },
    /// The policy has changed the trigger's lane.
    Decided(Decision),
}

/// What plugins reach outside themselves; implemented by `server`.
pub trait PluginHost: Send + Sync {
    /// A shard does not come back from an inline run: told once a run, always before its [`PluginHost::stall_over`], by the
    /// same thread. Never blocks.
    fn stalled(&self, _stall: &Stall) {}

    /// Puts the code of a stall into quarantine: told once a run, by a thread of its own. May block, also for longer than the
    /// stall lasts: when it returns, the code is in quarantine whatever becomes of the process.
    fn quarantine(&self, _stall: &Stall) {}

    /// The shard has come back.
    fn stall_over(&self, _shard: ShardId) {}

    /// The process has lost something that only a restart brings back: what. Never blocks.
    fn ask_restart(&self, _reason: String) {}

    /// Whether code of this content hash has held up a shard before. Never blocks.
    fn quarantined(&self, _code: u64) -> bool {
        false
    }

    /// Whether a database of this name was created, and not only written to. Never blocks.
    fn was_created(&self, _db: &str) -> bool {
        true
    }

    /// Keeps a log line. Lock-free, never blocks; lines that find no room are counted.
    fn log(&self, line: LogLine);

    /// Keeps a record of a run. Lock-free, never blocks; the oldest make room.
    fn record(&self, record: RunRecord);

    /// Disables a trigger that failed, for good: its user enables it again. Never blocks; the shard has stopped running it.
    fn disable(&self, trigger: &TriggerDef, reason: String);

    /// Runs SQL and waits for the whole result. Blocks: not for the inline lane.
    ///
    /// # Errors
    /// The text of the failure as the reference, 1.4, gives it.
    fn query(&self, db: &str, sql: &str, params: &[(String, QueryParam)]) -> Result<Vec<RecordBatch>, String>;

    /// The same, but no longer than somebody wants the result: a host that can ends the query when `wanted` says no, which is
    /// asked now and then.
    ///
    /// # Errors
    /// As for [`PluginHost::query`], or that it is not wanted any more.
    fn query_while(
        &self,
        db: &str,
        sql: &str,
        params: &[(String, QueryParam)],
        _wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<RecordBatch>, String> {
        self.query(db, sql, params)
    }

    /// Writes and waits. Blocks: not for the inline lane.
    ///
    /// # Errors
    /// The cause as the reference, 1.4, gives it.
    fn write(&self, write: SyncWrite) -> Result<(), String>;

    /// Whether all of a write would go to tables of this shard, and would be taken as things are. Never blocks: on the shard's thread.
    ///
    /// # Errors
    /// The cause, as of [`PluginHost::write`].
    fn check_write(&self, shard: ShardId, db: &str, lines: &str) -> Result<bool, String>;
}

/// A shard that does not come back from an inline run, which cannot be interrupted.
#[derive(Clone, Copy, Debug)]
pub struct Stall {
    /// Which shard.
    pub shard: ShardId,
    /// Whose run.
    pub trigger: TriggerId,
    /// The run.
    pub run_id: RunId,
    /// Content hash of its code.
    pub code: u64,
    /// Since its begin.
    pub lasts: Duration,
}

/// Where a finished run of the deferred or the process lane is reported; implemented by `shards`. Never blocks.
pub trait Completions: Send + Sync {
    /// Takes the report of a run that was accepted by [`ShardPlugins::submit`].
    fn completed(&self, report: RunReport);

    /// It is time to ask [`ShardPlugins::ready_inline`] and [`ShardPlugins::ready_deferred`] again.
    fn prepared(&self);
}

/// Whether a trigger can be run inline now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// Not yet: it is being prepared on another thread, and [`Completions::prepared`] will be called.
    Wait,
    /// Not as it is: its cache holds what no other interpreter can have, for this reason.
    CacheNotPlain(Arc<str>),
}

/// Whether a deferred run can be submitted now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seated {
    /// It can.
    Ready {
        /// The interpreter that its trigger should have for itself has others as well.
        crowded: bool,
    },
    /// Not yet: its cache is on the way, or there is no room; [`Completions::prepared`] will be called, or a run will end.
    Wait,
    /// It cannot be moved out of where it is.
    Stays(Seat, Arc<str>),
}

/// A shard's interpreters; lives on the shard's thread and never leaves it.
pub trait ShardPlugins {
    /// Whether `trigger` can be run inline without reading files or compiling on this thread. If not, has it prepared.
    /// Only while no run of it is under way: its cache comes along.
    fn ready_inline(&mut self, trigger: &Trigger) -> Readiness;

    /// Whether a run of `trigger` can be submitted to a deferred interpreter, and moves the trigger to the one of `seat` if it is not
    /// there and `alone`, which is to say while no run of it is under way. `cost_ns` is what an event of it takes.
    fn ready_deferred(&mut self, trigger: &Trigger, seat: Seat, cost_ns: u64, alone: bool) -> Seated;

    /// Runs on this thread, now, and returns within about the request's deadline.
    fn run_inline(&mut self, request: RunRequest) -> RunReport;

    /// Hands the run to the shard's deferred workers, or to the trigger's worker process: `request.lane` says which.
    ///
    /// # Errors
    /// The request, when the bounded queue is full; the caller keeps it and tries again after a completion.
    fn submit(&mut self, request: RunRequest) -> Result<(), Box<RunRequest>>;

    /// What is known of the imports of a version of a plugin, by [`PluginCode::hash`], if they were tried. Never blocks.
    fn imports_of(&self, _code: u64) -> Option<Arc<ImportsFound>> {
        None
    }

    /// The trigger was disabled or deleted: what its cache holds is dropped. Never blocks.
    fn forget(&mut self, _trigger: TriggerId) {}

    /// [`RunRequest::stop`] was set for runs under way: whoever makes them is told, and reports them soon, with
    /// [`PluginError::CANCELLED`] if they have not ended by themselves. Never blocks.
    fn stop_runs(&mut self) {}

    /// No run is made any more: what caches hold is kept for the next start, as far as it can be. Waits for workers, shortly.
    fn rest(&mut self) {}
}

/// The process's Python; implemented by `python-bridge`.
pub trait PluginRuntime: Send + Sync {
    /// Makes a shard's interpreters. Called once per shard, on the shard's thread.
    ///
    /// # Errors
    /// What Python said.
    fn attach(&self, shard: ShardId, completions: Arc<dyn Completions>) -> Result<Box<dyn ShardPlugins>, PluginError>;

    /// Interrupts what still runs and waits for the workers, at most `within`. Interpreters are not destroyed.
    fn stop(&self, within: Duration);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_run_is_said_as_the_reference_does() {
        let at = |scheduled_ns| Started::Schedule { scheduled_ns }.to_string();
        assert_eq!(Started::Write.to_string(), "starting execution of wal plugin.");
        assert_eq!(at(1_767_225_600_000_000_000), "starting execution with scheduled time 2026-01-01 00:00:00 UTC");
        assert_eq!(at(1_767_225_600_001_000_000), "starting execution with scheduled time 2026-01-01 00:00:00.001 UTC");
        assert_eq!(Started::Request.to_string(), "starting execution of request plugin.");
    }

    #[test]
    fn a_refused_import_is_found_behind_a_librarys_own_words() {
        let error = |kind: &str, message: &str, traceback: &str| PluginError {
            kind: kind.into(),
            message: message.into(),
            traceback: traceback.into(),
        };
        let refused = "module numpy._core._multiarray_umath does not support loading in subinterpreters";
        let module = Some("numpy._core._multiarray_umath".into());
        assert_eq!(error("ImportError", &format!("ImportError: {refused}"), "").refused_import(), module);
        assert_eq!(
            error("ImportError", "ImportError: IMPORTANT: PLEASE READ THIS", &format!("x\nImportError: {refused}\n"))
                .refused_import(),
            module
        );
        assert_eq!(error("ImportError", "ImportError: no such name", "").refused_import(), None);
        assert_eq!(error("ValueError", &format!("ValueError: {refused}"), "").refused_import(), None);
    }
}
