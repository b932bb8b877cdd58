//! The way of an answer from a plugin's run to the connection that asked: one slot per request.
//!
//! # Invariants
//! 1. At most one answer comes out: whoever takes the reply out of its place sends it. It is the bridge's thread for a streamed
//!    answer, and the trigger's home for all others.
//! 2. The pieces of a streamed answer are bounded by [`PIECES_MAX`] of [`PIECE_BYTES_MAX`] bytes each: the plugin waits for its reader.
//! 3. The home holds an end of the stream of its own. So a stream ends well only when the home says so; if everything is dropped
//!    instead, the connection is cut, since what ends without a word is not known to be whole.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use futures_channel::{mpsc, oneshot};
use saltus_core::limits::{RESPONSE_PIECE_BYTES_MAX as PIECE_BYTES_MAX, RESPONSE_PIECES_MAX as PIECES_MAX};
use saltus_core::request::{AnswerSlot, PieceSender, PluginResponse, RequestError, ResponseHead, Sent};

/// A piece of a body, its end, or why it is cut.
pub type Piece = Result<Bytes, String>;

/// What a request is answered.
#[derive(Debug)]
pub enum Answer {
    /// All of it.
    Whole(ResponseHead, Bytes),
    /// The pieces of the body come while the plugin runs; `Err` is the last one of a body that is cut.
    Streamed(ResponseHead, Pieces),
    /// There is none of the plugin's.
    Failed(RequestError),
}

/// A body that is being made.
#[derive(Debug)]
pub struct Pieces {
    receiver: mpsc::Receiver<Message>,
    ended: bool,
}

#[derive(Debug)]
enum Message {
    Piece(Bytes),
    End(Result<(), String>),
}

impl Pieces {
    /// The next piece; `None` when the body is whole.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let message = match futures_lite::Stream::poll_next(std::pin::Pin::new(&mut self.receiver), cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(message) => message,
        };
        self.ended = !matches!(message, Some(Message::Piece(_)));
        Poll::Ready(match message {
            Some(Message::Piece(piece)) => Some(Ok(piece)),
            Some(Message::End(Ok(()))) => None,
            Some(Message::End(Err(why))) => Some(Err(why)),
            None => Some(Err("the trigger was stopped before its answer was whole".to_owned())),
        })
    }
}

/// The connection's end; dropping it tells the other that nobody waits any more.
pub struct Waiting {
    answer: oneshot::Receiver<Answer>,
    abandoned: Arc<AtomicBool>,
}

impl Waiting {
    /// The answer.
    pub async fn answer(mut self) -> Answer {
        let gone = || {
            RequestError::Unavailable("the trigger that answers here was stopped before it did; try again".to_owned())
        };
        (&mut self.answer).await.unwrap_or_else(|_| Answer::Failed(gone()))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Release);
    }
}

/// The run's end.
pub struct Slot {
    reply: ArrayQueue<oneshot::Sender<Answer>>,
    /// The home's end of a stream.
    stream: ArrayQueue<mpsc::Sender<Message>>,
    abandoned: Arc<AtomicBool>,
    begun: AtomicBool,
}

/// A slot and whoever waits at it.
pub fn slot() -> (Arc<Slot>, Waiting) {
    let (reply, answer) = oneshot::channel();
    let abandoned = Arc::new(AtomicBool::new(false));
    let slot = Arc::new(Slot {
        reply: ArrayQueue::new(1),
        stream: ArrayQueue::new(1),
        abandoned: abandoned.clone(),
        begun: AtomicBool::new(false),
    });
    let put = slot.reply.push(reply);
    debug_assert!(put.is_ok(), "the place is new");
    (slot, Waiting { answer, abandoned })
}

impl Slot {
    /// Answers, if nobody has.
    fn reply(&self, answer: Answer) -> bool {
        let Some(reply) = self.reply.pop() else { return false };
        self.begun.store(true, Ordering::Release);
        reply.send(answer).is_ok()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (abandoned, begun) = (self.is_abandoned(), self.is_begun());
        f.debug_struct("Slot").field("abandoned", &abandoned).field("begun", &begun).finish()
    }
}

impl AnswerSlot for Slot {
    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    fn finish(&self, answer: Result<PluginResponse, RequestError>) {
        if let Some(mut stream) = self.stream.pop() {
            let end = answer.map(drop).map_err(|error| error.to_string());
            // Every sender has one place of its own in the channel, and this one has not used its. A reader that is gone needs no end.
            let _gone = stream.try_send(Message::End(end));
            return;
        }
        let _gone = self.reply(match answer {
            Ok(PluginResponse { head, body: Some(body) }) => Answer::Whole(head, body),
            Ok(PluginResponse { head, body: None }) => Answer::Whole(head, Bytes::new()),
            Err(error) => Answer::Failed(error),
        });
    }

    fn stream(&self, head: ResponseHead) -> Option<Box<dyn PieceSender>> {
        let (sender, receiver) = mpsc::channel(PIECES_MAX - 1);
        // Put first: whoever finishes finds either the reply or the stream.
        let put = self.stream.push(sender.clone()).is_ok();
        if put && self.reply(Answer::Streamed(head, Pieces { receiver, ended: false })) {
            return Some(Box::new(Sender(sender)));
        }
        if put {
            self.stream.pop();
        }
        None
    }
}

/// The bridge's end of a stream.
struct Sender(mpsc::Sender<Message>);

/// Wakes a thread that waits for room.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Sender {
    fn send_part(&mut self, piece: Bytes, until: Instant) -> Sent {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut cx = Context::from_waker(&waker);
        loop {
            match self.0.poll_ready(&mut cx) {
                Poll::Ready(Ok(())) => {
                    let sent = self.0.start_send(Message::Piece(piece));
                    return if sent.is_ok() { Sent::Taken } else { Sent::ReaderGone };
                }
                Poll::Ready(Err(_)) => return Sent::ReaderGone,
                Poll::Pending => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Sent::NoRoom;
                    }
                    std::thread::park_timeout(left);
                }
            }
        }
    }
}

impl PieceSender for Sender {
    fn send(&mut self, piece: Bytes, within: Duration) -> Sent {
        debug_assert!(piece.len() <= PIECE_BYTES_MAX, "the bridge cuts pieces");
        self.send_part(piece, Instant::now() + within)
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_fn};

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    fn head(status: u16) -> ResponseHead {
        ResponseHead { status, headers: Vec::new() }
    }

    fn whole(status: u16) -> PluginResponse {
        PluginResponse { head: head(status), body: Some(Bytes::from_static(b"x")) }
    }

    fn next(pieces: &mut Pieces) -> Option<Piece> {
        block_on(poll_fn(|cx| pieces.poll_next(cx)))
    }

    fn streamed(waiting: Waiting) -> Pieces {
        match block_on(waiting.answer()) {
            Answer::Streamed(ResponseHead { status: 207, .. }, pieces) => pieces,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_answer_counts() {
        let (slot, waiting) = slot();
        slot.finish(Ok(whole(201)));
        slot.finish(Err(RequestError::Failed("too late".into())));
        assert!(slot.stream(head(200)).is_none());
        assert!(matches!(block_on(waiting.answer()), Answer::Whole(head, body) if head.status == 201 && body == "x"));
    }

    #[test]
    fn a_dropped_slot_is_an_error_that_says_to_try_again() {
        let (first, waiting) = slot();
        drop(first);
        assert!(matches!(block_on(waiting.answer()), Answer::Failed(RequestError::Unavailable(_))));
    }

    #[test]
    fn a_client_that_goes_is_noticed() {
        let (slot, waiting) = slot();
        assert!(!slot.is_abandoned());
        drop(waiting);
        assert!(slot.is_abandoned() && slot.stream(head(200)).is_none());
    }

    #[test]
    fn pieces_wait_for_room_and_the_end_is_the_homes_word() {
        let (slot, waiting) = slot();
        let mut sender = slot.stream(head(207)).unwrap();
        let mut pieces = streamed(waiting);
        for _ in 0..PIECES_MAX {
            assert_eq!(sender.send(Bytes::from_static(b"p"), SOON), Sent::Taken);
        }
        assert_eq!(sender.send(Bytes::from_static(b"p"), SOON), Sent::NoRoom);
        assert_eq!(next(&mut pieces), Some(Ok(Bytes::from_static(b"p"))));
        assert_eq!(sender.send(Bytes::from_static(b"q"), SOON), Sent::Taken);
        drop(sender);
        slot.finish(Ok(PluginResponse { head: head(207), body: None }));
        let rest: Vec<_> = std::iter::from_fn(|| next(&mut pieces)).collect();
        assert_eq!(rest.len(), PIECES_MAX);
        assert!(rest.iter().all(Result::is_ok) && next(&mut pieces).is_none());
    }

    #[test]
    fn a_failure_cuts_the_stream_even_when_there_is_no_room() {
        let (slot, waiting) = slot();
        let mut sender = slot.stream(head(207)).unwrap();
        let mut pieces = streamed(waiting);
        while sender.send(Bytes::from_static(b"p"), Duration::ZERO) == Sent::Taken {}
        slot.finish(Err(RequestError::Failed("broken".into())));
        let all: Vec<_> = std::iter::from_fn(|| next(&mut pieces)).collect();
        assert_eq!(all.last(), Some(&Err("broken".to_owned())));
        drop(pieces);
        assert_eq!(sender.send(Bytes::from_static(b"p"), SOON), Sent::ReaderGone);
    }

    #[test]
    fn a_stream_that_nobody_ends_is_cut() {
        let (slot, waiting) = slot();
        let sender = slot.stream(head(207)).unwrap();
        let mut pieces = streamed(waiting);
        drop((sender, slot));
        assert!(matches!(next(&mut pieces), Some(Err(_))) && next(&mut pieces).is_none());
    }
}
