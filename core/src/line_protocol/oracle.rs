//! A second parser that is slow and obvious: it splits the request into lines, reads every line character by
//! character into owned values, and then asks the schema. It shares nothing with the real one but the names of things.
//!
//! Tests and the fuzz target compare the two. It takes valid UTF-8 only, and of a refusal it knows how the text begins.

use std::collections::BTreeMap;

/// A value in a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// A tag value.
    Tag(String),
    /// An `i64` field.
    Integer(i64),
    /// A `u64` field.
    UInteger(u64),
    /// An `f64` field by its bits, so that zeros keep their sign.
    Float(u64),
    /// A text field.
    Text(String),
    /// A boolean field.
    Boolean(bool),
}

impl Cell {
    /// The type in error texts.
    pub fn kind(&self) -> &'static str {
        match self {
            Cell::Tag(_) => "iox::column_type::tag",
            Cell::Integer(_) => "iox::column_type::field::integer",
            Cell::UInteger(_) => "iox::column_type::field::uinteger",
            Cell::Float(_) => "iox::column_type::field::float",
            Cell::Text(_) => "iox::column_type::field::string",
            Cell::Boolean(_) => "iox::column_type::field::boolean",
        }
    }
}

/// An accepted line.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its number among the data lines, from 1.
    pub line: u32,
    /// Nanoseconds, if it had a timestamp.
    pub time: Option<i64>,
    /// Its values by column.
    pub cells: BTreeMap<String, Cell>,
}

/// The accepted lines of one table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The measurement.
    pub name: String,
    /// Tags, then fields, each in order of first appearance.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// A refused line: number, begin of the message, text.
pub type Refused = (u32, String, String);

/// What a request means.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Tables in order of their first accepted line.
    pub tables: Vec<Table>,
    /// Refused lines.
    pub refused: Vec<Refused>,
}

/// Columns and their types, by table.
pub type Schemas = BTreeMap<String, BTreeMap<String, &'static str>>;

/// Reads a request. `precision` is `auto`, `s`, `ms`, `us` or `ns`.
pub fn read(body: &str, precision: &str, partial: bool, columns_max: usize, schemas: &Schemas) -> Outcome {
    let mut outcome = Outcome::default();
    let mut schemas = schemas.clone();
    let mut number = 0;
    for raw in split(body) {
        let raw = without_marks(&raw).to_owned();
        let text = raw.trim_start_matches([' ', '\t']);
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        number += 1;
        let line = Reader { chars: text.chars().collect(), at: 0 };
        let result = line.read().and_then(|line| admit(line, precision, columns_max, &mut schemas));
        match result {
            Ok((name, tags, fields, time)) => store(&mut outcome.tables, name, tags, fields, time, number),
            Err(message) => {
                outcome.refused.push((number, message, raw.to_owned()));
                if !partial {
                    outcome.tables.clear();
                    return outcome;
                }
            }
        }
    }
    outcome
}

/// A line behind the byte order marks that it begins with.
fn without_marks(line: &str) -> &str {
    let text = line.trim_start_matches([' ', '\t']);
    text.strip_prefix('\u{feff}').map_or(line, without_marks)
}

/// Lines without their ends. A line end inside a string is text; comments end at the first line end.
fn split(body: &str) -> Vec<String> {
    let chars: Vec<char> = body.chars().collect();
    let mut lines = Vec::new();
    let mut line = String::new();
    let (mut behind_space, mut quoted, mut at) = (false, false, 0);
    while at < chars.len() {
        let c = chars[at];
        let started = without_marks(&line).trim_start_matches([' ', '\t']);
        let comment = started.starts_with('#');
        if c == '\n' && !quoted {
            lines.push(std::mem::take(&mut line));
            behind_space = false;
        } else if c == '\\' && !comment && at + 1 < chars.len() && (quoted || chars[at + 1] != '\n') {
            line.push(c);
            at += 1;
            line.push(chars[at]);
        } else {
            if quoted {
                quoted = c != '"';
            } else if !comment {
                let opens = c == '"' && behind_space && at > 0 && chars[at - 1] == '=' && !escaped(&line);
                quoted = opens;
                behind_space |= c == ' ' && !started.is_empty();
            }
            line.push(c);
        }
        at += 1;
    }
    lines.push(line);
    lines.into_iter().map(|line| line.strip_suffix('\r').map(str::to_owned).unwrap_or(line)).collect()
}

/// Whether the last character of `line` is behind a backslash that escapes it.
fn escaped(line: &str) -> bool {
    let mut escaped = false;
    let mut backslash = false;
    for c in line.chars() {
        escaped = backslash;
        backslash = c == '\\' && !backslash;
    }
    escaped
}

type Named = Vec<(String, Cell)>;
type Line = (String, Named, Named, Option<i64>);

struct Reader {
    chars: Vec<char>,
    at: usize,
}

/// The begin of a message that quotes `text`.
fn quoting(words: &str, text: &str) -> String {
    format!("{words} `{}", &text[..text.len().min(64)])
}

impl Reader {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn rest(&self, from: usize) -> String {
        self.chars[from.min(self.chars.len())..].iter().collect()
    }

    fn cut(&self, from: usize) -> String {
        let rest = self.rest(from);
        if rest.len() > 10 { rest.chars().take(10).collect::<String>() + "..." } else { rest }
    }

    fn or_end(&self, from: usize) -> String {
        if from >= self.chars.len() { "end of input".into() } else { format!("`{}`", self.cut(from)) }
    }

    fn trailing(&self, from: usize) -> String {
        format!("Could not parse entire line. Found trailing content: `{}`", self.cut(from))
    }

    fn spaces(&mut self) {
        while self.peek() == Some(' ') {
            self.at += 1;
        }
    }

    /// A name up to `stop` or a space; `what` for messages, `resolved` the characters that a backslash escapes.
    fn name(&mut self, stop: char, what: &str, resolved: &str) -> Result<Option<String>, String> {
        let start = self.at;
        let mut text = String::new();
        while let Some(c) = self.peek() {
            if c == ' ' || c == ',' || c == stop {
                break;
            }
            control(c, what)?;
            self.at += 1;
            if c != '\\' {
                text.push(c);
                continue;
            }
            match self.peek() {
                Some(next) => {
                    control(next, what)?;
                    if !resolved.contains(next) {
                        text.push('\\');
                    }
                    text.push(next);
                    self.at += 1;
                }
                None => {
                    let text = "Measurements, tag keys and values, and field keys may not end with a backslash";
                    return Err(text.into());
                }
            }
        }
        if self.at == start {
            return Ok(None);
        }
        if text.len() > 65535 {
            return Err("String is greater than 64KB".into());
        }
        Ok(Some(text))
    }

    fn read(mut self) -> Result<Line, String> {
        let Some(measurement) = self.name(',', "measurement", ", \\")? else {
            return Err("Invalid measurement was provided".into());
        };
        let tags = self.tags()?;
        if self.peek() != Some(' ') {
            return Err("Expected at least one space character, got end of input".into());
        }
        self.spaces();
        let fields = self.fields()?;
        let time = self.time()?;
        Ok((measurement, tags, fields, time))
    }

    fn tags(&mut self) -> Result<Named, String> {
        let mut tags = Vec::new();
        let first = self.at + 1;
        while self.peek() == Some(',') {
            self.at += 1;
            let at = self.at;
            let Some(key) = self.name('=', "tag key", ",= \\")? else {
                return Err(format!("Expected tag key, got {}", self.or_end(at)));
            };
            if self.peek() != Some('=') {
                return Err(format!("Tag set malformed: could not find equals sign in `{}`", self.cut(first)));
            }
            self.at += 1;
            let at = self.at;
            let Some(value) = self.name(',', "tag value", ",= \\")? else {
                return Err(format!("Expected tag value, got {}", self.or_end(at)));
            };
            tags.push((key, Cell::Tag(value)));
        }
        Ok(tags)
    }

    fn fields(&mut self) -> Result<Named, String> {
        let mut fields = Vec::new();
        loop {
            let at = self.at;
            match self.field()? {
                Some(field) => fields.push(field),
                None if fields.is_empty() => return Err("No fields were provided".into()),
                None if fields.len() == 1 => return Err(self.trailing(at)),
                None => return Err(self.trailing(at - 1)),
            }
            if self.peek() != Some(',') {
                return Ok(fields);
            }
            self.at += 1;
            if matches!(self.peek(), None | Some(' ')) {
                return Err(self.trailing(self.at - 1));
            }
        }
    }

    fn field(&mut self) -> Result<Option<(String, Cell)>, String> {
        let Some(key) = self.name('=', "field key", ",= \\")? else { return Ok(None) };
        if self.peek() != Some('=') {
            return Ok(None);
        }
        self.at += 1;
        let value = match self.peek() {
            Some('"') => self.text()?,
            Some('t' | 'T' | 'f' | 'F') => self.boolean(),
            _ => self.number()?,
        };
        Ok(value.map(|value| (key, value)))
    }

    fn text(&mut self) -> Result<Option<Cell>, String> {
        self.at += 1;
        let mut text = String::new();
        loop {
            let Some(c) = self.peek() else { return Ok(None) };
            self.at += 1;
            if c == '"' {
                break;
            }
            match self.peek() {
                Some(next @ ('"' | '\\')) if c == '\\' => {
                    text.push(next);
                    self.at += 1;
                }
                _ => text.push(c),
            }
        }
        if text.len() > 1_048_576 { Err("String is greater than 1MB".into()) } else { Ok(Some(Cell::Text(text))) }
    }

    fn boolean(&mut self) -> Option<Cell> {
        for (word, value) in [("true", true), ("false", false)] {
            let upper = word.to_uppercase();
            let title = format!("{}{}", &upper[..1], &word[1..]);
            for spelling in [word, &title, &upper] {
                if self.rest(self.at).starts_with(spelling) {
                    self.at += spelling.len();
                    return Some(Cell::Boolean(value));
                }
            }
        }
        let value = matches!(self.peek(), Some('t' | 'T'));
        self.at += 1;
        Some(Cell::Boolean(value))
    }

    fn digits(&mut self) -> String {
        let mut digits = String::new();
        while let Some(c @ '0'..='9') = self.peek() {
            digits.push(c);
            self.at += 1;
        }
        digits
    }

    fn number(&mut self) -> Result<Option<Cell>, String> {
        let mut text = String::new();
        if self.peek() == Some('-') {
            text.push('-');
            self.at += 1;
        }
        let whole = self.digits();
        text += &whole;
        if !whole.is_empty() && self.peek() == Some('i') {
            self.at += 1;
            let value = text.parse().map_err(|_| quoting("Unable to parse integer value", &text))?;
            return Ok(Some(Cell::Integer(value)));
        }
        if !whole.is_empty() && self.peek() == Some('u') && !text.starts_with('-') {
            self.at += 1;
            let value = text.parse().map_err(|_| quoting("Unable to parse unsigned integer value", &text))?;
            return Ok(Some(Cell::UInteger(value)));
        }
        let mut fraction = String::new();
        if self.peek() == Some('.') {
            self.at += 1;
            fraction = self.digits();
            text += ".";
            text += &fraction;
        }
        if whole.is_empty() && fraction.is_empty() {
            return Ok(None);
        }
        if let Some(e @ ('e' | 'E')) = self.peek() {
            let before = self.at;
            let mut exponent = String::from(e);
            self.at += 1;
            if let Some(sign @ ('+' | '-')) = self.peek() {
                exponent.push(sign);
                self.at += 1;
            }
            let digits = self.digits();
            if digits.is_empty() {
                self.at = before;
            } else {
                text += &exponent;
                text += &digits;
            }
        }
        let value: f64 = text.parse().expect("the grammar was checked");
        if value.is_infinite() {
            return Err(quoting("Unable to parse floating-point value", &text));
        }
        Ok(Some(Cell::Float(value.to_bits())))
    }

    fn time(&mut self) -> Result<Option<i64>, String> {
        let behind_fields = self.at;
        self.spaces();
        if self.peek().is_none() {
            return Ok(None);
        }
        let mut text = String::new();
        if self.at > behind_fields && self.peek() == Some('-') {
            text.push('-');
            self.at += 1;
        }
        let digits = if self.at > behind_fields { self.digits() } else { String::new() };
        if digits.is_empty() {
            return Err(self.trailing(behind_fields));
        }
        text += &digits;
        let time = text.parse().map_err(|_| quoting("Unable to parse timestamp value", &text))?;
        self.spaces();
        if self.peek().is_some() { Err(self.trailing(self.at)) } else { Ok(Some(time)) }
    }
}

fn control(c: char, what: &str) -> Result<(), String> {
    if c.is_ascii_control() {
        let code = c as u32;
        return Err(format!("Control character U+{code:04X} is not allowed in a {what}"));
    }
    Ok(())
}

/// What the table says to a line that is well-formed, from left to right.
fn admit(line: Line, precision: &str, columns_max: usize, schemas: &mut Schemas) -> Result<Line, String> {
    let (name, tags, fields, time) = line;
    let mut columns = schemas.get(&name).cloned().unwrap_or_default();
    for (at, (key, _)) in tags.iter().enumerate() {
        if tags[..at].iter().any(|(earlier, _)| earlier == key) {
            return Err(format!("Must not contain duplicate tags, but `{key}` was repeated"));
        }
    }
    for (at, (key, value)) in tags.iter().chain(&fields).enumerate() {
        if at >= tags.len() && fields[..at - tags.len()].iter().any(|(earlier, _)| earlier == key) {
            return Err(format!("invalid line protocol - multiple instances of '{key}' field found"));
        }
        if key == "time" || key == "__chunk_order" {
            return Err(format!("'{key}' is a reserved column"));
        }
        let got = value.kind();
        match columns.get(key) {
            Some(expected) if *expected != got => {
                return Err(format!("invalid column type for column '{key}', expected {expected}, got {got}"));
            }
            Some(_) => {}
            None if columns.len() >= columns_max => {
                return Err(format!(
                    "Update to schema would exceed number of columns per table limit of {columns_max} columns"
                ));
            }
            None => {
                columns.insert(key.clone(), got);
            }
        }
    }
    let time = match time {
        Some(time) => Some(scaled(time, precision)?),
        None => None,
    };
    schemas.insert(name.clone(), columns);
    Ok((name, tags, fields, time))
}

fn scaled(time: i64, precision: &str) -> Result<i64, String> {
    let billions = i128::from(time).abs() / 1_000_000_000;
    let (factor, name) = match precision {
        "s" => (1_000_000_000, "Second"),
        "ms" => (1_000_000, "Millisecond"),
        "us" => (1_000, "Microsecond"),
        "ns" => (1, "Nanosecond"),
        _ if billions < 5 => (1_000_000_000, "Auto"),
        _ if billions < 5_000 => (1_000_000, "Auto"),
        _ if billions < 5_000_000 => (1_000, "Auto"),
        _ => (1, "Auto"),
    };
    i64::try_from(i128::from(time) * factor)
        .map_err(|_| format!("timestamp, {time}, out of range for precision: {name}"))
}

fn store(tables: &mut Vec<Table>, name: String, tags: Named, fields: Named, time: Option<i64>, line: u32) {
    let at = tables.iter().position(|table| table.name == name).unwrap_or_else(|| {
        tables.push(Table { name, ..Table::default() });
        tables.len() - 1
    });
    let table = &mut tables[at];
    let is_tag = |table: &Table, column: &String| {
        table.rows.iter().any(|row| matches!(row.cells.get(column), Some(Cell::Tag(_))))
    };
    for (key, _) in &tags {
        if !table.columns.contains(key) {
            let behind_tags = table.columns.iter().take_while(|column| is_tag(table, column)).count();
            let behind_new = tags
                .iter()
                .take_while(|(tag, _)| tag != key)
                .filter(|(tag, _)| !table.rows.iter().any(|row| row.cells.contains_key(tag)));
            table.columns.insert(behind_tags + behind_new.count(), key.clone());
        }
    }
    for (key, _) in &fields {
        if !table.columns.contains(key) {
            table.columns.push(key.clone());
        }
    }
    table.rows.push(Row { line, time, cells: tags.into_iter().chain(fields).collect() });
}
