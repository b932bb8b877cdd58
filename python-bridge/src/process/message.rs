//! What server and worker say to each other. Rows, bodies and results of queries are attached to the messages
//! ([`super::channel::Attached`]).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use saltus_core::limits::PLUGIN_FILE_RACY_MS;
use saltus_core::ports::{LogLevel, PluginError, PluginFolder, ScheduledCall};
use saltus_core::query_param::QueryParam;
use saltus_core::trigger::{ApiSettings, Limits, MissingColumns};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::memory::Segment;
use super::rows;
use crate::global_cache::Found;
use crate::interpreter::Surroundings;

/// Bytes, taken as a whole and not one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

/// From the server to the thread that makes runs, over a connection of its own.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// A run to be made; only when the one before is finished. What is attached are its rows, or the body of its request.
    Run(Box<Run>),
    /// What can be kept of the trigger's cache is to be given; only between runs. Answered by [`FromWorker::Kept`].
    GiveCache,
}

/// From the server to the worker's other thread. If one is lost the connection is, and with it the worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first message, with the worker's end of the connection for orders.
    Hello {
        /// The server's process id: another parent means that the server is gone.
        server: u32,
        /// As every interpreter's.
        surroundings: Surroundings,
        /// Bytes beyond what the worker has when it is ready.
        memory_max: Option<u64>,
    },
    /// The answer to [`FromWorker::Query`], with the bytes of the batches.
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

/// A run.
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
    pub api: Api,
    /// Of its schedule, if that names local times.
    pub time_zone: Option<String>,
    /// The trigger's durable state; left out when the worker has this revision from the run before.
    pub state: Option<Vec<(String, String)>>,
    pub state_revision: u64,
    /// What an earlier life or an earlier worker has kept of the trigger's cache; with the first run only.
    pub cache: Option<Blob>,
    /// The plugin's file as it was when its code was looked up, if it is one. If it is another one by now, the worker makes no run
    /// and says [`FromWorker::Changed`]. Left out where the server has looked just now.
    pub unless_changed: Option<PluginFile>,
}

/// What tells that a plugin's file has changed without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginFile {
    path: PathBuf,
    inode: u64,
    length: u64,
    /// When it was changed, or its name or its time stamps, which nobody can set: seconds and nanoseconds.
    changed: (i64, i64),
}

impl PluginFile {
    /// The file as it is now; `None` if it is not there.
    pub fn look(path: &Path) -> Option<Self> {
        let seen = std::fs::metadata(path).ok()?;
        let changed = (seen.ctime(), seen.ctime_nsec());
        Some(PluginFile { path: path.to_owned(), inode: seen.ino(), length: seen.len(), changed })
    }

    /// Whether it is the same now.
    pub fn is_as_it_was(&self) -> bool {
        PluginFile::look(&self.path).as_ref() == Some(self)
    }

    /// Whether it was changed so long before an instant that its next change cannot look the same.
    pub fn is_older_than(&self, at: SystemTime) -> bool {
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(self.changed.0).unwrap_or_default());
        at.duration_since(changed).is_ok_and(|age| age >= Duration::from_millis(PLUGIN_FILE_RACY_MS))
    }
}

/// [`ApiSettings`], but for what the server looks at.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Api {
    pub missing_columns: MissingColumns,
}

impl From<ApiSettings> for Api {
    fn from(ApiSettings { missing_columns, .. }: ApiSettings) -> Self {
        Api { missing_columns }
    }
}

impl From<Api> for ApiSettings {
    fn from(Api { missing_columns }: Api) -> Self {
        ApiSettings { missing_columns, ..ApiSettings::default() }
    }
}

/// A plugin's source, and what was found out about it in the server.
#[derive(Debug, Serialize, Deserialize)]
pub struct Code {
    pub source: String,
    pub directory: Option<PluginFolder>,
    /// The marshalled code object, or why it does not compile.
    pub compiled: Result<Blob, Failure>,
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
    /// Somebody asks; what is attached is the body.
    Request(Box<Request>),
}

/// One table's rows.
#[derive(Debug, Serialize, Deserialize)]
pub struct Table {
    pub name: String,
    /// The write's epoch, shard and sequence.
    pub id: (u32, u16, u64),
    pub rows: rows::Layout,
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
        text: String,
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
    /// A piece of it, which is attached; likewise.
    Piece {
        /// Which run.
        run_id: u64,
    },
    /// The plugin's file is not what the order says: nothing of the run was made.
    Changed {
        /// Which run.
        run_id: u64,
    },
    /// The run is over; what is attached is the body of the response.
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
