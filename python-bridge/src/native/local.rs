//! The first argument of every entry function (reference, 1.4). Its type has the name that it has in InfluxDB 3; documents call
//! it `InfluxDB3Local`.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::rc::Rc;
use std::sync::Arc;

use saltus_core::ids::{EventId, ShardId};
use saltus_core::limits::RUN_OUTPUT_BYTES_MAX;
use saltus_core::line_protocol::{Text, look_at};
use saltus_core::names::INTERNAL_DB;
use saltus_core::ports::{LogLevel, QueuedWrite, RunEvent, RunRequest, ScheduledCall};
use saltus_core::request::PluginRequest;
use saltus_core::trigger::TriggerKind;

use super::cache::{self, Cache};
use super::query::Query;
use super::state::State;
use super::write_sync::{WriteSync, WriteSyncToDb};
use crate::effects::RunInfo;
use crate::ffi::methodobject::{Args, Method, Property};
use crate::ffi::pyerrors::Builtin;
use crate::ffi::typeobject::{Payload, TypeBuilder};
use crate::ffi::{Object, Py, PyResult, Raised};

/// The payload; one per run.
pub struct Local {
    /// The run.
    pub info: Rc<RunInfo>,
    writes: RefCell<Vec<Queued>>,
    /// Bytes of what is written; beyond the limit once the run wanted more than it may have.
    written_bytes: Cell<usize>,
    /// Lines of it.
    written_rows: Cell<u64>,
    event: EventInfo,
}

/// Lines for one database.
struct Queued {
    write: QueuedWrite,
    /// It ends in a string that does not end, which would swallow what was put behind it.
    open: bool,
}

/// What is said of a write that has no line.
const NO_LINE: &str =
    "write(): there is no line in what build() gave, it is empty, blank or a comment; nothing is written of it";

/// What a run is for, as far as a plugin may ask.
pub struct EventInfo {
    kind: TriggerKind,
    /// The writes, a table batch each.
    ids: Vec<EventId>,
    scheduled: Option<ScheduledCall>,
    /// How often it was tried before.
    attempt: u32,
    /// The trigger's home.
    shard: ShardId,
    /// Lines that the run may queue.
    output_rows_max: u64,
    request: Option<Arc<PluginRequest>>,
}

impl EventInfo {
    /// The event of a request.
    pub fn of(request: &RunRequest) -> Self {
        let (scheduled, asked) = match &request.event {
            RunEvent::Schedule(call) => (Some(*call), None),
            RunEvent::Request(request) => (None, Some(request.clone())),
            RunEvent::Writes(_) => (None, None),
        };
        EventInfo {
            kind: request.event.kind(),
            ids: request.event.tables().iter().map(|table| table.id).collect(),
            scheduled,
            attempt: request.attempt,
            shard: request.shard,
            output_rows_max: request.limits.output_rows,
            request: asked,
        }
    }
}

impl Local {
    /// For one run.
    pub fn new(info: Rc<RunInfo>, event: EventInfo) -> Self {
        Local { info, writes: RefCell::default(), written_bytes: Cell::new(0), written_rows: Cell::new(0), event }
    }

    /// What the run has queued so far, one item per database, in order of first use. What is queued later is lost, as
    /// it is in InfluxDB 3.
    ///
    /// # Errors
    /// `LimitError` if the run wanted to queue more than it may, whether or not the plugin caught it then.
    pub fn take_writes(&self, py: Py) -> PyResult<Vec<QueuedWrite>> {
        self.check_limit(py)?;
        Ok(self.writes.take().into_iter().map(|queued| queued.write).collect())
    }

    fn check_limit(&self, py: Py) -> PyResult<()> {
        let rows_max = self.event.output_rows_max;
        let message = if self.written_bytes.get() > RUN_OUTPUT_BYTES_MAX {
            format!(
                "the run wrote more than {RUN_OUTPUT_BYTES_MAX} bytes of line protocol; nothing that it queued is written; write less per run"
            )
        } else if self.written_rows.get() > rows_max {
            format!(
                "the run wrote more than {rows_max} rows; nothing that it queued is written; write less per run, or raise the trigger's limit output_rows"
            )
        } else {
            return Ok(());
        };
        Err(Raised::of(py, &self.info.natives.limit_error, &message))
    }

    fn log(&self, py: Py, level: LogLevel, function: &str, args: &Args<'_>) -> PyResult {
        self.info.alive(py)?;
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

    /// What `line_builder.build()` gives, counted as written. Any object with `build()` will do.
    pub fn build(&self, py: Py, db: &str, line_builder: &Object) -> PyResult<String> {
        let built = line_builder.getattr_key(py, &self.info.natives.build_key)?.call(py, [])?;
        let Some(lines) = built.as_str(py) else {
            let message = format!("build() must return str, not {}", built.type_name(py));
            return Err(Raised::new(py, Builtin::Type, &message));
        };
        let lines = lines?;
        if db == INTERNAL_DB {
            return Err(write_error(py, db, "cannot modify internal db"));
        }
        self.written_bytes.set(self.written_bytes.get().saturating_add(lines.len() + 1));
        let rows = 1 + memchr::memchr_iter(b'\n', lines.trim_end().as_bytes()).count() as u64;
        self.written_rows.set(self.written_rows.get() + rows);
        self.check_limit(py)?;
        Ok(lines.to_owned())
    }

    fn queue(&self, py: Py, db: &str, line_builder: &Object) -> PyResult {
        self.info.alive(py)?;
        let lines = self.build(py, db, line_builder)?;
        let Text { lines: count, open } = text_of(&lines);
        if count == 0 {
            self.info.log(LogLevel::Warn, NO_LINE.to_owned());
            return Ok(Object::none(py));
        }
        let mut writes = self.writes.borrow_mut();
        // A test shows each call by itself.
        let merge = !self.info.trigger_id.is_test();
        match writes.iter_mut().rev().find(|queued| merge && queued.write.db.as_ref() == db) {
            Some(queued) if !queued.open => {
                queued.write.lines.push('\n');
                queued.write.lines.push_str(&lines);
                queued.open = open;
            }
            _ => writes.push(Queued { write: QueuedWrite { db: db.into(), lines, no_sync: false }, open }),
        }
        Ok(Object::none(py))
    }
}

/// Looks at what is to be joined with other lines. Most of it is a line without a quote, of which there is nothing to see.
fn text_of(lines: &str) -> Text {
    let plain = lines.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    match plain && memchr::memchr(b'"', lines.as_bytes()).is_none() {
        true => Text { lines: 1, open: false },
        false => look_at(lines.as_bytes()),
    }
}

/// The plain `Exception` of a write (reference, 1.4).
pub fn write_error(py: Py, db: &str, cause: &str) -> Raised {
    Raised::new(py, Builtin::Exception, &format!("error writing line protocol to {db}: {cause}"))
}

impl Payload for Local {
    const NAME: &'static CStr = c"builtins.PyPluginCallApi";
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
        .method::<WriteSync>()
        .method::<WriteSyncToDb>()
        .method::<Query>()
        .property::<CacheProperty>()
        .property::<StateProperty>()
        .property::<EventProperty>()
        .property::<RequestProperty>()
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

/// `influxdb3_local.event`
struct EventProperty;

impl Property for EventProperty {
    type Owner = Local;
    const NAME: &'static CStr = c"event";
    const DOC: &'static CStr = c"What the run is for.";

    fn get(py: Py, _this: &Object, owner: &Local) -> PyResult {
        let EventInfo { kind, ids, scheduled, attempt, shard, .. } = &owner.event;
        let mut ids = ids.iter().map(|id| Object::text(py, &id.to_string())).collect::<PyResult<Vec<_>>>()?;
        if let Some(ScheduledCall { scheduled_ns, .. }) = scheduled {
            // A time of a schedule is known by itself.
            ids.push(Object::text(py, &format!("{}-at-{scheduled_ns}", owner.info.trigger_id.0))?);
        }
        let ids = Object::tuple(py, ids)?;
        let run_id = Object::uint(py, owner.info.run_id.0)?;
        let (attempt, shard) = (Object::uint(py, u64::from(*attempt))?, Object::uint(py, u64::from(shard.0))?);
        let (kind, trigger) = (Object::text(py, kind.as_str())?, Object::text(py, &owner.info.trigger)?);
        let class = Object::import(py, "saltus.event")?.getattr(py, "Event")?;
        let event = class.call(py, [&kind, &ids, &run_id, &trigger, &attempt, &shard])?;
        if let Some(ScheduledCall { scheduled_ns, missed, utc_offset_secs }) = *scheduled {
            let offset = utc_offset_secs.map_or_else(|| Ok(Object::none(py)), |o| Object::int(py, i64::from(o)))?;
            let (time, missed) = (Object::int(py, scheduled_ns)?, Object::uint(py, missed)?);
            drop(event.call_method(py, "of_schedule", [&time, &offset, &missed])?);
        }
        Ok(event)
    }
}

/// `influxdb3_local.request`
struct RequestProperty;

impl Property for RequestProperty {
    type Owner = Local;
    const NAME: &'static CStr = c"request";
    const DOC: &'static CStr = c"The request that the run answers; None if it is for something else.";

    fn get(py: Py, _this: &Object, owner: &Local) -> PyResult {
        let Some(request) = &owner.event.request else { return Ok(Object::none(py)) };
        let text = |text: &str| Object::text(py, text);
        let pairs = |pairs: &[(String, String)]| {
            let pair = |(name, value): &(String, String)| Object::tuple(py, vec![text(name)?, text(value)?]);
            Object::list(py, pairs.iter().map(pair).collect::<PyResult<Vec<_>>>()?)
        };
        let path = match &request.tail {
            None => request.path.to_string(),
            Some(tail) => format!("{}/{tail}", request.path),
        };
        let client = match &request.peer {
            None => Object::none(py),
            Some(peer) => text(&peer.to_string())?,
        };
        let class = Object::import(py, "saltus.request")?.getattr(py, "Request")?;
        class.call(
            py,
            [
                &text(&request.method)?,
                &text(&path)?,
                &text(&request.path)?,
                &text(&request.decoded_tail())?,
                &text(&request.query_string)?,
                &pairs(&request.query)?,
                &pairs(&request.headers)?,
                &Object::bytes(py, &request.body)?,
                &client,
            ],
        )
    }
}

/// `influxdb3_local.cache`
struct CacheProperty;

impl Property for CacheProperty {
    type Owner = Local;
    const NAME: &'static CStr = c"cache";
    const DOC: &'static CStr = c"Live objects that are kept between runs.";

    fn get(py: Py, _this: &Object, owner: &Local) -> PyResult {
        cache::sweep_if_due(py, &owner.info)?;
        owner.info.natives.cache.instance(py, Cache::new(owner.info.clone()))
    }
}

/// `influxdb3_local.state`
struct StateProperty;

impl Property for StateProperty {
    type Owner = Local;
    const NAME: &'static CStr = c"state";
    const DOC: &'static CStr = c"Plain values of this trigger, durable together with the rows of the run.";

    fn get(py: Py, _this: &Object, owner: &Local) -> PyResult {
        owner.info.natives.state.instance(py, State::new(owner.info.clone()))
    }
}
