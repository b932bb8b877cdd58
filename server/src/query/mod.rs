//! SQL over snapshots of tables.
//!
//! Life of a query:
//! 1. [`QueryEngine::execute`] hands the request to the query runtime, which has its own threads: a shard's thread never
//!    plans, computes or encodes. The caller awaits the answer on whatever executor it has.
//! 2. The query waits for one of `max_concurrent` permits, and gets a thread of its own (`run`, `guard`).
//! 3. The statement is parsed, and refused if it is not a question (`plan`). Each table that it names is looked up through
//!    [`TableSource`] and its snapshot taken, once (`catalog`).
//! 4. DataFusion plans. What bounds `time` is handed to the snapshot (`time_range`, `table`); every other predicate stays
//!    above the scan.
//! 5. Once the first rows (or the end, or an error) are there, the caller gets a stream. Rows go through a bounded channel,
//!    as record batches or already encoded in a [`Format`]. Dropping the stream ends the query.
//!
//! **Invariant:** this module knows neither shards nor HTTP: it reads through [`TableSource`] and [`SystemSource`], and its
//! errors are kinds that the HTTP layer maps to status codes.

mod catalog;
mod cells;
mod columns;
mod counts;
mod engine;
mod error;
pub mod format;
mod functions;
mod guard;
mod hints;
mod information_schema;
mod log;
mod plan;
mod request;
mod rules;
mod run;
mod source;
mod stream;
pub mod system;
mod table;
mod time_range;

#[cfg(test)]
mod mended;
#[cfg(test)]
mod tests;

pub(crate) use columns::require_distinct;
pub use counts::QueryCounts;
pub use engine::{QueryConfig, QueryEngine};
pub use error::QueryError;
pub use format::Format;
pub use request::{QueryKind, QueryRequest, ScalarParam};
pub use source::{SystemSource, TableScan, TableSource};
pub use stream::{QueryBytes, QueryStream, ResultStream};
