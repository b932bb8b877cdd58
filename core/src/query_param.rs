//! A value for `$name` in a plugin's query.

use serde::{Deserialize, Serialize};

/// A parameter's value. The reference has text only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum QueryParam {
    /// `None`
    Null,
    /// `bool`
    Bool(bool),
    /// An `int` that fits.
    Int(i64),
    /// An `int` beyond those.
    UInt(u64),
    /// `float`, as its bits: infinities and NaN have no JSON.
    Float(#[serde(with = "bits")] f64),
    /// `str`; compared with `time` it is read as a timestamp.
    Text(String),
    /// `datetime.datetime`, nanoseconds since 1970.
    Timestamp(i64),
}

/// A float as a whole number.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.to_bits())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(f64::from_bits(u64::deserialize(deserializer)?))
    }
}
