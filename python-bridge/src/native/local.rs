//! `InfluxDB3Local` and `Cache`: the first argument of every entry function (reference, 1.4 and 1.6).

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;
use std::sync::Arc;

use saltus_core::ids::{EventId, ShardId};
use saltus_core::limits::{INLINE_CACHE_VALUE_ITEMS_MAX, RUN_OUTPUT_BYTES_MAX};
use saltus_core::ports::{LogLevel, QueuedWrite, Unwound};

use super::convert;
use crate::effects::{Lane, RunInfo};
use crate::ffi::methodobject::{Args, Method, Property};
use crate::ffi::pyerrors::Builtin;
use crate::ffi::typeobject::{Payload, TypeBuilder};
use crate::ffi::{Object, Py, PyResult, Raised, time};

/// The payload of `InfluxDB3Local`; one per run.
pub struct Local {
    info: Rc<RunInfo>,
    writes: RefCell<Vec<QueuedWrite>>,
    /// Bytes of what is queued; beyond the limit once the run wanted more than it may have.
    queued_bytes: Cell<usize>,
    /// Lines of it.
    queued_rows: Cell<u64>,
    event: EventInfo,
}

/// What a run is for, as far as a plugin may ask.
pub struct EventInfo {
    /// The writes, a table batch each.
    pub ids: Vec<EventId>,
    /// How often it was tried before.
    pub attempt: u32,
    /// The trigger's home.
    pub shard: ShardId,
    /// Lines that the run may queue.
    pub output_rows_max: u64,
}

impl Local {
    /// For one run.
    pub fn new(info: Rc<RunInfo>, event: EventInfo) -> Self {
        Local { info, writes: RefCell::default(), queued_bytes: Cell::new(0), queued_rows: Cell::new(0), event }
    }

    /// What the run has queued so far, one item per database, in order of first use. What is queued later is lost, as
    /// it is in InfluxDB 3.
    ///
    /// # Errors
    /// `LimitError` if the run wanted to queue more than it may, whether or not the plugin caught it then.
    pub fn take_writes(&self, py: Py) -> PyResult<Vec<QueuedWrite>> {
        self.check_limit(py)?;
        Ok(self.writes.take())
    }

    fn check_limit(&self, py: Py) -> PyResult<()> {
        let rows_max = self.event.output_rows_max;
        let message = if self.queued_bytes.get() > RUN_OUTPUT_BYTES_MAX {
            format!(
                "the run queued more than {RUN_OUTPUT_BYTES_MAX} bytes of line protocol; nothing of it is written; write less per run"
            )
        } else if self.queued_rows.get() > rows_max {
            format!(
                "the run queued more than {rows_max} rows; nothing of it is written; write less per run, or raise the trigger's limit output_rows"
            )
        } else {
            return Ok(());
        };
        Err(Raised::of(py, &self.info.natives.limit_error, &message))
    }

    fn log(&self, py: Py, level: LogLevel, function: &str, args: &Args<'_>) -> PyResult {
        self.info.go_on(py)?;
        let mut text = String::new();
        for (at, argument) in args.positional(py, function)?.iter().enumerate() {
            if at > 0 {
                text.push(' ');
            }
            text.push_str(&argument.str(py)?.extract_str(py, "str()")?);
        }
        self.info.log(level, text);
        Ok(Object::none(py))
    }

    fn queue(&self, py: Py, db: &str, line_builder: &Object) -> PyResult {
        self.info.go_on(py)?;
        let built = line_builder.getattr_key(py, &self.info.natives.build_key)?.call(py, [])?;
        let Some(lines) = built.as_str(py) else {
            let message = format!("build() must return str, not {}", built.type_name(py));
            return Err(Raised::new(py, Builtin::Type, &message));
        };
        let lines = lines?;
        self.queued_bytes.set(self.queued_bytes.get().saturating_add(lines.len() + 1));
        let rows = 1 + memchr::memchr_iter(b'\n', lines.trim_end().as_bytes()).count() as u64;
        self.queued_rows.set(self.queued_rows.get() + rows);
        self.check_limit(py)?;
        let mut writes = self.writes.borrow_mut();
        match writes.iter_mut().find(|w| w.db.as_ref() == db) {
            Some(write) => {
                write.lines.push('\n');
                write.lines.push_str(lines);
            }
            None => writes.push(QueuedWrite { db: db.into(), lines: lines.to_owned() }),
        }
        Ok(Object::none(py))
    }
}

impl Payload for Local {
    const NAME: &'static CStr = c"_saltus.InfluxDB3Local";
    const DOC: &'static CStr = c"The database as a plugin's run sees it.";
}

/// The type's members.
pub fn define(builder: TypeBuilder<Local>) -> TypeBuilder<Local> {
    builder
        .method::<Info>()
        .method::<Warn>()
        .method::<Error>()
        .method::<Write>()
        .method::<WriteToDb>()
        .method::<Query>()
        .property::<CacheProperty>()
        .property::<EventProperty>()
}

macro_rules! log_methods {
    ($($type:ident = $c_name:literal $name:literal $level:ident),+) => {
        $(
            #[doc = concat!("`influxdb3_local.", $name, "(*args)`")]
            struct $type;

            impl Method for $type {
                type Owner = Local;
                const NAME: &'static CStr = $c_name;
                const DOC: &'static CStr = c"Writes str() of the arguments, joined by spaces, to the log.";

                fn call(py: Py, _this: &Object, owner: &Local, args: &Args<'_>) -> PyResult {
                    owner.log(py, LogLevel::$level, $name, args)
                }
            }
        )+
    };
}

log_methods!(Info = c"info" "info" Info, Warn = c"warn" "warn" Warn, Error = c"error" "error" Error);

/// `influxdb3_local.write(line_builder)`
struct Write;

impl Method for Write {
    type Owner = Local;
    const NAME: &'static CStr = c"write";
    const DOC: &'static CStr = c"Queues line_builder.build() for the trigger's database; applied if the run succeeds.";

    fn call(py: Py, _this: &Object, owner: &Local, args: &Args<'_>) -> PyResult {
        let [builder] = args.bind(py, "write", ["line_builder"], 1)?;
        owner.queue(py, &owner.info.db, &builder.expect("required"))
    }
}

/// `influxdb3_local.write_to_db(db_name, line_builder)`
struct WriteToDb;

impl Method for WriteToDb {
    type Owner = Local;
    const NAME: &'static CStr = c"write_to_db";
    const DOC: &'static CStr = c"Queues line_builder.build() for any database; applied if the run succeeds.";

    fn call(py: Py, _this: &Object, owner: &Local, args: &Args<'_>) -> PyResult {
        let [db, builder] = args.bind(py, "write_to_db", ["db_name", "line_builder"], 2)?;
        let db = db.expect("required").extract_str(py, "db_name")?;
        owner.queue(py, &db, &builder.expect("required"))
    }
}

/// `influxdb3_local.query(query, args=None, database=None)`
struct Query;

impl Method for Query {
    type Owner = Local;
    const NAME: &'static CStr = c"query";
    const DOC: &'static CStr = c"Runs SQL and returns the rows as dicts; raises QueryError.";

    fn call(py: Py, _this: &Object, owner: &Local, args: &Args<'_>) -> PyResult {
        let [sql, parameters, database] = args.bind(py, "query", ["query", "args", "database"], 1)?;
        let sql = sql.expect("required").extract_str(py, "query")?;
        let parameters = match parameters.filter(|p| !p.is_none()) {
            None => Vec::new(),
            Some(dict) if dict.is_dict() => dict
                .dict_items(py)?
                .iter()
                .map(|(k, v)| Ok((k.extract_str(py, "a key of args")?, v.extract_str(py, "a value of args")?)))
                .collect::<PyResult<Vec<_>>>()?,
            Some(other) => {
                let message = format!("args must be dict or None, not {}", other.type_name(py));
                return Err(Raised::new(py, Builtin::Type, &message));
            }
        };
        let db: Arc<str> = match database.filter(|d| !d.is_none()) {
            None => owner.info.db.clone(),
            Some(name) => name.extract_str(py, "database")?.into(),
        };
        owner.info.reach(py, "query()")?;
        let host = owner.info.host.as_ref();
        match py.detach(|| host.query(&db, &sql, &parameters)) {
            Ok(batches) => convert::rows(py, &batches),
            Err(message) => Err(Raised::of(py, &owner.info.natives.query_error, &message)),
        }
    }
}

/// `influxdb3_local.event`
struct EventProperty;

impl Property for EventProperty {
    type Owner = Local;
    const NAME: &'static CStr = c"event";
    const DOC: &'static CStr = c"What the run is for.";

    fn get(py: Py, _this: &Object, owner: &Local) -> PyResult {
        let EventInfo { ids, attempt, shard, .. } = &owner.event;
        let ids = ids.iter().map(|id| Object::text(py, &id.to_string())).collect::<PyResult<Vec<_>>>()?;
        let ids = Object::tuple(py, ids)?;
        let run_id = Object::uint(py, owner.info.run_id.0)?;
        let (attempt, shard) = (Object::uint(py, u64::from(*attempt))?, Object::uint(py, u64::from(shard.0))?);
        let (kind, trigger) = (Object::text(py, "write")?, Object::text(py, &owner.info.trigger)?);
        let class = Object::import(py, "saltus.event")?.getattr(py, "Event")?;
        class.call(py, [&kind, &ids, &run_id, &trigger, &attempt, &shard])
    }
}

/// `influxdb3_local.cache`
struct CacheProperty;

impl Property for CacheProperty {
    type Owner = Local;
    const NAME: &'static CStr = c"cache";
    const DOC: &'static CStr = c"Live objects that are kept between runs.";

    fn get(py: Py, _this: &Object, owner: &Local) -> PyResult {
        owner.info.natives.cache.instance(py, Cache { info: owner.info.clone() })
    }
}

/// The payload of `Cache`. Its objects live in the interpreter's `_saltus._cache_spaces`: a dict of dicts by trigger,
/// and by -1 for the global space, which is one per interpreter.
pub struct Cache {
    info: Rc<RunInfo>,
}

impl Cache {
    fn space(&self, py: Py, use_global: Option<Object>) -> PyResult {
        let global = match use_global {
            Some(flag) => flag.truthy(py)?,
            None => false,
        };
        self.info.go_on(py)?;
        if global && self.info.lane == Lane::Inline && self.info.auto {
            // Each interpreter has one of its own.
            self.info.unwind(py, Unwound::Blocked("the global cache".into()))?;
        }
        let key = if global { Object::int(py, -1)? } else { Object::uint(py, self.info.trigger_id.0)? };
        let spaces = &self.info.natives.cache_spaces;
        if let Some(space) = spaces.dict_get(py, &key)? {
            return Ok(space);
        }
        let space = Object::dict(py)?;
        spaces.dict_set(py, &key, &space)?;
        Ok(space)
    }
}

impl Cache {
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
}

impl Payload for Cache {
    const NAME: &'static CStr = c"_saltus.Cache";
    const DOC: &'static CStr = c"Keeps live objects between runs, per trigger or (use_global) per interpreter.";
}

/// The type's members.
pub fn define_cache(builder: TypeBuilder<Cache>) -> TypeBuilder<Cache> {
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
        let key = key.expect("required");
        key.extract_str(py, "key")?;
        let expiry = match ttl.filter(|t| !t.is_none()) {
            None => Object::none(py),
            Some(ttl) => {
                let seconds = std::time::Duration::try_from_secs_f64(ttl.extract_f64(py)?)
                    .map_err(|e| Raised::new(py, Builtin::Value, &e.to_string()))?;
                let nanoseconds = i64::try_from(seconds.as_nanos()).unwrap_or(i64::MAX) as u64;
                Object::uint(py, time::now().0.saturating_add(nanoseconds).min(i64::MAX as u64))?
            }
        };
        let space = owner.space(py, use_global)?;
        let value = value.expect("required");
        if owner.info.auto {
            // Looks whether it could move to another interpreter.
            owner.copy(py, &value)?;
        }
        owner.info.before_cache_change(&space, &key, space.dict_get(py, &key)?.as_ref());
        space.dict_set(py, &key, &Object::tuple(py, vec![value, expiry])?)?;
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
        let space = owner.space(py, use_global)?;
        let Some(entry) = space.dict_get(py, &key)? else { return Ok(default) };
        let whole = entry;
        let entry = whole.sequence_items(py)?;
        if !entry[1].is_none() && entry[1].extract_i64(py)? as u64 <= time::now().0 {
            owner.info.before_cache_change(&space, &key, Some(&whole));
            space.call_method(py, "pop", [&key])?;
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
        key.extract_str(py, "key")?;
        let space = owner.space(py, use_global)?;
        let before = space.dict_get(py, &key)?;
        let existed = before.is_some();
        if existed {
            owner.info.before_cache_change(&space, &key, before.as_ref());
            space.call_method(py, "pop", [&key])?;
        }
        Ok(Object::bool(py, existed))
    }
}
