//! The parser against the reference, and against the oracle.

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use proptest::prelude::*;

use super::compare::{BASE_NS, Known, check, outcome_of};
use super::oracle::{self, Schemas};
use super::*;
use crate::batch::{LineNumbers, PendingData};
use crate::limits::COLUMNS_PER_TABLE_MAX;

fn parse(body: &str) -> ParsedWrite {
    LineParser::new().parse("db", &Bytes::from(body.to_owned()), Precision::Auto, true, &Known::default())
}

fn message(body: &str) -> String {
    let written = parse(body);
    assert_eq!(written.rejected_count, 1, "{body:?}");
    assert!(written.batches.is_empty(), "{body:?}");
    written.rejected[0].message.clone()
}

#[test]
fn refusals_begin_with_the_texts_of_the_reference_and_say_what_was_found() {
    let long = "a".repeat(200);
    let cases = [
        ("measurement", "Expected at least one space character, got end of input: the line has no fields (column 12)"),
        (",", "Invalid measurement was provided: the line does not begin with a name (column 1)"),
        (
            ",tag1=1,tag2=2 value=1 123",
            "Invalid measurement was provided: the line does not begin with a name (column 1)",
        ),
        ("J,#", "Tag set malformed: could not find equals sign in `#`: tag `#` has no value (column 3)"),
        (
            &format!("J,{long}"),
            "Tag set malformed: could not find equals sign in `aaaaaaaaaa...`: tag `aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...` has no value (column 3)",
        ),
        ("J,", "Expected tag key, got end of input: a comma without a tag (column 3)"),
        ("m, bar=1i", "Expected tag key, got ` bar=1i`: a comma without a tag (column 3)"),
        ("0,,=", "Expected tag key, got `,=`: a comma without a tag (column 3)"),
        ("0,a=", "Expected tag value, got end of input: tag `a` has no value (column 3)"),
        ("m,foo\\=\\,baz= bar=1i", "Expected tag value, got ` bar=1i`: tag `foo\\=\\,baz` has no value (column 3)"),
        ("m,foo=,baz= bar=1i", "Expected tag value, got `,baz= bar=...`: tag `foo` has no value (column 3)"),
        ("m,foo=a, bar=1i", "Expected tag key, got ` bar=1i`: a comma without a tag (column 9)"),
        (
            "m,foo=f bar=1i,baz=",
            "Could not parse entire line. Found trailing content: `baz=`: field `baz` has no value (column 16)",
        ),
        (
            "m a=1,b=2,c=",
            "Could not parse entire line. Found trailing content: `,c=`: field `c` has no value (column 11)",
        ),
        ("cpu,host=a val= 123", "No fields were provided: field `val` has no value (column 12)"),
        ("m val", "No fields were provided: field `val` has no value (column 3)"),
        ("m ", "No fields were provided: the line ends behind its tags (column 3)"),
        ("m", "Expected at least one space character, got end of input: the line has no fields (column 2)"),
        ("m f=+1", "No fields were provided: `+1` begins with a plus sign: write the number without it (column 5)"),
        (
            "m f=nan",
            "No fields were provided: `nan` is not a number that can be stored: leave the field out (column 5)",
        ),
        (
            "m f=-inf",
            "No fields were provided: `-inf` is not a number that can be stored: leave the field out (column 5)",
        ),
        ("m f=.", "No fields were provided: `.` is no number (column 5)"),
        (
            "m f=\"open",
            "No fields were provided: the string that begins in column 5 does not end; all that is behind it, 5 bytes in 1 line, is taken for its text and refused with it",
        ),
        (
            "m f=\"open\nm f=2\n\n",
            "No fields were provided: the string that begins in column 5 does not end; all that is behind it, 13 bytes in 3 lines, is taken for its text and refused with it",
        ),
        (
            "m\\",
            "Measurements, tag keys and values, and field keys may not end with a backslash that escapes nothing: write it twice (column 2)",
        ),
        (
            "m,t=a\\",
            "Measurements, tag keys and values, and field keys may not end with a backslash that escapes nothing: write it twice (column 6)",
        ),
        (
            "m f=3 1888888888888888888888888888",
            "Unable to parse timestamp value `1888888888888888888888888888`: timestamps are -9223372036854775808 to 9223372036854775807 (column 7)",
        ),
        (
            "m f=9223372036854775808i",
            "Unable to parse integer value `9223372036854775808`: integers are -9223372036854775808 to 9223372036854775807 (column 5)",
        ),
        (
            "m f=-9223372036854775809i",
            "Unable to parse integer value `-9223372036854775809`: integers are -9223372036854775808 to 9223372036854775807 (column 5)",
        ),
        (
            "m f=18446744073709551616u",
            "Unable to parse unsigned integer value `18446744073709551616`: unsigned integers are 0 to 18446744073709551615 (column 5)",
        ),
        (
            "m f=1e999",
            "Unable to parse floating-point value `1e999`: floats are -1.7976931348623157e308 to 1.7976931348623157e308 (column 5)",
        ),
        (
            "m f=1,",
            "Could not parse entire line. Found trailing content: `,`: a comma without a field behind it (column 6)",
        ),
        (
            "m f=1, 5",
            "Could not parse entire line. Found trailing content: `, 5`: a comma without a field behind it (column 6)",
        ),
        (
            "m f=1 5x",
            "Could not parse entire line. Found trailing content: `x`: `5x` is no timestamp, which is a whole number in the unit of the precision (column 7)",
        ),
        (
            "m f=1 x",
            "Could not parse entire line. Found trailing content: ` x`: `x` is no timestamp, which is a whole number in the unit of the precision (column 7)",
        ),
        (
            "m f=-5u",
            "Could not parse entire line. Found trailing content: `u`: `-5u` is negative, and an unsigned integer is not (column 5)",
        ),
        (
            "m f=tru",
            "Could not parse entire line. Found trailing content: `ru`: `tru` is no boolean: write true or false (column 5)",
        ),
        (
            "m\tf=1",
            "Control character U+0009 is not allowed in a measurement: the parts of a line are separated by spaces (column 2)",
        ),
        ("m,a\u{1}=1 f=1", "Control character U+0001 is not allowed in a tag key (column 4)"),
        ("m,ü=x\u{7f} f=1", "Control character U+007F is not allowed in a tag value (column 6)"),
        ("m f\r=1", "Control character U+000D is not allowed in a field key (column 4)"),
        ("m,k=1,k=2 f=1", "Must not contain duplicate tags, but `k` was repeated"),
        ("m f=1,f=2", "invalid line protocol - multiple instances of 'f' field found"),
        ("m time=1", "'time' is a reserved column"),
        ("m,time=1 f=1", "'time' is a reserved column"),
        (
            "m,a=1,b,c=2 v=1 1",
            "Tag set malformed: could not find equals sign in `a=1,b,c=2 ...`: tag `b` has no value (column 7)",
        ),
        (
            "m,a=1,b v=1",
            "Tag set malformed: could not find equals sign in `a=1,b v=1`: tag `b` has no value (column 7)",
        ),
        ("m,a=1,,b=2 v=1", "Expected tag key, got `,b=2 v=1`: a comma without a tag (column 7)"),
        ("m,,a=1 v=1", "Expected tag key, got `,a=1 v=1`: a comma without a tag (column 3)"),
        ("m,=1 v=1", "Expected tag key, got `=1 v=1`: a tag without a name (column 3)"),
        ("m ,v=1", "No fields were provided: a comma without a field in front of it (column 3)"),
        (
            "m v=1,,w=2",
            "Could not parse entire line. Found trailing content: `,w=2`: a comma without a field in front of it (column 7)",
        ),
        (
            "m v=1,w,x=2 1",
            "Could not parse entire line. Found trailing content: `w,x=2 1`: field `w` has no value (column 7)",
        ),
        (
            "m v=1i,w,x=2 1",
            "Could not parse entire line. Found trailing content: `w,x=2 1`: field `w` has no value (column 8)",
        ),
        (
            "m v=\"a,b\",w,x=2",
            "Could not parse entire line. Found trailing content: `w,x=2`: field `w` has no value (column 11)",
        ),
        ("m v=t,w", "Could not parse entire line. Found trailing content: `w`: field `w` has no value (column 7)"),
        ("m v=1,w", "Could not parse entire line. Found trailing content: `w`: field `w` has no value (column 7)"),
        ("m =1", "No fields were provided: a field without a name (column 3)"),
        ("m v=1,=2", "Could not parse entire line. Found trailing content: `=2`: a field without a name (column 7)"),
        ("m v 1", "No fields were provided: field `v` has no value (column 3)"),
        ("m v=null", "No fields were provided: `null` is no value: leave the field out where there is none (column 5)"),
        (
            "m v=0x1F",
            "Could not parse entire line. Found trailing content: `x1F`: `0x1F` is hexadecimal: write the number in decimal digits (column 5)",
        ),
        (
            "m v=1.5i",
            "Could not parse entire line. Found trailing content: `i`: `1.5i` is no integer: digits and an i, or a u if it is unsigned (column 5)",
        ),
        ("m v=1_000", "Could not parse entire line. Found trailing content: `_000`: `1_000` is no number (column 5)"),
        ("m v='a'", "No fields were provided: `'a'` is in single quotes: a string is in double quotes (column 5)"),
        (
            "m v=abc",
            "No fields were provided: `abc` is no value: a string is in double quotes, a boolean is true or false, the rest are numbers (column 5)",
        ),
        (
            "m v=\"a\"b",
            "Could not parse entire line. Found trailing content: `b`: `b` stands behind the end of a string: a double quote in a string is written \\\" (column 5)",
        ),
        (
            "m v=1 w=2",
            "Could not parse entire line. Found trailing content: ` w=2`: `w=2` is no timestamp: fields are separated by a comma without a space (column 7)",
        ),
        (
            "m v=1 1.5",
            "Could not parse entire line. Found trailing content: `.5`: `1.5` is no timestamp, which is a whole number in the unit of the precision (column 7)",
        ),
        (
            "m v=1 1 2",
            "Could not parse entire line. Found trailing content: `2`: nothing may stand behind the timestamp (column 9)",
        ),
        ("m v=1e", "Could not parse entire line. Found trailing content: `e`: `1e` is no number (column 5)"),
        (
            "m a=1,v=nan 1",
            "Could not parse entire line. Found trailing content: `v=nan 1`: `nan` is not a number that can be stored: leave the field out (column 9)",
        ),
        (
            "m v=1 now",
            "Could not parse entire line. Found trailing content: ` now`: `now` is no timestamp, which is a whole number in the unit of the precision (column 7)",
        ),
        (
            "m s=\"a\nb\",v=x 1",
            "Could not parse entire line. Found trailing content: `v=x 1`: `x` is no value: a string is in double quotes, a boolean is true or false, the rest are numbers (column 13, behind a line end in a string)",
        ),
        (
            "m v=True1",
            "Could not parse entire line. Found trailing content: `1`: `True1` is no boolean: write true or false (column 5)",
        ),
        ("m v=--1", "No fields were provided: `--1` is no number (column 5)"),
        ("m v=5m", "Could not parse entire line. Found trailing content: `m`: `5m` is no number (column 5)"),
        (
            "m,a=b=c v=1 x",
            "Could not parse entire line. Found trailing content: ` x`: `x` is no timestamp, which is a whole number in the unit of the precision (column 13)",
        ),
        ("m v=1,5 1", "Could not parse entire line. Found trailing content: `5 1`: field `5` has no value (column 7)"),
        (
            "m,a=1 a=1",
            "invalid column type for column 'a', expected iox::column_type::tag, got iox::column_type::field::float",
        ),
        ("m __chunk_order=1", "'__chunk_order' is a reserved column"),
        (
            &format!("m f={}i", "9".repeat(5000)),
            &format!(
                "Unable to parse integer value `{}...`: integers are -9223372036854775808 to 9223372036854775807 (column 5)",
                "9".repeat(64)
            ),
        ),
    ];
    for (body, expected) in cases {
        assert_eq!(message(body), expected, "{body:?}");
        check(&mut LineParser::new(), body, Precision::Auto, true, &Known::default());
    }
}

#[test]
fn values_names_and_line_ends_are_read_as_the_reference_says() {
    let bodies = [
        "m f=1i\n",
        "m f=1i\r\nm f=2i\r\n",
        "  m f=1 \n\t# comment\n\n \t\r\nm f=2   ",
        "m f=1.,g=.1,h=-.5e3,i=1.5E-3",
        "m a=t,b=T,c=true,d=True,e=TRUE,f=f,g=F,h=false,i=False,j=FALSE",
        "m f=\"a\nb\r\n\tc\\\"d\\\\e\\f\" 5\nm f=\"\"",
        "m\\,x\\ y\\\\z,a\\=b\\,c\\ d=e\\=f\\,g\\ h\\q k\\=y\\ \\,=1i",
        "m\\a f=1",
        "m,a\\,b=c d\\,e=1",
        "m\\\\,a\\\\=b\\\\ f\\\\=1\nm\\\\ f=2\nm\\\\\\\\ f=3",
        "\u{feff}m f=1\n\u{feff}# c\n \u{feff}\u{feff} m f=2\n\u{feff}\nm f=\"\u{feff}\"\n\u{feff}bad\n\u{feff}m f=3",
        "m,path=C:\\\\x\\\\y f=1i",
        "m f=-9223372036854775808i,g=18446744073709551615u,h=9223372036854775807i",
        "m f=00000000000000000000000000000012i,g=0000000000000000000000000012u",
        "m f=-0,g=-0.0,h=0.1,i=1e-400,j=123456789012345678901234567890",
        "m f=1 -5",
        "m f=1 4999999999\nm f=1 5000000000\nm f=1 5000000000000\nm f=1 5000000000000000\nm f=1 -9223372036854775808",
        "a f=1\nb f=2\na f=3 7\n\n#x\nb g=1i",
        "m f=\"q\" 1\nm f=\"open\nm f=2\n",
        "m f=1\nbad\nm g=2,f=1i\nm f=3,h=\"x\"",
        "m\\\\\\ a f=1",
        "m=x\"y,a=\"q f=1",
        "m f=\"=\",g=\"a=\\\"b\nc\"",
    ];
    for body in bodies {
        for precision in
            [Precision::Auto, Precision::Second, Precision::Millisecond, Precision::Microsecond, Precision::Nanosecond]
        {
            check(&mut LineParser::new(), body, precision, true, &Known::default());
            check(&mut LineParser::new(), body, precision, false, &Known::default());
        }
    }
}

#[test]
fn the_schema_of_the_table_decides_types() {
    let known = Known::of("m", &[("f", ColumnKind::Integer), ("t", ColumnKind::Tag)]);
    let mut parser = LineParser::new();
    check(&mut parser, "m f=1\nm,f=1 g=1\nm t=1i\nm,t=x f=1i\nn f=1\nm u=1u\nm u=1i", Precision::Auto, true, &known);
    let written = parser.parse("db", &Bytes::from("m f=1"), Precision::Auto, false, &known);
    assert_eq!(
        written.rejected[0].message,
        "invalid column type for column 'f', expected iox::column_type::field::integer, got iox::column_type::field::float"
    );
}

/// A table with columns whose keys need no escapes, look like escapes, or need them.
fn known_columns() -> Known {
    Known::of(
        "m",
        &[
            ("t", ColumnKind::Tag),
            ("u", ColumnKind::Tag),
            ("a", ColumnKind::Integer),
            ("x\\y", ColumnKind::Integer),
            ("k 1", ColumnKind::Float),
            ("k=2", ColumnKind::Boolean),
            ("a,b", ColumnKind::UInteger),
            ("s", ColumnKind::String),
        ],
    )
}

#[test]
fn columns_are_found_whatever_their_order_and_spelling() {
    let in_order = "m,t=1,u=2 a=1i,x\\y=2i,k\\ 1=3,k\\=2=t,a\\,b=4u,s=\"5\" 6";
    let bodies = [
        // In the order of the schema, then in others.
        format!("{in_order}\n{in_order}"),
        format!("{in_order}\nm,u=1,t=2 s=\"1\",a\\,b=2u,a=3i\n{in_order}"),
        format!("m,u=1,t=2 s=\"1\",a\\,b=2u,a=3i\n{in_order}"),
        // With columns left out, some of which come later.
        format!("m,u=1 a=1i,k\\ 1=2\n{in_order}\nm s=\"1\""),
        // A tag set that grows and shrinks.
        "m a=1i\nm,t=1 a=2i\nm,t=1,u=2 a=3i\nm,u=2,v=3 a=4i\nm a=5i".to_owned(),
        // One column in several spellings, in one line and in several.
        "m a\\,b=1u\nm a,b=2u\nm a\\,b=3u,a,b=4u\nm a,b=5u,a\\,b=6u".to_owned(),
        "m a,b=1u,a\\,b=2u\nm x\\y=1i,x\\\\y=2i\nm x\\\\y=3i,x\\y=4i\nm x\\y=5i".to_owned(),
        // A key twice: first, last, and behind others.
        "m a=1i,a=2i\nm a=3i".to_owned(),
        "m a=1i,x\\y=2i,a=3i\nm a=1i,x\\y=2i,x\\y=3i\nm a=1i,x\\y=2i".to_owned(),
        "m,t=1,t=2 a=1i\nm,t=1 a=1i".to_owned(),
        // A value of another type, in the first line and later.
        "m a=1,x\\y=2i\nm a=1i,x\\y=2\nm a=1i,x\\y=2i".to_owned(),
        "m a=1i,n=1i\nm a=2i,n=2\nm a=3i,n=\"3\"\nm a=4i,n=4i".to_owned(),
        // Tags where the schema has fields, fields where it has tags, both by turns.
        "m,a=1 x\\y=1i\nm t=1i\nm,t=1 t=1i\nm,t=1 a=1i".to_owned(),
        // Keys that begin like the one that is expected, or end behind it.
        "m aa=1i,a=2i\nm a=1i,aa=2i,x=3i\nm ,a=1i\nm a =1i\nm a\\=1i".to_owned(),
        // Columns that the schema does not have, before, between and behind the others.
        "m,w=1,t=2 n=1i,a=2i,o=3i,x\\y=4i\nm,t=2,w=1 a=1i,n=2i\nm time=1i,a=1i\nm a=2i".to_owned(),
        // More fields than the line before, and fewer.
        "m a=1i\nm a=2i,x\\y=3i\nm a=4i\nm a=5i,k\\ 1=6,x\\y=7i\nm x\\y=8i,a=9i".to_owned(),
    ];
    let mut parser = LineParser::new();
    for body in bodies {
        for known in [known_columns(), Known::default()] {
            check(&mut LineParser::new(), &body, Precision::Auto, true, &known);
            check(&mut parser, &body, Precision::Auto, true, &known);
        }
    }
}

#[test]
fn a_key_is_not_the_column_whose_name_it_only_looks_like() {
    // The column's name has a backslash; the first key is another name, escaped.
    let known = Known::of("m", &[("k\\ 1", ColumnKind::Integer)]);
    let body = "m k\\ 1=1i\nm k\\\\\\ 1=2i\nm k\\ 1=3i";
    check(&mut LineParser::new(), body, Precision::Auto, true, &known);
}

#[test]
fn a_refused_line_leaves_nothing_behind() {
    let bodies = [
        "m,a=1 f=1i\nm,b=2 g=1,h=2,f=x\nm,a=1 f=2i",
        "m f=1i\nm g=\"x\",f=1\nm g=2i\nm f=3i",
        "m s=\"a\",b=t\nm s=\"bcd\",b=f,s=1\nm s=\"e\",b=t",
        "n,a=1 f=1,f=2\nm f=1\nn a=1",
    ];
    for body in bodies {
        check(&mut LineParser::new(), body, Precision::Auto, true, &Known::default());
    }
}

#[test]
fn line_numbers_skip_blank_lines_and_comments() {
    let written = parse("# c\n\nm f=1\n\nbad\n#x\n  worse\r\nm f=2");
    let errors: Vec<_> = written.rejected.iter().map(|e| (e.line_number, e.original_line.as_str())).collect();
    assert_eq!(errors, [(2, "bad"), (3, "  worse")]);
    assert_eq!(written.batches[0].lines, LineNumbers::Listed(vec![1, 4]));
    assert_eq!(written.line_count, 4);
    assert_eq!(&written.batches[0].text[..], b"m f=1\nm f=2");
}

#[test]
fn text_is_a_slice_of_the_request_when_it_has_one_table() {
    let body = Bytes::from("# head\nm f=1\n# mid\nm f=2\n");
    let written = LineParser::new().parse("db", &body, Precision::Auto, true, &Known::default());
    assert_eq!(written.batches[0].lines, LineNumbers::All);
    assert!(body.as_ptr_range().contains(&written.batches[0].text.as_ptr()));
    let written = parse("a f=1\nb f=2\na f=3");
    assert_eq!(&written.batches[0].text[..], b"a f=1\na f=3");
    assert_eq!(&written.batches[1].text[..], b"b f=2\n");
}

#[test]
fn invalid_utf8_refuses_only_its_line() {
    let body = Bytes::from_static(b"m f=1\nm,a=\xff f=1\nm f=\"\xc3\xa4\"\nn f=2");
    let written = LineParser::new().parse("db", &body, Precision::Auto, true, &Known::default());
    assert_eq!(written.rejected[0].message, "Invalid UTF-8: byte 0xFF (column 5)");
    assert_eq!(written.rejected[1].line_number, 3);
    assert_eq!(written.batches.len(), 2);
}

#[test]
fn fingerprints_do_not_depend_on_the_order_of_tags() {
    let written = parse("m,a=1,b=2 f=1\nm,b=2,a=1 f=1\nm,a=2,b=1 f=1\nm f=1\nm,a=1 f=1");
    let series = &written.batches[0].series;
    assert_eq!(series[0], series[1]);
    assert_ne!(series[0], series[2]);
    assert_eq!(series[3], 0);
    assert_ne!(series[4], series[0]);
}

#[test]
fn untimed_rows_get_the_instant_cut_to_the_precision() {
    let mut parser = LineParser::new();
    for (precision, expected) in [
        (Precision::Auto, BASE_NS),
        (Precision::Nanosecond, BASE_NS),
        (Precision::Microsecond, 1_700_000_000_123_456_000),
        (Precision::Millisecond, 1_700_000_000_123_000_000),
        (Precision::Second, 1_700_000_000_000_000_000),
    ] {
        let written = parser.parse("db", &Bytes::from("m f=1"), precision, true, &Known::default());
        assert_eq!(written.batches[0].clone().freeze(BASE_NS).time.value(0), expected);
    }
}

#[test]
fn freezing_keeps_the_memory() {
    let batch = parse("m,t=x f=1i,s=\"abc\"\nm,t=x f=2i,s=\"d\"").batches.remove(0);
    let PendingData::Integer(values) = &batch.columns[1].data else { panic!("an integer column") };
    let PendingData::String { text, .. } = &batch.columns[2].data else { panic!("a string column") };
    let (values_at, text_at) = (values.as_ptr(), text.as_ptr());
    let frozen = batch.freeze(0);
    assert_eq!(frozen.columns[1].data.as_primitive::<Int64Type>().values().as_ptr(), values_at);
    assert_eq!(frozen.columns[2].data.as_string::<i32>().value_data().as_ptr(), text_at);
}

#[test]
fn a_table_has_no_more_columns_than_the_limit() {
    let fields: Vec<_> = (0..COLUMNS_PER_TABLE_MAX).map(|at| format!("f{at}=1i")).collect();
    let full = format!("m {}", fields.join(","));
    let body = format!("{full}\nm g=1\nm f7=1i\n{full},g=1\nm,t=1 f1=1i\nn g=1");
    check(&mut LineParser::new(), &body, Precision::Auto, true, &Known::default());
    let written = parse(&body);
    assert_eq!(
        written.rejected[0].message,
        "Update to schema would exceed number of columns per table limit of 4096 columns: table `m` would have 4097"
    );
    assert_eq!(written.rejected_count, 3);
}

#[test]
fn names_and_texts_have_limits() {
    let name = |len: usize| "n".repeat(len);
    for (body, expected) in [
        (format!("{} f=1", name(65535)), None),
        (format!("{} f=1", name(65536)), Some("String is greater than 64KB")),
        (format!("m,{}=1 f=1", name(65536)), Some("String is greater than 64KB")),
        (format!("m,t={} f=1", name(65536)), Some("String is greater than 64KB")),
        (format!("m {}=1", name(65536)), Some("String is greater than 64KB")),
        (format!("m f=\"{}\"", name(1 << 20)), None),
        (format!("m f=\"{}\\\"\"", name((1 << 20) - 1)), None),
        (format!("m f=\"{}\"", name((1 << 20) + 1)), Some("String is greater than 1MB")),
    ] {
        let written = parse(&body);
        let message = written.rejected.first().map(|e| e.message.as_str());
        assert_eq!(message.and_then(|text| text.split(':').next()), expected);
    }
}

#[test]
fn reports_are_bounded_and_counts_are_not() {
    let written = parse(&"bad\n".repeat(LINE_ERRORS_REPORTED_MAX + 5));
    assert_eq!(written.rejected.len(), LINE_ERRORS_REPORTED_MAX);
    assert_eq!(written.rejected_count, LINE_ERRORS_REPORTED_MAX + 5);
    assert_eq!(written.line_count, LINE_ERRORS_REPORTED_MAX + 5);
}

#[test]
fn databases_do_not_share_series() {
    let mut parser = LineParser::new();
    let body = Bytes::from("m,t=1 f=1i");
    for db in ["a", "b", "a"] {
        let known = if db == "a" { Known::default() } else { Known::of("m", &[("t", ColumnKind::Integer)]) };
        let written = parser.parse(db, &body, Precision::Auto, true, &known);
        assert_eq!(written.rejected_count, usize::from(db == "b"));
    }
}

#[test]
fn a_full_cache_starts_anew_and_dictionaries_stay_right() {
    let mut parser = LineParser::with_cache_bytes_max(100_000);
    for round in 0..60 {
        let lines: Vec<_> = (0..100).map(|at| format!("m,id=value-{}-{} f={at}i", round / 2, at)).collect();
        check(&mut parser, &lines.join("\n"), Precision::Auto, true, &Known::default());
    }
    assert!(parser.cache.bytes() < 200_000);
}

#[test]
fn a_large_dictionary_is_not_copied_for_a_few_new_values() {
    let mut parser = LineParser::new();
    let lines: Vec<_> = (0..20_000).map(|at| format!("m,id=value-{at} f=1i")).collect();
    check(&mut parser, &lines.join("\n"), Precision::Auto, true, &Known::default());
    let body = Bytes::from("m,id=new f=1i\nm g=2\nm,id=value-7 f=2i");
    let written = parser.parse("db", &body, Precision::Auto, true, &Known::default());
    let PendingData::Tag { values, .. } = &written.batches[0].columns[0].data else { panic!("a tag column") };
    assert!(values.len() <= 3, "a dictionary of its own, not {} values", values.len());
    assert_eq!(
        outcome_of(written),
        oracle::read("m,id=new f=1i\nm g=2\nm,id=value-7 f=2i", "auto", true, 4096, &Schemas::default())
    );
}

/// Pieces that lines are made of, good and bad.
fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "m",
        "n",
        "a",
        "b",
        "time",
        "=",
        "=",
        "=",
        ",",
        ",",
        " ",
        " ",
        "\\",
        "\"",
        "\n",
        "\n",
        "\r\n",
        "\t",
        "#",
        "1",
        "i",
        "u",
        "-",
        ".",
        "e5",
        "t",
        "true",
        "F",
        "x",
        "ü",
        "\u{1}",
        "=\"",
        "\\\"",
        "\\ ",
        "f=1i",
        "f=2",
        "g=\"s\"",
        " 17",
        "m,a=1 f=1i\n",
        "9223372036854775808",
        "1e400",
    ])
}

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "host", "k\\ 1", "k\\=2", "ü", "x\\y", "time"]).prop_map(str::to_owned)
}

fn field_value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|v| format!("{v}i")),
        (-1000i64..1000).prop_map(|v| format!("{v}i")),
        any::<u64>().prop_map(|v| format!("{v}u")),
        any::<f64>().prop_filter("finite", |v| v.is_finite()).prop_map(|v| format!("{v}")),
        (any::<i32>(), 0u32..12).prop_map(|(v, places)| format!("{:.*}", places as usize, f64::from(v) / 1000.0)),
        any::<f64>().prop_filter("finite", |v| v.is_finite()).prop_map(|v| format!("{v:e}")),
        "[a-z \n,=\\\\\"]{0,6}".prop_map(|v| format!("\"{}\"", v.replace('\\', "\\\\").replace('"', "\\\""))),
        prop::sample::select(vec!["t", "False", "TRUE"]).prop_map(str::to_owned),
    ]
}

fn line() -> impl Strategy<Value = String> {
    let measurement = prop::sample::select(vec!["m", "n", "m\\ x"]);
    let tags = prop::collection::vec((key(), "[a-c\\\\]{0,2}[a-c]"), 0..3);
    let fields = prop::collection::vec((key(), field_value()), 1..4);
    let time = prop_oneof![
        Just(String::new()),
        any::<i64>().prop_map(|t| format!(" {t}")),
        (0i64..1 << 33).prop_map(|t| format!(" {t}"))
    ];
    (measurement, tags, fields, time).prop_map(|(measurement, tags, fields, time)| {
        let tags: String = tags.iter().map(|(k, v)| format!(",{k}={v}")).collect();
        let fields: Vec<_> = fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
        format!("{measurement}{tags} {}{time}\n", fields.join(","))
    })
}

fn body() -> impl Strategy<Value = String> {
    let noise = prop::collection::vec(piece(), 0..8).prop_map(|pieces| pieces.concat());
    let broken = (line(), any::<prop::sample::Index>(), piece()).prop_map(|(mut line, at, piece)| {
        let at = at.index(line.len());
        if line.is_char_boundary(at) {
            line.insert_str(at, piece);
        }
        line
    });
    let fixed = Just("m,a=1,b=2 c=1i,d=2i 5\n".to_owned());
    prop::collection::vec(prop_oneof![4 => line(), 2 => broken, 1 => noise, 1 => fixed], 0..12).prop_map(|l| l.concat())
}

/// Lines with the columns of [`known_columns`]: some left out, two swapped, one replaced by something else.
fn alike() -> impl Strategy<Value = String> {
    let line = (any::<u8>(), any::<u8>(), any::<prop::sample::Index>(), odd_field(), 0i64..1 << 40);
    prop::collection::vec(line, 1..8).prop_map(|lines| {
        let lines = lines.into_iter().map(|(left_out, change, at, odd, number)| {
            let tags = ["", ",t=1", ",t=1,u=2", ",u=2,t=1"][usize::from(change % 4)];
            let mut fields = vec![
                format!("a={number}i"),
                format!("x\\y={}i", -number),
                format!("k\\ 1={}.5", number % 1000),
                "k\\=2=t".to_owned(),
                format!("a\\,b={number}u"),
                format!("s=\"{number}\""),
            ];
            let at = at.index(fields.len());
            match change / 4 {
                0..4 => fields[at] = odd,
                4..8 => fields.swap(0, at),
                8..12 => fields.truncate(at + 1),
                12..16 => fields.retain(|field| field.len() % 8 != usize::from(left_out % 8)),
                _ => {}
            }
            format!("m{tags} {} {number}\n", fields.join(","))
        });
        lines.collect()
    })
}

fn odd_field() -> impl Strategy<Value = String> {
    prop_oneof![
        (key(), field_value()).prop_map(|(key, value)| format!("{key}={value}")),
        prop::sample::select(vec!["a,b=1u", "a=1", "x\\\\y=1i", "s=\"\\\"\n\"", "t=1i", "a", "=1i", "aa=1i"])
            .prop_map(str::to_owned),
    ]
}

fn precision() -> impl Strategy<Value = Precision> {
    prop::sample::select(vec![
        Precision::Auto,
        Precision::Second,
        Precision::Millisecond,
        Precision::Microsecond,
        Precision::Nanosecond,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// One parser for all requests, tiny caches: rows, types, errors and line numbers are those of the oracle, and
    /// what earlier requests left in the caches cannot be noticed.
    #[test]
    fn the_oracle_agrees(bodies in prop::collection::vec((body(), precision(), any::<bool>()), 1..4)) {
        let known = Known::of("n", &[("a", ColumnKind::Tag), ("b", ColumnKind::Integer), ("c", ColumnKind::Float)]);
        let mut small = LineParser::with_cache_bytes_max(1000);
        let mut large = LineParser::new();
        for (body, precision, partial) in &bodies {
            check(&mut small, body, *precision, *partial, &known);
            check(&mut large, body, *precision, *partial, &known);
            check(&mut LineParser::new(), body, *precision, *partial, &Known::default());
        }
    }

    /// As above for lines that are mostly alike and mostly in the order of the schema: the quick ways through the parser.
    #[test]
    fn the_oracle_agrees_on_lines_of_one_shape(bodies in prop::collection::vec(alike(), 1..4)) {
        let mut parser = LineParser::new();
        for body in &bodies {
            check(&mut parser, body, Precision::Nanosecond, true, &known_columns());
            check(&mut parser, body, Precision::Nanosecond, true, &Known::default());
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        LineParser::new().parse("db", &bytes.into(), Precision::Auto, true, &Known::default());
    }
}

#[test]
fn a_body_that_would_need_endless_memory_is_refused_and_not_tried() {
    // One line with many columns, then very many short ones: 1.6 million rows of 1001 columns would be 12 GiB.
    let mut body: String =
        "t ".to_owned() + &(0..1000).map(|n| format!("c{n}=1i")).collect::<Vec<_>>().join(",") + "\n";
    body.push_str(&"t c0=1i\n".repeat(200_000));
    let parsed = LineParser::new().parse("db", &body.into(), Precision::Nanosecond, true, &Known::default());
    let rows = parsed.batches.iter().map(|b| b.rows()).sum::<usize>();
    assert!(rows * 1000 <= crate::limits::LINE_CELLS_MAX + 1000, "{rows}");
    assert_eq!(rows + parsed.rejected_count, 200_001, "the rest is refused, line by line");
    assert!(parsed.rejected[0].message.starts_with("Too many rows with too many columns"));
}

/// A name as `LineBuilder` writes it (`python-bridge/python/saltus/line_builder.py`).
fn built(text: &str, special: &[char]) -> String {
    text.chars().flat_map(|c| special.contains(&c).then_some('\\').into_iter().chain([c])).collect()
}

/// Names with much of what has a meaning, and anything else but control characters.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![2 => "[a\\\\,= \"#\u{e9}]{1,8}", 1 => "[^\\p{Cc}]{1,8}", 1 => "[a-z]{0,3}\\\\{1,4}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// One dialect of backslashes: whatever the texts are, they are read as they were meant.
    #[test]
    fn what_line_builder_writes_is_read_back(
        measurement in name().prop_filter("comments and marks are refused by it", |m| !m.starts_with(['#', '\u{feff}'])),
        tags in prop::collection::btree_map(name(), name(), 0..3),
        field in name(),
        text in "[^\\x00]{0,8}|[a\\\\\"\n]{0,8}",
    ) {
        prop_assume!(!tags.contains_key(&field));
        let special = [',', '=', ' ', '\\'];
        let mut line = built(&measurement, &[',', ' ', '\\']);
        for (key, value) in &tags {
            line += &format!(",{}={}", built(key, &special), built(value, &special));
        }
        line += &format!(" {}=\"{}\" 1", built(&field, &special), built(&text, &['"', '\\']));
        // Behind it stands a line that must not be touched by it.
        let read = outcome_of(parse(&format!("{line}\nother x=1 1")));
        prop_assert_eq!(&read.refused, &vec![]);
        prop_assert_eq!(&read.tables[0].name, &measurement);
        let mut cells: std::collections::BTreeMap<_, _> =
            tags.into_iter().map(|(key, value)| (key, oracle::Cell::Tag(value))).collect();
        cells.insert(field, oracle::Cell::Text(text));
        prop_assert_eq!(&read.tables[0].rows[0].cells, &cells);
        prop_assert_eq!(read.tables.len(), 2);
    }
}

#[test]
fn bytes_that_are_no_utf8_refuse_their_line_and_no_other() {
    for (bad, column) in [
        (&b"m,h=caf\xe9 v=2 2"[..], "byte 0xE9 (column 8)"),
        (b"m\xc0\xaf v=2 2", "byte 0xC0 (column 2)"),
        (b"m v\xed\xa0\x80=2 2", "byte 0xED (column 4)"),
        (b"m v=\"a\nb\xff\" 2", "byte 0xFF (column 9, behind a line end in a string)"),
        (b"# caf\xe9", "byte 0xE9 (column 6)"),
        (b" \xff", "byte 0xFF (column 2)"),
        ("m,h=\u{e9}\u{e9} v=2 2\u{e9}".as_bytes(), ""),
    ] {
        let body = [b"m v=1 1\n", bad, b"\n# fine\nm v=3 3\n"].concat();
        let written = LineParser::new().parse("db", &body.into(), Precision::Auto, true, &Known::default());
        assert_eq!(written.batches[0].rows(), 2, "{bad:?}");
        assert_eq!(written.rejected[0].line_number, 2, "{bad:?}");
        assert!(written.rejected[0].message.ends_with(column), "{bad:?}: {}", written.rejected[0].message);
        assert_eq!(written.line_count, 3);
    }
    let utf16: Vec<u8> = [0xfeff, 0x6d].into_iter().flat_map(u16::to_le_bytes).collect();
    let written = LineParser::new().parse("db", &utf16.into(), Precision::Auto, true, &Known::default());
    assert!(written.rejected[0].message.contains("UTF-16"), "{}", written.rejected[0].message);
}

#[test]
fn a_limit_of_columns_says_which_table_and_how_many_there_would_be() {
    let fields = |from: usize, to: usize| (from..to).map(|at| format!("f{at}=1i")).collect::<Vec<_>>().join(",");
    let full = COLUMNS_PER_TABLE_MAX;
    for (body, columns) in [
        (format!("wide {}", fields(0, full + 14)), full + 14),
        (format!("wide,t=1,u=2 {}", fields(0, full)), full + 2),
        (format!("wide {}\nwide,t=1,u=2 x=1,f0=1i,x\\\\=2 1", fields(0, full)), full + 4),
        (format!("wide {}\nwide {}", fields(0, full - 1), fields(full - 2, full + 9)), full + 9),
    ] {
        let text = parse(&body).rejected[0].message.clone();
        assert!(text.ends_with(&format!("table `wide` would have {columns}")), "{text}");
    }
}
