//! Names of databases, by the rules of the reference, section 3.3, with its exact error texts; and names of tables and columns, of
//! which those are taken that a line of line protocol can write.
//!
//! A table can be made by a command and by a line. Both must have the same idea of what a name is, or a command makes a table that no
//! line can reach, or that no query can read. So [`check_new_table`] says what is wrong in its own words where it knows them, and in
//! the end writes a line for the table and has the parser of line protocol read it: what comes back must be what was asked for.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::limits::{COLUMNS_PER_TABLE_MAX, DB_NAME_BYTES_MAX, NAME_BYTES_MAX};
use crate::line_protocol::{LineParser, Precision, RESERVED_COLUMNS, SchemaSource};
use crate::schema::{ColumnDef, ColumnKind, TableSchema};

/// Why a database name was refused; the text is what clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DbNameError {
    /// No bytes at all.
    #[error("db name cannot be empty")]
    Empty,
    /// The first byte is neither a letter nor a digit.
    #[error("db name did not start with a number or letter")]
    Start,
    /// A byte outside letters, digits, `_`, `-` and one `/`.
    #[error(
        "invalid character in database or rp name: must be ASCII, containing only letters, numbers, underscores, or hyphens"
    )]
    Character,
    /// More than one `/`, or one at the end.
    #[error(
        "db name with invalid retention policy, if providing a retention policy name, must be of form '<db_name>/<rp_name>'"
    )]
    RetentionPolicy,
    /// Longer than the limit.
    #[error("db name too long: max {DB_NAME_BYTES_MAX}")]
    TooLong,
}

/// The database every node has; it cannot be written, created or deleted by users.
pub const INTERNAL_DB: &str = "_internal";

/// Checks a database name: ASCII, first a letter or digit, then `[A-Za-z0-9_-]` and at most one `/` that is not
/// last, 1 to 511 bytes.
///
/// # Errors
/// The first rule that `name` breaks.
pub fn check_db_name(name: &str) -> Result<(), DbNameError> {
    let bytes = name.as_bytes();
    let first = *bytes.first().ok_or(DbNameError::Empty)?;
    if !first.is_ascii_alphanumeric() {
        return Err(DbNameError::Start);
    }
    let mut slash_seen = false;
    for (at, &byte) in bytes.iter().enumerate() {
        match byte {
            b'/' if slash_seen || at + 1 == bytes.len() => {
                return Err(DbNameError::RetentionPolicy);
            }
            b'/' => slash_seen = true,
            b'_' | b'-' => {}
            _ if byte.is_ascii_alphanumeric() => {}
            _ => return Err(DbNameError::Character),
        }
    }
    if bytes.len() > DB_NAME_BYTES_MAX {
        return Err(DbNameError::TooLong);
    }
    Ok(())
}

/// Bytes of a name that a message shows.
const SHOWN_BYTES_MAX: usize = 64;

/// Why a table cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NewTableError {
    /// A name breaks a rule, or two of them do not go together; the text begins with `table`, `tags` or `fields`.
    #[error("{0}")]
    Invalid(String),
    /// More columns than a table may have.
    #[error("{0}")]
    TooManyColumns(String),
}

/// Whether a table may be made of this: names that lines can write, none of them twice, and not too many of them. `columns` are tags
/// and fields; `time` is not among them.
///
/// # Errors
/// The first rule that is broken, with the name that breaks it.
pub fn check_new_table(table: &str, columns: &[ColumnDef]) -> Result<(), NewTableError> {
    check_table_name(table).map_err(|why| NewTableError::Invalid(format!("table: {why}")))?;
    let mut seen: HashMap<&str, ColumnKind> = HashMap::new();
    for column in columns {
        let list = list_of(column.kind);
        check_column_name(&column.name).map_err(|why| NewTableError::Invalid(format!("{list}: {why}")))?;
        if let Some(first) = seen.insert(&column.name, column.kind) {
            let name = shown(&column.name);
            return Err(NewTableError::Invalid(match list_of(first) == list {
                true => format!("{list}: '{name}' is there twice"),
                false => format!("{list}: '{name}' is a tag already; a column is either a tag or a field"),
            }));
        }
    }
    if columns.len() > COLUMNS_PER_TABLE_MAX {
        return Err(NewTableError::TooManyColumns(format!(
            "Update to schema would exceed number of columns per table limit of {COLUMNS_PER_TABLE_MAX} columns: table '{}' would \
             have {} columns",
            shown(table),
            columns.len()
        )));
    }
    check_by_line(table, columns).map_err(NewTableError::Invalid)
}

/// Whether lines can write to a table of this name.
///
/// # Errors
/// Why not.
pub fn check_table_name(name: &str) -> Result<(), String> {
    check_name(name)?;
    match name.chars().next() {
        Some('#') => {
            Err(format!("'{}' begins with '#', as comments do in line protocol: no line can write it", shown(name)))
        }
        Some('\u{feff}') => Err(format!("'{}' begins with a byte order mark (U+FEFF): leave it out", shown(name))),
        _ => Ok(()),
    }
}

/// Whether a tag or a field may have this name.
///
/// # Errors
/// Why not.
pub fn check_column_name(name: &str) -> Result<(), String> {
    check_name(name)?;
    match RESERVED_COLUMNS.contains(&name) {
        // The text of the reference, 6.3, in front.
        true if name == "time" => {
            Err("'time' is a reserved column: every table has it, for the times of its rows".to_owned())
        }
        true => Err(format!("'{name}' is a reserved column")),
        false => Ok(()),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a name must not be empty".to_owned());
    }
    if name.len() > NAME_BYTES_MAX {
        let (shown, bytes) = (shown(name), name.len());
        return Err(format!("the name '{shown}' has {bytes} bytes, the limit is {NAME_BYTES_MAX}"));
    }
    match name.chars().find(char::is_ascii_control) {
        Some(c) => {
            Err(format!("'{}' has the control character U+{:04X}, which no line can write", shown(name), u32::from(c)))
        }
        None => Ok(()),
    }
}

fn list_of(kind: ColumnKind) -> &'static str {
    if kind == ColumnKind::Tag { "tags" } else { "fields" }
}

/// A name for a message: its beginning, without what would break a line.
fn shown(name: &str) -> String {
    let cut = name.floor_char_boundary(SHOWN_BYTES_MAX);
    let mut text: String = name[..cut].chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if cut < name.len() {
        text.push_str("...");
    }
    text
}

struct NoTables;

impl SchemaSource for NoTables {
    fn table(&self, _table: &str) -> Option<Arc<TableSchema>> {
        None
    }
}

/// Whether a line with a value for every column makes this very table.
fn check_by_line(table: &str, columns: &[ColumnDef]) -> Result<(), String> {
    let mut line = String::new();
    push_escaped(table, &[',', ' ', '\\'], &mut line);
    let (tags, fields): (Vec<&ColumnDef>, Vec<&ColumnDef>) = columns.iter().partition(|c| c.kind == ColumnKind::Tag);
    for tag in tags {
        line.push(',');
        push_escaped(&tag.name, &[',', '=', ' ', '\\'], &mut line);
        line.push_str("=t");
    }
    for (at, field) in fields.iter().enumerate() {
        line.push(if at == 0 { ' ' } else { ',' });
        push_escaped(&field.name, &[',', '=', ' ', '\\'], &mut line);
        line.push_str(match field.kind {
            ColumnKind::Integer => "=1i",
            ColumnKind::UInteger => "=1u",
            ColumnKind::String => "=\"\"",
            ColumnKind::Boolean => "=t",
            ColumnKind::Float | ColumnKind::Tag => "=1",
        });
    }
    // A line has at least one field.
    let without_fields = fields.is_empty();
    if without_fields {
        let other = ["a", "b"].into_iter().find(|name| !columns.iter().any(|c| &*c.name == *name)).unwrap_or("c");
        line.push_str(&format!(" {other}=1"));
    }
    let parsed = LineParser::new().parse("db", &Bytes::from(line), Precision::Nanosecond, false, &NoTables);
    if let Some(error) = parsed.rejected.first() {
        return Err(format!("table: no line can write it: {}", error.message));
    }
    let [batch] = parsed.batches.as_slice() else {
        return Err(format!("table: no line can write to '{}'", shown(table)));
    };
    if *batch.table != *table {
        return Err(format!("table: a line for '{}' would write to '{}'", shown(table), shown(&batch.table)));
    }
    let made = |wanted: &ColumnDef| batch.columns.iter().any(|c| c.name == wanted.name && c.kind == wanted.kind);
    match columns.iter().find(|column| !made(column)) {
        Some(column) => Err(format!("{}: no line can write '{}'", list_of(column.kind), shown(&column.name))),
        None => Ok(()),
    }
}

fn push_escaped(text: &str, special: &[char], out: &mut String) {
    for c in text.chars() {
        if special.contains(&c) {
            out.push('\\');
        }
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(list: &[(&str, ColumnKind)]) -> Vec<ColumnDef> {
        list.iter().map(|&(name, kind)| ColumnDef { name: name.into(), kind }).collect()
    }

    #[test]
    fn a_table_may_be_made_if_a_line_could_make_it() {
        use ColumnKind::{Boolean, Float, Integer, String, Tag, UInteger};
        let all = [
            ("t 1", Tag),
            ("a,b", Tag),
            ("f", Float),
            ("i=", Integer),
            ("u\\x", UInteger),
            ("\u{e9}", String),
            ("b", Boolean),
        ];
        for table in
            ["t", "a b", " lead", "last ", "a,b", "a=b", "a\\b", "table:x", "\u{e9}", "t#", "time", "\u{a0}x", "\"q\""]
        {
            assert_eq!(check_new_table(table, &columns(&all)), Ok(()), "{table}");
            for few in [&[][..], &[("a", Tag), ("b", Tag)], &[("f", Float)]] {
                assert_eq!(check_new_table(table, &columns(few)), Ok(()), "{table}");
            }
        }
    }

    #[test]
    fn what_no_line_could_make_is_refused_with_the_name() {
        use ColumnKind::{Float, Integer, Tag};
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        type Row<'a> = (&'a str, &'a [(&'a str, ColumnKind)], &'a str);
        let rows: &[Row<'_>] = &[
            ("", &[], "table: a name must not be empty"),
            ("#x", &[], "table: '#x' begins with '#'"),
            ("\u{feff}x", &[], "table: '\u{feff}x' begins with a byte order mark"),
            ("a\nb", &[], "table: 'a?b' has the control character U+000A"),
            ("\u{7f}", &[], "table: '?' has the control character U+007F"),
            (&long, &[], "table: the name 'xxxx"),
            ("t", &[("time", Tag)], "tags: 'time' is a reserved column: every table has it"),
            ("t", &[("time", Float)], "fields: 'time' is a reserved column"),
            ("t", &[("__chunk_order", Float)], "fields: '__chunk_order' is a reserved column"),
            ("t", &[("", Tag)], "tags: a name must not be empty"),
            ("t", &[("a", Tag), ("a", Tag)], "tags: 'a' is there twice"),
            ("t", &[("a", Tag), ("a", Float)], "fields: 'a' is a tag already"),
            ("t", &[("f", Float), ("f", Integer)], "fields: 'f' is there twice"),
            ("t", &[("a\tb", Float)], "fields: 'a?b' has the control character U+0009"),
            ("t", &[(&long, Tag)], "tags: the name 'xxxx"),
        ];
        for (table, list, start) in rows {
            let Err(NewTableError::Invalid(text)) = check_new_table(table, &columns(list)) else {
                panic!("{table:?} {list:?} is taken")
            };
            assert!(text.starts_with(start), "{text}");
            assert!(text.len() < 300, "{text}");
        }
    }

    #[test]
    fn too_many_columns_are_counted() {
        let many = |count: usize| -> Vec<ColumnDef> {
            (0..count).map(|n| ColumnDef { name: format!("f{n}").into(), kind: ColumnKind::Float }).collect()
        };
        assert_eq!(check_new_table("wide", &many(COLUMNS_PER_TABLE_MAX)), Ok(()));
        let error = check_new_table("wide", &many(COLUMNS_PER_TABLE_MAX + 14)).unwrap_err();
        let text = "Update to schema would exceed number of columns per table limit of 4096 columns: table 'wide' would have 4110 columns";
        assert_eq!(error, NewTableError::TooManyColumns(text.to_owned()));
    }

    #[test]
    fn names_follow_the_reference() {
        for good in ["a", "1", "my_db-2", "db/autogen", &"x".repeat(511)] {
            assert_eq!(check_db_name(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", DbNameError::Empty),
            ("_internal", DbNameError::Start),
            ("a b", DbNameError::Character),
            ("a/", DbNameError::RetentionPolicy),
            ("a/b/c", DbNameError::RetentionPolicy),
            (&"x".repeat(512), DbNameError::TooLong),
        ] {
            assert_eq!(check_db_name(bad), Err(why), "{bad}");
        }
    }
}
