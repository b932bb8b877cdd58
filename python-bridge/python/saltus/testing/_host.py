"""The host that runs a plugin in a test, the way the server does."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import copy
import datetime
import inspect
import io
import os
import re
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, Callable, Optional, Union
from urllib.parse import parse_qsl, unquote, urlencode

from saltus._loader import load as load_folder
from saltus._loader import read as read_folder
from saltus._state import decode as decode_state
from saltus._state import encode as encode_state
from saltus.errors import (
    InfluxDBError,
    InvalidKeyError,
    InvalidLineError,
    InvalidMeasurementError,
    QueryError,
)
from saltus.event import Event
from saltus.event import call_time as time_of_call
from saltus.line_builder import LineBuilder
from saltus.testing._clock import Clock, Instant, nanoseconds
from saltus.testing._lines import LineProtocolError, read
from saltus.testing._local import (
    OUTPUT_ROWS_MAX,
    Effects,
    InfluxDB3Local,
    LogLine,
    Query,
    Queued,
    Space,
    TableBatch,
    WriteRefused,
    changed,
    refusal,
    write_to,
)
from saltus.testing._run import PluginFailed, Response, Run
from saltus.testing._tables import Database, NameRefused, Point, batches_of, check_name

Rows = list[dict[str, Any]]
Answer = Union[Rows, BaseException, Callable[[Query], Rows]]
Matcher = Union[str, "re.Pattern[str]", Callable[[Query], bool]]

_FUNCTIONS = {
    "write": ("process_writes", "(influxdb3_local, table_batches, args=None)"),
    "schedule": ("process_scheduled_call", "(influxdb3_local, call_time, args=None)"),
    "request": (
        "process_request",
        "(influxdb3_local, query_parameters, request_headers, request_body, args=None) "
        "-> Tuple[str, Optional[Dict[str, str]]]",
    ),
}
_PLACEHOLDER = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|\$([A-Za-z_]\w*)")


class UnexpectedQuery(AssertionError):
    """A plugin made a query for which the test has registered no answer."""


class Host:
    """A server's stand-in: databases in memory, a cache, a clock, and answers to queries.

    Used as a context manager it puts ``LineBuilder`` into builtins for its duration, for tests that call functions of a
    plugin directly; runs have it anyway.
    """

    def __init__(self, *, database: str = "test", plugin_dir: Union[str, os.PathLike[str], None] = None) -> None:
        check_name(database)
        self.database_name = database
        self.plugin_dir = Path(plugin_dir) if plugin_dir is not None else None
        self.clock = Clock()
        #: Lines that one run may queue; the server's default.
        self.output_rows_max = OUTPUT_ROWS_MAX
        self._databases: dict[str, Database] = {}
        self._answers: list[tuple[Matcher, Answer]] = []
        self._spaces: dict[Optional[tuple[str, str]], Space] = {}
        self._states: dict[tuple[str, str], dict[str, str]] = {}
        self._builtins = contextlib.ExitStack()
        self._sequence = 0
        self._runs = 0

    def __enter__(self) -> Host:
        self._builtins.enter_context(_line_builder_in_builtins())
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        where: Optional[TracebackType],
    ) -> None:
        self._builtins.close()

    def load(
        self,
        path: Union[str, os.PathLike[str]],
        *,
        args: Optional[Mapping[str, str]] = None,
        database: Optional[str] = None,
        name: str = "test",
        spec: Optional[str] = None,
        missing_columns: str = "absent",
        time_zone: Optional[str] = None,
    ) -> Trigger:
        """A trigger of a plugin: a file, or a folder with an ``__init__.py``.

        ``args`` are the trigger's arguments, ``database`` the one it belongs to. ``spec`` is what the trigger would be created
        with: with ``table:NAME`` it is given the rows of that table only, and runs of another kind are refused. Without one
        it can be run in every way, and gets the rows of all tables. With ``missing_columns="none"`` rows have every column
        of their table, ``None`` where the line had none; a setting of triggers. With a ``time_zone`` the ``call_time`` of
        scheduled calls is aware, and of that zone.
        """
        full = (self.plugin_dir / path) if self.plugin_dir is not None else Path(path)
        if full.is_dir():
            if not (full / "__init__.py").is_file():
                raise FileNotFoundError(f"Multi-file plugin directory must contain __init__.py: {full}")
        elif not full.is_file():
            raise FileNotFoundError(f"Plugin not found: {full.absolute()}")
        for key, value in (args or {}).items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TypeError(f"arguments of triggers are strings: {key!r}: {value!r}")
        if missing_columns not in ("absent", "none"):
            raise ValueError(f"missing_columns must be absent or none, not {missing_columns!r}")
        own = None if args is None else dict(args)
        if time_zone is not None:
            _zone(time_zone)
        return Trigger(self, full, name, database or self.database_name, own, spec, missing_columns == "none", time_zone)

    def database(self, name: Optional[str] = None) -> Database:
        """A database, created if it is not there; the host's own without a name."""
        name = self.database_name if name is None else name
        if name not in self._databases:
            self._databases[name] = Database(name, self.clock)
        return self._databases[name]

    def on_query(self, sql: Matcher, answer: Answer) -> None:
        """Registers what a query gives. Of several that fit, the latest counts.

        ``sql`` is the exact text, blanks aside; a compiled pattern that is searched for in it; or a function of the
        :class:`Query`. ``answer`` is a list of rows, an exception to be raised, or a function of the query that returns the
        rows.
        """
        self._answers.append((_normal(sql) if isinstance(sql, str) else sql, answer))

    def answer(self, query: Query) -> Rows:
        """What a query gives; :class:`UnexpectedQuery` if nothing was registered."""
        for match in _PLACEHOLDER.finditer(query.sql):
            name = match.group(1)
            if name is not None and name not in query.args:
                raise QueryError(
                    f"error: error while planning query: no value for the placeholder ${name} was given "
                    f"executing query on {query.database}: {query.sql}"
                )
        for matcher, answer in reversed(self._answers):
            if _matches(matcher, query):
                if isinstance(answer, BaseException):
                    raise answer
                return copy.deepcopy(answer if isinstance(answer, list) else answer(query))
        raise UnexpectedQuery(
            f"no answer is registered for this query; use host.on_query(...):\n{query.sql}\n"
            f"args={query.args!r}, database={query.database!r}"
        )

    def write_out(self, db: str, lines: str) -> list[Point]:
        """Writes what a plugin wrote; raises ``WriteRefused``."""
        try:
            database = self.database(db)
        except NameRefused:
            raise WriteRefused(f"invalid database name: {db}") from None
        return write_to(database, lines)

    def write_each(self, db: str, lines: str) -> tuple[list[Point], list[LineProtocolError]]:
        """Writes what a plugin queued: the lines that can be written, and gives back the others."""
        try:
            database = self.database(db)
        except NameRefused:
            raise WriteRefused(f"invalid database name: {db}") from None
        return database.write_each(lines)

    def cache_space(self, owner: Optional[tuple[str, str]]) -> Space:
        """The cache of a trigger (database and name), or the global one."""
        return self._spaces.setdefault(owner, {})

    def state(self, name: str = "test", database: Optional[str] = None) -> dict[str, Any]:
        """A copy of the committed state of a trigger."""
        texts = self.state_texts(self.database_name if database is None else database, name)
        return {key: decode_state(text) for key, text in texts.items()}

    def set_state(self, values: Mapping[str, Any], name: str = "test", database: Optional[str] = None) -> None:
        """Gives a trigger a state, as earlier runs would have left it."""
        texts = self.state_texts(self.database_name if database is None else database, name)
        texts.clear()
        texts.update((key, encode_state(key, value)) for key, value in values.items())

    def state_texts(self, database: str, name: str) -> dict[str, str]:
        """A trigger's state as the server keeps it."""
        return self._states.setdefault((database, name), {})

    def next_event_id(self) -> str:
        """Like those of the server: epoch, shard and sequence."""
        self._sequence += 1
        return f"1-0-{self._sequence}"

    def next_run_id(self) -> int:
        """Different for each run."""
        self._runs += 1
        return self._runs


class Trigger:
    """A plugin with a database and arguments. Made by :meth:`Host.load`."""

    def __init__(
        self,
        host: Host,
        path: Path,
        name: str,
        database: str,
        args: Optional[dict[str, str]],
        spec: Optional[str],
        every_column: bool,
        time_zone: Optional[str] = None,
    ) -> None:
        self.host = host
        self._time_zone = time_zone
        # An interval is real time, whatever the clocks of the zone do.
        self._real_time = spec is not None and spec.strip().startswith("every:")
        self.path = path
        self.name = name
        self.database_name = database
        #: May be changed between runs.
        self.args = args
        self._every_column = every_column
        #: What its specification says: the kind of its runs if there is one, and the table or the path.
        self._kind: Optional[str] = None
        self._what: Optional[str] = None
        if spec is not None:
            self._kind, self._what = _kind_of(spec)

    def process_writes(self, *lines: str, precision: str = "ns", attempt: int = 0, check: bool = True) -> Run:
        """Writes line protocol to the trigger's database and gives the rows to the plugin.

        Several texts are several writes that waited together: the run gets a table batch for each. A line that the server
        would refuse raises :class:`LineProtocolError`.
        """
        self._must_be("write")
        database = self.host.database(self.database_name)
        batches = []
        for body in lines:
            points = database.write(body, precision)
            accepted, _ = read(body, precision)
            event_id = self.host.next_event_id()
            for table, (kinds, rows) in batches_of(accepted, points).items():
                if self._what in (None, table):
                    if self._every_column:
                        every = dict.fromkeys([*kinds, *database.columns(table), "time"])
                        rows = [{**every, **row} for row in rows]
                    batches.append(TableBatch(table, kinds, rows, event_id))
        if not batches:
            raise ValueError(
                f"the trigger is not run: there are no rows for it{f' in {self._what!r}' if self._what else ''}"
            )
        event = self._event("write", tuple(batch.event_id for batch in batches), attempt)
        return self._run(event, [batches], check)

    def process_scheduled_call(
        self, call_time: Optional[Instant] = None, *, attempt: int = 0, missed: int = 0, check: bool = True
    ) -> Run:
        """Calls the plugin at an instant: nanoseconds, ISO 8601 or a ``datetime``; now, by the host's clock, without one."""
        self._must_be("schedule")
        scheduled = self.host.clock.now_ns() if call_time is None else nanoseconds(call_time)
        event = self._event("schedule", (f"1-at-{scheduled}",), attempt)
        seconds, zone = scheduled // 10**9, self._time_zone
        ahead = None
        if zone is not None:
            offset = datetime.datetime.fromtimestamp(seconds, _zone(zone)).utcoffset()
            ahead = round(offset.total_seconds()) if offset is not None else 0
        event.of_schedule(scheduled, ahead, missed)
        return self._run(event, [time_of_call(seconds, ahead, None if self._real_time else zone)], check)

    def process_request(
        self,
        method: str = "GET",
        *,
        query: Union[Mapping[str, str], str, None] = None,
        headers: Optional[Mapping[str, str]] = None,
        body: Union[bytes, str] = b"",
        tail: str = "",
        check: bool = True,
    ) -> Run:
        """A request to the plugin; :attr:`Run.response` is what the client would get.

        ``query`` is a mapping or a query string, ``tail`` what stands behind the path of a trigger that ends in ``/*``, as
        it is sent. A failing plugin raises :class:`PluginFailed`; with ``check=False`` the
        response is the server's answer with status 500.
        """
        from saltus.request import Request

        self._must_be("request")
        query_string = query if isinstance(query, str) else urlencode(query or {})
        pairs = parse_qsl(query_string, keep_blank_values=True)
        named = [(key.lower(), value) for key, value in (headers or {}).items() if key.lower() != "authorization"]
        data = body.encode() if isinstance(body, str) else bytes(body)
        route = (self._what or self.name).rstrip("*").rstrip("/")
        path = f"{route}/{tail}" if tail else route
        request = Request(method, path, route, unquote(tail), query_string, pairs, named, data, "127.0.0.1:0")
        event = self._event("request", (), 0)
        return self._run(event, [dict(pairs), dict(named), data], check, request)

    def _must_be(self, kind: str) -> None:
        if self._kind not in (None, kind):
            raise ValueError(f"the trigger is for a {self._kind}, and this is a {kind}: load it with another spec")

    def _event(self, kind: str, ids: tuple[str, ...], attempt: int) -> Event:
        return Event(kind, ids, self.host.next_run_id(), self.name, attempt, 0)

    def _run(self, event: Event, given: list[Any], check: bool, request: Any = None) -> Run:
        run = Run(event, self.database_name)
        effects = Effects(self.host, self.database_name, self.name, event, run.log)
        effects.request = request
        run.queries = effects.queries
        error: Optional[BaseException] = None
        try:
            with _as_in_a_run(self.host, run):
                returned = self._call(effects, given)
                if event.kind == "request":
                    run.response = Response.of(returned)
                effects.check_limits()
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as raised:
            error = raised
        run.sync_writes = effects.written
        failed = error is not None
        if error is None:
            error, failed = self._write_back(effects, run)
        if effects.sticky is not None:
            raise effects.sticky
        if not failed:
            self._commit_state(effects)
        if error is not None:
            run.failed(error)
            if check:
                raise PluginFailed(run) from error
        return run

    def _call(self, effects: Effects, given: list[Any]) -> Any:
        name, signature = _FUNCTIONS[effects.event.kind]
        entry = self._entry(name)
        if entry is None:
            raise MissingFunction(
                f"the {name} function is not present in the plugin. Should be defined as: {name}{signature}"
            )
        args = None if self.args is None else dict(self.args)
        returned = entry(InfluxDB3Local(effects), *given, args)
        if inspect.iscoroutine(returned):
            returned = asyncio.run(returned)
        return returned

    def _entry(self, name: str) -> Any:
        if self.path.is_dir():
            path = str(self.path.absolute())
            files = read_folder(path)
            digest = 0
            for file, text in sorted(files.items()):
                digest = zlib.crc32(text.encode(), zlib.crc32(file.encode(), digest))
            return getattr(load_folder(path, digest, files), name, None)
        code = compile(self.path.read_bytes(), str(self.path), "exec", dont_inherit=True)
        return _fresh_globals(code).get(name)

    def _commit_state(self, effects: Effects) -> None:
        texts = self.host.state_texts(self.database_name, self.name)
        after = changed(texts, effects.state_changes)
        texts.clear()
        texts.update(after)

    def _write_back(self, effects: Effects, run: Run) -> tuple[Optional[BaseException], bool]:
        """Applies what was queued, database by database. What the last line that is refused is told is the error of a test; the run
        itself has failed if a table refused a line, or if somebody waits for an answer."""
        error: Optional[BaseException] = None
        failed = False
        what = {"write": "wal", "schedule": "schedule", "request": "request"}[effects.event.kind]
        for db, queued in effects.queued.items():
            for texts in _joined(queued):
                try:
                    points, refused = self.host.write_each(db, "\n".join(texts))
                    causes = [refusal(line) for line in refused]
                    failed = failed or any(line.by_table for line in refused)
                except WriteRefused as why:
                    points, causes, failed = [], [str(why)], True
                else:
                    run.lines.setdefault(db, []).extend(texts)
                    run.written.setdefault(db, []).extend(points)
                for cause in causes:
                    text = f"error running {what} plugin: error writing back lines to {db}: Cannot write: {cause}"
                    error = WriteBackFailed(text)
                    run.log(LogLine("ERROR", text))
        return error, failed or (error is not None and what == "request")


def _joined(queued: list[Queued]) -> list[list[str]]:
    """The texts that are written together: nothing is put behind one that would swallow it."""
    writes: list[list[str]] = []
    is_open = True
    for text in queued:
        if is_open:
            writes.append([])
        writes[-1].append(text.lines)
        is_open = text.is_open
    return writes


class MissingFunction(Exception):
    """The plugin has no entry function of that kind; the server shows the text without a type."""


class WriteBackFailed(Exception):
    """What a run queued could not be written; the server shows the text without a type."""


def _kind_of(spec: str) -> tuple[str, Optional[str]]:
    """The kind of a specification, and its table or path."""
    prefix, _, what = spec.strip().partition(":")
    kinds = {"table": "write", "request": "request", "every": "schedule", "cron": "schedule"}
    if spec.strip() == "all_tables":
        return "write", None
    if prefix not in kinds or not what.strip():
        raise ValueError(
            f"spec must be table:<TABLE_NAME>, all_tables, every:<DURATION>, cron:<EXPRESSION> or request:<PATH>, not {spec!r}"
        )
    return kinds[prefix], None if kinds[prefix] == "schedule" else what.strip()


def _zone(name: str) -> datetime.tzinfo:
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except Exception:
        raise ValueError(f"{name!r} is no time zone that this Python knows; expected a name such as Europe/Berlin") from None


def _fresh_globals(code: CodeType) -> dict[str, Any]:
    """The body of a file, executed in globals of its own: no ``__file__``, and a ``__name__`` that is no module's."""
    module: dict[str, Any] = {}
    exec(code, module)
    return module


def _normal(sql: str) -> str:
    return " ".join(sql.split())


def _matches(matcher: Matcher, query: Query) -> bool:
    if isinstance(matcher, str):
        return matcher == _normal(query.sql)
    if isinstance(matcher, re.Pattern):
        return matcher.search(query.sql) is not None
    return bool(matcher(query))


@contextlib.contextmanager
def _line_builder_in_builtins() -> Iterator[None]:
    missing = object()
    before = getattr(builtins, "LineBuilder", missing)
    builtins.LineBuilder = LineBuilder  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if before is missing:
            del builtins.LineBuilder  # type: ignore[attr-defined]
        else:
            builtins.LineBuilder = before  # type: ignore[attr-defined]


@contextlib.contextmanager
def _errors_in_main() -> Iterator[None]:
    """InfluxDB 3 executes its builder in ``__main__``, which is where plugins find the classes of its errors."""
    main = vars(sys.modules["__main__"])
    kinds = (InfluxDBError, InvalidMeasurementError, InvalidKeyError, InvalidLineError, LineBuilder)
    added = {kind.__name__: kind for kind in kinds if kind.__name__ not in main}
    main.update(added)
    try:
        yield
    finally:
        for name in added:
            main.pop(name, None)


@contextlib.contextmanager
def _as_in_a_run(host: Host, run: Run) -> Iterator[None]:
    """What is printed goes to the log, ``LineBuilder`` is a builtin, and the clock is the host's if it is set."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_line_builder_in_builtins())
        stack.enter_context(_errors_in_main())
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(_Printed(run, "INFO"))))
        stack.enter_context(contextlib.redirect_stderr(stack.enter_context(_Printed(run, "ERROR"))))
        if host.clock.is_set:
            clock = host.clock
            stack.enter_context(_replaced("time_ns", clock.now_ns))
            stack.enter_context(_replaced("time", lambda: clock.now_ns() / 1e9))
        yield


@contextlib.contextmanager
def _replaced(name: str, function: Callable[[], Any]) -> Iterator[None]:
    before = getattr(time, name)
    setattr(time, name, function)
    try:
        yield
    finally:
        setattr(time, name, before)


class _Printed(io.TextIOBase):
    """A stream whose lines go to the log of the run; an unfinished one at its end."""

    def __init__(self, run: Run, level: str) -> None:
        self._run = run
        self._level = level
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._run.log(LogLine(self._level, line))
        return len(text)

    def close(self) -> None:
        if self._rest:
            self._run.log(LogLine(self._level, self._rest))
            self._rest = ""
        super().close()


def reason_against_inline(path: Union[str, os.PathLike[str]]) -> Optional[str]:
    """Why the server's static check keeps a plugin file out of the inline lane; ``None`` if nothing speaks against it.

    Needs Python 3.10. That a plugin passes is not enough to get there: its runs must be fast as well.
    """
    import ast

    if sys.version_info < (3, 10):
        raise RuntimeError("reason_against_inline needs Python 3.10")
    from saltus._inline import reason_against

    return reason_against(ast.parse(Path(path).read_bytes()))
