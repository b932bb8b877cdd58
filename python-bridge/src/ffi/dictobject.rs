//! `dictobject.h`: dicts, and the fast way to many dicts of the same keys.

use std::ffi::c_void;
use std::sync::OnceLock;

use pyo3_ffi as ffi;

use super::{Object, Py, PyResult, Raised};

impl Object {
    /// A new `dict`.
    pub fn dict(_py: Py) -> PyResult {
        // SAFETY: `Py` witnesses the GIL.
        unsafe { Object::owned_or_raised(ffi::PyDict_New()) }
    }

    /// `dict.__setitem__(self, key, value)`.
    pub fn dict_set(&self, _py: Py, key: &Object, value: &Object) -> PyResult<()> {
        // SAFETY: `Py` witnesses the GIL; all objects are alive; a non-dict raises.
        match unsafe { ffi::PyDict_SetItem(self.as_ptr(), key.as_ptr(), value.as_ptr()) } {
            0 => Ok(()),
            _ => Err(Raised::indicated()),
        }
    }

    /// `dict.get(self, key)`, without any override.
    pub fn dict_get(&self, py: Py, key: &Object) -> PyResult<Option<Object>> {
        // SAFETY: `Py` witnesses the GIL; both objects are alive.
        let found = unsafe { ffi::PyDict_GetItemWithError(self.as_ptr(), key.as_ptr()) };
        if !found.is_null() {
            // SAFETY: a borrowed reference to a live object, under the GIL.
            return Ok(Some(unsafe { Object::from_borrowed(found) }));
        }
        let _ = py;
        // SAFETY: asks this thread's indicator.
        if unsafe { ffi::PyErr_Occurred() }.is_null() { Ok(None) } else { Err(Raised::indicated()) }
    }

    /// The pairs of a `dict`.
    pub fn dict_items(&self, py: Py) -> PyResult<Vec<(Object, Object)>> {
        // SAFETY: `Py` witnesses the GIL; a non-dict raises.
        let items = unsafe { Object::owned_or_raised(ffi::PyDict_Items(self.as_ptr()))? };
        items
            .sequence_items(py)?
            .iter()
            .map(|pair| {
                let mut pair = pair.sequence_items(py)?.into_iter();
                Ok((pair.next().expect("a pair has a key"), pair.next().expect("a pair has a value")))
            })
            .collect()
    }
}

/// `_PyDict_FromItems` of `pycore_dict.h`: what the interpreter's own `BUILD_MAP` uses; makes a dict of the right size
/// at once. Private, so it is looked up, and done without where it is not exported.
type FromItems = unsafe extern "C" fn(
    *const *mut ffi::PyObject,
    ffi::Py_ssize_t,
    *const *mut ffi::PyObject,
    ffi::Py_ssize_t,
    ffi::Py_ssize_t,
) -> *mut ffi::PyObject;

fn from_items() -> Option<FromItems> {
    static FOUND: OnceLock<Option<FromItems>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: the name ends with a zero; RTLD_DEFAULT searches what is loaded.
        let symbol: *mut c_void = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_PyDict_FromItems".as_ptr()) };
        // SAFETY: the symbol has had this signature in 3.13 and 3.14 (Include/internal/pycore_dict.h); null is `None`.
        unsafe { std::mem::transmute::<*mut c_void, Option<FromItems>>(symbol) }
    })
}

/// Builds dicts with the same keys, row after row.
pub struct RowBuilder {
    keys: Vec<Object>,
    key_pointers: Vec<*mut ffi::PyObject>,
    present: Vec<*mut ffi::PyObject>,
    values: Vec<*mut ffi::PyObject>,
}

impl RowBuilder {
    /// A builder for `keys`, which should be interned.
    pub fn new(_py: Py, keys: Vec<Object>) -> Self {
        let key_pointers = keys.iter().map(Object::as_ptr).collect();
        RowBuilder {
            present: Vec::with_capacity(keys.len()),
            values: Vec::with_capacity(keys.len()),
            keys,
            key_pointers,
        }
    }

    /// Adds the value of the key at position `key`; positions ascend within a row.
    pub fn push(&mut self, key: usize, value: Object) {
        self.present.push(self.keys[key].as_ptr());
        self.values.push(value.into_ptr());
    }

    /// The dict of what was pushed; the builder is empty again.
    pub fn finish(&mut self, py: Py) -> PyResult {
        let keys = if self.present.len() == self.keys.len() { &self.key_pointers } else { &self.present };
        // SAFETY: `Py` witnesses the GIL; both arrays have `values.len()` live objects: `keys` owns the keys and the
        // builder owns the values until `clear`.
        let dict = unsafe { make(py, keys, &self.values) };
        self.clear();
        dict
    }

    fn clear(&mut self) {
        self.present.clear();
        for value in self.values.drain(..) {
            // SAFETY: `push` took over the reference; the builder is `!Send` as it holds `Object`s, so the GIL is held.
            unsafe { ffi::Py_DECREF(value) };
        }
    }
}

impl Drop for RowBuilder {
    fn drop(&mut self) {
        self.clear();
    }
}

/// # Safety
/// The GIL is held; `values` and the first `values.len()` of `keys` are live objects.
unsafe fn make(_py: Py, keys: &[*mut ffi::PyObject], values: &[*mut ffi::PyObject]) -> PyResult {
    if let Some(from_items) = from_items() {
        // SAFETY: the caller guarantees the arrays; offset 1 means neighbours.
        return unsafe {
            Object::owned_or_raised(from_items(keys.as_ptr(), 1, values.as_ptr(), 1, values.len() as ffi::Py_ssize_t))
        };
    }
    // SAFETY: the GIL is held.
    let dict = unsafe { Object::owned_or_raised(ffi::PyDict_New())? };
    for (key, value) in keys.iter().zip(values) {
        // SAFETY: the caller guarantees live objects.
        if unsafe { ffi::PyDict_SetItem(dict.as_ptr(), *key, *value) } != 0 {
            return Err(Raised::indicated());
        }
    }
    Ok(dict)
}
