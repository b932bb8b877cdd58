"""``LineBuilder`` against the outputs and the errors of InfluxDB 3."""

import builtins
import decimal
import fractions
import unittest

import saltus
from saltus import InfluxDBError, InvalidKeyError, InvalidLineError, InvalidMeasurementError, LineBuilder


class Golden(unittest.TestCase):
    """Whole lines."""

    def test_every_kind_of_field(self) -> None:
        line = (
            LineBuilder("metrics")
            .tag("host", "server01")
            .tag("region", "us-west")
            .int64_field("cpu", 42)
            .uint64_field("memory_bytes", 8589934592)
            .float64_field("load", 86.5)
            .string_field("status", "online")
            .bool_field("healthy", True)
            .time_ns(1609459200000000000)
        )
        self.assertEqual(
            line.build(),
            "metrics,host=server01,region=us-west cpu=42i,memory_bytes=8589934592u,load=86.5,"
            'status="online",healthy=t 1609459200000000000',
        )

    def test_spaces_in_tags(self) -> None:
        line = LineBuilder("system_metrics").tag("server", "app server 1").tag("datacenter", "us west")
        self.assertEqual(
            line.int64_field("count", 1).build(), "system_metrics,server=app\\ server\\ 1,datacenter=us\\ west count=1i"
        )

    def test_equals_signs_in_tags(self) -> None:
        line = LineBuilder("formulas").tag("equation", "y=mx+b").tag("result", "a=b=c").float64_field("value", 3.14159)
        self.assertEqual(line.build(), "formulas,equation=y\\=mx+b,result=a\\=b\\=c value=3.14159")

    def test_backslashes(self) -> None:
        line = LineBuilder("paths").tag("windows_path", "C:\\Program Files\\App").tag("regex", "\\d+\\w+")
        line.string_field("description", "Windows\\Unix paths").int64_field("count", 42)
        self.assertEqual(
            line.build(),
            "paths,windows_path=C:\\\\Program\\ Files\\\\App,regex=\\\\d+\\\\w+ "
            'description="Windows\\\\Unix paths",count=42i',
        )

    def test_a_comma_in_the_measurement(self) -> None:
        self.assertEqual(LineBuilder("complex,measurement").int64_field("x", 1).build(), "complex\\,measurement x=1i")

    def test_quotes_in_strings(self) -> None:
        self.assertEqual(LineBuilder("m").string_field("s", 'a "b"').build(), 'm s="a \\"b\\""')

    def test_integral_floats(self) -> None:
        line = LineBuilder("m").float64_field("a", 2.0).float64_field("b", 3).float64_field("c", 1e-07)
        self.assertEqual(line.build(), "m a=2.0,b=3.0,c=1e-07")

    def test_the_last_value_of_a_key_stays_in_its_place(self) -> None:
        line = LineBuilder("m").tag("a", 1).tag("b", "B").tag("a", 2).bool_field("x", 0)
        self.assertEqual(line.build(), "m,a=2,b=B x=f")


class Errors(unittest.TestCase):
    """What is refused, in which words."""

    def check(self, kind: type[Exception], message: str, call) -> None:
        with self.assertRaises(kind) as caught:
            call()
        self.assertEqual(str(caught.exception), message)

    def test_measurement(self) -> None:
        self.check(InvalidMeasurementError, "Measurement name cannot contain spaces", lambda: LineBuilder("a b"))

    def test_keys(self) -> None:
        line = LineBuilder("m")
        self.check(InvalidKeyError, "tag key cannot be empty", lambda: line.tag("", 1))
        self.check(InvalidKeyError, "tag key 'a b' cannot contain spaces", lambda: line.tag("a b", 1))
        self.check(InvalidKeyError, "field key 'a,b' cannot contain commas", lambda: line.int64_field("a,b", 1))
        self.check(InvalidKeyError, "field key 'a=b' cannot contain equals signs", lambda: line.bool_field("a=b", 1))

    def test_negative_unsigned(self) -> None:
        line = LineBuilder("m")
        self.check(ValueError, "uint64 field 'u' cannot be negative", lambda: line.uint64_field("u", -1))

    def test_no_fields(self) -> None:
        line = LineBuilder("m").tag("t", "v")
        self.check(InvalidLineError, "At least one field is required: m,t=v", line.build)

    def test_what_cannot_be_a_measurement(self) -> None:
        for name, words in (
            ("", "Measurement name cannot be empty"),
            ("#x", "Measurement name '#x' begins with #, which makes a line a comment"),
            ("\ufeffx", "Measurement name cannot begin with a byte order mark, U+FEFF"),
            ("a\nb", "Measurement name cannot contain control characters or surrogates, and has U+000A"),
            ("a\x7f", "Measurement name cannot contain control characters or surrogates, and has U+007F"),
            ("a\ud800", "Measurement name cannot contain control characters or surrogates, and has U+D800"),
            ("n" * 65536, "Measurement name has 65536 bytes, the limit is 65535"),
            ("\u00e9" * 32768, "Measurement name has 65536 bytes, the limit is 65535"),
        ):
            self.check(InvalidMeasurementError, words, lambda name=name: LineBuilder(name))
        self.assertEqual(LineBuilder("n" * 65535).int64_field("x", 1).build(), "n" * 65535 + " x=1i")
        self.assertEqual(LineBuilder("a#\u00a0\u200b").int64_field("x", 1).build(), "a#\u00a0\u200b x=1i")

    def test_what_cannot_be_a_key(self) -> None:
        line = LineBuilder("m").tag("t", 1).int64_field("f", 1)
        reserved = "key 'time' is reserved: the timestamp is set with time_ns()"
        self.check(InvalidKeyError, f"tag {reserved}", lambda: line.tag("time", 1))
        self.check(InvalidKeyError, f"field {reserved}", lambda: line.int64_field("time", 1))
        self.check(InvalidKeyError, "field key 't' is the key of a tag of this line already", lambda: line.int64_field("t", 1))
        self.check(InvalidKeyError, "tag key 'f' is the key of a field of this line already", lambda: line.tag("f", 1))
        control = "key 'a\\nb' cannot contain control characters or surrogates, and has U+000A"
        self.check(InvalidKeyError, f"tag {control}", lambda: line.tag("a\nb", 1))
        self.check(InvalidKeyError, f"field {control}", lambda: line.bool_field("a\nb", 1))

    def test_what_cannot_be_a_tag_value(self) -> None:
        line = LineBuilder("m")
        self.check(ValueError, "tag 'k' has no value, None: leave the tag out", lambda: line.tag("k", None))
        for value, code in (("a\nb", "000A"), ("a\tb", "0009"), ("\x00", "0000"), ("\udfff", "DFFF")):
            words = f"tag 'k': the value cannot contain control characters or surrogates, and has U+{code}"
            self.check(ValueError, words, lambda value=value: line.tag("k", value))
        self.assertEqual(line.tags, {})

    def test_what_is_no_integer_or_out_of_range(self) -> None:
        line = LineBuilder("m")
        for setter, what in (
            (lambda v: line.int64_field("x", v), "int64 field 'x'"),
            (lambda v: line.uint64_field("x", v), "uint64 field 'x'"),
            (line.time_ns, "time_ns()"),
        ):
            for value in (1.5, 2.0, True, None, "a", "", float("nan"), 1j):
                words = f"{what} must be an int, not {type(value).__name__}: {value}"
                self.check(TypeError, words, lambda setter=setter, value=value: setter(value))
        signed = "is out of range, -9223372036854775808 to 9223372036854775807"
        for value in (2**63, -(2**63) - 1, 2**70):
            self.check(ValueError, f"int64 field 'x' {signed}: {value}", lambda value=value: line.int64_field("x", value))
            self.check(ValueError, f"time_ns() {signed}: {value}", lambda value=value: line.time_ns(value))
        words = f"uint64 field 'x' is out of range, 0 to 18446744073709551615: {2**64}"
        self.check(ValueError, words, lambda: line.uint64_field("x", 2**64))
        self.check(ValueError, "uint64 field 'x' cannot be negative", lambda: line.uint64_field("x", -(2**70)))
        self.assertEqual(line.fields, {})

    def test_what_is_no_float_and_no_string(self) -> None:
        line = LineBuilder("m")
        for value in (None, "1.5", b"1"):
            words = f"float64 field 'x' must be a float, not {type(value).__name__}: {value!r}"
            self.check(TypeError, words, lambda value=value: line.float64_field("x", value))
        words = "float64 field 'x' is out of range, it is beyond 1.8e308"
        self.check(ValueError, words, lambda: line.float64_field("x", 10**309))
        words = "string field 'x' cannot contain surrogates, and has U+D83D"
        self.check(ValueError, words, lambda: line.string_field("x", "a\ud83d"))
        words = "string field 'x' has 1048577 bytes, the limit is 1048576"
        self.check(ValueError, words, lambda: line.string_field("x", "n" * 1048577))

    def test_hierarchy(self) -> None:
        for kind in (InvalidMeasurementError, InvalidKeyError, InvalidLineError):
            self.assertTrue(issubclass(kind, InfluxDBError))


class Identity(unittest.TestCase):
    """There is one class of each name."""

    def test_builtin(self) -> None:
        self.assertIs(builtins.LineBuilder, saltus.LineBuilder)
        self.assertIs(builtins.LineBuilder, LineBuilder)


class Quirks(unittest.TestCase):
    """What plugins may rely on though nobody would have wished for it (reference, 1.5)."""

    def field(self, name: str, value: object) -> str:
        line = LineBuilder("m")
        getattr(line, name)("x", value)
        return line.build().removeprefix("m x=")

    def test_what_prints_as_digits_is_an_integer(self) -> None:
        class Level(int):
            pass

        values = ("42", "-7", Level(3), decimal.Decimal(5), 2**63 - 1, -(2**63))
        self.assertEqual([self.field("int64_field", v) for v in values], [f"{v}i" for v in values])
        self.assertEqual([self.field("uint64_field", v) for v in (0, "-0", 2**64 - 1)], ["0u", "0u", f"{2**64 - 1}u"])
        self.assertEqual(LineBuilder("m").bool_field("x", 1).time_ns("42").build(), "m x=t 42")

    def test_numbers_that_are_no_floats_are_written_as_floats(self) -> None:
        values = (decimal.Decimal("1.5"), decimal.Decimal("1E-9"), fractions.Fraction(1, 4), decimal.Decimal("NaN"))
        self.assertEqual([self.field("float64_field", v) for v in values], ["1.5", "1E-9", "0.25", "nan"])

    def test_floats_without_a_line_protocol_form_are_written_as_python_prints_them(self) -> None:
        self.assertEqual([self.field("float64_field", float(v)) for v in ("nan", "inf", "-inf")], ["nan", "inf", "-inf"])

    def test_huge_integral_floats_are_written_in_full(self) -> None:
        self.assertEqual(self.field("float64_field", 1e25), f"{int(1e25)}.0")
        self.assertEqual([self.field("float64_field", v) for v in (0.0, True, 10**20)], ["0.0", "1.0", f"{10**20}.0"])

    def test_a_zero_keeps_its_sign(self) -> None:
        values = (-0.0, 0.0, 0, False, decimal.Decimal("-0"))
        self.assertEqual([self.field("float64_field", v) for v in values], ["-0.0", "0.0", "0.0", "0.0", "-0.0"])

    def test_booleans_are_the_truth_of_anything(self) -> None:
        self.assertEqual([self.field("bool_field", v) for v in ([], "no", None, 2)], ["f", "t", "f", "t"])

    def test_strings_must_be_strings_and_keep_their_newlines(self) -> None:
        self.assertEqual(self.field("string_field", "a\nb\tc"), '"a\nb\tc"')
        with self.assertRaises(AttributeError):
            LineBuilder("m").string_field("x", 5)

    def test_tag_values_are_str_of_anything_and_an_empty_one_is_left_to_the_server(self) -> None:
        line = LineBuilder("m").tag("a", 1.5).tag("b", b"x").tag("c", "").tag("d", float("nan")).int64_field("f", 1)
        self.assertEqual(line.build(), "m,a=1.5,b=b'x',c=,d=nan f=1i")

    def test_backslashes_are_doubled_in_every_name(self) -> None:
        line = LineBuilder("m\\").tag("t\\", "v\\").int64_field("f\\", 1)
        self.assertEqual(line.build(), "m\\\\,t\\\\=v\\\\ f\\\\=1i")

    def test_keys_are_checked_for_emptiness_spaces_commas_and_equals_signs_in_this_order(self) -> None:
        for key, words in ((" ,=", "spaces"), (",=", "commas"), ("=", "equals signs")):
            with self.assertRaisesRegex(InvalidKeyError, f"^tag key '{key}' cannot contain {words}$"):
                LineBuilder("m").tag(key, 1)

    def test_the_timestamp_is_written_as_it_is(self) -> None:
        self.assertEqual(LineBuilder("m").int64_field("x", 1).time_ns(-5).build(), "m x=1i -5")
        self.assertEqual(LineBuilder("m").int64_field("x", 1).time_ns(0).build(), "m x=1i 0")

    def test_setters_return_the_builder(self) -> None:
        line = LineBuilder("m")
        for again in (
            line.tag("t", 1),
            line.uint64_field("a", 1),
            line.int64_field("b", 1),
            line.float64_field("c", 1),
            line.string_field("d", ""),
            line.bool_field("e", 1),
            line.time_ns(1),
        ):
            self.assertIs(again, line)

    def test_attributes_hold_raw_tags_and_encoded_fields_in_order(self) -> None:
        line = LineBuilder("m").tag("t", "a b").int64_field("x", 1).string_field("s", "q")
        self.assertEqual((line.measurement, line._timestamp_ns), ("m", None))
        self.assertEqual((list(line.tags.items()), list(line.fields.items())), ([("t", "a b")], [("x", "1i"), ("s", '"q"')]))
        self.assertEqual((type(line.tags).__name__, type(line.fields).__name__), ("OrderedDict", "OrderedDict"))

    def test_helpers_are_visible_and_nothing_else_is_there(self) -> None:
        line = LineBuilder("m")
        self.assertEqual(line._escape_measurement("a,b c\\"), "a\\,b\\ c\\\\")
        self.assertEqual(line._escape_tag_value("a,b=c d\\"), "a\\,b\\=c\\ d\\\\")
        self.assertEqual(line._escape_field_key("a\\"), "a\\\\")
        line._validate_key("k", "tag")
        public = sorted(name for name in dir(line) if not name.startswith("_"))
        methods = "bool_field build fields float64_field int64_field measurement string_field tag tags time_ns uint64_field"
        self.assertEqual(public, methods.split())
