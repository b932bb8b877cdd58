//! One connection: hyper's HTTP/1.1 over a stream of `futures-io`, on the shard's thread.
//!
//! - Bytes go through a scratch buffer that the thread's connections share: hyper's read buffer is uninitialised memory,
//!   which `AsyncRead` cannot fill without `unsafe`.
//! - A peer that neither sends nor takes a byte for `idle_timeout`, while it is its turn, is closed: that bounds idle keep-alive and
//!   slow readers. It is not its turn while a request is worked on. A request that is begun must be whole within `request_timeout`,
//!   and its body within what `BODY_BYTES_PER_SEC_MIN` takes besides, however it trickles in; else the answer is 408. hyper's own
//!   timers are not used: they want `Send`, which a shard's timer is not.
//! - When the engine stops, a connection on which no whole request is worked on is closed at once (`Stop`).
//! - What hyper answers itself, to bytes that are no request, has no body; it is given one on its way out (`own_error`).
//! - A request may be answered before its body was read: too large, of an unknown path, without permission. To close a socket with
//!   unread bytes is to reset it, and a client that sends all before it reads would never see the answer. So the writing half is
//!   closed first, and what still comes is read and dropped, a bounded amount for a bounded time.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_lite::future::poll_fn;
use futures_lite::{AsyncRead, AsyncWrite};
use hyper::body::Incoming;
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use saltus_core::limits::{HTTP_UNREAD_BYTES_MAX, HTTP_UNREAD_MS};

use super::port::ShardPort;
use super::{Shared, router};

/// Bytes read from a socket at once.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Bytes that hyper buffers of one connection; also the longest request head.
const BUFFER_BYTES_MAX: usize = 256 * 1024;
/// Headers of a request: hyper's bound.
const HEADERS_MAX: usize = 100;
/// The slowest that a body may come in, beside what every request has.
const BODY_BYTES_PER_SEC_MIN: u64 = 1024;
/// At a stop: how long an answer that has begun may go on.
const STOP_ANSWER: Duration = Duration::from_secs(1);
/// At a stop: how long a request may be worked on before its answer begins.
const STOP_WORK: Duration = Duration::from_secs(5);
/// At a stop: how often it is looked whether the time is up.
const STOP_LOOK: Duration = Duration::from_millis(50);

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// Serves one connection until it ends.
pub(crate) async fn serve<P: ShardPort, S>(shared: Arc<Shared>, port: P, stream: S, peer: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let options = &shared.parts.options;
    let activity = Rc::new(Activity::new());
    let idle = IdleTimer::new(port.clone(), options.idle_timeout, options.request_timeout, activity.clone());
    let shutdown_timeout = options.shutdown_timeout;
    let mut stopped = Box::pin(port.stopped());
    let handler_port = port.clone();
    let watched = activity.clone();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let (shared, port, activity) = (shared.clone(), handler_port.clone(), watched.clone());
        async move { Ok::<_, Infallible>(router::handle(&shared, &port, &activity, request).await) }
    });
    let mut builder = http1::Builder::new();
    // With `pipeline_flush` hyper would take in a streamed body without bound while its reader is slow.
    builder.pipeline_flush(false).max_buf_size(BUFFER_BYTES_MAX).header_read_timeout(None);
    let mut connection =
        pin!(builder.serve_connection(ShardIo { stream, idle, instead: None, closing: None }, service));
    let mut stop = None;
    let ended = poll_fn(|cx| {
        if stop.is_none() && stopped.as_mut().poll(cx).is_ready() {
            activity.stopping.set(true);
            connection.as_mut().graceful_shutdown();
            stop = Some(Stop { port: port.clone(), since: Instant::now(), shutdown_timeout, look: None });
        }
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(Some(ended));
        }
        match stop.as_mut().is_some_and(|stop| stop.is_over(&activity, cx)) {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    });
    match ended.await {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%peer, %error, "connection ended"),
        None => tracing::debug!(%peer, "connection closed: the server stops"),
    }
}

/// A wait of the shard's own.
type Timer = Pin<Box<dyn Future<Output = ()>>>;

/// The stop of the engine, as one connection lives it: half a request is nobody's business any more, an answer may go on for a moment,
/// and work for a moment longer. A plugin's run is waited for by the engine itself, so its answer is waited for here.
struct Stop<P> {
    port: P,
    since: Instant,
    shutdown_timeout: Duration,
    look: Option<Timer>,
}

impl<P: ShardPort> Stop<P> {
    /// Whether the connection is to be closed now; if not, the task is woken when it is to be asked again.
    fn is_over(&mut self, activity: &Activity, cx: &mut Context<'_>) -> bool {
        loop {
            let grace = match activity.phase() {
                Phase::PeersTurn => return true,
                Phase::Answering => Some(STOP_ANSWER.min(self.shutdown_timeout / 4)),
                Phase::Working => Some(STOP_WORK.min(self.shutdown_timeout / 2)),
                Phase::Plugin => None,
            };
            if grace.is_some_and(|grace| self.since.elapsed() >= grace) {
                return true;
            }
            let look = self.look.get_or_insert_with(|| Box::pin(self.port.sleep(STOP_LOOK)));
            if look.as_mut().poll(cx).is_pending() {
                return false;
            }
            self.look = None;
        }
    }
}

/// Whose move it is on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no whole request, and no answer under way.
    PeersTurn,
    /// A request is whole, and its answer has not begun.
    Working,
    /// The same, and a plugin works on it.
    Plugin,
    /// An answer is under way.
    Answering,
}

/// When the peer last did something, and whether it waits for us.
pub(crate) struct Activity {
    last: Cell<Instant>,
    /// Requests from their head's arrival to their answer's end.
    in_hand: Cell<usize>,
    /// A handler waits for more of a request's body.
    awaiting: Cell<bool>,
    /// A plugin makes the answer.
    in_plugin: Cell<bool>,
    /// The answer of the request in hand has begun.
    answering: Cell<bool>,
    /// A write waits for the peer to read.
    writing: Cell<bool>,
    /// When the first byte came of a request's head that is not whole, or the head of a request whose body is not whole.
    begun: Cell<Option<Instant>>,
    /// Bytes of the body that have come.
    body_bytes: Cell<u64>,
    /// The body took too long: nobody waits for it any more.
    body_late: Cell<bool>,
    /// A request was answered before its body was read to the end.
    unread: Cell<bool>,
    /// The peer has said that it sends nothing more.
    ended: Cell<bool>,
    /// Nothing is waited for any more.
    stopping: Cell<bool>,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Activity {
            last: Cell::new(Instant::now()),
            in_hand: Cell::new(0),
            awaiting: Cell::new(false),
            in_plugin: Cell::new(false),
            answering: Cell::new(false),
            writing: Cell::new(false),
            begun: Cell::new(None),
            body_bytes: Cell::new(0),
            body_late: Cell::new(false),
            unread: Cell::new(false),
            ended: Cell::new(false),
            stopping: Cell::new(false),
        }
    }

    /// It is our turn until the guard is dropped.
    pub(crate) fn take_in_hand(self: &Rc<Self>) -> InHand {
        self.in_hand.set(self.in_hand.get() + 1);
        self.begun.set(None);
        self.body_bytes.set(0);
        self.body_late.set(false);
        self.answering.set(false);
        InHand(self.clone())
    }

    /// The handler waits for more of the body, or has got these bytes of it.
    pub(crate) fn set_awaiting(&self, awaiting: bool, bytes: usize) {
        if awaiting && self.begun.get().is_none() {
            self.begun.set(Some(Instant::now()));
        }
        self.body_bytes.set(self.body_bytes.get() + bytes as u64);
        self.awaiting.set(awaiting);
    }

    /// The body is read, or not wanted.
    pub(crate) fn end_body(&self) {
        self.awaiting.set(false);
        self.begun.set(None);
    }

    /// Whether the request's body did not come in time.
    pub(crate) fn body_late(&self) -> bool {
        self.body_late.get()
    }

    /// A plugin makes the answer, or has made it.
    pub(crate) fn set_in_plugin(&self, in_plugin: bool) {
        self.in_plugin.set(in_plugin);
    }

    /// The answer begins.
    pub(crate) fn begin_answer(&self) {
        self.answering.set(true);
    }

    fn phase(&self) -> Phase {
        match () {
            () if self.writing.get() => Phase::Answering,
            () if self.peers_turn() => Phase::PeersTurn,
            () if self.answering.get() => Phase::Answering,
            () if self.in_plugin.get() => Phase::Plugin,
            () => Phase::Working,
        }
    }

    /// A request's body is given up.
    pub(crate) fn leave_unread(&self) {
        self.unread.set(true);
    }

    /// Whether bytes may come that nobody has asked for.
    fn must_drain(&self) -> bool {
        self.unread.get() && !self.ended.get() && !self.stopping.get()
    }

    fn peers_turn(&self) -> bool {
        self.in_hand.get() == 0 || self.awaiting.get()
    }

    fn touch(&self) {
        self.last.set(Instant::now());
    }

    /// Bytes have come.
    fn received(&self) {
        self.touch();
        if self.in_hand.get() == 0 && self.begun.get().is_none() {
            self.begun.set(Some(self.last.get()));
        }
    }

    /// When the peer's time is up.
    fn due(&self, idle: Duration, request: Duration) -> Instant {
        let idle = self.last.get() + idle;
        match self.begun.get() {
            // The peer has to read before anything else.
            _ if self.writing.get() => idle,
            None => idle,
            Some(begun) => {
                let body = Duration::from_secs(self.body_bytes.get() / BODY_BYTES_PER_SEC_MIN);
                idle.min(begun + request + body)
            }
        }
    }
}

/// A request is being worked on; held from its head's arrival until its answer's last byte is handed to hyper.
pub(crate) struct InHand(Rc<Activity>);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.in_hand.set(self.0.in_hand.get() - 1);
        self.0.answering.set(false);
        self.0.touch();
    }
}

/// Ends the wait for a peer that does nothing, or too little. One timer per idle period, not per read: it is armed when a read or
/// write first waits, and armed again for the rest when it fires early.
struct IdleTimer<P> {
    port: P,
    idle: Duration,
    request: Duration,
    activity: Rc<Activity>,
    /// And when it fires.
    armed: Option<(Timer, Instant)>,
}

impl<P: ShardPort> IdleTimer<P> {
    fn new(port: P, idle: Duration, request: Duration, activity: Rc<Activity>) -> Self {
        IdleTimer { port, idle, request, activity, armed: None }
    }

    /// Ready with the error when the peer's time is up.
    fn poll(&mut self, cx: &mut Context<'_>, peers_turn: bool) -> Poll<io::Error> {
        loop {
            let due = self.activity.due(self.idle, self.request);
            // Half of the time may be added to it, lest every request whose body comes in two parts arms a timer anew.
            let armed = self.armed.take_if(|(_, fires)| *fires <= due + self.request / 2);
            let (timer, _) = self.armed.insert(armed.unwrap_or_else(|| {
                let wait = due.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
                (Box::pin(self.port.sleep(wait)) as Pin<Box<dyn Future<Output = ()>>>, Instant::now() + wait)
            }));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.armed = None;
            if !peers_turn {
                self.activity.touch();
            } else if self.activity.due(self.idle, self.request) <= Instant::now() {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the peer was idle for too long"));
            }
        }
    }
}

/// hyper's IO over a stream of `futures-io`.
struct ShardIo<S, P> {
    stream: S,
    idle: IdleTimer<P>,
    /// What is sent instead of what hyper would send, and how much of it is left to send.
    instead: Option<Vec<u8>>,
    /// The writing half is closed.
    closing: Option<Closing>,
}

/// What is still read and dropped before a connection ends.
struct Closing {
    bytes_left: usize,
    over: Timer,
}

/// Bytes dropped before other connections of the shard have a turn.
const DROPPED_AT_ONCE_BYTES: usize = 16 * SCRATCH_BYTES;

impl<S: AsyncRead + Unpin, P: ShardPort + Unpin> ShardIo<S, P> {
    /// Reads what the peer still sends and drops it, until it has sent all, or the time or the bytes for that are spent.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(closing) = &mut self.closing else { return Poll::Ready(()) };
        let mut dropped = 0;
        while self.idle.activity.must_drain() && closing.bytes_left > 0 && closing.over.as_mut().poll(cx).is_pending() {
            let read = SCRATCH.with_borrow_mut(|scratch| Pin::new(&mut self.stream).poll_read(cx, &mut scratch[..]));
            match read {
                Poll::Ready(Ok(bytes)) if bytes > 0 => {
                    closing.bytes_left = closing.bytes_left.saturating_sub(bytes);
                    dropped += bytes;
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
            if dropped >= DROPPED_AT_ONCE_BYTES {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, P: ShardPort + Unpin> hyper::rt::Read for ShardIo<S, P> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut out: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let room = out.remaining().min(scratch.len());
            let read = Pin::new(&mut this.stream).poll_read(cx, &mut scratch[..room]);
            if let Poll::Ready(Ok(bytes)) = read {
                out.put_slice(&scratch[..bytes]);
            }
            read
        });
        match read {
            Poll::Ready(result) => {
                this.idle.activity.received();
                this.idle.activity.ended.set(matches!(result, Ok(0)));
                Poll::Ready(result.map(|_| ()))
            }
            Poll::Pending => {
                let peers_turn = this.idle.activity.peers_turn();
                match this.idle.poll(cx, peers_turn) {
                    Poll::Ready(error) => this.late(cx, error),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin, P: ShardPort + Unpin> ShardIo<S, P> {
    /// The peer's time is up while it was to send something.
    fn late(&mut self, cx: &mut Context<'_>, error: io::Error) -> Poll<io::Result<()>> {
        let activity = &self.idle.activity;
        if activity.awaiting.get() && !activity.body_late.replace(true) {
            // The handler is asked again in this same turn, and answers.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if activity.in_hand.get() == 0 && activity.begun.get().is_some() {
            let text = format!("the request's head did not come within {:?}", self.idle.request);
            // One attempt: nothing else is on its way to the peer, so there is room.
            let _sent = Pin::new(&mut self.stream).poll_write(cx, &plain_answer("408 Request Timeout", &text));
        }
        Poll::Ready(Err(error))
    }
}

/// A whole answer, for when there is no request that hyper could answer.
fn plain_answer(status: &str, text: &str) -> Vec<u8> {
    let body = serde_json::json!({ "error": text }).to_string();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

/// What is sent instead of an error that hyper makes itself: it is a head alone, without what all of our answers have.
fn own_error(bytes: &[u8]) -> Option<Vec<u8>> {
    const HEAD_BYTES_MAX: usize = 256;
    let bare = bytes.len() <= HEAD_BYTES_MAX && bytes.starts_with(b"HTTP/1.") && bytes.get(8..10) == Some(b" 4");
    if !bare || !bytes.ends_with(b"\r\n\r\n") || bytes.windows(13).any(|part| part == b"cluster-uuid:") {
        return None;
    }
    let status = std::str::from_utf8(bytes.get(9..)?).ok()?.lines().next()?;
    let text = match status.get(..3)? {
        "431" => format!(
            "the request's head has more than {BUFFER_BYTES_MAX} bytes, or more than {HEADERS_MAX} headers: send less in headers"
        ),
        "414" => {
            "the request's path and query string have more than 65534 bytes: send what is long in a body".to_owned()
        }
        _ => "what was sent is no request of HTTP/1.1: check the request line and the headers".to_owned(),
    };
    Some(plain_answer(status, &text))
}

impl<S: AsyncWrite + Unpin, P: ShardPort + Unpin> ShardIo<S, P> {
    /// A write that waits, waits for the peer to read.
    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(result) => {
                self.idle.activity.writing.set(false);
                self.idle.activity.touch();
                Poll::Ready(result)
            }
            Poll::Pending => {
                self.idle.activity.writing.set(true);
                self.idle.poll(cx, true).map(Err)
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, P: ShardPort + Unpin> hyper::rt::Write for ShardIo<S, P> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.instead.is_none() && this.idle.activity.in_hand.get() == 0 {
            this.instead = own_error(bytes);
            if this.instead.is_some() {
                // What is no request may go on for long.
                this.idle.activity.leave_unread();
            }
        }
        while let Some(instead) = this.instead.as_mut().filter(|instead| !instead.is_empty()) {
            match Pin::new(&mut this.stream).poll_write(cx, instead) {
                Poll::Ready(Ok(sent)) if sent > 0 => drop(instead.drain(..sent)),
                other => return this.written(cx, other),
            }
        }
        if this.instead.take().is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.written(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        match flushed {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => this.written(cx, Poll::Pending),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.stream).poll_close(cx))?;
            let over = Box::pin(this.idle.port.sleep(Duration::from_millis(HTTP_UNREAD_MS)));
            this.closing = Some(Closing { bytes_left: HTTP_UNREAD_BYTES_MAX, over });
        }
        this.poll_drain(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hypers_own_errors_get_another_body() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n";
        let own = String::from_utf8(own_error(bare).unwrap()).unwrap();
        let (head, body) = own.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{head}");
        assert!(
            head.contains(&format!("content-length: {}", body.len())) && head.contains("application/json"),
            "{head}"
        );
        assert!(body.starts_with("{\"error\":\"the request's head has more than"), "{body}");
        for other in [
            "HTTP/1.1 404 Not Found\r\ncluster-uuid: x\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}",
            "",
        ] {
            assert_eq!(own_error(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn half_a_request_has_a_bound_that_grows_with_its_body() {
        let activity = Rc::new(Activity::new());
        let (idle, request) = (Duration::from_secs(75), Duration::from_secs(60));
        let start = activity.last.get();
        assert_eq!((activity.due(idle, request), activity.phase()), (start + idle, Phase::PeersTurn));
        activity.received();
        let begun = activity.begun.get().unwrap();
        activity.received();
        assert_eq!(activity.due(idle, request), begun + request, "from the first byte, not from the last");
        let in_hand = activity.take_in_hand();
        assert_eq!(activity.phase(), Phase::Working);
        activity.set_awaiting(true, 0);
        let begun = activity.begun.get().unwrap();
        activity.set_awaiting(true, 10 * 1024);
        assert_eq!(
            activity.due(idle, request),
            (begun + request + Duration::from_secs(10)).min(activity.last.get() + idle)
        );
        assert_eq!(activity.phase(), Phase::PeersTurn);
        activity.end_body();
        activity.set_in_plugin(true);
        assert_eq!(activity.phase(), Phase::Plugin);
        activity.begin_answer();
        assert_eq!(activity.phase(), Phase::Answering);
        drop(in_hand);
        assert_eq!(activity.phase(), Phase::PeersTurn);
        activity.writing.set(true);
        assert_eq!(activity.phase(), Phase::Answering);
    }
}
