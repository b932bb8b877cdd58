//! The grammar below a line: where names, values and lines end.
//!
//! Everything here works on offsets in the request's body and knows no tables. **Invariant:** a name that was scanned
//! once and is met again byte by byte, with the same delimiter behind it, is the same name: escapes never reach across a
//! delimiter that ended a name. The caches of the parser rest on that.
//!
//! **Backslashes** (`docs/adr/013`): a pair of them is one, one before a character that has a meaning in that place takes the
//! meaning away, and any other is itself.

use memchr::{memchr, memchr2};

use super::Grammar;
use super::errors::{Element, Fault};
use crate::limits::{NAME_BYTES_MAX, STRING_FIELD_BYTES_MAX, TAG_VALUE_BYTES_MAX};

/// Where the physical line that `from` is in ends: `(end of its text, start of the next line)`. A carriage return
/// before the line end belongs to it.
#[inline]
pub(super) fn physical_end(body: &[u8], from: usize) -> (usize, usize) {
    let (end, next) = match memchr(b'\n', &body[from..]) {
        Some(at) => (from + at, from + at + 1),
        None => (body.len(), body.len()),
    };
    (without_return(body, from, end), next)
}

#[inline]
fn without_return(body: &[u8], from: usize, end: usize) -> usize {
    if end > from && body[end - 1] == b'\r' { end - 1 } else { end }
}

/// Where a line that may be malformed ends, as [`physical_end`] says it. A quote opens a string only right behind an
/// unescaped `=` of the field section, and in a string line ends are text; a string that is never closed takes the
/// rest of the body with it, since its text must not be mistaken for rows.
pub(super) fn logical_end(body: &[u8], from: usize) -> (usize, usize) {
    let mut at = from;
    while matches!(body.get(at), Some(b' ' | b'\t')) {
        at += 1;
    }
    let mut in_fields = false;
    while at < body.len() && body[at] != b'\n' {
        match body[at] {
            b'\\' if body.get(at + 1).is_some_and(|&b| b != b'\n') => at += 2,
            b'=' if in_fields && body.get(at + 1) == Some(&b'"') => {
                at = closing_quote(body, at + 2).map_or(body.len(), |(quote, _)| quote + 1);
            }
            b' ' => {
                in_fields = true;
                at += 1;
            }
            _ => at += 1,
        }
    }
    (without_return(body, from, at), (at + 1).min(body.len()))
}

/// The first space from `from` on that no backslash escapes.
#[inline]
pub(super) fn unescaped_space(body: &[u8], from: usize, end: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += memchr2(b' ', b'\\', body.get(at..end)?)?;
        if body[at] == b' ' {
            return Some(at);
        }
        at += 2;
    }
}

/// The quote that closes a string whose text starts at `from`, and how many escape pairs stand before it.
pub(super) fn closing_quote(body: &[u8], from: usize) -> Option<(usize, usize)> {
    let mut at = from;
    let mut pairs = 0;
    loop {
        at += memchr2(b'"', b'\\', body.get(at..)?)?;
        if body[at] == b'"' {
            return Some((at, pairs));
        }
        if matches!(body.get(at + 1), Some(b'"' | b'\\')) {
            pairs += 1;
            at += 1;
        }
        at += 1;
    }
}

/// A name or tag value as it stands in the body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    pub from: usize,
    pub to: usize,
    /// Has a backslash, so that [`Name::decode`] may differ from the bytes.
    pub escaped: bool,
}

const NORMAL: u8 = 0;
const CONTROL: u8 = 1;
const BACKSLASH: u8 = 2;
const SPACE: u8 = 3;
const COMMA: u8 = 4;
const EQUALS: u8 = 5;

/// What a byte means inside names.
static CLASS: [u8; 256] = {
    let mut class = [NORMAL; 256];
    let mut byte = 0;
    while byte < 0x20 {
        class[byte] = CONTROL;
        byte += 1;
    }
    class[0x7f] = CONTROL;
    class[b'\\' as usize] = BACKSLASH;
    class[b' ' as usize] = SPACE;
    class[b',' as usize] = COMMA;
    class[b'=' as usize] = EQUALS;
    class
};

/// Scans the name that starts at `from`, up to an unescaped delimiter or `end`. All end at a comma, and keys at `=`.
pub(super) fn name(body: &[u8], from: usize, end: usize, element: Element, grammar: Grammar) -> Result<Name, Fault> {
    // A bit for each class of delimiters.
    let ends: u8 = match element {
        Element::Measurement | Element::TagValue => 1 << SPACE | 1 << COMMA,
        Element::TagKey | Element::FieldKey if grammar == Grammar::First => 1 << SPACE | 1 << EQUALS,
        Element::TagKey | Element::FieldKey => 1 << SPACE | 1 << EQUALS | 1 << COMMA,
    };
    let line = &body[..end];
    let mut at = from;
    let mut escaped = false;
    loop {
        at += line[at..].iter().take_while(|&&byte| CLASS[byte as usize] == NORMAL).count();
        let Some(&byte) = line.get(at) else { break };
        match CLASS[byte as usize] {
            CONTROL => return Err(Fault::Control { at, element }),
            BACKSLASH => {
                escaped = true;
                at += 1;
                if let Some(&byte) = line.get(at) {
                    if CLASS[byte as usize] == CONTROL {
                        return Err(Fault::Control { at, element });
                    }
                    at += 1;
                }
            }
            class if ends >> class & 1 == 1 => break,
            _ => at += 1,
        }
    }
    Ok(Name { from, to: at, escaped })
}

impl Name {
    pub(super) fn is_empty(&self) -> bool {
        self.from == self.to
    }

    /// The decoded bytes, checked against the rules for ends and lengths. `scratch` holds them where they differ from the body.
    #[inline]
    pub(super) fn decode<'a>(
        &self,
        body: &'a [u8],
        element: Element,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Fault> {
        let raw = &body[self.from..self.to];
        let bytes = if self.escaped {
            if !unescape(raw, element, scratch) {
                return Err(Fault::Backslash { at: self.to - 1 });
            }
            scratch.as_slice()
        } else {
            raw
        };
        let bytes_max = if element == Element::TagValue { TAG_VALUE_BYTES_MAX } else { NAME_BYTES_MAX };
        if bytes.len() > bytes_max {
            return Err(Fault::NameSize { at: self.from, element, bytes: bytes.len() });
        }
        Ok(bytes)
    }
}

/// Resolves the escapes of a name; a backslash before any other character stays, and so does that character. False if the
/// last backslash stands before nothing, which is the end of the line.
fn unescape(raw: &[u8], element: Element, out: &mut Vec<u8>) -> bool {
    out.clear();
    let mut at = 0;
    while at < raw.len() {
        if raw[at] == b'\\' && at + 1 < raw.len() {
            let resolved = match raw[at + 1] {
                b',' | b' ' | b'\\' => true,
                b'=' => element != Element::Measurement,
                _ => false,
            };
            if !resolved {
                out.push(b'\\');
            }
            out.push(raw[at + 1]);
            at += 2;
        } else if raw[at] == b'\\' {
            return false;
        } else {
            out.push(raw[at]);
            at += 1;
        }
    }
    true
}

/// A field's value; a string is where its text stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i64),
    UInteger(u64),
    Float(f64),
    Boolean(bool),
    String { from: usize, to: usize, pairs: usize },
}

/// The value that starts at `at` and the offset behind it; `Ok(None)` if there is none. `end` is the end of the line and
/// moves when a string contains line ends.
#[inline]
pub(super) fn value(body: &[u8], at: usize, end: &mut usize) -> Result<Option<(Value, usize)>, Fault> {
    match body[at..*end].first() {
        Some(b'0'..=b'9' | b'-' | b'.') => number(body, at, *end),
        Some(b'"') => string(body, at + 1, end),
        Some(b't' | b'T' | b'f' | b'F') => Ok(boolean(&body[at..*end]).map(|(v, len)| (Value::Boolean(v), at + len))),
        _ => Ok(None),
    }
}

fn boolean(rest: &[u8]) -> Option<(bool, usize)> {
    const WORDS: [(&[u8], bool); 10] = [
        (b"true", true),
        (b"True", true),
        (b"TRUE", true),
        (b"t", true),
        (b"T", true),
        (b"false", false),
        (b"False", false),
        (b"FALSE", false),
        (b"f", false),
        (b"F", false),
    ];
    WORDS.iter().find(|(word, _)| rest.starts_with(word)).map(|(word, value)| (*value, word.len()))
}

fn string(body: &[u8], from: usize, end: &mut usize) -> Result<Option<(Value, usize)>, Fault> {
    let Some((to, pairs)) = closing_quote(body, from) else { return Ok(None) };
    if to - from - pairs > STRING_FIELD_BYTES_MAX {
        return Err(Fault::StringSize { at: from - 1, bytes: to - from - pairs });
    }
    if to >= *end {
        *end = physical_end(body, to).0;
    }
    Ok(Some((Value::String { from, to, pairs }, to + 1)))
}

/// Appends a string's text to `out` with its escapes resolved.
pub(super) fn append_string(raw: &[u8], pairs: usize, out: &mut Vec<u8>) {
    if pairs == 0 {
        out.extend_from_slice(raw);
        return;
    }
    let mut rest = raw;
    while let Some(at) = memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        match rest.get(at + 1) {
            Some(&byte @ (b'"' | b'\\')) => {
                out.push(byte);
                rest = &rest[at + 2..];
            }
            _ => {
                out.push(b'\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.extend_from_slice(rest);
}

/// Digits from `at` on: how many, and their value modulo 2^64 (exact for up to 19 digits).
#[inline(always)]
fn digits(body: &[u8], at: usize, end: usize) -> (u64, usize) {
    // Whole words: eight bytes at a time, as long as the body has them. Reading past `end` is harmless, since the byte at
    // `end` is no digit; only the offsets matter.
    if let Some(word) = body.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*word);
        let length = leading_digits(word);
        if length < 8 {
            // Shifted twice: a shift by all 64 bits is none.
            return (eight_digits(word << 8 << (56 - 8 * length)), length);
        }
        return more_digits(body, at, end, eight_digits(word));
    }
    more_digits(body, at, end, 0)
}

/// What [`digits`] does behind eight of them, of that value; or with fewer than eight bytes left, of value 0.
#[inline(never)]
fn more_digits(body: &[u8], at: usize, end: usize, mut value: u64) -> (u64, usize) {
    let mut rest = &body[at..];
    let mut count = 0;
    if rest.len() >= 8 {
        rest = &rest[8..];
        count = 8;
    }
    while let Some((word, behind)) = rest.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        let length = leading_digits(word);
        if length < 8 {
            if length > 0 {
                value = value.wrapping_mul(POWERS_OF_TEN[length]).wrapping_add(eight_digits(word << (64 - 8 * length)));
            }
            return (value, count + length);
        }
        value = value.wrapping_mul(100_000_000).wrapping_add(eight_digits(word));
        count += 8;
        rest = behind;
    }
    for &byte in &body[at + count..end.max(at + count)] {
        if !byte.is_ascii_digit() {
            break;
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
        count += 1;
    }
    (value, count)
}

const POWERS_OF_TEN: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// How many of the eight bytes, first to last, are digits before the first that is not.
#[inline(always)]
fn leading_digits(word: u64) -> usize {
    // A digit is 0x30..=0x39: its high half is 3, and adding 6 does not change that.
    let high = word & 0xf0f0_f0f0_f0f0_f0f0;
    let high_plus = word.wrapping_add(0x0606_0606_0606_0606) & 0xf0f0_f0f0_f0f0_f0f0;
    let other = (high ^ 0x3030_3030_3030_3030) | (high_plus ^ 0x3030_3030_3030_3030);
    // A carry of the addition can only spoil bytes behind one that is no digit itself.
    (other.trailing_zeros() / 8) as usize
}

/// The value of eight digits, first to last; zero bytes in front count as zeros.
#[inline(always)]
fn eight_digits(word: u64) -> u64 {
    let word = word & 0x0f0f_0f0f_0f0f_0f0f;
    let word = word.wrapping_mul(10).wrapping_add(word >> 8) & 0x00ff_00ff_00ff_00ff;
    let word = word.wrapping_mul(100).wrapping_add(word >> 16) & 0x0000_ffff_0000_ffff;
    word.wrapping_mul(10_000).wrapping_add(word >> 32) & 0xffff_ffff
}

/// `value` of `count` digits as an `i64`, `None` if it does not fit.
#[inline]
fn signed(raw: &[u8], negative: bool, value: u64, count: usize) -> Option<i64> {
    if count < 19 {
        return Some(if negative { -(value as i64) } else { value as i64 });
    }
    lexical_core::parse(raw).ok()
}

/// A short integer field, the most frequent value by far: up to seven digits and `i`. Nothing is asked about the end of
/// the line, since neither a digit nor an `i` stands there.
#[inline(always)]
pub(super) fn short_integer(body: &[u8], at: usize) -> Option<(i64, usize)> {
    let word = u64::from_le_bytes(*body.get(at..)?.first_chunk::<8>()?);
    let length = leading_digits(word);
    if !(1..8).contains(&length) || (word >> (8 * length)) as u8 != b'i' {
        return None;
    }
    Some((eight_digits(word << (64 - 8 * length)) as i64, at + length + 1))
}

/// What [`short_integer`] does, with a sign and up to eighteen digits.
pub(super) fn integer(body: &[u8], at: usize) -> Option<(i64, usize)> {
    let negative = body.get(at) == Some(&b'-');
    let from = at + usize::from(negative);
    let (value, count) = digits(body, from, body.len());
    let behind = from + count;
    if count == 0 || count >= 19 || body.get(behind) != Some(&b'i') {
        return None;
    }
    Some((if negative { -(value as i64) } else { value as i64 }, behind + 1))
}

fn number(body: &[u8], at: usize, end: usize) -> Result<Option<(Value, usize)>, Fault> {
    let negative = body[at] == b'-';
    let from = at + usize::from(negative);
    if from >= end {
        return Ok(None);
    }
    let (whole, count) = digits(body, from, end);
    let behind = from + count;
    let suffix = if behind < end { body[behind] } else { b' ' };
    if count > 0 && suffix == b'i' {
        let value = signed(&body[at..behind], negative, whole, count);
        return value.map(|v| Some((Value::Integer(v), behind + 1))).ok_or(Fault::Integer { from: at, to: behind });
    }
    if count > 0 && suffix == b'u' && !negative {
        let value = if count < 20 { Some(whole) } else { lexical_core::parse(&body[at..behind]).ok() };
        return value.map(|v| Some((Value::UInteger(v), behind + 1))).ok_or(Fault::UInteger { from: at, to: behind });
    }
    float(body, at, end, Mantissa { negative, whole, count, behind })
}

/// What of a float was read before it was known to be one.
struct Mantissa {
    negative: bool,
    whole: u64,
    count: usize,
    behind: usize,
}

fn float(body: &[u8], at: usize, end: usize, read: Mantissa) -> Result<Option<(Value, usize)>, Fault> {
    let Mantissa { negative, whole, count, mut behind } = read;
    let (mut fraction, mut fraction_count) = (0, 0);
    if behind < end && body[behind] == b'.' {
        (fraction, fraction_count) = digits(body, behind + 1, end);
        behind += 1 + fraction_count;
    }
    if count + fraction_count == 0 {
        return Ok(None);
    }
    let exponent_end = exponent(body, behind, end);
    if exponent_end == behind && count + fraction_count <= 15 {
        // Both parts are exact in an f64 and so is the power of ten: one division rounds once, hence correctly.
        let power = power_of_ten(fraction_count);
        let magnitude = (whole * power + fraction) as f64 / power as f64;
        return Ok(Some((Value::Float(if negative { -magnitude } else { magnitude }), behind)));
    }
    behind = exponent_end;
    match lexical_core::parse::<f64>(&body[at..behind]) {
        Ok(value) if value.is_finite() => Ok(Some((Value::Float(value), behind))),
        _ => Err(Fault::Float { from: at, to: behind }),
    }
}

fn power_of_ten(count: usize) -> u64 {
    if count <= 8 { POWERS_OF_TEN[count] } else { POWERS_OF_TEN[8] * POWERS_OF_TEN[count - 8] }
}

/// The offset behind a complete exponent at `at`, `at` if there is none.
fn exponent(body: &[u8], at: usize, end: usize) -> usize {
    let rest = &body[at..end];
    if !matches!(rest.first(), Some(b'e' | b'E')) {
        return at;
    }
    let sign = usize::from(matches!(rest.get(1), Some(b'-' | b'+')));
    let count = rest[1 + sign..].iter().take_while(|b| b.is_ascii_digit()).count();
    if count == 0 { at } else { at + 1 + sign + count }
}

/// The timestamp at `at` and the offset behind it; `Ok(None)` if there is none.
#[inline]
pub(super) fn timestamp(body: &[u8], at: usize, end: usize) -> Result<Option<(i64, usize)>, Fault> {
    let negative = body[at..end].first() == Some(&b'-');
    let from = at + usize::from(negative);
    if from >= end {
        return Ok(None);
    }
    let (value, count) = digits(body, from, end);
    let behind = from + count;
    if count == 0 {
        return Ok(None);
    }
    let fits = if count == 19 && value <= i64::MAX as u64 {
        Some(if negative { -(value as i64) } else { value as i64 })
    } else {
        signed(&body[at..behind], negative, value, count)
    };
    fits.map(|v| Some((v, behind))).ok_or(Fault::Timestamp { from: at, to: behind })
}
