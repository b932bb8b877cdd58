//! The shard's log: records go in without waiting, one task writes them a frame at a time.
//!
//! When a frame is durable the next one is submitted first, then acknowledgements go out, then triggers are activated. A
//! failed write or sync poisons the shard for good: it refuses writes, and what was not durable was never applied. A full
//! disk is back-pressure: writes are refused while the round in hand is tried again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use saltus_core::ids::{Sequence, ShardId, Stream};

use crate::io::DiskDir;
use crate::local::Notify;
use crate::wal::{Record, WalCommitter, WalError, WalOptions, WalWriter, open_stream, stream_dir};

use super::{Shard, Shared};

/// How long a full disk is left alone before the round is tried again.
const NO_SPACE_RETRY: Duration = Duration::from_millis(500);

/// The two halves of the log, and what their task waits for.
pub(crate) struct Log {
    writer: RefCell<WalWriter<DiskDir>>,
    committer: Cell<Option<WalCommitter<DiskDir>>>,
    appended: Notify,
    /// The disk is full since the last round.
    no_space: Cell<bool>,
}

impl Log {
    /// Begins this life's stream.
    pub async fn open(id: ShardId, shared: &Arc<Shared>) -> Result<Log, String> {
        let stream = Stream { epoch: shared.epoch, shard: id };
        let path = stream_dir(&shared.config.data_dir, stream);
        let dir = DiskDir::open(&path).await.map_err(|e| format!("shard {id}: cannot open {}: {e}", path.display()))?;
        let seed = crate::clock::wall_now_ns() as u64 ^ crate::clock::mono_now().0.rotate_left(32);
        let mut options = WalOptions::new(stream, shared.directory.placement().shards() as u16, seed);
        options.segment_bytes = shared.config.wal_segment_bytes;
        let (writer, committer) =
            open_stream(Rc::new(dir), options).await.map_err(|e| format!("shard {id}: cannot begin a log: {e}"))?;
        Ok(Log {
            writer: RefCell::new(writer),
            committer: Cell::new(Some(committer)),
            appended: Notify::default(),
            no_space: Cell::new(false),
        })
    }

    /// Puts a record at the end.
    ///
    /// # Errors
    /// The reason, for the client.
    pub fn append(&self, record: &Record<'_>) -> Result<Sequence, String> {
        if self.no_space.get() {
            return Err("no space left on the disk of the data directory: free some, writes go on by themselves".into());
        }
        let sequence = self.writer.borrow_mut().append(record).map_err(|e| e.to_string())?;
        self.appended.notify();
        Ok(sequence)
    }

    /// Between `true` and `false` everything appended goes into one frame; the caller does not wait between them.
    pub fn keep_together(&self, together: bool) {
        self.writer.borrow_mut().keep_together(together);
    }

    /// Whether a borrow is out: true only when a panic has passed through.
    pub fn is_borrowed(&self) -> bool {
        self.writer.try_borrow_mut().is_err()
    }

    /// Whether everything appended is durable.
    pub fn is_durable(&self) -> bool {
        let writer = self.writer.borrow();
        writer.durable() == writer.last()
    }
}

impl Shard {
    /// Writes rounds for ever; ends when the log is poisoned.
    pub async fn commit_rounds(self: Rc<Self>) {
        let Some(mut committer) = self.log.committer.take() else { return };
        loop {
            let taken = self.log.writer.borrow_mut().take_round();
            let Some(mut round) = taken else {
                self.log.appended.notified().await;
                continue;
            };
            let committed = loop {
                match committer.commit(&mut round).await {
                    Ok(committed) => break committed,
                    Err(WalError::NoSpace { path }) => self.wait_for_space(&path.display().to_string()).await,
                    Err(poisoned) => return self.poisoned(&poisoned),
                }
            };
            self.log.no_space.set(false);
            self.counters.wal_rounds.add(1);
            self.counters.wal_bytes.add(committed.frame_bytes as u64);
            if let Some(prepare) = committer.prepare_next() {
                self.spawn(prepare);
            }
            // Released by a task of its own, so that the next round is submitted first.
            let shard = self.clone();
            self.spawn(async move {
                shard.face().durable.store(committed.last.0, std::sync::atomic::Ordering::Release);
                shard.release(committed.last);
                shard.drained.notify();
            });
        }
    }

    async fn wait_for_space(&self, path: &str) {
        if !self.log.no_space.replace(true) {
            tracing::error!(shard = self.id.0, path, "no space left: writes are refused until there is some");
        }
        crate::io::net::sleep(NO_SPACE_RETRY).await;
    }

    fn poisoned(&self, error: &WalError) {
        let reason = format!("shard {} is poisoned: {error}; check the disk, then restart the server", self.id);
        self.refuse(reason.clone());
        self.abandon_waiting(&reason);
        self.drained.notify();
    }

    /// After the stop: waits until runs, results and frames are done and connections are closed, here and on all other shards: until
    /// then they may give this one events, and a run that began after the last cursors would be made again. False if the log is not
    /// whole.
    pub async fn drain(&self) -> bool {
        use std::sync::atomic::Ordering;
        loop {
            self.write_cursors();
            self.write_marks();
            let face = self.face();
            let connections = face.connections.load(Ordering::Relaxed);
            let poisoned = face.refuses.load().is_some();
            // Read first: whoever is idle has put what it had for this shard into its mailbox before.
            let others = self.shared.faces.iter().all(|face| face.idle.load(Ordering::SeqCst));
            let idle = self.writes_in_flight.get() == 0
                && connections == 0
                && self.outbox.borrow().is_empty()
                && self.shared.mailbox(self.id).items() == 0
                && !self.triggers.borrow().busy(self.id)
                && (poisoned || (self.log.is_durable() && self.owner.borrow().waiting.is_empty()));
            face.idle.store(idle, Ordering::SeqCst);
            if idle && others {
                let waiting = self.triggers.borrow().waiting(self.id);
                if waiting > 0 {
                    tracing::warn!(
                        shard = self.id.0,
                        events = waiting,
                        "events wait for another attempt; they are given again after the next start"
                    );
                }
                return !poisoned;
            }
            futures_lite::future::or(self.drained.notified(), crate::io::net::sleep(Duration::from_millis(5))).await;
        }
    }
}
