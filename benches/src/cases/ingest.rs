//! From the bytes of a request to an immutable batch: the parser, and the freezing of what it made.

use std::sync::Arc;

use bytes::Bytes;
use saltus_core::batch::{Batch, PendingBatch};
use saltus_core::line_protocol::{LineParser, ParsedWrite, Precision, SchemaSource};
use saltus_core::schema::{ColumnDef, TableSchema};

use super::{Measured, Size, warm};
use crate::tsbs::CpuOnly;

/// Rows of a body, as the Time Series Benchmark Suite's loaders send them.
pub(super) const ROWS: usize = 5000;
/// Bodies of one row each.
pub(super) const BODIES: usize = 200;
/// Series that take turns.
const HOSTS: usize = 4000;
/// Bodies that take turns: no run sees the bytes of the run before.
const TURNS: usize = 8;

/// A database whose one table is there, or not yet.
struct Schema(Option<Arc<TableSchema>>);

impl SchemaSource for Schema {
    fn table(&self, _table: &str) -> Option<Arc<TableSchema>> {
        self.0.clone()
    }
}

fn parse(parser: &mut LineParser, body: &Bytes, schema: &Schema) -> ParsedWrite {
    parser.parse("benchmark", body, Precision::Nanosecond, true, schema)
}

/// What a run makes is checked by what it counts: rows that came through.
fn rows(written: &[ParsedWrite]) -> u64 {
    written.iter().flat_map(|written| &written.batches).map(|batch| batch.rows() as u64).sum()
}

/// Bodies for one parser.
struct Parser {
    parser: LineParser,
    /// A new parser for every run.
    cold: bool,
    schema: Schema,
    bodies: Vec<Bytes>,
    /// Bodies of a run.
    per_run: usize,
    next: usize,
    written: Vec<ParsedWrite>,
}

impl Parser {
    fn new(rows_per_body: usize, bodies: usize, per_run: usize) -> Self {
        let mut source = CpuOnly::new(HOSTS, 1);
        let bodies: Vec<Bytes> = (0..bodies).map(|_| source.body(rows_per_body).into()).collect();
        let mut parser = LineParser::new();
        let batch = parse(&mut parser, &bodies[0], &Schema(None)).batches.remove(0);
        let columns = batch.columns.iter().map(|c| ColumnDef { name: c.name.clone(), kind: c.kind }).collect();
        let schema = Schema(Some(Arc::new(TableSchema::new(columns, 1))));
        let written = Vec::with_capacity(per_run);
        Parser { parser, cold: false, schema, bodies, per_run, next: 0, written }
    }
}

impl Measured for Parser {
    fn reset(&mut self) {
        self.written.clear();
        if self.cold {
            self.parser = LineParser::new();
        }
    }

    fn run(&mut self) -> u64 {
        for _ in 0..self.per_run {
            let body = &self.bodies[self.next % self.bodies.len()];
            self.next += 1;
            self.written.push(parse(&mut self.parser, body, &self.schema));
        }
        rows(&self.written)
    }
}

/// One parser for all bodies, as a shard has it: every series is known.
pub(super) fn known(size: Size) -> Box<dyn Measured> {
    warm(Parser::new(size.of(ROWS), TURNS, 1), TURNS)
}

/// A new parser for every body: no series is known, and no dictionary.
pub(super) fn cold(size: Size) -> Box<dyn Measured> {
    warm(Parser { cold: true, ..Parser::new(size.of(ROWS), TURNS, 1) }, 1)
}

/// Bodies of one row, series by series: what it costs to begin and to end a request.
pub(super) fn single_rows(size: Size) -> Box<dyn Measured> {
    let bodies = size.of(BODIES);
    warm(Parser::new(1, bodies, bodies), 3)
}

/// A batch that the parser has filled, and the immutable one that becomes of it.
struct Freeze {
    parsed: PendingBatch,
    pending: Option<PendingBatch>,
    batch: Option<Batch>,
}

impl Measured for Freeze {
    fn reset(&mut self) {
        self.batch = None;
        self.pending = Some(self.parsed.clone());
    }

    fn run(&mut self) -> u64 {
        self.batch = self.pending.take().map(|pending| pending.freeze(0));
        self.batch.as_ref().map_or(0, |batch| batch.rows() as u64)
    }
}

/// Freezing a batch: nothing of it depends on its rows, since the columns keep their memory.
pub(super) fn freeze(size: Size) -> Box<dyn Measured> {
    let mut parser = Parser::new(size.of(ROWS), 1, 1);
    parser.run();
    let parsed = parser.written.remove(0).batches.remove(0);
    warm(Freeze { parsed, pending: None, batch: None }, 2)
}
