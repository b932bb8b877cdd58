//! Mechanism of putting small chunks together: the tail, into which small batches are copied, and the merge of chunks
//! that were frozen small. Both copy rows in one place, [`Tail::append`].

use std::mem;
use std::sync::Arc;

use saltus_core::batch::Batch;

use super::builder::RowsBuilder;
use super::chunk::{Chunk, Order};

/// Rows that may still grow, with what a chunk must know of them.
pub(super) struct Tail {
    rows: RowsBuilder,
    order: Vec<u64>,
    suspects: Vec<u32>,
}

impl Tail {
    pub(super) fn new() -> Self {
        Tail { rows: RowsBuilder::new(), order: Vec::new(), suspects: Vec::new() }
    }

    /// One chunk with the rows of `chunks`.
    pub(super) fn merged(chunks: &[Arc<Chunk>]) -> Option<Chunk> {
        let mut all = Tail::new();
        for chunk in chunks {
            all.append(&chunk.batch, &chunk.order, &chunk.suspects);
        }
        all.freeze()
    }

    /// Copies the rows of `batch`.
    pub(super) fn append(&mut self, batch: &Batch, order: &Order, suspects: &[u32]) {
        let before = self.rows() as u32;
        self.suspects.extend(suspects.iter().map(|row| before + row));
        self.order.extend((0..batch.rows()).map(|row| order.number(row)));
        self.rows.append(batch);
    }

    /// What there is as a chunk, over the same memory; leaves an empty tail.
    pub(super) fn freeze(&mut self) -> Option<Chunk> {
        if self.rows() == 0 {
            return None;
        }
        let full = mem::replace(self, Tail::new());
        Some(Chunk::new(Arc::new(full.rows.finish()), Order::of(full.order), full.suspects))
    }

    pub(super) fn rows(&self) -> usize {
        self.rows.rows()
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes() + self.order.len() * 8 + self.suspects.len() * 4
    }
}
