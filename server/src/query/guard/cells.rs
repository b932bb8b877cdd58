//! Columns of texts and lists in a form in which a value may stand in many rows at no cost.
//!
//! A join writes a value of one side into each row that it meets on the other: of one text of a megabyte, 8192 rows make a batch of
//! 8 GB, and nobody counts it. Below a join such columns become *cells*: lists of one view each, which every operation on rows copies
//! as a few bytes. Above it they become what they were, as many rows at a time as fit a step. What a key compares becomes a
//! plain view, as lists are not compared as quickly.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, ByteView, ListArray, MAX_INLINE_VIEW_LEN, RecordBatch,
    RecordBatchOptions, StringViewArray, UInt32Array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::error::Result;

/// Bytes of a view.
const VIEW_BYTES: usize = 16;

/// What repeats values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeats {
    /// Rows are taken by number.
    Rows,
    /// A value is taken out of its column and put into many rows.
    Values,
}

/// What becomes of each column; `None` if all stay. `keys` are those that are compared by the operator itself.
pub(super) fn narrowed(schema: &Schema, repeats: Repeats, keys: &[usize]) -> Option<SchemaRef> {
    let mut narrow = false;
    let field = |(at, field): (usize, &Arc<Field>)| {
        let data_type = match keys.contains(&at) {
            true => view_of(field.data_type()).filter(|_| !is_view(field.data_type())),
            false => cell_of(field.data_type(), repeats),
        };
        match data_type {
            Some(data_type) => {
                narrow = true;
                Arc::new(field.as_ref().clone().with_data_type(data_type))
            }
            None => field.clone(),
        }
    };
    let fields: Vec<_> = schema.fields().iter().enumerate().map(field).collect();
    narrow.then(|| Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())))
}

fn is_view(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8View | DataType::BinaryView)
}

fn view_of(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(DataType::Utf8View),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Some(DataType::BinaryView),
        _ => None,
    }
}

fn cell_of(data_type: &DataType, repeats: Repeats) -> Option<DataType> {
    let narrows = match data_type {
        // A dictionary's rows are numbers already, but a single value would bring a dictionary of its own along.
        DataType::Dictionary(_, values) => repeats == Repeats::Values && view_of(values).is_some(),
        other if is_view(other) => repeats == Repeats::Values,
        other => other.is_nested() || view_of(other).is_some(),
    };
    narrows.then(|| DataType::List(item_field()))
}

fn item_field() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::BinaryView, true))
}

/// The batch with the columns of another schema, cells or what they were.
pub(super) fn convert(batch: &RecordBatch, to: &SchemaRef) -> Result<RecordBatch> {
    let pairs = batch.columns().iter().zip(to.fields());
    let columns = pairs.map(|(column, field)| convert_column(column, field.data_type())).collect::<Result<_>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(to.clone(), columns, &options)?)
}

fn convert_column(column: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    let from = column.data_type();
    if from == to {
        return Ok(column.clone());
    }
    if is_cells(to) {
        return listed(column);
    }
    let flat = if is_cells(from) { items(column.as_list())? } else { column.clone() };
    match to {
        _ if to.is_nested() => values(flat.as_binary_view(), to),
        DataType::Utf8View => views(&text(flat)?),
        DataType::BinaryView => views(&flat),
        DataType::Binary | DataType::LargeBinary => Ok(cast(&flat, to)?),
        _ => Ok(cast(&text(flat)?, to)?),
    }
}

/// The values as texts, which they were.
fn text(column: ArrayRef) -> Result<ArrayRef> {
    match column.as_binary_view_opt() {
        Some(bytes) => Ok(Arc::new(bytes.clone().to_string_view()?)),
        None => Ok(column),
    }
}

/// The batch, whose cells know each piece of memory once and none that they do not need: what joins put together has a piece for each
/// of its parts, and these are many times the same.
pub(super) fn shared(batch: RecordBatch) -> Result<RecordBatch> {
    let is_spread = |column: &ArrayRef| {
        is_cells(column.data_type())
            && column.as_list::<i32>().values().as_binary_view_opt().is_some_and(|views| views.data_buffers().len() > 1)
    };
    if !batch.columns().iter().any(is_spread) {
        return Ok(batch);
    }
    let columns = batch.columns().iter().map(|column| match is_spread(column) {
        true => shared_cells(column.as_list()),
        false => Ok(column.clone()),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(batch.schema(), columns.collect::<Result<_>>()?, &options)?)
}

fn shared_cells(cells: &ListArray) -> Result<ArrayRef> {
    let (views, buffers, nulls) = cells.values().as_binary_view().clone().into_parts();
    let (mut known, mut needed) = (HashMap::new(), Vec::new());
    let moved = views.iter().map(|view| {
        let view = ByteView::from(*view);
        if view.length <= MAX_INLINE_VIEW_LEN {
            return view.as_u128();
        }
        let buffer = &buffers[view.buffer_index as usize];
        let at = *known.entry((buffer.as_ptr(), buffer.len())).or_insert_with(|| {
            needed.push(buffer.clone());
            (needed.len() - 1) as u32
        });
        view.with_buffer_index(at).as_u128()
    });
    let moved: ScalarBuffer<u128> = moved.collect();
    let values = BinaryViewArray::try_new(moved, needed, nulls)?;
    let (offsets, nulls) = (cells.offsets().clone(), cells.nulls().cloned());
    Ok(Arc::new(ListArray::try_new(item_field(), offsets, Arc::new(values), nulls)?))
}

fn is_cells(data_type: &DataType) -> bool {
    matches!(data_type, DataType::List(item) if *item.data_type() == DataType::BinaryView)
}

/// Bytes that each row of a narrow column has when it is what it was; `None` for a column that is not narrow.
pub(super) fn wide_bytes(column: &dyn Array, to: &DataType) -> Option<Vec<usize>> {
    if column.data_type() == to {
        return None;
    }
    let views = if is_cells(column.data_type()) {
        column.as_list::<i32>().values().clone()
    } else {
        column.slice(0, column.len())
    };
    let length = |at: usize| match views.data_type() {
        DataType::Utf8View => views.as_string_view().views().get(at).map_or(0, |view| *view as u32 as usize),
        _ => views.as_binary_view().views().get(at).map_or(0, |view| *view as u32 as usize),
    };
    let row = |row: usize| match column.as_list_opt::<i32>() {
        Some(_) if column.is_null(row) => 0,
        Some(list) => length(list.value_offsets()[row].unsigned_abs() as usize) + VIEW_BYTES,
        None => length(row) + VIEW_BYTES,
    };
    Some((0..column.len()).map(row).collect())
}

fn listed(column: &ArrayRef) -> Result<ArrayRef> {
    let views = views(column)?;
    let views: BinaryViewArray = match views.as_string_view_opt() {
        Some(texts) => texts.clone().to_binary_view(),
        None => views.as_binary_view().clone(),
    };
    let nulls = views.nulls().cloned();
    let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(1, views.len()));
    Ok(Arc::new(ListArray::try_new(item_field(), offsets, Arc::new(views), nulls)?))
}

/// The values as views of the memory in which they are.
fn views(column: &ArrayRef) -> Result<ArrayRef> {
    Ok(match column.data_type() {
        DataType::Utf8 => Arc::new(StringViewArray::from(column.as_string::<i32>())),
        DataType::LargeUtf8 => Arc::new(StringViewArray::from(column.as_string::<i64>())),
        DataType::Binary => Arc::new(BinaryViewArray::from(column.as_binary::<i32>())),
        DataType::LargeBinary => Arc::new(BinaryViewArray::from(column.as_binary::<i64>())),
        DataType::Utf8View | DataType::BinaryView => column.clone(),
        DataType::Dictionary(_, values) => {
            let view = view_of(values).unwrap_or(DataType::Utf8View);
            cast(column, &view)?
        }
        nested => {
            let converter = RowConverter::new(vec![SortField::new(nested.clone())])?;
            let rows = converter.convert_columns(std::slice::from_ref(column))?.try_into_binary()?;
            let (offsets, values, _) = rows.into_parts();
            let rows = arrow::array::BinaryArray::try_new(offsets, values, column.logical_nulls())?;
            Arc::new(BinaryViewArray::from(&rows))
        }
    })
}

/// The view of each row.
fn items(cells: &ListArray) -> Result<ArrayRef> {
    let offsets = cells.value_offsets();
    let at = |row: usize| cells.is_valid(row).then(|| offsets[row].unsigned_abs());
    let indices = UInt32Array::from_iter((0..cells.len()).map(at));
    Ok(take(cells.values(), &indices, None)?)
}

/// Lists, structs and maps from their rows.
fn values(rows: &BinaryViewArray, to: &DataType) -> Result<ArrayRef> {
    let converter = RowConverter::new(vec![SortField::new(to.clone())])?;
    let parser = converter.parser();
    let null = {
        let none = arrow::array::new_null_array(to, 1);
        converter.convert_columns(&[none])?
    };
    let none = null.row(0);
    let parsed = (0..rows.len()).map(|row| match rows.is_valid(row) {
        true => parser.parse(rows.value(row)),
        false => none,
    });
    let mut columns = converter.convert_rows(parsed)?;
    let column = columns.swap_remove(0);
    Ok(if column.data_type() == to { column } else { cast(&column, to)? })
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray, StructArray};
    use arrow::compute::concat;
    use arrow::datatypes::Int32Type;

    use super::*;

    fn samples() -> Vec<ArrayRef> {
        let texts = StringArray::from(vec![Some("a"), None, Some("\u{20ac} and more than twelve bytes"), Some("")]);
        let texts: ArrayRef = Arc::new(texts);
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([
            Some(vec![Some(1), None, Some(3)]),
            None,
            Some(vec![]),
            Some(vec![Some(-1)]),
        ]));
        let structs: ArrayRef = Arc::new(StructArray::from(vec![
            (Arc::new(Field::new("t", DataType::Utf8, true)), texts.clone()),
            (Arc::new(Field::new("l", lists.data_type().clone(), true)), lists.clone()),
        ]));
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let casts = [DataType::LargeUtf8, DataType::Utf8View, DataType::Binary, DataType::BinaryView, dictionary];
        let mut all: Vec<_> = casts.iter().map(|to| cast(&texts, to).unwrap()).collect();
        all.extend([texts, lists, structs]);
        all
    }

    #[test]
    fn what_became_cells_becomes_what_it_was() {
        for column in samples() {
            let field = Field::new("c", column.data_type().clone(), true);
            let wide = Arc::new(Schema::new(vec![field]));
            let batch = RecordBatch::try_new(wide.clone(), vec![column.clone()]).unwrap();
            for (repeats, keys) in [(Repeats::Rows, vec![]), (Repeats::Values, vec![]), (Repeats::Rows, vec![0])] {
                let Some(narrow) = narrowed(&wide, repeats, &keys) else { continue };
                let cells = convert(&batch, &narrow).unwrap();
                // As joins have it: rows by number, those without a partner, parts of batches one behind the other.
                let indices = UInt32Array::from(vec![Some(2), Some(2), None, Some(0), Some(1), Some(3)]);
                let taken = take(cells.column(0), &indices, None).unwrap();
                let joined = concat(&[&taken.slice(1, 5), &taken.slice(0, 2)]).unwrap();
                let pieces = RecordBatch::try_new(narrow.clone(), vec![joined]).unwrap();
                let joined = shared(pieces).unwrap().column(0).clone();
                let expected = take(&column, &indices, None).unwrap();
                let expected = concat(&[&expected.slice(1, 5), &expected.slice(0, 2)]).unwrap();
                let back = convert_column(&joined, column.data_type()).unwrap();
                assert_eq!(back.data_type(), expected.data_type());
                assert_eq!(&cast_plain(&back), &cast_plain(&expected), "{} {repeats:?} {keys:?}", column.data_type());
                let bytes = wide_bytes(joined.as_ref(), column.data_type()).unwrap();
                assert!(bytes.len() == 7 && bytes[0] == bytes[6] && bytes[0] >= 16, "{bytes:?}");
            }
        }
    }

    /// Dictionaries with other numbers are the same values.
    fn cast_plain(column: &ArrayRef) -> ArrayRef {
        match column.data_type() {
            DataType::Dictionary(_, values) => cast(column, values).unwrap(),
            _ => column.clone(),
        }
    }

    #[test]
    fn numbers_stay() {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let schema = Schema::new(vec![Field::new("c", column.data_type().clone(), true)]);
        assert_eq!(narrowed(&schema, Repeats::Values, &[]), None);
    }
}
