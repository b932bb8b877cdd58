//! Line protocol: from bytes to columns in one pass (reference, section 6).
//!
//! Mechanism, per line:
//! 1. The line's raw bytes up to the first unescaped space name its series. Known series (`cache`) cost one comparison;
//!    others are read tag by tag and remembered.
//! 2. The series leads to the table's batch (`build`), to which its dictionary keys are appended.
//! 3. Fields are appended as they are read (`scan`). The key that stood at this place in the line before is tried first.
//! 4. A line that turns out to be wrong, at whichever byte, is undone; only then its message is made (`errors`).
//!
//! **Where a line ends** decides what a string's line ends mean: an accepted line ends where its grammar does, a
//! refused one where `scan::logical_end` says. Both agree on accepted lines.

mod build;
mod cache;
#[cfg(any(test, feature = "fuzzing"))]
pub mod compare;
mod errors;
mod explain;
mod freeze;
mod lines;
mod logged;
#[cfg(any(test, feature = "fuzzing"))]
pub mod oracle;
mod render;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

pub use self::build::RESERVED as RESERVED_COLUMNS;
use self::build::{BatchBuilder, Mark, value_kind};
use self::cache::{Cache, NONE, SeriesTag};
pub use self::errors::column_limit_text;
use self::errors::{Element, Fault, Place};
pub(crate) use self::freeze::freeze;
pub use self::lines::{Line, Text, line_at, look_at};
pub use self::logged::LogParser;
pub use self::render::render;
use self::scan::{Value, logical_end, physical_end, unescaped_space};
use crate::batch::PendingBatch;
use crate::limits::{
    LINE_BODY_BYTES_MAX, LINE_CACHE_BYTES_MAX, LINE_ERRORS_REPORTED_MAX, REFUSED_LINE_BYTES_SHOWN_MAX,
};
use crate::schema::{ColumnKind, TableSchema};
use crate::text::BYTE_ORDER_MARK;

/// The unit of timestamps (reference, 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// Decided per line by magnitude.
    #[default]
    Auto,
    /// Seconds.
    Second,
    /// Milliseconds.
    Millisecond,
    /// Microseconds.
    Microsecond,
    /// Nanoseconds.
    Nanosecond,
}

impl Precision {
    /// Nanoseconds in the unit; `Auto` keeps full nanoseconds where it is asked.
    pub fn unit_ns(self) -> i64 {
        match self {
            Precision::Second => 1_000_000_000,
            Precision::Millisecond => 1_000_000,
            Precision::Microsecond => 1_000,
            Precision::Nanosecond | Precision::Auto => 1,
        }
    }

    /// A timestamp of this unit in nanoseconds, `None` if that overflows.
    pub fn to_ns(self, timestamp: i64) -> Option<i64> {
        let unit = match self {
            Precision::Auto => Precision::guess(timestamp),
            unit => unit,
        };
        timestamp.checked_mul(unit.unit_ns())
    }

    /// The unit in which `timestamp` is a plausible instant: what `Auto` means.
    fn guess(timestamp: i64) -> Precision {
        match timestamp.unsigned_abs() / 1_000_000_000 {
            0..5 => Precision::Second,
            5..5_000 => Precision::Millisecond,
            5_000..5_000_000 => Precision::Microsecond,
            _ => Precision::Nanosecond,
        }
    }
}

/// The version of the grammar, which is in every write record of the log: lines that were accepted are read for ever as they
/// were meant then.
pub const GRAMMAR_VERSION: u8 = 2;

/// How lines are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Grammar {
    /// Version 1: a comma is a letter like others in keys, and so is a byte order mark in front of a line. Only lines that are in
    /// logs already are read like this.
    First,
    /// Version 2: an unescaped comma ends whatever stands before it, and a byte order mark in front of a line is skipped.
    #[default]
    Current,
}

impl Grammar {
    /// The grammar that a version is of; `None` for one that is newer than this program.
    pub fn of_version(version: u8) -> Option<Grammar> {
        match version {
            1 => Some(Grammar::First),
            GRAMMAR_VERSION => Some(Grammar::Current),
            _ => None,
        }
    }
}

/// What refuses a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBy {
    /// It can be written to no table: its own text is wrong.
    Grammar,
    /// The table has a column of another type, or no room for more: elsewhere or later the line may be right.
    Table,
}

/// One rejected line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineError {
    /// 1-based over lines that are neither blank nor comments; a comment that is no UTF-8 is refused and counts.
    pub line_number: u32,
    /// Begins with the exact text of the reference, 6.1 and 6.3; what was found, where and what to write instead is behind it.
    pub message: String,
    /// The line as it was sent.
    pub original_line: String,
    /// Whether it could be written elsewhere.
    pub by: RefusedBy,
}

impl LineError {
    /// What is said of the line where only a text can be said: to plugins, in logs, on the v2 endpoint.
    pub fn refusal(&self) -> String {
        let shown = self.original_line.floor_char_boundary(REFUSED_LINE_BYTES_SHOWN_MAX);
        let (line, more) = (&self.original_line[..shown], if shown < self.original_line.len() { "..." } else { "" });
        format!("line protocol parse failed: {} (line {}): `{line}{more}`", self.message, self.line_number)
    }
}

/// Where the parser finds the schemas of tables that exist already.
pub trait SchemaSource {
    /// The schema of `table` in the database that is written to.
    fn table(&self, table: &str) -> Option<Arc<TableSchema>>;
}

/// What the parser made of a request.
#[derive(Clone, Debug, Default)]
pub struct ParsedWrite {
    /// One per table, in order of first appearance.
    pub batches: Vec<PendingBatch>,
    /// Rejected lines, ascending, at most `LINE_ERRORS_REPORTED_MAX`.
    pub rejected: Vec<LineError>,
    /// How many lines were rejected in all.
    pub rejected_count: usize,
    /// Lines that were neither blank nor comments.
    pub line_count: usize,
}

/// A parser with the caches that make known series cheap; one per shard, reused for all requests.
pub struct LineParser {
    cache: Cache,
    /// Counts requests; a table's cache says in which one it was met last.
    request: u64,
    cache_bytes_max: usize,
    grammar: Grammar,
    scratch: Scratch,
}

/// Buffers of the cold path, kept to be used again.
#[derive(Default)]
struct Scratch {
    name: Vec<u8>,
    tags: Vec<SeriesTag>,
}

impl LineParser {
    /// A parser with empty caches.
    pub fn new() -> Self {
        Self::with_cache_bytes_max(LINE_CACHE_BYTES_MAX)
    }

    /// A parser whose caches are dropped once they hold more than `cache_bytes_max` bytes.
    pub fn with_cache_bytes_max(cache_bytes_max: usize) -> Self {
        let grammar = Grammar::Current;
        LineParser { cache: Cache::default(), request: 0, cache_bytes_max, grammar, scratch: Scratch::default() }
    }

    /// A parser of an older grammar. One parser has one grammar: its caches know lines by their bytes.
    pub fn with_grammar(grammar: Grammar) -> Self {
        LineParser { grammar, ..Self::new() }
    }

    /// Parses a request to database `db`. With `accept_partial` false the first rejected line ends it: `rejected` has
    /// that line and `batches` is empty.
    pub fn parse(
        &mut self,
        db: &str,
        body: &Bytes,
        precision: Precision,
        accept_partial: bool,
        schemas: &dyn SchemaSource,
    ) -> ParsedWrite {
        if self.cache.bytes() > self.cache_bytes_max {
            self.cache = Cache::default();
        }
        self.request += 1;
        let mut run = Run {
            db: self.cache.db(db),
            cache: &mut self.cache,
            scratch: &mut self.scratch,
            request: self.request,
            body,
            utf8: body.is_ascii() || std::str::from_utf8(body).is_ok(),
            grammar: self.grammar,
            precision,
            schemas,
            builders: Vec::new(),
            last_series: NONE,
            next_series: NONE,
            full: false,
            written: ParsedWrite::default(),
        };
        if body.len() > LINE_BODY_BYTES_MAX {
            run.reject(Fault::BodySize, 0, 0);
        } else {
            run.lines(accept_partial);
        }
        run.finish(accept_partial)
    }
}

impl Default for LineParser {
    fn default() -> Self {
        Self::new()
    }
}

/// One request under way.
struct Run<'a> {
    cache: &'a mut Cache,
    scratch: &'a mut Scratch,
    request: u64,
    db: u32,
    body: &'a Bytes,
    /// The whole body is UTF-8; if not, every line is asked.
    utf8: bool,
    grammar: Grammar,
    precision: Precision,
    schemas: &'a dyn SchemaSource,
    builders: Vec<BatchBuilder>,
    /// The series of the line before, and the guess for this one.
    last_series: u32,
    next_series: u32,
    /// A batch has as many cells as it may have: what follows is refused.
    full: bool,
    written: ParsedWrite,
}

/// A line's series once it is known.
struct LineSeries {
    /// The number of the line's batch.
    builder: usize,
    /// Entry of the cache; [`NONE`] if it was not remembered, then the tags are in the scratch buffer.
    series: u32,
    fingerprint: u64,
    /// Offset of the space behind the tags.
    end: usize,
}

/// What a line had behind its fields.
struct LineFields {
    time: Option<i64>,
    /// The end of the line's text; behind the first line end if a string contains one.
    end: usize,
}

/// How far a line got, for the undoing of it.
#[derive(Default)]
struct Progress {
    /// Its batch and series, once they are known.
    target: Option<(usize, u32, Mark)>,
    /// How many fields were appended.
    fields: usize,
}

impl Run<'_> {
    fn lines(&mut self, accept_partial: bool) {
        let body: &[u8] = self.body;
        let mut next = 0;
        while next < body.len() {
            let start = next;
            let (end, behind) = physical_end(body, start);
            next = behind;
            let text = start + body[start..end].iter().take_while(|&&byte| byte == b' ' || byte == b'\t').count();
            let result = if text == end || body[text] == b'#' {
                match self.comment(start, end) {
                    None => continue,
                    Some(fault) => Err(fault),
                }
            } else {
                self.written.line_count += 1;
                self.line(start, text, end)
            };
            match result {
                Ok(line_next) => next = line_next,
                Err(Fault::ByteOrderMark) => {
                    self.written.line_count -= 1;
                    next = text + BYTE_ORDER_MARK.len();
                }
                Err(fault) => {
                    let (end, behind) = line_end(body, start, text);
                    next = behind;
                    self.reject(fault, start, end);
                    if !accept_partial {
                        return;
                    }
                }
            }
        }
    }

    /// Why a comment, or a blank line, is refused: it is no text. Then it counts as a line, so that it can be named.
    #[inline]
    fn comment(&mut self, start: usize, end: usize) -> Option<Fault> {
        if self.utf8 {
            return None;
        }
        let fault = self.check_utf8(start, end).err()?;
        self.written.line_count += 1;
        Some(fault)
    }

    /// Parses the line whose text starts at `text`; the offset of the next line, or why this one is refused, in which case it
    /// left nothing behind.
    fn line(&mut self, start: usize, text: usize, end: usize) -> Result<usize, Fault> {
        if !self.utf8 {
            self.check_utf8(start, logical_end(self.body, start).0)?;
        }
        if self.full {
            return Err(self.cells(text, end));
        }
        let mut progress = Progress::default();
        let result = self.parts(text, end, &mut progress);
        match result {
            Ok((series, fields)) => {
                let body: &[u8] = self.body;
                let mut behind = fields.end;
                behind += usize::from(body.get(behind) == Some(&b'\r'));
                behind += usize::from(body.get(behind) == Some(&b'\n'));
                let number = self.written.line_count as u32;
                let builder = &mut self.builders[series.builder];
                builder.accept(fields.time, series.fingerprint, number, start..behind);
                self.full = builder.is_full();
                Ok(behind)
            }
            Err(fault) => {
                self.undo(&progress);
                Err(fault)
            }
        }
    }

    #[cold]
    fn check_utf8(&self, start: usize, end: usize) -> Result<(), Fault> {
        match std::str::from_utf8(&self.body[start..end]) {
            Ok(_) => Ok(()),
            Err(error) => Err(Fault::Utf8 { at: start + error.valid_up_to() }),
        }
    }

    /// Series, fields and timestamp of a line, appended to the line's batch. What the grammar forbids is an error at
    /// once; what the table forbids is an error at the end, so that errors of the grammar come first.
    #[inline]
    fn parts(&mut self, text: usize, end: usize, progress: &mut Progress) -> Result<(LineSeries, LineFields), Fault> {
        let mut refused = None;
        let series = self.series(text, end, &mut refused)?;
        let builder = &mut self.builders[series.builder];
        progress.target = Some((series.builder, series.series, builder.mark()));
        let tags = match series.series {
            NONE => &self.scratch.tags,
            known => self.cache.tags(known),
        };
        builder.push_tags(&self.cache.tables[builder.table as usize], tags, &mut refused);
        let mut fields = Fields {
            body: self.body,
            grammar: self.grammar,
            end,
            builder,
            scratch: &mut self.scratch.name,
            appended: &mut progress.fields,
            refused,
        };
        let at = fields.all(series.end)?;
        let timestamp = fields.timestamp(at)?;
        let LineFields { time, end } = LineFields { time: timestamp, end: fields.end };
        if let Some(fault) = fields.refused {
            return Err(self.with_figures(fault, &series, text, end));
        }
        let time = match time {
            Some(timestamp) => {
                Some(self.precision.to_ns(timestamp).ok_or(Fault::TimeRange { timestamp, precision: self.precision })?)
            }
            None => None,
        };
        Ok((series, LineFields { time, end }))
    }

    /// A line behind one that made its batch as large as it may be.
    #[cold]
    fn cells(&self, text: usize, end: usize) -> Fault {
        let name = scan::name(self.body, text, end, Element::Measurement, self.grammar);
        let name = name.map(|name| String::from_utf8_lossy(&self.body[name.from..name.to]).into_owned());
        Fault::Cells { table: name.unwrap_or_default().into() }
    }

    /// What is refused by a limit of the table, with the table's name and what would be beyond the limit.
    #[cold]
    fn with_figures(&mut self, fault: Fault, series: &LineSeries, text: usize, end: usize) -> Fault {
        let builder = &mut self.builders[series.builder];
        let table = self.cache.tables[builder.table as usize].name.clone();
        match fault {
            Fault::Cells { .. } => Fault::Cells { table },
            Fault::ColumnLimit { .. } => {
                let mut names = HashSet::new();
                explain::keys(self.body, text, end, self.grammar, &mut names);
                Fault::ColumnLimit { table, columns: builder.columns_with(&names) }
            }
            other => other,
        }
    }

    #[cold]
    fn undo(&mut self, progress: &Progress) {
        let Some((builder, series, mark)) = progress.target else { return };
        let tags = match series {
            NONE => &self.scratch.tags,
            known => self.cache.tags(known),
        };
        self.builders[builder].refuse(self.body, mark, progress.fields, tags);
        self.drop_if_empty(builder);
    }

    /// Takes back a batch that the refused line began, so that batches stand in the order of their first rows.
    fn drop_if_empty(&mut self, builder: usize) {
        if self.builders[builder].rows() == 0 && builder + 1 == self.builders.len() {
            let table = self.builders[builder].table;
            self.cache.tables[table as usize].seen_in = 0;
            self.builders.pop();
        }
    }

    /// The series of the line that starts at `at`.
    #[inline]
    fn series(&mut self, at: usize, end: usize, refused: &mut Option<Fault>) -> Result<LineSeries, Fault> {
        let guess = self.next_series;
        let (series, series_end) = match self.cache.matches(guess, self.db, &self.body[at..end]) {
            Some(len) => (guess, at + len),
            None => match self.look_up(at, end) {
                Some(found) => found,
                None => return self.learn(at, end, refused),
            },
        };
        self.follow(series);
        let known = &self.cache.series[series as usize];
        let (table, fingerprint) = (known.table, known.fingerprint);
        Ok(LineSeries { builder: self.builder(table, at, end), series, fingerprint, end: series_end })
    }

    /// Notes that a line of `series` came behind the one before.
    #[inline]
    fn follow(&mut self, series: u32) {
        if let Some(last) = self.cache.series.get_mut(self.last_series as usize) {
            last.next = series;
        }
        self.last_series = series;
        self.next_series = self.cache.series[series as usize].next;
    }

    /// A known series by its bytes up to the first space that is not escaped, and the offset of that space.
    fn look_up(&self, at: usize, end: usize) -> Option<(u32, usize)> {
        let series_end = unescaped_space(self.body, at, end)?;
        self.cache.find(self.db, &self.body[at..series_end]).map(|series| (series, series_end))
    }

    /// Reads a series that is not known and remembers it.
    #[cold]
    fn learn(&mut self, at: usize, end: usize, refused: &mut Option<Fault>) -> Result<LineSeries, Fault> {
        let body: &[u8] = self.body;
        if body[at] == BYTE_ORDER_MARK[0] && self.begins_with_mark(at) {
            return Err(Fault::ByteOrderMark);
        }
        let measurement = scan::name(body, at, end, Element::Measurement, self.grammar)?;
        if measurement.is_empty() {
            return Err(Fault::Measurement { at });
        }
        let name = measurement.decode(body, Element::Measurement, &mut self.scratch.name)?;
        let table = self.cache.table(self.db, as_text(name));
        self.scratch.tags.clear();
        let mut fingerprint = 0u64;
        let mut at_tag = measurement.to;
        while at_tag < end && body[at_tag] == b',' {
            let (tag, hash, behind) = self.tag(table, measurement.to + 1, at_tag + 1, end)?;
            fingerprint = fingerprint.wrapping_add(hash);
            if self.scratch.tags.iter().any(|known| known.tag == tag.tag) {
                let key = self.cache.tables[table as usize].tags[tag.tag as usize].name.to_string();
                refused.get_or_insert(Fault::TagRepeated(key));
            } else {
                self.scratch.tags.push(tag);
            }
            at_tag = behind;
        }
        if at_tag == end {
            return Err(Fault::Space { at: end });
        }
        let mut series = NONE;
        if refused.is_none() {
            series = self.cache.insert(self.db, table, &body[at..at_tag], &self.scratch.tags, fingerprint);
            self.follow(series);
        }
        Ok(LineSeries { builder: self.builder(table, at, end), series, fingerprint, end: at_tag })
    }

    #[cold]
    fn begins_with_mark(&self, at: usize) -> bool {
        self.grammar == Grammar::Current && self.body[at..].starts_with(BYTE_ORDER_MARK)
    }

    /// The tag at `at`: with its hash, and the offset behind it. `tags` is where the tag set starts.
    fn tag(&mut self, table: u32, tags: usize, at: usize, end: usize) -> Result<(SeriesTag, u64, usize), Fault> {
        let body: &[u8] = self.body;
        let key = scan::name(body, at, end, Element::TagKey, self.grammar)?;
        if key.is_empty() {
            return Err(Fault::TagKey { at });
        }
        let name = key.decode(body, Element::TagKey, &mut self.scratch.name)?;
        if key.to == end || body[key.to] != b'=' {
            return Err(Fault::TagEquals { tags, key: at, to: key.to });
        }
        let tag = self.cache.tag(table, as_text(name));
        let value = scan::name(body, key.to + 1, end, Element::TagValue, self.grammar)?;
        if value.is_empty() {
            return Err(Fault::TagValue { key: at, at: key.to + 1 });
        }
        let text = value.decode(body, Element::TagValue, &mut self.scratch.name)?;
        let (key, hash) = self.cache.intern(table, tag, text);
        Ok((SeriesTag { tag, key }, hash, value.to))
    }

    /// The number of the batch of `table`; the line at `at` starts it if there is none.
    #[inline]
    fn builder(&mut self, table: u32, at: usize, end: usize) -> usize {
        if self.cache.tables[table as usize].seen_in != self.request {
            self.begin_batch(table, at, end);
        }
        self.cache.tables[table as usize].batch as usize
    }

    #[inline(never)]
    fn begin_batch(&mut self, table: u32, at: usize, end: usize) {
        let known = &mut self.cache.tables[table as usize];
        known.seen_in = self.request;
        known.batch = self.builders.len() as u32;
        // As many rows as the rest of the body has room for, were all its lines a little shorter than this one: to make
        // room once more costs more than to have some left.
        let rows = (self.body.len() - at) / (end - at + 1);
        let rows = rows + rows / 8 + 1;
        self.builders.push(BatchBuilder::new(table, known, self.schemas.table(&known.name), rows));
    }

    #[cold]
    fn reject(&mut self, fault: Fault, start: usize, end: usize) {
        self.written.rejected_count += 1;
        if self.written.rejected.len() == LINE_ERRORS_REPORTED_MAX {
            return;
        }
        let number = self.written.line_count as u32;
        let place = Place { body: self.body, start, end };
        self.written.rejected.push(LineError {
            line_number: number,
            message: fault.message(&place),
            by: fault.by(),
            original_line: String::from_utf8_lossy(&self.body[start..end]).into_owned(),
        });
    }

    fn finish(self, accept_partial: bool) -> ParsedWrite {
        let Run { mut written, builders, cache, body, precision, .. } = self;
        if written.rejected_count > 0 && !accept_partial {
            return written;
        }
        let whole = builders.len() == 1 && written.rejected_count == 0;
        written.batches = builders
            .into_iter()
            .map(|builder| {
                let table = &mut cache.tables[builder.table as usize];
                builder.finish(table, body, precision, whole)
            })
            .collect();
        written
    }
}

/// The fields of one line under way.
struct Fields<'a> {
    body: &'a [u8],
    grammar: Grammar,
    /// The end of the line; moves when a string contains line ends.
    end: usize,
    builder: &'a mut BatchBuilder,
    scratch: &'a mut Vec<u8>,
    /// How many fields were appended to the batch.
    appended: &'a mut usize,
    /// Why the table refuses the line. From then on nothing is appended, only the grammar is checked.
    refused: Option<Fault>,
}

impl Fields<'_> {
    /// All fields behind the space at `at`; the offset behind the last.
    // Never inlined: by itself, the loop has all it needs in registers.
    #[inline(never)]
    fn all(&mut self, at: usize) -> Result<usize, Fault> {
        let mut at = behind_spaces(self.body, at, self.end);
        let mut place = 0;
        loop {
            let predicted = self.builder.predicted(self.body, at, place);
            at = match predicted.and_then(|predicted| self.integer(predicted, scan::short_integer)) {
                Some(behind) => behind,
                None => self.field(place, at, predicted)?,
            };
            // The line does not end with a comma: what stands at its end, if anything, is a line end.
            if self.body.get(at) != Some(&b',') {
                return Ok(at);
            }
            at += 1;
            place += 1;
        }
    }

    /// The frequent case: the same key as in the line before, and an integer that `read` reads.
    #[inline(always)]
    fn integer(
        &mut self,
        (column, at): (u32, usize),
        read: impl FnOnce(&[u8], usize) -> Option<(i64, usize)>,
    ) -> Option<usize> {
        if self.refused.is_some() {
            return None;
        }
        let behind = self.builder.push_integer(self.body, column, at, read)?;
        *self.appended += 1;
        Some(behind)
    }

    /// Any field: the offset behind it. `predicted` is what the builder predicted.
    // Never inlined, for the sake of the loop that calls it.
    #[inline(never)]
    fn field(&mut self, place: usize, at: usize, predicted: Option<(u32, usize)>) -> Result<usize, Fault> {
        if place > 0 && (at == self.end || self.body[at] == b' ') {
            return Err(Fault::TrailingComma { at: at - 1 });
        }
        if let Some(behind) = predicted.and_then(|predicted| self.integer(predicted, scan::integer)) {
            return Ok(behind);
        }
        match self.field_if_any(place, at, predicted)? {
            Some(behind) => Ok(behind),
            None if place == 0 => Err(Fault::NoFields),
            // The reference implementation quotes from behind the comma after one field, else from the comma on.
            None => Err(Fault::Trailing { at: if place == 1 { at } else { at - 1 } }),
        }
    }

    /// What [`Fields::field`] says; `None` if there is no field at `at`.
    fn field_if_any(
        &mut self,
        place: usize,
        at: usize,
        predicted: Option<(u32, usize)>,
    ) -> Result<Option<usize>, Fault> {
        match predicted {
            Some((column, value)) => {
                self.value(value, |fields, value| fields.builder.push_field(fields.body, column, value))
            }
            None => {
                let body = self.body;
                let key = scan::name(body, at, self.end, Element::FieldKey, self.grammar)?;
                if key.is_empty() {
                    return Ok(None);
                }
                let column = self.builder.find_raw(body, key);
                if column.is_none() {
                    key.decode(body, Element::FieldKey, self.scratch)?;
                }
                if key.to == self.end || body[key.to] != b'=' {
                    return Ok(None);
                }
                self.value(key.to + 1, |fields, value| fields.append(place, key, column, value))
            }
        }
    }

    /// The value at `at`, which `append` puts into the batch: the offset behind it, `None` if there is none.
    #[inline]
    fn value(
        &mut self,
        at: usize,
        append: impl FnOnce(&mut Self, Value) -> Result<(), Fault>,
    ) -> Result<Option<usize>, Fault> {
        let Some((value, behind)) = scan::value(self.body, at, &mut self.end)? else { return Ok(None) };
        if self.refused.is_none() {
            match append(self, value) {
                Ok(()) => *self.appended += 1,
                Err(fault) => self.refused = Some(fault),
            }
        }
        Ok(Some(behind))
    }

    fn append(&mut self, place: usize, key: scan::Name, column: Option<u32>, value: Value) -> Result<(), Fault> {
        let body = self.body;
        let column = match column {
            Some(column) => column,
            None => self.add_column(key, value_kind(&value))?,
        };
        self.builder.push_field(body, column, value)?;
        self.builder.remember(body, place, key.from..key.to, column);
        Ok(())
    }

    /// The column of a key that was not met before in this spelling.
    fn add_column(&mut self, key: scan::Name, kind: ColumnKind) -> Result<u32, Fault> {
        if let Some(column) = self.builder.add_next_field(self.body, key, kind) {
            return Ok(column);
        }
        let name = key.decode(self.body, Element::FieldKey, self.scratch)?;
        self.builder.add_field(key, as_text(name), kind)
    }

    /// The timestamp behind the fields, which end at `at`, and nothing behind that.
    #[inline]
    fn timestamp(&mut self, at: usize) -> Result<Option<i64>, Fault> {
        if at == self.end {
            return Ok(None);
        }
        let from = behind_spaces(self.body, at, self.end);
        if from == self.end {
            return Ok(None);
        }
        if from == at {
            return Err(Fault::Trailing { at });
        }
        let Some((timestamp, behind)) = scan::timestamp(self.body, from, self.end)? else {
            return Err(Fault::Trailing { at });
        };
        let rest = behind_spaces(self.body, behind, self.end);
        if rest == self.end { Ok(Some(timestamp)) } else { Err(Fault::Trailing { at: rest }) }
    }
}

/// Where a line that is refused, or a comment, ends: `text` is its first byte that is no blank.
fn line_end(body: &[u8], start: usize, text: usize) -> (usize, usize) {
    if body.get(text) == Some(&b'#') { physical_end(body, start) } else { logical_end(body, start) }
}

#[inline]
fn behind_spaces(body: &[u8], mut at: usize, end: usize) -> usize {
    while at < end && body[at] == b' ' {
        at += 1;
    }
    at
}

/// Part of a line, which is UTF-8: bodies or lines that are not never get here, and names end at ASCII.
fn as_text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("lines are checked before they are parsed")
}
