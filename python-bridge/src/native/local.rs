//! `InfluxDB3Local` and `Cache`: the first argument of every entry function (reference, 1.4 and 1.6).

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;
use std::sync::Arc;

use saltus_core::ids::{RunId, TriggerId};
use saltus_core::limits::RUN_OUTPUT_BYTES_MAX;
use saltus_core::ports::{LogLevel, LogLine, LogText, PluginHost, QueuedWrite};

use super::{Natives, convert};
use crate::ffi::methodobject::{Args, Method, Property};
use crate::ffi::pyerrors::Builtin;
use crate::ffi::typeobject::{Payload, TypeBuilder};
use crate::ffi::{Object, Py, PyResult, Raised, time};

/// Which run this is, and where its words go. Shared by the plugin's object and the thread's output.
pub struct RunInfo {
    /// The way out.
    pub host: Arc<dyn PluginHost>,
    /// The trigger's database.
    pub db: Arc<str>,
    /// The trigger.
    pub trigger: Arc<str>,
    /// Its identity: the cache's namespace.
    pub trigger_id: TriggerId,
    /// The run.
    pub run_id: RunId,
    /// False in the inline lane, whose thread must not wait for anything.
    pub may_block: bool,
}

impl RunInfo {
    /// Writes to `system.processing_engine_logs`.
    pub fn log(&self, level: LogLevel, text: String) {
        self.tell(level, LogText::Said(text));
    }

    /// What the engine itself says of a run.
    pub fn tell(&self, level: LogLevel, text: LogText) {
        self.host.log(LogLine { db: self.db.clone(), trigger: self.trigger.clone(), run_id: self.run_id, level, text });
    }
}

/// The payload of `InfluxDB3Local`; one per run.
pub struct Local {
    info: Rc<RunInfo>,
    natives: Rc<Natives>,
    writes: RefCell<Vec<QueuedWrite>>,
    /// Bytes of what is queued; beyond the limit once the run wanted more than it may have.
    queued_bytes: Cell<usize>,
}

impl Local {
    /// For one run.
    pub fn new(info: Rc<RunInfo>, natives: Rc<Natives>) -> Self {
        Local { info, natives, writes: RefCell::default(), queued_bytes: Cell::new(0) }
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
        if self.queued_bytes.get() <= RUN_OUTPUT_BYTES_MAX {
            return Ok(());
        }
        let message = format!(
            "the run queued more than {RUN_OUTPUT_BYTES_MAX} bytes of line protocol; nothing of it is written; write less per run"
        );
        Err(Raised::of(py, &self.natives.limit_error, &message))
    }

    fn log(&self, py: Py, level: LogLevel, function: &str, args: &Args<'_>) -> PyResult {
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
        let built = line_builder.getattr_key(py, &self.natives.build_key)?.call(py, [])?;
        let Some(lines) = built.as_str(py) else {
            let message = format!("build() must return str, not {}", built.type_name(py));
            return Err(Raised::new(py, Builtin::Type, &message));
        };
        let lines = lines?;
        self.queued_bytes.set(self.queued_bytes.get().saturating_add(lines.len() + 1));
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
        if !owner.info.may_block {
            let message = format!(
                "query() would block the thread that ingests data, so the inline lane does not have it: create trigger \
                 '{}' with --execution deferred",
                owner.info.trigger
            );
            return Err(Raised::of(py, &owner.natives.query_error, &message));
        }
        let host = owner.info.host.as_ref();
        match py.detach(|| host.query(&db, &sql, &parameters)) {
            Ok(batches) => convert::rows(py, &batches),
            Err(message) => Err(Raised::of(py, &owner.natives.query_error, &message)),
        }
    }
}

/// `influxdb3_local.cache`
struct CacheProperty;

impl Property for CacheProperty {
    type Owner = Local;
    const NAME: &'static CStr = c"cache";
    const DOC: &'static CStr = c"Live objects that are kept between runs.";

    fn get(py: Py, _this: &Object, owner: &Local) -> PyResult {
        let cache = Cache { trigger_id: owner.info.trigger_id, natives: owner.natives.clone() };
        owner.natives.cache.instance(py, cache)
    }
}

/// The payload of `Cache`. Its objects live in the interpreter's `_saltus._cache_spaces`: a dict of dicts by trigger,
/// and by -1 for the global space, which is one per interpreter.
pub struct Cache {
    trigger_id: TriggerId,
    natives: Rc<Natives>,
}

impl Cache {
    fn space(&self, py: Py, use_global: Option<Object>) -> PyResult {
        let global = match use_global {
            Some(flag) => flag.truthy(py)?,
            None => false,
        };
        let key = if global { Object::int(py, -1)? } else { Object::uint(py, self.trigger_id.0)? };
        if let Some(space) = self.natives.cache_spaces.dict_get(py, &key)? {
            return Ok(space);
        }
        let space = Object::dict(py)?;
        self.natives.cache_spaces.dict_set(py, &key, &space)?;
        Ok(space)
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
        space.dict_set(py, &key, &Object::tuple(py, vec![value.expect("required"), expiry])?)?;
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
        key.extract_str(py, "key")?;
        let default = default.unwrap_or_else(|| Object::none(py));
        let space = owner.space(py, use_global)?;
        let Some(entry) = space.dict_get(py, &key)? else { return Ok(default) };
        let entry = entry.sequence_items(py)?;
        if !entry[1].is_none() && entry[1].extract_i64(py)? as u64 <= time::now().0 {
            space.call_method(py, "pop", [&key])?;
            return Ok(default);
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
        let existed = space.dict_get(py, &key)?.is_some();
        if existed {
            space.call_method(py, "pop", [&key])?;
        }
        Ok(Object::bool(py, existed))
    }
}
