//! `x IN (SELECT ...)` that is unknown where NULLs make it so.
//!
//! Alone, DataFusion joins for it and minds NULLs. Within another condition it asks only whether there is a match, and takes
//! "unknown" for false: `NOT (b AND x IN (SELECT y ...))` then keeps rows that it may not keep. Where that makes a
//! difference, the condition is written out: true if there is a match; unknown if there is none, and `x` or a `y` is NULL.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Column, DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{BinaryExpr, Exists, InSubquery};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, Subquery, and, is_null, lit, or, when,
};

/// The predicate of a filter, with what is within other conditions written out.
pub(super) fn predicate(predicate: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    if !predicate.exists(|expr| Ok(matches!(expr, Expr::InSubquery(_))))? {
        return Ok(Transformed::no(predicate));
    }
    let mut changed = false;
    let mut parts = Vec::new();
    for part in split_conjunction_owned(predicate) {
        let part = if is_alone(&part) { Transformed::no(part) } else { positive(part, schema)? };
        changed |= part.transformed;
        parts.push(part.data);
    }
    let whole = conjunction(parts).unwrap_or_else(|| lit(true));
    Ok(if changed { Transformed::yes(whole) } else { Transformed::no(whole) })
}

/// What DataFusion makes a join of.
fn is_alone(expr: &Expr) -> bool {
    match expr {
        Expr::InSubquery(_) => true,
        Expr::Not(inner) => matches!(inner.as_ref(), Expr::InSubquery(_)),
        _ => false,
    }
}

/// A condition that is kept where it is true: there, false is as good as unknown.
fn positive(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            let (left, right) = (positive(*left, schema)?, positive(*right, schema)?);
            let changed = left.transformed || right.transformed;
            let whole = Expr::BinaryExpr(BinaryExpr { left: Box::new(left.data), op, right: Box::new(right.data) });
            Ok(if changed { Transformed::yes(whole) } else { Transformed::no(whole) })
        }
        Expr::InSubquery(membership) if !membership.negated => Ok(Transformed::no(Expr::InSubquery(membership))),
        other => other.transform_up(|expr| match expr {
            Expr::InSubquery(membership) => written_out(membership, schema),
            other => Ok(Transformed::no(other)),
        }),
    }
}

fn written_out(membership: InSubquery, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let InSubquery { expr: value, subquery, negated } = &membership;
    let members = subquery.subquery.as_ref();
    let (qualifier, field) = members.schema().qualified_field(0);
    let (value_nullable, member_nullable) = (value.nullable(schema)?, field.is_nullable());
    // Of a value that is another query's nothing is known here.
    let is_own = !value.exists(|expr| Ok(matches!(expr, Expr::OuterReferenceColumn(..) | Expr::ScalarSubquery(_))))?;
    if !is_own || !(value_nullable || member_nullable) {
        return Ok(Transformed::no(Expr::InSubquery(membership)));
    }
    let member = || Expr::Column(Column::new(qualifier.cloned(), field.name()));
    let found = exists(filtered(members, member().eq(from_outside(value, schema)?))?, subquery);
    let mut unknown = Vec::new();
    if value_nullable {
        unknown.push(and(is_null(value.as_ref().clone()), exists(members.clone(), subquery)));
    }
    if member_nullable {
        unknown.push(exists(filtered(members, is_null(member()))?, subquery));
    }
    let unknown = unknown.into_iter().reduce(or).unwrap_or_else(|| lit(false));
    let null = Expr::Literal(ScalarValue::Boolean(None), None);
    let case = when(found, lit(!negated)).when(unknown, null).otherwise(lit(*negated))?;
    Ok(Transformed::yes(case))
}

fn filtered(members: &LogicalPlan, predicate: Expr) -> Result<LogicalPlan> {
    LogicalPlanBuilder::from(members.clone()).filter(predicate)?.build()
}

fn exists(plan: LogicalPlan, like: &Subquery) -> Expr {
    let outer_ref_columns = plan.all_out_ref_exprs();
    let subquery = Subquery { subquery: Arc::new(plan), outer_ref_columns, spans: like.spans.clone() };
    Expr::Exists(Exists::new(subquery, false))
}

/// The value as the subquery sees it.
fn from_outside(value: &Expr, schema: &DFSchema) -> Result<Expr> {
    let outside = |expr: Expr| match expr {
        Expr::Column(column) => {
            let (_, field) = schema.qualified_field_from_column(&column)?;
            Ok(Transformed::yes(Expr::OuterReferenceColumn(field.clone(), column)))
        }
        other => Ok(Transformed::no(other)),
    };
    value.clone().transform_up(outside).data()
}
