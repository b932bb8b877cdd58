//! Messages over a pair of sockets that keep packets apart (SOCK_SEQPACKET), each with at most one attachment.
//!
//! # Layout of a packet
//! One byte that says where the message is, its length (4 bytes, little-endian), the message (postcard), and what is attached to it,
//! if that is short. A long message is in a sealed memory file that comes with the packet, and so is a long attachment. Sending a
//! packet is one system call that sends all or nothing, so threads may send at the same time.
//!
//! What comes from a worker is anything: lengths are compared with what is there, and files are read only if nobody can change them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use arrow::buffer::Buffer;
use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use saltus_core::limits::{PROCESS_MESSAGE_BYTES_MAX, PROCESS_PACKET_BYTES_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::memory;
use super::system;

/// Bytes before the message.
const HEAD: usize = 5;
/// Bytes of a message in a packet; longer ones go beside it.
const MESSAGE_IN_PACKET_MAX: usize = PROCESS_PACKET_BYTES_MAX / 2 - HEAD;
/// Bytes of what is attached within a packet; what is longer is a file.
pub const ATTACHED_IN_PACKET_MAX: usize = PROCESS_PACKET_BYTES_MAX / 2;
/// Bytes that most messages need less than.
const MESSAGE_USUAL: usize = 512;
/// Packets that are looked at to see whether one was left unread.
const LEFT_MAX: usize = 1024;
const IN_PACKET: u8 = 0;
const BESIDE: u8 = 1;

/// One end.
pub struct Channel {
    socket: OwnedFd,
}

/// What comes with a message.
#[derive(Debug, Default)]
pub enum Attached {
    /// Nothing.
    #[default]
    Nothing,
    /// At most [`ATTACHED_IN_PACKET_MAX`] bytes, which are nobody else's, aligned for any column.
    Here(Buffer),
    /// A memory file, sealed, or a socket.
    File(OwnedFd),
}

impl Attached {
    /// Bytes: as they are, or as a file if they are too many.
    ///
    /// # Errors
    /// What the system said.
    pub fn bytes(bytes: &[u8]) -> io::Result<Attached> {
        match bytes.len() {
            0 => Ok(Attached::Nothing),
            length if length <= ATTACHED_IN_PACKET_MAX => Ok(Attached::Here(Buffer::from(bytes))),
            _ => memory::file_of(bytes).map(Attached::File),
        }
    }

    /// The bytes, over a mapping if they are in a file.
    ///
    /// # Errors
    /// The file could still be changed, or what the system said.
    pub fn into_bytes(self) -> io::Result<Bytes> {
        match self {
            Attached::Nothing => Ok(Bytes::new()),
            Attached::Here(buffer) => Ok(Bytes::copy_from_slice(&buffer)),
            Attached::File(file) => system::map(&file),
        }
    }

    /// The same, as Arrow has it.
    ///
    /// # Errors
    /// See [`Attached::into_bytes`].
    pub fn into_buffer(self) -> io::Result<Buffer> {
        match self {
            Attached::Here(buffer) => Ok(buffer),
            // Aligned like any other, though there is nothing in it.
            Attached::Nothing => Ok(Buffer::from(&[][..])),
            other @ Attached::File(_) => Ok(Buffer::from(other.into_bytes()?)),
        }
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Attached::File(file) => Some(file.as_fd()),
            Attached::Nothing | Attached::Here(_) => None,
        }
    }

    fn here(&self) -> &[u8] {
        match self {
            Attached::Here(buffer) => buffer,
            Attached::Nothing | Attached::File(_) => &[],
        }
    }
}

/// Where packets are received.
pub struct Packet(Box<[u8]>);

impl Default for Packet {
    fn default() -> Self {
        Packet(vec![0; PROCESS_PACKET_BYTES_MAX].into())
    }
}

/// What [`Channel::receive`] found.
pub enum Received<M> {
    /// A message and what was attached to it.
    Message(M, Attached),
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
    pub fn send(&self, message: &impl Serialize, attached: &Attached) -> io::Result<()> {
        let message = encode(message)?;
        if message.len() <= MESSAGE_IN_PACKET_MAX {
            return self.send_packet(IN_PACKET, &message, attached, None, SendFlags::NOSIGNAL);
        }
        let beside = memory::file_of(&message)?;
        self.send_packet(BESIDE, &[], attached, Some(beside.as_fd()), SendFlags::NOSIGNAL)
    }

    /// Sends a message if it is short and there is room for it at once. For shards: never waits, and makes no file.
    ///
    /// # Errors
    /// `WouldBlock`, `FileTooLarge`, the other end is closed, or what else the system said.
    pub fn send_at_once(&self, message: &impl Serialize, attached: &Attached) -> io::Result<()> {
        let message = encode(message)?;
        if message.len() > MESSAGE_IN_PACKET_MAX || attached.file().is_some() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.send_packet(IN_PACKET, &message, attached, None, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
    }

    fn send_packet(
        &self,
        kind: u8,
        message: &[u8],
        attached: &Attached,
        beside: Option<BorrowedFd<'_>>,
        flags: SendFlags,
    ) -> io::Result<()> {
        let mut head = [kind; HEAD];
        head[1..].copy_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes());
        let parts = [IoSlice::new(&head), IoSlice::new(message), IoSlice::new(attached.here())];
        let files: Vec<_> = beside.into_iter().chain(attached.file()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)), "there is room for two descriptors");
        }
        rustix::io::retry_on_intr(|| sendmsg(&self.socket, &parts, &mut control, flags))?;
        Ok(())
    }

    /// Takes a message; with `wait` waits for one.
    ///
    /// # Errors
    /// What came is no message, or what the system said.
    pub fn receive<M: DeserializeOwned>(&self, Packet(packet): &mut Packet, wait: bool) -> io::Result<Received<M>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = if wait { RecvFlags::CMSG_CLOEXEC } else { RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT };
        let received = loop {
            match recvmsg(&self.socket, &mut [IoSliceMut::new(packet)], &mut control, flags) {
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
        let packet = packet.get(..received.bytes).unwrap_or_default();
        if packet.is_empty() {
            return Ok(Received::Closed);
        }
        let (kind, message, here) = parts(packet).ok_or_else(|| malformed("a packet that is cut off"))?;
        let message = match kind {
            IN_PACKET => decode(message)?,
            BESIDE => decode_beside(&files.next().ok_or_else(|| malformed("a message without its file"))?)?,
            _ => return Err(malformed("a packet of an unknown kind")),
        };
        let attached = match (here, files.next()) {
            ([], None) => Attached::Nothing,
            ([], Some(file)) => Attached::File(file),
            // A copy of its own: the packet is used again, and what a plugin keeps of it must not change.
            (here, _) => Attached::Here(Buffer::from(here)),
        };
        Ok(Received::Message(message, attached))
    }

    /// Whether the other end is closed and something that was sent was never received there. Takes what there is to be received here.
    pub fn was_left_unread(&self) -> bool {
        let mut nothing = [0; 1];
        // More packets than the socket holds: who has the other end may send on and on.
        for _ in 0..LEFT_MAX {
            match rustix::net::recv(&self.socket, &mut nothing[..], RecvFlags::DONTWAIT) {
                Err(Errno::CONNRESET) => return true,
                Ok((_, 0)) => return false,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        false
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Kind, message, and what is attached.
fn parts(packet: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (head, rest) = packet.split_first_chunk::<HEAD>()?;
    let [kind, length @ ..] = *head;
    let (message, here) = rest.split_at_checked(u32::from_le_bytes(length) as usize)?;
    Some((kind, message, here))
}

fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    postcard::to_extend(message, Vec::with_capacity(MESSAGE_USUAL)).map_err(io::Error::other)
}

fn decode<M: DeserializeOwned>(message: &[u8]) -> io::Result<M> {
    match postcard::take_from_bytes(message) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(malformed("a message with something behind it")),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

fn decode_beside<M: DeserializeOwned>(file: &OwnedFd) -> io::Result<M> {
    // Mapped only if it is sealed: so no other file of a worker is read, which might take for ever.
    let message = system::map(file)?;
    if message.len() > PROCESS_MESSAGE_BYTES_MAX {
        return Err(malformed("a message that is too long"));
    }
    decode(&message)
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

    fn receive(channel: &Channel, wait: bool) -> io::Result<Received<String>> {
        channel.receive(&mut Packet::default(), wait)
    }

    fn text(channel: &Channel) -> (String, Bytes) {
        match receive(channel, true).unwrap() {
            Received::Message(message, attached) => (message, attached.into_bytes().unwrap()),
            Received::Closed | Received::Nothing => panic!("no message"),
        }
    }

    #[test]
    fn short_and_long_messages_arrive_in_order_with_what_is_attached() {
        let (a, b) = ends();
        let [short, long] = ["x\n", &"x\n".repeat(1_000_000)].map(str::to_owned);
        let at_the_bound = "y".repeat(ATTACHED_IN_PACKET_MAX);
        for message in [&short, &long] {
            for bytes in ["", "z", at_the_bound.as_str(), long.as_str()] {
                a.send(message, &Attached::bytes(bytes.as_bytes()).unwrap()).unwrap();
                assert_eq!(text(&b), (message.clone(), Bytes::copy_from_slice(bytes.as_bytes())));
            }
        }
        assert!(matches!(receive(&b, false).unwrap(), Received::Nothing));
    }

    #[test]
    fn what_would_make_the_sender_wait_is_not_sent_at_once() {
        let (a, _b) = ends();
        let kind = |sent: io::Result<()>| sent.unwrap_err().kind();
        let long = "x".repeat(PROCESS_PACKET_BYTES_MAX);
        assert_eq!(kind(a.send_at_once(&long, &Attached::Nothing)), io::ErrorKind::FileTooLarge);
        let file = Attached::bytes(long.as_bytes()).unwrap();
        assert_eq!(kind(a.send_at_once(&"short", &file)), io::ErrorKind::FileTooLarge);
        let error = loop {
            if let Err(error) = a.send_at_once(&"short", &Attached::Nothing) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let (a, b) = ends();
        drop(b);
        assert_eq!(kind(a.send_at_once(&"short", &Attached::Nothing)), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_was_sent_before_the_end_closed_is_still_received() {
        let (a, b) = ends();
        b.send(&"never taken", &Attached::Nothing).unwrap();
        a.send(&"last words", &Attached::Nothing).unwrap();
        drop(a);
        assert_eq!(text(&b).0, "last words");
        assert!(matches!(receive(&b, true).unwrap(), Received::Closed));
        assert!(b.send(&"too late", &Attached::Nothing).is_err());
    }

    #[test]
    fn it_is_known_whether_a_message_was_never_received() {
        for read in [false, true] {
            let (a, b) = ends();
            a.send(&"a run", &Attached::Nothing).unwrap();
            assert!(!a.was_left_unread(), "the other end is open");
            if read {
                text(&b);
            }
            // What the other end has said itself does not matter.
            b.send(&"noise", &Attached::Nothing).unwrap();
            drop(b);
            assert_eq!(a.was_left_unread(), !read);
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (a, b) = ends();
        let nothing = Attached::Nothing;
        let open = rustix::fs::memfd_create("open", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let other = std::fs::File::open("/dev/zero").unwrap();
        let good = encode(&"good").unwrap();
        let packets: [(u8, &[u8], Option<BorrowedFd<'_>>); 7] = [
            (BESIDE, &[], None),
            (BESIDE, &[], Some(open.as_fd())),
            (BESIDE, &[], Some(other.as_fd())),
            (7, &good, None),
            (IN_PACKET, &[], None),
            (IN_PACKET, &good[..3], None),
            (IN_PACKET, &[&good[..], &[0]].concat(), None),
        ];
        for (kind, message, file) in packets {
            a.send_packet(kind, message, &nothing, file, SendFlags::NOSIGNAL).unwrap();
            assert!(receive(&b, true).is_err(), "{kind} {message:?}");
        }
        for bytes in [&[IN_PACKET][..], &[IN_PACKET, 1, 0, 0], &[IN_PACKET, 255, 255, 255, 255, 1]] {
            rustix::net::send(&a, bytes, SendFlags::NOSIGNAL).unwrap();
            assert!(receive(&b, true).is_err(), "{bytes:?}");
        }
    }
}
