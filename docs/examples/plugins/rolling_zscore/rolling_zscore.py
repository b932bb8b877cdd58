"""
{
    "plugin_type": ["onwrite"],
    "onwrite_args_config": [
        {"name": "field", "example": "temp", "description": "The field that is scored.", "required": true},
        {"name": "series", "example": "host", "description": "Tags that make a series, separated by spaces. Default: the whole table is one.", "required": false},
        {"name": "window", "example": "60", "description": "How many values before a value it is compared with. Default 60.", "required": false},
        {"name": "min_samples", "example": "10", "description": "No score before so many values. Default 10.", "required": false},
        {"name": "threshold", "example": "3", "description": "Standard deviations from the mean that make an anomaly. Default 3.", "required": false},
        {"name": "min_stddev", "example": "0.1", "description": "The standard deviation counts as at least this, for values that hardly move. Default 0.", "required": false},
        {"name": "series_max", "example": "1000", "description": "More series than this are an error. Default 1000.", "required": false},
        {"name": "output", "example": "anomalies", "description": "The table to write. Default anomalies.", "required": false}
    ]
}
"""

# Rolling z-score: finds values that are far from the last ones of their series.
#
# A value is compared with the mean and the standard deviation of the `window` values before it. The windows are in the
# trigger's cache as plain lists and the module keeps nothing else, so the plugin is fit for the inline lane: a score in
# microseconds after the write. A row that is delivered again, or comes late, is not newer than the last and is not scored.

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saltus import InfluxDB3Local, LineBuilder, TableBatch


def number(args: dict[str, str], name: str, default: str, lowest: float) -> float:
    """An argument that is a number from `lowest` up."""
    text = args.get(name, default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < lowest:
        raise ValueError(f"argument {name}: {text!r} is no number from {lowest:g} up")
    return value


def score(values: list[float], value: float, min_stddev: float) -> tuple[float, float, float]:
    """Mean, standard deviation and z-score of a value among those before it."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum([(other - mean) * (other - mean) for other in values]) / (len(values) - 1)
    stddev = max(math.sqrt(variance), min_stddev)
    distance = value - mean
    if stddev == 0.0:
        # All values were the same: another one is as far away as can be said.
        return mean, stddev, 0.0 if distance == 0.0 else math.copysign(1e9, distance)
    return mean, stddev, distance / stddev


def process_writes(
    influxdb3_local: InfluxDB3Local, table_batches: list[TableBatch], args: dict[str, str] | None = None
) -> None:
    """Called by the host with the rows that were written."""
    args = args or {}
    field = args.get("field", "").strip()
    if not field:
        raise ValueError("argument field is missing; create the trigger with --trigger-arguments field=...")
    tags = args.get("series", "").split()
    window = int(number(args, "window", "60", 2))
    min_samples = int(number(args, "min_samples", "10", 2))
    threshold = number(args, "threshold", "3", 0)
    min_stddev = number(args, "min_stddev", "0", 0)
    series_max = int(number(args, "series_max", "1000", 1))
    output = args.get("output", "anomalies")
    if min_samples > window:
        raise ValueError("argument min_samples: it cannot be more than window")

    # The cache is changed at the end: a run that fails, and is made again, must find it as it was.
    changed: dict[str, dict[str, Any]] = {}
    for batch in table_batches:
        table = batch["table_name"]
        if table == output:
            continue
        for row in batch["rows"]:
            value = row.get(field)
            if value is None or isinstance(value, (bool, str)) or not math.isfinite(value):
                continue
            name = " ".join([table, *[f"{tag}={row[tag]}" for tag in tags if row.get(tag) is not None]])
            if name not in changed:
                changed[name] = window_of(influxdb3_local, name)
            seen = changed[name]
            if row["time"] <= seen["time"]:
                continue
            values = seen["values"]
            if len(values) >= min_samples:
                mean, stddev, z = score(values, float(value), min_stddev)
                if abs(z) >= threshold:
                    report(influxdb3_local, output, table, tags, row, [float(value), mean, stddev, z])
            values.append(float(value))
            del values[:-window]
            seen["time"] = row["time"]
    keep(influxdb3_local, changed, series_max)


def window_of(influxdb3_local: InfluxDB3Local, name: str) -> dict[str, Any]:
    """A copy of the last values of a series, with the time of the last."""
    seen: dict[str, Any] | None = influxdb3_local.cache.get(name)
    if seen is None:
        return {"new": True, "time": -(1 << 63), "values": []}
    return {"new": False, "time": seen["time"], "values": list(seen["values"])}


def keep(influxdb3_local: InfluxDB3Local, changed: dict[str, dict[str, Any]], series_max: int) -> None:
    """Puts the windows back, if there is room for the new ones."""
    count: int = influxdb3_local.cache.get(" series", 0)
    count += len([name for name, seen in changed.items() if seen["new"]])
    if count > series_max:
        raise ValueError(f"more than {series_max} series; name fewer tags in the argument series, or raise series_max")
    influxdb3_local.cache.put(" series", count)
    for name, seen in changed.items():
        influxdb3_local.cache.put(name, {"time": seen["time"], "values": seen["values"]})


def report(
    influxdb3_local: InfluxDB3Local, output: str, table: str, tags: list[str], row: dict[str, Any], found: list[float]
) -> None:
    """An anomaly as a row, at the time of the row that it was found in."""
    value, mean, stddev, z = found
    line = LineBuilder(output).tag("table", table)
    for tag in tags:
        if row.get(tag) and tag != "table":
            line.tag(tag, row[tag])
    line.float64_field("value", value).float64_field("mean", mean).float64_field("stddev", stddev)
    line.float64_field("z", z).time_ns(row["time"])
    influxdb3_local.write(line)
