//! `write_sync` and `write_sync_to_db` (reference, 1.4): written before they return, whatever becomes of the run.
//!
//! In the inline lane nothing waits for a disk or for another shard. There a write with `no_sync=True` to tables of the own shard is
//! checked at once and held until the run has ended; any other unwinds the run ([`crate::effects`]).

use std::ffi::CStr;
use std::sync::Arc;

use saltus_core::ports::{QueuedWrite, SyncWrite};

use super::local::{Local, write_error};
use crate::effects::Lane;
use crate::ffi::methodobject::{Args, Method};
use crate::ffi::{Object, Py, PyResult};

/// `influxdb3_local.write_sync(line_builder, no_sync)`
pub struct WriteSync;

impl Method for WriteSync {
    type Owner = Local;
    const NAME: &'static CStr = c"write_sync";
    const DOC: &'static CStr =
        c"Writes line_builder.build() to the trigger's database, and waits until it is durable unless no_sync.";

    fn call(py: Py, _this: &Object, owner: &Local, args: &Args<'_>) -> PyResult {
        let [builder, no_sync] = args.bind(py, "write_sync", ["line_builder", "no_sync"], 2)?;
        let no_sync = no_sync.expect("required").extract_bool(py, "no_sync")?;
        write(py, owner, owner.info.db.clone(), &builder.expect("required"), no_sync)
    }
}

/// `influxdb3_local.write_sync_to_db(db_name, line_builder, no_sync)`
pub struct WriteSyncToDb;

impl Method for WriteSyncToDb {
    type Owner = Local;
    const NAME: &'static CStr = c"write_sync_to_db";
    const DOC: &'static CStr =
        c"Writes line_builder.build() to any database, and waits until it is durable unless no_sync.";

    fn call(py: Py, _this: &Object, owner: &Local, args: &Args<'_>) -> PyResult {
        let [db, builder, no_sync] = args.bind(py, "write_sync_to_db", ["db_name", "line_builder", "no_sync"], 3)?;
        let db = db.expect("required").extract_str(py, "db_name")?;
        let no_sync = no_sync.expect("required").extract_bool(py, "no_sync")?;
        write(py, owner, db.into(), &builder.expect("required"), no_sync)
    }
}

fn write(py: Py, local: &Local, db: Arc<str>, line_builder: &Object, no_sync: bool) -> PyResult {
    let info = &local.info;
    info.alive(py)?;
    let lines = local.build(py, &db, line_builder)?;
    let host = info.host.as_ref();
    if info.lane == Lane::Inline && no_sync {
        match host.check_write(info.shard, &db, &lines) {
            Err(cause) => return Err(write_error(py, &db, &cause)),
            Ok(true) => {
                info.hold_write(QueuedWrite { db, lines, no_sync });
                return Ok(Object::none(py));
            }
            Ok(false) => info.reach(py, "write_sync() to a table of another shard")?,
        }
    }
    if !no_sync {
        info.reach(py, "write_sync() with no_sync=False")?;
    }
    let write = SyncWrite { db: db.clone(), lines, no_sync, depth: info.depth.saturating_add(1) };
    match py.detach(|| host.write(write)) {
        Ok(()) => Ok(Object::none(py)),
        Err(cause) => {
            // A stop that came meanwhile is the reason for it.
            info.alive(py)?;
            Err(write_error(py, &db, &cause))
        }
    }
}
