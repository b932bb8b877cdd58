"""What a run has done, and assertions about it."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Mapping
from typing import Any, Optional, Union

from saltus.event import Event
from saltus.testing._clock import Instant, nanoseconds
from saltus.testing._local import LogLine, Query
from saltus.testing._tables import Point

_LEVELS = {"INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}
# Where there is no other handler, Python would print warnings and errors.
logging.getLogger("saltus.testing").addHandler(logging.NullHandler())
# A failing assertion shows that much of what was there.
_SHOWN_MAX = 20


class PluginFailed(AssertionError):
    """A run ended with an error; ``run`` has it, and the plugin's own exception is the cause."""

    def __init__(self, run: Run) -> None:
        super().__init__(f"the run failed: {run.error}\n{_listed('log', run.logs)}")
        self.run = run


class Response:
    """What a client would get from a request plugin."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes, chunks: Optional[list[bytes]]) -> None:
        self.status = status
        #: In order; a name may come more than once.
        self.headers = headers
        self.body = body
        #: The pieces of a streamed answer, ``None`` if it was sent whole.
        self.chunks = chunks

    @classmethod
    def of(cls, returned: Any) -> Response:
        """Converts what a plugin returned, with the server's own code."""
        from saltus._response import respond

        stream = _Stream()
        whole = respond(returned, stream)
        if whole is None:
            return cls(stream.status, stream.headers, b"".join(stream.chunks), stream.chunks)
        status, headers, body = whole
        return cls(status, headers, body, None)

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def header(self, name: str) -> Optional[str]:
        """The last header of that name, in any case."""
        values = [value for other, value in self.headers if other.lower() == name.lower()]
        return values[-1] if values else None

    def __repr__(self) -> str:
        return f"Response({self.status}, {self.headers!r}, {self.body[:200]!r})"


class _Stream:
    """The way to the client, which here takes everything at once."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.chunks: list[bytes] = []

    def open(self) -> bool:
        return True

    def begin(self, status: int, headers: list[tuple[str, str]]) -> bool:
        self.status, self.headers = status, headers
        return True

    def send(self, piece: bytes) -> Optional[bool]:
        self.chunks.append(piece)
        return True

    def check(self, length: int) -> None:
        pass


class Run:
    """One run of a plugin, and what came of it."""

    def __init__(self, event: Event, database: str) -> None:
        #: What the run was for.
        self.event = event
        #: The trigger's database.
        self.database = database
        #: What the plugin said and printed, and what the server says of results that it could not write.
        self.logs: list[LogLine] = []
        #: The queries it made, in order.
        self.queries: list[Query] = []
        #: What was queued and then written, as built, by database.
        self.lines: dict[str, list[str]] = {}
        #: The same as points.
        self.written: dict[str, list[Point]] = {}
        #: What ``write_sync`` wrote, by database; it stays written if the run fails.
        self.sync_writes: dict[str, list[Point]] = {}
        #: ``"TypeName: message"``, as the server shows it; ``None`` if the run succeeded.
        self.error: Optional[str] = None
        #: The plugin's exception.
        self.exception: Optional[BaseException] = None
        self.traceback = ""
        #: What a request is answered.
        self.response: Optional[Response] = None
        self._logger = logging.getLogger("saltus.testing.plugin")

    def log(self, line: LogLine) -> None:
        """Takes a line of the log."""
        self.logs.append(line)
        self._logger.log(_LEVELS[line.level], "%s", line.text)

    def failed(self, error: BaseException) -> None:
        """Takes what the run ended with."""
        from saltus.testing._host import MissingFunction, WriteBackFailed

        self.exception = error
        untyped = isinstance(error, (MissingFunction, WriteBackFailed))
        self.error, self.traceback = (str(error), "") if untyped else _described(error)
        if not isinstance(error, WriteBackFailed):
            self.lines, self.written = {}, {}
        if self.event.kind == "request":
            text = self.error
            if type(error).__name__ == "ResponseError":
                text = str(error)
            elif not untyped:
                text = f"Python function call failed: {self.error}"
            headers = [("content-type", "application/json")]
            self.response = Response(500, headers, json.dumps({"error": text}).encode(), None)

    def points(self, table: Optional[str] = None, database: Optional[str] = None) -> list[Point]:
        """What was written, ``write_sync`` first: to one table or to all, of the trigger's database or another."""
        name = self.database if database is None else database
        points = self.sync_writes.get(name, []) + self.written.get(name, [])
        return [point for point in points if table in (None, point.table)]

    def assert_written(
        self,
        table: str,
        *,
        tags: Optional[Mapping[str, Any]] = None,
        fields: Optional[Mapping[str, Any]] = None,
        time: Optional[Instant] = None,
        database: Optional[str] = None,
        count: Optional[int] = None,
    ) -> list[Point]:
        """At least one point of the table has these tags, these fields (and perhaps more) and that time; with ``count``,
        exactly so many. Values are compared with ``==``, so ``pytest.approx`` and ``unittest.mock.ANY`` work. Returns them.
        """
        time_ns = None if time is None else nanoseconds(time)
        there = self.points(table, database)
        found = [
            point
            for point in there
            if _has(point.tags, tags) and _has(point.fields, fields) and time_ns in (None, point.time)
        ]
        if len(found) == count if count is not None else found:
            return found
        wanted = f"table={table!r}, tags={tags!r}, fields={fields!r}, time={time_ns!r}"
        number = "at least one point" if count is None else f"{count} points"
        others = there or self.points(None, database)
        raise AssertionError(
            f"{number} expected, {len(found)} found: {wanted}\n{_listed('written', others)}\n{_listed('log', self.logs)}"
        )

    def assert_nothing_written(self) -> None:
        """Nothing was written to any database."""
        points = [point for written in (self.sync_writes, self.written) for some in written.values() for point in some]
        if points:
            raise AssertionError(f"nothing should have been written\n{_listed('written', points)}")

    def assert_logged(self, pattern: Union[str, "re.Pattern[str]"], level: Optional[str] = None) -> LogLine:
        """A line of the log, of that level if one is given, has the pattern in it. Returns the first."""
        for line in self.logs:
            if level in (None, line.level) and re.search(pattern, line.text):
                return line
        raise AssertionError(f"no {level or 'line'} in the log matches {pattern!r}\n{_listed('log', self.logs)}")


def _described(error: BaseException) -> tuple[str, str]:
    """Type and message, and the traceback; as ``saltus._report`` has them."""
    kind = type(error).__qualname__
    try:
        message = f"{kind}: {error}"
    except Exception:
        message = f"{kind}: <exception str() failed>"
    return message, "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _has(values: Mapping[str, Any], wanted: Optional[Mapping[str, Any]]) -> bool:
    """Whether all that is wanted is there. ``True`` and ``1`` are different: they are different types of columns."""
    return all(
        key in values and values[key] == value and isinstance(values[key], bool) == isinstance(value, bool)
        if isinstance(value, (bool, int, float, str))
        else key in values and values[key] == value
        for key, value in (wanted or {}).items()
    )


def _listed(what: str, items: list[Any]) -> str:
    if not items:
        return f"{what}: nothing"
    shown = "\n".join(f"  {item}" for item in items[:_SHOWN_MAX])
    more = f"\n  ... and {len(items) - _SHOWN_MAX} more" if len(items) > _SHOWN_MAX else ""
    return f"{what}:\n{shown}{more}"
