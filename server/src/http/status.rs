//! `/health`, `/ping`, `/metrics`.

use futures_lite::future::yield_now;
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;
use uuid::Uuid;

use super::metrics::{self, MetricsText};
use super::port::ShardPort;
use super::response::{HttpBody, HttpResult, JSON, RETRY_AFTER_DEFAULT, TEXT, reply};
use super::router::Ctx;

/// The version of the InfluxDB 3 interface that clients find here.
const API_VERSION: &str = "3.10.0";
/// Ours.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit this was built from, where the build said so.
pub(crate) fn revision() -> &'static str {
    option_env!("SALTUS_REVISION").unwrap_or("unknown")
}

/// 200 `OK`, or 503 with a reason per line.
pub(crate) fn health<P: ShardPort>(ctx: &Ctx<'_, P>) -> HttpResult {
    let reasons = ctx.port.health().reasons;
    if reasons.is_empty() {
        return Ok(reply(StatusCode::OK, Some(TEXT), HttpBody::whole("OK")));
    }
    // The one path whose errors are text as its successes are: people and probes read it.
    let mut response = reply(StatusCode::SERVICE_UNAVAILABLE, Some(TEXT), HttpBody::whole(reasons.join("\n")));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_DEFAULT.as_secs()));
    Ok(response)
}

/// Who answers here, for clients that look for the version.
pub(crate) fn ping<P: ShardPort>(ctx: &Ctx<'_, P>) -> HttpResult {
    let body = json!({
        "product_name": "Saltus",
        "version": API_VERSION,
        "revision": revision(),
        "process_id": ctx.shared.process_id.to_string(),
        "saltus_version": VERSION,
    });
    let mut response = reply(StatusCode::OK, Some(JSON), HttpBody::whole(body.to_string()));
    let request_id = HeaderValue::from_str(&Uuid::now_v7().to_string()).expect("a UUID is visible ASCII");
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("request-id"), request_id.clone());
    headers.insert(HeaderName::from_static("x-request-id"), request_id);
    headers.insert(HeaderName::from_static("x-influxdb-build"), HeaderValue::from_static("Core"));
    headers.insert(HeaderName::from_static("x-influxdb-version"), HeaderValue::from_static(API_VERSION));
    Ok(response)
}

/// Everything that is counted, in Prometheus' text format.
pub(crate) async fn metrics<P: ShardPort>(ctx: &Ctx<'_, P>) -> HttpResult {
    let mut text = MetricsText::new();
    metrics::process(&mut text, ctx.shared.started);
    metrics::shards(&mut text, &ctx.port.shard_stats().await);
    for stats in ctx.port.trigger_stats().await {
        metrics::triggers(&mut text, std::slice::from_ref(&stats));
        // One's histograms take a fraction of a millisecond: others have their turn in between.
        yield_now().await;
    }
    metrics::logs(&mut text, &ctx.shared.parts.logs);
    for source in &ctx.shared.parts.metrics {
        source.write(&mut text);
    }
    Ok(reply(StatusCode::OK, Some(metrics::CONTENT_TYPE), HttpBody::whole(text.finish())))
}
