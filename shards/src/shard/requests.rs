//! Requests: from the connection that has read one to the trigger that answers it, and back; and test runs, which are no trigger's.
//!
//! 1. Every shard knows all routes, so a connection finds its trigger without asking anybody.
//! 2. The request goes to the trigger's home through its mailbox, with the slot that its answer comes back in
//!    ([`crate::answer`]): no room is needed for the way back. A full mailbox, or too many that wait for the trigger, is an answer of its
//!    own: come again.
//! 3. There it waits in line like any event. One whose client has gone, or that waited for longer than a run may take, is not run.
//! 4. The answer is sent when what the run wrote is durable. A run whose client has gone goes on to its end.

use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;
use saltus_core::ids::{MonoNs, ShardId, TriggerId};
use saltus_core::limits::REQUESTS_WAITING_MAX;
use saltus_core::policy::Lane;
use saltus_core::ports::{PluginError, RunEvent, RunReport, RunRequest, Trigger};
use saltus_core::request::{PluginRequest, PluginResponse, RequestError};
use saltus_core::route::{Found, Route, Routes};
use saltus_core::trigger::{Limits, TriggerSpec};

use crate::api::TriggersChange;
use crate::clock::mono_now;
use crate::placement::Placement;

use super::triggers::{Event, TriggerState, home_of};
use super::{Message, Shard};

/// What a route leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The trigger.
    pub trigger: TriggerId,
    /// Its home.
    pub home: ShardId,
}

/// What became of the attempt to find a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routed {
    /// A trigger answers.
    To {
        /// Which.
        target: Target,
        /// The path that it is named after.
        route: String,
        /// What the request's path has below that; `None` if it is that.
        tail: Option<String>,
    },
    /// The path is known, but not with this method: these are.
    OtherMethods(String),
    /// Nobody answers.
    Nothing,
}

/// Changes the routes, which are those of all request triggers in force.
pub(crate) fn change_routes(routes: &mut Routes<Target>, placement: Placement, change: &TriggersChange) {
    let route_of = |trigger: &Arc<Trigger>| match &trigger.def.spec {
        TriggerSpec::Request(path) => Some(Route::parse(path).map_err(|why| (path.clone(), why))),
        _ => None,
    };
    for trigger in &change.gone {
        if let Some(Ok(route)) = route_of(trigger) {
            routes.remove(&route, |target| target.trigger == trigger.def.id);
        }
    }
    for trigger in &change.come {
        let target = Target { trigger: trigger.def.id, home: home_of(placement, &trigger.def) };
        match route_of(trigger) {
            Some(Ok(route)) => routes.add(route, target),
            Some(Err((path, why))) => {
                tracing::warn!(trigger = %trigger.def.name, path, %why, "the trigger answers no request");
            }
            None => {}
        }
    }
}

/// The error of a run, as whoever asked gets it (reference, 1.7).
pub(super) fn request_error(error: &PluginError, entered: bool) -> RequestError {
    const NO_ANSWER: &str = "ResponseError";
    match error.kind.as_str() {
        "PluginTimeout" | PluginError::STUCK => RequestError::TimedOut(error.message.clone()),
        PluginError::STOPPED => RequestError::Unavailable(error.message.clone()),
        NO_ANSWER => {
            let text = error.message.strip_prefix(NO_ANSWER).and_then(|rest| rest.strip_prefix(": "));
            RequestError::Failed(text.unwrap_or(&error.message).to_owned())
        }
        _ if entered => RequestError::Failed(format!("Python function call failed: {}", error.message)),
        _ => RequestError::Failed(error.message.clone()),
    }
}

/// Sends an answer, if the event is a request and nobody has.
pub(super) fn answer(event: &Event, answer: Result<PluginResponse, RequestError>) {
    if let RunEvent::Request(request) = &event.what
        && let Some(slot) = &request.answer
    {
        slot.finish(answer);
    }
}

/// Whether whoever asked has gone.
pub(super) fn is_abandoned(event: &Event) -> bool {
    match &event.what {
        RunEvent::Request(request) => request.answer.as_ref().is_some_and(|slot| slot.is_abandoned()),
        RunEvent::Writes(_) | RunEvent::Schedule(_) => false,
    }
}

/// Whether a part of the answer has been sent, so that the event cannot be run again.
pub(super) fn is_begun(event: &Event) -> bool {
    match &event.what {
        RunEvent::Request(request) => request.answer.as_ref().is_some_and(|slot| slot.is_begun()),
        RunEvent::Writes(_) | RunEvent::Schedule(_) => false,
    }
}

/// Whether the event is a request that waited for longer than its run may take; it has its answer then.
pub(super) fn is_late(event: &Event, limits: &Limits, now: MonoNs) -> bool {
    let RunEvent::Request(_) = &event.what else { return false };
    let waited = now.since(event.received);
    if u128::from(waited) <= limits.run_time.as_nanos() {
        return false;
    }
    let text = format!(
        "the request waited for {} ms, longer than a run of its trigger may take ({} ms): too many are before it; come again",
        waited / 1_000_000,
        limits.run_time.as_millis()
    );
    answer(event, Err(RequestError::Unavailable(text)));
    true
}

impl Shard {
    /// Who answers a request.
    pub fn route(&self, method: &str, path: &str) -> Routed {
        match self.routes.borrow().find(method, path) {
            Found::Target { target, route, tail } => Routed::To {
                target: *target,
                route: route.to_owned(),
                tail: (path.len() > route.len()).then(|| tail.to_owned()),
            },
            Found::OtherMethods(methods) => Routed::OtherMethods(methods.to_string()),
            Found::Nothing => Routed::Nothing,
        }
    }

    /// Sends a request to its trigger's home; if there is no room on the way, that is the answer.
    pub fn send_request(self: &Rc<Self>, target: Target, request: Arc<PluginRequest>, received: MonoNs) {
        if target.home == self.id {
            return self.take_request(target.trigger, request, received);
        }
        match self.shared.mailbox(target.home).reserve(request.bytes()) {
            Some(room) => {
                room.put(|held| Message::Request { trigger: target.trigger, request, received, _held: held });
            }
            None => {
                self.counters.requests_refused.add(1);
                let text = format!("the mailbox of shard {} is full; come again", target.home);
                answer(&request_event(request, received), Err(RequestError::Unavailable(text)));
            }
        }
    }

    /// Puts a request in line for a trigger at home here.
    pub fn take_request(self: &Rc<Self>, trigger: TriggerId, request: Arc<PluginRequest>, received: MonoNs) {
        let event = request_event(request, received);
        self.counters.requests.add(1);
        let Some(state) = self.triggers.borrow().find(trigger) else {
            let text = "the trigger that answers here was disabled or deleted just now".to_owned();
            return answer(&event, Err(RequestError::Unavailable(text)));
        };
        let mut inner = state.borrow_mut();
        match inner.offer_request(event) {
            Ok(()) => self.runnable.notify(),
            Err((event, why)) => {
                self.counters.requests_refused.add(1);
                inner.measured.events_dropped += 1;
                answer(&event, Err(RequestError::Unavailable(why)));
            }
        }
    }

    /// Hands a test run to the lane that it names; the report comes with its completion.
    pub fn submit_test(&self, run: RunRequest, reply: oneshot::Sender<Result<RunReport, String>>) {
        debug_assert!(run.lane != Lane::Inline, "a test never runs on the shard's thread");
        let Some(mut plugins) = self.plugins.borrow_mut().take() else {
            let _gone = reply.send(Err("Python is not available in this server; see the log of its start".to_owned()));
            return;
        };
        let run_id = run.run_id;
        self.tests.borrow_mut().insert(run_id, reply);
        let refused = plugins.submit(run).is_err();
        *self.plugins.borrow_mut() = Some(plugins);
        if refused && let Some(reply) = self.tests.borrow_mut().remove(&run_id) {
            let _gone = reply.send(Err("too many runs wait; come again".to_owned()));
        }
    }

    /// The report of a test run, if it is one.
    pub fn take_test(&self, report: RunReport) {
        let reply = self.tests.borrow_mut().remove(&report.request.run_id);
        if let Some(reply) = reply {
            // Whoever asked may have gone.
            let _gone = reply.send(Ok(report));
        }
    }
}

fn request_event(request: Arc<PluginRequest>, received: MonoNs) -> Event {
    Event::new(RunEvent::Request(request), received)
}

impl TriggerState {
    /// Puts a request behind those that wait; it comes back with the reason if there are too many.
    fn offer_request(&mut self, event: Event) -> Result<(), (Event, String)> {
        if self.stopped {
            return Err((event, "the trigger that answers here is being disabled".to_owned()));
        }
        if self.is_full_for(&event) {
            // Those whose clients have gone make room.
            self.forget_abandoned();
        }
        if self.is_full_for(&event) {
            let waiting = self.queue.len();
            let text = format!("{waiting} requests wait for this trigger already, as many as may; come again");
            return Err((event, text));
        }
        self.put_last(event);
        Ok(())
    }

    fn is_full_for(&self, event: &Event) -> bool {
        let bytes = (self.queued_bytes + event.bytes()) as u64;
        !self.queue.is_empty() && (bytes > self.limits.queue_bytes || self.queue.len() >= REQUESTS_WAITING_MAX)
    }

    fn forget_abandoned(&mut self) {
        self.queue.retain(|event| !is_abandoned(event));
        self.queued_bytes = self.queue.iter().map(Event::bytes).sum();
    }

    /// Takes those requests from the front that need no run: their clients have gone, or they waited for too long. How many.
    pub fn pass_over(&mut self) -> usize {
        let now = mono_now();
        let mut passed = 0;
        while let Some(event) = self.queue.front() {
            if !is_abandoned(event) && !is_late(event, &self.limits, now) {
                break;
            }
            self.queued_bytes -= event.bytes();
            self.queue.pop_front();
            passed += 1;
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: &str, text: &str) -> PluginError {
        PluginError { kind: kind.to_owned(), message: format!("{kind}: {text}"), traceback: String::new() }
    }

    #[test]
    fn errors_are_worded_as_in_the_reference() {
        assert_eq!(
            request_error(&error("NameError", "name 'x' is not defined"), true),
            RequestError::Failed("Python function call failed: NameError: name 'x' is not defined".into())
        );
        assert_eq!(
            request_error(&error("SyntaxError", "invalid syntax"), false),
            RequestError::Failed("SyntaxError: invalid syntax".into())
        );
        assert_eq!(
            request_error(&error("ResponseError", "Unsupported return type from Python function"), true),
            RequestError::Failed("Unsupported return type from Python function".into())
        );
        assert!(matches!(request_error(&error("PluginTimeout", "late"), true), RequestError::TimedOut(_)));
        assert!(matches!(request_error(&error(PluginError::STUCK, "late"), false), RequestError::TimedOut(_)));
    }
}
