//! The plain values of the global cache, shared by all interpreters of the server and by its worker processes.
//!
//! **Contract.** A value is bytes that `marshal` has made, under a key, with a version that no other has. Who holds a copy asks with
//! its version whether there is a newer value. What is here is bounded: beyond [`GLOBAL_CACHE_BYTES_MAX`] the values that were put
//! longest ago go, which is counted. It is *not* on the data path: triggers that the policy may run inline are kept from it.
//!
//! In a worker process [`store`] is the server's, over the socket.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use saltus_core::limits::GLOBAL_CACHE_BYTES_MAX;

/// What there is under a key, for somebody who has seen a version of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The value of the version that was seen.
    Same,
    /// A value that was put later.
    Newer {
        /// For `marshal`.
        bytes: Vec<u8>,
        /// Nanoseconds since 1970.
        expiry: Option<u64>,
        /// Its version.
        version: u64,
    },
    /// No value, or one that is older than what was seen.
    Nothing,
}

/// A way to the global cache.
pub trait Store: Send + Sync {
    /// What there is, for somebody who has seen version `known`.
    ///
    /// # Errors
    /// The server cannot be reached.
    fn get(&self, key: &str, known: Option<u64>) -> Result<Found, String>;

    /// Puts a plain value, or `None` for a live object, which only its own interpreter sees; its version.
    ///
    /// # Errors
    /// As of `get`.
    fn put(&self, key: &str, value: Option<Vec<u8>>, expiry: Option<u64>) -> Result<u64, String>;

    /// Removes a value; whether there was one.
    ///
    /// # Errors
    /// As of `get`.
    fn delete(&self, key: &str) -> Result<bool, String>;
}

static STORE: OnceLock<Box<dyn Store>> = OnceLock::new();
static LOCAL: OnceLock<Local> = OnceLock::new();
static EVICTED: AtomicU64 = AtomicU64::new(0);

/// The way to the server's global cache, in a worker process. Once, before any plugin runs.
pub fn reach_through(store: Box<dyn Store>) {
    let _first = STORE.set(store);
}

/// The global cache.
pub fn store() -> &'static dyn Store {
    STORE.get_or_init(|| Box::new(Here)).as_ref()
}

/// This process's own.
pub fn local() -> &'static Local {
    LOCAL.get_or_init(Local::default)
}

/// Values that had to go because there were too many.
pub fn evicted() -> u64 {
    EVICTED.load(Ordering::Relaxed)
}

/// The server's way: none.
struct Here;

impl Store for Here {
    fn get(&self, key: &str, known: Option<u64>) -> Result<Found, String> {
        Ok(local().get(key, known))
    }

    fn put(&self, key: &str, value: Option<Vec<u8>>, expiry: Option<u64>) -> Result<u64, String> {
        Ok(local().put(key, value, expiry))
    }

    fn delete(&self, key: &str) -> Result<bool, String> {
        Ok(local().delete(key))
    }
}

struct Entry {
    bytes: Vec<u8>,
    expiry: Option<u64>,
    version: u64,
}

#[derive(Default)]
struct Values {
    by_key: HashMap<String, Entry>,
    /// Keys by version: the oldest first.
    by_age: BTreeMap<u64, String>,
    bytes: usize,
    version: u64,
}

impl Values {
    fn remove(&mut self, key: &str) -> Option<Entry> {
        let entry = self.by_key.remove(key)?;
        self.by_age.remove(&entry.version);
        self.bytes -= key.len() + entry.bytes.len();
        Some(entry)
    }
}

/// The values themselves.
#[derive(Default)]
pub struct Local {
    values: Mutex<Values>,
}

impl Local {
    /// See [`Store::get`].
    pub fn get(&self, key: &str, known: Option<u64>) -> Found {
        let mut values = self.values.lock();
        let Some(entry) = values.by_key.get(key) else { return Found::Nothing };
        if entry.expiry.is_some_and(|expiry| expiry <= now_ns()) {
            values.remove(key);
            return Found::Nothing;
        }
        match known {
            Some(known) if known == entry.version => Found::Same,
            Some(known) if known > entry.version => Found::Nothing,
            _ => Found::Newer { bytes: entry.bytes.clone(), expiry: entry.expiry, version: entry.version },
        }
    }

    /// See [`Store::put`].
    pub fn put(&self, key: &str, value: Option<Vec<u8>>, expiry: Option<u64>) -> u64 {
        let mut values = self.values.lock();
        values.version += 1;
        let version = values.version;
        values.remove(key);
        if let Some(bytes) = value {
            values.bytes += key.len() + bytes.len();
            values.by_key.insert(key.to_owned(), Entry { bytes, expiry, version });
            values.by_age.insert(version, key.to_owned());
        }
        while values.bytes > GLOBAL_CACHE_BYTES_MAX {
            let Some((_, oldest)) = values.by_age.first_key_value() else { break };
            let oldest = oldest.clone();
            values.remove(&oldest);
            if EVICTED.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::warn!(
                    key = oldest,
                    "the global cache of plugins is full ({GLOBAL_CACHE_BYTES_MAX} bytes of plain values): what was put longest ago goes; later evictions are counted only (saltus_plugin_global_cache_evicted_total)"
                );
            }
        }
        version
    }

    /// See [`Store::delete`].
    pub fn delete(&self, key: &str) -> bool {
        self.values.lock().remove(key).is_some()
    }

    /// How many values there are, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let values = self.values.lock();
        (values.by_key.len(), values.bytes)
    }

    /// All values that have not expired, oldest first.
    pub fn all(&self) -> Vec<(String, Vec<u8>, Option<u64>)> {
        let (values, now) = (self.values.lock(), now_ns());
        let in_order = values.by_age.values().filter_map(|key| Some((key, values.by_key.get(key)?)));
        let valid = in_order.filter(|(_, entry)| entry.expiry.is_none_or(|expiry| expiry > now));
        valid.map(|(key, entry)| (key.clone(), entry.bytes.clone(), entry.expiry)).collect()
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_copy_learns_of_newer_values_only() {
        let cache = Local::default();
        let first = cache.put("k", Some(vec![1]), None);
        assert_eq!(cache.get("k", Some(first)), Found::Same);
        let second = cache.put("k", Some(vec![2]), None);
        assert_eq!(cache.get("k", Some(first)), Found::Newer { bytes: vec![2], expiry: None, version: second });
        let live = cache.put("k", None, None);
        assert!(live > second);
        assert_eq!(cache.get("k", Some(second)), Found::Nothing, "a live object has taken its place");
        assert!(!cache.delete("k"));
        cache.put("k", Some(vec![3]), Some(1));
        assert_eq!(cache.get("k", Some(live)), Found::Nothing, "it has expired");
        assert_eq!(cache.size(), (0, 0));
    }

    #[test]
    fn beyond_the_bound_the_oldest_values_go() {
        let cache = Local::default();
        let big = GLOBAL_CACHE_BYTES_MAX / 4;
        for key in ["a", "b", "c"] {
            cache.put(key, Some(vec![0; big]), None);
        }
        cache.put("a", Some(vec![1; big]), None);
        cache.put("d", Some(vec![0; big]), None);
        let kept: Vec<_> = cache.all().into_iter().map(|(key, ..)| key).collect();
        assert_eq!(kept, ["c", "a", "d"], "b was put longest ago");
        assert!(cache.size().1 <= GLOBAL_CACHE_BYTES_MAX && evicted() > 0);
    }
}
