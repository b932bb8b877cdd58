//! The query runtime: its threads, its memory, its queue.
//!
//! - Threads are named `saltus-query-N` and run on CPUs that no shard is pinned to, if there are any, and at nice 10: where they share
//!   one with a shard, the shard goes first.
//! - All queries together have `memory_bytes` for what operators keep (sorts, hash tables). Nothing is spilled to disk; a
//!   query that gets no memory fails. Snapshots are not counted: their memory is the tables'.
//! - At most `max_concurrent` queries run, from planning until their last row is taken; others wait in order.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::SessionConfig;
use futures_channel::oneshot;
use futures_util::{StreamExt, TryStreamExt};
use rustix::thread::CpuSet;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use super::QueryError;
use super::catalog::{CATALOG, IOX, Sources};
use super::error::Phase;
use super::format::{Encoder, Format};
use super::log::{QueryLog, RunningQuery};
use super::plan::{Planned, plan};
use super::request::QueryRequest;
use super::source::{SystemSource, TableSource};
use super::stream::{
    AbortOnDrop, Batches, Message, Output, QueryBytes, QueryStream, ResultSender, ResultStream, Started,
};

/// Room for the recursion of planners and optimisers.
const THREAD_STACK_BYTES: usize = 8 << 20;

/// How much below the shards query threads stand.
const THREAD_NICE: i32 = 10;

/// The engine's bounds.
#[derive(Clone, Debug)]
pub struct QueryConfig {
    /// Threads of the runtime, and the most that one large query uses.
    pub threads: NonZeroUsize,
    /// What the operators of all queries together may keep.
    pub memory_bytes: usize,
    /// Queries that run at a time.
    pub max_concurrent: NonZeroUsize,
    /// Queries that `system.queries` remembers.
    pub query_log_entries: usize,
    /// The CPU of each shard, `None` if it is not pinned: the threads run on others if there are any.
    pub shard_cpus: Vec<Option<usize>>,
}

/// Answers queries on its own threads.
pub struct QueryEngine {
    shared: Arc<Shared>,
    /// `None` only while the engine is dropped.
    runtime: Option<Runtime>,
}

/// What every query's task holds.
struct Shared {
    sources: Sources,
    /// Functions and settings; copied for each query.
    base: SessionState,
    permits: Arc<Semaphore>,
}

impl QueryEngine {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system gives no threads, or DataFusion refuses its configuration.
    pub fn new(
        tables: Arc<dyn TableSource>,
        system: Arc<dyn SystemSource>,
        config: &QueryConfig,
    ) -> std::io::Result<QueryEngine> {
        let log = Arc::new(QueryLog::new(config.query_log_entries));
        let shared = Shared {
            sources: Sources { tables, system, log },
            base: base_session(config).map_err(std::io::Error::other)?,
            permits: Arc::new(Semaphore::new(config.max_concurrent.get())),
        };
        Ok(QueryEngine { shared: Arc::new(shared), runtime: Some(runtime(config)?) })
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
        self.start(request, |_| Ok(Batches))
    }

    /// Answers in a format. As [`QueryEngine::execute`], with the encoding done on the query runtime too.
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

    /// Waits for the whole result. For threads that may block, never for a shard's or the runtime's own.
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
        plan(&self.shared.base, &self.shared.sources, request).await.map(|_| ())
    }

    /// Runs a task beside the queries: the way of a result to whoever reads it.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            drop(runtime.spawn(task));
        }
    }

    /// Ends all queries and waits for the threads, at most `within`.
    pub fn shutdown(mut self, within: Duration) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(within);
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
        let running = self.shared.sources.log.begin(&request);
        let task = self.runtime.as_ref().map(|runtime| {
            let task = runtime.spawn(run(self.shared.clone(), request, running, output, answer));
            AbortOnDrop(task.abort_handle())
        });
        async move {
            let task = task.ok_or_else(super::error::aborted)?;
            let started = answered.await.map_err(|_| super::error::aborted())??;
            Ok(ResultStream::new(started, task))
        }
    }
}

impl Drop for QueryEngine {
    /// Does not wait: the last owner may be a thread of some executor.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

type Answer<T> = oneshot::Sender<Result<Started<T>, QueryError>>;

/// One query's life. Ends early when the task is aborted; `running` then notes the cancellation.
async fn run<O: Output>(
    shared: Arc<Shared>,
    request: QueryRequest,
    mut running: RunningQuery,
    output: impl FnOnce(SchemaRef) -> Result<O, QueryError>,
    answer: Answer<O::Item>,
) {
    let Ok(_permit) = shared.permits.acquire().await else { return };
    running.permitted();
    let begun = begin(&shared, &request, &mut running).await;
    match begun.and_then(|(first, rest)| Ok((first, output(rest.schema())?, rest))) {
        Err(error) => {
            running.fail();
            let _ = answer.send(Err(error));
        }
        Ok((first, mut output, rest)) => {
            let (mut sender, started) = ResultSender::open(rest.schema());
            if answer.send(Ok(started)).is_ok() {
                deliver(first, rest, &mut output, &mut sender, running).await;
            }
        }
    }
}

/// Plans, and computes the first batch.
async fn begin(
    shared: &Shared,
    request: &QueryRequest,
    running: &mut RunningQuery,
) -> Result<(Option<RecordBatch>, SendableRecordBatchStream), QueryError> {
    let Planned { plan, session } = plan(&shared.base, &shared.sources, request).await?;
    running.planned();
    let failed = |error| super::hints::parameters(Phase::Execution.error(&error), &request.params);
    let mut batches = execute_stream(plan, session.task_ctx()).map_err(failed)?;
    let first = batches.next().await.transpose().map_err(failed)?;
    Ok((first, batches))
}

/// Sends the rest, and notes how it ended.
async fn deliver<O: Output>(
    first: Option<RecordBatch>,
    rest: SendableRecordBatchStream,
    output: &mut O,
    sender: &mut ResultSender<O::Item>,
    running: RunningQuery,
) {
    match send_all(first, rest, output, sender).await {
        Ok(Ok(())) => {
            // Noted before the end is said, so that whoever has seen the end finds it in the log.
            running.succeed();
            let _ = sender.send(Message::End).await;
        }
        Ok(Err(error)) => {
            running.fail();
            let _ = sender.send(Message::Failed(error)).await;
        }
        Err(super::stream::Gone) => drop(running),
    }
}

/// The outer result says whether somebody still listens, the inner one whether the query is well.
async fn send_all<O: Output>(
    first: Option<RecordBatch>,
    mut rest: SendableRecordBatchStream,
    output: &mut O,
    sender: &mut ResultSender<O::Item>,
) -> Result<Result<(), QueryError>, super::stream::Gone> {
    let mut next = first.map(Ok);
    while let Some(batch) = next {
        let item = batch.map_err(|error| Phase::Execution.error(&error)).and_then(|batch| output.batch(batch));
        match item {
            Ok(Some(item)) => sender.send(Message::Item(item)).await?,
            Ok(None) => {}
            Err(error) => return Ok(Err(error)),
        }
        next = rest.next().await;
    }
    match output.end() {
        Ok(Some(item)) => sender.send(Message::Item(item)).await.map(Ok),
        Ok(None) => Ok(Ok(())),
        Err(error) => Ok(Err(error)),
    }
}

/// The CPUs that no shard is pinned to; `None` if there are none, or nobody knows.
fn other_cpus(shards: &[Option<usize>]) -> Option<CpuSet> {
    let mut others = rustix::thread::sched_getaffinity(None).ok()?;
    for cpu in shards {
        others.unset((*cpu)?);
    }
    (others.count() > 0).then_some(others)
}

fn runtime(config: &QueryConfig) -> std::io::Result<Runtime> {
    let count = AtomicUsize::new(0);
    let cpus = other_cpus(&config.shard_cpus);
    Builder::new_multi_thread()
        .worker_threads(config.threads.get())
        .thread_name_fn(move || format!("saltus-query-{}", count.fetch_add(1, Ordering::Relaxed)))
        .thread_stack_size(THREAD_STACK_BYTES)
        .on_thread_start(move || {
            // Refused only where even that is forbidden; queries are then where shards are, or as urgent.
            if let Some(cpus) = &cpus {
                let _ = rustix::thread::sched_setaffinity(None, cpus);
            }
            let _ = rustix::process::nice(THREAD_NICE);
        })
        .enable_time()
        .build()
}

fn base_session(config: &QueryConfig) -> datafusion::error::Result<SessionState> {
    let mut disk = DiskManagerBuilder::default();
    disk.set_mode(DiskManagerMode::Disabled);
    let environment = RuntimeEnvBuilder::new()
        .with_disk_manager_builder(disk)
        .with_memory_pool(Arc::new(GreedyMemoryPool::new(config.memory_bytes)))
        .build_arc()?;
    let builder = SessionStateBuilder::new()
        .with_config(session_config(config))
        .with_runtime_env(environment)
        .with_default_features();
    let mut session = super::rules::register(builder).build();
    super::functions::register(&mut session)?;
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
