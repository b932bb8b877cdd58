"""What a plugin is given: the stand-ins of the server's native types, in plain Python.

They take the same arguments, raise the same errors with the same words, and have the same rules on when something takes
effect: logs, cache and ``write_sync`` at once, ``write`` and ``state`` only if the run succeeds.
"""

from __future__ import annotations

import array
import datetime
import math
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from saltus._state import decode as decode_state
from saltus._state import encode as encode_state
from saltus.errors import LimitError, QueryError
from saltus.event import Event
from saltus.testing._clock import Clock
from saltus.testing._lines import LineProtocolError, look_at
from saltus.testing._tables import Database, NameRefused, Point, check_name

if TYPE_CHECKING:
    from saltus.request import Request
    from saltus.testing._host import Host

OUTPUT_BYTES_MAX = 64 * 1024 * 1024
OUTPUT_ROWS_MAX = 1_000_000
INTERNAL_DB = "_internal"
STATE_BYTES_MAX = 1024 * 1024
STATE_KEY_BYTES_MAX = 1024
_REFUSED_LINE_BYTES_SHOWN = 200
_NO_LINE = "write(): there is no line in what build() gave, it is empty, blank or a comment; nothing is written of it"
# u64::MAX seconds is where a Duration ends.
_TTL_END = 2.0**64


class LogLine(NamedTuple):
    """One line of a run's log: ``level`` is ``INFO``, ``WARN`` or ``ERROR``."""

    level: str
    text: str


class Query(NamedTuple):
    """A query that a plugin made."""

    sql: str
    args: dict[str, Any]
    database: str


class Queued(NamedTuple):
    """What one ``write()`` queued."""

    lines: str
    #: It ends in a string that does not end, which would swallow what was put behind it.
    is_open: bool


class Effects:
    """What one run does, as it does it."""

    def __init__(self, host: Host, database: str, trigger: str, event: Event, log: Callable[[LogLine], None]) -> None:
        self.host = host
        self.database = database
        self.trigger = trigger
        self.event = event
        self.log = log
        #: Queued lines, by database in order of first use.
        self.queued: dict[str, list[Queued]] = {}
        #: Of all that it wrote, queued or not.
        self.written_bytes = 0
        self.written_rows = 0
        self.queries: list[Query] = []
        #: What ``write_sync`` wrote, by database.
        self.written: dict[str, list[Point]] = {}
        #: Of a request, the request itself.
        self.request: Optional[Request] = None
        #: What the run changed in its trigger's state, as texts; ``None`` is a key that it deleted.
        self.state_changes: dict[str, Optional[str]] = {}
        #: What a test must hear of even if the plugin swallows it.
        self.sticky: Optional[BaseException] = None

    def built(self, db: str, line_builder: Any) -> str:
        """The lines that the plugin wants written, if it may."""
        lines = line_builder.build()
        if not isinstance(lines, str):
            raise TypeError(f"build() must return str, not {type(lines).__name__}")
        if db == INTERNAL_DB:
            raise Exception(f"error writing line protocol to {db}: cannot modify internal db")
        self.written_bytes += len(lines.encode()) + 1
        self.written_rows += 1 + lines.rstrip().count("\n")
        self.check_limits()
        return lines

    def check_limits(self) -> None:
        """Raises if the run wanted to queue more than it may."""
        if self.written_bytes > OUTPUT_BYTES_MAX:
            what = f"{OUTPUT_BYTES_MAX} bytes of line protocol; nothing of it is written; write less per run"
        elif self.written_rows > self.host.output_rows_max:
            what = (
                f"{self.host.output_rows_max} rows; nothing of it is written; write less per run, "
                "or raise the trigger's limit output_rows"
            )
        else:
            return
        raise LimitError(f"the run queued more than {what}")


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be str, not {type(value).__name__}")
    return value


class InfluxDB3Local:
    """The database as a plugin's run sees it: the first argument of every entry function."""

    def __init__(self, effects: Effects) -> None:
        self.__effects = effects

    def info(self, *args: object) -> None:
        """Writes ``str()`` of the arguments, joined by spaces, to the log."""
        self.__log("INFO", args)

    def warn(self, *args: object) -> None:
        """As :meth:`info`, as a warning."""
        self.__log("WARN", args)

    def error(self, *args: object) -> None:
        """As :meth:`info`, as an error."""
        self.__log("ERROR", args)

    def __log(self, level: str, args: tuple[object, ...]) -> None:
        self.__effects.log(LogLine(level, " ".join(str(arg) for arg in args)))

    def write(self, line_builder: Any) -> None:
        """Queues ``line_builder.build()`` for the trigger's database; applied if the run succeeds."""
        self.__queue(self.__effects.database, line_builder)

    def write_to_db(self, db_name: str, line_builder: Any) -> None:
        """Queues ``line_builder.build()`` for any database; applied if the run succeeds."""
        self.__queue(_text(db_name, "db_name"), line_builder)

    def __queue(self, db: str, line_builder: Any) -> None:
        lines = self.__effects.built(db, line_builder)
        any_line, is_open = look_at(lines)
        if not any_line:
            self.__log("WARN", (_NO_LINE,))
            return
        self.__effects.queued.setdefault(db, []).append(Queued(lines, is_open))

    def write_sync(self, line_builder: Any, no_sync: bool) -> None:
        """Writes at once, and raises if that fails."""
        self.__write_sync(self.__effects.database, line_builder)

    def write_sync_to_db(self, db_name: str, line_builder: Any, no_sync: bool) -> None:
        """As :meth:`write_sync`, to any database."""
        self.__write_sync(_text(db_name, "db_name"), line_builder)

    def __write_sync(self, db: str, line_builder: Any) -> None:
        lines = self.__effects.built(db, line_builder)
        try:
            points = self.__effects.host.write_out(db, lines)
        except WriteRefused as why:
            raise Exception(f"error writing line protocol to {db}: {why}") from None
        self.__effects.written.setdefault(db, []).extend(points)

    def query(
        self, query: str, args: Optional[dict[str, Any]] = None, database: Optional[str] = None
    ) -> list[dict[str, Any]]:
        """The rows that a test has registered for this SQL with ``Host.on_query``."""
        _text(query, "query")
        if args is not None and not isinstance(args, dict):
            raise TypeError(f"args must be dict or None, not {type(args).__name__}")
        for key, value in (args or {}).items():
            _text(key, "a key of args")
            if value is not None and not isinstance(value, (str, int, float, datetime.datetime)):
                raise TypeError(
                    f"args['{key}'] must be str, int, float, bool, datetime or None, not {type(value).__name__}"
                )
        effects = self.__effects
        name = effects.database if database is None else _text(database, "database")
        try:
            check_name(name)
        except NameRefused as why:
            raise QueryError(f"invalid database name provided: {why}") from None
        asked = Query(query, dict(args or {}), name)
        effects.queries.append(asked)
        try:
            return effects.host.answer(asked)
        except AssertionError as unexpected:
            effects.sticky = effects.sticky or unexpected
            raise

    @property
    def cache(self) -> Cache:
        """Live objects that are kept between runs."""
        return Cache(self.__effects)

    @property
    def state(self) -> State:
        """Values that outlive the server, committed together with the run's rows."""
        return State(self.__effects)

    @property
    def event(self) -> Event:
        """What the run is for."""
        return self.__effects.event

    @property
    def request(self) -> Optional[Request]:
        """The request that the run answers, with what the plain arguments do not say."""
        return self.__effects.request


class WriteRefused(Exception):
    """Why rows were not taken, in the server's words."""


def write_to(database: Database, lines: str, precision: str = "ns") -> list[Point]:
    """Writes lines as the server does what a plugin writes with ``write_sync``: all of them or none."""
    try:
        return database.write(lines, precision)
    except LineProtocolError as why:
        raise WriteRefused(f"Cannot write: {refusal(why)}") from None


def refusal(why: LineProtocolError) -> str:
    """What a plugin is told of a line that was refused, and its log."""
    text = why.text.encode()
    shown = text[:_REFUSED_LINE_BYTES_SHOWN].decode(errors="ignore")
    more = "..." if len(text) > _REFUSED_LINE_BYTES_SHOWN else ""
    return f"line protocol parse failed: {why.message} (line {why.number}): `{shown}{more}`"


#: A value and the time of the clock at which it expires.
Space = dict[str, tuple[Any, Optional[int]]]


class Cache:
    """Keeps live objects between runs, per trigger or (``use_global``) for all."""

    def __init__(self, effects: Effects) -> None:
        self.__effects = effects

    def put(self, key: str, value: Any, ttl: Optional[float] = None, use_global: Optional[bool] = None) -> None:
        """Keeps a reference to ``value``, for ``ttl`` seconds or until it is deleted."""
        _text(key, "key")
        expiry = None if ttl is None else self.__clock().now_ns() + _duration(ttl)
        self.__space(use_global)[key] = (value, expiry)

    def get(self, key: str, default: Any = None, use_global: Optional[bool] = None) -> Any:
        """The object kept under ``key``, or ``default``."""
        _text(key, "key")
        space = self.__space(use_global)
        if key not in space:
            return default
        value, expiry = space[key]
        if expiry is not None and expiry <= self.__clock().now_ns():
            del space[key]
            return default
        return value

    def delete(self, key: str, use_global: Optional[bool] = None) -> bool:
        """Forgets the object kept under ``key``; whether there was one."""
        _text(key, "key")
        return self.__space(use_global).pop(key, None) is not None

    def __clock(self) -> Clock:
        return self.__effects.host.clock

    def __space(self, use_global: Optional[bool]) -> Space:
        effects = self.__effects
        return effects.host.cache_space(None if use_global else (effects.database, effects.trigger))


def _duration(seconds: float) -> int:
    """Nanoseconds, with the errors of Rust's ``Duration``."""
    if not isinstance(seconds, (int, float)):
        raise TypeError(f"must be real number, not {type(seconds).__name__}")
    if seconds < 0:
        raise ValueError("cannot convert float seconds to Duration: value is negative")
    if math.isnan(seconds) or seconds >= _TTL_END:
        raise ValueError("cannot convert float seconds to Duration: value is either too big or NaN")
    return round(seconds * 1e9)


class State:
    """Plain values that outlive the server. What a run changes is seen by itself at once, and kept if the run succeeds."""

    def __init__(self, effects: Effects) -> None:
        self.__effects = effects

    def put(self, key: str, value: Any) -> None:
        """Keeps a copy of a plain value."""
        size = len(_text(key, "key").encode())
        if size > STATE_KEY_BYTES_MAX:
            raise ValueError(f"the key has {size} bytes, and a key of state at most {STATE_KEY_BYTES_MAX}")
        text = encode_state(key, value)
        others = [other for other in self.__texts().items() if other[0] != key]
        total = sum(len(part.encode()) for pair in [*others, (key, text)] for part in pair)
        if total > STATE_BYTES_MAX:
            raise ValueError(
                f"with state['{key}'] the state of trigger '{self.__effects.trigger}' would have {total} bytes, and it may "
                f"have {STATE_BYTES_MAX}: keep less, or keep it in a table"
            )
        self.__effects.state_changes[key] = text

    def get(self, key: str, default: Any = None) -> Any:
        """A copy of the value kept under ``key``, or ``default``."""
        text = self.__texts().get(_text(key, "key"))
        return default if text is None else decode_state(text)

    def delete(self, key: str) -> bool:
        """Forgets the value kept under ``key``; whether there was one."""
        existed = _text(key, "key") in self.__texts()
        if existed:
            self.__effects.state_changes[key] = None
        return existed

    def keys(self) -> list[str]:
        """The keys, sorted."""
        return sorted(self.__texts())

    def items(self) -> list[tuple[str, Any]]:
        """Keys and copies of their values, in the order of the keys."""
        return [(key, decode_state(text)) for key, text in sorted(self.__texts().items())]

    def __texts(self) -> dict[str, str]:
        effects = self.__effects
        return changed(effects.host.state_texts(effects.database, effects.trigger), effects.state_changes)


def changed(texts: dict[str, str], changes: dict[str, Optional[str]]) -> dict[str, str]:
    """A state after changes; ``None`` deletes."""
    new: dict[str, Optional[str]] = {**texts, **changes}
    return {key: text for key, text in new.items() if text is not None}


class Column:
    """One column of a batch. ``memoryview(column)`` needs Python 3.12, Arrow needs the package pyarrow."""

    def __init__(self, name: str, kind: str, values: list[Any]) -> None:
        self.name = name
        #: ``tag``, ``integer``, ``uinteger``, ``float``, ``string``, ``boolean`` or ``timestamp``.
        self.kind = kind
        self._values = values
        #: Rows without a value; in a memoryview they show an arbitrary one.
        self.null_count = sum(value is None for value in values)
        #: For a tag the values that its keys point into, else ``None``.
        self.dictionary: Optional[list[str]] = None
        if kind == "tag":
            self.dictionary = list(dict.fromkeys(value for value in values if value is not None))

    def to_list(self) -> list[Any]:
        """The values; ``None`` where a row has none."""
        return list(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __buffer__(self, flags: int) -> memoryview:
        """Only Python 3.12 and newer calls it."""
        if self.kind == "string":
            raise BufferError(f"column '{self.name}' has strings of different lengths: use to_list() or Arrow")
        if self.dictionary is not None:
            keys = {value: at for at, value in enumerate(self.dictionary)}
            return memoryview(array.array("i", [keys.get(value, 0) for value in self._values])).toreadonly()
        if self.kind == "boolean":
            return memoryview(bytes(map(bool, self._values))).cast("?")  # type: ignore[return-value]
        code = {"uinteger": "Q", "float": "d"}.get(self.kind, "q")
        return memoryview(array.array(code, [value or 0 for value in self._values])).toreadonly()

    def _arrow(self) -> Any:
        import pyarrow

        types = {
            "tag": pyarrow.dictionary(pyarrow.int32(), pyarrow.utf8()),
            "integer": pyarrow.int64(),
            "uinteger": pyarrow.uint64(),
            "float": pyarrow.float64(),
            "string": pyarrow.utf8(),
            "boolean": pyarrow.bool_(),
            "timestamp": pyarrow.timestamp("ns"),
        }
        return pyarrow.array(self._values, types[self.kind])

    def __arrow_c_array__(self, requested_schema: Optional[object] = None) -> tuple[object, object]:
        made: tuple[object, object] = self._arrow().__arrow_c_array__()
        return made

    def __arrow_c_schema__(self) -> object:
        return self._arrow().type.__arrow_c_schema__()


class TableBatch(dict[str, Any]):
    """The rows of one table: a dict with the keys ``table_name`` and ``rows``, and the same rows as columns."""

    def __init__(self, table: str, kinds: dict[str, str], rows: list[dict[str, Any]], event_id: str) -> None:
        super().__init__(table_name=table, rows=rows)
        self.__kinds = {**kinds, "time": "timestamp"}
        # As they came: what the plugin does to its rows does not change the columns.
        self.__values = {name: [row.get(name) for row in rows] for name in self.__kinds}
        self.__row_count = len(rows)
        self.__event_id = event_id

    @property
    def columns(self) -> dict[str, Column]:
        """The columns by name, ``time`` last."""
        return {name: Column(name, kind, self.__values[name]) for name, kind in self.__kinds.items()}

    @property
    def row_count(self) -> int:
        """How many rows."""
        return self.__row_count

    @property
    def event_id(self) -> str:
        """The write that the rows come from; the same whenever they are delivered again."""
        return self.__event_id

    def _arrow(self) -> Any:
        import pyarrow

        columns = self.columns
        return pyarrow.RecordBatch.from_arrays([column._arrow() for column in columns.values()], list(columns))

    def __arrow_c_array__(self, requested_schema: Optional[object] = None) -> tuple[object, object]:
        made: tuple[object, object] = self._arrow().__arrow_c_array__()
        return made

    def __arrow_c_schema__(self) -> object:
        return self._arrow().schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Optional[object] = None) -> object:
        import pyarrow

        return pyarrow.Table.from_batches([self._arrow()]).__arrow_c_stream__()
