//! `saltus`: everything around the engine. Configuration, HTTP, SQL and the composition that wires shards, plugins and
//! queries together.
#![forbid(unsafe_code)]

pub mod query;
