//! What is wrong with the fields or the timestamp of a line that is refused, for people. The line is read once more, from left to
//! right, up to the first thing that has no place there; nothing of this is reached by lines that are accepted.

use std::collections::HashSet;

use memchr::memchr_iter;

use super::Grammar;
use super::errors::{Element, Place};
use super::scan::{self, Name};

/// The words behind InfluxDB's text: empty if there is nothing to add.
pub(super) fn why(place: &Place<'_>) -> String {
    match find(place) {
        Some((words, at)) if at < usize::MAX => format!(": {words} ({})", place.column(at)),
        Some((words, _)) => format!(": {words}"),
        None => String::new(),
    }
}

/// The keys of all tags and fields of a line that is well-formed.
pub(super) fn keys(body: &[u8], text: usize, end: usize, grammar: Grammar, into: &mut HashSet<String>) {
    let mut scratch = Vec::new();
    let mut note = |name: Name, element: Element| {
        if let Ok(name) = name.decode(body, element, &mut scratch) {
            into.insert(String::from_utf8_lossy(name).into_owned());
        }
    };
    let Ok(measurement) = scan::name(body, text, end, Element::Measurement, grammar) else { return };
    let (mut at, mut end) = (measurement.to, end);
    while body.get(at) == Some(&b',') {
        let Ok(key) = scan::name(body, at + 1, end, Element::TagKey, grammar) else { return };
        note(key, Element::TagKey);
        let Ok(value) = scan::name(body, key.to + 1, end, Element::TagValue, grammar) else { return };
        at = value.to;
    }
    at = behind_spaces(body, at, end);
    loop {
        let Ok(key) = scan::name(body, at, end, Element::FieldKey, grammar) else { return };
        note(key, Element::FieldKey);
        let Ok(Some((_, behind))) = scan::value(body, (key.to + 1).min(end), &mut end) else { return };
        if body.get(behind) != Some(&b',') {
            return;
        }
        at = behind + 1;
    }
}

/// The words, and where what they speak of begins; `usize::MAX` if the words say that themselves.
fn find(place: &Place<'_>) -> Option<(String, usize)> {
    let Place { body, start, .. } = *place;
    // The end of the line that it would be without what is wrong.
    let mut end = scan::physical_end(body, start).0;
    let text = start + body[start..end].iter().take_while(|&&byte| byte == b' ' || byte == b'\t').count();
    let mut at = behind_series(body, text, end)?;
    let mut after_comma = false;
    loop {
        at = if after_comma { at } else { behind_spaces(body, at, end) };
        let key = scan::name(body, at, end, Element::FieldKey, Grammar::Current).ok()?;
        if key.is_empty() {
            return Some(no_key(body, at, end, after_comma));
        }
        let name = || place.text(key.from, key.to);
        let value = key.to + 1;
        if key.to == end || body[key.to] != b'=' || value == end || matches!(body[value], b',' | b' ') {
            return Some((format!("field `{}` has no value", name()), at));
        }
        let behind = match scan::value(body, value, &mut end) {
            Ok(Some((_, behind))) => behind,
            Ok(None) if body[value] == b'"' => return Some(open_string(place, value)),
            Ok(None) => value,
            Err(_) => return None,
        };
        if behind > value && (behind == end || body[behind] == b' ') {
            return no_time(place, behind, end);
        }
        if behind == value || body[behind] != b',' {
            let to = (behind..end).find(|&at| matches!(body[at], b',' | b' ')).unwrap_or(end);
            return Some((no_value(place, value, behind, to), value));
        }
        (at, after_comma) = (behind + 1, true);
    }
}

/// Behind measurement and tags.
fn behind_series(body: &[u8], text: usize, end: usize) -> Option<usize> {
    let mut at = scan::name(body, text, end, Element::Measurement, Grammar::Current).ok()?.to;
    while at < end && body[at] == b',' {
        let key = scan::name(body, at + 1, end, Element::TagKey, Grammar::Current).ok()?;
        at = scan::name(body, (key.to + 1).min(end), end, Element::TagValue, Grammar::Current).ok()?.to;
    }
    Some(at)
}

fn behind_spaces(body: &[u8], at: usize, end: usize) -> usize {
    (at..end).find(|&at| body[at] != b' ').unwrap_or(end)
}

fn no_key(body: &[u8], at: usize, end: usize, after_comma: bool) -> (String, usize) {
    match (at < end).then(|| body[at]) {
        Some(b'=') => ("a field without a name".to_owned(), at),
        Some(b',') => ("a comma without a field in front of it".to_owned(), at),
        _ if after_comma => ("a comma without a field behind it".to_owned(), at - 1),
        _ => ("the line ends behind its tags".to_owned(), at),
    }
}

/// The string that begins at `quote`.
fn open_string(place: &Place<'_>, quote: usize) -> (String, usize) {
    let rest = &place.body[quote..];
    let lines = 1 + memchr_iter(b'\n', rest.strip_suffix(b"\n").unwrap_or(rest)).count();
    let (column, bytes) = (place.column(quote), rest.len());
    let lines = if lines == 1 { "1 line".to_owned() } else { format!("{lines} lines") };
    let words = format!(
        "the string that begins in {column} does not end; all that is behind it, {bytes} bytes in {lines}, is taken for its text and \
         refused with it"
    );
    (words, usize::MAX)
}

/// What stands behind a complete set of fields and is no timestamp.
fn no_time(place: &Place<'_>, behind: usize, end: usize) -> Option<(String, usize)> {
    let body = place.body;
    let from = behind_spaces(body, behind, end);
    let to = (from..end).find(|&at| body[at] == b' ').unwrap_or(end);
    let word = &body[from..to];
    let digits = word.strip_prefix(b"-").unwrap_or(word);
    if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) {
        let rest = behind_spaces(body, to, end);
        return (rest < end).then(|| ("nothing may stand behind the timestamp".to_owned(), rest));
    }
    let shown = place.text(from, to);
    let words = if word.contains(&b'=') || word.contains(&b',') {
        format!("`{shown}` is no timestamp: fields are separated by a comma without a space")
    } else {
        format!("`{shown}` is no timestamp, which is a whole number in the unit of the precision")
    };
    Some((words, from))
}

/// The word `from..to` in a value's place, of which a value was read up to `read`.
fn no_value(place: &Place<'_>, from: usize, read: usize, to: usize) -> String {
    let shown = place.text(from, to);
    let word = &place.body[from..to];
    let lower = String::from_utf8_lossy(word).to_lowercase();
    let unsigned = lower.trim_start_matches(['+', '-']);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if word.first() == Some(&b'"') {
        return format!(
            "`{}` stands behind the end of a string: a double quote in a string is written \\\"",
            place.text(read, to)
        );
    }
    match unsigned {
        "nan" | "inf" | "infinity" => {
            return format!("`{shown}` is not a number that can be stored: leave the field out");
        }
        "null" | "none" | "nil" | "na" | "undefined" => {
            return format!("`{shown}` is no value: leave the field out where there is none");
        }
        _ => {}
    }
    if lower.starts_with('+') {
        return format!("`{shown}` begins with a plus sign: write the number without it");
    }
    if unsigned.starts_with("0x") {
        return format!("`{shown}` is hexadecimal: write the number in decimal digits");
    }
    if lower.starts_with('-') && unsigned.strip_suffix('u').is_some_and(digits) {
        return format!("`{shown}` is negative, and an unsigned integer is not");
    }
    if unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return match lower.as_bytes().last() {
            Some(b'i' | b'u') => format!("`{shown}` is no integer: digits and an i, or a u if it is unsigned"),
            _ => format!("`{shown}` is no number"),
        };
    }
    match lower.as_bytes().first() {
        Some(b't' | b'f') => format!("`{shown}` is no boolean: write true or false"),
        Some(b'\'') => format!("`{shown}` is in single quotes: a string is in double quotes"),
        _ => format!(
            "`{shown}` is no value: a string is in double quotes, a boolean is true or false, the rest are numbers"
        ),
    }
}
