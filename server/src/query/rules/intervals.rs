//! Comparisons of intervals by their length.
//!
//! DataFusion compares an interval of months, days and nanoseconds part by part, so that 25 hours are less than one day, and
//! `now() - time > INTERVAL '1 day'` is never true. Lengths are compared here, as PostgreSQL does: a day has 24 hours, a
//! month 30 days.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, AsArray, Decimal128Array};
use arrow::datatypes::{DataType, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, internal_err};
use datafusion::logical_expr::expr::{Between, BinaryExpr, ScalarFunction};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

const DAY_NS: i128 = 24 * 60 * 60 * 1_000_000_000;
const MONTH_DAYS: i128 = 30;

/// Whether the range is one of intervals.
pub(super) fn concerns(between: &Between, schema: &DFSchema) -> bool {
    is_interval(&between.expr, schema)
}

/// The comparison, by length if both sides are intervals.
pub(super) fn comparison(binary: BinaryExpr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let BinaryExpr { left, op, right } = binary;
    Ok(match is_interval(&left, schema) && is_interval(&right, schema) {
        true => {
            let (left, right) = (Box::new(length(*left)), Box::new(length(*right)));
            Transformed::yes(Expr::BinaryExpr(BinaryExpr { left, op, right }))
        }
        false => Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })),
    })
}

fn is_interval(expr: &Expr, schema: &DFSchema) -> bool {
    let months_days_and_nanoseconds = DataType::Interval(IntervalUnit::MonthDayNano);
    expr.get_type(schema).is_ok_and(|kind| kind == months_days_and_nanoseconds)
}

fn length(interval: Expr) -> Expr {
    static FUNCTION: LazyLock<Arc<ScalarUDF>> = LazyLock::new(|| {
        let signature = Signature::any(1, Volatility::Immutable);
        Arc::new(ScalarUDF::new_from_impl(IntervalLength { signature }))
    });
    Expr::ScalarFunction(ScalarFunction::new_udf(FUNCTION.clone(), vec![interval]))
}

/// An interval's nanoseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
struct IntervalLength {
    signature: Signature,
}

/// More than any interval has.
const LENGTH: DataType = DataType::Decimal128(38, 0);

impl ScalarUDFImpl for IntervalLength {
    fn name(&self) -> &str {
        "interval_length"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(LENGTH)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [interval] = args.args.as_slice() else { return internal_err!("interval_length takes one interval") };
        let lengths = |intervals: &ArrayRef| -> Result<ArrayRef> {
            let lengths: Decimal128Array = intervals.as_primitive::<IntervalMonthDayNanoType>().unary(nanoseconds);
            Ok(Arc::new(lengths.with_precision_and_scale(38, 0)?))
        };
        Ok(match interval {
            ColumnarValue::Array(intervals) => ColumnarValue::Array(lengths(intervals)?),
            ColumnarValue::Scalar(interval) => {
                let length = lengths(&interval.to_array()?)?;
                ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&length, 0)?)
            }
        })
    }
}

fn nanoseconds(interval: IntervalMonthDayNano) -> i128 {
    let days = i128::from(interval.months) * MONTH_DAYS + i128::from(interval.days);
    days * DAY_NS + i128::from(interval.nanoseconds)
}
