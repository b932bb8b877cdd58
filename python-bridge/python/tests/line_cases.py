"""Line protocol that is accepted, and that is refused with these words: the cases of ``core/src/line_protocol/tests.rs``.

``test_lines.py`` reads them with ``saltus.testing``, ``conformance/compare.py`` sends them to a server.
"""

from __future__ import annotations

BACKSLASH = "Measurements, tag keys and values, and field keys may not end with a backslash"
TRAILING = "Could not parse entire line. Found trailing content: "

REFUSED = [
    ("measurement", "Expected at least one space character, got end of input"),
    (",", "Invalid measurement was provided"),
    (",tag1=1,tag2=2 value=1 123", "Invalid measurement was provided"),
    ("J,#", "Tag set malformed: could not find equals sign in `#`"),
    ("J," + "a" * 200, "Tag set malformed: could not find equals sign in `aaaaaaaaaa...`"),
    ("J,", "Expected tag key, got end of input"),
    ("m, bar=1i", "Expected tag key, got ` bar=1i`"),
    ("0,,=", "Expected tag value, got end of input"),
    ("m,foo\\=\\,baz= bar=1i", "Expected tag value, got ` bar=1i`"),
    ("m,foo=,baz= bar=1i", "Expected tag value, got `,baz= bar=...`"),
    ("m,foo=a, bar=1i", "Expected tag key, got ` bar=1i`"),
    ("m,foo=f bar=1i,baz=", TRAILING + "`baz=`"),
    ("m a=1,b=2,c=", TRAILING + "`,c=`"),
    ("cpu,host=a val= 123", "No fields were provided"),
    ("m val", "No fields were provided"),
    ("m ", "No fields were provided"),
    ("m f=+1", "No fields were provided"),
    ("m f=nan", "No fields were provided"),
    ("m f=.", "No fields were provided"),
    ('m f="open', "No fields were provided"),
    ("m\\", BACKSLASH),
    ("m,t=a\\\\ f=1", BACKSLASH),
    ("m f=3 1888888888888888888888888888", "Unable to parse timestamp value `1888888888888888888888888888`"),
    ("m f=9223372036854775808i", "Unable to parse integer value `9223372036854775808`"),
    ("m f=-9223372036854775809i", "Unable to parse integer value `-9223372036854775809`"),
    ("m f=18446744073709551616u", "Unable to parse unsigned integer value `18446744073709551616`"),
    ("m f=1e999", "Unable to parse floating-point value `1e999` (line 1, column 5)"),
    ("m f=1,", TRAILING + "`,` (line 1, column 6)"),
    ("m f=1, 5", TRAILING + "`, 5` (line 1, column 6)"),
    ("m f=1 5x", TRAILING + "`x`"),
    ("m f=1 x", TRAILING + "` x`"),
    ("m f=-5u", TRAILING + "`u`"),
    ("m f=tru", TRAILING + "`ru`"),
    ("m\tf=1", "Control character U+0009 is not allowed in a measurement (line 1, column 2)"),
    ("m,a\x01=1 f=1", "Control character U+0001 is not allowed in a tag key (line 1, column 4)"),
    ("m,\u00fc=x\x7f f=1", "Control character U+007F is not allowed in a tag value (line 1, column 6)"),
    ("m f\r=1", "Control character U+000D is not allowed in a field key (line 1, column 4)"),
    ("m,k=1,k=2 f=1", "Must not contain duplicate tags, but `k` was repeated"),
    ("m f=1,f=2", "invalid line protocol - multiple instances of 'f' field found"),
    ("m time=1", "'time' is a reserved column"),
    ("m,time=1 f=1", "'time' is a reserved column"),
    ("m __chunk_order=1", "'__chunk_order' is a reserved column"),
    (
        "m,a=1 a=1",
        "invalid column type for column 'a', expected iox::column_type::tag, got iox::column_type::field::float",
    ),
    ("m f=1 9223372036854775808", "Unable to parse timestamp value `9223372036854775808`"),
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
    ("m,a,b=c d,e=1 1", [("m", {"a,b": "c", "d,e": 1.0, "time": 1})]),
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
