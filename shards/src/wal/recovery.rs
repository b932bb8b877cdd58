//! Reading the log of earlier lives.
//!
//! **Fault model**: what a reader may find, and what it makes of it.
//!
//! | found | meaning | done |
//! |---|---|---|
//! | zeros behind the last frame | the log ends there | nothing |
//! | something that is no frame, and no sound frame of this segment or a later one behind it | the last round was under way when the power went: it was never acknowledged | cut, and reported ([`TornTail`]) |
//! | the same with a sound frame behind it | decay or loss: a round is submitted only after the one before it is durable | refused; with `accept_loss` skipped, and reported ([`Loss`]) |
//! | a sound frame whose first sequence is beyond the next one | frames between them are missing | as above |
//! | a sound frame whose first sequence was read already | a bug | refused always |
//! | no frame, but the next segment goes on with the next sequence | nothing is missing | nothing |
//! | a segment number left out | a file is missing | as above |
//! | a stream, or its first or last segments, that the manifest knows, not there | files are missing | as above |
//! | a last segment shorter than the manifest says, and nothing behind it | it was cut | as above |
//! | a stream that ends before the sequence that the manifest says | frames are missing | as above |
//! | a segment of another data directory, of another stream, or with another number | it was exchanged or renamed | as a segment that is missing |
//! | damage that an operator has given up at an earlier start | known | nothing |
//! | a last segment without a sound header and without frames | its preparation was interrupted | reported, nothing lost |
//! | any other segment without a sound header | damage | refused; with `accept_loss` its frames are taken by their own headers |
//! | a sound frame with a record that cannot be read; a newer format version | a newer writer, or a bug | refused always |
//!
//! What cannot be told apart: decay in the very last round, though it was acknowledged, looks like a torn round.
//!
//! Nothing is ever changed on disk here: a second recovery finds the same. What is done with the findings is in
//! [`super::settle`], when every shard has recovered.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use saltus_core::ids::{Epoch, Sequence, ShardId, Stream};
use saltus_core::limits::WAL_ALIGN;

use super::epoch::DataDirLock;
use super::format::{
    FRAME_MAGIC, FormatError, FrameHeader, Record, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderError,
    decode_record,
};
use super::manifest::{End, Manifest, StreamRecord, header_of};
use super::map::SegmentBytes;

/// The log's directory in the data directory.
const WAL_DIR: &str = "wal";

/// Where the segments of `stream` lie.
pub fn stream_dir(data_dir: &Path, stream: Stream) -> PathBuf {
    data_dir.join(WAL_DIR).join(stream_name(stream))
}

/// The name of a stream's directory.
pub fn stream_name(stream: Stream) -> String {
    format!("{:08}-{:04}", stream.epoch.0, stream.shard.0)
}

/// The file name of a stream's segment.
pub fn segment_name(number: u32) -> String {
    format!("{number:08}.wal")
}

/// A stream that is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFiles {
    /// Which.
    pub stream: Stream,
    /// Its segments' numbers and files, ascending.
    pub segments: Vec<(u32, PathBuf)>,
}

impl StreamFiles {
    /// Of which data directory its segments say that they are ([`super::manifest::fingerprint`]); `None` if none of them does.
    pub fn directory(&self) -> Option<u32> {
        let headers = self.segments.iter().filter_map(|(_, path)| header_of(path).ok().flatten());
        headers.map(|header| header.directory).find(|directory| *directory != 0)
    }
}

/// All streams below `data_dir`, oldest epoch first, then by shard.
///
/// # Errors
/// [`RecoveryError::Io`].
pub fn list_streams(data_dir: &Path) -> Result<Vec<StreamFiles>, RecoveryError> {
    list_streams_before(data_dir, None)
}

/// Those of earlier lives than `before`: the folders of this one are being filled meanwhile, and not looked into.
fn list_streams_before(data_dir: &Path, before: Option<Epoch>) -> Result<Vec<StreamFiles>, RecoveryError> {
    let root = data_dir.join(WAL_DIR);
    let mut streams = Vec::new();
    for (name, path) in names_in(&root)? {
        match parse_stream(&name) {
            Some(stream) if before.is_some_and(|epoch| stream.epoch >= epoch) => {}
            Some(stream) => streams.push(StreamFiles { stream, segments: list_segments(&path)? }),
            None => tracing::warn!(path = %path.display(), "not a stream of the log, ignored"),
        }
    }
    streams.sort_by_key(|s| s.stream);
    Ok(streams)
}

/// The segments in the directory of a stream: number and file, ascending.
///
/// # Errors
/// [`RecoveryError::Io`].
pub fn list_segments(dir: &Path) -> Result<Vec<(u32, PathBuf)>, RecoveryError> {
    let mut segments = Vec::new();
    for (name, path) in names_in(dir)? {
        match parse_segment(&name) {
            Some(number) => segments.push((number, path)),
            None => tracing::warn!(path = %path.display(), "not a segment of the log, ignored"),
        }
    }
    segments.sort();
    Ok(segments)
}

/// What the names of files and folders end with that were given up.
pub(super) const SET_ASIDE: &str = ".set-aside";

/// Names and paths in a directory, but for what was set aside; none if it does not exist.
fn names_in(dir: &Path) -> Result<Vec<(String, PathBuf)>, RecoveryError> {
    let io = |source| RecoveryError::Io { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let named = entries.map(|e| e.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())));
    let used = named.filter(|entry| !entry.as_ref().is_ok_and(|(name, _)| name.ends_with(SET_ASIDE)));
    used.collect::<Result<_, _>>().map_err(io)
}

/// The stream that [`stream_name`] named.
pub(super) fn parse_stream(name: &str) -> Option<Stream> {
    let (epoch, shard) = name.split_once('-')?;
    let stream = Stream { epoch: Epoch(epoch.parse().ok()?), shard: ShardId(shard.parse().ok()?) };
    (name == stream_name(stream)).then_some(stream)
}

fn parse_segment(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".wal")?.parse().ok()?;
    (name == segment_name(number)).then_some(number)
}

/// How recovery meets damage.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecoveryOptions<'a> {
    /// Skip what is damaged and report it, instead of refusing the start.
    pub accept_loss: bool,
    /// Leave out streams of this epoch and later ones: they are being written.
    pub before: Option<Epoch>,
    /// What must be there; without it a log is whole if nothing in it contradicts itself.
    pub known: Option<&'a Manifest>,
}

/// A record with its place, borrowed from the mapped segment.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its stream.
    pub stream: Stream,
    /// Its sequence; with the stream the id of the event.
    pub sequence: Sequence,
    /// The number of its segment.
    pub segment: u32,
    /// The record.
    pub record: Record<'a>,
}

/// What the visitor may fail with; it ends the recovery.
pub type VisitorError = Box<dyn Error + Send + Sync>;

/// Everything that recovery found besides records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Every stream, oldest first.
    pub streams: Vec<StreamReport>,
    /// Last rounds that were not complete.
    pub torn_tails: Vec<TornTail>,
    /// What was skipped because the caller accepts loss.
    pub losses: Vec<Loss>,
    /// Segments whose preparation was interrupted.
    pub unused_segments: Vec<PathBuf>,
    /// Segments that do not belong where they are.
    pub strangers: Vec<PathBuf>,
}

/// One stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamReport {
    /// Which.
    pub stream: Stream,
    /// The last sequence found; 0 if there is none.
    pub last: Sequence,
    /// Its segments, ascending.
    pub segments: Vec<SegmentReport>,
}

/// One segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// Its number.
    pub number: u32,
    /// Its file.
    pub path: PathBuf,
    /// First and last sequence in it; `None` if it holds no frame.
    pub sequences: Option<(Sequence, Sequence)>,
    /// Its id; 0 if its header does not say.
    pub id: u64,
    /// Where its last frame ends, in bytes.
    pub end: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// A round that a crash cut short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Whose.
    pub stream: Stream,
    /// The segment.
    pub path: PathBuf,
    /// Where the valid log ends, in bytes.
    pub offset: u64,
    /// Bytes from there to the last one that is not zero.
    pub bytes: u64,
}

/// Records that are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Whose.
    pub stream: Stream,
    /// The segment in which the damage begins.
    pub path: PathBuf,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// The first sequence that is missing; 0 if that is not known, because the log before it was cut.
    pub first: Sequence,
    /// The last one; below `first` if the damage cost no record, `None` if the log ends with it.
    pub last: Option<Sequence>,
}

impl Loss {
    /// What the manifest notes of it when it is given up.
    pub fn key(&self) -> (Stream, u64, u64) {
        (self.stream, self.first.0, self.last.map_or(0, |last| last.0))
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (epoch, shard) = (self.stream.epoch.0, self.stream.shard);
        match (self.first.0, self.last) {
            (0, Some(last)) => write!(f, "sequences up to {}", last.0),
            (first, Some(last)) if last.0 < first => write!(f, "no sequence"),
            (first, Some(last)) => write!(f, "sequences {first} to {}", last.0),
            (first, None) => write!(f, "all sequences from {first}"),
        }?;
        write!(f, " of epoch {epoch}, shard {shard} (rows of its tables, and what its triggers had finished)")
    }
}

/// What an operator can do about damage; at the end of every text that tells of it.
pub const WAY_ON: &str = "bring the files back from a backup, or start once with --accept-loss, which gives up what is named here and goes on";

/// Why the log cannot be read. Every variant names the file, and the offset where there is one.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// A file or directory cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Records that were durable are damaged or missing.
    #[error("log is damaged: {what} in {path} at offset {offset}: {loss} would be lost; {WAY_ON}", path = loss.path.display(), offset = loss.offset)]
    Damaged {
        /// What was found.
        what: &'static str,
        /// Where, and what accepting it would cost.
        loss: Box<Loss>,
    },
    /// A sound file of a format that this version does not know.
    #[error("{path} has format version {version}, which this version cannot read", path = path.display())]
    UnsupportedVersion {
        /// The segment.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A sound frame that contradicts those before it, or whose records cannot be read.
    #[error("cannot read the frame in {path} at offset {offset}: {source}; --accept-loss does not help here: use the version of saltus that wrote it, or bring the file back from a backup", path = path.display())]
    Frame {
        /// The segment.
        path: PathBuf,
        /// Where the frame begins, in bytes.
        offset: u64,
        /// Why.
        source: FrameError,
    },
    /// The visitor refused a record.
    #[error("cannot apply a record of the frame in {path} at offset {offset}: {source}", path = path.display())]
    Visitor {
        /// The segment.
        path: PathBuf,
        /// Where its frame begins, in bytes.
        offset: u64,
        /// What the visitor said.
        source: VisitorError,
    },
}

/// What is wrong with a frame whose checksum is right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A record.
    #[error(transparent)]
    Record(#[from] FormatError),
    /// The records do not fill the frame.
    #[error("frame holds more bytes than its records")]
    Length,
    /// Sequences that were read already.
    #[error("frame begins with sequence {found}, expected {expected}")]
    Sequence {
        /// What it says.
        found: u64,
        /// What comes next.
        expected: u64,
    },
}

/// Reads every stream of the data directory that `lock` holds, oldest epoch first, and gives each record to `visit`, in
/// order per stream.
///
/// # Errors
/// [`RecoveryError`]; records may have been visited before.
pub fn recover(
    lock: &DataDirLock,
    options: RecoveryOptions,
    visit: &mut dyn FnMut(Entry<'_>) -> Result<(), VisitorError>,
) -> Result<RecoveryReport, RecoveryError> {
    let mut report = RecoveryReport::default();
    let mut streams: BTreeMap<Stream, StreamFiles> =
        list_streams_before(lock.data_dir(), options.before)?.into_iter().map(|files| (files.stream, files)).collect();
    for stream in options.known.iter().flat_map(|known| known.streams.keys().copied()) {
        if options.before.is_none_or(|epoch| stream.epoch < epoch) {
            streams.entry(stream).or_insert(StreamFiles { stream, segments: Vec::new() });
        }
    }
    for files in streams.into_values() {
        let mut reader = StreamReader {
            stream: files.stream,
            record: options.known.and_then(|known| known.streams.get(&files.stream)),
            cut: None,
            options,
            expected: None,
            gap: None,
            report: &mut report,
            segments: Vec::with_capacity(files.segments.len()),
            visit,
        };
        reader.read(lock, &files)?;
        let (stream, segments) = (files.stream, reader.segments);
        let last = reader.expected.map_or(Sequence(0), |next| Sequence(next - 1));
        report.streams.push(StreamReport { stream, last, segments });
    }
    Ok(report)
}

/// A place behind which no sound frame was seen yet.
struct Gap {
    path: PathBuf,
    offset: u64,
    /// Up to the last byte that is not zero; 0 for a clean end.
    bytes: u64,
    what: &'static str,
    /// Damage whatever follows.
    certain: bool,
}

/// One stream on its way through recovery.
struct StreamReader<'a> {
    stream: Stream,
    /// What the manifest knows of it.
    record: Option<&'a StreamRecord>,
    /// A segment is shorter than it was, and nothing has gone on behind it: where it ends.
    cut: Option<(PathBuf, u64)>,
    options: RecoveryOptions<'a>,
    /// The next sequence; `None` before the first frame of a log whose beginning was cut.
    expected: Option<u64>,
    /// Open until a sound frame (then it is damage) or the end of the stream (then it was the tail).
    gap: Option<Gap>,
    report: &'a mut RecoveryReport,
    segments: Vec<SegmentReport>,
    visit: &'a mut dyn FnMut(Entry<'_>) -> Result<(), VisitorError>,
}

/// The segment that is being read.
struct Current<'a> {
    number: u32,
    path: &'a Path,
    bytes: &'a [u8],
    /// `None` if the header does not tell.
    id: Option<u64>,
}

impl StreamReader<'_> {
    fn read(&mut self, lock: &DataDirLock, files: &StreamFiles) -> Result<(), RecoveryError> {
        let dir = stream_dir(lock.data_dir(), self.stream);
        let there: BTreeMap<u32, &PathBuf> = files.segments.iter().map(|(number, path)| (*number, path)).collect();
        let first = there.keys().next().copied();
        let known = self.record.map(|record| (record.first, record.last));
        let (Some(from), Some(to)) = (
            first.into_iter().chain(known.map(|(first, _)| first)).min(),
            there.keys().next_back().copied().into_iter().chain(known.map(|(_, last)| last)).max(),
        ) else {
            return Ok(());
        };
        // Only what lies before the first segment may have been cut.
        if from <= 1 {
            self.expected = Some(1);
        }
        for number in from..=to {
            let Some(path) = there.get(&number) else {
                self.certain_gap(dir.join(segment_name(number)), "missing segment");
                continue;
            };
            let mapped = SegmentBytes::open(lock, path)
                .map_err(|source| RecoveryError::Io { path: path.to_path_buf(), source })?;
            self.read_segment(number, path, mapped.as_slice(), number == to)?;
        }
        self.end(&dir)
    }

    fn read_segment(&mut self, number: u32, path: &Path, bytes: &[u8], is_last: bool) -> Result<(), RecoveryError> {
        let id = match SegmentHeader::decode(bytes) {
            Ok(header) if self.options.known.is_some_and(|known| !known.is_ours(&header)) => {
                self.certain_gap(path.to_owned(), "segment of another data directory");
                self.report.strangers.push(path.to_owned());
                return Ok(());
            }
            Ok(header) if header.stream == self.stream && header.number == number => Some(header.segment_id),
            Ok(_) => {
                self.certain_gap(path.to_owned(), "segment of another stream or with another number");
                self.report.strangers.push(path.to_owned());
                return Ok(());
            }
            Err(SegmentHeaderError::Version(version)) => {
                return Err(RecoveryError::UnsupportedVersion { path: path.to_owned(), version });
            }
            Err(SegmentHeaderError::Invalid) => None,
        };
        let mut current = Current { number, path, bytes, id };
        self.segments.push(SegmentReport {
            number,
            path: path.to_owned(),
            sequences: None,
            id: id.unwrap_or(0),
            end: 0,
            bytes: bytes.len() as u64,
        });
        let is_known = self.record.is_some_and(|record| number <= record.last);
        if current.id.is_none() {
            let found = self.search(&current, SEGMENT_HEADER_BYTES);
            if is_last && found.is_none() && !is_known {
                self.report.unused_segments.push(path.to_owned());
                return Ok(());
            }
            self.certain_gap(path.to_owned(), "segment without a header");
            // Its frames speak for themselves, as long as they agree.
            current.id = found.map(|(_, frame)| frame.segment_id);
        }
        self.read_frames(&current)?;
        if self.record.is_some_and(|record| (bytes.len() as u64) < record.length_of(number)) {
            self.cut = Some((path.to_owned(), bytes.len() as u64));
        }
        Ok(())
    }

    /// Walks from frame to frame; where there is none, searches behind.
    fn read_frames(&mut self, current: &Current<'_>) -> Result<(), RecoveryError> {
        let mut offset = SEGMENT_HEADER_BYTES;
        loop {
            let here = FrameHeader::decode(current.bytes, offset).filter(|(frame, _)| self.is_ours(current, frame));
            let (frame, payload) = match here {
                Some(found) => found,
                None => {
                    self.open_gap(current, offset);
                    let Some((next, _)) = self.search(current, offset + WAL_ALIGN) else { return Ok(()) };
                    offset = next;
                    continue;
                }
            };
            self.take_frame(current, offset, &frame, payload)?;
            offset += frame.frame_bytes();
            if offset >= current.bytes.len() {
                return Ok(());
            }
        }
    }

    /// The next sound frame of this segment at or behind `offset`.
    fn search(&self, current: &Current<'_>, offset: usize) -> Option<(usize, FrameHeader)> {
        let magic = FRAME_MAGIC.to_le_bytes();
        (offset..current.bytes.len()).step_by(WAL_ALIGN).find_map(|at| {
            current.bytes[at..].starts_with(&magic).then_some(())?;
            let (frame, _) = FrameHeader::decode(current.bytes, at)?;
            self.is_ours(current, &frame).then_some((at, frame))
        })
    }

    fn is_ours(&self, current: &Current<'_>, frame: &FrameHeader) -> bool {
        let fits = match current.id {
            Some(id) => frame.segment_id == id,
            None => frame.first_sequence.0 >= self.expected.unwrap_or(0),
        };
        fits && frame.stream == self.stream
    }

    fn take_frame(
        &mut self,
        current: &Current<'_>,
        offset: usize,
        frame: &FrameHeader,
        payload: &[u8],
    ) -> Result<(), RecoveryError> {
        let first = frame.first_sequence;
        let expected = self.expected.unwrap_or(first.0);
        if first.0 < expected {
            let source = FrameError::Sequence { found: first.0, expected };
            return Err(frame_error(current.path, offset, source));
        }
        // Sequences that go on prove that a gap cost nothing: the unused end of a full segment is one.
        let missing = first.0 > expected;
        match self.gap.take() {
            Some(gap) if missing || gap.certain || self.expected.is_none() => self.refuse(&gap, Some(first))?,
            None if missing => {
                let (path, offset) = (current.path.to_owned(), offset as u64);
                let gap = Gap { path, offset, bytes: 0, what: "gap in the sequences", certain: true };
                self.refuse(&gap, Some(first))?;
            }
            _ => {}
        }
        self.visit_records(current, offset, frame, payload)?;
        self.expected = Some(frame.last_sequence().0 + 1);
        // What goes on, or was missed above, tells how much the cut has cost.
        self.cut = None;
        if let Some(segment) = self.segments.last_mut() {
            segment.end = (offset + frame.frame_bytes()) as u64;
            let begin = segment.sequences.map_or(first, |(begin, _)| begin);
            segment.sequences = Some((begin, frame.last_sequence()));
        }
        Ok(())
    }

    fn visit_records(
        &mut self,
        current: &Current<'_>,
        offset: usize,
        frame: &FrameHeader,
        mut payload: &[u8],
    ) -> Result<(), RecoveryError> {
        for at in 0..frame.records {
            let (record, len) = decode_record(payload).map_err(|e| frame_error(current.path, offset, e.into()))?;
            payload = &payload[len..];
            let sequence = Sequence(frame.first_sequence.0 + u64::from(at));
            let entry = Entry { stream: self.stream, sequence, segment: current.number, record };
            (self.visit)(entry).map_err(|source| RecoveryError::Visitor {
                path: current.path.to_owned(),
                offset: offset as u64,
                source,
            })?;
        }
        if payload.is_empty() { Ok(()) } else { Err(frame_error(current.path, offset, FrameError::Length)) }
    }

    /// Remembers where frames end, unless an earlier end waits for its verdict and says more.
    fn open_gap(&mut self, current: &Current<'_>, offset: usize) {
        if self.gap.as_ref().is_some_and(|gap| gap.bytes > 0 || gap.certain) {
            return;
        }
        let rest = current.bytes.get(offset..).unwrap_or_default();
        let bytes = rest.iter().rposition(|b| *b != 0).map_or(0, |at| at as u64 + 1);
        // An unused segment behind a clean end says nothing new.
        if self.gap.is_none() || bytes > 0 {
            let what = if bytes > 0 { "no valid frame" } else { "missing frames" };
            self.gap = Some(Gap { path: current.path.to_owned(), offset: offset as u64, bytes, what, certain: false });
        }
    }

    /// Remembers damage whose extent the next frame will tell.
    fn certain_gap(&mut self, path: PathBuf, what: &'static str) {
        if !self.gap.as_ref().is_some_and(|gap| gap.certain) {
            self.gap = Some(Gap { path, offset: 0, bytes: 0, what, certain: true });
        }
    }

    /// An error, or a note if the caller accepts loss. `found` is where the log goes on, if it does.
    fn refuse(&mut self, gap: &Gap, found: Option<Sequence>) -> Result<(), RecoveryError> {
        let first = Sequence(self.expected.unwrap_or(0));
        let last = found.map(|found| Sequence(found.0 - 1));
        let loss = Loss { stream: self.stream, path: gap.path.clone(), offset: gap.offset, first, last };
        if self.options.known.is_some_and(|known| known.given_up.contains(&loss.key())) {
            tracing::debug!(%loss, "damage that was given up at an earlier start");
            return Ok(());
        }
        if !self.options.accept_loss {
            return Err(RecoveryError::Damaged { what: gap.what, loss: Box::new(loss) });
        }
        tracing::error!(path = %gap.path.display(), offset = gap.offset, what = gap.what, %loss, "damage in the log is skipped");
        self.report.losses.push(loss);
        Ok(())
    }

    /// The stream is over: what could still have been damage was its tail, unless the manifest knows of more.
    fn end(&mut self, dir: &Path) -> Result<(), RecoveryError> {
        let gap = self.gap.take();
        let next = self.expected.unwrap_or(1);
        if let Some(record) = self.record
            && let End::At { sequence, .. } = record.end
        {
            if next > sequence.0 {
                return self.tail(gap);
            }
            let found = gap.filter(|gap| gap.certain);
            let path = found.as_ref().map_or_else(|| dir.join(segment_name(record.last)), |gap| gap.path.clone());
            let (what, offset) = found.map_or(("missing frames", 0), |gap| (gap.what, gap.offset));
            let gap = Gap { path, offset, bytes: 0, what, certain: true };
            return self.refuse(&gap, Some(Sequence(sequence.0 + 1)));
        }
        match (gap, self.cut.take()) {
            (Some(gap), _) if gap.certain => self.refuse(&gap, None),
            (_, Some((path, offset))) => {
                let gap = Gap { path, offset, bytes: 0, what: "a part is cut off", certain: true };
                self.refuse(&gap, None)
            }
            (gap, None) => self.tail(gap),
        }
    }

    /// What lies behind the last frame of a whole stream.
    fn tail(&mut self, gap: Option<Gap>) -> Result<(), RecoveryError> {
        if let Some(Gap { path, offset, bytes, .. }) = gap
            && bytes > 0
        {
            tracing::warn!(path = %path.display(), offset, bytes, "torn tail of the log is cut");
            self.report.torn_tails.push(TornTail { stream: self.stream, path, offset, bytes });
        }
        Ok(())
    }
}

fn frame_error(path: &Path, offset: usize, source: FrameError) -> RecoveryError {
    RecoveryError::Frame { path: path.to_owned(), offset: offset as u64, source }
}
