//! The data directory's lock and the number of this life of the process.
//!
//! **Invariants**
//! - While a [`DataDirLock`] lives, no other process that takes the lock uses the directory. The kernel gives the lock
//!   back when the process ends, however it ends; the file stays.
//! - An epoch is durable before [`raise_epoch`] returns it and higher than every epoch that was returned before, also
//!   if the file that holds it was lost: the directories of the log are asked as well. A crash in between loses a
//!   number, never repeats one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use saltus_core::ids::Epoch;

use super::recovery::{RecoveryError, list_streams};

/// Name of the lock file in the data directory.
const LOCK_FILE: &str = "lock";
/// Name of the file that holds the last epoch as decimal text.
const EPOCH_FILE: &str = "epoch";
/// Table ids keep 24 bits of the epoch.
const EPOCH_MAX: u32 = (1 << 24) - 1;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// Another process holds the lock.
    #[error("another server uses this data directory: {path} is locked", path = path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {operation} {path}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The epoch file holds no number.
    #[error("{path} does not hold an epoch", path = path.display())]
    Malformed {
        /// The epoch file.
        path: PathBuf,
    },
    /// Every epoch was used.
    #[error("epochs of {path} are used up", path = path.display())]
    Exhausted {
        /// The epoch file.
        path: PathBuf,
    },
    /// The log's directory cannot be listed.
    #[error(transparent)]
    List(#[from] RecoveryError),
}

/// Holds the data directory for this process; dropping it gives it back.
#[derive(Debug)]
pub struct DataDirLock {
    /// Locked as long as it is open.
    _file: File,
    /// The data directory.
    data_dir: PathBuf,
}

impl DataDirLock {
    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }
}

/// Takes the lock of `data_dir`, which is created if it is missing.
///
/// # Errors
/// [`EpochError::Locked`] if another server uses the directory, [`EpochError::Io`].
pub fn lock_data_dir(data_dir: &Path) -> Result<DataDirLock, EpochError> {
    fs::create_dir_all(data_dir).map_err(io_error("create", data_dir))?;
    let path = data_dir.join(LOCK_FILE);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(DataDirLock { _file: file, data_dir: data_dir.to_owned() }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(EpochError::Locked { path }),
        Err(errno) => Err(EpochError::Io { operation: "lock", path, source: errno.into() }),
    }
}

/// The next epoch of the data directory, durable.
///
/// # Errors
/// [`EpochError`]; the epoch on disk may have been raised all the same.
pub fn raise_epoch(lock: &DataDirLock) -> Result<Epoch, EpochError> {
    let data_dir = lock.data_dir();
    let path = data_dir.join(EPOCH_FILE);
    let stored = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<u32>().map_err(|_| EpochError::Malformed { path: path.clone() })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    let logged = list_streams(data_dir)?.iter().map(|s| s.stream.epoch.0).max().unwrap_or(0);
    let last = stored.max(logged);
    if last >= EPOCH_MAX {
        return Err(EpochError::Exhausted { path });
    }
    store_epoch(data_dir, &path, last + 1)?;
    Ok(Epoch(last + 1))
}

/// Temporary file, fsync, rename, fsync of the directory.
fn store_epoch(data_dir: &Path, path: &Path, epoch: u32) -> Result<(), EpochError> {
    let temporary = data_dir.join("epoch.new");
    let mut file = File::create(&temporary).map_err(io_error("create", &temporary))?;
    writeln!(file, "{epoch}").map_err(io_error("write", &temporary))?;
    file.sync_all().map_err(io_error("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("rename to", path))?;
    sync_dir(data_dir).map_err(io_error("sync", data_dir))
}

/// Makes the names in `path` durable. Blocks.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn io_error<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> EpochError + use<'a> {
    move |source| EpochError::Io { operation, path: path.to_owned(), source }
}
