//! The plain values of the global cache, shared by all interpreters of the server and by its worker processes.
//!
//! **Contract.** A value is bytes that `marshal` has made, under a key, with a version that no other has. Who holds a copy asks with
//! its version whether there is a newer value. What is here is bounded: beyond [`GLOBAL_CACHE_BYTES_MAX`] the values that were put
//! longest ago go, which is counted. It is *not* on the data path: triggers that the policy may run inline are kept from it.
//!
//! In a worker process [`store`] is the server's, over the socket.
//!
//! A live object is in one interpreter, its *home*. Here is only where that is, and which triggers have taken it there: who asks for it
//! elsewhere is told, and goes there if it can; who has taken it stays.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use saltus_core::ids::{RoomId, ShardId, TriggerId};
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
    /// A live object that is in another interpreter.
    Elsewhere {
        /// Where a deferred run has it, if one could.
        room: Option<RoomId>,
        /// Where that is and who has put it there, in words.
        place: String,
    },
}

/// Where live objects are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In a deferred interpreter.
    Room(RoomId),
    /// In the inline interpreter of a shard.
    Inline(ShardId),
    /// In the worker process of a trigger.
    Worker(TriggerId),
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Who {
    /// From where.
    pub home: Home,
    /// The trigger.
    pub trigger: TriggerId,
    /// Its name.
    pub name: std::sync::Arc<str>,
}

/// A way to the global cache.
pub trait Store: Send + Sync {
    /// What there is, for somebody who has seen version `known`.
    ///
    /// # Errors
    /// The server cannot be reached.
    fn get(&self, key: &str, known: Option<u64>, who: &Who) -> Result<Found, String>;

    /// Puts a plain value, or `None` for a live object, which is where `who` is; its version.
    ///
    /// # Errors
    /// As of `get`.
    fn put(&self, key: &str, value: Option<Vec<u8>>, expiry: Option<u64>, who: &Who) -> Result<u64, String>;

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
    fn get(&self, key: &str, known: Option<u64>, who: &Who) -> Result<Found, String> {
        Ok(local().get(key, known, who))
    }

    fn put(&self, key: &str, value: Option<Vec<u8>>, expiry: Option<u64>, who: &Who) -> Result<u64, String> {
        Ok(match value {
            Some(value) => local().put(key, value, expiry),
            None => local().put_live(key, expiry, who),
        })
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

/// A live object.
struct Live {
    home: Home,
    put_by: std::sync::Arc<str>,
    /// Triggers that have it.
    users: Vec<TriggerId>,
    expiry: Option<u64>,
    version: u64,
}

impl Live {
    fn place(&self) -> String {
        match self.home {
            Home::Room(_) => format!("in the interpreter in which trigger '{}' has put it", self.put_by),
            Home::Inline(shard) => {
                format!("in the inline interpreter of shard {shard}, in which trigger '{}' has put it", self.put_by)
            }
            Home::Worker(_) => format!("in the process of trigger '{}', which has put it", self.put_by),
        }
    }
}

#[derive(Default)]
struct Values {
    by_key: HashMap<String, Entry>,
    /// Keys by version: the oldest first.
    by_age: BTreeMap<u64, String>,
    live: HashMap<String, Live>,
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
    pub fn get(&self, key: &str, known: Option<u64>, who: &Who) -> Found {
        let mut values = self.values.lock();
        if let Some(live) = values.live.get_mut(key) {
            if live.expiry.is_some_and(|expiry| expiry <= now_ns()) {
                values.live.remove(key);
                return Found::Nothing;
            }
            if live.home != who.home {
                let room = match live.home {
                    Home::Room(room) => Some(room),
                    Home::Inline(_) | Home::Worker(_) => None,
                };
                return Found::Elsewhere { room, place: live.place() };
            }
            // Another thread of its interpreter may be about to put it there.
            if known != Some(live.version) {
                return Found::Nothing;
            }
            if !live.users.contains(&who.trigger) {
                live.users.push(who.trigger);
            }
            return Found::Same;
        }
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
    pub fn put_live(&self, key: &str, expiry: Option<u64>, who: &Who) -> u64 {
        let mut values = self.values.lock();
        values.version += 1;
        let version = values.version;
        values.remove(key);
        let live = Live { home: who.home, put_by: who.name.clone(), users: vec![who.trigger], expiry, version };
        values.live.insert(key.to_owned(), live);
        version
    }

    /// What a trigger has of the live objects of a deferred interpreter, if it has any: a key.
    pub fn lives_with(&self, trigger: TriggerId, room: RoomId) -> Option<String> {
        let (mut values, now) = (self.values.lock(), now_ns());
        values.live.retain(|_, live| live.expiry.is_none_or(|expiry| expiry > now));
        let of_it = |live: &Live| live.home == Home::Room(room) && live.users.contains(&trigger);
        values.live.iter().find(|(_, live)| of_it(live)).map(|(key, _)| key.clone())
    }

    /// What was there is gone.
    pub fn lost(&self, home: Home) {
        self.values.lock().live.retain(|_, live| live.home != home);
    }

    /// See [`Store::put`].
    pub fn put(&self, key: &str, bytes: Vec<u8>, expiry: Option<u64>) -> u64 {
        let mut values = self.values.lock();
        values.version += 1;
        let version = values.version;
        values.remove(key);
        values.live.remove(key);
        values.bytes += key.len() + bytes.len();
        values.by_key.insert(key.to_owned(), Entry { bytes, expiry, version });
        values.by_age.insert(version, key.to_owned());
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
        let mut values = self.values.lock();
        let live = values.live.remove(key).is_some_and(|live| live.expiry.is_none_or(|expiry| expiry > now_ns()));
        values.remove(key).is_some() || live
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

    fn who(trigger: u64, home: Home) -> Who {
        Who { home, trigger: TriggerId(trigger), name: format!("t{trigger}").into() }
    }

    #[test]
    fn who_holds_a_copy_learns_of_newer_values_only() {
        let (cache, me) = (Local::default(), who(1, Home::Room(RoomId(1))));
        let first = cache.put("k", vec![1], None);
        assert_eq!(cache.get("k", Some(first), &me), Found::Same);
        let second = cache.put("k", vec![2], None);
        let newer = Found::Newer { bytes: vec![2], expiry: None, version: second };
        assert_eq!(cache.get("k", Some(first), &me), newer);
        let live = cache.put_live("k", None, &me);
        assert!(live > second);
        assert_eq!(cache.get("k", Some(live), &me), Found::Same);
        assert!(cache.delete("k") && !cache.delete("k"));
        assert_eq!(cache.get("k", Some(live), &me), Found::Nothing, "deleted, though its interpreter has it yet");
        cache.put("k", vec![3], Some(1));
        assert_eq!(cache.get("k", Some(live), &me), Found::Nothing, "it has expired");
        assert_eq!(cache.size(), (0, 0));
    }

    #[test]
    fn who_asks_for_a_live_object_elsewhere_is_told_where_it_is_and_who_has_it_stays() {
        let cache = Local::default();
        let (here, there) = (RoomId(1), RoomId(2));
        let (one, two) = (who(1, Home::Room(here)), who(2, Home::Room(there)));
        let version = cache.put_live("lock", None, &one);
        let Found::Elsewhere { room, place } = cache.get("lock", None, &two) else { panic!("it is in another one") };
        assert_eq!(room, Some(here));
        assert!(place.contains("trigger 't1'"), "{place}");
        assert_eq!(cache.lives_with(TriggerId(2), here), None);
        assert_eq!(cache.get("lock", Some(version), &who(2, Home::Room(here))), Found::Same);
        assert_eq!(cache.lives_with(TriggerId(2), here).as_deref(), Some("lock"));
        assert_eq!(cache.lives_with(TriggerId(2), there), None);
        cache.lost(Home::Room(here));
        assert_eq!((cache.lives_with(TriggerId(1), here), cache.get("lock", None, &two)), (None, Found::Nothing));

        cache.put_live("lock", None, &who(3, Home::Worker(TriggerId(3))));
        assert!(matches!(cache.get("lock", None, &two), Found::Elsewhere { room: None, .. }));
        cache.put_live("short", Some(1), &one);
        assert_eq!(cache.get("short", None, &two), Found::Nothing, "it has expired");
    }

    #[test]
    fn beyond_the_bound_the_oldest_values_go() {
        let cache = Local::default();
        let big = GLOBAL_CACHE_BYTES_MAX / 4;
        for key in ["a", "b", "c"] {
            cache.put(key, vec![0; big], None);
        }
        cache.put("a", vec![1; big], None);
        cache.put("d", vec![0; big], None);
        let kept: Vec<_> = cache.all().into_iter().map(|(key, ..)| key).collect();
        assert_eq!(kept, ["c", "a", "d"], "b was put longest ago");
        assert!(cache.size().1 <= GLOBAL_CACHE_BYTES_MAX && evicted() > 0);
    }
}
