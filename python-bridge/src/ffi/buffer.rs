//! `pybuffer.h`: memory of Arrow arrays as `memoryview`.

use std::ffi::{CStr, c_int, c_void};

use pyo3_ffi as ffi;

use super::pyerrors::Builtin;
use super::typeobject::Payload;
use super::{Py, Raised, trampoline};

/// Contiguous read-only items of one size.
pub struct BufferView {
    /// The first item.
    pub start: *const c_void,
    /// Bytes of one item.
    pub item_bytes: usize,
    /// How many.
    pub items: usize,
    /// As in the `struct` module.
    pub format: &'static CStr,
}

/// A payload whose memory Python may look at.
///
/// The memory of the view must live, unmoved and unchanged, as long as the payload.
pub trait BufferSource: Payload {
    /// The view, or why there is none.
    fn view(&self) -> Result<BufferView, String>;
}

/// What a `Py_buffer` points to besides the data; owned by it.
struct Shape {
    items: ffi::Py_ssize_t,
    stride: ffi::Py_ssize_t,
}

/// `bf_getbuffer`.
pub(super) unsafe extern "C" fn get<T: BufferSource>(
    object: *mut ffi::PyObject,
    out: *mut ffi::Py_buffer,
    flags: c_int,
) -> c_int {
    // SAFETY: `out` is a Py_buffer; on failure its `obj` must be null.
    unsafe { (*out).obj = std::ptr::null_mut() };
    let body = |py: Py| {
        // SAFETY: CPython calls this slot with an instance of the type that has it, which has a payload of type `T`.
        let view = unsafe { super::typeobject::payload_of::<T>(object) }.view();
        let refuse = |text: &str| Err(Raised::new(py, Builtin::Buffer, text));
        let view = match view {
            Ok(view) if flags & ffi::PyBUF_WRITABLE != 0 => {
                let _ = view;
                return refuse("columns are read-only");
            }
            Ok(view) => view,
            Err(text) => return refuse(&text),
        };
        let shape =
            Box::new(Shape { items: view.items as ffi::Py_ssize_t, stride: view.item_bytes as ffi::Py_ssize_t });
        // SAFETY: `out` is a Py_buffer to be filled; the shape is freed by `release`, which CPython calls once.
        unsafe {
            let wants = |flag| flags & flag == flag;
            let shape = Box::into_raw(shape);
            (*out).buf = view.start.cast_mut();
            (*out).len = (view.items * view.item_bytes) as ffi::Py_ssize_t;
            (*out).itemsize = view.item_bytes as ffi::Py_ssize_t;
            (*out).readonly = 1;
            (*out).ndim = 1;
            (*out).format =
                if wants(ffi::PyBUF_FORMAT) { view.format.as_ptr().cast_mut() } else { std::ptr::null_mut() };
            (*out).shape = if wants(ffi::PyBUF_ND) { &raw mut (*shape).items } else { std::ptr::null_mut() };
            (*out).strides = if wants(ffi::PyBUF_STRIDES) { &raw mut (*shape).stride } else { std::ptr::null_mut() };
            (*out).suboffsets = std::ptr::null_mut();
            (*out).internal = shape.cast();
            ffi::Py_INCREF(object);
            (*out).obj = object;
        }
        Ok(0)
    };
    // SAFETY: called by CPython with the GIL held.
    unsafe { trampoline::enter(-1, body) }
}

/// `bf_releasebuffer`.
pub(super) unsafe extern "C" fn release(_object: *mut ffi::PyObject, view: *mut ffi::Py_buffer) {
    // SAFETY: CPython calls this once for a view that `get` filled; `internal` is the box made there.
    drop(unsafe { Box::from_raw((*view).internal.cast::<Shape>()) });
}
