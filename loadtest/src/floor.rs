//! The floor: how soon *anything* on this machine can know of a row that a client sends over loopback TCP.
//!
//! Mechanism: a thread on the processor that a shard would have reads the very requests that Saltus is sent, takes the time as its first
//! act after the read, and answers. It parses nothing, stores nothing and runs no Python. It waits as a program can wait:
//! [`Waiting::Asleep`] in a blocking read, as PostgreSQL does, or [`Waiting::Polling`], as a shard with `--busy-poll` does.
//! What a server takes beyond this is its own; what the floor takes is the kernel's and, on a virtual machine, the hypervisor's.
//!
//! A floor of durable rows ([`Disk`]) also writes one block past the page cache, with O_DSYNC, between the read and the time: what the
//! drive takes, and what its tail is, beside the figures of those who wait for it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::OFlags;

use crate::http::{Connection, Target};
use crate::open_loop::{Sink, now_ns, pin_to};

/// After so long without a row a polling floor sleeps, so that it is in nobody's way while others are measured.
const POLLS_FOR_NS: u64 = 20_000_000;

/// How the floor waits for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// In a read that blocks.
    Asleep,
    /// In a loop of reads that do not.
    Polling,
}

/// Bytes of a block, and what it is aligned to.
const BLOCK: usize = 4096;
/// Blocks of the file, which are written over and over.
const BLOCKS: u64 = 1024;

/// A file of zeros on the drive, whose blocks are overwritten as the log's are.
pub struct Disk {
    file: File,
    /// Twice a block, so that one of them is aligned.
    memory: Vec<u8>,
    next: u64,
}

impl Disk {
    /// Makes a file in `folder`; it has no name any more, so it goes with the value.
    ///
    /// # Errors
    /// What the file system says; that O_DIRECT is not to be had is none.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("floor");
        std::fs::write(&path, vec![0; BLOCK * BLOCKS as usize]).context("writing the floor's file")?;
        File::open(&path)?.sync_all()?;
        let open =
            |flags: OFlags| std::fs::OpenOptions::new().write(true).custom_flags(flags.bits() as i32).open(&path);
        let file = open(OFlags::DIRECT | OFlags::DSYNC).or_else(|_| open(OFlags::DSYNC))?;
        std::fs::remove_file(&path)?;
        Ok(Self { file, memory: vec![0; 2 * BLOCK], next: 0 })
    }

    /// Makes a block durable.
    fn write(&mut self) -> std::io::Result<()> {
        let begin = self.memory.as_ptr().align_offset(BLOCK);
        self.file.write_all_at(&self.memory[begin..begin + BLOCK], self.next % BLOCKS * BLOCK as u64)?;
        self.next += 1;
        Ok(())
    }
}

/// Nanoseconds from due to read, and durable, by row.
type Seen = Arc<Mutex<HashMap<u64, u64>>>;

/// A floor, and a connection to it. Its thread ends when the connection does.
pub struct Floor {
    connection: Connection,
    seen: Seen,
}

impl Floor {
    /// Starts one on processor `cpu`, if that is said; of durable rows with a disk.
    ///
    /// # Errors
    /// No socket or no thread can be had.
    pub fn open(waiting: Waiting, cpu: Option<usize>, mut disk: Option<Disk>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listening on a free port")?;
        let authority = listener.local_addr()?.to_string();
        let seen = Seen::default();
        let kept = seen.clone();
        std::thread::Builder::new().name("floor".to_owned()).spawn(move || {
            if let Some(cpu) = cpu {
                // Elsewhere it would be the floor of another machine, but of one that is there.
                let _ = pin_to(cpu);
            }
            // The end of the connection is the end of the thread; whoever sends rows says what went wrong.
            let _ = listener.accept().and_then(|(stream, _)| serve(stream, waiting, &mut disk, &kept));
        })?;
        Ok(Self { connection: Connection::open(&Target { authority, token: None })?, seen })
    }

    /// Nanoseconds from due to read, and durable, of the rows from `first` on.
    pub fn entries(&mut self, first: u64) -> HashMap<u64, u64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|number, _| *number >= first);
        seen.clone()
    }
}

impl Sink for Floor {
    fn send(&mut self, number: u64, due_ns: u64) -> anyhow::Result<()> {
        let line = format!("floor n={number}i,due={due_ns}i");
        self.connection.post("/api/v3/write_lp?db=lanes&precision=ns&no_sync=true", line.as_bytes())?;
        Ok(())
    }
}

fn serve(mut stream: TcpStream, waiting: Waiting, disk: &mut Option<Disk>, seen: &Seen) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut block = [0; 4096];
    loop {
        let count = match waiting {
            Waiting::Asleep => stream.read(&mut block)?,
            Waiting::Polling => poll(&mut stream, &mut block)?,
        };
        if let (Some(disk), true) = (disk.as_mut(), count > 0) {
            disk.write()?;
        }
        let read_ns = now_ns();
        if count == 0 {
            return Ok(());
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
        if let Some((number, due_ns)) = row(&block[..count]) {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.insert(number, read_ns.saturating_sub(due_ns));
        }
    }
}

/// Reads without sleeping, for some time.
fn poll(stream: &mut TcpStream, block: &mut [u8]) -> std::io::Result<usize> {
    stream.set_nonblocking(true)?;
    let until = now_ns() + POLLS_FOR_NS;
    let polled = loop {
        match stream.read(block) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && now_ns() < until => std::hint::spin_loop(),
            other => break other,
        }
    };
    stream.set_nonblocking(false)?;
    match polled {
        Err(error) if error.kind() == ErrorKind::WouldBlock => stream.read(block),
        other => other,
    }
}

/// The number and the due time of a row at the end of a request.
fn row(request: &[u8]) -> Option<(u64, u64)> {
    let (_, fields) = std::str::from_utf8(request).ok()?.rsplit_once(" n=")?;
    let (number, due) = fields.strip_suffix('i')?.split_once("i,due=")?;
    Some((number.parse().ok()?, due.parse().ok()?))
}

/// How long after the last acknowledgement the floor may still note a row.
pub const NOTES_WITHIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_floor_see_every_row_after_it_was_due() {
        let folder = tempfile::tempdir().unwrap();
        let disks = [None, Some(Disk::open(folder.path()).unwrap())];
        for (waiting, disk) in [Waiting::Asleep, Waiting::Polling].into_iter().zip(disks) {
            let mut floor = Floor::open(waiting, None, disk).unwrap();
            for number in 1..=5 {
                // The pause is longer than a polling floor polls.
                std::thread::sleep(Duration::from_millis(25) * u32::from(number == 3));
                floor.send(number, now_ns()).unwrap();
            }
            crate::open_loop::until("five rows", NOTES_WITHIN, || Ok((floor.entries(1).len() == 5).then_some(())))
                .unwrap();
            assert_eq!(floor.entries(4).len(), 2);
            assert!(floor.entries(4).values().all(|after| *after > 0 && *after < 10_000_000_000));
        }
    }
}
