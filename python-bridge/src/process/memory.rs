//! Sealed memory files, and results of queries in them: written once, and read where they lie.
//!
//! # Layout of results
//! A row of segments, each at a multiple of 64 bytes and each an Arrow IPC file with one record batch, so that every batch brings
//! its own dictionaries. Buffers are aligned to 64 bytes in it. The list of segments travels in the message that the bytes are
//! attached to.
//!
//! The reader maps the file; arrays are slices of the mapping and keep it alive. What is copied is the writer's side, once. Short
//! results are in the packet itself. (Rows of tables have a layout of their own: [`super::rows`].)

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use arrow_ipc::convert::fb_to_schema;
use arrow_ipc::reader::{FileDecoder, read_footer_length};
use arrow_ipc::writer::{FileWriter, IpcWriteOptions};
use arrow_ipc::{MetadataVersion, root_as_footer};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use super::channel::{ATTACHED_IN_PACKET_MAX, Attached};
use super::system;

/// Alignment of segments and of the buffers in them.
const ALIGN: usize = 64;
/// Bytes behind an IPC file's footer: its length and the magic.
const TRAILER: usize = 10;

/// Where a batch lies in a memory file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Segment {
    offset: u64,
    length: u64,
}

/// A sealed memory file that `write` has filled.
///
/// # Errors
/// What `write` or the system said.
pub fn file(name: &str, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut out = BufWriter::with_capacity(64 * 1024, File::from(file));
    write(&mut out)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    rustix::fs::fcntl_add_seals(&file, system::IMMUTABLE)?;
    Ok(file.into())
}

/// A sealed memory file of `bytes` alone.
///
/// # Errors
/// What the system said.
pub fn file_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    file("saltus-bytes", |out| out.write_all(bytes))
}

/// `batches` as they are attached to a message, and where they lie in it.
///
/// # Errors
/// What Arrow or the system said.
pub fn write(batches: &[RecordBatch]) -> Result<(Attached, Vec<Segment>), ArrowError> {
    if batches.is_empty() {
        return Ok((Attached::Nothing, Vec::new()));
    }
    let mut segments = Vec::with_capacity(batches.len());
    // The layout adds to that; if it is too much after all, it is a file.
    let is_short = batches.iter().map(RecordBatch::get_array_memory_size).sum::<usize>() < ATTACHED_IN_PACKET_MAX;
    if is_short {
        let mut bytes = Vec::with_capacity(ATTACHED_IN_PACKET_MAX);
        write_segments(batches, &mut bytes, &mut segments)?;
        return Ok((Attached::bytes(&bytes)?, segments));
    }
    let file = file("saltus-result", |out| write_segments(batches, out, &mut segments).map_err(io::Error::other))?;
    Ok((Attached::File(file), segments))
}

fn write_segments(
    batches: &[RecordBatch],
    out: &mut impl Write,
    segments: &mut Vec<Segment>,
) -> Result<(), ArrowError> {
    let mut out = Counted { out, at: 0 };
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
    Ok(())
}

/// The batches of [`write()`], where they lie.
///
/// # Errors
/// It is not what [`write()`] makes, or what the system said.
pub fn read(attached: Attached, segments: &[Segment]) -> Result<Vec<RecordBatch>, ArrowError> {
    let bytes = attached.into_buffer()?;
    segments.iter().map(|segment| read_segment(&bytes, *segment)).collect()
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
    use arrow::array::{ArrayRef, DictionaryArray, Float64Array, Int64Array, StringArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    fn batch(rows: usize) -> RecordBatch {
        let numbers = || 0..rows as i64;
        let host: DictionaryArray<Int32Type> = numbers().map(|n| (n % 3 > 0).then_some("a")).collect();
        let columns: [(&str, ArrayRef); 4] = [
            ("host", Arc::new(host)),
            ("n", Arc::new(numbers().map(|n| (n != 1).then_some(n)).collect::<Int64Array>())),
            ("f", Arc::new(numbers().map(|n| Some(n as f64 / 2.0)).collect::<Float64Array>())),
            ("s", Arc::new(numbers().map(|n| (n != 2).then(|| format!("h\u{e4}{n}"))).collect::<StringArray>())),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, data)| (name, data, true))).unwrap()
    }

    #[test]
    fn batches_come_back_over_one_piece_of_memory_with_aligned_buffers() {
        for rows in [3, 10_000] {
            let rows = batch(rows);
            let (attached, segments) = write(&[rows.clone(), rows.slice(1, 2), rows.clone()]).unwrap();
            assert_eq!(matches!(attached, Attached::File(_)), rows.num_rows() > 3);
            let bytes = attached.into_buffer().unwrap();
            let read = read(Attached::Here(bytes.clone()), &segments).unwrap();
            assert_eq!(read, [rows.clone(), rows.slice(1, 2), rows]);
            for column in read.iter().flat_map(RecordBatch::columns) {
                let data = column.to_data();
                for buffer in data.buffers().iter().chain(data.child_data().iter().flat_map(|child| child.buffers())) {
                    assert!(bytes.as_ptr_range().contains(&buffer.as_ptr()), "outside of the memory");
                    assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
                }
            }
        }
    }

    #[test]
    fn memory_that_somebody_could_still_change_is_refused() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("open", flags).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        let error = read(Attached::File(file), &[Segment { offset: 0, length: 10 }]).unwrap_err();
        assert!(error.to_string().contains("not sealed"), "{error}");
    }

    #[test]
    fn segments_that_lie_elsewhere_are_refused() {
        let (attached, segments) = write(&[batch(3)]).unwrap();
        let bytes = attached.into_buffer().unwrap();
        let Segment { offset, length } = segments[0];
        for wrong in [(offset, length + 1), (u64::MAX, 2), (offset + 64, length - 64), (offset, 3), (0, 0)] {
            let wrong = Segment { offset: wrong.0, length: wrong.1 };
            assert!(read(Attached::Here(bytes.clone()), &[wrong]).is_err(), "{wrong:?}");
            assert!(read(Attached::Nothing, &[wrong]).is_err(), "{wrong:?}");
        }
    }
}
