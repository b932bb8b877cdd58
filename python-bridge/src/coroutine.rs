//! Entry functions that are `async def`: what they return is run to its end, in an event loop of its own.
//!
//! The inline lane has no event loop, as nothing may wait there: a coroutine that ends without waiting for anything is fine, one
//! that waits reaches for what can block, with the usual consequences. `python/saltus/_async.py` is the loop.

use crate::effects::{Lane, RunInfo};
use crate::ffi::{Object, Py, PyResult};

/// What the entry function has returned, or what its coroutine has.
pub fn settle(py: Py, info: &RunInfo, returned: Object) -> PyResult {
    if !returned.is_coroutine() {
        return Ok(returned);
    }
    let helper = Object::import(py, "saltus._async")?;
    if info.lane == Lane::Deferred {
        info.reach(py, "an event loop")?;
        return helper.call_method(py, "run", [&returned]);
    }
    let ended = helper.call_method(py, "run_without_waiting", [&returned])?.sequence_items(py)?;
    match ended.first() {
        Some(value) => Ok(value.clone()),
        None => {
            info.reach(py, "await")?;
            Ok(Object::none(py))
        }
    }
}
