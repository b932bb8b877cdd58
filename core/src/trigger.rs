//! Triggers: what starts a plugin, and how it is to run.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::cron_words;
use crate::ids::TriggerId;
use crate::limits::{self, RETRY_PAUSE_MAX_MS, RETRY_PAUSE_MIN_MS};
use crate::names::check_table_name;

/// What starts a run (reference, 2.2).
#[derive(Clone, Debug, PartialEq)]
pub enum TriggerSpec {
    /// `table:T`: writes to one table.
    Table(Arc<str>),
    /// `all_tables`: writes to any table of the database.
    AllTables,
    /// `every:D`: at multiples of a duration.
    Every(Duration),
    /// `cron:E`: the expression as given.
    Cron(String),
    /// `request:P`: requests to a path.
    Request(String),
}

/// What kind of event starts a plugin; each has an entry function of its own (reference, 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TriggerKind {
    /// Rows are written: `process_writes`.
    Write,
    /// It is time: `process_scheduled_call`.
    Schedule,
    /// Somebody asks: `process_request`.
    Request,
}

impl TriggerKind {
    /// All of them; a kind's place is its number (`as usize`).
    pub const ALL: [TriggerKind; 3] = [TriggerKind::Write, TriggerKind::Schedule, TriggerKind::Request];

    /// The name of the entry function.
    pub fn entry(self) -> &'static str {
        match self {
            TriggerKind::Write => "process_writes",
            TriggerKind::Schedule => "process_scheduled_call",
            TriggerKind::Request => "process_request",
        }
    }

    /// What is said of a plugin without it: the reference's text, 1.2.
    pub fn entry_missing(self) -> &'static str {
        match self {
            TriggerKind::Write => {
                "the process_writes function is not present in the plugin. Should be defined as: \
                 process_writes(influxdb3_local, table_batches, args=None)"
            }
            TriggerKind::Schedule => {
                "the process_scheduled_call function is not present in the plugin. Should be defined as: \
                 process_scheduled_call(influxdb3_local, call_time, args=None)"
            }
            TriggerKind::Request => {
                "the process_request function is not present in the plugin. Should be defined as: \
                 process_request(influxdb3_local, query_parameters, request_headers, request_body, args=None) -> \
                 Tuple[str, Optional[Dict[str, str]]]"
            }
        }
    }

    /// In `influxdb3_local.event.kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            TriggerKind::Write => "write",
            TriggerKind::Schedule => "schedule",
            TriggerKind::Request => "request",
        }
    }

    /// What the reference calls such a plugin in its log (1.4).
    pub fn plugin(self) -> &'static str {
        match self {
            TriggerKind::Write => "wal plugin",
            TriggerKind::Schedule => "schedule plugin",
            TriggerKind::Request => "request plugin",
        }
    }

    /// What stands before the error of a run (reference, 1.4).
    pub fn failure(self) -> &'static str {
        match self {
            TriggerKind::Write => "error executing wal plugin",
            TriggerKind::Schedule => "error executing schedule plugin",
            TriggerKind::Request => "error running request plugin",
        }
    }
}

/// The shortest `every:`.
const EVERY_MIN: Duration = Duration::from_millis(1);
/// The longest `every:`: a year of 365.25 days.
const EVERY_MAX: Duration = Duration::from_secs(31_557_600);

/// Why a trigger specification was refused; the text is what clients see (reference, 2.2).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to parse trigger from {spec}{}", context.map(|context| format!(": {context}")).unwrap_or_default())]
pub struct TriggerSpecError {
    /// The specification as it was given.
    pub spec: String,
    /// What is wrong with it; cron expressions and paths have none.
    pub context: Option<&'static str>,
}

impl TriggerSpecError {
    /// What is wrong and what is expected, to stand behind the text where that does not say it.
    pub fn remedy(&self) -> String {
        let spec = self.spec.trim();
        if let Some(expression) = payload(spec, "cron:") {
            format!(": {}", cron_words::fault(expression))
        } else if let Some(duration) = payload(spec, "every:") {
            match humantime::parse_duration(duration) {
                Err(error) => format!("; expected numbers with units, such as 500ms, 10s or 1h 30m ({error})"),
                Ok(duration) if duration < EVERY_MIN => "; the shortest is every:1ms".to_owned(),
                Ok(_) => "; the longest is every:1y, which is 31557600 seconds".to_owned(),
            }
        } else if spec.starts_with("request:") {
            ": expected a path behind request:".to_owned()
        } else {
            String::new()
        }
    }
}

impl TriggerSpec {
    /// Reads a specification. The text behind the first `table:` is the table's name as it stands, blanks at its ends included: a
    /// table can have them, and a trigger that waits for another name waits for ever. (InfluxDB 3 cuts them off, and takes a prefix
    /// that is repeated for one.) Around all else blanks do not count.
    ///
    /// # Errors
    /// The text of the reference, 2.2.
    pub fn parse(spec: &str) -> Result<Self, TriggerSpecError> {
        let refuse = |context| TriggerSpecError { spec: spec.to_owned(), context };
        let trimmed = spec.trim();
        if trimmed == "all_tables" {
            return Ok(TriggerSpec::AllTables);
        }
        if let Some(table) = spec.trim_start().strip_prefix("table:") {
            return if table.trim().is_empty() {
                Err(refuse(Some("table name is empty")))
            } else {
                Ok(TriggerSpec::Table(table.into()))
            };
        }
        if let Some(expression) = payload(trimmed, "cron:") {
            return cron_schedules(expression)
                .map(|_| TriggerSpec::Cron(expression.to_owned()))
                .ok_or_else(|| refuse(None));
        }
        if let Some(duration) = payload(trimmed, "every:") {
            return every(duration).map(TriggerSpec::Every).map_err(|context| refuse(Some(context)));
        }
        match payload(trimmed, "request:") {
            Some("") => Err(refuse(None)),
            Some(path) => Ok(TriggerSpec::Request(path.to_owned())),
            None => Err(refuse(Some(
                "expect one of the following forms: 'table:<TABLE_NAME>', 'all_tables', 'cron:<CRON_EXPRESSION>', \
                 'every:<DURATION>', or 'request:<PATH>'",
            ))),
        }
    }

    /// Whether such an event can come at all. Apart from [`TriggerSpec::parse`], which also reads what older versions took.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        match self {
            TriggerSpec::Table(table) => {
                check_table_name(table).map_err(|why| format!("the table is never written to: {why}"))
            }
            _ => Ok(()),
        }
    }

    /// What is right and yet probably not meant.
    pub fn doubt(&self) -> Option<String> {
        match self {
            TriggerSpec::Table(table) if table.trim() != &**table => Some(format!(
                "'{self}' is for the table with the name \"{table}\", which has blanks at its ends; for the table '{}' leave them out",
                table.trim()
            )),
            _ => None,
        }
    }

    /// What kind of event it is about.
    pub fn kind(&self) -> TriggerKind {
        match self {
            TriggerSpec::Table(_) | TriggerSpec::AllTables => TriggerKind::Write,
            TriggerSpec::Every(_) | TriggerSpec::Cron(_) => TriggerKind::Schedule,
            TriggerSpec::Request(_) => TriggerKind::Request,
        }
    }

    /// The column of the system table that shows the specification.
    pub fn stored_json(&self) -> serde_json::Value {
        use serde_json::json;
        match self {
            TriggerSpec::Table(table) => json!({"single_table_wal_write": {"table_name": table.as_ref()}}),
            TriggerSpec::AllTables => json!("all_tables_wal_write"),
            TriggerSpec::Every(duration) => {
                json!({"every": {"duration": {"secs": duration.as_secs(), "nanos": duration.subsec_nanos()}}})
            }
            TriggerSpec::Cron(expression) => json!({"schedule": {"schedule": expression}}),
            TriggerSpec::Request(path) => json!({"request_path": {"path": path}}),
        }
    }
}

impl FromStr for TriggerSpec {
    type Err = TriggerSpecError;

    fn from_str(spec: &str) -> Result<Self, Self::Err> {
        TriggerSpec::parse(spec)
    }
}

/// The canonical form, which [`TriggerSpec::parse`] reads back.
impl fmt::Display for TriggerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TriggerSpec::Table(table) => write!(f, "table:{table}"),
            TriggerSpec::AllTables => f.write_str("all_tables"),
            TriggerSpec::Every(duration) => write!(f, "every:{}", humantime::format_duration(*duration)),
            TriggerSpec::Cron(expression) => write!(f, "cron:{expression}"),
            TriggerSpec::Request(path) => write!(f, "request:{path}"),
        }
    }
}

/// What stands behind `prefix`, without blanks around it.
fn payload<'a>(spec: &'a str, prefix: &str) -> Option<&'a str> {
    spec.strip_prefix(prefix).map(str::trim)
}

fn every(text: &str) -> Result<Duration, &'static str> {
    let duration = humantime::parse_duration(text).map_err(|_| "couldn't parse to duration")?;
    if duration < EVERY_MIN {
        Err("don't support every schedules of under 1 millisecond")
    } else if duration > EVERY_MAX {
        Err("don't support every schedules of over 1 year")
    } else {
        Ok(duration)
    }
}

/// The schedules that a cron expression stands for, whose times are those of all of them; `None` if it is malformed. Six and
/// seven fields are read as the `cron` crate does (1 is Sunday); five fields are those of Unix cron, at second 0: 0 and 7 are
/// Sunday, and if both day fields are given, either is enough.
pub fn cron_schedules(expression: &str) -> Option<Vec<cron::Schedule>> {
    let fields: Vec<&str> = expression.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = fields.as_slice() else {
        return Some(vec![expression.parse().ok()?]);
    };
    let numbers: Vec<String> = weekday.split(',').map(unix_weekday).collect::<Option<_>>()?;
    let read = |day: &str, weekday: &str| format!("0 {minute} {hour} {day} {month} {weekday}").parse().ok();
    let numbers = numbers.join(",");
    // As in Unix cron, a field that begins with a star gives no days.
    let is_open = |field: &str| field.starts_with(['*', '?']);
    match is_open(day) || is_open(weekday) {
        true => Some(vec![read(day, &numbers)?]),
        false => Some(vec![read(day, "*")?, read("*", &numbers)?]),
    }
}

/// One item of a Unix day-of-week list in the numbers of the `cron` crate. Ranges are written out, since `5-7` wraps
/// around in them.
fn unix_weekday(item: &str) -> Option<String> {
    let (range, step) = item.split_once('/').map_or((item, None), |(range, step)| (range, Some(step)));
    let step: usize = step.map_or(Some(1), |step| step.parse().ok().filter(|&step| step > 0))?;
    let (first, last) = match range.split_once('-') {
        Some((first, last)) => {
            let (first, last) = (weekday_number(first)?, weekday_number(last)?);
            // A range that ends on Sunday by name ends on day 7.
            (first, if last == 0 && first > 0 { 7 } else { last })
        }
        None if range == "*" || range == "?" => (0, 6),
        None if item.contains('/') => (weekday_number(range)?, 6),
        None => (weekday_number(range)?, weekday_number(range)?),
    };
    if item == "*" || item == "?" {
        return Some(item.to_owned());
    }
    let days: Vec<String> = (first..=last).step_by(step).map(|day| (day % 7 + 1).to_string()).collect();
    (!days.is_empty()).then(|| days.join(","))
}

fn weekday_number(text: &str) -> Option<usize> {
    const NAMES: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
    let lower = text.to_ascii_lowercase();
    let named = NAMES.iter().position(|name| lower == *name || lower == name[..3]);
    named.or_else(|| text.parse().ok().filter(|&day| day <= 7))
}

/// What happens when a run fails (reference, 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorBehavior {
    /// Log and go on with the next event.
    #[default]
    Log,
    /// Run the same event again.
    Retry,
    /// Disable the trigger.
    Disable,
}

/// Which lane a trigger's runs take (glossary: lane, policy).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Execution {
    /// The policy finds the fastest lane in which the plugin can do no harm.
    #[default]
    Auto,
    /// On the shard's own thread.
    Inline,
    /// On the shard's worker threads.
    Deferred,
}

/// Where a trigger's interpreter lives (glossary: lane, policy).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// In this process, and in one of its own where its packages need that.
    #[default]
    Auto,
    /// In this process only.
    Interpreter,
    /// In a process of its own.
    Process,
}

/// What becomes of the times of a schedule that were missed: because the run before took too long, because the server was down,
/// or because it was late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissedRuns {
    /// They are passed over.
    #[default]
    Skip,
    /// One run makes up for all of them, with the last of the times.
    Once,
    /// Each is made up for, the oldest first, up to a bound.
    All,
}

/// How a schedule trigger keeps time.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Timing {
    /// The IANA name of the zone whose local times a cron expression names and the plugin is told; without one, UTC and the
    /// server's.
    pub time_zone: Option<String>,
    /// What becomes of missed times.
    pub missed_runs: MissedRuns,
    /// When it came into force with this schedule, nanoseconds since the epoch: no time before was missed.
    pub since_ns: i64,
}

/// What runs of a trigger may use; the server's defaults, and with what the trigger says over them, those of a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// How long a run may take, outside of the inline lane, before it is interrupted.
    pub run_time: Duration,
    /// Bytes that the trigger may hold; beyond, allocations fail with `MemoryError`. In the interpreter lanes: of Python's memory,
    /// what its runs and their threads have allocated and not freed. In the process lane: of private memory, what its worker
    /// takes beyond what it needs to start.
    pub memory_bytes: u64,
    /// Lines that one run may write.
    pub output_rows: u64,
    /// Log lines per second; more are counted and left out.
    pub log_lines_per_second: u32,
    /// Bytes of events that wait for the trigger in memory; more wait in the log of writes.
    pub queue_bytes: u64,
    /// Runs under way at once, where they may overlap.
    pub concurrency: u32,
    /// Per cent of one core that its runs may use outside of the inline lane, over time; the next run waits ([`crate::cpu_share`]).
    pub cpu_share: u32,
    /// What an inline run should take, if the policy chooses the lane ([`crate::policy`]).
    pub inline_budget: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            run_time: Duration::from_millis(limits::DEFERRED_DEADLINE_MS),
            memory_bytes: limits::TRIGGER_MEMORY_BYTES_MAX,
            output_rows: limits::RUN_OUTPUT_ROWS_MAX,
            log_lines_per_second: limits::TRIGGER_LOG_LINES_PER_SECOND_MAX,
            queue_bytes: limits::TRIGGER_BACKLOG_BYTES_MAX as u64,
            concurrency: limits::TRIGGER_CONCURRENCY_MAX,
            cpu_share: limits::TRIGGER_CPU_SHARE_PERCENT,
            inline_budget: Duration::from_micros(limits::INLINE_RUN_BUDGET_US),
        }
    }
}

/// The limits that a trigger has of its own; the server's defaults are in force where there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TriggerLimits {
    /// [`Limits::run_time`], in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_time_ms: Option<u64>,
    /// [`Limits::memory_bytes`]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// [`Limits::output_rows`]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_rows: Option<u64>,
    /// [`Limits::log_lines_per_second`]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_lines_per_second: Option<u32>,
    /// [`Limits::queue_bytes`]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_bytes: Option<u64>,
    /// [`Limits::concurrency`]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// [`Limits::cpu_share`]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_share: Option<u32>,
    /// [`Limits::inline_budget`], in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inline_budget_us: Option<u64>,
}

impl TriggerLimits {
    /// These, and `defaults` where there are none.
    pub fn over(&self, defaults: Limits) -> Limits {
        Limits {
            run_time: self.run_time_ms.map_or(defaults.run_time, Duration::from_millis),
            memory_bytes: self.memory_bytes.unwrap_or(defaults.memory_bytes),
            output_rows: self.output_rows.unwrap_or(defaults.output_rows),
            log_lines_per_second: self.log_lines_per_second.unwrap_or(defaults.log_lines_per_second),
            queue_bytes: self.queue_bytes.unwrap_or(defaults.queue_bytes),
            concurrency: self.concurrency.unwrap_or(defaults.concurrency),
            cpu_share: self.cpu_share.unwrap_or(defaults.cpu_share),
            inline_budget: self.inline_budget_us.map_or(defaults.inline_budget, Duration::from_micros),
        }
    }
}

/// What a row has for a column that its line does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingColumns {
    /// No key, as in InfluxDB 3.10.
    #[default]
    Absent,
    /// A key with the value `None`, for every column of the table, as in InfluxDB 3.11.
    None,
}

/// How the plugin API is for one trigger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct ApiSettings {
    /// What rows look like.
    pub missing_columns: MissingColumns,
    /// Whether plain values of its cache are there again after a restart; the server's default if it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_cache: Option<bool>,
}

/// A trigger as the catalog keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct TriggerDef {
    /// Identity.
    pub id: TriggerId,
    /// Name, unique in its database.
    pub name: Arc<str>,
    /// The database it belongs to.
    pub db: Arc<str>,
    /// As the user gave it, relative to the plugin directory.
    pub plugin_filename: String,
    /// What starts it.
    pub spec: TriggerSpec,
    /// Overlapping runs allowed (`run_async` of the reference).
    pub run_async: bool,
    /// What happens when a run fails.
    pub error_behavior: ErrorBehavior,
    /// Which lane.
    pub execution: Execution,
    /// Which interpreter.
    pub isolation: Isolation,
    /// Limits of its own.
    pub limits: TriggerLimits,
    /// How it keeps time, if it has a schedule.
    pub timing: Timing,
    /// How the plugin API is for it.
    pub api: ApiSettings,
    /// `None` is passed to the plugin as `None`.
    pub arguments: Option<BTreeMap<String, String>>,
    /// Not to be run.
    pub disabled: bool,
    /// Why it is disabled, if not by its user.
    pub disabled_reason: Option<String>,
}

/// How long a failed event waits before attempt number `attempt` (1 is the first repetition): twice as long each time
/// up to [`RETRY_PAUSE_MAX_MS`], of which half is chance, so that triggers that failed together do not come back together.
pub fn retry_pause(attempt: u32, random: u64) -> Duration {
    let whole = RETRY_PAUSE_MIN_MS.saturating_mul(1 << (attempt.max(1) - 1).min(31)).min(RETRY_PAUSE_MAX_MS);
    let half_us = whole * 1000 / 2;
    Duration::from_micros(half_us + random % (half_us + 1))
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Datelike, Utc, Weekday};

    use super::*;

    fn context(spec: &str) -> Option<&'static str> {
        TriggerSpec::parse(spec).expect_err(spec).context
    }

    #[test]
    fn specifications_are_trimmed_and_shown_canonically() {
        for (spec, canonical, stored) in [
            ("table:x", "table:x", r#"{"single_table_wal_write":{"table_name":"x"}}"#),
            ("  table:x", "table:x", r#"{"single_table_wal_write":{"table_name":"x"}}"#),
            ("table: lead", "table: lead", r#"{"single_table_wal_write":{"table_name":" lead"}}"#),
            ("table:last ", "table:last ", r#"{"single_table_wal_write":{"table_name":"last "}}"#),
            ("table:table: a b ", "table:table: a b ", r#"{"single_table_wal_write":{"table_name":"table: a b "}}"#),
            ("table:request:p", "table:request:p", r#"{"single_table_wal_write":{"table_name":"request:p"}}"#),
            (
                "table:\u{a0}x\u{2003}",
                "table:\u{a0}x\u{2003}",
                "{\"single_table_wal_write\":{\"table_name\":\"\u{a0}x\u{2003}\"}}",
            ),
            ("request:request:p", "request:request:p", r#"{"request_path":{"path":"request:p"}}"#),
            (" all_tables ", "all_tables", r#""all_tables_wal_write""#),
            ("every:90s", "every:1m 30s", r#"{"every":{"duration":{"secs":90,"nanos":0}}}"#),
            ("every: 1ms", "every:1ms", r#"{"every":{"duration":{"secs":0,"nanos":1000000}}}"#),
            ("every:1y", "every:1year", r#"{"every":{"duration":{"secs":31557600,"nanos":0}}}"#),
            ("cron: 0 0 * * * * ", "cron:0 0 * * * *", r#"{"schedule":{"schedule":"0 0 * * * *"}}"#),
            ("request: p/q ", "request:p/q", r#"{"request_path":{"path":"p/q"}}"#),
        ] {
            let parsed = TriggerSpec::parse(spec).expect(spec);
            assert_eq!(parsed.to_string(), canonical);
            assert_eq!(parsed.stored_json().to_string(), stored);
            assert_eq!(canonical.parse(), Ok(parsed));
        }
    }

    #[test]
    fn refusals_have_the_texts_of_the_reference() {
        assert_eq!(
            TriggerSpec::parse(" table: ").unwrap_err().to_string(),
            "failed to parse trigger from  table: : table name is empty"
        );
        assert_eq!(TriggerSpec::parse("cron:x").unwrap_err().to_string(), "failed to parse trigger from cron:x");
        assert_eq!(context("request:"), None);
        assert_eq!(context("every:x"), Some("couldn't parse to duration"));
        assert_eq!(context("every:366d"), Some("don't support every schedules of over 1 year"));
        for short in ["every:0", "every:0s", "every:999us"] {
            assert_eq!(context(short), Some("don't support every schedules of under 1 millisecond"));
        }
        assert_eq!(context("table: \t\u{2003}"), Some("table name is empty"));
        assert_eq!(context("every:every:1s"), Some("couldn't parse to duration"));
        assert_eq!(context("cron:cron:0 * * * *"), None);
        for unknown in ["", "All_tables", "all_tables:x", "tables:x", "Table:x", "table :x"] {
            let expected = "expect one of the following forms: 'table:<TABLE_NAME>', 'all_tables', \
                            'cron:<CRON_EXPRESSION>', 'every:<DURATION>', or 'request:<PATH>'";
            assert_eq!(context(unknown), Some(expected));
        }
    }

    #[test]
    fn a_table_that_no_line_can_write_is_no_trigger_and_blanks_at_the_ends_are_a_doubt() {
        for (spec, why) in [
            ("table:a\nb", "the table is never written to: 'a?b' has the control character U+000A"),
            ("table:x\r\n", "the table is never written to: 'x??' has the control character U+000D"),
            ("table:\tx", "the table is never written to: '?x' has the control character U+0009"),
            ("table:#x", "the table is never written to: '#x' begins with '#'"),
        ] {
            let error = TriggerSpec::parse(spec).expect(spec).check().unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
        for (spec, doubtful) in [("table:a b", false), ("table: a", true), ("table:a ", true), ("all_tables ", false)] {
            let parsed = TriggerSpec::parse(spec).expect(spec);
            assert_eq!((parsed.check(), parsed.doubt().is_some()), (Ok(()), doubtful), "{spec}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_half_of_each_is_chance() {
        let bounds =
            |attempt| (retry_pause(attempt, 0).as_millis(), retry_pause(attempt, 50_000 << (attempt - 1)).as_millis());
        assert_eq!([bounds(1), bounds(2), bounds(3)], [(50, 100), (100, 200), (200, 400)]);
        for attempt in 0..100 {
            for random in [0, 1, 12_345_678_901, u64::MAX] {
                let pause = retry_pause(attempt, random).as_millis() as u64;
                assert!((RETRY_PAUSE_MIN_MS / 2..=RETRY_PAUSE_MAX_MS).contains(&pause), "{attempt}: {pause} ms");
            }
        }
        assert_eq!(retry_pause(50, 0).as_millis() as u64, RETRY_PAUSE_MAX_MS / 2);
    }

    fn only_one(expression: &str) -> cron::Schedule {
        let mut schedules = cron_schedules(expression).expect(expression);
        assert_eq!(schedules.len(), 1, "{expression}");
        schedules.remove(0)
    }

    fn weekdays(expression: &str) -> Vec<Weekday> {
        let start: DateTime<Utc> = DateTime::from_timestamp(1_704_067_199, 0).expect("a valid instant");
        let schedule = only_one(expression);
        let days = schedule.after(&start).take(7).map(|at| at.weekday());
        let mut days: Vec<_> = days.collect();
        days.sort_by_key(|day| day.num_days_from_sunday());
        days.dedup();
        days
    }

    #[test]
    fn five_fields_count_days_as_unix_does_and_six_as_the_crate_does() {
        use Weekday::{Fri, Mon, Sat, Sun, Thu, Tue};
        assert_eq!(weekdays("0 0 * * 0"), [Sun]);
        assert_eq!(weekdays("0 0 * * 7"), [Sun]);
        assert_eq!(weekdays("0 0 * * 5-7"), [Sun, Fri, Sat]);
        assert_eq!(weekdays("0 0 * * MON,5"), [Mon, Fri]);
        assert_eq!(weekdays("0 0 * * */2"), [Sun, Tue, Thu, Sat]);
        assert_eq!(weekdays("0 0 * * fri-sun"), [Sun, Fri, Sat]);
        assert_eq!(weekdays("0 0 0 * * 1"), [Sun]);
        assert_eq!(weekdays("0 0 0 * * 2 *"), [Mon]);
        assert_eq!(weekdays("0 0 * * *").len(), 7);
        for bad in ["0 0 * * 8", "* * * *", "0 0 0 * * 0", "0 0 * * 3-1", "0 0 * * 1/0"] {
            assert!(cron_schedules(bad).is_none(), "{bad}");
        }
        assert!(cron_schedules("@daily").is_some());
    }

    #[test]
    fn two_day_fields_of_unix_cron_mean_either() {
        let both = cron_schedules("0 0 13 * 5").expect("well-formed");
        let at: DateTime<Utc> = DateTime::from_timestamp(1_704_067_200, 0).expect("a valid instant");
        let firsts: Vec<_> = both.iter().map(|s| s.after(&at).next().expect("there is one").day()).collect();
        assert_eq!(firsts, [13, 5], "the 13th, and the first Friday of 2024");
        for one in ["0 0 13 * *", "0 0 * * 5", "0 0 */2 * 5", "0 0 0 13 * 6"] {
            assert_eq!(cron_schedules(one).expect(one).len(), 1, "{one}");
        }
    }
}
