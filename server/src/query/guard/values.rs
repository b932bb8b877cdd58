//! Texts and lists that a window function gives to many rows: they are kept once, and the rows have their numbers.
//!
//! `first_value` of a text of a megabyte over 8192 rows is 8 GB, and nobody counts them. Below a window its arguments are kept, and become
//! numbers; results are numbers as well. Above the window the numbers become what they stand for, as many rows at a time as fit a
//! step. What is kept is counted, and stays until the query ends; a window with an order holds its rows in any case.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};

use arrow::array::{Array, ArrayRef, AsArray, UInt64Array, new_empty_array, new_null_array};
use arrow::compute::interleave;
use arrow::datatypes::{DataType, FieldRef, UInt64Type};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};

use super::current;
use super::estimate::{data_bytes, lengths};

/// What is kept for one window. Equal only to itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Values(Arc<RwLock<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    arrays: Vec<ArrayRef>,
    _taken: Vec<MemoryReservation>,
}

impl PartialEq for Values {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Values {}

impl Hash for Values {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// Which array, and which row of it.
fn place(number: u64) -> (usize, usize) {
    ((number >> 32) as usize, (number & u64::from(u32::MAX)) as usize)
}

impl Values {
    /// Whether results of the type are worth it.
    pub(super) fn keeps(data_type: &DataType) -> bool {
        let is_long = |data_type: &DataType| data_type.is_nested() || data_type.primitive_width().is_none();
        match data_type {
            DataType::Null | DataType::Boolean => false,
            DataType::Dictionary(_, values) => is_long(values),
            other => is_long(other),
        }
    }

    /// Keeps the values, and says what their numbers are.
    ///
    /// # Errors
    /// There is no memory for them.
    fn keep(&self, array: &ArrayRef) -> Result<UInt64Array> {
        let taken = match current() {
            Some(guard) => Some(guard.memory().take("a window", data_bytes(array.as_ref()))?),
            None => None,
        };
        let first = {
            let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
            kept.arrays.push(array.clone());
            kept._taken.extend(taken);
            ((kept.arrays.len() - 1) as u64) << 32
        };
        let numbers = (first..).take(array.len()).collect::<Vec<_>>();
        Ok(UInt64Array::new(numbers.into(), array.logical_nulls()))
    }

    /// As [`Self::keep`], of one value.
    pub(super) fn keep_one(&self, value: &ScalarValue) -> Result<ScalarValue> {
        if value.is_null() {
            return Ok(ScalarValue::UInt64(None));
        }
        ScalarValue::try_from_array(&self.keep(&value.to_array()?)?, 0)
    }

    /// What the numbers stand for.
    fn get(&self, numbers: &UInt64Array, to: &DataType) -> Result<ArrayRef> {
        if numbers.is_empty() {
            return Ok(new_empty_array(to));
        }
        // Those that are asked for, and one for rows that have none.
        let none = new_null_array(to, 1);
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut arrays: Vec<&dyn Array> = vec![none.as_ref()];
        let mut known = HashMap::new();
        let mut rows = Vec::with_capacity(numbers.len());
        for number in numbers {
            let Some(number) = number else {
                rows.push((0, 0));
                continue;
            };
            let (array, row) = place(number);
            let at = *known.entry(array).or_insert_with(|| {
                arrays.push(kept.arrays[array].as_ref());
                arrays.len() - 1
            });
            rows.push((at, row));
        }
        Ok(interleave(&arrays, &rows)?)
    }

    /// Bytes of each row's value.
    pub(super) fn bytes(&self, numbers: &dyn Array) -> Vec<usize> {
        let Some(numbers) = numbers.as_primitive_opt::<UInt64Type>() else { return Vec::new() };
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut known: HashMap<usize, Vec<usize>> = HashMap::new();
        let bytes = |number: Option<u64>| {
            let (array, row) = place(number?);
            let array_of =
                || kept.arrays.get(array).map_or_else(Vec::new, |a| lengths(&ColumnarValue::Array(a.clone()), a.len()));
            known.entry(array).or_insert_with(array_of).get(row).copied()
        };
        numbers.iter().map(bytes).map(Option::unwrap_or_default).collect()
    }

    /// The expression as numbers.
    pub(super) fn narrow(&self, expr: Expr) -> Expr {
        self.call(None, expr)
    }

    /// Numbers as what they stand for. Whoever evaluates it is given as many rows as fit a step ([`super::exprs`]).
    pub(super) fn wide(&self, expr: Expr, to: &DataType) -> Expr {
        self.call(Some(to.clone()), expr)
    }

    fn call(&self, to: Option<DataType>, expr: Expr) -> Expr {
        let turn = Turn { signature: Signature::any(1, Volatility::Immutable), values: self.clone(), to };
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(ScalarUDF::new_from_impl(turn)), vec![expr]))
    }
}

/// If the expression makes values of the numbers in a column of its input: which column, and which values.
pub(super) fn widened(expr: &Arc<dyn PhysicalExpr>) -> Option<(usize, Values)> {
    let function = expr.downcast_ref::<ScalarFunctionExpr>()?;
    let turn = function.fun().inner().downcast_ref::<Turn>().filter(|turn| turn.to.is_some())?;
    Some((function.args().first()?.downcast_ref::<Column>()?.index(), turn.values.clone()))
}

/// Values become numbers, or numbers values.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Turn {
    signature: Signature,
    values: Values,
    /// What they were; `None`: they become numbers.
    to: Option<DataType>,
}

impl ScalarUDFImpl for Turn {
    fn name(&self) -> &'static str {
        if self.to.is_some() { "kept_value" } else { "kept" }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(self.to.clone().unwrap_or(DataType::UInt64))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let [from] = args.arg_fields else { return plan_err!("one column is kept at a time") };
        Ok(Arc::new(from.as_ref().clone().with_data_type(self.return_type(&[])?)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let turned = |column: &ArrayRef| -> Result<ArrayRef> {
            Ok(match &self.to {
                None => Arc::new(self.values.keep(column)?),
                Some(to) => self.values.get(column.as_primitive(), to)?,
            })
        };
        match &args.args[0] {
            ColumnarValue::Array(column) => Ok(ColumnarValue::Array(turned(column)?)),
            ColumnarValue::Scalar(value) => {
                let column = turned(&value.to_array()?)?;
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&column, 0)?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ListArray, StringArray};
    use arrow::compute::take;
    use arrow::datatypes::Int32Type;

    use super::*;

    #[test]
    fn numbers_stand_for_values() {
        let values = Values::default();
        let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("some more")]));
        let first = values.keep(&texts).unwrap();
        let one = values.keep_one(&ScalarValue::from("another")).unwrap();
        assert_eq!(values.keep_one(&ScalarValue::Utf8(None)).unwrap(), ScalarValue::UInt64(None));
        let numbers = take(&first, &UInt64Array::from(vec![2, 1, 0, 2]), None).unwrap();
        let numbers = arrow::compute::concat(&[&numbers, &one.to_array().unwrap()]).unwrap();
        let found = values.get(numbers.as_primitive(), &DataType::Utf8).unwrap();
        let expected = StringArray::from(vec![Some("some more"), None, Some("a"), Some("some more"), Some("another")]);
        assert_eq!(found.as_string::<i32>(), &expected);
        assert_eq!(values.bytes(&numbers), [9, 0, 1, 9, 7]);

        let lists: ArrayRef =
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1)]), None, Some(vec![])]));
        let numbers = values.keep(&lists).unwrap();
        assert_eq!(&values.get(&numbers, lists.data_type()).unwrap(), &lists);
    }

    #[test]
    fn what_is_short_is_not_kept() {
        let dictionary = |values| DataType::Dictionary(Box::new(DataType::Int32), Box::new(values));
        for (data_type, keeps) in [
            (DataType::Utf8, true),
            (dictionary(DataType::Utf8), true),
            (dictionary(DataType::Int64), false),
            (DataType::Int64, false),
            (DataType::Boolean, false),
            (DataType::Null, false),
        ] {
            assert_eq!(Values::keeps(&data_type), keeps, "{data_type}");
        }
    }
}
