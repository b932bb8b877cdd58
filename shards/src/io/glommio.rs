//! The log's files on glommio: O_DIRECT through the shard's ring, or the page cache where a file system refuses that.
//!
//! **Contract:** which of the two it is, is found out once per directory, by opening a small file, and logged once. Every
//! call must be made on the executor that opened the directory.
//!
//! A file past the page cache is open twice: a durable write goes through the descriptor with O_DSYNC, so that it is one
//! operation of the kernel, and no worker of the ring waits for the disk on the shard's processor, as one does for
//! fdatasync. Drives with FUA, or with a cache that survives a loss of power, do it in one command (docs/adr/012).
//!
//! The probe is a file with content on purpose: glommio decides by a read whether a device can be polled, and keeps the
//! answer for the device; a read at the end of an empty file succeeds without having asked the device.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use glommio::GlommioError;
use glommio::io::{BufferedFile, DmaBuffer, DmaFile, OpenOptions};
use saltus_core::ids::Stream;
use saltus_core::limits::WAL_ALIGN;

use super::{Undone, WalBuffer, WalDir, WalFile, write_then_sync};
use crate::wal::epoch::sync_dir;
use crate::wal::keeper::ManifestKeeper;

/// What tmpfs calls itself in `statfs`.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// The file that `GlommioDir::open` makes and removes.
const PROBE_FILE: &str = ".probe";

/// How the files of a directory are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// Past the page cache.
    Direct,
    /// Through the page cache; each write costs a copy.
    Buffered,
}

/// A directory of segments. Nothing is made before the first file.
pub struct GlommioDir {
    path: PathBuf,
    mode: Cell<Option<WriteMode>>,
    /// Who is told of segments, and of which stream they are.
    manifest: Option<(ManifestKeeper, Stream)>,
}

impl GlommioDir {
    /// The directory `path`, which is made with its parents, if missing, for the first file.
    pub fn new(path: &Path, manifest: Option<(ManifestKeeper, Stream)>) -> Self {
        GlommioDir { path: path.to_owned(), mode: Cell::new(None), manifest }
    }

    /// How its files are written; `None` before the first one.
    pub fn mode(&self) -> Option<WriteMode> {
        self.mode.get()
    }

    /// Makes the directory, durably, and finds out how its files are written; once.
    async fn open(&self) -> io::Result<WriteMode> {
        if let Some(mode) = self.mode.get() {
            return Ok(mode);
        }
        let path = self.path.clone();
        glommio::executor().spawn_blocking(move || create_durable(&path)).await?;
        let mode = probe(&self.path).await?;
        match mode {
            WriteMode::Direct => tracing::info!(path = %self.path.display(), "log is written with O_DIRECT"),
            WriteMode::Buffered => {
                tracing::warn!(path = %self.path.display(), "log is written through the page cache: no O_DIRECT here");
            }
        }
        self.mode.set(Some(mode));
        Ok(mode)
    }
}

/// Creates `path` and every missing parent, then syncs the parents of those that it created.
fn create_durable(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_durable(parent)?;
    match std::fs::create_dir(path) {
        // Another shard made the same parent in between; it may not have synced it yet, so both do.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_dir(parent)
}

/// Whether files in `path` can be written with O_DIRECT.
async fn probe(path: &Path) -> io::Result<WriteMode> {
    if rustix::fs::statfs(path)?.f_type as u64 == TMPFS_MAGIC {
        return Ok(WriteMode::Buffered);
    }
    let file = path.join(PROBE_FILE);
    let probe = file.clone();
    let made = glommio::executor().spawn_blocking(move || {
        std::fs::write(&probe, [0; WAL_ALIGN])?;
        std::fs::File::open(&probe)?.sync_all()
    });
    if let Err(error) = made.await {
        let _ = std::fs::remove_file(&file);
        return Err(error);
    }
    let mode = match DmaFile::open(&file).await {
        Ok(opened) => {
            opened.close().await.map_err(into_io)?;
            Ok(WriteMode::Direct)
        }
        Err(error) if refuses_direct(&error) => Ok(WriteMode::Buffered),
        Err(error) => Err(into_io(error)),
    };
    std::fs::remove_file(&file)?;
    mode
}

fn refuses_direct(error: &GlommioError<()>) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

/// The operating system's error where there is one, so that its number is not lost.
fn into_io(error: GlommioError<()>) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error.to_string()),
    }
}

impl WalDir for GlommioDir {
    type Buffer = DmaBuffer;
    type File = GlommioFile;

    fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn allocate(&self, len: usize) -> DmaBuffer {
        // From the memory that the ring has registered while there is any: no page faults, and a cheaper write.
        glommio::allocate_dma_buffer(len)
    }

    async fn register(&self, first_id: u64, tail: &[(u32, u64)]) -> io::Result<()> {
        match &self.manifest {
            Some((keeper, stream)) => keeper.register(*stream, first_id, tail).await,
            None => Ok(()),
        }
    }

    async fn create(&self, name: &str) -> io::Result<GlommioFile> {
        let mode = self.open().await?;
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        // Readable too, for glommio's own probe of the device.
        options.read(true).write(true).create(true).truncate(true);
        match mode {
            WriteMode::Direct => {
                let file = options.dma_open(&path).await.map_err(into_io)?;
                let mut again = OpenOptions::new();
                again.read(true).write(true).custom_flags(libc::O_DSYNC);
                let durable = again.dma_open(&path).await.map_err(into_io)?;
                Ok(GlommioFile::Direct { file, durable })
            }
            WriteMode::Buffered => options.buffered_open(&path).await.map(GlommioFile::Buffered).map_err(into_io),
        }
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path.join(name);
        glommio::executor().spawn_blocking(move || std::fs::remove_file(path)).await
    }

    async fn sync_names(&self) -> io::Result<()> {
        // Not `Directory::sync`: that is fdatasync, which need not write a new name (ext4 does so only if the directory
        // has grown). The ring has no fsync to offer, the executor's blocking thread has.
        let path = self.path.clone();
        glommio::executor().spawn_blocking(move || sync_dir(&path)).await
    }
}

impl WalBuffer for DmaBuffer {
    fn as_slice(&self) -> &[u8] {
        self.as_bytes()
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        self.as_bytes_mut()
    }

    fn truncate(&mut self, len: usize) {
        self.trim_to_size(len);
    }
}

/// A segment file.
#[derive(Debug)]
pub enum GlommioFile {
    /// O_DIRECT.
    Direct {
        /// Its writes are durable after a sync.
        file: DmaFile,
        /// The same file: its writes are durable when they are done.
        durable: DmaFile,
    },
    /// Page cache.
    Buffered(BufferedFile),
}

impl WalFile for GlommioFile {
    type Buffer = DmaBuffer;

    async fn write_at(&self, buffer: DmaBuffer, offset: u64) -> (io::Result<usize>, DmaBuffer) {
        match self {
            GlommioFile::Direct { file, .. } => write(file, buffer, offset).await,
            GlommioFile::Buffered(file) => {
                let result = file.write_at(buffer.as_bytes().to_vec(), offset).await.map_err(into_io);
                (result, buffer)
            }
        }
    }

    async fn write_durable_at(&self, buffer: DmaBuffer, offset: u64) -> (Result<usize, Undone>, DmaBuffer) {
        match self {
            GlommioFile::Direct { durable, .. } => {
                let (written, buffer) = write(durable, buffer, offset).await;
                (written.map_err(Undone::Write), buffer)
            }
            GlommioFile::Buffered(_) => write_then_sync(self, buffer, offset).await,
        }
    }

    async fn sync_data(&self) -> io::Result<()> {
        match self {
            GlommioFile::Direct { file, .. } => file.fdatasync().await.map_err(into_io),
            GlommioFile::Buffered(file) => file.fdatasync().await.map_err(into_io),
        }
    }

    async fn close(self) -> io::Result<()> {
        match self {
            GlommioFile::Direct { file, durable } => {
                let closed = durable.close().await.map_err(into_io);
                file.close().await.map_err(into_io).and(closed)
            }
            GlommioFile::Buffered(file) => file.close().await.map_err(into_io),
        }
    }
}

/// Writes past the page cache.
async fn write(file: &DmaFile, buffer: DmaBuffer, offset: u64) -> (io::Result<usize>, DmaBuffer) {
    let shared = Rc::new(buffer);
    let result = file.write_rc_at(shared.clone(), offset).await.map_err(into_io);
    (result, unshare(shared))
}

/// The buffer of a finished write. glommio has dropped its share by then; if it ever keeps one, a copy does.
fn unshare(shared: Rc<DmaBuffer>) -> DmaBuffer {
    Rc::try_unwrap(shared).unwrap_or_else(|shared| {
        let mut copy = glommio::allocate_dma_buffer(shared.len());
        copy.as_bytes_mut().copy_from_slice(shared.as_bytes());
        copy
    })
}

#[cfg(test)]
mod tests;
