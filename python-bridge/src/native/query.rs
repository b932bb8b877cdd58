//! `query` (reference, 1.4). Results: [`super::convert`].
//!
//! Parameters are text in the reference; here numbers, truth values, `None` and `datetime` keep their type as well.

use std::ffi::CStr;
use std::sync::Arc;

use saltus_core::query_param::QueryParam;

use super::convert;
use super::local::Local;
use crate::deadline::TimeLeft;
use crate::ffi::abstract_::Scalar;
use crate::ffi::methodobject::{Args, Method};
use crate::ffi::pyerrors::Builtin;
use crate::ffi::{Object, Py, PyResult, Raised};

/// `influxdb3_local.query(query, args=None, database=None)`
pub struct Query;

impl Method for Query {
    type Owner = Local;
    const NAME: &'static CStr = c"query";
    const DOC: &'static CStr = c"Runs SQL and returns the rows as dicts; raises QueryError.";

    fn call(py: Py, _this: &Object, owner: &Local, args: &Args<'_>) -> PyResult {
        let [sql, parameters, database] = args.bind(py, "query", ["query", "args", "database"], 1)?;
        owner.info.alive(py)?;
        let sql = sql.expect("required").extract_str(py, "query")?;
        let parameters = match parameters.filter(|p| !p.is_none()) {
            None => Vec::new(),
            Some(dict) if dict.is_dict() => {
                let pairs = dict.dict_items(py)?;
                pairs.iter().map(|(key, value)| parameter(py, key, value)).collect::<PyResult<_>>()?
            }
            Some(other) => {
                let message = format!("args must be dict or None, not {}", other.type_name(py));
                return Err(Raised::new(py, Builtin::Type, &message));
            }
        };
        let db: Arc<str> = match database.filter(|d| !d.is_none()) {
            None => owner.info.db.clone(),
            Some(name) => name.extract_str(py, "database")?.into(),
        };
        owner.info.reach(py, "query()")?;
        let host = owner.info.host.as_ref();
        let (stop, left) = (owner.info.stop.as_ref(), TimeLeft::of_this_thread());
        let wanted = || stop.cause().is_none() && left.as_ref().is_none_or(TimeLeft::any);
        match py.detach(|| host.query_while(&db, &sql, &parameters, &wanted)) {
            Ok(batches) => convert::rows(py, &batches),
            Err(message) => {
                // A stop that came meanwhile is the reason for it.
                owner.info.alive(py)?;
                Err(Raised::of(py, &owner.info.natives.query_error, &message))
            }
        }
    }
}

fn parameter(py: Py, key: &Object, value: &Object) -> PyResult<(String, QueryParam)> {
    let name = key.extract_str(py, "a key of args")?;
    let param = match value.scalar_kind() {
        Scalar::None => QueryParam::Null,
        Scalar::Bool => QueryParam::Bool(value.truthy(py)?),
        Scalar::Text => QueryParam::Text(value.extract_str(py, "a value of args")?),
        Scalar::Float => QueryParam::Float(value.extract_f64(py)?),
        Scalar::Int => integer(py, &name, &value.index(py)?)?,
        Scalar::Other => {
            let since = Object::import(py, "saltus._query")?.call_method(py, "timestamp_ns", [value])?;
            if since.is_none() {
                let message = format!(
                    "args['{name}'] must be str, int, float, bool, datetime or None, not {}",
                    value.type_name(py)
                );
                return Err(Raised::new(py, Builtin::Type, &message));
            }
            QueryParam::Timestamp(since.extract_i64(py)?)
        }
    };
    Ok((name, param))
}

fn integer(py: Py, name: &str, value: &Object) -> PyResult<QueryParam> {
    match value.extract_i64(py) {
        Ok(value) => return Ok(QueryParam::Int(value)),
        Err(raised) => drop(raised.take(py)),
    }
    value.extract_u64(py).map(QueryParam::UInt).map_err(|raised| {
        drop(raised.take(py));
        let message = format!("args['{name}'] does not fit the integers of SQL, -2**63 to 2**64 - 1");
        Raised::new(py, Builtin::Value, &message)
    })
}
