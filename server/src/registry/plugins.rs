//! Plugin files: found, read, watched and written, never outside the plugin directory.
//!
//! A [`PluginSource`] is one file or directory, shared by all triggers that name it. `current()` is a load of a pointer: the
//! version that counts, a snapshot of all its files.
//!
//! # How a new version comes to count
//! The thread `saltus-plugins` looks at all sources every `PLUGIN_LOOK_MS`: it compares modification times and lengths, and reads when
//! they changed. (A file whose last change is younger than `RACY` is read anyway: its next change could leave the same time stamp.) What
//! it has read counts when
//!
//! 1. nothing has changed for `PLUGIN_QUIET_MS`: files come one after the other, and editors write in pieces. A file that is a plugin
//!    need not wait if it has the entry functions that it had: runs look at it themselves, so the next one has the new code;
//! 2. the check ([`VersionCheck`]) finds nothing wrong with it: it compiles, and imports of its own modules lead somewhere.
//!
//! Until then the version before goes on; if one is refused, that is said once. A file that cannot be read any more keeps its last
//! good text. What comes by the API counts at once if it is whole: a file that is a plugin, or a folder that is sent in one piece.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use saltus_core::limits::{
    PLUGIN_BYTES_MAX, PLUGIN_FILE_RACY_MS, PLUGIN_FILES_MAX, PLUGIN_LOOK_AGAIN_MS, PLUGIN_LOOK_MS, PLUGIN_QUIET_MS,
};
use saltus_core::ports::{CodeSource, PluginCode, PluginError, PluginFolder};
use saltus_core::text::without_mark;
use saltus_core::trigger::TriggerKind;

/// A change younger than this may be followed by another one with the same time stamp.
const RACY: Duration = Duration::from_millis(PLUGIN_FILE_RACY_MS);
/// Between two looks at all files there is this many times what one takes: thousands of them are looked at less often.
const LOOK_PAUSE_MIN: u32 = 20;
/// What makes a directory a plugin.
const INIT: &str = "__init__.py";

/// Why a plugin could not be found, read or written (texts of the reference, 1.8 and 3.8).
#[derive(Debug, thiserror::Error)]
pub enum PluginFileError {
    /// The server runs without `--plugin-dir`.
    #[error(
        "Node not configured with plugin directory: start the server with --plugin-dir (No plugin directory configured)"
    )]
    NoDirectory,
    /// The name leads outside.
    #[error("Path traversal detected: plugin filename '{0}' attempts to access files outside the plugin directory")]
    Traversal(String),
    /// Nothing there.
    #[error("Plugin not found: {}", .0.display())]
    NotFound(PathBuf),
    /// A directory that is no package.
    #[error("Multi-file plugin directory must contain __init__.py: {}", .0.display())]
    NoInit(PathBuf),
    /// Python would refuse it.
    #[error("plugin code contains null bytes: {}", .0.display())]
    NullBytes(PathBuf),
    /// Not UTF-8.
    #[error("plugin code is not UTF-8 text: {}", .0.display())]
    NotText(PathBuf),
    /// Beyond the bounds of one plugin.
    #[error("plugin is too large: {} (at most {PLUGIN_FILES_MAX} files and {PLUGIN_BYTES_MAX} bytes)", .0.display())]
    TooLarge(PathBuf),
    /// `gh:` and other sources that are fetched.
    #[error("'{0}' is to be fetched, which this version does not do: put the file into the plugin directory")]
    Fetched(String),
    /// No file can have that name.
    #[error("this cannot be the name of a plugin's file: {:?}: {error}", .path)]
    NoName {
        /// What would be its path.
        path: PathBuf,
        /// What the file system said.
        error: io::Error,
    },
    /// The file system said no.
    #[error("{}: {error}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

impl PluginFileError {
    /// Who is to blame: a name that no file can have is the user's, everything else is not.
    fn io(path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => PluginFileError::NotFound(path.to_owned()),
            io::ErrorKind::InvalidData => PluginFileError::NotText(path.to_owned()),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename | io::ErrorKind::NotADirectory => {
                PluginFileError::NoName { path: path.to_owned(), error }
            }
            _ => PluginFileError::Io { path: path.to_owned(), error },
        }
    }
}

/// Says what is wrong with a version of the plugin that lies there, without running it, given the one that counts. Blocks.
pub type VersionCheck = Box<dyn Fn(&Path, &PluginCode, Option<&PluginCode>) -> Result<(), PluginError> + Send + Sync>;

/// Is told that another version of the plugin that lies there counts. Never waits.
pub type ChangeNote = Box<dyn Fn(&Path) + Send + Sync>;

/// Who is asked and told about versions, once there is somebody.
#[derive(Default)]
struct Hooks {
    check: OnceLock<VersionCheck>,
    changed: OnceLock<ChangeNote>,
}

/// The plugin directory and every source of it that a trigger holds.
pub struct PluginShelf {
    root: Option<PathBuf>,
    sources: Mutex<HashMap<PathBuf, Weak<PluginSource>>>,
    hooks: Arc<Hooks>,
}

impl PluginShelf {
    /// A shelf over `root`, which is made if it is missing; without one, every plugin is refused.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(root: Option<&Path>) -> Result<Self, PluginFileError> {
        let root = match root {
            Some(root) => {
                fs::create_dir_all(root).map_err(|error| PluginFileError::Io { path: root.to_owned(), error })?;
                Some(root.canonicalize().map_err(|error| PluginFileError::io(root, error))?)
            }
            None => None,
        };
        Ok(PluginShelf { root, sources: Mutex::default(), hooks: Arc::default() })
    }

    /// From now on new versions are checked before they count.
    pub fn check_with(&self, check: VersionCheck) {
        // A second runtime in one process does not exist.
        let _first = self.hooks.check.set(check);
    }

    /// From now on changes are told.
    pub fn note_changes_with(&self, changed: ChangeNote) {
        let _first = self.hooks.changed.set(changed);
    }

    /// The source at a path that a [`ChangeNote`] was told, if a trigger has it.
    pub fn at(&self, path: &Path) -> Option<Arc<PluginSource>> {
        self.sources.lock().get(path).and_then(Weak::upgrade)
    }

    /// What is wrong with the version of a plugin that counts, as far as that can be known without running it.
    pub fn wrong_with(&self, filename: &str, code: &PluginCode) -> Option<PluginError> {
        let path = self.root.as_deref()?.join(filename.trim_end_matches('/'));
        self.hooks.check.get()?(&path, code, None).err()
    }

    /// The source that a trigger names. If nobody has it yet, it is read now.
    ///
    /// # Errors
    /// The name leads outside, or there is nothing that can be read.
    pub fn source(&self, filename: &str) -> Result<Arc<PluginSource>, PluginFileError> {
        let path = self.resolve(filename)?;
        let known = self.sources.lock().get(&path).and_then(Weak::upgrade);
        if let Some(known) = known {
            stamps(&known.path)?;
            // It may be one that could not be read so far.
            known.look(self.hooks.check.get(), Settle::WhenQuiet);
            return Ok(known);
        }
        let source = Arc::new(PluginSource::open(path, self.hooks.clone())?);
        Ok(self.shelve(source))
    }

    /// The files that a name stands for as they are now, whatever version counts for triggers.
    ///
    /// # Errors
    /// As for [`PluginShelf::source`].
    pub fn as_it_is(&self, filename: &str) -> Result<Arc<PluginSource>, PluginFileError> {
        let path = self.resolve(filename)?;
        PluginSource::open(path, self.hooks.clone()).map(Arc::new)
    }

    /// The `manifest.toml` of a directory plugin, if it has one: its path and its text.
    ///
    /// # Errors
    /// The name leads outside, or the file cannot be read.
    pub fn manifest(&self, filename: &str) -> Result<Option<(PathBuf, String)>, PluginFileError> {
        let path = self.resolve(filename)?.join("manifest.toml");
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(|error| PluginFileError::io(&path, error))?;
        Ok(Some((path, without_mark(&text).to_owned())))
    }

    /// Like [`PluginShelf::source`] for a trigger that is in the catalog already: if the file cannot be read, it has the last
    /// good text, if another trigger does, or its runs fail with the reason until it can be read.
    pub fn source_or_failing(&self, filename: &str) -> Arc<PluginSource> {
        self.source(filename).unwrap_or_else(|error| {
            let name = filename.trim_end_matches('/');
            let safe = check_relative(name).is_ok() && !matches!(error, PluginFileError::Traversal(_));
            let path =
                self.root.as_ref().filter(|_| safe).map(|root| root.join(name).components().collect::<PathBuf>());
            let known = path.as_ref().and_then(|path| self.sources.lock().get(path).and_then(Weak::upgrade));
            if let Some(known) = known {
                return known;
            }
            self.shelve(Arc::new(PluginSource::failing(
                path.unwrap_or_default(),
                &error.to_string(),
                self.hooks.clone(),
            )))
        })
    }

    /// Looks at all files; whether some are being changed.
    pub fn look(&self) -> bool {
        let live: Vec<Arc<PluginSource>> = {
            let mut sources = self.sources.lock();
            sources.retain(|_, source| source.strong_count() > 0);
            sources.values().filter_map(Weak::upgrade).collect()
        };
        let mut changing = false;
        for source in live {
            changing |= source.look(self.hooks.check.get(), Settle::WhenQuiet);
        }
        changing
    }

    /// Writes a file under the plugin directory; whoever reads it meanwhile sees the old or the new text.
    ///
    /// # Errors
    /// The name leads outside, the text is no Python text, or the file system refused.
    pub fn write(&self, filename: &str, content: &str) -> Result<(), PluginFileError> {
        self.write_all(&[(filename.to_owned(), content.to_owned())])?;
        let root = self.root.as_deref().ok_or(PluginFileError::NoDirectory)?;
        self.settle(&root.join(filename).components().collect::<PathBuf>());
        Ok(())
    }

    /// Writes files of one folder; it counts with all of them at once.
    ///
    /// # Errors
    /// As for [`PluginShelf::write`]; nothing is changed then, unless the file system refused to rename.
    pub fn write_folder(&self, folder: &str, files: &[(String, String)]) -> Result<(), PluginFileError> {
        let root = self.root.as_deref().ok_or(PluginFileError::NoDirectory)?;
        let folder = folder.trim_end_matches('/');
        check_relative(folder)?;
        let path: PathBuf = root.join(folder).components().collect();
        let known = self.sources.lock().get(&path).and_then(Weak::upgrade);
        // Nobody looks meanwhile.
        let seen = known.as_ref().map(|known| known.seen.lock());
        for (name, _) in files {
            check_relative(name)?;
        }
        let named: Vec<_> = files.iter().map(|(name, text)| (format!("{folder}/{name}"), text.clone())).collect();
        let written = self.write_all(&named);
        drop(seen);
        written?;
        self.settle(&path);
        Ok(())
    }

    /// Each is written beside its place first, so that a full disk changes none.
    fn write_all(&self, files: &[(String, String)]) -> Result<(), PluginFileError> {
        let root = self.root.as_deref().ok_or(PluginFileError::NoDirectory)?;
        let mut ready: Vec<(PathBuf, PathBuf)> = Vec::with_capacity(files.len());
        let mut write = || {
            for (filename, content) in files {
                let content = content.strip_prefix('\u{feff}').unwrap_or(content);
                check_relative(filename)?;
                let path = root.join(filename);
                if content.contains('\0') {
                    return Err(PluginFileError::NullBytes(path));
                }
                let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                    return Err(PluginFileError::NotFound(path));
                };
                check_inside(root, parent, filename)?;
                fs::create_dir_all(parent).map_err(|error| PluginFileError::io(parent, error))?;
                let scratch = parent.join(format!(".{}.saltus-upload", name.to_string_lossy()));
                ready.push((scratch.clone(), path.clone()));
                fs::write(&scratch, content).map_err(|error| PluginFileError::io(&path, error))?;
            }
            Ok(())
        };
        let mut put = write();
        for (scratch, path) in &ready {
            if put.is_ok() {
                put = fs::rename(scratch, path).map_err(|error| PluginFileError::io(path, error));
            }
            if put.is_err() {
                let _ = fs::remove_file(scratch);
            }
        }
        put
    }

    /// What lies there was written as a whole: it need not wait for quiet.
    fn settle(&self, path: &Path) {
        let known = self.sources.lock().get(path).and_then(Weak::upgrade);
        if let Some(known) = known {
            known.look(self.hooks.check.get(), Settle::Now);
        }
    }

    /// Writes the file that a trigger names: the file itself, or a directory's `__init__.py`.
    ///
    /// # Errors
    /// As [`PluginShelf::write`], or the plugin is not there.
    pub fn write_plugin(&self, filename: &str, content: &str) -> Result<(), PluginFileError> {
        let name = filename.trim_end_matches('/');
        match self.resolve(filename)?.is_dir() {
            true => self.write(&format!("{name}/{INIT}"), content),
            false => self.write(name, content),
        }
    }

    /// Starts the thread that looks at all files until the returned handle is dropped.
    ///
    /// # Errors
    /// What the system said about a new thread.
    pub fn watch(self: &Arc<Self>) -> io::Result<PluginWatcher> {
        let stop = Arc::new(AtomicBool::new(false));
        let (shelf, asked) = (self.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("saltus-plugins".into()).spawn(move || {
            // Looking at files can wait; a shard on the same core cannot.
            let _ = rustix::process::nice(19);
            let mut pause = Duration::from_millis(PLUGIN_LOOK_MS);
            while !asked.load(Ordering::Acquire) {
                std::thread::park_timeout(pause);
                let began = Instant::now();
                let again = if shelf.look() { PLUGIN_LOOK_AGAIN_MS } else { PLUGIN_LOOK_MS };
                pause = Duration::from_millis(again).max(began.elapsed() * LOOK_PAUSE_MIN);
            }
        })?;
        Ok(PluginWatcher { stop, thread: Some(thread) })
    }

    fn shelve(&self, source: Arc<PluginSource>) -> Arc<PluginSource> {
        self.sources.lock().insert(source.path.clone(), Arc::downgrade(&source));
        source
    }

    /// The path of a plugin, checked to be inside.
    fn resolve(&self, filename: &str) -> Result<PathBuf, PluginFileError> {
        if filename.starts_with("gh:") || filename.starts_with("git+") {
            return Err(PluginFileError::Fetched(filename.to_owned()));
        }
        let root = self.root.as_deref().ok_or(PluginFileError::NoDirectory)?;
        let name = filename.trim_end_matches('/');
        check_relative(name).map_err(|_| PluginFileError::Traversal(filename.to_owned()))?;
        let path = root.join(name);
        let real = path.canonicalize().map_err(|error| PluginFileError::io(&path, error))?;
        if !real.starts_with(root) || real == root {
            return Err(PluginFileError::Traversal(filename.to_owned()));
        }
        if real.is_dir() && !real.join(INIT).is_file() {
            return Err(PluginFileError::NoInit(real));
        }
        // As it is named: a link may lead elsewhere tomorrow.
        Ok(path.components().collect())
    }
}

/// The watcher's thread; dropping it ends it.
pub struct PluginWatcher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for PluginWatcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Only plain names, downwards.
fn check_relative(filename: &str) -> Result<(), PluginFileError> {
    let plain = Path::new(filename).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if plain && !filename.trim_matches(['/', '.']).is_empty() && !filename.contains('\\') {
        return Ok(());
    }
    Err(PluginFileError::Traversal(filename.to_owned()))
}

/// The deepest part of `path` that exists must be inside `root`: no link leads out of it.
fn check_inside(root: &Path, path: &Path, filename: &str) -> Result<(), PluginFileError> {
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(root);
    let real = existing.canonicalize().map_err(|error| PluginFileError::io(existing, error))?;
    if real.starts_with(root) { Ok(()) } else { Err(PluginFileError::Traversal(filename.to_owned())) }
}

/// What tells that a file changed without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    modified: SystemTime,
    /// When the file, its name or its time stamps were changed, which nobody can set: seconds and nanoseconds.
    changed: (i64, i64),
    inode: u64,
    length: u64,
}

impl Stamp {
    fn of(path: &Path, meta: &fs::Metadata) -> io::Result<Self> {
        let changed = (meta.ctime(), meta.ctime_nsec());
        Ok(Stamp { path: path.to_owned(), modified: meta.modified()?, changed, inode: meta.ino(), length: meta.len() })
    }

    /// Whether it was changed so long before an instant that its next change cannot have the same stamp.
    fn is_older_than(&self, at: SystemTime) -> bool {
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(self.changed.0).unwrap_or_default());
        let age = |time: SystemTime| at.duration_since(time).is_ok_and(|age| age >= RACY);
        age(self.modified) && age(changed)
    }
}

/// What was looked at, and when.
#[derive(Default)]
struct Seen {
    stamps: Vec<Stamp>,
    read_at: Option<SystemTime>,
    /// Another version is there, and does not count yet.
    coming: Option<Coming>,
    /// The version that was refused last.
    refused: Option<u64>,
    /// Whether the version that counts was found to be wrong, by its hash.
    judged: Option<(u64, bool)>,
    /// It cannot be read.
    trouble: Option<Trouble>,
}

/// Why a plugin cannot be read.
struct Trouble {
    error: String,
    since: Instant,
    said: bool,
}

/// A version that does not count yet.
struct Coming {
    hash: u64,
    /// Nothing has changed since.
    since: Instant,
    /// What was found, once it was checked.
    wrong: Option<Option<PluginError>>,
}

impl Coming {
    fn new(code: &PluginCode) -> Self {
        Coming { hash: code.hash, since: Instant::now(), wrong: None }
    }
}

/// When a new version counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settle {
    /// It was written as a whole.
    Now,
    /// Others may be writing it.
    WhenQuiet,
}

impl Seen {
    /// Whether the files are certainly what was read.
    fn covers(&self, stamps: &[Stamp]) -> bool {
        let Some(read_at) = self.read_at else { return false };
        self.stamps == stamps && stamps.iter().all(|stamp| stamp.is_older_than(read_at))
    }
}

/// One plugin: a file, or a directory with `__init__.py`.
pub struct PluginSource {
    path: PathBuf,
    code: ArcSwap<PluginCode>,
    /// There was never anything to run: whatever comes counts at once.
    failing: AtomicBool,
    seen: Mutex<Seen>,
    /// The shelf's.
    hooks: Arc<Hooks>,
}

impl PluginSource {
    fn open(path: PathBuf, hooks: Arc<Hooks>) -> Result<Self, PluginFileError> {
        let read_at = SystemTime::now();
        let stamps = stamps(&path)?;
        let code = ArcSwap::from_pointee(read_code(&path, &stamps)?);
        let seen = Seen { stamps, read_at: Some(read_at), ..Seen::default() };
        Ok(PluginSource { path, code, failing: AtomicBool::new(false), seen: Mutex::new(seen), hooks })
    }

    /// A source whose code raises `reason`, until the file is there.
    fn failing(path: PathBuf, reason: &str, hooks: Arc<Hooks>) -> Self {
        // A JSON string is a Python string literal.
        let source = format!("raise FileNotFoundError({})\n", serde_json::Value::from(reason));
        let hash = hash_of([("", source.as_bytes())]);
        let code = PluginCode { source: source.into(), hash, directory: None };
        let (code, seen) = (ArcSwap::from_pointee(code), Mutex::default());
        PluginSource { path, code, failing: AtomicBool::new(true), seen, hooks }
    }

    /// Reads again what changed; whether another version is there that does not count yet.
    fn look(&self, check: Option<&VersionCheck>, settle: Settle) -> bool {
        let mut seen = self.seen.lock();
        match self.look_into(&mut seen, check, settle) {
            Ok(changing) => {
                seen.trouble = None;
                changing
            }
            Err(error) => self.in_trouble(&mut seen, error.to_string()),
        }
    }

    /// It cannot be read now; whether somebody may be writing it.
    fn in_trouble(&self, seen: &mut Seen, error: String) -> bool {
        (seen.read_at, seen.coming) = (None, None);
        let known = seen.trouble.as_ref().filter(|trouble| trouble.error == error);
        let (since, said) = known.map_or((Instant::now(), false), |trouble| (trouble.since, trouble.said));
        let lasts = since.elapsed() >= Duration::from_millis(PLUGIN_QUIET_MS);
        if lasts && !said {
            tracing::error!(plugin = %self.path.display(), error, "plugin cannot be read: its last version goes on");
        }
        seen.trouble = Some(Trouble { error, since, said: lasts });
        !lasts
    }

    fn look_into(
        &self,
        seen: &mut Seen,
        check: Option<&VersionCheck>,
        settle: Settle,
    ) -> Result<bool, PluginFileError> {
        let read_at = SystemTime::now();
        let stamps = stamps(&self.path)?;
        if seen.coming.is_none() && seen.covers(&stamps) {
            return Ok(false);
        }
        let code = read_code(&self.path, &stamps)?;
        let now = self.code.load_full();
        (seen.stamps, seen.read_at) = (stamps, Some(read_at));
        if code.hash == now.hash || seen.refused == Some(code.hash) {
            seen.coming = None;
            return Ok(false);
        }
        let is_coming = seen.coming.as_ref().is_some_and(|coming| coming.hash == code.hash);
        let mut coming = seen.coming.take().filter(|_| is_coming).unwrap_or_else(|| Coming::new(&code));
        let quiet = coming.since.elapsed() >= Duration::from_millis(PLUGIN_QUIET_MS);
        let at_once = settle == Settle::Now || self.is_wrong(seen, check, &now) || is_whole_file(&now, &code);
        if !quiet && !at_once {
            seen.coming = Some(coming);
            return Ok(true);
        }
        let before = (!self.is_wrong(seen, check, &now)).then_some(&*now);
        let verdict = || check.zip(before).and_then(|(check, before)| check(&self.path, &code, Some(before)).err());
        let wrong = coming.wrong.get_or_insert_with(verdict).clone();
        if let Some(error) = wrong {
            if !quiet && settle == Settle::WhenQuiet {
                // Somebody may be writing it.
                seen.coming = Some(coming);
                return Ok(true);
            }
            tracing::error!(plugin = %self.path.display(), error = %error.message, "plugin changed, and cannot be run as it is now: its last version goes on until it is mended");
            seen.refused = Some(code.hash);
            return Ok(false);
        }
        seen.refused = None;
        tracing::info!(plugin = %self.path.display(), "plugin changed: the next run uses the new version");
        self.code.store(Arc::new(code));
        self.failing.store(false, Ordering::Release);
        if let Some(changed) = self.hooks.changed.get() {
            changed(&self.path);
        }
        Ok(false)
    }

    /// Whether the version that counts cannot be run anyway: then there is nothing to keep.
    fn is_wrong(&self, seen: &mut Seen, check: Option<&VersionCheck>, now: &PluginCode) -> bool {
        if self.failing.load(Ordering::Acquire) {
            return true;
        }
        match seen.judged {
            Some((hash, wrong)) if hash == now.hash => wrong,
            _ => {
                // Of a folder, files that were never modules do not count.
                let before = now.directory.is_some().then_some(now);
                let wrong = check.is_some_and(|check| check(&self.path, now, before).is_err());
                seen.judged = Some((now.hash, wrong));
                wrong
            }
        }
    }
}

/// Whether a version is a file that has, as far as its text tells, every entry function that the one before has: a part of it would have
/// lost the last.
fn is_whole_file(before: &PluginCode, code: &PluginCode) -> bool {
    let has = |code: &PluginCode, kind: &TriggerKind| code.source.contains(kind.entry());
    let lost = |kind: &TriggerKind| has(before, kind) && !has(code, kind);
    code.directory.is_none() && !TriggerKind::ALL.iter().any(lost)
}

impl CodeSource for PluginSource {
    fn current(&self) -> Arc<PluginCode> {
        self.code.load_full()
    }

    /// A file that was changed counts in the next run, as in InfluxDB 3. Folders are looked at by the watcher alone.
    fn refresh(&self) -> Arc<PluginCode> {
        let now = self.code.load_full();
        if now.directory.is_some() {
            return now;
        }
        self.look(self.hooks.check.get(), Settle::WhenQuiet);
        self.code.load_full()
    }

    fn file(&self) -> Option<&Path> {
        self.code.load().directory.is_none().then_some(&*self.path)
    }
}

/// The files of a plugin with their stamps, sorted by path.
fn stamps(path: &Path) -> Result<Vec<Stamp>, PluginFileError> {
    let mut found = Vec::new();
    collect_stamps(path, true, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    let bytes: u64 = found.iter().map(|s| s.length).sum();
    if found.len() > PLUGIN_FILES_MAX || bytes > PLUGIN_BYTES_MAX {
        return Err(PluginFileError::TooLarge(path.to_owned()));
    }
    Ok(found)
}

fn collect_stamps(path: &Path, named: bool, found: &mut Vec<Stamp>) -> Result<(), PluginFileError> {
    let meta = fs::metadata(path).map_err(|error| PluginFileError::io(path, error))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path).map_err(|error| PluginFileError::io(path, error))? {
            let entry = entry.map_err(|error| PluginFileError::io(path, error))?;
            let name = entry.file_name();
            let hidden = name.to_string_lossy().starts_with('.') || name == "__pycache__";
            // Links are not followed downwards: they could lead outside or in circles.
            let link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if !hidden && !link && found.len() <= PLUGIN_FILES_MAX {
                collect_stamps(&entry.path(), false, found)?;
            }
        }
    } else if named || path.extension().is_some_and(|extension| extension == "py") {
        found.push(Stamp::of(path, &meta).map_err(|error| PluginFileError::io(path, error))?);
    }
    Ok(())
}

fn read_code(path: &Path, stamps: &[Stamp]) -> Result<PluginCode, PluginFileError> {
    let files: Vec<(String, String)> = stamps.iter().map(|s| read_file(path, &s.path)).collect::<Result<_, _>>()?;
    if !path.is_dir() {
        let hash = hash_of(files.iter().map(|(name, text)| (name.as_str(), text.as_bytes())));
        let source = files.into_iter().next().map(|(_, text)| text);
        let source = source.ok_or_else(|| PluginFileError::NotFound(path.to_owned()))?;
        return Ok(PluginCode { source: source.into(), hash, directory: None });
    }
    let source = files.iter().find(|(name, _)| name == INIT).map(|(_, text)| text.as_str().into());
    let source = source.ok_or_else(|| PluginFileError::NoInit(path.to_owned()))?;
    // Two folders are two plugins, with modules of their own, also if one is a copy of the other.
    let place = path.to_string_lossy();
    let all = files.iter().map(|(name, text)| (name.as_str(), text.as_bytes()));
    let hash = hash_of(std::iter::once((&*place, &[][..])).chain(all));
    let folder = PluginFolder { path: path.to_owned(), files };
    Ok(PluginCode { source, hash, directory: Some(Arc::new(folder)) })
}

/// A file's name relative to the plugin (empty for a single file), and its text.
fn read_file(plugin: &Path, path: &Path) -> Result<(String, String), PluginFileError> {
    let mut text = fs::read_to_string(path).map_err(|error| PluginFileError::io(path, error))?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    if text.contains('\0') {
        return Err(PluginFileError::NullBytes(path.to_owned()));
    }
    let name = path.strip_prefix(plugin).unwrap_or(path).to_string_lossy().into_owned();
    Ok((name, text))
}

/// The hash of named texts; the same in every run of one build.
fn hash_of<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (name, text) in files {
        for part in [name.as_bytes(), text] {
            hasher.write_usize(part.len());
            hasher.write(part);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf() -> (tempfile::TempDir, Arc<PluginShelf>) {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Arc::new(PluginShelf::open(Some(dir.path())).unwrap());
        (dir, shelf)
    }

    /// Looks as the watcher does, until the version that counts is right.
    fn until(shelf: &PluginShelf, source: &PluginSource, right: impl Fn(&PluginCode) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !right(&source.current()) {
            assert!(Instant::now() < end, "it never counts");
            shelf.look();
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn an_edit_of_the_same_length_right_away_is_seen() {
        let (dir, shelf) = shelf();
        fs::write(dir.path().join("p.py"), "x = 1\n").unwrap();
        let source = shelf.source("p.py").unwrap();
        let before = source.current();
        assert_eq!(&*before.source, "x = 1\n");
        fs::write(dir.path().join("p.py"), "x = 2\n").unwrap();
        until(&shelf, &source, |code| &*code.source == "x = 2\n");
        assert_ne!(before.hash, source.current().hash);
    }

    #[test]
    fn an_unreadable_file_keeps_its_last_good_text() {
        let (dir, shelf) = shelf();
        fs::write(dir.path().join("p.py"), "x = 1\n").unwrap();
        let source = shelf.source("p.py").unwrap();
        fs::remove_file(dir.path().join("p.py")).unwrap();
        shelf.look();
        assert_eq!(&*source.current().source, "x = 1\n");
        fs::write(dir.path().join("p.py"), b"x = '\xff'\n").unwrap();
        shelf.look();
        assert_eq!(&*source.current().source, "x = 1\n");
        fs::write(dir.path().join("p.py"), "\u{feff}x = 3\n").unwrap();
        until(&shelf, &source, |code| &*code.source == "x = 3\n");
    }

    /// Files come one by one: only what is there when nothing has changed for a while, and is not found to be wrong, counts.
    #[test]
    fn a_version_counts_as_a_whole_or_not_at_all() {
        let (dir, shelf) = shelf();
        let plugin = dir.path().join("pkg");
        fs::create_dir(&plugin).unwrap();
        let write = |version: &str, name: &str| fs::write(plugin.join(name), format!("x = '{version}'\n")).unwrap();
        let names = [INIT, "a.py", "b.py"];
        names.iter().for_each(|name| write("old", name));
        let source = shelf.source("pkg").unwrap();
        let versions = |code: &PluginCode| -> Vec<String> {
            let files = &code.directory.as_ref().unwrap().files;
            files.iter().map(|(_, text)| text.trim_start_matches("x = '").trim_end_matches("'\n").to_owned()).collect()
        };
        // Whoever writes makes pauses, which are shorter than what counts as quiet.
        for name in names {
            write("new", name);
            let end = Instant::now() + Duration::from_millis(PLUGIN_QUIET_MS / 2);
            while Instant::now() < end {
                assert!(shelf.look(), "it is being changed");
                assert_eq!(versions(&source.current()), ["old"; 3]);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        until(&shelf, &source, |code| versions(code) == ["new"; 3]);
        // What comes in one piece counts at once.
        let files: Vec<_> = names.iter().map(|name| ((*name).to_owned(), "x = 'sent'\n".to_owned())).collect();
        shelf.write_folder("pkg/", &files).unwrap();
        assert_eq!(versions(&source.current()), ["sent"; 3]);
    }

    #[test]
    fn a_version_that_is_found_to_be_wrong_does_not_count() {
        let (dir, shelf) = shelf();
        fs::write(dir.path().join("p.py"), "x = 1\n").unwrap();
        let wrong = || PluginError { kind: "SyntaxError".into(), message: "wrong".into(), traceback: String::new() };
        shelf.check_with(Box::new(move |_, code, _| if code.source.contains('(') { Err(wrong()) } else { Ok(()) }));
        let source = shelf.source("p.py").unwrap();
        fs::write(dir.path().join("p.py"), "x = (\n").unwrap();
        assert_eq!(&*source.refresh().source, "x = 1\n", "nor in the next run");
        assert!(shelf.look(), "it may be mended soon");
        shelf.write("p.py", "x = ((\n").unwrap();
        assert_eq!(&*source.current().source, "x = 1\n");
        assert!(!shelf.look(), "it is known, and nothing is to be waited for");
        shelf.write("p.py", "x = 2\n").unwrap();
        assert_eq!(&*source.current().source, "x = 2\n");
    }

    #[test]
    fn a_file_counts_in_the_next_run_unless_it_has_lost_its_entry() {
        let (dir, shelf) = shelf();
        let entry = "\ndef process_writes(a, b, c): pass\n";
        let write = |text: &str| fs::write(dir.path().join("p.py"), text).unwrap();
        write(&format!("x = 1{entry}"));
        let source = shelf.source("p.py").unwrap();
        write(&format!("x = 2{entry}"));
        assert!(source.refresh().source.starts_with("x = 2"));
        write("x = 3\n");
        assert!(source.refresh().source.starts_with("x = 2"), "an editor may be at it");
        write(&format!("x = 4{entry}"));
        assert!(source.refresh().source.starts_with("x = 4"));
        write("x = 5\n");
        until(&shelf, &source, |code| &*code.source == "x = 5\n");
    }

    #[test]
    fn two_folders_with_the_same_files_are_two_plugins() {
        let (dir, shelf) = shelf();
        let code = |name: &str| {
            fs::create_dir_all(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join(INIT), "x = 1\n").unwrap();
            shelf.source(name).unwrap().current()
        };
        assert_ne!(code("a/common").hash, code("b/common").hash);
        assert_eq!(code("a/common").hash, code("./a/common/").hash);
    }

    #[test]
    fn a_missing_file_fails_its_runs_until_it_is_there() {
        let (dir, shelf) = shelf();
        let source = shelf.source_or_failing("later.py");
        assert!(source.current().source.starts_with("raise FileNotFoundError(\"Plugin not found: /"));
        fs::write(dir.path().join("later.py"), "x = 1\n").unwrap();
        shelf.look();
        assert_eq!(&*source.current().source, "x = 1\n");
    }

    #[test]
    fn the_watcher_brings_new_code_without_being_asked() {
        let (dir, shelf) = shelf();
        fs::write(dir.path().join("p.py"), "x = 1\n").unwrap();
        let source = shelf.source("p.py").unwrap();
        let _watcher = shelf.watch().unwrap();
        fs::write(dir.path().join("p.py"), "x = 22\n").unwrap();
        let end = SystemTime::now() + Duration::from_secs(10);
        while &*source.current().source != "x = 22\n" {
            assert!(SystemTime::now() < end, "no new code within 10 s");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_directory_plugin_is_hashed_over_all_its_files() {
        let (dir, shelf) = shelf();
        let plugin = dir.path().join("pkg");
        fs::create_dir(&plugin).unwrap();
        assert!(matches!(shelf.source("pkg"), Err(PluginFileError::NoInit(_))));
        fs::write(plugin.join(INIT), "from . import other\n").unwrap();
        fs::write(plugin.join("other.py"), "y = 1\n").unwrap();
        let source = shelf.source("pkg/").unwrap();
        let before = source.current();
        assert_eq!(before.directory.as_ref().unwrap().path, plugin.canonicalize().unwrap());
        fs::write(plugin.join("other.py"), "y = 2\n").unwrap();
        until(&shelf, &source, |code| code.hash != before.hash);
        assert_eq!(before.source, source.current().source);
    }

    #[test]
    fn nothing_outside_the_directory_is_read_or_written() {
        let (dir, shelf) = shelf();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret.py"), "s = 1\n").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        for name in ["../x.py", "/etc/passwd", "a/../../x.py", "link/secret.py", "", "."] {
            let error = shelf.source(name).err().unwrap().to_string();
            assert!(error.starts_with("Path traversal detected: plugin filename '"), "{name}: {error}");
        }
        for name in ["../x.py", "/tmp/x.py", "link/new.py", "link/deep/new.py", ""] {
            assert!(matches!(shelf.write(name, "x"), Err(PluginFileError::Traversal(_))), "{name}");
        }
        assert!(!outside.path().join("new.py").exists());
    }

    #[test]
    fn an_upload_is_seen_by_the_next_run() {
        let (_dir, shelf) = shelf();
        shelf.write("deep/p.py", "x = 1\n").unwrap();
        let source = shelf.source("deep/p.py").unwrap();
        shelf.write_plugin("deep/p.py", "x = 2\n").unwrap();
        assert_eq!(&*source.current().source, "x = 2\n");
    }

    #[test]
    fn without_a_directory_the_remedy_is_named() {
        let shelf = PluginShelf::open(None).unwrap();
        assert!(shelf.source("p.py").err().unwrap().to_string().contains("--plugin-dir"));
    }
}
