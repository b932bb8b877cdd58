//! The native module `_saltus`: what plugin code touches that is made in Rust. `python/saltus/_saltus.pyi` shows it as
//! its users see it.

pub mod column;
pub mod convert;
pub mod local;
mod names;
pub mod table_batch;

use std::rc::Rc;

use crate::deadline;
use crate::ffi::methodobject::{Args, Function};
use crate::ffi::moduleobject::{self, Functions};
use crate::ffi::typeobject::{NativeType, TypeBuilder};
use crate::ffi::{Object, Py, PyResult};
use crate::output;

/// What Rust holds of one interpreter's Python side; one per thread of the interpreter.
pub struct Natives {
    /// `_saltus.TableBatch`
    pub table_batch: NativeType<table_batch::TableBatch>,
    /// `_saltus.Column`
    pub column: NativeType<column::Column>,
    /// `_saltus.InfluxDB3Local`
    pub local: NativeType<local::Local>,
    /// `_saltus.Cache`
    pub cache: NativeType<local::Cache>,
    /// `saltus.errors.QueryError`
    pub query_error: Object,
    /// `saltus.errors.LimitError`
    pub limit_error: Object,
    /// `saltus.errors.LaneError`
    pub lane_error: Object,
    /// `saltus.errors.Unwound`
    pub unwound: Object,
    /// `saltus._plain.copy`
    pub copy_plain: Object,
    /// Stands in a batch where its rows will be.
    pub rows_pending: Object,
    /// `"rows"`
    pub rows_key: Object,
    /// `"table_name"`
    pub table_name_key: Object,
    /// `"build"`
    pub build_key: Object,
    /// `"time"`
    pub time_key: Object,
    /// The names of columns.
    pub names: names::Names,
    /// The live objects that plugins keep between runs: `{trigger id: {key: (value, expiry or None)}}`.
    pub cache_spaces: Object,
}

impl Natives {
    /// Looks everything up; the plugin API must be loaded.
    pub fn find(py: Py) -> PyResult<Rc<Natives>> {
        let module = Object::import(py, "_saltus")?;
        Ok(Rc::new(Natives {
            table_batch: NativeType::find(py, &module)?,
            column: NativeType::find(py, &module)?,
            local: NativeType::find(py, &module)?,
            cache: NativeType::find(py, &module)?,
            query_error: Object::import(py, "saltus.errors")?.getattr(py, "QueryError")?,
            limit_error: Object::import(py, "saltus.errors")?.getattr(py, "LimitError")?,
            lane_error: Object::import(py, "saltus.errors")?.getattr(py, "LaneError")?,
            unwound: Object::import(py, "saltus.errors")?.getattr(py, "Unwound")?,
            copy_plain: Object::import(py, "saltus._plain")?.getattr(py, "copy")?,
            rows_pending: module.getattr(py, "_rows_pending")?,
            rows_key: Object::interned(py, "rows")?,
            table_name_key: Object::interned(py, "table_name")?,
            build_key: Object::interned(py, "build")?,
            time_key: Object::interned(py, "time")?,
            names: names::Names::default(),
            cache_spaces: module.getattr(py, "_cache_spaces")?,
        }))
    }
}

/// Makes `_saltus` importable in every interpreter; before the runtime is initialised.
pub fn register() {
    moduleobject::register("_saltus", Functions::default().with::<Emit>().with::<DeadlineMessage>(), fill);
}

fn fill(py: Py, module: &Object) -> PyResult<()> {
    module.setattr(py, "Column", &column::define(TypeBuilder::new()).build(py)?)?;
    module.setattr(py, "TableBatch", &table_batch::define(TypeBuilder::new()).build(py)?)?;
    module.setattr(py, "InfluxDB3Local", &local::define(TypeBuilder::new()).build(py)?)?;
    module.setattr(py, "Cache", &local::define_cache(TypeBuilder::new()).build(py)?)?;
    module.setattr(py, "_rows_pending", &Object::list(py, Vec::new())?)?;
    module.setattr(py, "_cache_spaces", &Object::dict(py)?)?;
    Ok(())
}

/// `emit(is_error, text)`: what `sys.stdout` and `sys.stderr` write.
struct Emit;

impl Function for Emit {
    const NAME: &'static std::ffi::CStr = c"emit";
    const DOC: &'static std::ffi::CStr = c"Text that the interpreter printed.";

    fn call(py: Py, args: &Args<'_>) -> PyResult {
        let [is_error, text] = args.bind(py, "emit", ["is_error", "text"], 2)?;
        let (is_error, text) = (is_error.expect("required"), text.expect("required"));
        if let Some(run) = output::current() {
            run.go_on(py)?;
        }
        output::emit(is_error.truthy(py)?, &text.extract_str(py, "text")?);
        Ok(Object::none(py))
    }
}

/// `deadline_message()`: the text of a `PluginTimeout`.
struct DeadlineMessage;

impl Function for DeadlineMessage {
    const NAME: &'static std::ffi::CStr = c"deadline_message";
    const DOC: &'static std::ffi::CStr = c"Why the run of this thread is interrupted.";

    fn call(py: Py, _args: &Args<'_>) -> PyResult {
        Object::text(py, &deadline::message_of_this_thread())
    }
}
