//! Mechanism of merging the versions of points that may have been written more than once.
//!
//! 1. The (fingerprint, time) of every suspect is put into a set. All versions of a point have the same key, so a row
//!    whose key is not in the set is its point's only version.
//! 2. Chunks are split: such rows go out as they are, by a filter; a chunk without other rows goes out untouched. The
//!    rows whose key is in the set are gathered.
//! 3. Gathered rows are sorted by key and then by the order in which they were applied. Rows with one key are told apart
//!    by their tags' actual values, an absent tag being a value of its own: fingerprints may collide.
//! 4. Of each point, every field takes the value of the latest version that has one, and the point goes out in an extra
//!    batch.
//!
//! Many series with one fingerprint *and* one time make step 3 quadratic in their number. With fingerprints of 64 bits
//! that takes a malfunction; the result is right even then.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, RecordBatch, StringArray, TimestampNanosecondArray,
};
use arrow::compute::FilterBuilder;
use arrow::datatypes::Int32Type;
use arrow::error::ArrowError;
use saltus_core::limits;
use saltus_core::schema::{ColumnKind, TableSchema};

use super::builder::ColumnBuilder;
use super::chunk::Chunk;
use super::snapshot::Layout;

/// Points in one extra batch.
const MERGED_ROWS_MAX: usize = 1024;

const _: () = assert!(
    MERGED_ROWS_MAX * limits::STRING_FIELD_BYTES_MAX < i32::MAX as usize,
    "the text of a merged column can be reached by Arrow's 32-bit offsets"
);

/// The points of `chunks`, each once.
pub(super) fn merge(chunks: &[&Chunk], schema: &TableSchema, layout: &Layout) -> Result<Vec<RecordBatch>, ArrowError> {
    let keys = SuspectKeys::of(chunks);
    let mut batches = Vec::with_capacity(chunks.len() + 1);
    let mut versions = Vec::new();
    for (at, chunk) in chunks.iter().enumerate() {
        let gathered_before = versions.len();
        if keys.may_meet(chunk) {
            gather(&keys, chunk, at as u32, &mut versions);
        }
        let gathered = &versions[gathered_before..];
        if gathered.is_empty() {
            batches.push(layout.whole(chunk)?);
        } else if gathered.len() < chunk.rows() {
            batches.push(without(chunk, gathered, layout)?);
        }
    }
    let points = points(&mut versions, &Tags::of(chunks, schema));
    let columns: Vec<Vec<Option<ArrayRef>>> = chunks.iter().map(|chunk| layout.columns(chunk)).collect();
    for points in points.chunks(MERGED_ROWS_MAX) {
        batches.push(merged(points, &versions, &columns, schema, layout)?);
    }
    Ok(batches)
}

/// One row whose point may have other versions.
#[derive(Clone, Copy)]
struct Version {
    time: i64,
    series: u64,
    order: u64,
    chunk: u32,
    row: u32,
}

impl Version {
    fn key(&self) -> (i64, u64) {
        (self.time, self.series)
    }
}

/// The keys of points that may have several versions.
struct SuspectKeys {
    keys: HashSet<(i64, u64), ahash::RandomState>,
    /// Earliest and latest time among them.
    times: (i64, i64),
}

impl SuspectKeys {
    fn of(chunks: &[&Chunk]) -> Self {
        let mut all = SuspectKeys { keys: HashSet::default(), times: (i64::MAX, i64::MIN) };
        for chunk in chunks {
            for &row in &chunk.suspects {
                let time = chunk.batch.time.value(row as usize);
                all.keys.insert((time, chunk.batch.series[row as usize]));
                all.times = (all.times.0.min(time), all.times.1.max(time));
            }
        }
        all
    }

    fn may_meet(&self, chunk: &Chunk) -> bool {
        chunk.meets(self.times)
    }

    fn has(&self, time: i64, series: u64) -> bool {
        self.times.0 <= time && time <= self.times.1 && self.keys.contains(&(time, series))
    }
}

/// Adds the rows of `chunk` whose keys are suspect, in the order of the chunk.
fn gather(keys: &SuspectKeys, chunk: &Chunk, at: u32, versions: &mut Vec<Version>) {
    for (row, (&time, &series)) in chunk.batch.time.values().iter().zip(chunk.batch.series.iter()).enumerate() {
        if keys.has(time, series) {
            versions.push(Version { time, series, order: chunk.order.number(row), chunk: at, row: row as u32 });
        }
    }
}

/// The rows of `chunk` that were not gathered.
fn without(chunk: &Chunk, gathered: &[Version], layout: &Layout) -> Result<RecordBatch, ArrowError> {
    let mut keep = vec![true; chunk.rows()];
    for version in gathered {
        keep[version.row as usize] = false;
    }
    let filter = FilterBuilder::new(&BooleanArray::from(keep)).optimize().build();
    let columns = layout
        .columns(chunk)
        .into_iter()
        .map(|column| column.map(|column| filter.filter(&column)).transpose())
        .collect::<Result<_, _>>()?;
    layout.record_batch(columns, filter.count())
}

/// Sorts `versions` so that those of one point stand together, in the order of application; where each point's are.
fn points(versions: &mut [Version], tags: &Tags<'_>) -> Vec<Range<usize>> {
    versions.sort_unstable_by_key(|version| (version.time, version.series, version.order));
    let mut points = Vec::new();
    let mut start = 0;
    while start < versions.len() {
        let key = versions[start].key();
        let len = versions[start..].iter().take_while(|version| version.key() == key).count();
        tell_apart(&mut versions[start..start + len], start, tags, &mut points);
        start += len;
    }
    points
}

/// Splits `alike`, versions with one key that begin at `start`, by their tags.
fn tell_apart(alike: &mut [Version], start: usize, tags: &Tags<'_>, points: &mut Vec<Range<usize>>) {
    let mut rest = 0;
    while rest < alike.len() {
        let first = alike[rest];
        if alike[rest + 1..].iter().all(|version| tags.equal(&first, version)) {
            points.push(start + rest..start + alike.len());
            return;
        }
        // Stable, so that each part keeps the order of application.
        alike[rest..].sort_by_cached_key(|version| !tags.equal(&first, version));
        let len = alike[rest..].iter().take_while(|version| tags.equal(&first, version)).count();
        points.push(start + rest..start + rest + len);
        rest += len;
    }
}

/// The tag columns of all chunks.
struct Tags<'a> {
    /// Per chunk, in one order for all; `None` where a chunk lacks the column.
    columns: Vec<Vec<Option<TagColumn<'a>>>>,
}

#[derive(Clone, Copy)]
struct TagColumn<'a> {
    tags: &'a DictionaryArray<Int32Type>,
    texts: &'a StringArray,
}

impl<'a> Tags<'a> {
    fn of(chunks: &[&'a Chunk], schema: &TableSchema) -> Self {
        let positions: HashMap<&str, usize> =
            schema.tags().enumerate().map(|(at, tag)| (tag.name.as_ref(), at)).collect();
        let columns = chunks
            .iter()
            .map(|chunk| {
                let mut columns = vec![None; positions.len()];
                for column in chunk.batch.columns.iter().filter(|column| column.kind == ColumnKind::Tag) {
                    let tags = column.data.as_dictionary::<Int32Type>();
                    let texts = tags.values().as_string::<i32>();
                    columns[positions[column.name.as_ref()]] = Some(TagColumn { tags, texts });
                }
                columns
            })
            .collect();
        Tags { columns }
    }

    fn equal(&self, a: &Version, b: &Version) -> bool {
        let (a_columns, b_columns) = (&self.columns[a.chunk as usize], &self.columns[b.chunk as usize]);
        a_columns.iter().zip(b_columns).all(|(a_tags, b_tags)| text(*a_tags, a.row) == text(*b_tags, b.row))
    }
}

fn text<'a>(column: Option<TagColumn<'a>>, row: u32) -> Option<&'a str> {
    let column = column?;
    column.tags.key(row as usize).map(|key| column.texts.value(key))
}

/// A batch of `points`, each merged from its versions.
fn merged(
    points: &[Range<usize>],
    versions: &[Version],
    columns: &[Vec<Option<ArrayRef>>],
    schema: &TableSchema,
    layout: &Layout,
) -> Result<RecordBatch, ArrowError> {
    let output = layout
        .schema
        .fields()
        .iter()
        .enumerate()
        .map(|(at, field)| -> Option<ArrayRef> {
            if field.name() == "time" {
                let times = points.iter().map(|point| versions[point.start].time);
                return Some(Arc::new(TimestampNanosecondArray::from_iter_values(times)));
            }
            let kind = schema.column(field.name())?.kind;
            Some(merged_column(kind, points, |version| columns[version.chunk as usize][at].as_ref(), versions))
        })
        .collect();
    layout.record_batch(output, points.len())
}

fn merged_column<'a>(
    kind: ColumnKind,
    points: &[Range<usize>],
    column: impl Fn(&Version) -> Option<&'a ArrayRef>,
    versions: &[Version],
) -> ArrayRef {
    let mut builder = ColumnBuilder::new("".into(), kind);
    for (row, point) in points.iter().enumerate() {
        let latest = versions[point.clone()].iter().rev().find_map(|version| {
            let column = column(version)?;
            column.is_valid(version.row as usize).then_some((column, version.row as usize))
        });
        match latest {
            Some((column, from)) => builder.append_row(column, from),
            None => builder.pad(row + 1),
        }
    }
    builder.finish()
}
