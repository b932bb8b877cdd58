//! Start, use and stop of the engine.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use saltus_core::catalog::TableInfo;
use saltus_core::ids::{MonoNs, ShardId};
use saltus_core::ports::{PluginHost, PluginRuntime, Trigger};
use saltus_core::schema::ColumnDef;

use crate::api::{EngineConfig, Health, ShardStats, TableError, TriggerStats, WriteOutcome, WriteRequest};

/// A future that stays on its shard.
pub type LocalBoxFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// A connection, on its shard; `AsyncRead + AsyncWrite` of `futures-io`.
pub struct ShardStream {}

/// What is done with a connection; implemented by `server`.
pub trait ConnectionService: Send + Sync {
    /// Serves one connection until it ends; runs on the shard's thread.
    fn serve(&self, shard: ShardHandle, stream: ShardStream, peer: SocketAddr) -> LocalBoxFuture<()>;
}

/// The engine, seen from any thread.
#[derive(Clone)]
pub struct EngineHandle {}

/// A table's rows at one moment.
#[derive(Clone)]
pub struct TableSnapshot {}

impl EngineHandle {
    /// How many shards.
    pub fn shards(&self) -> usize {
        unimplemented!()
    }
    /// Databases that have at least one table, sorted.
    pub fn databases(&self) -> Vec<Arc<str>> {
        unimplemented!()
    }
    /// The tables of a database, sorted by name.
    pub fn tables(&self, _db: &str) -> Vec<TableInfo> {
        unimplemented!()
    }
    /// One table.
    pub fn table(&self, _db: &str, _name: &str) -> Option<TableInfo> {
        unimplemented!()
    }
    /// The rows of a table as of now: every acknowledged write is in it.
    pub async fn snapshot(&self, _table: &TableInfo) -> Result<TableSnapshot, TableError> {
        unimplemented!()
    }
    /// Makes an empty table; durable when it returns.
    pub async fn create_table(
        &self,
        _db: &str,
        _name: &str,
        _columns: Vec<ColumnDef>,
    ) -> Result<TableInfo, TableError> {
        unimplemented!()
    }
    /// Drops a table; durable when it returns.
    pub async fn drop_table(&self, _db: &str, _name: &str) -> Result<(), TableError> {
        unimplemented!()
    }
    /// Replaces the set of enabled triggers on all shards; in force when it returns. A trigger whose id stays keeps its
    /// backlog and statistics.
    pub async fn set_triggers(&self, _triggers: Vec<Arc<Trigger>>) {
        unimplemented!()
    }
    /// Statistics of all triggers in force.
    pub async fn trigger_stats(&self) -> Vec<TriggerStats> {
        unimplemented!()
    }
    /// Statistics of all shards.
    pub async fn shard_stats(&self) -> Vec<ShardStats> {
        unimplemented!()
    }
    /// Whether all shards take writes.
    pub fn health(&self) -> Health {
        unimplemented!()
    }
    /// A write from any thread (the engine's own and the tokio side's): waits for room instead of `Busy`.
    pub async fn write(&self, _request: WriteRequest) -> WriteOutcome {
        unimplemented!()
    }
}

/// A shard, seen from its own thread.
#[derive(Clone)]
pub struct ShardHandle {
    _not_send: std::rc::Rc<()>,
}

impl ShardHandle {
    /// Which.
    pub fn id(&self) -> ShardId {
        unimplemented!()
    }
    /// The whole engine.
    pub fn engine(&self) -> &EngineHandle {
        unimplemented!()
    }
    /// Parses, routes, logs and applies a client's write.
    pub async fn write(&self, _request: WriteRequest) -> WriteOutcome {
        unimplemented!()
    }
    /// Runs a task on this shard; a panic in it is contained and counted.
    pub fn spawn(&self, _task: impl Future<Output = ()> + 'static) {
        unimplemented!()
    }
    /// Waits on the shard's timer. The future is not `Send`.
    pub async fn sleep(&self, _time: Duration) {
        unimplemented!()
    }
    /// Whether the engine is stopping: finish the request in hand and close.
    pub fn stopping(&self) -> bool {
        unimplemented!()
    }
    /// Resolves when the engine starts to stop.
    pub async fn stopped(&self) {
        unimplemented!()
    }
}

/// Nanoseconds of the monotonic clock now.
pub fn mono_now() -> MonoNs {
    unimplemented!()
}

/// Why the engine did not start; the text names the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// A running engine.
pub struct Engine {}

impl Engine {
    /// Locks the data directory, recovers, starts the shards and listens. Blocks until every shard serves.
    ///
    /// # Errors
    /// Anything that keeps it from serving, with the remedy.
    pub fn start(
        _config: EngineConfig,
        _python: Option<Arc<dyn PluginRuntime>>,
        _host: Arc<dyn PluginHost>,
        _service: Arc<dyn ConnectionService>,
    ) -> Result<Engine, StartError> {
        unimplemented!()
    }
    /// The handle for other threads.
    pub fn handle(&self) -> EngineHandle {
        unimplemented!()
    }
    /// The address that is listened on (of use with port 0).
    pub fn local_addr(&self) -> SocketAddr {
        unimplemented!()
    }
    /// Stops accepting, drains, commits the last frames, joins the shards; at most `within`. True if all was drained.
    pub fn stop(self, _within: Duration) -> bool {
        unimplemented!()
    }
}
