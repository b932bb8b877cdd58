//! A worker that waits for its next run, as its supervisor offers it to the shard.
//!
//! # Invariants
//! 1. There is at most one offer of a worker, on its trigger's [`super::desk::Desk`]. Whoever takes it from there may give the worker one
//!    run, and nobody else gives it anything: the shard when it has a run and none is under way, or the supervisor before it does
//!    anything else with the worker.
//! 2. A supervisor that does not find its offer knows that a run is on its way to the desk, a few microseconds off.
//! 3. Taking up an offer never waits and makes no file. What would (new code, a cache that was kept, many rows) goes by the desk.

use std::sync::Arc;

use saltus_core::limits::PROCESS_PACKET_BYTES_MAX;
use saltus_core::ports::RunRequest;

use super::channel::Channel;
use super::message::{Order, PluginFile};
use super::order;

/// Bytes of a state that a shard copies into an order.
const STATE_MAX: usize = PROCESS_PACKET_BYTES_MAX / 8;

/// See the header.
pub struct Offer {
    /// Where its orders go.
    pub orders: Arc<Channel>,
    /// The code that it has.
    pub code: u64,
    /// The revision of the trigger's state that it has.
    pub state: u64,
    /// What the plugin's file was when its code was looked up, if it is one.
    pub file: Option<PluginFile>,
}

impl Offer {
    /// Gives the worker a run; false if it cannot be done so, and nothing was sent.
    pub fn take_up(self, request: &RunRequest) -> bool {
        let is_unusual = request.test_host.is_some() || request.stop.cause().is_some();
        let new_state = request.state.revision != self.state;
        if is_unusual
            || request.trigger.code.current().hash != self.code
            || (new_state && request.state.bytes() > STATE_MAX)
            || order::is_surely_long(&request.event)
        {
            return false;
        }
        // What fails here fails for the supervisor, which says so.
        let Ok((mut run, body)) = order::of_request(request, self.code) else { return false };
        if !body.is_short() {
            return false;
        }
        let Ok(attached) = body.into_attached() else { return false };
        run.state = order::state(&request.state, Some(self.state));
        run.unless_changed = self.file;
        self.orders.send_at_once(&Order::Run(Box::new(run)), &attached).is_ok()
    }
}
