"""Tests of the state machine: `pytest` in this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from saltus.testing import Host, PluginFailed, Run

TRANSITIONS = "idle>running running>idle running>fault fault>idle"


def lines(*states: str, start: int = 1, machine: str = "m1") -> str:
    return "\n".join(f'press,machine={machine} mode="{state}" {start + at}000000000' for at, state in enumerate(states))


def changes(run: Run) -> list[tuple[object, object, object]]:
    return [(p.fields["before"], p.fields["after"], p.fields["allowed"]) for p in run.points("state_changes")]


def test_changes_are_written_with_how_long_the_state_before_lasted(saltus_host: Host) -> None:
    trigger = saltus_host.load("state_machine.py", args={"field": "mode", "device": "machine"})
    run = trigger.process_writes(lines("idle", "idle", "running", "running", "running", "idle"))
    assert changes(run) == [("idle", "running", True), ("running", "idle", True)]
    fields = {"before": "running", "after": "idle", "lasted_s": 3.0}
    run.assert_written("state_changes", tags={"machine": "m1", "table": "press"}, fields=fields, time=6_000_000_000)


def test_devices_are_followed_from_run_to_run_each_by_itself(saltus_host: Host) -> None:
    trigger = saltus_host.load("state_machine.py", args={"field": "mode", "device": "machine"})
    trigger.process_writes(lines("idle"), lines("running", machine="m2"))
    run = trigger.process_writes(lines("running", start=5), lines("running", start=5, machine="m2"))
    assert [(point.tags["machine"], point.fields["lasted_s"]) for point in run.points()] == [("m1", 4.0)]
    assert saltus_host.state()["devices"] == 2


def test_a_change_that_is_not_allowed_is_marked(saltus_host: Host) -> None:
    args = {"field": "mode", "transitions": TRANSITIONS}
    run = saltus_host.load("state_machine.py", args=args).process_writes(lines("idle", "fault", "idle"))
    assert changes(run) == [("idle", "fault", False), ("fault", "idle", True)]
    run.assert_logged("press: idle > fault is not allowed", "WARN")
    stay = saltus_host.load("state_machine.py", args={**args, "on_violation": "stay"}, name="stay")
    assert changes(stay.process_writes(lines("idle", "fault", "idle", "running"))) == [
        ("idle", "fault", False),
        ("idle", "running", True),
    ]


def test_rows_that_come_late_or_again_change_nothing(saltus_host: Host) -> None:
    trigger = saltus_host.load("state_machine.py", args={"field": "mode"})
    trigger.process_writes(lines("idle", "running", "running"))
    run = trigger.process_writes(lines("idle", "running", "idle"), attempt=1)
    run.assert_nothing_written()
    run.assert_logged("3 rows are not newer")


def test_a_run_that_fails_leaves_the_devices_as_they_were(saltus_host: Host) -> None:
    trigger = saltus_host.load("state_machine.py", args={"field": "mode", "device": "machine", "devices_max": "1"})
    trigger.process_writes(lines("idle"))
    with pytest.raises(PluginFailed, match="more than 1 devices"):
        trigger.process_writes(lines("running", start=2), lines("idle", machine="m2"))
    trigger.process_writes(lines("running", start=2)).assert_written("state_changes", count=1)


def test_numbers_and_booleans_are_states_too(saltus_host: Host) -> None:
    trigger = saltus_host.load("state_machine.py", args={"field": "mode"})
    assert changes(trigger.process_writes("a mode=1 1\na mode=2 2\nb mode=t 1\nb mode=f 2")) == [
        ("1", "2", True),
        ("true", "false", True),
    ]


def test_without_durable_state_it_keeps_devices_in_the_cache(saltus_host: Host, tmp_path: Path) -> None:
    # As on InfluxDB 3, whose API has no `state`.
    source = Path(__file__).with_name("state_machine.py").read_text()
    plugin = tmp_path / "plugin.py"
    plugin.write_text(source.replace('getattr(influxdb3_local, "state", None)', "None"))
    trigger = saltus_host.load(plugin, args={"field": "mode"})
    trigger.process_writes(lines("idle"))
    trigger.process_writes(lines("running", start=2)).assert_written("state_changes", count=1)
    assert saltus_host.state() == {}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "argument field is missing"),
        ({"field": "mode", "transitions": "idle"}, "argument transitions: 'idle' is not of the form"),
        ({"field": "mode", "transitions": "a>b>c"}, "is not of the form before>after"),
        ({"field": "mode", "on_violation": "panic"}, "argument on_violation: 'panic'"),
        ({"field": "mode", "devices_max": "-1"}, "argument devices_max: '-1'"),
    ],
)
def test_arguments_are_checked(saltus_host: Host, args: dict[str, str], message: str) -> None:
    with pytest.raises(PluginFailed, match=message):
        saltus_host.load("state_machine.py", args=args).process_writes(lines("idle"))
