//! Streamed answers across the socket: one piece under way at a time.
//!
//! 1. The worker says `Stream` with status and headers, or `Piece` with its bytes, and then waits until the server says `Room`.
//! 2. The server's supervisor gives the piece to the reader, as long as that takes within the run's time, and says `Room`, or
//!    that nobody takes it any more.
//!
//! The wait is the worker's, between two pieces: so a piece is never sent twice, and a slow reader slows the plugin and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;
use saltus_core::request::{AnswerSlot, PieceSender, PluginResponse, RequestError, ResponseHead, Sent};

use super::channel::{Attached, Channel};
use super::message::{FromWorker, Response};

/// How long the supervisor waits for room before it looks at what else there is.
const SLICE: Duration = Duration::from_millis(50);

/// Where the worker's postman leaves the server's word on the last piece: which run it is about, and whether its reader is gone.
#[derive(Debug, Default)]
pub struct Room(Mutex<Option<(u64, Sender<bool>)>>);

impl Room {
    /// The server has said something of a run.
    pub fn told(&self, run_id: u64, gone: bool) {
        let waiting = self.0.lock();
        if let Some((_, sender)) = waiting.as_ref().filter(|(waiting, _)| *waiting == run_id) {
            // One that waits no more needs no word.
            let _gone = sender.try_send(gone);
        }
    }

    /// Nothing will be said any more.
    pub fn close(&self) {
        self.0.lock().take();
    }
}

/// The slot as a run in the worker process sees it.
pub struct WorkerSlot {
    channel: Arc<Channel>,
    room: Arc<Room>,
    run_id: u64,
    begun: AtomicBool,
}

impl WorkerSlot {
    /// For one run.
    pub fn new(channel: Arc<Channel>, room: Arc<Room>, run_id: u64) -> Self {
        WorkerSlot { channel, room, run_id, begun: AtomicBool::new(false) }
    }
}

impl std::fmt::Debug for WorkerSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WorkerSlot({})", self.run_id)
    }
}

impl AnswerSlot for WorkerSlot {
    fn is_abandoned(&self) -> bool {
        // The server looks before it hands a run over.
        false
    }

    fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    fn finish(&self, _answer: Result<PluginResponse, RequestError>) {
        // The trigger's home does, when it has the report.
    }

    fn stream(&self, head: ResponseHead) -> Option<Box<dyn PieceSender>> {
        if self.begun.swap(true, Ordering::AcqRel) {
            return None;
        }
        let (sender, told) = channel::bounded(1);
        *self.room.0.lock() = Some((self.run_id, sender));
        let response = Response { status: head.status, headers: head.headers, streamed: true };
        self.channel.send(&FromWorker::Stream { run_id: self.run_id, response }, &Attached::Nothing).ok()?;
        Some(Box::new(WorkerPieces { channel: self.channel.clone(), told, run_id: self.run_id, unanswered: true }))
    }
}

struct WorkerPieces {
    channel: Arc<Channel>,
    told: Receiver<bool>,
    run_id: u64,
    /// The server has not said `Room` since something was sent.
    unanswered: bool,
}

impl PieceSender for WorkerPieces {
    fn send(&mut self, piece: Bytes, within: Duration) -> Sent {
        if self.unanswered {
            match self.told.recv_timeout(within) {
                Ok(false) => self.unanswered = false,
                Ok(true) | Err(RecvTimeoutError::Disconnected) => return Sent::ReaderGone,
                Err(RecvTimeoutError::Timeout) => return Sent::NoRoom,
            }
        }
        let Ok(attached) = Attached::bytes(&piece) else { return Sent::NoRoom };
        if self.channel.send(&FromWorker::Piece { run_id: self.run_id }, &attached).is_err() {
            return Sent::ReaderGone;
        }
        self.unanswered = true;
        Sent::Taken
    }
}

/// The supervisor's side of one run.
#[derive(Default)]
pub struct Forward(Option<Box<dyn PieceSender>>);

impl Forward {
    /// Status and headers; whether there is a reader.
    pub fn begin(&mut self, slot: Option<&Arc<dyn AnswerSlot>>, response: Response) -> bool {
        let Response { status, headers, .. } = response;
        self.0 = slot.and_then(|slot| slot.stream(ResponseHead { status, headers }));
        self.0.is_some()
    }

    /// Gives a piece to the reader, until `until`, or until `stop` says so; whether the reader is still there.
    pub fn piece(&mut self, piece: Bytes, until: Instant, stop: impl Fn() -> bool) -> bool {
        let Some(sender) = &mut self.0 else { return false };
        loop {
            match sender.send(piece.clone(), SLICE) {
                Sent::Taken => return true,
                Sent::ReaderGone => {
                    self.0 = None;
                    return false;
                }
                Sent::NoRoom if Instant::now() >= until || stop() => return false,
                Sent::NoRoom => {}
            }
        }
    }
}
