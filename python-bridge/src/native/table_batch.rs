//! `TableBatch`: one item of `table_batches` (reference, 1.3). A dict with the keys `table_name` and `rows`, whose rows
//! are made when somebody looks at them; the columns cost nothing until then.

use std::cell::Cell;
use std::ffi::CStr;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{
    Array, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, RecordBatchIterator, StringArray, StructArray,
    UInt64Array,
};
use arrow::datatypes::{Field, Int32Type, Schema};
use arrow::ffi::to_ffi;
use arrow::ffi_stream::FFI_ArrowArrayStream;
use saltus_core::batch::{Batch, BatchColumn};
use saltus_core::ports;
use saltus_core::schema::{ColumnKind, time_type};

use super::Natives;
use super::column::Column;
use crate::ffi::capsule::capsule;
use crate::ffi::dictobject::RowBuilder;
use crate::ffi::methodobject::{Args, Method, Property, dict_method};
use crate::ffi::pyerrors::Builtin;
use crate::ffi::typeobject::{LazyDict, Payload, TypeBuilder};
use crate::ffi::{Object, Py, PyResult, Raised};

/// The payload.
pub struct TableBatch {
    table: ports::TableBatch,
    natives: Rc<Natives>,
    complete: Cell<bool>,
}

impl Payload for TableBatch {
    const NAME: &'static CStr = c"_saltus.TableBatch";
    const DOC: &'static CStr = c"The rows of one table: a dict with the keys 'table_name' and 'rows'.";
    const IS_DICT: bool = true;
}

/// The type's members.
pub fn define(builder: TypeBuilder<TableBatch>) -> TypeBuilder<TableBatch> {
    builder
        .lazy_dict()
        .method::<Get>()
        .method::<Items>()
        .method::<Values>()
        .method::<Pop>()
        .method::<PopItem>()
        .method::<SetDefault>()
        .method::<Copy>()
        .method::<ArrowArray>()
        .method::<ArrowSchema>()
        .method::<ArrowStream>()
        .property::<Columns>()
        .property::<RowCount>()
        .property::<Id>()
}

/// The dict for `table`.
pub fn make(py: Py, natives: &Rc<Natives>, table: ports::TableBatch) -> PyResult {
    let name = Object::text(py, &table.table)?;
    let payload = TableBatch { table, natives: natives.clone(), complete: Cell::new(false) };
    let dict = natives.table_batch.instance(py, payload)?;
    dict.dict_set(py, &natives.table_name_key, &name)?;
    dict.dict_set(py, &natives.rows_key, &natives.rows_pending)?;
    Ok(dict)
}

impl LazyDict for TableBatch {
    fn complete(&self, py: Py, this: &Object) -> PyResult<()> {
        if self.complete.replace(true) {
            return Ok(());
        }
        // A plugin may have replaced or removed the entry by a way that does not come through here (`dict.update`).
        let current = this.dict_get(py, &self.natives.rows_key)?;
        if current.is_some_and(|c| c.is(&self.natives.rows_pending)) {
            let rows = rows(py, &self.natives, &self.table).inspect_err(|_| self.complete.set(false))?;
            this.dict_set(py, &self.natives.rows_key, &rows)?;
        }
        Ok(())
    }
}

/// A dictionary with more texts per row than this is not worth a table of those that were made.
const DICTIONARY_PER_ROW_MAX: usize = 16;

/// One column, ready to be read row by row.
enum Reader<'a> {
    /// `made` has the dictionary's texts that were made already; none if the dictionary is much larger than the batch.
    Tag {
        keys: &'a [i32],
        values: &'a StringArray,
        made: Vec<Option<Object>>,
    },
    Integer(&'a Int64Array),
    UInteger(&'a UInt64Array),
    Float(&'a Float64Array),
    String(&'a StringArray),
    Boolean(&'a BooleanArray),
}

impl<'a> Reader<'a> {
    fn new(column: &'a BatchColumn) -> Self {
        match column.kind {
            ColumnKind::Tag => {
                let tags = column.data.as_dictionary::<Int32Type>();
                let values = tags.values().as_string::<i32>();
                let memorable = if values.len() > tags.len() * DICTIONARY_PER_ROW_MAX { 0 } else { values.len() };
                let made = std::iter::repeat_with(|| None).take(memorable).collect();
                Reader::Tag { keys: tags.keys().values(), values, made }
            }
            ColumnKind::Integer => Reader::Integer(column.data.as_primitive()),
            ColumnKind::UInteger => Reader::UInteger(column.data.as_primitive()),
            ColumnKind::Float => Reader::Float(column.data.as_primitive()),
            ColumnKind::String => Reader::String(column.data.as_string()),
            ColumnKind::Boolean => Reader::Boolean(column.data.as_boolean()),
        }
    }

    fn value(&mut self, py: Py, row: usize) -> PyResult {
        match self {
            Reader::Tag { keys, values, made } => {
                let key = keys[row] as usize;
                let Some(made) = made.get_mut(key) else { return Object::text(py, values.value(key)) };
                if let Some(object) = made {
                    return Ok(object.clone());
                }
                Ok(made.insert(Object::text(py, values.value(key))?).clone())
            }
            Reader::Integer(array) => Object::int(py, array.values()[row]),
            Reader::UInteger(array) => Object::uint(py, array.values()[row]),
            Reader::Float(array) => Object::float(py, array.values()[row]),
            Reader::String(array) => Object::text(py, array.value(row)),
            Reader::Boolean(array) => Ok(Object::bool(py, array.value(row))),
        }
    }
}

/// The rows as a list of dicts: the keys of tags, of fields, and `time` last, those of each kind in the order of the columns. Where a
/// row has no value there is no key, or, if the trigger wants all columns of the table, `None`.
fn rows(py: Py, natives: &Natives, table: &ports::TableBatch) -> PyResult {
    let batch = &table.batch;
    let mut columns: Vec<&BatchColumn> = batch.columns.iter().collect();
    columns.sort_by_key(|column| column.kind != ColumnKind::Tag);
    let mut keys = Vec::with_capacity(columns.len() + 1);
    for column in &columns {
        keys.push(natives.names.get(py, &column.name)?);
    }
    let missing = table.all_columns.as_ref().map(|all| {
        let is_missing = |name: &&Arc<str>| !columns.iter().any(|column| column.name == **name);
        all.iter().filter(is_missing).map(|name| natives.names.get(py, name)).collect::<PyResult<Vec<_>>>()
    });
    let missing = missing.transpose()?;
    let fill = missing.is_some().then(|| Object::none(py));
    keys.extend(missing.into_iter().flatten());
    let present = columns.len();
    let absent = keys.len() - present;
    keys.push(natives.time_key.clone());
    let mut readers: Vec<_> = columns.iter().map(|c| (Reader::new(c), c.data.nulls())).collect();
    let mut builder = RowBuilder::new(py, keys);
    let mut rows = Vec::with_capacity(batch.rows());
    for (row, &time) in batch.time.values().iter().enumerate() {
        for (key, (reader, nulls)) in readers.iter_mut().enumerate() {
            if nulls.is_none_or(|n| n.is_valid(row)) {
                builder.push(key, reader.value(py, row)?);
            } else if let Some(none) = &fill {
                builder.push(key, none.clone());
            }
        }
        for (key, none) in (present..present + absent).zip(fill.iter().cycle()) {
            builder.push(key, none.clone());
        }
        builder.push(present + absent, Object::int(py, time)?);
        rows.push(builder.finish(py)?);
    }
    Object::list(py, rows)
}

/// The batch as Arrow sees it: the columns in order, then `time`; no buffer is copied.
fn record_batch(batch: &Batch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let mut fields: Vec<Field> =
        batch.columns.iter().map(|c| Field::new(c.name.as_ref(), c.kind.arrow_type(), true)).collect();
    fields.push(Field::new("time", time_type(), false));
    let mut arrays: Vec<_> = batch.columns.iter().map(|c| c.data.clone()).collect();
    arrays.push(Arc::new(batch.time.clone()));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}

fn arrow_error(py: Py, error: arrow::error::ArrowError) -> Raised {
    Raised::new(py, Builtin::Value, &error.to_string())
}

macro_rules! completing_dict_methods {
    ($($type:ident = $name:literal),+) => {
        $(
            #[doc = concat!("`dict.", $name, "` after the rows have been made.")]
            struct $type;

            impl Method for $type {
                type Owner = TableBatch;
                const NAME: &'static CStr = match CStr::from_bytes_with_nul(concat!($name, "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => panic!("a name without zeros"),
                };
                const DOC: &'static CStr = c"As in dict.";

                fn call(py: Py, this: &Object, owner: &TableBatch, args: &Args<'_>) -> PyResult {
                    owner.complete(py, this)?;
                    dict_method(py, $name, this, args)
                }
            }
        )+
    };
}

completing_dict_methods!(
    Get = "get",
    Items = "items",
    Values = "values",
    Pop = "pop",
    PopItem = "popitem",
    SetDefault = "setdefault",
    Copy = "copy"
);

/// `batch.columns`
struct Columns;

impl Property for Columns {
    type Owner = TableBatch;
    const NAME: &'static CStr = c"columns";
    const DOC: &'static CStr = c"The columns by name, 'time' last; they share the table's memory.";

    fn get(py: Py, _this: &Object, owner: &TableBatch) -> PyResult {
        let columns = Object::dict(py)?;
        let batch = &owner.table.batch;
        let natives = &owner.natives;
        for (at, column) in batch.columns.iter().enumerate() {
            let name = natives.names.get(py, &column.name)?;
            columns.dict_set(py, &name, &natives.column.instance(py, Column::new(batch.clone(), at))?)?;
        }
        let time = natives.column.instance(py, Column::new(batch.clone(), batch.columns.len()))?;
        columns.dict_set(py, &natives.time_key, &time)?;
        Ok(columns)
    }
}

/// `batch.event_id`
struct Id;

impl Property for Id {
    type Owner = TableBatch;
    const NAME: &'static CStr = c"event_id";
    const DOC: &'static CStr = c"The write that the rows come from; the same whenever they are delivered again.";

    fn get(py: Py, _this: &Object, owner: &TableBatch) -> PyResult {
        Object::text(py, &owner.table.id.to_string())
    }
}

/// `batch.row_count`
struct RowCount;

impl Property for RowCount {
    type Owner = TableBatch;
    const NAME: &'static CStr = c"row_count";
    const DOC: &'static CStr = c"How many rows, without making them.";

    fn get(py: Py, _this: &Object, owner: &TableBatch) -> PyResult {
        Object::uint(py, owner.table.batch.rows() as u64)
    }
}

/// `batch.__arrow_c_array__(requested_schema=None)`
struct ArrowArray;

impl Method for ArrowArray {
    type Owner = TableBatch;
    const NAME: &'static CStr = c"__arrow_c_array__";
    const DOC: &'static CStr = c"The rows as one struct array (Arrow PyCapsule interface), without a copy.";

    fn call(py: Py, _this: &Object, owner: &TableBatch, _args: &Args<'_>) -> PyResult {
        let rows = record_batch(&owner.table.batch).map_err(|e| arrow_error(py, e))?;
        let (array, schema) = to_ffi(&StructArray::from(rows).to_data()).map_err(|e| arrow_error(py, e))?;
        Object::tuple(py, vec![capsule(py, schema)?, capsule(py, array)?])
    }
}

/// `batch.__arrow_c_schema__()`
struct ArrowSchema;

impl Method for ArrowSchema {
    type Owner = TableBatch;
    const NAME: &'static CStr = c"__arrow_c_schema__";
    const DOC: &'static CStr = c"The schema of the rows (Arrow PyCapsule interface).";

    fn call(py: Py, _this: &Object, owner: &TableBatch, _args: &Args<'_>) -> PyResult {
        let rows = record_batch(&owner.table.batch).map_err(|e| arrow_error(py, e))?;
        let schema = arrow::ffi::FFI_ArrowSchema::try_from(rows.schema().as_ref()).map_err(|e| arrow_error(py, e))?;
        capsule(py, schema)
    }
}

/// `batch.__arrow_c_stream__(requested_schema=None)`
struct ArrowStream;

impl Method for ArrowStream {
    type Owner = TableBatch;
    const NAME: &'static CStr = c"__arrow_c_stream__";
    const DOC: &'static CStr = c"The rows as a stream of one batch (Arrow PyCapsule interface), without a copy.";

    fn call(py: Py, _this: &Object, owner: &TableBatch, _args: &Args<'_>) -> PyResult {
        let rows = record_batch(&owner.table.batch).map_err(|e| arrow_error(py, e))?;
        let schema = rows.schema();
        let reader = RecordBatchIterator::new([Ok(rows)], schema);
        capsule(py, FFI_ArrowArrayStream::new(Box::new(reader)))
    }
}
