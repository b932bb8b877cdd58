//! Triggers: what starts a plugin, and how it is to run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::ids::TriggerId;

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
    /// On the shard's own thread.
    Inline,
    /// On the shard's worker threads.
    #[default]
    Deferred,
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
    /// `None` is passed to the plugin as `None`.
    pub arguments: Option<BTreeMap<String, String>>,
    /// Not to be run.
    pub disabled: bool,
}
