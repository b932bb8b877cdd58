//! Record batches in shared memory: written once, sealed, and read where they lie.
//!
//! # Layout
//! A memory file is a row of segments, each at a multiple of 64 bytes and each an Arrow IPC file with one record batch, so
//! that every batch brings its own dictionaries. Buffers are aligned to 64 bytes in it. The list of segments travels in
//! the message that the file is attached to.
//!
//! The reader maps the file; arrays are slices of the mapping and keep it alive. What is copied is the writer's side, once.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arrow::array::{Array, AsArray, DictionaryArray, Int32Array, RecordBatch, TimestampNanosecondArray};
use arrow::buffer::Buffer;
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, TimestampNanosecondType};
use arrow::error::ArrowError;
use arrow_ipc::convert::fb_to_schema;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::writer::{FileWriter, IpcWriteOptions};
use arrow_ipc::{MetadataVersion, root_as_footer};
use bytes::Bytes;
use rustix::fs::MemfdFlags;
use saltus_core::batch::{Batch, BatchColumn};
use saltus_core::schema::{ColumnKind, time_type};
use serde::{Deserialize, Serialize};

use super::system;

/// Alignment of segments and of the buffers in them.
const ALIGN: usize = 64;
/// Bytes behind an IPC file's footer: its length and the magic.
const TRAILER: usize = 10;
/// A tag dictionary with more values than this, and than the batch has rows, is sent without the values that no row uses.
const DICTIONARY_KEPT: usize = 256;

/// Where a batch lies in a memory file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Segment {
    offset: u64,
    length: u64,
}

/// A sealed memory file of `batches`, and where they lie in it; no file without batches.
///
/// # Errors
/// What Arrow or the system said.
pub fn write(batches: &[RecordBatch]) -> Result<(Option<OwnedFd>, Vec<Segment>), ArrowError> {
    if batches.is_empty() {
        return Ok((None, Vec::new()));
    }
    let file = rustix::fs::memfd_create("saltus-rows", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    let mut out =
        Counted { out: BufWriter::with_capacity(64 * 1024, File::from(file.map_err(io::Error::from)?)), at: 0 };
    let mut segments = Vec::with_capacity(batches.len());
    for batch in batches {
        out.write_all(&[0; ALIGN][..out.at.next_multiple_of(ALIGN) - out.at])?;
        let offset = out.at;
        let options = IpcWriteOptions::try_new(ALIGN, false, MetadataVersion::V5)?;
        let mut writer = FileWriter::try_new_with_options(&mut out, batch.schema_ref(), options)?;
        writer.write(batch)?;
        writer.finish()?;
        drop(writer);
        segments.push(Segment { offset: offset as u64, length: (out.at - offset) as u64 });
    }
    let file = out.out.into_inner().map_err(io::IntoInnerError::into_error)?;
    rustix::fs::fcntl_add_seals(&file, system::IMMUTABLE).map_err(io::Error::from)?;
    Ok((Some(file.into()), segments))
}

/// A sealed memory file of `bytes` alone; none if there are none.
///
/// # Errors
/// What the system said.
pub fn write_bytes(bytes: &[u8]) -> io::Result<Option<OwnedFd>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let file = rustix::fs::memfd_create("saltus-body", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(file);
    file.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(&file, system::IMMUTABLE)?;
    Ok(Some(file.into()))
}

/// The bytes of a memory file of [`write_bytes`], over a mapping of it.
///
/// # Errors
/// What the system said.
pub fn read_bytes(file: Option<&OwnedFd>) -> io::Result<Bytes> {
    let Some(file) = file else { return Ok(Bytes::new()) };
    system::map(file)
}

/// The batches of a memory file, over a mapping of it.
///
/// # Errors
/// It is not what [`write()`] makes, or what the system said.
pub fn read(file: Option<&OwnedFd>, segments: &[Segment]) -> Result<Vec<RecordBatch>, ArrowError> {
    let Some(file) = file else {
        return if segments.is_empty() { Ok(Vec::new()) } else { Err(malformed("the memory file is missing")) };
    };
    let mapping = Buffer::from(system::map(file)?);
    segments.iter().map(|segment| read_segment(&mapping, *segment)).collect()
}

fn read_segment(mapping: &Buffer, Segment { offset, length }: Segment) -> Result<RecordBatch, ArrowError> {
    let segment = slice(mapping, offset, length)?;
    let footer_end = segment.len().checked_sub(TRAILER).ok_or_else(|| malformed("too short"))?;
    let trailer = segment[footer_end..].try_into().map_err(|_| malformed("too short"))?;
    let footer_start = footer_end.checked_sub(read_footer_length(trailer)?).ok_or_else(|| malformed("footer"))?;
    let footer = root_as_footer(&segment[footer_start..footer_end]).map_err(|e| malformed(&e.to_string()))?;
    let schema = Arc::new(fb_to_schema(footer.schema().ok_or_else(|| malformed("no schema"))?));
    let mut decoder = FileDecoder::new(schema, footer.version()).with_require_alignment(true);
    for block in footer.dictionaries().iter().flatten() {
        let data = slice(&segment, block.offset() as u64, block.bodyLength() as u64 + block.metaDataLength() as u64)?;
        decoder.read_dictionary(block, &data)?;
    }
    let blocks = footer.recordBatches().filter(|blocks| blocks.len() == 1).ok_or_else(|| malformed("not one batch"))?;
    let block = blocks.get(0);
    let data = slice(&segment, block.offset() as u64, block.bodyLength() as u64 + block.metaDataLength() as u64)?;
    decoder.read_record_batch(block, &data)?.ok_or_else(|| malformed("no batch"))
}

fn slice(buffer: &Buffer, offset: u64, length: u64) -> Result<Buffer, ArrowError> {
    match offset.checked_add(length) {
        Some(end) if end <= buffer.len() as u64 => Ok(buffer.slice_with_length(offset as usize, length as usize)),
        _ => Err(malformed("a part lies outside of the memory")),
    }
}

fn malformed(what: &str) -> ArrowError {
    ArrowError::IpcError(format!("malformed shared memory: {what}"))
}

/// A table's batch as a record batch: the columns in order, then `time`.
///
/// # Errors
/// What Arrow said.
pub fn record_batch(batch: &Batch) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::with_capacity(batch.columns.len() + 1);
    let mut arrays = Vec::with_capacity(batch.columns.len() + 1);
    for column in &batch.columns {
        fields.push(Field::new(column.name.as_ref(), column.kind.arrow_type(), true));
        arrays.push(match column.kind {
            ColumnKind::Tag => Arc::new(used_values(column.data.as_dictionary())?),
            _ => column.data.clone(),
        });
    }
    fields.push(Field::new("time", time_type(), false));
    arrays.push(Arc::new(batch.time.clone()));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
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

/// A record batch of [`record_batch`] as a table's batch over the same memory. Plugins never see the fingerprints of
/// series, so they are not sent.
///
/// # Errors
/// It has other types than a table's batch.
pub fn table_batch(rows: &RecordBatch) -> Result<Batch, ArrowError> {
    let schema = rows.schema_ref();
    let count = schema.fields().len().checked_sub(1).ok_or_else(|| malformed("no columns"))?;
    let mut columns = Vec::with_capacity(count);
    for (field, data) in schema.fields().iter().zip(rows.columns()).take(count) {
        let kind = kind_of(field.data_type()).ok_or_else(|| malformed("a column of a type that no table has"))?;
        columns.push(BatchColumn { name: field.name().as_str().into(), kind, data: data.clone() });
    }
    let time: &TimestampNanosecondArray =
        rows.column(count).as_primitive_opt::<TimestampNanosecondType>().ok_or_else(|| malformed("no time"))?;
    Ok(Batch { columns, time: time.clone(), series: vec![0; rows.num_rows()].into() })
}

fn kind_of(data_type: &DataType) -> Option<ColumnKind> {
    use ColumnKind::{Boolean, Float, Integer, String, Tag, UInteger};
    [Tag, Integer, UInteger, Float, String, Boolean].into_iter().find(|kind| kind.arrow_type() == *data_type)
}

/// Counts what is written.
struct Counted<W> {
    out: W,
    at: usize,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.at += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        // The end of a segment is not the end of the file.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray};

    use super::*;

    fn batch() -> Batch {
        let host: DictionaryArray<Int32Type> = vec![Some("a"), None, Some("b")].into_iter().collect();
        let columns: Vec<(&str, ColumnKind, ArrayRef)> = vec![
            ("host", ColumnKind::Tag, Arc::new(host)),
            ("n", ColumnKind::Integer, Arc::new(Int64Array::from(vec![Some(1), None, Some(-3)]))),
            ("f", ColumnKind::Float, Arc::new(Float64Array::from(vec![1.5, 2.5, f64::INFINITY]))),
            ("s", ColumnKind::String, Arc::new(StringArray::from(vec![Some("x"), Some("h\u{e4}"), None]))),
            ("b", ColumnKind::Boolean, Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ];
        let columns =
            columns.into_iter().map(|(name, kind, data)| BatchColumn { name: name.into(), kind, data }).collect();
        Batch { columns, time: vec![1, 2, 3].into(), series: vec![0; 3].into() }
    }

    #[test]
    fn batches_come_back_over_one_mapping_with_aligned_buffers() {
        let rows = record_batch(&batch()).unwrap();
        let (file, segments) = write(&[rows.clone(), rows.slice(1, 2), rows.clone()]).unwrap();
        let file = file.unwrap();
        let read = read(Some(&file), &segments).unwrap();
        assert_eq!(read, [rows.clone(), rows.slice(1, 2), rows.clone()]);
        let size = rustix::fs::fstat(&file).unwrap().st_size as usize;
        let first = read[0].column(1).to_data().buffers()[0].as_ptr() as usize;
        for batch in &read {
            for column in batch.columns() {
                let data = column.to_data();
                for buffer in data.buffers().iter().chain(data.child_data().iter().flat_map(|child| child.buffers())) {
                    let at = buffer.as_ptr() as usize;
                    assert!(at.abs_diff(first) < size, "outside of the mapping");
                    assert_eq!(at % ALIGN, 0);
                }
            }
        }
        let back = table_batch(&read[0]).unwrap();
        assert_eq!(
            back.columns.iter().map(|c| c.kind).collect::<Vec<_>>(),
            batch().columns.iter().map(|c| c.kind).collect::<Vec<_>>()
        );
        assert_eq!(back.time, batch().time);
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
    fn memory_that_somebody_could_still_change_is_refused() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("open", flags).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        let error = read(Some(&file), &[Segment { offset: 0, length: 10 }]).unwrap_err();
        assert!(error.to_string().contains("not sealed"), "{error}");
    }

    #[test]
    fn segments_that_lie_elsewhere_are_refused() {
        let (file, segments) = write(&[record_batch(&batch()).unwrap()]).unwrap();
        let Segment { offset, length } = segments[0];
        for wrong in [(offset, length + 1), (u64::MAX, 2), (offset + 64, length - 64), (offset, 3), (0, 0)] {
            assert!(read(file.as_ref(), &[Segment { offset: wrong.0, length: wrong.1 }]).is_err(), "{wrong:?}");
        }
    }
}
