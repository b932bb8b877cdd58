//! `pystate.h`: thread states, and letting go of the GIL.

use std::ffi::c_long;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pyo3_ffi as ffi;

use super::{Object, Py};

/// An interpreter's address, as a number that threads may exchange. Interpreters are never destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterpreterId(pub(super) usize);

impl InterpreterId {
    pub(super) fn as_ptr(self) -> *mut ffi::PyInterpreterState {
        self.0 as *mut ffi::PyInterpreterState
    }

    /// The number.
    pub fn as_usize(self) -> usize {
        self.0
    }

    /// The interpreter of a number that [`InterpreterId::as_usize`] gave.
    ///
    /// # Panics
    /// On 0.
    pub fn from_usize(number: usize) -> Self {
        assert_ne!(number, 0, "no interpreter lives at address 0");
        InterpreterId(number)
    }
}

/// A thread that has let go of its interpreter's GIL. Not `Send`.
pub struct LetGo {
    state: *mut ffi::PyThreadState,
}

impl LetGo {
    /// Takes the GIL again; waits for whoever has it.
    pub fn take_again(self) {
        // SAFETY: the state is this thread's own, as the guard is not `Send`, saved in `let_go` and not restored since.
        unsafe { ffi::PyEval_RestoreThread(self.state) };
    }
}

/// The interpreter that this thread is attached to.
pub fn current_interpreter(_py: Py) -> InterpreterId {
    // SAFETY: `Py` witnesses a current thread state.
    InterpreterId(unsafe { ffi::PyInterpreterState_Get() } as usize)
}

/// This thread's identity in Python (`threading.get_ident()`).
pub fn current_thread(_py: Py) -> u64 {
    // SAFETY: no preconditions once the runtime is initialised.
    unsafe { ffi::PyThread_get_thread_ident() as u64 }
}

/// Raises `class` in another thread of this interpreter at its next chance; `None` takes back what has not been
/// raised yet.
pub fn set_async_exception(_py: Py, thread: u64, class: Option<&Object>) {
    // SAFETY: `Py` witnesses the GIL; an unknown thread is ignored; the call takes its own reference.
    unsafe { ffi::PyThreadState_SetAsyncExc(thread as c_long, class.map_or(std::ptr::null_mut(), Object::as_ptr)) };
}

/// Detaches this thread, which is about to end, for good and frees its thread state. Nothing of Python may be touched
/// on it afterwards; the first thread of an interpreter may leave as well, the interpreter lives on.
pub fn leave(_py: Py) {
    // SAFETY: `Py` witnesses a current thread state of this thread; it is cleared and deleted while current, which
    // releases the GIL.
    unsafe {
        ffi::PyThreadState_Clear(ffi::PyThreadState_Get());
        ffi::PyThreadState_DeleteCurrent();
    }
}

impl Py {
    /// Attaches this thread to an interpreter that another thread made, for the rest of its life.
    ///
    /// Not for a thread that is attached already: it would deadlock with itself.
    pub fn attach(interpreter: InterpreterId) -> Py {
        // SAFETY: the interpreter lives for ever; the new thread state is this thread's own and becomes current. It is
        // never deleted: threads of the bridge live as long as the process.
        unsafe {
            let state = ffi::PyThreadState_New(interpreter.as_ptr());
            assert!(!state.is_null(), "out of memory for a thread state");
            ffi::PyEval_RestoreThread(state);
            Py::assume_attached()
        }
    }

    /// Lets go of the GIL until the guard is given back: another thread of the interpreter may work meanwhile. Nothing of
    /// Python may be touched on this thread until then; the caller keeps its objects out of reach.
    pub fn let_go(self) -> LetGo {
        // SAFETY: `Py` witnesses the GIL.
        LetGo { state: unsafe { ffi::PyEval_SaveThread() } }
    }

    /// Lets go of the GIL while `body` runs.
    pub fn detach<R: Send>(self, body: impl FnOnce() -> R + Send) -> R {
        // SAFETY: `Py` witnesses the GIL. `body` is `Send`, so it holds neither objects nor a witness.
        let state = unsafe { ffi::PyEval_SaveThread() };
        let result = catch_unwind(AssertUnwindSafe(body));
        // SAFETY: the state is this thread's own, saved above.
        unsafe { ffi::PyEval_RestoreThread(state) };
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }
}
