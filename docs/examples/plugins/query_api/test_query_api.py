"""Tests of the HTTP query API: `pytest` in this folder."""

from __future__ import annotations

import re
from typing import Any

import pytest
from saltus.testing import Host, PluginFailed, Response

NOW = "2026-01-01T12:00:00Z"
NOW_NS = 1_767_268_800_000_000_000
HOUR_NS = 3_600_000_000_000
WEATHER = [
    {"column_name": "origin", "data_type": "Dictionary(Int32, Utf8)"},
    {"column_name": "temp", "data_type": "Float64"},
    {"column_name": "time", "data_type": "Timestamp(Nanosecond, None)"},
]


def ask(
    host: Host, query: dict[str, str], rows: list[dict[str, Any]] | None = None, **args: str
) -> tuple[Response, Any]:
    """The response, and the query for the rows."""
    host.clock.set(NOW)
    host.on_query(re.compile("information_schema"), lambda q: WEATHER if q.args["name"] == "weather" else [])
    host.on_query(re.compile("ORDER BY time"), rows or [])
    run = host.load("query_api.py", args={"tables": "weather later", **args}).process_request(query=query)
    assert run.response is not None
    return run.response, run.queries[-1] if run.queries else None


def test_rows_come_with_times_that_every_client_can_read(saltus_host: Host) -> None:
    rows = [{"time": NOW_NS - 1, "origin": "JFK", "temp": None}]
    response, query = ask(saltus_host, {"table": "weather"}, rows)
    assert (response.status, response.header("content-type")) == (200, "application/json")
    assert response.json() == {
        "table": "weather",
        "start": "2026-01-01T11:00:00Z",
        "end": "2026-01-01T12:00:00Z",
        "rows": [{"time": "2026-01-01T11:59:59.999999999Z", "origin": "JFK", "temp": None}],
    }
    assert query.sql == (
        'SELECT "time", "origin", "temp" FROM "weather" '
        f"WHERE time >= to_timestamp_nanos({NOW_NS - HOUR_NS}) AND time < to_timestamp_nanos({NOW_NS}) "
        "ORDER BY time DESC LIMIT 1000"
    )


def test_filters_are_parameters_of_the_query(saltus_host: Host) -> None:
    evil = "' OR 1=1 --"
    parameters = {"table": "weather", "columns": "temp,time,temp", "where.origin": evil, "limit": "5", "order": "asc"}
    _, query = ask(saltus_host, parameters)
    assert query.sql.startswith('SELECT "time", "temp" FROM "weather" WHERE ')
    assert query.sql.endswith(' AND "origin" = $value0 ORDER BY time ASC LIMIT 5')
    assert query.args == {"value0": evil}
    assert evil not in query.sql


def test_a_span_of_time_can_be_said_in_three_ways(saltus_host: Host) -> None:
    for parameters, start, end in [
        ({"since": "2h"}, NOW_NS - 2 * HOUR_NS, NOW_NS),
        ({"since": "2026-01-01T11:00:00.5+00:00"}, NOW_NS - HOUR_NS + 500_000_000, NOW_NS),
        ({"since": "30m", "until": "2026-01-01T11:00:00Z"}, NOW_NS - 3 * HOUR_NS // 2, NOW_NS - HOUR_NS),
    ]:
        _, query = ask(saltus_host, {"table": "weather", **parameters})
        assert f">= to_timestamp_nanos({start}) AND time < to_timestamp_nanos({end})" in query.sql


def test_csv(saltus_host: Host) -> None:
    rows = [{"time": NOW_NS, "origin": 'a,"b"', "temp": None}]
    response, _ = ask(saltus_host, {"table": "weather", "format": "csv"}, rows)
    assert response.header("Content-Type") == "text/csv; charset=utf-8"
    assert response.text == 'time,origin,temp\r\n2026-01-01T12:00:00Z,"a,""b""",\r\n'


@pytest.mark.parametrize(
    ("parameters", "status", "message"),
    [
        ({}, 400, "parameter table: must be one of weather, later"),
        ({"table": "system.tokens"}, 400, "parameter table: must be one of"),
        ({"table": "later"}, 404, "there is no table 'later' yet"),
        ({"table": "weather", "tabel": "x"}, 400, "unknown parameter 'tabel'"),
        ({"table": "weather", "columns": 'temp" FROM x --'}, 400, "parameter columns: there is no column"),
        ({"table": "weather", "where.temp": "1"}, 400, "parameter where.temp: there is no such tag; there are origin"),
        ({"table": "weather", "limit": "0"}, 400, "parameter limit: must be a number from 1 to 10000"),
        ({"table": "weather", "limit": "10001"}, 400, "parameter limit"),
        ({"table": "weather", "format": "xml"}, 400, "parameter format: must be one of json, csv"),
        ({"table": "weather", "order": "time; DROP"}, 400, "parameter order"),
        ({"table": "weather", "since": "8d"}, 400, "parameter since: at most 604800 seconds"),
        ({"table": "weather", "since": "yesterday"}, 400, "parameter since: 'yesterday' is no time"),
        ({"table": "weather", "since": "2026-13-01T00:00:00Z"}, 400, "is no time"),
        ({"table": "weather", "until": "9999-01-01T00:00:00Z"}, 400, "is no time"),
        ({"table": "weather", "since": "2027-01-01T00:00:00Z"}, 400, "must be before until"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    saltus_host: Host, parameters: dict[str, str], status: int, message: str
) -> None:
    response, _ = ask(saltus_host, parameters)
    assert response.status == status
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "argument tables is missing"),
        ({"tables": "a", "max_range": "1w"}, "argument max_range: '1w' is no duration"),
        ({"tables": "a", "limit_max": "0"}, "argument limit_max: '0' is no number"),
    ],
)
def test_arguments_are_checked(saltus_host: Host, args: dict[str, str], message: str) -> None:
    with pytest.raises(PluginFailed, match=message):
        saltus_host.load("query_api.py", args=args).process_request()
