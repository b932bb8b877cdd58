//! Writes of one row over a connection that stays open: hyper's parsing, the route, parameters, body, and the answer. The
//! stream is memory, and the shard behind it only says that it has written.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_lite::future::block_on;
use futures_lite::{AsyncRead, AsyncWrite};
use futures_util::future::BoxFuture;
use saltus::http::plugin_test::{PluginTest, PluginTests};
use saltus::http::port::ShardPort;
use saltus::http::query::{QueryBackend, QueryHttpRequest, QueryReply};
use saltus::http::response::HttpError;
use saltus::http::{HttpOptions, HttpParts, HttpService};
use saltus::logs::PluginLogs;
use saltus::registry::Registry;
use saltus_core::catalog::TableInfo;
use saltus_core::ids::{EventId, MonoNs};
use saltus_core::request::PluginRequest;
use saltus_core::schema::ColumnDef;
use saltus_core::trigger::TriggerDef;
use saltus_shards::answer::Answer;
use saltus_shards::api::{Health, ShardStats, TableError, TriggerStats, WriteOutcome, WriteRequest};
use saltus_shards::dead_letters::DeadLetter;
use saltus_shards::engine::{Routed, Target};

use super::Measured;

/// A row of the case `cpu-only` of the Time Series Benchmark Suite.
const ROW: &str = "cpu,hostname=host_731,region=ap-southeast-1,datacenter=ap-southeast-1b,rack=17,os=Ubuntu16.04LTS,arch=x64,\
                   team=NYC,service=12,service_version=1,service_environment=staging usage_user=58i,usage_system=2i,\
                   usage_idle=24i,usage_nice=61i,usage_iowait=22i,usage_irq=63i,usage_softirq=6i,usage_steal=44i,\
                   usage_guest=80i,usage_guest_nice=38i 1451606400000000000\n";

/// A shard that takes every write.
#[derive(Clone)]
struct Shard;

impl ShardPort for Shard {
    fn now(&self) -> MonoNs {
        MonoNs(7)
    }
    async fn write(&self, request: WriteRequest) -> WriteOutcome {
        assert_eq!(request.body.len(), ROW.len());
        WriteOutcome::Written { rows: 1 }
    }
    fn databases(&self) -> Vec<Arc<str>> {
        Vec::new()
    }
    fn has_database(&self, _db: &str) -> bool {
        false
    }
    async fn create_table(&self, _db: &str, name: &str, _columns: Vec<ColumnDef>) -> Result<TableInfo, TableError> {
        Err(TableError::NotFound(name.to_owned()))
    }
    async fn drop_table(&self, _db: &str, name: &str) -> Result<(), TableError> {
        Err(TableError::NotFound(name.to_owned()))
    }
    fn health(&self) -> Health {
        Health { reasons: Vec::new() }
    }
    async fn shard_stats(&self) -> Vec<ShardStats> {
        Vec::new()
    }
    async fn trigger_stats(&self) -> Vec<TriggerStats> {
        Vec::new()
    }
    async fn dead_letters(&self) -> Vec<Arc<DeadLetter>> {
        Vec::new()
    }
    async fn replay_dead_letters(&self, _trigger: &TriggerDef, _ids: HashSet<EventId>) -> Result<usize, TableError> {
        Ok(0)
    }
    async fn discard_dead_letters(&self, _ids: HashSet<EventId>) -> Result<usize, TableError> {
        Ok(0)
    }
    fn route(&self, _method: &str, _path: &str) -> Routed {
        Routed::Nothing
    }
    async fn ask_plugin(&self, _target: Target, _request: PluginRequest, _received: MonoNs) -> Answer {
        unreachable!("nobody asks a plugin")
    }
    fn sleep(&self, _time: Duration) -> impl Future<Output = ()> + 'static {
        std::future::pending()
    }
    fn stopped(&self) -> impl Future<Output = ()> + 'static {
        std::future::pending()
    }
}

/// Nobody asks it.
struct Nothing;

impl QueryBackend for Nothing {
    fn query(&self, _request: QueryHttpRequest) -> BoxFuture<'static, Result<QueryReply, HttpError>> {
        unreachable!("nobody queries")
    }
}

impl PluginTests for Nothing {
    fn run(&self, _test: PluginTest) -> BoxFuture<'static, Result<serde_json::Value, HttpError>> {
        unreachable!("nobody tests a plugin")
    }
}

/// A client's side of a connection: what it sends, a request at a time, and what it got.
struct Client {
    requests: VecDeque<Arc<[u8]>>,
    answers: Rc<RefCell<Vec<u8>>>,
    /// A request is sent and not answered yet; the server waits for nothing else.
    waiting: bool,
    waker: Option<Waker>,
}

impl AsyncRead for Client {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.waiting {
            self.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.waiting = true;
        // The end of the stream after the last.
        let Some(request) = self.requests.pop_front() else { return Poll::Ready(Ok(0)) };
        buffer[..request.len()].copy_from_slice(&request);
        Poll::Ready(Ok(request.len()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.answers.borrow_mut().extend_from_slice(bytes);
        self.waiting = false;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Writes {
    service: HttpService,
    request: Arc<[u8]>,
    requests: usize,
    client: Option<Client>,
    answers: Rc<RefCell<Vec<u8>>>,
    _dir: tempfile::TempDir,
}

impl Measured for Writes {
    fn reset(&mut self) {
        let requests = vec![self.request.clone(); self.requests].into();
        self.answers.borrow_mut().clear();
        self.client = Some(Client { requests, answers: self.answers.clone(), waiting: false, waker: None });
    }

    fn run(&mut self) -> u64 {
        let client = self.client.take().expect("reset comes before run");
        let peer = SocketAddr::from(([127, 0, 0, 1], 40_000));
        block_on(self.service.serve_stream(Shard, client, peer));
        self.answers.borrow().len() as u64
    }
}

/// So many requests over one connection, each sent when the one before is answered.
pub(super) fn writes(requests: usize) -> Box<dyn Measured> {
    let dir = tempfile::tempdir().expect("a directory for the catalog");
    let options = HttpOptions {
        request_bytes_max: 1 << 20,
        idle_timeout: Duration::from_secs(75),
        request_timeout: Duration::from_secs(60),
        shutdown_timeout: Duration::from_secs(30),
        trigger_kinds: None,
    };
    let parts = HttpParts {
        options,
        registry: Registry::open(
            &mut saltus_shards::data_dir::DataDir::open(dir.path(), false).expect("it is new"),
            None,
        )
        .expect("the catalog opens"),
        query: Arc::new(Nothing),
        tests: Arc::new(Nothing),
        logs: Arc::new(PluginLogs::new()),
        metrics: Vec::new(),
        tracer: None,
    };
    let request = format!(
        "POST /api/v3/write_lp?db=benchmark&precision=nanosecond&no_sync=true HTTP/1.1\r\nHost: localhost:8181\r\nUser-Agent: \
         bench/1.0\r\nAccept: */*\r\nAuthorization: Bearer apiv3_0123456789\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\n\r\n{ROW}",
        ROW.len()
    );
    let mut writes = Writes {
        service: HttpService::new(parts),
        request: request.into_bytes().into(),
        requests,
        client: None,
        answers: Rc::default(),
        _dir: dir,
    };
    // Each is taken and answered.
    writes.reset();
    writes.run();
    let answers = String::from_utf8_lossy(&writes.answers.borrow()).into_owned();
    assert_eq!(answers.matches("HTTP/1.1 204 No Content\r\n").count(), requests, "{answers}");
    writes.reset();
    Box::new(writes)
}
