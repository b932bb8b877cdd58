//! How a trigger is to be run: what a request, the command line or a plugin's `manifest.toml` says, read in one place.
//!
//! A directory plugin may bring its author's settings in `manifest.toml`:
//!
//! ```toml
//! [trigger]
//! isolation = "process"
//! error_behavior = "retry"
//!
//! [trigger.limits]
//! memory = "512mb"
//! run_time = "5s"
//! ```
//!
//! What the request says goes before it, setting by setting.

use std::fmt::Display;
use std::time::Duration;

use saltus_core::schedule::time_zone_name;
use saltus_core::trigger::{
    ApiSettings, ErrorBehavior, Execution, Isolation, MissedRuns, MissingColumns, TriggerDef, TriggerKind,
    TriggerLimits,
};
use serde_json::{Map, Value, json};

use crate::config::parse;
use saltus_core::nearest::nearest;

/// The longest run that may be asked for: a day.
const RUN_TIME_MAX: Duration = Duration::from_secs(86_400);
/// The least memory that may be asked for: less than this and no module can be imported.
const MEMORY_MIN: u64 = 1 << 20;

/// The most runs of one trigger at once that may be asked for: as many as may wait for the workers of a shard.
const CONCURRENCY_MAX: u32 = saltus_core::limits::DEFERRED_QUEUE_MAX as u32;

/// Settings of a trigger, as far as they are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Overlapping runs allowed.
    pub run_async: Option<bool>,
    /// What happens when a run fails.
    pub error_behavior: Option<ErrorBehavior>,
    /// Which lane.
    pub execution: Option<Execution>,
    /// Which interpreter.
    pub isolation: Option<Isolation>,
    /// Limits of its own.
    pub limits: TriggerLimits,
    /// The zone of its schedule, as the IANA database writes it.
    pub time_zone: Option<String>,
    /// What becomes of times of its schedule that were missed.
    pub missed_runs: Option<MissedRuns>,
    /// What rows have for a column that their line does not name.
    pub missing_columns: Option<MissingColumns>,
    /// Whether plain values of its cache outlive a restart.
    pub restore_cache: Option<bool>,
}

/// The settings' names.
pub const NAMES: [&str; 9] = [
    "run_async",
    "error_behavior",
    "execution",
    "isolation",
    "limits",
    "time_zone",
    "missed_runs",
    "missing_columns",
    "restore_cache",
];

/// The limits' names.
const LIMIT_NAMES: [&str; 8] = [
    "run_time",
    "memory",
    "output_rows",
    "log_lines_per_second",
    "queue_size",
    "concurrency",
    "cpu_share",
    "inline_budget",
];

/// The name that was probably meant, to stand behind a message.
fn meant(given: &str, known: &[&'static str]) -> String {
    nearest(given, known.iter().copied()).map(|near| format!("; did you mean {near}?")).unwrap_or_default()
}

/// What a request says of the settings of a trigger that there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsChange {
    given: Settings,
    /// Names of those that go back to their defaults, limits as `limits.memory`.
    cleared: Vec<String>,
}

impl SettingsChange {
    /// Takes what stands in a JSON object: what is not there stays as it is, `null` is the default.
    ///
    /// # Errors
    /// The setting, and what it may be.
    pub fn read(object: &Map<String, Value>) -> Result<Self, SettingError> {
        let nulls = |object: &Map<String, Value>, prefix: &str| {
            let nulls = object.iter().filter(|(_, value)| value.is_null());
            nulls.map(|(name, _)| format!("{prefix}{name}")).collect::<Vec<_>>()
        };
        let mut cleared = nulls(object, "");
        if let Some(Value::Object(limits)) = object.get("limits") {
            cleared.extend(nulls(limits, "limits."));
        }
        Ok(SettingsChange { given: Settings::read(object)?, cleared })
    }

    /// The settings of a trigger with this change.
    pub fn over(&self, before: Settings) -> Settings {
        let mut after = self.given.clone().or(before);
        for name in &self.cleared {
            match name.as_str() {
                "run_async" => after.run_async = None,
                "error_behavior" => after.error_behavior = None,
                "execution" => after.execution = None,
                "isolation" => after.isolation = None,
                "limits" => after.limits = TriggerLimits::default(),
                "limits.run_time" => after.limits.run_time_ms = None,
                "limits.memory" => after.limits.memory_bytes = None,
                "limits.output_rows" => after.limits.output_rows = None,
                "limits.log_lines_per_second" => after.limits.log_lines_per_second = None,
                "limits.queue_size" => after.limits.queue_bytes = None,
                "time_zone" => after.time_zone = None,
                "missed_runs" => after.missed_runs = None,
                "missing_columns" => after.missing_columns = None,
                "restore_cache" => after.restore_cache = None,
                "limits.concurrency" => after.limits.concurrency = None,
                "limits.cpu_share" => after.limits.cpu_share = None,
                "limits.inline_budget" => after.limits.inline_budget_us = None,
                _ => {}
            }
        }
        after
    }
}

/// A setting that is not taken: its name, and the rule that it breaks.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct SettingError {
    /// Which.
    pub field: &'static str,
    /// Why.
    pub message: String,
}

impl SettingError {
    fn new(field: &'static str, message: impl Display) -> Self {
        SettingError { field, message: message.to_string() }
    }
}

impl Settings {
    /// Takes what stands in a JSON object under the names of the settings; other members are left alone.
    ///
    /// # Errors
    /// The setting, and what it may be.
    pub fn read(object: &Map<String, Value>) -> Result<Self, SettingError> {
        let given = |name: &str| object.get(name).filter(|value| !value.is_null());
        Ok(Settings {
            run_async: given("run_async").map(|value| flag("run_async", value)).transpose()?,
            error_behavior: given("error_behavior").map(error_behavior).transpose()?,
            execution: given("execution").map(execution).transpose()?,
            isolation: given("isolation").map(isolation).transpose()?,
            limits: given("limits").map(limits).transpose()?.unwrap_or_default(),
            time_zone: given("time_zone").map(time_zone).transpose()?,
            missed_runs: given("missed_runs").map(missed_runs).transpose()?,
            missing_columns: given("missing_columns").map(read_missing_columns).transpose()?,
            restore_cache: given("restore_cache").map(|value| flag("restore_cache", value)).transpose()?,
        })
    }

    /// The settings of a `manifest.toml`; none if it has no table `[trigger]`.
    ///
    /// # Errors
    /// It is not TOML, or has a setting that is not taken.
    pub fn from_manifest(text: &str) -> Result<Self, SettingError> {
        let manifest: Value = toml::from_str(text).map_err(|error| SettingError::new("manifest.toml", error))?;
        let object = match manifest.get("trigger") {
            None => return Ok(Settings::default()),
            Some(Value::Object(object)) => object,
            Some(other) => return Err(SettingError::new("trigger", format_args!("expected a table, got {other}"))),
        };
        if let Some(unknown) = object.keys().find(|key| !NAMES.contains(&key.as_str())) {
            let text = format!("'{unknown}' is no setting; there are {}{}", NAMES.join(", "), meant(unknown, &NAMES));
            return Err(SettingError::new("trigger", text));
        }
        Settings::read(object)
    }

    /// These, and `others` where there are none.
    pub fn or(self, others: Settings) -> Self {
        let (ours, theirs) = (self.limits, others.limits);
        Settings {
            run_async: self.run_async.or(others.run_async),
            error_behavior: self.error_behavior.or(others.error_behavior),
            execution: self.execution.or(others.execution),
            isolation: self.isolation.or(others.isolation),
            limits: TriggerLimits {
                run_time_ms: ours.run_time_ms.or(theirs.run_time_ms),
                memory_bytes: ours.memory_bytes.or(theirs.memory_bytes),
                output_rows: ours.output_rows.or(theirs.output_rows),
                log_lines_per_second: ours.log_lines_per_second.or(theirs.log_lines_per_second),
                queue_bytes: ours.queue_bytes.or(theirs.queue_bytes),
                concurrency: ours.concurrency.or(theirs.concurrency),
                cpu_share: ours.cpu_share.or(theirs.cpu_share),
                inline_budget_us: ours.inline_budget_us.or(theirs.inline_budget_us),
            },
            time_zone: self.time_zone.or(others.time_zone),
            missed_runs: self.missed_runs.or(others.missed_runs),
            missing_columns: self.missing_columns.or(others.missing_columns),
            restore_cache: self.restore_cache.or(others.restore_cache),
        }
    }

    /// Those of a trigger that there is.
    pub fn of(def: &TriggerDef) -> Self {
        Settings {
            run_async: Some(def.run_async),
            error_behavior: Some(def.error_behavior),
            execution: Some(def.execution),
            isolation: Some(def.isolation),
            limits: def.limits,
            time_zone: def.timing.time_zone.clone(),
            missed_runs: (def.spec.kind() == TriggerKind::Schedule).then_some(def.timing.missed_runs),
            missing_columns: Some(def.api.missing_columns),
            restore_cache: def.api.restore_cache,
        }
    }

    /// Whether they go with triggers of this kind.
    ///
    /// # Errors
    /// The one that does not.
    pub fn check_kind(&self, kind: TriggerKind) -> Result<(), SettingError> {
        let given = [("time_zone", self.time_zone.is_some()), ("missed_runs", self.missed_runs.is_some())];
        match given.into_iter().find(|(_, given)| *given) {
            Some((field, _)) if kind != TriggerKind::Schedule => {
                let text = "only a trigger with a schedule (every: or cron:) has it: leave it out";
                Err(SettingError::new(field, text))
            }
            _ => Ok(()),
        }
    }

    /// How the plugin API is.
    pub fn api(&self) -> ApiSettings {
        ApiSettings { missing_columns: self.missing_columns.unwrap_or_default(), restore_cache: self.restore_cache }
    }

    /// Whether they go together.
    ///
    /// # Errors
    /// The two that do not.
    pub fn check(&self) -> Result<(), SettingError> {
        if self.limits.concurrency.is_some_and(|runs| runs > 1) && self.run_async != Some(true) {
            let text = "runs of a trigger overlap with run_async=true only: set that too, or leave this out";
            return Err(SettingError::new("limits.concurrency", text));
        }
        if self.execution != Some(Execution::Inline) {
            return Ok(());
        }
        if self.run_async == Some(true) {
            let text = "inline runs are one at a time: set run_async to false, or execution to auto or deferred";
            return Err(SettingError::new("execution", text));
        }
        if self.isolation == Some(Isolation::Process) {
            let text = "an inline run is made by the shard itself: set isolation to auto or interpreter, or execution to auto or deferred";
            return Err(SettingError::new("execution", text));
        }
        Ok(())
    }
}

/// The limits as they are given.
pub fn limits_json(limits: &TriggerLimits) -> Value {
    let mut object = Map::new();
    let mut put = |name: &str, value: Option<Value>| value.map(|value| object.insert(name.to_owned(), value));
    put("run_time", limits.run_time_ms.map(|ms| json!(format!("{ms}ms"))));
    put("memory", limits.memory_bytes.map(|bytes| json!(format!("{bytes}b"))));
    put("output_rows", limits.output_rows.map(Value::from));
    put("log_lines_per_second", limits.log_lines_per_second.map(Value::from));
    put("queue_size", limits.queue_bytes.map(|bytes| json!(format!("{bytes}b"))));
    put("concurrency", limits.concurrency.map(Value::from));
    put("cpu_share", limits.cpu_share.map(|percent| json!(format!("{percent}%"))));
    put("inline_budget", limits.inline_budget_us.map(|us| json!(format!("{us}us"))));
    Value::Object(object)
}

fn text<'a>(field: &'static str, value: &'a Value) -> Result<&'a str, SettingError> {
    value.as_str().ok_or_else(|| SettingError::new(field, format_args!("expected a string, got {value}")))
}

fn flag(field: &'static str, value: &Value) -> Result<bool, SettingError> {
    value.as_bool().ok_or_else(|| SettingError::new(field, format_args!("expected true or false, got {value}")))
}

/// Lower case in the reference; its documentation writes `Log`, so any case is taken.
fn error_behavior(value: &Value) -> Result<ErrorBehavior, SettingError> {
    match text("error_behavior", value)?.to_ascii_lowercase().as_str() {
        "log" => Ok(ErrorBehavior::Log),
        "retry" => Ok(ErrorBehavior::Retry),
        "disable" => Ok(ErrorBehavior::Disable),
        other => Err(SettingError::new("error_behavior", format_args!("'{other}': expected log, retry or disable"))),
    }
}

fn execution(value: &Value) -> Result<Execution, SettingError> {
    match text("execution", value)? {
        "auto" => Ok(Execution::Auto),
        "inline" => Ok(Execution::Inline),
        "deferred" => Ok(Execution::Deferred),
        other => Err(SettingError::new("execution", format_args!("'{other}': expected auto, inline or deferred"))),
    }
}

fn read_missing_columns(value: &Value) -> Result<MissingColumns, SettingError> {
    match text("missing_columns", value)? {
        "absent" => Ok(MissingColumns::Absent),
        "none" => Ok(MissingColumns::None),
        other => Err(SettingError::new("missing_columns", format_args!("'{other}': expected absent or none"))),
    }
}

/// As it is given and shown.
pub fn missing_columns(missing: MissingColumns) -> &'static str {
    match missing {
        MissingColumns::Absent => "absent",
        MissingColumns::None => "none",
    }
}

fn isolation(value: &Value) -> Result<Isolation, SettingError> {
    match text("isolation", value)? {
        "auto" => Ok(Isolation::Auto),
        "interpreter" => Ok(Isolation::Interpreter),
        "process" => Ok(Isolation::Process),
        other => Err(SettingError::new("isolation", format_args!("'{other}': expected auto, interpreter or process"))),
    }
}

fn time_zone(value: &Value) -> Result<String, SettingError> {
    time_zone_name(text("time_zone", value)?).map_err(|error| SettingError::new("time_zone", error))
}

fn missed_runs(value: &Value) -> Result<MissedRuns, SettingError> {
    match text("missed_runs", value)? {
        "skip" => Ok(MissedRuns::Skip),
        "once" => Ok(MissedRuns::Once),
        "all" => Ok(MissedRuns::All),
        other => Err(SettingError::new("missed_runs", format_args!("'{other}': expected skip, once or all"))),
    }
}

fn limits(value: &Value) -> Result<TriggerLimits, SettingError> {
    let Value::Object(object) = value else {
        return Err(SettingError::new("limits", format_args!("expected an object, got {value}")));
    };
    let mut limits = TriggerLimits::default();
    for (name, value) in object {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match name.as_str() {
            "run_time" => limits.run_time_ms = Some(run_time(&text)?),
            "memory" => limits.memory_bytes = Some(size("limits.memory", &text, MEMORY_MIN)?),
            "output_rows" => limits.output_rows = Some(number("limits.output_rows", &text)?),
            "log_lines_per_second" => {
                let lines = number("limits.log_lines_per_second", &text)?;
                limits.log_lines_per_second = Some(u32::try_from(lines).unwrap_or(u32::MAX));
            }
            "queue_size" => limits.queue_bytes = Some(size("limits.queue_size", &text, 1)?),
            "concurrency" => limits.concurrency = Some(concurrency(&text)?),
            "cpu_share" => limits.cpu_share = Some(cpu_share(&text)?),
            "inline_budget" => limits.inline_budget_us = Some(inline_budget(&text)?),
            other => {
                let text = format!(
                    "'{other}' is no limit; there are {}{}",
                    LIMIT_NAMES.join(", "),
                    meant(other, &LIMIT_NAMES)
                );
                return Err(SettingError::new("limits", text));
            }
        }
    }
    Ok(limits)
}

fn cpu_share(text: &str) -> Result<u32, SettingError> {
    parse::percent(text).map_err(|why| SettingError::new("limits.cpu_share", why))
}

fn inline_budget(text: &str) -> Result<u64, SettingError> {
    let time = parse::inline_budget(text).map_err(|why| SettingError::new("limits.inline_budget", why))?;
    Ok(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

fn run_time(text: &str) -> Result<u64, SettingError> {
    let time = parse::duration(text).map_err(|why| SettingError::new("limits.run_time", why))?;
    if !(Duration::from_millis(1)..=RUN_TIME_MAX).contains(&time) {
        return Err(SettingError::new("limits.run_time", format_args!("'{text}': expected 1ms to 1d")));
    }
    Ok(time.as_millis() as u64)
}

fn concurrency(text: &str) -> Result<u32, SettingError> {
    let runs = number("limits.concurrency", text)?;
    match u32::try_from(runs) {
        Ok(runs) if (1..=CONCURRENCY_MAX).contains(&runs) => Ok(runs),
        _ => Err(SettingError::new("limits.concurrency", format_args!("'{text}': expected 1 to {CONCURRENCY_MAX}"))),
    }
}

fn size(field: &'static str, text: &str, min: u64) -> Result<u64, SettingError> {
    match parse::size(text).map_err(|why| SettingError::new(field, why))? {
        bytes if bytes < min => Err(SettingError::new(field, format_args!("'{text}': expected at least {min} bytes"))),
        bytes => Ok(bytes),
    }
}

fn number(field: &'static str, text: &str) -> Result<u64, SettingError> {
    parse::number(text).map(|number| number as u64).map_err(|why| SettingError::new(field, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Settings, String> {
        let Value::Object(object) = value else { unreachable!() };
        Settings::read(&object).map_err(|error| error.to_string())
    }

    #[test]
    fn limits_are_read_with_units_and_given_back() {
        let given = json!({"limits": {"run_time": "5s", "memory": "256mb", "output_rows": 10,
            "log_lines_per_second": "7", "queue_size": "1kb", "concurrency": 4}});
        let limits = read(given).unwrap().limits;
        assert_eq!((limits.run_time_ms, limits.memory_bytes), (Some(5_000), Some(256 << 20)));
        assert_eq!((limits.output_rows, limits.log_lines_per_second), (Some(10), Some(7)));
        assert_eq!((limits.queue_bytes, limits.concurrency), (Some(1024), Some(4)));
        let again = read(json!({"limits": limits_json(&limits)})).unwrap().limits;
        assert_eq!(again, limits);
    }

    #[test]
    fn every_refusal_names_its_setting_and_what_is_expected() {
        for (given, text) in [
            (json!({"limits": {"memory": "5"}}), "limits.memory: '5' is no size"),
            (json!({"limits": {"memory": "5kb"}}), "limits.memory: '5kb': expected at least 1048576 bytes"),
            (json!({"limits": {"run_time": "2d"}}), "limits.run_time: '2d': expected 1ms to 1d"),
            (json!({"limits": {"ram": 1}}), "limits: 'ram' is no limit; there are run_time, memory"),
            (json!({"limits": {"concurrency": 0}}), "limits.concurrency: '0': expected 1 to 1024"),
            (json!({"limits": 3}), "limits: expected an object, got 3"),
            (json!({"isolation": "vm"}), "isolation: 'vm': expected auto, interpreter or process"),
            (json!({"execution": "fast"}), "execution: 'fast': expected auto, inline or deferred"),
            (json!({"error_behavior": "panic"}), "error_behavior: 'panic': expected log, retry or disable"),
            (json!({"missing_columns": "null"}), "missing_columns: 'null': expected absent or none"),
            (json!({"restore_cache": 1}), "restore_cache: expected true or false, got 1"),
            (json!({"run_async": "yes"}), "run_async: expected true or false, got \"yes\""),
            (json!({"time_zone": "Mars/Olympus"}), "time_zone: 'Mars/Olympus' is no time zone: expected a name of"),
            (json!({"time_zone": 1}), "time_zone: expected a string, got 1"),
            (json!({"missed_runs": "some"}), "missed_runs: 'some': expected skip, once or all"),
        ] {
            let error = read(given).unwrap_err();
            assert!(error.starts_with(text), "{error}");
        }
    }

    #[test]
    fn a_manifest_gives_what_the_request_leaves_out() {
        let manifest = "[plugin]\nname = 'x'\n[trigger]\nisolation = 'process'\nerror_behavior = 'retry'\n\
            [trigger.limits]\nmemory = '512mb'\nrun_time = '5s'\n";
        let request = read(json!({"error_behavior": "Disable", "limits": {"run_time": "1s"}})).unwrap();
        let both = request.or(Settings::from_manifest(manifest).unwrap());
        assert_eq!((both.isolation, both.error_behavior), (Some(Isolation::Process), Some(ErrorBehavior::Disable)));
        assert_eq!((both.limits.memory_bytes, both.limits.run_time_ms), (Some(512 << 20), Some(1_000)));
        assert_eq!(Settings::from_manifest("[plugin]\nname = 'x'\n"), Ok(Settings::default()));
        let error = Settings::from_manifest("[trigger]\nlane = 'inline'\n").unwrap_err().to_string();
        assert!(error.starts_with("trigger: 'lane' is no setting; there are run_async"), "{error}");
    }

    #[test]
    fn a_change_leaves_what_it_does_not_name_and_null_is_the_default() {
        let before = read(json!({"error_behavior": "retry", "time_zone": "europe/berlin", "missed_runs": "all",
            "limits": {"run_time": "5s", "memory": "8mb"}}))
        .unwrap();
        assert_eq!(before.time_zone.as_deref(), Some("Europe/Berlin"));
        let change =
            json!({"execution": "deferred", "missed_runs": null, "limits": {"memory": null, "output_rows": 5}});
        let Value::Object(change) = change else { unreachable!() };
        let after = SettingsChange::read(&change).unwrap().over(before.clone());
        assert_eq!((after.error_behavior, after.execution), (Some(ErrorBehavior::Retry), Some(Execution::Deferred)));
        assert_eq!((after.time_zone.as_deref(), after.missed_runs), (Some("Europe/Berlin"), None));
        let limits = (after.limits.run_time_ms, after.limits.memory_bytes, after.limits.output_rows);
        assert_eq!(limits, (Some(5_000), None, Some(5)));
        assert_eq!(SettingsChange::default().over(before.clone()), before);
    }

    #[test]
    fn only_schedules_have_a_time_zone_and_missed_runs() {
        for given in [json!({"time_zone": "UTC"}), json!({"missed_runs": "once"})] {
            let field = given.as_object().unwrap().keys().next().unwrap().clone();
            let settings = read(given).unwrap();
            assert_eq!(settings.check_kind(TriggerKind::Schedule), Ok(()));
            for kind in [TriggerKind::Write, TriggerKind::Request] {
                assert_eq!(settings.check_kind(kind).unwrap_err().field, field);
            }
        }
    }

    #[test]
    fn inline_goes_with_neither_overlap_nor_a_process() {
        for other in
            [json!({"execution": "inline", "run_async": true}), json!({"execution": "inline", "isolation": "process"})]
        {
            assert_eq!(read(other).unwrap().check().unwrap_err().field, "execution");
        }
        assert_eq!(read(json!({"execution": "inline", "isolation": "interpreter"})).unwrap().check(), Ok(()));
    }

    #[test]
    fn concurrency_goes_with_overlap_only() {
        let check = |given| read(given).unwrap().check();
        let field = check(json!({"run_async": false, "limits": {"concurrency": 2}})).unwrap_err().field;
        assert_eq!(field, "limits.concurrency");
        assert_eq!(check(json!({"run_async": true, "limits": {"concurrency": 2}})), Ok(()));
        assert_eq!(check(json!({"limits": {"concurrency": 1}})), Ok(()));
    }
}
