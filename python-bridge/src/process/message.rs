//! What server and worker say to each other. Rows and results of queries are beside the messages, in shared memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use saltus_core::ports::{LogLevel, LogText, PluginError, PluginFolder, ScheduledCall, Started};
use saltus_core::query_param::QueryParam;
use saltus_core::trigger::{ApiSettings, Limits};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::memory::Segment;
use crate::global_cache::Found;
use crate::interpreter::Surroundings;

/// Bytes as base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Blob).map_err(serde::de::Error::custom)
    }
}

/// From the server. If one is lost the connection is, and with it the worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first message.
    Hello {
        /// The server's process id: another parent means that the server is gone.
        server: u32,
        /// As every interpreter's.
        surroundings: Surroundings,
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
    /// The last piece of a streamed answer is on its way.
    Room {
        /// Which run.
        run_id: u64,
        /// Nobody takes further ones.
        gone: bool,
    },
    /// The answer to [`FromWorker::Write`].
    Written {
        /// Which write.
        id: u64,
        /// Why it was not taken.
        result: Result<(), String>,
    },
    /// The answer to [`FromWorker::Cache`].
    Cached {
        /// Which question.
        id: u64,
        /// What the global cache said.
        said: CacheSaid,
    },
    /// What can be kept of the trigger's cache is to be given; only between runs. Answered by [`FromWorker::Kept`].
    GiveCache,
    /// The server stops: what runs is to be interrupted.
    Interrupt,
}

/// What a plugin does with the global cache.
#[derive(Debug, Serialize, Deserialize)]
pub enum CacheAsk {
    /// See [`crate::global_cache::Store::get`].
    Get {
        /// The key.
        key: String,
        /// The version that is known.
        known: Option<u64>,
    },
    /// See [`crate::global_cache::Store::put`].
    Put {
        /// The key.
        key: String,
        /// The value, if it is plain.
        value: Option<Blob>,
        /// When it expires.
        expiry: Option<u64>,
    },
    /// See [`crate::global_cache::Store::delete`].
    Delete {
        /// The key.
        key: String,
    },
}

/// What the global cache says.
#[derive(Debug, Serialize, Deserialize)]
pub enum CacheSaid {
    /// To `Get`: the known value is the newest.
    Same,
    /// To `Get`: there is a newer one.
    Newer {
        /// For `marshal`.
        value: Blob,
        /// When it expires.
        expiry: Option<u64>,
        /// Its version.
        version: u64,
    },
    /// To `Get`: there is none.
    Nothing,
    /// To `Get`: a live object, and where it is.
    Elsewhere {
        /// The number of the deferred interpreter, if it is in one.
        room: Option<u32>,
        /// In words.
        place: String,
    },
    /// To `Put`: its version.
    Put(u64),
    /// To `Delete`: whether there was one.
    Deleted(bool),
}

impl From<Found> for CacheSaid {
    fn from(found: Found) -> Self {
        match found {
            Found::Same => CacheSaid::Same,
            Found::Newer { bytes, expiry, version } => CacheSaid::Newer { value: Blob(bytes), expiry, version },
            Found::Nothing => CacheSaid::Nothing,
            Found::Elsewhere { room, place } => CacheSaid::Elsewhere { room: room.map(|room| room.0), place },
        }
    }
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
    pub long: bool,
    pub api: ApiSettings,
    /// Of its schedule, if that names local times.
    pub time_zone: Option<String>,
    /// The trigger's durable state; left out when the worker has this revision from the run before.
    pub state: Option<Vec<(String, String)>>,
    pub state_revision: u64,
    /// What an earlier life or an earlier worker has kept of the trigger's cache; with the first run only.
    pub cache: Option<Blob>,
}

/// A plugin's source, and what was found out about it in the server.
#[derive(Debug, Serialize, Deserialize)]
pub struct Code {
    pub source: String,
    pub directory: Option<PluginFolder>,
    /// The marshalled code object, or why it does not compile.
    pub compiled: Result<Vec<u8>, Failure>,
    /// Nobody can tell kept globals from fresh ones.
    pub reusable: bool,
}

/// What a run is for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// Rows were written.
    Writes(Vec<Table>),
    /// It is time.
    Schedule(ScheduledCall),
    /// Somebody asks; the memory file is the body, if there is any.
    Request(Box<Request>),
}

/// One table's rows.
#[derive(Debug, Serialize, Deserialize)]
pub struct Table {
    pub name: String,
    /// The write's epoch, shard and sequence.
    pub id: (u32, u16, u64),
    pub rows: Segment,
    pub all_columns: Option<Vec<String>>,
}

/// A [`saltus_core::request::PluginRequest`] without its body.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub tail: Option<String>,
    pub query_string: String,
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub peer: Option<SocketAddr>,
    /// The answer may be streamed.
    pub streams: bool,
}

/// A [`saltus_core::request::PluginResponse`] without its body.
#[derive(Debug, Serialize, Deserialize)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// The body goes in pieces, or has gone.
    pub streamed: bool,
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
        params: Vec<(String, QueryParam)>,
    },
    /// Rows to be written now; answered by [`ToWorker::Written`].
    Write {
        /// Its number in this worker.
        id: u64,
        /// The database.
        db: String,
        /// Line protocol.
        lines: String,
        /// Done when it is applied.
        no_sync: bool,
    },
    /// Something about the global cache; answered by [`ToWorker::Cached`].
    Cache {
        /// Its number in this worker.
        id: u64,
        /// What.
        ask: CacheAsk,
    },
    /// What can be kept of the trigger's cache, and the keys of the rest.
    Kept {
        /// For `marshal`.
        cache: Blob,
        /// Live objects.
        live: Vec<String>,
    },
    /// A streamed answer begins; answered by [`ToWorker::Room`].
    Stream {
        /// Which run.
        run_id: u64,
        /// Status and headers.
        response: Response,
    },
    /// A piece of it, with its memory file; likewise.
    Piece {
        /// Which run.
        run_id: u64,
    },
    /// The run is over; the memory file is the body of the response, if there is any.
    Finished {
        /// Which run.
        run_id: u64,
        /// How it ended.
        result: Result<(), Failure>,
        /// Databases, and lines to be written to them.
        writes: Vec<(String, String)>,
        /// What a request is answered.
        response: Option<Response>,
        /// What it changes of its trigger's state.
        state: Vec<(String, Option<String>)>,
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
    RunStarted(Started),
    RunFinished(std::time::Duration),
}

impl From<LogText> for Text {
    fn from(text: LogText) -> Self {
        match text {
            LogText::Said(text) => Text::Said(text),
            LogText::RunStarted(started) => Text::RunStarted(started),
            LogText::RunFinished(took) => Text::RunFinished(took),
        }
    }
}

impl From<Text> for LogText {
    fn from(text: Text) -> Self {
        match text {
            Text::Said(text) => LogText::Said(text),
            Text::RunStarted(started) => LogText::RunStarted(started),
            Text::RunFinished(took) => LogText::RunFinished(took),
        }
    }
}
