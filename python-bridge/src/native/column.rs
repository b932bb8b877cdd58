//! `Column`: one column of a batch, over the very memory that the table holds.

use std::ffi::CStr;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, UInt64Type};
use arrow::ffi::{FFI_ArrowSchema, to_ffi};
use saltus_core::batch::Batch;
use saltus_core::schema::ColumnKind;

use super::convert;
use crate::ffi::buffer::{BufferSource, BufferView};
use crate::ffi::capsule::capsule;
use crate::ffi::methodobject::{Args, Method, Property};
use crate::ffi::pyerrors::Builtin;
use crate::ffi::typeobject::{Length, Payload, TypeBuilder};
use crate::ffi::{Object, Py, PyResult, Raised};

/// The payload: keeps the whole batch alive, and with it the buffers that views show.
pub struct Column {
    batch: Arc<Batch>,
    at: usize,
    /// One byte per row for a boolean column, which Arrow keeps as bits; the only copy.
    bytes: Vec<u8>,
}

impl Column {
    /// The column at position `at` of `batch`; the position behind the last is `time`.
    pub fn new(batch: Arc<Batch>, at: usize) -> Self {
        let bytes = match batch.columns.get(at) {
            Some(c) if c.kind == ColumnKind::Boolean => c.data.as_boolean().values().iter().map(u8::from).collect(),
            _ => Vec::new(),
        };
        Column { batch, at, bytes }
    }

    /// The key.
    pub fn name(&self) -> &str {
        self.batch.columns.get(self.at).map_or("time", |c| c.name.as_ref())
    }

    fn kind(&self) -> Option<ColumnKind> {
        self.batch.columns.get(self.at).map(|c| c.kind)
    }

    fn array(&self) -> ArrayRef {
        match self.batch.columns.get(self.at) {
            Some(column) => column.data.clone(),
            None => Arc::new(self.batch.time.clone()),
        }
    }
}

impl Payload for Column {
    const NAME: &'static CStr = c"_saltus.Column";
    const DOC: &'static CStr = c"One column of a TableBatch; memoryview(column) shows the table's own memory.";
}

impl Length for Column {
    fn length(&self) -> usize {
        self.batch.rows()
    }
}

impl BufferSource for Column {
    fn view(&self) -> Result<BufferView, String> {
        fn view<T>(items: &[T], format: &'static CStr) -> Result<BufferView, String> {
            Ok(BufferView { start: items.as_ptr().cast(), item_bytes: size_of::<T>(), items: items.len(), format })
        }
        let Some(column) = self.batch.columns.get(self.at) else {
            return view(self.batch.time.values(), c"q");
        };
        match column.kind {
            ColumnKind::Tag => view(column.data.as_dictionary::<Int32Type>().keys().values(), c"i"),
            ColumnKind::Integer => view(column.data.as_primitive::<Int64Type>().values(), c"q"),
            ColumnKind::UInteger => view(column.data.as_primitive::<UInt64Type>().values(), c"Q"),
            ColumnKind::Float => view(column.data.as_primitive::<Float64Type>().values(), c"d"),
            ColumnKind::Boolean => view(&self.bytes, c"?"),
            ColumnKind::String => {
                Err(format!("column '{}' has strings of different lengths: use to_list() or Arrow", self.name()))
            }
        }
    }
}

/// The type's members.
pub fn define(builder: TypeBuilder<Column>) -> TypeBuilder<Column> {
    builder
        .length()
        .buffer()
        .property::<Name>()
        .property::<Kind>()
        .property::<NullCount>()
        .property::<Dictionary>()
        .method::<ToList>()
        .method::<ArrowArray>()
        .method::<ArrowSchema>()
}

/// `column.name`
struct Name;

impl Property for Name {
    type Owner = Column;
    const NAME: &'static CStr = c"name";
    const DOC: &'static CStr = c"The key.";

    fn get(py: Py, _this: &Object, owner: &Column) -> PyResult {
        Object::text(py, owner.name())
    }
}

/// `column.kind`
struct Kind;

impl Property for Kind {
    type Owner = Column;
    const NAME: &'static CStr = c"kind";
    const DOC: &'static CStr = c"'tag', 'integer', 'uinteger', 'float', 'string', 'boolean' or 'timestamp'.";

    fn get(py: Py, _this: &Object, owner: &Column) -> PyResult {
        let name = owner.kind().map_or("timestamp", |kind| kind.iox_name());
        Object::text(py, name.rsplit(':').next().unwrap_or(name))
    }
}

/// `column.null_count`
struct NullCount;

impl Property for NullCount {
    type Owner = Column;
    const NAME: &'static CStr = c"null_count";
    const DOC: &'static CStr = c"Rows without a value; in a memoryview they show an arbitrary one.";

    fn get(py: Py, _this: &Object, owner: &Column) -> PyResult {
        Object::uint(py, owner.array().null_count() as u64)
    }
}

/// `column.dictionary`
struct Dictionary;

impl Property for Dictionary {
    type Owner = Column;
    const NAME: &'static CStr = c"dictionary";
    const DOC: &'static CStr = c"For a tag the values that its keys point into, else None.";

    fn get(py: Py, _this: &Object, owner: &Column) -> PyResult {
        if owner.kind() != Some(ColumnKind::Tag) {
            return Ok(Object::none(py));
        }
        convert::to_list(py, owner.array().as_dictionary::<Int32Type>().values())
    }
}

/// `column.to_list()`
struct ToList;

impl Method for ToList {
    type Owner = Column;
    const NAME: &'static CStr = c"to_list";
    const DOC: &'static CStr = c"The values as Python objects, None where a row has none.";

    fn call(py: Py, _this: &Object, owner: &Column, _args: &Args<'_>) -> PyResult {
        convert::to_list(py, &owner.array())
    }
}

/// `column.__arrow_c_array__(requested_schema=None)`
struct ArrowArray;

impl Method for ArrowArray {
    type Owner = Column;
    const NAME: &'static CStr = c"__arrow_c_array__";
    const DOC: &'static CStr = c"The column as an Arrow array (PyCapsule interface), without a copy.";

    fn call(py: Py, _this: &Object, owner: &Column, _args: &Args<'_>) -> PyResult {
        let (array, schema) = to_ffi(&owner.array().to_data()).map_err(|e| arrow_error(py, &e))?;
        Object::tuple(py, vec![capsule(py, schema)?, capsule(py, array)?])
    }
}

/// `column.__arrow_c_schema__()`
struct ArrowSchema;

impl Method for ArrowSchema {
    type Owner = Column;
    const NAME: &'static CStr = c"__arrow_c_schema__";
    const DOC: &'static CStr = c"The Arrow type of the column (PyCapsule interface).";

    fn call(py: Py, _this: &Object, owner: &Column, _args: &Args<'_>) -> PyResult {
        let schema = FFI_ArrowSchema::try_from(owner.array().data_type()).map_err(|e| arrow_error(py, &e))?;
        capsule(py, schema)
    }
}

fn arrow_error(py: Py, error: &arrow::error::ArrowError) -> Raised {
    Raised::new(py, Builtin::Value, &error.to_string())
}
