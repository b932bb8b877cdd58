//! How large things are, and how large a function's result may become: known before it is made.
//!
//! Estimates are upper bounds, row by row, and saturate. What they cost is little beside what they bound: a pass over
//! lengths, never over texts.

use arrow::array::{Array, AsArray, Int64Array, OffsetSizeTrait, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::ColumnarValue;

/// Bytes of a value whose type says nothing better.
const VALUE_BYTES: usize = 16;
/// Bytes of a number or a time as text, at most in practice.
const NUMBER_TEXT_BYTES: usize = 32;
/// Bytes of a character.
const CHAR_BYTES: usize = 4;

/// How the size of a function's result depends on its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Growth {
    /// At most all arguments together, so often.
    Sum(u8),
    /// The first, as often as the second says.
    Repeat,
    /// As many characters as the second says.
    Pad,
    /// The third as often as the second is found in the first.
    Replace,
    /// The third, with groups of the match put in, as often as the pattern matches the first.
    Pattern,
    /// From the first to the second by the third.
    Range,
    /// A list of the first, as often as the second says.
    RepeatList,
    /// A list as long as the second says.
    Resize,
    /// The items of the first as text, with the others between them.
    JoinList,
    /// A list of the parts of the first.
    Split,
    /// The first as text.
    Text,
}

impl Growth {
    /// How many times too high an estimate can be at most: what is larger even so is too large for certain.
    pub(super) fn least_share(self) -> usize {
        match self {
            Growth::Repeat | Growth::Range | Growth::RepeatList | Growth::Resize => 1,
            Growth::Pad => CHAR_BYTES,
            _ => usize::MAX,
        }
    }
}

/// Bytes of the values that the array shows; what is behind a slice is not counted.
pub(crate) fn data_bytes(array: &dyn Array) -> usize {
    let own = match array.data_type() {
        DataType::Utf8 => span(array.as_string::<i32>().value_offsets()),
        DataType::LargeUtf8 => span(array.as_string::<i64>().value_offsets()),
        DataType::Binary => span(array.as_binary::<i32>().value_offsets()),
        DataType::LargeBinary => span(array.as_binary::<i64>().value_offsets()),
        DataType::Utf8View => array.as_string_view().iter().map(|text| text.map_or(0, str::len)).sum(),
        DataType::BinaryView => array.as_binary_view().iter().map(|bytes| bytes.map_or(0, <[u8]>::len)).sum(),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            part(list.values().as_ref(), list.value_offsets())
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            part(list.values().as_ref(), list.value_offsets())
        }
        DataType::FixedSizeList(..) => data_bytes(array.as_fixed_size_list().values().as_ref()),
        DataType::Map(..) => {
            let map = array.as_map();
            part(map.entries(), map.value_offsets())
        }
        DataType::Struct(_) => array.as_struct().columns().iter().map(|column| data_bytes(column.as_ref())).sum(),
        // The dictionary may be that of a whole table: what its values have on average is what a row has.
        DataType::Dictionary(..) => array.as_any_dictionary_opt().map_or(0, |dictionary| {
            let values = dictionary.values();
            data_bytes(values.as_ref()) / values.len().max(1) * array.len()
        }),
        other => return other.primitive_width().unwrap_or(VALUE_BYTES).saturating_mul(array.len()),
    };
    own.saturating_add(array.len().saturating_mul(size_of::<i32>()))
}

/// As [`data_bytes`], of all columns.
pub(crate) fn batch_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| data_bytes(column.as_ref())).sum()
}

fn span<O: OffsetSizeTrait>(offsets: &[O]) -> usize {
    match offsets {
        [first, .., last] => last.as_usize() - first.as_usize(),
        _ => 0,
    }
}

fn part<O: OffsetSizeTrait>(values: &dyn Array, offsets: &[O]) -> usize {
    let first = offsets.first().map_or(0, |first| first.as_usize());
    data_bytes(values.slice(first, span(offsets)).as_ref())
}

/// Bytes of one value.
pub(super) fn scalar_bytes(value: &ScalarValue) -> usize {
    match value {
        ScalarValue::List(list) => data_bytes(list.as_ref()),
        ScalarValue::LargeList(list) => data_bytes(list.as_ref()),
        ScalarValue::FixedSizeList(list) => data_bytes(list.as_ref()),
        ScalarValue::Struct(fields) => data_bytes(fields.as_ref()),
        ScalarValue::Map(map) => data_bytes(map.as_ref()),
        ScalarValue::Dictionary(_, inner) => scalar_bytes(inner),
        other => match other.try_as_str() {
            Some(text) => text.map_or(0, str::len),
            None => other.size(),
        },
    }
}

/// Bytes of an argument where each row has its own.
pub(super) fn expanded_bytes(value: &ColumnarValue, rows: usize) -> usize {
    match value {
        ColumnarValue::Array(array) => data_bytes(array.as_ref()),
        ColumnarValue::Scalar(value) => scalar_bytes(value).saturating_mul(rows),
    }
}

/// Upper bounds of the bytes of a function's result, row by row.
pub(super) fn per_row(growth: Growth, args: &[ColumnarValue], rows: usize) -> Vec<usize> {
    let bytes = |at: usize| args.get(at).map_or_else(|| vec![0; rows], |value| lengths(value, rows));
    let ints = |at: usize| args.get(at).map_or_else(|| vec![0; rows], |value| counts(value, rows));
    match growth {
        Growth::Sum(times) => {
            let mut sums = vec![0_usize; rows];
            for value in args {
                add(&mut sums, &lengths(value, rows));
            }
            sums.iter().map(|sum| sum.saturating_mul(usize::from(times))).collect()
        }
        Growth::Repeat => pairs(&bytes(0), &ints(1), usize::saturating_mul),
        Growth::RepeatList => pairs(&bytes(0), &ints(1), |len, n| len.max(VALUE_BYTES).saturating_mul(n)),
        Growth::Pad => {
            let width = if args.iter().all(is_ascii) { 1 } else { CHAR_BYTES };
            ints(1).into_iter().map(|n| n.saturating_mul(width)).collect()
        }
        Growth::Replace => {
            let (from, to) = (bytes(1), bytes(2));
            pairs(&bytes(0), &pairs(&from, &to, |from, to| to / from.max(1) + 1), |len, times| {
                len.saturating_mul(times).saturating_add(len)
            })
        }
        Growth::Pattern => patterns(&bytes(0), &bytes(2), args),
        Growth::Resize => {
            let (lists, items) = (bytes(0), bytes(2));
            let grown = pairs(&items, &ints(1), |len, n| len.max(VALUE_BYTES).saturating_mul(n));
            pairs(&lists, &grown, usize::saturating_add)
        }
        Growth::Range => ranges(args, rows),
        Growth::JoinList => {
            let between = pairs(&bytes(1), &bytes(2), |a, b| a.saturating_add(b).saturating_add(NUMBER_TEXT_BYTES));
            let joined = pairs(&items(args, rows), &between, usize::saturating_mul);
            pairs(&bytes(0), &joined, usize::saturating_add)
        }
        Growth::Text => match args.first() {
            Some(value) if value.data_type().is_nested() => {
                let text = item_text_bytes(&value.data_type());
                pairs(&bytes(0), &items(args, rows), |len, n| len.saturating_add(n.saturating_mul(text)))
            }
            _ => per_row(Growth::Sum(2), args, rows),
        },
        Growth::Split => {
            let most = |len: usize| len.saturating_add(1).saturating_mul(1 + size_of::<i32>());
            bytes(0).into_iter().map(most).collect()
        }
    }
}

/// Each match, and each place between two characters, may be a match: the text in its place has what it says and the groups
/// that it names, which together are no longer than the text is for each of them.
fn patterns(texts: &[usize], replacements: &[usize], args: &[ColumnarValue]) -> Vec<usize> {
    let everywhere = args.len() > 3;
    let grow = |len: usize, by: usize| {
        let matches = if everywhere { len.saturating_add(1) } else { 1 };
        // A group takes two bytes at least to be named.
        let groups = len.saturating_mul(by / 2);
        len.saturating_add(matches.saturating_mul(by)).saturating_add(groups)
    };
    pairs(texts, replacements, grow)
}

fn pairs(left: &[usize], right: &[usize], of: impl Fn(usize, usize) -> usize) -> Vec<usize> {
    left.iter().zip(right).map(|(left, right)| of(*left, *right)).collect()
}

fn add(sums: &mut [usize], more: &[usize]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum = sum.saturating_add(*more);
    }
}

fn is_ascii(value: &ColumnarValue) -> bool {
    match value {
        ColumnarValue::Scalar(value) => value.try_as_str().flatten().is_none_or(str::is_ascii),
        ColumnarValue::Array(array) => match array.data_type() {
            DataType::Utf8 => array.as_string::<i32>().is_ascii(),
            DataType::LargeUtf8 => array.as_string::<i64>().is_ascii(),
            DataType::Utf8View => array.as_string_view().is_ascii(),
            other => other.is_primitive(),
        },
    }
}

/// Bytes of each row's value.
pub(super) fn lengths(value: &ColumnarValue, rows: usize) -> Vec<usize> {
    let array = match value {
        ColumnarValue::Scalar(value) => return vec![scalar_bytes(value); rows],
        ColumnarValue::Array(array) => array,
    };
    match array.data_type() {
        DataType::Utf8 => steps(array.as_string::<i32>().value_offsets(), 1),
        DataType::LargeUtf8 => steps(array.as_string::<i64>().value_offsets(), 1),
        DataType::Binary => steps(array.as_binary::<i32>().value_offsets(), 1),
        DataType::LargeBinary => steps(array.as_binary::<i64>().value_offsets(), 1),
        DataType::Utf8View => array.as_string_view().iter().map(|text| text.map_or(0, str::len)).collect(),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            steps(list.value_offsets(), each(list.values().as_ref()))
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            steps(list.value_offsets(), each(list.values().as_ref()))
        }
        DataType::Struct(_) => {
            let mut sums = vec![0_usize; rows];
            for column in array.as_struct().columns() {
                add(&mut sums, &lengths(&ColumnarValue::Array(column.clone()), rows));
            }
            sums
        }
        _ => vec![each(array.as_ref()); rows],
    }
}

/// Bytes of an item as text beyond those that it has as a value, with what is between it and the next.
fn item_text_bytes(list: &DataType) -> usize {
    match list {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            item_text_bytes(item.data_type())
        }
        DataType::Boolean | DataType::Int8 | DataType::UInt8 | DataType::Int16 | DataType::UInt16 => 8,
        DataType::Int32 | DataType::UInt32 | DataType::Int64 | DataType::UInt64 => 14,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => 4,
        _ => NUMBER_TEXT_BYTES,
    }
}

/// Items of each row's list.
fn items(args: &[ColumnarValue], rows: usize) -> Vec<usize> {
    let array = match args.first() {
        Some(ColumnarValue::Array(array)) => array.clone(),
        Some(ColumnarValue::Scalar(ScalarValue::List(list))) => return vec![list.values().len(); rows],
        Some(ColumnarValue::Scalar(ScalarValue::LargeList(list))) => return vec![list.values().len(); rows],
        Some(ColumnarValue::Scalar(other)) => return vec![scalar_bytes(other); rows],
        None => return vec![0; rows],
    };
    match array.data_type() {
        DataType::List(_) => {
            nested_items(&array.as_list::<i32>().values().clone(), array.as_list::<i32>().value_offsets())
        }
        DataType::LargeList(_) => {
            nested_items(&array.as_list::<i64>().values().clone(), array.as_list::<i64>().value_offsets())
        }
        DataType::FixedSizeList(_, size) => vec![usize::try_from(*size).unwrap_or(0); rows],
        _ => vec![1; rows],
    }
}

/// Lists in lists are written out: their items count.
fn nested_items<O: OffsetSizeTrait>(values: &dyn Array, offsets: &[O]) -> Vec<usize> {
    match values.data_type() {
        DataType::List(_) => steps(offsets, each_items(values.len(), values.as_list::<i32>().values().len())),
        DataType::LargeList(_) => steps(offsets, each_items(values.len(), values.as_list::<i64>().values().len())),
        _ => steps(offsets, 1),
    }
}

fn each_items(lists: usize, items: usize) -> usize {
    items.div_ceil(lists.max(1)).max(1)
}

fn steps<O: OffsetSizeTrait>(offsets: &[O], bytes: usize) -> Vec<usize> {
    offsets.windows(2).map(|pair| (pair[1].as_usize() - pair[0].as_usize()).saturating_mul(bytes)).collect()
}

/// Bytes of a value of the array on average, rounded up.
fn each(array: &dyn Array) -> usize {
    data_bytes(array).div_ceil(array.len().max(1))
}

/// Each row's number; none and those below zero count as zero.
fn counts(value: &ColumnarValue, rows: usize) -> Vec<usize> {
    let count = |n: Option<i64>| n.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    match numbers(value) {
        Numbers::One(n) => vec![count(n); rows],
        Numbers::Each(array) => array.iter().map(count).collect(),
    }
}

enum Numbers {
    One(Option<i64>),
    Each(Int64Array),
}

impl Numbers {
    fn at(&self, row: usize) -> Option<i64> {
        match self {
            Numbers::One(n) => *n,
            Numbers::Each(array) => array.is_valid(row).then(|| array.value(row)),
        }
    }
}

/// The values as 64-bit integers, as far as they are such; times by their unit.
fn numbers(value: &ColumnarValue) -> Numbers {
    let ints =
        |array: &dyn Array| cast(array, &DataType::Int64).ok().map(|ints| ints.as_primitive::<Int64Type>().clone());
    match value {
        ColumnarValue::Array(array) => match ints(array.as_ref()) {
            Some(array) => Numbers::Each(array),
            // More than can be asked for: refused, as it should be, by whoever knows the type.
            None => Numbers::One(Some(0)),
        },
        ColumnarValue::Scalar(value) => {
            let one = value.to_array().ok().and_then(|array| ints(array.as_ref()));
            Numbers::One(one.and_then(|array| array.is_valid(0).then(|| array.value(0))))
        }
    }
}

const DAY_NS: i128 = 86_400_000_000_000;

/// `range` and `generate_series`: over integers, days and instants.
fn ranges(args: &[ColumnarValue], rows: usize) -> Vec<usize> {
    let (start, stop) = match args {
        [stop] => (None, stop),
        [start, stop, ..] => (Some(numbers(start)), stop),
        [] => return vec![0; rows],
    };
    let unit = unit_ns(&stop.data_type());
    let (stop, step) = (numbers(stop), args.get(2).map(|step| Steps::of(step, rows)));
    let size = |row: usize| {
        let from = i128::from(start.as_ref().map_or(Some(0), |start| start.at(row)).unwrap_or(0));
        let to = i128::from(stop.at(row).unwrap_or(0));
        let by = step.as_ref().map_or(1, |step| step.at(row, unit)).max(1);
        usize::try_from((to - from).abs() / by + 1).unwrap_or(usize::MAX).saturating_mul(size_of::<i64>())
    };
    (0..rows).map(size).collect()
}

/// Nanoseconds of a unit of the type; 0 for plain numbers.
fn unit_ns(data_type: &DataType) -> i128 {
    use arrow::datatypes::TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    match data_type {
        DataType::Date32 => DAY_NS,
        DataType::Date64 | DataType::Timestamp(Millisecond, _) => 1_000_000,
        DataType::Timestamp(Second, _) => 1_000_000_000,
        DataType::Timestamp(Microsecond, _) => 1_000,
        DataType::Timestamp(Nanosecond, _) => 1,
        _ => 0,
    }
}

/// Steps of a range, in units of its bounds.
enum Steps {
    Numbers(Numbers),
    /// The shortest interval that there is, in nanoseconds.
    Interval(i128),
}

impl Steps {
    fn of(step: &ColumnarValue, rows: usize) -> Self {
        if !matches!(step.data_type(), DataType::Interval(_)) {
            return Steps::Numbers(numbers(step));
        }
        let shortest = (0..rows.max(1)).filter_map(|row| interval_ns(step, row)).min();
        Steps::Interval(shortest.unwrap_or(DAY_NS))
    }

    fn at(&self, row: usize, unit_ns: i128) -> i128 {
        match self {
            Steps::Numbers(numbers) => i128::from(numbers.at(row).unwrap_or(1)).abs(),
            Steps::Interval(ns) => ns / unit_ns.max(1),
        }
    }
}

fn interval_ns(step: &ColumnarValue, row: usize) -> Option<i128> {
    use arrow::datatypes::{IntervalDayTimeType, IntervalMonthDayNanoType, IntervalYearMonthType};
    let array = match step {
        ColumnarValue::Array(array) => array.slice(row.min(array.len().saturating_sub(1)), 1.min(array.len())),
        ColumnarValue::Scalar(value) => value.to_array().ok()?,
    };
    if array.is_empty() || array.is_null(0) {
        return None;
    }
    // The shortest month.
    let months = |n: i32| i128::from(n) * 28 * DAY_NS;
    let ns = if let Some(array) = array.as_primitive_opt::<IntervalMonthDayNanoType>() {
        let value = array.value(0);
        months(value.months) + i128::from(value.days) * DAY_NS + i128::from(value.nanoseconds)
    } else if let Some(array) = array.as_primitive_opt::<IntervalDayTimeType>() {
        let value = array.value(0);
        i128::from(value.days) * DAY_NS + i128::from(value.milliseconds) * 1_000_000
    } else {
        months(array.as_primitive_opt::<IntervalYearMonthType>()?.value(0))
    };
    Some(ns.abs())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    fn text(value: &str) -> ColumnarValue {
        ColumnarValue::Scalar(ScalarValue::Utf8(Some(value.to_owned())))
    }

    fn int(value: i64) -> ColumnarValue {
        ColumnarValue::Scalar(ScalarValue::Int64(Some(value)))
    }

    fn column(values: &[&str]) -> ColumnarValue {
        ColumnarValue::Array(Arc::new(StringArray::from(values.to_vec())))
    }

    #[test]
    fn results_are_at_most_what_was_estimated() {
        let list = || {
            ColumnarValue::Array(Arc::new(arrow::array::ListArray::from_iter_primitive::<Int32Type, _, _>([
                Some(vec![Some(1), Some(2), Some(3)]),
                Some(vec![]),
            ])) as ArrayRef)
        };
        for (what, growth, args, expected) in [
            ("rows differ", Growth::Repeat, vec![column(&["ab", "c"]), int(10)], vec![20, 10]),
            ("below zero", Growth::Repeat, vec![column(&["ab", "c"]), int(-10)], vec![0, 0]),
            (
                "beyond all bounds",
                Growth::Repeat,
                vec![column(&["ab", "c"]), int(i64::MAX)],
                vec![usize::MAX, i64::MAX as usize],
            ),
            ("sums", Growth::Sum(1), vec![column(&["ab", "c"]), text("xyz")], vec![5, 4]),
            ("padded", Growth::Pad, vec![column(&["ab", "c"]), int(7), text(" ")], vec![7, 7]),
            ("padded with more", Growth::Pad, vec![column(&["ab", "c"]), int(7), text("\u{20ac}")], vec![28, 28]),
            ("replaced", Growth::Replace, vec![column(&["aaaa", ""]), text("a"), text("bbb")], vec![20, 0]),
            ("first match", Growth::Pattern, vec![column(&["aaaa", ""]), text("a"), text("bb")], vec![10, 2]),
            (
                "all matches",
                Growth::Pattern,
                vec![column(&["aaaa", ""]), text("a"), text("bb"), text("g")],
                vec![18, 2],
            ),
            ("to", Growth::Range, vec![int(9)], vec![80, 80]),
            ("down", Growth::Range, vec![int(9), int(0), int(-3)], vec![32, 32]),
            ("no step", Growth::Range, vec![int(0), int(9), int(0)], vec![80, 80]),
            ("widest", Growth::Range, vec![int(i64::MIN), int(i64::MAX)], vec![usize::MAX, usize::MAX]),
            ("lists", Growth::RepeatList, vec![column(&["ab", "c"]), int(3)], vec![48, 48]),
            ("joined", Growth::JoinList, vec![list(), text(", ")], vec![126, 0]),
            ("lists as text", Growth::Text, vec![list()], vec![54, 0]),
            ("numbers as text", Growth::Text, vec![int(7)], vec![128, 128]),
            ("split", Growth::Split, vec![column(&["a,b", ""]), text(",")], vec![20, 5]),
        ] {
            let found = per_row(growth, &args, 2);
            let close = found.iter().zip(&expected).all(|(found, expected)| found.abs_diff(*expected) <= expected / 4);
            assert!(close, "{what}: {found:?}, expected about {expected:?}");
        }
    }

    #[test]
    fn instants_and_days_are_counted_by_their_step() {
        let at =
            |days: i64| ColumnarValue::Scalar(ScalarValue::TimestampNanosecond(Some(days * 86_400_000_000_000), None));
        let day = |days: i32| ColumnarValue::Scalar(ScalarValue::Date32(Some(days)));
        let step = |days: i32, ns: i64| {
            ColumnarValue::Scalar(ScalarValue::IntervalMonthDayNano(Some(
                arrow::datatypes::IntervalMonthDayNanoType::make_value(0, days, ns),
            )))
        };
        assert_eq!(per_row(Growth::Range, &[at(0), at(10), step(1, 0)], 1), [88]);
        assert_eq!(per_row(Growth::Range, &[at(0), at(1), step(0, 1)], 1), [(86_400_000_000_000 + 1) * 8]);
        assert_eq!(per_row(Growth::Range, &[day(0), day(10), step(2, 0)], 1), [48]);
    }

    #[test]
    fn a_slice_counts_what_it_shows() {
        let array = StringArray::from(vec!["abc", "de", "f"]);
        assert_eq!(data_bytes(&array), 6 + 12);
        assert_eq!(data_bytes(&array.slice(1, 1)), 2 + 4);
    }
}
