"""What request plugins return, rule by rule (reference, 1.7)."""

import datetime
import decimal
import unittest
from typing import Any

from saltus._response import ResponseError, respond

HTML = ("Content-Type", "text/html")
JSON = ("Content-Type", "application/json")
TEXT = ("Content-Type", "text/plain")
BYTES = ("Content-Type", "application/octet-stream")
ORDER = "(body, status, headers), (body, status) or (body, headers) is expected"


class Stream:
    """Takes what is streamed, as far as it is told to."""

    def __init__(self, opens: bool = True, takes: int = 1000) -> None:
        self.opens = opens
        self.takes = takes
        self.head: Any = None
        self.pieces: list[bytes] = []
        self.waits = 1

    def open(self) -> bool:
        return self.opens

    def begin(self, status: int, headers: list[tuple[str, str]]) -> bool:
        self.head = (status, headers)
        return self.takes > 0

    def send(self, piece: bytes) -> bool | None:
        if self.waits:
            self.waits -= 1
            return False
        if len(self.pieces) >= self.takes:
            return None
        self.pieces.append(piece)
        return True

    def check(self, length: int) -> None:
        if length > 1000:
            raise ValueError(length)


class Flask:
    """What InfluxDB 3 takes for a response of Flask."""

    def __init__(self, data: Any, **headers: Any) -> None:
        self.status_code = 202
        self.headers = headers
        self.data = data

    def __flask_response__(self) -> bool:
        return True

    def get_data(self) -> Any:
        return self.data


class Werkzeug:
    """As much of a real response of Flask as counts: bytes, and headers that may come twice."""

    status_code = 203

    class headers:
        @staticmethod
        def items() -> list[tuple[str, str]]:
            return [("Content-Type", "text/csv"), ("Set-Cookie", "a"), ("Set-Cookie", "b")]

    def get_data(self) -> bytes:
        return b"a,b"


class TestWhole(unittest.TestCase):
    def test_the_table_of_returns(self) -> None:
        class Text:
            def __str__(self) -> str:
                return "shown"

        class SubDict(dict[str, int]):
            pass

        table: list[tuple[Any, tuple[int, list[tuple[str, str]], bytes]]] = [
            ("h\u00e4", (200, [HTML], "h\u00e4".encode())),
            ({"a": 1}, (200, [JSON], b'{"a": 1}')),
            ([1, "x"], (200, [JSON], b'[1, "x"]')),
            (SubDict(a=1), (200, [JSON], b'{"a": 1}')),
            (("x",), (200, [HTML], b"x")),
            (("x", 201), (201, [HTML], b"x")),
            (({"a": 1}, 404), (404, [JSON], b'{"a": 1}')),
            (("x", {"X-A": "1"}), (200, [HTML, ("X-A", "1")], b"x")),
            (("x", 201, {"X-A": "1"}), (201, [HTML, ("X-A", "1")], b"x")),
            (("x", None), (200, [HTML], b"x")),
            (("x", "201"), (200, [HTML], b"x")),
            (("x", None, {"X-A": "1"}), (200, [HTML, ("X-A", "1")], b"x")),
            ((1.5, 200), (200, [TEXT], b"1.5")),
            ((None, 200), (200, [TEXT], b"None")),
            ((Text(), 200), (200, [TEXT], b"shown")),
            (("x", 200, {"Content-Type": "text/csv"}), (200, [("Content-Type", "text/csv")], b"x")),
            (("x", 200, {"content-type": "text/csv"}), (200, [HTML, ("content-type", "text/csv")], b"x")),
            (("x", True), (500, [HTML], b"x")),
            (("x", -1), (500, [HTML], b"x")),
            (("x", 70_000), (500, [HTML], b"x")),
            (("x", 99), (500, [HTML], b"x")),
            (("x", 1000), (500, [HTML], b"x")),
            (("x", 999), (999, [HTML], b"x")),
            ((), (200, [HTML], b"")),
            (("a", "b", 1, "c"), (200, [HTML], b"abc")),
            ({"a"}, (200, [HTML], b"a")),
            (Flask("x", A="1"), (202, [("A", "1")], b"x")),
            # Beyond InfluxDB 3.
            (b"\xff\x00", (200, [BYTES], b"\xff\x00")),
            (bytearray(b"x"), (200, [BYTES], b"x")),
            (memoryview(b"x"), (200, [BYTES], b"x")),
            ((b"\xff", 201), (201, [BYTES], b"\xff")),
            ((b"\xff", 200, {"Content-Type": "image/png"}), (200, [("Content-Type", "image/png")], b"\xff")),
            ((404,), (404, [], b"")),
            ((7,), (200, [TEXT], b"7")),
            (("x", 200, {"Set-Cookie": ["a", "b"]}), (200, [HTML, ("Set-Cookie", "a"), ("Set-Cookie", "b")], b"x")),
            (Flask(b"\xff"), (202, [], b"\xff")),
            (Werkzeug(), (203, [("Content-Type", "text/csv"), ("Set-Cookie", "a"), ("Set-Cookie", "b")], b"a,b")),
            ((b"a", b"\xff", "c", 1), (200, [HTML], b"a\xffc")),
        ]
        for returned, answer in table:
            with self.subTest(returned=returned):
                self.assertEqual(respond(returned, Stream()), answer)

    def test_what_is_no_answer(self) -> None:
        unsupported = "Unsupported return type from Python function"
        table: list[tuple[Any, str]] = [
            (None, unsupported),
            (1, unsupported),
            (1.5, unsupported),
            (object(), unsupported),
            (("x", 200, "X-A: 1"), f"expected a dictionary in header item: {ORDER}, got (str, int, str)"),
            (("x", 200, None), f"expected a dictionary in header item: {ORDER}, got (str, int, NoneType)"),
            ((200, {"X-A": "1"}, "x"), f"{ORDER}, got (int, dict, str)"),
            (({"X-A": "1"}, 200, "x"), f"expected a dictionary in header item: {ORDER}, got (dict, int, str)"),
            (("x", {"X-A": "1"}, 200), f"expected a dictionary in header item: {ORDER}, got (str, dict, int)"),
            ((404, "not found"), f"{ORDER}, got (int, str)"),
            ((404, {"error": "x"}), f"{ORDER}, got (int, dict)"),
            ((200, "x", {"X-A": "1"}), f"{ORDER}, got (int, str, dict)"),
            (("x", {"X-A": 1}), "TypeError: header 'X-A' must be str or a list of str, not int"),
            (("x", {1: "x"}), "TypeError: the name of a header must be str, not int"),
            (
                {"a": object()},
                "TypeError: Object of type object is not JSON serializable: result.a; use str(...), or a dict of what is in it",
            ),
            (Flask(1), "TypeError: the response's data must be str or bytes, not int"),
        ]
        for returned, text in table:
            with self.subTest(returned=returned), self.assertRaises(ResponseError) as raised:
                respond(returned, Stream())
            self.assertEqual(str(raised.exception), text)

    def test_what_json_does_not_have(self) -> None:
        nan, inf, when = float("nan"), float("inf"), datetime.datetime(2026, 1, 1)

        class Float(float):
            """As that of numpy."""

        circle: list[Any] = []
        circle.append({"again": circle})
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        table: list[tuple[Any, str]] = [
            ({"mean": nan}, '{"mean": null}'),
            ({"a": {"b": [1, (nan, inf, -inf)]}}, '{"a": {"b": [1, [null, null, null]]}}'),
            ([Float("nan"), Float(1.5)], "[null, 1.5]"),
            ([{"time": 1, "v": nan}], '[{"time": 1, "v": null}]'),
            ({nan: 1, None: 2, True: 3, 4: 4}, '{"NaN": 1, "null": 2, "true": 3, "4": 4}'),
            ([2**100, "\ud800"], f'[{2**100}, "\\ud800"]'),
            ({"items": [1, 2, 3, {"when": when}]}, "!result.items[3].when; use .isoformat()"),
            ({"items": [nan, {"when": when}]}, "!result.items[1].when; use .isoformat()"),
            ({"a b": {1, 2}}, "!result['a b']; use list(...) or sorted(...)"),
            ([b"x"], "!result[0]; use .decode() or base64"),
            ([decimal.Decimal("1.5")], "!result[0]; use float(...) or str(...)"),
            ({"a": {(1, 2): 3}}, "!keys must be str, int, float, bool or None, not tuple: (1, 2) in result.a"),
            (circle, "!Circular reference detected: result[0].again is in itself"),
            (deep, "!more than 500 deep"),
            ({"n": [10**5000]}, "!result.n[0]: Exceeds the limit"),
        ]
        for at, (returned, expected) in enumerate(table):
            for value in (returned, (returned, 200)):
                with self.subTest(row=at):
                    if expected.startswith("!"):
                        with self.assertRaises(ResponseError) as raised:
                            respond(value, Stream())
                        self.assertIn(expected[1:], str(raised.exception))
                    else:
                        self.assertEqual(respond(value, Stream()), (200, [JSON], expected.encode()))

    def test_a_body_that_is_too_long_is_refused(self) -> None:
        with self.assertRaises(ValueError):
            respond("x" * 1001, Stream())
        with self.assertRaises(ValueError):
            respond(iter(["x" * 600, "x" * 600]), Stream(opens=False))


class TestStreamed(unittest.TestCase):
    def test_pieces_go_one_by_one_and_wait_for_room(self) -> None:
        stream = Stream()
        self.assertIsNone(respond((piece for piece in ["a", b"\xff", 7, "", "c"]), stream))
        self.assertEqual((stream.head, stream.pieces), ((200, [HTML]), [b"a", b"\xff", b"c"]))

    def test_an_iterator_in_a_tuple_has_status_and_headers(self) -> None:
        stream = Stream()
        headers = {"Content-Type": "text/event-stream"}
        self.assertIsNone(respond((iter(["a"]), 206, headers), stream))
        self.assertEqual(stream.head, (206, [("Content-Type", "text/event-stream")]))

    def test_nothing_is_sent_before_the_first_piece(self) -> None:
        stream = Stream()
        self.assertEqual(respond(iter([]), stream), (200, [HTML], b""))

        def fails() -> Any:
            yield ""
            raise KeyError("early")

        with self.assertRaises(KeyError):
            respond(fails(), stream)
        self.assertIsNone(stream.head)

    def test_a_generator_whose_reader_has_gone_is_closed(self) -> None:
        closed: list[str] = []

        def pieces() -> Any:
            try:
                while True:
                    yield "x"
            finally:
                closed.append("closed")

        for takes in (0, 2):
            stream = Stream(takes=takes)
            self.assertIsNone(respond(pieces(), stream))
            self.assertEqual(len(stream.pieces), takes)
        self.assertEqual(closed, ["closed"] * 2)

    def test_where_nothing_can_be_streamed_it_is_collected(self) -> None:
        self.assertEqual(respond(iter(["a", "b"]), Stream(opens=False)), (200, [HTML], b"ab"))
