//! The formats of results over HTTP (reference, 3.4).
//!
//! A result is encoded in pieces: `json`, `jsonl` and `csv` some rows at a time, `parquet` by row groups; `pretty` needs the whole
//! result first (`pretty`). Timestamps without a zone are written without one (`2065-01-07T17:28:51.5`), tags as plain text;
//! JSON leaves out members that are NULL.

mod pretty;

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_json::writer::{JsonArray, LineDelimited, Writer};
use bytes::Bytes;
use datafusion::execution::memory_pool::MemoryReservation;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use saltus_core::limits::{QUERY_ENCODE_BYTES_MAX, QUERY_STEP_BYTES_MAX, QUERY_VALUE_BYTES_MAX};

use self::pretty::Pretty;
use super::QueryError;
use super::guard::{QueryMemory, batch_bytes, current};

/// How a result is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One array of objects.
    #[default]
    Json,
    /// One object per line.
    JsonLines,
    /// A header, then one line per row; nothing at all if there are no rows.
    Csv,
    /// A table for people.
    Pretty,
    /// A Parquet file; nothing at all if there are no rows.
    Parquet,
}

impl Format {
    /// The value of the `Content-Type` header.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::JsonLines => "application/jsonl",
            Format::Csv => "text/csv",
            Format::Pretty => "text/plain; charset=utf-8",
            Format::Parquet => "application/vnd.apache.parquet",
        }
    }
}

/// Writes one result: rows go in with [`Encoder::push`], and pieces come out of [`Encoder::piece`].
pub struct Encoder {
    schema: SchemaRef,
    state: State,
    /// Rows that are not written yet.
    waiting: Option<RecordBatch>,
    /// What the query may take; nothing is counted without it.
    memory: Option<Arc<QueryMemory>>,
    /// For the piece that was given last.
    taken: Option<MemoryReservation>,
}

enum State {
    Json { writer: Writer<Vec<u8>, JsonArray>, over: bool },
    JsonLines(Writer<Vec<u8>, LineDelimited>),
    Csv { header_written: bool },
    Pretty(Box<Pretty>),
    Parquet(ParquetPieces),
}

/// A file that is begun with the first row and given away row group by row group.
struct ParquetPieces {
    writer: Option<Box<ArrowWriter<Vec<u8>>>>,
    rest: Vec<u8>,
}

impl Encoder {
    /// An encoder for a result with these columns, of the query that this thread works for.
    ///
    /// # Errors
    /// If the format can say a column's name only once and the result has it twice.
    pub fn new(format: Format, schema: SchemaRef) -> Result<Self, QueryError> {
        if !matches!(format, Format::Csv | Format::Pretty) {
            super::require_distinct(&schema)?;
        }
        let state = match format {
            Format::Json => State::Json { writer: Writer::new(Vec::new()), over: false },
            Format::JsonLines => State::JsonLines(Writer::new(Vec::new())),
            Format::Csv => State::Csv { header_written: false },
            Format::Pretty => State::Pretty(Box::new(Pretty::new(schema.clone()))),
            Format::Parquet => State::Parquet(ParquetPieces { writer: None, rest: Vec::new() }),
        };
        let memory = current().map(|guard| guard.memory().clone());
        Ok(Encoder { schema, state, waiting: None, memory, taken: None })
    }

    /// Takes rows, once all pieces of those before are out.
    ///
    /// # Errors
    /// If a column's type cannot be written in this format, or there is no memory for what the format has to keep.
    pub fn push(&mut self, batch: RecordBatch) -> Result<(), QueryError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if batch_bytes(&batch) > QUERY_VALUE_BYTES_MAX {
            check_rows(&batch)?;
        }
        match &mut self.state {
            State::Json { .. } | State::JsonLines(_) | State::Csv { .. } => self.waiting = Some(batch),
            State::Pretty(pretty) => {
                let taken = self.memory.as_ref().map(|memory| for_pretty(memory, batch_bytes(&batch))).transpose()?;
                pretty.push(batch, taken).map_err(failed)?;
            }
            State::Parquet(pieces) => {
                pieces.push(&self.schema, &batch).map_err(failed)?;
                if let Some(memory) = &self.memory {
                    let size = pieces.size();
                    let taken = memory.take("format=parquet", size).map_err(|_| memory.refusal())?;
                    self.taken = Some(taken);
                }
            }
        }
        Ok(())
    }

    /// There are no more rows.
    ///
    /// # Errors
    /// If a column's type cannot be written in this format.
    pub fn finish(&mut self) -> Result<(), QueryError> {
        match &mut self.state {
            State::Json { writer, over } => {
                *over = true;
                writer.finish().map_err(failed)
            }
            State::JsonLines(_) | State::Csv { .. } => Ok(()),
            State::Pretty(pretty) => {
                pretty.finish();
                Ok(())
            }
            State::Parquet(pieces) => pieces.finish().map_err(failed),
        }
    }

    /// The next piece of what can be written; empty when there is none now.
    ///
    /// # Errors
    /// If a column's type cannot be written in this format, or there is no memory for a row that is very long.
    pub fn piece(&mut self) -> Result<Bytes, QueryError> {
        let rows = self.next_rows()?;
        let written = match &mut self.state {
            State::Json { writer, over } => match rows {
                Some(rows) => writer.write(&rows).map(|()| std::mem::take(writer.get_mut())),
                None if *over => Ok(std::mem::take(writer.get_mut())),
                None => Ok(Vec::new()),
            },
            State::JsonLines(writer) => match rows {
                Some(rows) => writer.write(&rows).map(|()| std::mem::take(writer.get_mut())),
                None => Ok(Vec::new()),
            },
            State::Csv { header_written } => match rows {
                Some(rows) => csv(&rows, !std::mem::replace(header_written, true)),
                None => Ok(Vec::new()),
            },
            State::Pretty(pretty) => pretty.next(),
            State::Parquet(pieces) => Ok(pieces.take()),
        };
        written.map(Bytes::from).map_err(failed)
    }

    /// The next rows to be written at once. Memory for what becomes of them is taken if they are long.
    fn next_rows(&mut self) -> Result<Option<RecordBatch>, QueryError> {
        let Some(batch) = self.waiting.take() else { return Ok(None) };
        self.taken = None;
        let rows = batch.num_rows();
        let bytes = batch_bytes(&batch);
        let at_once = (QUERY_ENCODE_BYTES_MAX.saturating_mul(rows) / bytes.max(1)).clamp(1, rows);
        let part = batch.slice(0, at_once);
        if at_once < rows {
            self.waiting = Some(batch.slice(at_once, rows - at_once));
        }
        let bytes = if bytes > QUERY_STEP_BYTES_MAX { batch_bytes(&part) } else { 0 };
        if let Some(memory) = self.memory.as_ref().filter(|_| bytes > QUERY_STEP_BYTES_MAX) {
            // The text, and the room in which it grows.
            let taken = memory.take("the result", bytes.saturating_mul(2)).map_err(|_| memory.refusal())?;
            self.taken = Some(taken);
        }
        Ok(Some(part))
    }
}

impl ParquetPieces {
    fn push(&mut self, schema: &SchemaRef, batch: &RecordBatch) -> Result<(), ArrowError> {
        if self.writer.is_none() {
            let writer = ArrowWriter::try_new(Vec::new(), schema.clone(), None).map_err(from_parquet)?;
            self.writer = Some(Box::new(writer));
        }
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.write(batch).map_err(from_parquet)?;
        if writer.memory_size() > PARQUET_GROUP_BYTES_MAX {
            writer.flush().map_err(from_parquet)?;
        }
        Ok(())
    }

    fn size(&self) -> usize {
        self.writer.as_ref().map_or(0, |writer| writer.memory_size() + writer.inner().len())
    }

    fn take(&mut self) -> Vec<u8> {
        match &mut self.writer {
            Some(writer) => std::mem::take(writer.inner_mut()),
            None => std::mem::take(&mut self.rest),
        }
    }

    fn finish(&mut self) -> Result<(), ArrowError> {
        if let Some(writer) = self.writer.take() {
            self.rest = writer.into_inner().map_err(from_parquet)?;
        }
        Ok(())
    }
}

/// Bytes of rows that a row group of a Parquet file holds, about.
const PARQUET_GROUP_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Refuses a row that is too large to be written, sent and read as a whole.
fn check_rows(batch: &RecordBatch) -> Result<(), QueryError> {
    let largest = (0..batch.num_rows()).map(|row| batch_bytes(&batch.slice(row, 1))).max().unwrap_or(0);
    if largest <= QUERY_VALUE_BYTES_MAX {
        return Ok(());
    }
    Err(QueryError::TooLarge(format!(
        "a row of the result has {largest} bytes, and one has at most {QUERY_VALUE_BYTES_MAX}: ask for fewer columns, shorter \
         texts or lists"
    )))
}

/// Memory for rows whose widths are not all known yet.
fn for_pretty(memory: &Arc<QueryMemory>, bytes: usize) -> Result<MemoryReservation, QueryError> {
    memory.take("format=pretty", bytes).map_err(|_| match memory.refusal() {
        QueryError::TooLarge(_) => QueryError::TooLarge(format!(
            "format=pretty holds the whole result to align its columns, and this one needs more memory than queries may use, \
             {} bytes (setting --query-memory): use format=csv, json or jsonl, which are sent row by row, or add a LIMIT",
            memory.limit()
        )),
        busy => busy,
    })
}

/// The whole text of a result that is already there.
///
/// # Errors
/// If a column's type, or two columns of one name, cannot be written in this format.
pub fn encode(format: Format, schema: SchemaRef, batches: &[RecordBatch]) -> Result<Bytes, QueryError> {
    let mut encoder = Encoder::new(format, schema)?;
    let mut text = Vec::new();
    let mut drain = |encoder: &mut Encoder| {
        loop {
            let piece = encoder.piece()?;
            if piece.is_empty() {
                return Ok::<_, QueryError>(());
            }
            text.extend_from_slice(&piece);
        }
    };
    for batch in batches {
        encoder.push(batch.clone())?;
        drain(&mut encoder)?;
    }
    encoder.finish()?;
    drain(&mut encoder)?;
    Ok(text.into())
}

fn csv(batch: &RecordBatch, header: bool) -> Result<Vec<u8>, ArrowError> {
    let mut writer = arrow_csv::WriterBuilder::new().with_header(header).build(Vec::new());
    writer.write(&flat(batch)?)?;
    Ok(writer.into_inner())
}

/// The batch with its nested values as text, for a format that has no other way to write them.
fn flat(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema_ref();
    if !schema.fields().iter().any(|field| field.data_type().is_nested()) {
        return Ok(batch.clone());
    }
    let mut fields = Vec::with_capacity(schema.fields().len());
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if !field.data_type().is_nested() {
            fields.push(field.clone());
            columns.push(column.clone());
            continue;
        }
        let options = FormatOptions::default();
        let shown = ArrayFormatter::try_new(column, &options)?;
        let text = |row| column.is_valid(row).then(|| shown.value(row).try_to_string()).transpose();
        let texts: StringArray = (0..column.len()).map(text).collect::<Result<Vec<_>, _>>()?.into_iter().collect();
        fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
        columns.push(Arc::new(texts));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn from_parquet(error: ParquetError) -> ArrowError {
    ArrowError::ParquetError(error.to_string())
}

fn failed(error: ArrowError) -> QueryError {
    QueryError::Execution(format!("the result cannot be written in this format: {error}"))
}

#[cfg(test)]
mod tests;
