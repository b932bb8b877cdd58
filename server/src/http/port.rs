//! What handlers need of the shard they run on: a seam, so that they can be tested without an engine.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use saltus_core::catalog::TableInfo;
use saltus_core::ids::{EventId, MonoNs};
use saltus_core::request::PluginRequest;
use saltus_core::schema::ColumnDef;
use saltus_core::trigger::TriggerDef;
use saltus_shards::answer::Answer;
use saltus_shards::api::{Health, ShardStats, TableError, TriggerStats, WriteOutcome, WriteRequest};
use saltus_shards::dead_letters::DeadLetter;
use saltus_shards::engine::{Routed, ShardHandle, Target, mono_now};

/// The engine as one connection sees it; futures stay on the shard.
pub trait ShardPort: Clone + Unpin + 'static {
    /// The monotonic clock.
    fn now(&self) -> MonoNs;
    /// Takes a write.
    fn write(&self, request: WriteRequest) -> impl Future<Output = WriteOutcome>;
    /// Databases that have tables.
    fn databases(&self) -> Vec<Arc<str>>;
    /// Whether a database has tables.
    fn has_database(&self, db: &str) -> bool;
    /// Makes an empty table.
    fn create_table(
        &self,
        db: &str,
        name: &str,
        columns: Vec<ColumnDef>,
    ) -> impl Future<Output = Result<TableInfo, TableError>>;
    /// Drops a table.
    fn drop_table(&self, db: &str, name: &str) -> impl Future<Output = Result<(), TableError>>;
    /// Whether all shards take writes.
    fn health(&self) -> Health;
    /// Statistics of all shards.
    fn shard_stats(&self) -> impl Future<Output = Vec<ShardStats>>;
    /// Statistics of all triggers in force.
    fn trigger_stats(&self) -> impl Future<Output = Vec<TriggerStats>>;
    /// What triggers did not take.
    fn dead_letters(&self) -> impl Future<Output = Vec<Arc<DeadLetter>>>;
    /// Gives dead letters to their trigger again; how many it gets.
    fn replay_dead_letters(
        &self,
        trigger: &TriggerDef,
        ids: HashSet<EventId>,
    ) -> impl Future<Output = Result<usize, TableError>>;
    /// Ends dead letters; how many there were.
    fn discard_dead_letters(&self, ids: HashSet<EventId>) -> impl Future<Output = Result<usize, TableError>>;
    /// Who answers a request on `path`.
    fn route(&self, method: &str, path: &str) -> Routed;
    /// Has a plugin answer a request.
    fn ask_plugin(&self, target: Target, request: PluginRequest, received: MonoNs) -> impl Future<Output = Answer>;
    /// Waits.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + 'static;
    /// Resolves when the engine starts to stop.
    fn stopped(&self) -> impl Future<Output = ()> + 'static;
}

impl ShardPort for ShardHandle {
    fn now(&self) -> MonoNs {
        mono_now()
    }

    fn write(&self, request: WriteRequest) -> impl Future<Output = WriteOutcome> {
        ShardHandle::write(self, request)
    }

    fn databases(&self) -> Vec<Arc<str>> {
        self.engine().databases()
    }

    fn has_database(&self, db: &str) -> bool {
        self.engine().has_database(db)
    }

    async fn create_table(&self, db: &str, name: &str, columns: Vec<ColumnDef>) -> Result<TableInfo, TableError> {
        self.engine().create_table(db, name, columns).await
    }

    async fn drop_table(&self, db: &str, name: &str) -> Result<(), TableError> {
        self.engine().drop_table(db, name).await
    }

    fn health(&self) -> Health {
        self.engine().health()
    }

    async fn shard_stats(&self) -> Vec<ShardStats> {
        self.engine().shard_stats().await
    }

    async fn trigger_stats(&self) -> Vec<TriggerStats> {
        self.engine().trigger_stats().await
    }

    async fn dead_letters(&self) -> Vec<Arc<DeadLetter>> {
        self.engine().dead_letters().await
    }

    async fn replay_dead_letters(&self, trigger: &TriggerDef, ids: HashSet<EventId>) -> Result<usize, TableError> {
        self.engine().replay_dead_letters(trigger, ids).await
    }

    async fn discard_dead_letters(&self, ids: HashSet<EventId>) -> Result<usize, TableError> {
        self.engine().discard_dead_letters(ids).await
    }

    fn route(&self, method: &str, path: &str) -> Routed {
        ShardHandle::route(self, method, path)
    }

    async fn ask_plugin(&self, target: Target, request: PluginRequest, received: MonoNs) -> Answer {
        ShardHandle::ask_plugin(self, target, request, received).await
    }

    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + 'static {
        let shard = self.clone();
        async move { ShardHandle::sleep(&shard, time).await }
    }

    fn stopped(&self) -> impl Future<Output = ()> + 'static {
        let shard = self.clone();
        async move { ShardHandle::stopped(&shard).await }
    }
}
