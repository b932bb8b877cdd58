//! `GET /api/v3/debug/histograms`: the latency histograms as files, for the tools that read them.
//!
//! | format | what it is                                                                                                      |
//! |--------|-----------------------------------------------------------------------------------------------------------------|
//! | `hlog` | the interval log of HdrHistogram (V2, DEFLATE): one line per histogram since the start, tagged with what it is     |
//! | `hgrm` | the percentile distribution of one histogram in microseconds, as HdrHistogram's plotter takes it                   |
//!
//! Which histograms: those of `db` (and in it of `trigger`), or those of all triggers and shards; `shard` selects one shard's,
//! `stage` one stage's. Encoding takes a fraction of a millisecond each, so others have their turn in between.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use futures_lite::future::yield_now;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use http::header::CONTENT_DISPOSITION;
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use saltus_core::trigger::TriggerKind;
use saltus_shards::api::{ShardStats, TriggerStats};
use saltus_shards::latencies::Latencies;

use super::port::ShardPort;
use super::request::QueryParams;
use super::response::{HttpBody, HttpError, HttpResult, TEXT, reply};
use super::router::Ctx;
use super::strict::params_of;
use crate::registry::RegistryError;

/// The path.
pub(crate) const PATH: &str = "/api/v3/debug/histograms";
/// What can be asked for in `stage`, of triggers and of shards.
pub const TRIGGER_STAGES: [&str; 5] = ["activation", "schedule_delay", "queue", "run", "response"];
/// See [`TRIGGER_STAGES`].
pub const SHARD_STAGES: [&str; 2] = ["commit", "turn"];
/// Steps per halving of the distance to 100%, as HdrHistogram's own tools print it.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
const NS_PER_US: f64 = 1e3;
const NS_PER_MS: f64 = 1e6;

/// One histogram, and what it is called.
struct Named {
    tag: String,
    histogram: Histogram<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Hlog,
    Hgrm,
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted<'a> {
    db: Option<&'a str>,
    trigger: Option<&'a str>,
    shard: Option<u16>,
    stage: Option<&'a str>,
    format: Format,
}

/// Answers it.
pub(crate) async fn get<P: ShardPort>(ctx: &Ctx<'_, P>, parts: &Parts) -> HttpResult {
    let params = params_of(parts, &["db", "trigger", "shard", "stage", "format"])?;
    let wanted = Wanted::read(&params)?;
    if let Some(db) = wanted.db.filter(|db| !ctx.database_exists(db)) {
        return Err(RegistryError::DatabaseNotFound(db.to_owned()).into());
    }
    let mut all = Vec::new();
    if wanted.shard.is_none() {
        for stats in ctx.port.trigger_stats().await.into_iter().filter(|stats| wanted.is_of(stats)) {
            all.extend(of_trigger(stats));
        }
        if let Some(trigger) = wanted.trigger.filter(|_| all.is_empty()) {
            let text = format!("there is no enabled trigger '{trigger}' in this database");
            return Err(HttpError::text(StatusCode::NOT_FOUND, text));
        }
    }
    if wanted.db.is_none() {
        let shards = ctx.port.shard_stats().await;
        if let Some(shard) = wanted.shard.filter(|shard| !shards.iter().any(|stats| stats.shard.0 == *shard)) {
            return Err(HttpError::field("shard", format_args!("there is no shard {shard}")));
        }
        let meant = |stats: &ShardStats| wanted.shard.is_none_or(|shard| stats.shard.0 == shard);
        for stats in shards.into_iter().filter(meant) {
            all.extend(of_shard(stats));
        }
    }
    all.retain(|(stage, _)| wanted.stage.is_none_or(|wanted| wanted == *stage));
    let all: Vec<Named> = all.into_iter().map(|(_, named)| named).collect();
    let (text, name) = match wanted.format {
        Format::Hlog => (interval_log(&all, ctx.shared.started).await?, "saltus.hlog"),
        Format::Hgrm => (percentiles(&the_one(&all)?.histogram), "saltus.hgrm"),
    };
    let mut response = reply(StatusCode::OK, Some(TEXT), HttpBody::whole(text));
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        response.headers_mut().insert(CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

impl<'a> Wanted<'a> {
    fn read(params: &'a QueryParams) -> Result<Self, HttpError> {
        let text = |name| params.get(name).filter(|text| !text.is_empty());
        let format = match text("format") {
            None | Some("hlog") => Format::Hlog,
            Some("hgrm") => Format::Hgrm,
            Some(other) => return Err(HttpError::field("format", format_args!("'{other}' is neither hlog nor hgrm"))),
        };
        let number = |text: &str| {
            text.parse().map_err(|_| HttpError::field("shard", format_args!("'{text}' is no number of a shard")))
        };
        let wanted = Wanted {
            db: text("db"),
            trigger: text("trigger"),
            shard: text("shard").map(number).transpose()?,
            stage: text("stage"),
            format,
        };
        if wanted.trigger.is_some() && wanted.db.is_none() {
            return Err(HttpError::field("trigger", "needs db, the database that it is in"));
        }
        if wanted.shard.is_some() && wanted.db.is_some() {
            return Err(HttpError::field("shard", "a shard is in no database: leave out db and trigger, or shard"));
        }
        wanted.check_stage()?;
        Ok(wanted)
    }

    fn check_stage(&self) -> Result<(), HttpError> {
        let Some(stage) = self.stage else { return Ok(()) };
        let triggers: &[&str] = if self.shard.is_none() { &TRIGGER_STAGES } else { &[] };
        let shards: &[&str] = if self.db.is_none() { &SHARD_STAGES } else { &[] };
        if triggers.contains(&stage) || shards.contains(&stage) {
            return Ok(());
        }
        let known = [triggers, shards].concat().join(", ");
        Err(HttpError::field("stage", format_args!("'{stage}' is none of {known}")))
    }

    fn is_of(&self, stats: &TriggerStats) -> bool {
        self.db.is_none_or(|db| *stats.trigger.def.db == *db)
            && self.trigger.is_none_or(|name| *stats.trigger.def.name == *name)
    }
}

fn of_trigger(stats: TriggerStats) -> Vec<(&'static str, Named)> {
    let TriggerStats { trigger, activation_ns, queue_ns, run_ns, response_ns, schedule, .. } = stats;
    let def = &trigger.def;
    let first = if schedule.is_some() { "schedule_delay" } else { "activation" };
    let mut stages = vec![(first, activation_ns), ("queue", queue_ns), ("run", run_ns)];
    if def.spec.kind() == TriggerKind::Request {
        stages.push(("response", response_ns));
    }
    let named = |(stage, latencies): (&'static str, Latencies)| {
        (stage, Named { tag: tag(&format!("{}.{}.{stage}", def.db, def.name)), histogram: latencies.into_histogram() })
    };
    stages.into_iter().map(named).collect()
}

fn of_shard(stats: ShardStats) -> Vec<(&'static str, Named)> {
    let named = |stage: &'static str, histogram| {
        (stage, Named { tag: tag(&format!("shard{}.{stage}", stats.shard)), histogram })
    };
    vec![named("commit", stats.commit_ns), named("turn", stats.turn_ns)]
}

/// A tag ends at a comma or a space.
fn tag(name: &str) -> String {
    name.chars().map(|c| if c == ',' || c.is_whitespace() || c.is_control() { '_' } else { c }).collect()
}

fn the_one(all: &[Named]) -> Result<&Named, HttpError> {
    match all {
        [one] => Ok(one),
        [] => Err(HttpError::field("stage", "nothing of that stage is measured here")),
        several => {
            let tags: Vec<&str> = several.iter().take(4).map(|named| named.tag.as_str()).collect();
            let text = format!(
                "hgrm holds one histogram, and {} are meant ({}{}): name db, trigger and stage, or shard and stage; or take hlog",
                several.len(),
                tags.join(", "),
                if several.len() > tags.len() { ", ..." } else { "" },
            );
            Err(HttpError::field("format", text))
        }
    }
}

/// Everything since the start as one interval, which begins with the process.
async fn interval_log(all: &[Named], started: SystemTime) -> Result<String, HttpError> {
    let failed = |error: &dyn std::fmt::Display| {
        HttpError::text(StatusCode::INTERNAL_SERVER_ERROR, format!("the log could not be encoded: {error}"))
    };
    let mut out = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder
        .add_comment("[Histogram log format version 1.3]")
        .add_comment("[Values are nanoseconds; Interval_Max is in milliseconds]")
        .with_start_time(started)
        .with_base_time(started)
        .with_max_value_divisor(NS_PER_MS);
    let mut log = builder.begin_log_with(&mut out, &mut serializer).map_err(|error| failed(&error))?;
    let lasted = started.elapsed().unwrap_or_default();
    for named in all {
        log.write_histogram(&named.histogram, Duration::ZERO, lasted, Tag::new(&named.tag))
            .map_err(|error| failed(&error))?;
        yield_now().await;
    }
    String::from_utf8(out).map_err(|error| failed(&error))
}

/// The text of `outputPercentileDistribution` in HdrHistogram's other languages.
fn percentiles(histogram: &Histogram<u64>) -> String {
    let us = |ns: f64| ns / NS_PER_US;
    let mut out = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    let mut so_far = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        so_far += step.count_since_last_iteration();
        let (value, quantile) = (us(step.value_iterated_to() as f64), step.quantile_iterated_to());
        let _ = if quantile < 1.0 {
            writeln!(out, "{value:12.3} {quantile:.12} {so_far:10} {:14.2}", 1.0 / (1.0 - quantile))
        } else {
            writeln!(out, "{value:12.3} {quantile:.12} {so_far:10}            inf")
        };
    }
    let (mean, deviation) =
        if histogram.is_empty() { (0.0, 0.0) } else { (us(histogram.mean()), us(histogram.stdev())) };
    let max = us(histogram.max() as f64);
    let _ = writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]");
    let _ = writeln!(out, "#[Max     = {max:12.3}, Total count    = {:12}]", histogram.len());
    let _ = writeln!(out, "#[Buckets = {:12}, SubBuckets     = {:12}]", buckets(histogram), SUB_BUCKETS);
    out
}

/// Of a histogram with three digits.
const SUB_BUCKETS: u64 = 2048;

fn buckets(histogram: &Histogram<u64>) -> u32 {
    (1..=u64::BITS).find(|&n| SUB_BUCKETS.checked_shl(n - 1).is_none_or(|top| top > histogram.high())).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram() -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 1 << 36, 3).unwrap();
        for us in 1..=1000_u64 {
            histogram.record(us * 1000).unwrap();
        }
        histogram
    }

    #[test]
    fn a_percentile_distribution_reads_as_others_print_it() {
        let text = percentiles(&histogram());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "       Value     Percentile TotalCount 1/(1-Percentile)");
        let numbers: Vec<Vec<f64>> = lines[2..lines.len() - 3]
            .iter()
            .map(|line| line.split_whitespace().map(|cell| cell.parse().unwrap()).collect())
            .collect();
        assert!(numbers.iter().all(|row| row.len() == 4), "{text}");
        assert!(numbers.windows(2).all(|rows| rows[0][0] <= rows[1][0] && rows[0][1] <= rows[1][1]));
        let median = numbers.iter().find(|row| row[1] == 0.5).unwrap();
        assert!((median[0] - 500.0).abs() < 1.0 && median[2] == 500.0 && median[3] == 2.0, "{median:?}");
        assert_eq!(numbers.last().unwrap()[1..], [1.0, 1000.0, f64::INFINITY]);
        assert!(text.ends_with("#[Buckets =           27, SubBuckets     =         2048]\n"), "{text}");
    }

    #[test]
    fn nothing_measured_is_still_a_file() {
        let text = percentiles(&Histogram::new_with_bounds(1, 1 << 36, 3).unwrap());
        assert!(text.contains("Total count    =            0]"), "{text}");
    }

    #[test]
    fn parameters_are_refused_by_name() {
        let refused = |query: &str| {
            let params = QueryParams::parse(query);
            format!("{:?}", Wanted::read(&params).unwrap_err().body)
        };
        assert!(refused("format=svg").contains("format: 'svg' is neither hlog nor hgrm"));
        assert!(refused("trigger=t").contains("trigger: needs db"));
        assert!(refused("shard=x").contains("shard: 'x' is no number of a shard"));
        assert!(refused("shard=1&db=d").contains("shard: a shard is in no database"));
        assert!(refused("stage=lunch").contains("stage: 'lunch' is none of activation, "));
        assert!(refused("db=d&stage=turn").contains("stage: 'turn' is none of activation, "));
        assert!(refused("shard=1&stage=run").contains("stage: 'run' is none of commit, turn"));
        assert!(Wanted::read(&QueryParams::parse("db=d&trigger=t&stage=run&format=hgrm")).is_ok());
    }

    #[test]
    fn tags_end_neither_at_a_comma_nor_at_a_space() {
        assert_eq!(tag("d.a b,c.run"), "d.a_b_c.run");
    }
}
