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
_QUOTED_MAX = 64
_MARK = "\ufeff"
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

    def __init__(self, number: int, message: str, text: str, by_table: bool = False) -> None:
        super().__init__(f"{message} (line {number}: {text!r})")
        self.number = number
        self.message = message
        self.text = text
        #: The table refuses it: a column has another type, or there are too many.
        self.by_table = by_table


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
    for whole in _split(body):
        raw = _without_marks(whole)
        text = raw.lstrip(_BLANKS)
        if not text or text.startswith("#"):
            continue
        number += 1
        try:
            read = _Reader(text, number, len(raw) - len(text)).read()
            lines.append(_admit(number, *read, precision, known))
        except _Refused as why:
            refused.append(LineProtocolError(number, str(why), raw, isinstance(why, _RefusedByTable)))
    return lines, refused


class _Refused(Exception):
    """A line's fault."""


class _RefusedByTable(_Refused):
    """The line could be written to another table."""


def _without_marks(line: str) -> str:
    """A line behind the byte order marks that it begins with."""
    while (text := line.lstrip(_BLANKS)).startswith(_MARK):
        line = text[1:]
    return line


def look_at(text: str) -> tuple[bool, bool]:
    """Whether a text has a line at all, and whether a string in it does not end and would swallow what is put behind it."""
    lines = _split(text)
    any_line = any((line := _without_marks(raw).lstrip(_BLANKS)) and not line.startswith("#") for raw in lines)
    return any_line, len(_split(text + "\n")) == len(lines)


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
            if not started and c not in _BLANKS and c != _MARK:
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
            raise self.refused("Invalid measurement was provided: the line does not begin with a name", 0)
        tags = self.tags()
        if self.peek() != " ":
            nothing = "Expected at least one space character, got end of input: the line has no fields"
            raise self.refused(nothing, len(self.text))
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

    def column(self, at: int) -> str:
        ends = self.text.count("\n", 0, at)
        behind = "" if not ends else f", behind {'a line end in a string' if ends == 1 else f'{ends} line ends in strings'}"
        return f"column {self.leading + at + 1}{behind}"

    def refused(self, words: str, at: int) -> _Refused:
        """With the column of what the words speak of."""
        return _Refused(f"{words} ({self.column(at)})")

    def quoted(self, start: int, end: int) -> str:
        text = self.text[start:end].encode()
        return self.text[start:end] if len(text) <= _QUOTED_MAX else text[:_QUOTED_MAX].decode(errors="ignore") + "..."

    def why(self) -> str:
        """What is wrong with the fields or the timestamp, behind InfluxDB's words."""
        found = _Explainer(self.text, self.number, self.leading).find()
        if found is None:
            return ""
        words, at = found
        return f": {words}" if at is None else f": {words} ({self.column(at)})"

    def trailing(self, start: int) -> str:
        return f"Could not parse entire line. Found trailing content: `{self.cut(start)}`"

    def spaces(self) -> None:
        while self.peek() == " ":
            self.at += 1

    def control(self, c: str, at: int, what: str) -> None:
        if c < " " or c == "\x7f":
            hint = ": the parts of a line are separated by spaces" if c == "\t" else ""
            raise self.refused(f"Control character U+{ord(c):04X} is not allowed in a {what}{hint}", at)

    def name(self, stop: str, what: str, resolved: str) -> Optional[str]:
        """A name up to ``stop`` or a space; ``resolved`` are the characters that a backslash escapes."""
        start = self.at
        text: list[str] = []
        while (c := self.peek()) not in ("", " ", ",", stop):
            self.control(c, self.at, what)
            self.at += 1
            if c != "\\":
                text.append(c)
                continue
            following = self.peek()
            if not following:
                nothing = "Measurements, tag keys and values, and field keys may not end with a backslash that escapes nothing"
                raise self.refused(f"{nothing}: write it twice", self.at - 1)
            self.control(following, self.at, what)
            self.at += 1
            text.append(following if following in resolved else c + following)
        if self.at == start:
            return None
        name = "".join(text)
        length = len(name.encode())
        if length > _NAME_BYTES_MAX:
            much = f"the {what} has {length} bytes, the limit is {_NAME_BYTES_MAX}"
            raise self.refused(f"String is greater than 64KB: {much}", start)
        return name

    def tags(self) -> list[_Cell]:
        tags: list[_Cell] = []
        first = self.at + 1
        while self.peek() == ",":
            self.at += 1
            at = self.at
            key = self.name("=", "tag key", ",= \\")
            if key is None:
                nothing = "a tag without a name" if self.peek() == "=" else "a comma without a tag"
                raise self.refused(f"Expected tag key, got {self.or_end(at)}: {nothing}", at)
            nothing = f"tag `{self.quoted(at, self.at)}` has no value"
            if self.peek() != "=":
                malformed = f"Tag set malformed: could not find equals sign in `{self.cut(first)}`"
                raise self.refused(f"{malformed}: {nothing}", at)
            self.at += 1
            value = self.name(",", "tag value", ",= \\")
            if value is None:
                raise self.refused(f"Expected tag value, got {self.or_end(self.at)}: {nothing}", at)
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
                raise _Refused("No fields were provided" + self.why())
            else:
                raise _Refused(self.trailing(at if len(fields) == 1 else at - 1) + self.why())
            if self.peek() != ",":
                return fields
            self.at += 1
            if self.peek() in ("", " "):
                raise _Refused(self.trailing(self.at - 1) + self.why())

    def field(self) -> Optional[_Cell]:
        key = self.name("=", "field key", ",= \\")
        if key is None or self.peek() != "=":
            return None
        self.at += 1
        found = self.value()
        return None if found is None else (key, *found)

    def value(self) -> Optional[tuple[str, Value]]:
        first = self.peek()
        if first == '"':
            return self.string()
        return self.boolean() if first and first in "tTfF" else self.numeric()

    def string(self) -> Optional[tuple[str, Value]]:
        start = self.at
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
        length = len(value.encode())
        if length > _TEXT_BYTES_MAX:
            raise self.refused(
                f"String is greater than 1MB: it has {length} bytes, the limit is {_TEXT_BYTES_MAX}", start
            )
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
            return INTEGER, self.integer(start, self.at - 1, _I64_MIN, _I64_MAX, "integer")
        if whole and self.peek() == "u" and not text.startswith("-"):
            self.at += 1
            return UINTEGER, self.integer(start, self.at - 1, 0, _U64_MAX, "unsigned integer")
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
            most = "1.7976931348623157e308"
            unable = f"Unable to parse floating-point value `{self.quoted(start, self.at)}`"
            raise self.refused(f"{unable}: floats are -{most} to {most}", start)
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
            raise _Refused(self.trailing(behind_fields) + self.why())
        time = self.integer(start, self.at, _I64_MIN, _I64_MAX, "timestamp")
        self.spaces()
        if self.peek():
            raise _Refused(self.trailing(self.at) + self.why())
        return time

    def integer(self, start: int, end: int, lowest: int, highest: int, what: str) -> int:
        value = _integer(self.text[start:end], lowest, highest)
        if value is None:
            unable = f"Unable to parse {what} value `{self.quoted(start, end)}`"
            raise self.refused(f"{unable}: {what}s are {lowest} to {highest}", start)
        return value


class _Explainer(_Reader):
    """Reads a refused line once more up to what has no place in it (``core/src/line_protocol/explain.rs``)."""

    def find(self) -> Optional[tuple[str, Optional[int]]]:
        """The words, and where what they speak of begins if they do not say it themselves."""
        try:
            self.name(",", "measurement", ", \\")
            self.tags()
            self.spaces()
            after_comma = False
            while True:
                found = self.of_field(after_comma)
                if found is not None:
                    return found
                if self.peek() != ",":
                    return self.of_time()
                self.at += 1
                after_comma = True
        except _Refused:
            return None

    def of_field(self, after_comma: bool) -> Optional[tuple[str, Optional[int]]]:
        at = self.at
        if self.name("=", "field key", ",= \\") is None:
            if self.peek() == "=":
                return "a field without a name", at
            if self.peek() == ",":
                return "a comma without a field in front of it", at
            return ("a comma without a field behind it", at - 1) if after_comma else ("the line ends behind its tags", at)
        name = self.quoted(at, self.at)
        following = self.text[self.at + 1 : self.at + 2]
        if self.peek() != "=" or following in ("", ",", " "):
            return f"field `{name}` has no value", at
        self.at += 1
        start = self.at
        found = self.value()
        if found is None and following == '"':
            rest = self.text[start:]
            return self.open_string(rest, start), None
        if found is None:
            self.at = start
        elif self.peek() in ("", " ", ","):
            return None
        read = self.at
        while self.peek() not in ("", " ", ","):
            self.at += 1
        return self.of_word(start, read, self.at), start

    def open_string(self, rest: str, start: int) -> str:
        # What belongs to the line is all of the request, but for its last line end.
        length, lines = len(rest.encode()), 1 + rest.removesuffix("\n").count("\n")
        much = f"{length} bytes in {'1 line' if lines == 1 else f'{lines} lines'}"
        return (
            f"the string that begins in {self.column(start)} does not end; all that is behind it, {much}, is taken for its text "
            "and refused with it"
        )

    def of_time(self) -> Optional[tuple[str, Optional[int]]]:
        self.spaces()
        start = self.at
        while self.peek() not in ("", " "):
            self.at += 1
        word = self.text[start : self.at]
        if word.removeprefix("-") and all(c in _DIGITS for c in word.removeprefix("-")):
            self.spaces()
            return ("nothing may stand behind the timestamp", self.at) if self.peek() else None
        shown = self.quoted(start, self.at)
        if "=" in word or "," in word:
            return f"`{shown}` is no timestamp: fields are separated by a comma without a space", start
        return f"`{shown}` is no timestamp, which is a whole number in the unit of the precision", start

    def of_word(self, start: int, read: int, end: int) -> str:
        shown, lower = self.quoted(start, end), self.text[start:end].lower()
        unsigned = lower.lstrip("+-")
        if lower.startswith('"'):
            return f'`{self.quoted(read, end)}` stands behind the end of a string: a double quote in a string is written \\"'
        if unsigned in ("nan", "inf", "infinity"):
            return f"`{shown}` is not a number that can be stored: leave the field out"
        if unsigned in ("null", "none", "nil", "na", "undefined"):
            return f"`{shown}` is no value: leave the field out where there is none"
        if lower.startswith("+"):
            return f"`{shown}` begins with a plus sign: write the number without it"
        if unsigned.startswith("0x"):
            return f"`{shown}` is hexadecimal: write the number in decimal digits"
        if lower.startswith("-") and unsigned.endswith("u") and unsigned[:-1] and set(unsigned[:-1]) <= _DIGITS:
            return f"`{shown}` is negative, and an unsigned integer is not"
        if unsigned[:1] in _DIGITS or unsigned[:1] == ".":
            if lower[-1] in "iu":
                return f"`{shown}` is no integer: digits and an i, or a u if it is unsigned"
            return f"`{shown}` is no number"
        if lower[0] in "tf":
            return f"`{shown}` is no boolean: write true or false"
        if lower[0] == "'":
            return f"`{shown}` is in single quotes: a string is in double quotes"
        kinds = "a string is in double quotes, a boolean is true or false, the rest are numbers"
        return f"`{shown}` is no value: {kinds}"


def _integer(text: str, lowest: int, highest: int) -> Optional[int]:
    significant = text.lstrip("-").lstrip("0") or "0"
    # int() itself refuses thousands of digits.
    value = int(significant) if len(significant) <= 20 else highest + 1
    if text.startswith("-"):
        value = -value if len(significant) <= 20 else lowest - 1
    return value if lowest <= value <= highest else None


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
            count = len({*columns, *(key for key, _, _ in tags + fields)})
            raise _RefusedByTable(
                f"Update to schema would exceed number of columns per table limit of {_COLUMNS_MAX} columns: table `{table}` "
                f"would have {count}"
            )
        expected = columns.setdefault(key, got)
        if expected != got:
            raise _RefusedByTable(f"invalid column type for column '{key}', expected {expected}, got {got}")
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
        most = _I64_MAX // factor
        raise _Refused(
            f"timestamp, {time}, out of range for precision: {name}: in this unit timestamps are -{most} to {most}; "
            "is the precision right?"
        )
    return scaled
