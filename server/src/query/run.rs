//! One query's life, on its thread: plan, rows, pieces, end.
//!
//! Whatever a query does is raced against its guard, and a panic inside of it is an error of that query alone. When it ends, its
//! runtime ends with it, and with that all that it held.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::execute_stream;
use futures_channel::oneshot;
use futures_util::{FutureExt, StreamExt};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::OwnedSemaphorePermit;

use super::QueryError;
use super::engine::Shared;
use super::error::{Phase, aborted};
use super::guard::{self, Guard, THREAD_STACK_BYTES};
use super::hints;
use super::log::RunningQuery;
use super::plan::{Planned, plan};
use super::request::QueryRequest;
use super::stream::{Message, Output, ResultSender, Started};

/// Bytes of a statement in the server's log.
const LOGGED_SQL_BYTES_MAX: usize = 200;

type Answer<T> = oneshot::Sender<Result<Started<T>, QueryError>>;

/// A query that is to be run.
pub(super) struct Task<O: Output, F> {
    pub(super) shared: Arc<Shared>,
    pub(super) request: QueryRequest,
    pub(super) running: RunningQuery,
    /// Makes what batches become, once the columns are known.
    pub(super) output: F,
    pub(super) answer: Answer<O::Item>,
    pub(super) guard: Arc<Guard>,
}

impl<O: Output, F: FnOnce(SchemaRef) -> Result<O, QueryError> + Send + 'static> Task<O, F> {
    /// Runs it on this thread.
    pub(super) fn work(mut self, permit: OwnedSemaphorePermit) {
        let _entered = guard::enter(&self.guard);
        self.running.permitted();
        match Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime.block_on(self.run()),
            Err(error) => tracing::error!(%error, "no runtime for a query: it is aborted"),
        }
        drop(permit);
    }

    /// There is no room for it.
    pub(super) fn refuse(mut self, why: String) {
        self.shared.counts.refuse();
        self.running.fail();
        let text = format!("{why} (setting --query-concurrency): try again later");
        let _ = self.answer.send(Err(QueryError::ResourcesExhausted(text)));
    }

    /// Nobody waits for it any more; it did not begin.
    pub(super) fn cancel(self) {
        self.shared.counts.cancel();
    }

    async fn run(mut self) {
        let planned = plan(&self.shared.base, &self.shared.sources, &self.request, &self.shared.several);
        let planned = match race(&self.guard, planned).await {
            Ok(planned) => planned,
            Err(error) => return self.fail(error),
        };
        self.running.planned();
        self.guard.set_executing();
        if planned.several.is_none() {
            return self.execute(planned).await;
        }
        match several_threads(&self.shared, &self.guard) {
            Ok(runtime) => {
                // Ends when it has ended; a panic of it is its own end.
                let _ = runtime.spawn(self.execute(planned)).await;
                runtime.shutdown_background();
            }
            Err(_) => self.execute(planned).await,
        }
    }

    async fn execute(self, planned: Planned) {
        let Planned { plan, session, several } = planned;
        let memory = self.guard.memory().clone();
        let environment = RuntimeEnv { memory_pool: memory, ..session.runtime_env().as_ref().clone() };
        let context = TaskContext::from(&session).with_runtime(Arc::new(environment));
        let batches = match execute_stream(plan, Arc::new(context)) {
            Ok(batches) => batches,
            Err(error) => return self.fail(Phase::Execution.error(&error)),
        };
        let schema = batches.schema();
        let Task { shared, request, running, output, answer, guard } = self;
        let mut end = End { shared, request, running, guard: guard.clone() };
        let begun = async {
            let mut items = Items { batches: Some(batches), output: output(schema.clone())? };
            let first = items.next().await?;
            Ok((first, items))
        };
        let (first, items) = match race(&guard, begun).await {
            Ok(begun) => begun,
            Err(error) => {
                let error = end.fail_executing(error);
                let _ = answer.send(Err(error));
                return;
            }
        };
        let (mut sender, started) = ResultSender::open(schema);
        if answer.send(Ok(started)).is_ok() {
            deliver(first, items, &mut sender, &mut end).await;
        }
        drop(several);
    }

    fn fail(self, error: QueryError) {
        let Task { shared, request, running, guard, answer, .. } = self;
        let error = End { shared, request, running, guard }.fail(error);
        let _ = answer.send(Err(error));
    }
}

/// A runtime of several threads that work for nothing but this query.
fn several_threads(shared: &Shared, guard: &Arc<Guard>) -> std::io::Result<Runtime> {
    let (place, name, guard) = (shared.place.clone(), shared.place.clone(), guard.clone());
    Builder::new_multi_thread()
        .worker_threads(shared.threads_each)
        .thread_name_fn(move || name.name())
        .thread_stack_size(THREAD_STACK_BYTES)
        .on_thread_start(move || {
            place.take();
            guard::settle(&guard);
        })
        .enable_time()
        .build()
}

/// Does something of a query unless its guard ends it before.
async fn race<T>(guard: &Guard, work: impl Future<Output = Result<T, QueryError>>) -> Result<T, QueryError> {
    if let Some(error) = guard.verdict() {
        return Err(error);
    }
    let work = AssertUnwindSafe(work).catch_unwind();
    let done = tokio::select! {
        biased;
        done = work => done.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))),
        error = guard.over() => Err(error),
    };
    done.map_err(|error| guard.explain(error))
}

/// The error of a query that a panic ended. The panic itself is in the log.
fn panicked(panic: &(dyn Any + Send)) -> QueryError {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    if text.contains("overflow") {
        return super::error::too_long_for_a_column();
    }
    QueryError::Execution(format!("the query failed inside of the engine: {text}"))
}

/// Batches, and what becomes of them.
struct Items<O> {
    /// `None` after the last.
    batches: Option<SendableRecordBatchStream>,
    output: O,
}

impl<O: Output> Items<O> {
    async fn next(&mut self) -> Result<Option<O::Item>, QueryError> {
        loop {
            if let Some(item) = self.output.item()? {
                return Ok(Some(item));
            }
            let Some(batches) = &mut self.batches else { return Ok(None) };
            match batches.next().await {
                Some(batch) => self.output.push(batch.map_err(|error| Phase::Execution.error(&error))?)?,
                None => {
                    // What operators hold is not needed any more.
                    self.batches = None;
                    self.output.finish()?;
                }
            }
        }
    }
}

/// Sends what there is, and notes how it ended.
async fn deliver<O: Output>(
    first: Option<O::Item>,
    mut items: Items<O>,
    sender: &mut ResultSender<O::Item>,
    end: &mut End,
) {
    let guard = end.guard.clone();
    let mut next = Ok(first);
    loop {
        let message = match next {
            Ok(Some(item)) => Message::Item(item),
            Ok(None) => {
                // Noted before the end is said, so that whoever has seen the end finds it in the log.
                end.succeed();
                Message::End
            }
            Err(error) => Message::Failed(end.fail_executing(error)),
        };
        let last = !matches!(message, Message::Item(_));
        match guard.while_reader_waits(sender.send(message)).await {
            Some(Ok(())) if !last => {}
            None if !last => {
                let _ = sender.send(Message::Failed(end.fail(aborted()))).now_or_never();
                return;
            }
            _ => return,
        }
        next = race(&guard, items.next()).await;
    }
}

/// Notes how a query ended, in the log of queries, the counters and, if its bounds ended it, in the server's log. One that is dropped
/// before was cancelled.
struct End {
    shared: Arc<Shared>,
    request: QueryRequest,
    running: RunningQuery,
    guard: Arc<Guard>,
}

impl End {
    fn succeed(&mut self) {
        self.running.succeed();
        self.shared.counts.succeed();
    }

    /// What went wrong with values may be the values of parameters.
    fn fail_executing(&mut self, error: QueryError) -> QueryError {
        let error = hints::parameters(error, &self.request.params);
        self.fail(error)
    }

    fn fail(&mut self, error: QueryError) -> QueryError {
        if self.guard.is_cancelled() && !self.guard.has_timed_out() {
            return error;
        }
        self.running.fail();
        self.shared.counts.fail(&error);
        let (db, sql) = (self.request.db.as_deref().unwrap_or_default(), self.sql());
        if matches!(error, QueryError::TimedOut(_) | QueryError::TooLarge(_) | QueryError::ResourcesExhausted(_)) {
            tracing::warn!(db, sql, %error, "a query was ended");
        }
        error
    }

    fn sql(&self) -> &str {
        let sql = self.request.sql.as_str();
        &sql[..sql.floor_char_boundary(LOGGED_SQL_BYTES_MAX)]
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.running.is_open() && self.guard.has_timed_out() {
            // It was answered for before it noticed.
            drop(self.fail(self.guard.late()));
        } else if self.running.is_open() {
            self.shared.counts.cancel();
            let (db, sql) = (self.request.db.as_deref().unwrap_or_default(), self.sql());
            tracing::info!(db, sql, "a query was cancelled: nobody waits for it any more");
        }
    }
}
