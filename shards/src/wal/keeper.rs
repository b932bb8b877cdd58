//! Who writes the manifest: one thread, off every shard, one durable replacement for all changes that wait.
//!
//! **Contract.** A change is durable when its future is ready with `Ok`. If it fails for a [`Shortage`] nothing has changed, in the
//! file and in memory; after any other failure nobody knows, and the caller must not go on as if it did. A crash leaves the old
//! file or the new one. Waiting for a change blocks nobody but the waiter, which may be a task of a shard.
//!
//! The thread writes the file `epoch` as well: older versions know the last life from it alone.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crossbeam::channel::{self, Receiver, Sender};
use futures_channel::oneshot;
use futures_lite::future::block_on;
use saltus_core::ids::Stream;

use super::epoch::{store_epoch, sync_dir};
use super::manifest::{End, MANIFEST_FILE, Manifest, StreamRecord};
use crate::io::Shortage;

/// Changes that may wait: a few of each shard at most.
const CHANGES_MAX: usize = 4096;

type Change = Box<dyn FnOnce(&mut Manifest) + Send>;

/// Something to be changed, and who waits for it.
struct Order {
    change: Change,
    done: oneshot::Sender<Result<(), Failed>>,
}

/// An error that can be told to several.
#[derive(Clone, Debug)]
enum Failed {
    /// Nothing was changed.
    Short(i32),
    /// Nobody knows.
    Other(String),
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Short(code) if code != 0 => io::Error::from_raw_os_error(code),
            Failed::Short(_) => io::Error::new(io::ErrorKind::WriteZero, "the manifest was written in part"),
            Failed::Other(text) => io::Error::other(text),
        }
    }
}

/// The way to the thread.
#[derive(Clone)]
pub struct ManifestKeeper {
    orders: Sender<Order>,
}

impl ManifestKeeper {
    /// Starts the thread with what is to be in the file; nothing is written before the first change. It ends with its last handle.
    ///
    /// # Errors
    /// What the system said.
    pub fn start(data_dir: &Path, manifest: Manifest) -> io::Result<Self> {
        let (orders, taken) = channel::bounded(CHANGES_MAX);
        let writer = Writer { data_dir: data_dir.to_owned(), manifest, epoch_written: 0 };
        std::thread::Builder::new().name("saltus-manifest".to_owned()).spawn(move || writer.run(&taken))?;
        Ok(ManifestKeeper { orders })
    }

    /// Changes the manifest, durably.
    ///
    /// # Errors
    /// See the module's header.
    pub async fn change(&self, change: impl FnOnce(&mut Manifest) + Send + 'static) -> io::Result<()> {
        let (done, is_done) = oneshot::channel();
        let sent = self.orders.try_send(Order { change: Box::new(change), done });
        sent.map_err(|_| io::Error::other("the manifest takes no more changes"))?;
        match is_done.await {
            Ok(result) => result.map_err(io::Error::from),
            Err(oneshot::Canceled) => Err(io::Error::other("the thread that writes the manifest has ended")),
        }
    }

    /// [`ManifestKeeper::change`], from a thread that may block.
    ///
    /// # Errors
    /// Likewise.
    pub fn change_now(&self, change: impl FnOnce(&mut Manifest) + Send + 'static) -> io::Result<()> {
        block_on(self.change(change))
    }

    /// The last segments of a stream that may hold data from now on, with their lengths; none: it holds nothing.
    ///
    /// # Errors
    /// Likewise.
    pub async fn register(&self, stream: Stream, id: u64, tail: &[(u32, u64)]) -> io::Result<()> {
        let tail = tail.to_vec();
        self.change(move |manifest| {
            let Some((last, _)) = tail.last().copied() else {
                manifest.streams.remove(&stream);
                return;
            };
            let end = End::Open(tail.into_iter().map(|(_, bytes)| bytes).collect());
            manifest.streams.insert(stream, StreamRecord { first: 1, last, id, end });
        })
        .await
    }
}

/// The thread's side.
struct Writer {
    data_dir: PathBuf,
    manifest: Manifest,
    /// What the file `epoch` was written with.
    epoch_written: u32,
}

impl Writer {
    fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(first) = orders.recv() {
            let mut waiting = Vec::new();
            let mut next = self.manifest.clone();
            for Order { change, done } in std::iter::once(first).chain(orders.try_iter()) {
                change(&mut next);
                waiting.push(done);
            }
            let stored = store(&self.data_dir, &next.encode());
            if stored.is_ok() {
                self.manifest = next;
                self.write_epoch();
            }
            for done in waiting {
                let _ = done.send(stored.clone());
            }
        }
    }

    /// The manifest knows the epoch already, so a failure loses nothing.
    fn write_epoch(&mut self) {
        let epoch = self.manifest.epoch.0;
        if self.epoch_written == epoch {
            return;
        }
        match store_epoch(&self.data_dir, epoch) {
            Ok(()) => self.epoch_written = epoch,
            Err(error) => {
                tracing::warn!(%error, "the file `epoch` is not written; the manifest has the number as well")
            }
        }
    }
}

/// Temporary file, fsync, rename, fsync of the directory.
fn store(data_dir: &Path, text: &str) -> Result<(), Failed> {
    let (path, temporary) = (data_dir.join(MANIFEST_FILE), data_dir.join("manifest.new"));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    });
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(match Shortage::of(&error) {
            Some(_) => Failed::Short(error.raw_os_error().unwrap_or(0)),
            None => Failed::Other(format!("cannot write {}: {error}", path.display())),
        });
    }
    sync_dir(data_dir).map_err(|error| Failed::Other(format!("cannot sync {}: {error}", data_dir.display())))
}

#[cfg(test)]
mod tests {
    use saltus_core::ids::{Epoch, ShardId};

    use super::*;

    #[test]
    fn what_is_registered_is_in_the_file_when_the_future_is_ready() {
        let root = tempfile::tempdir().unwrap();
        let keeper = ManifestKeeper::start(root.path(), Manifest { epoch: Epoch(4), ..Manifest::default() }).unwrap();
        let stream = Stream { epoch: Epoch(4), shard: ShardId(1) };
        let read = || Manifest::decode(&fs::read(root.path().join(MANIFEST_FILE)).unwrap()).unwrap();
        block_on(keeper.register(stream, 9, &[(1, 4096), (2, 8192)])).unwrap();
        assert_eq!(read().streams[&stream].length_of(2), 8192);
        assert_eq!(fs::read_to_string(root.path().join("epoch")).unwrap(), "4\n");
        block_on(keeper.register(stream, 9, &[])).unwrap();
        assert!(read().streams.is_empty());
    }

    #[test]
    fn a_change_that_fails_has_changed_nothing() {
        let root = tempfile::tempdir().unwrap();
        let keeper = ManifestKeeper::start(root.path(), Manifest::default()).unwrap();
        keeper.change_now(|manifest| manifest.catalog = 1).unwrap();
        // Something is in the way of the temporary file.
        fs::create_dir(root.path().join("manifest.new")).unwrap();
        assert!(keeper.change_now(|manifest| manifest.catalog = 2).is_err());
        fs::remove_dir(root.path().join("manifest.new")).unwrap();
        keeper.change_now(|manifest| manifest.epoch = Epoch(1)).unwrap();
        let manifest = Manifest::decode(&fs::read(root.path().join(MANIFEST_FILE)).unwrap()).unwrap();
        assert_eq!((manifest.catalog, manifest.epoch), (1, Epoch(1)));
    }
}
