"""Tests of the threshold alert: `pytest` in this folder. The webhook is a real server on the loopback."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from saltus.testing import Host, PluginFailed, Trigger


class Webhook(http.server.ThreadingHTTPServer):
    """Takes alerts, or refuses them with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 204
        self.requests: list[tuple[dict[str, str], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"

    def messages(self) -> list[str]:
        return [alert["message"] for _, body in self.requests for alert in body["alerts"]]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((dict(self.headers), body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def trigger(host: Host, **args: str) -> Trigger:
    return host.load("threshold_alert.py", args={"field": "temp", "warn": "80", "critical": "95", **args})


def temps(*values: float, host: str = "a") -> str:
    return "\n".join(f"room,host={host} temp={value} {at + 1}000000000" for at, value in enumerate(values))


def test_each_change_of_level_is_an_alert(saltus_host: Host, webhook: Webhook) -> None:
    run = trigger(saltus_host, series="host", url=webhook.url).process_writes(temps(70, 81, 82, 96, 85, 60))
    assert webhook.messages() == [
        "room host=a: temp is 81.0, warn (was ok)",
        "room host=a: temp is 96.0, critical (was warn)",
        "room host=a: temp is 85.0, warn (was critical)",
        "room host=a: temp is 60.0, ok (was warn)",
    ]
    assert len(webhook.requests) == 1, "the alerts of a run are one request"
    run.assert_written("alerts", tags={"host": "a", "table": "room"}, fields={"level": "critical"}, time=4_000_000_000)
    run.assert_logged("temp is 96.0, critical", "WARN")


def test_levels_are_kept_between_runs_and_per_series(saltus_host: Host, webhook: Webhook) -> None:
    alert = trigger(saltus_host, series="host", url=webhook.url)
    alert.process_writes(temps(81))
    alert.process_writes(temps(82))
    alert.process_writes(temps(83, host="b"))
    assert webhook.messages() == [
        "room host=a: temp is 81.0, warn (was ok)",
        "room host=b: temp is 83.0, warn (was ok)",
    ]


def test_a_value_that_wavers_about_a_limit_is_one_alert(saltus_host: Host) -> None:
    run = trigger(saltus_host, hysteresis="2").process_writes(temps(80, 79, 81, 78.5, 77.9))
    assert [point.fields["level"] for point in run.points("alerts")] == ["warn", "ok"]


def test_below_turns_the_limits_round(saltus_host: Host) -> None:
    run = trigger(saltus_host, below="true", warn="10", critical="5").process_writes(temps(11, 10, 4, 20))
    assert [point.fields["level"] for point in run.points("alerts")] == ["warn", "critical", "ok"]


def test_what_goes_on_is_sent_again(saltus_host: Host) -> None:
    run = trigger(saltus_host, repeat="2s").process_writes(temps(81, 81, 81, 81, 81))
    assert [point.time // 10**9 for point in run.points("alerts")] == [1, 3, 5]


def test_alerts_that_are_not_taken_fail_the_run_and_come_again(saltus_host: Host, webhook: Webhook) -> None:
    alert = trigger(saltus_host, url=webhook.url)
    webhook.status = 503
    failed = alert.process_writes(temps(81), check=False)
    assert failed.error == "RuntimeError: the webhook answered 503 Service Unavailable; 1 alerts are not sent"
    failed.assert_nothing_written()
    webhook.status = 204
    alert.process_writes(temps(81), attempt=1)
    first, second = (body["alerts"][0]["id"] for _, body in webhook.requests)
    assert first == second, "a receiver knows that it is the same"


def test_secrets_come_from_the_environment(
    saltus_host: Host, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALERT_URL", webhook.url)
    monkeypatch.setenv("ALERT_TOKEN", "s3cret")
    run = trigger(saltus_host, url_env="ALERT_URL", token_env="ALERT_TOKEN").process_writes(temps(99))
    assert webhook.requests[0][0]["Authorization"] == "Bearer s3cret"
    assert not any("s3cret" in line.text for line in run.logs)


def test_what_is_no_number_and_its_own_output_are_left_alone(saltus_host: Host) -> None:
    trigger(saltus_host).process_writes('room temp="99" 1\nalerts temp=99 1').assert_nothing_written()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "argument field is missing"),
        ({"field": "temp"}, "at least one limit is needed"),
        ({"field": "temp", "warn": "hot"}, "argument warn: 'hot' is no number"),
        ({"field": "temp", "warn": "9", "critical": "8"}, "warn must be reached before critical"),
        ({"field": "temp", "warn": "9", "url": "file:///etc/passwd"}, "must begin with https://"),
        ({"field": "temp", "warn": "9", "token_env": "NOT_SET_ANYWHERE"}, "has no variable NOT_SET_ANYWHERE"),
        ({"field": "temp", "warn": "9", "repeat": "soon"}, "argument repeat: 'soon' is no duration"),
        ({"field": "temp", "warn": "9", "timeout": "600"}, "argument timeout"),
    ],
)
def test_arguments_are_checked(saltus_host: Host, args: dict[str, str], message: str) -> None:
    with pytest.raises(PluginFailed, match=message):
        saltus_host.load("threshold_alert.py", args=args).process_writes(temps(1))


def test_an_address_that_nobody_is_at_is_said(saltus_host: Host) -> None:
    with pytest.raises(PluginFailed, match="the webhook cannot be reached"):
        trigger(saltus_host, url="http://127.0.0.1:9/").process_writes(temps(99))
