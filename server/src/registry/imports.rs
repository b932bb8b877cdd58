//! What plugins import is tried before they run: with a change of a trigger, with a change of their files, and at the start.
//!
//! The trial is made elsewhere ([`ImportsCheck`]) and may take its time. A change of a trigger waits for it, outside of the catalog's
//! thread and not for long; what comes later is told to the engine by a command of its own, as what is found of new files is.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_channel::oneshot;
use saltus_core::ids::{MonoNs, RunId};
use saltus_core::policy::{Lane, Observation, Policy};
use saltus_core::ports::{
    CodeSource, ImportFailure, ImportTrouble, ImportsFound, LogLevel, LogLine, LogText, PluginCode, PluginError,
};
use saltus_core::trigger::{Execution, Isolation, TriggerDef};

use super::plugins::PluginSource;
use super::{Command, Keeper, Warnings};

/// Compiles a plugin, given its source and its file's name, without running it; the names that its top level binds, `*` for
/// those that cannot be known. Blocks.
pub type SourceCheck = Box<dyn Fn(&str, &str) -> Result<Vec<String>, PluginError> + Send>;

/// Is told what was found of a plugin's imports.
pub type Told = Box<dyn FnOnce(Arc<ImportsFound>) + Send>;

/// Has the imports of a version of a plugin tried. Never waits; false if it takes no more.
pub type ImportsCheck = Box<dyn Fn(&Arc<PluginCode>, Told) -> bool + Send>;

/// What Python finds out about plugins without running them, and what is said of it.
pub struct PluginChecks {
    /// Whether it compiles.
    pub source: SourceCheck,
    /// What of its imports loads.
    pub imports: ImportsCheck,
    /// Where packages are installed.
    pub virtual_env: Option<PathBuf>,
    /// The log of triggers.
    pub log: Box<dyn Fn(LogLine) + Send>,
}

/// What became of a change of a trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// What was found about the plugin although the change was made: each names the field and the remedy.
    pub warnings: Warnings,
    /// Where the next run is made.
    pub lane: Lane,
    /// Why there.
    pub lane_reason: String,
}

/// What is known of the imports of a plugin whose trigger is being changed.
pub(super) enum Trial {
    /// All of it.
    Found(Arc<ImportsFound>),
    /// It takes longer than anybody waits.
    Late,
    /// There is no Python, or too much to try.
    None,
}

impl Trial {
    /// What comes of a trial that was asked for, if it comes while `patience` lasts.
    pub(super) async fn within(
        asked: Option<oneshot::Receiver<Arc<ImportsFound>>>,
        patience: impl Future<Output = ()>,
    ) -> Trial {
        let Some(told) = asked else { return Trial::None };
        let found = async { told.await.map_or(Trial::None, Trial::Found) };
        let late = async {
            patience.await;
            Trial::Late
        };
        futures_lite::future::or(found, late).await
    }

    fn found(&self) -> Option<&ImportsFound> {
        match self {
            Trial::Found(found) => Some(found),
            Trial::Late | Trial::None => None,
        }
    }
}

impl Keeper {
    /// Has the imports of a plugin tried. What comes when nobody waits for it any more, the engine is told.
    pub(super) fn try_imports(&self, filename: &str) -> Option<oneshot::Receiver<Arc<ImportsFound>>> {
        let source = self.shelf.source(filename).ok()?;
        let (tell, told) = oneshot::channel();
        let (commands, of) = (self.commands.clone(), source.clone());
        let hash = source.current().hash;
        let taken = (self.checks.as_ref()?.imports)(
            &source.current(),
            Box::new(move |found| {
                if let Err(found) = tell.send(found) {
                    // The catalog's thread waits for nothing that this one does.
                    let _stopped = commands.send(Some(imports_found(of, hash, found)));
                }
            }),
        );
        taken.then_some(told)
    }

    /// The files of the plugin at this path are another version now.
    pub(super) fn plugin_changed(&mut self, path: &Path) {
        if let Some(source) = self.shelf.at(path) {
            self.untried.push_back(source);
            self.try_next();
        }
    }

    /// All plugins of triggers in force are to be tried.
    pub(super) fn try_all(&mut self) {
        let mut seen = std::collections::HashSet::new();
        let sources = self.in_force.values().map(|known| known.source.clone());
        self.untried = sources.filter(|source| seen.insert(Arc::as_ptr(source))).collect();
        self.try_next();
    }

    /// One after the other, so that whoever waits for an answer need not wait for all.
    fn try_next(&mut self) {
        let Some(checks) = &self.checks else { return };
        let Some(source) = self.untried.pop_front() else { return };
        let (commands, code) = (self.commands.clone(), source.current());
        let hash = code.hash;
        let taken = (checks.imports)(
            &code,
            Box::new(move |found| drop(commands.send(Some(imports_found(source, hash, found))))),
        );
        if !taken {
            tracing::warn!("imports of plugins are not tried, as too many wait for that: first runs find out");
        }
    }

    fn imports_found(&mut self, source: &Arc<PluginSource>, hash: u64, found: &ImportsFound) {
        let theirs: Vec<_> = self.in_force.values().filter(|known| Arc::ptr_eq(&known.source, source)).collect();
        if source.current().hash == hash {
            for known in &theirs {
                for text in self.import_warnings(&known.trigger.def, found) {
                    self.log(&known.trigger.def, text);
                }
            }
        }
        if let Some(engine) = self.engine.as_ref().filter(|_| !theirs.is_empty()) {
            engine.note_code(&theirs.iter().map(|known| known.trigger.def.id).collect::<Vec<_>>());
        }
        self.try_next();
    }

    fn log(&self, def: &TriggerDef, text: String) {
        let Some(checks) = &self.checks else { return };
        let (db, trigger, text) = (def.db.clone(), def.name.clone(), LogText::Said(text));
        (checks.log)(LogLine { db, trigger, run_id: RunId(0), level: LogLevel::Warn, text });
    }

    /// What to say of a change that was made.
    pub(super) fn changed(&self, def: &TriggerDef, mut warnings: Warnings, trial: &Trial) -> Changed {
        let found = trial.found();
        warnings.extend(found.into_iter().flat_map(|found| self.import_warnings(def, found)));
        let (lane, mut lane_reason) = self.lane_of(def, found);
        match (trial, found.and_then(|found| found.untried.as_ref())) {
            _ if lane == Lane::Process => {}
            (Trial::Late, _) => lane_reason.push_str(
                "; what it imports is still being tried: if it does not load there, the lane is found by the first run at the latest",
            ),
            (_, Some(why)) => lane_reason
                .push_str(&format!("; what it imports could not be tried, and the lane is found by the first run: {why}")),
            (Trial::Found(_) | Trial::None, None) => {}
        }
        Changed { warnings, lane, lane_reason }
    }

    /// The lane of the next run, and why.
    fn lane_of(&self, def: &TriggerDef, found: Option<&ImportsFound>) -> (Lane, String) {
        let in_force = self.engine.as_ref().filter(|_| !def.disabled);
        if let Some(lane) = in_force.and_then(|engine| {
            engine.note_code(&[def.id]);
            engine.lane_of(def.id)
        }) {
            return lane;
        }
        // As its shard will see it.
        let mut policy = Policy::new(def.execution, def.isolation, Duration::ZERO, MonoNs(0));
        if let Some(found) = found {
            let refused = found.refused.clone().map(Observation::ImportRefused);
            for observation in refused.into_iter().chain([Observation::Checked(found.inline.clone())]) {
                policy.observe(observation, MonoNs(0));
            }
        }
        (policy.lane(), policy.account())
    }

    /// What of a plugin's imports will fail, and what to do about it.
    fn import_warnings(&self, def: &TriggerDef, found: &ImportsFound) -> Warnings {
        let file = &def.plugin_filename;
        let stays = match (def.isolation, def.execution) {
            (Isolation::Process, _) => None,
            (Isolation::Interpreter, _) => Some("isolation=interpreter"),
            (Isolation::Auto, Execution::Inline) => Some("execution=inline"),
            (Isolation::Auto, _) => None,
        };
        let mut warnings = Warnings::new();
        if let (Some(module), Some(stays)) = (&found.refused, stays) {
            warnings.push(format!("plugin_filename: '{file}': module {module} does not load in an interpreter with a GIL of its own, and {stays} keeps the trigger out of the process lane, where it loads: let the plugin do without it, or set isolation to auto or process, and execution to auto or deferred"));
        }
        let in_process = def.isolation == Isolation::Process || (found.refused.is_some() && stays.is_none());
        for ImportTrouble { module, what, caught } in &found.troubles {
            let caught = if *caught { " (the plugin catches that)" } else { "" };
            let text = match what {
                ImportFailure::Missing(missing) => {
                    let needed = if top_of(missing) == top_of(module) {
                        String::new()
                    } else {
                        format!(", which {module} needs,")
                    };
                    format!("module {missing}{needed} is not installed{caught}: {}", self.how_to_install(missing))
                }
                // Elsewhere it may not.
                ImportFailure::Raises(_) if in_process => continue,
                ImportFailure::Raises(error) => format!("the import of {module} fails{caught}: {error}"),
            };
            warnings.push(format!("plugin_filename: '{file}': {text}"));
        }
        for text in &warnings {
            tracing::warn!(trigger = %def.name, db = %def.db, "{text}");
        }
        warnings
    }

    fn how_to_install(&self, module: &str) -> String {
        let top = top_of(module);
        match self.checks.as_ref().and_then(|checks| checks.virtual_env.as_deref()) {
            Some(venv) => format!(
                "install a package that has it into the server's virtual environment, for instance with: {} install {top}",
                venv.join("bin/pip").display()
            ),
            None => format!(
                "make a virtual environment for the server, install a package that has it there (pip install {top}), and start the server with --virtual-env-location"
            ),
        }
    }
}

fn top_of(module: &str) -> &str {
    module.split_once('.').map_or(module, |(top, _)| top)
}

fn imports_found(source: Arc<PluginSource>, hash: u64, found: Arc<ImportsFound>) -> Command {
    Box::new(move |keeper| keeper.imports_found(&source, hash, &found))
}

/// A command for the catalog's thread: a plugin's files have changed.
pub(super) fn plugin_changed(path: PathBuf) -> Command {
    Box::new(move |keeper| keeper.plugin_changed(&path))
}
