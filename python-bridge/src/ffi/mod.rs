//! Every `unsafe` line about CPython, in files named after the CPython header that they cover.
//!
//! # Invariants
//! 1. A thread is attached to one interpreter for its whole life: the interpreter's thread state is made on it, and is
//!    current on it except inside [`Py::detach`], whose closure cannot hold Python objects (it is `Send`; [`Object`] is
//!    not), and between [`Py::let_go`] and its end, for which `crate::lanes` moves the interpreter into a type without
//!    methods. [`Py`] is the witness: it exists only where the thread holds its interpreter's GIL.
//! 2. [`Object`] is `!Send`, so it is used and dropped on the thread that made it, hence (1) under the right GIL.
//! 3. The payloads of native types are touched only through methods that CPython calls, hence under the GIL of the one
//!    interpreter that their type belongs to. They may be dropped by another thread of that interpreter, under that
//!    GIL, which orders all accesses: that is why they need not be `Send`.
//! 4. Rust never unwinds into C: all that CPython calls goes through [`trampoline::enter`].
//! 5. Interpreters are never destroyed, so what lives as long as an interpreter may be leaked.
#![allow(unsafe_code, reason = "this folder is the one place for it")]

pub mod abstract_;
pub mod audit;
pub mod buffer;
pub mod capsule;
pub mod ceval;
pub mod dictobject;
pub mod import;
pub mod methodobject;
pub mod moduleobject;
pub mod object;
pub mod pyerrors;
pub mod pylifecycle;
pub mod pymem;
pub mod pystate;
pub mod stack;
pub mod time;
pub mod trampoline;
pub mod typeobject;
pub mod unicodeobject;

pub use object::{Object, Py};
pub use pyerrors::{PyResult, Raised};
