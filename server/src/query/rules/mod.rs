//! What is put right in a plan after DataFusion has resolved its types and before it optimises.
//!
//! - Integer operators that would wrap around become functions that fail (`functions::checked`).
//! - `extract` becomes the `date_part` of this server (`functions::date_part`).
//! - A comparison with a time that no timestamp of nanoseconds can hold ("forever") is decided (`bounds`).
//! - Intervals are compared by their length (`intervals`).
//!
//! **Invariant:** a rewritten expression has the type and the name that it had: a plan's columns do not change.

mod bounds;
mod intervals;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::expr::{BinaryExpr, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, Operator};
use datafusion::optimizer::AnalyzerRule;

use super::functions::{checked, date_part};

/// Adds the rule behind DataFusion's own.
pub(super) fn register(builder: SessionStateBuilder) -> SessionStateBuilder {
    builder.with_analyzer_rule(std::sync::Arc::new(Mend))
}

#[derive(Debug)]
struct Mend;

impl AnalyzerRule for Mend {
    fn name(&self) -> &str {
        "mend"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        Ok(plan.transform_up_with_subqueries(node)?.data)
    }
}

/// One node of a plan, whose inputs are done.
fn node(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let mut schema = merge_schema(&plan.inputs());
    if let LogicalPlan::TableScan(scan) = &plan {
        schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?);
    }
    let names = NamePreserver::new(&plan);
    let mended = plan.map_expressions(|expr| {
        let name = names.save(&expr);
        let mended = expr.transform_up(|expr| expression(expr, &schema))?;
        Ok(if mended.transformed { mended.update_data(|expr| name.restore(expr)) } else { mended })
    })?;
    if mended.transformed { mended.map_data(LogicalPlan::recompute_schema) } else { Ok(mended) }
}

/// One expression, whose parts are done.
fn expression(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(binary) => match checked::binary(binary.op) {
            Some(call) => Ok(arithmetic(binary, call, schema)),
            None if is_comparison(binary.op) => comparison(binary, schema),
            None => Ok(Transformed::no(Expr::BinaryExpr(binary))),
        },
        Expr::Negative(value) if is_integer(&value, schema) => Ok(Transformed::yes(checked::negate(*value))),
        Expr::ScalarFunction(call) if date_part::is_plain(&call.func) => {
            Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(date_part::date_part(), call.args))))
        }
        Expr::Between(between) => match bounds::concerns(&between, schema) || intervals::concerns(&between, schema) {
            true => {
                let both = two_comparisons(between).transform_up(|expr| expression(expr, schema))?;
                Ok(Transformed::yes(both.data))
            }
            false => Ok(Transformed::no(Expr::Between(between))),
        },
        other => Ok(Transformed::no(other)),
    }
}

fn arithmetic(binary: BinaryExpr, call: fn(Expr, Expr) -> Expr, schema: &DFSchema) -> Transformed<Expr> {
    match is_integer(&binary.left, schema) && is_integer(&binary.right, schema) {
        true => Transformed::yes(call(*binary.left, *binary.right)),
        false => Transformed::no(Expr::BinaryExpr(binary)),
    }
}

fn is_comparison(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// Of an expression whose type is not known (a parameter of a lambda) nothing is said.
fn is_integer(expr: &Expr, schema: &DFSchema) -> bool {
    expr.get_type(schema).is_ok_and(|kind| kind.is_integer())
}

fn comparison(binary: BinaryExpr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let mended = bounds::comparison(binary, schema)?;
    match mended.data {
        Expr::BinaryExpr(binary) if !mended.transformed => intervals::comparison(binary, schema),
        _ => Ok(mended),
    }
}

/// `x BETWEEN a AND b` as the comparisons that it stands for.
fn two_comparisons(between: datafusion::logical_expr::expr::Between) -> Expr {
    let (low, high) = (between.expr.clone().gt_eq(*between.low), between.expr.lt_eq(*between.high));
    match between.negated {
        true => datafusion::logical_expr::not(low.and(high)),
        false => low.and(high),
    }
}
