//! `selector_first`, `selector_last`, `selector_min`, `selector_max`: the row that an aggregate picks, as a struct of its
//! `value`, its `time` and what else was asked for (`other_1`, ...).
//!
//! - Rows without a value or a time are not looked at; if there are no others, the answer is NULL.
//! - Of rows with the same time, `first` and `last` pick the one with the greater value; of rows with the same value, `min` and
//!   `max` pick the earliest. So the answer does not depend on how rows are dealt to threads.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, DynComparator, StructArray, UInt64Array, make_comparator};
use arrow::compute::{SortOptions, take};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, TimeUnit};
use datafusion::common::{ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, Signature, Volatility};

/// Which row is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pick {
    First,
    Last,
    Min,
    Max,
}

impl Pick {
    pub(super) const ALL: [Pick; 4] = [Pick::First, Pick::Last, Pick::Min, Pick::Max];

    fn name(self) -> &'static str {
        match self {
            Pick::First => "selector_first",
            Pick::Last => "selector_last",
            Pick::Min => "selector_min",
            Pick::Max => "selector_max",
        }
    }

    /// Whether a row is picked over another, given how its value and its time compare to the other's.
    fn better(self, value: impl Fn() -> Ordering, time: impl Fn() -> Ordering) -> bool {
        let order = match self {
            Pick::First => time().reverse().then_with(value),
            Pick::Last => time().then_with(value),
            Pick::Min => value().reverse().then_with(|| time().reverse()),
            Pick::Max => value().then_with(|| time().reverse()),
        };
        order == Ordering::Greater
    }
}

/// The aggregate function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Selector {
    pick: Pick,
    signature: Signature,
}

impl Selector {
    pub(super) fn new(pick: Pick) -> Self {
        Selector { pick, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

/// The fields of the answer, for a value, a time and further columns.
fn fields(columns: &[DataType]) -> Fields {
    let name = |at: usize| match at {
        0 => "value".to_owned(),
        1 => "time".to_owned(),
        other => format!("other_{}", other - 1),
    };
    columns.iter().enumerate().map(|(at, kind)| Field::new(name(at), kind.clone(), true)).collect()
}

impl AggregateUDFImpl for Selector {
    fn name(&self) -> &str {
        self.pick.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let name = self.name();
        let [_, time, ..] = arg_types else {
            return plan_err!("{name} takes a column and its time, and may take further columns: {name}(value, time)");
        };
        let DataType::Timestamp(_, zone) = time else {
            return plan_err!("the second argument of {name} must be a timestamp, such as time, and is of type {time}");
        };
        let mut coerced = arg_types.to_vec();
        coerced[1] = DataType::Timestamp(TimeUnit::Nanosecond, zone.clone());
        Ok(coerced)
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Struct(fields(arg_types)))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let kinds: Vec<DataType> = args.input_fields.iter().map(|field| field.data_type().clone()).collect();
        let state = |field: &FieldRef| {
            let name = format_state_name(args.name, field.name());
            Arc::new(Field::new(name, field.data_type().clone(), true))
        };
        Ok(fields(&kinds).iter().map(state).collect())
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        let kinds: Vec<DataType> = args.expr_fields.iter().map(|field| field.data_type().clone()).collect();
        Ok(Box::new(Picked { pick: self.pick, fields: fields(&kinds), best: None }))
    }
}

/// The best row so far.
#[derive(Debug)]
struct Picked {
    pick: Pick,
    fields: Fields,
    /// One array of one row per column.
    best: Option<Vec<ArrayRef>>,
}

impl Picked {
    /// The row of the batch that is picked.
    fn of(&self, columns: &[ArrayRef]) -> Result<Option<usize>> {
        let (value, time) = (comparator(&columns[0], &columns[0])?, comparator(&columns[1], &columns[1])?);
        let mut best = None;
        for row in 0..columns[0].len() {
            if columns[0].is_null(row) || columns[1].is_null(row) {
                continue;
            }
            if best.is_none_or(|best| self.pick.better(|| value(row, best), || time(row, best))) {
                best = Some(row);
            }
        }
        Ok(best)
    }
}

/// Compares rows of two arrays.
fn comparator(left: &ArrayRef, right: &ArrayRef) -> Result<DynComparator> {
    Ok(make_comparator(left, right, SortOptions::default())?)
}

impl Accumulator for Picked {
    fn update_batch(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let Some(row) = self.of(columns)? else { return Ok(()) };
        if let Some(best) = &self.best {
            let (value, time) = (comparator(&columns[0], &best[0])?, comparator(&columns[1], &best[1])?);
            if !self.pick.better(|| value(row, 0), || time(row, 0)) {
                return Ok(());
            }
        }
        // A copy: a slice would keep the whole batch.
        let row = UInt64Array::from(vec![row as u64]);
        self.best = Some(columns.iter().map(|column| Ok(take(column, &row, None)?)).collect::<Result<_>>()?);
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        match &self.best {
            Some(best) => best.iter().map(|column| ScalarValue::try_from_array(column, 0)).collect(),
            None => self.fields.iter().map(|field| ScalarValue::try_from(field.data_type())).collect(),
        }
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        match &self.best {
            Some(best) => {
                let row = StructArray::try_new(self.fields.clone(), best.clone(), None)?;
                Ok(ScalarValue::Struct(Arc::new(row)))
            }
            None => ScalarValue::try_from(&DataType::Struct(self.fields.clone())),
        }
    }

    fn size(&self) -> usize {
        let best: usize = self.best.iter().flatten().map(|column| column.get_array_memory_size()).sum();
        size_of_val(self) + best
    }
}
