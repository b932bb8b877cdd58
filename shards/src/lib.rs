//! `saltus-shards`: the thread-per-core engine.
//!
//! Executor and placement, mailboxes, tables, WAL, trigger set. **Invariant:** this crate knows no HTTP and no Python;
//! glommio appears only under `io/` and in `executor.rs`.

#![deny(unsafe_code)]

pub mod answer;
pub mod api;
mod clock;
pub mod cursors;
pub mod data_dir;
pub mod dead_letters;
mod directory;
pub mod engine;
pub mod executor;
pub mod io;
pub mod latencies;
mod local;
pub mod mailbox;
pub mod placement;
mod priority;
pub mod probe;
pub mod pulse;
mod shard;
pub mod states;
pub mod table;
pub mod wal;
