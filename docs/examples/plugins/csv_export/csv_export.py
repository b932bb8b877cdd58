"""
{
    "plugin_type": ["scheduled"],
    "scheduled_args_config": [
        {"name": "table", "example": "weather", "description": "The table to export.", "required": true},
        {"name": "directory", "example": "/var/lib/exports", "description": "An absolute path of a folder that exists. Files are written there.", "required": true},
        {"name": "window", "example": "1h", "description": "Span of time of a file: a part of a day, or days. Default 1h.", "required": false},
        {"name": "lag", "example": "5m", "description": "A window is exported this long after its end, for rows that come late. Default 5m.", "required": false},
        {"name": "catch_up", "example": "24h", "description": "How far back a call goes at most, after a pause. Default 24h.", "required": false},
        {"name": "columns", "example": "time origin temp", "description": "Columns in order, separated by spaces. Default: time, tags, fields.", "required": false},
        {"name": "compress", "example": "true", "description": "Write .csv.gz. Default false.", "required": false},
        {"name": "spreadsheet", "example": "true", "description": "Put an apostrophe before text that a spreadsheet would take for a formula. Default false.", "required": false},
        {"name": "rows_max", "example": "1000000", "description": "More rows in a file than this are an error. Default 1000000.", "required": false}
    ]
}
"""

# CSV export: writes a table to files, one for each span of time that is over.
#
# A file appears whole under its name or not at all, and a file that is there is not written again. So a restart or a
# call made twice changes nothing, and deleting a file has it made again, within `catch_up`.

from __future__ import annotations

import contextlib
import csv
import datetime
import gzip
import io
import os
import re
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from saltus import InfluxDB3Local

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
COLUMNS = (
    "SELECT column_name, data_type FROM information_schema.columns "
    "WHERE table_schema = 'iox' AND table_name = $name ORDER BY column_name"
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def duration_ns(args: dict[str, str], name: str, default: str) -> int:
    """An argument such as `90s`, `10m`, `24h` or `7d` in nanoseconds."""
    text = args.get(name, default)
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"argument {name}: {text!r} is no duration; write for instance 90s, 10m, 24h or 7d")
    return int(match[1]) * UNIT_SECONDS[match[2]] * SECOND_NS


def flag(args: dict[str, str], name: str) -> bool:
    """An argument that is true or false; false if it is not there."""
    text = args.get(name, "false").strip().lower()
    if text not in ("true", "false"):
        raise ValueError(f"argument {name}: {text!r} is neither true nor false")
    return text == "true"


def required(args: dict[str, str], name: str) -> str:
    """An argument that must be there."""
    if not args.get(name, "").strip():
        raise ValueError(f"argument {name} is missing; create the trigger with --trigger-arguments {name}=...")
    return args[name].strip()


def quoted(identifier: str) -> str:
    """A name of a table or column in SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def instant_ns(influxdb3_local: InfluxDB3Local, call_time: datetime.datetime) -> int:
    """When the call was due: exactly, where the host says it; else `call_time`, which is naive and in local time."""
    exact: int | None = getattr(getattr(influxdb3_local, "event", None), "scheduled_time_ns", None)
    return exact if exact is not None else int(call_time.timestamp()) * SECOND_NS


class Export:
    """What is to be written where; says what is wrong with the arguments."""

    def __init__(self, args: dict[str, str]) -> None:
        self.table = required(args, "table")
        self.directory = required(args, "directory")
        self.window_ns = duration_ns(args, "window", "1h")
        self.lag_ns = duration_ns(args, "lag", "5m")
        self.catch_up_ns = duration_ns(args, "catch_up", "24h")
        self.columns = args.get("columns", "").split()
        self.compress = flag(args, "compress")
        self.spreadsheet = flag(args, "spreadsheet")
        rows_max = args.get("rows_max", "1000000")
        if re.fullmatch(r"[1-9][0-9]{0,8}", rows_max) is None:
            raise ValueError(f"argument rows_max: {rows_max!r} is no number from 1 to 999999999")
        self.rows_max = int(rows_max)
        if DAY_NS % self.window_ns and self.window_ns % DAY_NS:
            raise ValueError("argument window: it must divide a day, or be whole days")
        if self.catch_up_ns < self.window_ns:
            raise ValueError("argument catch_up: it must be at least one window")
        if not os.path.isabs(self.directory):
            raise ValueError(f"argument directory: {self.directory!r} is no absolute path")
        if not os.path.isdir(self.directory):
            raise ValueError(
                f"argument directory: there is no folder {self.directory!r}; make it, writable for the server"
            )

    def path(self, start_ns: int) -> str:
        """The file of a window: table and start of the window in UTC."""
        # A table's name may be anything; a file's may not lead out of the folder.
        name = re.sub(r"[^A-Za-z0-9_.-]", lambda found: f"%{ord(found[0]):02x}", self.table).lstrip(".")
        start = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=start_ns // SECOND_NS)
        return os.path.join(self.directory, f"{name}_{start:%Y%m%dT%H%M%SZ}.csv" + (".gz" if self.compress else ""))


def process_scheduled_call(
    influxdb3_local: InfluxDB3Local, call_time: datetime.datetime, args: dict[str, str] | None = None
) -> None:
    """Called by the host when it is time."""
    export = Export(args or {})
    end_ns = (instant_ns(influxdb3_local, call_time) - export.lag_ns) // export.window_ns * export.window_ns
    first_ns = end_ns - export.catch_up_ns // export.window_ns * export.window_ns
    missing = [s for s in range(first_ns, end_ns, export.window_ns) if not os.path.exists(export.path(s))]
    if not missing:
        return
    columns = columns_of(influxdb3_local, export)
    for start_ns in missing:
        rows = influxdb3_local.query(
            f"SELECT {', '.join(map(quoted, columns))} FROM {quoted(export.table)} "
            f"WHERE time >= to_timestamp_nanos({start_ns}) AND time < to_timestamp_nanos({start_ns + export.window_ns}) "
            f"ORDER BY time LIMIT {export.rows_max + 1}"
        )
        path = export.path(start_ns)
        if len(rows) > export.rows_max:
            raise ValueError(f"{path}: more than {export.rows_max} rows; shorten window, or raise rows_max")
        if rows:
            write(export, path, columns, rows)
            influxdb3_local.info(f"{path}: {len(rows)} rows")


def columns_of(influxdb3_local: InfluxDB3Local, export: Export) -> list[str]:
    """The columns of the file, in order."""
    known = influxdb3_local.query(COLUMNS, {"name": export.table})
    if not known:
        raise ValueError(f"argument table: there is no table {export.table!r} yet")
    names = [column["column_name"] for column in known]
    wrong = [name for name in export.columns if name not in names]
    if wrong:
        raise ValueError(f"argument columns: {export.table} has no {' '.join(wrong)!r}; it has {' '.join(names)}")
    tags = [column["column_name"] for column in known if column["data_type"].startswith("Dictionary")]
    return export.columns or ["time", *tags, *(name for name in names if name != "time" and name not in tags)]


def write(export: Export, path: str, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Writes a file beside its place and moves it there, when it is whole and on the disk."""
    with tempfile.NamedTemporaryFile(dir=export.directory, prefix=".csv_export_", delete=False) as file:
        try:
            # Without a time and a name in its head, a compressed file is the same whenever it is made.
            if export.compress:
                with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                    write_rows(packed, export, columns, rows)
            else:
                write_rows(file, export, columns, rows)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise


def write_rows(file: Any, export: Export, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """A head and a line per row (RFC 4180, UTF-8)."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows(cells(export, columns, row) for row in rows)
    text.flush()
    text.detach()


def cells(export: Export, columns: list[str], row: dict[str, Any]) -> Iterator[Any]:
    """The cells of a row; what is missing is empty."""
    for name in columns:
        value = row[name]
        if name == "time":
            yield rfc3339(value)
        elif isinstance(value, bool):
            yield "true" if value else "false"
        elif isinstance(value, str) and export.spreadsheet and value.startswith(FORMULA):
            yield "'" + value
        else:
            yield value


def rfc3339(time_ns: int) -> str:
    """A time in UTC with as many decimals as it needs."""
    seconds, fraction = divmod(time_ns, SECOND_NS)
    text = (datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)).isoformat()
    return text + (f".{fraction:09}".rstrip("0") if fraction else "") + "Z"
