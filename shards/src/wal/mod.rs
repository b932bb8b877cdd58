//! The write-ahead log: one stream of segments for every shard and life of the process.
//!
//! ```text
//!  append -> WalWriter (open frame) -- take_round --> Round -- WalCommitter::commit --> segment file
//!                                                               one durable write
//!  start:  data_dir (lock, manifest, epoch) -> recover (old streams, read only) -> settle (cut them) -> begin_stream (new stream)
//! ```
//!
//! **Invariants**
//! 1. A stream is written by one life of the process only; later lives read it, and cut off what is behind its last frame.
//! 2. Sequences of a stream rise by one from record to record, over frames and segments, beginning at 1.
//! 3. One round is one frame, is one durable write (through a descriptor with O_DSYNC, or a write and its fdatasync); a
//!    round is submitted only after the round before it is durable. So whatever a crash leaves half written is the last
//!    thing in the log.
//! 4. After a failed sync, or a failed write other than for want of space, nothing is written any more.
//! 5. What may hold data is in the manifest before it does, so what is lost is missed.
//!
//! The bytes are described in `docs/format.md`.

pub mod epoch;
pub mod format;
pub mod keeper;
pub mod manifest;
mod map;
pub mod reader;
pub mod recovery;
pub mod settle;
mod slot;
pub mod writer;

pub use epoch::{DataDirLock, EpochError, StoredEpoch, lock_data_dir, next_epoch, read_epoch};
pub use format::{Columns, Record};
pub use recovery::{
    Entry, RecoveryError, RecoveryOptions, RecoveryReport, StreamFiles, list_streams, recover, stream_dir,
};
pub use writer::{
    Committed, Round, WalCommitter, WalError, WalOptions, WalWriter, WrittenTo, begin_stream, open_stream,
};

#[cfg(test)]
mod tests;
