//! `influxdb3_local.state`: plain values that are durable together with the rows of the run (`saltus_core::state`).
//!
//! A run sees the state as it was when it began, and its own changes. They leave with a run that succeeded. Values become text
//! at once (`saltus._state`), so what a plugin does to an object afterwards changes nothing.

use std::ffi::CStr;
use std::rc::Rc;

use saltus_core::limits::{STATE_BYTES_MAX, STATE_KEY_BYTES_MAX};

use crate::effects::RunInfo;
use crate::ffi::methodobject::{Args, Method};
use crate::ffi::pyerrors::Builtin;
use crate::ffi::typeobject::{Payload, TypeBuilder};
use crate::ffi::{Object, Py, PyResult, Raised};

/// The payload.
pub struct State {
    info: Rc<RunInfo>,
}

impl State {
    /// Of a run's trigger.
    pub fn new(info: Rc<RunInfo>) -> Self {
        State { info }
    }

    fn decoded(&self, py: Py, text: &str) -> PyResult {
        self.info.natives.decode_state.call(py, [&Object::text(py, text)?])
    }

    fn pairs(&self) -> Vec<(std::sync::Arc<str>, std::sync::Arc<str>)> {
        self.info.state.borrow().entries()
    }
}

impl Payload for State {
    const NAME: &'static CStr = c"_saltus.State";
    const DOC: &'static CStr = c"Plain values of this trigger by key, durable together with the rows of the run.";
}

/// The type's members.
pub fn define(builder: TypeBuilder<State>) -> TypeBuilder<State> {
    builder
        .method::<StatePut>()
        .method::<StateGet>()
        .method::<StateDelete>()
        .method::<StateKeys>()
        .method::<StateItems>()
}

/// `state.put(key, value)`
struct StatePut;

impl Method for StatePut {
    type Owner = State;
    const NAME: &'static CStr = c"put";
    const DOC: &'static CStr = c"Keeps a copy of a plain value; durable if the run succeeds.";

    fn call(py: Py, _this: &Object, owner: &State, args: &Args<'_>) -> PyResult {
        let [key, value] = args.bind(py, "put", ["key", "value"], 2)?;
        let key = key.expect("required");
        let name = key.extract_str(py, "key")?;
        owner.info.go_on(py)?;
        if name.len() > STATE_KEY_BYTES_MAX {
            let message = format!("the key has {} bytes, and a key of state at most {STATE_KEY_BYTES_MAX}", name.len());
            return Err(Raised::new(py, Builtin::Value, &message));
        }
        let text = owner.info.natives.encode_state.call(py, [&key, &value.expect("required")])?;
        let text = text.extract_str(py, "the value")?;
        let mut state = owner.info.state.borrow_mut();
        let bytes = state.bytes_with(&name, text.len());
        if bytes > STATE_BYTES_MAX {
            let message = format!(
                "with state['{name}'] the state of trigger '{}' would have {bytes} bytes, and it may have {STATE_BYTES_MAX}: keep less, \
                 or keep it in a table",
                owner.info.trigger
            );
            return Err(Raised::new(py, Builtin::Value, &message));
        }
        state.set(&name, Some(text.into()));
        Ok(Object::none(py))
    }
}

/// `state.get(key, default=None)`
struct StateGet;

impl Method for StateGet {
    type Owner = State;
    const NAME: &'static CStr = c"get";
    const DOC: &'static CStr = c"A copy of the value kept under key, or default.";

    fn call(py: Py, _this: &Object, owner: &State, args: &Args<'_>) -> PyResult {
        let [key, default] = args.bind(py, "get", ["key", "default"], 1)?;
        let key = key.expect("required").extract_str(py, "key")?;
        owner.info.go_on(py)?;
        let text = owner.info.state.borrow().get(&key);
        match text {
            Some(text) => owner.decoded(py, &text),
            None => Ok(default.unwrap_or_else(|| Object::none(py))),
        }
    }
}

/// `state.delete(key)`
struct StateDelete;

impl Method for StateDelete {
    type Owner = State;
    const NAME: &'static CStr = c"delete";
    const DOC: &'static CStr = c"Forgets the value kept under key; whether there was one.";

    fn call(py: Py, _this: &Object, owner: &State, args: &Args<'_>) -> PyResult {
        let [key] = args.bind(py, "delete", ["key"], 1)?;
        let key = key.expect("required").extract_str(py, "key")?;
        owner.info.go_on(py)?;
        let existed = owner.info.state.borrow().get(&key).is_some();
        if existed {
            owner.info.state.borrow_mut().set(&key, None);
        }
        Ok(Object::bool(py, existed))
    }
}

/// `state.keys()`
struct StateKeys;

impl Method for StateKeys {
    type Owner = State;
    const NAME: &'static CStr = c"keys";
    const DOC: &'static CStr = c"The keys, sorted.";

    fn call(py: Py, _this: &Object, owner: &State, args: &Args<'_>) -> PyResult {
        let [] = args.bind(py, "keys", [], 0)?;
        owner.info.go_on(py)?;
        let keys = owner.pairs().iter().map(|(key, _)| Object::text(py, key)).collect::<PyResult<Vec<_>>>()?;
        Object::list(py, keys)
    }
}

/// `state.items()`
struct StateItems;

impl Method for StateItems {
    type Owner = State;
    const NAME: &'static CStr = c"items";
    const DOC: &'static CStr = c"Keys and copies of their values, in the order of the keys.";

    fn call(py: Py, _this: &Object, owner: &State, args: &Args<'_>) -> PyResult {
        let [] = args.bind(py, "items", [], 0)?;
        owner.info.go_on(py)?;
        let pairs = owner.pairs();
        let pair = |(key, text): &(std::sync::Arc<str>, std::sync::Arc<str>)| {
            Object::tuple(py, vec![Object::text(py, key)?, owner.decoded(py, text)?])
        };
        Object::list(py, pairs.iter().map(pair).collect::<PyResult<Vec<_>>>()?)
    }
}
