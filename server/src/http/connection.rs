//! One connection: hyper's HTTP/1.1 over a stream of `futures-io`, on the shard's thread.
//!
//! - Bytes go through a scratch buffer that the thread's connections share: hyper's read buffer is uninitialised memory,
//!   which `AsyncRead` cannot fill without `unsafe`.
//! - A peer that neither sends nor takes a byte for `idle_timeout`, while it is its turn, is closed: that bounds slow
//!   senders of headers and bodies, idle keep-alive and slow readers. It is not its turn while a request is worked on. hyper's
//!   own timers are not used: they want `Send`, which a shard's timer is not.
//! - When the engine stops, the request in hand is finished and the connection closed.
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

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// Serves one connection until it ends.
pub(crate) async fn serve<P: ShardPort, S>(shared: Arc<Shared>, port: P, stream: S, peer: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let activity = Rc::new(Activity::new());
    let idle = IdleTimer::new(port.clone(), shared.parts.options.idle_timeout, activity.clone());
    let mut stopped = Box::pin(port.stopped());
    let lingering = activity.clone();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let (shared, port, activity) = (shared.clone(), port.clone(), activity.clone());
        async move { Ok::<_, Infallible>(router::handle(&shared, &port, &activity, request).await) }
    });
    let mut builder = http1::Builder::new();
    // With `pipeline_flush` hyper would take in a streamed body without bound while its reader is slow.
    builder.pipeline_flush(false).max_buf_size(BUFFER_BYTES_MAX).header_read_timeout(None);
    let mut connection = pin!(builder.serve_connection(ShardIo { stream, idle, closing: None }, service));
    let mut stopping = false;
    let ended = poll_fn(|cx| {
        if !stopping && stopped.as_mut().poll(cx).is_ready() {
            stopping = true;
            lingering.stopping.set(true);
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    if let Err(error) = ended.await {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// When the peer last did something, and whether it waits for us.
pub(crate) struct Activity {
    last: Cell<Instant>,
    /// Requests from their head's arrival to their answer's end.
    in_hand: Cell<usize>,
    /// A handler waits for more of a request's body.
    awaiting: Cell<bool>,
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
            unread: Cell::new(false),
            ended: Cell::new(false),
            stopping: Cell::new(false),
        }
    }

    /// It is our turn until the guard is dropped.
    pub(crate) fn take_in_hand(self: &Rc<Self>) -> InHand {
        self.in_hand.set(self.in_hand.get() + 1);
        InHand(self.clone())
    }

    pub(crate) fn set_awaiting(&self, awaiting: bool) {
        self.awaiting.set(awaiting);
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
}

/// A request is being worked on; held from its head's arrival until its answer's last byte is handed to hyper.
pub(crate) struct InHand(Rc<Activity>);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.in_hand.set(self.0.in_hand.get() - 1);
        self.0.touch();
    }
}

/// Ends a connection whose peer does nothing. One timer per idle period, not per read: it is armed when a read or
/// write first waits, and armed again for the rest when it fires early.
struct IdleTimer<P> {
    port: P,
    limit: Duration,
    activity: Rc<Activity>,
    armed: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl<P: ShardPort> IdleTimer<P> {
    fn new(port: P, limit: Duration, activity: Rc<Activity>) -> Self {
        IdleTimer { port, limit, activity, armed: None }
    }

    /// Ready with the error when the peer's time is up.
    fn poll(&mut self, cx: &mut Context<'_>, peers_turn: bool) -> Poll<io::Error> {
        loop {
            let timer = match &mut self.armed {
                Some(timer) => timer,
                None => self.armed.insert(Box::pin(self.port.sleep(self.remaining().max(Duration::from_millis(1))))),
            };
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.armed = None;
            if !peers_turn {
                self.activity.touch();
            } else if self.remaining().is_zero() {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the peer was idle for too long"));
            }
        }
    }

    fn remaining(&self) -> Duration {
        self.limit.saturating_sub(self.activity.last.get().elapsed())
    }
}

/// hyper's IO over a stream of `futures-io`.
struct ShardIo<S, P> {
    stream: S,
    idle: IdleTimer<P>,
    /// The writing half is closed.
    closing: Option<Closing>,
}

/// What is still read and dropped before a connection ends.
struct Closing {
    bytes_left: usize,
    over: Pin<Box<dyn Future<Output = ()>>>,
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

impl<S: AsyncRead + Unpin, P: ShardPort + Unpin> hyper::rt::Read for ShardIo<S, P> {
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
                this.idle.activity.touch();
                this.idle.activity.ended.set(matches!(result, Ok(0)));
                Poll::Ready(result.map(|_| ()))
            }
            Poll::Pending => {
                let peers_turn = this.idle.activity.peers_turn();
                this.idle.poll(cx, peers_turn).map(Err)
            }
        }
    }
}

impl<S: AsyncWrite + Unpin, P: ShardPort + Unpin> ShardIo<S, P> {
    /// A write that waits, waits for the peer to read.
    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(result) => {
                self.idle.activity.touch();
                Poll::Ready(result)
            }
            Poll::Pending => self.idle.poll(cx, true).map(Err),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, P: ShardPort + Unpin> hyper::rt::Write for ShardIo<S, P> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.written(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        match flushed {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => this.idle.poll(cx, true).map(Err),
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
