//! What ended lives leave is cut to what it holds.
//!
//! At the start, when every shard has recovered, and at an orderly stop. The manifest knows first; then files are cut behind the
//! last sound frame, segments without frames behind it are removed, and so are streams that hold nothing. A crash in between
//! leaves more than the manifest says, which the next start cuts. Nothing here loses anything that recovery gives out: what lies
//! behind the last frame was prepared, or was never acknowledged.
//!
//! **Contract:** nobody maps a file of an ended life any more (a map of a file that shrinks is deadly), and nobody writes to it.
//! Readers by position (`reader`) are not harmed. Blocks: for the thread that starts or stops the engine.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use saltus_core::ids::{Epoch, Sequence, Stream};

use super::keeper::ManifestKeeper;
use super::manifest::{End, StreamRecord};
use super::recovery::{RecoveryReport, SET_ASIDE, StreamReport, list_segments, stream_dir};
use super::writer::WrittenTo;

/// What was given back to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Files that were cut or removed.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
}

/// Has the manifest know what recovery found of the lives before `life`, and cuts their files to it.
///
/// # Errors
/// The manifest could not be written; nothing was cut.
pub fn settle_old(
    data_dir: &Path,
    keeper: &ManifestKeeper,
    life: Epoch,
    report: &RecoveryReport,
) -> io::Result<Settled> {
    let records: Vec<(Stream, StreamRecord)> =
        report.streams.iter().filter_map(|stream| Some((stream.stream, record_of(stream)?))).collect();
    let given_up: Vec<_> = report.losses.iter().map(|loss| loss.key()).filter(|(.., last)| *last > 0).collect();
    keeper.change_now(move |manifest| {
        manifest.streams.retain(|stream, _| stream.epoch >= life);
        manifest.streams.extend(records);
        manifest.given_up.extend(given_up);
        let streams = &manifest.streams;
        manifest.given_up.retain(|(stream, ..)| streams.contains_key(stream));
    })?;
    report.strangers.iter().for_each(|path| set_aside(path));
    let mut settled = Settled::default();
    for stream in &report.streams {
        let ends = last_with_frames(stream);
        for segment in &stream.segments {
            let keep = match ends {
                None => 0,
                Some(last) if segment.number > last => 0,
                Some(_) if segment.end == 0 => continue,
                Some(_) => segment.end,
            };
            cut(&segment.path, keep, &mut settled);
        }
        if ends.is_none() {
            remove_dir(&stream_dir(data_dir, stream.stream));
        }
    }
    Ok(settled)
}

/// The same for a life that ends now in an orderly way: where its streams end, if anything was written.
///
/// # Errors
/// The manifest could not be written; nothing was cut.
pub fn settle_own(
    data_dir: &Path,
    keeper: &ManifestKeeper,
    ends: Vec<(Stream, Option<WrittenTo>)>,
) -> io::Result<Settled> {
    let noted = ends.clone();
    keeper.change_now(move |manifest| {
        for (stream, end) in noted {
            match (end, manifest.streams.get_mut(&stream)) {
                (Some(end), Some(record)) => {
                    record.last = end.segment;
                    record.end = End::At { sequence: end.sequence, bytes: end.bytes };
                }
                (Some(_), None) => {}
                (None, _) => drop(manifest.streams.remove(&stream)),
            }
        }
    })?;
    let mut settled = Settled::default();
    for (stream, end) in ends {
        let dir = stream_dir(data_dir, stream);
        let segments = list_segments(&dir).unwrap_or_default();
        for (number, path) in segments {
            match end {
                Some(end) if number < end.segment => {}
                Some(end) if number == end.segment => cut(&path, end.bytes, &mut settled),
                _ => cut(&path, 0, &mut settled),
            }
        }
        if end.is_none() {
            remove_dir(&dir);
        }
    }
    Ok(settled)
}

fn last_with_frames(stream: &StreamReport) -> Option<u32> {
    stream.segments.iter().rev().find(|segment| segment.sequences.is_some()).map(|segment| segment.number)
}

fn record_of(stream: &StreamReport) -> Option<StreamRecord> {
    let last = last_with_frames(stream)?;
    let first = stream.segments.first()?;
    let bytes = stream.segments.iter().find(|segment| segment.number == last)?.end;
    let sequence = Sequence(stream.last.0);
    Some(StreamRecord { first: first.number, last, id: first.id, end: End::At { sequence, bytes } })
}

/// Cuts a file to `keep` bytes, or removes it. What cannot be cut only takes room.
fn cut(path: &Path, keep: u64, settled: &mut Settled) {
    let done = fs::metadata(path).and_then(|before| {
        if keep == 0 {
            fs::remove_file(path)?;
        } else if before.len() > keep {
            OpenOptions::new().write(true).open(path)?.set_len(keep)?;
        } else {
            return Ok(());
        }
        settled.files += 1;
        settled.bytes += before.len() - keep;
        Ok(())
    });
    if let Err(error) = done
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "what an ended life has left unused cannot be cut: it takes room");
    }
}

/// Out of the way, so that no later start complains of it.
fn set_aside(path: &Path) {
    let mut aside = path.to_owned();
    aside.as_mut_os_string().push(SET_ASIDE);
    match fs::rename(path, &aside) {
        Ok(()) => tracing::error!(to = %aside.display(), "a segment that does not belong where it was is set aside"),
        Err(error) => tracing::warn!(path = %path.display(), %error, "a segment does not belong where it is"),
    }
}

fn remove_dir(path: &Path) {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "the folder of an empty stream cannot be removed");
        }
        _ => {}
    }
}
