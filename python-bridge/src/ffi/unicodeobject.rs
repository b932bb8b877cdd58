//! `unicodeobject.h`: text.

use pyo3_ffi as ffi;

use super::{Object, Py, PyResult};

impl Object {
    /// A new `str`.
    pub fn text(_py: Py, value: &str) -> PyResult {
        // SAFETY: `Py` witnesses the GIL; pointer and length are a `str`'s, so valid UTF-8.
        unsafe {
            Object::owned_or_raised(ffi::PyUnicode_FromStringAndSize(value.as_ptr().cast(), value.len() as isize))
        }
    }

    /// The interned `str` of that text: equal keys are the same object, which makes dict look-ups cheap.
    pub fn interned(py: Py, value: &str) -> PyResult {
        let mut pointer = Object::text(py, value)?.into_ptr();
        // SAFETY: `Py` witnesses the GIL; the call exchanges our reference for one to the interned object.
        unsafe { ffi::PyUnicode_InternInPlace(&mut pointer) };
        // SAFETY: the reference is ours.
        unsafe { Object::owned_or_raised(pointer) }
    }

    /// The UTF-8 of a `str`, cached in the object; `None` for other types.
    pub fn as_str(&self, _py: Py) -> Option<PyResult<&str>> {
        // SAFETY: `self` is alive; reads its type's flags.
        if unsafe { ffi::PyUnicode_Check(self.as_ptr()) } == 0 {
            return None;
        }
        let mut length = 0;
        // SAFETY: `Py` witnesses the GIL; `self` is a `str`.
        let start = unsafe { ffi::PyUnicode_AsUTF8AndSize(self.as_ptr(), &mut length) };
        if start.is_null() {
            return Some(Err(super::Raised::indicated()));
        }
        // SAFETY: CPython gives valid UTF-8 of that length, which lives as long as the object, which `self` keeps.
        Some(Ok(unsafe { std::str::from_utf8_unchecked(std::slice::from_raw_parts(start.cast(), length as usize)) }))
    }
}
