//! The formats of results over HTTP (reference, 3.4).
//!
//! `json`, `jsonl` and `csv` are encoded batch by batch; `pretty` and `parquet` need the whole result and are held in memory
//! until the end. Timestamps without a zone are written without one (`2065-01-07T17:28:51.5`), tags as plain text; JSON
//! leaves out members that are NULL.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow_json::writer::{JsonArray, LineDelimited, Writer};
use bytes::Bytes;
use datafusion::arrow::util::pretty::pretty_format_batches_with_schema;
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;

use super::QueryError;

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

/// The request asks for no format that there is (400).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// In `format`.
    #[error(
        "serde error: unknown variant `{0}`, expected one of `parquet`, `csv`, `pretty`, `json`, `json_lines`, `jsonl`"
    )]
    UnknownFormat(String),
    /// In `Accept`.
    #[error("invalid mime type ({0})")]
    InvalidMimeType(String),
}

impl Format {
    /// The format that a request asks for: `format` if it is given, else by `Accept`, else JSON.
    ///
    /// # Errors
    /// If either is unknown; a wrong `Accept` is refused even beside a `format`.
    pub fn from_request(format: Option<&str>, accept: Option<&str>) -> Result<Format, FormatError> {
        let accepted = accept.map(Format::from_accept).transpose()?;
        let named = format.map(Format::from_name).transpose()?;
        Ok(named.or(accepted).unwrap_or_default())
    }

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

    fn from_name(name: &str) -> Result<Format, FormatError> {
        match name {
            "json" => Ok(Format::Json),
            "json_lines" | "jsonl" => Ok(Format::JsonLines),
            "csv" => Ok(Format::Csv),
            "pretty" => Ok(Format::Pretty),
            "parquet" => Ok(Format::Parquet),
            _ => Err(FormatError::UnknownFormat(name.to_owned())),
        }
    }

    fn from_accept(accept: &str) -> Result<Format, FormatError> {
        match accept {
            "application/vnd.apache.parquet" => Ok(Format::Parquet),
            "text/csv" => Ok(Format::Csv),
            "text/plain" => Ok(Format::Pretty),
            "application/json" => Ok(Format::Json),
            _ if accept.contains("text/html") || accept.contains("*/*") => Ok(Format::Json),
            _ => Err(FormatError::InvalidMimeType(accept.to_owned())),
        }
    }
}

/// The whole text of a result that is already there.
///
/// # Errors
/// If a column's type, or two columns of one name, cannot be written in this format.
pub fn encode(format: Format, schema: SchemaRef, batches: &[RecordBatch]) -> Result<Bytes, QueryError> {
    let mut encoder = Encoder::new(format, schema)?;
    let mut text = Vec::new();
    for batch in batches {
        text.extend_from_slice(&encoder.batch(batch)?);
    }
    text.extend_from_slice(&encoder.finish()?);
    Ok(text.into())
}

/// Writes one result, batch by batch.
pub struct Encoder {
    schema: SchemaRef,
    state: State,
}

enum State {
    Json(Writer<Vec<u8>, JsonArray>),
    JsonLines(Writer<Vec<u8>, LineDelimited>),
    Csv {
        header_written: bool,
    },
    Pretty(Vec<RecordBatch>),
    /// Begun with the first row.
    Parquet(Option<Box<ArrowWriter<Vec<u8>>>>),
}

impl Encoder {
    /// An encoder for a result with these columns.
    ///
    /// # Errors
    /// If the format can say a column's name only once and the result has it twice.
    pub fn new(format: Format, schema: SchemaRef) -> Result<Self, QueryError> {
        if !matches!(format, Format::Csv | Format::Pretty) {
            super::require_distinct(&schema)?;
        }
        let state = match format {
            Format::Json => State::Json(Writer::new(Vec::new())),
            Format::JsonLines => State::JsonLines(Writer::new(Vec::new())),
            Format::Csv => State::Csv { header_written: false },
            Format::Pretty => State::Pretty(Vec::new()),
            Format::Parquet => State::Parquet(None),
        };
        Ok(Encoder { schema, state })
    }

    /// What can be written now that these rows are known; maybe nothing.
    ///
    /// # Errors
    /// If a column's type cannot be written in this format.
    pub fn batch(&mut self, batch: &RecordBatch) -> Result<Bytes, QueryError> {
        if batch.num_rows() == 0 {
            return Ok(Bytes::new());
        }
        let written = match &mut self.state {
            State::Json(writer) => writer.write(batch).map(|()| std::mem::take(writer.get_mut())),
            State::JsonLines(writer) => writer.write(batch).map(|()| std::mem::take(writer.get_mut())),
            State::Csv { header_written } => csv(batch, !std::mem::replace(header_written, true)),
            State::Pretty(batches) => {
                batches.push(batch.clone());
                Ok(Vec::new())
            }
            State::Parquet(writer) => parquet(writer, &self.schema, batch).map(|()| Vec::new()).map_err(from_parquet),
        };
        written.map(Bytes::from).map_err(failed)
    }

    /// The rest.
    ///
    /// # Errors
    /// If a column's type cannot be written in this format.
    pub fn finish(&mut self) -> Result<Bytes, QueryError> {
        let written = match &mut self.state {
            State::Json(writer) => writer.finish().map(|()| std::mem::take(writer.get_mut())),
            State::JsonLines(writer) => writer.finish().map(|()| std::mem::take(writer.get_mut())),
            State::Csv { .. } => Ok(Vec::new()),
            State::Pretty(batches) => pretty(&self.schema, &std::mem::take(batches)),
            State::Parquet(writer) => match writer.take() {
                Some(writer) => writer.into_inner().map_err(from_parquet),
                None => Ok(Vec::new()),
            },
        };
        written.map(Bytes::from).map_err(failed)
    }
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

fn pretty(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    Ok(pretty_format_batches_with_schema(schema.clone(), batches)?.to_string().into_bytes())
}

fn parquet(
    writer: &mut Option<Box<ArrowWriter<Vec<u8>>>>,
    schema: &SchemaRef,
    batch: &RecordBatch,
) -> Result<(), ParquetError> {
    if writer.is_none() {
        *writer = Some(Box::new(ArrowWriter::try_new(Vec::new(), schema.clone(), None)?));
    }
    match writer {
        Some(writer) => writer.write(batch),
        None => Ok(()),
    }
}

fn from_parquet(error: ParquetError) -> ArrowError {
    ArrowError::ParquetError(error.to_string())
}

fn failed(error: ArrowError) -> QueryError {
    QueryError::Execution(format!("the result cannot be written in this format: {error}"))
}

#[cfg(test)]
mod tests;
