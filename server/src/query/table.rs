//! A table's snapshot as DataFusion reads it.
//!
//! - Columns are projected and `time` is bounded in the snapshot; the bound is `Inexact`, so DataFusion filters again.
//! - Every other predicate and every limit stays above the scan: below a merge of versions a predicate on a field could
//!   drop the newest version of a row and let an older one through.
//! - Row counts are `Exact` only when the snapshot says so and nothing is filtered.
//! - The snapshot is read when the first partition is opened, on a query thread, and shared by all partitions.

use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Statistics, project_schema};
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::coop::cooperative;
use datafusion::physical_plan::execution_plan::SchedulingType;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayFormatType, ExecutionPlan, Partitioning};
use futures_util::future::BoxFuture;
use futures_util::{TryStreamExt, stream};
use tokio::sync::OnceCell;

use super::source::TableScan;
use super::time_range::{bounds_time, time_range};

/// Fewer rows than this are read by one thread: splitting and merging again would cost more than it saves.
pub(super) const PARALLEL_ROWS_MIN: usize = 128 * 1024;

/// One table of one query.
pub(super) struct SnapshotTable {
    name: Arc<str>,
    scan: Arc<dyn TableScan>,
}

impl SnapshotTable {
    pub(super) fn new(name: Arc<str>, scan: Arc<dyn TableScan>) -> Self {
        SnapshotTable { name, scan }
    }

    fn plan(&self, session: &dyn Session, projection: Option<&Vec<usize>>, filters: &[Expr]) -> Result<SnapshotRows> {
        let parallel = self.scan.rows_hint().is_some_and(|rows| rows >= PARALLEL_ROWS_MIN);
        Ok(SnapshotRows {
            name: self.name.clone(),
            schema: project_schema(&self.scan.schema(), projection)?,
            scan: self.scan.clone(),
            projection: projection.cloned(),
            time_range: time_range(filters),
            partitions: if parallel { session.config().target_partitions().max(1) } else { 1 },
            rows: Arc::new(OnceCell::new()),
        })
    }
}

impl fmt::Debug for SnapshotTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotTable({})", self.name)
    }
}

impl TableProvider for SnapshotTable {
    fn schema(&self) -> SchemaRef {
        self.scan.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    // Written out as `async_trait` writes it.
    fn scan<'life0, 'life1, 'life2, 'life3, 'async_trait>(
        &'life0 self,
        state: &'life1 dyn Session,
        projection: Option<&'life2 Vec<usize>>,
        filters: &'life3 [Expr],
        _limit: Option<usize>,
    ) -> BoxFuture<'async_trait, Result<Arc<dyn ExecutionPlan>>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        'life2: 'async_trait,
        'life3: 'async_trait,
        Self: 'async_trait,
    {
        let plan = self.plan(state, projection, filters);
        Box::pin(async move { Ok(DataSourceExec::from_data_source(plan?) as Arc<dyn ExecutionPlan>) })
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let answer = |filter: &&Expr| match bounds_time(filter) {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(answer).collect())
    }
}

/// The leaf of a physical plan.
struct SnapshotRows {
    name: Arc<str>,
    /// After projection.
    schema: SchemaRef,
    scan: Arc<dyn TableScan>,
    projection: Option<Vec<usize>>,
    /// Inclusive.
    time_range: Option<(i64, i64)>,
    /// How many streams the rows are dealt to.
    partitions: usize,
    /// Filled by whoever opens first; one list per partition.
    rows: Arc<OnceCell<Vec<Vec<RecordBatch>>>>,
}

impl SnapshotRows {
    fn statistics(&self) -> Statistics {
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = match (self.scan.exact_rows(), self.scan.rows_hint()) {
            (Some(rows), _) if self.time_range.is_none() => Precision::Exact(rows),
            (_, Some(rows)) => Precision::Inexact(rows),
            _ => Precision::Absent,
        };
        statistics
    }

    /// What reads the snapshot, free of `self` so that it can run while the plan is elsewhere.
    fn reader(&self) -> impl FnOnce() -> Result<Vec<Vec<RecordBatch>>, ArrowError> + Send + use<> {
        let (scan, schema) = (self.scan.clone(), self.schema.clone());
        let (projection, time_range, partitions) = (self.projection.clone(), self.time_range, self.partitions);
        move || {
            if time_range.is_some_and(|(first, last)| first > last) {
                return Ok(vec![Vec::new(); partitions]);
            }
            let batches = scan.scan(projection.as_deref(), time_range)?;
            let batches = batches.into_iter().map(|batch| with_schema(&schema, batch)).collect::<Result<_, _>>()?;
            Ok(deal(batches, partitions))
        }
    }
}

impl fmt::Debug for SnapshotRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_as(DisplayFormatType::Default, f)
    }
}

impl DataSource for SnapshotRows {
    fn open(&self, partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (rows, read) = (self.rows.clone(), self.reader());
        let own = async move {
            let dealt = rows.get_or_try_init(|| async move { read().map_err(DataFusionError::from) }).await?;
            Ok::<_, DataFusionError>(stream::iter(dealt[partition].clone().into_iter().map(Ok)))
        };
        let batches = stream::once(own).try_flatten();
        Ok(Box::pin(cooperative(RecordBatchStreamAdapter::new(self.schema.clone(), Box::pin(batches)))))
    }

    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table={}, partitions={}", self.name, self.partitions)?;
        match self.time_range {
            Some((first, last)) => write!(f, ", time={first}..={last}"),
            None => Ok(()),
        }
    }

    fn output_partitioning(&self) -> Partitioning {
        Partitioning::UnknownPartitioning(self.partitions)
    }

    fn eq_properties(&self) -> EquivalenceProperties {
        EquivalenceProperties::new(self.schema.clone())
    }

    fn scheduling_type(&self) -> SchedulingType {
        SchedulingType::Cooperative
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        let whole = partition.is_none() || self.partitions == 1;
        Ok(Arc::new(if whole { self.statistics() } else { Statistics::new_unknown(&self.schema) }))
    }

    fn with_fetch(&self, _limit: Option<usize>) -> Option<Arc<dyn DataSource>> {
        None
    }

    fn fetch(&self) -> Option<usize> {
        None
    }

    fn try_swapping_with_projection(&self, _projection: &ProjectionExprs) -> Result<Option<Arc<dyn DataSource>>> {
        Ok(None)
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
}

/// The batch under the plan's own schema, whose metadata and nullability operators compare.
fn with_schema(schema: &SchemaRef, batch: RecordBatch) -> Result<RecordBatch, ArrowError> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let (_, columns, _) = batch.into_parts();
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
}

/// Deals the rows evenly, cutting batches where a share is full (slices share the memory).
fn deal(batches: Vec<RecordBatch>, partitions: usize) -> Vec<Vec<RecordBatch>> {
    let total: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let share = total.div_ceil(partitions).max(1);
    let mut dealt = vec![Vec::new(); partitions];
    let mut given = 0;
    for mut batch in batches.into_iter().filter(|batch| batch.num_rows() > 0) {
        while batch.num_rows() > 0 {
            let taken = batch.num_rows().min(share - given % share);
            dealt[given / share].push(batch.slice(0, taken));
            batch = batch.slice(taken, batch.num_rows() - taken);
            given += taken;
        }
    }
    dealt
}
