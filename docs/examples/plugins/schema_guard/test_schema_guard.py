"""Tests of the schema guard: `pytest` in this folder."""

from __future__ import annotations

import pytest
from saltus.testing import Host, PluginFailed


def violations(host: Host, lines: str, **args: str) -> list[tuple[str, str, int, str]]:
    run = host.load("schema_guard.py", args=args).process_writes(lines)
    return [
        (point.tags["column"], point.tags["rule"], int(point.fields["count"]), str(point.fields["example"]))
        for point in run.points("schema_violations")
    ]


def test_a_row_that_keeps_the_contract_gives_nothing(saltus_host: Host) -> None:
    args = {
        "required": "host temp",
        "types": "temp:float host:str",
        "ranges": "temp:-50..60",
        "patterns": "host:h[0-9]",
    }
    trigger = saltus_host.load("schema_guard.py", args={**args, "known_only": "true", "max_length": "9"})
    run = trigger.process_writes("room,host=h1 temp=21 1")
    run.assert_nothing_written()
    assert run.logs == []


def test_every_rule_finds_what_breaks_it(saltus_host: Host) -> None:
    lines = 'room,host=h1 temp=21 1\nroom hum=1 2\nroom,host=x temp=99,on=t,note="abcdef" 3'
    args = {"required": "host", "types": "on:int hum:number", "ranges": "temp:..60 hum:2.."}
    found = violations(saltus_host, lines, **args, patterns="host:h[0-9]", max_length="5", known_only="true")
    assert sorted(found) == [
        ("host", "pattern", 1, "'x'"),
        ("host", "required", 1, "nothing"),
        ("hum", "range", 1, "1.0"),
        ("note", "length", 1, "6 characters"),
        ("note", "unknown", 1, "'abcdef'"),
        ("on", "type", 1, "bool True"),
        ("temp", "range", 1, "99.0"),
    ]


def test_violations_of_a_write_are_counted_and_dated_with_the_first(saltus_host: Host) -> None:
    trigger = saltus_host.load("schema_guard.py", args={"ranges": "temp:0..9", "examples_max": "2"})
    run = trigger.process_writes("room temp=10 30\nroom temp=11 10\nroom temp=12 20\nroom temp=1 5")
    run.assert_written(
        "schema_violations", tags={"table": "room"}, fields={"count": 3, "example": "10.0"}, time=10, count=1
    )
    run.assert_logged(r"^room\.temp breaks range in 3 rows, for instance 10\.0, 11\.0$", "WARN")


def test_rows_from_the_future_are_found(saltus_host: Host) -> None:
    saltus_host.clock.set("2026-01-01T00:00:00Z")
    now = saltus_host.clock.now_ns()
    lines = f"room temp=1 {now + 300 * 10**9}\nroom temp=1 {now + 301 * 10**9}"
    assert violations(saltus_host, lines, max_ahead="5m") == [("time", "ahead", 1, "301 s ahead")]


def test_its_own_output_is_left_alone(saltus_host: Host) -> None:
    trigger = saltus_host.load("schema_guard.py", args={"required": "host"})
    trigger.process_writes("schema_violations x=1 1").assert_nothing_written()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "no rule is given"),
        ({"types": "temp"}, "argument types: 'temp' is not of the form column:rule"),
        ({"types": "temp:double"}, "argument types: 'double' is none of str int"),
        ({"ranges": "temp:5"}, "argument ranges: '5' is not of the form"),
        ({"ranges": "temp:a..b"}, "argument ranges: 'a' is no number"),
        ({"patterns": "host:("}, "is no regular expression"),
        ({"max_length": "0"}, "argument max_length: '0' is no number"),
        ({"required": "a", "known_only": "maybe"}, "neither true nor false"),
        ({"max_ahead": "5"}, "argument max_ahead: '5' is no duration"),
    ],
)
def test_arguments_are_checked(saltus_host: Host, args: dict[str, str], message: str) -> None:
    with pytest.raises(PluginFailed, match=message):
        saltus_host.load("schema_guard.py", args=args).process_writes("room temp=1 1")
