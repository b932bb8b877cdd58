//! The in-memory twin of a directory of segments, for tests and simulations.
//!
//! **Fault model**, per operation:
//! - a write may fail (any error, nothing or a first part of it written), and may be short;
//! - fdatasync may fail; what was written since the last good one is then lost at a crash, as on a real kernel that
//!   drops dirty pages after a failed write-back;
//! - creating a file, removing one, syncing names and registering a segment may fail;
//! - [`MemoryDir::crash`] keeps what was synced under names that were synced. Of the writes since then it keeps, for
//!   each block of 512 bytes, old or new as a seed says: a device may write blocks in any order.
//!
//! It does not model reads that fail, misdirected writes or decay: tests of recovery change the bytes themselves.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::{WalBuffer, WalDir, WalFile};

/// Bytes that a device writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`WalDir::create`].
    Create,
    /// [`WalFile::write_at`].
    Write,
    /// [`WalFile::sync_data`].
    SyncData,
    /// [`WalDir::sync_names`].
    SyncNames,
    /// [`WalDir::register`].
    Register,
}

/// What happens then.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The operation fails with this number of the operating system and does nothing.
    Error(i32),
    /// A write writes this many bytes and says so.
    Short(usize),
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, FileState>,
    /// Faults to come: the operation, how many of its kind pass before, and what happens.
    faults: VecDeque<(Operation, usize, Fault)>,
    /// How many operations of each kind were tried.
    writes: usize,
    syncs: usize,
    /// What was registered last.
    registered: Option<(u64, Vec<(u32, u64)>)>,
}

#[derive(Clone, Debug, Default)]
struct FileState {
    written: Vec<u8>,
    synced: Vec<u8>,
    name_synced: bool,
}

/// A directory in memory; clones are the same directory.
#[derive(Clone, Debug, Default)]
pub struct MemoryDir {
    state: Rc<RefCell<State>>,
}

impl MemoryDir {
    /// Lets the operation after the next `passing` ones of that kind fail. Faults of one kind queue behind each other.
    pub fn inject(&self, operation: Operation, passing: usize, fault: Fault) {
        self.state.borrow_mut().faults.push_back((operation, passing, fault));
    }

    /// Files and what was written to them, synced or not.
    pub fn written(&self) -> BTreeMap<String, Vec<u8>> {
        self.state.borrow().files.iter().map(|(name, file)| (name.clone(), file.written.clone())).collect()
    }

    /// How many writes and fdatasyncs were tried.
    pub fn operations(&self) -> (usize, usize) {
        let state = self.state.borrow();
        (state.writes, state.syncs)
    }

    /// What the manifest knows: the id of the first segment, and the last segments with their lengths.
    pub fn registered(&self) -> Option<(u64, Vec<(u32, u64)>)> {
        self.state.borrow().registered.clone()
    }

    /// What a crash at this moment leaves. `seed` decides over every sector that was written and not synced.
    pub fn crash(&self, seed: u64) -> BTreeMap<String, Vec<u8>> {
        let mut random = seed;
        let state = self.state.borrow();
        let survivors = state.files.iter().filter(|(_, file)| file.name_synced);
        survivors.map(|(name, file)| (name.clone(), torn(file, &mut random))).collect()
    }

    /// Writes files, such as [`MemoryDir::crash`] gives, below `path`, for recovery to read.
    ///
    /// # Errors
    /// What the file system says.
    pub fn store(files: &BTreeMap<String, Vec<u8>>, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)?;
        files.iter().try_for_each(|(name, bytes)| std::fs::write(path.join(name), bytes))
    }

    fn fault(&self, operation: Operation) -> Option<Fault> {
        let mut state = self.state.borrow_mut();
        let at = state.faults.iter().position(|(kind, ..)| *kind == operation)?;
        if state.faults[at].1 > 0 {
            state.faults[at].1 -= 1;
            return None;
        }
        state.faults.remove(at).map(|(_, _, fault)| fault)
    }

    /// The error of a fault that knows nothing but errors.
    fn check(&self, operation: Operation) -> io::Result<()> {
        match self.fault(operation) {
            Some(Fault::Error(code)) => Err(io::Error::from_raw_os_error(code)),
            _ => Ok(()),
        }
    }
}

/// The synced bytes of a file with some of the later sectors.
fn torn(file: &FileState, random: &mut u64) -> Vec<u8> {
    let mut bytes = file.synced.clone();
    if file.written.len() > bytes.len() && next(random) & 1 == 0 {
        bytes.resize(file.written.len(), 0);
    }
    let end = bytes.len();
    for (old, new) in bytes.chunks_mut(SECTOR_BYTES).zip(file.written[..end].chunks(SECTOR_BYTES)) {
        if next(random) & 1 == 0 {
            old.copy_from_slice(new);
        }
    }
    bytes
}

/// splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl WalBuffer for Vec<u8> {
    fn as_slice(&self) -> &[u8] {
        self
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        self
    }

    fn truncate(&mut self, len: usize) {
        Vec::truncate(self, len);
    }
}

impl WalDir for MemoryDir {
    type Buffer = Vec<u8>;
    type File = MemoryFile;

    fn path_of(&self, name: &str) -> PathBuf {
        Path::new("memory").join(name)
    }

    fn allocate(&self, len: usize) -> Vec<u8> {
        // Not zero, as memory that was used before is not.
        vec![0xA5; len]
    }

    async fn register(&self, first_id: u64, tail: &[(u32, u64)]) -> io::Result<()> {
        YieldOnce(false).await;
        self.check(Operation::Register)?;
        self.state.borrow_mut().registered = Some((first_id, tail.to_vec()));
        Ok(())
    }

    async fn create(&self, name: &str) -> io::Result<MemoryFile> {
        self.check(Operation::Create)?;
        let name_synced = self.state.borrow().files.get(name).is_some_and(|f| f.name_synced);
        let file = FileState { name_synced, ..FileState::default() };
        self.state.borrow_mut().files.insert(name.to_owned(), file);
        Ok(MemoryFile { dir: self.clone(), name: name.to_owned() })
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.state.borrow_mut().files.remove(name);
        Ok(())
    }

    async fn sync_names(&self) -> io::Result<()> {
        self.check(Operation::SyncNames)?;
        self.state.borrow_mut().files.values_mut().for_each(|f| f.name_synced = true);
        Ok(())
    }
}

/// A file in a [`MemoryDir`]. Each operation takes one turn of the executor, as a real one does.
#[derive(Debug)]
pub struct MemoryFile {
    dir: MemoryDir,
    name: String,
}

impl WalFile for MemoryFile {
    type Buffer = Vec<u8>;

    async fn write_at(&self, buffer: Vec<u8>, offset: u64) -> (io::Result<usize>, Vec<u8>) {
        YieldOnce(false).await;
        self.dir.state.borrow_mut().writes += 1;
        let len = match self.dir.fault(Operation::Write) {
            Some(Fault::Error(code)) => return (Err(io::Error::from_raw_os_error(code)), buffer),
            Some(Fault::Short(len)) => len.min(buffer.len()),
            None => buffer.len(),
        };
        let mut state = self.dir.state.borrow_mut();
        if let Some(file) = state.files.get_mut(&self.name) {
            let start = offset as usize;
            let end = start + len;
            if file.written.len() < end {
                file.written.resize(end, 0);
            }
            file.written[start..end].copy_from_slice(&buffer[..len]);
        }
        (Ok(len), buffer)
    }

    async fn sync_data(&self) -> io::Result<()> {
        YieldOnce(false).await;
        self.dir.state.borrow_mut().syncs += 1;
        let result = self.dir.check(Operation::SyncData);
        let mut state = self.dir.state.borrow_mut();
        if let Some(file) = state.files.get_mut(&self.name) {
            match result {
                Ok(()) => file.synced.clone_from(&file.written),
                Err(_) => file.written.clone_from(&file.synced),
            }
        }
        result
    }

    async fn close(self) -> io::Result<()> {
        Ok(())
    }
}

/// Pending once.
struct YieldOnce(bool);

impl Future for YieldOnce {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
