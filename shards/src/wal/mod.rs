//! The write-ahead log: one stream of segments for every shard and life of the process.
//!
//! ```text
//!  append -> WalWriter (open frame) -- take_round --> Round -- WalCommitter::commit --> segment file
//!                                                               one durable write
//!  start:  lock_data_dir -> raise_epoch -> recover (old streams, read only) -> open_stream (new stream)
//! ```
//!
//! **Invariants**
//! 1. A stream is written by one life of the process only; later lives only read it.
//! 2. Sequences of a stream rise by one from record to record, over frames and segments, beginning at 1.
//! 3. One round is one frame, is one durable write (through a descriptor with O_DSYNC, or a write and its fdatasync); a
//!    round is submitted only after the round before it is durable. So whatever a crash leaves half written is the last
//!    thing in the log.
//! 4. After a failed sync, or a failed write other than for want of space, nothing is written any more.
//!
//! The bytes are described in `docs/format.md`.

pub mod epoch;
pub mod format;
mod map;
pub mod reader;
pub mod recovery;
pub mod writer;

pub use epoch::{DataDirLock, EpochError, lock_data_dir, raise_epoch};
pub use format::{Columns, Record};
pub use recovery::{
    Entry, RecoveryError, RecoveryOptions, RecoveryReport, StreamFiles, list_streams, recover, stream_dir,
};
pub use writer::{Committed, Round, WalCommitter, WalError, WalOptions, WalWriter, open_stream};

#[cfg(test)]
mod tests;
