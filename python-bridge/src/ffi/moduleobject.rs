//! `moduleobject.h`: the native module `_saltus`, initialised in several phases, once in each interpreter.
//!
//! The module has no state of its own: its types and classes live in its namespace, and what Rust needs of them is
//! looked up once per thread of an interpreter. So nothing about Python is kept per process but this definition.

use std::ffi::{CString, c_int, c_void};
use std::sync::OnceLock;

use pyo3_ffi as ffi;

use super::methodobject::{Function, function_def};
use super::{Object, Py, PyResult, trampoline};

/// Puts types and constants into the module of a new interpreter.
pub type Fill = fn(Py, &Object) -> PyResult<()>;

/// The functions of the module.
#[derive(Default)]
pub struct Functions(Vec<ffi::PyMethodDef>);

impl Functions {
    /// With one more.
    pub fn with<F: Function>(mut self) -> Self {
        self.0.push(function_def::<F>());
        self
    }
}

struct Definition {
    address: usize,
    fill: Fill,
}

static DEFINITION: OnceLock<Definition> = OnceLock::new();

/// Makes `import name` find the module in every interpreter. Before the runtime is initialised, once per process.
pub fn register(name: &str, functions: Functions, fill: Fill) {
    let name = Box::leak(CString::new(name).expect("a module name has no zero").into_boxed_c_str());
    DEFINITION.get_or_init(|| {
        let mut methods = functions.0;
        methods.push(ffi::PyMethodDef::zeroed());
        let slots = vec![
            ffi::PyModuleDef_Slot { slot: ffi::Py_mod_exec, value: exec as *mut c_void },
            ffi::PyModuleDef_Slot {
                slot: ffi::Py_mod_multiple_interpreters,
                value: ffi::Py_MOD_PER_INTERPRETER_GIL_SUPPORTED,
            },
            ffi::PyModuleDef_Slot { slot: 0, value: std::ptr::null_mut() },
        ];
        let definition = Box::leak(Box::new(ffi::PyModuleDef {
            m_base: ffi::PyModuleDef_HEAD_INIT,
            m_name: name.as_ptr(),
            m_doc: c"What the Saltus plugin API is made of; private.".as_ptr(),
            m_size: 0,
            m_methods: Box::leak(methods.into_boxed_slice()).as_mut_ptr(),
            m_slots: Box::leak(slots.into_boxed_slice()).as_mut_ptr(),
            m_traverse: None,
            m_clear: None,
            m_free: None,
        }));
        // SAFETY: before initialisation, as the caller promises by the documentation; name and function are 'static.
        let added = unsafe { ffi::PyImport_AppendInittab(name.as_ptr(), Some(init)) };
        assert_eq!(added, 0, "out of memory at start");
        Definition { address: std::ptr::from_mut(definition) as usize, fill }
    });
}

unsafe extern "C" fn init() -> *mut ffi::PyObject {
    let definition = DEFINITION.get().expect("registered before any import");
    // SAFETY: a leaked PyModuleDef; CPython serialises the first initialisation.
    unsafe { ffi::PyModuleDef_Init(definition.address as *mut ffi::PyModuleDef) }
}

unsafe extern "C" fn exec(module: *mut ffi::PyObject) -> c_int {
    // SAFETY: CPython calls this under the GIL of the interpreter that imports, with the new module.
    unsafe {
        trampoline::enter(-1, |py| {
            let module = Object::from_borrowed(module);
            (DEFINITION.get().expect("registered before any import").fill)(py, &module)?;
            Ok(0)
        })
    }
}
