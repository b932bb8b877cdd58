//! `pyerrors.h`: the error indicator.

use std::ffi::CString;
use std::marker::PhantomData;

use pyo3_ffi as ffi;

use super::{Object, Py};

/// Says that this thread's error indicator is set. Whoever drops it without [`Raised::take`] must return to Python.
#[derive(Debug)]
pub struct Raised {
    _not_send: PhantomData<*mut ()>,
}

/// What a call into Python comes to.
pub type PyResult<T = Object> = Result<T, Raised>;

/// Exception classes that the bridge raises itself.
#[derive(Clone, Copy)]
pub enum Builtin {
    /// `TypeError`
    Type,
    /// `ValueError`
    Value,
    /// `RuntimeError`
    Runtime,
    /// `BufferError`
    Buffer,
    /// `ImportError`
    Import,
    /// `ModuleNotFoundError`
    ModuleNotFound,
    /// `Exception` itself
    Exception,
    /// `KeyboardInterrupt`
    KeyboardInterrupt,
}

impl Raised {
    pub(super) fn indicated() -> Self {
        Raised { _not_send: PhantomData }
    }

    /// Raises a builtin exception.
    pub fn new(_py: Py, class: Builtin, message: &str) -> Raised {
        // SAFETY: reads the addresses of static exception classes, set when the runtime was initialised.
        let class = unsafe {
            match class {
                Builtin::Type => ffi::PyExc_TypeError,
                Builtin::Value => ffi::PyExc_ValueError,
                Builtin::Runtime => ffi::PyExc_RuntimeError,
                Builtin::Buffer => ffi::PyExc_BufferError,
                Builtin::Import => ffi::PyExc_ImportError,
                Builtin::ModuleNotFound => ffi::PyExc_ModuleNotFoundError,
                Builtin::Exception => ffi::PyExc_Exception,
                Builtin::KeyboardInterrupt => ffi::PyExc_KeyboardInterrupt,
            }
        };
        // SAFETY: `Py` witnesses the GIL; the class is a live exception class.
        unsafe { set(class, message) }
    }

    /// Raises an exception of `class`.
    pub fn of(_py: Py, class: &Object, message: &str) -> Raised {
        // SAFETY: `Py` witnesses the GIL; if `class` is no exception class CPython raises SystemError instead.
        unsafe { set(class.as_ptr(), message) }
    }

    /// Clears the indicator and gives the exception.
    pub fn take(self, py: Py) -> Object {
        // SAFETY: `Py` witnesses the GIL; the result is null or owned by us.
        let exception = unsafe { Object::owned_or_none(ffi::PyErr_GetRaisedException()) };
        exception.unwrap_or_else(|| Object::none(py))
    }
}

/// # Safety
/// The thread holds the GIL and `class` is a live object.
unsafe fn set(class: *mut ffi::PyObject, message: &str) -> Raised {
    let message = CString::new(message.replace('\0', "\\0")).unwrap_or_default();
    // SAFETY: the caller guarantees GIL and class; the text ends with a zero and is UTF-8.
    unsafe { ffi::PyErr_SetString(class, message.as_ptr()) };
    Raised::indicated()
}

/// Prints an exception that nobody can receive to the interpreter's `sys.stderr`, that is, to the log.
pub fn write_unraisable(_py: Py, _raised: Raised) {
    // SAFETY: `Py` witnesses the GIL; null says that there is no object to blame.
    unsafe { ffi::PyErr_WriteUnraisable(std::ptr::null_mut()) };
}
