//! The rule that lets operators look at the query's bounds where they would not come up for air by themselves.
//!
//! DataFusion's operators give way between batches. Some work for long within one: a nested-loop join whose condition holds for few
//! rows goes through all pairs in one go. What such a loop does for each piece is to evaluate its condition, which looks at the
//! bounds ([`super::joins`]). An operator that makes more rows than it reads gets a node above it that asks for each batch, and
//! one that would take a batch as large as it pleases gets a node below that counts or cuts ([`super::nodes`]).

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::scalar_subquery::ScalarSubqueryExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::WindowAggExec;

use super::estimate::scalar_bytes;
use super::nodes::{Cuts, GuardExec, Watch};
use super::pieces::PiecesExec;
use super::values;

/// A constant of fewer bytes is written into as many rows as a batch has.
const LONG_CONSTANT_BYTES: usize = 2048;

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
    if let Some(join) = super::joins::bounded(&plan)? {
        return Ok(Transformed::yes(join));
    }
    if let Some(dealt) = super::joins::dealt(&plan)? {
        return Ok(Transformed::yes(dealt));
    }
    if let Some(filter) = plan.downcast_ref::<FilterExec>().filter(|filter| super::joins::makes_long(filter.input())) {
        let pieces: Arc<dyn ExecutionPlan> = Arc::new(PiecesExec::filter(filter));
        return Ok(Transformed::yes(match cuts(&plan)? {
            Some(cuts) => under(pieces, || Watch::Cut(cuts))?,
            None => pieces,
        }));
    }
    if plan.downcast_ref::<SortExec>().is_some_and(|sort| sort.fetch().is_none()) {
        return Ok(Transformed::yes(under_first(plan)?));
    }
    if plan.downcast_ref::<WindowAggExec>().is_some() {
        return Ok(Transformed::yes(over(under(plan, || Watch::Hold)?)));
    }
    if let Some(unnest) = plan.downcast_ref::<UnnestExec>() {
        let lists = unnest.list_column_indices().iter().map(|list| list.index_in_input_schema).collect();
        return Ok(Transformed::yes(over(under(plan, || Watch::Unnest(lists))?)));
    }
    if let Some(cuts) = cuts(&plan)? {
        return Ok(Transformed::yes(under(plan, || Watch::Cut(cuts))?));
    }
    // A table gives way by itself; what makes rows of nothing, `generate_series` for example, does not always.
    let is_source = plan.children().is_empty() && plan.downcast_ref::<DataSourceExec>().is_none();
    let makes_more = is_source || plan.children().len() > 1 || plan.downcast_ref::<RecursiveQueryExec>().is_some();
    Ok(if makes_more { Transformed::yes(over(plan)) } else { Transformed::no(plan) })
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

/// What an operator's own expressions put into each row; `None` if it is not worth a look.
fn cuts(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Cuts>> {
    let Some(schema) = plan.children().first().map(|input| input.schema()) else { return Ok(None) };
    // A condition makes no rows.
    let is_filter = plan.downcast_ref::<FilterExec>().is_some();
    let mut cuts = Cuts::default();
    plan.apply_expressions(&mut |root| {
        root.apply(|expr| {
            if is_one_number(expr, &schema) {
                return Ok(TreeNodeRecursion::Jump);
            }
            if let Some(kept) = values::widened(expr) {
                cuts.kept.push(kept);
            } else if let Some(literal) = expr.downcast_ref::<Literal>().filter(|_| !is_filter) {
                cuts.constant = cuts.constant.max(scalar_bytes(literal.value()));
            } else if expr.downcast_ref::<ScalarSubqueryExpr>().is_some() && !is_filter {
                cuts.subqueries.push(expr.clone());
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    let matters = cuts.constant > LONG_CONSTANT_BYTES || !cuts.kept.is_empty() || !cuts.subqueries.is_empty();
    Ok(matters.then_some(cuts))
}

/// Whether the expression is computed once for all rows, and is nothing long.
fn is_one_number(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> bool {
    expr.data_type(schema).is_ok_and(|data_type| data_type.is_primitive() || data_type == DataType::Boolean)
        && !expr.exists(|expr| Ok(expr.downcast_ref::<Column>().is_some())).unwrap_or(true)
}
