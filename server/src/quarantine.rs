//! Code that has held up a shard, over restarts: `quarantine.json` in the data directory.
//!
//! The file is replaced as a whole and is on the disk before [`Quarantine::add`] returns: what comes next may be the end of the
//! process. Code is known by its content hash, so that a plugin that was changed is not in quarantine; an entry is removed by
//! hand, while the server does not run.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// One version of a plugin that is kept out of the shards.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Content hash, in hexadecimal.
    pub code: String,
    /// The plugin's file.
    pub plugin_filename: String,
    /// The database of the trigger that ran it.
    pub db: String,
    /// That trigger.
    pub trigger_name: String,
    /// When, seconds since 1970.
    pub since: u64,
}

/// The code in quarantine.
pub struct Quarantine {
    path: PathBuf,
    codes: ArcSwap<HashSet<u64>>,
    entries: Mutex<Vec<Entry>>,
}

impl Quarantine {
    /// Reads what is known.
    ///
    /// # Errors
    /// The file cannot be read or understood; the text names it and the remedy.
    pub fn open(data_dir: &Path) -> Result<Self, String> {
        let path = data_dir.join("quarantine.json");
        let entries: Vec<Entry> = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                format!(
                    "{} cannot be understood: {error}; mend or remove it: it names plugins that held up a shard",
                    path.display()
                )
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        for Entry { plugin_filename, trigger_name, .. } in &entries {
            tracing::warn!(plugin_filename, trigger_name, file = %path.display(), "this version of a plugin is in quarantine: it runs in the process lane only");
        }
        let codes = entries.iter().filter_map(|entry| u64::from_str_radix(&entry.code, 16).ok()).collect();
        Ok(Quarantine { path, codes: ArcSwap::from_pointee(codes), entries: Mutex::new(entries) })
    }

    /// Whether it holds this code. Lock-free.
    pub fn holds(&self, code: u64) -> bool {
        self.codes.load().contains(&code)
    }

    /// Adds an entry, on the disk when it returns.
    ///
    /// # Errors
    /// What the system said; it is in force in this life of the process all the same.
    pub fn add(&self, code: u64, entry: Entry) -> io::Result<()> {
        let mut entries = self.entries.lock();
        if self.holds(code) {
            return Ok(());
        }
        let mut codes = HashSet::clone(&self.codes.load());
        codes.insert(code);
        self.codes.store(Arc::new(codes));
        entries.push(entry);
        let new = self.path.with_extension("json.new");
        let written = self.replace(&new, &serde_json::to_vec_pretty(&*entries)?);
        if written.is_err() {
            // Half of it would only take room.
            let _ = std::fs::remove_file(&new);
        }
        written
    }

    fn replace(&self, new: &Path, text: &[u8]) -> io::Result<()> {
        let mut file = File::create(new)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(new, &self.path)?;
        self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_there_in_the_next_life_and_a_file_that_makes_no_sense_is_named() {
        let root = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::open(root.path()).unwrap();
        let entry = Entry {
            code: format!("{:016x}", u64::MAX),
            plugin_filename: "p.py".into(),
            db: "main".into(),
            trigger_name: "t".into(),
            since: 5,
        };
        assert!(!quarantine.holds(u64::MAX));
        quarantine.add(u64::MAX, entry.clone()).unwrap();
        quarantine.add(u64::MAX, entry).unwrap();
        assert!(quarantine.holds(u64::MAX));
        let again = Quarantine::open(root.path()).unwrap();
        assert!(again.holds(u64::MAX) && !again.holds(1));
        assert_eq!(again.entries.lock().len(), 1);
        std::fs::write(root.path().join("quarantine.json"), "{").unwrap();
        let error = Quarantine::open(root.path()).err().unwrap();
        assert!(error.contains("quarantine.json") && error.contains("mend or remove it"), "{error}");
    }
}
