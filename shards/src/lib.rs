//! `saltus-shards`: the thread-per-core engine.
pub mod io;
pub mod wal;
