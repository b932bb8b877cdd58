"""
{
    "plugin_type": ["scheduled"],
    "scheduled_args_config": [
        {"name": "source", "example": "cpu", "description": "The table to read.", "required": true},
        {"name": "target", "example": "cpu_5m", "description": "The table to write. Default: source and interval, as cpu_5m.", "required": false},
        {"name": "interval", "example": "5m", "description": "Length of a window. Default 5m.", "required": false},
        {"name": "fields", "example": "usage idle", "description": "Fields to aggregate, separated by spaces. Default: all numbers.", "required": false},
        {"name": "aggregates", "example": "avg min max", "description": "Of avg, min, max, sum, count, median, first, last. Default avg.", "required": false},
        {"name": "lag", "example": "30s", "description": "A window is closed this long after its end, for rows that come late. Default 30s.", "required": false},
        {"name": "catch_up", "example": "24h", "description": "How far back a call goes at most, after a pause. Default 24h.", "required": false},
        {"name": "rows_max", "example": "100000", "description": "More rows in one call than this are an error. Default 100000.", "required": false}
    ]
}
"""

# Downsampler: aggregates a table into windows of equal length and writes them to another table.
#
# A window is written once it is over and `lag` has passed, at the time of its start and with the tags of its rows. What
# was written already is found in the target itself, so a restart neither leaves a gap nor does work twice; a window that
# is computed again overwrites itself.

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datetime

    from saltus import InfluxDB3Local, LineBuilder

SECOND_NS = 1_000_000_000
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
NUMBERS = ("Int64", "UInt64", "Float64")
AGGREGATES = {
    "avg": "avg({0})",
    "min": "min({0})",
    "max": "max({0})",
    "sum": "sum({0})",
    "count": "count({0})",
    "median": "approx_median({0})",
    "first": "first_value({0} ORDER BY time)",
    "last": "last_value({0} ORDER BY time)",
}
COLUMNS = (
    "SELECT column_name, data_type FROM information_schema.columns "
    "WHERE table_schema = 'iox' AND table_name = $name ORDER BY column_name"
)


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


class Plan:
    """What is to be read and written, out of the arguments; says what is wrong with them."""

    def __init__(self, args: dict[str, str]) -> None:
        self.source = required(args, "source")
        self.interval_ns = duration_ns(args, "interval", "5m")
        self.target = args.get("target", f"{self.source}_{args.get('interval', '5m').strip()}")
        self.fields = args.get("fields", "").split()
        self.aggregates = args.get("aggregates", "avg").split()
        self.lag_ns = duration_ns(args, "lag", "30s")
        self.catch_up_ns = duration_ns(args, "catch_up", "24h")
        self.rows_max = whole_number(args, "rows_max", "100000")
        unknown = [name for name in self.aggregates if name not in AGGREGATES]
        if unknown or not self.aggregates:
            raise ValueError(f"argument aggregates: {' '.join(unknown)!r} is none of {' '.join(AGGREGATES)}")
        if self.target == self.source:
            raise ValueError("argument target: the target must be another table than the source")
        if self.catch_up_ns < self.interval_ns:
            raise ValueError("argument catch_up: it must be at least one interval")


def process_scheduled_call(
    influxdb3_local: InfluxDB3Local, call_time: datetime.datetime, args: dict[str, str] | None = None
) -> None:
    """Called by the host when it is time."""
    plan = Plan(args or {})
    now_ns = instant_ns(influxdb3_local, call_time)
    end_ns = (now_ns - plan.lag_ns) // plan.interval_ns * plan.interval_ns
    start_ns = first_window(influxdb3_local, plan, end_ns)
    if start_ns >= end_ns:
        return
    tags, fields = columns_of(influxdb3_local, plan)
    rows = influxdb3_local.query(aggregation(plan, tags, fields, start_ns, end_ns))
    if len(rows) > plan.rows_max:
        raise ValueError(
            f"{plan.source}: more than {plan.rows_max} rows to write at once; "
            "raise rows_max, or lower catch_up and go on from there"
        )
    for row in rows:
        write(influxdb3_local, plan, row, tags, fields)
    windows = (end_ns - start_ns) // plan.interval_ns
    if windows > 1:
        influxdb3_local.info(f"{plan.target}: {windows} windows at once, {len(rows)} rows")


def first_window(influxdb3_local: InfluxDB3Local, plan: Plan, end_ns: int) -> int:
    """The start of the first window that is not written yet, at most `catch_up` ago."""
    earliest_ns = (end_ns - plan.catch_up_ns) // plan.interval_ns * plan.interval_ns
    if not influxdb3_local.query(COLUMNS, {"name": plan.target}):
        return earliest_ns
    last = influxdb3_local.query(
        f"SELECT max(time) AS last FROM {quoted(plan.target)} "
        f"WHERE time >= to_timestamp_nanos({earliest_ns}) AND time < to_timestamp_nanos({end_ns})"
    )
    if not last or last[0]["last"] is None:
        return earliest_ns
    written_ns: int = last[0]["last"]
    return written_ns + plan.interval_ns


def columns_of(influxdb3_local: InfluxDB3Local, plan: Plan) -> tuple[list[str], list[str]]:
    """The tags of the source, and the fields to aggregate."""
    columns = influxdb3_local.query(COLUMNS, {"name": plan.source})
    if not columns:
        raise ValueError(f"argument source: there is no table {plan.source!r} yet")
    tags = [c["column_name"] for c in columns if c["data_type"].startswith("Dictionary")]
    numbers = [c["column_name"] for c in columns if c["data_type"] in NUMBERS]
    wrong = [name for name in plan.fields if name not in numbers]
    if wrong:
        raise ValueError(
            f"argument fields: {' '.join(wrong)!r} is no number of {plan.source}; it has {' '.join(numbers)}"
        )
    if not numbers:
        raise ValueError(f"argument source: {plan.source} has no fields that are numbers")
    return tags, plan.fields or numbers


def aggregation(plan: Plan, tags: list[str], fields: list[str], start_ns: int, end_ns: int) -> str:
    """The query for the windows from `start_ns` up to `end_ns`; a window starts at a multiple of its length."""
    window = f"date_bin(INTERVAL '{plan.interval_ns // SECOND_NS} seconds', time, to_timestamp_nanos(0))"
    values = [
        f"{AGGREGATES[aggregate].format(quoted(field))} AS {quoted(named(plan, field, aggregate))}"
        for field in fields
        for aggregate in plan.aggregates
    ]
    columns = ", ".join([f"{window} AS window_start", *map(quoted, tags), *values])
    group = ", ".join([window, *map(quoted, tags)])
    return (
        f"SELECT {columns} FROM {quoted(plan.source)} "
        f"WHERE time >= to_timestamp_nanos({start_ns}) AND time < to_timestamp_nanos({end_ns}) "
        f"GROUP BY {group} LIMIT {plan.rows_max + 1}"
    )


def named(plan: Plan, field: str, aggregate: str) -> str:
    """The field's own name for a single aggregate, with the aggregate's behind it if there are several."""
    return field if len(plan.aggregates) == 1 else f"{field}_{aggregate}"


def write(influxdb3_local: InfluxDB3Local, plan: Plan, row: dict[str, Any], tags: list[str], fields: list[str]) -> None:
    """One series of one window. Numbers become floats, but for counts, so that a column has one type for ever."""
    line = LineBuilder(plan.target)
    for tag in tags:
        if row[tag]:
            line.tag(tag, row[tag])
    empty = True
    for field in fields:
        for aggregate in plan.aggregates:
            name = named(plan, field, aggregate)
            value = row[name]
            if value is None:
                continue
            empty = False
            if aggregate == "count":
                line.int64_field(name, value)
            else:
                line.float64_field(name, float(value))
    if not empty:
        line.time_ns(row["window_start"])
        influxdb3_local.write(line)
