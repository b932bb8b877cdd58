//! Reading a part of a stream again, of an earlier life or of this one, while it is being written.
//!
//! The caller names a range that is durable. Frames are read by position and not mapped, as a segment of this life still changes
//! behind its durable end. Nothing is searched for: what recovery has found damaged and left out is missing here too, and
//! that is said by the sequence that is given back.
//!
//! Blocks on file I/O: never on a shard's thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use saltus_core::ids::{Sequence, Stream};

use super::format::{FRAME_HEADER_BYTES, FrameHeader, Record, SEGMENT_HEADER_BYTES, SegmentHeader, decode_record};
use super::recovery::{RecoveryError, list_segments, stream_dir};

/// What the visitor wants after a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The records behind it.
    More,
    /// Nothing more now: the range is read up to this record.
    Stop,
}

/// Gives the records of `stream` beyond `after` and up to `to` to `visit`, in order; how far that came: below `to` if the
/// visitor has stopped, or if the log does not hold them (they are damaged and were left out, or not written yet).
///
/// # Errors
/// [`RecoveryError::Io`], and [`RecoveryError::Frame`] for a frame whose records cannot be read.
pub fn read_range(
    data_dir: &Path,
    stream: Stream,
    after: Sequence,
    to: Sequence,
    visit: &mut dyn FnMut(Sequence, Record<'_>) -> Next,
) -> Result<Sequence, RecoveryError> {
    let mut reached = after;
    let segments = list_segments(&stream_dir(data_dir, stream))?;
    for (at, (_, path)) in segments.iter().enumerate() {
        let io = |source| RecoveryError::Io { path: path.clone(), source };
        // Nothing of a segment is wanted if the next one begins within what was read already.
        if let Some((_, next)) = segments.get(at + 1)
            && first_sequence(next, stream).map_err(io)?.is_some_and(|first| first.0 <= reached.0 + 1)
        {
            continue;
        }
        let mut segment = Segment { file: File::open(path).map_err(io)?, stream, id: None };
        let mut offset = SEGMENT_HEADER_BYTES as u64;
        while reached < to {
            let Some(frame) = segment.header(offset).map_err(io)? else { break };
            if frame.last_sequence() > reached {
                let Some(bytes) = segment.frame(&frame).map_err(io)? else { break };
                let done = records(&bytes, &frame, &mut reached, to, visit).map_err(|source| RecoveryError::Frame {
                    path: path.clone(),
                    offset,
                    source,
                })?;
                if done == Next::Stop {
                    return Ok(reached);
                }
            }
            offset += frame.frame_bytes() as u64;
        }
        if reached >= to {
            break;
        }
    }
    Ok(reached)
}

/// The sequence that a segment begins with, if it holds a frame.
pub(crate) fn first_sequence(path: &Path, stream: Stream) -> io::Result<Option<Sequence>> {
    let mut segment = Segment { file: File::open(path)?, stream, id: None };
    Ok(segment.header(SEGMENT_HEADER_BYTES as u64)?.map(|frame| frame.first_sequence))
}

fn records(
    bytes: &[u8],
    frame: &FrameHeader,
    reached: &mut Sequence,
    to: Sequence,
    visit: &mut dyn FnMut(Sequence, Record<'_>) -> Next,
) -> Result<Next, super::recovery::FrameError> {
    let mut rest = bytes;
    for at in 0..u64::from(frame.records) {
        let sequence = Sequence(frame.first_sequence.0 + at);
        let (record, length) = decode_record(rest)?;
        rest = &rest[length..];
        if sequence > to {
            return Ok(Next::Stop);
        }
        if sequence > *reached {
            *reached = sequence;
            if visit(sequence, record) == Next::Stop {
                return Ok(Next::Stop);
            }
        }
    }
    Ok(Next::More)
}

struct Segment {
    file: File,
    stream: Stream,
    /// Which frames are this segment's; known after the first look at its header.
    id: Option<u64>,
}

impl Segment {
    /// The header of the frame at `offset`, if one of this segment is there; its records are not looked at.
    fn header(&mut self, offset: u64) -> io::Result<Option<FrameHeader>> {
        if self.id.is_none() {
            let mut block = [0; SEGMENT_HEADER_BYTES];
            if !self.read(&mut block, 0)? {
                return Ok(None);
            }
            let Ok(header) = SegmentHeader::decode(&block) else { return Ok(None) };
            self.id = Some(header.segment_id);
        }
        let mut head = [0; FRAME_HEADER_BYTES];
        if !self.read(&mut head, offset)? {
            return Ok(None);
        }
        let ours = |frame: &FrameHeader| Some(frame.segment_id) == self.id && frame.stream == self.stream;
        Ok(FrameHeader::peek(&head, offset).filter(ours))
    }

    /// The records of a frame, if it is sound.
    fn frame(&self, frame: &FrameHeader) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; FRAME_HEADER_BYTES + frame.payload_bytes as usize];
        if !self.read(&mut bytes, frame.offset)? || FrameHeader::decode_at(&bytes, frame.offset).is_none() {
            return Ok(None);
        }
        bytes.drain(..FRAME_HEADER_BYTES);
        Ok(Some(bytes))
    }

    /// False if the file ends before.
    fn read(&self, out: &mut [u8], offset: u64) -> io::Result<bool> {
        match self.file.read_exact_at(out, offset) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}
