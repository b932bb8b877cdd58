//! The HTTP surface: HTTP/1.1 on shard streams, routes, bodies, errors (reference, section 3).
//!
//! Life of a request: [`connection`] runs hyper over a shard's stream, [`router`] picks the handler by method and path,
//! the handler reads parameters and body with [`request`], asks its [`port::ShardPort`] or the registry, and answers with a
//! [`response`]. Handlers run on the shard's thread: none blocks, and long work on bytes yields in between.

pub mod connection;
mod databases;
mod dead_letters;
mod engine;
mod histograms;
pub mod metrics;
mod paths;
pub mod plugin_test;
mod plugins;
pub mod port;
pub mod query;
pub mod request;
pub mod response;
pub mod router;
mod status;
mod strict;
mod tables;
#[cfg(test)]
mod tests;
mod triggers;
mod write;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_lite::{AsyncRead, AsyncWrite};
use saltus_shards::engine::{ConnectionService, LocalBoxFuture, ShardHandle, ShardStream};
use uuid::Uuid;

use crate::config::TriggerKind;
use crate::logs::PluginLogs;
use crate::registry::Registry;
use crate::traces::Tracer;
use metrics::MetricsSource;
use plugin_test::PluginTests;
use query::QueryBackend;

/// Bounds and switches of the surface.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Bytes of a request body, compressed and decompressed.
    pub request_bytes_max: usize,
    /// How long a connection may neither send nor take a byte while it is its turn.
    pub idle_timeout: Duration,
    /// How long a client may take to send a request; a long body gets more.
    pub request_timeout: Duration,
    /// How long a stop of the server may take.
    pub shutdown_timeout: Duration,
    /// Trigger kinds that may be created; `None` is all.
    pub trigger_kinds: Option<Vec<TriggerKind>>,
}

/// What the surface is made of.
pub struct HttpParts {
    /// Bounds and switches.
    pub options: HttpOptions,
    /// Databases, triggers, plugin files.
    pub registry: Registry,
    /// Who answers SQL.
    pub query: Arc<dyn QueryBackend>,
    /// Who makes test runs of plugins.
    pub tests: Arc<dyn PluginTests>,
    /// For the count of lines that were dropped.
    pub logs: Arc<PluginLogs>,
    /// Who traces writes, if anybody does.
    pub tracer: Option<Arc<Tracer>>,
    /// Further parts of `/metrics`.
    pub metrics: Vec<Arc<dyn MetricsSource>>,
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) parts: HttpParts,
    /// Identity of this process (`/ping`).
    pub(crate) process_id: Uuid,
    /// When this process started (`/metrics`).
    pub(crate) started: SystemTime,
}

/// Serves connections that the engine accepted.
pub struct HttpService {
    shared: Arc<Shared>,
}

impl HttpService {
    /// A service over these parts.
    pub fn new(parts: HttpParts) -> Self {
        let shared = Shared { parts, process_id: Uuid::new_v4(), started: SystemTime::now() };
        HttpService { shared: Arc::new(shared) }
    }

    /// Serves one connection over any stream, with any shard behind it: what [`ConnectionService::serve`] does, without an
    /// engine.
    pub fn serve_stream<P, S>(&self, port: P, stream: S, peer: SocketAddr) -> impl Future<Output = ()> + 'static
    where
        P: port::ShardPort,
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        connection::serve(self.shared.clone(), port, stream, peer)
    }
}

impl ConnectionService for HttpService {
    fn serve(&self, shard: ShardHandle, stream: ShardStream, peer: SocketAddr) -> LocalBoxFuture<()> {
        Box::pin(self.serve_stream(shard, stream, peer))
    }
}
