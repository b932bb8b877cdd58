//! Input that is taken by its letter: a name that a path does not have is refused with the nearest that it has, and so is a name that is
//! given twice. A setting that is ignored without a word is worse than an error.

use std::fmt;

use http::StatusCode;
use http::request::Parts;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::request::QueryParams;
use super::response::HttpError;
use saltus_core::nearest::nearest;

/// Refuses the first of the `given` names that is not `known`. `what` is a field or a parameter; `place` says where it stands, and
/// begins with a blank if there is something to say.
pub(crate) fn check_names<'a>(
    given: impl IntoIterator<Item = &'a str>,
    known: &[&str],
    what: &str,
    place: &str,
) -> Result<(), HttpError> {
    match given.into_iter().find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(name) => {
            let text = format!("unknown {what} `{name}`{place}{}", hint(name, known));
            Err(HttpError::json(StatusCode::BAD_REQUEST, text))
        }
    }
}

/// What there is instead of `name`.
fn hint(name: &str, known: &[&str]) -> String {
    let list = || known.iter().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", ");
    match (nearest(name, known.iter().copied()), known) {
        (Some(near), _) => format!("; did you mean `{near}`?"),
        (None, []) => "; there are none here".to_owned(),
        (None, [_]) => format!("; there is {} only", list()),
        (None, _) => format!("; there are {}", list()),
    }
}

/// The parameters of a path that has no others than `known`.
///
/// # Errors
/// Another one, or one that is given twice.
pub(crate) fn params_of(parts: &Parts, known: &[&str]) -> Result<QueryParams, HttpError> {
    let params = QueryParams::parse(parts.uri.query().unwrap_or_default());
    params.only(known)?;
    Ok(params)
}

/// Refuses a query string that does not say what it seems to: percent signs that encode nothing, bytes that are no text.
///
/// # Errors
/// The parameter that it is in.
pub(crate) fn check_query_string(query: &str) -> Result<(), HttpError> {
    // The common case, in one pass.
    if !query.contains('%') {
        return Ok(());
    }
    for pair in query.split('&') {
        let name = pair.split('=').next().unwrap_or_default();
        let wrong = match decoded(pair) {
            None => "has a `%` without two hexadecimal digits behind it; a percent sign itself is `%25`",
            Some(bytes) if std::str::from_utf8(&bytes).is_err() => "is not UTF-8",
            Some(_) => continue,
        };
        let text = format!("parameter `{name}` of the query string {wrong}");
        return Err(HttpError::json(StatusCode::BAD_REQUEST, text));
    }
    Ok(())
}

/// The bytes that a percent-encoded text stands for.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, behind) = rest.split_first_chunk::<2>()?;
        let digit = |digit: u8| char::from(digit).to_digit(16);
        bytes.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
        rest = behind;
    }
    Some(bytes)
}

/// An object of JSON text whose names are there once each, at every depth.
///
/// # Errors
/// What is wrong, with line and column.
pub(crate) fn parse_object(text: &[u8]) -> Result<Map<String, Value>, HttpError> {
    let refuse = |why: String| HttpError::json(StatusCode::BAD_REQUEST, format!("serde json error: {why}"));
    // A byte order mark is no part of the text.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    match serde_json::from_slice(text).map_err(|error| refuse(error.to_string()))? {
        Once(Value::Object(object)) => Ok(object),
        Once(other) => Err(refuse(format!("expected an object, got {other}"))),
    }
}

/// A JSON value in which no object has a name twice.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values).map(Once)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Once(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("duplicate field `{name}`")));
            }
            let Once(value) = entries.next_value()?;
            object.insert(name, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        let refusal = |name: &str, known: &[&str]| check_names([name], known, "field", "").unwrap_err().message();
        assert_eq!(
            refusal("errorBehavior", &["db", "error_behavior"]),
            "unknown field `errorBehavior`; did you mean `error_behavior`?"
        );
        assert_eq!(refusal("x", &["db", "table"]), "unknown field `x`; there are `db`, `table`");
        assert_eq!(refusal("x", &["db"]), "unknown field `x`; there is `db` only");
        assert_eq!(refusal("x", &[]), "unknown field `x`; there are none here");
        assert!(check_names(["db"], &["db"], "field", "").is_ok());
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused_at_every_depth() {
        let parse = |text: &str| parse_object(text.as_bytes()).map_err(|error| error.message());
        let text = r#"{"a": 1, "b": [null, true, -2, 1.5, "x", {"a": {"a": []}}], "c": 18446744073709551615}"#;
        assert_eq!(Value::Object(parse(text).unwrap()), serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(Value::Object(parse("\u{feff}{}").unwrap()), serde_json::json!({}));
        for (text, why) in [
            (r#"{"a": 1, "b": 2, "a": 1}"#, "serde json error: duplicate field `a` at line 1 column 20"),
            (r#"{"x": [{"a": 1, "a": 1}]}"#, "serde json error: duplicate field `a` at line 1"),
            (r#"{"a": 1, "\u0061": 2}"#, "serde json error: duplicate field `a`"),
            ("[]", "serde json error: expected an object, got []"),
            ("{", "serde json error: EOF while parsing an object at line 1 column 1"),
            ("", "serde json error: EOF while parsing a value"),
            ("{} {}", "serde json error: trailing characters"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn query_strings_are_text() {
        for good in ["", "db=a&q=SELECT+1%25%C3%A4", "a%20b=%F0%9F%8E%89", "a=b=c&&=&"] {
            assert!(check_query_string(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("db=%ff", "parameter `db` of the query string is not UTF-8"),
            ("a=1&db=x%C3", "parameter `db` of the query string is not UTF-8"),
            ("db=%C0%80", "parameter `db` of the query string is not UTF-8"),
            ("db=%ED%A0%80", "parameter `db` of the query string is not UTF-8"),
            ("q=50%", "parameter `q` of the query string has a `%` without two hexadecimal digits"),
            ("q=%zz", "parameter `q` of the query string has a `%` without"),
            ("q=%4", "parameter `q` of the query string has a `%` without"),
        ] {
            let error = check_query_string(bad).unwrap_err();
            assert!(error.message().starts_with(why), "{}", error.message());
        }
    }
}
