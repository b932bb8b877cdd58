"""Tests of the downsampler: `pytest` in this folder."""

from __future__ import annotations

import re

import pytest
from saltus.testing import Host, PluginFailed, Query, Trigger

CALL = "2026-01-01T12:07:00Z"
# Five-minute windows: the last one that is over is 12:00 to 12:05.
WINDOW = 1_767_268_800_000_000_000
MINUTE_NS = 60_000_000_000
CPU: list[dict[str, object]] = [
    {"column_name": "host", "data_type": "Dictionary(Int32, Utf8)"},
    {"column_name": "note", "data_type": "Utf8"},
    {"column_name": "time", "data_type": "Timestamp(Nanosecond, None)"},
    {"column_name": "usage", "data_type": "Float64"},
    {"column_name": "procs", "data_type": "Int64"},
]


def prepared(host: Host, rows: list[dict[str, object]], last: int | None = None, **args: str) -> Trigger:
    """A downsampler of cpu, whose target has rows up to `last`."""

    def columns(query: Query) -> list[dict[str, object]]:
        return CPU if query.args["name"] == "cpu" else [] if last is None else CPU[:1]

    host.on_query(re.compile("information_schema"), columns)
    host.on_query(re.compile("max.time. AS last"), [{"last": last}])
    host.on_query(re.compile("date_bin"), rows)
    return host.load("downsampler.py", args={"source": "cpu", **args})


def row(**more: object) -> dict[str, object]:
    return {"window_start": WINDOW, "host": "a", "usage": 1.5, "procs": 3.0, **more}


def test_a_window_is_written_at_its_start_with_the_tags_of_its_rows(saltus_host: Host) -> None:
    run = prepared(saltus_host, [row(), row(host="", procs=None)]).process_scheduled_call(CALL)
    run.assert_written("cpu_5m", tags={"host": "a"}, fields={"usage": 1.5, "procs": 3.0}, time=WINDOW)
    assert [(point.tags, point.fields) for point in run.points("cpu_5m")][1] == ({}, {"usage": 1.5})


def test_windows_go_on_behind_what_the_target_has(saltus_host: Host) -> None:
    run = prepared(saltus_host, [], last=WINDOW - 10 * MINUTE_NS).process_scheduled_call(CALL)
    assert f"time >= to_timestamp_nanos({WINDOW - 5 * MINUTE_NS}) " in run.queries[-1].sql
    assert f"time < to_timestamp_nanos({WINDOW + 5 * MINUTE_NS}) " in run.queries[-1].sql
    assert "2 windows at once" in run.logs[-1].text


def test_after_a_long_pause_it_goes_back_no_further_than_catch_up(saltus_host: Host) -> None:
    run = prepared(saltus_host, [], catch_up="15m").process_scheduled_call(CALL)
    assert f"time >= to_timestamp_nanos({WINDOW - 10 * MINUTE_NS}) " in run.queries[-1].sql


def test_nothing_is_done_while_no_window_is_over(saltus_host: Host) -> None:
    run = prepared(saltus_host, [], last=WINDOW).process_scheduled_call(CALL)
    assert not any("date_bin" in query.sql for query in run.queries)
    late = prepared(saltus_host, [], last=WINDOW - 5 * MINUTE_NS, lag="3m").process_scheduled_call(CALL)
    assert not any("date_bin" in query.sql for query in late.queries), "12:05 is not yet three minutes ago"


def test_several_aggregates_have_names_of_their_own(saltus_host: Host) -> None:
    rows = [{"window_start": WINDOW, "host": "a", "usage_max": 2.0, "usage_count": 7}]
    trigger = prepared(saltus_host, rows, fields="usage", aggregates="max count", target="hourly", interval="1h")
    run = trigger.process_scheduled_call(CALL)
    run.assert_written("hourly", fields={"usage_max": 2.0, "usage_count": 7})
    assert run.queries[-1].sql.startswith(
        "SELECT date_bin(INTERVAL '3600 seconds', time, to_timestamp_nanos(0)) AS window_start, \"host\", "
        'max("usage") AS "usage_max", count("usage") AS "usage_count" FROM "cpu" WHERE '
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"aggregates": "avg mean"}, "argument aggregates: 'mean' is none of avg min"),
        ({"target": "cpu"}, "must be another table"),
        ({"fields": "note"}, "argument fields: 'note' is no number of cpu; it has usage procs"),
        ({"catch_up": "1m"}, "at least one interval"),
        ({"interval": "5"}, "argument interval: '5' is no duration"),
    ],
)
def test_arguments_are_checked(saltus_host: Host, args: dict[str, str], message: str) -> None:
    with pytest.raises(PluginFailed, match=message):
        prepared(saltus_host, [], None, **args).process_scheduled_call(CALL)


def test_more_rows_than_allowed_are_an_error(saltus_host: Host) -> None:
    with pytest.raises(PluginFailed, match="more than 1 rows"):
        prepared(saltus_host, [row(), row(host="b")], rows_max="1").process_scheduled_call(CALL)


def test_a_source_that_is_not_there_is_named(saltus_host: Host) -> None:
    trigger = prepared(saltus_host, [])
    trigger.args = {"source": "nothing"}
    with pytest.raises(PluginFailed, match="there is no table 'nothing' yet"):
        trigger.process_scheduled_call(CALL)
