"""
{
    "plugin_type": ["onwrite"],
    "onwrite_args_config": [
        {"name": "field", "example": "mode", "description": "The column that says the state: text, a number or a boolean.", "required": true},
        {"name": "device", "example": "line machine", "description": "Tags that name the device, separated by spaces. Default: a table is one device.", "required": false},
        {"name": "transitions", "example": "idle>running running>idle running>fault fault>idle", "description": "Changes that are allowed, separated by spaces. Default: all.", "required": false},
        {"name": "on_violation", "example": "stay", "description": "After a change that is not allowed: follow (take the new state) or stay. Default follow.", "required": false},
        {"name": "output", "example": "state_changes", "description": "The table to write. Default state_changes.", "required": false},
        {"name": "devices_max", "example": "5000", "description": "More devices than this are an error. Default 5000.", "required": false}
    ]
}
"""

# State machine: follows the state of devices and writes what changes, with how long the state before had lasted.
#
# On Saltus what is known of a device is in the trigger's durable state, which is committed together with the rows that a
# run writes: over a crash of the server no change is lost and none is written twice. Elsewhere it is in the cache, and a
# restart begins anew.

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saltus import InfluxDB3Local, LineBuilder, TableBatch

SECOND_NS = 1_000_000_000
STATE_LENGTH_MAX = 128


class Machine:
    """Which changes are allowed; says what is wrong with the arguments."""

    def __init__(self, args: dict[str, str]) -> None:
        self.field = args.get("field", "").strip()
        if not self.field:
            raise ValueError("argument field is missing; create the trigger with --trigger-arguments field=...")
        self.device = args.get("device", "").split()
        self.transitions = set()
        for item in args.get("transitions", "").split():
            before, arrow, after = item.partition(">")
            if not before or not arrow or not after or ">" in after:
                raise ValueError(f"argument transitions: {item!r} is not of the form before>after")
            self.transitions.add((before, after))
        self.on_violation = args.get("on_violation", "follow").strip()
        if self.on_violation not in ("follow", "stay"):
            raise ValueError(f"argument on_violation: {self.on_violation!r} is neither follow nor stay")
        self.output = args.get("output", "state_changes")
        devices_max = args.get("devices_max", "5000")
        if re.fullmatch(r"[1-9][0-9]{0,8}", devices_max) is None:
            raise ValueError(f"argument devices_max: {devices_max!r} is no number from 1 to 999999999")
        self.devices_max = int(devices_max)

    def allows(self, before: str, after: str) -> bool:
        """Whether a device may change so."""
        return not self.transitions or (before, after) in self.transitions


class Devices:
    """What is known of devices: the state, since when, and the time of the last row. Changed for good only by `save`."""

    def __init__(self, influxdb3_local: InfluxDB3Local) -> None:
        durable = getattr(influxdb3_local, "state", None)
        self.store: Any = influxdb3_local.cache if durable is None else durable
        self.count: int = self.store.get("devices", 0)
        self.seen: dict[str, dict[str, Any] | None] = {}

    def get(self, name: str) -> dict[str, Any] | None:
        """What is known of a device."""
        if name not in self.seen:
            self.seen[name] = self.store.get(f"device {name}")
        return self.seen[name]

    def put(self, name: str, state: str, since_ns: int, last_ns: int) -> None:
        """What is known from now on."""
        if self.get(name) is None:
            self.count += 1
        self.seen[name] = {"state": state, "since": since_ns, "last": last_ns}

    def save(self, devices_max: int) -> None:
        """Keeps what has changed."""
        if self.count > devices_max:
            raise ValueError(
                f"more than {devices_max} devices; name fewer tags in the argument device, or raise devices_max"
            )
        self.store.put("devices", self.count)
        for name, known in self.seen.items():
            if known is not None:
                self.store.put(f"device {name}", known)


def process_writes(
    influxdb3_local: InfluxDB3Local, table_batches: list[TableBatch], args: dict[str, str] | None = None
) -> None:
    """Called by the host with the rows that were written."""
    machine = Machine(args or {})
    devices = Devices(influxdb3_local)
    late = 0
    for batch in table_batches:
        if batch["table_name"] == machine.output:
            continue
        for row in batch["rows"]:
            if row.get(machine.field) is not None:
                late += not follow(influxdb3_local, machine, devices, batch["table_name"], row)
    devices.save(machine.devices_max)
    if late:
        influxdb3_local.info(f"{late} rows are not newer than the last of their device and change nothing")


def follow(
    influxdb3_local: InfluxDB3Local, machine: Machine, devices: Devices, table: str, row: dict[str, Any]
) -> bool:
    """Takes a row in; false if it comes too late to say anything."""
    tags = {tag: str(row[tag]) for tag in machine.device if row.get(tag) is not None}
    name = json.dumps([table, *tags.items()])
    after = text_of(row[machine.field])
    known = devices.get(name)
    if known is None:
        devices.put(name, after, row["time"], row["time"])
        return True
    if row["time"] <= known["last"]:
        return False
    before, since_ns = known["state"], known["since"]
    if after == before:
        devices.put(name, before, since_ns, row["time"])
        return True
    allowed = machine.allows(before, after)
    report(influxdb3_local, machine, table, tags, known, after, row["time"], allowed)
    if allowed or machine.on_violation == "follow":
        devices.put(name, after, row["time"], row["time"])
    else:
        devices.put(name, before, since_ns, row["time"])
    return True


def text_of(value: object) -> str:
    """A state as text: `2.0` and `2` are the same state."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)[:STATE_LENGTH_MAX]


def report(
    influxdb3_local: InfluxDB3Local,
    machine: Machine,
    table: str,
    tags: dict[str, str],
    known: dict[str, Any],
    after: str,
    time_ns: int,
    allowed: bool,
) -> None:
    """A change as a row, at its time."""
    line = LineBuilder(machine.output).tag("table", table)
    for tag, text in tags.items():
        if text and tag != "table":
            line.tag(tag, text)
    line.string_field("before", known["state"]).string_field("after", after).bool_field("allowed", allowed)
    line.float64_field("lasted_s", (time_ns - known["since"]) / SECOND_NS).time_ns(time_ns)
    influxdb3_local.write(line)
    if not allowed:
        device = " ".join([table, *(f"{tag}={text}" for tag, text in tags.items())])
        influxdb3_local.warn(f"{device}: {known['state']} > {after} is not allowed")
