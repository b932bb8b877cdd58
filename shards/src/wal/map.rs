//! A segment of an old stream, mapped for reading. The only `unsafe` of the log.
//!
//! **Contract:** the caller shows the lock of the data directory. What a map does not give is an error for a block that
//! the disk cannot read: that is a SIGBUS. The log is then unreadable either way, and the start fails.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

use super::epoch::DataDirLock;

/// The bytes of one segment file.
pub(super) struct SegmentBytes {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
}

impl SegmentBytes {
    /// Maps the whole of `path`, a file under the directory that `_lock` holds.
    #[allow(unsafe_code, reason = "a file can be mapped in no other way")]
    pub(super) fn open(_lock: &DataDirLock, path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(SegmentBytes { map: None });
        }
        // SAFETY: the bytes must not change and the file must not shrink while the map lives. `_lock` proves that this
        // process alone uses the data directory, and this process writes to streams of its own epoch only. Files of
        // ended lives are cut by `settle` alone, whose caller waits until every recovery, which is all that maps, is over.
        let map = unsafe { Mmap::map(&file)? };
        // The log is read once, front to back; the advice may be refused without harm.
        let _ = map.advise(memmap2::Advice::Sequential);
        Ok(SegmentBytes { map: Some(map) })
    }

    /// All of it.
    pub(super) fn as_slice(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}
