//! What a shard would find on this machine, tried without an engine: a ring, and a disk through the log's own door.
//!
//! For `saltus doctor`. Everything is done on an executor that is made for it and ended, as a shard's thread does it.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use saltus_core::limits::WAL_ALIGN;

use crate::clock::mono_now;
use crate::executor;
use crate::io::{DiskDir, Undone, WalBuffer as _, WalDir as _, WalFile as _, WriteMode};

/// The file that [`disk`] writes and removes.
const FILE: &str = ".doctor";

/// What a disk did.
#[derive(Clone, Debug)]
pub struct DiskProbe {
    /// How the log would be written there.
    pub mode: WriteMode,
    /// Nanoseconds of each durable write of one block, in order.
    pub rounds_ns: Vec<u64>,
}

/// Starts an executor, as each shard does, and lets it sleep once.
///
/// # Errors
/// A text with the remedy.
pub fn ring() -> Result<(), String> {
    on_executor(|| async { Ok(()) })
}

/// Writes one aligned block durably, over and over, in `dir`, which must exist: the log's way to make rows durable.
///
/// # Errors
/// What the executor or the file system says.
pub fn disk(dir: &Path, rounds: usize) -> Result<DiskProbe, String> {
    let dir = dir.to_owned();
    on_executor(
        move || async move { measure(&dir, rounds).await.map_err(|error| format!("{}: {error}", dir.display())) },
    )
}

async fn measure(path: &Path, rounds: usize) -> io::Result<DiskProbe> {
    let dir = DiskDir::new(path, None);
    let file = dir.create(FILE).await?;
    let mut rounds_ns = Vec::with_capacity(rounds);
    // The first block allocates; the log writes into space that it has.
    for round in 0..=rounds {
        let mut buffer = dir.allocate(WAL_ALIGN);
        buffer.as_mut_slice().fill(u8::try_from(round % 256).unwrap_or(0));
        let began = mono_now();
        let (written, _) = file.write_durable_at(buffer, 0).await;
        written.map_err(|(Undone::Write(error) | Undone::Sync(error))| error)?;
        if round > 0 {
            rounds_ns.push(mono_now().since(began));
        }
    }
    file.close().await?;
    dir.remove(FILE).await?;
    Ok(DiskProbe { mode: dir.mode().unwrap_or(WriteMode::Buffered), rounds_ns })
}

fn on_executor<R, F>(work: impl FnOnce() -> F + Send + 'static) -> Result<R, String>
where
    R: Send + 'static,
    F: Future<Output = Result<R, String>> + 'static,
{
    let (done, result) = mpsc::channel();
    let thread = executor::start("saltus-probe", None, executor::Idle::Sleep, move |_| async move {
        // The receiver waits until the thread has ended.
        let _ = done.send(work().await);
    })?;
    let result = result.recv_timeout(Duration::from_secs(60));
    match result {
        Ok(result) => thread.join().and(result),
        Err(mpsc::RecvTimeoutError::Timeout) => Err("no answer within 60 s".to_owned()),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            Err(thread.join().err().unwrap_or_else(|| "it ended early".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_and_a_disk_are_really_tried() {
        ring().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let probe = disk(dir.path(), 8).unwrap();
        assert_eq!(probe.rounds_ns.len(), 8);
        assert!(probe.rounds_ns.iter().all(|&ns| ns > 0));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
        let error = disk(Path::new("/proc/saltus"), 1).unwrap_err();
        assert!(error.contains("/proc/saltus"), "{error}");
    }
}
