//! The shard's log: records go in without waiting, one task writes them a frame at a time.
//!
//! When a frame is durable the next one is submitted first, then acknowledgements go out, then triggers are activated. A
//! failed write or sync poisons the shard for good: it refuses writes, and what was not durable was never applied.
//!
//! A full disk (or quota, or a read-only file system) is a state that goes by itself: the round in hand is tried again and again,
//! writes are refused at once, what waits is answered after [`DISK_FULL_ANSWER_MS`], `/health` and metrics tell the reason. What
//! was answered so is still in the round: it is applied when there is room, or lost with the process; the answer says so. What
//! the engine notes for itself (cursors, triggers) is taken in memory up to a bound.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use saltus_core::ids::{Sequence, ShardId, Stream};
use saltus_core::limits::{DISK_FULL_ANSWER_MS, WAL_NOTES_WAITING_BYTES_MAX};

use crate::clock::mono_now;
use crate::io::{DiskDir, Shortage};
use crate::local::Notify;
use crate::wal::manifest::fingerprint;
use crate::wal::{Record, WalCommitter, WalError, WalOptions, WalWriter, WrittenTo, begin_stream, stream_dir};

use super::{Shard, Shared};

/// How long a full disk is left alone before the round is tried again.
const SHORT_RETRY: Duration = Duration::from_millis(250);

/// The two halves of the log, and what their task waits for.
pub(crate) struct Log {
    stream: Stream,
    writer: RefCell<WalWriter<DiskDir>>,
    committer: Cell<Option<WalCommitter<DiskDir>>>,
    appended: Notify,
    /// What the disk lacks since the last round, in words.
    short: RefCell<Option<Arc<String>>>,
}

impl Log {
    /// This life's stream; nothing is on the disk yet.
    pub fn new(id: ShardId, shared: &Arc<Shared>) -> Log {
        let stream = Stream { epoch: shared.epoch, shard: id };
        let dir = DiskDir::new(&stream_dir(&shared.config.data_dir, stream), Some((shared.keeper.clone(), stream)));
        let seed = crate::clock::wall_now_ns() as u64 ^ mono_now().0.rotate_left(32);
        let mut options = WalOptions::new(stream, shared.directory.placement().shards() as u16, seed);
        options.segment_bytes = shared.config.wal_segment_bytes;
        options.directory = fingerprint(&shared.known.directory);
        let (writer, committer) = begin_stream(Rc::new(dir), options);
        Log {
            stream,
            writer: RefCell::new(writer),
            committer: Cell::new(Some(committer)),
            appended: Notify::default(),
            short: RefCell::default(),
        }
    }

    /// Makes the first segment, so that the first write finds it. A full disk is no failure: it is tried again.
    ///
    /// # Errors
    /// The log cannot be written for another reason.
    pub async fn begin(&self) -> Result<(), String> {
        let Some(mut committer) = self.committer.take() else { return Ok(()) };
        let begun = committer.begin().await;
        self.committer.set(Some(committer));
        match begun {
            Ok(()) | Err(WalError::Short { .. }) => Ok(()),
            Err(error) => Err(format!("shard {}: cannot begin a log: {error}", self.stream.shard)),
        }
    }

    /// Puts a record at the end.
    ///
    /// # Errors
    /// The reason, for the client.
    pub fn append(&self, record: &Record<'_>) -> Result<Sequence, String> {
        let waits = self.short.borrow().is_some().then(|| self.writer.borrow().waiting_bytes());
        match record {
            _ if waits.is_none() => {}
            Record::Write { .. }
            | Record::CreateTable { .. }
            | Record::AddColumns { .. }
            | Record::DropTable { .. } => {
                self.check()?;
            }
            // Without these, events would be lost after a crash.
            _ if waits.is_some_and(|bytes| bytes > WAL_NOTES_WAITING_BYTES_MAX) => self.check()?,
            _ => {}
        }
        let sequence = self.writer.borrow_mut().append(record).map_err(|e| e.to_string())?;
        self.appended.notify();
        Ok(sequence)
    }

    /// Whether rows and changes of tables are taken.
    ///
    /// # Errors
    /// Why not, for the client.
    pub fn check(&self) -> Result<(), String> {
        match &*self.short.borrow() {
            Some(reason) => Err(reason.to_string()),
            None => self.writer.borrow().poison().map_or(Ok(()), |poison| Err(poison.to_string())),
        }
    }

    /// The disk is full since the last round.
    pub fn is_short(&self) -> bool {
        self.short.borrow().is_some()
    }

    /// Where this stream ends, for its cutting.
    pub fn end(&self) -> (Stream, Option<WrittenTo>) {
        (self.stream, self.writer.borrow().written_to())
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
        let mut short = ShortSince::default();
        // A full disk is known before the first write comes.
        loop {
            match committer.begin().await {
                Ok(()) => break,
                Err(WalError::Short { shortage, bytes, .. }) => self.wait_for_space(&mut short, shortage, bytes).await,
                Err(poisoned) => return self.poisoned(&poisoned),
            }
        }
        self.has_space();
        loop {
            let taken = self.log.writer.borrow_mut().take_round();
            let Some(mut round) = taken else {
                self.log.appended.notified().await;
                continue;
            };
            let mut short = ShortSince::default();
            let committed = loop {
                match committer.commit(&mut round).await {
                    Ok(committed) => break committed,
                    Err(WalError::Short { shortage, bytes, .. }) => {
                        self.wait_for_space(&mut short, shortage, bytes).await;
                    }
                    Err(poisoned) => return self.poisoned(&poisoned),
                }
            };
            if self.log.is_short() {
                self.has_space();
            }
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

    /// Says that the disk is full, answers what has waited for long enough, and waits a moment.
    async fn wait_for_space(&self, since: &mut ShortSince, shortage: Shortage, bytes: u64) {
        let now = mono_now();
        let began = since.began.get_or_insert(now.0);
        if !self.log.is_short() {
            let reason = Arc::new(shortage.remedy(&self.shared.config.data_dir, bytes));
            tracing::error!(shard = self.id.0, "{reason}; until then writes are refused");
            self.log.short.replace(Some(reason.clone()));
            self.face().short.store(Some(reason));
        }
        if now.0.saturating_sub(*began) >= DISK_FULL_ANSWER_MS * 1_000_000 {
            let reason = self.log.short.borrow().as_deref().cloned().unwrap_or_default();
            self.answer_waiting(&format!(
                "{reason}. This write is kept in memory and stored when there is room, unless the server stops before: send it again"
            ));
        }
        self.drained.notify();
        crate::io::net::sleep(SHORT_RETRY).await;
    }

    fn has_space(&self) {
        if self.log.short.replace(None).is_some() {
            self.face().short.store(None);
            tracing::info!(shard = self.id.0, "the disk has room again: writes are taken");
        }
    }

    fn poisoned(&self, error: &WalError) {
        let reason = format!("shard {} is poisoned: {error}; check the disk, then restart the server", self.id);
        self.log.short.replace(None);
        self.face().short.store(None);
        self.refuse(reason.clone());
        self.abandon_waiting(&reason);
        self.drained.notify();
    }

    /// After the stop: waits until runs, results and frames are done and connections are closed, here and on all other shards: until
    /// then they may give this one events, and a run that began after the last cursors would be made again. False if the log is not
    /// whole.
    pub async fn drain(&self) -> bool {
        use std::sync::atomic::Ordering;
        let begun = mono_now();
        loop {
            self.write_cursors();
            self.write_marks();
            let face = self.face();
            let connections = face.connections.load(Ordering::Relaxed);
            let poisoned = face.refuses.load().is_some();
            // Nobody frees a disk in the seconds of a stop; all that waits was answered.
            let gave_up = self.log.is_short() && mono_now().since(begun) >= 2 * DISK_FULL_ANSWER_MS * 1_000_000;
            // Read first: whoever is idle has put what it had for this shard into its mailbox before.
            let others = self.shared.faces.iter().all(|face| face.idle.load(Ordering::SeqCst));
            let idle = self.writes_in_flight.get() == 0
                && connections == 0
                && self.outbox.borrow().is_empty()
                && self.shared.mailbox(self.id).items() == 0
                && !self.triggers.borrow().busy(self.id)
                && (poisoned || gave_up || (self.log.is_durable() && self.owner.borrow().waiting.is_empty()));
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
                if gave_up {
                    tracing::error!(
                        shard = self.id.0,
                        "the disk is full at the stop: what was not durable, and was answered so or written with no_sync, is lost"
                    );
                }
                return !poisoned && !gave_up;
            }
            futures_lite::future::or(self.drained.notified(), crate::io::net::sleep(Duration::from_millis(5))).await;
        }
    }
}

/// Since when a round waits for room.
#[derive(Default)]
struct ShortSince {
    /// On the monotonic clock, in nanoseconds.
    began: Option<u64>,
}
