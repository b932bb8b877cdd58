//! Functions of InfluxDB 3's dialect that DataFusion does not bring.

mod selector;
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
/// None that can be met: the names are new.
pub(super) fn register(session: &mut SessionState) -> Result<()> {
    for pick in Pick::ALL {
        session.register_udaf(AggregateUDF::new_from_impl(Selector::new(pick)).into())?;
    }
    session.register_udf(ScalarUDF::new_from_impl(Tz::new()).into())?;
    Ok(())
}
