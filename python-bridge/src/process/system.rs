//! What the process lane needs of the system that has no safe interface: three calls.
#![allow(unsafe_code, reason = "two system calls and a mapping that no safe crate offers; each says why it is sound")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use rustix::fs::SealFlags;

/// Seals that make a file's content unchangeable for good.
pub const IMMUTABLE: SealFlags =
    SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// Maps a memory file that can change no more. The mapping lives as long as the last slice of it.
///
/// # Errors
/// The file is not sealed, or what the system said.
pub fn map(file: &OwnedFd) -> io::Result<Bytes> {
    if !rustix::fs::fcntl_get_seals(file)?.contains(IMMUTABLE) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the shared memory is not sealed"));
    }
    // SAFETY: a mapping must not change while it is read: the kernel lets nobody write to, cut or grow a file with these
    // seals, and they cannot be taken off.
    let mapping: Mmap = unsafe { MmapOptions::new().map_copy_read_only(file)? };
    Ok(Bytes::from_owner(mapping))
}

/// Takes over standard input, which a worker is given its socket as, and closes what else was inherited: afterwards
/// the process has the socket and descriptors 0 to 2, of which 0 and 1 lead nowhere.
///
/// # Errors
/// What the system said.
pub fn take_socket() -> io::Result<OwnedFd> {
    // SAFETY: the first thing that a worker does, on its only thread: nobody in this process owns a descriptor above 2
    // yet, so none is closed under its owner.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if closed != 0 {
        return Err(io::Error::last_os_error());
    }
    let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?;
    let nowhere = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nowhere)?;
    rustix::stdio::dup2_stdout(&nowhere)?;
    Ok(socket)
}

/// Ends this process now: no destructors, no handlers, as other threads may be in any code.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}
