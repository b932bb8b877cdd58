//! From pending vectors to Arrow columns over the same memory.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, Int64Array, StringArray,
    TimestampNanosecondArray, UInt64Array,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::Int32Type;

use super::Precision;
use crate::batch::{Batch, BatchColumn, PendingBatch, PendingColumn, PendingData};

/// See [`PendingBatch::freeze`].
pub(crate) fn freeze(batch: PendingBatch, base_time_ns: i64) -> Batch {
    let PendingBatch { columns, mut time, untimed, series, precision, .. } = batch;
    let base = truncated(base_time_ns, precision);
    for row in untimed {
        time[row as usize] = base;
    }
    let rows = time.len();
    let columns = columns.into_iter().map(|column| freeze_column(column, rows)).collect();
    Batch { columns, time: TimestampNanosecondArray::new(time.into(), None), series: ScalarBuffer::from(series) }
}

/// The instant cut to the unit; towards the past, so that it never lies in the future.
fn truncated(time_ns: i64, precision: Precision) -> i64 {
    let unit = precision.unit_ns();
    time_ns.div_euclid(unit).saturating_mul(unit)
}

fn freeze_column(column: PendingColumn, rows: usize) -> BatchColumn {
    let PendingColumn { name, kind, data, validity } = column;
    let nulls = validity.map(|bits| NullBuffer::new(BooleanBuffer::new(Buffer::from_vec(bits), 0, rows)));
    let data: ArrayRef = match data {
        PendingData::Tag { keys, values } => {
            let keys = Int32Array::new(keys.into(), nulls);
            Arc::new(DictionaryArray::<Int32Type>::new(keys, Arc::new(values)))
        }
        PendingData::Integer(values) => Arc::new(Int64Array::new(values.into(), nulls)),
        PendingData::UInteger(values) => Arc::new(UInt64Array::new(values.into(), nulls)),
        PendingData::Float(values) => Arc::new(Float64Array::new(values.into(), nulls)),
        PendingData::String { offsets, text } => {
            let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
            Arc::new(StringArray::new(offsets, Buffer::from_vec(text), nulls))
        }
        PendingData::Boolean(bits) => {
            Arc::new(BooleanArray::new(BooleanBuffer::new(Buffer::from_vec(bits), 0, rows), nulls))
        }
    };
    BatchColumn { name, kind, data }
}
