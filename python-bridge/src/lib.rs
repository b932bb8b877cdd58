//! `saltus-python`: runs CPython plugins on the cores that ingest data.
//!
//! # Contract
//! Implements the ports of `saltus_core::ports`: one [`PythonRuntime`] per process, and for each shard an inline and a
//! deferred lane, each with an interpreter and a GIL of its own; beside them a lane of worker processes ([`worker_main`]). **Invariant:** this crate knows no WAL, no HTTP and no
//! SQL; what plugins reach outside themselves goes through `PluginHost`. Nothing about Python is kept per process
//! except the runtime itself.
//!
//! What it is not: PyO3's safe layer is not used, as it keeps process-wide objects and does not know subinterpreters.
#![deny(unsafe_code)]

mod cache_vault;
mod coroutine;
mod deadline;
mod deferred;
mod effects;
mod entry;
mod ffi;
mod global_cache;
mod interpreter;
mod lanes;
mod log_rate;
mod memory_limit;
mod native;
mod output;
mod prepare;
mod process;
mod refusals;
mod rooms;
mod runtime;
mod stack;

pub use cache_vault::VaultCounts;
pub use log_rate::log_lines_left_out;
pub use memory_limit::memory_limits_met;
pub use output::dropped_bytes;
pub use process::{ProcessConfig, ProcessCounts, worker_main};
pub use runtime::{CacheCounts, PythonConfig, PythonRuntime};
pub use stack::Stack;
