"""Line protocol, read as the server reads it: the same lines are accepted, and refused with the same words.

A slow and plain reader for tests: it goes through a text character by character. It is written after the oracle of the
server's own parser (``core/src/line_protocol/oracle.rs``), and a test compares the two through a running server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional, Union

Value = Union[str, int, float, bool]
# A key, the kind of its value, and the value.
_Cell = tuple[str, str, Value]

#: A table's columns and their types, as error texts name them.
Schema = dict[str, str]

TAG = "iox::column_type::tag"
INTEGER = "iox::column_type::field::integer"
UINTEGER = "iox::column_type::field::uinteger"
FLOAT = "iox::column_type::field::float"
STRING = "iox::column_type::field::string"
BOOLEAN = "iox::column_type::field::boolean"

_COLUMNS_MAX = 4096
_NAME_BYTES_MAX = 65_535
_TEXT_BYTES_MAX = 1 << 20
_I64_MIN, _I64_MAX, _U64_MAX = -(1 << 63), (1 << 63) - 1, (1 << 64) - 1
_BLANKS = " \t"
_DIGITS = frozenset("0123456789")
# Seconds, milliseconds, microseconds, nanoseconds: factor to nanoseconds, and the name in error texts.
_PRECISIONS = {
    "s": (1_000_000_000, "Second"),
    "ms": (1_000_000, "Millisecond"),
    "us": (1_000, "Microsecond"),
    "ns": (1, "Nanosecond"),
}


class LineProtocolError(ValueError):
    """A line that the server would refuse: ``number`` counts lines that are neither blank nor comments, from 1."""

    def __init__(self, number: int, message: str, text: str) -> None:
        super().__init__(f"{message} (line {number}: {text!r})")
        self.number = number
        self.message = message
        self.text = text


@dataclass
class Line:
    """One line that was accepted. ``time`` is in nanoseconds, ``None`` if the line had no timestamp."""

    table: str
    tags: dict[str, str]
    fields: dict[str, Value]
    kinds: dict[str, str] = field(repr=False)
    time: Optional[int]
    number: int = field(repr=False, compare=False)


def read(
    body: str, precision: str = "ns", schemas: Optional[Mapping[str, Schema]] = None
) -> tuple[list[Line], list[LineProtocolError]]:
    """The accepted and the refused lines of a request. ``schemas`` are the tables that are there already."""
    if precision != "auto" and precision not in _PRECISIONS:
        raise ValueError(f"precision must be auto, s, ms, us or ns, not {precision!r}")
    known = {table: dict(columns) for table, columns in (schemas or {}).items()}
    lines, refused = [], []
    number = 0
    for raw in _split(body):
        text = raw.lstrip(_BLANKS)
        if not text or text.startswith("#"):
            continue
        number += 1
        try:
            read = _Reader(text, number, len(raw) - len(text)).read()
            lines.append(_admit(number, *read, precision, known))
        except _Refused as why:
            refused.append(LineProtocolError(number, str(why), raw))
    return lines, refused


class _Refused(Exception):
    """A line's fault."""


def _split(body: str) -> list[str]:
    """Lines without their ends. A line end inside a string is text; comments end at the first line end."""
    lines: list[str] = []
    line: list[str] = []
    started = comment = behind_space = quoted = False
    at = 0
    while at < len(body):
        c = body[at]
        if c == "\n" and not quoted:
            lines.append("".join(line))
            line, started, comment, behind_space = [], False, False, False
        elif c == "\\" and not comment and at + 1 < len(body) and (quoted or body[at + 1] != "\n"):
            started = True
            line.append(c)
            at += 1
            line.append(body[at])
        else:
            if quoted:
                quoted = c != '"'
            elif not comment:
                quoted = c == '"' and behind_space and at > 0 and body[at - 1] == "=" and not _escaped(line)
                behind_space = behind_space or (c == " " and started)
            if not started and c not in _BLANKS:
                started, comment = True, c == "#"
            line.append(c)
        at += 1
    lines.append("".join(line))
    return [line[:-1] if line.endswith("\r") else line for line in lines]


def _escaped(line: list[str]) -> bool:
    """Whether the last character of ``line`` is behind a backslash that escapes it."""
    escaped = backslash = False
    for c in line:
        escaped, backslash = backslash, c == "\\" and not backslash
    return escaped


class _Reader:
    """Reads one line from left to right."""

    def __init__(self, text: str, number: int, leading: int) -> None:
        self.text = text
        self.number = number
        self.leading = leading
        self.at = 0

    def read(self) -> tuple[str, list[_Cell], list[_Cell], Optional[int]]:
        table = self.name(",", "measurement", ", \\")
        if table is None:
            raise _Refused("Invalid measurement was provided")
        tags = self.tags()
        if self.peek() != " ":
            raise _Refused("Expected at least one space character, got end of input")
        self.spaces()
        fields = self.fields()
        time = self.time()
        return table, tags, fields, time

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def cut(self, start: int) -> str:
        rest = self.text[start:]
        return rest[:10] + "..." if len(rest.encode()) > 10 else rest

    def or_end(self, start: int) -> str:
        return "end of input" if start >= len(self.text) else f"`{self.cut(start)}`"

    def place(self, at: int) -> str:
        return f"line {self.number}, column {self.leading + at + 1}"

    def trailing(self, start: int) -> str:
        return f"Could not parse entire line. Found trailing content: `{self.cut(start)}`"

    def spaces(self) -> None:
        while self.peek() == " ":
            self.at += 1

    def control(self, c: str, at: int, what: str) -> None:
        if c < " " or c == "\x7f":
            raise _Refused(f"Control character U+{ord(c):04X} is not allowed in a {what} ({self.place(at)})")

    def name(self, stop: str, what: str, resolved: str) -> Optional[str]:
        """A name up to ``stop`` or a space; ``resolved`` are the characters that a backslash escapes."""
        start = self.at
        text: list[str] = []
        while (c := self.peek()) not in ("", " ", stop):
            self.control(c, self.at, what)
            self.at += 1
            if c == "\\" and (following := self.peek()):
                self.control(following, self.at, what)
                self.at += 1
                text.append(following if following in resolved else c + following)
            else:
                text.append(c)
        if self.at == start:
            return None
        name = "".join(text)
        if name.endswith("\\"):
            raise _Refused("Measurements, tag keys and values, and field keys may not end with a backslash")
        if len(name.encode()) > _NAME_BYTES_MAX:
            raise _Refused("String is greater than 64KB")
        return name

    def tags(self) -> list[_Cell]:
        tags: list[_Cell] = []
        first = self.at + 1
        while self.peek() == ",":
            self.at += 1
            at = self.at
            key = self.name("=", "tag key", ",= \\")
            if key is None:
                raise _Refused(f"Expected tag key, got {self.or_end(at)}")
            if self.peek() != "=":
                raise _Refused(f"Tag set malformed: could not find equals sign in `{self.cut(first)}`")
            self.at += 1
            at = self.at
            value = self.name(",", "tag value", ",= \\")
            if value is None:
                raise _Refused(f"Expected tag value, got {self.or_end(at)}")
            tags.append((key, TAG, value))
        return tags

    def fields(self) -> list[_Cell]:
        fields: list[_Cell] = []
        while True:
            at = self.at
            field = self.field()
            if field is not None:
                fields.append(field)
            elif not fields:
                raise _Refused("No fields were provided")
            else:
                raise _Refused(self.trailing(at if len(fields) == 1 else at - 1))
            if self.peek() != ",":
                return fields
            self.at += 1
            if self.peek() in ("", " "):
                raise _Refused(f"{self.trailing(self.at - 1)} ({self.place(self.at - 1)})")

    def field(self) -> Optional[_Cell]:
        key = self.name("=", "field key", ",= \\")
        if key is None or self.peek() != "=":
            return None
        self.at += 1
        first = self.peek()
        if first == '"':
            found = self.string()
        elif first and first in "tTfF":
            found = self.boolean()
        else:
            found = self.numeric()
        return None if found is None else (key, *found)

    def string(self) -> Optional[tuple[str, Value]]:
        self.at += 1
        text: list[str] = []
        while c := self.peek():
            self.at += 1
            if c == '"':
                break
            if c == "\\" and self.peek() in ('"', "\\"):
                c = self.peek()
                self.at += 1
            text.append(c)
        else:
            return None
        value = "".join(text)
        if len(value.encode()) > _TEXT_BYTES_MAX:
            raise _Refused("String is greater than 1MB")
        return STRING, value

    def boolean(self) -> tuple[str, Value]:
        for word in ("true", "True", "TRUE", "false", "False", "FALSE"):
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return BOOLEAN, word.lower() == "true"
        value = self.peek() in "tT"
        self.at += 1
        return BOOLEAN, value

    def digits(self) -> str:
        start = self.at
        while self.peek() in _DIGITS:
            self.at += 1
        return self.text[start : self.at]

    def numeric(self) -> Optional[tuple[str, Value]]:
        start = self.at
        if self.peek() == "-":
            self.at += 1
        whole = self.digits()
        text = self.text[start : self.at]
        if whole and self.peek() == "i":
            self.at += 1
            return INTEGER, _integer(text, _I64_MIN, _I64_MAX, "integer")
        if whole and self.peek() == "u" and not text.startswith("-"):
            self.at += 1
            return UINTEGER, _integer(text, 0, _U64_MAX, "unsigned integer")
        fraction = ""
        if self.peek() == ".":
            self.at += 1
            fraction = self.digits()
        if not whole and not fraction:
            return None
        if self.peek() in ("e", "E"):
            before = self.at
            self.at += 1
            if self.peek() in ("+", "-"):
                self.at += 1
            if not self.digits():
                self.at = before
        text = self.text[start : self.at]
        value = float(text)
        if math.isinf(value):
            raise _Refused(f"Unable to parse floating-point value `{text}` ({self.place(start)})")
        return FLOAT, value

    def time(self) -> Optional[int]:
        behind_fields = self.at
        self.spaces()
        if not self.peek():
            return None
        start = self.at
        digits = ""
        if self.at > behind_fields:
            if self.peek() == "-":
                self.at += 1
            digits = self.digits()
        if not digits:
            raise _Refused(self.trailing(behind_fields))
        time = _integer(self.text[start : self.at], _I64_MIN, _I64_MAX, "timestamp")
        self.spaces()
        if self.peek():
            raise _Refused(self.trailing(self.at))
        return time


def _integer(text: str, lowest: int, highest: int, what: str) -> int:
    significant = text.lstrip("-").lstrip("0") or "0"
    # int() itself refuses thousands of digits.
    value = int(significant) if len(significant) <= 20 else highest + 1
    if text.startswith("-"):
        value = -value if len(significant) <= 20 else lowest - 1
    if not lowest <= value <= highest:
        raise _Refused(f"Unable to parse {what} value `{text}`")
    return value


def _admit(
    number: int,
    table: str,
    tags: list[_Cell],
    fields: list[_Cell],
    time: Optional[int],
    precision: str,
    schemas: dict[str, Schema],
) -> Line:
    """What the table says to a line that is well-formed, from left to right."""
    columns = dict(schemas.get(table, {}))
    line = Line(table, {}, {}, {}, None, number)
    for key, _, value in tags:
        if key in line.tags:
            raise _Refused(f"Must not contain duplicate tags, but `{key}` was repeated")
        line.tags[key] = str(value)
    for at, (key, got, value) in enumerate(tags + fields):
        if at >= len(tags):
            if key in line.fields:
                raise _Refused(f"invalid line protocol - multiple instances of '{key}' field found")
            line.fields[key] = value
        if key in ("time", "__chunk_order"):
            raise _Refused(f"'{key}' is a reserved column")
        if key not in columns and len(columns) >= _COLUMNS_MAX:
            raise _Refused(f"Update to schema would exceed number of columns per table limit of {_COLUMNS_MAX} columns")
        expected = columns.setdefault(key, got)
        if expected != got:
            raise _Refused(f"invalid column type for column '{key}', expected {expected}, got {got}")
        line.kinds[key] = got
    if time is not None:
        line.time = _scaled(time, precision)
    schemas[table] = columns
    return line


def _scaled(time: int, precision: str) -> int:
    factor, name = _PRECISIONS.get(precision, (1, "Auto"))
    if precision == "auto":
        billions = abs(time) // 1_000_000_000
        factor = 10**9 if billions < 5 else 10**6 if billions < 5_000 else 10**3 if billions < 5_000_000 else 1
    scaled = time * factor
    if not _I64_MIN <= scaled <= _I64_MAX:
        raise _Refused(f"timestamp, {time}, out of range for precision: {name}")
    return scaled
