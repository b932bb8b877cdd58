//! What the load generator asks a server besides writing: SQL, and the latencies that its triggers measured.
//!
//! A server that has no `system.trigger_latency` (any other than Saltus) is not an error: there is then no activation
//! figure, and the report says so.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::http::{Connection, Target, encode};

/// One row of `system.trigger_latency`: a histogram of one trigger, lane and stage, since the server started.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct TriggerLatency {
    /// The trigger.
    pub trigger_name: String,
    /// `inline` or `deferred`.
    pub lane: String,
    /// `activation` (last request byte to entry), `queue` (waiting for a worker) or `run`.
    pub stage: String,
    /// How many were recorded.
    pub count: u64,
    /// Median, microseconds.
    pub p50_us: f64,
    /// 90th percentile, microseconds.
    pub p90_us: f64,
    /// 99th percentile, microseconds.
    pub p99_us: f64,
    /// 99.9th percentile, microseconds.
    pub p999_us: f64,
    /// Largest, microseconds.
    pub max_us: f64,
}

/// Creates the database; one that exists is as good.
pub fn ensure_database(target: &Target, database: &str) -> anyhow::Result<()> {
    let body = serde_json::json!({ "db": database });
    let reply = Connection::open(target)?.post_json("/api/v3/configure/database", &body)?;
    ensure!(
        matches!(reply.status, 200 | 201 | 204 | 409),
        "creating database {database}: status {}: {}",
        reply.status,
        reply.text()
    );
    Ok(())
}

/// The latencies of one trigger, or of all triggers of the database; `None` if the server keeps none.
pub fn trigger_latency(
    target: &Target,
    database: &str,
    trigger: Option<&str>,
) -> anyhow::Result<Option<Vec<TriggerLatency>>> {
    let sql = "SELECT trigger_name, lane, stage, count, p50_us, p90_us, p99_us, p999_us, max_us \
               FROM system.trigger_latency ORDER BY trigger_name, lane, stage";
    let path = format!("/api/v3/query_sql?db={}&format=json&q={}", encode(database), encode(sql));
    let reply = Connection::open(target)?.get(&path)?;
    if reply.status != 200 {
        return Ok(None);
    }
    let mut rows: Vec<TriggerLatency> =
        serde_json::from_slice(&reply.body).context("reading system.trigger_latency")?;
    rows.retain(|row| row.count > 0 && trigger.is_none_or(|name| row.trigger_name == name));
    Ok(Some(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_the_system_table_is_read_with_whole_and_broken_numbers() {
        let json = r#"[{"trigger_name":"felt","lane":"inline","stage":"activation","count":12,"p50_us":31,
            "p90_us":40.5,"p99_us":90.0,"p999_us":120,"max_us":130.25}]"#;
        let rows: Vec<TriggerLatency> = serde_json::from_str(json).unwrap();
        assert_eq!((rows[0].count, rows[0].p50_us, rows[0].max_us), (12, 31.0, 130.25));
    }
}
