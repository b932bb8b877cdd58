"""Databases in memory: what was written, with the server's rules on schemas, names and rows that are written again."""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

from saltus.testing._clock import Clock
from saltus.testing._lines import TAG, Line, LineProtocolError, Schema, Value, read

_ALPHANUMERIC = frozenset(string.ascii_letters + string.digits)
_NAME_BYTES_MAX = 511


@dataclass(frozen=True)
class Point:
    """A row that was written: ``time`` in nanoseconds since 1970, given by the host's clock where the line had none."""

    table: str
    tags: dict[str, str]
    fields: dict[str, Value]
    time: int
    #: Whether the line itself had a timestamp.
    timed: bool = field(default=True, compare=False)

    def row(self) -> dict[str, Any]:
        """As a row of a query: tags, fields, time."""
        return {**self.tags, **self.fields, "time": self.time}


class Database:
    """One database: its tables, and their columns with their types."""

    def __init__(self, name: str, clock: Clock) -> None:
        check_name(name)
        self.name = name
        self._clock = clock
        self._schemas: dict[str, Schema] = {}
        self._tables: dict[str, dict[tuple[tuple[tuple[str, str], ...], int], dict[str, Value]]] = {}
        self._last_given_time = 0

    def write(self, body: str, precision: str = "ns") -> list[Point]:
        """Takes a whole request in, or nothing of it; raises :class:`LineProtocolError` for its first wrong line."""
        lines, refused = read(body, precision, self._schemas)
        if refused:
            raise refused[0]
        return self._store(lines, precision)

    def write_each(self, body: str) -> tuple[list[Point], list[LineProtocolError]]:
        """Takes the lines in that can be written, and gives back the others."""
        lines, refused = read(body, "ns", self._schemas)
        return self._store(lines, "ns"), refused

    def tables(self) -> list[str]:
        """The names of all tables."""
        return sorted(self._schemas)

    def columns(self, table: str) -> dict[str, str]:
        """The columns of a table and their types: ``tag``, ``integer``, ``uinteger``, ``float``, ``string``, ``boolean``."""
        return {name: kind.rpartition(":")[2] for name, kind in self._schemas.get(table, {}).items()}

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table by time, as ``SELECT * FROM table ORDER BY time`` gives them: ``None`` where there is no value."""
        columns = self._schemas.get(table, {})
        rows = []
        for (tags, time), fields in self._tables.get(table, {}).items():
            row: dict[str, Any] = dict.fromkeys(sorted([*columns, "time"]))
            row.update(tags)
            row.update(fields)
            row["time"] = time
            rows.append(row)
        return sorted(rows, key=lambda row: row["time"])

    def _store(self, lines: Iterable[Line], precision: str) -> list[Point]:
        given: Optional[int] = None
        points = []
        for line in lines:
            time = line.time
            if time is None:
                if given is None:
                    given = self._given_time(precision)
                time = given
            self._schemas.setdefault(line.table, {}).update(line.kinds)
            rows = self._tables.setdefault(line.table, {})
            rows.setdefault((tuple(sorted(line.tags.items())), time), {}).update(line.fields)
            points.append(Point(line.table, line.tags, line.fields, time, line.time is not None))
        return points

    def _given_time(self, precision: str) -> int:
        """One instant for all lines of a request that have none; two requests never get the same."""
        unit = {"s": 10**9, "ms": 10**6, "us": 10**3}.get(precision, 1)
        self._last_given_time = max(self._clock.now_ns(), self._last_given_time + 1)
        return self._last_given_time // unit * unit


def batches_of(
    lines: Iterable[Line], points: Iterable[Point]
) -> dict[str, tuple[dict[str, str], list[dict[str, Any]]]]:
    """By table, in order of first appearance: the kinds of its columns, tags first, and its rows as plugins see them."""
    tables: dict[str, tuple[dict[str, str], dict[str, str], list[Point]]] = {}
    for line, point in zip(lines, points):
        tags, fields, rows = tables.setdefault(line.table, ({}, {}, []))
        for key, kind in line.kinds.items():
            (tags if kind == TAG else fields).setdefault(key, kind.rpartition(":")[2])
        rows.append(point)
    batches = {}
    for table, (tags, fields, rows) in tables.items():
        columns = {**tags, **fields}
        made = []
        for point in rows:
            values = {**point.tags, **point.fields}
            row: dict[str, Any] = {name: values[name] for name in columns if name in values}
            row["time"] = point.time
            made.append(row)
        batches[table] = (columns, made)
    return batches


class NameRefused(ValueError):
    """A database name that the server does not take."""


def check_name(name: str) -> None:
    """Raises for a name that no database can have."""
    if not name:
        raise NameRefused("db name cannot be empty")
    if name[0] not in _ALPHANUMERIC:
        raise NameRefused("db name did not start with a number or letter")
    for at, character in enumerate(name):
        if character == "/":
            if "/" in name[:at] or at + 1 == len(name):
                raise NameRefused(
                    "db name with invalid retention policy, if providing a retention policy name, must be of form "
                    "'<db_name>/<rp_name>'"
                )
        elif character not in _ALPHANUMERIC and character not in "_-":
            raise NameRefused(
                "invalid character in database or rp name: must be ASCII, containing only letters, numbers, "
                "underscores, or hyphens"
            )
    if len(name) > _NAME_BYTES_MAX:
        raise NameRefused(f"db name too long: max {_NAME_BYTES_MAX}")


__all__ = ["Database", "LineProtocolError", "NameRefused", "Point", "batches_of", "check_name"]
