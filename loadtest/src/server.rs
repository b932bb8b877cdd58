//! What the load generator asks a server besides writing: SQL, and the latencies that its triggers measured.
//!
//! A server that has no `system.trigger_latency` (any other than Saltus) is not an error: there is then no activation
//! figure, and the report says so.

use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::http::{Connection, Target, encode};

/// The latencies of one trigger, lane and stage, since the server started.
#[derive(Clone, Debug, PartialEq, Serialize)]
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

/// Processor seconds that the server has used since its start, all threads; `None` if it does not say.
pub fn cpu_seconds(target: &Target) -> anyhow::Result<Option<f64>> {
    let metrics = Connection::open(target)?.get("/metrics")?.text();
    let value = metrics.lines().find_map(|line| line.strip_prefix("saltus_process_cpu_seconds_total "));
    Ok(value.and_then(|value| value.trim().parse().ok()))
}

/// The latencies of one trigger, or of all triggers of the database; `None` if the server keeps none.
pub fn trigger_latency(
    target: &Target,
    database: &str,
    trigger: Option<&str>,
) -> anyhow::Result<Option<Vec<TriggerLatency>>> {
    let sql = "SELECT * FROM system.trigger_latency";
    let path = format!("/api/v3/query_sql?db={}&format=json&q={}", encode(database), encode(sql));
    let reply = Connection::open(target)?.get(&path)?;
    if reply.status != 200 {
        return Ok(None);
    }
    let mut rows = parse(&reply.body).context("reading system.trigger_latency")?;
    rows.retain(|row| row.count > 0 && trigger.is_none_or(|name| row.trigger_name == name));
    rows.sort_by(|a, b| (&a.trigger_name, &a.lane, &a.stage).cmp(&(&b.trigger_name, &b.lane, &b.stage)));
    Ok(Some(rows))
}

/// Reads the table in either of its shapes: one row per stage, with a column `stage` and `p50_us` ..., or one row per
/// trigger and lane, with `activation_p50_us` ..., `queue_p50_us` ..., `run_p50_us` ...
fn parse(json: &[u8]) -> anyhow::Result<Vec<TriggerLatency>> {
    let rows: Vec<Map<String, Value>> = serde_json::from_slice(json)?;
    let mut latencies = Vec::new();
    for row in &rows {
        match row.get("stage").and_then(Value::as_str) {
            Some(stage) => latencies.push(stage_of(row, stage, "")?),
            None => {
                for stage in ["activation", "queue", "run"] {
                    latencies.push(stage_of(row, stage, &format!("{stage}_"))?);
                }
            }
        }
    }
    Ok(latencies)
}

/// One stage of a row; its figures are in the columns that start with `prefix`.
fn stage_of(row: &Map<String, Value>, stage: &str, prefix: &str) -> anyhow::Result<TriggerLatency> {
    let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |name: &str| {
        let name = format!("{prefix}{name}");
        row.get(&name).and_then(Value::as_f64).with_context(|| format!("no number in column {name}"))
    };
    Ok(TriggerLatency {
        trigger_name: text("trigger_name"),
        lane: text("lane"),
        stage: stage.to_owned(),
        count: row.get("count").and_then(Value::as_u64).context("no number in column count")?,
        p50_us: number("p50_us")?,
        p90_us: number("p90_us")?,
        p99_us: number("p99_us")?,
        p999_us: number("p999_us")?,
        max_us: number("max_us")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_per_stage_is_read_with_whole_and_broken_numbers() {
        let json = r#"[{"trigger_name":"felt","lane":"inline","stage":"activation","count":12,"p50_us":31,
            "p90_us":40.5,"p99_us":90.0,"p999_us":120,"max_us":130.25}]"#;
        let rows = parse(json.as_bytes()).unwrap();
        assert_eq!((rows[0].stage.as_str(), rows[0].count), ("activation", 12));
        assert_eq!((rows[0].p50_us, rows[0].max_us), (31.0, 130.25));
    }

    #[test]
    fn a_row_per_trigger_is_taken_apart_into_its_stages() {
        let mut row = Map::from_iter([
            ("trigger_name".to_owned(), Value::from("felt")),
            ("lane".to_owned(), Value::from("deferred")),
            ("count".to_owned(), Value::from(3)),
        ]);
        for (index, stage) in ["activation", "queue", "run"].iter().enumerate() {
            for figure in ["p50", "p90", "p99", "p999", "max"] {
                row.insert(format!("{stage}_{figure}_us"), Value::from(index));
            }
        }
        let rows = parse(Value::from(vec![Value::from(row.clone())]).to_string().as_bytes()).unwrap();
        let stages: Vec<_> = rows.iter().map(|row| (row.stage.as_str(), row.p99_us)).collect();
        assert_eq!(stages, [("activation", 0.0), ("queue", 1.0), ("run", 2.0)]);

        row.remove("run_max_us");
        let error = parse(Value::from(vec![Value::from(row)]).to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("run_max_us"), "{error}");
    }
}
