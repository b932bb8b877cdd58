//! Integer operators that never wrap: `+`, `-`, `*`, the unary minus, `<<` and `>>`.
//!
//! DataFusion's own operators wrap around at the ends of a type. The rule in `rules` puts these functions in their place
//! once types are known; a column made from one keeps the name that the operator would have given it.

use arrow::array::{Array, ArrayRef, Datum};
use arrow::compute::kernels::{arity, numeric};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Field, FieldRef};
use arrow::error::ArrowError;
use datafusion::common::{ScalarValue, internal_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_expr_common::datum::apply;
use std::sync::{Arc, LazyLock};

use crate::query::QueryError;

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Checked {
    Add,
    Subtract,
    Multiply,
    Negate,
    ShiftLeft,
    ShiftRight,
}

impl Checked {
    fn sign(self) -> &'static str {
        match self {
            Checked::Add => "+",
            Checked::Subtract | Checked::Negate => "-",
            Checked::Multiply => "*",
            Checked::ShiftLeft => "<<",
            Checked::ShiftRight => ">>",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Checked::Add => "checked_add",
            Checked::Subtract => "checked_subtract",
            Checked::Multiply => "checked_multiply",
            Checked::Negate => "checked_negate",
            Checked::ShiftLeft => "checked_shift_left",
            Checked::ShiftRight => "checked_shift_right",
        }
    }

    fn function(self) -> Arc<ScalarUDF> {
        static FUNCTIONS: LazyLock<[Arc<ScalarUDF>; 6]> = LazyLock::new(|| {
            let all = [
                Checked::Add,
                Checked::Subtract,
                Checked::Multiply,
                Checked::Negate,
                Checked::ShiftLeft,
                Checked::ShiftRight,
            ];
            all.map(|op| Arc::new(ScalarUDF::new_from_impl(CheckedOperator::new(op))))
        });
        FUNCTIONS[self as usize].clone()
    }
}

/// `left op right` without wrapping, if `op` is one that could wrap.
pub(crate) fn binary(op: Operator) -> Option<fn(Expr, Expr) -> Expr> {
    fn call(op: Checked, left: Expr, right: Expr) -> Expr {
        Expr::ScalarFunction(ScalarFunction::new_udf(op.function(), vec![left, right]))
    }
    Some(match op {
        Operator::Plus => |left, right| call(Checked::Add, left, right),
        Operator::Minus => |left, right| call(Checked::Subtract, left, right),
        Operator::Multiply => |left, right| call(Checked::Multiply, left, right),
        Operator::BitwiseShiftLeft => |left, right| call(Checked::ShiftLeft, left, right),
        Operator::BitwiseShiftRight => |left, right| call(Checked::ShiftRight, left, right),
        _ => return None,
    })
}

/// `-value` without wrapping.
pub(crate) fn negate(value: Expr) -> Expr {
    Expr::ScalarFunction(ScalarFunction::new_udf(Checked::Negate.function(), vec![value]))
}

/// The function behind an operator.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CheckedOperator {
    op: Checked,
    signature: Signature,
}

impl CheckedOperator {
    fn new(op: Checked) -> Self {
        let arguments = if op == Checked::Negate { 1 } else { 2 };
        CheckedOperator { op, signature: Signature::any(arguments, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for CheckedOperator {
    fn name(&self) -> &str {
        self.op.name()
    }

    /// As DataFusion names a column of the operator.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(match args {
            [left, right] => format!("{} {} {}", left.schema_name(), self.op.sign(), right.schema_name()),
            [value] => format!("(- {})", value.schema_name()),
            _ => self.op.name().to_owned(),
        })
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match arg_types.first() {
            Some(kind) => Ok(kind.clone()),
            None => internal_err!("{} has arguments", self.op.name()),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let Some(first) = args.arg_fields.first() else { return internal_err!("{} has arguments", self.op.name()) };
        let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), first.data_type().clone(), nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let computed = match (self.op, args.args.as_slice()) {
            (Checked::Negate, [value]) => negated(value),
            (Checked::Add, [left, right]) => apply(left, right, numeric::add),
            (Checked::Subtract, [left, right]) => apply(left, right, numeric::sub),
            (Checked::Multiply, [left, right]) => apply(left, right, numeric::mul),
            (Checked::ShiftLeft, [left, right]) => apply(left, right, shift_left),
            (Checked::ShiftRight, [left, right]) => apply(left, right, shift_right),
            _ => return internal_err!("{} has other arguments", self.op.name()),
        };
        computed.map_err(|error| named(error, args.return_type()))
    }
}

fn negated(value: &ColumnarValue) -> Result<ColumnarValue> {
    match value {
        ColumnarValue::Array(array) => Ok(ColumnarValue::Array(numeric::neg(array)?)),
        ColumnarValue::Scalar(scalar) => {
            let array = numeric::neg(&scalar.to_array()?)?;
            Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?))
        }
    }
}

/// The overflow in the user's words.
fn named(error: datafusion::error::DataFusionError, kind: &DataType) -> datafusion::error::DataFusionError {
    use datafusion::error::DataFusionError::ArrowError as Arrow;
    match error {
        Arrow(inner, _) if matches!(*inner, ArrowError::ArithmeticOverflow(_)) => {
            let ArrowError::ArithmeticOverflow(text) = *inner else { return aborted() };
            let of = text.strip_prefix("Overflow happened on: ").unwrap_or(&text);
            QueryError::Invalid(format!(
                "integer overflow in {of}: the result does not fit into {}; cast to DOUBLE or DECIMAL, as in \
                 CAST(x AS DOUBLE)",
                sql_name(kind)
            ))
            .into()
        }
        other => other,
    }
}

fn aborted() -> datafusion::error::DataFusionError {
    QueryError::Invalid("integer overflow".to_owned()).into()
}

/// The name of an integer type in SQL.
pub(crate) fn sql_name(kind: &DataType) -> String {
    match kind {
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::Int32 => "INT".to_owned(),
        DataType::Int16 => "SMALLINT".to_owned(),
        DataType::Int8 => "TINYINT".to_owned(),
        DataType::UInt64 => "BIGINT UNSIGNED".to_owned(),
        DataType::UInt32 => "INT UNSIGNED".to_owned(),
        DataType::UInt16 => "SMALLINT UNSIGNED".to_owned(),
        DataType::UInt8 => "TINYINT UNSIGNED".to_owned(),
        other => other.to_string(),
    }
}

macro_rules! by_type {
    ($left:expr, $right:expr, $function:ident) => {
        match $left.get().0.data_type() {
            DataType::Int8 => $function::<arrow::datatypes::Int8Type>($left, $right),
            DataType::Int16 => $function::<arrow::datatypes::Int16Type>($left, $right),
            DataType::Int32 => $function::<arrow::datatypes::Int32Type>($left, $right),
            DataType::Int64 => $function::<arrow::datatypes::Int64Type>($left, $right),
            DataType::UInt8 => $function::<arrow::datatypes::UInt8Type>($left, $right),
            DataType::UInt16 => $function::<arrow::datatypes::UInt16Type>($left, $right),
            DataType::UInt32 => $function::<arrow::datatypes::UInt32Type>($left, $right),
            DataType::UInt64 => $function::<arrow::datatypes::UInt64Type>($left, $right),
            other => Err(ArrowError::InvalidArgumentError(format!("{other} cannot be shifted"))),
        }
    };
}

fn shift_left(left: &dyn Datum, right: &dyn Datum) -> Result<ArrayRef, ArrowError> {
    by_type!(left, right, shift_left_of)
}

fn shift_right(left: &dyn Datum, right: &dyn Datum) -> Result<ArrayRef, ArrowError> {
    by_type!(left, right, shift_right_of)
}

/// An integer that can be shifted.
trait Bits: ArrowPrimitiveType {
    fn wide(value: Self::Native) -> i128;
    fn narrow(wide: i128) -> Option<Self::Native>;
}

macro_rules! bits {
    ($($kind:ident $native:ty),*) => {
        $(impl Bits for arrow::datatypes::$kind {
            fn wide(value: $native) -> i128 {
                i128::from(value)
            }
            fn narrow(wide: i128) -> Option<$native> {
                <$native>::try_from(wide).ok()
            }
        })*
    };
}

bits!(Int8Type i8, Int16Type i16, Int32Type i32, Int64Type i64);
bits!(UInt8Type u8, UInt16Type u16, UInt32Type u32, UInt64Type u64);

fn shift_left_of<T: Bits>(left: &dyn Datum, right: &dyn Datum) -> Result<ArrayRef, ArrowError> {
    each::<T>(left, right, |value, by| {
        let shifted = u32::try_from(by).ok().filter(|by| *by < 64).map(|by| value << by);
        // Nothing of zero is lost, however far.
        let shifted = shifted.or((value == 0 && by >= 0).then_some(0));
        shifted.and_then(T::narrow).ok_or_else(|| overflow(value, "<<", by))
    })
}

fn shift_right_of<T: Bits>(left: &dyn Datum, right: &dyn Datum) -> Result<ArrayRef, ArrowError> {
    each::<T>(left, right, |value, by| {
        let by = u32::try_from(by).map_err(|_| overflow(value, ">>", by))?;
        // All bits gone is what remains of the sign.
        T::narrow(value >> by.min(127)).ok_or_else(|| overflow(value, ">>", i128::from(by)))
    })
}

fn overflow(value: i128, sign: &str, by: i128) -> ArrowError {
    ArrowError::ArithmeticOverflow(format!("Overflow happened on: {value} {sign} {by}"))
}

/// Applies `f` to each pair; a side that is a single value is paired with every value of the other.
fn each<T: Bits>(
    left: &dyn Datum,
    right: &dyn Datum,
    f: impl Fn(i128, i128) -> Result<T::Native, ArrowError>,
) -> Result<ArrayRef, ArrowError> {
    use arrow::array::{AsArray, PrimitiveArray};
    let ((left, left_single), (right, right_single)) = (left.get(), right.get());
    let (left, right) = (left.as_primitive::<T>(), right.as_primitive::<T>());
    let f = |left, right| f(T::wide(left), T::wide(right));
    let computed: PrimitiveArray<T> = match (left_single, right_single) {
        (true, false) if left.is_null(0) => PrimitiveArray::new_null(right.len()),
        (true, false) => right.try_unary(|right| f(left.value(0), right))?,
        (false, true) if right.is_null(0) => PrimitiveArray::new_null(left.len()),
        (false, true) => left.try_unary(|left| f(left, right.value(0)))?,
        _ => arity::try_binary(left, right, f)?,
    };
    Ok(Arc::new(computed))
}
