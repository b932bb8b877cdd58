//! `sysmodule.h`: audit events, by which CPython says what it is about to do.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3_ffi as ffi;

use super::{Object, Py, PyResult, trampoline};

type Hook = unsafe extern "C" fn(*const c_char, *mut ffi::PyObject, *mut c_void) -> c_int;

// pyo3-ffi does not declare it.
unsafe extern "C" {
    fn PySys_AddAuditHook(hook: Hook, data: *mut c_void) -> c_int;
}

/// Hears an event on a thread that asked for it; an exception keeps it from happening.
pub type Listener = fn(Py, event: &str, arguments: &Object) -> PyResult<()>;

static LISTENER: OnceLock<Listener> = OnceLock::new();

static EVERYWHERE: AtomicBool = AtomicBool::new(false);

thread_local! {
    static LISTENING: Cell<bool> = const { Cell::new(false) };
}

/// Has `listener` hear the events of all interpreters, on threads that [`listen`]. Once, before the runtime is initialised.
///
/// # Errors
/// Out of memory.
pub fn install(listener: Listener) -> Result<(), String> {
    LISTENER.get_or_init(|| listener);
    // SAFETY: may be called before initialisation (documented); the hook lives as long as the process and needs no data.
    match unsafe { PySys_AddAuditHook(hook, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err("the audit hook could not be added".to_owned()),
    }
}

/// From now on imports and calls of `ctypes` are heard on every thread. Once Python is initialised.
pub fn hear_imports_everywhere() {
    EVERYWHERE.store(true, Ordering::Relaxed);
}

/// Whether events of this thread are heard.
pub fn is_listening(_py: Py) -> bool {
    LISTENING.get()
}

/// Whether events of this thread are heard from now on. Only while it is attached.
pub fn listen(_py: Py, on: bool) {
    LISTENING.set(on);
}

unsafe extern "C" fn hook(event: *const c_char, arguments: *mut ffi::PyObject, _data: *mut c_void) -> c_int {
    // Also called without an interpreter, but not on a thread that listens.
    let Some(listener) = LISTENER.get() else { return 0 };
    // SAFETY: the name of an event is a static text.
    let event = unsafe { CStr::from_ptr(event) }.to_str().unwrap_or_default();
    let everywhere = EVERYWHERE.load(Ordering::Relaxed) && (event == "import" || event.starts_with("ctypes."));
    if !everywhere && !LISTENING.get() {
        return 0;
    }
    // SAFETY: the thread listens, or the event is one of Python code: it is attached, and CPython raises events of Python
    // code under the GIL; the arguments are a live tuple for the length of the call.
    unsafe { trampoline::enter(-1, |py| listener(py, event, &Object::from_borrowed(arguments)).map(|()| 0)) }
}
