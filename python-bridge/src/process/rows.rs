//! Rows of tables as they are attached to a run.
//!
//! # Layout
//! The buffers of all columns of all tables, each at a multiple of 64 bytes; where each lies ([`Span`]) is in the message. What
//! has no nulls has no bitmap. Buffers per kind: values of numbers, times and booleans (bits); for text, offsets (4 bytes each, from 0)
//! and bytes; for tags, keys (4 bytes each) and the dictionary's offsets and bytes.
//!
//! Short rows are in the packet, longer ones in a sealed memory file, by [`Rows::into_attached`]. The reader checks all of it: lengths,
//! offsets, keys and UTF-8. A tag dictionary that is much larger than its batch is cut to what the rows use.
//!
//! What it is not: Arrow IPC. A shard writes it in passing, so a batch of one row must cost next to nothing; and the types are seven.

use std::io::{self, Write as _};

use arrow::array::{
    Array, ArrayData, ArrayRef, AsArray, DictionaryArray, Int32Array, StringArray, TimestampNanosecondArray, make_array,
};
use arrow::buffer::{Buffer, MutableBuffer, NullBuffer};
use arrow::compute::take;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float64Type, Int32Type, Int64Type, TimestampNanosecondType, UInt64Type,
};
use arrow::error::ArrowError;
use saltus_core::batch::{Batch, BatchColumn};
use saltus_core::schema::{ColumnKind, time_type};
use serde::{Deserialize, Serialize};

use super::channel::{ATTACHED_IN_PACKET_MAX, Attached};
use super::memory;

/// Alignment of buffers.
const ALIGN: usize = 64;
/// A tag dictionary with more values than this, and than the batch has rows, is sent without the values that no row uses.
const DICTIONARY_KEPT: usize = 256;

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Span {
    offset: u64,
    length: u64,
}

/// A batch, but for its bytes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Layout {
    rows: u64,
    columns: Vec<Column>,
    time: Span,
}

#[derive(Debug, Serialize, Deserialize)]
struct Column {
    name: String,
    kind: ColumnKind,
    nulls: Option<Span>,
    buffers: Vec<Span>,
    /// Values of a tag's dictionary.
    values: u64,
}

/// The bytes of batches that are to be sent, not copied yet.
#[derive(Default)]
pub struct Rows {
    parts: Vec<Buffer>,
    length: usize,
}

impl Rows {
    /// Adds a table's batch.
    ///
    /// # Errors
    /// What Arrow said.
    pub fn add(&mut self, batch: &Batch) -> Result<Layout, ArrowError> {
        let columns = batch.columns.iter().map(|column| self.column(column)).collect::<Result<_, _>>()?;
        let time = self.primitive::<TimestampNanosecondType>(&batch.time);
        Ok(Layout { rows: batch.rows() as u64, columns, time })
    }

    /// Whether they are short enough for a packet.
    pub fn are_short(&self) -> bool {
        self.length <= ATTACHED_IN_PACKET_MAX
    }

    /// Copies the bytes to where they are sent from; if they are not short, into a memory file.
    ///
    /// # Errors
    /// What the system said.
    pub fn into_attached(self) -> io::Result<Attached> {
        if self.length == 0 {
            return Ok(Attached::Nothing);
        }
        if self.are_short() {
            let mut bytes = MutableBuffer::with_capacity(self.length);
            for part in &self.parts {
                bytes.extend_from_slice(part);
                bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
            }
            return Ok(Attached::Here(bytes.into()));
        }
        let file = memory::file("saltus-rows", |out| {
            for part in &self.parts {
                out.write_all(part)?;
                out.write_all(&[0; ALIGN][..part.len().next_multiple_of(ALIGN) - part.len()])?;
            }
            Ok(())
        })?;
        Ok(Attached::File(file))
    }

    fn push(&mut self, part: Buffer) -> Span {
        let span = Span { offset: self.length as u64, length: part.len() as u64 };
        self.length += part.len().next_multiple_of(ALIGN);
        self.parts.push(part);
        span
    }

    fn column(&mut self, BatchColumn { name, kind, data }: &BatchColumn) -> Result<Column, ArrowError> {
        let nulls = data.nulls().filter(|nulls| nulls.null_count() > 0).map(|nulls| self.nulls(nulls));
        let mut values = 0;
        let buffers = match kind {
            ColumnKind::Integer => vec![self.primitive::<Int64Type>(data)],
            ColumnKind::UInteger => vec![self.primitive::<UInt64Type>(data)],
            ColumnKind::Float => vec![self.primitive::<Float64Type>(data)],
            ColumnKind::Boolean => vec![self.push(data.as_boolean().values().sliced())],
            ColumnKind::String => self.text(data.as_string::<i32>()).to_vec(),
            ColumnKind::Tag => {
                let tags = used_values(data.as_dictionary())?;
                let dictionary = tags.values().as_string::<i32>();
                values = dictionary.len() as u64;
                let [offsets, bytes] = self.text(dictionary);
                vec![self.primitive::<Int32Type>(tags.keys()), offsets, bytes]
            }
        };
        Ok(Column { name: name.as_ref().to_owned(), kind: *kind, nulls, buffers, values })
    }

    fn nulls(&mut self, nulls: &NullBuffer) -> Span {
        self.push(nulls.inner().sliced())
    }

    fn primitive<T: ArrowPrimitiveType>(&mut self, data: &dyn Array) -> Span {
        self.push(data.as_primitive::<T>().values().inner().clone())
    }

    /// Offsets and bytes.
    fn text(&mut self, texts: &StringArray) -> [Span; 2] {
        let offsets = texts.offsets();
        let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
        let bytes = texts.values().slice_with_length(first as usize, (last - first) as usize);
        let offsets = match first {
            0 => offsets.inner().inner().clone(),
            first => Buffer::from_iter(offsets.iter().map(|offset| offset - first)),
        };
        [self.push(offsets), self.push(bytes)]
    }
}

/// The tags without the dictionary's values that no row uses, if it is much larger than the batch: a batch shares the
/// dictionary of all batches of its connection.
fn used_values(tags: &DictionaryArray<Int32Type>) -> Result<DictionaryArray<Int32Type>, ArrowError> {
    if tags.values().len() <= tags.len().max(DICTIONARY_KEPT) {
        return Ok(tags.clone());
    }
    let mut new_keys = std::collections::HashMap::<i32, i32, ahash::RandomState>::default();
    let mut used = Vec::new();
    let keys = tags.keys().iter().map(|key| {
        key.map(|key| {
            *new_keys.entry(key).or_insert_with(|| {
                used.push(key);
                used.len() as i32 - 1
            })
        })
    });
    let keys: Int32Array = keys.collect();
    DictionaryArray::try_new(keys, take(tags.values(), &Int32Array::from(used), None)?)
}

/// Batches as they were added, over the bytes that were attached. Plugins never see the fingerprints of series, so they are
/// not sent.
///
/// # Errors
/// The bytes are not what the layouts say.
pub fn read(bytes: &Buffer, layout: &Layout) -> Result<Batch, ArrowError> {
    let rows = usize::try_from(layout.rows).map_err(|_| malformed("too many rows"))?;
    let columns = layout.columns.iter().map(|column| {
        let data = read_column(bytes, column, rows)?;
        Ok(BatchColumn { name: column.name.as_str().into(), kind: column.kind, data })
    });
    let columns = columns.collect::<Result<_, ArrowError>>()?;
    let time = ArrayData::try_new(time_type(), rows, None, 0, vec![slice(bytes, layout.time)?], Vec::new())?;
    Ok(Batch { columns, time: TimestampNanosecondArray::from(time), series: vec![0; rows].into() })
}

fn read_column(bytes: &Buffer, column: &Column, rows: usize) -> Result<ArrayRef, ArrowError> {
    let nulls = column.nulls.map(|nulls| slice(bytes, nulls)).transpose()?;
    let mut buffers = column.buffers.iter().map(|span| slice(bytes, *span)).collect::<Result<Vec<_>, _>>()?;
    let mut children = Vec::new();
    if column.kind == ColumnKind::Tag {
        let texts = buffers.split_off(buffers.len().min(1));
        let values = usize::try_from(column.values).map_err(|_| malformed("too many values"))?;
        children.push(ArrayData::try_new(DataType::Utf8, values, None, 0, texts, Vec::new())?);
    }
    let data = ArrayData::try_new(column.kind.arrow_type(), rows, nulls, 0, buffers, children)?;
    Ok(make_array(data))
}

fn slice(bytes: &Buffer, Span { offset, length }: Span) -> Result<Buffer, ArrowError> {
    match offset.checked_add(length) {
        Some(end) if end <= bytes.len() as u64 && offset % ALIGN as u64 == 0 => {
            Ok(bytes.slice_with_length(offset as usize, length as usize))
        }
        _ => Err(malformed("a buffer lies outside of the bytes")),
    }
}

fn malformed(what: &str) -> ArrowError {
    ArrowError::IpcError(format!("malformed rows: {what}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BooleanArray, Float64Array, Int64Array, UInt64Array};

    use super::*;

    fn batch_of(columns: Vec<(&str, ColumnKind, ArrayRef)>) -> Batch {
        let rows = columns[0].2.len();
        let columns =
            columns.into_iter().map(|(name, kind, data)| BatchColumn { name: name.into(), kind, data }).collect();
        Batch { columns, time: (0..rows as i64).collect::<Vec<_>>().into(), series: vec![0; rows].into() }
    }

    fn every_kind(rows: usize) -> Batch {
        let numbers = || 0..rows as u64;
        let host: DictionaryArray<Int32Type> =
            numbers().map(|n| [Some("a"), None, Some("b")][n as usize % 3]).collect();
        batch_of(vec![
            ("host", ColumnKind::Tag, Arc::new(host)),
            (
                "i",
                ColumnKind::Integer,
                Arc::new(numbers().map(|n| (n % 3 != 1).then_some(-(n as i64))).collect::<Int64Array>()),
            ),
            ("u", ColumnKind::UInteger, Arc::new(numbers().map(Some).collect::<UInt64Array>())),
            ("f", ColumnKind::Float, Arc::new(numbers().map(|n| Some(n as f64 / 3.0)).collect::<Float64Array>())),
            (
                "s",
                ColumnKind::String,
                Arc::new(numbers().map(|n| (n % 4 > 0).then(|| format!("h\u{e4}{n}"))).collect::<StringArray>()),
            ),
            (
                "b",
                ColumnKind::Boolean,
                Arc::new(numbers().map(|n| (n % 5 > 0).then_some(n % 2 == 0)).collect::<BooleanArray>()),
            ),
        ])
    }

    fn slice_of(batch: &Batch, offset: usize, length: usize) -> Batch {
        let columns = batch
            .columns
            .iter()
            .map(|column| BatchColumn { data: column.data.slice(offset, length), ..column.clone() });
        Batch { columns: columns.collect(), time: batch.time.slice(offset, length), series: vec![0; length].into() }
    }

    fn assert_same(read: &Batch, sent: &Batch) {
        assert_eq!(read.time, sent.time);
        for (read, sent) in read.columns.iter().zip(&sent.columns) {
            assert_eq!((&read.name, read.kind, &read.data), (&sent.name, sent.kind, &sent.data));
        }
        assert_eq!(read.columns.len(), sent.columns.len());
    }

    #[test]
    fn batches_come_back_over_one_piece_of_memory_with_aligned_buffers() {
        for count in [1, 3, 70, 20_000] {
            let whole = every_kind(count);
            let batches =
                [&whole, &slice_of(&whole, count / 2, count - count / 2), &slice_of(&whole, count / 3, 0), &whole];
            let mut rows = Rows::default();
            let layouts: Vec<_> = batches.iter().map(|batch| rows.add(batch).unwrap()).collect();
            assert_eq!(rows.are_short(), count < 20_000);
            let bytes = rows.into_attached().unwrap().into_buffer().unwrap();
            for (layout, sent) in layouts.iter().zip(batches) {
                let read = read(&bytes, layout).unwrap();
                assert_same(&read, sent);
                for data in read.columns.iter().map(|column| column.data.to_data()) {
                    for buffer in data.buffers().iter().filter(|buffer| !buffer.is_empty()) {
                        assert!(bytes.as_ptr_range().contains(&buffer.as_ptr()), "outside of the memory");
                        assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
                    }
                }
            }
        }
    }

    #[test]
    fn values_that_no_row_uses_are_not_sent() {
        let values: StringArray = (0..10_000).map(|n| Some(format!("host{n}"))).collect();
        let keys = Int32Array::from(vec![Some(9_999), None, Some(7), Some(9_999)]);
        let tags = DictionaryArray::new(keys, Arc::new(values));
        let small = used_values(&tags).unwrap();
        assert_eq!(small.values().len(), 2);
        let text = |tags: &DictionaryArray<Int32Type>| {
            let tags = tags.downcast_dict::<StringArray>().unwrap();
            tags.into_iter().map(|text| text.map(str::to_owned)).collect::<Vec<_>>()
        };
        assert_eq!(text(&small), text(&tags));
    }

    #[test]
    fn layouts_that_do_not_fit_the_bytes_are_refused() {
        let mut rows = Rows::default();
        let good = rows.add(&every_kind(70)).unwrap();
        let bytes = rows.into_attached().unwrap().into_buffer().unwrap();
        let wrong = |change: &dyn Fn(&mut Layout)| {
            let mut layout: Layout = postcard::from_bytes(&postcard::to_extend(&good, Vec::new()).unwrap()).unwrap();
            change(&mut layout);
            assert!(read(&bytes, &layout).is_err(), "{layout:?}");
        };
        wrong(&|layout| layout.rows = 71 * 64);
        wrong(&|layout| layout.rows = u64::MAX);
        wrong(&|layout| layout.time.offset += 8);
        wrong(&|layout| layout.time.offset = u64::MAX);
        wrong(&|layout| layout.time.length = 8);
        for column in 0..good.columns.len() {
            wrong(&|layout| layout.columns[column].buffers[0].length = 1);
            wrong(&|layout| layout.columns[column].buffers[0].offset = bytes.len() as u64);
            wrong(&|layout| layout.columns[column].buffers.truncate(0));
        }
        wrong(&|layout| layout.columns[0].values = 1);
        wrong(&|layout| layout.columns[0].values = u64::MAX);
        wrong(&|layout| layout.columns[0].nulls = Some(Span { offset: 0, length: 1 }));
        // Keys or offsets that are something else.
        wrong(&|layout| layout.columns[0].buffers[0] = layout.columns[3].buffers[0]);
        wrong(&|layout| layout.columns[4].buffers[0] = layout.columns[3].buffers[0]);
    }
}
