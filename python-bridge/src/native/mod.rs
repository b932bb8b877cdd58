//! The native module `_saltus`: what plugin code touches that is made in Rust. `python/saltus/_saltus.pyi` shows it as
//! its users see it.

pub mod answer;
pub mod cache;
pub mod column;
pub mod convert;
pub mod local;
mod names;
mod query;
pub mod state;
pub mod table_batch;
mod write_sync;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use saltus_core::ids::RoomId;

use crate::deadline;
use crate::ffi::methodobject::{Args, Function};
use crate::ffi::moduleobject::{self, Functions};
use crate::ffi::typeobject::{NativeType, TypeBuilder};
use crate::ffi::{Object, Py, PyResult};
use crate::memory_limit;
use crate::output;

/// What Rust holds of one interpreter's Python side; one per thread of the interpreter.
pub struct Natives {
    /// `_saltus.TableBatch`
    pub table_batch: NativeType<table_batch::TableBatch>,
    /// `_saltus.Column`
    pub column: NativeType<column::Column>,
    /// `_saltus.PyPluginCallApi`
    pub local: NativeType<local::Local>,
    /// `_saltus.PyCache`
    pub cache: NativeType<cache::Cache>,
    /// `_saltus.State`
    pub state: NativeType<state::State>,
    /// `_saltus.AnswerStream`
    pub answer_stream: NativeType<answer::AnswerStream>,
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
    /// `saltus._plain.dump_shared`
    pub dump_shared: Object,
    /// `saltus._plain.sweep`
    pub sweep_cache: Object,
    /// `marshal.loads`
    pub marshal_loads: Object,
    /// `saltus._state.encode`
    pub encode_state: Object,
    /// `saltus._state.decode`
    pub decode_state: Object,
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
    /// The live objects that plugins keep between runs; see [`cache`].
    pub cache_spaces: Object,
    /// When they were last searched for expired ones, by this thread.
    pub cache_swept: Cell<Option<Instant>>,
    /// The deferred interpreter that this is, if it is one of the server's.
    pub room: Cell<Option<RoomId>>,
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
            answer_stream: NativeType::find(py, &module)?,
            state: NativeType::find(py, &module)?,
            query_error: Object::import(py, "saltus.errors")?.getattr(py, "QueryError")?,
            limit_error: Object::import(py, "saltus.errors")?.getattr(py, "LimitError")?,
            lane_error: Object::import(py, "saltus.errors")?.getattr(py, "LaneError")?,
            unwound: Object::import(py, "saltus.errors")?.getattr(py, "Unwound")?,
            copy_plain: Object::import(py, "saltus._plain")?.getattr(py, "copy")?,
            dump_shared: Object::import(py, "saltus._plain")?.getattr(py, "dump_shared")?,
            sweep_cache: Object::import(py, "saltus._plain")?.getattr(py, "sweep")?,
            marshal_loads: Object::import(py, "marshal")?.getattr(py, "loads")?,
            encode_state: Object::import(py, "saltus._state")?.getattr(py, "encode")?,
            decode_state: Object::import(py, "saltus._state")?.getattr(py, "decode")?,
            rows_pending: module.getattr(py, "_rows_pending")?,
            rows_key: Object::interned(py, "rows")?,
            table_name_key: Object::interned(py, "table_name")?,
            build_key: Object::interned(py, "build")?,
            time_key: Object::interned(py, "time")?,
            names: names::Names::default(),
            cache_spaces: module.getattr(py, "_cache_spaces")?,
            cache_swept: Cell::new(None),
            room: Cell::new(None),
        }))
    }
}

/// Makes `_saltus` importable in every interpreter; before the runtime is initialised.
pub fn register() {
    let functions =
        Functions::default().with::<Emit>().with::<DeadlineMessage>().with::<ChargedAccount>().with::<ChargeThread>();
    moduleobject::register("_saltus", functions, fill);
}

fn fill(py: Py, module: &Object) -> PyResult<()> {
    module.setattr(py, "Column", &column::define(TypeBuilder::new()).build(py)?)?;
    module.setattr(py, "TableBatch", &table_batch::define(TypeBuilder::new()).build(py)?)?;
    let local = local::define(TypeBuilder::new()).build(py)?;
    let cache = cache::define(TypeBuilder::new()).build(py)?;
    // The names that documents use, and those that the types have in InfluxDB 3.
    module.setattr(py, "InfluxDB3Local", &local)?;
    module.setattr(py, "PyPluginCallApi", &local)?;
    module.setattr(py, "Cache", &cache)?;
    module.setattr(py, "PyCache", &cache)?;
    module.setattr(py, "State", &state::define(TypeBuilder::new()).build(py)?)?;
    module.setattr(py, "AnswerStream", &answer::define(TypeBuilder::new()).build(py)?)?;
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

/// `charged_account()`: whose memory this thread allocates.
struct ChargedAccount;

impl Function for ChargedAccount {
    const NAME: &'static std::ffi::CStr = c"charged_account";
    const DOC: &'static std::ffi::CStr =
        c"The number of the account that this thread's memory is charged to; 0 if there is none.";

    fn call(py: Py, _args: &Args<'_>) -> PyResult {
        Object::uint(py, memory_limit::charged_number())
    }
}

/// `charge_thread(account)`: for threads that plugins start.
struct ChargeThread;

impl Function for ChargeThread {
    const NAME: &'static std::ffi::CStr = c"charge_thread";
    const DOC: &'static std::ffi::CStr =
        c"Charges this thread's memory to that account until it ends; a thread that is charged already stays so.";

    fn call(py: Py, args: &Args<'_>) -> PyResult {
        let [account] = args.bind(py, "charge_thread", ["account"], 1)?;
        let account = account.expect("required").extract_i64(py)?;
        memory_limit::charge_this_thread(u64::try_from(account).unwrap_or(0));
        Ok(Object::none(py))
    }
}
