//! Why a line is refused, and the text of each reason. It begins with InfluxDB's (reference, 6.1, 6.3, 6.x), by which clients
//! know it; behind that stands what was found, in which column, and what to write instead.
//!
//! A [`Fault`] carries positions, not text: the parser finds it before it knows where the refused line ends, and a line
//! that is accepted never pays for a message. All positions are offsets in the request's body.

use std::sync::Arc;

use super::{Precision, RefusedBy, explain};
use crate::limits::{
    COLUMNS_PER_TABLE_MAX, LINE_CELLS_MAX, NAME_BYTES_MAX, STRING_FIELD_BYTES_MAX, TAG_VALUE_BYTES_MAX,
};
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
    /// No fault: a byte order mark stands in front of the line, and the line begins behind it.
    ByteOrderMark,
    /// The line does not start with a name.
    Measurement { at: usize },
    /// No field at all could be read.
    NoFields,
    /// The line ends in a backslash, at `at`.
    Backslash { at: usize },
    /// The line goes on at `at` where it should have ended.
    Trailing { at: usize },
    /// A comma at `at` with no field behind it.
    TrailingComma { at: usize },
    /// The tag whose key is `key..to` has no equals sign; the tag set starts at `tags`.
    TagEquals { tags: usize, key: usize, to: usize },
    /// No tag key at `at`.
    TagKey { at: usize },
    /// No tag value at `at`, for the key at `key`.
    TagValue { key: usize, at: usize },
    /// The line ends behind its tags.
    Space { at: usize },
    /// The digits `from..to` do not fit an `i64`.
    Integer { from: usize, to: usize },
    /// The digits `from..to` do not fit a `u64`.
    UInteger { from: usize, to: usize },
    /// The number `from..to` is beyond the largest `f64`.
    Float { from: usize, to: usize },
    /// The digits `from..to` do not fit an `i64`.
    Timestamp { from: usize, to: usize },
    /// A string field at `at` above its limit.
    StringSize { at: usize, bytes: usize },
    /// A name or tag value at `at` above its limit.
    NameSize { at: usize, element: Element, bytes: usize },
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
    /// With the line the table would have so many columns.
    ColumnLimit { table: Arc<str>, columns: usize },
    /// The timestamp overflows once it is in nanoseconds.
    TimeRange { timestamp: i64, precision: Precision },
    /// The body is too large to be parsed at all.
    BodySize,
    /// The table's part of the body would need too much memory.
    Cells { table: Arc<str> },
}

/// Bytes of a number or word that a message quotes.
const QUOTED_BYTES_MAX: usize = 64;

/// The refused line: what messages quote from.
pub(super) struct Place<'a> {
    pub body: &'a [u8],
    /// Where the line starts, its leading blanks included.
    pub start: usize,
    /// Where it ends, line end excluded.
    pub end: usize,
}

impl Place<'_> {
    /// A part of the line, cut where it is long.
    pub(super) fn text(&self, from: usize, to: usize) -> String {
        let from = from.min(to);
        let mut text = String::from_utf8_lossy(&self.body[from..to.min(from + QUOTED_BYTES_MAX + 4)]).into_owned();
        if to - from > QUOTED_BYTES_MAX {
            text.truncate(text.floor_char_boundary(QUOTED_BYTES_MAX));
            text.push_str("...");
        }
        text
    }

    /// What stands at `at`, cut as the reference cuts its contexts.
    fn context(&self, at: usize) -> String {
        let rest = String::from_utf8_lossy(&self.body[at.min(self.end)..self.end.min(at + 64)]);
        if rest.len() > 10 { rest.chars().take(10).chain("...".chars()).collect() } else { rest.into_owned() }
    }

    fn got(&self, at: usize) -> String {
        if at >= self.end { "end of input".to_owned() } else { format!("`{}`", self.context(at)) }
    }

    /// The column from 1, in characters. Line ends in strings count as characters do, and are mentioned.
    pub(super) fn column(&self, at: usize) -> String {
        let before = String::from_utf8_lossy(&self.body[self.start..at.max(self.start)]);
        let column = before.chars().count() + 1;
        match before.matches('\n').count() {
            0 => format!("column {column}"),
            1 => format!("column {column}, behind a line end in a string"),
            several => format!("column {column}, behind {several} line ends in strings"),
        }
    }
}

/// What is said of a table with too many columns.
pub fn column_limit_text(table: &str, columns: usize) -> String {
    format!(
        "Update to schema would exceed number of columns per table limit of {COLUMNS_PER_TABLE_MAX} columns: table `{table}` would \
         have {columns}"
    )
}

fn time_range(timestamp: i64, precision: Precision) -> String {
    let most = i64::MAX / precision.unit_ns();
    format!(
        "timestamp, {timestamp}, out of range for precision: {precision:?}: in this unit timestamps are -{most} to {most}; is the \
         precision right?"
    )
}

impl Fault {
    /// Whether the line could be right elsewhere.
    pub(super) fn by(&self) -> RefusedBy {
        match self {
            Fault::ColumnType { .. } | Fault::ColumnLimit { .. } | Fault::BodySize | Fault::Cells { .. } => {
                RefusedBy::Table
            }
            _ => RefusedBy::Grammar,
        }
    }

    /// The text that the client sees.
    pub(super) fn message(&self, place: &Place<'_>) -> String {
        match self {
            Fault::NoFields => format!("No fields were provided{}", explain::why(place)),
            Fault::Trailing { at } | Fault::TrailingComma { at } => format!(
                "Could not parse entire line. Found trailing content: `{}`{}",
                place.context(*at),
                explain::why(place)
            ),
            Fault::Measurement { .. }
            | Fault::Backslash { .. }
            | Fault::TagEquals { .. }
            | Fault::TagKey { .. }
            | Fault::TagValue { .. }
            | Fault::Space { .. }
            | Fault::Control { .. }
            | Fault::Utf8 { .. } => self.of_text(place),
            Fault::Integer { .. }
            | Fault::UInteger { .. }
            | Fault::Float { .. }
            | Fault::Timestamp { .. }
            | Fault::TimeRange { .. }
            | Fault::StringSize { .. }
            | Fault::NameSize { .. } => self.of_value(place),
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
            Fault::Cells { table } => format!(
                "Too many rows with too many columns: a request may have {LINE_CELLS_MAX} values per table, absent ones counted, and \
                 table `{table}` has them; send fewer lines per request"
            ),
            Fault::ColumnLimit { table, columns } => column_limit_text(table, *columns),
            Fault::BodySize => "request body is too large to be parsed".to_owned(),
            Fault::ByteOrderMark => String::new(),
        }
    }

    /// Of names, and of what separates them.
    fn of_text(&self, place: &Place<'_>) -> String {
        let (text, at) = match self {
            Fault::Measurement { at } => {
                ("Invalid measurement was provided: the line does not begin with a name".to_owned(), at)
            }
            Fault::Backslash { at } => (
                "Measurements, tag keys and values, and field keys may not end with a backslash that escapes nothing: write it \
                 twice"
                    .to_owned(),
                at,
            ),
            Fault::TagEquals { tags, key, to } => {
                let tag = place.text(*key, *to);
                let context = place.context(*tags);
                let text = format!("Tag set malformed: could not find equals sign in `{context}`: tag `{tag}` has no value");
                (text, key)
            }
            Fault::TagKey { at } => {
                let nothing = if place.body.get(*at) == Some(&b'=') { "a tag without a name" } else { "a comma without a tag" };
                (format!("Expected tag key, got {}: {nothing}", place.got(*at)), at)
            }
            Fault::TagValue { key, at } => {
                let tag = place.text(*key, at - 1);
                (format!("Expected tag value, got {}: tag `{tag}` has no value", place.got(*at)), key)
            }
            Fault::Space { at } => {
                ("Expected at least one space character, got end of input: the line has no fields".to_owned(), at)
            }
            Fault::Control { at, element } => {
                let (byte, element) = (place.body[*at], element.words());
                let hint = if byte == b'\t' { ": the parts of a line are separated by spaces" } else { "" };
                (format!("Control character U+{byte:04X} is not allowed in a {element}{hint}"), at)
            }
            Fault::Utf8 { at } => {
                let byte = place.body[*at];
                let utf16 = *at == 0 && (place.body.starts_with(b"\xFF\xFE") || place.body.starts_with(b"\xFE\xFF"));
                let hint = if utf16 { ": it looks like UTF-16, write UTF-8" } else { "" };
                (format!("Invalid UTF-8: byte 0x{byte:02X}{hint}"), at)
            }
            _ => return String::new(),
        };
        format!("{text} ({})", place.column(*at))
    }

    /// Of values that can be read and are too large.
    fn of_value(&self, place: &Place<'_>) -> String {
        let (text, at) = match self {
            Fault::Integer { from, to } => {
                let digits = place.text(*from, *to);
                let (least, most) = (i64::MIN, i64::MAX);
                (format!("Unable to parse integer value `{digits}`: integers are {least} to {most}"), from)
            }
            Fault::UInteger { from, to } => {
                let (digits, most) = (place.text(*from, *to), u64::MAX);
                let text =
                    format!("Unable to parse unsigned integer value `{digits}`: unsigned integers are 0 to {most}");
                (text, from)
            }
            Fault::Float { from, to } => {
                let (digits, most) = (place.text(*from, *to), f64::MAX);
                (format!("Unable to parse floating-point value `{digits}`: floats are -{most:e} to {most:e}"), from)
            }
            Fault::Timestamp { from, to } => {
                let digits = place.text(*from, *to);
                let (least, most) = (i64::MIN, i64::MAX);
                (format!("Unable to parse timestamp value `{digits}`: timestamps are {least} to {most}"), from)
            }
            Fault::StringSize { at, bytes } => {
                (format!("String is greater than 1MB: it has {bytes} bytes, the limit is {STRING_FIELD_BYTES_MAX}"), at)
            }
            Fault::NameSize { at, element, bytes } => {
                let limit = if *element == Element::TagValue { TAG_VALUE_BYTES_MAX } else { NAME_BYTES_MAX };
                let element = element.words();
                (format!("String is greater than 64KB: the {element} has {bytes} bytes, the limit is {limit}"), at)
            }
            Fault::TimeRange { timestamp, precision } => return time_range(*timestamp, *precision),
            _ => return String::new(),
        };
        format!("{text} ({})", place.column(*at))
    }
}
