//! `abstract.h`, `longobject.h`, `floatobject.h`, `bytesobject.h`, `listobject.h`, `tupleobject.h`, `genobject.h`: values of
//! builtin types, calls and attributes.

use pyo3_ffi as ffi;

use super::pyerrors::Builtin;
use super::{Object, Py, PyResult, Raised};

impl Object {
    /// A new `int`.
    pub fn int(_py: Py, value: i64) -> PyResult {
        // SAFETY: `Py` witnesses the GIL.
        unsafe { Object::owned_or_raised(ffi::PyLong_FromLongLong(value)) }
    }

    /// A new `int`.
    pub fn uint(_py: Py, value: u64) -> PyResult {
        // SAFETY: `Py` witnesses the GIL.
        unsafe { Object::owned_or_raised(ffi::PyLong_FromUnsignedLongLong(value)) }
    }

    /// A new `float`.
    pub fn float(_py: Py, value: f64) -> PyResult {
        // SAFETY: `Py` witnesses the GIL.
        unsafe { Object::owned_or_raised(ffi::PyFloat_FromDouble(value)) }
    }

    /// A new `bytes`.
    pub fn bytes(_py: Py, value: &[u8]) -> PyResult {
        // SAFETY: `Py` witnesses the GIL; the pointer and the length are a slice's.
        unsafe { Object::owned_or_raised(ffi::PyBytes_FromStringAndSize(value.as_ptr().cast(), value.len() as isize)) }
    }

    /// A new `list` of `items`.
    pub fn list(_py: Py, items: Vec<Object>) -> PyResult {
        // SAFETY: `Py` witnesses the GIL.
        let list = unsafe { Object::owned_or_raised(ffi::PyList_New(items.len() as isize))? };
        for (at, item) in items.into_iter().enumerate() {
            // SAFETY: the list is new, has `items.len()` empty places, and takes over the reference.
            unsafe { ffi::PyList_SET_ITEM(list.as_ptr(), at as isize, item.into_ptr()) };
        }
        Ok(list)
    }

    /// A new `tuple` of `items`.
    pub fn tuple(_py: Py, items: Vec<Object>) -> PyResult {
        // SAFETY: `Py` witnesses the GIL.
        let tuple = unsafe { Object::owned_or_raised(ffi::PyTuple_New(items.len() as isize))? };
        for (at, item) in items.into_iter().enumerate() {
            // SAFETY: the tuple is new, has `items.len()` empty places, and takes over the reference.
            unsafe { ffi::PyTuple_SET_ITEM(tuple.as_ptr(), at as isize, item.into_ptr()) };
        }
        Ok(tuple)
    }

    /// The items of a `tuple` or `list`.
    pub fn sequence_items(&self, py: Py) -> PyResult<Vec<Object>> {
        // SAFETY: `Py` witnesses the GIL; `self` is alive.
        let length = unsafe { ffi::PySequence_Size(self.as_ptr()) };
        if length < 0 {
            return Err(Raised::indicated());
        }
        let _ = py;
        // SAFETY: as above; a wrong index raises.
        (0..length).map(|at| unsafe { Object::owned_or_raised(ffi::PySequence_GetItem(self.as_ptr(), at)) }).collect()
    }

    /// `self.name`.
    pub fn getattr(&self, py: Py, name: &str) -> PyResult {
        let name = Object::interned(py, name)?;
        // SAFETY: `Py` witnesses the GIL; both objects are alive.
        unsafe { Object::owned_or_raised(ffi::PyObject_GetAttr(self.as_ptr(), name.as_ptr())) }
    }

    /// `self.<key>`, for a key that was interned before.
    pub fn getattr_key(&self, _py: Py, key: &Object) -> PyResult {
        // SAFETY: `Py` witnesses the GIL; both objects are alive.
        unsafe { Object::owned_or_raised(ffi::PyObject_GetAttr(self.as_ptr(), key.as_ptr())) }
    }

    /// `self.name = value`.
    pub fn setattr(&self, py: Py, name: &str, value: &Object) -> PyResult<()> {
        let name = Object::interned(py, name)?;
        // SAFETY: `Py` witnesses the GIL; all objects are alive.
        match unsafe { ffi::PyObject_SetAttr(self.as_ptr(), name.as_ptr(), value.as_ptr()) } {
            0 => Ok(()),
            _ => Err(Raised::indicated()),
        }
    }

    /// `self(*args)`.
    pub fn call<const N: usize>(&self, _py: Py, args: [&Object; N]) -> PyResult {
        let pointers = args.map(Object::as_ptr);
        // SAFETY: `Py` witnesses the GIL; callee and arguments are alive through the call, and the array has N of them.
        unsafe {
            Object::owned_or_raised(ffi::PyObject_Vectorcall(self.as_ptr(), pointers.as_ptr(), N, std::ptr::null_mut()))
        }
    }

    /// `self.name(*args)`.
    pub fn call_method<const N: usize>(&self, py: Py, name: &str, args: [&Object; N]) -> PyResult {
        self.getattr(py, name)?.call(py, args)
    }

    /// `str(self)`.
    pub fn str(&self, _py: Py) -> PyResult {
        // SAFETY: `Py` witnesses the GIL; `self` is alive.
        unsafe { Object::owned_or_raised(ffi::PyObject_Str(self.as_ptr())) }
    }

    /// `type(self).__name__`.
    pub fn type_name(&self, _py: Py) -> String {
        // SAFETY: `self` is alive, and its type with it; `tp_name` ends with a zero.
        let name = unsafe { std::ffi::CStr::from_ptr((*ffi::Py_TYPE(self.as_ptr())).tp_name) };
        name.to_string_lossy().rsplit('.').next().unwrap_or_default().to_owned()
    }

    /// The value of an `int` that fits.
    pub fn extract_i64(&self, py: Py) -> PyResult<i64> {
        // SAFETY: `Py` witnesses the GIL; `self` is alive.
        let value = unsafe { ffi::PyLong_AsLongLong(self.as_ptr()) };
        // SAFETY: asks this thread's indicator.
        if value == -1 && !unsafe { ffi::PyErr_Occurred() }.is_null() {
            return Err(Raised::indicated());
        }
        let _ = py;
        Ok(value)
    }

    /// The value of a number.
    pub fn extract_f64(&self, py: Py) -> PyResult<f64> {
        // SAFETY: `Py` witnesses the GIL; `self` is alive.
        let value = unsafe { ffi::PyFloat_AsDouble(self.as_ptr()) };
        // SAFETY: asks this thread's indicator.
        if value == -1.0 && !unsafe { ffi::PyErr_Occurred() }.is_null() {
            return Err(Raised::indicated());
        }
        let _ = py;
        Ok(value)
    }

    /// `bool(self)`.
    pub fn truthy(&self, _py: Py) -> PyResult<bool> {
        // SAFETY: `Py` witnesses the GIL; `self` is alive.
        match unsafe { ffi::PyObject_IsTrue(self.as_ptr()) } {
            -1 => Err(Raised::indicated()),
            answer => Ok(answer == 1),
        }
    }

    /// Whether it is a `dict`.
    pub fn is_dict(&self) -> bool {
        // SAFETY: `self` is alive; reads its type's flags.
        unsafe { ffi::PyDict_Check(self.as_ptr()) != 0 }
    }

    /// The text of a `str`; `what` names the argument in the `TypeError` that others raise.
    pub fn extract_str(&self, py: Py, what: &str) -> PyResult<String> {
        match self.as_str(py) {
            Some(text) => text.map(str::to_owned),
            None => {
                let message = format!("{what} must be str, not {}", self.type_name(py));
                Err(Raised::new(py, Builtin::Type, &message))
            }
        }
    }
}

impl Object {
    /// The content of a `bytes`; `None` for other types.
    pub fn as_bytes(&self, _py: Py) -> Option<&[u8]> {
        // SAFETY: `self` is alive; reads its type's flags.
        if unsafe { ffi::PyBytes_Check(self.as_ptr()) } == 0 {
            return None;
        }
        // SAFETY: it is a `bytes`, which never changes and lives as long as `self` keeps it.
        Some(unsafe {
            let start = ffi::PyBytes_AsString(self.as_ptr());
            std::slice::from_raw_parts(start.cast(), ffi::PyBytes_Size(self.as_ptr()) as usize)
        })
    }

    /// Whether it is of a builtin type whose values never change and refer to nothing.
    pub fn is_scalar(&self) -> bool {
        // SAFETY: `self` is alive; compares addresses of static types.
        unsafe {
            let class = ffi::Py_TYPE(self.as_ptr());
            self.is_none()
                || [
                    &raw mut ffi::PyLong_Type,
                    &raw mut ffi::PyFloat_Type,
                    &raw mut ffi::PyUnicode_Type,
                    &raw mut ffi::PyBytes_Type,
                    &raw mut ffi::PyBool_Type,
                ]
                .contains(&class)
        }
    }
}

/// What kind of number or text a value is, as far as SQL knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// `None`
    None,
    /// `bool`
    Bool,
    /// `int`, or what can be used as an index.
    Int,
    /// `float`
    Float,
    /// `str`
    Text,
    /// Anything else.
    Other,
}

impl Object {
    /// See [`Scalar`]; subclasses count as what they are made of.
    pub fn scalar_kind(&self) -> Scalar {
        // SAFETY: `self` is alive; all of these read its type.
        unsafe {
            let this = self.as_ptr();
            if self.is_none() {
                Scalar::None
            } else if ffi::PyBool_Check(this) != 0 {
                Scalar::Bool
            } else if ffi::PyUnicode_Check(this) != 0 {
                Scalar::Text
            } else if ffi::PyFloat_Check(this) != 0 {
                Scalar::Float
            } else if ffi::PyIndex_Check(this) != 0 {
                Scalar::Int
            } else {
                Scalar::Other
            }
        }
    }

    /// `operator.index(self)`.
    pub fn index(&self, _py: Py) -> PyResult {
        // SAFETY: `Py` witnesses the GIL; `self` is alive.
        unsafe { Object::owned_or_raised(ffi::PyNumber_Index(self.as_ptr())) }
    }

    /// The value of an `int` that fits.
    pub fn extract_u64(&self, py: Py) -> PyResult<u64> {
        // SAFETY: `Py` witnesses the GIL; `self` is alive.
        let value = unsafe { ffi::PyLong_AsUnsignedLongLong(self.as_ptr()) };
        // SAFETY: asks this thread's indicator.
        if value == u64::MAX && !unsafe { ffi::PyErr_Occurred() }.is_null() {
            return Err(Raised::indicated());
        }
        let _ = py;
        Ok(value)
    }

    /// A `bool`, or one of numpy's; `what` names the argument in the `TypeError` that others raise, as PyO3 words it.
    pub fn extract_bool(&self, py: Py, what: &str) -> PyResult<bool> {
        let name = self.type_name(py);
        if self.scalar_kind() == Scalar::Bool || name == "bool_" {
            return self.truthy(py);
        }
        let message = format!("argument '{what}': '{name}' object cannot be converted to 'PyBool'");
        Err(Raised::new(py, Builtin::Type, &message))
    }

    /// Whether it is what calling an `async def` function gives.
    pub fn is_coroutine(&self) -> bool {
        // SAFETY: `self` is alive; compares its type with a static one.
        unsafe { ffi::PyCoro_CheckExact(self.as_ptr()) != 0 }
    }
}
