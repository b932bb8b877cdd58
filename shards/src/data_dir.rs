//! The data directory of one server: its lock, and what a start needs.
//!
//! Three files know of each other, so that none of them can be lost unnoticed:
//!
//! | file | knows | is known to |
//! |---|---|---|
//! | `manifest` | every stream and segment that may hold data, the catalog's identity and generation, the epoch | the catalog (that there is one, and its epoch) |
//! | `catalog.redb` | databases, triggers, the identity of the directory, the epoch of the last start | the manifest |
//! | `wal/...` | the rows; each segment the directory that it is of | the manifest |
//!
//! `epoch` is known to the manifest as well: without it nothing is lost, and it is written anew.
//!
//! Order of a start: [`DataDir::open`] (lock, manifest, epoch); the catalog is opened and shown ([`DataDir::catalog_found`], or
//! [`DataDir::catalog_lost`]); `DataDir::begin_life` looks at the log and refuses the start, with a text that names all that is
//! missing, or gives up what is missing if the operator has said so, and raises the epoch. Recovery looks at every frame;
//! then `wal::settle` writes down what is there. Nothing is changed on the disk before all files were looked at.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use saltus_core::ids::{Epoch, ShardId, Stream};

use crate::io::Shortage;
use crate::wal::keeper::ManifestKeeper;
use crate::wal::manifest::{MANIFEST_FILE, Manifest, fingerprint, header_of};
use crate::wal::reader::first_sequence;
use crate::wal::recovery::{RecoveryError, StreamFiles, WAY_ON, list_streams, stream_dir};
use crate::wal::{DataDirLock, EpochError, StoredEpoch, lock_data_dir, next_epoch, read_epoch};

/// Why a data directory cannot be used; the text names the files and the way on.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The lock or the epoch.
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// The log cannot be looked at.
    #[error(transparent)]
    Log(#[from] RecoveryError),
    /// Something is missing.
    #[error("{0}")]
    Damaged(String),
    /// The manifest cannot be written.
    #[error("cannot write {path}: {text}", path = path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        text: String,
    },
}

/// What a start knows of the catalog before it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedCatalog {
    /// The identity that it has.
    pub identity: String,
    /// Its generation, at least.
    pub generation: u64,
}

/// What a catalog says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundCatalog {
    /// Its identity.
    pub identity: String,
    /// Raised by every change.
    pub generation: u64,
    /// The last life that it knows of; `None` if it knows of no manifest.
    pub epoch: Option<u32>,
}

/// What is done with a catalog that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogVerdict {
    /// It is this directory's.
    Ours,
    /// It is an older copy: what changed since is lost, and ids that were used since must not be used again.
    Older,
    /// It is another directory's.
    Foreign,
}

/// The data directory on its way to a start.
pub struct DataDir {
    lock: Arc<DataDirLock>,
    accept_loss: bool,
    manifest: Option<Manifest>,
    /// Why there is none, if that was said.
    manifest_lost: bool,
    epoch: StoredEpoch,
    streams: Vec<StreamFiles>,
    catalog: Option<FoundCatalog>,
    /// The catalog was made by this start.
    catalog_is_new: bool,
    problems: Vec<String>,
}

/// A life that has begun.
pub(crate) struct Life {
    pub lock: Arc<DataDirLock>,
    pub epoch: Epoch,
    /// The manifest has the epoch: others may note it.
    pub is_noted: bool,
    pub known: Arc<Manifest>,
    pub keeper: ManifestKeeper,
}

impl DataDir {
    /// Takes the lock and reads what there is. `accept_loss`: what is missing is given up.
    ///
    /// # Errors
    /// Another server uses the directory, or it cannot be read.
    pub fn open(path: &Path, accept_loss: bool) -> Result<Self, DataDirError> {
        let lock = Arc::new(lock_data_dir(path)?);
        let epoch = read_epoch(path)?;
        let mut directory = DataDir {
            lock,
            accept_loss,
            manifest: None,
            manifest_lost: false,
            epoch,
            streams: list_streams(path)?,
            catalog: None,
            catalog_is_new: false,
            problems: Vec::new(),
        };
        let file = path.join(MANIFEST_FILE);
        match std::fs::read(&file) {
            Ok(bytes) => match Manifest::decode(&bytes) {
                Ok(manifest) => directory.manifest = Some(manifest),
                Err(why) => directory.lose_manifest(&why),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(RecoveryError::Io { path: file, source }.into()),
        }
        Ok(directory)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.lock.data_dir()
    }

    /// Whether what is missing is given up.
    pub fn accepts_loss(&self) -> bool {
        self.accept_loss
    }

    /// Whether a server has run here before: then there must be a catalog.
    pub fn has_history(&self) -> bool {
        self.manifest.is_some() || self.manifest_lost || !self.streams.is_empty() || self.epoch != StoredEpoch::Missing
    }

    /// What the catalog must be, if that is known.
    pub fn expected_catalog(&self) -> Option<ExpectedCatalog> {
        let manifest = self.manifest.as_ref().filter(|manifest| !manifest.directory.is_empty())?;
        Some(ExpectedCatalog { identity: manifest.directory.clone(), generation: manifest.catalog })
    }

    fn lose_manifest(&mut self, why: &str) {
        self.manifest_lost = true;
        self.manifest = None;
        self.problems.push(format!(
            "{}: {why}. It says which files the log must have; without it nobody knows whether rows are missing",
            self.path().join(MANIFEST_FILE).display()
        ));
    }

    /// The catalog is not there or cannot be read; `what` names the file and says how it is. It may go on with a new one if loss is
    /// accepted.
    ///
    /// # Errors
    /// The start is refused; the text names everything that is missing.
    pub fn catalog_lost(&mut self, what: String) -> Result<(), DataDirError> {
        self.problems.push(format!("{what}: databases and triggers that were created are lost with it"));
        if self.accept_loss { Ok(()) } else { Err(self.refusal()?) }
    }

    /// A catalog was opened. What is wrong with it is told by `DataDir::begin_life`.
    pub fn catalog_found(&mut self, path: &Path, catalog: FoundCatalog) -> CatalogVerdict {
        let verdict = self.judge(path, &catalog);
        if verdict != CatalogVerdict::Foreign {
            self.catalog = Some(catalog);
        }
        verdict
    }

    /// A catalog was made, since there was none.
    pub fn catalog_made(&mut self, catalog: FoundCatalog) {
        self.catalog = Some(catalog);
        self.catalog_is_new = true;
    }

    fn judge(&mut self, path: &Path, catalog: &FoundCatalog) -> CatalogVerdict {
        let path = path.display();
        let Some(manifest) = &self.manifest else {
            if catalog.epoch.is_some() && !self.manifest_lost {
                self.lose_manifest("is missing");
            }
            return CatalogVerdict::Ours;
        };
        if !manifest.directory.is_empty() && manifest.directory != catalog.identity {
            // Two against one: the log says to whom it belongs.
            let log = self.streams.iter().rev().find_map(StreamFiles::directory);
            if log == Some(fingerprint(&catalog.identity)) {
                self.lose_manifest("is of another data directory");
                return CatalogVerdict::Ours;
            }
            self.problems.push(format!(
                "{path} is of another data directory (its identity is {}, not {}): databases and triggers of this one are lost",
                catalog.identity, manifest.directory
            ));
            return CatalogVerdict::Foreign;
        }
        if catalog.epoch.is_some_and(|epoch| epoch > manifest.epoch.0) {
            let why = format!(
                "is an older copy: it ends with epoch {}, and the catalog knows of a later one",
                manifest.epoch.0
            );
            self.lose_manifest(&why);
        } else if catalog.generation < manifest.catalog {
            self.problems.push(format!(
                "{path} is an older copy (generation {}, at least {} is expected): databases and triggers that were created or changed since are lost",
                catalog.generation, manifest.catalog
            ));
            return CatalogVerdict::Older;
        }
        CatalogVerdict::Ours
    }

    /// A refusal: its text names everything that is missing, and the way on.
    ///
    /// # Errors
    /// A file cannot be looked at.
    pub fn refusal(&mut self) -> Result<DataDirError, DataDirError> {
        self.check_log()?;
        self.check_unknown()?;
        let dir = self.path().display();
        Ok(DataDirError::Damaged(format!(
            "the data directory {dir} is damaged: {}; {WAY_ON}",
            self.problems.join("; ")
        )))
    }

    /// Looks whether the log is what the manifest says.
    fn check_log(&mut self) -> Result<(), DataDirError> {
        if let StoredEpoch::Malformed(how) = self.epoch
            && self.manifest.is_none()
            && self.streams.is_empty()
        {
            let path = self.path().join("epoch");
            self.problems.push(format!(
                "{} {how}: it counts the starts, and the log that would tell as well is missing",
                path.display()
            ));
        }
        if self.manifest.is_none() && self.streams.is_empty() && self.epoch.number() > 0 && !self.problems.is_empty() {
            let path = stream_dir(self.path(), Stream { epoch: Epoch(0), shard: ShardId(0) });
            let wal = path.parent().unwrap_or(&path).display();
            self.problems
                .push(format!("{wal} is missing: all rows, if any were written in {} lives", self.epoch.number()));
        }
        let Some(manifest) = &self.manifest else { return Ok(()) };
        let missing = manifest.check(self.path(), &self.streams)?;
        self.problems.extend(missing);
        Ok(())
    }

    /// The identity of this directory, as far as a file tells.
    fn identity(&self) -> Option<&str> {
        let manifest =
            self.manifest.as_ref().map(|manifest| &*manifest.directory).filter(|identity| !identity.is_empty());
        let catalog = self.catalog.as_ref().filter(|_| !self.catalog_is_new);
        manifest.or(catalog.map(|catalog| &*catalog.identity))
    }

    fn is_foreign(&self, files: &StreamFiles, ours: Option<u32>) -> bool {
        let adopted = |of: u32| self.manifest.as_ref().is_some_and(|manifest| manifest.adopted.contains(&of));
        ours.is_some() && files.directory().is_some_and(|of| Some(of) != ours && !adopted(of))
    }

    /// Streams and segments that are another directory's, or hold frames and are not known to the manifest.
    fn check_unknown(&mut self) -> Result<(), DataDirError> {
        let ours = self.identity().map(fingerprint);
        let mut found = Vec::new();
        for files in &self.streams {
            if self.is_foreign(files, ours) {
                let dir = stream_dir(self.path(), files.stream);
                found.push(format!("{} is of another data directory, and is not read", dir.display()));
                continue;
            }
            let Some(manifest) = &self.manifest else { continue };
            let known = manifest.streams.get(&files.stream);
            for (_, path) in files.segments.iter().filter(|(n, _)| known.is_none_or(|record| *n > record.last)) {
                let io = |source| RecoveryError::Io { path: path.clone(), source };
                let Some(header) = header_of(path).map_err(io)? else { continue };
                let by_older_version = header.directory == 0 && files.stream.epoch > manifest.epoch;
                if !by_older_version && first_sequence(path, files.stream).map_err(io)?.is_some() {
                    let path = path.display();
                    found.push(format!("{path} is not known to the manifest, which may be an older copy"));
                }
            }
        }
        self.problems.extend(found);
        Ok(())
    }

    /// Refuses the start if something is missing, or gives it up; then this life begins, with its epoch durable if the disk has room.
    ///
    /// # Errors
    /// See above.
    pub(crate) fn begin_life(mut self) -> Result<Life, DataDirError> {
        let refusal = self.refusal()?;
        if !self.problems.is_empty() {
            if !self.accept_loss {
                return Err(refusal);
            }
            for problem in &self.problems {
                tracing::error!("--accept-loss: given up: {problem}");
            }
        }
        self.set_foreign_streams_aside()?;
        let last = self.last_epoch();
        let epoch = next_epoch(self.path(), last)?;
        let identity_is_lost = self.catalog_is_new && self.manifest.is_none();
        let mut manifest = self.manifest.take().unwrap_or_else(|| Manifest::of_files(&self.streams));
        manifest.epoch = epoch;
        if let Some(catalog) = &self.catalog {
            manifest.directory.clone_from(&catalog.identity);
            manifest.catalog = manifest.catalog.max(catalog.generation);
        }
        if identity_is_lost {
            // Whatever the identity was that the log was written under: it is this one's now.
            let ours = fingerprint(&manifest.directory);
            manifest.adopted.extend(self.streams.iter().filter_map(StreamFiles::directory).filter(|of| *of != ours));
        }
        self.heal_epoch(last);
        let path = self.path().join(MANIFEST_FILE);
        let fail = |text: String| DataDirError::Manifest { path: path.clone(), text };
        let known = Arc::new(manifest.clone());
        let keeper = ManifestKeeper::start(self.path(), manifest).map_err(|error| fail(error.to_string()))?;
        let noted = keeper.change_now(|_| {});
        let is_noted = noted.is_ok();
        match noted {
            Ok(()) => {}
            Err(error) => match Shortage::of(&error) {
                // Nothing is written under the epoch before it is durable: the first segment is registered in the same file.
                Some(shortage) if self.has_history() => {
                    let what = shortage.remedy(self.path(), 0);
                    tracing::error!("{what}; until then the server answers queries and refuses writes");
                }
                Some(shortage) => return Err(fail(shortage.remedy(self.path(), 0))),
                None => return Err(fail(error.to_string())),
            },
        }
        Ok(Life { lock: self.lock, epoch, is_noted, known, keeper })
    }

    fn last_epoch(&self) -> u32 {
        let logged = self.streams.iter().map(|files| files.stream.epoch.0);
        let noted = self.manifest.iter().map(|manifest| manifest.epoch.0);
        let catalog = self.catalog.iter().filter_map(|catalog| catalog.epoch);
        logged.chain(noted).chain(catalog).fold(self.epoch.number(), u32::max)
    }

    fn heal_epoch(&self, last: u32) {
        let how = match self.epoch {
            StoredEpoch::Malformed(how) => how,
            StoredEpoch::Missing if last > 0 => "is missing",
            StoredEpoch::Number(number) if number < last => "is an older copy",
            _ => return,
        };
        let path = self.path().join("epoch");
        tracing::warn!(path = %path.display(), last, "the file `epoch` {how}; nothing is lost: the manifest and the log know the number, and it is written anew");
    }

    /// Streams of another data directory are not read, and not complained of again.
    fn set_foreign_streams_aside(&mut self) -> Result<(), DataDirError> {
        let Some(directory) = self.identity().map(fingerprint) else { return Ok(()) };
        for files in &self.streams {
            let Some(path) = files.segments.first().and_then(|(_, path)| path.parent()) else { continue };
            if !self.is_foreign(files, Some(directory)) {
                continue;
            }
            let mut aside = path.to_owned();
            aside.as_mut_os_string().push(".set-aside");
            tracing::error!(path = %path.display(), to = %aside.display(), "a stream of another data directory is set aside");
            let rename = std::fs::rename(path, &aside);
            rename.map_err(|source| RecoveryError::Io { path: path.to_owned(), source })?;
        }
        self.streams = list_streams(self.lock.data_dir())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
