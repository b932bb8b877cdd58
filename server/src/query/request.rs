//! What is asked.

use std::collections::HashMap;

use datafusion::common::{ParamValues, ScalarValue};

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryRequest {
    /// The database; without one only `information_schema` and expressions can be asked for.
    pub db: Option<String>,
    /// One SQL statement.
    pub sql: String,
    /// Values for `$name`, without the dollar sign. Values that the statement does not use are ignored.
    pub params: Vec<(String, ScalarParam)>,
    /// Where the question came from.
    pub kind: QueryKind,
}

/// `query_type` in `system.queries`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueryKind {
    /// The HTTP interface.
    #[default]
    Sql,
    /// Flight SQL.
    FlightSql,
    /// A plugin.
    Plugin,
}

impl QueryKind {
    /// The text in `system.queries`.
    pub fn as_str(self) -> &'static str {
        match self {
            QueryKind::Sql => "sql",
            QueryKind::FlightSql => "flightsql",
            QueryKind::Plugin => "plugin",
        }
    }
}

/// A parameter's value.
#[derive(Clone, Debug, PartialEq)]
pub enum ScalarParam {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    UInt(u64),
    /// A float.
    Float(f64),
    /// Text; compared with `time` it is read as a timestamp.
    String(String),
    /// Nanoseconds since 1970.
    TimestampNs(i64),
}

impl From<ScalarParam> for ScalarValue {
    fn from(param: ScalarParam) -> Self {
        match param {
            ScalarParam::Null => ScalarValue::Null,
            ScalarParam::Bool(value) => ScalarValue::Boolean(Some(value)),
            ScalarParam::Int(value) => ScalarValue::Int64(Some(value)),
            ScalarParam::UInt(value) => ScalarValue::UInt64(Some(value)),
            ScalarParam::Float(value) => ScalarValue::Float64(Some(value)),
            ScalarParam::String(value) => ScalarValue::Utf8(Some(value)),
            ScalarParam::TimestampNs(value) => ScalarValue::TimestampNanosecond(Some(value), None),
        }
    }
}

/// The parameters as DataFusion takes them.
pub(super) fn param_values(params: &[(String, ScalarParam)]) -> ParamValues {
    let values: HashMap<String, ScalarValue> =
        params.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    values.into()
}
