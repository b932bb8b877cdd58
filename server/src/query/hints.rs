//! What to write instead: remedies that are added to errors of statements.
//!
//! DataFusion's own text stays in front. What is added names what is there (a table, a column), the form to write, or the
//! parameter whose value did not fit. All of this is computed for errors only.

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;

use super::QueryError;
use super::request::{QueryRequest, ScalarParam};

pub(super) mod gaps;
mod names;

/// Adds a remedy to the error of a statement that cannot be planned. `tables` gives the names that there are.
pub(super) fn explain(
    error: QueryError,
    cause: &DataFusionError,
    request: &QueryRequest,
    tables: impl Fn() -> Vec<String>,
) -> QueryError {
    let error = match cause.find_root() {
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                QueryError::Planning(names::column(field, valid_fields, &request.sql))
            }
            _ => error,
        },
        _ => error,
    };
    let error = with_text(error, |text| {
        gaps::later(text)
            .or_else(|| names::table(text, &tables).map(|hint| format!("{text}; {hint}")))
            .or_else(|| types(text, &request.sql).map(|hint| format!("{text}; {hint}")))
    });
    parameters(error, &request.params)
}

/// Names the parameters whose values the error is about.
pub(super) fn parameters(error: QueryError, params: &[(String, ScalarParam)]) -> QueryError {
    with_text(error, |text| {
        if text.contains("No value found for placeholder") {
            return Some(format!("{text}; {}", given(params)));
        }
        let meant: Vec<String> =
            params.iter().filter(|(_, value)| concerns(text, value)).map(|(name, value)| said(name, value)).collect();
        if !meant.is_empty() {
            return Some(format!("{text}; {}", meant.join(", ")));
        }
        let number = ["value of Int", "value of UInt", "value of Float", "value of Decimal"];
        (text.contains("Cannot cast string") && number.iter().any(|kind| text.contains(kind))).then(|| {
            format!("{text}; to compare a text with a number, write the number in single quotes; TRY_CAST gives NULL")
        })
    })
}

/// The error with another text, if it is one whose text users mend by.
fn with_text(error: QueryError, better: impl FnOnce(&str) -> Option<String>) -> QueryError {
    match error {
        QueryError::Planning(text) => QueryError::Planning(better(&text).unwrap_or(text)),
        QueryError::Invalid(text) => QueryError::Invalid(better(&text).unwrap_or(text)),
        other => other,
    }
}

fn given(params: &[(String, ScalarParam)]) -> String {
    if params.is_empty() {
        return "no parameters are given: send params, as in \"params\": {\"name\": \"value\"}".to_owned();
    }
    let names: Vec<String> = params.iter().map(|(name, _)| format!("${name}")).collect();
    format!("the parameters given are {}", names.join(", "))
}

/// Whether a text about values or types may be about this one.
fn concerns(text: &str, value: &ScalarParam) -> bool {
    let of_types =
        ["Cannot cast", "Cannot infer", "Can not find", "Cannot coerce", "cannot be cast", "Failed to coerce"];
    let types = of_types.iter().any(|start| text.contains(start));
    match value {
        ScalarParam::String(value) => text.contains(&format!("'{value}'")) || (types && text.contains("Utf8")),
        ScalarParam::Int(_) => types && text.contains("Int64"),
        ScalarParam::UInt(_) => types && text.contains("UInt64"),
        ScalarParam::Float(_) => types && text.contains("Float64"),
        ScalarParam::Bool(_) => types && text.contains("Boolean"),
        ScalarParam::TimestampNs(_) => types && text.contains("Timestamp"),
        ScalarParam::Null => false,
    }
}

fn said(name: &str, value: &ScalarParam) -> String {
    match value {
        ScalarParam::Null => format!("parameter ${name} is null"),
        ScalarParam::Bool(value) => format!("parameter ${name} is the boolean {value}"),
        ScalarParam::Int(value) => format!("parameter ${name} is the integer {value}"),
        ScalarParam::UInt(value) => format!("parameter ${name} is the integer {value}"),
        ScalarParam::Float(value) => format!("parameter ${name} is the float {value:?}"),
        ScalarParam::String(value) => format!("parameter ${name} is the text '{value}'"),
        ScalarParam::TimestampNs(value) => format!("parameter ${name} is the time of {value} ns"),
    }
}

/// The form to write for types that do not go together.
fn types(text: &str, sql: &str) -> Option<String> {
    let number = ["Int64", "UInt64", "Float64", "Int32"].iter().any(|kind| text.contains(kind));
    if text.contains("Cannot coerce arithmetic expression") && (text.contains("Timestamp") || text.contains("Utf8")) {
        return Some(match subtracted_text(sql) {
            None if !text.contains("Timestamp") => return None,
            Some(span) => format!("a span of time is an interval: write INTERVAL '{span}'"),
            None => "a span of time is an interval, such as INTERVAL '10 seconds'".to_owned(),
        });
    }
    if let Some(span) = not_a_time(text).filter(|text| is_span(text)) {
        return Some(format!("a span of time is an interval: write INTERVAL '{span}'"));
    }
    let compared = ["Cannot infer", "Can not find compatible types", "Failed to coerce types", "common type to coerce"];
    if compared.iter().any(|start| text.contains(start)) && text.contains("Timestamp") && number {
        return Some(
            "compare a time with a text, such as time > '2024-01-01T00:00:00Z', or with to_timestamp(10), which counts \
             seconds, or to_timestamp_nanos(10)"
                .to_owned(),
        );
    }
    if out_of_reach(text) {
        return Some("timestamps reach from 1677-09-21T00:12:44Z to 2262-04-11T23:47:16Z".to_owned());
    }
    None
}

/// `X` of `now() - 'X'`.
fn subtracted_text(sql: &str) -> Option<&str> {
    let mut rest = sql;
    while let Some(at) = rest.find(['-', '+']) {
        rest = &rest[at + 1..];
        if let Some(span) = rest.trim_start().strip_prefix('\'').and_then(|text| text.split_once('\'')) {
            return Some(span.0).filter(|text| is_span(text));
        }
    }
    None
}

/// `X` of "Error parsing timestamp from 'X'".
fn not_a_time(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("parsing timestamp from '")?;
    rest.split_once('\'').map(|(text, _)| text)
}

/// Whether the text is a number and a unit, maybe several.
fn is_span(text: &str) -> bool {
    const UNITS: [&str; 16] = [
        "ns", "us", "ms", "s", "sec", "second", "m", "min", "minute", "h", "hour", "d", "day", "week", "month", "year",
    ];
    let text = text.trim();
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-' || c == ' ');
    let unit = unit.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    let singular = unit.strip_suffix('s').filter(|short| !short.is_empty()).unwrap_or(&unit);
    text.starts_with(|c: char| c.is_ascii_digit() || c == '-')
        && (UNITS.contains(&singular) || UNITS.contains(&unit.as_str()))
}

fn out_of_reach(text: &str) -> bool {
    text.contains("timestamp") && ["outside of range", "out of range", "Overflow"].iter().any(|t| text.contains(t))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_are_recognised() {
        for span in ["1 day", "2 days", "1d", "30m", "1.5 hours", "-7 days", "1 day 2 hours", "10 s"] {
            assert!(is_span(span), "{span}");
        }
        for other in ["yesterday", "2024-01-01", "", "12", "1 apple", "a day"] {
            assert!(!is_span(other), "{other}");
        }
        assert_eq!(subtracted_text("SELECT now() - '1 day'"), Some("1 day"));
        assert_eq!(subtracted_text("SELECT a - b, now() -'2 h'"), Some("2 h"));
        assert_eq!(subtracted_text("SELECT a - b"), None);
    }
}
