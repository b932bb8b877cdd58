//! Sums of many groups at once (`GROUP BY`).

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::datatypes::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};

use super::single::partials;
use super::wide::{Values, narrow, overflow};

/// A sum of 128 bits for each group.
#[derive(Debug)]
pub(super) struct WideGroups {
    name: String,
    /// The type of the result.
    kind: DataType,
    sums: Vec<i128>,
    /// Whether the group has a value.
    seen: Vec<bool>,
}

impl WideGroups {
    pub(super) fn new(name: &str, kind: &DataType) -> Self {
        WideGroups { name: name.to_owned(), kind: kind.clone(), sums: Vec::new(), seen: Vec::new() }
    }

    fn add_all(
        &mut self,
        values: &ArrayRef,
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.sums.resize(total, 0);
        self.seen.resize(total, false);
        let nulls = valid(values, filter);
        let overflowed = match (Values::of(values)?, nulls) {
            (Values::Signed(values), None) => self.add(groups, values.iter().map(|v| i128::from(*v))),
            (Values::Unsigned(values), None) => self.add(groups, values.iter().map(|v| i128::from(*v))),
            (Values::Wide(values), None) => self.add(groups, values.iter().copied()),
            (values, Some(nulls)) => {
                let mut overflowed = false;
                for row in nulls.valid_indices() {
                    overflowed |= self.add_one(groups[row], values.at(row));
                }
                overflowed
            }
        };
        if overflowed { Err(overflow(&self.name, &self.kind)) } else { Ok(()) }
    }

    fn add(&mut self, groups: &[usize], values: impl Iterator<Item = i128>) -> bool {
        groups.iter().zip(values).fold(false, |overflowed, (group, value)| self.add_one(*group, value) | overflowed)
    }

    fn add_one(&mut self, group: usize, value: i128) -> bool {
        let (sum, overflowed) = self.sums[group].overflowing_add(value);
        self.sums[group] = sum;
        self.seen[group] = true;
        overflowed
    }

    fn take(&mut self, emit_to: EmitTo) -> (Vec<i128>, Option<NullBuffer>) {
        let (sums, seen) = (emit_to.take_needed(&mut self.sums), emit_to.take_needed(&mut self.seen));
        let nulls = seen.contains(&false).then(|| NullBuffer::new(BooleanBuffer::from(seen)));
        (sums, nulls)
    }
}

/// The rows that count, `None` if all do.
fn valid(values: &ArrayRef, filter: Option<&BooleanArray>) -> Option<NullBuffer> {
    let chosen = filter.map(|filter| {
        let (chosen, nulls) = filter.clone().into_parts();
        NullBuffer::new(match nulls {
            Some(nulls) => &chosen & nulls.inner(),
            None => chosen,
        })
    });
    NullBuffer::union(values.logical_nulls().filter(|nulls| nulls.null_count() > 0).as_ref(), chosen.as_ref())
}

impl GroupsAccumulator for WideGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.add_all(&values[0], group_indices, opt_filter, total_num_groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let (sums, nulls) = self.take(emit_to);
        narrow(&self.name, &self.kind, &sums, nulls)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (sums, nulls) = self.take(emit_to);
        Ok(vec![partials(&self.kind, sums, nulls)?])
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.add_all(&values[0], group_indices, None, total_num_groups)
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let nulls = valid(&values[0], opt_filter);
        let wide = Values::of(&values[0])?;
        let sums = (0..values[0].len()).map(|row| wide.at(row)).collect();
        Ok(vec![partials(&self.kind, sums, nulls)?])
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<i128>() + self.seen.capacity()
    }
}
