"""
{
    "plugin_type": ["scheduled"],
    "scheduled_args_config": [
        {"name": "table", "example": "cpu", "description": "The table whose series are watched.", "required": true},
        {"name": "tags", "example": "host region", "description": "Tags that make a series, separated by spaces; without them the whole table is one.", "required": false},
        {"name": "silence", "example": "10m", "description": "A series without a row for this long is down. Default 10m.", "required": false},
        {"name": "lookback", "example": "24h", "description": "A series without a row for this long is forgotten. Default 24h.", "required": false},
        {"name": "output", "example": "deadman", "description": "The table to write. Default deadman.", "required": false},
        {"name": "series_max", "example": "10000", "description": "More series than this are an error, not a surprise. Default 10000.", "required": false}
    ]
}
"""

# Deadman check: says which series of a table have gone silent.
#
# At every call one row per series is written, with the time of the call: `up`, and for how long it has been silent. The
# same call made again writes the same rows. The query reads `lookback` of the table and no more.

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datetime

    from saltus import InfluxDB3Local, LineBuilder

SECOND_NS = 1_000_000_000
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration_ns(args: dict[str, str], name: str, default: str) -> int:
    """An argument such as `90s`, `10m`, `24h` or `7d` in nanoseconds."""
    text = args.get(name, default)
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"argument {name}: {text!r} is no duration; write for instance 90s, 10m, 24h or 7d")
    return int(match[1]) * UNIT_SECONDS[match[2]] * SECOND_NS


def whole_number(args: dict[str, str], name: str, default: str) -> int:
    """An argument that is a number from 1 up."""
    text = args.get(name, default)
    if re.fullmatch(r"[0-9]{1,9}", text.strip()) is None or int(text) == 0:
        raise ValueError(f"argument {name}: {text!r} is no number from 1 to 999999999")
    return int(text)


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


def process_scheduled_call(
    influxdb3_local: InfluxDB3Local, call_time: datetime.datetime, args: dict[str, str] | None = None
) -> None:
    """Called by the host when it is time."""
    args = args or {}
    table = required(args, "table")
    tags = args.get("tags", "").split()
    silence_ns = duration_ns(args, "silence", "10m")
    lookback_ns = duration_ns(args, "lookback", "24h")
    output = args.get("output", "deadman")
    series_max = whole_number(args, "series_max", "10000")
    if lookback_ns <= silence_ns:
        raise ValueError("argument lookback must be longer than silence, or nothing could be found to be silent")
    now_ns = instant_ns(influxdb3_local, call_time)

    columns = ", ".join([*map(quoted, tags), "max(time) AS last_seen"])
    group = f" GROUP BY {', '.join(map(quoted, tags))}" if tags else ""
    rows = influxdb3_local.query(
        f"SELECT {columns} FROM {quoted(table)} "
        f"WHERE time >= to_timestamp_nanos({now_ns - lookback_ns}) AND time <= to_timestamp_nanos({now_ns})"
        f"{group} LIMIT {series_max + 1}"
    )
    if len(rows) > series_max:
        raise ValueError(f"table {table} has more than {series_max} series; name fewer tags, or raise series_max")

    for row in rows:
        if row["last_seen"] is None:
            # Without tags there is always one row, also of nothing.
            influxdb3_local.warn(f"{table} has no rows since {args.get('lookback', '24h')}")
            continue
        report(influxdb3_local, row, table, tags, output, now_ns, silence_ns)


def report(
    influxdb3_local: InfluxDB3Local,
    row: dict[str, object],
    table: str,
    tags: list[str],
    output: str,
    now_ns: int,
    silence_ns: int,
) -> None:
    """One series: a row in any case, a line in the log when it goes down or comes back."""
    last_seen = int(str(row["last_seen"]))
    silent_ns = now_ns - last_seen
    up = silent_ns < silence_ns
    line = LineBuilder(output).tag("table", table)
    for tag in tags:
        if row[tag]:
            line.tag(tag if tag != "table" else "table_tag", str(row[tag]))
    line.bool_field("up", up)
    line.float64_field("silent_s", silent_ns / SECOND_NS)
    line.int64_field("last_seen_ns", last_seen)
    line.time_ns(now_ns)
    influxdb3_local.write(line)

    name = " ".join([table, *(f"{tag}={row[tag]}" for tag in tags)])
    key = "up " + name
    was_up = influxdb3_local.cache.get(key, True)
    influxdb3_local.cache.put(key, up)
    if was_up and not up:
        influxdb3_local.warn(f"{name} is down: silent for {silent_ns // SECOND_NS} s")
    elif up and not was_up:
        influxdb3_local.info(f"{name} is back")
