//! A node of a physical plan that watches what goes through it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::{Array, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::CardinalityEffect;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures_util::{Stream, StreamExt};
use saltus_core::limits::{QUERY_PIECE_BYTES_MAX, QUERY_STEP_BYTES_MAX};

use super::cells;
use super::estimate::{batch_bytes, data_bytes, lengths, scalar_bytes};
use super::values::Values;
use super::{Guard, current};

/// What is done with each batch.
#[derive(Clone, Debug)]
pub(super) enum Watch {
    /// The query's bounds are asked.
    Check,
    /// Likewise, and what it refers to is there once.
    Share,
    /// It is counted until the end: whoever reads it keeps it.
    Hold,
    /// It is copied if it is a part of something much larger: whoever keeps it counts all of what it is a part of.
    Own,
    /// It is cut so that what is put into each row fits a step, and a single row of more is counted.
    Cut(Cuts),
    /// It is cut so that rows which are repeated for each item of these columns stay a step, and a single row of more is counted.
    Unnest(Vec<usize>),
}

/// What expressions put into each row that an operator makes.
#[derive(Clone, Debug, Default)]
pub(super) struct Cuts {
    /// Bytes of the longest constant.
    pub constant: usize,
    /// Subqueries of one value, which is known when the rows come.
    pub subqueries: Vec<Arc<dyn PhysicalExpr>>,
    /// Columns of numbers that stand for values.
    pub kept: Vec<(usize, Values)>,
}

impl Cuts {
    /// Bytes of each row of the batch.
    fn per_row(&self, batch: &RecordBatch) -> Result<Vec<usize>> {
        let mut longest = self.constant;
        for subquery in &self.subqueries {
            let ColumnarValue::Scalar(value) = subquery.evaluate(&RecordBatch::new_empty(batch.schema()))? else {
                continue;
            };
            longest = longest.max(scalar_bytes(&value));
        }
        let mut rows = vec![longest; batch.num_rows()];
        for (at, values) in &self.kept {
            let Some(column) = batch.columns().get(*at) else { continue };
            for (row, more) in rows.iter_mut().zip(values.bytes(column.as_ref())) {
                *row = row.saturating_add(more);
            }
        }
        Ok(rows)
    }
}

/// What nodes have in common that have one input, `input`, and give its rows in its order.
macro_rules! one_input {
    () => {
        fn maintains_input_order(&self) -> Vec<bool> {
            vec![true]
        }

        fn benefits_from_input_partitioning(&self) -> Vec<bool> {
            vec![false]
        }

        fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
            vec![&self.input]
        }

        fn replace_children(
            self: Arc<Self>,
            mut children: Vec<Arc<dyn ExecutionPlan>>,
            _options: datafusion::physical_plan::execution_plan::ReplaceChildrenOptions,
        ) -> Result<Arc<dyn ExecutionPlan>> {
            Ok(Arc::new(Self { input: children.swap_remove(0), ..self.as_ref().clone() }))
        }

        fn with_new_children(
            self: Arc<Self>,
            mut children: Vec<Arc<dyn ExecutionPlan>>,
        ) -> Result<Arc<dyn ExecutionPlan>> {
            Ok(Arc::new(Self { input: children.swap_remove(0), ..self.as_ref().clone() }))
        }
    };
}
pub(super) use one_input;

/// The node: rows, order and partitions are those of its input.
#[derive(Clone, Debug)]
pub(super) struct GuardExec {
    input: Arc<dyn ExecutionPlan>,
    watch: Watch,
}

impl GuardExec {
    pub(super) fn new(input: Arc<dyn ExecutionPlan>, watch: Watch) -> Self {
        GuardExec { input, watch }
    }

    /// It cuts batches, as long values are made of them.
    pub(super) fn cuts(&self) -> bool {
        matches!(self.watch, Watch::Cut(_) | Watch::Unnest(_))
    }
}

impl DisplayAs for GuardExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuardExec: {:?}", self.watch)
    }
}

impl ExecutionPlan for GuardExec {
    fn name(&self) -> &'static str {
        "GuardExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    super::nodes::one_input!();

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let Some(guard) = current() else { return Ok(input) };
        let watched = Watched { input, watch: self.watch.clone(), guard, rest: None, held: Vec::new(), one: None };
        Ok(Box::pin(watched))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

struct Watched {
    input: SendableRecordBatchStream,
    watch: Watch,
    guard: Arc<Guard>,
    /// What is left of a batch that was cut.
    rest: Option<RecordBatch>,
    held: Vec<MemoryReservation>,
    /// For the row that was given last.
    one: Option<MemoryReservation>,
}

impl Watched {
    fn next(&mut self, batch: RecordBatch) -> Result<RecordBatch> {
        match &self.watch {
            Watch::Check => Ok(batch),
            Watch::Share => cells::shared(batch),
            Watch::Hold => {
                self.held.push(self.guard.memory().take("a window", batch_bytes(&batch))?);
                Ok(batch)
            }
            Watch::Own => own(batch),
            Watch::Cut(cuts) => {
                let (rows, bytes) = fitting(cuts.per_row(&batch)?, QUERY_PIECE_BYTES_MAX);
                if bytes > QUERY_PIECE_BYTES_MAX {
                    self.one = Some(self.guard.memory().take("a row", bytes)?);
                }
                Ok(self.cut(batch, rows))
            }
            Watch::Unnest(lists) => {
                let (rows, bytes) = unnested(&batch, lists);
                if rows == 1 && bytes > QUERY_STEP_BYTES_MAX {
                    self.one = Some(self.guard.memory().take("unnest", bytes)?);
                }
                Ok(self.cut(batch, rows))
            }
        }
    }

    fn cut(&mut self, batch: RecordBatch, rows: usize) -> RecordBatch {
        if batch.num_rows() <= rows {
            return batch;
        }
        self.rest = Some(batch.slice(rows, batch.num_rows() - rows));
        batch.slice(0, rows)
    }
}

/// The rows, with memory that is theirs alone; parts of a table's chunks share the whole chunk.
fn own(batch: RecordBatch) -> Result<RecordBatch> {
    let rows = u32::try_from(batch.num_rows()).unwrap_or(u32::MAX);
    if batch.num_columns() == 0 || batch.get_array_memory_size() <= batch_bytes(&batch).saturating_mul(2) {
        return Ok(batch);
    }
    Ok(take_record_batch(&batch, &UInt32Array::from_iter_values(0..rows))?)
}

/// How many of the first rows have so many bytes at most, one at least; and their bytes.
pub(super) fn fitting(rows: impl IntoIterator<Item = usize>, bytes_max: usize) -> (usize, usize) {
    let (mut taken, mut bytes) = (0, 0_usize);
    for row in rows {
        let more = bytes.saturating_add(row);
        if taken > 0 && more > bytes_max {
            break;
        }
        (taken, bytes) = (taken + 1, more);
    }
    (taken.max(1), bytes)
}

/// How many of the first rows stay a step when they are repeated for each item of their lists, one at least; and their bytes then.
fn unnested(batch: &RecordBatch, lists: &[usize]) -> (usize, usize) {
    let rows = batch.num_rows();
    let mut items = vec![1_usize; rows];
    let mut others = vec![0_usize; rows];
    for (at, column) in batch.columns().iter().enumerate() {
        let bytes = lengths(&ColumnarValue::Array(column.clone()), rows);
        let is_list = lists.contains(&at);
        for row in 0..rows {
            if is_list {
                items[row] = items[row].max(bytes[row] / item_bytes(column.as_ref()));
            } else {
                others[row] = others[row].saturating_add(bytes[row]);
            }
        }
    }
    let rows =
        items.iter().zip(&others).map(|(items, others)| items.saturating_mul(others.saturating_add(size_of::<i64>())));
    fitting(rows, QUERY_STEP_BYTES_MAX)
}

/// Bytes of an item of the lists on average.
fn item_bytes(lists: &dyn Array) -> usize {
    use arrow::array::AsArray;
    use arrow::datatypes::DataType;
    let values = match lists.data_type() {
        DataType::List(_) => lists.as_list::<i32>().values().clone(),
        DataType::LargeList(_) => lists.as_list::<i64>().values().clone(),
        DataType::FixedSizeList(..) => lists.as_fixed_size_list().values().clone(),
        _ => return 1,
    };
    data_bytes(values.as_ref()).div_ceil(values.len().max(1)).max(1)
}

impl Stream for Watched {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.one = None;
        if let Err(error) = this.guard.check() {
            return Poll::Ready(Some(Err(error)));
        }
        let next = match this.rest.take() {
            Some(rest) => Some(Ok(rest)),
            None => ready!(this.input.poll_next_unpin(cx)),
        };
        Poll::Ready(next.map(|batch| batch.and_then(|batch| this.next(batch))))
    }
}

impl RecordBatchStream for Watched {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}
