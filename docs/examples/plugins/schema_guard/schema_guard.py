"""
{
    "plugin_type": ["onwrite"],
    "onwrite_args_config": [
        {"name": "required", "example": "host temp", "description": "Columns that every row must have, separated by spaces.", "required": false},
        {"name": "types", "example": "temp:float host:str", "description": "Types of columns: str, int, float, number or bool.", "required": false},
        {"name": "ranges", "example": "temp:-50..60 humid:0..", "description": "Lowest and highest value of numbers; either may be left out.", "required": false},
        {"name": "patterns", "example": "host:srv-[0-9]+", "description": "Regular expressions that the whole text must match; no spaces.", "required": false},
        {"name": "max_length", "example": "64", "description": "Characters of any text. Default: no limit.", "required": false},
        {"name": "known_only", "example": "true", "description": "A column that no other argument names is a violation. Default false.", "required": false},
        {"name": "max_ahead", "example": "5m", "description": "How far in the future a row's time may be. Default: no limit.", "required": false},
        {"name": "output", "example": "schema_violations", "description": "The table to write. Default schema_violations.", "required": false},
        {"name": "examples_max", "example": "3", "description": "Rows of a violation that are shown in the log. Default 3.", "required": false}
    ]
}
"""

# Schema guard: checks what is written against a contract and reports what breaks it.
#
# The database takes every well-formed row; what a column means is the business of those who write it, and the first
# thing to rot. One row per table, column and rule that was broken is written for each write, with how often and one
# example. Nothing is taken away: the rows are where they were written.

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saltus import InfluxDB3Local, LineBuilder, TableBatch

SECOND_NS = 1_000_000_000
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
TYPES = ("str", "int", "float", "number", "bool")
EXAMPLE_LENGTH = 120


def pairs(args: dict[str, str], name: str) -> list[tuple[str, str]]:
    """An argument of the form `column:rule column:rule`."""
    found = []
    for item in args.get(name, "").split():
        column, colon, rule = item.partition(":")
        if not column or not colon or not rule:
            raise ValueError(f"argument {name}: {item!r} is not of the form column:rule")
        found.append((column, rule))
    return found


def bound(name: str, text: str, default: float) -> float:
    """One end of a range."""
    if not text:
        return default
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"argument {name}: {text!r} is no number") from None


class Contract:
    """What rows must be like; says what is wrong with the arguments."""

    def __init__(self, args: dict[str, str]) -> None:
        self.required = args.get("required", "").split()
        self.types = pairs(args, "types")
        wrong = [kind for _, kind in self.types if kind not in TYPES]
        if wrong:
            raise ValueError(f"argument types: {wrong[0]!r} is none of {' '.join(TYPES)}")
        self.ranges = []
        for column, text in pairs(args, "ranges"):
            low, dots, high = text.partition("..")
            if not dots:
                raise ValueError(f"argument ranges: {text!r} is not of the form lowest..highest")
            self.ranges.append((column, bound("ranges", low, float("-inf")), bound("ranges", high, float("inf"))))
        self.patterns = []
        for column, text in pairs(args, "patterns"):
            try:
                self.patterns.append((column, re.compile(text)))
            except re.error as error:
                raise ValueError(f"argument patterns: {text!r} is no regular expression: {error}") from None
        self.max_length = self._count(args, "max_length")
        self.max_ahead_ns = self._duration(args, "max_ahead")
        known_only = args.get("known_only", "false").strip().lower()
        if known_only not in ("true", "false"):
            raise ValueError(f"argument known_only: {known_only!r} is neither true nor false")
        named = [*self.required, *(rule[0] for rules in (self.types, self.ranges, self.patterns) for rule in rules)]
        self.known = {*named, "time"} if known_only == "true" else None
        self.output = args.get("output", "schema_violations")
        self.examples_max = self._count(args, "examples_max") or 3
        if not (named or self.max_length or self.max_ahead_ns):
            raise ValueError("no rule is given: use required, types, ranges, patterns, max_length or max_ahead")

    @staticmethod
    def _count(args: dict[str, str], name: str) -> int | None:
        text = args.get(name)
        if text is not None and (re.fullmatch(r"[0-9]{1,9}", text.strip()) is None or int(text) == 0):
            raise ValueError(f"argument {name}: {text!r} is no number from 1 to 999999999")
        return None if text is None else int(text)

    @staticmethod
    def _duration(args: dict[str, str], name: str) -> int | None:
        text = args.get(name)
        match = re.fullmatch(r"([0-9]{1,9})([smhd])", (text or "").strip())
        if text is not None and match is None:
            raise ValueError(f"argument {name}: {text!r} is no duration; write for instance 30s or 5m")
        return None if match is None else int(match[1]) * UNIT_SECONDS[match[2]] * SECOND_NS

    def broken_by(self, row: dict[str, Any], now_ns: int) -> list[tuple[str, str, str]]:
        """What a row breaks: column, rule, and what was found instead."""
        broken = [(column, "required", "nothing") for column in self.required if row.get(column) is None]
        for column, kind in self.types:
            value = row.get(column)
            if value is not None and not is_of(value, kind):
                broken.append((column, "type", f"{type(value).__name__} {value!r}"))
        for column, low, high in self.ranges:
            value = row.get(column)
            if value is not None and is_of(value, "number") and not low <= value <= high:
                broken.append((column, "range", repr(value)))
        for column, pattern in self.patterns:
            value = row.get(column)
            if isinstance(value, str) and pattern.fullmatch(value[:4096]) is None:
                broken.append((column, "pattern", repr(value[:EXAMPLE_LENGTH])))
        for column, value in row.items():
            if self.known is not None and column not in self.known:
                broken.append((column, "unknown", repr(value)[:EXAMPLE_LENGTH]))
            if self.max_length is not None and isinstance(value, str) and len(value) > self.max_length:
                broken.append((column, "length", f"{len(value)} characters"))
        if self.max_ahead_ns is not None and row["time"] > now_ns + self.max_ahead_ns:
            broken.append(("time", "ahead", f"{(row['time'] - now_ns) // SECOND_NS} s ahead"))
        return broken


def is_of(value: object, kind: str) -> bool:
    """Whether a value has a type as the arguments name it."""
    if isinstance(value, bool):
        return kind == "bool"
    if isinstance(value, int):
        return kind in ("int", "number")
    if isinstance(value, float):
        return kind in ("float", "number")
    return kind == "str"


def process_writes(
    influxdb3_local: InfluxDB3Local, table_batches: list[TableBatch], args: dict[str, str] | None = None
) -> None:
    """Called by the host with the rows that were written."""
    contract = Contract(args or {})
    now_ns = time.time_ns()
    for batch in table_batches:
        table = batch["table_name"]
        if table == contract.output:
            continue
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for row in batch["rows"]:
            for column, rule, instead in contract.broken_by(row, now_ns):
                violation = found.setdefault((column, rule), {"count": 0, "examples": [], "time": row["time"]})
                violation["count"] += 1
                # The row that a report is dated with must not depend on what else came in the same run.
                violation["time"] = min(violation["time"], row["time"])
                if len(violation["examples"]) < contract.examples_max:
                    violation["examples"].append(instead[:EXAMPLE_LENGTH])
        for (column, rule), violation in found.items():
            report(influxdb3_local, contract, (table, column, rule), violation)


def report(
    influxdb3_local: InfluxDB3Local, contract: Contract, broken: tuple[str, str, str], violation: dict[str, Any]
) -> None:
    """One rule that a write broke: a row and a line in the log."""
    table, column, rule = broken
    line = LineBuilder(contract.output).tag("table", table).tag("column", column).tag("rule", rule)
    line.int64_field("count", violation["count"]).string_field("example", violation["examples"][0])
    line.time_ns(violation["time"])
    influxdb3_local.write(line)
    examples = ", ".join(violation["examples"])
    influxdb3_local.warn(f"{table}.{column} breaks {rule} in {violation['count']} rows, for instance {examples}")
