//! Refused imports that a plugin has caught (`saltus._refusals`), and what becomes of its run.

use std::sync::Arc;

use saltus_core::ports::{PluginCode, PluginError};

use crate::ffi::{Object, Py, PyResult, pyerrors};
use crate::interpreter::failure;

/// The notes of one interpreter.
pub struct Refusals {
    noted: Object,
    refused_to: Object,
    unique_name: Object,
}

impl Refusals {
    /// Looks everything up; the plugin API must be loaded.
    pub fn find(py: Py) -> PyResult<Self> {
        let module = Object::import(py, "saltus._refusals")?;
        Ok(Refusals {
            noted: module.getattr(py, "noted")?,
            refused_to: module.getattr(py, "refused_to")?,
            unique_name: Object::import(py, "saltus._loader")?.getattr(py, "unique_name")?,
        })
    }

    /// The module whose refusal the run that ends on this thread has caught.
    pub fn of_run(&self, py: Py, code: &PluginCode) -> Option<Arc<str>> {
        let ask = || {
            if !self.noted.truthy(py)? {
                return Ok(None);
            }
            let package = match &code.directory {
                Some(folder) => {
                    let path = Object::text(py, &folder.path.to_string_lossy())?;
                    self.unique_name.call(py, [&path, &Object::uint(py, code.hash)?])?
                }
                None => Object::none(py),
            };
            let refused = self.refused_to.call(py, [&package])?;
            if refused.is_none() { Ok(None) } else { refused.extract_str(py, "a module").map(Some) }
        };
        let refused = ask().unwrap_or_else(|raised| {
            pyerrors::write_unraisable(py, raised);
            None
        });
        refused.map(Arc::from)
    }
}

/// Notes that the module `refused` is refused to whoever imports `importing` now.
pub fn note(py: Py, refused: &str, importing: &str) -> PyResult<()> {
    let arguments = [&Object::text(py, refused)?, &Object::text(py, importing)?];
    Object::import(py, "saltus._refusals")?.call_method(py, "note", arguments).map(drop)
}

/// A refusal that was caught counts for what the run has made of it; one that was not speaks for itself.
pub fn instead<T>(result: Result<T, PluginError>, refused: Option<Arc<str>>) -> Result<T, PluginError> {
    let Some(module) = refused else { return result };
    match result {
        Err(error) if error.refused_import().is_some() => Err(error),
        _ => Err(refusal(&module)),
    }
}

/// A refusal in CPython's words.
pub fn refusal(module: &str) -> PluginError {
    failure("ImportError", &format!("module {module} does not support loading in subinterpreters"))
}
