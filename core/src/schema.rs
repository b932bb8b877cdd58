//! A table's columns. Append-only: an index, once given, means the same column for the table's whole life, and a
//! column's kind never changes.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// What a column holds. `time` is no column here: every table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ColumnKind {
    /// Part of the series key.
    Tag,
    /// `i64` field.
    Integer,
    /// `u64` field.
    UInteger,
    /// `f64` field.
    Float,
    /// UTF-8 field.
    String,
    /// Boolean field.
    Boolean,
}

impl ColumnKind {
    /// The name in error texts and in Arrow field metadata (reference, 6.3 and 7.4).
    pub fn iox_name(self) -> &'static str {
        match self {
            ColumnKind::Tag => "iox::column_type::tag",
            ColumnKind::Integer => "iox::column_type::field::integer",
            ColumnKind::UInteger => "iox::column_type::field::uinteger",
            ColumnKind::Float => "iox::column_type::field::float",
            ColumnKind::String => "iox::column_type::field::string",
            ColumnKind::Boolean => "iox::column_type::field::boolean",
        }
    }

    /// The Arrow type in batches and in query results.
    pub fn arrow_type(self) -> DataType {
        match self {
            ColumnKind::Tag => DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
            ColumnKind::Integer => DataType::Int64,
            ColumnKind::UInteger => DataType::UInt64,
            ColumnKind::Float => DataType::Float64,
            ColumnKind::String => DataType::Utf8,
            ColumnKind::Boolean => DataType::Boolean,
        }
    }

    /// One byte for the log and the catalog; stable for ever.
    pub fn code(self) -> u8 {
        match self {
            ColumnKind::Tag => 1,
            ColumnKind::Integer => 2,
            ColumnKind::UInteger => 3,
            ColumnKind::Float => 4,
            ColumnKind::String => 5,
            ColumnKind::Boolean => 6,
        }
    }

    /// The kind of a byte that [`ColumnKind::code`] gave.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => ColumnKind::Tag,
            2 => ColumnKind::Integer,
            3 => ColumnKind::UInteger,
            4 => ColumnKind::Float,
            5 => ColumnKind::String,
            6 => ColumnKind::Boolean,
            _ => return None,
        })
    }
}

/// The Arrow type of every table's `time` column.
pub fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, None)
}

/// One tag or field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ColumnDef {
    /// The key, unescaped.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: ColumnKind,
}

/// The columns of a table at one moment; immutable, replaced whole when a column is added.
#[derive(Clone, Debug, Default)]
pub struct TableSchema {
    columns: Vec<ColumnDef>,
    index: HashMap<Arc<str>, usize, ahash::RandomState>,
    version: u32,
    own_time: bool,
}

impl TableSchema {
    /// A schema of `columns` in the order in which they were added.
    pub fn new(columns: Vec<ColumnDef>, version: u32) -> Self {
        let index: HashMap<Arc<str>, usize, ahash::RandomState> =
            columns.iter().enumerate().map(|(at, c)| (c.name.clone(), at)).collect();
        let own_time = index.contains_key("time");
        TableSchema { columns, index, version, own_time }
    }

    /// All columns but `time`, in the order in which they were added.
    pub fn columns(&self) -> &[ColumnDef] {
        &self.columns
    }

    /// Counts the changes; a batch says which version it was parsed with.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether there is a column `time` beside the one that every table has. Such a table cannot be read; earlier versions made one if
    /// they were asked to, and it is left to its owner to delete it.
    pub fn has_own_time(&self) -> bool {
        self.own_time
    }

    /// The position of a column.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&ColumnDef> {
        self.position(name).map(|at| &self.columns[at])
    }

    /// This schema with `added` behind it and the next version.
    pub fn extended(&self, added: &[ColumnDef]) -> Self {
        let mut columns = self.columns.clone();
        columns.extend_from_slice(added);
        TableSchema::new(columns, self.version + 1)
    }

    /// The tags, in the order in which they were added: the series key.
    pub fn tags(&self) -> impl Iterator<Item = &ColumnDef> {
        self.columns.iter().filter(|c| c.kind == ColumnKind::Tag)
    }

    /// The schema that SQL sees: every column and `time`, sorted by name as InfluxDB 3 shows them. Each field carries
    /// `iox::column::type` (reference, 7.4).
    pub fn arrow_schema(&self) -> SchemaRef {
        let mut fields: Vec<Field> = self
            .columns
            .iter()
            .map(|c| {
                Field::new(c.name.as_ref(), c.kind.arrow_type(), true)
                    .with_metadata([("iox::column::type".to_owned(), c.kind.iox_name().to_owned())].into())
            })
            .collect();
        fields.push(
            Field::new("time", time_type(), false)
                .with_metadata([("iox::column::type".to_owned(), "iox::column_type::timestamp".to_owned())].into()),
        );
        fields.sort_by(|a, b| a.name().cmp(b.name()));
        Arc::new(Schema::new(fields))
    }
}
