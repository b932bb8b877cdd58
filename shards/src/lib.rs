//! `saltus-shards`: the thread-per-core engine.

pub mod table;
