//! `object.h`: owned references, and the witness that this thread may use them.

use std::marker::PhantomData;
use std::ptr::NonNull;

use pyo3_ffi as ffi;

use super::{PyResult, Raised};

/// Witness that this thread is attached to its interpreter and holds its GIL. Costs nothing.
#[derive(Clone, Copy)]
pub struct Py {
    _not_send: PhantomData<*mut ()>,
}

impl Py {
    /// # Safety
    /// The calling thread holds the GIL of its interpreter, and keeps it while the witness or a copy is used.
    pub(super) unsafe fn assume_attached() -> Self {
        Py { _not_send: PhantomData }
    }
}

/// An owned reference to a Python object. Not null, not `Send`.
pub struct Object(NonNull<ffi::PyObject>);

impl Object {
    /// Takes over a new reference that a call returned, or learns that it raised.
    ///
    /// # Safety
    /// `pointer` is null with the error indicator set, or a reference that the caller owns.
    pub(super) unsafe fn owned_or_raised(pointer: *mut ffi::PyObject) -> PyResult<Object> {
        NonNull::new(pointer).map(Object).ok_or(Raised::indicated())
    }

    /// # Safety
    /// `pointer` is null, or a reference that the caller owns.
    pub(super) unsafe fn owned_or_none(pointer: *mut ffi::PyObject) -> Option<Object> {
        NonNull::new(pointer).map(Object)
    }

    /// A new reference to a borrowed object.
    ///
    /// # Safety
    /// `pointer` points to a live object of this thread's interpreter, and this thread holds the GIL.
    pub(super) unsafe fn from_borrowed(pointer: *mut ffi::PyObject) -> Object {
        // SAFETY: the caller guarantees a live object and the GIL.
        unsafe { ffi::Py_INCREF(pointer) };
        // SAFETY: a live object's address is not null.
        Object(unsafe { NonNull::new_unchecked(pointer) })
    }

    /// The address, borrowed.
    pub(super) fn as_ptr(&self) -> *mut ffi::PyObject {
        self.0.as_ptr()
    }

    /// The address; the reference is now the caller's to release.
    pub(super) fn into_ptr(self) -> *mut ffi::PyObject {
        let pointer = self.as_ptr();
        std::mem::forget(self);
        pointer
    }

    /// `None`.
    pub fn none(_py: Py) -> Object {
        // SAFETY: `Py` witnesses the GIL; None is immortal.
        unsafe { Object::from_borrowed(ffi::Py_None()) }
    }

    /// `True` or `False`.
    pub fn bool(_py: Py, value: bool) -> Object {
        // SAFETY: `Py` witnesses the GIL; both are immortal.
        unsafe { Object::from_borrowed(if value { ffi::Py_True() } else { ffi::Py_False() }) }
    }

    /// Whether both are the same object.
    pub fn is(&self, other: &Object) -> bool {
        self.0 == other.0
    }

    /// Whether it is `None`.
    pub fn is_none(&self) -> bool {
        // SAFETY: only compares addresses.
        std::ptr::eq(self.as_ptr(), unsafe { ffi::Py_None() })
    }
}

impl Clone for Object {
    fn clone(&self) -> Self {
        // SAFETY: module invariant 2: this thread holds the GIL, and `self` keeps the object alive.
        unsafe { Object::from_borrowed(self.as_ptr()) }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: module invariant 2: this thread holds the GIL; the reference is ours.
        unsafe { ffi::Py_DECREF(self.as_ptr()) };
    }
}
