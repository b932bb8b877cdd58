//! Contract of a chunk: a batch that a table holds, with what the table must know of its rows.
//!
//! A chunk never changes. It is not sorted, and it may hold several versions of one point.

use std::sync::Arc;

use saltus_core::batch::Batch;

/// Immutable rows of a table.
pub(super) struct Chunk {
    /// The rows: the very batch that was written, or one that the table made of several.
    pub(super) batch: Arc<Batch>,
    pub(super) order: Order,
    /// Rows that may be later versions of a point in this chunk or in another, ascending. Empty: not flagged.
    pub(super) suspects: Vec<u32>,
    pub(super) time_min: i64,
    pub(super) time_max: i64,
    /// What the chunk keeps alive, an upper estimate.
    pub(super) bytes: usize,
}

/// When each row was applied: a number that rises with every row of the table, in the order of application.
pub(super) enum Order {
    /// Row `i` is number `first + i`.
    From(u64),
    /// One number per row.
    Listed(Vec<u64>),
}

impl Order {
    /// The short form of ascending `numbers` where there is one.
    pub(super) fn of(numbers: Vec<u64>) -> Self {
        match (numbers.first(), numbers.last()) {
            (Some(&first), Some(&last)) if last - first + 1 == numbers.len() as u64 => Order::From(first),
            _ => Order::Listed(numbers),
        }
    }

    pub(super) fn number(&self, row: usize) -> u64 {
        match self {
            Order::From(first) => first + row as u64,
            Order::Listed(numbers) => numbers[row],
        }
    }
}

impl Chunk {
    /// A chunk of a batch that has rows.
    pub(super) fn new(batch: Arc<Batch>, order: Order, suspects: Vec<u32>) -> Self {
        let (time_min, time_max) =
            batch.time.values().iter().fold((i64::MAX, i64::MIN), |(min, max), &time| (min.min(time), max.max(time)));
        let order_bytes = match &order {
            Order::From(_) => 0,
            Order::Listed(numbers) => numbers.capacity() * 8,
        };
        let bytes = batch.bytes() + order_bytes + suspects.capacity() * 4;
        Chunk { batch, order, suspects, time_min, time_max, bytes }
    }

    pub(super) fn rows(&self) -> usize {
        self.batch.time.len()
    }

    /// Whether the chunk can have rows between `from` and `to`, both included.
    pub(super) fn meets(&self, (from, to): (i64, i64)) -> bool {
        self.time_min <= to && from <= self.time_max
    }
}
