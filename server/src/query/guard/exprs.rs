//! The rule that lets operators look at the query's bounds where they would not come up for air by themselves.
//!
//! DataFusion's operators give way between batches. Some work for long within one: a nested-loop join whose condition holds for few
//! rows goes through all pairs in one go. What such a loop does for each piece is to evaluate an expression; that expression gets
//! a [`Checkpoint`] around it. An operator that makes more rows than it reads gets a node above it that asks for each batch, and
//! one that would take a batch as large as it pleases gets a node below that counts or cuts ([`super::nodes`]).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Literal;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder};
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::WindowAggExec;
use saltus_core::limits::QUERY_STEP_BYTES_MAX;

use super::estimate::scalar_bytes;
use super::nodes::{GuardExec, Watch};

/// A constant of fewer bytes is written into as many rows as a batch has.
const LONG_CONSTANT_BYTES: usize = 2048;

/// An expression that asks whether to go on before it is evaluated.
#[derive(Debug, Eq)]
struct Checkpoint(Arc<dyn PhysicalExpr>);

impl PartialEq for Checkpoint {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq(&other.0)
    }
}

impl Hash for Checkpoint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PhysicalExpr for Checkpoint {
    fn data_type(&self, input_schema: &Schema) -> Result<DataType> {
        self.0.data_type(input_schema)
    }

    fn nullable(&self, input_schema: &Schema) -> Result<bool> {
        self.0.nullable(input_schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        super::check()?;
        self.0.evaluate(batch)
    }

    fn return_field(&self, input_schema: &Schema) -> Result<FieldRef> {
        self.0.return_field(input_schema)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.0]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(Checkpoint(children.swap_remove(0))))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_sql(f)
    }
}

/// The rule.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints;

impl PhysicalOptimizerRule for Checkpoints {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(watched).map(|plan| plan.data)
    }

    fn name(&self) -> &'static str {
        "checkpoints"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn watched(plan: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
        let filter = join.filter().map(checked);
        let join = NestedLoopJoinExecBuilder::from(join).with_filter(filter).build()?;
        return Ok(Transformed::yes(over(under_first(Arc::new(join))?)));
    }
    if plan.downcast_ref::<CrossJoinExec>().is_some() {
        return Ok(Transformed::yes(over(under_first(plan)?)));
    }
    if plan.downcast_ref::<SortExec>().is_some_and(|sort| sort.fetch().is_none()) {
        return Ok(Transformed::yes(under_first(plan)?));
    }
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        let filter = join.filter().map(checked);
        return Ok(Transformed::yes(over(join.builder().with_filter(filter).build_exec()?)));
    }
    if plan.downcast_ref::<WindowAggExec>().is_some() {
        return Ok(Transformed::yes(over(under(plan, || Watch::Hold)?)));
    }
    if let Some(unnest) = plan.downcast_ref::<UnnestExec>() {
        let lists = unnest.list_column_indices().iter().map(|list| list.index_in_input_schema).collect();
        return Ok(Transformed::yes(over(under(plan, || Watch::Unnest(lists))?)));
    }
    let long = longest_constant(&plan)?;
    if long > LONG_CONSTANT_BYTES && !plan.children().is_empty() && plan.downcast_ref::<FilterExec>().is_none() {
        let rows = (QUERY_STEP_BYTES_MAX / long).max(1);
        return Ok(Transformed::yes(under(plan, || Watch::Cut(rows))?));
    }
    // A table gives way by itself; what makes rows of nothing, `generate_series` for example, does not always.
    let is_source = plan.children().is_empty() && plan.downcast_ref::<DataSourceExec>().is_none();
    let makes_more = is_source || plan.children().len() > 1 || plan.downcast_ref::<RecursiveQueryExec>().is_some();
    Ok(if makes_more { Transformed::yes(over(plan)) } else { Transformed::no(plan) })
}

fn checked(filter: &JoinFilter) -> JoinFilter {
    let expression = Arc::new(Checkpoint(filter.expression().clone()));
    JoinFilter::new(expression, filter.column_indices().to_vec(), filter.schema().clone())
}

fn over(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    Arc::new(GuardExec::new(plan, Watch::Check))
}

/// The plan with a node below it.
fn under(plan: Arc<dyn ExecutionPlan>, watch: impl FnOnce() -> Watch) -> Result<Arc<dyn ExecutionPlan>> {
    let watch = watch();
    let children = plan.children().into_iter();
    let children = children.map(|child| Arc::new(GuardExec::new(child.clone(), watch.clone())) as Arc<_>).collect();
    datafusion::physical_plan::execution_plan::replace_children_if_necessary(plan, children)
}

/// The plan with a node below its first input, all of which it keeps.
fn under_first(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let mut children: Vec<Arc<dyn ExecutionPlan>> = plan.children().into_iter().cloned().collect();
    if let Some(first) = children.first_mut() {
        *first = Arc::new(GuardExec::new(first.clone(), Watch::Own));
    }
    datafusion::physical_plan::execution_plan::replace_children_if_necessary(plan, children)
}

/// Bytes of the longest constant in the operator's own expressions.
fn longest_constant(plan: &Arc<dyn ExecutionPlan>) -> Result<usize> {
    let mut longest = 0;
    plan.apply_expressions(&mut |root| {
        root.apply(|expr| {
            if let Some(literal) = expr.downcast_ref::<Literal>() {
                longest = longest.max(scalar_bytes(literal.value()));
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(longest)
}
