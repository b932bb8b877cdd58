//! What each format writes, byte by byte.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Float64Array, Int64Array, StringArray, TimestampNanosecondArray};
use arrow::datatypes::Int32Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;

/// 2065-01-07T17:28:51Z
const AT: i64 = 2_998_574_931_000_000_000;

fn rows() -> RecordBatch {
    let host: DictionaryArray<Int32Type> = vec![Some("a"), None].into_iter().collect();
    let columns: [(&str, ArrayRef); 5] = [
        ("count", Arc::new(Int64Array::from(vec![None, Some(-3)]))),
        ("host", Arc::new(host)),
        ("note", Arc::new(StringArray::from(vec![Some("say \"hi\", you"), None]))),
        ("time", Arc::new(TimestampNanosecondArray::from(vec![AT, AT + 500_000_000]))),
        ("usage", Arc::new(Float64Array::from(vec![Some(0.5), Some(1.0)]))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap()
}

fn text(format: Format, batches: &[RecordBatch]) -> String {
    String::from_utf8(encode(format, rows().schema(), batches).unwrap().to_vec()).unwrap()
}

#[test]
fn json_is_one_array_without_nulls() {
    let expected = concat!(
        r#"[{"host":"a","note":"say \"hi\", you","time":"2065-01-07T17:28:51","usage":0.5},"#,
        r#"{"count":-3,"time":"2065-01-07T17:28:51.500","usage":1.0}]"#
    );
    assert_eq!(text(Format::Json, &[rows()]), expected);
    assert_eq!(text(Format::Json, &[]), "[]");
    assert_eq!(text(Format::Json, &[rows().slice(0, 0)]), "[]");
}

#[test]
fn json_chunks_join_to_one_array() {
    let mut encoder = Encoder::new(Format::Json, rows().schema()).unwrap();
    let mut chunks = Vec::new();
    for row in 0..2 {
        encoder.push(rows().slice(row, 1)).unwrap();
        chunks.push(encoder.piece().unwrap());
        assert!(encoder.piece().unwrap().is_empty());
    }
    encoder.finish().unwrap();
    chunks.push(encoder.piece().unwrap());
    assert!(chunks[0].starts_with(b"[{") && chunks[1].starts_with(b",{"), "{chunks:?}");
    assert_eq!(chunks.concat(), text(Format::Json, &[rows()]).into_bytes());
}

#[test]
fn jsonl_is_one_object_per_line() {
    let expected = concat!(
        r#"{"host":"a","note":"say \"hi\", you","time":"2065-01-07T17:28:51","usage":0.5}"#,
        "\n",
        r#"{"count":-3,"time":"2065-01-07T17:28:51.500","usage":1.0}"#,
        "\n"
    );
    assert_eq!(text(Format::JsonLines, &[rows()]), expected);
    assert_eq!(text(Format::JsonLines, &[]), "");
}

#[test]
fn csv_has_its_header_once_and_nothing_if_there_are_no_rows() {
    let expected = concat!(
        "count,host,note,time,usage\n",
        ",a,\"say \"\"hi\"\", you\",2065-01-07T17:28:51,0.5\n",
        "-3,,,2065-01-07T17:28:51.500,1.0\n"
    );
    assert_eq!(text(Format::Csv, &[rows().slice(0, 0), rows().slice(0, 1), rows().slice(1, 1)]), expected);
    assert_eq!(text(Format::Csv, &[]), "");
}

#[test]
fn pretty_is_a_table() {
    let expected = "\
+-------+------+---------------+-------------------------+-------+
| count | host | note          | time                    | usage |
+-------+------+---------------+-------------------------+-------+
|       | a    | say \"hi\", you | 2065-01-07T17:28:51     | 0.5   |
| -3    |      |               | 2065-01-07T17:28:51.500 | 1.0   |
+-------+------+---------------+-------------------------+-------+";
    assert_eq!(text(Format::Pretty, &[rows()]), expected);
}

#[test]
fn parquet_reads_back_and_is_nothing_if_there_are_no_rows() {
    let file = encode(Format::Parquet, rows().schema(), &[rows(), rows()]).unwrap();
    let read: Result<Vec<_>, _> = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().collect();
    assert_eq!(read.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 4);
    assert!(encode(Format::Parquet, rows().schema(), &[]).unwrap().is_empty());
}

#[test]
fn long_rows_are_written_a_few_at_a_time() {
    let long = "x".repeat(QUERY_ENCODE_BYTES_MAX / 2);
    let column: ArrayRef = Arc::new(StringArray::from(vec![long.as_str(); 5]));
    let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
    for format in [Format::Json, Format::JsonLines, Format::Csv] {
        let mut encoder = Encoder::new(format, batch.schema()).unwrap();
        encoder.push(batch.clone()).unwrap();
        let mut pieces = 0;
        while !encoder.piece().unwrap().is_empty() {
            pieces += 1;
        }
        assert_eq!(pieces, 5, "{format:?}");
    }
}

#[test]
fn two_columns_of_one_name_are_for_formats_that_can_show_both() {
    let column = |value: i64| Arc::new(Int64Array::from(vec![value])) as ArrayRef;
    let schema = Arc::new(Schema::new(vec![Field::new("v", DataType::Int64, true); 2]));
    let batch = RecordBatch::try_new(schema.clone(), vec![column(1), column(2)]).unwrap();
    let batches = [batch];
    let written = |format| encode(format, schema.clone(), &batches);
    assert_eq!(written(Format::Csv).unwrap(), "v,v\n1,2\n");
    assert!(String::from_utf8(written(Format::Pretty).unwrap().to_vec()).unwrap().contains("| v | v |"));
    for format in [Format::Json, Format::JsonLines, Format::Parquet] {
        let error = written(format).unwrap_err().to_string();
        assert!(error.contains("'v'") && error.contains("AS"), "{format:?}: {error}");
    }
}
