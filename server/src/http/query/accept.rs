//! The header `Accept`: which of the formats a client would rather have (RFC 9110, 12.5.1).
//!
//! A list of media ranges, each with a weight; a range that says more about a type counts for it before one that says less. Of
//! formats of one weight the one that was named counts before the one that only fits `type/*` or `*/*`, then the one that was named
//! first. What pages in a browser send (`text/html`) gets JSON, as in InfluxDB 3.

use super::QueryFormat;
use crate::http::response::HttpError;

/// What can be asked for, and what is given where several are as good. The first name is the one that is answered with.
const TYPES: [(QueryFormat, &[&str]); 5] = [
    (QueryFormat::Json, &["application/json"]),
    (QueryFormat::Csv, &["text/csv", "application/csv"]),
    (QueryFormat::Pretty, &["text/plain"]),
    (
        QueryFormat::JsonLines,
        &[
            "application/jsonl",
            "application/x-ndjson",
            "application/ndjson",
            "application/jsonlines",
            "application/x-jsonlines",
            "application/json-lines",
        ],
    ),
    (QueryFormat::Parquet, &["application/vnd.apache.parquet"]),
];

/// One entry of the list.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    weight: f32,
}

/// How well a range fits a type; the better, the greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Anything,
    Kind,
    Named,
}

/// The format for a header; for none, and an empty one, the first of all.
///
/// # Errors
/// There is no format that the client accepts.
pub(super) fn format(header: &str) -> Result<QueryFormat, HttpError> {
    let ranges: Vec<Range<'_>> = split(header, ',').filter_map(range).collect();
    if header.trim().is_empty() {
        return Ok(QueryFormat::Json);
    }
    let mut best: Option<(f32, Fit, usize, QueryFormat)> = None;
    for (format, names) in TYPES {
        let [first, others @ ..] = names else { continue };
        // Other names count where they are said; what fits many types means the first.
        let others =
            others.iter().filter_map(|name| preference(&ranges, name)).filter(|(_, fit, _)| *fit == Fit::Named);
        let Some((weight, fit, at)) = preference(&ranges, first).into_iter().chain(others).reduce(better) else {
            continue;
        };
        let is_better = best.is_none_or(|(most, closest, first, _)| {
            (weight, fit) > (most, closest) || ((weight, fit) == (most, closest) && fit == Fit::Named && at < first)
        });
        if weight > 0.0 && is_better {
            best = Some((weight, fit, at, format));
        }
    }
    let page = || ranges.iter().any(|range| range.weight > 0.0 && is(range, "text/html") == Some(Fit::Named));
    match best {
        Some((.., format)) => Ok(format),
        None if page() => Ok(QueryFormat::Json),
        None => {
            let possible: Vec<&str> = TYPES.iter().map(|(_, names)| names[0]).collect();
            Err(HttpError::bad_request(format!(
                "invalid mime type ({}): the header Accept asks for none of {}; the parameter `format` decides before it",
                header.trim(),
                possible.join(", ")
            )))
        }
    }
}

/// Of two names of a format the one that is asked for more.
fn better(one: (f32, Fit, usize), other: (f32, Fit, usize)) -> (f32, Fit, usize) {
    if (other.1, other.0) > (one.1, one.0) { other } else { one }
}

/// The weight of a type, how closely it was asked for, and where in the list.
fn preference(ranges: &[Range<'_>], name: &str) -> Option<(f32, Fit, usize)> {
    let fits = ranges.iter().enumerate().filter_map(|(at, range)| Some((is(range, name)?, at, range.weight)));
    // The first of those that fit best.
    let best = fits.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map(|(fit, at, weight)| (weight, fit, at))
}

fn is(range: &Range<'_>, name: &str) -> Option<Fit> {
    let (kind, subtype) = name.split_once('/')?;
    match (range.kind, range.subtype) {
        ("*", "*") => Some(Fit::Anything),
        (wanted, "*") if wanted.eq_ignore_ascii_case(kind) => Some(Fit::Kind),
        (wanted, exactly) if wanted.eq_ignore_ascii_case(kind) && exactly.eq_ignore_ascii_case(subtype) => {
            Some(Fit::Named)
        }
        _ => None,
    }
}

fn range(text: &str) -> Option<Range<'_>> {
    let mut parts = split(text, ';');
    let name = parts.next()?.trim();
    // A lone `*` is what some libraries send for `*/*`.
    let (kind, subtype) = if name == "*" { ("*", "*") } else { name.split_once('/')? };
    let mut weight = 1.0;
    for part in parts {
        if let Some((name, value)) = part.split_once('=')
            && name.trim().eq_ignore_ascii_case("q")
        {
            weight = value.trim().parse::<f32>().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(1.0);
        }
    }
    Some(Range { kind: kind.trim(), subtype: subtype.trim(), weight })
}

/// The parts between separators that are not in quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_would_rather_have() {
        use QueryFormat::{Csv, Json, JsonLines, Parquet, Pretty};
        for (header, expected) in [
            ("", Json),
            (" ", Json),
            ("*/*", Json),
            ("*", Json),
            ("application/json", Json),
            ("Application/JSON", Json),
            ("application/json; charset=utf-8", Json),
            ("application/json;charset=\"utf-8, or so;q=0\"", Json),
            ("application/json, text/plain", Json),
            ("application/json, text/plain, */*", Json),
            ("application/*", Json),
            ("application/jsonl", JsonLines),
            ("application/x-ndjson", JsonLines),
            ("application/jsonl, application/json", JsonLines),
            ("text/csv", Csv),
            ("text/csv, */*", Csv),
            ("*/*, text/csv", Csv),
            ("TEXT/CSV;header=present", Csv),
            ("text/*", Csv),
            ("text/plain", Pretty),
            ("text/plain;charset=us-ascii", Pretty),
            ("application/vnd.apache.parquet", Parquet),
            ("text/csv;q=0.5, application/json;q=0.9", Json),
            ("text/csv;q=0.5, application/json;q=0.4", Csv),
            ("text/csv; q=0.5 , */*", Json),
            ("application/json;q=0, */*", Csv),
            ("application/json;q=0, text/csv;q=0.0, */*;q=0.1", Pretty),
            ("application/*;q=0, */*", Csv),
            ("text/html", Json),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Json),
            ("text/html, text/csv", Csv),
            ("image/png, application/json;q=0.1", Json),
            ("application/json;q=2", Json),
            (",, text/csv ,", Csv),
        ] {
            assert_eq!(format(header), Ok(expected), "{header}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        for header in
            ["application/xml", "image/*", "application/json;q=0", "*/*;q=0", "json", "text/html;q=0", "\u{fffd}"]
        {
            let error = format(header).unwrap_err();
            assert_eq!(error.status, 400, "{header}");
            let text = error.message();
            assert!(text.starts_with(&format!("invalid mime type ({header})")), "{text}");
            assert!(text.contains("application/json, text/csv, text/plain, application/jsonl"), "{text}");
        }
    }
}
