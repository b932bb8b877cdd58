//! Joins, so that what they make is bounded by what is in it and not by how often ([`super::cells`]).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::concat;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::common::JoinSide;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, replace_children_if_necessary};
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, HashJoinExecBuilder, NestedLoopJoinExec, NestedLoopJoinExecBuilder,
};
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
};
use futures_util::{Stream, StreamExt};
use saltus_core::limits::QUERY_PIECE_BYTES_MAX;

use super::cells::{self, Repeats};
use super::nodes::{GuardExec, Watch, fitting};
use super::pieces::PiecesExec;
use super::{Guard, current};

/// The join with what bounds it below and above; `None` if the plan is none.
pub(super) fn bounded(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let made: Arc<dyn ExecutionPlan> = if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        let keys = |side: fn(&(_, _)) -> &Arc<dyn PhysicalExpr>| {
            let columns = join.on().iter().filter_map(|pair| side(pair).downcast_ref::<Column>());
            columns.map(Column::index).collect::<Vec<_>>()
        };
        let (left_keys, right_keys) = (keys(|pair| &pair.0), keys(|pair| &pair.1));
        let left = narrowed(join.left(), Repeats::Rows, &left_keys);
        let right = narrowed(join.right(), Repeats::Rows, &right_keys);
        let filter = join.filter().map(|filter| checked(filter, &left.schema(), &right.schema())).transpose()?;
        let kind = |plan: &Arc<dyn ExecutionPlan>, at: &usize| plan.schema().field(*at).data_type().clone();
        let same_keys = left_keys.iter().all(|at| kind(join.left(), at) == kind(&left, at))
            && right_keys.iter().all(|at| kind(join.right(), at) == kind(&right, at));
        if same_keys {
            let builder = join.builder().with_new_children(vec![left, right])?.with_filter(filter);
            builder.recompute_properties().build_exec()?
        } else {
            // Without the filter that its keys would be for the rows of the other side: that one has other types.
            HashJoinExecBuilder::new(left, right, join.on().to_vec(), *join.join_type())
                .with_filter(filter)
                .with_projection_ref(join.projection.clone())
                .with_partition_mode(*join.partition_mode())
                .with_null_equality(join.null_equality())
                .with_null_aware(join.null_aware)
                .with_fetch(join.fetch())
                .build_exec()?
        }
    } else if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
        let left = owned(narrowed(join.left(), Repeats::Values, &[]));
        let right = narrowed(join.right(), Repeats::Values, &[]);
        let filter = join.filter().map(|filter| checked(filter, &left.schema(), &right.schema())).transpose()?;
        let builder = NestedLoopJoinExecBuilder::new(left, right, *join.join_type());
        Arc::new(builder.with_filter(filter).with_projection_ref(join.projection().clone()).build()?)
    } else if let Some(join) = plan.downcast_ref::<CrossJoinExec>() {
        let left = owned(narrowed(join.left(), Repeats::Values, &[]));
        let join = CrossJoinExec::new(left, narrowed(join.right(), Repeats::Values, &[]));
        // A side of one row makes batches of one row.
        Arc::new(PiecesExec::all(Arc::new(join)))
    } else {
        return Ok(None);
    };
    Ok(Some(wide(Arc::new(GuardExec::new(made, Watch::Share)), plan)))
}

/// What was made of a plan, with the columns that the plan has.
fn wide(made: Arc<dyn ExecutionPlan>, plan: &Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    if made.schema() == plan.schema() {
        return made;
    }
    let (schema, properties) = (plan.schema(), plan.properties().clone());
    Arc::new(CellsExec { input: made, schema, properties, turn: Turn::Wide })
}

/// What deals rows out to threads, where long values were made below it: it puts them together until there are as many rows as a batch
/// may have. `None` if the plan is no such.
pub(super) fn dealt(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if let Some(lifted) = lifted(plan)? {
        return Ok(Some(lifted));
    }
    let Some(deal) = plan.downcast_ref::<RepartitionExec>().filter(|deal| makes_long(deal.input())) else {
        return Ok(None);
    };
    let mut keys = Vec::new();
    if let Partitioning::Hash(exprs, _) = deal.partitioning() {
        keys.extend(exprs.iter().flat_map(collect_columns).map(|column| column.index()));
    }
    // What a key compares stays what it is.
    let Some(schema) = cells::narrowed(&deal.input().schema(), Repeats::Rows, &keys) else { return Ok(None) };
    let fields = schema.fields().iter().enumerate().map(|(at, field)| match keys.contains(&at) {
        true => deal.input().schema().fields()[at].clone(),
        false => field.clone(),
    });
    let schema = Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()));
    if schema == deal.input().schema() {
        return Ok(None);
    }
    let input = replace_children_if_necessary(plan.clone(), vec![turned(deal.input(), schema)])?;
    Ok(Some(wide(Arc::new(GuardExec::new(input, Watch::Share)), plan)))
}

/// What only hands rows on hands on narrow ones, if what makes them wide is right below it.
fn lifted(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let hands_on = plan.downcast_ref::<GlobalLimitExec>().is_some()
        || plan.downcast_ref::<LocalLimitExec>().is_some()
        || plan.downcast_ref::<CoalescePartitionsExec>().is_some()
        || plan
            .downcast_ref::<RepartitionExec>()
            .is_some_and(|deal| matches!(deal.partitioning(), Partitioning::RoundRobinBatch(_)));
    let [child] = plan.children()[..] else { return Ok(None) };
    let cells = child.downcast_ref::<CellsExec>().filter(|cells| hands_on && cells.turn == Turn::Wide);
    let Some(cells) = cells else { return Ok(None) };
    Ok(Some(wide(replace_children_if_necessary(plan.clone(), vec![cells.input.clone()])?, plan)))
}

/// Whether values are made, or put into many rows, that no table has.
pub(super) fn makes_long(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let here = plan.downcast_ref::<CellsExec>().is_some()
        || plan.downcast_ref::<GuardExec>().is_some_and(GuardExec::cuts)
        || plan.downcast_ref::<ProjectionExec>().is_some_and(|plan| {
            plan.expr().iter().any(|made| {
                made.expr.exists(|expr| Ok(expr.downcast_ref::<ScalarFunctionExpr>().is_some())).unwrap_or(true)
            })
        });
    here || plan.children().into_iter().any(makes_long)
}

/// The first input of a join, all of which it keeps.
fn owned(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    // Below the cells: a cell is a part of what it was taken from.
    match plan.downcast_ref::<CellsExec>() {
        Some(cells) => {
            let input = Arc::new(GuardExec::new(cells.input.clone(), Watch::Own));
            Arc::new(CellsExec { input, ..cells.clone() })
        }
        None => Arc::new(GuardExec::new(plan, Watch::Own)),
    }
}

fn narrowed(input: &Arc<dyn ExecutionPlan>, repeats: Repeats, keys: &[usize]) -> Arc<dyn ExecutionPlan> {
    match cells::narrowed(&input.schema(), repeats, keys) {
        Some(schema) => turned(input, schema),
        None => input.clone(),
    }
}

fn turned(input: &Arc<dyn ExecutionPlan>, schema: SchemaRef) -> Arc<dyn ExecutionPlan> {
    let properties = PlanProperties::new(
        EquivalenceProperties::new(schema.clone()),
        input.output_partitioning().clone(),
        input.pipeline_behavior(),
        input.boundedness(),
    );
    Arc::new(CellsExec { input: input.clone(), schema, properties: Arc::new(properties), turn: Turn::Narrow })
}

/// The condition of a join whose inputs are narrow.
fn checked(filter: &JoinFilter, left: &Schema, right: &Schema) -> Result<JoinFilter> {
    let mut narrow = Vec::with_capacity(filter.column_indices().len());
    for (column, field) in filter.column_indices().iter().zip(filter.schema().fields()) {
        let data_type = match column.side {
            JoinSide::Left => left.field(column.index).data_type(),
            JoinSide::Right => right.field(column.index).data_type(),
            JoinSide::None => field.data_type(),
        };
        narrow.push(Arc::new(field.as_ref().clone().with_data_type(data_type.clone())));
    }
    let wide = filter.schema().clone();
    let schema = Arc::new(Schema::new_with_metadata(narrow, wide.metadata().clone()));
    let expression = filter.expression().clone();
    let expression: Arc<dyn PhysicalExpr> = Arc::new(Condition { expression, wide });
    Ok(JoinFilter::new(expression, filter.column_indices().to_vec(), schema))
}

/// A condition over columns that are narrow: it is evaluated for as many rows at once as fit a step, and asks each time whether to go
/// on, as a join may do nothing else for minutes.
#[derive(Debug, Eq)]
struct Condition {
    expression: Arc<dyn PhysicalExpr>,
    /// Its columns as it knows them.
    wide: SchemaRef,
}

impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        self.expression.eq(&other.expression) && self.wide == other.wide
    }
}

impl Hash for Condition {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.expression.hash(state);
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.expression.fmt(f)
    }
}

impl PhysicalExpr for Condition {
    fn data_type(&self, _input_schema: &Schema) -> Result<DataType> {
        self.expression.data_type(&self.wide)
    }

    fn nullable(&self, _input_schema: &Schema) -> Result<bool> {
        self.expression.nullable(&self.wide)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        super::check()?;
        if batch.schema_ref().fields() == self.wide.fields() {
            return self.expression.evaluate(batch);
        }
        let guard = current();
        let mut rest = Some(batch.clone());
        let mut parts = Vec::new();
        while let Some(batch) = rest.take() {
            let first = first_piece(&batch, &self.wide, guard.as_deref())?;
            let rows = first.rows;
            if rows < batch.num_rows() {
                super::check()?;
                rest = Some(batch.slice(rows, batch.num_rows() - rows));
            }
            let wide = cells::convert(&batch.slice(0, rows), &self.wide)?;
            parts.push(self.expression.evaluate(&wide)?.into_array(rows)?);
        }
        if parts.len() == 1 {
            return Ok(ColumnarValue::Array(parts.swap_remove(0)));
        }
        let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        if parts.is_empty() {
            return Ok(ColumnarValue::Array(Arc::new(BooleanArray::new_null(0))));
        }
        Ok(ColumnarValue::Array(concat(&parts)?))
    }

    fn return_field(&self, _input_schema: &Schema) -> Result<FieldRef> {
        self.expression.return_field(&self.wide)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        // Its columns have other types than those of the batch: nobody is to look into it.
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, _children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(self)
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.expression.fmt_sql(f)
    }
}

/// The first rows of a batch, which fit a step when they are wide.
struct Piece {
    rows: usize,
    /// For one row of more.
    _one: Option<MemoryReservation>,
}

fn first_piece(batch: &RecordBatch, wide: &Schema, guard: Option<&Guard>) -> Result<Piece> {
    let mut bytes = vec![0_usize; batch.num_rows()];
    for (column, field) in batch.columns().iter().zip(wide.fields()) {
        for (sum, more) in
            bytes.iter_mut().zip(cells::wide_bytes(column.as_ref(), field.data_type()).unwrap_or_default())
        {
            *sum += more;
        }
    }
    let (rows, total) = fitting(bytes, QUERY_PIECE_BYTES_MAX);
    let one = match guard {
        Some(guard) if total > QUERY_PIECE_BYTES_MAX => Some(guard.memory().take("a join", total)?),
        _ => None,
    };
    Ok(Piece { rows: rows.min(batch.num_rows()), _one: one })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Narrow,
    Wide,
}

/// Turns columns into cells, or cells into what they were.
#[derive(Clone, Debug)]
struct CellsExec {
    input: Arc<dyn ExecutionPlan>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    turn: Turn,
}

impl DisplayAs for CellsExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CellsExec: {:?}", self.turn)
    }
}

impl ExecutionPlan for CellsExec {
    fn name(&self) -> &'static str {
        "CellsExec"
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
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
        let (schema, turn) = (self.schema.clone(), self.turn);
        Ok(Box::pin(Turned { input, schema, turn, guard: current(), rest: None, piece: None }))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

struct Turned {
    input: SendableRecordBatchStream,
    schema: SchemaRef,
    turn: Turn,
    guard: Option<Arc<Guard>>,
    /// What is left of a batch that was cut.
    rest: Option<RecordBatch>,
    /// The rows that were given last.
    piece: Option<Piece>,
}

impl Turned {
    fn next(&mut self, batch: RecordBatch) -> Result<RecordBatch> {
        if self.turn == Turn::Narrow {
            return cells::convert(&batch, &self.schema);
        }
        let piece = first_piece(&batch, &self.schema, self.guard.as_deref())?;
        let rows = piece.rows;
        self.piece = Some(piece);
        if rows < batch.num_rows() {
            self.rest = Some(batch.slice(rows, batch.num_rows() - rows));
        }
        cells::convert(&batch.slice(0, rows), &self.schema)
    }
}

impl Stream for Turned {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.piece = None;
        let next = match this.rest.take() {
            Some(rest) => Some(super::check().map(|()| rest)),
            None => ready!(this.input.poll_next_unpin(cx)),
        };
        Poll::Ready(next.map(|batch| batch.and_then(|batch| this.next(batch))))
    }
}

impl RecordBatchStream for Turned {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, DictionaryArray, Int64Array, ListArray, StringArray};
    use arrow::datatypes::{Int32Type, Int64Type};
    use arrow::util::pretty::pretty_format_batches;
    use datafusion::execution::SessionStateBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;
    use crate::query::guard::Checkpoints;

    /// Texts of all lengths, lists, tags, and values that are there several times or not at all.
    fn table(seed: i64, rows: i64) -> RecordBatch {
        let at = |row: i64| (row * 7919 + seed * 104_729) % 13;
        let text = |row: i64| (at(row) != 5).then(|| format!("text {}", "x".repeat((at(row) * 3) as usize)));
        let texts: Vec<Option<String>> = (0..rows).map(text).collect();
        let list = |row: i64| (at(row) != 7).then(|| (0..at(row) % 4).map(Some).collect::<Vec<_>>());
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("k", Arc::new(Int64Array::from_iter((0..rows).map(|row| (at(row) != 3).then(|| at(row)))))),
            ("s", Arc::new(StringArray::from(texts.clone()))),
            ("h", Arc::new(DictionaryArray::<Int32Type>::from_iter(texts.iter().map(|text| text.as_deref())))),
            ("l", Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>((0..rows).map(list)))),
            ("n", Arc::new(Int64Array::from_iter_values(0..rows))),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
            .unwrap()
    }

    fn context(rule: bool, batch_rows: usize) -> SessionContext {
        let config = SessionConfig::new().with_batch_size(batch_rows).with_target_partitions(2);
        let mut state = SessionStateBuilder::new().with_config(config).with_default_features();
        if rule {
            state = state.with_physical_optimizer_rule(Arc::new(Checkpoints));
        }
        let context = SessionContext::new_with_state(state.build());
        context.register_batch("a", table(1, 40)).unwrap();
        context.register_batch("b", table(2, 23)).unwrap();
        context.register_batch("c", table(3, 0)).unwrap();
        context
    }

    async fn rows(context: &SessionContext, sql: &str) -> Vec<String> {
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let mut rows: Vec<String> =
            pretty_format_batches(&batches).unwrap().to_string().lines().map(str::to_owned).collect();
        rows.sort();
        rows
    }

    #[test]
    fn joins_are_as_without_cells() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let kinds =
            ["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "LEFT SEMI JOIN", "LEFT ANTI JOIN", "RIGHT SEMI JOIN"];
        let conditions = [
            "a.k = b.k",
            "a.s = b.s",
            "a.h = b.h",
            "a.s = b.s AND a.k = b.k AND a.l <> b.l",
            "a.k = b.k AND a.s || 'x' < b.s || 'y'",
            "a.k < b.k",
            "a.s < b.s AND length(a.h) > b.k",
            "a.l <> b.l AND a.n < b.n",
        ];
        let mut statements: Vec<String> = Vec::new();
        for kind in kinds {
            for condition in conditions {
                statements.push(format!("SELECT * FROM a {kind} b ON {condition}"));
            }
        }
        statements.extend(
            [
                "SELECT a.s, b.h, b.l FROM a CROSS JOIN b",
                "SELECT * FROM a CROSS JOIN c",
                "SELECT * FROM a LEFT JOIN c ON a.s = c.s",
                "SELECT * FROM c FULL JOIN b ON c.k < b.k",
                "SELECT a.l, x.s, y.h FROM a JOIN b x ON a.s = x.s JOIN b y ON x.n <> y.n AND y.s <> a.s",
                "SELECT s FROM a WHERE s IN (SELECT s FROM b) OR k > 8",
                "SELECT s, l FROM a WHERE s NOT IN (SELECT s FROM b WHERE s IS NOT NULL)",
                "SELECT h, (SELECT max(b.s) FROM b WHERE b.k = a.k) AS m FROM a",
                "SELECT count(*) FROM a, b WHERE EXISTS (SELECT 1 FROM a x WHERE x.s > b.s AND x.n < a.n)",
            ]
            .map(str::to_owned),
        );
        for batch_rows in [8192, 5] {
            let (with, without) = (context(true, batch_rows), context(false, batch_rows));
            for sql in &statements {
                let (found, expected) = runtime.block_on(async { (rows(&with, sql).await, rows(&without, sql).await) });
                assert_eq!(found, expected, "{sql}");
            }
        }
    }
}
