//! `pymem.h`, `objimpl.h`: what Python allocates, counted for whoever's run it is, and refused beyond a limit.
//!
//! # Mechanism
//! 1. The allocators of the domains MEM and OBJ, through which all of Python's objects and their buffers come, are wrapped. Each
//!    block has a header of 16 bytes before it: the [`Account`] that it is charged to, and its size. So it is credited to that
//!    account whichever thread of the interpreter frees it, whenever.
//! 2. A thread says whose blocks it allocates ([`charge`]). Blocks of threads that say nothing are charged to nobody.
//! 3. The stacks of Python's frames come from the arena allocator, in chunks. They are charged to the thread while its run lasts,
//!    so that a recursion without an end meets the limit too. Arenas, in which small blocks lie, have one size and are let through.
//! 4. An allocation beyond the limit fails, which CPython turns into `MemoryError`.
//!
//! What it does not see: memory that C libraries take from the system by themselves (`mmap`, SQLite, OpenSSL).
//!
//! Accounts are not locked: an account belongs to one interpreter, whose GIL is held whenever these domains are used (documented
//! in `pymem.h`); its numbers are atomic only so that others may read them.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use pyo3_ffi as ffi;

use super::Py;

/// In front of each block; as long as the alignment that Python relies on.
#[repr(C)]
struct Header {
    owner: *const Account,
    size: usize,
}

const HEADER: usize = size_of::<Header>();
const _: () = assert!(HEADER == 16, "blocks stay aligned to 16 bytes");

/// `ARENA_SIZE` of `pycore_obmalloc.h` in 3.13 and 3.14: what is not as long is a chunk of a stack.
const ARENA: usize = 1 << 20;

/// Whose memory it is: a trigger's in one interpreter. Lives as long as the process, since blocks refer to it.
#[derive(Debug, Default)]
pub struct Account {
    held: AtomicUsize,
    limit: AtomicUsize,
    peak: AtomicUsize,
    refused: AtomicU64,
    number: usize,
}

impl Account {
    /// An account that holds nothing and may hold any amount.
    pub fn new(number: usize) -> &'static Account {
        Box::leak(Box::new(Account { limit: AtomicUsize::new(usize::MAX), number, ..Account::default() }))
    }

    /// Its number.
    pub fn number(&self) -> usize {
        self.number
    }

    /// A run begins: from now on it may hold `limit` bytes.
    pub fn begin(&self, limit: u64) {
        self.limit.store(usize::try_from(limit).unwrap_or(usize::MAX), Relaxed);
        self.peak.store(self.held.load(Relaxed), Relaxed);
    }

    /// Bytes that it holds.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed) as u64
    }

    /// The most that it held since its run began, stacks included.
    pub fn peak(&self) -> u64 {
        self.peak.load(Relaxed) as u64
    }

    /// Allocations that were refused since this was asked last.
    pub fn take_refused(&self) -> u64 {
        self.refused.swap(0, Relaxed)
    }

    /// Takes `size` more bytes, beside `stack` that are not its blocks.
    fn take(&self, size: usize, stack: usize) -> bool {
        let held = self.held.load(Relaxed);
        let all = held.saturating_add(size).saturating_add(stack);
        if all > self.limit.load(Relaxed) {
            self.refused.store(self.refused.load(Relaxed) + 1, Relaxed);
            return false;
        }
        self.held.store(held + size, Relaxed);
        if all > self.peak.load(Relaxed) {
            self.peak.store(all, Relaxed);
        }
        true
    }

    fn give(&self, size: usize) {
        self.held.store(self.held.load(Relaxed).saturating_sub(size), Relaxed);
    }
}

thread_local! {
    static OWNER: Cell<Option<&'static Account>> = const { Cell::new(None) };
    static STACK: Cell<usize> = const { Cell::new(0) };
}

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Whether allocations are counted in this process.
pub fn is_counted() -> bool {
    INSTALLED.load(Relaxed)
}

/// What this thread allocates while `body` runs is charged to `account`.
pub fn charge<R>(account: &'static Account, body: impl FnOnce() -> R) -> R {
    struct Before(Option<&'static Account>, usize);
    impl Drop for Before {
        fn drop(&mut self) {
            OWNER.set(self.0);
            STACK.set(self.1);
        }
    }
    let _before = Before(OWNER.replace(Some(account)), STACK.replace(0));
    body()
}

/// What this thread allocates is charged to `account` until it ends, unless it is charged to one already.
pub fn charge_this_thread(account: &'static Account) {
    if OWNER.get().is_none() {
        OWNER.set(Some(account));
    }
}

/// Who is charged on this thread.
pub fn charged() -> Option<&'static Account> {
    OWNER.get()
}

/// Frees what only cycles of references keep alive.
pub fn collect_garbage(_py: Py) {
    // SAFETY: `Py` witnesses the GIL.
    unsafe { ffi::PyGC_Collect() };
}

/// Wraps the allocators.
///
/// # Safety
/// Between pre-initialisation and initialisation, once: blocks of the wrapped domains must not exist yet.
pub unsafe fn install() {
    for domain in [ffi::PyMemAllocatorDomain::PYMEM_DOMAIN_MEM, ffi::PyMemAllocatorDomain::PYMEM_DOMAIN_OBJ] {
        let original = Box::leak(Box::new(ffi::PyMemAllocatorEx {
            ctx: null_mut(),
            malloc: None,
            calloc: None,
            realloc: None,
            free: None,
        }));
        // SAFETY: fills the struct, and copies another; the context lives for ever.
        unsafe {
            ffi::PyMem_GetAllocator(domain, original);
            let mut wrapped = ffi::PyMemAllocatorEx {
                ctx: std::ptr::from_mut(original).cast(),
                malloc: Some(malloc),
                calloc: Some(calloc),
                realloc: Some(realloc),
                free: Some(free),
            };
            ffi::PyMem_SetAllocator(domain, &mut wrapped);
        }
    }
    let original = Box::leak(Box::new(ffi::PyObjectArenaAllocator { ctx: null_mut(), alloc: None, free: None }));
    // SAFETY: as above.
    unsafe {
        ffi::PyObject_GetArenaAllocator(original);
        let mut wrapped = ffi::PyObjectArenaAllocator {
            ctx: std::ptr::from_mut(original).cast(),
            alloc: Some(arena_alloc),
            free: Some(arena_free),
        };
        ffi::PyObject_SetArenaAllocator(&mut wrapped);
    }
    INSTALLED.store(true, Relaxed);
}

/// # Safety
/// The context of a wrapped domain.
unsafe fn original<'a>(context: *mut c_void) -> &'a ffi::PyMemAllocatorEx {
    // SAFETY: `install` has given this leaked struct as the context, and nobody writes to it.
    unsafe { &*context.cast::<ffi::PyMemAllocatorEx>() }
}

/// Charges a block, allocates it with its header, and writes that.
fn make(size: usize, allocate: impl FnOnce(usize) -> *mut c_void) -> *mut c_void {
    let Some(whole) = size.checked_add(HEADER) else { return null_mut() };
    let owner = OWNER.get();
    if let Some(owner) = owner
        && !owner.take(whole, STACK.get())
    {
        return null_mut();
    }
    let block = allocate(whole);
    if block.is_null() {
        if let Some(owner) = owner {
            owner.give(whole);
        }
        return null_mut();
    }
    let owner = owner.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the block is `whole` bytes long, aligned to 16 as pymalloc and malloc do, and nobody else has it yet.
    unsafe {
        block.cast::<Header>().write(Header { owner, size: whole });
        block.byte_add(HEADER)
    }
}

extern "C" fn malloc(context: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: CPython gives the context of the domain.
    let original = unsafe { original(context) };
    make(size, |whole| original.malloc.map_or(null_mut(), |malloc| malloc(original.ctx, whole)))
}

extern "C" fn calloc(context: *mut c_void, count: usize, each: usize) -> *mut c_void {
    let Some(size) = count.checked_mul(each) else { return null_mut() };
    // SAFETY: CPython gives the context of the domain.
    let original = unsafe { original(context) };
    make(size, |whole| original.calloc.map_or(null_mut(), |calloc| calloc(original.ctx, 1, whole)))
}

extern "C" fn realloc(context: *mut c_void, block: *mut c_void, size: usize) -> *mut c_void {
    if block.is_null() {
        return malloc(context, size);
    }
    let Some(whole) = size.checked_add(HEADER) else { return null_mut() };
    // SAFETY: CPython gives the context of the domain, and a block of it, which `make` has given a header.
    let (original, block) = unsafe { (original(context), block.byte_sub(HEADER)) };
    // SAFETY: as above; owners live for ever.
    let (before, size_before) = unsafe {
        let header = &*block.cast::<Header>();
        (header.owner.as_ref(), header.size)
    };
    // What grows is the grower's.
    let owner = OWNER.get().or(before);
    let same = match (owner, before) {
        (Some(owner), Some(before)) => std::ptr::eq(owner, before),
        _ => false,
    };
    let more = if same { whole.saturating_sub(size_before) } else { whole };
    if let Some(owner) = owner
        && more > 0
        && !owner.take(more, STACK.get())
    {
        return null_mut();
    }
    let moved = original.realloc.map_or(null_mut(), |realloc| realloc(original.ctx, block, whole));
    if moved.is_null() {
        // The old block stays as it was.
        if let Some(owner) = owner {
            owner.give(more);
        }
        return null_mut();
    }
    if same {
        owner.inspect(|owner| owner.give(size_before.saturating_sub(whole)));
    } else {
        before.inspect(|before| before.give(size_before));
    }
    let owner = owner.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the block is `whole` bytes long now and nobody else has it yet.
    unsafe {
        moved.cast::<Header>().write(Header { owner, size: whole });
        moved.byte_add(HEADER)
    }
}

extern "C" fn free(context: *mut c_void, block: *mut c_void) {
    if block.is_null() {
        return;
    }
    // SAFETY: CPython gives the context of the domain, and a block of it, which `make` has given a header; owners live for ever.
    unsafe {
        let original = original(context);
        let block = block.byte_sub(HEADER);
        let header = &*block.cast::<Header>();
        if let Some(owner) = header.owner.as_ref() {
            owner.give(header.size);
        }
        if let Some(free) = original.free {
            free(original.ctx, block);
        }
    }
}

extern "C" fn arena_alloc(context: *mut c_void, size: usize) -> *mut c_void {
    if size != ARENA
        && let Some(owner) = OWNER.get()
    {
        let stack = STACK.get() + size;
        if !owner.take(0, stack) {
            return null_mut();
        }
        STACK.set(stack);
    }
    // SAFETY: `install` has given this leaked struct as the context, and nobody writes to it.
    let original = unsafe { &*context.cast::<ffi::PyObjectArenaAllocator>() };
    original.alloc.map_or(null_mut(), |alloc| alloc(original.ctx, size))
}

extern "C" fn arena_free(context: *mut c_void, chunk: *mut c_void, size: usize) {
    if size != ARENA {
        STACK.set(STACK.get().saturating_sub(size));
    }
    // SAFETY: as in `arena_alloc`.
    let original = unsafe { &*context.cast::<ffi::PyObjectArenaAllocator>() };
    if let Some(free) = original.free {
        free(original.ctx, chunk, size);
    }
}
