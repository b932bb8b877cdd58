//! The server's own log: `tracing` to standard output, with colours where that is a terminal and nobody asked for none (`NO_COLOR`).
//!
//! Levels: ERROR somebody must act, WARN something was degraded or refused, INFO a change of state, DEBUG for us.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts the log.
///
/// # Errors
/// The filter, if it cannot be read, or that a log runs already.
pub fn start(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| format!("log-filter '{filter}': {error}; for instance 'info,saltus_shards=debug'"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours());
    match format {
        LogFormat::Full => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|error| error.to_string())
}

/// Whether colour codes are of use to whoever reads standard output.
fn colours() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    std::io::stdout().is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}
