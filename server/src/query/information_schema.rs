//! `information_schema`, from the catalog's descriptions only.
//!
//! DataFusion's own view is not used for `tables`, `columns`, `views` and `schemata`: it would take a snapshot of every table
//! to list its columns, and it prints types as arrow does today (`Timestamp(ns)`), where plugins look for
//! `Timestamp(Nanosecond, None)`. Functions and settings are DataFusion's.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::information_schema::{InformationSchemaProvider, InformationSchemataBuilder};
use datafusion::catalog::{EmptyCatalogProviderList, MemTable, SchemaProvider, TableProvider};
use datafusion::error::Result;
use saltus_core::catalog::TableInfo;
use saltus_core::schema::TableSchema;

use super::catalog::{CATALOG, INFORMATION_SCHEMA, IOX, SYSTEM, Sources, TableAnswer};

/// The views, as `SHOW TABLES` lists them.
const VIEWS: [&str; 7] = ["columns", "df_settings", "parameters", "routines", "schemata", "tables", "views"];

/// Schema `information_schema` of one query.
pub(super) struct InformationSchema {
    sources: Sources,
    db: Option<Arc<str>>,
    /// For functions and settings.
    engine: InformationSchemaProvider,
}

impl InformationSchema {
    pub(super) fn new(sources: Sources, db: Option<Arc<str>>) -> Self {
        let engine = InformationSchemaProvider::new(Arc::new(EmptyCatalogProviderList));
        InformationSchema { sources, db, engine }
    }

    async fn view(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let batch = match name.to_ascii_lowercase().as_str() {
            "tables" => self.tables()?,
            "columns" => self.columns()?,
            "schemata" => schemata()?,
            "views" => views()?,
            _ => return self.engine.table(name).await,
        };
        Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
    }

    /// Schema and name of every table, system tables included, with what is told of its columns.
    fn described<T>(&self, told: impl Fn(Columns<'_>) -> T) -> Vec<(&'static str, String, T)> {
        let Some(db) = &self.db else { return Vec::new() };
        let mut tables = self.sources.tables.tables(db);
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        let user = |table: &TableInfo| (IOX, table.name.to_string(), told(Columns::Own(&table.schema)));
        let system = |(name, schema): &(&str, SchemaRef)| (SYSTEM, (*name).to_owned(), told(Columns::System(schema)));
        tables.iter().map(user).chain(self.sources.system_tables(db).iter().map(system)).collect()
    }

    fn tables(&self) -> Result<RecordBatch> {
        // Columns are not described where there may be thousands of tables and nobody asks for that.
        let base = self.described(|_| ()).into_iter().map(|(schema, name, ())| (schema, name, "BASE TABLE"));
        let views = VIEWS.iter().map(|name| (INFORMATION_SCHEMA, (*name).to_owned(), "VIEW"));
        let rows: Vec<_> = base.chain(views).collect();
        let columns = [
            text("table_catalog", rows.iter().map(|_| Some(CATALOG))),
            text("table_schema", rows.iter().map(|row| Some(row.0))),
            text("table_name", rows.iter().map(|row| Some(row.1.as_str()))),
            text("table_type", rows.iter().map(|row| Some(row.2))),
        ];
        batch(columns.map(|(field, array)| (field.with_nullable(false), array)).into())
    }

    fn columns(&self) -> Result<RecordBatch> {
        let tables = self.described(|columns| match columns {
            Columns::Own(schema) => schema.arrow_schema(),
            Columns::System(schema) => schema.clone(),
        });
        let rows: Vec<ColumnRow<'_>> =
            tables.iter().flat_map(|(schema, table, fields)| of(schema, table, fields)).collect();
        let null_text = |name: &str| text(name, rows.iter().map(|_| None));
        let null_number = |name: &str| number(name, rows.iter().map(|_| None), true);
        batch(vec![
            required(text("table_catalog", rows.iter().map(|_| Some(CATALOG)))),
            required(text("table_schema", rows.iter().map(|row| Some(row.schema)))),
            required(text("table_name", rows.iter().map(|row| Some(row.table)))),
            required(text("column_name", rows.iter().map(|row| Some(row.field.name().as_str())))),
            number("ordinal_position", rows.iter().map(|row| Some(row.position)), false),
            null_text("column_default"),
            required(text("is_nullable", rows.iter().map(|row| Some(yes_no(row.field.is_nullable()))))),
            required(text("data_type", rows.iter().map(|row| Some(row.data_type.as_str())))),
            null_number("character_maximum_length"),
            number("character_octet_length", rows.iter().map(ColumnRow::octets), true),
            number("numeric_precision", rows.iter().map(ColumnRow::precision), true),
            number("numeric_precision_radix", rows.iter().map(|row| row.precision().map(|_| 2)), true),
            null_number("numeric_scale"),
            null_number("datetime_precision"),
            null_text("interval_type"),
        ])
    }
}

/// The columns of a user's table, or of one of ours.
enum Columns<'a> {
    Own(&'a TableSchema),
    System(&'a SchemaRef),
}

impl fmt::Debug for InformationSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InformationSchema")
    }
}

impl SchemaProvider for InformationSchema {
    fn table_names(&self) -> Vec<String> {
        VIEWS.map(str::to_owned).into()
    }

    fn table<'life0, 'life1, 'async_trait>(&'life0 self, name: &'life1 str) -> TableAnswer<'async_trait>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(self.view(name))
    }

    fn table_exist(&self, name: &str) -> bool {
        VIEWS.iter().any(|view| name.eq_ignore_ascii_case(view))
    }
}

/// One row of `columns`.
struct ColumnRow<'a> {
    schema: &'a str,
    table: &'a str,
    position: u64,
    field: &'a Field,
    data_type: String,
}

impl ColumnRow<'_> {
    fn octets(&self) -> Option<u64> {
        matches!(self.field.data_type(), DataType::Utf8 | DataType::Binary).then_some(i32::MAX as u64)
    }

    /// In bits, with DataFusion's numbers.
    fn precision(&self) -> Option<u64> {
        match self.field.data_type() {
            DataType::Int32 | DataType::UInt32 => Some(32),
            DataType::Float64 => Some(24),
            _ => None,
        }
    }
}

fn of<'a>(schema: &'a str, table: &'a str, fields: &'a SchemaRef) -> impl Iterator<Item = ColumnRow<'a>> {
    fields.fields().iter().enumerate().map(move |(position, field)| ColumnRow {
        schema,
        table,
        position: position as u64,
        field,
        data_type: type_name(field.data_type()),
    })
}

/// The type in the spelling that users of InfluxDB 3 know, which is arrow's debug format.
pub(super) fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::List(field) => format!("List({})", type_name(field.data_type())),
        other => format!("{other:?}"),
    }
}

fn schemata() -> Result<RecordBatch> {
    let mut builder = InformationSchemataBuilder::new();
    for schema in [IOX, SYSTEM] {
        builder.add_schemata(CATALOG, schema, None);
    }
    builder.finish()
}

/// There are no views to show.
fn views() -> Result<RecordBatch> {
    let columns = ["table_catalog", "table_schema", "table_name", "definition"];
    batch(columns.map(|name| text(name, std::iter::empty())).into())
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "YES" } else { "NO" }
}

type Column = (Field, ArrayRef);

fn text<'a>(name: &str, values: impl Iterator<Item = Option<&'a str>>) -> Column {
    (Field::new(name, DataType::Utf8, true), Arc::new(values.collect::<StringArray>()))
}

fn required((field, array): Column) -> Column {
    (field.with_nullable(false), array)
}

fn number(name: &str, values: impl Iterator<Item = Option<u64>>, nullable: bool) -> Column {
    (Field::new(name, DataType::UInt64, nullable), Arc::new(values.collect::<UInt64Array>()))
}

fn batch(columns: Vec<Column>) -> Result<RecordBatch> {
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}
