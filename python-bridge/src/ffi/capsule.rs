//! `pycapsule.h`: the Arrow PyCapsule interface. Each capsule owns one C struct of the Arrow C data interface; a consumer
//! that takes the struct's content sets its `release` to null, so dropping the struct afterwards does nothing.

use std::ffi::{CStr, c_void};

use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema};
use arrow::ffi_stream::FFI_ArrowArrayStream;
use pyo3_ffi as ffi;

use super::{Object, Py, PyResult, Raised};

/// A C struct that travels in a capsule of a fixed name.
pub trait Exported: 'static {
    /// The name that the interface prescribes.
    const NAME: &'static CStr;
}

impl Exported for FFI_ArrowSchema {
    const NAME: &'static CStr = c"arrow_schema";
}

impl Exported for FFI_ArrowArray {
    const NAME: &'static CStr = c"arrow_array";
}

impl Exported for FFI_ArrowArrayStream {
    const NAME: &'static CStr = c"arrow_array_stream";
}

/// A new capsule that owns `value`.
pub fn capsule<T: Exported>(_py: Py, value: T) -> PyResult {
    let pointer = Box::into_raw(Box::new(value));
    // SAFETY: `Py` witnesses the GIL; the pointer is not null and `destroy::<T>` knows its type.
    let capsule = unsafe { ffi::PyCapsule_New(pointer.cast::<c_void>(), T::NAME.as_ptr(), Some(destroy::<T>)) };
    if capsule.is_null() {
        // SAFETY: nobody else has the pointer when no capsule was made.
        drop(unsafe { Box::from_raw(pointer) });
        return Err(Raised::indicated());
    }
    // SAFETY: a new reference.
    unsafe { Object::owned_or_raised(capsule) }
}

unsafe extern "C" fn destroy<T: Exported>(capsule: *mut ffi::PyObject) {
    // SAFETY: CPython calls this once, for a capsule that `capsule::<T>` made, with the GIL held.
    let pointer = unsafe { ffi::PyCapsule_GetPointer(capsule, T::NAME.as_ptr()) }.cast::<T>();
    if !pointer.is_null() {
        // SAFETY: the pointer came from `Box::into_raw` of a `T`, and the capsule is gone.
        drop(unsafe { Box::from_raw(pointer) });
    }
}
