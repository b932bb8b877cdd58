//! Functions of InfluxDB 3's dialect that DataFusion does not bring, and functions that stand in for DataFusion's own where
//! those give wrong answers.

pub(super) mod checked;
pub(super) mod date_part;
mod selector;
mod shift;
mod sum;
#[cfg(test)]
mod tests;
mod tz;

use datafusion::error::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

use selector::{Pick, Selector};
use tz::Tz;

/// Makes the functions known to every query of the session.
///
/// # Errors
/// None that can be met: every function may be registered.
pub(super) fn register(session: &mut SessionState) -> Result<()> {
    for pick in Pick::ALL {
        session.register_udaf(AggregateUDF::new_from_impl(Selector::new(pick)).into())?;
    }
    session.register_udf(ScalarUDF::new_from_impl(Tz::new()).into())?;
    session.register_udf(date_part::date_part())?;
    session.register_udaf(sum::sum().into())?;
    session.register_udaf(sum::avg().into())?;
    session.register_udwf(shift::lead())?;
    session.register_udwf(shift::lag())?;
    Ok(())
}
