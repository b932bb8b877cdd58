//! Aggregates as window functions: each row's frame is a result of its own, and with those that collect or sort their input the
//! work and the memory of all rows together is the square of their number. They are watched: each step asks the query's bounds, and
//! long results are counted.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::logical_expr::expr::{AggregateFunctionParams, WindowFunction, WindowFunctionParams};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, Expr, SetMonotonicity, Signature,
    WindowFunctionDefinition,
};

use super::current;
use super::estimate::scalar_bytes;

/// A result of fewer bytes is not counted.
const LONG_RESULT_BYTES: usize = 4096;

/// Aggregates whose work or result grows with the frame.
const GROWING: &[&str] = &[
    "array_agg",
    "string_agg",
    "median",
    "percentile_cont",
    "quantile_cont",
    "approx_median",
    "approx_percentile_cont",
    "approx_percentile_cont_with_weight",
    "approx_distinct",
    "count",
    "nth_value",
];

/// The window function, watched if it has to be; `None` if not.
pub(super) fn watched(call: &WindowFunction) -> Option<Expr> {
    let WindowFunctionDefinition::AggregateUDF(inner) = &call.fun else { return None };
    if inner.inner().is::<Watched>()
        || !GROWING.contains(&inner.name())
        || (inner.name() == "count" && !call.params.distinct)
    {
        return None;
    }
    let fun = WindowFunctionDefinition::AggregateUDF(Arc::new(AggregateUDF::new_from_impl(Watched(inner.clone()))));
    Some(Expr::WindowFunction(Box::new(WindowFunction { fun, params: call.params.clone() })))
}

/// An aggregate whose accumulators are watched.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Watched(Arc<AggregateUDF>);

impl AggregateUDFImpl for Watched {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn aliases(&self) -> &[String] {
        self.0.aliases()
    }

    fn schema_name(&self, params: &AggregateFunctionParams) -> Result<String> {
        self.0.schema_name(params)
    }

    fn window_function_schema_name(&self, params: &WindowFunctionParams) -> Result<String> {
        self.0.window_function_schema_name(params)
    }

    fn window_function_display_name(&self, params: &WindowFunctionParams) -> Result<String> {
        self.0.window_function_display_name(params)
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.0.return_type(arg_types)
    }

    fn return_field(&self, arg_fields: &[FieldRef]) -> Result<FieldRef> {
        self.0.return_field(arg_fields)
    }

    fn is_nullable(&self) -> bool {
        self.0.is_nullable()
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Counted::new(self.0.accumulator(args)?)))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Counted::new(self.0.create_sliding_accumulator(args)?)))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.0.state_fields(args)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.0.order_sensitivity()
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.0.coerce_types(arg_types)
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        self.0.default_value(data_type)
    }

    fn supports_null_handling_clause(&self) -> bool {
        self.0.supports_null_handling_clause()
    }

    fn supports_within_group_clause(&self) -> bool {
        self.0.supports_within_group_clause()
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.0.inner().set_monotonicity(data_type)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.documentation()
    }
}

/// An accumulator that asks before each step, and counts long results until the window is done.
#[derive(Debug)]
struct Counted {
    inner: Box<dyn Accumulator>,
    results: Option<MemoryReservation>,
}

impl Counted {
    fn new(inner: Box<dyn Accumulator>) -> Self {
        Counted { inner, results: None }
    }

    fn count(&mut self, bytes: usize) -> Result<()> {
        let Some(guard) = current().filter(|_| bytes >= LONG_RESULT_BYTES) else { return Ok(()) };
        match &self.results {
            Some(results) => results.try_grow(bytes),
            None => {
                self.results = Some(guard.memory().take("a window's results", bytes)?);
                Ok(())
            }
        }
    }
}

impl Accumulator for Counted {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        super::check()?;
        self.inner.update_batch(values)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        super::check()?;
        let value = self.inner.evaluate()?;
        self.count(scalar_bytes(&value))?;
        Ok(value)
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.retract_batch(values)
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }
}
