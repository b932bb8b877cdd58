//! Mechanism of the growable column set, which turns rows of several batches into one.
//!
//! In go batches, whole; out comes one batch with the union of their columns, over the memory that was grown.
//! 1. A column of the batch is looked for at the same position first, by name only if that fails: writers repeat
//!    themselves, so the look-up is usually one comparison of pointers.
//! 2. The column is padded with nulls up to the row where the batch begins, and the batch's values are copied behind.
//!    Columns that the batch does not have are not touched: they are padded when they are met again or at the end, so
//!    a row costs what it has, not what the table has.
//! 3. Tags are dictionary keys. Each key of the batch is translated once, through a hash table of the text seen so far.
//! 4. [`RowsBuilder::finish`] pads every column and hands the vectors to Arrow without copying them.
//!
//! Arrow's `concat` was refused: it merges dictionaries by a guess at whether that pays, wants equal schemas, and costs
//! about a microsecond per column and call, which a single row cannot afford.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, DictionaryArray, Int32Array, NullBufferBuilder,
    PrimitiveArray, StringArray, TimestampNanosecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{ArrowPrimitiveType, Float64Type, Int32Type, Int64Type, UInt64Type};
use hashbrown::HashTable;
use saltus_core::batch::{Batch, BatchColumn};
use saltus_core::schema::ColumnKind;

/// Rows of several batches on their way to become one.
pub(super) struct RowsBuilder {
    columns: Vec<ColumnBuilder>,
    positions: HashMap<Arc<str>, usize, ahash::RandomState>,
    time: Vec<i64>,
    series: Vec<u64>,
    bytes: usize,
    /// Translation of one batch's dictionary, kept for its memory.
    translation: Vec<i32>,
}

impl RowsBuilder {
    pub(super) fn new() -> Self {
        RowsBuilder {
            columns: Vec::new(),
            positions: HashMap::default(),
            time: Vec::new(),
            series: Vec::new(),
            bytes: 0,
            translation: Vec::new(),
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.time.len()
    }

    /// Bytes of the values so far, without what the vectors hold in reserve.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies all rows of `batch` behind those that are there.
    pub(super) fn append(&mut self, batch: &Batch) {
        let before = self.rows();
        for (at, column) in batch.columns.iter().enumerate() {
            let position = self.position(at, column);
            let builder = &mut self.columns[position];
            builder.pad(before);
            self.bytes += builder.append(&column.data, &mut self.translation);
        }
        self.time.extend_from_slice(batch.time.values());
        self.series.extend_from_slice(&batch.series);
        self.bytes += batch.rows() * 16;
    }

    /// The rows as a batch, over the same memory.
    pub(super) fn finish(self) -> Batch {
        let rows = self.time.len();
        let columns = self
            .columns
            .into_iter()
            .map(|mut column| {
                column.pad(rows);
                BatchColumn { name: column.name.clone(), kind: column.kind, data: column.finish() }
            })
            .collect();
        Batch {
            columns,
            time: TimestampNanosecondArray::new(self.time.into(), None),
            series: ScalarBuffer::from(self.series),
        }
    }

    /// Where the builder of `column`, the batch's column number `at`, is; it is made if it is missing.
    fn position(&mut self, at: usize, column: &BatchColumn) -> usize {
        if let Some(here) = self.columns.get(at)
            && (Arc::ptr_eq(&here.name, &column.name) || here.name == column.name)
        {
            return at;
        }
        if let Some(&position) = self.positions.get(&column.name) {
            return position;
        }
        self.positions.insert(column.name.clone(), self.columns.len());
        self.columns.push(ColumnBuilder::new(column.name.clone(), column.kind));
        self.columns.len() - 1
    }
}

/// One growable column.
pub(super) struct ColumnBuilder {
    name: Arc<str>,
    kind: ColumnKind,
    rows: usize,
    validity: NullBufferBuilder,
    data: Data,
}

enum Data {
    Tag { keys: Vec<i32>, texts: Interner },
    Integer(Vec<i64>),
    UInteger(Vec<u64>),
    Float(Vec<f64>),
    String { offsets: Vec<i32>, text: Vec<u8> },
    Boolean(BooleanBufferBuilder),
}

impl ColumnBuilder {
    pub(super) fn new(name: Arc<str>, kind: ColumnKind) -> Self {
        let data = match kind {
            ColumnKind::Tag => Data::Tag { keys: Vec::new(), texts: Interner::new() },
            ColumnKind::Integer => Data::Integer(Vec::new()),
            ColumnKind::UInteger => Data::UInteger(Vec::new()),
            ColumnKind::Float => Data::Float(Vec::new()),
            ColumnKind::String => Data::String { offsets: vec![0], text: Vec::new() },
            ColumnKind::Boolean => Data::Boolean(BooleanBufferBuilder::new(0)),
        };
        // The capacity counts only once there is a null.
        ColumnBuilder { name, kind, rows: 0, validity: NullBufferBuilder::new(64), data }
    }

    /// Nulls up to row `rows`.
    pub(super) fn pad(&mut self, rows: usize) {
        let missing = rows - self.rows;
        if missing == 0 {
            return;
        }
        match &mut self.data {
            Data::Tag { keys, .. } => keys.resize(rows, 0),
            Data::Integer(values) => values.resize(rows, 0),
            Data::UInteger(values) => values.resize(rows, 0),
            Data::Float(values) => values.resize(rows, 0.0),
            Data::String { offsets, text } => offsets.resize(rows + 1, text.len() as i32),
            Data::Boolean(values) => values.append_n(missing, false),
        }
        self.validity.append_n_nulls(missing);
        self.rows = rows;
    }

    /// Copies `array`, which has this column's type, behind the rows that are there; the bytes that this added.
    pub(super) fn append(&mut self, array: &dyn Array, translation: &mut Vec<i32>) -> usize {
        let rows = array.len();
        let added = match &mut self.data {
            Data::Tag { keys, texts } => append_tags(keys, texts, array.as_dictionary::<Int32Type>(), translation),
            Data::Integer(values) => append_values::<Int64Type>(values, array),
            Data::UInteger(values) => append_values::<UInt64Type>(values, array),
            Data::Float(values) => append_values::<Float64Type>(values, array),
            Data::String { offsets, text } => append_strings(offsets, text, array.as_string::<i32>()),
            Data::Boolean(values) => {
                values.append_buffer(array.as_boolean().values());
                rows.div_ceil(8)
            }
        };
        match array.nulls() {
            None => self.validity.append_n_non_nulls(rows),
            Some(nulls) => self.validity.append_buffer(nulls),
        }
        self.rows += rows;
        added
    }

    /// Copies one value; that of a row without a value is null.
    pub(super) fn append_row(&mut self, array: &dyn Array, row: usize) {
        if array.is_null(row) {
            return self.pad(self.rows + 1);
        }
        match &mut self.data {
            Data::Tag { keys, texts } => {
                let tags = array.as_dictionary::<Int32Type>();
                let text = tags.values().as_string::<i32>().value(tags.keys().value(row) as usize);
                keys.push(texts.intern(text));
            }
            Data::Integer(values) => values.push(array.as_primitive::<Int64Type>().value(row)),
            Data::UInteger(values) => values.push(array.as_primitive::<UInt64Type>().value(row)),
            Data::Float(values) => values.push(array.as_primitive::<Float64Type>().value(row)),
            Data::String { offsets, text } => {
                text.extend_from_slice(array.as_string::<i32>().value(row).as_bytes());
                offsets.push(text.len() as i32);
            }
            Data::Boolean(values) => values.append(array.as_boolean().value(row)),
        }
        self.validity.append_non_null();
        self.rows += 1;
    }

    /// The column as an Arrow array over the same memory.
    pub(super) fn finish(self) -> ArrayRef {
        let nulls = self.validity.build();
        match self.data {
            Data::Tag { keys, texts } => {
                let keys = Int32Array::new(keys.into(), nulls);
                Arc::new(DictionaryArray::new(keys, Arc::new(texts.finish())))
            }
            Data::Integer(values) => primitive::<Int64Type>(values, nulls),
            Data::UInteger(values) => primitive::<UInt64Type>(values, nulls),
            Data::Float(values) => primitive::<Float64Type>(values, nulls),
            Data::String { offsets, text } => Arc::new(string_array(offsets, text, nulls)),
            Data::Boolean(values) => Arc::new(BooleanArray::new(values.build(), nulls)),
        }
    }
}

fn primitive<T: ArrowPrimitiveType>(values: Vec<T::Native>, nulls: Option<NullBuffer>) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::from(values), nulls))
}

fn string_array(offsets: Vec<i32>, text: Vec<u8>, nulls: Option<NullBuffer>) -> StringArray {
    StringArray::new(OffsetBuffer::new(offsets.into()), Buffer::from_vec(text), nulls)
}

fn append_values<T: ArrowPrimitiveType>(values: &mut Vec<T::Native>, array: &dyn Array) -> usize {
    let added = array.as_primitive::<T>().values();
    values.extend_from_slice(added);
    size_of_val::<[T::Native]>(added)
}

fn append_strings(offsets: &mut Vec<i32>, text: &mut Vec<u8>, array: &StringArray) -> usize {
    let from = array.value_offsets();
    let (first, last) = (from[0], from[from.len() - 1]);
    // May be negative: a slice of a large array.
    let shift = text.len() as i32 - first;
    offsets.extend(from[1..].iter().map(|offset| offset + shift));
    let added = &array.value_data()[first as usize..last as usize];
    text.extend_from_slice(added);
    added.len() + array.len() * 4
}

fn append_tags(
    keys: &mut Vec<i32>,
    texts: &mut Interner,
    tags: &DictionaryArray<Int32Type>,
    translation: &mut Vec<i32>,
) -> usize {
    const UNMET: i32 = -1;
    // A dictionary much larger than the rows that use it is not worth a table of translations.
    const DICTIONARY_PER_ROW_MAX: usize = 4;
    let text_bytes_before = texts.bytes();
    let values = tags.values().as_string::<i32>();
    if tags.len() == 1 || values.len() > tags.len() * DICTIONARY_PER_ROW_MAX {
        keys.extend((0..tags.len()).map(|row| tags.key(row).map_or(0, |key| texts.intern(values.value(key)))));
    } else {
        translation.clear();
        translation.resize(values.len(), UNMET);
        let from = tags.keys();
        keys.reserve(from.len());
        for row in 0..from.len() {
            if from.is_null(row) {
                keys.push(0);
                continue;
            }
            let key = from.value(row) as usize;
            if translation[key] == UNMET {
                translation[key] = texts.intern(values.value(key));
            }
            keys.push(translation[key]);
        }
    }
    texts.bytes() - text_bytes_before + tags.len() * 4
}

/// Texts numbered in the order of first appearance, in Arrow's layout.
struct Interner {
    keys: HashTable<i32>,
    offsets: Vec<i32>,
    text: Vec<u8>,
    hasher: ahash::RandomState,
}

impl Interner {
    fn new() -> Self {
        Interner { keys: HashTable::new(), offsets: vec![0], text: Vec::new(), hasher: ahash::RandomState::default() }
    }

    /// The number of `wanted`.
    fn intern(&mut self, wanted: &str) -> i32 {
        let Interner { keys, offsets, text, hasher } = self;
        let wanted = wanted.as_bytes();
        let known = |offsets: &[i32], key: i32| offsets[key as usize] as usize..offsets[key as usize + 1] as usize;
        let hash = hasher.hash_one(wanted);
        if let Some(&key) = keys.find(hash, |&key| &text[known(offsets, key)] == wanted) {
            return key;
        }
        let key = offsets.len() as i32 - 1;
        text.extend_from_slice(wanted);
        offsets.push(text.len() as i32);
        keys.insert_unique(hash, key, |&key| hasher.hash_one(&text[known(offsets, key)]));
        key
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.offsets.len() * 4 + self.keys.capacity() * 5
    }

    fn finish(self) -> StringArray {
        string_array(self.offsets, self.text, None)
    }
}
