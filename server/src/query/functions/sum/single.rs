//! Sums of one group: whole columns, groups of rare types, and windows that move.

use std::mem::{size_of, size_of_val};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowNativeTypeOp, ArrowNumericType, AsArray, Decimal128Array, PrimitiveArray};
use arrow::datatypes::{DataType, Decimal128Type, UInt64Type};
use datafusion::common::{HashMap, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::Accumulator;

use super::wide::{Values, narrow, overflow};

/// A sum of 128 bits, as is `sum` of integers, durations and decimals.
#[derive(Debug)]
pub(super) struct WideSum {
    name: String,
    /// The type of the result.
    kind: DataType,
    sum: i128,
    /// Values that are in the sum; of partial sums, each is one.
    count: u64,
}

impl WideSum {
    pub(super) fn new(name: &str, kind: &DataType) -> Self {
        WideSum { name: name.to_owned(), kind: kind.clone(), sum: 0, count: 0 }
    }

    fn total(&self, array: &ArrayRef) -> Result<(i128, u64)> {
        let nulls = array.logical_nulls();
        let total = Values::of(array)?.total(nulls.as_ref()).ok_or_else(|| overflow(&self.name, &self.kind))?;
        Ok((total, (array.len() - array.null_count()) as u64))
    }

    fn add(&mut self, total: i128, count: u64) -> Result<()> {
        self.sum = self.sum.checked_add(total).ok_or_else(|| overflow(&self.name, &self.kind))?;
        self.count += count;
        Ok(())
    }

    fn answer(&self, sum: i128) -> Result<ScalarValue> {
        if self.count == 0 {
            return ScalarValue::try_from(&self.kind);
        }
        ScalarValue::try_from_array(&narrow(&self.name, &self.kind, &[sum], None)?, 0)
    }

    fn partial(&self) -> Result<ScalarValue> {
        let DataType::Decimal128(precision, scale) = super::partial(&self.kind) else {
            return datafusion::common::internal_err!("a partial sum is a decimal");
        };
        Ok(ScalarValue::Decimal128((self.count > 0).then_some(self.sum), precision, scale))
    }
}

impl Accumulator for WideSum {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (total, count) = self.total(&values[0])?;
        self.add(total, count)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.partial()?])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.answer(self.sum)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (total, count) = self.total(&values[0])?;
        self.sum = self.sum.checked_sub(total).ok_or_else(|| overflow(&self.name, &self.kind))?;
        self.count -= count;
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.name.capacity()
    }
}

/// An average of durations, cut to whole units.
#[derive(Debug)]
pub(super) struct WideMean(WideSum);

impl WideMean {
    pub(super) fn new(name: &str, kind: &DataType) -> Self {
        WideMean(WideSum::new(name, kind))
    }
}

impl Accumulator for WideMean {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.update_batch(values)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (total, _) = self.0.total(&states[0])?;
        self.0.add(total, arrow::compute::sum(states[1].as_primitive::<UInt64Type>()).unwrap_or(0))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.0.partial()?, ScalarValue::UInt64(Some(self.0.count))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.0.answer(self.0.sum / i128::from(self.0.count.max(1)))
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.retract_batch(values)
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn size(&self) -> usize {
        self.0.size()
    }
}

/// A sum of each value once.
#[derive(Debug)]
pub(super) struct DistinctSum {
    name: String,
    kind: DataType,
    /// How often a value is in the frame.
    counts: HashMap<i128, u64>,
}

impl DistinctSum {
    pub(super) fn new(name: &str, kind: &DataType) -> Self {
        DistinctSum { name: name.to_owned(), kind: kind.clone(), counts: HashMap::default() }
    }

    fn each(&mut self, array: &ArrayRef, mut f: impl FnMut(&mut HashMap<i128, u64>, i128)) -> Result<()> {
        let values = Values::of(array)?;
        for row in (0..array.len()).filter(|row| array.is_valid(*row)) {
            f(&mut self.counts, values.at(row));
        }
        Ok(())
    }
}

impl Accumulator for DistinctSum {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.each(&values[0], |counts, value| *counts.entry(value).or_insert(0) += 1)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for list in states[0].as_list::<i32>().iter().flatten() {
            self.update_batch(&[list])?;
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values: Vec<i128> = self.counts.keys().copied().collect();
        let array = narrow(&self.name, &self.kind, &values, None)?;
        let values: Vec<ScalarValue> =
            (0..array.len()).map(|row| ScalarValue::try_from_array(&array, row)).collect::<Result<_>>()?;
        Ok(vec![ScalarValue::List(ScalarValue::new_list_nullable(&values, &self.kind))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        if self.counts.is_empty() {
            return ScalarValue::try_from(&self.kind);
        }
        let sum = self.counts.keys().try_fold(0_i128, |sum, value| sum.checked_add(*value));
        let sum = sum.ok_or_else(|| overflow(&self.name, &self.kind))?;
        ScalarValue::try_from_array(&narrow(&self.name, &self.kind, &[sum], None)?, 0)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.each(&values[0], |counts, value| {
            if let Some(count) = counts.get_mut(&value) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&value);
                }
            }
        })
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.counts.capacity() * (size_of::<(i128, u64)>() + 1)
    }
}

/// A sum in the type of its result, of types that are rarely added: intervals and decimals of other widths.
#[derive(Debug)]
pub(super) struct CheckedSum<T: ArrowNumericType> {
    name: String,
    kind: DataType,
    sum: T::Native,
    count: u64,
}

impl<T: ArrowNumericType> CheckedSum<T> {
    pub(super) fn new(name: &str, kind: &DataType) -> Self {
        CheckedSum { name: name.to_owned(), kind: kind.clone(), sum: T::Native::ZERO, count: 0 }
    }

    fn each(
        &mut self,
        array: &ArrayRef,
        f: impl Fn(T::Native, T::Native) -> Result<T::Native, arrow::error::ArrowError>,
    ) -> Result<u64> {
        let values: &PrimitiveArray<T> = array.as_primitive::<T>();
        for value in values.iter().flatten() {
            self.sum = f(self.sum, value).map_err(|_| overflow(&self.name, &self.kind))?;
        }
        Ok((values.len() - values.null_count()) as u64)
    }
}

impl<T: ArrowNumericType + std::fmt::Debug> Accumulator for CheckedSum<T> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.count += self.each(&values[0], |sum, value| sum.add_checked(value))?;
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        ScalarValue::new_primitive::<T>((self.count > 0).then_some(self.sum), &self.kind)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.count -= self.each(&values[0], |sum, value| sum.sub_checked(value))?;
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.name.capacity()
    }
}

/// Partial sums as an array.
pub(super) fn partials(kind: &DataType, sums: Vec<i128>, nulls: Option<arrow::buffer::NullBuffer>) -> Result<ArrayRef> {
    let DataType::Decimal128(precision, scale) = super::partial(kind) else {
        return datafusion::common::internal_err!("a partial sum is a decimal");
    };
    let sums: PrimitiveArray<Decimal128Type> = Decimal128Array::new(sums.into(), nulls);
    Ok(Arc::new(sums.with_precision_and_scale(precision, scale)?))
}
