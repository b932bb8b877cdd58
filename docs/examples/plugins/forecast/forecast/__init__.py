"""
{
    "plugin_type": ["scheduled"],
    "scheduled_args_config": [
        {"name": "table", "example": "weather", "description": "The table to read.", "required": true},
        {"name": "field", "example": "temp", "description": "The field to forecast, a number.", "required": true},
        {"name": "where", "example": "origin=JFK", "description": "Tags that rows must have, as tag=value, separated by spaces. Default: all rows together.", "required": false},
        {"name": "step", "example": "1h", "description": "Length of a step; values in a step are averaged. Default 1h.", "required": false},
        {"name": "history", "example": "14d", "description": "How far back the model looks. Default 14d.", "required": false},
        {"name": "horizon", "example": "24h", "description": "How far ahead it says something. Default 24h.", "required": false},
        {"name": "seasons", "example": "24h 7d", "description": "Periods that repeat, separated by spaces. Default 24h.", "required": false},
        {"name": "harmonics", "example": "3", "description": "Waves per season: more follow sharper shapes. Default 3.", "required": false},
        {"name": "interval", "example": "0.95", "description": "Share of values that should be between lower and upper. Default 0.95.", "required": false},
        {"name": "output", "example": "forecast", "description": "The table to write. Default forecast.", "required": false}
    ]
}
"""

# Forecast: fits a trend and seasons to the last values of a field and says what comes next.
#
# A row per step ahead is written at the time of that step, so the next call overwrites what this one said about the same
# step: the table holds the newest forecast for each time. The model is in `model.py` and knows nothing of the database.

from __future__ import annotations

import re
from statistics import NormalDist
from typing import TYPE_CHECKING

from .model import forecast, parameters

if TYPE_CHECKING:
    import datetime

    from saltus import InfluxDB3Local, LineBuilder

SECOND_NS = 1_000_000_000
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
STEPS_MAX = 20_000


def duration_ns(text: str, what: str) -> int:
    """A duration such as `90s`, `10m`, `24h` or `7d` in nanoseconds."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{what}: {text!r} is no duration; write for instance 90s, 10m, 24h or 7d")
    return int(match[1]) * UNIT_SECONDS[match[2]] * SECOND_NS


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
    """What is to be forecast, out of the arguments; says what is wrong with them."""

    def __init__(self, args: dict[str, str]) -> None:
        self.table = required(args, "table")
        self.field = required(args, "field")
        self.output = args.get("output", "forecast")
        self.where = [item.partition("=") for item in args.get("where", "").split()]
        for tag, equals, value in self.where:
            if not tag or not equals or not value:
                raise ValueError(f"argument where: {tag + equals + value!r} is not of the form tag=value")
        self.step_ns = duration_ns(args.get("step", "1h"), "argument step")
        history_ns = duration_ns(args.get("history", "14d"), "argument history")
        horizon_ns = duration_ns(args.get("horizon", "24h"), "argument horizon")
        seasons_ns = [duration_ns(text, "argument seasons") for text in args.get("seasons", "24h").split()]
        self.history = history_ns // self.step_ns
        self.horizon = horizon_ns // self.step_ns
        self.seasons = [season_ns / self.step_ns for season_ns in seasons_ns]
        harmonics = args.get("harmonics", "3")
        if re.fullmatch(r"[0-9]|[1-4][0-9]", harmonics) is None:
            raise ValueError(f"argument harmonics: {harmonics!r} is no number from 0 to 49")
        self.harmonics = int(harmonics)
        self.width = self._width(args.get("interval", "0.95"))
        if not 0 < self.history <= STEPS_MAX or not 0 < self.horizon <= STEPS_MAX:
            raise ValueError(f"arguments history and horizon: from 1 to {STEPS_MAX} steps, so change step")
        if min(self.seasons, default=2) < 2 or max(self.seasons, default=1) > self.history:
            raise ValueError("argument seasons: each must be at least two steps long and fit into history")
        if self.output == self.table:
            raise ValueError("argument output: must be another table than the one that is read")

    @staticmethod
    def _width(text: str) -> float:
        """How many standard deviations a share of a normal distribution is wide, to each side."""
        try:
            share = float(text)
        except ValueError:
            share = 0.0
        if not 0.0 < share < 1.0:
            raise ValueError(f"argument interval: {text!r} is no share between 0 and 1")
        return NormalDist().inv_cdf(0.5 + share / 2)


def process_scheduled_call(
    influxdb3_local: InfluxDB3Local, call_time: datetime.datetime, args: dict[str, str] | None = None
) -> None:
    """Called by the host when it is time."""
    plan = Plan(args or {})
    now = instant_ns(influxdb3_local, call_time) // plan.step_ns
    steps, values = history_of(influxdb3_local, plan, now)
    needed = 2 * parameters(plan.seasons, plan.harmonics)
    if len(values) < needed:
        influxdb3_local.warn(
            f"{plan.table}.{plan.field}: {len(values)} steps of history, {needed} are needed; nothing is forecast"
        )
        return
    ahead = list(range(now, now + plan.horizon))
    expected, deviation = forecast(steps, values, ahead, plan.seasons, plan.harmonics)
    for step, value in zip(ahead, expected):
        line = LineBuilder(plan.output).tag("table", plan.table).tag("field", plan.field)
        for tag, _, wanted in plan.where:
            if tag not in ("table", "field"):
                line.tag(tag, wanted)
        line.float64_field("value", value)
        line.float64_field("lower", value - plan.width * deviation)
        line.float64_field("upper", value + plan.width * deviation)
        line.time_ns(step * plan.step_ns)
        influxdb3_local.write(line)


def history_of(influxdb3_local: InfluxDB3Local, plan: Plan, now: int) -> tuple[list[int], list[float]]:
    """The steps that have values, and these: the step that is under way is not among them."""
    start_ns, end_ns = (now - plan.history) * plan.step_ns, now * plan.step_ns
    where = [f"time >= to_timestamp_nanos({start_ns})", f"time < to_timestamp_nanos({end_ns})"]
    values: dict[str, str] = {}
    for tag, _, wanted in plan.where:
        name = f"value{len(values)}"
        values[name] = wanted
        where.append(f"{quoted(tag)} = ${name}")
    window = f"date_bin(INTERVAL '{plan.step_ns // SECOND_NS} seconds', time, to_timestamp_nanos(0))"
    rows = influxdb3_local.query(
        f"SELECT {window} AS step, avg({quoted(plan.field)}) AS value FROM {quoted(plan.table)} "
        f"WHERE {' AND '.join(where)} GROUP BY {window} ORDER BY step LIMIT {plan.history}",
        values,
    )
    found = [(row["step"] // plan.step_ns, float(row["value"])) for row in rows if row["value"] is not None]
    return [step for step, _ in found], [value for _, value in found]
