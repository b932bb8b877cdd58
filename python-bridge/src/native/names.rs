//! Column names as Python strings, made once per interpreter and thread instead of once per batch.
//!
//! A name is known by the address of its `Arc<str>`, which the entry keeps alive, so that no other name can get that address:
//! batches of a table share the names of its schema. Bounded by `INTERNED_NAMES_MAX`; full, it starts anew.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use saltus_core::limits::INTERNED_NAMES_MAX;

use crate::ffi::{Object, Py, PyResult};

/// See the header.
#[derive(Default)]
pub struct Names {
    known: RefCell<HashMap<*const u8, Known, ahash::RandomState>>,
}

struct Known {
    object: Object,
    /// Keeps the address taken.
    _name: Arc<str>,
}

impl Names {
    /// The interned string of `name`.
    pub fn get(&self, py: Py, name: &Arc<str>) -> PyResult {
        let mut known = self.known.borrow_mut();
        if let Some(known) = known.get(&name.as_ptr()) {
            return Ok(known.object.clone());
        }
        let object = Object::interned(py, name)?;
        if known.len() >= INTERNED_NAMES_MAX {
            known.clear();
        }
        known.insert(name.as_ptr(), Known { object: object.clone(), _name: name.clone() });
        Ok(object)
    }
}
