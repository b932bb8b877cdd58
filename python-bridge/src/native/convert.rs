//! Arrow values as Python values: what `query` returns.
//!
//! | Arrow | Python |
//! |---|---|
//! | integers | `int` |
//! | floats | `float` |
//! | boolean | `bool` |
//! | text of any kind | `str` |
//! | binary of any kind | `bytes` |
//! | timestamps, durations, times of day | `int`, nanoseconds |
//! | dates | `datetime.date` |
//! | decimals | `decimal.Decimal` |
//! | lists | `list` |
//! | structs | `dict` |
//! | dictionaries, run ends | as their values |
//! | null | `None` |
//! | what else there is (intervals, maps, unions) | `str`, as Arrow prints it |

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType,
    DurationSecondType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::array_value_to_string;

use crate::ffi::dictobject::RowBuilder;
use crate::ffi::pyerrors::Builtin;
use crate::ffi::{Object, Py, PyResult, Raised};

/// Rows as dicts that have every column (reference, 1.4).
pub fn rows(py: Py, batches: &[RecordBatch]) -> PyResult {
    let mut rows = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for batch in batches {
        let keys =
            batch.schema().fields().iter().map(|f| Object::interned(py, f.name())).collect::<PyResult<Vec<_>>>()?;
        let mut builder = RowBuilder::new(py, keys);
        for row in 0..batch.num_rows() {
            for (at, column) in batch.columns().iter().enumerate() {
                builder.push(at, value(py, column, row)?);
            }
            rows.push(builder.finish(py)?);
        }
    }
    Object::list(py, rows)
}

/// The values of an array.
pub fn to_list(py: Py, array: &ArrayRef) -> PyResult {
    let values = (0..array.len()).map(|row| value(py, array, row)).collect::<PyResult<Vec<_>>>()?;
    Object::list(py, values)
}

/// One value.
fn value(py: Py, array: &ArrayRef, row: usize) -> PyResult {
    macro_rules! primitive {
        ($type:ty) => {
            array.as_primitive::<$type>().value(row)
        };
    }
    if array.is_null(row) {
        return Ok(Object::none(py));
    }
    match array.data_type() {
        DataType::Null => Ok(Object::none(py)),
        DataType::Boolean => Ok(Object::bool(py, array.as_boolean().value(row))),
        DataType::Int8 => Object::int(py, primitive!(Int8Type).into()),
        DataType::Int16 => Object::int(py, primitive!(Int16Type).into()),
        DataType::Int32 => Object::int(py, primitive!(Int32Type).into()),
        DataType::Int64 => Object::int(py, primitive!(Int64Type)),
        DataType::UInt8 => Object::int(py, primitive!(UInt8Type).into()),
        DataType::UInt16 => Object::int(py, primitive!(UInt16Type).into()),
        DataType::UInt32 => Object::int(py, primitive!(UInt32Type).into()),
        DataType::UInt64 => Object::uint(py, primitive!(UInt64Type)),
        DataType::Float16 => Object::float(py, primitive!(Float16Type).to_f64()),
        DataType::Float32 => Object::float(py, primitive!(Float32Type).into()),
        DataType::Float64 => Object::float(py, primitive!(Float64Type)),
        DataType::Utf8 => Object::text(py, array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Object::text(py, array.as_string::<i64>().value(row)),
        DataType::Utf8View => Object::text(py, array.as_string_view().value(row)),
        DataType::Binary => Object::bytes(py, array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => Object::bytes(py, array.as_binary::<i64>().value(row)),
        DataType::BinaryView => Object::bytes(py, array.as_binary_view().value(row)),
        DataType::FixedSizeBinary(_) => Object::bytes(py, array.as_fixed_size_binary().value(row)),
        DataType::Timestamp(unit, _) => nanoseconds(
            py,
            *unit,
            match unit {
                TimeUnit::Second => primitive!(TimestampSecondType),
                TimeUnit::Millisecond => primitive!(TimestampMillisecondType),
                TimeUnit::Microsecond => primitive!(TimestampMicrosecondType),
                TimeUnit::Nanosecond => primitive!(TimestampNanosecondType),
            },
        ),
        DataType::Duration(unit) => nanoseconds(
            py,
            *unit,
            match unit {
                TimeUnit::Second => primitive!(DurationSecondType),
                TimeUnit::Millisecond => primitive!(DurationMillisecondType),
                TimeUnit::Microsecond => primitive!(DurationMicrosecondType),
                TimeUnit::Nanosecond => primitive!(DurationNanosecondType),
            },
        ),
        DataType::Time32(TimeUnit::Second) => nanoseconds(py, TimeUnit::Second, primitive!(Time32SecondType).into()),
        DataType::Time32(_) => nanoseconds(py, TimeUnit::Millisecond, primitive!(Time32MillisecondType).into()),
        DataType::Time64(TimeUnit::Microsecond) => {
            nanoseconds(py, TimeUnit::Microsecond, primitive!(Time64MicrosecondType))
        }
        DataType::Time64(_) => nanoseconds(py, TimeUnit::Nanosecond, primitive!(Time64NanosecondType)),
        DataType::Date32 => date(py, primitive!(Date32Type).into()),
        DataType::Date64 => date(py, primitive!(Date64Type).div_euclid(86_400_000)),
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            let text = Object::text(py, &printed(py, array, row)?)?;
            Object::import(py, "decimal")?.call_method(py, "Decimal", [&text])
        }
        DataType::List(_) => to_list(py, &array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => to_list(py, &array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => to_list(py, &array.as_fixed_size_list().value(row)),
        DataType::Struct(fields) => {
            let dict = Object::dict(py)?;
            for (field, column) in fields.iter().zip(array.as_struct().columns()) {
                dict.dict_set(py, &Object::interned(py, field.name())?, &value(py, column, row)?)?;
            }
            Ok(dict)
        }
        DataType::Dictionary(..) => {
            // One row's slice, because normalizing looks at every key.
            let one = array.slice(row, 1);
            let dictionary = one.as_any_dictionary();
            value(py, dictionary.values(), dictionary.normalized_keys()[0])
        }
        _ => Object::text(py, &printed(py, array, row)?),
    }
}

fn nanoseconds(py: Py, unit: TimeUnit, count: i64) -> PyResult {
    let factor = match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    };
    match count.checked_mul(factor) {
        Some(nanoseconds) => Object::int(py, nanoseconds),
        None => Err(Raised::new(py, Builtin::Value, "a time in the result does not fit 64 bits of nanoseconds")),
    }
}

fn date(py: Py, days_since_epoch: i64) -> PyResult {
    /// `date(1970, 1, 1).toordinal()`
    const EPOCH_ORDINAL: i64 = 719_163;
    let ordinal = Object::int(py, days_since_epoch + EPOCH_ORDINAL)?;
    Object::import(py, "datetime")?.getattr(py, "date")?.call_method(py, "fromordinal", [&ordinal])
}

fn printed(py: Py, array: &ArrayRef, row: usize) -> PyResult<String> {
    array_value_to_string(array, row).map_err(|e| Raised::new(py, Builtin::Value, &e.to_string()))
}
