"""``influxdb3_local.request`` as an object."""

import unittest

from saltus.request import Headers, MultiDict, Request


class TestMultiDict(unittest.TestCase):
    def test_the_last_value_counts_and_all_are_kept(self) -> None:
        params = MultiDict([("a", "1"), ("b", "2"), ("a", "3")])
        self.assertEqual((params["a"], params.get("c"), params.get("c", "x")), ("3", None, "x"))
        self.assertEqual((params.getall("a"), params.getall("c")), (["1", "3"], []))
        self.assertEqual((list(params), len(params), dict(params)), (["a", "b"], 2, {"a": "3", "b": "2"}))
        self.assertEqual(params.pairs(), (("a", "1"), ("b", "2"), ("a", "3")))
        self.assertIn("a", params)
        self.assertNotIn("A", params)
        with self.assertRaises(KeyError):
            params["c"]

    def test_headers_are_found_in_any_case(self) -> None:
        headers = Headers([("content-type", "text/plain"), ("x-a", "1"), ("x-a", "2")])
        self.assertEqual((headers["Content-Type"], headers.getall("X-A")), ("text/plain", ["1", "2"]))
        self.assertIn("CONTENT-TYPE", headers)
        self.assertEqual(repr(Headers([("a", "b")])), "Headers([('a', 'b')])")


class TestRequest(unittest.TestCase):
    def test_bodies_are_read_as_text_and_json(self) -> None:
        request = Request("POST", "p/x", "p", "x", "a=1", [("a", "1")], [("x", "y")], b'{"a": [1]}', "127.0.0.1:9")
        self.assertEqual((request.json(), request.text()), ({"a": [1]}, '{"a": [1]}'))
        self.assertEqual((request.query["a"], request.headers["X"], request.tail), ("1", "y", "x"))
        self.assertEqual(repr(request), "Request(POST 'p/x', 10 bytes)")
        with self.assertRaises(UnicodeDecodeError):
            Request("POST", "p", "p", "", "", [], [], b"\xff", None).text()
