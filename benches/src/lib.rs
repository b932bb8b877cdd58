//! What the benchmarks share: deterministic bodies of requests.

pub mod tsbs;
