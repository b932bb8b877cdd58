//! What the bridge adds to a plugin: an inline run of an empty one, rows as dicts, columns as memoryviews.

use std::sync::Arc;

use saltus_core::ports::{TableBatch, Trigger};

use super::{Measured, Size, warm};
use crate::python::{Interpreter, cpu_rows, table_batch, trigger};

/// Runs of the empty plugin that are measured together.
pub(super) const RUNS: usize = 50;
/// Rows that are made dicts of.
pub(super) const ROWS: usize = 500;
/// Runs after which nothing is new to the interpreter any more: its specialising compiler has seen them, the garbage
/// collector has taken its first rounds.
const WARM: usize = 3;

/// Does nothing.
pub const EMPTY: &str = "def process_writes(api, batches, args):\n    pass\n";
/// Reads all rows.
pub const ROWS_TO_DICTS: &str =
    "def process_writes(api, batches, args):\n    assert batches[0]['rows'][-1]['usage_9']\n";
/// Looks at all columns.
pub const COLUMNS_TO_MEMORYVIEW: &str =
    "def process_writes(api, batches, args):\n    for c in batches[0].columns.values():\n        memoryview(c)\n";

/// A plugin, and what it is given.
struct Runs {
    interpreter: Interpreter,
    trigger: Arc<Trigger>,
    tables: Vec<TableBatch>,
    runs: usize,
}

impl Runs {
    /// `number` tells the plugins of a process apart.
    fn new(number: u64, source: &str, rows: usize, runs: usize) -> Self {
        let interpreter = Interpreter::start(true);
        let trigger = trigger(number, source);
        interpreter.await_ready(&trigger);
        Runs { interpreter, trigger, tables: vec![table_batch(cpu_rows(rows))], runs }
    }
}

impl Measured for Runs {
    fn reset(&mut self) {}

    fn run(&mut self) -> u64 {
        for _ in 0..self.runs {
            self.interpreter.run(&self.trigger, &self.tables);
        }
        self.runs as u64
    }
}

/// A run of an empty plugin with one row: all of it is the bridge's.
pub(super) fn empty(size: Size) -> Box<dyn Measured> {
    warm(Runs::new(1, EMPTY, 1, size.of(RUNS)), WARM)
}

/// `batch["rows"]`, with the run around it.
pub(super) fn rows_to_dicts(size: Size) -> Box<dyn Measured> {
    warm(Runs::new(2, ROWS_TO_DICTS, size.of(ROWS), 1), WARM * 10)
}

/// `memoryview` of 21 columns, with the run around it.
pub(super) fn columns_to_memoryview(size: Size) -> Box<dyn Measured> {
    warm(Runs::new(3, COLUMNS_TO_MEMORYVIEW, size.of(ROWS), 1), WARM * 10)
}
