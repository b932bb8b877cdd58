//! `pycore_ceval.h`: asking an interpreter from outside, without its GIL, to call a function soon.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use pyo3_ffi as ffi;

use super::pystate::InterpreterId;
use super::{Object, Py, Raised, trampoline};

type PendingFunction = unsafe extern "C" fn(*mut c_void) -> c_int;
/// `_PyEval_AddPendingCall(interp, func, arg, flags)`, exported though private since 3.12; the same in 3.13 and 3.14.
type AddPendingCall = unsafe extern "C" fn(*mut ffi::PyInterpreterState, PendingFunction, *mut c_void, c_int) -> c_int;

/// What a pending call decides to do.
pub enum Interrupt {
    /// The run is over.
    Nothing,
    /// The run is on this thread: raise now; again at the next chance if `repeat`.
    Raise {
        /// Ask for another call before raising.
        repeat: bool,
    },
    /// The run is on the Python thread with that identity.
    RaiseIn(u64),
}

/// Decides about a ticket; called under the GIL on some thread of the interpreter.
pub type Decide = fn(ticket: u64) -> Interrupt;

static DECIDE: OnceLock<Decide> = OnceLock::new();

/// Says who decides. Once, before the first [`interrupt_soon`].
pub fn set_decide(decide: Decide) {
    DECIDE.get_or_init(|| decide);
}

fn add_pending_call() -> Option<AddPendingCall> {
    static FOUND: OnceLock<Option<AddPendingCall>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: the name ends with a zero; RTLD_DEFAULT searches what is loaded.
        let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_PyEval_AddPendingCall".as_ptr()) };
        // SAFETY: the symbol has this signature in the versions that the build accepts; null is `None`.
        unsafe { std::mem::transmute::<*mut c_void, Option<AddPendingCall>>(symbol) }
    })
}

/// Whether this libpython exports what [`interrupt_soon`] needs.
pub fn can_interrupt() -> bool {
    add_pending_call().is_some()
}

/// Makes the interpreter ask [`Decide`] about `ticket` the next time it can. Takes no GIL; from any thread.
/// False if its queue is full (then it has not come to its calls for long, and another will do).
pub fn interrupt_soon(interpreter: InterpreterId, ticket: u64) -> bool {
    let Some(add) = add_pending_call() else { return false };
    // SAFETY: interpreters are never destroyed, so the pointer is good; the call locks only the interpreter's queue.
    unsafe { add(interpreter.as_ptr(), pending, ticket as usize as *mut c_void, 0) == 0 }
}

unsafe extern "C" fn pending(argument: *mut c_void) -> c_int {
    // SAFETY: CPython makes pending calls under the GIL.
    unsafe {
        trampoline::enter(-1, |py| {
            let ticket = argument as usize as u64;
            match DECIDE.get().map_or(Interrupt::Nothing, |decide| decide(ticket)) {
                Interrupt::Nothing => Ok(0),
                Interrupt::Raise { repeat } => {
                    if repeat {
                        interrupt_soon(super::pystate::current_interpreter(py), ticket);
                    }
                    let class = timeout_class(py)?;
                    ffi::PyErr_SetNone(class.as_ptr());
                    Err(Raised::indicated())
                }
                Interrupt::RaiseIn(thread) => {
                    let class = timeout_class(py)?;
                    super::pystate::set_async_exception(py, thread, Some(&class));
                    Ok(0)
                }
            }
        })
    }
}

/// Asked for in the middle of some plugin's frame, whose globals may be anything.
fn timeout_class(py: Py) -> super::PyResult {
    Object::imported(py, "saltus.errors")?.getattr(py, "PluginTimeout")
}
