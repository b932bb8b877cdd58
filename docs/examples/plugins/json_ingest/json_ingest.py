"""
{
    "plugin_type": ["http"],
    "http_args_config": [
        {"name": "table", "example": "sensors", "description": "The table to write.", "required": true},
        {"name": "tags", "example": "device site", "description": "Keys that become tags, separated by spaces. Default: none.", "required": false},
        {"name": "time_key", "example": "ts", "description": "The key that holds the time. Default time.", "required": false},
        {"name": "time_unit", "example": "ms", "description": "Unit of times that are numbers: s, ms, us or ns. Default ms.", "required": false},
        {"name": "numbers", "example": "keep", "description": "float: all numbers become floats. keep: 1 is an integer, 1.0 a float. Default float.", "required": false},
        {"name": "partial", "example": "true", "description": "Write the good records of a request that has bad ones. Default false: all or nothing.", "required": false},
        {"name": "records_max", "example": "10000", "description": "Records of one request. Default 10000.", "required": false},
        {"name": "token_env", "example": "INGEST_TOKEN", "description": "The environment variable with a token that requests must bring in the header X-Ingest-Token.", "required": false}
    ],
    "http_body_config": {"example": "[{\\"device\\": \\"a\\", \\"temp\\": 21.5, \\"time\\": 1767268800000}]"}
}
"""

# JSON ingest: takes JSON over HTTP and writes it as rows, for devices and services that speak no line protocol.
#
# A request is one object, an array of objects, or one object per line. It is answered when its rows are durable: with how
# many were written, or with what is wrong with which record.

from __future__ import annotations

import datetime
import hmac
import json
import math
import os
import re
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saltus import InfluxDB3Local, LineBuilder

UNITS_NS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1
DEPTH_MAX = 8
ERRORS_SHOWN_MAX = 20


class BadRecord(Exception):
    """What is wrong with a record, or with the whole request."""


class Lines:
    """Several lines that are written as one: the host takes anything that builds text."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def build(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)


class Mapping:
    """How records become rows; says what is wrong with the arguments."""

    def __init__(self, args: dict[str, str]) -> None:
        self.table = args.get("table", "").strip()
        if not self.table:
            raise ValueError("argument table is missing; create the trigger with --trigger-arguments table=...")
        self.tags = args.get("tags", "").split()
        self.time_key = args.get("time_key", "time")
        unit = args.get("time_unit", "ms")
        if unit not in UNITS_NS:
            raise ValueError(f"argument time_unit: {unit!r} is none of {' '.join(UNITS_NS)}")
        self.unit_ns = UNITS_NS[unit]
        self.numbers = self._choice(args, "numbers", ("float", "keep"))
        self.partial = self._choice(args, "partial", ("false", "true")) == "true"
        records_max = args.get("records_max", "10000")
        if re.fullmatch(r"[1-9][0-9]{0,5}", records_max) is None:
            raise ValueError(f"argument records_max: {records_max!r} is no number from 1 to 999999")
        self.records_max = int(records_max)
        self.token = self._token(args.get("token_env"))

    @staticmethod
    def _choice(args: dict[str, str], name: str, choices: tuple[str, ...]) -> str:
        value = args.get(name, choices[0]).strip()
        if value not in choices:
            raise ValueError(f"argument {name}: {value!r} is none of {' '.join(choices)}")
        return value

    @staticmethod
    def _token(variable: str | None) -> str | None:
        if variable is None:
            return None
        token = os.environ.get(variable)
        if not token:
            raise ValueError(f"argument token_env: the server's environment has no variable {variable}")
        return token


def process_request(
    influxdb3_local: InfluxDB3Local,
    query_parameters: dict[str, str],
    request_headers: dict[str, str],
    request_body: bytes,
    args: dict[str, str] | None = None,
) -> Any:
    """Called by the host for a request."""
    mapping = Mapping(args or {})
    if mapping.token is not None:
        given = request_headers.get("x-ingest-token", "")
        if not hmac.compare_digest(given.encode(), mapping.token.encode()):
            return {"error": "the header X-Ingest-Token is missing or wrong"}, 401
    try:
        records = records_of(request_body)
    except BadRecord as error:
        return {"error": str(error)}, 400
    if len(records) > mapping.records_max:
        return {"error": f"{len(records)} records; at most {mapping.records_max} are taken at once"}, 413

    lines, errors = [], []
    # Records without a time get different ones, or they would overwrite each other.
    now_ns = time.time_ns()
    for at, record in enumerate(records):
        try:
            lines.append(line_of(mapping, record, now_ns + at))
        except BadRecord as error:
            errors.append({"record": at, "error": str(error)})
    if errors and not (mapping.partial and lines):
        return {"error": "nothing is written", "written": 0, **shown(errors)}, 400
    try:
        influxdb3_local.write_sync(Lines(lines), no_sync=False)
    except Exception as error:
        # Most of all: a column of that name has another type. What else it may be, the text says.
        influxdb3_local.error(f"{len(lines)} records are refused: {error}")
        status = 400 if "line protocol parse failed" in str(error) else 503
        return {"error": str(error), "written": 0}, status
    return {"written": len(lines), **shown(errors)}


def shown(errors: list[dict[str, Any]]) -> dict[str, Any]:
    """Some of the errors, and how many there are."""
    return {"errors": errors[:ERRORS_SHOWN_MAX], "failed": len(errors)} if errors else {}


def records_of(body: bytes) -> list[Any]:
    """The records of a request: one object, an array, or one object per line."""

    def refuse(constant: str) -> None:
        raise BadRecord(f"{constant} is no number of JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) != len(pairs):
            raise BadRecord("a key is there twice")
        return record

    def parse(text: str) -> Any:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)

    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecord(f"the body is no UTF-8: {error}") from None
    if not text.strip():
        raise BadRecord("the body is empty")
    try:
        whole = parse(text)
    except RecursionError:
        raise BadRecord("the body is nested too deep") from None
    except ValueError as error:
        numbered = [(at, line) for at, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(numbered) < 2 or not numbered[0][1].strip().endswith("}"):
            raise BadRecord(f"the body is no JSON: {error}") from None
        records = []
        for at, line in numbered:
            try:
                records.append(parse(line))
            except (ValueError, RecursionError) as fault:
                raise BadRecord(f"line {at} is no JSON: {fault}") from None
        return records
    return whole if isinstance(whole, list) else [whole]


def line_of(mapping: Mapping, record: Any, now_ns: int) -> str:
    """The line of a record."""
    if not isinstance(record, dict):
        raise BadRecord(f"a record is an object, not {kind_of(record)}")
    values = dict(flat("", record, 0))
    line = LineBuilder(name_of(mapping.table, "table"))
    for tag in mapping.tags:
        value = values.pop(tag, None)
        if value is not None and value != "":
            line.tag(name_of(tag, "tag"), tag_value(tag, value))
    time_ns = time_of(mapping, values.pop(mapping.time_key, None), now_ns)
    fields = 0
    for key, value in values.items():
        if value is not None:
            add_field(mapping, line, name_of(key, "field"), value)
            fields += 1
    if not fields:
        raise BadRecord("there is no value besides tags and time")
    return line.time_ns(time_ns).build()


def flat(prefix: str, record: dict[str, Any], depth: int) -> list[tuple[str, Any]]:
    """Keys and values; an object in an object becomes `outer_inner`."""
    if depth > DEPTH_MAX:
        raise BadRecord(f"objects are nested more than {DEPTH_MAX} deep")
    found = []
    for key, value in record.items():
        if isinstance(value, dict):
            found.extend(flat(f"{prefix}{key}_", value, depth + 1))
        else:
            found.append((prefix + key, value))
    return found


def name_of(key: str, what: str) -> str:
    """A key as a name: what line protocol cannot have in one becomes an underscore."""
    name = re.sub(r"[\s,=\x00-\x1f\x7f\\]", "_", key)
    if not name.strip("_"):
        raise BadRecord(f"{key!r} is no name of a {what}")
    if name in ("time", "__chunk_order"):
        raise BadRecord(f"{key!r} is a reserved name; set the argument time_key if it is the time")
    return name


def tag_value(tag: str, value: Any) -> str:
    """The text of a tag."""
    if isinstance(value, (list, dict)):
        raise BadRecord(f"{tag}: {kind_of(value)} cannot be a tag")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if re.search(r"[\x00-\x1f\x7f]", text) or text.endswith("\\"):
        raise BadRecord(f"{tag}: {text!r} has control characters, or a backslash at its end")
    return text


def add_field(mapping: Mapping, line: LineBuilder, key: str, value: Any) -> None:
    """One value."""
    if isinstance(value, bool):
        line.bool_field(key, value)
    elif isinstance(value, str):
        line.string_field(key, value)
    elif isinstance(value, (int, float)):
        if isinstance(value, int) and mapping.numbers == "keep":
            if not INT_MIN <= value <= INT_MAX:
                raise BadRecord(f"{key}: {value} does not fit 64 bits")
            line.int64_field(key, value)
        else:
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if not math.isfinite(number):
                raise BadRecord(f"{key}: the number is too large")
            line.float64_field(key, number)
    else:
        raise BadRecord(f"{key}: {kind_of(value)} cannot be a value")


def time_of(mapping: Mapping, value: Any, now_ns: int) -> int:
    """The time of a record in nanoseconds: a number in the unit of the arguments, or text in ISO 8601 with a zone."""
    if value is None:
        return now_ns
    time_ns: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        time_ns = value * mapping.unit_ns
    elif isinstance(value, float) and math.isfinite(value):
        time_ns = round(value * mapping.unit_ns)
    elif isinstance(value, str):
        time_ns = iso_ns(value)
    if time_ns is None or not INT_MIN < time_ns <= INT_MAX:
        raise BadRecord(f"{mapping.time_key}: {value!r} is no time; send a number, or text as 2026-01-01T12:00:00Z")
    return time_ns


def iso_ns(text: str) -> int | None:
    """ISO 8601 with a zone and up to nine decimals."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", text, re.ASCII)
    if match is None:
        return None
    zone = "+00:00" if match[4] == "Z" else match[4]
    try:
        seconds = int(datetime.datetime.fromisoformat(f"{match[1]}T{match[2]}{zone}").timestamp())
    except (ValueError, OverflowError):
        return None
    return seconds * UNITS_NS["s"] + int((match[3] or "0").ljust(9, "0"))


def kind_of(value: Any) -> str:
    """What JSON calls it."""
    if value is None:
        return "null"
    kinds = ((bool, "a boolean"), (str, "text"), ((int, float), "a number"), (list, "an array"), (dict, "an object"))
    return next(name for kind, name in kinds if isinstance(value, kind))
