//! Every Arrow type as Python sees it (reference, 1.4: `query`; types beyond the reference's are ours).

use std::sync::Arc;

use arrow::array::types::{Int8Type, IntervalDayTime, IntervalMonthDayNano, UInt16Type};
use arrow::array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, Date32Array, Date64Array, Decimal128Array, DictionaryArray,
    DurationMillisecondArray, FixedSizeBinaryArray, Float16Array, Float32Array, Float64Array, Int8Array, Int16Array,
    Int32Array, Int64Array, IntervalDayTimeArray, IntervalMonthDayNanoArray, IntervalYearMonthArray, LargeBinaryArray,
    LargeStringArray, ListArray, ListViewArray, MapBuilder, NullArray, RecordBatch, RunArray, StringArray,
    StringBuilder, StringViewArray, StructArray, Time32SecondArray, Time64NanosecondArray, TimestampMicrosecondArray,
    TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt8Array, UInt16Array, UInt32Array,
    UInt64Array, UnionArray,
};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{DataType, Field, Float64Type, Int32Type, UnionFields};

use crate::host::Code;
use crate::{on_shard, request};

fn half(value: f32) -> <arrow::datatypes::Float16Type as arrow::datatypes::ArrowPrimitiveType>::Native {
    <arrow::datatypes::Float16Type as arrow::datatypes::ArrowPrimitiveType>::Native::from_f32(value)
}

fn map() -> ArrayRef {
    let mut builder = MapBuilder::new(None, StringBuilder::new(), arrow::array::Int64Builder::new());
    builder.keys().append_value("k");
    builder.values().append_value(1);
    builder.append(true).unwrap();
    builder.append(false).unwrap();
    Arc::new(builder.finish())
}

fn union() -> ArrayRef {
    let fields = UnionFields::from_iter([
        (0, Arc::new(Field::new("i", DataType::Int64, true))),
        (1, Arc::new(Field::new("s", DataType::Utf8, true))),
    ]);
    let children: Vec<ArrayRef> =
        vec![Arc::new(Int64Array::from(vec![Some(5), None])), Arc::new(StringArray::from(vec![Some("x"), None]))];
    Arc::new(UnionArray::try_new(fields, ScalarBuffer::from(vec![1_i8, 0]), None, children).unwrap())
}

/// Two rows: a value and null.
pub fn every_type() -> RecordBatch {
    let list: ListArray = ListArray::from_iter_primitive::<Float64Type, _, _>([Some([Some(1.5), None]), None]);
    let view = ListViewArray::from(list.clone());
    let nested = StructArray::from(vec![
        (Arc::new(Field::new("a", DataType::Int64, true)), Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef),
        (
            Arc::new(Field::new("t", DataType::Utf8, true)),
            Arc::new(StringArray::from(vec![Some("x"), None])) as ArrayRef,
        ),
    ]);
    let small: DictionaryArray<Int8Type> = vec![Some("tag"), None].into_iter().collect();
    let wide: DictionaryArray<UInt16Type> =
        DictionaryArray::new(UInt16Array::from(vec![Some(0), None]), Arc::new(Int64Array::from(vec![7])));
    let runs =
        RunArray::<Int32Type>::try_new(&Int32Array::from(vec![1, 2]), &StringArray::from(vec![Some("run"), None]))
            .unwrap();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("null", Arc::new(NullArray::new(2))),
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("i8", Arc::new(Int8Array::from(vec![Some(-8), None]))),
        ("i16", Arc::new(Int16Array::from(vec![Some(-16), None]))),
        ("i32", Arc::new(Int32Array::from(vec![Some(-32), None]))),
        ("i64", Arc::new(Int64Array::from(vec![Some(i64::MIN), None]))),
        ("u8", Arc::new(UInt8Array::from(vec![Some(8), None]))),
        ("u16", Arc::new(UInt16Array::from(vec![Some(16), None]))),
        ("u32", Arc::new(UInt32Array::from(vec![Some(32), None]))),
        ("u64", Arc::new(UInt64Array::from(vec![Some(u64::MAX), None]))),
        ("f16", Arc::new(Float16Array::from(vec![Some(half(0.5)), None]))),
        ("f32", Arc::new(Float32Array::from(vec![Some(0.25), None]))),
        ("f64", Arc::new(Float64Array::from(vec![Some(0.1), None]))),
        ("utf8", Arc::new(StringArray::from(vec![Some("h\u{e4}"), None]))),
        ("large_utf8", Arc::new(LargeStringArray::from(vec![Some("large"), None]))),
        ("utf8_view", Arc::new(StringViewArray::from(vec![Some("a view of some length"), None]))),
        ("binary", Arc::new(arrow::array::BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None]))),
        ("large_binary", Arc::new(LargeBinaryArray::from(vec![Some(&b"large"[..]), None]))),
        ("binary_view", Arc::new(BinaryViewArray::from(vec![Some(&b"view"[..]), None]))),
        (
            "fixed",
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some(b"ab"), None].into_iter(), 2).unwrap()),
        ),
        ("ts_ns", Arc::new(TimestampNanosecondArray::from(vec![Some(-1), None]))),
        ("ts_us", Arc::new(TimestampMicrosecondArray::from(vec![Some(1), None]))),
        ("ts_ms", Arc::new(TimestampMillisecondArray::from(vec![Some(1), None]).with_timezone("Europe/Berlin"))),
        ("ts_s", Arc::new(TimestampSecondArray::from(vec![Some(20_000_000_000), None]).with_timezone("+00:00"))),
        ("date32", Arc::new(Date32Array::from(vec![Some(19_000), None]))),
        ("date64", Arc::new(Date64Array::from(vec![Some(-86_400_000), None]))),
        ("time32", Arc::new(Time32SecondArray::from(vec![Some(1), None]))),
        ("time64", Arc::new(Time64NanosecondArray::from(vec![Some(1), None]))),
        ("duration", Arc::new(DurationMillisecondArray::from(vec![Some(-2), None]))),
        ("months", Arc::new(IntervalYearMonthArray::from(vec![Some(14), None]))),
        ("days", Arc::new(IntervalDayTimeArray::from(vec![Some(IntervalDayTime::new(1, 2)), None]))),
        ("interval", Arc::new(IntervalMonthDayNanoArray::from(vec![Some(IntervalMonthDayNano::new(1, 2, 3)), None]))),
        (
            "decimal",
            Arc::new(Decimal128Array::from(vec![Some(-12_345), None]).with_precision_and_scale(10, 2).unwrap()),
        ),
        ("list", Arc::new(list)),
        ("list_view", Arc::new(view)),
        ("struct", Arc::new(nested)),
        ("map", map()),
        ("small_dictionary", Arc::new(small)),
        ("wide_dictionary", Arc::new(wide)),
        ("run", Arc::new(runs)),
        ("union", union()),
    ];
    let fields: Vec<_> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields)), arrays).unwrap()
}

const EXPECTED: &str = r#"
import datetime, decimal
EXPECTED = {
    "null": None, "bool": True, "i8": -8, "i16": -16, "i32": -32, "i64": -2**63, "u8": 8, "u16": 16, "u32": 32,
    "u64": 2**64 - 1, "f16": 0.5, "f32": 0.25, "f64": 0.1, "utf8": "h\u00e4", "large_utf8": "large",
    "utf8_view": "a view of some length", "binary": b"\x00\xff", "large_binary": b"large", "binary_view": b"view",
    "fixed": b"ab", "ts_ns": -1, "ts_us": 1_000, "ts_ms": 1_000_000, "ts_s": 20_000_000_000 * 10**9,
    "date32": datetime.date(2022, 1, 8), "date64": datetime.date(1969, 12, 31), "time32": 10**9, "time64": 1,
    "duration": -2_000_000, "months": {"months": 14, "days": 0, "nanoseconds": 0},
    "days": {"months": 0, "days": 1, "nanoseconds": 2_000_000}, "interval": {"months": 1, "days": 2, "nanoseconds": 3},
    "decimal": decimal.Decimal("-123.45"), "list": [1.5, None], "list_view": [1.5, None], "struct": {"a": 1, "t": "x"},
    "map": {"k": 1}, "small_dictionary": "tag", "wide_dictionary": 7, "run": "run", "union": "x",
}
def process_writes(api, batches, args):
    first, second = api.query("types")
    assert list(first) == list(EXPECTED)
    for name, expected in EXPECTED.items():
        assert first[name] == expected and type(first[name]) is type(expected), (name, first[name], expected)
        if name != "struct":
            assert second[name] is None, (name, second[name])
    assert second["struct"] == {"a": 2, "t": None}
    api.info(len(first))
"#;

#[test]
fn a_query_gives_every_arrow_type_where_the_reference_raises() {
    on_shard(|shard| {
        for report in [
            shard.deferred(request(Code::text(EXPECTED), vec![])),
            shard.process(request(Code::text(EXPECTED), vec![])),
        ] {
            report.result.unwrap_or_else(|error| panic!("{} {}", error.message, error.traceback));
            assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO 41"]);
        }
    });
}
