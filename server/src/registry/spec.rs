//! Trigger specifications as text: a stand-in for the parser in `core`, in one place so that it can go in one change.

use std::time::Duration;

use saltus_core::trigger::TriggerSpec;

/// Why a specification was refused (the texts of the reference, 2.2).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(String);

const FORMS: &str = "expect one of the following forms: 'table:<TABLE_NAME>', 'all_tables', 'cron:<CRON_EXPRESSION>', \
                     'every:<DURATION>', or 'request:<PATH>'";
const EVERY_MAX: Duration = Duration::from_secs(31_557_600);

/// Reads a specification.
///
/// # Errors
/// The reference's text, with the specification in it.
pub fn parse(text: &str) -> Result<TriggerSpec, SpecError> {
    let fail = |context: &str| SpecError(format!("failed to parse trigger from {text}{context}"));
    let spec = text.trim();
    if spec == "all_tables" {
        return Ok(TriggerSpec::AllTables);
    }
    let payload = |prefix: &str| spec.starts_with(prefix).then(|| spec.trim_start_matches(prefix).trim());
    if let Some(table) = payload("table:") {
        return match table {
            "" => Err(fail(": table name is empty")),
            table => Ok(TriggerSpec::Table(table.into())),
        };
    }
    if let Some(every) = payload("every:") {
        let every = humantime::parse_duration(every).map_err(|_| fail(": couldn't parse to duration"))?;
        return match every {
            every if every > EVERY_MAX => Err(fail(": don't support every schedules of over 1 year")),
            every => Ok(TriggerSpec::Every(every)),
        };
    }
    if let Some(cron) = payload("cron:") {
        return if cron.is_empty() { Err(fail("")) } else { Ok(TriggerSpec::Cron(cron.to_owned())) };
    }
    if let Some(path) = payload("request:") {
        return if path.is_empty() { Err(fail("")) } else { Ok(TriggerSpec::Request(path.to_owned())) };
    }
    Err(fail(&format!(": {FORMS}")))
}

/// The canonical text of a specification; [`parse`] gives the same specification back.
pub fn canonical(spec: &TriggerSpec) -> String {
    match spec {
        TriggerSpec::Table(table) => format!("table:{table}"),
        TriggerSpec::AllTables => "all_tables".to_owned(),
        TriggerSpec::Every(every) => format!("every:{}", humantime::format_duration(*every)),
        TriggerSpec::Cron(cron) => format!("cron:{cron}"),
        TriggerSpec::Request(path) => format!("request:{path}"),
    }
}
