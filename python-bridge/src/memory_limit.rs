//! Memory of triggers in the interpreter lanes: each has an account per interpreter ([`crate::ffi::pymem`]).
//!
//! An account counts what the runs of its trigger, and the threads that they have started, have allocated and not given back,
//! whatever keeps it alive: the cache, a module, a thread. Beyond the limit allocations fail with `MemoryError`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use saltus_core::ids::TriggerId;

use crate::ffi::pymem::{self, Account};
use crate::ffi::pystate::InterpreterId;

/// Runs that met the limit of memory of their triggers since the start.
static MET: AtomicU64 = AtomicU64::new(0);

#[derive(Default)]
struct Accounts {
    of: HashMap<(usize, TriggerId), &'static Account>,
    /// By number less 1.
    all: Vec<&'static Account>,
}

static ACCOUNTS: RwLock<Option<Accounts>> = RwLock::new(None);

/// Runs in the interpreter lanes that wanted more memory than their triggers may hold.
pub fn memory_limits_met() -> u64 {
    MET.load(Ordering::Relaxed)
}

/// Another one.
pub fn count_met() {
    MET.fetch_add(1, Ordering::Relaxed);
}

/// The account of a trigger in an interpreter; `None` if memory is not counted in this process.
pub fn account_of(interpreter: InterpreterId, trigger: TriggerId) -> Option<&'static Account> {
    if !pymem::is_counted() {
        return None;
    }
    let mut accounts = ACCOUNTS.write();
    let Accounts { of, all } = accounts.get_or_insert_default();
    Some(of.entry((interpreter.as_usize(), trigger)).or_insert_with(|| {
        let account = Account::new(all.len() + 1);
        all.push(account);
        account
    }))
}

/// Bytes that triggers hold in an interpreter of that number.
pub fn held_in(interpreter: usize) -> u64 {
    let accounts = ACCOUNTS.read();
    let all = accounts.iter().flat_map(|accounts| &accounts.of);
    all.filter(|((of, _), _)| *of == interpreter).map(|(_, account)| account.held()).sum()
}

/// Does something on this thread, and how many bytes Python holds for it afterwards; 0 if memory is not counted in this process.
pub fn counted<R>(body: impl FnOnce() -> R) -> (R, u64) {
    if !pymem::is_counted() {
        return (body(), 0);
    }
    let account = Account::new(0);
    let done = pymem::charge(account, body);
    (done, account.held())
}

/// The number of the account that this thread is charged to; 0 if there is none.
pub fn charged_number() -> u64 {
    pymem::charged().map_or(0, |account| account.number() as u64)
}

/// Has this thread charged to the account of that number from now on, unless it is charged to one already.
pub fn charge_this_thread(number: u64) {
    let accounts = ACCOUNTS.read();
    let at = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    let account = at.and_then(|at| accounts.as_ref()?.all.get(at).copied());
    if let Some(account) = account {
        pymem::charge_this_thread(account);
    }
}
