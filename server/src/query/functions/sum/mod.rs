//! `sum` of integers, durations and decimals that is right or an error, and `avg` of durations.
//!
//! DataFusion adds in the type of the result and wraps around at its ends. Here a sum has 128 bits until it is answered, so
//! it does not matter in which order or on how many threads values are added: either the result fits into its type, or the
//! query fails. Sums of floats are DataFusion's own.

mod groups;
mod single;
mod wide;

use std::sync::Arc;

use arrow::datatypes::{
    DECIMAL128_MAX_PRECISION, DataType, Decimal32Type, Decimal64Type, Decimal256Type, Field, FieldRef,
    IntervalDayTimeType, IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType,
};
use datafusion::common::Result;
use datafusion::functions_aggregate::average::avg_udaf;
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, GroupsAccumulator, ReversedUDAF, SetMonotonicity,
    Signature,
};

use groups::WideGroups;
use single::{CheckedSum, DistinctSum, WideMean, WideSum};
use wide::is_wide;

/// `sum`.
pub(crate) fn sum() -> AggregateUDF {
    AggregateUDF::new_from_impl(Sum { inner: sum_udaf() })
}

/// `avg`.
pub(crate) fn avg() -> AggregateUDF {
    AggregateUDF::new_from_impl(Avg { inner: avg_udaf() })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Sum {
    inner: Arc<AggregateUDF>,
}

/// The type of a partial sum: its number as it is, in 128 bits.
fn partial(result: &DataType) -> DataType {
    match result {
        DataType::Decimal128(_, scale) => DataType::Decimal128(DECIMAL128_MAX_PRECISION, *scale),
        _ => DataType::Decimal128(DECIMAL128_MAX_PRECISION, 0),
    }
}

/// The accumulator for types whose sum has no 128 bits; `None` for floats, whose sum cannot wrap.
fn checked(args: &AccumulatorArgs<'_>) -> Option<Box<dyn Accumulator>> {
    let (name, kind) = (args.name, args.return_type());
    Some(match kind {
        DataType::Decimal32(..) => Box::new(CheckedSum::<Decimal32Type>::new(name, kind)),
        DataType::Decimal64(..) => Box::new(CheckedSum::<Decimal64Type>::new(name, kind)),
        DataType::Decimal256(..) => Box::new(CheckedSum::<Decimal256Type>::new(name, kind)),
        DataType::Interval(IntervalUnit::YearMonth) => Box::new(CheckedSum::<IntervalYearMonthType>::new(name, kind)),
        DataType::Interval(IntervalUnit::DayTime) => Box::new(CheckedSum::<IntervalDayTimeType>::new(name, kind)),
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            Box::new(CheckedSum::<IntervalMonthDayNanoType>::new(name, kind))
        }
        _ => return None,
    })
}

impl AggregateUDFImpl for Sum {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match args.return_type() {
            kind if is_wide(kind) && args.is_distinct => Ok(Box::new(DistinctSum::new(args.name, kind))),
            kind if is_wide(kind) => Ok(Box::new(WideSum::new(args.name, kind))),
            _ if args.is_distinct => self.inner.accumulator(args),
            _ => match checked(&args) {
                Some(own) => Ok(own),
                None => self.inner.accumulator(args),
            },
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        if args.is_distinct || !is_wide(args.return_type()) {
            return self.inner.state_fields(args);
        }
        let name = format_state_name(args.name, "sum");
        Ok(vec![Arc::new(Field::new(name, partial(args.return_type()), true))])
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        !args.is_distinct && (is_wide(args.return_type()) || checked(&args).is_none())
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        match is_wide(args.return_type()) {
            true => Ok(Box::new(WideGroups::new(args.name, args.return_type()))),
            false => self.inner.create_groups_accumulator(args),
        }
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match is_wide(args.return_type()) || (!args.is_distinct && checked(&args).is_some()) {
            true => self.accumulator(args),
            false => self.inner.create_sliding_accumulator(args),
        }
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.inner.inner().set_monotonicity(data_type)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Avg {
    inner: Arc<AggregateUDF>,
}

/// Whether the average is one of ours.
fn is_mean_of_durations(args: &AccumulatorArgs<'_>) -> bool {
    !args.is_distinct && matches!(args.return_type(), DataType::Duration(_))
}

impl AggregateUDFImpl for Avg {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match is_mean_of_durations(&args) {
            true => Ok(Box::new(WideMean::new(args.name, args.return_type()))),
            false => self.inner.accumulator(args),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        if args.is_distinct || !matches!(args.return_type(), DataType::Duration(_)) {
            return self.inner.state_fields(args);
        }
        let sum = Field::new(format_state_name(args.name, "sum"), partial(args.return_type()), true);
        let count = Field::new(format_state_name(args.name, "count"), DataType::UInt64, true);
        Ok(vec![Arc::new(sum), Arc::new(count)])
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        !is_mean_of_durations(&args) && self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        self.inner.create_groups_accumulator(args)
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match is_mean_of_durations(&args) {
            true => self.accumulator(args),
            false => self.inner.create_sliding_accumulator(args),
        }
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}
