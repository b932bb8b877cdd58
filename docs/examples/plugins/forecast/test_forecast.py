"""Tests of the forecast: `pytest` in this folder. They need numpy."""

from __future__ import annotations

import math
from typing import Any

import pytest
from saltus.testing import Host, PluginFailed, Run

pytest.importorskip("numpy")

NOW = "2026-01-15T12:30:00Z"
HOUR_NS = 3_600_000_000_000
# The hour that is under way.
HOUR = 1_768_480_200_000_000_000 // HOUR_NS


def day(hour: int) -> float:
    """A temperature by the hour: a warm afternoon, and every day a little warmer than the last."""
    return (
        15.0 + 0.01 * (hour - HOUR) + 8.0 * math.sin(2 * math.pi * hour / 24) + 2.0 * math.cos(4 * math.pi * hour / 24)
    )


def run(host: Host, hours: list[int], value: Any = day, **args: str) -> Run:
    host.on_query(lambda query: True, [{"step": hour * HOUR_NS, "value": value(hour)} for hour in hours])
    return host.load("forecast", args={"table": "weather", "field": "temp", **args}).process_scheduled_call(NOW)


def test_what_repeats_goes_on(saltus_host: Host) -> None:
    made = run(saltus_host, list(range(HOUR - 14 * 24, HOUR)), where="origin=JFK")
    points = made.points("forecast")
    assert [point.time // HOUR_NS for point in points] == list(range(HOUR, HOUR + 24))
    for point in points:
        assert point.tags == {"table": "weather", "field": "temp", "origin": "JFK"}
        assert point.fields["value"] == pytest.approx(day(point.time // HOUR_NS), abs=0.01)
        assert point.fields["lower"] <= point.fields["value"] <= point.fields["upper"]  # type: ignore[operator]


def test_the_interval_is_as_wide_as_the_values_stray(saltus_host: Host) -> None:
    hours = list(range(HOUR - 14 * 24, HOUR))
    made = run(saltus_host, hours, lambda hour: day(hour) + (1.0 if hour % 2 else -1.0), interval="0.95", horizon="1h")
    (point,) = made.points("forecast")
    width = float(point.fields["upper"]) - float(point.fields["lower"])
    assert width == pytest.approx(2 * 1.96, rel=0.05)


def test_gaps_in_the_history_do_no_harm(saltus_host: Host) -> None:
    hours = [hour for hour in range(HOUR - 14 * 24, HOUR) if hour % 7]
    for point in run(saltus_host, hours).points("forecast"):
        assert point.fields["value"] == pytest.approx(day(point.time // HOUR_NS), abs=0.01)


def test_too_little_history_is_said(saltus_host: Host) -> None:
    made = run(saltus_host, [HOUR - 2, HOUR - 1])
    made.assert_nothing_written()
    made.assert_logged("weather.temp: 2 steps of history, 16 are needed", "WARN")


def test_the_query_is_bounded_and_takes_values_as_parameters(saltus_host: Host) -> None:
    made = run(saltus_host, [], where="origin=it's host=a", history="2d")
    (query,) = made.queries
    start, end = (HOUR - 48) * HOUR_NS, HOUR * HOUR_NS
    assert f"time >= to_timestamp_nanos({start}) AND time < to_timestamp_nanos({end})" in query.sql
    assert '"origin" = $value0 AND "host" = $value1' in query.sql
    assert query.args == {"value0": "it's", "value1": "a"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"table": ""}, "argument table is missing"),
        ({"where": "origin"}, "argument where: 'origin' is not of the form"),
        ({"seasons": "30d"}, "fit into history"),
        ({"step": "1s"}, "from 1 to 20000 steps"),
        ({"harmonics": "many"}, "argument harmonics: 'many'"),
        ({"interval": "95"}, "argument interval: '95'"),
        ({"output": "weather"}, "must be another table"),
    ],
)
def test_arguments_are_checked(saltus_host: Host, args: dict[str, str], message: str) -> None:
    with pytest.raises(PluginFailed, match=message):
        run(saltus_host, [], **args)
