//! What a run request becomes on its way to a worker; made by the supervisor, or by the shard itself.

use std::io;

use arrow::error::ArrowError;
use bytes::Bytes;
use saltus_core::ids::EventId;
use saltus_core::ports::{RunEvent, RunRequest, TableBatch};
use saltus_core::request::PluginRequest;
use saltus_core::state::State;
use saltus_core::trigger::{TriggerDef, TriggerSpec};

use super::channel::{ATTACHED_IN_PACKET_MAX, Attached};
use super::message::{Event, Request, Run, Table};
use super::rows::Rows;

/// What is attached to the order, not copied yet.
pub enum Body {
    /// Of tables.
    Rows(Rows),
    /// Of a request.
    Bytes(Bytes),
}

impl Body {
    /// Whether it is short enough for a packet.
    pub fn is_short(&self) -> bool {
        match self {
            Body::Rows(rows) => rows.are_short(),
            Body::Bytes(bytes) => bytes.len() <= ATTACHED_IN_PACKET_MAX,
        }
    }

    /// Copies it to where it is sent from; if it is not short, into a memory file.
    ///
    /// # Errors
    /// What the system said.
    pub fn into_attached(self) -> io::Result<Attached> {
        match self {
            Body::Rows(rows) => rows.into_attached(),
            Body::Bytes(bytes) => Attached::bytes(&bytes),
        }
    }
}

/// Whether a look at the number of rows tells that they are not short.
pub fn is_surely_long(event: &RunEvent) -> bool {
    event.rows() * size_of::<i64>() > ATTACHED_IN_PACKET_MAX
}

/// The order, without code, cache and state, and what is attached to it.
///
/// # Errors
/// What Arrow said.
pub fn of_request(request: &RunRequest, code_hash: u64) -> Result<(Run, Body), ArrowError> {
    let (event, body) = event(&request.event)?;
    let def = &request.trigger.def;
    let TriggerDef { id, name, db, plugin_filename, arguments, .. } = def;
    let run = Run {
        run_id: request.run_id.0,
        shard: request.shard.0,
        trigger_id: id.0,
        trigger: name.to_string(),
        db: db.to_string(),
        plugin_filename: plugin_filename.clone(),
        arguments: arguments.clone(),
        code_hash,
        code: None,
        event,
        deadline_ns: u64::try_from(request.deadline.as_nanos()).unwrap_or(u64::MAX),
        limits: request.limits,
        received_ns: request.received.0,
        depth: request.depth,
        attempt: request.attempt,
        long: request.long,
        api: def.api.into(),
        time_zone: match def.spec {
            TriggerSpec::Every(_) => None,
            _ => def.timing.time_zone.clone(),
        },
        state: None,
        state_revision: request.state.revision,
        cache: None,
        unless_changed: None,
    };
    Ok((run, body))
}

/// A state as a worker is given it that has the one of `known`.
pub fn state(state: &State, known: Option<u64>) -> Option<Vec<(String, String)>> {
    let entries = || state.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    (known != Some(state.revision)).then(entries)
}

fn event(event: &RunEvent) -> Result<(Event, Body), ArrowError> {
    let tables = match event {
        RunEvent::Writes(tables) => tables,
        RunEvent::Schedule(call) => return Ok((Event::Schedule(*call), Body::Bytes(Bytes::new()))),
        RunEvent::Request(request) => {
            let PluginRequest { method, path, tail, query_string, query, headers, body, peer, answer } = &**request;
            let asked = Request {
                method: method.clone(),
                path: path.to_string(),
                tail: tail.clone(),
                query_string: query_string.clone(),
                query: query.clone(),
                headers: headers.clone(),
                peer: *peer,
                streams: answer.is_some(),
            };
            return Ok((Event::Request(Box::new(asked)), Body::Bytes(body.clone())));
        }
    };
    let mut rows = Rows::default();
    let tables = tables.iter().map(|TableBatch { table, batch, id: EventId { stream, sequence }, all_columns }| {
        let all_columns = all_columns.as_ref().map(|all| all.iter().map(ToString::to_string).collect());
        let id = (stream.epoch.0, stream.shard.0, sequence.0);
        Ok(Table { name: table.to_string(), id, rows: rows.add(batch)?, all_columns })
    });
    let tables = tables.collect::<Result<_, ArrowError>>()?;
    Ok((Event::Writes(tables), Body::Rows(rows)))
}
