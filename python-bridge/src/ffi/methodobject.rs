//! `methodobject.h`, `descrobject.h`: Rust functions as Python methods and attributes.

use std::ffi::CStr;

use pyo3_ffi as ffi;

use super::pyerrors::Builtin;
use super::typeobject::{Payload, payload_of};
use super::{Object, Py, PyResult, Raised, trampoline};

/// The arguments of one call.
pub struct Args<'a> {
    positional: &'a [*mut ffi::PyObject],
    named: Vec<(String, *mut ffi::PyObject)>,
}

impl Args<'_> {
    /// All positional arguments; a `TypeError` if there are keywords.
    pub fn positional(&self, py: Py, function: &str) -> PyResult<Vec<Object>> {
        if !self.named.is_empty() {
            let message = format!("{function}() takes no keyword arguments");
            return Err(Raised::new(py, Builtin::Type, &message));
        }
        // SAFETY: the caller of the method keeps its arguments alive through the call.
        Ok(self.positional.iter().map(|&pointer| unsafe { Object::from_borrowed(pointer) }).collect())
    }

    /// The arguments by parameter, of which the first `required` must be given.
    pub fn bind<const N: usize>(
        &self,
        py: Py,
        function: &str,
        parameters: [&str; N],
        required: usize,
    ) -> PyResult<[Option<Object>; N]> {
        let refuse = |message: String| Err(Raised::new(py, Builtin::Type, &message));
        if self.positional.len() > N {
            return refuse(format!(
                "{function}() takes at most {N} arguments ({} given)",
                self.positional.len() + self.named.len()
            ));
        }
        let mut bound = [const { None }; N];
        for (at, &pointer) in self.positional.iter().enumerate() {
            // SAFETY: as in `positional`.
            bound[at] = Some(unsafe { Object::from_borrowed(pointer) });
        }
        for (name, pointer) in &self.named {
            let Some(at) = parameters.iter().position(|p| p == name) else {
                return refuse(format!("{function}() got an unexpected keyword argument '{name}'"));
            };
            if bound[at].is_some() {
                return refuse(format!("{function}() got multiple values for argument '{name}'"));
            }
            // SAFETY: as in `positional`.
            bound[at] = Some(unsafe { Object::from_borrowed(*pointer) });
        }
        match bound[..required].iter().position(Option::is_none) {
            Some(at) => refuse(format!("{function}() missing required argument '{}'", parameters[at])),
            None => Ok(bound),
        }
    }
}

/// A method of a native type.
pub trait Method: 'static {
    /// The type that has it.
    type Owner: Payload;
    /// Its name.
    const NAME: &'static CStr;
    /// Its docstring.
    const DOC: &'static CStr;
    /// The call.
    fn call(py: Py, this: &Object, owner: &Self::Owner, args: &Args<'_>) -> PyResult;
}

/// A read-only attribute of a native type.
pub trait Property: 'static {
    /// The type that has it.
    type Owner: Payload;
    /// Its name.
    const NAME: &'static CStr;
    /// Its docstring.
    const DOC: &'static CStr;
    /// Its value.
    fn get(py: Py, this: &Object, owner: &Self::Owner) -> PyResult;
}

/// A function of the native module.
pub trait Function: 'static {
    /// Its name.
    const NAME: &'static CStr;
    /// Its docstring.
    const DOC: &'static CStr;
    /// The call.
    fn call(py: Py, args: &Args<'_>) -> PyResult;
}

pub(super) fn method_def<M: Method>() -> ffi::PyMethodDef {
    definition(M::NAME, M::DOC, method::<M>)
}

pub(super) fn function_def<F: Function>() -> ffi::PyMethodDef {
    definition(F::NAME, F::DOC, function::<F>)
}

fn definition(name: &'static CStr, doc: &'static CStr, call: ffi::PyCFunctionFastWithKeywords) -> ffi::PyMethodDef {
    ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: call },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: doc.as_ptr(),
    }
}

pub(super) fn property_def<P: Property>() -> ffi::PyGetSetDef {
    ffi::PyGetSetDef {
        name: P::NAME.as_ptr(),
        get: Some(property::<P>),
        set: None,
        doc: P::DOC.as_ptr(),
        closure: std::ptr::null_mut(),
    }
}

/// # Safety
/// The arguments are those of a vectorcall, alive for `'a`; the GIL is held.
unsafe fn arguments<'a>(
    py: Py,
    args: *const *mut ffi::PyObject,
    positional: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> PyResult<Args<'a>> {
    let count = positional as usize;
    // SAFETY: CPython passes `positional` pointers, or null and 0.
    let slice = if count == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(args, count) } };
    let mut named = Vec::new();
    if !names.is_null() {
        // SAFETY: the names are a tuple of `str`; the value of the i-th stands at `positional + i`.
        let tuple = unsafe { Object::from_borrowed(names) };
        for (at, name) in tuple.sequence_items(py)?.iter().enumerate() {
            // SAFETY: as above.
            named.push((name.extract_str(py, "keyword")?, unsafe { *args.add(count + at) }));
        }
    }
    Ok(Args { positional: slice, named })
}

unsafe extern "C" fn method<M: Method>(
    this: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    positional: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: CPython calls methods under the GIL, and a method descriptor has checked that `this` is an instance of
    // the type that the method belongs to, whose payload is `M::Owner`.
    unsafe {
        trampoline::enter(std::ptr::null_mut(), |py| {
            let args = arguments(py, args, positional, names)?;
            let this = Object::from_borrowed(this);
            Ok(M::call(py, &this, payload_of::<M::Owner>(this.as_ptr()), &args)?.into_ptr())
        })
    }
}

unsafe extern "C" fn function<F: Function>(
    _module: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    positional: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: CPython calls functions under the GIL with the arguments of a vectorcall.
    unsafe {
        trampoline::enter(std::ptr::null_mut(), |py| {
            Ok(F::call(py, &arguments(py, args, positional, names)?)?.into_ptr())
        })
    }
}

unsafe extern "C" fn property<P: Property>(
    this: *mut ffi::PyObject,
    _closure: *mut std::ffi::c_void,
) -> *mut ffi::PyObject {
    // SAFETY: as in `method`: a getset descriptor checks the type of `this`.
    unsafe {
        trampoline::enter(std::ptr::null_mut(), |py| {
            let this = Object::from_borrowed(this);
            Ok(P::get(py, &this, payload_of::<P::Owner>(this.as_ptr()))?.into_ptr())
        })
    }
}

/// Calls `dict`'s own method of that name on `this`, whatever `this` overrides.
pub fn dict_method(py: Py, name: &str, this: &Object, args: &Args<'_>) -> PyResult {
    // SAFETY: `dict`'s type object is static.
    let class = unsafe { Object::from_borrowed((&raw mut ffi::PyDict_Type).cast()) };
    let method = class.getattr(py, name)?;
    let mut pointers = vec![this.as_ptr()];
    pointers.extend_from_slice(args.positional);
    let names = if args.named.is_empty() {
        None
    } else {
        pointers.extend(args.named.iter().map(|(_, value)| value));
        let names = args.named.iter().map(|(name, _)| Object::interned(py, name)).collect::<PyResult<Vec<_>>>()?;
        Some(Object::tuple(py, names)?)
    };
    let names = names.as_ref().map_or(std::ptr::null_mut(), Object::as_ptr);
    // SAFETY: `Py` witnesses the GIL; this, arguments and names are alive through the call.
    unsafe {
        Object::owned_or_raised(ffi::PyObject_Vectorcall(
            method.as_ptr(),
            pointers.as_ptr(),
            1 + args.positional.len(),
            names,
        ))
    }
}
