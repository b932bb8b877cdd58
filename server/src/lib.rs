//! `saltus`: the one crate that knows everybody.
//!
//! | module | question it answers |
//! |---|---|
//! | [`config`] | what did the operator ask for? |
//! | [`cli`] | what does the command line offer? |
//! | [`http`] | what does a client get over HTTP? |
//! | [`query`] | how is SQL answered? |
//! | [`registry`] | which databases, triggers and plugin files are there? |
//! | [`logs`] | what did plugins say? |
//! | [`signals`] | how is the server asked to stop? |
//! | [`composition`] | how do the parts become one process? |
//!
//! **Invariant:** this crate converts and wires. Whatever computes on rows is in `core`, `shards` or DataFusion.
#![forbid(unsafe_code)]

pub mod cli;
pub mod composition;
pub mod config;
pub mod http;
mod log_store;
pub mod logging;
pub mod logs;
pub mod quarantine;
pub mod query;
pub mod registry;
pub mod runs;
pub mod signals;
pub mod text_table;
pub mod traces;
