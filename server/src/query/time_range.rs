//! What a query's predicates say about `time`.
//!
//! The answer is an interval that contains every row the predicates accept; it may be wider. A predicate that is not
//! understood says nothing. DataFusion has already coerced types and folded constants, so a bound is a literal:
//! `now() - INTERVAL '1 hour'` and `'2024-01-01T00:00:00'` arrive as timestamps.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::{Between, BinaryExpr, InList};
use datafusion::logical_expr::{Expr, Operator};

/// The name of every table's time column.
const TIME: &str = "time";

/// The inclusive interval that all of `filters` together leave; `None` if they leave all of time. An interval whose first
/// end is behind its second holds nothing.
pub(super) fn time_range(filters: &[Expr]) -> Option<(i64, i64)> {
    let all = filters.iter().map(interval).fold(Interval::ALL, Interval::and);
    (all != Interval::ALL).then_some((all.first, all.last))
}

/// Whether the predicate bounds `time` at all.
pub(super) fn bounds_time(filter: &Expr) -> bool {
    interval(filter) != Interval::ALL
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interval {
    first: i64,
    last: i64,
}

impl Interval {
    const ALL: Interval = Interval { first: i64::MIN, last: i64::MAX };
    const NOTHING: Interval = Interval { first: i64::MAX, last: i64::MIN };

    fn and(self, other: Self) -> Self {
        Interval { first: self.first.max(other.first), last: self.last.min(other.last) }
    }

    /// The smallest interval around both.
    fn or(self, other: Self) -> Self {
        match (self.first > self.last, other.first > other.last) {
            (true, _) => other,
            (_, true) => self,
            _ => Interval { first: self.first.min(other.first), last: self.last.max(other.last) },
        }
    }
}

fn interval(expr: &Expr) -> Interval {
    match expr {
        Expr::BinaryExpr(binary) => of_binary(binary),
        Expr::Between(between) => of_between(between),
        Expr::InList(list) => of_list(list),
        _ => Interval::ALL,
    }
}

fn of_binary(BinaryExpr { left, op, right }: &BinaryExpr) -> Interval {
    match op {
        Operator::And => interval(left).and(interval(right)),
        Operator::Or => interval(left).or(interval(right)),
        _ if is_time(left) => of_comparison(*op, right),
        _ if is_time(right) => op.swap().map_or(Interval::ALL, |op| of_comparison(op, left)),
        _ => Interval::ALL,
    }
}

fn of_comparison(op: Operator, bound: &Expr) -> Interval {
    let Some(at) = nanoseconds(bound) else { return Interval::ALL };
    match op {
        Operator::Eq => Interval { first: at, last: at },
        Operator::GtEq => Interval { first: at, ..Interval::ALL },
        Operator::LtEq => Interval { last: at, ..Interval::ALL },
        Operator::Gt => at.checked_add(1).map_or(Interval::NOTHING, |first| Interval { first, ..Interval::ALL }),
        Operator::Lt => at.checked_sub(1).map_or(Interval::NOTHING, |last| Interval { last, ..Interval::ALL }),
        _ => Interval::ALL,
    }
}

fn of_between(between: &Between) -> Interval {
    if between.negated || !is_time(&between.expr) {
        return Interval::ALL;
    }
    of_comparison(Operator::GtEq, &between.low).and(of_comparison(Operator::LtEq, &between.high))
}

fn of_list(list: &InList) -> Interval {
    if list.negated || !is_time(&list.expr) {
        return Interval::ALL;
    }
    list.list.iter().map(|at| of_comparison(Operator::Eq, at)).reduce(Interval::or).unwrap_or(Interval::ALL)
}

/// Whether the expression is the time column, maybe cast to a type with the same numbers.
fn is_time(expr: &Expr) -> bool {
    match expr {
        Expr::Column(column) => column.name == TIME,
        Expr::Cast(cast) => is_utc_nanoseconds(cast.field.data_type()) && is_time(&cast.expr),
        Expr::TryCast(cast) => is_utc_nanoseconds(cast.field.data_type()) && is_time(&cast.expr),
        _ => false,
    }
}

/// A cast to another zone would shift the numbers, a cast to a coarser unit would cut them.
fn is_utc_nanoseconds(data_type: &DataType) -> bool {
    match data_type {
        DataType::Timestamp(TimeUnit::Nanosecond, None) => true,
        DataType::Timestamp(TimeUnit::Nanosecond, Some(zone)) => matches!(zone.as_ref(), "UTC" | "+00:00" | "Z"),
        _ => false,
    }
}

fn nanoseconds(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Literal(ScalarValue::TimestampNanosecond(at, _), _) => *at,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::prelude::{col, lit};

    fn at(ns: i64) -> Expr {
        Expr::Literal(ScalarValue::TimestampNanosecond(Some(ns), None), None)
    }

    #[test]
    fn comparisons_bound_one_side_and_strict_ones_exclude_their_end() {
        assert_eq!(time_range(&[col(TIME).gt_eq(at(5))]), Some((5, i64::MAX)));
        assert_eq!(time_range(&[col(TIME).gt(at(5))]), Some((6, i64::MAX)));
        assert_eq!(time_range(&[at(5).gt(col(TIME))]), Some((i64::MIN, 4)));
        assert_eq!(time_range(&[col(TIME).eq(at(5))]), Some((5, 5)));
    }

    #[test]
    fn conjunctions_intersect_and_disjunctions_span() {
        let both = col(TIME).gt_eq(at(5)).and(col(TIME).lt_eq(at(9)));
        assert_eq!(time_range(&[both]), Some((5, 9)));
        assert_eq!(time_range(&[col(TIME).eq(at(5)).or(col(TIME).eq(at(9)))]), Some((5, 9)));
        assert_eq!(time_range(&[col(TIME).between(at(1), at(3)), col(TIME).gt(at(1))]), Some((2, 3)));
        assert_eq!(time_range(&[col(TIME).in_list(vec![at(7), at(3)], false)]), Some((3, 7)));
    }

    #[test]
    fn what_is_not_understood_bounds_nothing() {
        assert_eq!(time_range(&[]), None);
        assert_eq!(time_range(&[col("host").eq(lit("a"))]), None);
        assert_eq!(time_range(&[col(TIME).eq(at(5)).or(col("host").eq(lit("a")))]), None);
        assert_eq!(time_range(&[col(TIME).not_eq(at(5))]), None);
        assert_eq!(time_range(&[col(TIME).not_between(at(1), at(3))]), None);
    }

    #[test]
    fn a_contradiction_holds_nothing_and_does_not_widen_a_disjunction() {
        let nothing = col(TIME).gt(at(9)).and(col(TIME).lt(at(3)));
        let (first, last) = time_range(std::slice::from_ref(&nothing)).unwrap();
        assert!(first > last);
        assert_eq!(time_range(&[nothing.or(col(TIME).eq(at(5)))]), Some((5, 5)));
        assert!(time_range(&[col(TIME).gt(at(i64::MAX))]).is_some_and(|(first, last)| first > last));
    }
}
