//! `lead` and `lag` that skip NULLs rightly.
//!
//! DataFusion's evaluator for running over a stream loses count of what it skips (`lead(x, 2) IGNORE NULLS`, and any lead
//! before a LIMIT). Its evaluator for a whole partition is right, and is the only one used here where NULLs are skipped.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use arrow::array::ArrayRef;
use arrow::datatypes::FieldRef;
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::functions_window::lead_lag::{WindowShift, WindowShiftKind};
use datafusion::logical_expr::function::{ExpressionArgs, PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion::logical_expr::{
    Documentation, LimitEffect, PartitionEvaluator, ReversedUDWF, Signature, WindowUDF, WindowUDFImpl,
};
use datafusion::physical_expr_common::physical_expr::PhysicalExpr;

/// `lead`.
pub(crate) fn lead() -> Arc<WindowUDF> {
    static FUNCTION: LazyLock<Arc<WindowUDF>> =
        LazyLock::new(|| Arc::new(WindowUDF::new_from_impl(Shift { inner: WindowShift::lead() })));
    FUNCTION.clone()
}

/// `lag`.
pub(crate) fn lag() -> Arc<WindowUDF> {
    static FUNCTION: LazyLock<Arc<WindowUDF>> =
        LazyLock::new(|| Arc::new(WindowUDF::new_from_impl(Shift { inner: WindowShift::lag() })));
    FUNCTION.clone()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Shift {
    inner: WindowShift,
}

impl WindowUDFImpl for Shift {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn expressions(&self, args: ExpressionArgs<'_>) -> Vec<Arc<dyn PhysicalExpr>> {
        self.inner.expressions(args)
    }

    fn partition_evaluator(&self, args: PartitionEvaluatorArgs<'_>) -> Result<Box<dyn PartitionEvaluator>> {
        let skips = args.ignore_nulls();
        let inner = self.inner.partition_evaluator(args)?;
        Ok(if skips { Box::new(Whole { inner }) } else { inner })
    }

    fn field(&self, args: WindowUDFFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.field(args)
    }

    fn reverse_expr(&self) -> ReversedUDWF {
        ReversedUDWF::Reversed(match self.inner.kind() {
            WindowShiftKind::Lead => lead(),
            WindowShiftKind::Lag => lag(),
        })
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn limit_effect(&self, _args: &[Arc<dyn PhysicalExpr>]) -> LimitEffect {
        // How far the rows lie that are looked at depends on NULLs and on the direction.
        LimitEffect::Unknown
    }
}

/// Sees a partition as a whole or not at all.
#[derive(Debug)]
struct Whole {
    inner: Box<dyn PartitionEvaluator>,
}

impl PartitionEvaluator for Whole {
    fn evaluate_all(&mut self, values: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        self.inner.evaluate_all(values, rows)
    }

    fn evaluate(&mut self, _: &[ArrayRef], _: &Range<usize>) -> Result<ScalarValue> {
        internal_err!("lead and lag with IGNORE NULLS need their whole partition")
    }

    fn supports_bounded_execution(&self) -> bool {
        false
    }
}
