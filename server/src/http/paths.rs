//! Which paths there are, with which methods; and what is said of those that there are not.
//!
//! A path is compared as it was sent, and if there is none of that name once more without what does not change its meaning: slashes
//! at its end, slashes that are doubled, percent-encoding of characters that need none. Paths of plugins are theirs, byte for byte.

use std::borrow::Cow;

use http::StatusCode;

use super::response::HttpError;
use super::{engine, histograms};
use saltus_core::nearest::nearest;

/// What answers on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    WriteV3,
    WriteV2,
    WriteV1,
    Query,
    Health,
    Ping,
    Metrics,
    Histograms,
    Database,
    Retention,
    Table,
    Trigger,
    TriggerEnable,
    TriggerDisable,
    LettersReplay,
    LettersDiscard,
    PluginFiles,
    PluginFolder,
    TestWal,
    TestSchedule,
    TestRequest,
}

/// Path, methods, what answers. `HEAD` is answered wherever `GET` is, and `OPTIONS` everywhere.
pub(super) const PATHS: [(&str, &[&str], Endpoint); 22] = [
    ("/api/v3/write_lp", &["POST"], Endpoint::WriteV3),
    ("/api/v2/write", &["POST"], Endpoint::WriteV2),
    ("/write", &["POST"], Endpoint::WriteV1),
    ("/api/v3/query_sql", &["GET", "POST"], Endpoint::Query),
    ("/health", &["GET"], Endpoint::Health),
    ("/api/v1/health", &["GET"], Endpoint::Health),
    ("/ping", &["GET", "POST"], Endpoint::Ping),
    ("/metrics", &["GET"], Endpoint::Metrics),
    (histograms::PATH, &["GET"], Endpoint::Histograms),
    ("/api/v3/configure/database", &["GET", "POST", "PUT", "DELETE"], Endpoint::Database),
    ("/api/v3/configure/database/retention_period", &["POST", "DELETE"], Endpoint::Retention),
    ("/api/v3/configure/table", &["POST", "DELETE"], Endpoint::Table),
    ("/api/v3/configure/processing_engine_trigger", &["GET", "POST", "PUT", "DELETE"], Endpoint::Trigger),
    ("/api/v3/configure/processing_engine_trigger/enable", &["POST"], Endpoint::TriggerEnable),
    ("/api/v3/configure/processing_engine_trigger/disable", &["POST"], Endpoint::TriggerDisable),
    ("/api/v3/configure/dead_letters/replay", &["POST"], Endpoint::LettersReplay),
    ("/api/v3/configure/dead_letters/discard", &["POST"], Endpoint::LettersDiscard),
    ("/api/v3/plugins/files", &["POST", "PUT"], Endpoint::PluginFiles),
    ("/api/v3/plugins/directory", &["POST", "PUT"], Endpoint::PluginFolder),
    ("/api/v3/plugin_test/wal", &["POST"], Endpoint::TestWal),
    ("/api/v3/plugin_test/schedule", &["POST"], Endpoint::TestSchedule),
    ("/api/v3/plugin_test/request", &["POST"], Endpoint::TestRequest),
];

/// What InfluxDB has and this version has not: the path, whether what is below it is meant too, and what to do instead.
const MISSING: [(&str, bool, &str); 15] = [
    ("/query", false, INFLUXQL),
    ("/api/v3/query_influxql", false, INFLUXQL),
    ("/api/v2/query", true, "Flux is not in this version; use SQL: POST /api/v3/query_sql"),
    ("/api/v2/delete", true, "rows cannot be deleted in this version; a table can: DELETE /api/v3/configure/table"),
    (
        "/api/v2",
        true,
        "of the InfluxDB v2 API there is /api/v2/write only; databases are made by the first write, or with \
         /api/v3/configure/database",
    ),
    (
        "/api/v1/prom",
        true,
        "Prometheus remote write and read are not in this version; write line protocol to /api/v3/write_lp",
    ),
    (
        "/api/v1",
        true,
        "of /api/v1 there is /api/v1/health only; write to /api/v3/write_lp, query with /api/v3/query_sql",
    ),
    ("/ready", false, "there is no /ready; /health says whether the server takes writes"),
    ("/debug/pprof", true, "there are no profiles in this version; see /metrics and /api/v3/debug/histograms"),
    (
        "/api/v3/configure/last_cache",
        true,
        "last value caches are not in this version; use selector_last or ORDER BY time DESC LIMIT 1 in SQL",
    ),
    (
        "/api/v3/configure/distinct_cache",
        true,
        "distinct value caches are not in this version; use SELECT DISTINCT in SQL",
    ),
    (
        "/api/v3/configure/plugin_environment",
        true,
        "packages are not installed by the server: use pip in the virtual environment of --virtual-env-location",
    ),
    ("/api/v3/enterprise", true, "this is no InfluxDB 3 Enterprise"),
    ("/api/v3/write", false, "write to /api/v3/write_lp"),
    ("/api/v3/query", false, "query with /api/v3/query_sql"),
];

const INFLUXQL: &str = "InfluxQL is not in this version; use SQL: GET or POST /api/v3/query_sql";

/// What answers on `path`, and its methods.
pub(super) fn find(path: &str) -> Option<(Endpoint, &'static [&'static str])> {
    exact(path).or_else(|| match normal(path) {
        Cow::Borrowed(_) => None,
        Cow::Owned(path) => exact(&path),
    })
}

fn exact(path: &str) -> Option<(Endpoint, &'static [&'static str])> {
    PATHS.iter().find(|(known, ..)| *known == path).map(|&(_, methods, endpoint)| (endpoint, methods))
}

/// Methods as in the header `Allow`.
pub(super) fn allowed(methods: &[&str]) -> String {
    let mut all = Vec::new();
    for method in methods {
        all.push(*method);
        if *method == "GET" {
            all.push("HEAD");
        }
    }
    all.push("OPTIONS");
    all.join(", ")
}

/// The error for a path that there is not.
pub(super) fn not_found(path: &str) -> HttpError {
    let path = normal(path);
    let missing = MISSING.iter().find(|(known, below, _)| {
        let rest = path.strip_prefix(known);
        rest.is_some_and(|rest| rest.is_empty() || *below && rest.starts_with('/'))
    });
    let shown = path.get(..path.floor_char_boundary(100)).unwrap_or_default();
    let text = match missing {
        Some((.., instead)) => (*instead).to_owned(),
        None if path.starts_with(engine::PREFIX) => {
            format!("there is no {shown}: paths of plugins are compared byte for byte, without other slashes")
        }
        None => match nearest(&path, PATHS.iter().map(|(known, ..)| *known)) {
            Some(near) => format!("there is no {shown}; did you mean {near}?"),
            None => format!(
                "there is no {shown}; write to /api/v3/write_lp, query with /api/v3/query_sql, and /health says how the server is"
            ),
        },
    };
    HttpError::json(StatusCode::NOT_FOUND, format!("Not found: {text}"))
}

/// The path without what does not change its meaning.
fn normal(path: &str) -> Cow<'_, str> {
    let ends = path.len() > 1 && path.ends_with('/');
    if !ends && !path.contains("//") && !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(c) = rest.chars().next() {
        let (c, len) = unreserved(rest).map_or((c, c.len_utf8()), |c| (c, 3));
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
        rest = &rest[len..];
    }
    while out.len() > 1 && out.ends_with('/') {
        out.pop();
    }
    Cow::Owned(out)
}

/// The character that a percent-encoding at the start of `text` stands for, if it needs none.
fn unreserved(text: &str) -> Option<char> {
    let digits = text.strip_prefix('%')?.get(..2)?;
    let c = char::from(u8::from_str_radix(digits, 16).ok()?);
    (c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~')).then_some(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_the_same_however_they_are_written() {
        for path in ["/health", "/health/", "//health", "/%68ealth", "/health//"] {
            assert_eq!(find(path).map(|(endpoint, _)| endpoint), Some(Endpoint::Health), "{path}");
        }
        for path in ["/api/v3/write_lp", "/api//v3/write%5Flp", "//api/v3/write_lp/"] {
            assert_eq!(find(path).map(|(endpoint, _)| endpoint), Some(Endpoint::WriteV3), "{path}");
        }
        for path in [
            "",
            "/",
            "/Health",
            "/health%2f",
            "/health%",
            "/health%zz",
            "/health%00",
            "/healthy",
            "health",
            "/x/../health",
        ] {
            assert_eq!(find(path), None, "{path}");
        }
    }

    #[test]
    fn a_path_that_is_not_there_is_told_what_is() {
        for (path, text) in [
            ("/query", "InfluxQL is not in this version; use SQL"),
            ("/query/", "InfluxQL is not in this version"),
            ("/api/v3/query_influxql", "InfluxQL is not in this version"),
            ("/api/v2/query/analyze", "Flux is not in this version"),
            ("/api/v2/buckets", "there is /api/v2/write only"),
            ("/api/v3/configure/last_cache", "last value caches are not"),
            ("/api/v3/write", "write to /api/v3/write_lp"),
            ("/api/v3/query_sq", "did you mean /api/v3/query_sql?"),
            ("/api/v3/configure/databases", "did you mean /api/v3/configure/database?"),
            (
                "/api/v3/configure/processing_engine_trigger/enabled",
                "did you mean /api/v3/configure/processing_engine_trigger/enable?",
            ),
            ("/helth", "did you mean /health?"),
            ("/", "there is no /; write to"),
            ("/favicon.ico", "there is no /favicon.ico; write to"),
        ] {
            let error = not_found(path);
            assert_eq!(error.status, StatusCode::NOT_FOUND);
            let message = error.message();
            assert!(message.starts_with("Not found: ") && message.contains(text), "{path}: {message}");
        }
    }

    #[test]
    fn head_goes_with_get_and_options_with_all() {
        assert_eq!(allowed(&["GET", "POST"]), "GET, HEAD, POST, OPTIONS");
        assert_eq!(allowed(&["POST"]), "POST, OPTIONS");
    }
}
