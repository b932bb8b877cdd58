//! The registry: which databases, triggers and plugin files there are.
//!
//! Contract: readers take [`Registry::catalog`], an immutable snapshot swapped in whole. Every change is made by the thread
//! `saltus-catalog`, one after the other: checked, stored durably, published, and only then put in force in the engine.
//! Callers on a shard's thread await the answer; they never touch the store or a file.
//! A change costs what it changes: snapshots share what they have in common, and the engine hears of the difference only.
//!
//! A database exists if it was created here or has a table in the engine: a write makes databases by itself.

pub mod imports;
pub mod plugins;
pub mod settings;
mod store;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, Sender, bounded};
use futures_channel::oneshot;
use futures_lite::future::block_on;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use saltus_core::ids::TriggerId;
use saltus_core::limits::{DATABASES_MAX, TRIGGER_NAME_BYTES_MAX};
use saltus_core::names::{DbNameError, INTERNAL_DB, check_db_name};
use saltus_core::policy::Lane;
use saltus_core::ports::{CodeSource, Trigger};
use saltus_core::route::{Route, Routes};
use saltus_core::schedule::Schedule;
use saltus_core::shared_map::SharedMap;
use saltus_core::trigger::{
    ApiSettings, ErrorBehavior, Execution, Isolation, Timing, TriggerDef, TriggerLimits, TriggerSpec,
};
use saltus_shards::api::{TableError, TriggersChange};
use saltus_shards::data_dir::DataDir;
use saltus_shards::engine::EngineHandle;
use uuid::Uuid;

use imports::{Changed, PluginChecks, Trial};
use plugins::{PluginFileError, PluginShelf, PluginSource, PluginWatcher, VersionCheck};
use settings::{SettingError, Settings, SettingsChange};
use store::Store;
pub use store::StoreError;

/// Changes that wait for the catalog's thread.
const COMMANDS_MAX: usize = 1024;
/// Tables of a database that are dropped in one round of the log.
const DROPS_AT_ONCE: usize = 256;
/// Triggers of all databases.
const TRIGGERS_MAX: usize = 100_000;

/// A database as the catalog keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseInfo {
    /// Its name.
    pub name: Arc<str>,
    /// How long rows are to be kept; stored, not enforced yet.
    pub retention: Option<Duration>,
    /// Wall clock at creation, nanoseconds since the epoch.
    pub created_ns: i64,
}

/// The catalog at one moment.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// The identity of this data directory (header `cluster-uuid`).
    pub instance: Uuid,
    /// Databases that were created by a command, by name.
    pub databases: SharedMap<Arc<str>, DatabaseInfo>,
    /// Triggers by database and name.
    pub triggers: SharedMap<(Arc<str>, Arc<str>), Arc<TriggerDef>>,
}

impl Catalog {
    /// One without databases and triggers.
    fn empty(instance: Uuid) -> Self {
        Catalog { instance, databases: SharedMap::default(), triggers: SharedMap::default() }
    }

    /// The trigger of that name.
    pub fn trigger(&self, db: &str, name: &str) -> Option<&Arc<TriggerDef>> {
        self.triggers.find(|(known_db, known)| (**known_db).cmp(db).then_with(|| (**known).cmp(name)))
    }

    /// The triggers of a database, by name.
    pub fn triggers_of<'a>(&'a self, db: &'a str) -> impl Iterator<Item = &'a Arc<TriggerDef>> {
        let from = self.triggers.iter_from(move |(known, _)| match (**known).cmp(db) {
            // Its first one is looked for.
            Ordering::Equal => Ordering::Greater,
            order => order,
        });
        from.map(|(_, def)| def).take_while(move |def| *def.db == *db)
    }
}

/// A trigger to be created.
#[derive(Clone, Debug)]
pub struct NewTrigger {
    /// The database it belongs to.
    pub db: String,
    /// Unique in its database.
    pub name: String,
    /// Relative to the plugin directory.
    pub plugin_filename: String,
    /// What starts it.
    pub spec: TriggerSpec,
    /// How it is to be run, as far as the request says.
    pub settings: Settings,
    /// What the plugin gets as `args`.
    pub arguments: Option<BTreeMap<String, String>>,
    /// Not to be run yet.
    pub disabled: bool,
}

/// What is to change of a trigger; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct TriggerChange {
    /// The database it belongs to.
    pub db: String,
    /// Its name.
    pub name: String,
    /// Relative to the plugin directory.
    pub plugin_filename: Option<String>,
    /// What starts it; of the kind that it has.
    pub spec: Option<TriggerSpec>,
    /// How it is to be run.
    pub settings: SettingsChange,
    /// What the plugin gets as `args`, all of it.
    pub arguments: Option<Option<BTreeMap<String, String>>>,
    /// Not to be run.
    pub disabled: Option<bool>,
}

/// What was found about a plugin although its trigger was taken: each names the field and the remedy.
pub type Warnings = Vec<String>;

/// Why the catalog was not changed. The kinds are what a client should do; the texts are the reference's.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name is taken; whose it is.
    #[error("attempted to create a resource that already exists: {0}")]
    Exists(String),
    /// No such database.
    #[error("Database not found {0}")]
    DatabaseNotFound(String),
    /// No such trigger.
    #[error("the requested resource was not found: {0}")]
    TriggerNotFound(String),
    /// The database's name breaks a rule.
    #[error("{0}")]
    Name(#[from] DbNameError),
    /// The input breaks a rule.
    #[error("{field}: {message}")]
    Invalid {
        /// Which field of the request.
        field: &'static str,
        /// Which rule.
        message: String,
    },
    /// `_internal` cannot be changed.
    #[error("cannot modify internal db")]
    Internal,
    /// An enabled trigger is deleted only by force.
    #[error("Cannot delete running plugin {0}. Disable it first or use --force.")]
    Running(String),
    /// Another trigger answers requests to that path.
    #[error(
        "trigger_specification: requests to '{path}' are for trigger '{trigger}' of database '{db}': choose another path, or disable or delete that trigger first"
    )]
    PathTaken {
        /// The path.
        path: String,
        /// Whose.
        trigger: String,
        /// And where.
        db: String,
    },
    /// A limit is met.
    #[error("{0}")]
    Limit(String),
    /// The plugin's file cannot be used.
    #[error("plugin_filename: Plugin error: reading plugin file: {0}")]
    Plugin(PluginFileError),
    /// A plugin file could not be written.
    #[error("Processing engine error: plugin error: {0}")]
    Upload(PluginFileError),
    /// The store failed; nothing was changed.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The engine refused; the text says why.
    #[error("{0}")]
    Engine(String),
    /// The registry is starting, stopping or has too much to do.
    #[error("the catalog takes no changes now: {0}")]
    Unavailable(&'static str),
}

/// What the registry needs of the engine. Every call blocks: it is made on the catalog's thread.
pub trait EngineControl: Send {
    /// Whether a database has tables.
    fn has_database(&self, db: &str) -> bool;
    /// Drops all tables of a database.
    ///
    /// # Errors
    /// Why a table is still there.
    fn drop_tables(&self, db: &str) -> Result<(), String>;
    /// Changes the set of enabled triggers; the first change brings all of them.
    fn change_triggers(&self, change: TriggersChange);
    /// Ends the durable state of a deleted trigger, which is not in force any more.
    fn end_state(&self, trigger: TriggerId);
    /// There are no triggers but these: others have no state.
    fn retain_states(&self, triggers: &BTreeSet<TriggerId>);
    /// The number of this life, if the manifest has it.
    fn epoch(&self) -> Option<u32> {
        None
    }
    /// More is known of the code of these triggers: it is to be looked at.
    fn note_code(&self, _triggers: &[TriggerId]) {}
    /// The lane of the next run of a trigger in force, and why.
    fn lane_of(&self, _trigger: TriggerId) -> Option<(Lane, String)> {
        None
    }
    /// The catalog was changed, and has this generation now.
    fn note_catalog(&self, _generation: u64) {}
}

impl EngineControl for EngineHandle {
    fn has_database(&self, db: &str) -> bool {
        EngineHandle::has_database(self, db)
    }

    fn drop_tables(&self, db: &str) -> Result<(), String> {
        for some in self.tables(db).chunks(DROPS_AT_ONCE) {
            let drops = some.iter().map(|table| async {
                match self.drop_table(db, &table.name).await {
                    Ok(()) | Err(TableError::NotFound(_)) => Ok(()),
                    Err(error) => Err(format!("table {}: {error}", table.name)),
                }
            });
            block_on(try_join_all(drops))?;
        }
        Ok(())
    }

    fn change_triggers(&self, change: TriggersChange) {
        EngineHandle::change_triggers(self, change);
    }

    fn end_state(&self, trigger: TriggerId) {
        block_on(EngineHandle::end_state(self, trigger));
    }

    fn retain_states(&self, triggers: &BTreeSet<TriggerId>) {
        EngineHandle::retain_states(self, |trigger| triggers.contains(&trigger));
    }

    fn epoch(&self) -> Option<u32> {
        self.noted_epoch().map(|epoch| epoch.0)
    }

    fn note_code(&self, triggers: &[TriggerId]) {
        EngineHandle::note_code(self, triggers);
    }

    fn lane_of(&self, trigger: TriggerId) -> Option<(Lane, String)> {
        block_on(EngineHandle::lane_of(self, trigger))
    }

    fn note_catalog(&self, generation: u64) {
        EngineHandle::note_catalog(self, generation);
    }
}

type Command = Box<dyn FnOnce(&mut Keeper) + Send>;

/// The registry, seen from any thread.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    catalog: Arc<ArcSwap<Catalog>>,
    commands: Sender<Option<Command>>,
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    catalog: JoinHandle<()>,
    _watcher: PluginWatcher,
}

impl Registry {
    /// Opens the store and starts the threads `saltus-catalog` and `saltus-plugins`.
    ///
    /// # Errors
    /// The store or the plugin directory cannot be used; the text names the path.
    pub fn open(directory: &mut DataDir, plugin_dir: Option<&Path>) -> Result<Self, RegistryError> {
        let store = Store::open(directory)?;
        let catalog = Arc::new(ArcSwap::from_pointee(store.load()));
        let shelf = Arc::new(PluginShelf::open(plugin_dir).map_err(RegistryError::Plugin)?);
        let no_thread = |_| RegistryError::Unavailable("the system gave no thread");
        let watcher = shelf.watch().map_err(no_thread)?;
        let (commands, inbox) = bounded(COMMANDS_MAX);
        let noted = commands.clone();
        shelf.note_changes_with(Box::new(move |path| {
            // Whoever has seen it may be the catalog's thread, and waits for nothing.
            if noted.try_send(Some(imports::plugin_changed(path.to_owned()))).is_err() {
                tracing::warn!(plugin = %path.display(), "what the changed plugin imports is not tried, as too many changes of the catalog wait: its first run finds out");
            }
        }));
        let keeper = Keeper {
            store,
            catalog: catalog.clone(),
            shelf,
            commands: commands.clone(),
            engine: None,
            checks: None,
            in_force: HashMap::new(),
            routes: Routes::default(),
            untried: VecDeque::new(),
        };
        let thread = std::thread::Builder::new()
            .name("saltus-catalog".into())
            .spawn(move || keeper.run(&inbox))
            .map_err(no_thread)?;
        let threads = Mutex::new(Some(Threads { catalog: thread, _watcher: watcher }));
        Ok(Registry { shared: Arc::new(Shared { catalog, commands, threads }) })
    }

    /// From now on new versions of plugins are checked before they count.
    ///
    /// # Errors
    /// The registry has stopped.
    pub async fn check_versions_with(&self, check: VersionCheck) -> Result<(), RegistryError> {
        self.ask(move |keeper| {
            keeper.shelf.check_with(check);
            Ok(())
        })
        .await
    }

    /// The catalog now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.shared.catalog.load_full()
    }

    /// Gives the registry its engine and puts the enabled triggers in force. The engine needs the registry to start
    /// (its connections are served with it), so this is the second half of the construction; until then changes are
    /// refused. Without Python there are no `checks`.
    ///
    /// # Errors
    /// The registry has stopped.
    pub async fn connect(
        &self,
        engine: Box<dyn EngineControl>,
        checks: Option<PluginChecks>,
    ) -> Result<(), RegistryError> {
        self.ask(move |keeper| {
            engine.retain_states(&keeper.catalog.load().triggers.values().map(|def| def.id).collect());
            if let Some(epoch) = engine.epoch()
                && let Err(error) = keeper.store.note_life(epoch)
            {
                tracing::warn!(%error, "the catalog does not know of this start");
            }
            (keeper.engine, keeper.checks) = (Some(engine), checks);
            let all: Vec<_> = keeper.catalog.load().triggers.values().cloned().collect();
            keeper.put_in_force(&[], &all);
            keeper.try_all();
            Ok(())
        })
        .await
    }

    /// Ends the threads after the changes that wait. Blocks.
    pub fn stop(&self) {
        if let Some(threads) = self.shared.threads.lock().take() {
            let _ = self.shared.commands.send(None);
            let _ = threads.catalog.join();
        }
    }

    /// Creates a database.
    ///
    /// # Errors
    /// The name breaks a rule or is taken, or the limit is met.
    pub async fn create_database(&self, name: &str, retention: Option<Duration>) -> Result<(), RegistryError> {
        let name = checked_db(name)?;
        self.ask(move |keeper| keeper.create_database(name, retention)).await
    }

    /// Changes a database's retention period.
    ///
    /// # Errors
    /// There is no such database.
    pub async fn update_database(&self, name: &str, retention: Option<Duration>) -> Result<(), RegistryError> {
        let name = checked_db(name)?;
        self.ask(move |keeper| keeper.update_database(name, retention)).await
    }

    /// Deletes a database with its triggers and tables.
    ///
    /// # Errors
    /// There is no such database, or a table could not be dropped (the rest is gone then).
    pub async fn delete_database(&self, name: &str) -> Result<(), RegistryError> {
        if name == INTERNAL_DB {
            return Err(RegistryError::Internal);
        }
        let name: Arc<str> = name.into();
        self.ask(move |keeper| keeper.delete_database(&name)).await
    }

    /// Creates a trigger; if it is enabled it is in force when this returns. What its plugin imports is tried before, and waited for
    /// as long as `patience` lasts.
    ///
    /// # Errors
    /// The plugin cannot be read, the database is missing, the name is taken or empty, the path is another trigger's, the
    /// schedule has no times.
    pub async fn create_trigger(
        &self,
        new: NewTrigger,
        patience: impl Future<Output = ()>,
    ) -> Result<Changed, RegistryError> {
        let asked = new.clone();
        let trial = self.ask(move |keeper| {
            keeper.new_trigger(&asked)?;
            Ok(keeper.try_imports(&asked.plugin_filename))
        });
        let trial = Trial::within(trial.await?, patience).await;
        self.ask(move |keeper| keeper.create_trigger(&new, &trial)).await
    }

    /// Changes a trigger; in force when it returns. What waits for it is not lost. As for its plugin, see
    /// [`Registry::create_trigger`].
    ///
    /// # Errors
    /// There is none of that name, or as for [`Registry::create_trigger`].
    pub async fn update_trigger(
        &self,
        change: TriggerChange,
        patience: impl Future<Output = ()>,
    ) -> Result<Changed, RegistryError> {
        let asked = change.clone();
        let trial = self.ask(move |keeper| {
            let (_, def) = keeper.changed_trigger(asked)?;
            Ok(keeper.try_imports(&def.plugin_filename))
        });
        let trial = Trial::within(trial.await?, patience).await;
        self.ask(move |keeper| keeper.update_trigger(change, &trial)).await
    }

    /// Deletes a trigger, an enabled one only with `force`.
    ///
    /// # Errors
    /// There is none of that name, or it is enabled.
    pub async fn delete_trigger(&self, db: &str, name: &str, force: bool) -> Result<(), RegistryError> {
        let (db, name) = (db.to_owned(), name.to_owned());
        self.ask(move |keeper| keeper.delete_trigger(&db, &name, force)).await
    }

    /// Disables a trigger; in force when it returns, no error if it was so already.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn disable_trigger(&self, db: &str, name: &str) -> Result<(), RegistryError> {
        let (db, name) = (db.to_owned(), name.to_owned());
        self.ask(move |keeper| keeper.set_trigger_enabled(&db, &name, false)).await
    }

    /// Enables a trigger; in force when it returns, no error if it was so already. As for its plugin, see
    /// [`Registry::create_trigger`].
    ///
    /// # Errors
    /// There is none of that name, or its path has become another trigger's.
    pub async fn enable_trigger(
        &self,
        db: &str,
        name: &str,
        patience: impl Future<Output = ()>,
    ) -> Result<Changed, RegistryError> {
        let (db, name) = (db.to_owned(), name.to_owned());
        let asked = (db.clone(), name.clone());
        let trial =
            self.ask(move |keeper| Ok(keeper.try_imports(&keeper.trigger(&asked.0, &asked.1)?.plugin_filename)));
        let trial = Trial::within(trial.await?, patience).await;
        self.ask(move |keeper| {
            keeper.set_trigger_enabled(&db, &name, true)?;
            let def = keeper.trigger(&db, &name)?;
            Ok(keeper.changed(&def, Warnings::new(), &trial))
        })
        .await
    }

    /// Disables a trigger because it failed; the reason is kept with it. Does not wait: what goes wrong is logged, and the shard has
    /// stopped the trigger in any case.
    pub fn disable_failed_trigger(&self, def: &TriggerDef, reason: String) {
        let (def, name) = (def.clone(), def.name.clone());
        let command: Command = Box::new(move |keeper| {
            let name = def.name.clone();
            if let Err(error) = keeper.disable_failed(&def, reason) {
                tracing::error!(trigger = %name, %error, "a trigger that failed could not be stored as disabled; it runs again after a restart");
            }
        });
        if self.shared.commands.try_send(Some(command)).is_err() {
            tracing::error!(trigger = %name, "a trigger that failed could not be stored as disabled: too many changes of the catalog wait; it runs again after a restart");
        }
    }

    /// A plugin's code, read now, and what its author says of how it is to be run.
    ///
    /// # Errors
    /// The plugin or its `manifest.toml` cannot be read.
    pub async fn plugin(&self, filename: &str) -> Result<(Arc<dyn CodeSource>, Settings), RegistryError> {
        let filename = filename.to_owned();
        self.ask(move |keeper| {
            // Whoever tests a change wants to see it, whatever counts for triggers.
            let source: Arc<dyn CodeSource> = keeper.shelf.as_it_is(&filename).map_err(RegistryError::Plugin)?;
            Ok((source, keeper.authors_settings(&filename)?))
        })
        .await
    }

    /// Writes a file under the plugin directory.
    ///
    /// # Errors
    /// The name leads outside or the file system refused.
    pub async fn write_plugin_file(&self, name: String, content: String) -> Result<(), RegistryError> {
        self.ask(move |keeper| keeper.shelf.write(&name, &content).map_err(RegistryError::Upload)).await
    }

    /// Writes files of a folder under the plugin directory; it counts with all of them at once.
    ///
    /// # Errors
    /// A name leads outside or the file system refused.
    pub async fn write_plugin_folder(&self, name: String, files: Vec<(String, String)>) -> Result<(), RegistryError> {
        self.ask(move |keeper| keeper.shelf.write_folder(&name, &files).map_err(RegistryError::Upload)).await
    }

    /// The same for the folder of the first trigger with that name, over all databases.
    ///
    /// # Errors
    /// There is no such trigger, or the files cannot be written.
    pub async fn write_trigger_folder(
        &self,
        trigger: String,
        files: Vec<(String, String)>,
    ) -> Result<(), RegistryError> {
        self.ask(move |keeper| {
            let catalog = keeper.catalog.load();
            let def = catalog.triggers.values().find(|def| *def.name == *trigger);
            let def = def.ok_or_else(|| RegistryError::Upload(PluginFileError::NotFound(trigger.into())))?;
            keeper.shelf.write_folder(&def.plugin_filename, &files).map_err(RegistryError::Upload)
        })
        .await
    }

    /// Writes the file of the first trigger with that name, over all databases.
    ///
    /// # Errors
    /// There is no such trigger, or the file cannot be written.
    pub async fn write_trigger_file(&self, trigger: String, content: String) -> Result<(), RegistryError> {
        self.ask(move |keeper| {
            let catalog = keeper.catalog.load();
            let def = catalog.triggers.values().find(|def| *def.name == *trigger);
            let def = def.ok_or_else(|| RegistryError::Upload(PluginFileError::NotFound(trigger.into())))?;
            keeper.shelf.write_plugin(&def.plugin_filename, &content).map_err(RegistryError::Upload)
        })
        .await
    }

    /// Has the catalog's thread do something, without waiting for room.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Keeper) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let (reply, answer) = oneshot::channel();
        let command: Command = Box::new(move |keeper| {
            let _ = reply.send(work(keeper));
        });
        let sent = self.shared.commands.try_send(Some(command));
        sent.map_err(|_| RegistryError::Unavailable("it is stopping, or too many changes wait"))?;
        answer.await.unwrap_or(Err(RegistryError::Unavailable("it has stopped")))
    }
}

fn checked_db(name: &str) -> Result<Arc<str>, RegistryError> {
    if name == INTERNAL_DB {
        return Err(RegistryError::Internal);
    }
    check_db_name(name)?;
    Ok(name.into())
}

/// The catalog's thread and all that only it may touch.
struct Keeper {
    store: Store,
    catalog: Arc<ArcSwap<Catalog>>,
    shelf: Arc<PluginShelf>,
    /// For what is to be done later.
    commands: Sender<Option<Command>>,
    engine: Option<Box<dyn EngineControl>>,
    checks: Option<PluginChecks>,
    /// What the engine was given.
    in_force: HashMap<TriggerId, InForce>,
    /// Which of those answer requests to which path.
    routes: Routes<Arc<Trigger>>,
    /// Plugins whose imports are to be tried.
    untried: VecDeque<Arc<PluginSource>>,
}

/// An enabled trigger, and its plugin.
struct InForce {
    source: Arc<PluginSource>,
    trigger: Arc<Trigger>,
}

impl Keeper {
    fn run(mut self, inbox: &Receiver<Option<Command>>) {
        while let Ok(Some(command)) = inbox.recv() {
            command(&mut self);
        }
    }

    fn create_database(&mut self, name: Arc<str>, retention: Option<Duration>) -> Result<(), RegistryError> {
        if self.database_exists(&name)? {
            return Err(RegistryError::Exists(format!("database '{name}'")));
        }
        let mut next = self.next();
        if next.databases.len() >= DATABASES_MAX {
            let text = format!("Adding a new database would exceed limit of {DATABASES_MAX} databases");
            return Err(RegistryError::Limit(text));
        }
        let info = DatabaseInfo { name, retention, created_ns: wall_clock_ns() };
        self.store.put_database(&info)?;
        next.databases.insert(info.name.clone(), info);
        self.publish(next);
        Ok(())
    }

    fn update_database(&mut self, name: Arc<str>, retention: Option<Duration>) -> Result<(), RegistryError> {
        if !self.database_exists(&name)? {
            return Err(RegistryError::DatabaseNotFound(name.to_string()));
        }
        let mut next = self.next();
        let created_ns = next.databases.get(&name).map_or_else(wall_clock_ns, |info| info.created_ns);
        let info = DatabaseInfo { name, retention, created_ns };
        self.store.put_database(&info)?;
        next.databases.insert(info.name.clone(), info);
        self.publish(next);
        Ok(())
    }

    fn delete_database(&mut self, name: &Arc<str>) -> Result<(), RegistryError> {
        if !self.database_exists(name)? {
            return Err(RegistryError::DatabaseNotFound(name.to_string()));
        }
        let mut next = self.next();
        let defs: Vec<Arc<TriggerDef>> = next.triggers_of(name).cloned().collect();
        let triggers: Vec<TriggerId> = defs.iter().map(|def| def.id).collect();
        // Triggers go first: nothing may run on tables that are half gone.
        self.store.remove_database(name, &triggers)?;
        next.databases.remove(name);
        for def in &defs {
            next.triggers.remove(&(def.db.clone(), def.name.clone()));
        }
        self.publish(next);
        self.put_in_force(&defs, &[]);
        let engine = self.engine()?;
        triggers.iter().for_each(|trigger| engine.end_state(*trigger));
        engine.drop_tables(name).map_err(RegistryError::Engine)
    }

    /// What the request says of how the trigger is to be run, over what the plugin's author says.
    fn settings(&self, new: &NewTrigger) -> Result<Settings, RegistryError> {
        let kind = new.spec.kind();
        new.settings.check_kind(kind)?;
        let authors = self.authors_settings(&new.plugin_filename)?;
        // An author may write a plugin for several kinds of triggers.
        let authors = match authors.check_kind(kind) {
            Ok(()) => authors,
            Err(_) => Settings { time_zone: None, missed_runs: None, ..authors },
        };
        let settings = new.settings.clone().or(authors);
        settings.check()?;
        Ok(settings)
    }

    /// What the plugin's author says of how it is to be run.
    fn authors_settings(&self, filename: &str) -> Result<Settings, RegistryError> {
        let manifest = self.shelf.manifest(filename).map_err(RegistryError::Plugin)?;
        let Some((path, text)) = manifest else { return Ok(Settings::default()) };
        Settings::from_manifest(&text).map_err(|error| RegistryError::Invalid {
            field: "plugin_filename",
            message: format!("{}: {error}", path.display()),
        })
    }

    /// A trigger that could be created, without its id.
    fn new_trigger(&self, new: &NewTrigger) -> Result<TriggerDef, RegistryError> {
        check_trigger_name(&new.name)?;
        self.shelf.source(&new.plugin_filename).map_err(RegistryError::Plugin)?;
        let settings = self.settings(new)?;
        if new.db == INTERNAL_DB {
            return Err(RegistryError::Internal);
        }
        if !self.database_exists(&new.db)? {
            return Err(RegistryError::DatabaseNotFound(new.db.clone()));
        }
        let catalog = self.catalog.load();
        if catalog.trigger(&new.db, &new.name).is_some() {
            return Err(RegistryError::Exists(format!("trigger '{}' of database '{}'", new.name, new.db)));
        }
        if catalog.triggers.len() >= TRIGGERS_MAX {
            return Err(RegistryError::Limit(format!("there are {TRIGGERS_MAX} triggers already")));
        }
        let mut def = TriggerDef {
            id: TriggerId(0),
            name: new.name.as_str().into(),
            db: new.db.as_str().into(),
            plugin_filename: new.plugin_filename.clone(),
            spec: new.spec.clone(),
            run_async: false,
            error_behavior: ErrorBehavior::default(),
            execution: Execution::default(),
            isolation: Isolation::default(),
            limits: TriggerLimits::default(),
            timing: Timing { since_ns: wall_clock_ns(), ..Timing::default() },
            api: ApiSettings::default(),
            arguments: new.arguments.clone(),
            disabled: new.disabled,
            disabled_reason: None,
        };
        apply(&mut def, settings);
        check_schedule(&def)?;
        self.check_path(&def)?;
        Ok(def)
    }

    fn create_trigger(&mut self, new: &NewTrigger, trial: &Trial) -> Result<Changed, RegistryError> {
        let mut def = self.new_trigger(new)?;
        def.id = self.store.add_trigger(&def)?;
        let warnings = self.warnings(&def);
        let def = Arc::new(def);
        let mut next = self.next();
        next.triggers.insert((def.db.clone(), def.name.clone()), def.clone());
        self.publish(next);
        self.put_in_force(&[], std::slice::from_ref(&def));
        Ok(self.changed(&def, warnings, trial))
    }

    /// A trigger as it is, and as it would be.
    fn changed_trigger(&self, change: TriggerChange) -> Result<(Arc<TriggerDef>, TriggerDef), RegistryError> {
        let before = self.trigger(&change.db, &change.name)?;
        let mut def = TriggerDef::clone(&before);
        if let Some(spec) = change.spec {
            if spec.kind() != before.spec.kind() {
                let message = format!(
                    "'{spec}' starts another kind of plugin than '{}': delete the trigger and create it anew",
                    before.spec
                );
                return Err(RegistryError::Invalid { field: "trigger_specification", message });
            }
            def.spec = spec;
        }
        def.plugin_filename = change.plugin_filename.unwrap_or(def.plugin_filename);
        self.shelf.source(&def.plugin_filename).map_err(RegistryError::Plugin)?;
        let settings = change.settings.over(Settings::of(&before));
        settings.check_kind(def.spec.kind())?;
        settings.check()?;
        apply(&mut def, settings);
        def.arguments = change.arguments.unwrap_or(def.arguments);
        if let Some(disabled) = change.disabled
            && disabled != def.disabled
        {
            (def.disabled, def.disabled_reason) = (disabled, None);
        }
        let rescheduled = def.spec != before.spec || def.timing.time_zone != before.timing.time_zone;
        if rescheduled {
            check_schedule(&def)?;
        }
        if rescheduled || (before.disabled && !def.disabled) {
            def.timing.since_ns = wall_clock_ns();
        }
        self.check_path(&def)?;
        Ok((before, def))
    }

    fn update_trigger(&mut self, change: TriggerChange, trial: &Trial) -> Result<Changed, RegistryError> {
        let (before, def) = self.changed_trigger(change)?;
        let warnings = self.warnings(&def);
        if def != *before {
            self.change_trigger(before, def.clone())?;
        }
        Ok(self.changed(&def, warnings, trial))
    }

    /// Requests to one path are for one enabled trigger, whatever the methods; and no request has a path that is none.
    fn check_path(&self, def: &TriggerDef) -> Result<(), RegistryError> {
        let TriggerSpec::Request(path) = &def.spec else { return Ok(()) };
        let route = Route::parse(path).map_err(|why| RegistryError::Invalid {
            field: "trigger_specification",
            message: format!("'{}': {why}", def.spec),
        })?;
        if def.disabled {
            return Ok(());
        }
        match self.routes.clashing(&route).find(|other| other.def.id != def.id) {
            None => Ok(()),
            Some(other) => Err(RegistryError::PathTaken {
                path: path.clone(),
                trigger: other.def.name.to_string(),
                db: other.def.db.to_string(),
            }),
        }
    }

    /// What will go wrong with the plugin's code as it is. It may still be changed, so the trigger is taken, as in InfluxDB 3.
    fn warnings(&self, def: &TriggerDef) -> Warnings {
        let doubt = def.spec.doubt().map(|doubt| format!("trigger_specification: {doubt}"));
        doubt.into_iter().chain(self.code_warning(def)).collect()
    }

    fn code_warning(&self, def: &TriggerDef) -> Option<String> {
        let check = &self.checks.as_ref()?.source;
        let read = (self.shelf.source(&def.plugin_filename), self.shelf.as_it_is(&def.plugin_filename));
        // It was there a moment ago.
        let (Ok(counts), Ok(code)) = read else { return None };
        let (counts, code) = (counts.current(), code.current());
        let kind = def.spec.kind();
        let wrong = match check(&code.source, &def.plugin_filename) {
            Err(error) => error.message,
            Ok(names) if names.iter().any(|name| name == kind.entry() || name == "*") => {
                self.shelf.wrong_with(&def.plugin_filename, &code)?.message
            }
            Ok(_) => kind.entry_missing().to_owned(),
        };
        tracing::warn!(trigger = %def.name, db = %def.db, plugin = %def.plugin_filename, "{wrong}");
        let until = match code.hash == counts.hash {
            true => "runs will fail until the file is mended",
            false => "the last good version goes on until it is mended",
        };
        Some(format!("plugin_filename: '{}': {wrong}; {until}", def.plugin_filename))
    }

    fn delete_trigger(&mut self, db: &str, name: &str, force: bool) -> Result<(), RegistryError> {
        let def = self.trigger(db, name)?;
        if !def.disabled && !force {
            return Err(RegistryError::Running(name.to_owned()));
        }
        self.store.remove_trigger(def.id)?;
        let mut next = self.next();
        next.triggers.remove(&(def.db.clone(), def.name.clone()));
        self.publish(next);
        self.put_in_force(std::slice::from_ref(&def), &[]);
        if let Some(engine) = &self.engine {
            engine.end_state(def.id);
        }
        Ok(())
    }

    fn set_trigger_enabled(&mut self, db: &str, name: &str, enabled: bool) -> Result<(), RegistryError> {
        let def = self.trigger(db, name)?;
        if def.disabled != enabled {
            return Ok(());
        }
        let mut changed = TriggerDef { disabled: !enabled, disabled_reason: None, ..TriggerDef::clone(&def) };
        if enabled {
            changed.timing.since_ns = wall_clock_ns();
            self.check_path(&changed)?;
        }
        self.change_trigger(def, changed)
    }

    /// Disables a trigger that failed, unless its user was faster.
    fn disable_failed(&mut self, failed: &TriggerDef, reason: String) -> Result<(), RegistryError> {
        let def = self.trigger(&failed.db, &failed.name)?;
        if def.id != failed.id || def.disabled {
            return Ok(());
        }
        let changed = TriggerDef { disabled: true, disabled_reason: Some(reason), ..TriggerDef::clone(&def) };
        self.change_trigger(def, changed)
    }

    fn change_trigger(&mut self, before: Arc<TriggerDef>, changed: TriggerDef) -> Result<(), RegistryError> {
        self.store.put_trigger(&changed)?;
        let mut next = self.next();
        let changed = Arc::new(changed);
        next.triggers.insert((changed.db.clone(), changed.name.clone()), changed.clone());
        self.publish(next);
        self.put_in_force(&[before], &[changed]);
        Ok(())
    }

    fn trigger(&self, db: &str, name: &str) -> Result<Arc<TriggerDef>, RegistryError> {
        // Before there is an engine nothing can be put in force.
        self.engine()?;
        let known = self.catalog.load().trigger(db, name).cloned();
        match known {
            Some(def) => Ok(def),
            None if self.database_exists(db)? => Err(RegistryError::TriggerNotFound(name.to_owned())),
            None => Err(RegistryError::DatabaseNotFound(db.to_owned())),
        }
    }

    fn database_exists(&self, name: &str) -> Result<bool, RegistryError> {
        Ok(self.engine()?.has_database(name) || self.catalog.load().databases.contains_key(name))
    }

    fn engine(&self) -> Result<&dyn EngineControl, RegistryError> {
        self.engine.as_deref().ok_or(RegistryError::Unavailable("the server is starting"))
    }

    fn next(&self) -> Catalog {
        Catalog::clone(&self.catalog.load())
    }

    fn publish(&self, next: Catalog) {
        self.catalog.store(Arc::new(next));
        if let Some(engine) = &self.engine {
            engine.note_catalog(self.store.generation());
        }
    }

    /// Tells the engine what has changed: these were triggers, and those are. One whose file cannot be read fails its runs.
    fn put_in_force(&mut self, before: &[Arc<TriggerDef>], after: &[Arc<TriggerDef>]) {
        let Some(engine) = &self.engine else { return };
        let gone: Vec<Arc<Trigger>> =
            before.iter().filter_map(|def| self.in_force.remove(&def.id)).map(|known| known.trigger).collect();
        for trigger in &gone {
            if let Some(route) = route_of(&trigger.def) {
                self.routes.remove(&route, |other| other.def.id == trigger.def.id);
            }
        }
        // Many triggers may have one plugin, and a look at a file is a system call.
        let mut sources = HashMap::new();
        let mut come = Vec::new();
        for def in after.iter().filter(|def| !def.disabled) {
            let file = def.plugin_filename.as_str();
            let source = sources.entry(file).or_insert_with(|| self.shelf.source_or_failing(file)).clone();
            let trigger = Arc::new(Trigger { def: TriggerDef::clone(def), code: source.clone() });
            if let Some(route) = route_of(def) {
                self.routes.add(route, trigger.clone());
            }
            self.in_force.insert(def.id, InForce { source, trigger: trigger.clone() });
            come.push(trigger);
        }
        if !gone.is_empty() || !come.is_empty() || before.is_empty() {
            engine.change_triggers(TriggersChange { gone, come });
        }
    }
}

/// What requests a trigger answers, if it answers any.
fn route_of(def: &TriggerDef) -> Option<Route> {
    match &def.spec {
        TriggerSpec::Request(path) => Route::parse(path).ok(),
        _ => None,
    }
}

impl From<SettingError> for RegistryError {
    fn from(SettingError { field, message }: SettingError) -> Self {
        RegistryError::Invalid { field, message }
    }
}

fn check_trigger_name(name: &str) -> Result<(), RegistryError> {
    let message = match name.len() {
        0 => "must not be empty".to_owned(),
        bytes if bytes > TRIGGER_NAME_BYTES_MAX => {
            format!("has {bytes} bytes: at most {TRIGGER_NAME_BYTES_MAX} are allowed")
        }
        _ => match name.chars().find(|c| c.is_control()) {
            Some(c) => format!("has the control character U+{:04X}", u32::from(c)),
            None => return Ok(()),
        },
    };
    Err(RegistryError::Invalid { field: "trigger_name", message })
}

/// A schedule without times is a mistake: InfluxDB 3 takes it and never runs it.
fn check_schedule(def: &TriggerDef) -> Result<(), RegistryError> {
    let schedule = Schedule::new(&def.spec, def.timing.time_zone.as_deref());
    let schedule =
        schedule.map_err(|error| RegistryError::Invalid { field: "time_zone", message: error.to_string() })?;
    match schedule {
        Some(schedule) if schedule.next_after(wall_clock_ns()).is_none() => Err(RegistryError::Invalid {
            field: "trigger_specification",
            message: format!("'{}' names no time from now on: check day, month and year", def.spec),
        }),
        _ => Ok(()),
    }
}

/// Settings that are not given have their defaults.
fn apply(def: &mut TriggerDef, settings: Settings) {
    def.api = settings.api();
    let Settings { run_async, error_behavior, execution, isolation, limits, time_zone, missed_runs, .. } = settings;
    def.run_async = run_async.unwrap_or_default();
    def.error_behavior = error_behavior.unwrap_or_default();
    def.execution = execution.unwrap_or_default();
    def.isolation = isolation.unwrap_or_default();
    def.limits = limits;
    (def.timing.time_zone, def.timing.missed_runs) = (time_zone, missed_runs.unwrap_or_default());
}

fn wall_clock_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An engine that only remembers.
    #[derive(Clone, Default)]
    pub(crate) struct FakeEngine {
        pub(crate) databases: Arc<Mutex<Vec<Arc<str>>>>,
        pub(crate) in_force: Arc<Mutex<Vec<String>>>,
    }

    impl EngineControl for FakeEngine {
        fn has_database(&self, db: &str) -> bool {
            self.databases.lock().iter().any(|name| **name == *db)
        }
        fn drop_tables(&self, db: &str) -> Result<(), String> {
            self.databases.lock().retain(|name| &**name != db);
            Ok(())
        }
        fn change_triggers(&self, change: TriggersChange) {
            let mut in_force = self.in_force.lock();
            in_force.retain(|name| change.gone.iter().all(|gone| *gone.def.name != **name));
            in_force.extend(change.come.iter().map(|t| t.def.name.to_string()));
        }
        fn end_state(&self, _trigger: TriggerId) {}
        fn retain_states(&self, _triggers: &BTreeSet<TriggerId>) {}
    }

    pub(crate) fn new_trigger(name: &str) -> NewTrigger {
        NewTrigger {
            db: "db".into(),
            name: name.into(),
            plugin_filename: "p.py".into(),
            spec: TriggerSpec::Table("t".into()),
            settings: Settings { execution: Some(Execution::Inline), ..Settings::default() },
            arguments: Some([("k".to_owned(), "v".to_owned())].into()),
            disabled: false,
        }
    }

    pub(crate) fn open(dir: &Path) -> (Registry, FakeEngine) {
        let plugins = dir.join("plugins");
        std::fs::create_dir_all(&plugins).unwrap();
        std::fs::write(plugins.join("p.py"), "def process_writes(a, b, c): pass\n").unwrap();
        let registry = Registry::open(&mut DataDir::open(dir, false).unwrap(), Some(&plugins)).unwrap();
        let engine = FakeEngine::default();
        block_on(registry.connect(Box::new(engine.clone()), None)).unwrap();
        (registry, engine)
    }

    fn create(registry: &Registry, new: NewTrigger) -> Result<Changed, RegistryError> {
        block_on(registry.create_trigger(new, async {}))
    }

    #[test]
    fn databases_and_triggers_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, engine) = open(dir.path());
        let month = Some(Duration::from_secs(30 * 86400));
        block_on(registry.create_database("db", month)).unwrap();
        create(&registry, new_trigger("t1")).unwrap();
        create(&registry, NewTrigger { disabled: true, ..new_trigger("t2") }).unwrap();
        assert_eq!(*engine.in_force.lock(), ["t1"]);
        let before = registry.catalog();
        registry.stop();
        drop(registry);

        let (registry, engine) = open(dir.path());
        let after = registry.catalog();
        assert_eq!(before.instance, after.instance);
        assert_eq!(before.databases, after.databases);
        assert_eq!(after.databases.get("db").unwrap().retention, month);
        assert_eq!(before.triggers, after.triggers);
        assert_eq!(*engine.in_force.lock(), ["t1"]);
        registry.stop();
    }

    #[test]
    fn a_trigger_id_is_never_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, _engine) = open(dir.path());
        block_on(registry.create_database("db", None)).unwrap();
        let id = |name: &str| registry.catalog().trigger("db", name).unwrap().id;
        create(&registry, new_trigger("a")).unwrap();
        let first = id("a");
        block_on(registry.delete_trigger("db", "a", true)).unwrap();
        create(&registry, new_trigger("a")).unwrap();
        assert!(id("a") > first);
        registry.stop();
    }

    #[test]
    fn deleting_a_database_takes_its_tables_and_triggers() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, engine) = open(dir.path());
        engine.databases.lock().push("db".into());
        create(&registry, new_trigger("t1")).unwrap();
        block_on(registry.delete_database("db")).unwrap();
        assert!(engine.databases.lock().is_empty());
        assert!(engine.in_force.lock().is_empty());
        assert!(registry.catalog().triggers.is_empty());
        let again = block_on(registry.delete_database("db")).unwrap_err();
        assert_eq!(again.to_string(), "Database not found db");
        registry.stop();
    }

    #[test]
    fn an_enabled_trigger_is_deleted_only_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, engine) = open(dir.path());
        block_on(registry.create_database("db", None)).unwrap();
        create(&registry, new_trigger("t")).unwrap();
        let refused = block_on(registry.delete_trigger("db", "t", false)).unwrap_err();
        assert_eq!(refused.to_string(), "Cannot delete running plugin t. Disable it first or use --force.");
        block_on(registry.disable_trigger("db", "t")).unwrap();
        block_on(registry.disable_trigger("db", "t")).unwrap();
        assert!(engine.in_force.lock().is_empty());
        block_on(registry.delete_trigger("db", "t", false)).unwrap();
        registry.stop();
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, _engine) = open(dir.path());
        let text = |result: Result<(), RegistryError>| result.unwrap_err().to_string();
        let create = |new| create(&registry, new).map(drop);
        assert_eq!(text(create(new_trigger("t"))), "Database not found db");
        block_on(registry.create_database("db", None)).unwrap();
        assert_eq!(
            text(block_on(registry.create_database("db", None))),
            "attempted to create a resource that already exists: database 'db'"
        );
        assert_eq!(text(block_on(registry.create_database("_internal", None))), "cannot modify internal db");
        assert_eq!(
            text(block_on(registry.create_database("a b", None))),
            "invalid character in database or rp name: must be ASCII, containing only letters, numbers, \
             underscores, or hyphens"
        );
        let missing = NewTrigger { plugin_filename: "no.py".into(), ..new_trigger("t") };
        let error = text(create(missing));
        assert!(
            error.starts_with("plugin_filename: Plugin error: reading plugin file: Plugin not found: /"),
            "{error}"
        );
        assert_eq!(
            text(block_on(registry.enable_trigger("db", "no", async {})).map(drop)),
            "the requested resource was not found: no"
        );
        registry.stop();
    }

    #[test]
    fn a_stopped_registry_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, _engine) = open(dir.path());
        registry.stop();
        assert!(matches!(block_on(registry.create_database("db", None)), Err(RegistryError::Unavailable(_))));
    }
}
