//! `saltus-shards`: the thread-per-core engine.
//!
//! Executor and placement, mailboxes, tables, WAL, trigger set. **Invariant:** this crate knows no HTTP and no Python;
//! glommio appears only under `io/` and in `executor.rs`.

pub mod api;
pub mod engine;
