//! The manifest: what the log consists of, known outside of the log. `<data dir>/manifest`, text with a checksum.
//!
//! ```text
//! saltus manifest 1
//! directory 0f0e...            the identity of the data directory; the catalog has it too
//! epoch 12                     the last life of the process
//! catalog 7                    the catalog's generation, at least
//! stream 00000003-0000 segments 1-4 id 00c0ffee00c0ffee ended 1234 16384
//! stream 00000012-0001 segments 1-2 id 00c0ffee00c0ffef open 1048576 4194304
//! given-up 00000003-0000 17-29
//! crc32c 0badcafe              of everything above
//! ```
//!
//! A stream is `open` from the moment its first segment may hold data; the numbers are the lengths that its last segments have at
//! least. It is `ended` when its last sequence is known, and where its last segment ends. What an operator has given up stays
//! noted, so that no later start complains of it.
//!
//! **Fault model**: who misses what, and what a crash between two steps leaves. Steps are durable one after the other.
//!
//! | step | a crash behind it leaves | the next start |
//! |---|---|---|
//! | the catalog is made | a catalog without manifest, no log | goes on |
//! | the manifest has the epoch | an `epoch` file that is lower | heals the file |
//! | the catalog has the epoch | | |
//! | a segment is made | a file that the manifest does not know, without frames | removes it |
//! | the manifest has the segment | a registered segment without frames | finds the stream's end before it |
//! | frames are written | | recovers them |
//! | the manifest says that a stream has ended | files longer than it says | cuts them |
//! | the files are cut | | |
//! | the manifest forgets a stream that is empty | files without frames that it does not know | removes them |
//!
//! | found at the start | meaning |
//! |---|---|
//! | no manifest, and the catalog knows of none | an older version's data directory: its files are taken as they are |
//! | no manifest, and the catalog knows of one; a checksum that is wrong | the manifest is lost |
//! | a registered segment is missing, or shorter than it was | rows are lost |
//! | an ended stream whose last sequence is not found | rows are lost |
//! | frames in a stream or segment that the manifest does not know | the manifest is an older copy; if the segments say so, an older version of the server wrote them since |
//! | a segment of another data directory, or with another id | the log was exchanged |
//! | the catalog's generation is lower | an older copy of the catalog |
//! | the catalog's epoch is higher | an older copy of the manifest |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use saltus_core::ids::{Epoch, Sequence, Stream};

use super::format::{SEGMENT_HEADER_BYTES, SegmentHeader};
use super::recovery::{RecoveryError, StreamFiles, parse_stream, segment_name, stream_dir, stream_name};

/// Its name in the data directory.
pub const MANIFEST_FILE: &str = "manifest";
/// Its first line.
const HEAD: &str = "saltus manifest 1";

/// What is known of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRecord {
    /// Number of the first segment.
    pub first: u32,
    /// Number of the last one that may hold data.
    pub last: u32,
    /// Id of the first segment; 0 if that is not known.
    pub id: u64,
    /// How much there is.
    pub end: End,
}

/// How much of a stream there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It is being written, or its life ended without a word: the lengths of its last segments at least, ascending by number.
    Open(Vec<u64>),
    /// Nothing is written to it any more.
    At {
        /// The last sequence.
        sequence: Sequence,
        /// Bytes of the last segment.
        bytes: u64,
    },
}

/// What the log consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The identity of the data directory, a UUID.
    pub directory: String,
    /// The last life of the process.
    pub epoch: Epoch,
    /// The generation of the catalog, at least.
    pub catalog: u64,
    /// The streams.
    pub streams: BTreeMap<Stream, StreamRecord>,
    /// First and last sequence of what is gone, and was given up by an operator.
    pub given_up: BTreeSet<(Stream, u64, u64)>,
    /// What segments say that were written before the identity was lost with catalog and manifest.
    pub adopted: BTreeSet<u32>,
}

/// What tells the segments of one data directory from those of others. Never 0.
pub fn fingerprint(directory: &str) -> u32 {
    crc32c::crc32c(directory.as_bytes()).max(1)
}

impl Manifest {
    /// The file's text.
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(256 + self.streams.len() * 80);
        let line = |text: &mut String, line: std::fmt::Arguments<'_>| {
            let _ = writeln!(text, "{line}");
        };
        line(&mut text, format_args!("{HEAD}"));
        line(&mut text, format_args!("directory {}", self.directory));
        line(&mut text, format_args!("epoch {}", self.epoch.0));
        line(&mut text, format_args!("catalog {}", self.catalog));
        for (stream, StreamRecord { first, last, id, end }) in &self.streams {
            let end = match end {
                End::At { sequence, bytes } => format!("ended {} {bytes}", sequence.0),
                End::Open(tail) => tail.iter().fold("open".to_owned(), |text, bytes| format!("{text} {bytes}")),
            };
            let name = stream_name(*stream);
            line(&mut text, format_args!("stream {name} segments {first}-{last} id {id:016x} {end}"));
        }
        for (stream, first, last) in &self.given_up {
            line(&mut text, format_args!("given-up {} {first}-{last}", stream_name(*stream)));
        }
        for fingerprint in &self.adopted {
            line(&mut text, format_args!("adopted {fingerprint:08x}"));
        }
        let crc = crc32c::crc32c(text.as_bytes());
        line(&mut text, format_args!("crc32c {crc:08x}"));
        text
    }

    /// Reads what [`Manifest::encode`] gave.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is no text")?;
        if text.is_empty() {
            return Err("it is empty".into());
        }
        let body = text.rfind("crc32c ").ok_or("it is cut short")?;
        let crc = text[body..].trim_end().strip_prefix("crc32c ").and_then(|hex| u32::from_str_radix(hex, 16).ok());
        if crc != Some(crc32c::crc32c(&bytes[..body])) {
            return Err("its checksum is wrong".into());
        }
        let mut lines = text[..body].lines();
        if lines.next() != Some(HEAD) {
            return Err("a newer version of saltus wrote it, which this one cannot read".into());
        }
        let mut manifest = Manifest::default();
        for line in lines {
            manifest.take(line).ok_or_else(|| format!("this version cannot read its line '{line}'"))?;
        }
        Ok(manifest)
    }

    fn take(&mut self, line: &str) -> Option<()> {
        let (key, rest) = line.split_once(' ')?;
        let words: Vec<&str> = rest.split(' ').collect();
        match (key, &words[..]) {
            ("directory", [directory]) => self.directory = (*directory).to_owned(),
            ("epoch", [epoch]) => self.epoch = Epoch(epoch.parse().ok()?),
            ("catalog", [generation]) => self.catalog = generation.parse().ok()?,
            ("stream", [stream, "segments", range, "id", id, state, numbers @ ..]) => {
                let (first, last) = range.split_once('-')?;
                let numbers = numbers.iter().map(|n| n.parse()).collect::<Result<Vec<u64>, _>>().ok()?;
                let end = match (*state, &numbers[..]) {
                    ("ended", [sequence, bytes]) => End::At { sequence: Sequence(*sequence), bytes: *bytes },
                    ("open", _) => End::Open(numbers),
                    _ => return None,
                };
                let id = u64::from_str_radix(id, 16).ok()?;
                let record = StreamRecord { first: first.parse().ok()?, last: last.parse().ok()?, id, end };
                self.streams.insert(parse_stream(stream)?, record);
            }
            ("given-up", [stream, range]) => {
                let (first, last) = range.split_once('-')?;
                self.given_up.insert((parse_stream(stream)?, first.parse().ok()?, last.parse().ok()?));
            }
            ("adopted", [fingerprint]) => {
                self.adopted.insert(u32::from_str_radix(fingerprint, 16).ok()?);
            }
            _ => return None,
        }
        Some(())
    }

    /// What there is now, of a log that no manifest tells of: it is taken for whole.
    pub fn of_files(streams: &[StreamFiles]) -> Self {
        let header = |path: &Path| header_of(path).ok().flatten();
        let record = |files: &StreamFiles| {
            // A last one without a header may be what a crash has left of its preparation.
            let count = files.segments.iter().rposition(|(_, path)| header(path).is_some())? + 1;
            let segments = &files.segments[..count];
            let (first, path) = segments.first()?;
            let id = header(path).map_or(0, |header| header.segment_id);
            let tail = &segments[count.saturating_sub(2)..];
            let lengths = tail.iter().map(|(_, path)| length_of(path).unwrap_or(0)).collect();
            let last = segments.last()?.0;
            Some((files.stream, StreamRecord { first: *first, last, id, end: End::Open(lengths) }))
        };
        Manifest { streams: streams.iter().filter_map(record).collect(), ..Manifest::default() }
    }

    /// What of the log is missing, cut off or another's, by names, lengths and headers: a line for each. What frames say is seen by
    /// recovery.
    ///
    /// # Errors
    /// A file cannot be looked at.
    pub fn check(&self, data_dir: &Path, files: &[StreamFiles]) -> Result<Vec<String>, RecoveryError> {
        let there: BTreeMap<Stream, &StreamFiles> = files.iter().map(|files| (files.stream, files)).collect();
        let mut found = Vec::new();
        for (stream, record) in &self.streams {
            let path = stream_dir(data_dir, *stream);
            match there.get(stream) {
                None => found.push(format!("{} is missing: {}", path.display(), record.holds(*stream))),
                Some(files) => self.check_stream(*stream, record, &path, files, &mut found)?,
            }
        }
        Ok(found)
    }

    fn check_stream(
        &self,
        stream: Stream,
        record: &StreamRecord,
        dir: &Path,
        files: &StreamFiles,
        found: &mut Vec<String>,
    ) -> Result<(), RecoveryError> {
        let there: BTreeMap<u32, &Path> = files.segments.iter().map(|(number, path)| (*number, &**path)).collect();
        let lost = || record.holds(stream);
        let given_up = self.given_up.iter().any(|(of, ..)| *of == stream);
        for number in record.first..=record.last {
            let is_known = given_up && number != record.last && number != record.first;
            if !is_known && !there.contains_key(&number) {
                let path = dir.join(segment_name(number));
                found.push(format!("{} is missing: a part of this: {}", path.display(), lost()));
            }
        }
        for (number, least) in record.lengths() {
            let Some(path) = there.get(&number) else { continue };
            let bytes = length_of(path).map_err(|source| RecoveryError::Io { path: path.to_path_buf(), source })?;
            if bytes < least {
                let path = path.display();
                found.push(format!("{path} has {bytes} bytes of {least}: a part of this is cut off: {}", lost()));
            }
        }
        let Some(path) = there.get(&record.first) else { return Ok(()) };
        let header = header_of(path).map_err(|source| RecoveryError::Io { path: path.to_path_buf(), source })?;
        if let Some(header) = header
            && ((record.id != 0 && header.segment_id != record.id) || !self.is_ours(&header))
        {
            found.push(format!("{} is of another data directory: missing is this: {}", path.display(), lost()));
        }
        Ok(())
    }

    /// Whether a segment says that it is of this data directory, or does not say of which it is.
    pub fn is_ours(&self, header: &SegmentHeader) -> bool {
        let of = header.directory;
        of == 0 || of == fingerprint(&self.directory) || self.adopted.contains(&of)
    }
}

impl StreamRecord {
    /// What an operator would lose with it.
    fn holds(&self, stream: Stream) -> String {
        let whose =
            format!("rows and triggers' progress that shard {} wrote in epoch {}", stream.shard, stream.epoch.0);
        match &self.end {
            End::At { sequence, .. } => format!("{whose}, sequences 1 to {}", sequence.0),
            End::Open(_) => whose,
        }
    }

    /// The last segments and the lengths that they have at least.
    fn lengths(&self) -> Vec<(u32, u64)> {
        match &self.end {
            End::At { bytes, .. } => vec![(self.last, *bytes)],
            End::Open(tail) => {
                let from = (self.last + 1).saturating_sub(tail.len() as u32);
                (from..).zip(tail.iter().copied()).collect()
            }
        }
    }

    /// The length that a segment has at least.
    pub fn length_of(&self, number: u32) -> u64 {
        self.lengths().iter().find(|(known, _)| *known == number).map_or(0, |(_, bytes)| *bytes)
    }
}

fn length_of(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

/// The header of a segment, if it has a sound one.
pub(crate) fn header_of(path: &Path) -> io::Result<Option<SegmentHeader>> {
    let mut block = [0; SEGMENT_HEADER_BYTES];
    match File::open(path)?.read_exact_at(&mut block, 0) {
        Ok(()) => Ok(SegmentHeader::decode(&block).ok()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use saltus_core::ids::ShardId;

    use super::*;

    fn stream(epoch: u32, shard: u16) -> Stream {
        Stream { epoch: Epoch(epoch), shard: ShardId(shard) }
    }

    fn manifest() -> Manifest {
        let ended = End::At { sequence: Sequence(1234), bytes: 16384 };
        let streams = [
            (stream(3, 0), StreamRecord { first: 1, last: 4, id: u64::MAX, end: ended }),
            (stream(12, 1), StreamRecord { first: 1, last: 2, id: 7, end: End::Open(vec![4096, 8192]) }),
        ];
        Manifest {
            directory: "1d2c".into(),
            epoch: Epoch(12),
            catalog: 7,
            streams: streams.into(),
            given_up: [(stream(3, 0), 17, 29)].into(),
            adopted: [3].into(),
        }
    }

    #[test]
    fn a_manifest_comes_back_as_it_was_and_no_byte_of_it_may_change() {
        let manifest = manifest();
        let text = manifest.encode();
        assert_eq!(Manifest::decode(text.as_bytes()), Ok(manifest));
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(Manifest::decode(&bytes).is_err(), "byte {at}");
            assert!(Manifest::decode(&text.as_bytes()[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_lengths_of_an_open_stream_are_of_its_last_segments() {
        let lengths = manifest().streams[&stream(12, 1)].lengths();
        assert_eq!(lengths, [(1, 4096), (2, 8192)]);
    }
}
