//! Group commit: records become frames, frames become durable.
//!
//! [`WalWriter`] is the part that never waits: records go into the open frame, full frames queue up.
//! [`WalCommitter`] is the part that waits: one [`Round`] at a time it writes one frame durably. A shard fills the
//! next frame while a round is under way:
//!
//! ```text
//! loop {
//!     let Some(mut round) = writer.take_round() else { wait for an append };
//!     match committer.commit(&mut round).await {
//!         Ok(committed) => ...,                            // acknowledge up to committed.last
//!         Err(WalError::Short { .. }) => ...,              // refuse new writes, wait, commit(&mut round) again
//!         Err(poisoned) => ...,                            // refuse writes for good
//!     }
//!     if let Some(prepare) = committer.prepare_next() { spawn(prepare) }
//! }
//! ```
//!
//! **Invariants**
//! 1. A frame's sequences follow those of the frame before it; the frame's bytes on disk are never written again once
//!    it is durable.
//! 2. At most one round is out. It is written at one place, and again at the same place if the disk was full.
//! 3. A segment is used only when its zeros, its header and its name are durable, and then the manifest's word that it may
//!    hold data ([`WalDir::register`]): what may hold data is missed if it is lost.
//! 4. Poison is for ever: set by a failed sync, by a write that failed for any reason but a [`Shortage`], and by a
//!    commit that was dropped half way (its write may land later). Both halves see it at once.
//!
//! **Faults that must be survived**: short writes (the same bytes are written again, a few times; then the disk counts as
//! full), ENOSPC, EDQUOT and EROFS while a segment is made, registered or written (the round stays with the caller), a crash
//! at any moment (`recovery`).
//!
//! **Sizes**: the first segment is small and each further one four times as large, up to the full size, so that a life
//! without many writes costs little. Where the disk has no room for one, a smaller one is made.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use saltus_core::ids::{Sequence, Stream};
use saltus_core::limits::{
    WAL_ALIGN, WAL_FIRST_SEGMENT_BYTES, WAL_FRAME_BYTES_MAX, WAL_RECORD_BYTES_MAX, WAL_SEGMENT_BYTES,
};

use super::format::{
    EncodeError, FRAME_HEADER_BYTES, FrameHeader, Record, SEGMENT_HEADER_BYTES, SegmentHeader, frame_bytes,
};
use super::recovery::segment_name;
use super::slot::{Claim, Slot};
use crate::io::{Shortage, Undone, WalBuffer, WalDir, WalFile};

/// Bytes that a segment is zeroed by at a time: small, so that a round's write never queues behind much.
const ZERO_BYTES: usize = 256 * 1024;
/// Bytes of the first buffer of a frame.
const BUFFER_BYTES_MIN: usize = 16 * 1024;
/// How often a short write is tried before the disk counts as full.
const WRITE_ATTEMPTS_MAX: usize = 4;
/// The next segment is made when this part of the one before it is used.
const PREPARE_AT: u64 = 8;
/// The last segments whose lengths the manifest keeps: the one in use, and the one that was made ahead.
const TAIL_SEGMENTS: usize = 2;

const _: () = assert!(ZERO_BYTES.is_multiple_of(WAL_ALIGN), "zeros are written past the page cache");
const _: () = assert!(BUFFER_BYTES_MIN.is_multiple_of(WAL_ALIGN), "frames are written past the page cache");

/// What a stream is made of.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// The new stream: the epoch of this life, the shard that writes.
    pub stream: Stream,
    /// Shards in this life of the process.
    pub shards: u16,
    /// Random; segment ids are made from it.
    pub seed: u64,
    /// Bytes of a segment; one that must hold a larger record becomes larger.
    pub segment_bytes: u64,
    /// Records' bytes in one frame, unless one record alone is larger.
    pub frame_bytes_max: usize,
    /// Tells the segments of this data directory from those of others; 0 if that is not known.
    pub directory: u32,
}

impl WalOptions {
    /// The options that `limits` gives for `stream`.
    pub fn new(stream: Stream, shards: u16, seed: u64) -> Self {
        WalOptions {
            stream,
            shards,
            seed,
            segment_bytes: WAL_SEGMENT_BYTES,
            frame_bytes_max: WAL_FRAME_BYTES_MAX,
            directory: 0,
        }
    }

    /// Bytes of the segment with that number, unless it must hold more.
    fn bytes_of(&self, number: u32) -> u64 {
        let grown = WAL_FIRST_SEGMENT_BYTES.saturating_mul(4_u64.saturating_pow(number.saturating_sub(1)));
        grown.min(self.segment_bytes).next_multiple_of(WAL_ALIGN as u64).max(2 * WAL_ALIGN as u64)
    }
}

/// What the log was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalOperation {
    /// A new segment file was made, zeroed and synced.
    PrepareSegment,
    /// A frame was written.
    Write,
    /// A frame was synced.
    Sync,
    /// A commit was dropped before it was done.
    Abandoned,
}

impl fmt::Display for WalOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WalOperation::PrepareSegment => "preparing",
            WalOperation::Write | WalOperation::Abandoned => "writing to",
            WalOperation::Sync => "syncing",
        })
    }
}

/// Why a record is not durable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WalError {
    /// No room on the disk, or it is read-only. Nothing is lost: the same round may be committed again.
    #[error("{what} ({path})", what = shortage.text(), path = path.display())]
    Short {
        /// What is lacking.
        shortage: Shortage,
        /// The segment.
        path: PathBuf,
        /// What would do, in bytes.
        bytes: u64,
    },
    /// The log failed and takes nothing any more until the next start.
    #[error("log is poisoned: {operation} {path} at offset {offset} failed: {source}", path = path.display())]
    Poisoned {
        /// What failed.
        operation: WalOperation,
        /// The segment.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// Why.
        source: Arc<io::Error>,
    },
    /// A record that the format cannot hold; the log is as it was.
    #[error(transparent)]
    Record(#[from] EncodeError),
}

/// What both halves know.
#[derive(Debug)]
struct Shared {
    /// The last durable sequence.
    durable: Cell<Sequence>,
    /// A round is out: taken, not yet durable.
    round_out: Cell<bool>,
    /// The segment of the last durable frame, and where that ends.
    end: Cell<(u32, u64)>,
    /// Set once, never cleared.
    poison: RefCell<Option<WalError>>,
}

impl Shared {
    fn check(&self) -> Result<(), WalError> {
        self.poison.borrow().clone().map_or(Ok(()), Err)
    }

    /// Sets the poison, unless an earlier failure did; gives the one that holds.
    fn poison(&self, operation: WalOperation, path: PathBuf, offset: u64, source: io::Error) -> WalError {
        let mut poison = self.poison.borrow_mut();
        let error = poison.get_or_insert_with(|| {
            tracing::error!(path = %path.display(), offset, ?operation, %source, "log is poisoned");
            WalError::Poisoned { operation, path, offset, source: Arc::new(source) }
        });
        error.clone()
    }
}

/// Begins a stream in `dir` with its first segment, and gives the two halves.
///
/// # Errors
/// [`WalError::Short`], [`WalError::Poisoned`] for every other failure.
pub async fn open_stream<D: WalDir>(
    dir: Rc<D>,
    options: WalOptions,
) -> Result<(WalWriter<D>, WalCommitter<D>), WalError> {
    let (writer, mut committer) = begin_stream(dir, options);
    committer.begin().await?;
    Ok((writer, committer))
}

/// The two halves of a stream that is not on the disk yet: [`WalCommitter::begin`], or the first commit, makes the first segment.
pub fn begin_stream<D: WalDir>(dir: Rc<D>, options: WalOptions) -> (WalWriter<D>, WalCommitter<D>) {
    let shared = Rc::new(Shared {
        durable: Cell::new(Sequence(0)),
        round_out: Cell::new(false),
        end: Cell::new((0, 0)),
        poison: RefCell::new(None),
    });
    let payload_bytes_max = options.frame_bytes_max.min(WAL_RECORD_BYTES_MAX);
    let maker = Rc::new(SegmentMaker {
        dir: dir.clone(),
        options,
        shared: shared.clone(),
        tail: RefCell::default(),
        was_short: Cell::new(false),
    });
    let writer = WalWriter {
        dir,
        shared: shared.clone(),
        payload_bytes_max,
        buffer_bytes_hint: BUFFER_BYTES_MIN,
        next: Sequence(1),
        open: None,
        full: VecDeque::new(),
        waiting_bytes: 0,
        together: false,
    };
    let committer = WalCommitter { maker, shared, segment: None, slot: Rc::new(Slot::default()) };
    (writer, committer)
}

/// Where a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenTo {
    /// The segment of its last frame.
    pub segment: u32,
    /// Where in it that frame ends, in bytes.
    pub bytes: u64,
    /// The last sequence.
    pub sequence: Sequence,
}

/// A frame that is being filled, or waits.
struct Filling<B> {
    buffer: B,
    payload_bytes: usize,
    records: u32,
    first: Sequence,
}

/// The half that takes records. Held by the shard's loop.
pub struct WalWriter<D: WalDir> {
    dir: Rc<D>,
    shared: Rc<Shared>,
    payload_bytes_max: usize,
    /// What the last frame needed; the next buffer begins as large.
    buffer_bytes_hint: usize,
    /// The sequence of the next record.
    next: Sequence,
    open: Option<Filling<D::Buffer>>,
    /// Frames behind which there is one that is newer.
    full: VecDeque<Filling<D::Buffer>>,
    /// Payload of all frames that wait.
    waiting_bytes: usize,
    /// What is appended goes into one frame.
    together: bool,
}

impl<D: WalDir> WalWriter<D> {
    /// From now on, or not any more, what is appended goes into one frame, however large: it is durable as a whole or not at all.
    /// Between the two nothing else may be appended, so the caller must not wait.
    pub fn keep_together(&mut self, together: bool) {
        self.together = together;
        // A frame that is half full would only grow beyond its bound.
        if together && self.open.as_ref().is_some_and(|open| open.payload_bytes > self.payload_bytes_max / 2) {
            self.full.extend(self.open.take());
        }
    }

    /// Puts a record at the end of the log, in memory. Its sequence is durable when a committed round has reached it.
    ///
    /// # Errors
    /// [`WalError::Poisoned`], [`WalError::Record`]; nothing was added.
    pub fn append(&mut self, record: &Record<'_>) -> Result<Sequence, WalError> {
        self.shared.check()?;
        let len = record.encoded_len()?;
        let bound = if self.together { WAL_RECORD_BYTES_MAX } else { self.payload_bytes_max };
        if self.open.as_ref().is_some_and(|open| open.payload_bytes + len > bound) {
            self.full.extend(self.open.take());
        }
        let sequence = self.next;
        let open = self.open.get_or_insert_with(|| Filling {
            buffer: self.dir.allocate(self.buffer_bytes_hint.max(frame_bytes(len))),
            payload_bytes: 0,
            records: 0,
            first: sequence,
        });
        let start = FRAME_HEADER_BYTES + open.payload_bytes;
        reserve(&*self.dir, &mut open.buffer, start, start + len);
        record.encode(&mut open.buffer.as_mut_slice()[start..start + len]);
        open.payload_bytes += len;
        open.records += 1;
        self.waiting_bytes += len;
        self.next = Sequence(sequence.0 + 1);
        Ok(sequence)
    }

    /// The oldest frame that waits, closed. `None` if nothing waits, if a round is out, or after a failure.
    pub fn take_round(&mut self) -> Option<Round<D::Buffer>> {
        if self.shared.round_out.get() || self.shared.check().is_err() {
            return None;
        }
        let filling = self.full.pop_front().or_else(|| self.open.take())?;
        let bytes = frame_bytes(filling.payload_bytes);
        let mut buffer = filling.buffer;
        buffer.truncate(bytes);
        self.buffer_bytes_hint = bytes.min(frame_bytes(self.payload_bytes_max)).max(BUFFER_BYTES_MIN);
        self.waiting_bytes -= filling.payload_bytes;
        self.shared.round_out.set(true);
        Some(Round {
            buffer: Some(buffer),
            payload_bytes: filling.payload_bytes as u32,
            records: filling.records,
            first: filling.first,
        })
    }

    /// Whether [`WalWriter::take_round`] would give a round if none were out.
    pub fn has_waiting(&self) -> bool {
        self.open.is_some() || !self.full.is_empty()
    }

    /// Bytes of the records that no round has taken.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// The sequence of the last record appended; 0 if there is none.
    pub fn last(&self) -> Sequence {
        Sequence(self.next.0 - 1)
    }

    /// The sequence up to which everything is durable; 0 if nothing is.
    pub fn durable(&self) -> Sequence {
        self.shared.durable.get()
    }

    /// Where the durable part of the stream ends; `None` if nothing was written.
    pub fn written_to(&self) -> Option<WrittenTo> {
        let (segment, bytes) = self.shared.end.get();
        (segment > 0).then_some(WrittenTo { segment, bytes, sequence: self.shared.durable.get() })
    }

    /// The failure that ended this stream, if one has.
    pub fn poison(&self) -> Option<WalError> {
        self.shared.poison.borrow().clone()
    }
}

/// Makes `buffer`, whose first `used` bytes count, at least `needed` long.
fn reserve<D: WalDir>(dir: &D, buffer: &mut D::Buffer, used: usize, needed: usize) {
    let len = buffer.as_slice().len();
    if needed > len {
        let mut larger = dir.allocate(needed.max(len * 2).next_multiple_of(WAL_ALIGN));
        larger.as_mut_slice()[..used].copy_from_slice(&buffer.as_slice()[..used]);
        *buffer = larger;
    }
}

/// A closed frame on its way to the disk. Must be committed; while one exists, no other can be taken.
pub struct Round<B> {
    /// `None` while it is being written and when it is durable.
    buffer: Option<B>,
    payload_bytes: u32,
    records: u32,
    first: Sequence,
}

impl<B> Round<B> {
    /// The sequences of its records, first and last.
    pub fn sequences(&self) -> (Sequence, Sequence) {
        (self.first, Sequence(self.first.0 + u64::from(self.records) - 1))
    }

    /// Bytes of its records.
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes as usize
    }
}

/// A round that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its first sequence.
    pub first: Sequence,
    /// Its last sequence; everything up to it is durable.
    pub last: Sequence,
    /// The segment that holds it.
    pub segment: u32,
    /// Where in the segment its frame begins, in bytes.
    pub offset: u64,
    /// Bytes of the frame with header and padding.
    pub frame_bytes: usize,
}

/// A file that frames can be written to.
struct Segment<F> {
    file: F,
    name: String,
    id: u64,
    number: u32,
    /// Zeroed up to here.
    bytes: u64,
    /// Frames up to here.
    used: u64,
}

/// The half that writes. Held by the task that commits.
pub struct WalCommitter<D: WalDir> {
    maker: Rc<SegmentMaker<D>>,
    shared: Rc<Shared>,
    /// `None` until the first one is made.
    segment: Option<Segment<D::File>>,
    slot: Rc<Slot<Segment<D::File>>>,
}

impl<D: WalDir> WalCommitter<D> {
    /// Makes the first segment, so that the first commit need not.
    ///
    /// # Errors
    /// [`WalError::Short`]: to be tried again. [`WalError::Poisoned`].
    pub async fn begin(&mut self) -> Result<(), WalError> {
        self.shared.check()?;
        if self.segment.is_some() { Ok(()) } else { self.rotate(0).await }
    }

    /// Writes `round` durably: one write that is its own sync (or is followed by one), and a change of segment where it does not fit.
    ///
    /// Must not be dropped before it is done: what is under way would land unseen, so that poisons the log.
    ///
    /// # Errors
    /// [`WalError::Short`]: `round` is whole and may be committed again. [`WalError::Poisoned`].
    pub async fn commit(&mut self, round: &mut Round<D::Buffer>) -> Result<Committed, WalError> {
        self.shared.check()?;
        let bytes = frame_bytes(round.payload_bytes());
        if self.segment.as_ref().is_none_or(|segment| segment.used + bytes as u64 > segment.bytes) {
            self.rotate(bytes as u64).await?;
        }
        let segment = self.segment.as_mut().expect("a change of segment has made one");
        let offset = segment.used;
        let (first, last) = round.sequences();
        assert_eq!(first.0, self.shared.durable.get().0 + 1, "rounds are committed in order");
        let mut buffer = round.buffer.take().expect("a round is committed once");
        let header = FrameHeader {
            payload_bytes: round.payload_bytes,
            records: round.records,
            segment_id: segment.id,
            stream: self.maker.options.stream,
            first_sequence: first,
            offset,
        };
        header.seal(buffer.as_mut_slice());

        let guard = AbandonGuard { shared: &self.shared, path: self.maker.dir.path_of(&segment.name), offset };
        let (written, buffer) = write_all(&segment.file, <D::File as WalFile>::write_durable_at, buffer, offset).await;
        let path = guard.disarm();
        match written {
            Ok(()) => {}
            Err(Undone::Write(source)) => match Shortage::of(&source) {
                Some(shortage) => {
                    round.buffer = Some(buffer);
                    return Err(WalError::Short { shortage, path, bytes: bytes as u64 });
                }
                None => return Err(self.shared.poison(WalOperation::Write, path, offset, source)),
            },
            Err(Undone::Sync(source)) => return Err(self.shared.poison(WalOperation::Sync, path, offset, source)),
        }
        segment.used += bytes as u64;
        self.shared.end.set((segment.number, segment.used));
        self.shared.durable.set(last);
        self.shared.round_out.set(false);
        Ok(Committed { first, last, segment: segment.number, offset, frame_bytes: bytes })
    }

    /// Makes the next segment ahead of its need. `None` if there is no need yet, if it is there or under way, after a failure, and
    /// after one that found the disk full: then the commit that needs it makes it. To be spawned on the same executor; a commit
    /// that needs the segment meanwhile waits for it.
    pub fn prepare_next(&self) -> Option<impl Future<Output = ()> + use<D>> {
        let segment = self.segment.as_ref()?;
        if self.shared.check().is_err() || self.maker.was_short.get() || segment.used * PREPARE_AT < segment.bytes {
            return None;
        }
        let claim = Claim::take(&self.slot)?;
        let (maker, number) = (self.maker.clone(), segment.number + 1);
        Some(async move {
            if let Ok(segment) = maker.make(number, 0).await {
                claim.fill(segment);
            }
        })
    }

    /// The sequence up to which everything is durable; 0 if nothing is.
    pub fn durable(&self) -> Sequence {
        self.shared.durable.get()
    }

    /// The number of the segment that is written now; 0 before the first.
    pub fn segment(&self) -> u32 {
        self.segment.as_ref().map_or(0, |segment| segment.number)
    }

    /// Takes the next segment, which holds a frame of `bytes` at least.
    async fn rotate(&mut self, bytes: u64) -> Result<(), WalError> {
        let needed = SEGMENT_HEADER_BYTES as u64 + bytes;
        let mut next = match Slot::wait(&self.slot).await {
            Some(segment) => segment,
            None => {
                self.shared.check()?;
                self.maker.make(self.segment() + 1, needed).await?
            }
        };
        if next.bytes < needed
            && let Err(error) = self.maker.grow(&mut next, needed).await
        {
            // What was zeroed so far is known to `next`: a later attempt goes on from there.
            self.slot.put(next);
            return Err(error);
        }
        let Some(old) = self.segment.replace(next) else { return Ok(()) };
        let path = self.maker.dir.path_of(&old.name);
        if let Err(error) = old.file.close().await {
            // All of it is durable already.
            tracing::warn!(path = %path.display(), %error, "segment was not closed properly");
        }
        Ok(())
    }
}

/// Makes segments for one stream.
struct SegmentMaker<D> {
    dir: Rc<D>,
    options: WalOptions,
    shared: Rc<Shared>,
    /// The last segments that the manifest knows, or may know, with their lengths.
    tail: RefCell<Vec<(u32, u64)>>,
    /// The last attempt found the disk full.
    was_short: Cell<bool>,
}

impl<D: WalDir> SegmentMaker<D> {
    /// A new segment of at least `needed` bytes, ready to be written. What is left of a failed attempt is removed, so that its
    /// blocks are not what the disk lacks; a smaller one is tried then.
    async fn make(&self, number: u32, needed: u64) -> Result<Segment<D::File>, WalError> {
        let name = segment_name(number);
        let least = needed.max(WAL_FIRST_SEGMENT_BYTES.min(self.options.segment_bytes));
        let least = least.next_multiple_of(WAL_ALIGN as u64).max(2 * WAL_ALIGN as u64);
        let wanted = self.options.bytes_of(number).max(least);
        let mut bytes = if self.was_short.get() { least } else { wanted };
        loop {
            let source = match self.try_make(number, &name, bytes).await {
                Ok(segment) => {
                    self.was_short.set(false);
                    return Ok(segment);
                }
                Err(source) => source,
            };
            let Some(shortage) = Shortage::of(&source) else {
                let path = self.dir.path_of(&name);
                return Err(self.shared.poison(WalOperation::PrepareSegment, path, 0, source));
            };
            let _ = self.dir.remove(&name).await;
            if bytes == least || shortage == Shortage::ReadOnly {
                self.was_short.set(true);
                return Err(WalError::Short { shortage, path: self.dir.path_of(&name), bytes });
            }
            bytes = (bytes / 4).next_multiple_of(WAL_ALIGN as u64).max(least);
        }
    }

    async fn try_make(&self, number: u32, name: &str, bytes: u64) -> io::Result<Segment<D::File>> {
        if self.tail.borrow().iter().any(|(known, _)| *known >= number) {
            // An attempt was dropped when the manifest may have known the file already, which is about to be emptied.
            self.register(None, number).await?;
        }
        let file = self.dir.create(name).await?;
        let WalOptions { stream, shards, directory, .. } = self.options;
        let header = SegmentHeader { segment_id: self.id_of(number), stream, number, shards, directory };
        let mut segment =
            Segment { file, name: name.to_owned(), id: header.segment_id, number, bytes: 0, used: WAL_ALIGN as u64 };
        self.zero(&mut segment, bytes).await?;
        let mut block = self.dir.allocate(SEGMENT_HEADER_BYTES);
        header.encode(block.as_mut_slice());
        write_all(&segment.file, <D::File as WalFile>::write_at, block, 0).await.0?;
        segment.file.sync_data().await?;
        self.dir.sync_names().await?;
        self.register(Some(bytes), number).await?;
        Ok(segment)
    }

    fn id_of(&self, number: u32) -> u64 {
        segment_id(self.options.seed, self.options.stream, number)
    }

    /// Tells the manifest that this segment is the last one and has so many bytes, or that it is not there.
    async fn register(&self, bytes: Option<u64>, number: u32) -> io::Result<()> {
        let before = self.tail.borrow().clone();
        let mut tail: Vec<_> = before.iter().copied().filter(|(known, _)| *known < number).collect();
        tail.extend(bytes.map(|bytes| (number, bytes)));
        let tail = tail.split_off(tail.len().saturating_sub(TAIL_SEGMENTS));
        // If this is dropped half way, the manifest may know it.
        self.tail.replace(if bytes.is_some() { tail.clone() } else { before.clone() });
        let registered = self.dir.register(self.id_of(1), &tail).await;
        match &registered {
            Ok(()) => drop(self.tail.replace(tail)),
            Err(error) if Shortage::of(error).is_some() => drop(self.tail.replace(before)),
            Err(_) => {}
        }
        registered
    }

    /// Makes a segment that was not used yet large enough for a large record.
    async fn grow(&self, segment: &mut Segment<D::File>, bytes: u64) -> Result<(), WalError> {
        let path = self.dir.path_of(&segment.name);
        let failed = |source: io::Error, may_wait: bool, path: PathBuf| match Shortage::of(&source) {
            Some(shortage) if may_wait => WalError::Short { shortage, path, bytes },
            _ => self.shared.poison(WalOperation::PrepareSegment, path, 0, source),
        };
        let zeroed = self.zero(segment, bytes.next_multiple_of(WAL_ALIGN as u64)).await;
        zeroed.map_err(|source| failed(source, true, path.clone()))?;
        segment.file.sync_data().await.map_err(|source| failed(source, false, path.clone()))?;
        let registered = self.register(Some(segment.bytes), segment.number).await;
        registered.map_err(|source| failed(source, true, path))
    }

    /// Writes zeros up to `bytes`.
    async fn zero(&self, segment: &mut Segment<D::File>, bytes: u64) -> io::Result<()> {
        let mut zeros: Option<D::Buffer> = None;
        while segment.bytes < bytes {
            let len = (bytes - segment.bytes).min(ZERO_BYTES as u64) as usize;
            let mut buffer = zeros.take().unwrap_or_else(|| {
                let mut zeros = self.dir.allocate(len);
                zeros.as_mut_slice().fill(0);
                zeros
            });
            buffer.truncate(len);
            let (written, buffer) =
                write_all(&segment.file, <D::File as WalFile>::write_at, buffer, segment.bytes).await;
            written?;
            zeros = Some(buffer);
            segment.bytes += len as u64;
        }
        Ok(())
    }
}

/// Writes all of `buffer` by `write`, which a short write makes begin again: the bytes and the place stay the same.
async fn write_all<F: WalFile, E: From<io::Error>>(
    file: &F,
    write: impl AsyncFn(&F, F::Buffer, u64) -> (Result<usize, E>, F::Buffer),
    mut buffer: F::Buffer,
    offset: u64,
) -> (Result<(), E>, F::Buffer) {
    let len = buffer.as_slice().len();
    for _ in 0..WRITE_ATTEMPTS_MAX {
        let (result, returned) = write(file, buffer, offset).await;
        buffer = returned;
        match result {
            Ok(written) if written == len => return (Ok(()), buffer),
            Ok(written) => tracing::debug!(written, len, offset, "short write to the log"),
            Err(error) => return (Err(error), buffer),
        }
    }
    (Err(io::Error::new(io::ErrorKind::WriteZero, "writes stay short").into()), buffer)
}

/// splitmix64 over all that tells one segment from another.
fn segment_id(seed: u64, stream: Stream, number: u32) -> u64 {
    let place = u64::from(stream.epoch.0) << 48 ^ u64::from(stream.shard.0) << 32 ^ u64::from(number);
    let mut z = seed.wrapping_add(place.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Poisons the log if a commit is dropped between its write and the end of its sync.
struct AbandonGuard<'a> {
    shared: &'a Shared,
    path: PathBuf,
    offset: u64,
}

impl AbandonGuard<'_> {
    fn disarm(mut self) -> PathBuf {
        let path = std::mem::take(&mut self.path);
        std::mem::forget(self);
        path
    }
}

impl Drop for AbandonGuard<'_> {
    fn drop(&mut self) {
        let source = io::Error::new(io::ErrorKind::Interrupted, "commit was dropped");
        self.shared.poison(WalOperation::Abandoned, std::mem::take(&mut self.path), self.offset, source);
    }
}
