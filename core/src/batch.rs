//! Rows of one table from one write.
//!
//! Two stages, two types. [`PendingBatch`] is what the parser fills: plain vectors, owned by one thread, moved to the
//! table's owner. [`Batch`] is what the owner makes of it with [`PendingBatch::freeze`]: immutable Arrow columns over the
//! very same memory, shared by `Arc` between the table, triggers and queries.

use std::sync::Arc;

use arrow::array::{ArrayRef, TimestampNanosecondArray};
use arrow::buffer::ScalarBuffer;
use bytes::Bytes;

use crate::line_protocol::Precision;
use crate::schema::{ColumnKind, TableSchema};

/// One column of a [`Batch`].
#[derive(Clone, Debug)]
pub struct BatchColumn {
    /// The key, unescaped.
    pub name: Arc<str>,
    /// Its kind; `data` has the Arrow type of it.
    pub kind: ColumnKind,
    /// As many values as the batch has rows; null where a line did not have the column.
    pub data: ArrayRef,
}

/// Rows of one table from one write, immutable.
#[derive(Clone, Debug)]
pub struct Batch {
    /// In order of first appearance, tags before fields: the order in which a plugin sees a row's keys.
    pub columns: Vec<BatchColumn>,
    /// Nanoseconds since the epoch, one per row, no nulls.
    pub time: TimestampNanosecondArray,
    /// A fingerprint of each row's tag set (names and values, order does not matter). Equal tag sets have equal
    /// fingerprints within one process; the converse is very likely but must not be relied on.
    pub series: ScalarBuffer<u64>,
}

impl Batch {
    /// Rows in the batch.
    pub fn rows(&self) -> usize {
        self.time.values().len()
    }

    /// Bytes that the batch keeps alive, an upper estimate.
    pub fn bytes(&self) -> usize {
        self.columns.iter().map(|c| c.data.get_array_memory_size()).sum::<usize>() + self.rows() * 16
    }

    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&BatchColumn> {
        self.columns.iter().find(|c| c.name.as_ref() == name)
    }
}

/// Which line of the request a row stands on, 1-based over lines that are neither blank nor comments
/// (reference, 6.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineNumbers {
    /// Row `i` is line `i + 1`.
    All,
    /// One number per row.
    Listed(Vec<u32>),
}

impl LineNumbers {
    /// The line of row `row`.
    pub fn line(&self, row: usize) -> u32 {
        match self {
            LineNumbers::All => row as u32 + 1,
            LineNumbers::Listed(lines) => lines[row],
        }
    }
}

/// A column while it is filled: Arrow layout in plain vectors.
#[derive(Clone, Debug)]
pub struct PendingColumn {
    /// The key, unescaped.
    pub name: Arc<str>,
    /// Its kind; decides the variant of `data`.
    pub kind: ColumnKind,
    /// The values, one per row.
    pub data: PendingData,
    /// One bit per row, least significant first, 1 = present; `None` while every row had the column.
    pub validity: Option<Vec<u8>>,
}

/// The values of a [`PendingColumn`]; rows without a value hold a zero.
#[derive(Clone, Debug)]
pub enum PendingData {
    /// Dictionary keys, and the dictionary that they point into (may hold values that no row uses).
    Tag {
        /// One key per row.
        keys: Vec<i32>,
        /// The values.
        values: arrow::array::StringArray,
    },
    /// `i64` values.
    Integer(Vec<i64>),
    /// `u64` values.
    UInteger(Vec<u64>),
    /// `f64` values.
    Float(Vec<f64>),
    /// Text, with rows + 1 offsets.
    String {
        /// Where each row's text ends; the first is 0.
        offsets: Vec<i32>,
        /// The text of all rows.
        text: Vec<u8>,
    },
    /// One bit per row, least significant first.
    Boolean(Vec<u8>),
}

/// What the parser made of one table's lines in one request.
#[derive(Clone, Debug)]
pub struct PendingBatch {
    /// The measurement, unescaped.
    pub table: Arc<str>,
    /// The schema that it was parsed with; `None` if the table was unknown to the parser. Columns that the schema does
    /// not have are new and wait for the owner's verdict.
    pub schema: Option<Arc<TableSchema>>,
    /// In order of first appearance, tags before fields.
    pub columns: Vec<PendingColumn>,
    /// Nanoseconds since the epoch; 0 in the rows that `untimed` names.
    pub time: Vec<i64>,
    /// Rows without a timestamp, ascending.
    pub untimed: Vec<u32>,
    /// Fingerprint of each row's tag set, see [`Batch::series`].
    pub series: Vec<u64>,
    /// Where the rows stand in the request.
    pub lines: LineNumbers,
    /// The accepted lines, each ended by a newline (the last may lack it): a slice of the request where that is possible. This is
    /// the payload of the log; parsing it again with the same schema gives the same rows.
    pub text: Bytes,
    /// How the timestamps in `text` are to be read.
    pub precision: Precision,
}

impl PendingBatch {
    /// Rows in the batch.
    pub fn rows(&self) -> usize {
        self.time.len()
    }

    /// Bytes that the batch keeps alive, an upper estimate; what mailboxes account.
    pub fn bytes(&self) -> usize {
        let columns: usize = self
            .columns
            .iter()
            .map(|c| match &c.data {
                PendingData::Tag { keys, .. } => keys.capacity() * 4,
                PendingData::Integer(v) => v.capacity() * 8,
                PendingData::UInteger(v) => v.capacity() * 8,
                PendingData::Float(v) => v.capacity() * 8,
                PendingData::String { offsets, text } => offsets.capacity() * 4 + text.capacity(),
                PendingData::Boolean(v) => v.capacity(),
            })
            .sum();
        columns + self.time.capacity() * 16 + self.text.len()
    }

    /// The immutable batch over the same memory. Rows without a timestamp get `base_time_ns`, cut to the batch's precision.
    pub fn freeze(self, base_time_ns: i64) -> Batch {
        crate::line_protocol::freeze(self, base_time_ns)
    }
}
