//! From a configuration to a serving process, and back: the only place where engine, Python, queries and surface meet.
//!
//! Order of start: logs, registry ([`crate::registry::Registry::open`]), queries, Python, then
//! `Engine::start` with an [`crate::http::HttpService`], then [`crate::registry::Registry::connect`] with the engine's
//! handle (which puts the enabled triggers in force). Stop goes the other way round, on the first signal
//! ([`crate::signals`]) and within `shutdown_timeout`.

use crate::config::Config;

/// Why the server did not start or did not stop well; the text names the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServeError(pub String);

/// Serves until a signal asks to stop.
///
/// # Errors
/// Anything that keeps the server from starting.
pub fn serve(config: Config) -> Result<(), ServeError> {
    Err(ServeError(format!("node {}: this build has no engine composed into it", config.node_id)))
}
