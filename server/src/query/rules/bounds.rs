//! Comparisons of a timestamp with a time that it cannot reach: `time < '9999-12-31'`, `time > '0001-01-01'`.
//!
//! Nanoseconds since 1970 in 64 bits reach from 1677-09-21 to 2262-04-11. Clients write times beyond these for "always" and
//! "never". Such a time, which cannot be cast to the type it is compared in, is replaced: `time < '9999-12-31'` becomes
//! `time <=` the last timestamp, which every timestamp fulfils, and `time >` it, which none does.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr::{Between, BinaryExpr, Cast};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable, Operator};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;

/// The seconds that a timestamp of nanoseconds certainly cannot have are outside of these.
const FIRST_SECOND: i64 = i64::MIN / 1_000_000_000 - 1;
const LAST_SECOND: i64 = i64::MAX / 1_000_000_000;

/// Where a time lies that is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beyond {
    Before,
    After,
}

/// Whether a bound of the range is out of reach.
pub(super) fn concerns(between: &Between, schema: &DFSchema) -> bool {
    [&between.low, &between.high].into_iter().any(|bound| beyond(bound, schema).is_some())
}

/// The comparison, decided if one side is out of reach of the other.
pub(super) fn comparison(binary: BinaryExpr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let BinaryExpr { left, op, right } = binary;
    let decided = match (beyond(&left, schema), beyond(&right, schema)) {
        (None, Some(side)) => decided(&left, op, side, schema)?,
        (Some(side), None) => match op.swap() {
            Some(op) => decided(&right, op, side, schema)?,
            None => None,
        },
        _ => None,
    };
    Ok(match decided {
        Some(expr) => Transformed::yes(expr),
        None => Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })),
    })
}

/// `time op x` where `x` is beyond all timestamps; NULL where `time` is NULL, as it must be.
fn decided(time: &Expr, op: Operator, side: Beyond, schema: &DFSchema) -> Result<Option<Expr>> {
    let DataType::Timestamp(_, zone) = time.get_type(schema)? else { return Ok(None) };
    let end = |at| Expr::Literal(ScalarValue::TimestampNanosecond(Some(at), zone.clone()), None);
    let (always, never) = match side {
        Beyond::After => (time.clone().lt_eq(end(i64::MAX)), time.clone().gt(end(i64::MAX))),
        Beyond::Before => (time.clone().gt_eq(end(i64::MIN)), time.clone().lt(end(i64::MIN))),
    };
    Ok(Some(match (op, side) {
        (Operator::Lt | Operator::LtEq, Beyond::After) | (Operator::Gt | Operator::GtEq, Beyond::Before) => always,
        (Operator::Lt | Operator::LtEq, Beyond::Before) | (Operator::Gt | Operator::GtEq, Beyond::After) => never,
        (Operator::Eq, _) => never,
        (Operator::NotEq, _) => always,
        (Operator::IsDistinctFrom, _) => Expr::Literal(ScalarValue::Boolean(Some(true)), None),
        (Operator::IsNotDistinctFrom, _) => Expr::Literal(ScalarValue::Boolean(Some(false)), None),
        _ => return Ok(None),
    }))
}

/// Where a constant lies that is cast to a timestamp of nanoseconds and cannot be one.
fn beyond(expr: &Expr, schema: &DFSchema) -> Option<Beyond> {
    let Expr::Cast(cast) = expr else { return None };
    let DataType::Timestamp(TimeUnit::Nanosecond, zone) = cast.field.data_type() else { return None };
    let inner = innermost(&cast.expr);
    if inner.any_column_refs() || inner.is_volatile() || !is_readable(&inner.get_type(schema).ok()?) {
        return None;
    }
    let seconds = DataType::Timestamp(TimeUnit::Second, zone.clone());
    match evaluate(Expr::Cast(Cast::new(Box::new(inner.clone()), seconds)))? {
        ScalarValue::TimestampSecond(Some(at), _) if at > LAST_SECOND => Some(Beyond::After),
        ScalarValue::TimestampSecond(Some(at), _) if at < FIRST_SECOND => Some(Beyond::Before),
        _ => None,
    }
}

/// What stands below casts to timestamps of nanoseconds (`TIMESTAMP '...'` is one, and may be cast again).
fn innermost(expr: &Expr) -> &Expr {
    match expr {
        Expr::Cast(cast) if matches!(cast.field.data_type(), DataType::Timestamp(TimeUnit::Nanosecond, _)) => {
            innermost(&cast.expr)
        }
        other => other,
    }
}

/// A type that is read as a time of its own, and not as a number of nanoseconds.
fn is_readable(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 | DataType::Date32 | DataType::Date64)
        || matches!(kind, DataType::Timestamp(unit, _) if *unit != TimeUnit::Nanosecond)
}

/// The value of a constant; `None` if it has none.
fn evaluate(expr: Expr) -> Option<ScalarValue> {
    let context = SimplifyContext::builder().with_schema(Arc::new(DFSchema::empty())).build();
    match ExprSimplifier::new(context).simplify(expr).ok()? {
        Expr::Literal(value, _) => Some(value),
        _ => None,
    }
}
