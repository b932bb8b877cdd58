//! Rows that pass a condition, put together as far as they fit a piece.
//!
//! DataFusion puts what passes its filters together until there are as many rows as a batch may have, however long they are: 8192 texts
//! of a megabyte. Where long values were made below a filter, this one stands in its place.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures_util::{Stream, StreamExt};
use saltus_core::limits::QUERY_PIECE_BYTES_MAX;

use super::estimate::batch_bytes;

/// The node.
#[derive(Clone, Debug)]
pub(super) struct PiecesExec {
    input: Arc<dyn ExecutionPlan>,
    condition: Option<Arc<dyn PhysicalExpr>>,
    projection: Option<Vec<usize>>,
    fetch: Option<usize>,
    properties: Arc<PlanProperties>,
}

impl PiecesExec {
    /// In the place of a filter.
    pub(super) fn filter(filter: &FilterExec) -> Self {
        PiecesExec {
            input: filter.input().clone(),
            condition: Some(filter.predicate().clone()),
            projection: filter.projection().as_ref().map(|columns| columns.to_vec()),
            fetch: filter.fetch(),
            properties: filter.properties().clone(),
        }
    }

    /// All rows.
    pub(super) fn all(input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = input.properties().clone();
        PiecesExec { input, condition: None, projection: None, fetch: None, properties }
    }
}

impl DisplayAs for PiecesExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.condition {
            Some(condition) => write!(f, "PiecesExec: {condition}"),
            None => f.write_str("PiecesExec"),
        }
    }
}

impl ExecutionPlan for PiecesExec {
    fn name(&self) -> &'static str {
        "PiecesExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.condition.as_ref().map_or(Ok(TreeNodeRecursion::Continue), f)
    }

    super::nodes::one_input!();

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows_max = context.session_config().batch_size();
        let input = self.input.execute(partition, context)?;
        let (schema, left) = (self.schema(), self.fetch.unwrap_or(usize::MAX));
        let exec = self.clone();
        Ok(Box::pin(Pieces { input, exec, schema, rows_max, left, parts: Vec::new(), rows: 0, bytes: 0, ended: false }))
    }
}

struct Pieces {
    input: SendableRecordBatchStream,
    exec: PiecesExec,
    schema: SchemaRef,
    rows_max: usize,
    /// Rows that may still be given.
    left: usize,
    parts: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
    ended: bool,
}

impl Pieces {
    fn add(&mut self, batch: RecordBatch) -> Result<()> {
        let mask = match &self.exec.condition {
            Some(condition) => Some(condition.evaluate(&batch)?.into_array(batch.num_rows())?),
            None => None,
        };
        let batch = match &self.exec.projection {
            Some(columns) => batch.project(columns)?,
            None => batch,
        };
        let mut batch = match &mask {
            Some(mask) => filter_record_batch(&batch, mask.as_boolean())?,
            None => batch,
        };
        if batch.num_rows() > self.left {
            batch = batch.slice(0, self.left);
        }
        if batch.num_rows() > 0 {
            (self.rows, self.left) = (self.rows + batch.num_rows(), self.left - batch.num_rows());
            self.bytes += batch_bytes(&batch);
            self.parts.push(batch);
        }
        self.ended |= self.left == 0;
        Ok(())
    }

    fn piece(&mut self) -> Result<RecordBatch> {
        let parts = std::mem::take(&mut self.parts);
        (self.rows, self.bytes) = (0, 0);
        match parts.as_slice() {
            [one] => Ok(one.clone()),
            parts => Ok(concat_batches(&self.schema, parts)?),
        }
    }
}

impl Stream for Pieces {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if this.rows >= this.rows_max || this.bytes >= QUERY_PIECE_BYTES_MAX || (this.ended && this.rows > 0) {
                return Poll::Ready(Some(this.piece()));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            match ready!(this.input.poll_next_unpin(cx)) {
                Some(batch) => {
                    if let Err(error) = batch.and_then(|batch| this.add(batch)) {
                        this.ended = true;
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                None => this.ended = true,
            }
        }
    }
}

impl RecordBatchStream for Pieces {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}
