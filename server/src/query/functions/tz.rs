//! `tz(time[, 'Zone'])`: the same instant, shown in a time zone; in UTC if none is given.

use std::sync::Arc;

use arrow::array::timezone::Tz as Zone;
use arrow::array::{AsArray, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit, TimestampNanosecondType};
use datafusion::common::{ScalarValue, internal_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Tz {
    signature: Signature,
}

impl Tz {
    pub(super) fn new() -> Self {
        Tz { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Tz {
    fn name(&self) -> &str {
        "tz"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let (time, zone) = match arg_types {
            [time] => (time, None),
            [time, zone] => (time, Some(zone)),
            _ => return plan_err!("tz takes a timestamp and the name of a time zone: tz(time, 'Europe/Paris')"),
        };
        let DataType::Timestamp(_, own) = time else {
            return plan_err!("the first argument of tz must be a timestamp and is of type {time}");
        };
        let time = DataType::Timestamp(TimeUnit::Nanosecond, own.clone());
        Ok(std::iter::once(time).chain(zone.map(|_| DataType::Utf8)).collect())
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("the type of tz depends on its arguments")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let zone = match args.scalar_arguments.get(1) {
            None => "UTC".to_owned(),
            Some(Some(ScalarValue::Utf8(Some(zone)))) => zone.clone(),
            Some(_) => return plan_err!("the time zone of tz must be a constant text, such as 'Europe/Paris'"),
        };
        if zone.parse::<Zone>().is_err() {
            return plan_err!(
                "tz knows no time zone '{zone}'; give a name of the IANA data base, such as 'Europe/Paris'"
            );
        }
        let kind = DataType::Timestamp(TimeUnit::Nanosecond, Some(zone.into()));
        Ok(Arc::new(Field::new(self.name(), kind, args.arg_fields[0].is_nullable())))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let DataType::Timestamp(_, zone) = args.return_type() else {
            return internal_err!("tz gives timestamps");
        };
        Ok(match &args.args[0] {
            ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(at, _)) => {
                ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(*at, zone.clone()))
            }
            other => {
                let times = other.to_array(args.number_rows)?;
                let times: TimestampNanosecondArray = times.as_primitive::<TimestampNanosecondType>().clone();
                ColumnarValue::Array(Arc::new(times.with_timezone_opt(zone.clone())))
            }
        })
    }
}
