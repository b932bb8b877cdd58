//! The door to files: what the log asks of a disk, the real disk ([`glommio`]) and an in-memory twin ([`memory`]).
//!
//! **Contract:** a file is written at aligned offsets with aligned lengths from buffers that the directory gave out. A
//! write moves its buffer in and gives it back, also when it fails, so that nothing is copied and nothing lost. What a
//! write reports as done is in the file; after [`WalFile::sync_data`], or if it was [`WalFile::write_durable_at`], it also
//! survives a crash, if the file's name does, which is what [`WalDir::sync_names`] is for. Nothing here retries. What a disk
//! lacks that may come back by itself is a [`Shortage`]; every other failure is one for good.
//!
//! glommio is used in this folder and in `executor.rs` only.

pub mod glommio;
pub mod memory;
pub mod net;

pub use self::glommio::{GlommioDir as DiskDir, WriteMode};

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

/// What the disk of the data directory lacks: nothing was harmed, and the same operation may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// ENOSPC, or writes that stay short, which is how the page cache says it.
    Space,
    /// EDQUOT.
    Quota,
    /// EROFS.
    ReadOnly,
}

impl Shortage {
    /// What an operator is told, up to the name of the data directory.
    pub fn text(self) -> &'static str {
        match self {
            Shortage::Space => "no space left on the disk of the data directory",
            Shortage::Quota => "no space left on the disk of the data directory: the quota is used up",
            Shortage::ReadOnly => "the file system of the data directory is read-only",
        }
    }

    /// The shortage that an error is, if it is one.
    pub fn of(error: &io::Error) -> Option<Shortage> {
        match error.raw_os_error() {
            Some(libc::ENOSPC) => Some(Shortage::Space),
            Some(libc::EDQUOT) => Some(Shortage::Quota),
            Some(libc::EROFS) => Some(Shortage::ReadOnly),
            // `write_all` and the log's own writes end so when a write stays short.
            None if error.kind() == io::ErrorKind::WriteZero => Some(Shortage::Space),
            _ => None,
        }
    }

    /// [`Shortage::text`] with the directory and what to do. `bytes` is what is needed next, 0 if that is not known.
    pub fn remedy(self, data_dir: &Path, bytes: u64) -> String {
        let (what, dir) = (self.text(), data_dir.display());
        match self {
            Shortage::ReadOnly => format!("{what} ({dir}): mount it for writing again, writes go on by themselves"),
            _ => {
                let kib = bytes.div_ceil(1024).max(4);
                format!("{what} ({dir}): free at least {kib} KiB, writes go on by themselves")
            }
        }
    }
}

/// Aligned memory for one write.
pub trait WalBuffer {
    /// All of it.
    fn as_slice(&self) -> &[u8];
    /// All of it; what was never written is arbitrary.
    fn as_mut_slice(&mut self) -> &mut [u8];
    /// Gives up what lies behind `len` bytes; `len` is at most the length, which cannot grow again.
    fn truncate(&mut self, len: usize);
}

/// What of a durable write has failed.
#[derive(Debug)]
pub enum Undone {
    /// The write, or the sync that is part of it where the two are one operation.
    Write(io::Error),
    /// The sync after the write.
    Sync(io::Error),
}

impl From<io::Error> for Undone {
    fn from(error: io::Error) -> Self {
        Undone::Write(error)
    }
}

/// A file that is written by one task.
pub trait WalFile: 'static {
    /// Memory that this file can write.
    type Buffer: WalBuffer + 'static;

    /// Writes all of `buffer` at byte `offset`. Gives the number of bytes written, which may be too few.
    fn write_at(&self, buffer: Self::Buffer, offset: u64) -> impl Future<Output = (io::Result<usize>, Self::Buffer)>;

    /// [`WalFile::write_at`], and durable if all of it was written. Nothing else of the file becomes durable by it.
    fn write_durable_at(
        &self,
        buffer: Self::Buffer,
        offset: u64,
    ) -> impl Future<Output = (Result<usize, Undone>, Self::Buffer)> {
        write_then_sync(self, buffer, offset)
    }

    /// Makes durable what was written.
    fn sync_data(&self) -> impl Future<Output = io::Result<()>>;

    /// Closes the file, which needs no sync any more.
    fn close(self) -> impl Future<Output = io::Result<()>>;
}

/// A durable write as two operations.
async fn write_then_sync<F: WalFile + ?Sized>(
    file: &F,
    buffer: F::Buffer,
    offset: u64,
) -> (Result<usize, Undone>, F::Buffer) {
    let len = buffer.as_slice().len();
    let (written, buffer) = file.write_at(buffer, offset).await;
    let done = match written {
        Ok(written) if written == len => file.sync_data().await.map_err(Undone::Sync).map(|()| written),
        other => other.map_err(Undone::Write),
    };
    (done, buffer)
}

/// One directory with the files of one stream.
pub trait WalDir: 'static {
    /// Memory for writes to its files.
    type Buffer: WalBuffer + 'static;
    /// A file in it.
    type File: WalFile<Buffer = Self::Buffer>;

    /// Where `name` is, for messages.
    fn path_of(&self, name: &str) -> PathBuf;

    /// `len` bytes of aligned memory, `len` a multiple of the alignment.
    fn allocate(&self, len: usize) -> Self::Buffer;

    /// Has the data directory's manifest know, durably, which last segments of the stream may hold data from now on: each with
    /// the length that it has at least. What the stream began with is `first_id`, its first segment's id.
    fn register(&self, first_id: u64, tail: &[(u32, u64)]) -> impl Future<Output = io::Result<()>>;

    /// An empty file of that name; one that exists is emptied. Makes the directory if there is none.
    fn create(&self, name: &str) -> impl Future<Output = io::Result<Self::File>>;

    /// Removes a file.
    fn remove(&self, name: &str) -> impl Future<Output = io::Result<()>>;

    /// Makes the names in the directory durable.
    fn sync_names(&self) -> impl Future<Output = io::Result<()>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_come_back_by_itself_is_a_shortage() {
        let of = |code| Shortage::of(&io::Error::from_raw_os_error(code));
        assert_eq!(of(libc::ENOSPC), Some(Shortage::Space));
        assert_eq!(of(libc::EDQUOT), Some(Shortage::Quota));
        assert_eq!(of(libc::EROFS), Some(Shortage::ReadOnly));
        assert_eq!(Shortage::of(&io::ErrorKind::WriteZero.into()), Some(Shortage::Space));
        for code in [libc::EIO, libc::EACCES, libc::ENODEV, libc::EFBIG, libc::EINTR] {
            assert_eq!(of(code), None, "{code}");
        }
        let text = Shortage::Space.remedy(Path::new("/data"), 1 << 20);
        assert_eq!(
            text,
            "no space left on the disk of the data directory (/data): free at least 1024 KiB, writes go on by themselves"
        );
    }
}
