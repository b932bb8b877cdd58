//! Plugin files: found, read, watched and written, never outside the plugin directory.
//!
//! A [`PluginSource`] is one file or directory, shared by all triggers that name it. `current()` is a load of a pointer;
//! `refresh()` compares modification times and lengths, reads when they changed, and swaps in a new version when the
//! content did. A file whose last change is younger than `RACY` is read anyway: its next change could leave the same
//! time stamp. A file that cannot be read any more keeps its last good text. The thread `saltus-plugins` refreshes all
//! sources every [`POLL_INTERVAL`], so that triggers on a shard's thread, which may not look at files, get new code too.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use std::{fs, io};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use saltus_core::ports::{CodeSource, PluginCode};

/// How often all plugin files are looked at.
pub const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// A change younger than this may be followed by another one with the same time stamp.
const RACY: Duration = Duration::from_secs(2);
/// Files of one directory plugin.
const DIRECTORY_FILES_MAX: usize = 1000;
/// Bytes of all files of one plugin.
const PLUGIN_BYTES_MAX: u64 = 16 * 1024 * 1024;
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
    #[error("plugin is too large: {} (at most {DIRECTORY_FILES_MAX} files and {PLUGIN_BYTES_MAX} bytes)", .0.display())]
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

/// The plugin directory and every source of it that a trigger holds.
pub struct PluginShelf {
    root: Option<PathBuf>,
    sources: Mutex<HashMap<PathBuf, Weak<PluginSource>>>,
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
        Ok(PluginShelf { root, sources: Mutex::default() })
    }

    /// The source that a trigger names, read now.
    ///
    /// # Errors
    /// The name leads outside, or there is nothing that can be read.
    pub fn source(&self, filename: &str) -> Result<Arc<PluginSource>, PluginFileError> {
        let path = self.resolve(filename)?;
        if let Some(known) = self.sources.lock().get(&path).and_then(Weak::upgrade) {
            return known.try_refresh().map(|_| known);
        }
        let source = Arc::new(PluginSource::open(path)?);
        Ok(self.shelve(source))
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
        Ok(Some((path, text)))
    }

    /// Like [`PluginShelf::source`] for a trigger that is in the catalog already: if the file cannot be read, the runs
    /// fail with that reason until it can.
    pub fn source_or_failing(&self, filename: &str) -> Arc<PluginSource> {
        self.source(filename).unwrap_or_else(|error| {
            let name = filename.trim_end_matches('/');
            let safe = check_relative(name).is_ok() && !matches!(error, PluginFileError::Traversal(_));
            let path = self.root.as_ref().filter(|_| safe).map(|root| root.join(name));
            self.shelve(Arc::new(PluginSource::failing(path.unwrap_or_default(), &error.to_string())))
        })
    }

    /// Looks at all files.
    pub fn refresh(&self) {
        let live: Vec<Arc<PluginSource>> = {
            let mut sources = self.sources.lock();
            sources.retain(|_, source| source.strong_count() > 0);
            sources.values().filter_map(Weak::upgrade).collect()
        };
        for source in live {
            source.refresh();
        }
    }

    /// Writes a file under the plugin directory; whoever reads it meanwhile sees the old or the new text.
    ///
    /// # Errors
    /// The name leads outside, the text is no Python text, or the file system refused.
    pub fn write(&self, filename: &str, content: &str) -> Result<(), PluginFileError> {
        let root = self.root.as_deref().ok_or(PluginFileError::NoDirectory)?;
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
        let put = fs::write(&scratch, content).and_then(|()| fs::rename(&scratch, &path));
        if let Err(error) = put {
            let _ = fs::remove_file(&scratch);
            return Err(PluginFileError::io(&path, error));
        }
        self.refresh();
        Ok(())
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
            while !asked.load(Ordering::Acquire) {
                std::thread::park_timeout(POLL_INTERVAL);
                shelf.refresh();
            }
        })?;
        Ok(PluginWatcher { stop, thread: Some(thread) })
    }

    fn shelve(&self, source: Arc<PluginSource>) -> Arc<PluginSource> {
        self.sources.lock().insert(source.path.clone(), Arc::downgrade(&source));
        source
    }

    /// The real path of a plugin, checked to be inside.
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
        Ok(real)
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
    length: u64,
}

/// What was looked at, and when.
#[derive(Default)]
struct Seen {
    stamps: Vec<Stamp>,
    read_at: Option<SystemTime>,
}

impl Seen {
    /// Whether the files are certainly what was read.
    fn covers(&self, stamps: &[Stamp]) -> bool {
        let Some(read_at) = self.read_at else { return false };
        self.stamps == stamps && stamps.iter().all(|s| read_at.duration_since(s.modified).is_ok_and(|age| age >= RACY))
    }
}

/// One plugin: a file, or a directory with `__init__.py`.
pub struct PluginSource {
    path: PathBuf,
    code: ArcSwap<PluginCode>,
    seen: Mutex<Seen>,
}

impl PluginSource {
    fn open(path: PathBuf) -> Result<Self, PluginFileError> {
        let read_at = SystemTime::now();
        let stamps = stamps(&path)?;
        let code = ArcSwap::from_pointee(read_code(&path, &stamps)?);
        Ok(PluginSource { path, code, seen: Mutex::new(Seen { stamps, read_at: Some(read_at) }) })
    }

    /// A source whose code raises `reason`, until the file is there.
    fn failing(path: PathBuf, reason: &str) -> Self {
        // A JSON string is a Python string literal.
        let source = format!("raise FileNotFoundError({})\n", serde_json::Value::from(reason));
        let hash = hash_of([("", source.as_bytes())]);
        let code = PluginCode { source: source.into(), hash, directory: None };
        PluginSource { path, code: ArcSwap::from_pointee(code), seen: Mutex::default() }
    }

    /// Reads again what changed.
    fn try_refresh(&self) -> Result<Arc<PluginCode>, PluginFileError> {
        let mut seen = self.seen.lock();
        let read_at = SystemTime::now();
        let stamps = stamps(&self.path)?;
        if !seen.covers(&stamps) {
            let code = read_code(&self.path, &stamps)?;
            if code.hash != self.code.load().hash {
                tracing::info!(plugin = %self.path.display(), "plugin changed: the next run uses the new version");
                self.code.store(Arc::new(code));
            }
            *seen = Seen { stamps, read_at: Some(read_at) };
        }
        Ok(self.code.load_full())
    }
}

impl CodeSource for PluginSource {
    fn current(&self) -> Arc<PluginCode> {
        self.code.load_full()
    }

    fn refresh(&self) -> Arc<PluginCode> {
        self.try_refresh().unwrap_or_else(|error| {
            tracing::debug!(plugin = %self.path.display(), %error, "plugin cannot be read: its last version stays");
            self.code.load_full()
        })
    }
}

/// The files of a plugin with their stamps, sorted by path.
fn stamps(path: &Path) -> Result<Vec<Stamp>, PluginFileError> {
    let mut found = Vec::new();
    collect_stamps(path, true, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    let bytes: u64 = found.iter().map(|s| s.length).sum();
    if found.len() > DIRECTORY_FILES_MAX || bytes > PLUGIN_BYTES_MAX {
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
            if !hidden && !link && found.len() <= DIRECTORY_FILES_MAX {
                collect_stamps(&entry.path(), false, found)?;
            }
        }
    } else if named || path.extension().is_some_and(|extension| extension == "py") {
        let modified = meta.modified().map_err(|error| PluginFileError::io(path, error))?;
        found.push(Stamp { path: path.to_owned(), modified, length: meta.len() });
    }
    Ok(())
}

fn read_code(path: &Path, stamps: &[Stamp]) -> Result<PluginCode, PluginFileError> {
    let files: Vec<(String, String)> = stamps.iter().map(|s| read_file(path, &s.path)).collect::<Result<_, _>>()?;
    let hash = hash_of(files.iter().map(|(name, text)| (name.as_str(), text.as_bytes())));
    let directory = path.is_dir().then(|| path.to_owned());
    let main = if directory.is_some() { INIT } else { "" };
    let source = files.into_iter().find(|(name, _)| name == main).map(|(_, text)| text);
    let source = source.ok_or_else(|| PluginFileError::NoInit(path.to_owned()))?;
    Ok(PluginCode { source: source.into(), hash, directory })
}

/// A file's name relative to the plugin (empty for a single file), and its text.
fn read_file(plugin: &Path, path: &Path) -> Result<(String, String), PluginFileError> {
    let text = fs::read_to_string(path).map_err(|error| PluginFileError::io(path, error))?;
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

    #[test]
    fn an_edit_of_the_same_length_right_away_is_seen() {
        let (dir, shelf) = shelf();
        fs::write(dir.path().join("p.py"), "x = 1\n").unwrap();
        let source = shelf.source("p.py").unwrap();
        let before = source.current();
        assert_eq!(&*before.source, "x = 1\n");
        fs::write(dir.path().join("p.py"), "x = 2\n").unwrap();
        let after = source.refresh();
        assert_eq!(&*after.source, "x = 2\n");
        assert_ne!(before.hash, after.hash);
        assert_eq!(source.current().hash, after.hash);
    }

    #[test]
    fn an_unreadable_file_keeps_its_last_good_text() {
        let (dir, shelf) = shelf();
        fs::write(dir.path().join("p.py"), "x = 1\n").unwrap();
        let source = shelf.source("p.py").unwrap();
        fs::remove_file(dir.path().join("p.py")).unwrap();
        assert_eq!(&*source.refresh().source, "x = 1\n");
    }

    #[test]
    fn a_missing_file_fails_its_runs_until_it_is_there() {
        let (dir, shelf) = shelf();
        let source = shelf.source_or_failing("later.py");
        assert!(source.current().source.starts_with("raise FileNotFoundError(\"Plugin not found: /"));
        fs::write(dir.path().join("later.py"), "x = 1\n").unwrap();
        assert_eq!(&*source.refresh().source, "x = 1\n");
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
        assert_eq!(before.directory.as_deref(), Some(plugin.canonicalize().unwrap().as_path()));
        fs::write(plugin.join("other.py"), "y = 2\n").unwrap();
        let after = source.refresh();
        assert_eq!(before.source, after.source);
        assert_ne!(before.hash, after.hash);
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
