//! What caches held when the server stopped in an orderly way, for its next life.
//!
//! # Contract
//! - Plain values of triggers' caches, and those of the global cache. Live objects are left out, and counted.
//! - The file is read once and removed at the start: after a crash caches begin empty, never with what was true before the last
//!   life. (What must survive a crash belongs into `influxdb3_local.state`.)
//! - An entry is kept until the trigger has ended a run with it, since a run may be discarded and made again elsewhere.
//! - A worker process that is ended because it has been idle leaves its cache here as well.
//! - A cache that is larger than [`CACHE_SAVED_BYTES_MAX`], or finds no room in [`CACHES_SAVED_BYTES_MAX`], is not kept; that is said.
//!
//! # The file
//! `SLTSCCH1`, crc32c `u32` of what follows, the series of Python (`u16` length, text), then entries: kind `u8` (0 a trigger's
//! cache, 1 a global value); for 0 the trigger `u64`, for 1 the key (`u32` length, text) and its expiry `u64` (0: none); then `u32`
//! length and bytes of `marshal`. All little endian. A file of another series of Python is left out: `marshal` is its own.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use saltus_core::ids::TriggerId;
use saltus_core::limits::{CACHE_SAVED_BYTES_MAX, CACHES_SAVED_BYTES_MAX};
use saltus_core::trigger::TriggerDef;

use crate::global_cache;

const MAGIC: &[u8; 8] = b"SLTSCCH1";

/// What the vault has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VaultCounts {
    /// Caches of triggers, and global values, that were there again after the start.
    pub restored: u64,
    /// Entries that were not kept because they are live objects.
    pub live: u64,
    /// Caches that were not kept because they are too large.
    pub too_large: u64,
    /// Bytes that wait here for their triggers.
    pub bytes: u64,
}

#[derive(Default)]
struct Kept {
    caches: HashMap<TriggerId, Arc<[u8]>>,
    bytes: usize,
    /// Triggers that do not want it.
    unwanted: HashSet<TriggerId>,
}

/// See the header.
pub struct CacheVault {
    file: Option<PathBuf>,
    series: String,
    by_default: bool,
    kept: Mutex<Kept>,
    /// There may be something for somebody.
    any: AtomicBool,
    restored: AtomicU64,
    live: AtomicU64,
    too_large: AtomicU64,
}

impl CacheVault {
    /// Reads and removes the file of the life before. `by_default`: whether triggers that do not say want it.
    pub fn open(file: Option<PathBuf>, series: String, by_default: bool) -> Self {
        let vault = CacheVault {
            file,
            series,
            by_default,
            kept: Mutex::default(),
            any: AtomicBool::new(false),
            restored: AtomicU64::new(0),
            live: AtomicU64::new(0),
            too_large: AtomicU64::new(0),
        };
        if let Some(file) = &vault.file
            && let Err(why) = vault.read(file)
        {
            tracing::warn!(file = %file.display(), why, "caches of plugins begin empty");
        }
        vault
    }

    fn read(&self, file: &Path) -> Result<(), String> {
        let bytes = match std::fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        std::fs::remove_file(file).map_err(|error| format!("the file cannot be removed: {error}"))?;
        if !self.by_default {
            return Ok(());
        }
        let damaged = || "the file is damaged".to_owned();
        let body = bytes.strip_prefix(MAGIC).and_then(|rest| rest.split_first_chunk::<4>());
        let (crc, body) = body.ok_or_else(damaged)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(damaged());
        }
        let mut reader = Reader(body);
        let series = reader.text_u16().ok_or_else(damaged)?;
        if series != self.series {
            return Err(format!("it was written with Python {series}, and this server embeds {}", self.series));
        }
        let mut kept = self.kept.lock();
        while !reader.0.is_empty() {
            match reader.take(1).ok_or_else(damaged)?[0] {
                0 => {
                    let trigger = TriggerId(reader.u64().ok_or_else(damaged)?);
                    let cache: Arc<[u8]> = reader.bytes_u32().ok_or_else(damaged)?.into();
                    kept.bytes += cache.len();
                    kept.caches.insert(trigger, cache);
                    self.any.store(true, Ordering::Release);
                }
                _ => {
                    let key = reader.bytes_u32().and_then(|key| std::str::from_utf8(key).ok()).ok_or_else(damaged)?;
                    let expiry = reader.u64().ok_or_else(damaged)?;
                    let value = reader.bytes_u32().ok_or_else(damaged)?;
                    global_cache::local().put(key, value.to_vec(), (expiry > 0).then_some(expiry));
                    self.restored.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Whether a trigger wants its cache kept; remembered.
    pub fn wants(&self, def: &TriggerDef) -> bool {
        if def.id.is_test() {
            return false;
        }
        let wants = def.api.restore_cache.unwrap_or(self.by_default);
        if wants == self.by_default && !self.any.load(Ordering::Acquire) {
            return wants;
        }
        let mut kept = self.kept.lock();
        if wants {
            kept.unwanted.remove(&def.id);
        } else {
            kept.unwanted.insert(def.id);
            self.any.store(true, Ordering::Release);
        }
        wants
    }

    /// What was kept for a trigger. It stays until [`CacheVault::forget`] or [`CacheVault::put`].
    pub fn get(&self, trigger: TriggerId) -> Option<Arc<[u8]>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let cache = self.kept.lock().caches.get(&trigger).cloned()?;
        self.restored.fetch_add(1, Ordering::Relaxed);
        Some(cache)
    }

    /// The trigger needs nothing of this any more.
    pub fn forget(&self, trigger: TriggerId) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut kept = self.kept.lock();
        if let Some(cache) = kept.caches.remove(&trigger) {
            kept.bytes -= cache.len();
        }
    }

    /// Keeps a trigger's cache; `live` are the keys that cannot be kept.
    pub fn put(&self, trigger: TriggerId, cache: Vec<u8>, live: &[String]) {
        self.any.store(true, Ordering::Release);
        let mut kept = self.kept.lock();
        if let Some(before) = kept.caches.remove(&trigger) {
            kept.bytes -= before.len();
        }
        if kept.unwanted.contains(&trigger) || cache.is_empty() {
            return;
        }
        self.live.fetch_add(live.len() as u64, Ordering::Relaxed);
        if cache.len() > CACHE_SAVED_BYTES_MAX || kept.bytes + cache.len() > CACHES_SAVED_BYTES_MAX {
            self.too_large.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                trigger = trigger.0,
                bytes = cache.len(),
                "the cache of a trigger is not kept for the next start: one may have {CACHE_SAVED_BYTES_MAX} bytes, and all together {CACHES_SAVED_BYTES_MAX}; let the plugin keep less in it, or use influxdb3_local.state"
            );
            return;
        }
        kept.bytes += cache.len();
        kept.caches.insert(trigger, cache.into());
    }

    /// Writes the file, when everybody has given what they have.
    pub fn save(&self) {
        let Some(file) = self.file.as_ref().filter(|_| self.by_default || self.any.load(Ordering::Acquire)) else {
            return;
        };
        let bytes = self.encode();
        if let Err(error) = bytes.map_or(Ok(()), |bytes| write(file, &bytes)) {
            // Half of it would only take room.
            let _ = std::fs::remove_file(file.with_extension("tmp"));
            tracing::warn!(file = %file.display(), %error, "caches of plugins are not kept for the next start");
        }
    }

    /// `None` if there is nothing to be kept.
    fn encode(&self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        body.extend((self.series.len() as u16).to_le_bytes());
        body.extend(self.series.as_bytes());
        let nothing = body.len();
        let put = |bytes: &[u8], body: &mut Vec<u8>| {
            body.extend((bytes.len() as u32).to_le_bytes());
            body.extend(bytes);
        };
        for (trigger, cache) in &self.kept.lock().caches {
            body.push(0);
            body.extend(trigger.0.to_le_bytes());
            put(cache, &mut body);
        }
        for (key, value, expiry) in global_cache::local().all().into_iter().filter(|_| self.by_default) {
            body.push(1);
            put(key.as_bytes(), &mut body);
            body.extend(expiry.unwrap_or(0).to_le_bytes());
            put(&value, &mut body);
        }
        if body.len() == nothing {
            return None;
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend(crc32c::crc32c(&body).to_le_bytes());
        bytes.extend(body);
        Some(bytes)
    }

    /// What it has done.
    pub fn counts(&self) -> VaultCounts {
        VaultCounts {
            restored: self.restored.load(Ordering::Relaxed),
            live: self.live.load(Ordering::Relaxed),
            too_large: self.too_large.load(Ordering::Relaxed),
            bytes: self.kept.lock().bytes as u64,
        }
    }
}

fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let unfinished = file.with_extension("tmp");
    let mut out = std::fs::File::create(&unfinished)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    std::fs::rename(unfinished, file)
}

/// Reads what [`CacheVault::encode`] wrote; trusts no length.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    fn bytes_u32(&mut self) -> Option<&'a [u8]> {
        let length = self.take(4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))?;
        self.take(length as usize)
    }

    fn text_u16(&mut self) -> Option<&'a str> {
        let length = self.take(2)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))?;
        std::str::from_utf8(self.take(length.into())?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, series: &str) -> CacheVault {
        CacheVault::open(Some(dir.join("caches")), series.to_owned(), true)
    }

    #[test]
    fn what_was_kept_is_there_once_and_only_for_the_same_python() {
        let dir = tempfile::tempdir().unwrap();
        let vault = open(dir.path(), "3.13");
        vault.put(TriggerId(1), vec![1, 2, 3], &["live".to_owned()]);
        vault.put(TriggerId(2), vec![4; CACHE_SAVED_BYTES_MAX + 1], &[]);
        global_cache::local().put("g", vec![9], None);
        assert_eq!(vault.counts(), VaultCounts { restored: 0, live: 1, too_large: 1, bytes: 3 });
        vault.save();
        global_cache::local().delete("g");
        assert_eq!(open(dir.path(), "3.14").get(TriggerId(1)), None, "marshal is of its Python");
        vault.save();
        let again = open(dir.path(), "3.13");
        assert_eq!(again.get(TriggerId(1)).as_deref(), Some(&[1, 2, 3][..]));
        assert_eq!(again.get(TriggerId(2)), None);
        assert_eq!(open(dir.path(), "3.13").get(TriggerId(1)), None, "a crash begins without it");
        again.forget(TriggerId(1));
        assert_eq!(again.get(TriggerId(1)), None);
    }

    #[test]
    fn a_damaged_file_is_refused_whole() {
        let dir = tempfile::tempdir().unwrap();
        let vault = open(dir.path(), "3.13");
        vault.put(TriggerId(1), vec![1, 2, 3], &[]);
        let good = vault.encode().unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(dir.path().join("caches"), &bad).unwrap();
            assert_eq!(open(dir.path(), "3.13").get(TriggerId(1)), None, "byte {at}");
        }
    }
}
