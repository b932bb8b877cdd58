"""
{
    "plugin_type": ["onwrite"],
    "onwrite_args_config": [
        {"name": "field", "example": "temp", "description": "The field that is compared.", "required": true},
        {"name": "warn", "example": "80", "description": "From here on it is a warning. At least one of warn and critical is required.", "required": false},
        {"name": "critical", "example": "95", "description": "From here on it is critical.", "required": false},
        {"name": "below", "example": "true", "description": "Alert below the limits instead of above. Default false.", "required": false},
        {"name": "hysteresis", "example": "2", "description": "How far back from a limit a value must be to leave its level. Default 0.", "required": false},
        {"name": "series", "example": "host region", "description": "Tags that make a series, separated by spaces. Default: the whole table is one.", "required": false},
        {"name": "url", "example": "https://hooks.example.org/T1", "description": "Where alerts are POSTed as JSON. Without it they are only written.", "required": false},
        {"name": "url_env", "example": "ALERT_URL", "description": "The environment variable that holds the address, if it is a secret.", "required": false},
        {"name": "token_env", "example": "ALERT_TOKEN", "description": "The environment variable that holds a bearer token.", "required": false},
        {"name": "repeat", "example": "1h", "description": "An alert that goes on is sent again after this long. Default: it is not.", "required": false},
        {"name": "timeout", "example": "5", "description": "Seconds that the address has to answer. Default 5.", "required": false},
        {"name": "output", "example": "alerts", "description": "The table to write. Default alerts.", "required": false}
    ]
}
"""

# Threshold alert: tells a webhook when a value crosses a limit, and when it is back.
#
# Per series a level is kept: ok, warn or critical. A change of it is an alert; all alerts of a run are one POST. If the
# address does not take them the run fails, so that nothing is written and the trigger's error behaviour decides; with
# `retry` the same alerts are sent again, with the same `id`s, by which a receiver knows them.

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saltus import InfluxDB3Local, LineBuilder, TableBatch

SECOND_NS = 1_000_000_000
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LEVELS = ("ok", "warn", "critical")
SERIES_MAX = 10_000


def number(args: dict[str, str], name: str) -> float | None:
    """An argument that is a number, if it is there."""
    if name not in args:
        return None
    try:
        value = float(args[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"argument {name}: {args[name]!r} is no number")
    return value


def secret(args: dict[str, str], name: str) -> str | None:
    """The value of the environment variable that an argument names. Never part of a message."""
    variable = args.get(name)
    if variable is None:
        return None
    value = os.environ.get(variable)
    if not value:
        raise ValueError(f"argument {name}: the server's environment has no variable {variable}")
    return value


class Rule:
    """What is compared with what, and who is told; says what is wrong with the arguments."""

    def __init__(self, args: dict[str, str]) -> None:
        self.field = args.get("field", "").strip()
        if not self.field:
            raise ValueError("argument field is missing; create the trigger with --trigger-arguments field=...")
        limits = {"warn": number(args, "warn"), "critical": number(args, "critical")}
        self.limits = {level: limit for level, limit in limits.items() if limit is not None}
        if not self.limits:
            raise ValueError("arguments warn and critical: at least one limit is needed")
        below = args.get("below", "false").strip().lower()
        if below not in ("true", "false"):
            raise ValueError(f"argument below: {below!r} is neither true nor false")
        self.sign = -1.0 if below == "true" else 1.0
        if len(self.limits) == 2 and self.sign * self.limits["warn"] > self.sign * self.limits["critical"]:
            raise ValueError("arguments warn and critical: warn must be reached before critical")
        self.hysteresis = number(args, "hysteresis") or 0.0
        if self.hysteresis < 0:
            raise ValueError("argument hysteresis: it cannot be negative")
        self.series = args.get("series", "").split()
        self.output = args.get("output", "alerts")
        self.repeat_ns = self._repeat(args.get("repeat"))
        self.timeout = number(args, "timeout") or 5.0
        if not 0 < self.timeout <= 60:
            raise ValueError("argument timeout: it must be above 0 and at most 60 seconds")
        self.url = args.get("url") or secret(args, "url_env")
        if self.url is not None and urllib.parse.urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError("argument url: it must begin with https:// or http://")
        self.token = secret(args, "token_env")

    @staticmethod
    def _repeat(text: str | None) -> int | None:
        if text is None:
            return None
        match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
        if match is None or int(match[1]) == 0:
            raise ValueError(f"argument repeat: {text!r} is no duration; write for instance 10m or 1h")
        return int(match[1]) * UNIT_SECONDS[match[2]] * SECOND_NS

    def level(self, value: float, before: str) -> str:
        """The level of a value. A level that was reached is left only `hysteresis` behind its limit."""
        found = "ok"
        for level, limit in self.limits.items():
            reached = LEVELS.index(before) >= LEVELS.index(level)
            margin = self.hysteresis if reached else 0.0
            if self.sign * value >= self.sign * limit - margin:
                found = level
        return found


def process_writes(
    influxdb3_local: InfluxDB3Local, table_batches: list[TableBatch], args: dict[str, str] | None = None
) -> None:
    """Called by the host with the rows that were written."""
    rule = Rule(args or {})
    kept: dict[str, list[Any]] = influxdb3_local.cache.get("levels") or {}
    # The cache is changed only when the alerts are out: a run that fails must find the levels as they were.
    levels = dict(kept)
    alerts = []
    for batch in table_batches:
        if batch["table_name"] == rule.output:
            continue
        for row in batch["rows"]:
            alert = judge(rule, batch["table_name"], row, levels)
            if alert is not None:
                alerts.append(alert)
    if len(levels) > SERIES_MAX:
        raise ValueError(f"more than {SERIES_MAX} series; name fewer tags in the argument series")
    if alerts and rule.url is not None:
        post(rule, alerts)
    for alert in alerts:
        record(influxdb3_local, rule, alert)
    influxdb3_local.cache.put("levels", levels)


def judge(rule: Rule, table: str, row: dict[str, Any], levels: dict[str, list[Any]]) -> dict[str, Any] | None:
    """The alert that a row gives, if it gives one. `levels` has per series its level and the time of its last alert."""
    value = row.get(rule.field)
    if value is None or isinstance(value, (bool, str)) or not math.isfinite(value):
        return None
    tags = {tag: str(row[tag]) for tag in rule.series if row.get(tag) is not None}
    name = " ".join([table, *(f"{tag}={text}" for tag, text in tags.items())])
    before, alerted_ns = levels.get(name, ["ok", 0])
    level = rule.level(float(value), before)
    if level == before:
        goes_on = level != "ok" and rule.repeat_ns is not None and row["time"] - alerted_ns >= rule.repeat_ns
        if not goes_on:
            return None
    levels[name] = [level, row["time"]]
    identity = json.dumps([table, rule.field, tags, level, row["time"]])
    return {
        "id": hashlib.sha256(identity.encode()).hexdigest()[:32],
        "level": level,
        "before": before,
        "table": table,
        "field": rule.field,
        "tags": tags,
        "value": float(value),
        "limit": rule.limits.get(level),
        "time_ns": row["time"],
        "message": f"{name}: {rule.field} is {value}, {level}" + ("" if level == before else f" (was {before})"),
    }


def post(rule: Rule, alerts: list[dict[str, Any]]) -> None:
    """Sends alerts; raises if they are not taken."""
    body = json.dumps({"alerts": alerts}).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "threshold-alert", "Idempotency-Key": alerts[0]["id"]}
    if rule.token is not None:
        headers["Authorization"] = f"Bearer {rule.token}"
    request = urllib.request.Request(str(rule.url), body, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=rule.timeout) as response:
            response.read(1024)
    except urllib.error.HTTPError as error:
        error.close()
        raise RuntimeError(
            f"the webhook answered {error.code} {error.reason}; {len(alerts)} alerts are not sent"
        ) from None
    except OSError as error:
        raise RuntimeError(f"the webhook cannot be reached ({error}); {len(alerts)} alerts are not sent") from None


def record(influxdb3_local: InfluxDB3Local, rule: Rule, alert: dict[str, Any]) -> None:
    """The alert as a row, at the time of the row that gave it."""
    line = LineBuilder(rule.output).tag("table", alert["table"]).tag("field", alert["field"])
    for tag, text in alert["tags"].items():
        if text and tag not in ("table", "field"):
            line.tag(tag, text)
    line.string_field("level", alert["level"]).string_field("before", alert["before"])
    line.float64_field("value", alert["value"]).string_field("id", alert["id"])
    line.time_ns(alert["time_ns"])
    influxdb3_local.write(line)
    (influxdb3_local.info if alert["level"] == "ok" else influxdb3_local.warn)(alert["message"])
