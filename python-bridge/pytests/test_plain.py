"""What may move between interpreters."""

from __future__ import annotations

import unittest
from collections import OrderedDict
from typing import Any

from saltus._plain import NotPlain, copy, dump, dump_what_can_be, load, sweep

PLAIN: list[Any] = [
    None,
    True,
    1 << 100,
    1.5,
    2j,
    "text",
    b"bytes",
    (1, (2, "x")),
    [1, [2, [3]]],
    {"a": {1, 2}, 3: frozenset({4}), (5, 6): []},
    [(1,), (1,), "same", "same"],
]


class _Int(int):
    pass


class Plain(unittest.TestCase):
    def test_copies_are_equal_and_of_the_same_types_and_share_nothing_that_can_change(self) -> None:
        for value in PLAIN:
            copied = copy(value, 100)
            self.assertEqual(repr(copied), repr(value))
            if isinstance(value, (list, dict)):
                self.assertIsNot(copied, value)
        nested = [[1]]
        copy(nested, 10)[0].append(2)
        self.assertEqual(nested, [[1]])

    def test_what_has_more_than_its_value_is_refused(self) -> None:
        shared = [1]
        itself: list[Any] = []
        itself.append(itself)
        for value in (object(), _Int(3), OrderedDict(a=1), bytearray(b"x"), memoryview(b"x"), [shared, shared], itself, len, int):
            with self.assertRaises(NotPlain, msg=repr(value)):
                copy(value, 100)

    def test_items_are_counted_at_every_depth(self) -> None:
        copy([[1] * 5, [2] * 3], 10)
        with self.assertRaises(NotPlain):
            copy([[1] * 5, [2] * 4], 10)

    def test_a_space_survives_and_says_what_cannot(self) -> None:
        space = {str(at): (value, None) for at, value in enumerate(PLAIN)}
        self.assertEqual(load(dump(space, 1000)), space)
        shared = [1]
        data, lost = dump_what_can_be({"a": (shared, 5), "b": ({"c": shared}, None), "c": (object(), None)})
        kept = load(data)
        self.assertEqual(lost, ["c"])
        self.assertEqual(kept, {"a": ([1], 5), "b": ({"c": [1]}, None)})
        self.assertIs(kept["a"][0], kept["b"][0]["c"])


class Sweep(unittest.TestCase):
    """What has expired goes, whoever's it is."""

    def test_the_sweep_removes_what_has_expired_and_spaces_that_are_empty(self) -> None:
        def spaces() -> dict[int, dict[str, tuple[object, int | None]]]:
            return {1: {"old": (1, 5), "new": (2, 6), "kept": (3, None)}, 2: {"old": (1, 4)}, -1: {"old": (1, 5, 7, True)}}

        swept = spaces()
        sweep(swept, 5, None)
        self.assertEqual(swept, {1: {"new": (2, 6), "kept": (3, None)}})
        swept = spaces()
        sweep(swept, 5, 2)
        self.assertEqual((swept[2], len(swept[1])), ({}, 3))
        sweep(swept, 5, 9)
