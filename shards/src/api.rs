//! What the composition sees of the engine: values in, values out.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use saltus_core::ids::{MonoNs, ShardId};
use saltus_core::line_protocol::{LineError, Precision};
use saltus_core::names::NewTableError;
use saltus_core::policy::{Lane, seat::Seat};
use saltus_core::ports::{MemoryUse, Trigger};
use saltus_core::trigger::Limits;

use crate::latencies::Latencies;

/// Everything the engine needs to start.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// One shard per CPU named, in this order; `None` leaves the shard unpinned.
    pub cpus: Vec<Option<usize>>,
    /// Whether a shard polls for work instead of sleeping, for each of `cpus`; a shard that is not there sleeps.
    pub busy_poll: Vec<bool>,
    /// Where logs live; locked while the engine runs.
    pub data_dir: PathBuf,
    /// Where connections are accepted.
    pub http_bind: SocketAddr,
    /// Bytes of batches under way to one shard.
    pub mailbox_bytes: usize,
    /// Bytes of one WAL segment.
    pub wal_segment_bytes: u64,
    /// Start although a corrupt range of the log has to be left out.
    pub accept_loss: bool,
    /// Rows of one plugin run.
    pub run_rows_max: usize,
    /// Deadline of inline runs.
    pub inline_deadline: Duration,
    /// A task that holds its shard for so long is a stall.
    pub loop_stall: Duration,
    /// What runs may use, where their triggers do not say.
    pub limits: Limits,
    /// Bytes of events by which a trigger may lag, read from the log when it comes to them; what is beyond is a dead letter.
    pub lag_bytes: u64,
}

/// A client's write.
#[derive(Clone, Debug)]
pub struct WriteRequest {
    /// The database, its name checked.
    pub db: Arc<str>,
    /// Line protocol.
    pub body: Bytes,
    /// Unit of the timestamps.
    pub precision: Precision,
    /// Keep the good lines when some are bad.
    pub accept_partial: bool,
    /// Answer after apply, before the log is durable.
    pub no_sync: bool,
    /// When the last byte of the request was there.
    pub received: MonoNs,
}

/// What came of a write.
#[derive(Clone, Debug)]
pub enum WriteOutcome {
    /// Every line was taken (and is durable, unless `no_sync`).
    Written {
        /// Rows taken.
        rows: usize,
    },
    /// `accept_partial`: the good lines were taken (perhaps none), these were not.
    Partial {
        /// Rows taken.
        rows: usize,
        /// The first of the rejected lines, by line number.
        rejected: Vec<LineError>,
        /// How many lines were rejected in all.
        rejected_count: usize,
    },
    /// Not `accept_partial`: nothing was taken because of this line.
    Rejected(LineError),
    /// The body has no line that is neither blank nor a comment.
    Empty,
    /// A mailbox is full: the client should come again.
    Busy {
        /// What was full.
        what: String,
        /// When to come again.
        retry_after: Duration,
    },
    /// The shard that owns the table takes no writes (poisoned log, no space, stopping).
    Unavailable {
        /// Why, for the client and `/health`.
        reason: String,
    },
}

/// Why a table could not be made or dropped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TableError {
    /// A table of that name exists.
    #[error("attempted to create a resource that already exists: table '{table}' of database '{db}'")]
    Exists {
        /// Its database.
        db: String,
        /// Its name.
        table: String,
    },
    /// There is none of that name.
    #[error("Table not found {0}")]
    NotFound(String),
    /// The columns break a rule; the text says which.
    #[error("{0}")]
    Invalid(String),
    /// A limit is met; the text is the reference's, 6.6.
    #[error("{0}")]
    Limit(String),
    /// The owner takes no writes.
    #[error("{0}")]
    Unavailable(String),
}

impl From<NewTableError> for TableError {
    fn from(error: NewTableError) -> Self {
        match error {
            NewTableError::Invalid(text) => TableError::Invalid(text),
            NewTableError::TooManyColumns(text) => TableError::Limit(text),
        }
    }
}

/// Counters and histograms of one shard, at one moment.
#[derive(Clone, Debug)]
pub struct ShardStats {
    /// Which.
    pub shard: ShardId,
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
    /// Open connections.
    pub connections: u64,
    /// Counters since start, by metric name without prefix: `rows_written_total`, `lines_rejected_total` ...
    pub counters: Vec<(&'static str, u64)>,
    /// Gauges, likewise: `mailbox_bytes`, `tables`, `table_bytes` ...
    pub gauges: Vec<(&'static str, f64)>,
    /// Nanoseconds from append to durable, per round.
    pub commit_ns: Histogram<u64>,
    /// Nanoseconds that one task held the shard, per turn: nothing else happened on it meanwhile.
    pub turn_ns: Histogram<u64>,
    /// All turns together.
    pub busy: Duration,
    /// CPU time of its thread, system calls included.
    pub cpu_time: Duration,
    /// Turns as long as [`EngineConfig::loop_stall`].
    pub stalls: u64,
    /// Why it takes no writes until a restart, if so.
    pub poisoned: Option<String>,
    /// What its disk lacks, if it takes no writes for that; it goes on by itself.
    pub short: Option<String>,
}

/// What changes of the triggers in force: those that are enabled. The first change of a life brings all of them.
#[derive(Default)]
pub struct TriggersChange {
    /// Those that are not in force any more as they were: disabled, deleted or changed.
    pub gone: Vec<Arc<Trigger>>,
    /// Those that come into force, or are changed, as they are from now on.
    pub come: Vec<Arc<Trigger>>,
}

/// Counters and histograms of one trigger, at one moment. Nanoseconds.
#[derive(Clone)]
pub struct TriggerStats {
    /// The trigger.
    pub trigger: Arc<Trigger>,
    /// Its home.
    pub home: ShardId,
    /// Last byte of the request received, or the time of the schedule, to plugin entered.
    pub activation_ns: Latencies,
    /// Event handed over, to plugin entered.
    pub queue_ns: Latencies,
    /// Plugin entered, to returned.
    pub run_ns: Latencies,
    /// Last byte of the request received, to its answer; of request triggers.
    pub response_ns: Latencies,
    /// Runs finished.
    pub runs: u64,
    /// Runs that failed.
    pub errors: u64,
    /// Rows handed to runs.
    pub rows: u64,
    /// Events given up because the backlog was full.
    pub events_dropped: u64,
    /// Events that were tried again after a failure, once per time.
    pub retries: u64,
    /// Events given up because they failed too often.
    pub events_failed: u64,
    /// Inline runs that were discarded, their events to be run again.
    pub discarded: u64,
    /// The lane of the next run.
    pub lane: Lane,
    /// Why it is that lane.
    pub lane_reason: String,
    /// Which interpreter its deferred runs take; `None` in other lanes.
    pub seat: Option<Seat>,
    /// For how long it has been.
    pub lane_for: Duration,
    /// What keeps the trigger out of the inline lane for now.
    pub lane_barred: Option<String>,
    /// Bytes of memory that it holds, where they are counted: after its last run, and at most.
    pub memory: Option<MemoryUse>,
    /// How often a run waited for the trigger's share of CPU time.
    pub cpu_waits: u64,
    /// The last failure's text.
    pub last_error: Option<String>,
    /// Events waiting.
    pub backlog_events: u64,
    /// Where it is in its schedule, if it has one.
    pub schedule: Option<ScheduleStats>,
}

/// Where a trigger is in its schedule. Nanoseconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub struct ScheduleStats {
    /// The last time that was run.
    pub last_ns: Option<i64>,
    /// The next one; `None` if there is none.
    pub next_ns: Option<i64>,
    /// Times that were passed over in this life of the process.
    pub missed: u64,
}

/// Whether the engine serves.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Empty when all is well; else one reason per shard that does not take writes.
    pub reasons: Vec<String>,
}
