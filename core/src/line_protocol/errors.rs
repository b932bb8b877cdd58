//! Why a line is refused, and the exact text of each reason (reference, 6.1, 6.3, 6.x).
//!
//! A [`Fault`] carries positions, not text: the parser finds it before it knows where the refused line ends, and a line
//! that is accepted never pays for a message. All positions are offsets in the request's body.

use std::sync::Arc;

use super::Precision;
use crate::limits::{COLUMNS_PER_TABLE_MAX, LINE_CELLS_MAX};
use crate::schema::ColumnKind;

/// The part of a line that a control character was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Measurement,
    TagKey,
    TagValue,
    FieldKey,
}

impl Element {
    fn words(self) -> &'static str {
        match self {
            Element::Measurement => "measurement",
            Element::TagKey => "tag key",
            Element::TagValue => "tag value",
            Element::FieldKey => "field key",
        }
    }
}

/// Why a line is refused.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    /// The line does not start with a name.
    Measurement,
    /// No field at all could be read.
    NoFields,
    /// A name or tag value ends in a backslash.
    Backslash,
    /// The line goes on at `at` where it should have ended.
    Trailing { at: usize },
    /// A comma at `at` with no field behind it.
    TrailingComma { at: usize },
    /// A tag without an equals sign, in the tag set that starts at `tags`.
    TagEquals { tags: usize },
    /// No tag key at `at`.
    TagKey { at: usize },
    /// No tag value at `at`.
    TagValue { at: usize },
    /// The line ends behind its tags.
    Space,
    /// The digits `from..to` do not fit an `i64`.
    Integer { from: usize, to: usize },
    /// The digits `from..to` do not fit a `u64`.
    UInteger { from: usize, to: usize },
    /// The number `from..to` is beyond the largest `f64`.
    Float { from: usize, to: usize },
    /// The digits `from..to` do not fit an `i64`.
    Timestamp { from: usize, to: usize },
    /// A string field above its limit.
    StringSize,
    /// A name or tag value above its limit.
    NameSize,
    /// A control character at `at`.
    Control { at: usize, element: Element },
    /// The line is no UTF-8 from `at` on.
    Utf8 { at: usize },
    /// The same tag key twice.
    TagRepeated(String),
    /// The same field key twice.
    FieldRepeated(Arc<str>),
    /// A key that the engine keeps for itself.
    Reserved(String),
    /// The column has another type already.
    ColumnType { column: Arc<str>, expected: ColumnKind, got: ColumnKind },
    /// The line would create a column too many.
    ColumnLimit,
    /// The timestamp overflows once it is in nanoseconds.
    TimeRange { timestamp: i64, precision: Precision },
    /// The body is too large to be parsed at all.
    BodySize,
    /// The table's part of the body would need too much memory.
    Cells,
}

/// The refused line: what messages quote from.
pub(super) struct Place<'a> {
    pub body: &'a [u8],
    /// Where the line starts, its leading blanks included.
    pub start: usize,
    /// Where it ends, line end excluded.
    pub end: usize,
    pub number: u32,
}

impl Place<'_> {
    fn text(&self, from: usize, to: usize) -> String {
        String::from_utf8_lossy(&self.body[from.min(to)..to]).into_owned()
    }

    /// What stands at `at`, cut as the reference cuts its contexts.
    fn context(&self, at: usize) -> String {
        let rest = self.text(at, self.end);
        if rest.len() > 10 { rest.chars().take(10).chain("...".chars()).collect() } else { rest }
    }

    fn got(&self, at: usize) -> String {
        if at >= self.end { "end of input".to_owned() } else { format!("`{}`", self.context(at)) }
    }

    /// Line and column, both from 1, the column in characters.
    fn position(&self, at: usize) -> String {
        format!("line {}, column {}", self.number, self.text(self.start, at).chars().count() + 1)
    }
}

impl Fault {
    /// The text that the client sees.
    pub(super) fn message(&self, place: &Place<'_>) -> String {
        match self {
            Fault::Measurement => "Invalid measurement was provided".to_owned(),
            Fault::NoFields => "No fields were provided".to_owned(),
            Fault::Backslash => {
                "Measurements, tag keys and values, and field keys may not end with a backslash".to_owned()
            }
            Fault::Trailing { at } => {
                format!("Could not parse entire line. Found trailing content: `{}`", place.context(*at))
            }
            Fault::TrailingComma { at } => format!(
                "Could not parse entire line. Found trailing content: `{}` ({})",
                place.context(*at),
                place.position(*at)
            ),
            Fault::TagEquals { tags } => {
                format!("Tag set malformed: could not find equals sign in `{}`", place.context(*tags))
            }
            Fault::TagKey { at } => format!("Expected tag key, got {}", place.got(*at)),
            Fault::TagValue { at } => format!("Expected tag value, got {}", place.got(*at)),
            Fault::Space => "Expected at least one space character, got end of input".to_owned(),
            Fault::Integer { from, to } => format!("Unable to parse integer value `{}`", place.text(*from, *to)),
            Fault::UInteger { from, to } => {
                format!("Unable to parse unsigned integer value `{}`", place.text(*from, *to))
            }
            Fault::Float { from, to } => {
                format!("Unable to parse floating-point value `{}` ({})", place.text(*from, *to), place.position(*from))
            }
            Fault::Timestamp { from, to } => format!("Unable to parse timestamp value `{}`", place.text(*from, *to)),
            Fault::StringSize => "String is greater than 1MB".to_owned(),
            Fault::NameSize => "String is greater than 64KB".to_owned(),
            Fault::Control { at, element } => format!(
                "Control character U+{:04X} is not allowed in a {} ({})",
                place.body[*at],
                element.words(),
                place.position(*at)
            ),
            Fault::Utf8 { at } => format!("Invalid UTF-8 ({})", place.position(*at)),
            Fault::TagRepeated(key) => format!("Must not contain duplicate tags, but `{key}` was repeated"),
            Fault::FieldRepeated(key) => {
                format!("invalid line protocol - multiple instances of '{key}' field found")
            }
            Fault::Reserved(key) => format!("'{key}' is a reserved column"),
            Fault::ColumnType { column, expected, got } => format!(
                "invalid column type for column '{column}', expected {}, got {}",
                expected.iox_name(),
                got.iox_name()
            ),
            Fault::Cells => format!(
                "Too many rows with too many columns: a request may have {LINE_CELLS_MAX} values per table, absent ones counted; send fewer lines per request"
            ),
            Fault::ColumnLimit => format!(
                "Update to schema would exceed number of columns per table limit of {COLUMNS_PER_TABLE_MAX} columns"
            ),
            Fault::TimeRange { timestamp, precision } => {
                format!("timestamp, {timestamp}, out of range for precision: {precision:?}")
            }
            Fault::BodySize => "request body is too large to be parsed".to_owned(),
        }
    }
}
