"""
{
    "plugin_type": ["http"],
    "http_args_config": [
        {"name": "tables", "example": "weather comfort", "description": "Tables that may be read, separated by spaces.", "required": true},
        {"name": "default_range", "example": "1h", "description": "How far back a request reads that does not say. Default 1h.", "required": false},
        {"name": "max_range", "example": "7d", "description": "Longest span of time of a request. Default 7d.", "required": false},
        {"name": "limit_max", "example": "10000", "description": "Most rows of a response. Default 10000.", "required": false}
    ]
}
"""

# HTTP query API: lets others read rows of some tables, without SQL and without a way to anything else.
#
#   GET /api/v3/engine/readings?table=weather&columns=temp,humid&where.origin=JFK&since=2h&limit=100
#
# A request names tables and columns that are looked up before they are used, values go into the query as parameters, and
# time and rows are bounded. What is wrong with a request is said with status 400.

from __future__ import annotations

import csv
import datetime
import io
import re
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saltus import InfluxDB3Local

SECOND_NS = 1_000_000_000
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
FORMATS = ("json", "csv")
PARAMETERS = ("table", "columns", "since", "until", "limit", "order", "format")
FILTERS_MAX = 16
# Nanoseconds since 1970 have 64 bits.
TIME_SECONDS_MAX = (1 << 63) // SECOND_NS
COLUMNS = (
    "SELECT column_name, data_type FROM information_schema.columns "
    "WHERE table_schema = 'iox' AND table_name = $name ORDER BY column_name"
)


class BadRequest(Exception):
    """What is wrong with a request: a status and a text for the client."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


def duration_ns(text: str, what: str) -> int:
    """A duration such as `90s`, `10m`, `24h` or `7d` in nanoseconds."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{what}: {text!r} is no duration; write for instance 90s, 10m, 24h or 7d")
    return int(match[1]) * UNIT_SECONDS[match[2]] * SECOND_NS


class Settings:
    """What the operator allows; says what is wrong with the arguments."""

    def __init__(self, args: dict[str, str]) -> None:
        self.tables = args.get("tables", "").split()
        if not self.tables:
            raise ValueError("argument tables is missing; create the trigger with --trigger-arguments tables=...")
        self.default_range_ns = duration_ns(args.get("default_range", "1h"), "argument default_range")
        self.max_range_ns = duration_ns(args.get("max_range", "7d"), "argument max_range")
        limit_max = args.get("limit_max", "10000")
        if re.fullmatch(r"[1-9][0-9]{0,5}", limit_max) is None:
            raise ValueError(f"argument limit_max: {limit_max!r} is no number from 1 to 999999")
        self.limit_max = int(limit_max)


def process_request(
    influxdb3_local: InfluxDB3Local,
    query_parameters: dict[str, str],
    request_headers: dict[str, str],
    request_body: bytes,
    args: dict[str, str] | None = None,
) -> Any:
    """Called by the host for a request."""
    settings = Settings(args or {})
    try:
        return answer(influxdb3_local, query_parameters, settings)
    except BadRequest as error:
        return {"error": str(error)}, error.status


def answer(influxdb3_local: InfluxDB3Local, parameters: dict[str, str], settings: Settings) -> Any:
    """The response to a request that is well-formed; raises `BadRequest` for any other."""
    for name in parameters:
        if name not in PARAMETERS and not name.startswith("where."):
            raise BadRequest(f"unknown parameter {name!r}; there are {', '.join(PARAMETERS)} and where.TAG")
    table = parameters.get("table", "")
    if table not in settings.tables:
        raise BadRequest(f"parameter table: must be one of {', '.join(settings.tables)}")
    form = one_of(parameters, "format", FORMATS)
    order = one_of(parameters, "order", ("desc", "asc"))
    limit = limit_of(parameters, settings.limit_max)
    start_ns, end_ns = span(parameters, settings)
    known = {c["column_name"]: c["data_type"] for c in influxdb3_local.query(COLUMNS, {"name": table})}
    if not known:
        raise BadRequest(f"there is no table {table!r} yet", 404)
    columns = columns_of(parameters, known)

    where = [f"time >= to_timestamp_nanos({start_ns})", f"time < to_timestamp_nanos({end_ns})"]
    values: dict[str, str] = {}
    for tag, value in filters(parameters, known):
        name = f"value{len(values)}"
        values[name] = value
        where.append(f"{quoted(tag)} = ${name}")
    rows = influxdb3_local.query(
        f"SELECT {', '.join(map(quoted, columns))} FROM {quoted(table)} "
        f"WHERE {' AND '.join(where)} ORDER BY time {order.upper()} LIMIT {limit}",
        values,
    )
    for row in rows:
        if "time" in row:
            row["time"] = rfc3339(row["time"])
    if form == "csv":
        return as_csv(columns, rows), 200, {"Content-Type": "text/csv; charset=utf-8"}
    return {"table": table, "start": rfc3339(start_ns), "end": rfc3339(end_ns), "rows": rows}


def one_of(parameters: dict[str, str], name: str, choices: tuple[str, ...]) -> str:
    """A parameter out of a few; the first is the default."""
    value = parameters.get(name, choices[0])
    if value not in choices:
        raise BadRequest(f"parameter {name}: must be one of {', '.join(choices)}")
    return value


def limit_of(parameters: dict[str, str], limit_max: int) -> int:
    """How many rows at most."""
    text = parameters.get("limit", str(min(1000, limit_max)))
    if re.fullmatch(r"[1-9][0-9]{0,8}", text) is None or int(text) > limit_max:
        raise BadRequest(f"parameter limit: must be a number from 1 to {limit_max}")
    return int(text)


def span(parameters: dict[str, str], settings: Settings) -> tuple[int, int]:
    """The first nanosecond that is asked for, and the first that is not any more."""
    end_ns = instant(parameters["until"], "until") if "until" in parameters else time.time_ns()
    since = parameters.get("since")
    if since is None:
        start_ns = end_ns - settings.default_range_ns
    elif re.fullmatch(r"[0-9]{1,9}[smhd]", since):
        start_ns = end_ns - duration_ns(since, "parameter since")
    else:
        start_ns = instant(since, "since")
    if start_ns >= end_ns:
        raise BadRequest("parameter since: must be before until")
    if end_ns - start_ns > settings.max_range_ns:
        raise BadRequest(
            f"parameter since: at most {settings.max_range_ns // SECOND_NS} seconds may be asked for at once"
        )
    return start_ns, end_ns


def instant(text: str, name: str) -> int:
    """An RFC 3339 time in nanoseconds."""
    # A plus that was not encoded has become a space.
    match = re.fullmatch(
        r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+ -][0-9]{2}:[0-9]{2})",
        text,
    )
    try:
        if match is None:
            raise ValueError
        zone = "+00:00" if match[4] == "Z" else match[4].replace(" ", "+")
        seconds = int(datetime.datetime.fromisoformat(f"{match[1]}T{match[2]}{zone}").timestamp())
        if not -TIME_SECONDS_MAX < seconds < TIME_SECONDS_MAX:
            raise ValueError
    except ValueError:
        raise BadRequest(f"parameter {name}: {text!r} is no time; write for instance 2026-01-01T12:00:00Z") from None
    return seconds * SECOND_NS + int((match[3] or "0").ljust(9, "0"))


def rfc3339(time_ns: int) -> str:
    """A time with as many decimals as it needs: numbers of nanoseconds are too large for JavaScript."""
    seconds, fraction = divmod(time_ns, SECOND_NS)
    text = (datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)).isoformat()
    return text + (f".{fraction:09}".rstrip("0") if fraction else "") + "Z"


def columns_of(parameters: dict[str, str], known: dict[str, str]) -> list[str]:
    """The columns that are asked for, `time` first."""
    text = parameters.get("columns", "")
    asked = [name.strip() for name in text.split(",") if name.strip()] or list(known)
    for name in asked:
        if name not in known:
            raise BadRequest(f"parameter columns: there is no column {name!r}; there are {', '.join(known)}")
    return ["time", *dict.fromkeys(name for name in asked if name != "time")]


def filters(parameters: dict[str, str], known: dict[str, str]) -> list[tuple[str, str]]:
    """Tags and the values that they must have."""
    found = [(name[len("where.") :], value) for name, value in parameters.items() if name.startswith("where.")]
    if len(found) > FILTERS_MAX:
        raise BadRequest(f"at most {FILTERS_MAX} filters")
    for tag, _ in found:
        if not known.get(tag, "").startswith("Dictionary"):
            tags = [name for name, kind in known.items() if kind.startswith("Dictionary")]
            raise BadRequest(f"parameter where.{tag}: there is no such tag; there are {', '.join(tags) or 'none'}")
    return found


def quoted(identifier: str) -> str:
    """A name of a table or column in SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def as_csv(columns: list[str], rows: list[dict[str, Any]]) -> str:
    """A head and a line per row; what is missing is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([row[name] for name in columns] for row in rows)
    return text.getvalue()
