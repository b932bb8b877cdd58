//! What is measured, and what measuring needs: deterministic bodies of requests, a host for plugins, and the list of cases.
//!
//! A case ([`cases::Case`]) is measured in two ways: `counts` runs it once under callgrind and says how many instructions it
//! took, `wall` runs it many times and says how long it took. `cargo test` runs each once, tiny. How to add one, and what is
//! compared with `baseline.json`, is in the folder's README.

pub mod cases;
pub mod python;
pub mod tsbs;
