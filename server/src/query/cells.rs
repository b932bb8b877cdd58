//! What a column of a system table can be, and the macro that makes a table of a plain struct.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, DurationNanosecondArray, Float64Array, Int64Array, ListBuilder, RecordBatch, StringArray,
    StringBuilder, TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt8Array, UInt16Array,
    UInt16Builder, UInt32Array, UInt64Array,
};
use arrow::datatypes::{DataType, Field, SchemaRef, TimeUnit};

use super::QueryError;

/// A row of a system table.
pub trait SystemRow: Sized {
    /// The table's name in schema `system`.
    const TABLE: &'static str;

    /// The table's columns.
    fn schema() -> SchemaRef;

    /// One array per column.
    fn columns(rows: &[Self]) -> Vec<ArrayRef>;
}

/// The rows as a batch of their table's schema.
///
/// # Errors
/// None that can be met: the arrays are made from the schema's own types.
pub fn batch<R: SystemRow>(rows: &[R]) -> Result<RecordBatch, QueryError> {
    RecordBatch::try_new(R::schema(), R::columns(rows)).map_err(|error| QueryError::Execution(error.to_string()))
}

/// Nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeNs(pub i64);

/// Seconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeSeconds(pub i64);

/// Milliseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeMs(pub i64);

/// Nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DurationNs(pub i64);

/// A type that a column of a system table can have.
pub(super) trait Cell {
    const NULLABLE: bool;
    fn data_type() -> DataType;
    fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef
    where
        Self: 'a;
}

macro_rules! cell {
    ($value:ty, $data_type:expr, |$cells:ident| $optional:expr) => {
        impl Cell for $value {
            const NULLABLE: bool = false;
            fn data_type() -> DataType {
                $data_type
            }
            fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef {
                let $cells = cells.map(Some);
                Arc::new($optional)
            }
        }

        impl Cell for Option<$value> {
            const NULLABLE: bool = true;
            fn data_type() -> DataType {
                $data_type
            }
            fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef {
                let $cells = cells.map(Option::as_ref);
                Arc::new($optional)
            }
        }
    };
}

cell!(String, DataType::Utf8, |cells| cells.collect::<StringArray>());
cell!(u8, DataType::UInt8, |cells| cells.map(Option::<&u8>::copied).collect::<UInt8Array>());
cell!(u16, DataType::UInt16, |cells| cells.map(Option::<&u16>::copied).collect::<UInt16Array>());
cell!(u32, DataType::UInt32, |cells| cells.map(Option::<&u32>::copied).collect::<UInt32Array>());
cell!(u64, DataType::UInt64, |cells| cells.map(Option::<&u64>::copied).collect::<UInt64Array>());
cell!(i64, DataType::Int64, |cells| cells.map(Option::<&i64>::copied).collect::<Int64Array>());
cell!(f64, DataType::Float64, |cells| cells.map(Option::<&f64>::copied).collect::<Float64Array>());
cell!(bool, DataType::Boolean, |cells| cells.map(Option::<&bool>::copied).collect::<BooleanArray>());
cell!(TimeNs, DataType::Timestamp(TimeUnit::Nanosecond, None), |cells| {
    cells.map(|cell: Option<&TimeNs>| cell.map(|time| time.0)).collect::<TimestampNanosecondArray>()
});
cell!(TimeSeconds, DataType::Timestamp(TimeUnit::Second, Some("+00:00".into())), |cells| {
    cells
        .map(|cell: Option<&TimeSeconds>| cell.map(|time| time.0))
        .collect::<TimestampSecondArray>()
        .with_timezone("+00:00")
});
cell!(TimeMs, DataType::Timestamp(TimeUnit::Millisecond, None), |cells| {
    cells.map(|cell: Option<&TimeMs>| cell.map(|time| time.0)).collect::<TimestampMillisecondArray>()
});
cell!(Vec<u16>, list_of(DataType::UInt16), |cells| {
    let mut lists = ListBuilder::new(UInt16Builder::new());
    cells.for_each(|cell: Option<&Vec<u16>>| lists.append_option(cell.map(|ids| ids.iter().copied().map(Some))));
    lists.finish()
});
cell!(Vec<String>, list_of(DataType::Utf8), |cells| {
    let mut lists = ListBuilder::new(StringBuilder::new());
    cells.for_each(|cell: Option<&Vec<String>>| lists.append_option(cell.map(|names| names.iter().map(Some))));
    lists.finish()
});
cell!(DurationNs, DataType::Duration(TimeUnit::Nanosecond), |cells| {
    cells.map(|cell: Option<&DurationNs>| cell.map(|duration| duration.0)).collect::<DurationNanosecondArray>()
});

fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

/// Declares a row struct whose public fields are the columns, in order.
macro_rules! system_table {
    ($(#[$doc:meta])* $row:ident = $table:literal { $($(#[$field_doc:meta])* $field:ident: $cell:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $row {
            $($(#[$field_doc])* pub $field: $cell,)*
        }

        impl SystemRow for $row {
            const TABLE: &'static str = $table;

            fn schema() -> SchemaRef {
                Arc::new(arrow::datatypes::Schema::new(vec![
                    $(arrow::datatypes::Field::new(stringify!($field), <$cell as Cell>::data_type(), <$cell as Cell>::NULLABLE),)*
                ]))
            }

            fn columns(rows: &[Self]) -> Vec<ArrayRef> {
                vec![$(<$cell as Cell>::array(rows.iter().map(|row| &row.$field)),)*]
            }
        }
    };
}

pub(super) use system_table;
