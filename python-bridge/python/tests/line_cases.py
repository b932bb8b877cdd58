"""Line protocol that is accepted, and that is refused with these words: the cases of ``core/src/line_protocol/tests.rs``.

``test_lines.py`` reads them with ``saltus.testing``, ``conformance/compare.py`` sends them to a server.
"""

from __future__ import annotations

REFUSED = [
    ("measurement", "Expected at least one space character, got end of input: the line has no fields (column 12)"),
    (",", "Invalid measurement was provided: the line does not begin with a name (column 1)"),
    (",tag1=1,tag2=2 value=1 123", "Invalid measurement was provided: the line does not begin with a name (column 1)"),
    ("J,#", "Tag set malformed: could not find equals sign in `#`: tag `#` has no value (column 3)"),
    (
        "J," + "a" * 200,
        "Tag set malformed: could not find equals sign in `aaaaaaaaaa...`: "
        "tag `aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...` has no value (column 3)",
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
    ("m a=1,b=2,c=", "Could not parse entire line. Found trailing content: `,c=`: field `c` has no value (column 11)"),
    ("cpu,host=a val= 123", "No fields were provided: field `val` has no value (column 12)"),
    ("m val", "No fields were provided: field `val` has no value (column 3)"),
    ("m ", "No fields were provided: the line ends behind its tags (column 3)"),
    ("m", "Expected at least one space character, got end of input: the line has no fields (column 2)"),
    ("m f=+1", "No fields were provided: `+1` begins with a plus sign: write the number without it (column 5)"),
    ("m f=nan", "No fields were provided: `nan` is not a number that can be stored: leave the field out (column 5)"),
    ("m f=-inf", "No fields were provided: `-inf` is not a number that can be stored: leave the field out (column 5)"),
    ("m f=.", "No fields were provided: `.` is no number (column 5)"),
    (
        'm f="open',
        "No fields were provided: "
        "the string that begins in column 5 does not end; all that is behind it, 5 bytes in 1 line, is taken "
        "for its text and refused with it",
    ),
    (
        'm f="open\nm f=2\n\n',
        "No fields were provided: "
        "the string that begins in column 5 does not end; all that is behind it, 13 bytes in 3 lines, is "
        "taken for its text and refused with it",
    ),
    (
        "m\\",
        "Measurements, tag keys and values, and field keys may not end with a backslash that escape"
        "s nothing: write it twice (column 2)",
    ),
    (
        "m,t=a\\",
        "Measurements, tag keys and values, and field keys may not end with a backslash that escape"
        "s nothing: write it twice (column 6)",
    ),
    (
        "m f=3 1888888888888888888888888888",
        "Unable to parse timestamp value `1888888888888888888888888888`: "
        "timestamps are -9223372036854775808 to 9223372036854775807 (column 7)",
    ),
    (
        "m f=9223372036854775808i",
        "Unable to parse integer value `9223372036854775808`: "
        "integers are -9223372036854775808 to 9223372036854775807 (column 5)",
    ),
    (
        "m f=-9223372036854775809i",
        "Unable to parse integer value `-9223372036854775809`: "
        "integers are -9223372036854775808 to 9223372036854775807 (column 5)",
    ),
    (
        "m f=18446744073709551616u",
        "Unable to parse unsigned integer value `18446744073709551616`: "
        "unsigned integers are 0 to 18446744073709551615 (column 5)",
    ),
    (
        "m f=1e999",
        "Unable to parse floating-point value `1e999`: "
        "floats are -1.7976931348623157e308 to 1.7976931348623157e308 (column 5)",
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
        "Could not parse entire line. Found trailing content: `x`: "
        "`5x` is no timestamp, which is a whole number in the unit of the precision (column 7)",
    ),
    (
        "m f=1 x",
        "Could not parse entire line. Found trailing content: ` x`: "
        "`x` is no timestamp, which is a whole number in the unit of the precision (column 7)",
    ),
    (
        "m f=-5u",
        "Could not parse entire line. Found trailing content: `u`: "
        "`-5u` is negative, and an unsigned integer is not (column 5)",
    ),
    (
        "m f=tru",
        "Could not parse entire line. Found trailing content: `ru`: `tru` is no boolean: "
        "write true or false (column 5)",
    ),
    (
        "m\tf=1",
        "Control character U+0009 is not allowed in a measurement: "
        "the parts of a line are separated by spaces (column 2)",
    ),
    ("m,a\x01=1 f=1", "Control character U+0001 is not allowed in a tag key (column 4)"),
    ("m,\xfc=x\x7f f=1", "Control character U+007F is not allowed in a tag value (column 6)"),
    ("m f\r=1", "Control character U+000D is not allowed in a field key (column 4)"),
    ("m,k=1,k=2 f=1", "Must not contain duplicate tags, but `k` was repeated"),
    ("m f=1,f=2", "invalid line protocol - multiple instances of 'f' field found"),
    ("m time=1", "'time' is a reserved column"),
    ("m,time=1 f=1", "'time' is a reserved column"),
    (
        "m,a=1,b,c=2 v=1 1",
        "Tag set malformed: could not find equals sign in `a=1,b,c=2 ...`: tag `b` has no value (column 7)",
    ),
    ("m,a=1,b v=1", "Tag set malformed: could not find equals sign in `a=1,b v=1`: tag `b` has no value (column 7)"),
    ("m,a=1,,b=2 v=1", "Expected tag key, got `,b=2 v=1`: a comma without a tag (column 7)"),
    ("m,,a=1 v=1", "Expected tag key, got `,a=1 v=1`: a comma without a tag (column 3)"),
    ("m,=1 v=1", "Expected tag key, got `=1 v=1`: a tag without a name (column 3)"),
    ("m ,v=1", "No fields were provided: a comma without a field in front of it (column 3)"),
    (
        "m v=1,,w=2",
        "Could not parse entire line. Found trailing content: `,w=2`: "
        "a comma without a field in front of it (column 7)",
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
        'm v="a,b",w,x=2',
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
        "Could not parse entire line. Found trailing content: `x1F`: `0x1F` is hexadecimal: "
        "write the number in decimal digits (column 5)",
    ),
    (
        "m v=1.5i",
        "Could not parse entire line. Found trailing content: `i`: `1.5i` is no integer: "
        "digits and an i, or a u if it is unsigned (column 5)",
    ),
    ("m v=1_000", "Could not parse entire line. Found trailing content: `_000`: `1_000` is no number (column 5)"),
    ("m v='a'", "No fields were provided: `'a'` is in single quotes: a string is in double quotes (column 5)"),
    (
        "m v=abc",
        "No fields were provided: `abc` is no value: "
        "a string is in double quotes, a boolean is true or false, the rest are numbers (column 5)",
    ),
    (
        'm v="a"b',
        "Could not parse entire line. Found trailing content: `b`: `b` stands behind the end of a string: "
        'a double quote in a string is written \\" (column 5)',
    ),
    (
        "m v=1 w=2",
        "Could not parse entire line. Found trailing content: ` w=2`: `w=2` is no timestamp: "
        "fields are separated by a comma without a space (column 7)",
    ),
    (
        "m v=1 1.5",
        "Could not parse entire line. Found trailing content: `.5`: "
        "`1.5` is no timestamp, which is a whole number in the unit of the precision (column 7)",
    ),
    (
        "m v=1 1 2",
        "Could not parse entire line. Found trailing content: `2`: nothing may stand behind the timestamp (column 9)",
    ),
    ("m v=1e", "Could not parse entire line. Found trailing content: `e`: `1e` is no number (column 5)"),
    (
        "m a=1,v=nan 1",
        "Could not parse entire line. Found trailing content: `v=nan 1`: "
        "`nan` is not a number that can be stored: leave the field out (column 9)",
    ),
    (
        "m v=1 now",
        "Could not parse entire line. Found trailing content: ` now`: "
        "`now` is no timestamp, which is a whole number in the unit of the precision (column 7)",
    ),
    (
        'm s="a\nb",v=x 1',
        "Could not parse entire line. Found trailing content: `v=x 1`: `x` is no value: "
        "a string is in double quotes, a boolean is true or false, the rest are numbers (column 13, behind a "
        "line end in a string)",
    ),
    (
        "m v=True1",
        "Could not parse entire line. Found trailing content: `1`: `True1` is no boolean: "
        "write true or false (column 5)",
    ),
    ("m v=--1", "No fields were provided: `--1` is no number (column 5)"),
    ("m v=5m", "Could not parse entire line. Found trailing content: `m`: `5m` is no number (column 5)"),
    (
        "m,a=b=c v=1 x",
        "Could not parse entire line. Found trailing content: ` x`: "
        "`x` is no timestamp, which is a whole number in the unit of the precision (column 13)",
    ),
    ("m v=1,5 1", "Could not parse entire line. Found trailing content: `5 1`: field `5` has no value (column 7)"),
    (
        "m,a=1 a=1",
        "invalid column type for column 'a', expected iox::column_type::tag, got iox::column_type::field::float",
    ),
    ("m __chunk_order=1", "'__chunk_order' is a reserved column"),
    (
        "m f=1 9223372036854775808",
        "Unable to parse timestamp value `9223372036854775808`: "
        "timestamps are -9223372036854775808 to 9223372036854775807 (column 7)",
    ),
]

# Every body with what its rows are: tags and fields, and the time if the line has one.
ACCEPTED: list[tuple[str, list[tuple[str, dict[str, object]]]]] = [
    ("m f=1i 1\r\nm f=2i 2\r\n", [("m", {"f": 1, "time": 1}), ("m", {"f": 2, "time": 2})]),
    ("  m f=1 1 \n\t# comment\n\n \t\r\nm f=2 2   ", [("m", {"f": 1.0, "time": 1}), ("m", {"f": 2.0, "time": 2})]),
    ("m f=1.,g=.1,h=-.5e3,i=1.5E-3 1", [("m", {"f": 1.0, "g": 0.1, "h": -500.0, "i": 0.0015, "time": 1})]),
    ("m a=t,b=True,c=FALSE,d=f 1", [("m", {"a": True, "b": True, "c": False, "d": False, "time": 1})]),
    (
        'm f="a\nb\r\n\tc\\"d\\\\e\\f" 5\nm f="" 6',
        [("m", {"f": 'a\nb\r\n\tc"d\\e\\f', "time": 5}), ("m", {"f": "", "time": 6})],
    ),
    (
        "m\\,x\\ y\\\\z,a\\=b\\,c\\ d=e\\=f\\,g\\ h\\q k\\=y\\ \\,=1i 1",
        [("m,x y\\z", {"a=b,c d": "e=f,g h\\q", "k=y ,": 1, "time": 1})],
    ),
    ("m,a\\,b=c d\\,e=1 1", [("m", {"a,b": "c", "d,e": 1.0, "time": 1})]),
    # Backslashes at the ends of names.
    ("m\\\\,a\\\\=C:\\\\ f\\\\=1 1", [("m\\", {"a\\": "C:\\", "f\\": 1.0, "time": 1})]),
    ("m,p=C:\\x\\\\y f=1 1", [("m", {"p": "C:\\x\\y", "f": 1.0, "time": 1})]),
    # Byte order marks in front of lines.
    (
        "\ufeffm f=1 1\n\ufeff# c\n \ufeff m f=2 2\n\ufeff\n",
        [("m", {"f": 1.0, "time": 1}), ("m", {"f": 2.0, "time": 2})],
    ),
    ('m,t=\ufeffx f="\ufeff" 1', [("m", {"t": "\ufeffx", "f": "\ufeff", "time": 1})]),
    ("m f=-9223372036854775808i,g=18446744073709551615u 1", [("m", {"f": -(2**63), "g": 2**64 - 1, "time": 1})]),
    ("m f=00000000000000000000000000000012i 1", [("m", {"f": 12, "time": 1})]),
    (
        "m f=1e-400,j=123456789012345678901234567890 1",
        [("m", {"f": 0.0, "j": 123456789012345678901234567890.0, "time": 1})],
    ),
    ("m f=1 -5", [("m", {"f": 1.0, "time": -5})]),
    ('m f="=",g="a=\\"b\nc" 1', [("m", {"f": "=", "g": 'a="b\nc', "time": 1})]),
    (
        "a f=1 1\nb f=2 2\na f=3 7",
        [("a", {"f": 1.0, "time": 1}), ("b", {"f": 2.0, "time": 2}), ("a", {"f": 3.0, "time": 7})],
    ),
]
