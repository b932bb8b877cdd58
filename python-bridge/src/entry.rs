//! Entry functions: which one a run calls, with which arguments, and what is made of what it returns.
//!
//! One function per kind of event (reference, 1.2), always called with positional arguments: the API, what the event brings,
//! and the trigger's arguments.

use std::rc::Rc;

use saltus_core::ports::{RunEvent, RunRequest, ScheduledCall};
use saltus_core::request::{PluginRequest, PluginResponse, ResponseHead};
use saltus_core::trigger::{TriggerKind, TriggerSpec};

use crate::ffi::audit;
use crate::ffi::pyerrors::Builtin;
use crate::ffi::{Object, Py, PyResult, Raised};
use crate::native::answer::{self, AnswerStream};
use crate::native::{Natives, table_batch};

/// What one interpreter needs for calls.
pub struct Entries {
    /// The functions' names, by kind.
    names: [Object; TriggerKind::ALL.len()],
    call_time: Object,
    /// `saltus._response.respond`
    respond: Object,
}

impl Entries {
    /// Looks everything up; the plugin API must be loaded.
    pub fn find(py: Py) -> PyResult<Self> {
        let [write, schedule, request] = TriggerKind::ALL.map(|kind| Object::interned(py, kind.entry()));
        let call_time = Object::import(py, "saltus.event")?.getattr(py, "call_time")?;
        let respond = Object::import(py, "saltus._response")?.getattr(py, "respond")?;
        Ok(Entries { names: [write?, schedule?, request?], call_time, respond })
    }

    /// The entry function among a file's globals.
    pub fn in_globals(&self, py: Py, globals: &Object, kind: TriggerKind) -> PyResult {
        globals.dict_get(py, &self.names[kind as usize])?.ok_or_else(|| missing(py, kind))
    }

    /// The entry function of a directory plugin's module.
    pub fn in_module(&self, py: Py, module: &Object, kind: TriggerKind) -> PyResult {
        module.getattr_key(py, &self.names[kind as usize]).map_err(|raised| {
            drop(raised.take(py));
            missing(py, kind)
        })
    }

    /// What the event brings: the arguments between the API and the trigger's own.
    pub fn event_arguments(&self, py: Py, natives: &Rc<Natives>, request: &RunRequest) -> PyResult<Vec<Object>> {
        match &request.event {
            RunEvent::Writes(tables) => {
                let batches = tables.iter().map(|table| table_batch::make(py, natives, table.clone()));
                Ok(vec![Object::list(py, batches.collect::<PyResult<Vec<_>>>()?)?])
            }
            RunEvent::Schedule(call) => {
                let def = &request.trigger.def;
                // An interval is real time: an hour ago is an hour ago, also where the clocks are changed.
                let zone = def.timing.time_zone.as_deref().filter(|_| !matches!(def.spec, TriggerSpec::Every(_)));
                // The rules of a zone are read once per interpreter, which is no matter of the plugin's.
                let listening = audit::is_listening(py);
                audit::listen(py, false);
                let time = self.call_time(py, *call, zone);
                audit::listen(py, listening);
                Ok(vec![time?])
            }
            RunEvent::Request(request) => request_arguments(py, request),
        }
    }

    /// What a request is answered with; it may have been sent already, through `stream`.
    pub fn response(
        &self,
        py: Py,
        natives: &Natives,
        returned: &Object,
        stream: AnswerStream,
    ) -> PyResult<PluginResponse> {
        let stream = natives.answer_stream.instance(py, stream)?;
        let answer = self.respond.call(py, [returned, &stream])?;
        if answer.is_none() {
            let head = ResponseHead { status: 200, headers: Vec::new() };
            return Ok(PluginResponse { head, body: None });
        }
        let parts = answer.sequence_items(py)?;
        let [status, headers, body] = parts.as_slice() else {
            return Err(Raised::new(py, Builtin::Type, "an answer must be status, headers and body"));
        };
        let head = ResponseHead { status: answer::status(py, status)?, headers: answer::text_pairs(py, headers)? };
        let body = body.as_bytes(py).map(bytes::Bytes::copy_from_slice);
        let body = body.ok_or_else(|| Raised::new(py, Builtin::Type, "a body must be bytes"))?;
        Ok(PluginResponse { head, body: Some(body) })
    }

    /// A `datetime` in whole seconds: aware in the trigger's time zone; without one naive in the server's as in the reference, 1.2.
    fn call_time(&self, py: Py, call: ScheduledCall, zone: Option<&str>) -> PyResult {
        let seconds = Object::int(py, call.scheduled_ns.div_euclid(1_000_000_000))?;
        let offset = match call.utc_offset_secs {
            Some(offset) => Object::int(py, i64::from(offset))?,
            None => Object::none(py),
        };
        let zone = zone.map_or_else(|| Ok(Object::none(py)), |zone| Object::text(py, zone))?;
        self.call_time.call(py, [&seconds, &offset, &zone])
    }
}

/// The trigger's arguments: a new dict each time, or `None`.
pub fn trigger_arguments(py: Py, request: &RunRequest) -> PyResult {
    let Some(arguments) = &request.trigger.def.arguments else { return Ok(Object::none(py)) };
    pairs(py, arguments.iter())
}

/// Calls an entry function. What it returns matters for requests only.
pub fn call(py: Py, entry: &Object, local: &Object, event: &[Object], arguments: &Object) -> PyResult {
    match event {
        [what] => entry.call(py, [local, what, arguments]),
        [query, headers, body] => entry.call(py, [local, query, headers, body, arguments]),
        _ => unreachable!("an event brings one argument, or three"),
    }
}

fn missing(py: Py, kind: TriggerKind) -> Raised {
    Raised::new(py, Builtin::Runtime, kind.entry_missing())
}

/// Query parameters, headers and body; of a name that comes more than once the last counts (reference, 1.7).
fn request_arguments(py: Py, request: &PluginRequest) -> PyResult<Vec<Object>> {
    let named = |list: &[(String, String)]| pairs(py, list.iter().map(|(name, value)| (name, value)));
    Ok(vec![named(&request.query)?, named(&request.headers)?, Object::bytes(py, &request.body)?])
}

fn pairs<'a>(py: Py, pairs: impl Iterator<Item = (&'a String, &'a String)>) -> PyResult {
    let dict = Object::dict(py)?;
    for (name, value) in pairs {
        dict.dict_set(py, &Object::text(py, name)?, &Object::text(py, value)?)?;
    }
    Ok(dict)
}
