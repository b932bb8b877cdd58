//! The query engine: who may run a query, and when.
//!
//! - At most `max_concurrent` queries run, from planning until their last row is taken ([`super::run`]), each on a thread of its
//!   own; one that reads many rows has several. Others wait, in order and not for long; what comes beyond them is refused.
//! - All queries together have `memory_bytes` for what operators keep (sorts, hash tables) and what functions make. Nothing is
//!   spilled to disk; a query that gets no memory fails. Snapshots are not counted: their memory is the tables'.
//! - A query may take `timeout`, and ends when whoever asked has gone ([`super::guard`]).

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::prelude::SessionConfig;
use futures_channel::oneshot;
use futures_util::TryStreamExt;
use futures_util::future::{Either, select};
use saltus_core::limits::{QUERIES_PARALLEL_MAX, QUERIES_WAITING_MAX, QUERY_GRACE_MS, QUERY_WAIT_MS};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use super::QueryError;
use super::catalog::{CATALOG, IOX, Sources};
use super::counts::QueryCounts;
use super::format::{Encoder, Format};
use super::guard::{
    AllMemory, BoundedFunctions, Checkpoints, Closing, Guard, QueryMemory, THREAD_STACK_BYTES, ThreadPlace, Threads,
};
use super::log::QueryLog;
use super::plan::plan;
use super::request::QueryRequest;
use super::run::Task;
use super::source::{SystemSource, TableSource};
use super::stream::{Batches, CancelOnDrop, Output, QueryBytes, QueryStream, ResultStream};

/// The engine's bounds.
#[derive(Clone, Debug)]
pub struct QueryConfig {
    /// Threads that one large query uses.
    pub threads: NonZeroUsize,
    /// What all queries together may hold.
    pub memory_bytes: usize,
    /// Queries that run at a time.
    pub max_concurrent: NonZeroUsize,
    /// How long a query may take.
    pub timeout: Duration,
    /// Queries that `system.queries` remembers.
    pub query_log_entries: usize,
    /// The CPU of each shard, `None` if it is not pinned: the threads run on others if there are any.
    pub shard_cpus: Vec<Option<usize>>,
}

/// Answers queries on its own threads.
pub struct QueryEngine {
    shared: Arc<Shared>,
    /// For queries that wait for their turn. `None` only while the engine is dropped.
    runtime: Option<Runtime>,
}

/// What every query holds.
pub(super) struct Shared {
    pub(super) sources: Sources,
    /// Functions and settings; copied for each query.
    pub(super) base: SessionState,
    /// For queries that use several threads.
    pub(super) several: Arc<Semaphore>,
    pub(super) threads_each: usize,
    pub(super) place: ThreadPlace,
    pub(super) counts: Arc<QueryCounts>,
    memory: Arc<AllMemory>,
    timeout: Duration,
    max_concurrent: usize,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    threads: Threads,
    closing: Arc<Closing>,
}

impl QueryEngine {
    /// Starts what queries need.
    ///
    /// # Errors
    /// If the system gives no thread, or DataFusion refuses its configuration.
    pub fn new(
        tables: Arc<dyn TableSource>,
        system: Arc<dyn SystemSource>,
        config: &QueryConfig,
    ) -> std::io::Result<QueryEngine> {
        let log = Arc::new(QueryLog::new(config.query_log_entries));
        let place = ThreadPlace::beside(&config.shard_cpus);
        let shared = Shared {
            sources: Sources { tables, system, log },
            base: base_session(config).map_err(std::io::Error::other)?,
            several: Arc::new(Semaphore::new(QUERIES_PARALLEL_MAX)),
            threads_each: config.threads.get(),
            place: place.clone(),
            counts: Arc::default(),
            memory: AllMemory::new(config.memory_bytes),
            timeout: config.timeout,
            max_concurrent: config.max_concurrent.get(),
            permits: Arc::new(Semaphore::new(config.max_concurrent.get())),
            waiting: AtomicUsize::new(0),
            threads: Threads::new(place.clone()),
            closing: Arc::default(),
        };
        let name = place.clone();
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name_fn(move || name.name())
            .thread_stack_size(THREAD_STACK_BYTES)
            .on_thread_start(move || place.take())
            .enable_time()
            .build()?;
        Ok(QueryEngine { shared: Arc::new(shared), runtime: Some(runtime) })
    }

    /// Answers with record batches. Can be awaited on any executor; the answer comes when the first rows are there, so that
    /// most failures are errors here and not in the stream. Dropping the future or the stream ends the query.
    ///
    /// # Errors
    /// Why there is no result.
    pub fn execute(
        &self,
        request: QueryRequest,
    ) -> impl Future<Output = Result<QueryStream, QueryError>> + Send + 'static + use<> {
        self.start(request, |_| Ok(Batches::default()))
    }

    /// Answers in a format. As [`QueryEngine::execute`], with the encoding done on the query's thread too.
    ///
    /// # Errors
    /// Why there is no result.
    pub fn execute_bytes(
        &self,
        request: QueryRequest,
        format: Format,
    ) -> impl Future<Output = Result<QueryBytes, QueryError>> + Send + 'static + use<> {
        self.start(request, move |schema| Encoder::new(format, schema))
    }

    /// Waits for the whole result. For threads that may block, never for a shard's.
    ///
    /// # Errors
    /// Why there is no result.
    pub fn execute_blocking(&self, request: QueryRequest) -> Result<Vec<RecordBatch>, QueryError> {
        let whole = self.execute(request);
        futures_lite::future::block_on(async { whole.await?.try_collect().await })
    }

    /// Plans a question, on the thread that polls this, and computes nothing: what a question costs before its first row.
    ///
    /// # Errors
    /// Why there is no plan.
    pub async fn plan(&self, request: &QueryRequest) -> Result<(), QueryError> {
        plan(&self.shared.base, &self.shared.sources, request, &self.shared.several).await.map(|_| ())
    }

    /// Waits, on any executor.
    pub fn pause(&self, time: Duration) -> impl Future<Output = ()> + Send + 'static + use<> {
        let timer = self.runtime.as_ref().map(|runtime| {
            let _entered = runtime.enter();
            tokio::time::sleep(time)
        });
        async move {
            if let Some(timer) = timer {
                timer.await;
            }
        }
    }

    /// What became of queries.
    pub fn counts(&self) -> &Arc<QueryCounts> {
        &self.shared.counts
    }

    /// Queries that run, queries that wait to run, and bytes that queries hold.
    pub fn load(&self) -> (usize, usize, usize) {
        let running = self.shared.max_concurrent.saturating_sub(self.shared.permits.available_permits());
        (running, self.shared.waiting.load(Ordering::Relaxed), self.shared.memory.used())
    }

    /// Ends all queries and waits for them, at most `within`.
    pub fn shutdown(mut self, within: Duration) {
        self.shared.closing.close();
        if let Some(runtime) = self.runtime.take() {
            let all = u32::try_from(self.shared.max_concurrent).unwrap_or(u32::MAX);
            let ended = async { tokio::time::timeout(within, self.shared.permits.acquire_many(all)).await.is_ok() };
            let _ = runtime.block_on(ended);
            runtime.shutdown_background();
        }
    }

    fn start<O, F>(
        &self,
        request: QueryRequest,
        output: F,
    ) -> impl Future<Output = Result<ResultStream<O::Item>, QueryError>> + Send + 'static + use<O, F>
    where
        O: Output,
        F: FnOnce(SchemaRef) -> Result<O, QueryError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let shared = self.shared.clone();
        let guard = Guard::new(shared.timeout, QueryMemory::new(&shared.memory), shared.closing.clone());
        let running = shared.sources.log.begin(&request);
        let query = CancelOnDrop(guard.clone());
        // A query that works for long without looking up does not say that its time is over.
        let late = self.pause(shared.timeout + Duration::from_millis(QUERY_GRACE_MS));
        self.admit(Task { shared, request, running, output, answer, guard });
        async move {
            match select(answered, pin!(late)).await {
                Either::Left((answer, _)) => {
                    let started = answer.map_err(|_| super::error::aborted())??;
                    Ok(ResultStream::new(started, query))
                }
                Either::Right(_) => Err(query.0.late()),
            }
        }
    }

    /// Lets a query run now, or wait, or refuses it. Does not block.
    fn admit<O: Output, F: FnOnce(SchemaRef) -> Result<O, QueryError> + Send + 'static>(&self, task: Task<O, F>) {
        let Some(runtime) = &self.runtime else { return };
        let shared = self.shared.clone();
        match shared.permits.clone().try_acquire_owned() {
            Ok(permit) => {
                let job = Box::new(move || task.work(permit));
                // A thread that waits takes it at once; a new one is started by somebody who may block.
                if let Err(job) = shared.threads.give(job) {
                    drop(runtime.spawn(async move { shared.thread(job) }));
                }
            }
            Err(_) if shared.waiting.fetch_add(1, Ordering::Relaxed) >= QUERIES_WAITING_MAX => {
                shared.waiting.fetch_sub(1, Ordering::Relaxed);
                task.refuse(format!("{QUERIES_WAITING_MAX} queries wait already, and {} run", shared.max_concurrent));
            }
            Err(_) => drop(runtime.spawn(wait(shared, task))),
        }
    }
}

/// Waits for a turn.
async fn wait<O: Output, F: FnOnce(SchemaRef) -> Result<O, QueryError> + Send + 'static>(
    shared: Arc<Shared>,
    task: Task<O, F>,
) {
    let permit = tokio::select! {
        permit = shared.permits.clone().acquire_owned() => permit.ok(),
        _gone = task.guard.over() => None,
        () = tokio::time::sleep(Duration::from_millis(QUERY_WAIT_MS)) => None,
    };
    shared.waiting.fetch_sub(1, Ordering::Relaxed);
    match permit {
        Some(permit) => shared.thread(Box::new(move || task.work(permit))),
        None if task.guard.is_cancelled() => task.cancel(),
        None => {
            let at_once = shared.max_concurrent;
            task.refuse(format!("{at_once} queries run, and none ended within {} seconds", QUERY_WAIT_MS / 1000));
        }
    }
}

impl Shared {
    fn thread(&self, job: super::guard::Job) {
        if let Err(error) = self.threads.run(job) {
            tracing::error!(%error, "no thread for a query: it is aborted");
        }
    }
}

impl Drop for QueryEngine {
    /// Does not wait: the last owner may be a thread of some executor.
    fn drop(&mut self) {
        self.shared.closing.close();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn base_session(config: &QueryConfig) -> datafusion::error::Result<SessionState> {
    let mut disk = DiskManagerBuilder::default();
    disk.set_mode(DiskManagerMode::Disabled);
    let environment = RuntimeEnvBuilder::new().with_disk_manager_builder(disk).build_arc()?;
    let builder = SessionStateBuilder::new()
        .with_config(session_config(config))
        .with_runtime_env(environment)
        .with_default_features();
    let mut session = super::rules::register(builder).with_physical_optimizer_rule(Arc::new(Checkpoints)).build();
    super::functions::register(&mut session)?;
    // The last one: it puts bounds around the functions that the rules before it leave.
    session.add_analyzer_rule(Arc::new(BoundedFunctions::default()));
    Ok(session)
}

fn session_config(config: &QueryConfig) -> SessionConfig {
    let mut session = SessionConfig::new()
        .with_target_partitions(config.threads.get())
        .with_default_catalog_and_schema(CATALOG, IOX)
        .with_create_default_catalog_and_schema(false)
        // The catalog brings its own.
        .with_information_schema(false);
    // It knows neither of NULLs that are skipped nor of windows that run backwards, and leaves out rows they look at.
    session.options_mut().optimizer.enable_window_limits = false;
    let parser = &mut session.options_mut().sql_parser;
    // As InfluxDB 3: `SELECT * FROM Foo` asks for `Foo`.
    parser.enable_ident_normalization = false;
    // Plugins read `Utf8`.
    parser.map_string_types_to_utf8view = false;
    session
}
