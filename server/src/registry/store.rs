//! The catalog on disk: `<data-dir>/catalog.redb`.
//!
//! Three tables: `meta` (format, the instance's id, the next trigger id, the generation, the last life that has used it),
//! `databases` by name and `triggers` by id, values as JSON so that a later version can add fields. One transaction per change,
//! durable when it returns. Opened at the start, and written by the thread `saltus-catalog` only.
//!
//! The manifest of the log knows the catalog's identity and generation, which every change raises, so that a catalog that is
//! missing, another's or an older copy is told (`saltus_shards::data_dir`). An id of a trigger is never given twice, also if the
//! catalog is given up: ids are not above the generation.
//!
//! **A full disk** fails a change and leaves nothing of it. redb does not go on after a failed operation: the file is opened anew
//! by the next change. A start on a full disk reads the catalog in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redb::backends::InMemoryBackend;
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, StorageBackend as _, Table, TableDefinition, WriteTransaction,
};
use saltus_core::ids::TriggerId;
use saltus_core::trigger::{
    ApiSettings, ErrorBehavior, Execution, Isolation, MissedRuns, Timing, TriggerDef, TriggerLimits, TriggerSpec,
};
use saltus_shards::data_dir::{CatalogVerdict, DataDir, DataDirError, FoundCatalog};
use saltus_shards::io::Shortage;
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

/// What a change of the catalog needs on the disk, about.
const CHANGE_BYTES: u64 = 1024 * 1024;

const GENERATION_KEY: &str = "generation";
const EPOCH_KEY: &str = "epoch";

/// A failure of the catalog store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be read or written.
    #[error("catalog {path}: {text}", path = path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// Why, in words.
        text: String,
    },
    /// The disk is full or read-only; nothing was changed, and it may be tried again.
    #[error("the catalog was not changed: {0}")]
    Short(String),
    /// It is lost, and perhaps more.
    #[error(transparent)]
    Damaged(#[from] DataDirError),
}

/// What went wrong inside.
enum Failure {
    /// The disk lacks something.
    Short(Shortage),
    /// Another failure of the file: it must be opened anew.
    File(String),
    /// Not the file.
    Other(String),
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Failure::Other(text)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Failure::Other(text.to_owned())
    }
}

/// What redb says.
fn failed(error: impl Into<redb::Error>) -> Failure {
    let error = error.into();
    match &error {
        redb::Error::Io(source) => match Shortage::of(source) {
            Some(shortage) => Failure::Short(shortage),
            None => Failure::File(error.to_string()),
        },
        redb::Error::DatabaseAlreadyOpen => {
            Failure::Other(format!("{error}; if another server uses this data directory, stop it first"))
        }
        _ => Failure::File(error.to_string()),
    }
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

/// The store.
pub struct Store {
    path: PathBuf,
    /// `None` after a failure, and where the disk was full at the start: opened by the next change.
    db: Option<Database>,
    /// Raised by every change.
    generation: u64,
    /// What was read when it was opened.
    catalog: Catalog,
}

/// A file that was opened and understood.
struct Read {
    catalog: Catalog,
    generation: u64,
    epoch: Option<u32>,
}

impl Store {
    /// Opens the store, or makes a new one where no server has run before.
    ///
    /// # Errors
    /// The file cannot be opened, another version wrote it, or it is lost: then the text names everything that is missing.
    pub fn open(directory: &mut DataDir) -> Result<Self, StoreError> {
        let path = directory.path().join("catalog.redb");
        let lost = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "is missing".to_owned(),
            Err(error) => return Err(StoreError::Failed { path, text: error.to_string() }),
            Ok(file) if file.len() == 0 => "is empty".to_owned(),
            Ok(_) => match Store::read_file(&path) {
                Ok((db, Some(read))) => match Store::judged(directory, &path, db, read)? {
                    Some(store) => return Ok(store),
                    None => return Store::make(directory, &path),
                },
                Ok((_, None)) => "holds no catalog".to_owned(),
                Err(Failure::Other(text)) => return Err(StoreError::Failed { path, text }),
                Err(Failure::Short(shortage)) => return Err(StoreError::Short(shortage.remedy(directory.path(), 0))),
                Err(Failure::File(text)) => format!("cannot be read ({text})"),
            },
        };
        if directory.has_history() {
            directory.catalog_lost(format!("{} {lost}", path.display()))?;
        }
        Store::make(directory, &path)
    }

    /// The store if the catalog is this directory's; `None` if it is another's and is given up.
    fn judged(
        directory: &mut DataDir,
        path: &Path,
        db: Option<Database>,
        read: Read,
    ) -> Result<Option<Self>, StoreError> {
        let Read { catalog, generation, epoch } = read;
        let expected = directory.expected_catalog();
        let found = FoundCatalog { identity: catalog.instance.to_string(), generation, epoch };
        let verdict = directory.catalog_found(path, found);
        let mut store = Store { path: path.to_owned(), db, generation, catalog };
        match (verdict, expected) {
            (CatalogVerdict::Foreign, _) if directory.accepts_loss() => Ok(None),
            (CatalogVerdict::Foreign, _) => Err(directory.refusal()?.into()),
            (CatalogVerdict::Older, Some(expected)) if directory.accepts_loss() => {
                // What was made since has used these ids.
                store.generation = expected.generation;
                store.change(|tx| {
                    raise_next_trigger(&mut tx.open_table(META).map_err(failed)?, expected.generation + 1)
                })?;
                Ok(Some(store))
            }
            _ => Ok(Some(store)),
        }
    }

    /// A new catalog; what is there is set aside.
    fn make(directory: &mut DataDir, path: &Path) -> Result<Self, StoreError> {
        let fail = |text: String| StoreError::Failed { path: path.to_owned(), text };
        // Without a history it is what the first start has left that did not come to its end.
        if path.metadata().is_ok_and(|file| file.len() > 0) {
            let aside = (1..).map(|n| path.with_extension(format!("redb.set-aside-{n}"))).find(|aside| !aside.exists());
            if let Some(aside) = aside {
                tracing::error!(from = %path.display(), to = %aside.display(), "a catalog that cannot be used is set aside");
                std::fs::rename(path, &aside).map_err(|error| fail(error.to_string()))?;
            }
        }
        let expected = directory.expected_catalog();
        let identity = expected.as_ref().and_then(|expected| Uuid::parse_str(&expected.identity).ok());
        let instance = identity.unwrap_or_else(Uuid::new_v4);
        let generation = expected.map_or(0, |expected| expected.generation);
        let catalog = Catalog::empty(instance);
        let mut store = Store { path: path.to_owned(), db: None, generation, catalog };
        store.change(|tx| {
            tx.open_table(DATABASES).map_err(failed)?;
            tx.open_table(TRIGGERS).map_err(failed)?;
            let mut meta = tx.open_table(META).map_err(failed)?;
            meta.insert(FORMAT_KEY, FORMAT).map_err(failed)?;
            meta.insert(INSTANCE_KEY, instance.to_string().as_str()).map_err(failed)?;
            raise_next_trigger(&mut meta, generation + 1)
        })?;
        let found = FoundCatalog { identity: instance.to_string(), generation: store.generation, epoch: None };
        directory.catalog_made(found);
        Ok(store)
    }

    /// Opens and reads a file; nothing if it was only begun. On a full disk it is read in memory.
    fn read_file(path: &Path) -> Result<(Option<Database>, Option<Read>), Failure> {
        // A damaged file may panic inside, which is no more than damage.
        let file = path.to_owned();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let opened = std::panic::catch_unwind(move || match Database::create(&file).map_err(failed) {
            Ok(db) => read(&db).map(|read| (Some(db), read)),
            Err(Failure::Short(shortage)) => {
                tracing::error!(path = %file.display(), "{}: the catalog is read, and cannot be changed until that is mended", shortage.text());
                let bytes = std::fs::read(&file).map_err(|error| Failure::File(error.to_string()))?;
                let backend = InMemoryBackend::new();
                let filled = backend.set_len(bytes.len() as u64).and_then(|()| backend.write(0, &bytes));
                filled.map_err(|error| Failure::File(format!("{error:?}")))?;
                let db = Database::builder().create_with_backend(backend).map_err(failed)?;
                read(&db).map(|read| (None, read))
            }
            Err(other) => Err(other),
        });
        std::panic::set_hook(hook);
        opened.unwrap_or_else(|_| Err(Failure::File("its pages contradict each other".to_owned())))
    }

    /// What was read when the store was opened.
    pub fn load(&self) -> Catalog {
        self.catalog.clone()
    }

    /// How often it was changed.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A life of the server uses it, whose manifest is written.
    ///
    /// # Errors
    /// The transaction failed; nothing was changed.
    pub fn note_life(&mut self, epoch: u32) -> Result<(), StoreError> {
        let generation = self.generation;
        let noted = self.transact(generation, |tx| {
            let mut meta = tx.open_table(META).map_err(failed)?;
            meta.insert(EPOCH_KEY, epoch.to_string().as_str()).map_err(failed)?;
            Ok(())
        });
        noted.map_err(|failure| self.error(failure))
    }

    /// Stores a database, new or changed.
    ///
    /// # Errors
    /// The transaction failed; nothing was changed.
    pub fn put_database(&mut self, info: &DatabaseInfo) -> Result<(), StoreError> {
        let retention_ns = info.retention.map(|r| u64::try_from(r.as_nanos()).unwrap_or(u64::MAX));
        let record = json(&DatabaseRecord { retention_ns, created_ns: info.created_ns });
        self.change(|tx| {
            tx.open_table(DATABASES).map_err(failed)?.insert(&*info.name, record.as_str()).map_err(failed)?;
            Ok(())
        })
    }

    /// Removes a database with these triggers.
    ///
    /// # Errors
    /// The transaction failed; nothing was changed.
    pub fn remove_database(&mut self, name: &str, triggers: &[TriggerId]) -> Result<(), StoreError> {
        self.change(|tx| {
            tx.open_table(DATABASES).map_err(failed)?.remove(name).map_err(failed)?;
            let mut table = tx.open_table(TRIGGERS).map_err(failed)?;
            for id in triggers {
                table.remove(id.0).map_err(failed)?;
            }
            Ok(())
        })
    }

    /// Stores a new trigger under an id that was never used before, and gives it.
    ///
    /// # Errors
    /// The transaction failed; nothing was changed.
    pub fn add_trigger(&mut self, def: &TriggerDef) -> Result<TriggerId, StoreError> {
        let record = trigger_record(def);
        self.change(|tx| {
            let mut meta = tx.open_table(META).map_err(failed)?;
            let next = meta.get(NEXT_TRIGGER_KEY).map_err(failed)?.map(|n| n.value().to_owned());
            let id: u64 = next.and_then(|n| n.parse().ok()).ok_or("the next trigger id is missing")?;
            meta.insert(NEXT_TRIGGER_KEY, (id + 1).to_string().as_str()).map_err(failed)?;
            tx.open_table(TRIGGERS).map_err(failed)?.insert(id, record.as_str()).map_err(failed)?;
            Ok(TriggerId(id))
        })
    }

    /// Stores a changed trigger.
    ///
    /// # Errors
    /// The transaction failed; nothing was changed.
    pub fn put_trigger(&mut self, def: &TriggerDef) -> Result<(), StoreError> {
        let record = trigger_record(def);
        self.change(|tx| {
            tx.open_table(TRIGGERS).map_err(failed)?.insert(def.id.0, record.as_str()).map_err(failed)?;
            Ok(())
        })
    }

    /// Removes a trigger.
    ///
    /// # Errors
    /// The transaction failed; nothing was changed.
    pub fn remove_trigger(&mut self, id: TriggerId) -> Result<(), StoreError> {
        self.change(|tx| {
            tx.open_table(TRIGGERS).map_err(failed)?.remove(id.0).map_err(failed)?;
            Ok(())
        })
    }

    /// One transaction that raises the generation.
    fn change<T>(&mut self, change: impl FnOnce(&WriteTransaction) -> Result<T, Failure>) -> Result<T, StoreError> {
        let generation = self.generation + 1;
        match self.transact(generation, change) {
            Ok(done) => {
                self.generation = generation;
                Ok(done)
            }
            Err(failure) => Err(self.error(failure)),
        }
    }

    /// One transaction. After a failure of the file it is closed: the next one opens it, and repairs it if it has to.
    fn transact<T>(
        &mut self,
        generation: u64,
        change: impl FnOnce(&WriteTransaction) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let db = match self.db.take() {
            Some(db) => db,
            None => Database::create(&self.path).map_err(failed)?,
        };
        let done = (|| -> Result<T, Failure> {
            let tx = db.begin_write().map_err(failed)?;
            let done = change(&tx)?;
            let mut meta = tx.open_table(META).map_err(failed)?;
            meta.insert(GENERATION_KEY, generation.to_string().as_str()).map_err(failed)?;
            drop(meta);
            tx.commit().map_err(failed)?;
            Ok(done)
        })();
        if matches!(done, Ok(_) | Err(Failure::Other(_))) {
            self.db = Some(db);
        }
        done
    }

    fn error(&self, failure: Failure) -> StoreError {
        match failure {
            Failure::Short(shortage) => {
                StoreError::Short(shortage.remedy(self.path.parent().unwrap_or(&self.path), CHANGE_BYTES))
            }
            Failure::File(text) | Failure::Other(text) => StoreError::Failed { path: self.path.clone(), text },
        }
    }
}

/// No id below this is given to a trigger again.
fn raise_next_trigger(meta: &mut Table<'_, &'static str, &'static str>, least: u64) -> Result<(), Failure> {
    let next = meta.get(NEXT_TRIGGER_KEY).map_err(failed)?.and_then(|next| next.value().parse().ok()).unwrap_or(1);
    meta.insert(NEXT_TRIGGER_KEY, least.max(next).to_string().as_str()).map_err(failed)?;
    Ok(())
}

/// Everything in a file; `None` if nothing was ever stored in it.
fn read(db: &Database) -> Result<Option<Read>, Failure> {
    let tx = db.begin_read().map_err(failed)?;
    let meta = match tx.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let value = |key: &str| Ok::<_, Failure>(meta.get(key).map_err(failed)?.map(|value| value.value().to_owned()));
    match value(FORMAT_KEY)?.as_deref() {
        Some(FORMAT) => {}
        Some(other) => {
            let text = format!("format {other} is not known to this version of saltus: use the version that wrote it");
            return Err(Failure::Other(text));
        }
        None => return Ok(None),
    }
    let damaged = |error: &dyn std::fmt::Display| Failure::File(error.to_string());
    let instance = value(INSTANCE_KEY)?.ok_or_else(|| damaged(&"the instance's id is missing"))?;
    let mut catalog = Catalog::empty(Uuid::parse_str(&instance).map_err(|error| damaged(&error))?);
    for entry in tx.open_table(DATABASES).map_err(failed)?.iter().map_err(failed)? {
        let (name, record) = entry.map_err(failed)?;
        let info = database_info(name.value(), record.value())?;
        catalog.databases.insert(info.name.clone(), info);
    }
    for entry in tx.open_table(TRIGGERS).map_err(failed)?.iter().map_err(failed)? {
        let (id, record) = entry.map_err(failed)?;
        let def = trigger_def(id.value(), record.value())?;
        catalog.triggers.insert((def.db.clone(), def.name.clone()), Arc::new(def));
    }
    let number = |key: &str| Ok::<_, Failure>(value(key)?.and_then(|text| text.parse::<u64>().ok()));
    // An older version has counted triggers only.
    let generation = number(GENERATION_KEY)?.or(number(NEXT_TRIGGER_KEY)?).unwrap_or(1);
    let epoch = number(EPOCH_KEY)?.and_then(|epoch| u32::try_from(epoch).ok());
    Ok(Some(Read { catalog, generation, epoch }))
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
