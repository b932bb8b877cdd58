//! `saltus-core`: the pure domain of Saltus.
//!
//! Line protocol, schemas, batches, trigger specifications, limits, errors, and the ports through which the
//! other crates meet. **Invariant:** this crate knows no runtime, no clock, no Python and no `unsafe`; every
//! instant is an argument.
#![forbid(unsafe_code)]

pub mod batch;
pub mod catalog;
pub mod cpu_share;
pub mod cron_words;
pub mod ids;
pub mod limits;
pub mod line_protocol;
pub mod names;
pub mod nearest;
pub mod policy;
pub mod ports;
pub mod query_param;
pub mod request;
pub mod route;
pub mod schedule;
pub mod schema;
pub mod shared_map;
pub mod state;
pub mod text;
pub mod trigger;
