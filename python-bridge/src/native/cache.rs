//! `influxdb3_local.cache` (reference, 1.6): objects that are kept between runs, by reference.
//!
//! # Where they are
//! - Those of a trigger in its interpreter: `_saltus._cache_spaces`, a dict by trigger of dicts `{key: (value, expiry or None)}`.
//! - Global ones as well, under -1, with entries `(value, expiry or None, version, is live)`. Besides, the plain ones are as bytes in
//!   [`crate::global_cache`], which all interpreters and worker processes of the server share. A plain value is the same object
//!   in its interpreter and a copy in others, until a newer one is put. A live object is in one interpreter: a deferred run that asks
//!   for it elsewhere is unwound, and made again there with its trigger.
//!
//! Expiry is the system's clock, in nanoseconds since 1970.

use std::ffi::CStr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use saltus_core::ids::{RoomId, TriggerId};
use saltus_core::limits::{
    CACHE_SWEEP_SECS, GLOBAL_CACHE_VALUE_BYTES_MAX, INLINE_CACHE_VALUE_ITEMS_MAX, PLUGIN_TEST_CACHE_SECS,
};
use saltus_core::ports::{LogLevel, LogText, Unwound};

use crate::effects::{Lane, RunInfo};
use crate::ffi::methodobject::{Args, Method};
use crate::ffi::pyerrors::Builtin;
use crate::ffi::typeobject::{Payload, TypeBuilder};
use crate::ffi::{Object, Py, PyResult, Raised};
use crate::global_cache::{self, Found, Home, Who};

/// The payload.
pub struct Cache {
    info: Rc<RunInfo>,
}

impl Cache {
    /// Of a run's trigger.
    pub fn new(info: Rc<RunInfo>) -> Self {
        Cache { info }
    }

    /// Whose space a call is about; `None` is the global one.
    fn space_of(&self, py: Py, use_global: Option<Object>) -> PyResult<Option<TriggerId>> {
        self.info.go_on(py)?;
        let global = match use_global.filter(|flag| !flag.is_none()) {
            Some(flag) => flag.extract_bool(py, "use_global")?,
            None => false,
        };
        let own = self.info.trigger_id;
        // Test runs have a global space of their own, in their interpreter.
        match (global, own.is_test()) {
            (true, true) => return Ok(Some(own.global_of_test())),
            (false, _) => return Ok(Some(own)),
            (true, false) => {}
        }
        if self.info.lane == Lane::Inline {
            if self.info.auto {
                // What others see cannot be undone.
                self.info.unwind(py, Unwound::Blocked("the global cache".into()))?;
            }
            self.info.cannot_be_undone();
        }
        Ok(None)
    }

    /// The space of a trigger in this interpreter; made if it is to be.
    fn own_space(&self, py: Py, of: TriggerId, make: bool) -> PyResult<Option<Object>> {
        space(py, &self.info, &Object::uint(py, of.0)?, make)
    }

    fn global_space(&self, py: Py) -> PyResult {
        let space = space(py, &self.info, &Object::int(py, -1)?, true)?;
        space.ok_or_else(|| Raised::new(py, Builtin::Runtime, "the global cache has no space"))
    }

    /// A copy of a value that may change, if the run has to be able to undo that.
    fn copy(&self, py: Py, value: &Object) -> PyResult<Option<Object>> {
        if self.info.lane == Lane::Deferred || value.is_scalar() {
            return Ok(None);
        }
        let most = Object::uint(py, INLINE_CACHE_VALUE_ITEMS_MAX as u64)?;
        match self.info.natives.copy_plain.call(py, [value, &most]) {
            Ok(copy) => Ok(Some(copy)),
            Err(raised) => {
                drop(raised.take(py));
                if self.info.auto {
                    self.info.unwind(py, Unwound::CacheNotPlain)?;
                }
                self.info.cannot_be_undone();
                Ok(None)
            }
        }
    }

    fn put_global(&self, py: Py, key: &Object, name: &str, value: Object, expiry: Option<u64>) -> PyResult<()> {
        let bytes = self.info.natives.dump_shared.call(py, [&value])?;
        let plain = match bytes.as_bytes(py) {
            Some(bytes) if bytes.len() > GLOBAL_CACHE_VALUE_BYTES_MAX => {
                let text = format!(
                    "the value of '{name}' in the global cache has {} bytes, more than {GLOBAL_CACHE_VALUE_BYTES_MAX}: only triggers in \
                     the same interpreter see it",
                    bytes.len()
                );
                self.info.tell(LogLevel::Warn, LogText::Said(text));
                None
            }
            Some(bytes) => Some(bytes.to_vec()),
            None => None,
        };
        let (live, who) = (Object::bool(py, plain.is_none()), self.who());
        let version = py
            .detach(|| global_cache::store().put(name, plain, expiry, &who))
            .map_err(|why| Raised::new(py, Builtin::Runtime, &why))?;
        let expiry = instant(py, expiry)?;
        let entry = Object::tuple(py, vec![value, expiry, Object::uint(py, version)?, live])?;
        self.global_space(py)?.dict_set(py, key, &entry)
    }

    fn get_global(&self, py: Py, key: &Object, name: &str) -> PyResult<Option<Object>> {
        let space = self.global_space(py)?;
        let mine = space.dict_get(py, key)?;
        let known = match &mine {
            None => None,
            Some(entry) => Some(entry.sequence_items(py)?[2].extract_u64(py)?),
        };
        let who = self.who();
        let found = py
            .detach(|| global_cache::store().get(name, known, &who))
            .map_err(|why| Raised::new(py, Builtin::Runtime, &why))?;
        match (found, mine) {
            (Found::Elsewhere { room, place }, _) => Err(self.elsewhere(py, name, room, &place)),
            (Found::Newer { bytes, expiry, version }, _) => {
                let value = self.info.natives.marshal_loads.call(py, [&Object::bytes(py, &bytes)?])?;
                let expiry = instant(py, expiry)?;
                let (version, live) = (Object::uint(py, version)?, Object::bool(py, false));
                space.dict_set(py, key, &Object::tuple(py, vec![value.clone(), expiry, version, live])?)?;
                Ok(Some(value))
            }
            (Found::Same, Some(entry)) => Ok(entry.sequence_items(py)?.into_iter().next()),
            (_, Some(entry)) => {
                // Another thread may have put a new one.
                if space.dict_get(py, key)?.is_some_and(|now| now.is(&entry)) {
                    space.call_method(py, "pop", [key, &Object::none(py)])?;
                }
                Ok(None)
            }
            (_, None) => Ok(None),
        }
    }

    fn who(&self) -> Who {
        let info = &self.info;
        let home = match (info.natives.room.get(), info.lane) {
            (Some(room), _) => Home::Room(room),
            (None, Lane::Inline) => Home::Inline(info.shard),
            (None, Lane::Deferred) => Home::Worker(info.trigger_id),
        };
        Who { home, trigger: info.trigger_id, name: info.trigger.clone() }
    }

    /// A live object is in another interpreter: the run is made again there, or says why it cannot.
    fn elsewhere(&self, py: Py, name: &str, room: Option<RoomId>, place: &str) -> Raised {
        let info = &self.info;
        let is_here = info.natives.room.get().is_some();
        if let (Some(room), true, true) = (room, is_here, info.may_move) {
            let what = format!("'{name}' of the global cache").into();
            if let Err(raised) = info.unwind(py, Unwound::LivesIn { room, what }) {
                return raised;
            }
        }
        let remedy = match (room, is_here) {
            (Some(_), true) => {
                "this trigger cannot move there, as it holds live objects of its own, or of yet another one"
            }
            (Some(_), false) if info.lane == Lane::Inline => "create this trigger with --execution auto or deferred",
            (Some(_), false) => "a trigger in a process of its own cannot have it",
            (None, _) => "create that trigger with --execution deferred and without --isolation process",
        };
        let text = format!(
            "the value of '{name}' in the global cache is a live object {place}: {remedy}; or put plain values, which every trigger can have"
        );
        Raised::new(py, Builtin::Runtime, &text)
    }

    fn delete_global(&self, py: Py, key: &Object, name: &str) -> PyResult<bool> {
        let shared =
            py.detach(|| global_cache::store().delete(name)).map_err(|why| Raised::new(py, Builtin::Runtime, &why))?;
        self.global_space(py)?.call_method(py, "pop", [key, &Object::none(py)])?;
        Ok(shared)
    }
}

fn space(py: Py, info: &RunInfo, key: &Object, make: bool) -> PyResult<Option<Object>> {
    let spaces = &info.natives.cache_spaces;
    if let Some(space) = spaces.dict_get(py, key)? {
        return Ok(Some(space));
    }
    if !make {
        return Ok(None);
    }
    let space = Object::dict(py)?;
    spaces.dict_set(py, key, &space)?;
    Ok(Some(space))
}

/// Nanoseconds since 1970.
fn wall_now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn instant(py: Py, expiry: Option<u64>) -> PyResult {
    match expiry {
        Some(instant) => Object::uint(py, instant),
        None => Ok(Object::none(py)),
    }
}

fn has_expired(py: Py, expiry: &Object) -> PyResult<bool> {
    Ok(!expiry.is_none() && expiry.extract_u64(py)? <= wall_now_ns())
}

/// When a value with this `ttl` expires. The error is Rust's own, as it is in InfluxDB 3.
fn expiry_of(py: Py, ttl: Option<Object>, trigger: TriggerId) -> PyResult<Option<u64>> {
    let Some(ttl) = ttl.filter(|ttl| !ttl.is_none()) else {
        let of_test = Duration::from_secs(PLUGIN_TEST_CACHE_SECS).as_nanos() as u64;
        return Ok(trigger.is_test().then(|| wall_now_ns().saturating_add(of_test)));
    };
    let ttl = Duration::try_from_secs_f64(ttl.extract_f64(py)?)
        .map_err(|error| Raised::new(py, Builtin::Value, &error.to_string()))?;
    let nanoseconds = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
    Ok(Some(wall_now_ns().saturating_add(nanoseconds)))
}

/// Removes expired entries, if it was not done lately: of all spaces of the interpreter, or in the inline lane of the trigger's own.
pub fn sweep_if_due(py: Py, info: &RunInfo) -> PyResult<()> {
    let (now, swept) = (Instant::now(), &info.natives.cache_swept);
    if swept.get().is_some_and(|last| now.duration_since(last) < Duration::from_secs(CACHE_SWEEP_SECS)) {
        return Ok(());
    }
    if swept.replace(Some(now)).is_none() {
        return Ok(());
    }
    let only = match info.lane {
        Lane::Inline => Object::uint(py, info.trigger_id.0)?,
        Lane::Deferred => Object::none(py),
    };
    let arguments = [&info.natives.cache_spaces, &Object::uint(py, wall_now_ns())?, &only];
    info.natives.sweep_cache.call(py, arguments).map(drop)
}

impl Payload for Cache {
    const NAME: &'static CStr = c"builtins.PyCache";
    const DOC: &'static CStr = c"Keeps live objects between runs, per trigger or (use_global) for all.";
}

/// The type's members.
pub fn define(builder: TypeBuilder<Cache>) -> TypeBuilder<Cache> {
    builder.method::<CachePut>().method::<CacheGet>().method::<CacheDelete>()
}

/// `cache.put(key, value, ttl=None, use_global=None)`
struct CachePut;

impl Method for CachePut {
    type Owner = Cache;
    const NAME: &'static CStr = c"put";
    const DOC: &'static CStr = c"Keeps a reference to value, for ttl seconds or until it is deleted.";

    fn call(py: Py, _this: &Object, owner: &Cache, args: &Args<'_>) -> PyResult {
        let [key, value, ttl, use_global] = args.bind(py, "put", ["key", "value", "ttl", "use_global"], 2)?;
        let (key, value) = (key.expect("required"), value.expect("required"));
        let name = key.extract_str(py, "key")?;
        let expiry = expiry_of(py, ttl, owner.info.trigger_id)?;
        let Some(of) = owner.space_of(py, use_global)? else {
            owner.put_global(py, &key, &name, value, expiry)?;
            return Ok(Object::none(py));
        };
        if owner.info.auto {
            // Looks whether it could move to another interpreter.
            owner.copy(py, &value)?;
        }
        // From here on no Python code runs until the entry is in its place.
        let Some(space) = owner.own_space(py, of, true)? else { return Ok(Object::none(py)) };
        let before = space.dict_get(py, &key)?;
        owner.info.before_cache_change(&space, &key, before.as_ref());
        space.dict_set(py, &key, &Object::tuple(py, vec![value, instant(py, expiry)?])?)?;
        drop(before);
        Ok(Object::none(py))
    }
}

/// `cache.get(key, default=None, use_global=None)`
struct CacheGet;

impl Method for CacheGet {
    type Owner = Cache;
    const NAME: &'static CStr = c"get";
    const DOC: &'static CStr = c"The object kept under key, or default.";

    fn call(py: Py, _this: &Object, owner: &Cache, args: &Args<'_>) -> PyResult {
        let [key, default, use_global] = args.bind(py, "get", ["key", "default", "use_global"], 1)?;
        let key = key.expect("required");
        let name = key.extract_str(py, "key")?;
        let default = default.unwrap_or_else(|| Object::none(py));
        let Some(of) = owner.space_of(py, use_global)? else {
            return Ok(owner.get_global(py, &key, &name)?.unwrap_or(default));
        };
        let Some(space) = owner.own_space(py, of, false)? else { return Ok(default) };
        let Some(whole) = space.dict_get(py, &key)? else { return Ok(default) };
        let entry = whole.sequence_items(py)?;
        if has_expired(py, &entry[1])? {
            owner.info.before_cache_change(&space, &key, Some(&whole));
            space.call_method(py, "pop", [&key, &Object::none(py)])?;
            return Ok(default);
        }
        if !entry[0].is_scalar()
            && !owner.info.has_recorded(&space, &name, py)
            && let Some(copy) = owner.copy(py, &entry[0])?
        {
            let before = Object::tuple(py, vec![copy, entry[1].clone()])?;
            owner.info.before_cache_change(&space, &key, Some(&before));
        }
        Ok(entry[0].clone())
    }
}

/// `cache.delete(key, use_global=None)`
struct CacheDelete;

impl Method for CacheDelete {
    type Owner = Cache;
    const NAME: &'static CStr = c"delete";
    const DOC: &'static CStr = c"Forgets the object kept under key; whether there was one.";

    fn call(py: Py, _this: &Object, owner: &Cache, args: &Args<'_>) -> PyResult {
        let [key, use_global] = args.bind(py, "delete", ["key", "use_global"], 1)?;
        let key = key.expect("required");
        let name = key.extract_str(py, "key")?;
        let Some(of) = owner.space_of(py, use_global)? else {
            let existed = owner.delete_global(py, &key, &name)?;
            return Ok(Object::bool(py, existed));
        };
        let Some(space) = owner.own_space(py, of, false)? else { return Ok(Object::bool(py, false)) };
        let before = space.dict_get(py, &key)?;
        if before.is_some() {
            owner.info.before_cache_change(&space, &key, before.as_ref());
            space.call_method(py, "pop", [&key, &Object::none(py)])?;
        }
        Ok(Object::bool(py, before.is_some()))
    }
}
