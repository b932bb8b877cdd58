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

/// Takes an array out of the two capsules that `__arrow_c_array__` returned; shares their buffers.
///
/// Trusts the producer as the interface demands: for tests and for values that came from our own types.
pub fn import_array(py: Py, schema: &Object, array: &Object) -> PyResult<arrow::array::ArrayData> {
    // SAFETY: `Py` witnesses the GIL; a wrong capsule gives null with the indicator set.
    let schema = unsafe { ffi::PyCapsule_GetPointer(schema.as_ptr(), FFI_ArrowSchema::NAME.as_ptr()) };
    // SAFETY: as above.
    let array = unsafe { ffi::PyCapsule_GetPointer(array.as_ptr(), FFI_ArrowArray::NAME.as_ptr()) };
    if schema.is_null() || array.is_null() {
        return Err(Raised::indicated());
    }
    // SAFETY: capsules of these names hold these structs, by the interface; the array's content is moved out.
    let (array, schema) = unsafe {
        (FFI_ArrowArray::from_raw(array.cast()), &*schema.cast::<FFI_ArrowSchema>())
    };
    // SAFETY: both describe the same data, as the producer promised by returning them together.
    unsafe { arrow::ffi::from_ffi(array, schema) }
        .map_err(|e| Raised::new(py, super::pyerrors::Builtin::ValueError, &e.to_string()))
}
