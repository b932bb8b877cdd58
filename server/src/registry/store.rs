//! The catalog on disk: `<data-dir>/catalog.redb`.
//!
//! Three tables: `meta` (format, the instance's id, the next trigger id), `databases` by name and `triggers` by id, values
//! as JSON so that a later version can add fields. One transaction per change, durable when it returns. Opened and
//! written by the thread `saltus-catalog` only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};
use saltus_core::ids::TriggerId;
use saltus_core::trigger::{
    ApiSettings, ErrorBehavior, Execution, Isolation, MissedRuns, Timing, TriggerDef, TriggerLimits, TriggerSpec,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Catalog, DatabaseInfo};

const META: TableDefinition<&str, &str> = TableDefinition::new("meta");
const DATABASES: TableDefinition<&str, &str> = TableDefinition::new("databases");
const TRIGGERS: TableDefinition<u64, &str> = TableDefinition::new("triggers");

const FORMAT_KEY: &str = "format";
const FORMAT: &str = "1";
const INSTANCE_KEY: &str = "instance";
const NEXT_TRIGGER_KEY: &str = "next_trigger_id";

/// A failure of the catalog store.
#[derive(Debug, thiserror::Error)]
#[error("catalog {}: {text}", .path.display())]
pub struct StoreError {
    path: PathBuf,
    text: String,
}

/// A database as it is stored.
#[derive(Serialize, Deserialize)]
struct DatabaseRecord {
    retention_ns: Option<u64>,
    created_ns: i64,
}

/// A trigger as it is stored.
#[derive(Serialize, Deserialize)]
struct TriggerRecord {
    db: String,
    trigger_name: String,
    plugin_filename: String,
    trigger_specification: String,
    run_async: bool,
    error_behavior: ErrorBehavior,
    execution: Execution,
    #[serde(default)]
    isolation: Isolation,
    #[serde(default)]
    limits: TriggerLimits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_zone: Option<String>,
    #[serde(default)]
    missed_runs: MissedRuns,
    #[serde(default)]
    since_ns: i64,
    #[serde(default)]
    api: ApiSettings,
    trigger_arguments: Option<BTreeMap<String, String>>,
    disabled: bool,
    #[serde(default)]
    disabled_reason: Option<String>,
}

/// The open store.
pub struct Store {
    path: PathBuf,
    db: Database,
}

impl Store {
    /// Opens the store, or makes a new one.
    ///
    /// # Errors
    /// The file cannot be opened, or another version wrote it.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let path = data_dir.join("catalog.redb");
        let fail = |text: String| StoreError { path: path.clone(), text };
        std::fs::create_dir_all(data_dir).map_err(|error| fail(error.to_string()))?;
        let db = Database::create(&path)
            .map_err(|error| fail(format!("{error}; if another server uses this data directory, stop it first")))?;
        let store = Store { path, db };
        store.change(|tx| {
            tx.open_table(DATABASES).map_err(text)?;
            tx.open_table(TRIGGERS).map_err(text)?;
            let mut meta = tx.open_table(META).map_err(text)?;
            let format = meta.get(FORMAT_KEY).map_err(text)?.map(|f| f.value().to_owned());
            match format.as_deref() {
                Some(FORMAT) => return Ok(()),
                Some(other) => {
                    return Err(format!(
                        "format {other} is not known to this version of saltus: use the version that wrote it"
                    ));
                }
                None => {}
            }
            meta.insert(FORMAT_KEY, FORMAT).map_err(text)?;
            meta.insert(INSTANCE_KEY, Uuid::new_v4().to_string().as_str()).map_err(text)?;
            meta.insert(NEXT_TRIGGER_KEY, "1").map_err(text)?;
            Ok(())
        })?;
        Ok(store)
    }

    /// Everything in the store.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn load(&self) -> Result<Catalog, StoreError> {
        self.read().map_err(|text| StoreError { path: self.path.clone(), text })
    }

    fn read(&self) -> Result<Catalog, String> {
        let tx = self.db.begin_read().map_err(text)?;
        let meta = tx.open_table(META).map_err(text)?;
        let instance = meta.get(INSTANCE_KEY).map_err(text)?.ok_or("the instance's id is missing")?;
        let mut catalog = Catalog {
            instance: Uuid::parse_str(instance.value()).map_err(text)?,
            databases: BTreeMap::new(),
            triggers: BTreeMap::new(),
        };
        for entry in tx.open_table(DATABASES).map_err(text)?.iter().map_err(text)? {
            let (name, record) = entry.map_err(text)?;
            let info = database_info(name.value(), record.value())?;
            catalog.databases.insert(info.name.clone(), info);
        }
        for entry in tx.open_table(TRIGGERS).map_err(text)?.iter().map_err(text)? {
            let (id, record) = entry.map_err(text)?;
            let def = trigger_def(id.value(), record.value())?;
            catalog.triggers.insert((def.db.clone(), def.name.clone()), Arc::new(def));
        }
        Ok(catalog)
    }

    /// Stores a database, new or changed.
    ///
    /// # Errors
    /// The transaction failed; nothing was changed.
    pub fn put_database(&self, info: &DatabaseInfo) -> Result<(), StoreError> {
        let retention_ns = info.retention.map(|r| u64::try_from(r.as_nanos()).unwrap_or(u64::MAX));
        let record = json(&DatabaseRecord { retention_ns, created_ns: info.created_ns });
        self.change(|tx| {
            tx.open_table(DATABASES).map_err(text)?.insert(&*info.name, record.as_str()).map_err(text)?;
            Ok(())
        })
    }

    /// Removes a database with these triggers.
    ///
    /// # Errors
    /// The transaction failed; nothing was changed.
    pub fn remove_database(&self, name: &str, triggers: &[TriggerId]) -> Result<(), StoreError> {
        self.change(|tx| {
            tx.open_table(DATABASES).map_err(text)?.remove(name).map_err(text)?;
            let mut table = tx.open_table(TRIGGERS).map_err(text)?;
            for id in triggers {
                table.remove(id.0).map_err(text)?;
            }
            Ok(())
        })
    }

    /// Stores a new trigger under an id that was never used before, and gives it.
    ///
    /// # Errors
    /// The transaction failed; nothing was changed.
    pub fn add_trigger(&self, def: &TriggerDef) -> Result<TriggerId, StoreError> {
        let record = trigger_record(def);
        self.change(|tx| {
            let mut meta = tx.open_table(META).map_err(text)?;
            let next = meta.get(NEXT_TRIGGER_KEY).map_err(text)?.map(|n| n.value().to_owned());
            let id: u64 = next.and_then(|n| n.parse().ok()).ok_or("the next trigger id is missing")?;
            meta.insert(NEXT_TRIGGER_KEY, (id + 1).to_string().as_str()).map_err(text)?;
            tx.open_table(TRIGGERS).map_err(text)?.insert(id, record.as_str()).map_err(text)?;
            Ok(TriggerId(id))
        })
    }

    /// Stores a changed trigger.
    ///
    /// # Errors
    /// The transaction failed; nothing was changed.
    pub fn put_trigger(&self, def: &TriggerDef) -> Result<(), StoreError> {
        let record = trigger_record(def);
        self.change(|tx| {
            tx.open_table(TRIGGERS).map_err(text)?.insert(def.id.0, record.as_str()).map_err(text)?;
            Ok(())
        })
    }

    /// Removes a trigger.
    ///
    /// # Errors
    /// The transaction failed; nothing was changed.
    pub fn remove_trigger(&self, id: TriggerId) -> Result<(), StoreError> {
        self.change(|tx| {
            tx.open_table(TRIGGERS).map_err(text)?.remove(id.0).map_err(text)?;
            Ok(())
        })
    }

    fn change<T>(&self, change: impl FnOnce(&WriteTransaction) -> Result<T, String>) -> Result<T, StoreError> {
        let fail = |text: String| StoreError { path: self.path.clone(), text };
        let tx = self.db.begin_write().map_err(|error| fail(error.to_string()))?;
        let done = change(&tx).map_err(fail)?;
        tx.commit().map_err(|error| StoreError { path: self.path.clone(), text: error.to_string() })?;
        Ok(done)
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn json(record: &impl Serialize) -> String {
    serde_json::to_string(record).expect("a record of plain values is JSON")
}

fn database_info(name: &str, record: &str) -> Result<DatabaseInfo, String> {
    let record: DatabaseRecord = serde_json::from_str(record).map_err(|error| format!("database {name}: {error}"))?;
    Ok(DatabaseInfo {
        name: name.into(),
        retention: record.retention_ns.map(Duration::from_nanos),
        created_ns: record.created_ns,
    })
}

fn trigger_record(def: &TriggerDef) -> String {
    json(&TriggerRecord {
        db: def.db.to_string(),
        trigger_name: def.name.to_string(),
        plugin_filename: def.plugin_filename.clone(),
        trigger_specification: def.spec.to_string(),
        run_async: def.run_async,
        error_behavior: def.error_behavior,
        execution: def.execution,
        isolation: def.isolation,
        limits: def.limits,
        time_zone: def.timing.time_zone.clone(),
        missed_runs: def.timing.missed_runs,
        since_ns: def.timing.since_ns,
        api: def.api,
        trigger_arguments: def.arguments.clone(),
        disabled: def.disabled,
        disabled_reason: def.disabled_reason.clone(),
    })
}

fn trigger_def(id: u64, record: &str) -> Result<TriggerDef, String> {
    let record: TriggerRecord = serde_json::from_str(record).map_err(|error| format!("trigger {id}: {error}"))?;
    Ok(TriggerDef {
        id: TriggerId(id),
        name: record.trigger_name.into(),
        db: record.db.into(),
        plugin_filename: record.plugin_filename,
        spec: TriggerSpec::parse(&record.trigger_specification).map_err(|error| format!("trigger {id}: {error}"))?,
        run_async: record.run_async,
        error_behavior: record.error_behavior,
        execution: record.execution,
        isolation: record.isolation,
        limits: record.limits,
        timing: Timing { time_zone: record.time_zone, missed_runs: record.missed_runs, since_ns: record.since_ns },
        api: record.api,
        arguments: record.trigger_arguments,
        disabled: record.disabled,
        disabled_reason: record.disabled_reason,
    })
}
