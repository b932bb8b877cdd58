//! The batch of one table while its lines arrive.
//!
//! Columns are filled lazily: a column that a line does not have is left short, and the gap is filled with nulls when
//! the next line has it or the batch is finished. So a line costs only the columns that it names, and a line that is
//! refused is undone by cutting those columns back.
//!
//! Whether a column may exist (schema, reserved names, limits) is asked once, when it first appears in the batch.
//!
//! Most batches have their columns in the order of the schema, and all their lines have the same fields. Both are tried
//! first, and both need no hash; so the indexes are only brought up to date by the look-ups that need them.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use ahash::RandomState;
use arrow::array::StringArray;
use bytes::Bytes;
use hashbrown::HashTable;

use super::Precision;
use super::cache::{NONE, SeriesTag, TableCache, TagDictionary, strings};
use super::errors::Fault;
use super::scan::{Name, Value, append_string};
use crate::batch::{LineNumbers, PendingBatch, PendingColumn, PendingData};
use crate::limits::{COLUMNS_PER_TABLE_MAX, LINE_CELLS_MAX};
use crate::schema::{ColumnKind, TableSchema};

/// Keys that no table can have as tag or field.
pub const RESERVED: [&str; 2] = ["time", "__chunk_order"];
/// Rows that a new column makes room for at most; a larger batch grows it.
const ROWS_RESERVED_MAX: usize = 8192;
/// Columns that a new batch makes room for at most.
const COLUMNS_RESERVED_MAX: usize = 64;

/// A tag column: keys into a dictionary of the cache.
struct TagColumn {
    name: Arc<str>,
    tag: u32,
    keys: Vec<i32>,
    validity: Option<Vec<u8>>,
}

/// A field column.
struct FieldColumn {
    name: Arc<str>,
    kind: ColumnKind,
    len: usize,
    data: PendingData,
    validity: Option<Vec<u8>>,
}

/// A key up to this length, with its equals sign, is compared word by word.
const SHORT_KEY: usize = 32;
/// The words of a short key.
type KeyWords = [u64; SHORT_KEY / 8];

/// Where a field key stood in the last line, and which column it is.
#[derive(Clone, Copy)]
struct KeyHint {
    from: u32,
    /// Length of the key with its equals sign.
    len: u32,
    column: u32,
    /// The bytes of a short key and which of them count.
    words: KeyWords,
    mask: KeyWords,
}

impl KeyHint {
    fn new(body: &[u8], key: Range<usize>, column: u32) -> Self {
        let len = key.end + 1 - key.start;
        let (mut bytes, mut counts) = ([0; SHORT_KEY], [0; SHORT_KEY]);
        if len <= SHORT_KEY {
            bytes[..len].copy_from_slice(&body[key.start..key.start + len]);
            counts[..len].fill(0xff);
        }
        KeyHint { from: key.start as u32, len: len as u32, column, words: key_words(&bytes), mask: key_words(&counts) }
    }

    /// Whether this key stands at `at`.
    #[inline(always)]
    fn stands_at(&self, body: &[u8], at: usize) -> bool {
        let len = self.len as usize;
        match body.get(at..).and_then(|rest| rest.first_chunk::<SHORT_KEY>()) {
            Some(head) if len <= SHORT_KEY => {
                let head = key_words(head);
                (0..head.len()).fold(0, |differ, at| differ | (head[at] & self.mask[at] ^ self.words[at])) == 0
            }
            _ => body.get(at..at + len) == Some(&body[self.from as usize..self.from as usize + len]),
        }
    }
}

#[inline(always)]
fn key_words(bytes: &[u8; SHORT_KEY]) -> KeyWords {
    let (words, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|at| u64::from_ne_bytes(words[at]))
}

/// A field key as it stands in the body.
#[derive(Clone, Copy)]
struct RawKey {
    from: u32,
    to: u32,
    column: u32,
}

/// How much of a builder a refused line must give back.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    tags: usize,
    fields: usize,
    raw_keys: usize,
}

/// See the header.
pub(super) struct BatchBuilder {
    pub table: u32,
    schema: Option<Arc<TableSchema>>,
    hasher: RandomState,
    tags: Vec<TagColumn>,
    /// Per tag of the table's cache: its column, [`NONE`] if the batch has none.
    tag_columns: Vec<u32>,
    fields: Vec<FieldColumn>,
    /// The first so many of `fields` by name.
    field_index: HashTable<u32>,
    raw_keys: Vec<RawKey>,
    /// The first so many of `raw_keys` by text.
    raw_index: HashTable<u32>,
    /// The fields of the last line, in order.
    hints: Vec<KeyHint>,
    /// Columns that `schema` does not have.
    new_columns: usize,
    /// The batch has no column that `schema` has at this position or behind it.
    schema_next: usize,
    rows_expected: usize,
    time: Vec<i64>,
    untimed: Vec<u32>,
    series: Vec<u64>,
    /// `None` while row `i` is line `i + 1`.
    lines: Option<Vec<u32>>,
    /// The accepted lines, neighbours joined.
    text: Vec<Range<usize>>,
}

impl BatchBuilder {
    /// The batch of the table number `table`, which `cache` remembers.
    pub(super) fn new(table: u32, cache: &TableCache, schema: Option<Arc<TableSchema>>, rows_expected: usize) -> Self {
        let rows_expected = rows_expected.min(ROWS_RESERVED_MAX);
        let tags_expected = cache.tags.len().min(COLUMNS_RESERVED_MAX);
        let fields_expected = cache.fields.min(COLUMNS_RESERVED_MAX);
        BatchBuilder {
            table,
            schema,
            hasher: RandomState::new(),
            tags: Vec::with_capacity(tags_expected),
            tag_columns: Vec::new(),
            fields: Vec::with_capacity(fields_expected),
            field_index: HashTable::new(),
            raw_keys: Vec::with_capacity(fields_expected),
            raw_index: HashTable::new(),
            hints: Vec::with_capacity(fields_expected),
            new_columns: 0,
            schema_next: 0,
            rows_expected,
            time: Vec::with_capacity(rows_expected),
            untimed: Vec::new(),
            series: Vec::with_capacity(rows_expected),
            lines: None,
            text: Vec::new(),
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.time.len()
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { tags: self.tags.len(), fields: self.fields.len(), raw_keys: self.raw_keys.len() }
    }

    /// Adds the tags of a line. Columns that may not exist are skipped and the first reason is left in `refused`.
    #[inline]
    pub(super) fn push_tags(&mut self, cache: &TableCache, tags: &[SeriesTag], refused: &mut Option<Fault>) {
        let row = self.time.len();
        for &SeriesTag { tag, key } in tags {
            let column = match self.tag_columns.get(tag as usize) {
                Some(&column) if column != NONE => column,
                _ => match self.add_tag(cache, tag) {
                    Ok(column) => column,
                    Err(fault) => {
                        refused.get_or_insert(fault);
                        continue;
                    }
                },
            };
            let column = &mut self.tags[column as usize];
            if column.keys.len() == row && column.validity.is_none() {
                column.keys.push(key);
            } else {
                column.push_behind_gap(row, key);
            }
        }
    }

    /// Cells of the batch, were it to get `more` columns: columns are dense, so a few bytes of a body can cost many cells.
    fn cells_with(&self, more: usize) -> usize {
        (self.tags.len() + self.fields.len() + more) * self.time.len().max(self.rows_expected)
    }

    /// Whether a further line could make the batch too large for memory.
    pub(super) fn is_full(&self) -> bool {
        (self.tags.len() + self.fields.len()) * self.time.len() > LINE_CELLS_MAX
    }

    fn add_tag(&mut self, cache: &TableCache, tag: u32) -> Result<u32, Fault> {
        let name = &cache.tags[tag as usize].name;
        let known = match self.take_next(name.as_bytes(), ColumnKind::Tag) {
            Some(known) => Some(known),
            None => self.admit(name, ColumnKind::Tag)?,
        };
        if self.tag_columns.len() <= tag as usize {
            self.tag_columns.resize(cache.tags.len(), NONE);
        }
        let column = self.tags.len() as u32;
        self.tag_columns[tag as usize] = column;
        let keys = Vec::with_capacity(self.rows_expected);
        let name = known.unwrap_or_else(|| name.clone());
        self.tags.push(TagColumn { name, tag, keys, validity: None });
        Ok(column)
    }

    /// Whether the batch may get a column of that name and kind; it has no such tag or field of that kind yet. Gives the
    /// schema's own copy of the name, if the schema has the column.
    fn admit(&mut self, name: &str, kind: ColumnKind) -> Result<Option<Arc<str>>, Fault> {
        if RESERVED.contains(&name) {
            return Err(Fault::Reserved(name.to_owned()));
        }
        if self.cells_with(1) > LINE_CELLS_MAX {
            return Err(Fault::Cells { table: Arc::from("") });
        }
        let known = self.known(name);
        let expected = known.as_ref().map(|(_, kind)| *kind).or_else(|| self.kind_in_batch(name, kind));
        match expected {
            Some(expected) if expected != kind => {
                return Err(Fault::ColumnType { column: name.into(), expected, got: kind });
            }
            Some(_) => {}
            None => {
                let columns = self.schema.as_ref().map_or(0, |schema| schema.columns().len()) + self.new_columns;
                if columns >= COLUMNS_PER_TABLE_MAX {
                    return Err(Fault::ColumnLimit { table: Arc::from(""), columns });
                }
                self.new_columns += 1;
            }
        }
        Ok(known.map(|(name, _)| name))
    }

    /// How many columns the table would have with all of these, of which the batch may have some already.
    pub(super) fn columns_with(&mut self, names: &HashSet<String>) -> usize {
        let more = names.iter().filter(|name| {
            let known = self.schema.as_ref().is_some_and(|schema| schema.column(name).is_some());
            !known && !self.tags.iter().any(|tag| *tag.name == ***name) && self.find_field(name).is_none()
        });
        let more = more.count();
        self.schema.as_ref().map_or(0, |schema| schema.columns().len()) + self.new_columns + more
    }

    /// The schema's copy of the name of its next column, if that is `name` of kind `kind`: what [`BatchBuilder::admit`] does,
    /// without a look-up.
    fn take_next(&mut self, name: &[u8], kind: ColumnKind) -> Option<Arc<str>> {
        let next = self.schema.as_deref()?.columns().get(self.schema_next)?;
        if next.kind != kind || next.name.as_bytes() != name || self.cells_with(1) > LINE_CELLS_MAX {
            return None;
        }
        let name = next.name.clone();
        self.schema_next += 1;
        Some(name)
    }

    /// Name and kind of a column that the schema has and that is about to come into the batch.
    fn known(&mut self, name: &str) -> Option<(Arc<str>, ColumnKind)> {
        let schema = self.schema.as_deref()?;
        let position = schema.position(name)?;
        self.schema_next = self.schema_next.max(position + 1);
        let column = &schema.columns()[position];
        Some((column.name.clone(), column.kind))
    }

    /// Whether a column of that name is the schema's next, which the batch certainly does not have.
    #[inline]
    fn is_next(&self, name: &[u8]) -> bool {
        let next = self.schema.as_ref().and_then(|schema| schema.columns().get(self.schema_next));
        next.is_some_and(|column| column.name.as_bytes() == name)
    }

    /// The kind of a new column of that name that clashes with `kind`: a field where a tag is wanted, or the reverse.
    fn kind_in_batch(&mut self, name: &str, kind: ColumnKind) -> Option<ColumnKind> {
        if kind == ColumnKind::Tag {
            return self.find_field(name).map(|column| self.fields[column as usize].kind);
        }
        self.tags.iter().any(|column| column.name.as_ref() == name).then_some(ColumnKind::Tag)
    }

    fn find_field(&mut self, name: &str) -> Option<u32> {
        self.index_fields();
        let hash = self.hasher.hash_one(name);
        self.field_index.find(hash, |&at| self.fields[at as usize].name.as_ref() == name).copied()
    }

    fn index_fields(&mut self) {
        let (fields, hasher) = (&self.fields, &self.hasher);
        let hash = |at: u32| hasher.hash_one(fields[at as usize].name.as_ref());
        for at in self.field_index.len() as u32..fields.len() as u32 {
            self.field_index.insert_unique(hash(at), at, |&at| hash(at));
        }
    }

    /// The column that stood at place `place` in the last line, if the same key stands at `at`, and the offset behind the
    /// key's equals sign.
    #[inline]
    pub(super) fn predicted(&self, body: &[u8], at: usize, place: usize) -> Option<(u32, usize)> {
        let hint = self.hints.get(place)?;
        hint.stands_at(body, at).then_some((hint.column, at + hint.len as usize))
    }

    /// The column of a key as it stands in the body, if it was met before.
    pub(super) fn find_raw(&mut self, body: &[u8], key: Name) -> Option<u32> {
        let escaped = key.escaped;
        let key = &body[key.from..key.to];
        if !escaped && self.is_next(key) {
            return None;
        }
        self.index_raw_keys(body);
        let found = self.raw_index.find(self.hasher.hash_one(key), |&at| {
            let known = &self.raw_keys[at as usize];
            &body[known.from as usize..known.to as usize] == key
        });
        found.map(|&at| self.raw_keys[at as usize].column)
    }

    fn index_raw_keys(&mut self, body: &[u8]) {
        let (keys, hasher) = (&self.raw_keys, &self.hasher);
        let hash = |at: u32| {
            let key = &keys[at as usize];
            hasher.hash_one(&body[key.from as usize..key.to as usize])
        };
        for at in self.raw_index.len() as u32..keys.len() as u32 {
            self.raw_index.insert_unique(hash(at), at, |&at| hash(at));
        }
    }

    /// Creates the column of a key that was not met before and stands as it is in the schema, as the next there; `None` if
    /// it is not that simple.
    pub(super) fn add_next_field(&mut self, body: &[u8], raw: Name, kind: ColumnKind) -> Option<u32> {
        if raw.escaped {
            return None;
        }
        let name = self.take_next(&body[raw.from..raw.to], kind)?;
        let column = self.push_column(name, kind);
        self.raw_keys.push(RawKey { from: raw.from as u32, to: raw.to as u32, column });
        Some(column)
    }

    /// The column of a key that was not met before in this spelling; created if it is new.
    pub(super) fn add_field(&mut self, raw: Name, name: &str, kind: ColumnKind) -> Result<u32, Fault> {
        let column = match self.find_field(name) {
            Some(column) => column,
            None => self.create_field(name, kind)?,
        };
        self.raw_keys.push(RawKey { from: raw.from as u32, to: raw.to as u32, column });
        Ok(column)
    }

    fn create_field(&mut self, name: &str, kind: ColumnKind) -> Result<u32, Fault> {
        let known = self.admit(name, kind)?;
        Ok(self.push_column(known.unwrap_or_else(|| name.into()), kind))
    }

    fn push_column(&mut self, name: Arc<str>, kind: ColumnKind) -> u32 {
        self.fields.push(FieldColumn::new(name, kind, self.rows_expected));
        self.fields.len() as u32 - 1
    }

    /// Says that `key` stood at place `place` of this line. A key that was there before leaves the places behind it as
    /// they are.
    pub(super) fn remember(&mut self, body: &[u8], place: usize, key: Range<usize>, column: u32) {
        if self.predicted(body, key.start, place).is_some_and(|(known, _)| known == column) {
            return;
        }
        self.hints.truncate(place);
        self.hints.push(KeyHint::new(body, key, column));
    }

    /// Appends the integer that `read` reads at `at` to a column that is complete up to this row: the offset behind it,
    /// `None` if it is not that simple.
    #[inline(always)]
    pub(super) fn push_integer(
        &mut self,
        body: &[u8],
        column: u32,
        at: usize,
        read: impl FnOnce(&[u8], usize) -> Option<(i64, usize)>,
    ) -> Option<usize> {
        let row = self.time.len();
        let column = &mut self.fields[column as usize];
        let PendingData::Integer(values) = &mut column.data else { return None };
        if column.len != row || column.validity.is_some() {
            return None;
        }
        let (value, behind) = read(body, at)?;
        values.push(value);
        column.len += 1;
        Some(behind)
    }

    /// Appends a value to a column.
    pub(super) fn push_field(&mut self, body: &[u8], column: u32, value: Value) -> Result<(), Fault> {
        let row = self.time.len();
        let column = &mut self.fields[column as usize];
        if column.len > row {
            return Err(Fault::FieldRepeated(column.name.clone()));
        }
        let got = kind_of(&value);
        if column.kind != got {
            return Err(Fault::ColumnType { column: column.name.clone(), expected: column.kind, got });
        }
        column.fill(row);
        column.push(body, value);
        Ok(())
    }

    /// Ends a line that is accepted.
    #[inline]
    pub(super) fn accept(&mut self, time: Option<i64>, fingerprint: u64, line: u32, text: Range<usize>) {
        let row = self.time.len();
        if time.is_none() {
            self.untimed.push(row as u32);
        }
        self.time.push(time.unwrap_or(0));
        self.series.push(fingerprint);
        match &mut self.lines {
            Some(lines) => lines.push(line),
            None if line as usize == row + 1 => {}
            None => self.lines = Some((1..=row as u32).chain([line]).collect()),
        }
        match self.text.last_mut() {
            Some(last) if last.end == text.start => last.end = text.end,
            _ => self.text.push(text),
        }
    }

    /// Undoes what a line did since `mark`. `places` says how many fields it had, `tags` which tags.
    pub(super) fn refuse(&mut self, body: &[u8], mark: Mark, places: usize, tags: &[SeriesTag]) {
        let row = self.time.len();
        for hint in self.hints.iter().take(places) {
            self.fields[hint.column as usize].cut(row);
        }
        for tag in tags {
            match self.tag_columns.get(tag.tag as usize) {
                Some(&column) if column != NONE => self.tags[column as usize].cut(row),
                _ => {}
            }
        }
        for column in self.tags.drain(mark.tags..) {
            self.tag_columns[column.tag as usize] = NONE;
            self.new_columns -= usize::from(is_new(self.schema.as_deref(), &column.name));
        }
        self.forget_keys(body, mark);
        for column in mark.fields..self.fields.len() {
            let name = &self.fields[column].name;
            self.new_columns -= usize::from(is_new(self.schema.as_deref(), name));
            let hash = self.hasher.hash_one::<&str>(name);
            if let Ok(entry) = self.field_index.find_entry(hash, |&at| at as usize == column) {
                entry.remove();
            }
        }
        self.fields.truncate(mark.fields);
    }

    fn forget_keys(&mut self, body: &[u8], mark: Mark) {
        if self.raw_keys.len() == mark.raw_keys {
            return;
        }
        for at in mark.raw_keys..self.raw_keys.len() {
            let key = &self.raw_keys[at];
            let hash = self.hasher.hash_one(&body[key.from as usize..key.to as usize]);
            if let Ok(entry) = self.raw_index.find_entry(hash, |&known| known as usize == at) {
                entry.remove();
            }
        }
        self.raw_keys.truncate(mark.raw_keys);
        self.hints.clear();
    }

    /// The finished batch. `whole` says that the request has no other lines.
    pub(super) fn finish(
        mut self,
        cache: &mut TableCache,
        body: &Bytes,
        precision: Precision,
        whole: bool,
    ) -> PendingBatch {
        let rows = self.time.len();
        let text = match self.text.as_slice() {
            [first, .., last] if whole => body.slice(first.start..last.end),
            [only] if whole => body.slice(only.clone()),
            ranges => gather(body, ranges),
        };
        cache.fields = self.fields.len();
        let mut columns = Vec::with_capacity(self.tags.len() + self.fields.len());
        for mut column in self.tags.drain(..) {
            column.fill(rows);
            columns.push(column.finish(&mut cache.tags));
        }
        for mut column in self.fields.drain(..) {
            column.fill(rows);
            let FieldColumn { name, kind, data, validity, .. } = column;
            columns.push(PendingColumn { name, kind, data, validity });
        }
        PendingBatch {
            table: cache.name.clone(),
            schema: self.schema,
            columns,
            time: self.time,
            untimed: self.untimed,
            series: self.series,
            lines: self.lines.map_or(LineNumbers::All, LineNumbers::Listed),
            text,
            precision,
        }
    }
}

fn is_new(schema: Option<&TableSchema>, name: &str) -> bool {
    schema.is_none_or(|schema| schema.column(name).is_none())
}

fn gather(body: &[u8], ranges: &[Range<usize>]) -> Bytes {
    let mut text = Vec::with_capacity(ranges.iter().map(|range| range.len()).sum());
    for range in ranges {
        text.extend_from_slice(&body[range.clone()]);
    }
    text.into()
}

fn kind_of(value: &Value) -> ColumnKind {
    match value {
        Value::Integer(_) => ColumnKind::Integer,
        Value::UInteger(_) => ColumnKind::UInteger,
        Value::Float(_) => ColumnKind::Float,
        Value::Boolean(_) => ColumnKind::Boolean,
        Value::String { .. } => ColumnKind::String,
    }
}

/// The kind that a column of `value` has.
pub(super) fn value_kind(value: &Value) -> ColumnKind {
    kind_of(value)
}

impl TagColumn {
    #[cold]
    fn push_behind_gap(&mut self, row: usize, key: i32) {
        if self.keys.len() > row {
            // The tag is repeated; the line is refused already.
            return;
        }
        self.fill(row);
        push_bit(&mut self.validity, row, true);
        self.keys.push(key);
    }

    #[inline]
    fn fill(&mut self, rows: usize) {
        if self.keys.len() < rows {
            self.fill_gap(rows);
        }
    }

    #[inline(never)]
    fn fill_gap(&mut self, rows: usize) {
        fill_bits(&mut self.validity, self.keys.len(), rows);
        self.keys.resize(rows, 0);
    }

    fn cut(&mut self, rows: usize) {
        if self.keys.len() > rows {
            self.keys.truncate(rows);
            cut_bits(&mut self.validity, rows);
        }
    }

    fn finish(mut self, dictionaries: &mut [TagDictionary]) -> PendingColumn {
        let dictionary = &mut dictionaries[self.tag as usize];
        let values = match dictionary.snapshot() {
            Some(values) => values,
            None => self.own_dictionary(dictionary),
        };
        let data = PendingData::Tag { keys: self.keys, values };
        PendingColumn { name: self.name, kind: ColumnKind::Tag, data, validity: self.validity }
    }

    /// Rewrites the keys to point into a dictionary of just the values in use.
    fn own_dictionary(&mut self, dictionary: &TagDictionary) -> StringArray {
        let mut renamed = ahash::HashMap::default();
        let (mut offsets, mut text) = (vec![0], Vec::new());
        for key in &mut self.keys {
            *key = *renamed.entry(*key).or_insert_with(|| {
                text.extend_from_slice(dictionary.value(*key));
                offsets.push(text.len() as i32);
                offsets.len() as i32 - 2
            });
        }
        strings(offsets, text)
    }
}

impl FieldColumn {
    fn new(name: Arc<str>, kind: ColumnKind, rows: usize) -> Self {
        let data = match kind {
            ColumnKind::Integer => PendingData::Integer(Vec::with_capacity(rows)),
            ColumnKind::UInteger => PendingData::UInteger(Vec::with_capacity(rows)),
            ColumnKind::Float => PendingData::Float(Vec::with_capacity(rows)),
            ColumnKind::Boolean => PendingData::Boolean(Vec::with_capacity(rows.div_ceil(8))),
            ColumnKind::String => {
                let mut offsets = Vec::with_capacity(rows + 1);
                offsets.push(0);
                PendingData::String { offsets, text: Vec::new() }
            }
            ColumnKind::Tag => unreachable!("tags have columns of their own"),
        };
        FieldColumn { name, kind, len: 0, data, validity: None }
    }

    fn push(&mut self, body: &[u8], value: Value) {
        match (&mut self.data, value) {
            (PendingData::Integer(values), Value::Integer(value)) => values.push(value),
            (PendingData::UInteger(values), Value::UInteger(value)) => values.push(value),
            (PendingData::Float(values), Value::Float(value)) => values.push(value),
            (PendingData::Boolean(bits), Value::Boolean(value)) => set_next_bit(bits, self.len, value),
            (PendingData::String { offsets, text }, Value::String { from, to, pairs }) => {
                append_string(&body[from..to], pairs, text);
                offsets.push(text.len() as i32);
            }
            _ => unreachable!("the kinds were compared"),
        }
        push_bit(&mut self.validity, self.len, true);
        self.len += 1;
    }

    #[inline]
    fn fill(&mut self, rows: usize) {
        if self.len < rows {
            self.fill_gap(rows);
        }
    }

    #[inline(never)]
    fn fill_gap(&mut self, rows: usize) {
        fill_bits(&mut self.validity, self.len, rows);
        match &mut self.data {
            PendingData::Integer(values) => values.resize(rows, 0),
            PendingData::UInteger(values) => values.resize(rows, 0),
            PendingData::Float(values) => values.resize(rows, 0.0),
            PendingData::Boolean(bits) => bits.resize(rows.div_ceil(8), 0),
            PendingData::String { offsets, text } => offsets.resize(rows + 1, text.len() as i32),
            PendingData::Tag { .. } => {}
        }
        self.len = rows;
    }

    fn cut(&mut self, rows: usize) {
        if self.len <= rows {
            return;
        }
        match &mut self.data {
            PendingData::Integer(values) => values.truncate(rows),
            PendingData::UInteger(values) => values.truncate(rows),
            PendingData::Float(values) => values.truncate(rows),
            PendingData::Boolean(bits) => cut_to(bits, rows),
            PendingData::String { offsets, text } => {
                offsets.truncate(rows + 1);
                text.truncate(offsets[rows] as usize);
            }
            PendingData::Tag { .. } => {}
        }
        cut_bits(&mut self.validity, rows);
        self.len = rows;
    }
}

/// Appends bit number `len`.
fn set_next_bit(bits: &mut Vec<u8>, len: usize, bit: bool) {
    if len.is_multiple_of(8) {
        bits.push(0);
    }
    bits[len / 8] |= u8::from(bit) << (len % 8);
}

/// Appends bit number `len` to a validity map, if there is one.
fn push_bit(validity: &mut Option<Vec<u8>>, len: usize, bit: bool) {
    if let Some(bits) = validity {
        set_next_bit(bits, len, bit);
    }
}

/// Makes the rows `len..rows` of a validity map absent; the ones before were all present if there is no map yet.
fn fill_bits(validity: &mut Option<Vec<u8>>, len: usize, rows: usize) {
    let bits = validity.get_or_insert_with(|| {
        let mut bits = vec![0xff; len.div_ceil(8)];
        cut_to(&mut bits, len);
        bits
    });
    bits.resize(rows.div_ceil(8), 0);
}

fn cut_bits(validity: &mut Option<Vec<u8>>, rows: usize) {
    if let Some(bits) = validity {
        cut_to(bits, rows);
    }
}

/// Keeps the first `rows` bits; the rest of the last byte is zero, as [`set_next_bit`] expects it.
fn cut_to(bits: &mut Vec<u8>, rows: usize) {
    bits.truncate(rows.div_ceil(8));
    if !rows.is_multiple_of(8)
        && let Some(last) = bits.last_mut()
    {
        *last &= (1 << (rows % 8)) - 1;
    }
}
