//! Batches made by hand.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int64Array, StringArray, TimestampNanosecondArray,
    UInt64Array,
};
use arrow::datatypes::Int32Type;
use saltus_core::batch::{Batch, BatchColumn};
use saltus_core::ids::{Epoch, EventId, Sequence, ShardId, Stream};
use saltus_core::ports::TableBatch;
use saltus_core::schema::ColumnKind;

/// A batch of these columns, with the times 100, 101, ...
pub fn batch(columns: Vec<(&str, ColumnKind, ArrayRef)>, rows: usize) -> Arc<Batch> {
    let columns = columns.into_iter().map(|(name, kind, data)| BatchColumn { name: name.into(), kind, data }).collect();
    let time = TimestampNanosecondArray::from((0..rows as i64).map(|row| 100 + row).collect::<Vec<_>>());
    Arc::new(Batch { columns, time, series: vec![0; rows].into() })
}

/// The batch as a table's.
pub fn table(name: &str, batch: Arc<Batch>) -> TableBatch {
    let stream = Stream { epoch: Epoch(3), shard: ShardId(1) };
    TableBatch { table: name.into(), batch, id: EventId { stream, sequence: Sequence(17) }, all_columns: None }
}

/// Two rows with every kind of column; the second lacks all but `host` and `n`.
pub fn every_kind() -> Arc<Batch> {
    let host: DictionaryArray<Int32Type> = vec!["a", "b"].into_iter().collect();
    let region: DictionaryArray<Int32Type> = vec![Some("eu"), None].into_iter().collect();
    batch(
        vec![
            ("host", ColumnKind::Tag, Arc::new(host)),
            ("region", ColumnKind::Tag, Arc::new(region)),
            ("n", ColumnKind::Integer, Arc::new(Int64Array::from(vec![-1, 2]))),
            ("u", ColumnKind::UInteger, Arc::new(UInt64Array::from(vec![Some(u64::MAX), None]))),
            ("f", ColumnKind::Float, Arc::new(Float64Array::from(vec![Some(1.5), None]))),
            ("s", ColumnKind::String, Arc::new(StringArray::from(vec![Some("h\u{e4}"), None]))),
            ("b", ColumnKind::Boolean, Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ],
        2,
    )
}

/// `rows` rows with a tag, a number and a text that begin at `first`.
pub fn numbered(first: i64, rows: usize) -> Arc<Batch> {
    let numbers = || first..first + rows as i64;
    let host: DictionaryArray<Int32Type> = numbers().map(|n| [Some("a"), None, Some("b")][(n % 3) as usize]).collect();
    batch(
        vec![
            ("host", ColumnKind::Tag, Arc::new(host)),
            ("n", ColumnKind::Integer, Arc::new(numbers().map(Some).collect::<Int64Array>())),
            ("s", ColumnKind::String, Arc::new(numbers().map(|n| Some(format!("text {n}"))).collect::<StringArray>())),
        ],
        rows,
    )
}
