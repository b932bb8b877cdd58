//! Messages over a pair of sockets that keep packets apart (SOCK_SEQPACKET), each with at most one file descriptor of its
//! own.
//!
//! A packet is one byte that says where the message is, and the message as JSON: in the packet, or, if it is long, in a memory
//! file that comes with it. Sending a packet is one system call that sends all or nothing, so threads may send at the same time.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use saltus_core::limits::PROCESS_MESSAGE_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a packet; longer messages go beside it.
const PACKET_BYTES_MAX: usize = 32 * 1024;
const IN_PACKET: u8 = 0;
const BESIDE: u8 = 1;

/// One end.
pub struct Channel {
    socket: OwnedFd,
}

/// What [`Channel::receive`] found.
pub enum Received<M> {
    /// A message and what was attached to it.
    Message(M, Option<OwnedFd>),
    /// The other end is closed.
    Closed,
    /// There is none now.
    Nothing,
}

impl Channel {
    /// Two connected ends: one to use, and one to give away.
    ///
    /// # Errors
    /// What the system said.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel { socket: ours }, theirs))
    }

    /// The end that was given away by [`Channel::pair`].
    ///
    /// # Errors
    /// It is none.
    pub fn over(socket: OwnedFd) -> io::Result<Channel> {
        if sockopt::socket_type(&socket)? != SocketType::SEQPACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket of a server"));
        }
        Ok(Channel { socket })
    }

    /// Sending gives up when the other end has taken nothing for so long.
    ///
    /// # Errors
    /// What the system said.
    pub fn limit_sending(&self, limit: Duration) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Send, Some(limit))?)
    }

    /// Sends a message; waits while the other end takes nothing.
    ///
    /// # Errors
    /// The other end is closed, or what else the system said.
    pub fn send(&self, message: &impl Serialize, attached: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut packet = vec![IN_PACKET];
        serde_json::to_writer(&mut packet, message)?;
        if packet.len() <= PACKET_BYTES_MAX {
            return self.send_packet(&packet, attached.as_slice());
        }
        let file = rustix::fs::memfd_create("saltus-message", MemfdFlags::CLOEXEC)?;
        std::fs::File::from(file.try_clone()?).write_all(&packet[1..])?;
        let files: Vec<_> = [file.as_fd()].into_iter().chain(attached).collect();
        self.send_packet(&[BESIDE], &files)
    }

    fn send_packet(&self, packet: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(files)), "there is room for two descriptors");
        }
        let sent = rustix::io::retry_on_intr(|| {
            sendmsg(&self.socket, &[IoSlice::new(packet)], &mut control, SendFlags::NOSIGNAL)
        })?;
        debug_assert_eq!(sent, packet.len());
        Ok(())
    }

    /// Takes a message; with `wait` waits for one.
    ///
    /// # Errors
    /// What came is no message, or what the system said.
    pub fn receive<M: DeserializeOwned>(&self, wait: bool) -> io::Result<Received<M>> {
        let mut packet = [0; PACKET_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = if wait { RecvFlags::CMSG_CLOEXEC } else { RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT };
        let received = loop {
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags) {
                // The other end closed before it took everything; what it sent is still to be had.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                received => break received?,
            }
        };
        let files = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let mut files = files.flatten();
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(malformed("a packet that is too long"));
        }
        let message = match packet.get(..received.bytes).unwrap_or_default() {
            [] => return Ok(Received::Closed),
            [IN_PACKET, text @ ..] => serde_json::from_slice(text)?,
            [BESIDE] => read_beside(files.next().ok_or_else(|| malformed("a message without its file"))?)?,
            _ => return Err(malformed("a packet of an unknown kind")),
        };
        Ok(Received::Message(message, files.next()))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn read_beside<M: DeserializeOwned>(file: OwnedFd) -> io::Result<M> {
    use std::os::unix::fs::FileExt as _;

    let file = std::fs::File::from(file);
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if length > PROCESS_MESSAGE_BYTES_MAX {
        return Err(malformed("a message that is too long"));
    }
    let mut text = vec![0; length];
    // By position: the sender's own position, which the descriptors share, is at the end.
    file.read_exact_at(&mut text, 0)?;
    Ok(serde_json::from_slice(&text)?)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads what is in a descriptor that does not block, up to its end; false at the end.
///
/// # Errors
/// What the system said.
pub fn read_available(file: &OwnedFd, mut take: impl FnMut(&[u8])) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(file, &mut buffer) {
            Ok(0) => return Ok(false),
            Ok(read) => take(&buffer[..read]),
            Err(Errno::AGAIN) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (Channel, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        (ours, Channel::over(theirs).unwrap())
    }

    fn text(channel: &Channel) -> (String, Option<OwnedFd>) {
        match channel.receive(true).unwrap() {
            Received::Message(message, file) => (message, file),
            Received::Closed | Received::Nothing => panic!("no message"),
        }
    }

    #[test]
    fn short_and_long_messages_arrive_in_order_with_their_files() {
        let (a, b) = ends();
        let long = "x\n".repeat(1_000_000);
        let file = std::fs::File::open("/dev/null").unwrap();
        a.send(&"short", None).unwrap();
        a.send(&long, Some(file.as_fd())).unwrap();
        a.send(&"with", Some(file.as_fd())).unwrap();
        assert!(matches!(text(&b), (t, None) if t == "short"));
        assert!(matches!(text(&b), (t, Some(_)) if t == long));
        assert!(matches!(text(&b), (t, Some(_)) if t == "with"));
        assert!(matches!(b.receive::<String>(false).unwrap(), Received::Nothing));
    }

    #[test]
    fn what_was_sent_before_the_end_closed_is_still_received() {
        let (a, b) = ends();
        b.send(&"never taken", None).unwrap();
        a.send(&"last words", None).unwrap();
        drop(a);
        assert_eq!(text(&b).0, "last words");
        assert!(matches!(b.receive::<String>(true).unwrap(), Received::Closed));
        assert!(b.send(&"too late", None).is_err());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (a, b) = ends();
        a.send_packet(&[BESIDE], &[]).unwrap();
        a.send_packet(&[7, 7], &[]).unwrap();
        a.send_packet(&[IN_PACKET, b'{'], &[]).unwrap();
        for _ in 0..3 {
            assert!(b.receive::<String>(true).is_err());
        }
    }
}
