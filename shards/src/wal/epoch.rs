//! The data directory's lock and the number of this life of the process.
//!
//! **Invariants**
//! - While a [`DataDirLock`] lives, no other process that takes the lock uses the directory. The kernel gives the lock
//!   back when the process ends, however it ends; the file stays.
//! - A life's number is higher than every number before it, also if the file `epoch` is lost: the manifest and the folders of the
//!   log are asked as well ([`crate::data_dir`]). It is durable, in the manifest, before anything is written under it. A crash
//!   in between loses a number, never repeats one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use saltus_core::ids::Epoch;

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
    #[error("cannot {operation} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Every epoch was used.
    #[error("epochs of {path} are used up", path = path.display())]
    Exhausted {
        /// The epoch file.
        path: PathBuf,
    },
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

/// What the file `epoch` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredEpoch {
    /// The last life.
    Number(u32),
    /// There is no file.
    Missing,
    /// It holds no number.
    Malformed(&'static str),
}

impl StoredEpoch {
    /// The number; 0 if there is none.
    pub fn number(&self) -> u32 {
        if let StoredEpoch::Number(number) = self { *number } else { 0 }
    }
}

/// Reads the file `epoch`.
///
/// # Errors
/// [`EpochError::Io`].
pub fn read_epoch(data_dir: &Path) -> Result<StoredEpoch, EpochError> {
    let path = data_dir.join(EPOCH_FILE);
    match fs::read(&path) {
        Ok(bytes) if bytes.is_empty() => Ok(StoredEpoch::Malformed("is empty")),
        Ok(bytes) => {
            let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
            let number = number.filter(|number| *number < EPOCH_MAX);
            Ok(number.map_or(StoredEpoch::Malformed("does not hold an epoch"), StoredEpoch::Number))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(StoredEpoch::Missing),
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

/// The life after `last`.
///
/// # Errors
/// [`EpochError::Exhausted`].
pub fn next_epoch(data_dir: &Path, last: u32) -> Result<Epoch, EpochError> {
    if last >= EPOCH_MAX {
        return Err(EpochError::Exhausted { path: data_dir.join(EPOCH_FILE) });
    }
    Ok(Epoch(last + 1))
}

/// Temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// [`EpochError::Io`].
pub(super) fn store_epoch(data_dir: &Path, epoch: u32) -> Result<(), EpochError> {
    let (path, temporary) = (data_dir.join(EPOCH_FILE), data_dir.join("epoch.new"));
    let mut file = File::create(&temporary).map_err(io_error("create", &temporary))?;
    writeln!(file, "{epoch}").map_err(io_error("write", &temporary))?;
    file.sync_all().map_err(io_error("sync", &temporary))?;
    fs::rename(&temporary, &path).map_err(io_error("rename to", &path))?;
    sync_dir(data_dir).map_err(io_error("sync", data_dir))
}

/// Makes the names in `path` durable. Blocks.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn io_error<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> EpochError + use<'a> {
    move |source| EpochError::Io { operation, path: path.to_owned(), source }
}
