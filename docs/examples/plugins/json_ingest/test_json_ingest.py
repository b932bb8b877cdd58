"""Tests of the JSON ingest: `pytest` in this folder."""

from __future__ import annotations

import json
from typing import Any

import pytest
from saltus.testing import Host, PluginFailed, Run

NOON_NS = 1_767_268_800_000_000_000


def send(host: Host, body: Any, headers: dict[str, str] | None = None, **args: str) -> tuple[int, Any, Run]:
    trigger = host.load("json_ingest.py", args={"table": "sensors", "tags": "device", **args})
    text = body if isinstance(body, (str, bytes)) else json.dumps(body)
    run = trigger.process_request("POST", body=text, headers=headers)
    assert run.response is not None
    return run.response.status, run.response.json(), run


def test_an_object_becomes_a_row(saltus_host: Host) -> None:
    record = {"device": "a b", "temp": 21, "on": True, "note": 'say "hi"', "gone": None, "time": 1767268800000}
    status, answer, run = send(saltus_host, record)
    assert (status, answer) == (200, {"written": 1})
    fields = {"temp": 21.0, "on": True, "note": 'say "hi"'}
    run.assert_written("sensors", tags={"device": "a b"}, fields=fields, time=NOON_NS, count=1)


def test_arrays_and_lines_of_objects(saltus_host: Host) -> None:
    assert send(saltus_host, [{"v": 1, "time": 1}, {"v": 2, "time": 2}])[1] == {"written": 2}
    assert send(saltus_host, '{"v": 1, "time": 3}\r\n\n{"v": 2, "time": 4}\n')[1] == {"written": 2}
    assert len(saltus_host.database().rows("sensors")) == 4


def test_nested_objects_and_odd_names(saltus_host: Host) -> None:
    _, _, run = send(saltus_host, {"gps": {"lat": 1.5, "fix": {"n": 3}}, "Air Temp,C=": 4, "time": 1}, numbers="keep")
    run.assert_written("sensors", fields={"gps_lat": 1.5, "gps_fix_n": 3, "Air_Temp_C_": 4})


def test_numbers_are_floats_unless_told_otherwise(saltus_host: Host) -> None:
    send(saltus_host, [{"v": 1, "time": 1}, {"v": 1.5, "time": 2}])
    assert saltus_host.database().columns("sensors")["v"] == "float"
    status, answer, _ = send(saltus_host, [{"w": 1, "time": 1}, {"w": 1.5, "time": 2}], numbers="keep")
    assert status == 400
    assert "invalid column type for column 'w'" in answer["error"]


def test_times_in_every_form(saltus_host: Host) -> None:
    for time, unit in [
        (1767268800, "s"),
        (1767268800.0, "s"),
        (1767268800000000, "us"),
        ("2026-01-01T12:00:00Z", "s"),
        ("2026-01-01T13:00:00.000000000+01:00", "s"),
    ]:
        send(saltus_host, {"v": 1, "ts": time}, time_key="ts", time_unit=unit)[2].assert_written(
            "sensors", time=NOON_NS
        )


def test_records_without_a_time_do_not_overwrite_each_other(saltus_host: Host) -> None:
    saltus_host.clock.set("2026-01-01T12:00:00Z")
    send(saltus_host, [{"v": 1}, {"v": 2}])
    assert [row["time"] for row in saltus_host.database().rows("sensors")] == [NOON_NS, NOON_NS + 1]


def test_nothing_is_written_of_a_request_with_a_bad_record(saltus_host: Host) -> None:
    records = [{"v": 1, "time": 1}, {"device": "a"}, 5, {"v": [1]}, {"v": 1, "time": "noon"}, {"v": 10**400}]
    status, answer, run = send(saltus_host, records)
    assert (status, answer["written"], answer["failed"]) == (400, 0, 5)
    assert [error["record"] for error in answer["errors"]] == [1, 2, 3, 4, 5]
    assert answer["errors"][0]["error"] == "there is no value besides tags and time"
    run.assert_nothing_written()


def test_partial_writes_the_good_records(saltus_host: Host) -> None:
    status, answer, run = send(saltus_host, [{"v": 1, "time": 1}, {}], partial="true")
    assert (status, answer["written"], answer["failed"]) == (200, 1, 1)
    run.assert_written("sensors", count=1)
    assert send(saltus_host, [{}], partial="true")[0] == 400


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "the body is empty"),
        (b"\xff", "the body is no UTF-8"),
        ("{", "the body is no JSON"),
        ('{"v": 1}\n{"v": }', "line 2 is no JSON"),
        ('{"v": NaN}', "NaN is no number of JSON"),
        ('{"v": 1, "v": 2}', "a key is there twice"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_json_is_said(saltus_host: Host, body: Any, message: str) -> None:
    status, answer, _ = send(saltus_host, body)
    assert status == 400
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"device": "a\nb", "v": 1}, "control characters"),
        ({"device": [1], "v": 1}, "device: an array cannot be a tag"),
        ({"  ": 1}, "is no name of a field"),
        ({"v": "x", "a": {"b": {"c": None}}, "time": True}, "time: True is no time"),
    ],
)
def test_no_record_can_smuggle_a_line_in(saltus_host: Host, record: Any, message: str) -> None:
    status, answer, run = send(saltus_host, record)
    assert status == 400
    assert message in answer["errors"][0]["error"]
    run.assert_nothing_written()


def test_text_keeps_its_newlines_and_stays_one_row(saltus_host: Host) -> None:
    _, answer, run = send(saltus_host, {"note": 'a\nevil v=1 1\n"', "time": 1})
    assert answer == {"written": 1}
    run.assert_written("sensors", fields={"note": 'a\nevil v=1 1\n"'}, count=1)
    assert saltus_host.database().tables() == ["sensors"]


def test_a_token_is_wanted(saltus_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGEST_TOKEN", "s3cret")
    record = {"v": 1, "time": 1}
    for headers, status in [({}, 401), ({"X-Ingest-Token": "wrong"}, 401), ({"X-Ingest-Token": "s3cret"}, 200)]:
        assert send(saltus_host, record, headers, token_env="INGEST_TOKEN")[0] == status


def test_too_many_records_are_refused(saltus_host: Host) -> None:
    assert send(saltus_host, [{"v": 1}] * 3, records_max="2")[0] == 413


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"table": ""}, "argument table is missing"),
        ({"time_unit": "h"}, "argument time_unit: 'h' is none of s ms us ns"),
        ({"numbers": "int"}, "argument numbers: 'int'"),
        ({"partial": "yes"}, "argument partial: 'yes'"),
        ({"records_max": "0"}, "argument records_max: '0'"),
        ({"token_env": "NOT_SET_ANYWHERE"}, "has no variable NOT_SET_ANYWHERE"),
    ],
)
def test_arguments_are_checked(saltus_host: Host, args: dict[str, str], message: str) -> None:
    with pytest.raises(PluginFailed, match=message):
        send(saltus_host, {"v": 1}, None, **args)
