"""Tests of the CSV export: `pytest` in this folder."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path
from typing import Any

import pytest
from saltus.testing import Host, PluginFailed, Trigger

CALL = "2026-01-01T12:07:00Z"
NOON_NS = 1_767_268_800_000_000_000
HOUR_NS = 3_600_000_000_000
WEATHER = [
    {"column_name": "humid", "data_type": "Float64"},
    {"column_name": "origin", "data_type": "Dictionary(Int32, Utf8)"},
    {"column_name": "risk", "data_type": "Utf8"},
    {"column_name": "time", "data_type": "Timestamp(Nanosecond, None)"},
]
ROWS = [
    {"time": NOON_NS - HOUR_NS, "origin": "JFK", "humid": 50.5, "risk": '=cmd|"x"'},
    {"time": NOON_NS - 1, "origin": "EWR", "humid": None, "risk": "none"},
]


def export(host: Host, folder: Path, rows: list[dict[str, Any]] | None = None, **args: str) -> Trigger:
    host.on_query(re.compile("information_schema"), lambda q: WEATHER if q.args["name"] == "weather" else [])
    host.on_query(re.compile("ORDER BY time"), ROWS if rows is None else rows)
    settings = {"table": "weather", "directory": str(folder), "catch_up": "1h", **args}
    return host.load("csv_export.py", args=settings)


def test_a_window_that_is_over_becomes_a_file(saltus_host: Host, tmp_path: Path) -> None:
    run = export(saltus_host, tmp_path).process_scheduled_call(CALL)
    (path,) = tmp_path.iterdir()
    assert path.name == "weather_20260101T110000Z.csv"
    assert path.read_bytes() == (
        b"time,origin,humid,risk\r\n"
        b'2026-01-01T11:00:00Z,JFK,50.5,"=cmd|""x"""\r\n'
        b"2026-01-01T11:59:59.999999999Z,EWR,,none\r\n"
    )
    assert (
        f"time >= to_timestamp_nanos({NOON_NS - HOUR_NS}) AND time < to_timestamp_nanos({NOON_NS})"
        in run.queries[-1].sql
    )
    run.assert_logged("weather_20260101T110000Z.csv: 2 rows")


def test_a_file_that_is_there_is_not_made_again(saltus_host: Host, tmp_path: Path) -> None:
    trigger = export(saltus_host, tmp_path)
    trigger.process_scheduled_call(CALL)
    assert trigger.process_scheduled_call(CALL).queries == []
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    path.unlink()
    trigger.process_scheduled_call(CALL)
    assert path.read_bytes() == before


def test_after_a_pause_every_window_gets_its_file(saltus_host: Host, tmp_path: Path) -> None:
    export(saltus_host, tmp_path, catch_up="3h", lag="10m").process_scheduled_call(CALL)
    assert sorted(path.name[8:] for path in tmp_path.iterdir()) == [
        "20260101T080000Z.csv",
        "20260101T090000Z.csv",
        "20260101T100000Z.csv",
    ]


def test_compressed_files_and_columns_in_another_order(saltus_host: Host, tmp_path: Path) -> None:
    export(saltus_host, tmp_path, compress="true", columns="risk time", spreadsheet="true").process_scheduled_call(CALL)
    (path,) = tmp_path.iterdir()
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert lines[:2] == ["risk,time", '"\'=cmd|""x""",2026-01-01T11:00:00Z']


def test_a_window_without_rows_makes_no_file(saltus_host: Host, tmp_path: Path) -> None:
    export(saltus_host, tmp_path, rows=[]).process_scheduled_call(CALL)
    assert list(tmp_path.iterdir()) == []


def test_a_name_does_not_lead_out_of_the_folder(saltus_host: Host, tmp_path: Path) -> None:
    saltus_host.on_query(re.compile("."), ROWS)
    saltus_host.on_query(re.compile("information_schema"), WEATHER)
    settings = {"table": "../up/weather", "directory": str(tmp_path), "catch_up": "1h"}
    saltus_host.load("csv_export.py", args=settings).process_scheduled_call(CALL)
    assert [path.name for path in tmp_path.iterdir()] == ["%2fup%2fweather_20260101T110000Z.csv"]


def test_nothing_is_left_of_a_file_that_could_not_be_written(
    saltus_host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str, target: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PluginFailed, match="disk full"):
        export(saltus_host, tmp_path).process_scheduled_call(CALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"directory": "relative"}, "'relative' is no absolute path"),
        ({"directory": "/nowhere/at/all"}, "there is no folder"),
        ({"window": "7m"}, "must divide a day"),
        ({"window": "2h"}, "catch_up: it must be at least one window"),
        ({"columns": "temp"}, "weather has no 'temp'; it has humid origin risk time"),
        ({"rows_max": "1"}, "more than 1 rows"),
        ({"table": "other"}, "there is no table 'other' yet"),
        ({"compress": "gzip"}, "argument compress: 'gzip' is neither"),
    ],
)
def test_arguments_are_checked(saltus_host: Host, tmp_path: Path, args: dict[str, str], message: str) -> None:
    with pytest.raises(PluginFailed, match=message):
        export(saltus_host, tmp_path, None, **args).process_scheduled_call(CALL)
