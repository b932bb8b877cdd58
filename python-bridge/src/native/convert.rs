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
//! | intervals | `dict` of `months`, `days` and `nanoseconds` |
//! | lists of any kind | `list` |
//! | structs | `dict` |
//! | maps | `dict`; a `list` of pairs where the keys are lists, structs or maps themselves |
//! | dictionaries, run ends, unions | as their values |
//! | null | `None` |
//!
//! Timestamps in nanoseconds are `int` in InfluxDB 3; those of other units and with a time zone are so here as well, always in
//! nanoseconds since 1970, so that an expression does not change the type of a column.

use arrow::array::{Array, ArrayRef, AsArray, GenericListViewArray, OffsetSizeTrait, RecordBatch, UnionArray};
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType,
    DurationSecondType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    IntervalDayTimeType, IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType, RunEndIndexType,
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
        DataType::ListView(_) => to_list(py, &list_view::<i32>(array, row)),
        DataType::LargeListView(_) => to_list(py, &list_view::<i64>(array, row)),
        DataType::Interval(unit) => {
            let (months, days, nanoseconds) = match unit {
                IntervalUnit::YearMonth => (primitive!(IntervalYearMonthType), 0, 0),
                IntervalUnit::DayTime => {
                    let value = primitive!(IntervalDayTimeType);
                    (0, value.days, i64::from(value.milliseconds) * 1_000_000)
                }
                IntervalUnit::MonthDayNano => {
                    let value = primitive!(IntervalMonthDayNanoType);
                    (value.months, value.days, value.nanoseconds)
                }
            };
            let dict = Object::dict(py)?;
            for (name, count) in [("months", months.into()), ("days", days.into()), ("nanoseconds", nanoseconds)] {
                dict.dict_set(py, &Object::interned(py, name)?, &Object::int(py, count)?)?;
            }
            Ok(dict)
        }
        DataType::Map(..) => map(py, &array.as_map().value(row)),
        DataType::Union(..) => {
            let Some(union) = array.as_any().downcast_ref::<UnionArray>() else { return Ok(Object::none(py)) };
            value(py, union.child(union.type_id(row)), union.value_offset(row))
        }
        DataType::RunEndEncoded(ends, _) => match ends.data_type() {
            DataType::Int16 => run::<Int16Type>(py, array, row),
            DataType::Int64 => run::<Int64Type>(py, array, row),
            _ => run::<Int32Type>(py, array, row),
        },
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
    }
}

fn list_view<O: OffsetSizeTrait>(array: &ArrayRef, row: usize) -> ArrayRef {
    match array.as_any().downcast_ref::<GenericListViewArray<O>>() {
        Some(lists) => lists.value(row),
        None => array.slice(0, 0),
    }
}

/// The entries of one map: a struct array of keys and values.
fn map(py: Py, entries: &arrow::array::StructArray) -> PyResult {
    let (keys, values) = (entries.column(0), entries.column(1));
    let pairs = (0..entries.len()).map(|at| Ok((value(py, keys, at)?, value(py, values, at)?)));
    if keys.data_type().is_nested() {
        let pairs = pairs.map(|pair| pair.and_then(|(key, value)| Object::tuple(py, vec![key, value])));
        return Object::list(py, pairs.collect::<PyResult<Vec<_>>>()?);
    }
    let dict = Object::dict(py)?;
    for pair in pairs {
        let (key, value) = pair?;
        dict.dict_set(py, &key, &value)?;
    }
    Ok(dict)
}

fn run<E: RunEndIndexType>(py: Py, array: &ArrayRef, row: usize) -> PyResult {
    match array.as_run_opt::<E>() {
        Some(runs) => value(py, runs.values(), runs.get_physical_index(row)),
        None => Ok(Object::none(py)),
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
        // Python's integers are as long as they need to be.
        None => Object::int(py, count)?.call_method(py, "__mul__", [&Object::int(py, factor)?]),
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
