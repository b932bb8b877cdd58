//! Numbers of 64 and 128 bits as numbers of 128 bits, and back if they fit.

use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, DurationMicrosecondArray, DurationMillisecondArray,
    DurationNanosecondArray, DurationSecondArray, Int64Array, UInt64Array,
};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::datatypes::{
    DataType, Decimal128Type, DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType,
    DurationSecondType, Int64Type, TimeUnit, UInt64Type,
};
use datafusion::common::internal_err;
use datafusion::error::{DataFusionError, Result};
use std::sync::Arc;

use crate::query::QueryError;
use crate::query::functions::checked::sql_name;

/// Whether values of this type are added in 128 bits.
pub(super) fn is_wide(kind: &DataType) -> bool {
    matches!(kind, DataType::Int64 | DataType::UInt64 | DataType::Duration(_) | DataType::Decimal128(..))
}

/// The values of an array, whatever their type.
pub(super) enum Values {
    Signed(ScalarBuffer<i64>),
    Unsigned(ScalarBuffer<u64>),
    Wide(ScalarBuffer<i128>),
}

impl Values {
    /// The values; those that are NULL are anything.
    pub(super) fn of(array: &ArrayRef) -> Result<Values> {
        Ok(match array.data_type() {
            DataType::Int64 => Values::Signed(array.as_primitive::<Int64Type>().values().clone()),
            DataType::UInt64 => Values::Unsigned(array.as_primitive::<UInt64Type>().values().clone()),
            DataType::Decimal128(..) => Values::Wide(array.as_primitive::<Decimal128Type>().values().clone()),
            DataType::Duration(unit) => Values::Signed(match unit {
                TimeUnit::Second => array.as_primitive::<DurationSecondType>().values().clone(),
                TimeUnit::Millisecond => array.as_primitive::<DurationMillisecondType>().values().clone(),
                TimeUnit::Microsecond => array.as_primitive::<DurationMicrosecondType>().values().clone(),
                TimeUnit::Nanosecond => array.as_primitive::<DurationNanosecondType>().values().clone(),
            }),
            other => return internal_err!("{other} is not added in 128 bits"),
        })
    }

    /// The sum of all values that are not NULL; `None` if it has more than 128 bits.
    pub(super) fn total(&self, nulls: Option<&NullBuffer>) -> Option<i128> {
        let whole = [(0, self.len())];
        match nulls {
            None => self.total_of(whole.into_iter()),
            Some(nulls) => self.total_of(nulls.valid_slices()),
        }
    }

    fn total_of(&self, mut runs: impl Iterator<Item = (usize, usize)>) -> Option<i128> {
        runs.try_fold(0_i128, |total, (first, end)| {
            total.checked_add(match self {
                Values::Signed(values) => signed(&values[first..end]),
                Values::Unsigned(values) => unsigned(&values[first..end]),
                Values::Wide(values) => values[first..end].iter().try_fold(0_i128, |sum, v| sum.checked_add(*v))?,
            })
        })
    }

    /// The value of a row.
    pub(super) fn at(&self, row: usize) -> i128 {
        match self {
            Values::Signed(values) => i128::from(values[row]),
            Values::Unsigned(values) => i128::from(values[row]),
            Values::Wide(values) => values[row],
        }
    }

    fn len(&self) -> usize {
        match self {
            Values::Signed(values) => values.len(),
            Values::Unsigned(values) => values.len(),
            Values::Wide(values) => values.len(),
        }
    }
}

/// So many halves of 32 bits have a sum of 64 bits.
const HALVES_MAX: usize = 1 << 30;

/// Adds the halves of the values apart, which a processor does for several values at a time.
fn signed(values: &[i64]) -> i128 {
    let part = |values: &[i64]| {
        let (mut high, mut low) = (0_i64, 0_u64);
        for value in values {
            high += value >> 32;
            low += (*value as u64) & 0xffff_ffff;
        }
        (i128::from(high) << 32) + i128::from(low)
    };
    values.chunks(HALVES_MAX).map(part).sum()
}

fn unsigned(values: &[u64]) -> i128 {
    let part = |values: &[u64]| {
        let (mut high, mut low) = (0_u64, 0_u64);
        for value in values {
            high += value >> 32;
            low += value & 0xffff_ffff;
        }
        (i128::from(high) << 32) + i128::from(low)
    };
    values.chunks(HALVES_MAX).map(part).sum()
}

/// Sums as an array of the result's type.
///
/// # Errors
/// If one does not fit, named as the result of `name`.
pub(super) fn narrow(name: &str, kind: &DataType, sums: &[i128], nulls: Option<NullBuffer>) -> Result<ArrayRef> {
    let valid = |row: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
    let too_large = || overflow(name, kind);
    let signed = || -> Result<ScalarBuffer<i64>> {
        let fit = |(row, sum): (usize, &i128)| if valid(row) { i64::try_from(*sum) } else { Ok(0) };
        let narrowed: Result<Vec<i64>, _> = sums.iter().enumerate().map(fit).collect();
        narrowed.map(ScalarBuffer::from).map_err(|_| too_large())
    };
    Ok(match kind {
        DataType::Int64 => Arc::new(Int64Array::new(signed()?, nulls)),
        DataType::UInt64 => {
            let fit = |(row, sum): (usize, &i128)| if valid(row) { u64::try_from(*sum) } else { Ok(0) };
            let narrowed: Result<Vec<u64>, _> = sums.iter().enumerate().map(fit).collect();
            Arc::new(UInt64Array::new(narrowed.map_err(|_| too_large())?.into(), nulls))
        }
        DataType::Duration(TimeUnit::Second) => Arc::new(DurationSecondArray::new(signed()?, nulls)),
        DataType::Duration(TimeUnit::Millisecond) => Arc::new(DurationMillisecondArray::new(signed()?, nulls)),
        DataType::Duration(TimeUnit::Microsecond) => Arc::new(DurationMicrosecondArray::new(signed()?, nulls)),
        DataType::Duration(TimeUnit::Nanosecond) => Arc::new(DurationNanosecondArray::new(signed()?, nulls)),
        DataType::Decimal128(precision, scale) => {
            let sums =
                Decimal128Array::new(sums.to_vec().into(), nulls).with_precision_and_scale(*precision, *scale)?;
            sums.validate_decimal_precision(*precision).map_err(|_| too_large())?;
            Arc::new(sums)
        }
        other => return internal_err!("{other} is not added in 128 bits"),
    })
}

/// The error for a sum that does not fit.
pub(super) fn overflow(name: &str, kind: &DataType) -> DataFusionError {
    let (what, remedy) = match kind {
        DataType::Int64 | DataType::UInt64 => (
            "integer overflow",
            "add DOUBLE or DECIMAL, as in sum(CAST(x AS DOUBLE)) or sum(CAST(x AS DECIMAL(38, 0)))",
        ),
        DataType::Duration(_) => ("overflow", "add fewer or shorter durations"),
        _ => ("overflow", "add DOUBLE, as in sum(CAST(x AS DOUBLE))"),
    };
    QueryError::Invalid(format!("{what} in {name}: the result does not fit into {}; {remedy}", sql_name(kind))).into()
}
