"""``LineBuilder`` against the outputs and the errors of InfluxDB 3."""

import builtins
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
        line = LineBuilder("m").tag("a", 1).tag("b", None).tag("a", 2).bool_field("x", 0)
        self.assertEqual(line.build(), "m,a=2,b=None x=f")


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

    def test_hierarchy(self) -> None:
        for kind in (InvalidMeasurementError, InvalidKeyError, InvalidLineError):
            self.assertTrue(issubclass(kind, InfluxDBError))


class Identity(unittest.TestCase):
    """There is one class of each name."""

    def test_builtin(self) -> None:
        self.assertIs(builtins.LineBuilder, saltus.LineBuilder)
        self.assertIs(builtins.LineBuilder, LineBuilder)
