//! Functions that make texts and lists, bounded: the size of a result is estimated before it is made, memory is taken for it, and
//! what is large is made in pieces.
//!
//! A rule of the analyzer puts [`Bounded`] around each call of a function in [`GROWING`], wherever it came from (its name, an
//! operator, `[...]`), and around `||`. It is the last rule of the analyzer, so constants are folded by bounded functions only.
//! One whose result would be large is not folded: it is evaluated when the query runs, once, and not copied from plan to plan.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, concat};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ScalarValue, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::logical_expr::expr::{Cast, ScalarFunction, TryCast};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Documentation, Expr, ExprSchemable, LogicalPlan, Operator, ReturnFieldArgs,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, StructFieldMapping, Volatility,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr as BinaryPhysical, Column};
use saltus_core::limits::{QUERY_CONSTANT_BYTES_MAX, QUERY_STEP_BYTES_MAX, QUERY_VALUE_BYTES_MAX};

use super::budget::hold;
use super::estimate::{Growth, data_bytes, expanded_bytes, lengths, per_row};
use super::{Guard, current};
use crate::query::QueryError;

/// Results below this are not counted: a batch of short texts.
const SMALL_BYTES: usize = 256 * 1024;

/// What makes texts and lists, and how large they become. Functions whose results have a fixed width are not here.
const GROWING: &[(Growth, &[&str])] = &[
    (Growth::Repeat, &["repeat"]),
    (Growth::Pad, &["lpad", "rpad"]),
    (Growth::Replace, &["replace"]),
    (Growth::Pattern, &["regexp_replace"]),
    (Growth::Range, &["range", "generate_series"]),
    (Growth::RepeatList, &["array_repeat"]),
    (Growth::Resize, &["array_resize"]),
    (Growth::JoinList, &["array_to_string"]),
    (Growth::Split, &["string_to_array"]),
    (Growth::Text, &["arrow_cast", "arrow_try_cast"]),
    // At most as long as their arguments.
    (
        Growth::Sum(1),
        &[
            "btrim",
            "ltrim",
            "rtrim",
            "substr",
            "substr_index",
            "split_part",
            "left",
            "right",
            "reverse",
            "overlay",
            "concat",
            "regexp_match",
            "decode",
            "nvl",
            "nvl2",
            "nullif",
            "greatest",
            "least",
            "struct",
            "named_struct",
        ],
    ),
    // An item takes some bytes more in a list; a sign may take more bytes in another case or alphabet.
    (
        Growth::Sum(2),
        &[
            "concat_ws",
            "encode",
            "make_array",
            "array_append",
            "array_prepend",
            "array_concat",
            "flatten",
            "array_sort",
            "array_reverse",
            "array_slice",
            "array_element",
            "array_distinct",
            "array_union",
            "array_intersect",
            "array_except",
            "array_remove",
            "array_remove_n",
            "array_remove_all",
            "array_replace",
            "array_replace_n",
            "array_replace_all",
            "array_pop_back",
            "array_pop_front",
            "array_positions",
            "arrays_zip",
            "array_compact",
            "array_add",
            "array_subtract",
            "array_scale",
            "array_normalize",
            "map",
            "map_extract",
            "map_keys",
            "map_values",
            "map_entries",
        ],
    ),
    (Growth::Sum(4), &["upper", "lower", "initcap", "translate", "uuid", "chr", "to_hex"]),
];

fn growth_of(name: &str) -> Option<Growth> {
    GROWING.iter().find(|(_, names)| names.contains(&name)).map(|(growth, _)| *growth)
}

/// The rule that bounds functions.
#[derive(Debug)]
pub(crate) struct BoundedFunctions {
    joined: Arc<ScalarUDF>,
}

impl Default for BoundedFunctions {
    fn default() -> Self {
        BoundedFunctions { joined: Arc::new(ScalarUDF::new_from_impl(Joined::new())) }
    }
}

impl AnalyzerRule for BoundedFunctions {
    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        let bound = |plan: LogicalPlan| {
            let names = NamePreserver::new(&plan);
            let schema = merge_schema(&plan.inputs());
            let plan = plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let bound = expr.transform_up(|expr| self.bound(expr, &schema))?;
                Ok(if bound.transformed { bound.update_data(|expr| name.restore(expr)) } else { bound })
            })?;
            plan.transform_data(super::windows::bounded)
        };
        plan.transform_up_with_subqueries(bound).map(|plan| plan.data)
    }

    fn name(&self) -> &'static str {
        "bounded_functions"
    }
}

impl BoundedFunctions {
    fn bound(&self, expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
        Ok(match expr {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) => {
                let joined = bounded(self.joined.clone(), Growth::Sum(1));
                Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(joined, vec![*left, *right])))
            }
            Expr::Cast(Cast { expr, field }) if is_text(field.data_type()) && expr.get_type(schema)?.is_nested() => {
                Transformed::yes(as_text(*expr, field.data_type(), false))
            }
            Expr::TryCast(TryCast { expr, field })
                if is_text(field.data_type()) && expr.get_type(schema)?.is_nested() =>
            {
                Transformed::yes(as_text(*expr, field.data_type(), true))
            }
            other => bound_call(other),
        })
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// A list or struct as text: a cast that is bounded as functions are.
fn as_text(expr: Expr, to: &DataType, safe: bool) -> Expr {
    let signature = Signature::any(1, Volatility::Immutable);
    let cast = ScalarUDF::new_from_impl(AsText { signature, to: to.clone(), safe });
    Expr::ScalarFunction(ScalarFunction::new_udf(bounded(Arc::new(cast), Growth::Text), vec![expr]))
}

fn bounded(inner: Arc<ScalarUDF>, growth: Growth) -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::new_from_impl(Bounded { inner, growth }))
}

fn bound_call(expr: Expr) -> Transformed<Expr> {
    match expr {
        Expr::ScalarFunction(call) if !call.func.inner().is::<Bounded>() => match growth_of(call.func.name()) {
            Some(growth) => {
                let func = bounded(call.func, growth);
                Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args: call.args }))
            }
            None => Transformed::no(Expr::ScalarFunction(call)),
        },
        other => Transformed::no(other),
    }
}

/// A function whose results are estimated, counted and made in pieces.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    growth: Growth,
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn is_strict(&self) -> bool {
        self.inner.is_strict()
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let texts = args.iter().map(|arg| match arg {
            Expr::Literal(value, _) => super::estimate::scalar_bytes(value),
            _ => 0,
        });
        // Some functions join their constants here.
        if texts.sum::<usize>() > QUERY_CONSTANT_BYTES_MAX {
            return Ok(ExprSimplifyResult::Original(args));
        }
        Ok(match self.inner.simplify(args, info)? {
            ExprSimplifyResult::Simplified(expr) => {
                ExprSimplifyResult::Simplified(expr.transform_up(|expr| Ok(bound_call(expr)))?.data)
            }
            original => original,
        })
    }

    fn conditional_arguments<'a>(&self, args: &'a [Expr]) -> Option<(Vec<&'a Expr>, Vec<&'a Expr>)> {
        self.inner.conditional_arguments(args)
    }

    fn short_circuits(&self) -> bool {
        self.inner.short_circuits()
    }

    fn evaluate_bounds(&self, inputs: &[&Interval]) -> Result<Interval> {
        self.inner.evaluate_bounds(inputs)
    }

    fn propagate_constraints(&self, interval: &Interval, inputs: &[&Interval]) -> Result<Option<Vec<Interval>>> {
        self.inner.propagate_constraints(interval, inputs)
    }

    fn struct_field_mapping(&self, literal_args: &[Option<ScalarValue>]) -> Option<StructFieldMapping> {
        self.inner.inner().struct_field_mapping(literal_args)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.inner.preserves_lex_ordering(inputs)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match current() {
            Some(guard) if args.return_field.data_type().primitive_width().is_none() => self.invoke(&guard, args),
            _ => self.inner.invoke_with_args(args),
        }
    }
}

impl Bounded {
    fn invoke(&self, guard: &Guard, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        if let Growth::Sum(times) = self.growth {
            let sum = args.args.iter().map(|value| expanded_bytes(value, rows)).fold(0, usize::saturating_add);
            if sum.saturating_mul(usize::from(times)) <= SMALL_BYTES {
                return self.inner.invoke_with_args(args);
            }
        }
        if args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_))) {
            return self.invoke_once(guard, args);
        }
        let estimates = per_row(self.growth, &args.args, rows);
        let total = estimates.iter().copied().fold(0, usize::saturating_add);
        if total <= SMALL_BYTES {
            return self.inner.invoke_with_args(args);
        }
        guard.check()?;
        if total <= QUERY_STEP_BYTES_MAX {
            return self.piece(guard, args, total).map(ColumnarValue::Array);
        }
        self.check_values(guard, &estimates, self.growth.least_share())?;
        self.in_pieces(guard, &args, &estimates).map(ColumnarValue::Array)
    }

    /// One value, which whoever asked for it may write into each of the rows.
    fn invoke_once(&self, guard: &Guard, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let one = per_row(self.growth, &args.args, 1).first().copied().unwrap_or(0);
        if one <= SMALL_BYTES && one.saturating_mul(args.number_rows) <= QUERY_STEP_BYTES_MAX {
            return self.inner.invoke_with_args(args);
        }
        guard.check()?;
        if !guard.is_executing() && one > QUERY_CONSTANT_BYTES_MAX {
            return plan_err!("{} makes too much to be folded", self.name());
        }
        self.check_values(guard, &[one], self.growth.least_share())?;
        let rows = args.number_rows;
        let copies = one.saturating_mul(rows.saturating_add(1));
        let taken = self.take(guard, copies)?;
        let made = self.inner.invoke_with_args(args)?;
        self.check_values(guard, &lengths(&made, 1), 1)?;
        // In many rows it stays one value for as long as it can.
        if !guard.is_executing() || rows != 1 {
            return Ok(made);
        }
        let made = made.into_array(rows)?;
        taken.resize(data_bytes(made.as_ref()));
        Ok(ColumnarValue::Array(hold(made, taken)?))
    }

    /// Refuses a value that is too large by itself. `sizes` may be up to `share` times too high.
    fn check_values(&self, guard: &Guard, sizes: &[usize], share: usize) -> Result<()> {
        match sizes.iter().max().map(|size| size / share).filter(|size| *size > QUERY_VALUE_BYTES_MAX) {
            None => Ok(()),
            Some(size) => Err(QueryError::TooLarge(format!(
                "{} makes a value of {size} bytes, and one text or list has at most {QUERY_VALUE_BYTES_MAX} (of --query-memory \
                 there would be {} bytes): make shorter ones; many numbers are made by a table, as in SELECT value FROM \
                 generate_series(1, 1000)",
                self.name(),
                guard.memory().limit()
            ))
            .into()),
        }
    }

    fn take(&self, guard: &Guard, bytes: usize) -> Result<MemoryReservation> {
        guard.memory().take(self.name(), bytes)
    }

    fn piece(&self, guard: &Guard, args: ScalarFunctionArgs, estimate: usize) -> Result<ArrayRef> {
        let rows = args.number_rows;
        let taken = self.take(guard, estimate)?;
        let made = self.inner.invoke_with_args(args)?;
        if estimate > QUERY_VALUE_BYTES_MAX {
            self.check_values(guard, &lengths(&made, rows), 1)?;
        }
        let made = made.into_array(rows)?;
        // What was not needed is given back; what was needed beyond is counted all the same.
        taken.resize(data_bytes(made.as_ref()));
        Ok(hold(made, taken)?)
    }

    /// Makes some rows at a time: one that was estimated too high costs a further piece and no refusal.
    fn in_pieces(&self, guard: &Guard, args: &ScalarFunctionArgs, estimates: &[usize]) -> Result<ArrayRef> {
        let (mut made, mut total, mut at) = (Vec::new(), 0_usize, 0);
        while at < estimates.len() {
            guard.check()?;
            let (rows, bytes) = next_piece(&estimates[at..]);
            let slice = |value: &ColumnarValue| match value {
                ColumnarValue::Array(array) => ColumnarValue::Array(array.slice(at, rows)),
                scalar @ ColumnarValue::Scalar(_) => scalar.clone(),
            };
            let part = ScalarFunctionArgs {
                args: args.args.iter().map(slice).collect(),
                arg_fields: args.arg_fields.clone(),
                number_rows: rows,
                return_field: args.return_field.clone(),
                config_options: args.config_options.clone(),
            };
            let piece = self.piece(guard, part, bytes)?;
            total = total.saturating_add(data_bytes(piece.as_ref()));
            if total > i32::MAX as usize && !has_long_offsets(piece.data_type()) {
                return Err(self.too_long(guard, estimates.len()));
            }
            made.push(piece);
            at += rows;
        }
        let taken = self.take(guard, total)?;
        let parts: Vec<&dyn Array> = made.iter().map(AsRef::as_ref).collect();
        let whole = concat(&parts)?;
        drop(made);
        Ok(hold(whole, taken)?)
    }

    fn too_long(&self, guard: &Guard, rows: usize) -> DataFusionError {
        QueryError::TooLarge(format!(
            "{} makes more than {} bytes of {rows} rows, which is more than a column of one step can hold (of --query-memory \
             there would be {} bytes): make shorter texts or lists",
            self.name(),
            i32::MAX,
            guard.memory().limit()
        ))
        .into()
    }
}

/// As many rows as fit a step, one at least; and their bytes.
fn next_piece(estimates: &[usize]) -> (usize, usize) {
    let (mut rows, mut bytes) = (0, 0_usize);
    for estimate in estimates {
        let more = bytes.saturating_add(*estimate);
        if rows > 0 && more > QUERY_STEP_BYTES_MAX {
            break;
        }
        (rows, bytes) = (rows + 1, more);
    }
    (rows, bytes)
}

fn has_long_offsets(data_type: &DataType) -> bool {
    !matches!(data_type, DataType::Utf8 | DataType::Binary | DataType::List(_) | DataType::Map(..))
}

/// `CAST(list AS varchar)` as a function, so that it is bounded as all others are.
#[derive(Debug, PartialEq, Eq, Hash)]
struct AsText {
    signature: Signature,
    to: DataType,
    /// What cannot be cast is NULL.
    safe: bool,
}

impl ScalarUDFImpl for AsText {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(self.to.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let options = CastOptions { safe: self.safe, ..Default::default() };
        args.args[0].cast_to(&self.to, Some(&options))
    }
}

/// `a || b` as a function, so that it is bounded as all others are.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Joined {
    signature: Signature,
}

impl Joined {
    fn new() -> Self {
        // Types are those of the operator: the rules before this one saw to it.
        Joined { signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Joined {
    fn name(&self) -> &'static str {
        "||"
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        match args {
            [left, right] => {
                let operator = BinaryExpr::new(Box::new(left.clone()), Operator::StringConcat, Box::new(right.clone()));
                Ok(Expr::BinaryExpr(operator).schema_name().to_string())
            }
            _ => plan_err!("|| is between two texts"),
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match arg_types {
            [left, right] => BinaryTypeCoercer::new(left, &Operator::StringConcat, right).get_result_type(),
            _ => plan_err!("|| is between two texts"),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let types: Vec<DataType> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let once = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if once { 1 } else { args.number_rows };
        let columns = args.args.iter().map(|value| value.to_array(rows)).collect::<Result<Vec<_>>>()?;
        let fields: Vec<FieldRef> = columns
            .iter()
            .enumerate()
            .map(|(at, column)| Arc::new(Field::new(at.to_string(), column.data_type().clone(), true)))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?;
        let operand = |at: usize| Arc::new(Column::new(&at.to_string(), at)) as Arc<dyn PhysicalExpr>;
        let joined = BinaryPhysical::new(operand(0), Operator::StringConcat, operand(1)).evaluate(&batch)?;
        match joined {
            ColumnarValue::Array(array) if once => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?)),
            other => Ok(other),
        }
    }
}
