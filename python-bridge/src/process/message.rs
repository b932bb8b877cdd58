//! What server and worker say to each other. Rows and results of queries are beside the messages, in shared memory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use saltus_core::ports::{LogLevel, LogText, PluginError};
use saltus_core::trigger::Limits;
use serde::{Deserialize, Serialize};

use super::memory::Segment;

/// From the server. If one is lost the connection is, and with it the worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first message.
    Hello {
        /// The server's process id: another parent means that the server is gone.
        server: u32,
        /// Added to `sys.path`.
        site_packages: Vec<String>,
        /// Bytes beyond what the worker has when it is ready.
        memory_max: Option<u64>,
    },
    /// A run to be made; only when the one before is finished.
    Run(Box<Run>),
    /// The answer to [`FromWorker::Query`], with its memory file.
    Answer {
        /// Which query.
        id: u64,
        /// Where the batches lie, or why there are none.
        result: Result<Vec<Segment>, String>,
    },
    /// The server stops: what runs is to be interrupted.
    Interrupt,
}

/// A run, with the memory file of its rows.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    pub run_id: u64,
    pub shard: u16,
    pub trigger_id: u64,
    pub trigger: String,
    pub db: String,
    pub plugin_filename: String,
    pub arguments: Option<BTreeMap<String, String>>,
    pub code_hash: u64,
    /// Left out when the worker has it from the run before.
    pub code: Option<Code>,
    pub event: Event,
    pub deadline_ns: u64,
    pub limits: Limits,
    pub received_ns: u64,
    pub depth: u8,
    pub attempt: u32,
}

/// A plugin's source, and what was found out about it in the server.
#[derive(Debug, Serialize, Deserialize)]
pub struct Code {
    pub source: String,
    pub directory: Option<PathBuf>,
    /// The marshalled code object, or why it does not compile.
    pub compiled: Result<Vec<u8>, Failure>,
    /// Nobody can tell kept globals from fresh ones.
    pub reusable: bool,
}

/// What a run is for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// Rows were written: the tables, each with the write's id (epoch, shard, sequence) and its segment.
    Writes(Vec<(String, (u32, u16, u64), Segment)>),
}

/// From the worker. If one is lost the connection is, and with it the run.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// Python is up.
    Ready,
    /// Python could not be brought up; the last message.
    Refused(Failure),
    /// A log line of a run, which may be over.
    Log {
        /// The run.
        run_id: u64,
        /// Severity.
        level: Level,
        /// What is said.
        text: Text,
    },
    /// SQL to be run; answered by [`ToWorker::Answer`].
    Query {
        /// Its number in this worker.
        id: u64,
        /// The database.
        db: String,
        /// The statement.
        sql: String,
        /// Its parameters.
        params: Vec<(String, String)>,
    },
    /// The run is over.
    Finished {
        /// Which run.
        run_id: u64,
        /// How it ended.
        result: Result<(), Failure>,
        /// Databases, and lines to be written to them.
        writes: Vec<(String, String)>,
        /// When the entry function was entered.
        entered_ns: Option<u64>,
        /// When it was over.
        finished_ns: u64,
        /// CPU time of its thread.
        cost_ns: u64,
    },
}

/// A [`PluginError`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Failure {
    pub kind: String,
    pub message: String,
    pub traceback: String,
}

impl From<PluginError> for Failure {
    fn from(PluginError { kind, message, traceback }: PluginError) -> Self {
        Failure { kind, message, traceback }
    }
}

impl From<Failure> for PluginError {
    fn from(Failure { kind, message, traceback }: Failure) -> Self {
        PluginError { kind, message, traceback }
    }
}

/// A [`LogLevel`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Level {
    Info,
    Warn,
    Error,
}

impl From<LogLevel> for Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Info => Level::Info,
            LogLevel::Warn => Level::Warn,
            LogLevel::Error => Level::Error,
        }
    }
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error => LogLevel::Error,
        }
    }
}

/// A [`LogText`].
#[derive(Debug, Serialize, Deserialize)]
pub enum Text {
    Said(String),
    RunStarted,
    RunFinished(std::time::Duration),
}

impl From<LogText> for Text {
    fn from(text: LogText) -> Self {
        match text {
            LogText::Said(text) => Text::Said(text),
            LogText::RunStarted => Text::RunStarted,
            LogText::RunFinished(took) => Text::RunFinished(took),
        }
    }
}

impl From<Text> for LogText {
    fn from(text: Text) -> Self {
        match text {
            Text::Said(text) => LogText::Said(text),
            Text::RunStarted => LogText::RunStarted,
            Text::RunFinished(took) => LogText::RunFinished(took),
        }
    }
}
