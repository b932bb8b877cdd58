//! Window functions. As aggregates each row's frame is a result of its own, and with those that collect or sort their input the
//! work and the memory of all rows together is the square of their number. They are watched: each step asks the query's bounds, and
//! long results are counted. A text or list that is the result of many rows is there once ([`super::values`]).

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, DFSchema, ScalarValue, TableReference};
use datafusion::error::Result;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::logical_expr::expr::{AggregateFunctionParams, WindowFunction, WindowFunctionParams};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, Expr, ExprSchemable, LogicalPlan, Projection,
    SetMonotonicity, Signature, Window, WindowFunctionDefinition,
};

use super::current;
use super::estimate::scalar_bytes;
use super::values::Values;

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

/// Window functions that give back what they are given, of any type.
const GIVING_BACK: &[&str] = &["first_value", "last_value", "nth_value", "lag", "lead"];

/// A plan whose window functions are bounded: aggregates are watched, and results that are texts or lists are numbers until the rows
/// leave the window.
pub(super) fn bounded(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::Window(window) = &plan else { return Ok(Transformed::no(plan)) };
    let mut making = Making { schema: window.input.schema(), values: Values::default(), kept: Vec::new() };
    let inputs = making.schema.fields().len();
    let (mut exprs, mut narrow) = (Vec::new(), vec![None; inputs]);
    let mut changed = false;
    for (at, expr) in window.window_expr.iter().enumerate() {
        let field = window.schema.field(inputs + at);
        let made = match expr.clone().unalias() {
            Expr::WindowFunction(call) => making.bounded(*call, field.data_type())?,
            _ => None,
        };
        changed |= made.is_some();
        narrow.push(made.as_ref().filter(|_| Values::keeps(field.data_type())).map(|_| field.data_type().clone()));
        exprs.push(made.map_or_else(
            || expr.clone(),
            |call| Expr::WindowFunction(Box::new(call)).alias_qualified(None::<TableReference>, field.name()),
        ));
    }
    if !changed {
        return Ok(Transformed::no(plan));
    }
    let Making { values, kept, .. } = making;
    let mut input = window.input.clone();
    if !kept.is_empty() {
        let columns = input.schema().iter().map(Expr::from).chain(kept).collect();
        input = Arc::new(LogicalPlan::Projection(Projection::try_new(columns, input)?));
    }
    let made = Arc::new(LogicalPlan::Window(Window::try_new(exprs, input)?));
    let columns = window.schema.iter().zip(narrow).map(|((relation, field), wide)| {
        let column = Expr::Column(Column::new(relation.cloned(), field.name()));
        match wide {
            Some(to) => values.wide(column, &to).alias_qualified(relation.cloned(), field.name()),
            None => column,
        }
    });
    Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(columns.collect(), made)?)))
}

/// The calls of one window.
struct Making<'a> {
    schema: &'a DFSchema,
    values: Values,
    /// Arguments that are made below the window.
    kept: Vec<Expr>,
}

impl Making<'_> {
    /// The call, watched or with numbers; `None` if it stays.
    fn bounded(&mut self, mut call: WindowFunction, returns: &DataType) -> Result<Option<WindowFunction>> {
        let keeps = Values::keeps(returns);
        match &call.fun {
            WindowFunctionDefinition::AggregateUDF(inner) => {
                let grows = GROWING.contains(&inner.name()) && (inner.name() != "count" || call.params.distinct);
                if inner.inner().is::<Watched>() || !(grows || keeps) {
                    return Ok(None);
                }
                let values = keeps.then(|| self.values.clone());
                let watched = AggregateUDF::new_from_impl(Watched { inner: inner.clone(), values });
                call.fun = WindowFunctionDefinition::AggregateUDF(Arc::new(watched));
            }
            WindowFunctionDefinition::WindowUDF(inner) => {
                let [first, rest @ ..] = call.params.args.as_mut_slice() else { return Ok(None) };
                if !(keeps && GIVING_BACK.contains(&inner.name()) && first.get_type(self.schema)? == *returns) {
                    return Ok(None);
                }
                let name = format!("kept {}", self.kept.len());
                self.kept.push(self.values.narrow(std::mem::take(first)).alias(&name));
                *first = Expr::Column(Column::new_unqualified(name));
                // What there is beyond the rows.
                if matches!(inner.name(), "lag" | "lead")
                    && let [_, beyond, ..] = rest
                {
                    *beyond = self.values.narrow(std::mem::take(beyond).cast_to(returns, self.schema)?);
                }
            }
        }
        Ok(Some(call))
    }
}

/// An aggregate whose accumulators are watched.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Watched {
    inner: Arc<AggregateUDF>,
    /// Its results are kept there.
    values: Option<Values>,
}

impl Watched {
    fn counted(
        &self,
        args: AccumulatorArgs<'_>,
        make: fn(&AggregateUDF, AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>>,
    ) -> Result<Box<dyn Accumulator>> {
        let return_field = self.inner.return_field(args.expr_fields)?;
        let inner = make(&self.inner, AccumulatorArgs { return_field, ..args })?;
        Ok(Box::new(Counted { inner, values: self.values.clone(), last: None, results: None }))
    }
}

impl AggregateUDFImpl for Watched {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, params: &AggregateFunctionParams) -> Result<String> {
        self.inner.schema_name(params)
    }

    fn window_function_schema_name(&self, params: &WindowFunctionParams) -> Result<String> {
        self.inner.window_function_schema_name(params)
    }

    fn window_function_display_name(&self, params: &WindowFunctionParams) -> Result<String> {
        self.inner.window_function_display_name(params)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        if self.values.is_some() { Ok(DataType::UInt64) } else { self.inner.return_type(arg_types) }
    }

    fn return_field(&self, arg_fields: &[FieldRef]) -> Result<FieldRef> {
        let field = self.inner.return_field(arg_fields)?;
        if self.values.is_none() {
            return Ok(field);
        }
        Ok(Arc::new(field.as_ref().clone().with_data_type(DataType::UInt64)))
    }

    fn is_nullable(&self) -> bool {
        self.inner.is_nullable()
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.counted(args, AggregateUDF::accumulator)
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.counted(args, AggregateUDF::create_sliding_accumulator)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.inner.state_fields(args)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.inner.order_sensitivity()
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        if self.values.is_some() { Ok(ScalarValue::UInt64(None)) } else { self.inner.default_value(data_type) }
    }

    fn supports_null_handling_clause(&self) -> bool {
        self.inner.supports_null_handling_clause()
    }

    fn supports_within_group_clause(&self) -> bool {
        self.inner.supports_within_group_clause()
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.inner.inner().set_monotonicity(data_type)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

/// An accumulator that asks before each step, and counts long results until the window is done.
#[derive(Debug)]
struct Counted {
    inner: Box<dyn Accumulator>,
    /// Where results are kept; otherwise only counted.
    values: Option<Values>,
    /// The last result, and its number: rows one behind the other often have the same.
    last: Option<(ScalarValue, ScalarValue)>,
    results: Option<MemoryReservation>,
}

impl Counted {
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
        if let Some((_, made)) = self.last.as_ref().filter(|(last, _)| *last == value) {
            return Ok(made.clone());
        }
        let Some(values) = &self.values else {
            self.count(scalar_bytes(&value))?;
            return Ok(value);
        };
        let made = values.keep_one(&value)?;
        self.last = Some((value, made.clone()));
        Ok(made)
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
