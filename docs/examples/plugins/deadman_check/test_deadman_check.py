"""Tests of the deadman check: `pytest` in this folder."""

from __future__ import annotations

import pytest
from saltus.testing import Host, PluginFailed

NOW = "2026-01-01T12:00:00Z"
NOW_NS = 1_767_268_800_000_000_000
MINUTE_NS = 60_000_000_000


def rows(*silent_minutes: float) -> list[dict[str, object]]:
    return [{"host": f"h{at}", "last_seen": NOW_NS - int(m * MINUTE_NS)} for at, m in enumerate(silent_minutes)]


def test_every_series_gets_a_row_at_the_time_of_the_call(saltus_host: Host) -> None:
    trigger = saltus_host.load("deadman_check.py", args={"table": "cpu", "tags": "host", "silence": "10m"})
    saltus_host.on_query(lambda query: True, rows(1, 10, 30))
    run = trigger.process_scheduled_call(NOW)
    run.assert_written("deadman", tags={"table": "cpu", "host": "h0"}, fields={"up": True, "silent_s": 60.0}, time=NOW)
    run.assert_written("deadman", tags={"host": "h1"}, fields={"up": False}, time=NOW)
    run.assert_written("deadman", tags={"host": "h2"}, fields={"up": False, "silent_s": 1800.0}, count=1)
    run.assert_logged("cpu host=h2 is down: silent for 1800 s", "WARN")


def test_it_is_said_once_when_a_series_goes_down_and_once_when_it_is_back(saltus_host: Host) -> None:
    trigger = saltus_host.load("deadman_check.py", args={"table": "cpu", "tags": "host"})
    said = []
    for minutes in (1, 11, 12, 0):
        saltus_host.on_query(lambda query: True, rows(minutes))
        said.append([line.level for line in trigger.process_scheduled_call(NOW).logs])
    assert said == [[], ["WARN"], [], ["INFO"]]


def test_the_query_is_bounded_in_time_and_quotes_names(saltus_host: Host) -> None:
    saltus_host.on_query(lambda query: True, [])
    args = {"table": 'a"b', "tags": 'x"y z', "lookback": "1h", "series_max": "5"}
    run = saltus_host.load("deadman_check.py", args=args).process_scheduled_call(NOW)
    assert run.queries[0].sql == (
        'SELECT "x""y", "z", max(time) AS last_seen FROM "a""b" '
        f"WHERE time >= to_timestamp_nanos({NOW_NS - 60 * MINUTE_NS}) AND time <= to_timestamp_nanos({NOW_NS}) "
        'GROUP BY "x""y", "z" LIMIT 6'
    )


def test_a_table_without_tags_is_one_series_and_an_empty_one_is_said(saltus_host: Host) -> None:
    trigger = saltus_host.load("deadman_check.py", args={"table": "cpu"})
    saltus_host.on_query(lambda query: True, [{"last_seen": NOW_NS}])
    trigger.process_scheduled_call(NOW).assert_written("deadman", tags={"table": "cpu"}, fields={"up": True}, count=1)
    saltus_host.on_query(lambda query: True, [{"last_seen": None}])
    run = trigger.process_scheduled_call(NOW)
    run.assert_nothing_written()
    run.assert_logged("cpu has no rows since 24h", "WARN")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "argument table is missing"),
        ({"table": "cpu", "silence": "10"}, "argument silence: '10' is no duration"),
        ({"table": "cpu", "silence": "0m"}, "argument silence: '0m' is no duration"),
        ({"table": "cpu", "silence": "2d"}, "lookback must be longer than silence"),
        ({"table": "cpu", "series_max": "many"}, "argument series_max: 'many' is no number"),
    ],
)
def test_arguments_are_checked(saltus_host: Host, args: dict[str, str], message: str) -> None:
    with pytest.raises(PluginFailed, match=message):
        saltus_host.load("deadman_check.py", args=args).process_scheduled_call(NOW)


def test_too_many_series_are_an_error(saltus_host: Host) -> None:
    saltus_host.on_query(lambda query: True, rows(1, 2, 3))
    trigger = saltus_host.load("deadman_check.py", args={"table": "cpu", "tags": "host", "series_max": "2"})
    with pytest.raises(PluginFailed, match="more than 2 series"):
        trigger.process_scheduled_call(NOW)
