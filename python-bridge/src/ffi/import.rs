//! `import.h`, `compile.h`, `ceval.h`: compiling, running and importing code.

use std::ffi::CString;

use pyo3_ffi as ffi;

use super::pyerrors::Builtin;
use super::{Object, Py, PyResult, Raised};

impl Object {
    /// `import name`.
    pub fn import(_py: Py, name: &str) -> PyResult {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: `Py` witnesses the GIL; the name ends with a zero.
        unsafe { Object::owned_or_raised(ffi::PyImport_ImportModule(name.as_ptr())) }
    }

    /// A module that has been imported before. Unlike [`Object::import`] it asks nothing of the frame that happens to run.
    pub fn imported(py: Py, name: &str) -> PyResult {
        let key = Object::interned(py, name)?;
        // SAFETY: `Py` witnesses the GIL; the name is a live `str`; null without an exception says that it is not there.
        let found = unsafe { Object::owned_or_none(ffi::PyImport_GetModule(key.as_ptr())) };
        found.ok_or_else(|| Raised::new(py, Builtin::Runtime, &format!("{name} has not been imported")))
    }

    /// The code object of a module's source.
    pub fn compile(py: Py, source: &str, file_name: &str) -> PyResult {
        let (Ok(source), Ok(file_name)) = (CString::new(source), CString::new(file_name)) else {
            return Err(Raised::new(py, Builtin::Value, "plugin code contains null bytes"));
        };
        // SAFETY: `Py` witnesses the GIL; both texts end with a zero.
        unsafe {
            Object::owned_or_raised(ffi::Py_CompileString(source.as_ptr(), file_name.as_ptr(), ffi::Py_file_input))
        }
    }

    /// Makes the module `name` of a code object and puts it into `sys.modules`.
    pub fn exec_module(_py: Py, name: &str, code: &Object) -> PyResult {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: `Py` witnesses the GIL; a wrong code object raises.
        unsafe { Object::owned_or_raised(ffi::PyImport_ExecCodeModule(name.as_ptr(), code.as_ptr())) }
    }

    /// Runs a code object with `globals`, which get `__builtins__`.
    pub fn eval(_py: Py, code: &Object, globals: &Object) -> PyResult {
        // C code that imports on behalf of a frame looks for them there; evaluating alone does not put them in.
        // SAFETY: `Py` witnesses the GIL; the builtins are borrowed from the interpreter, which keeps them; `globals` came
        // from `dict` by our own callers, and the name ends with a zero.
        let added =
            unsafe { ffi::PyDict_SetItemString(globals.as_ptr(), c"__builtins__".as_ptr(), ffi::PyEval_GetBuiltins()) };
        if added != 0 {
            return Err(Raised::indicated());
        }
        // SAFETY: `Py` witnesses the GIL; `code` came from `compile` and `globals` from `dict`, both by our own callers.
        unsafe { Object::owned_or_raised(ffi::PyEval_EvalCode(code.as_ptr(), globals.as_ptr(), globals.as_ptr())) }
    }
}
