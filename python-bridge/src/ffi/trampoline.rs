//! The one way from Python into Rust.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::pyerrors::Builtin;
use super::{Py, PyResult, Raised};

/// Runs `body` for a callback from CPython; gives `failure` with a Python exception set when it raises or panics.
///
/// # Safety
/// Called by CPython, or otherwise with the GIL held, on a thread that is attached.
pub(super) unsafe fn enter<R>(failure: R, body: impl FnOnce(Py) -> PyResult<R>) -> R {
    // SAFETY: the caller guarantees the GIL.
    let py = unsafe { Py::assume_attached() };
    match catch_unwind(AssertUnwindSafe(|| body(py))) {
        Ok(Ok(value)) => value,
        Ok(Err(_raised)) => failure,
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|s| (*s).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            let _raised = Raised::new(py, Builtin::Runtime, &format!("internal error in saltus: {text}"));
            failure
        }
    }
}
