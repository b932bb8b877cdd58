//! Sockets and timers of a shard: the door to glommio's network side.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::net::{AcceptedTcpStream, TcpListener, TcpStream};

/// A connection that was accepted on one shard and may be served on another.
#[derive(Debug)]
pub struct Accepted(AcceptedTcpStream);

impl Accepted {
    /// Makes it this shard's. `None` if the peer has gone already.
    pub fn bind(self) -> Option<(ShardStream, SocketAddr)> {
        let peer = self.0.peer_addr();
        let stream = self.0.bind_to_executor();
        let peer = peer.ok()?;
        stream.set_nodelay(true).ok()?;
        Some((ShardStream(stream), peer))
    }
}

/// The listening socket, on the shard that deals connections.
pub struct Acceptor(TcpListener);

impl Acceptor {
    /// Takes over a listening socket that the standard library bound (it refuses an address in use, which glommio's own
    /// `bind` with SO_REUSEPORT would share unnoticed).
    #[allow(unsafe_code, reason = "glommio takes over a foreign listener only by its descriptor")]
    pub fn adopt(listener: std::net::TcpListener) -> Self {
        let descriptor = listener.into_raw_fd();
        // SAFETY: `into_raw_fd` just gave up the descriptor, so nobody else owns it, and it is a listening TCP socket because
        // it came out of `std::net::TcpListener`.
        Acceptor(unsafe { TcpListener::from_raw_fd(descriptor) })
    }

    /// The next connection.
    ///
    /// # Errors
    /// What `accept` says; running out of descriptors, for instance. The socket stays usable.
    pub async fn accept(&self) -> io::Result<Accepted> {
        self.0.shared_accept().await.map(Accepted).map_err(io::Error::from)
    }
}

/// A connection, on its shard.
pub struct ShardStream(TcpStream);

impl AsyncRead for ShardStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for ShardStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// Waits on this shard's timer.
pub async fn sleep(time: Duration) {
    glommio::timer::sleep(time).await;
}

/// Lets other tasks of this shard run.
pub async fn yield_now() {
    glommio::executor().yield_task_queue_now().await;
}
