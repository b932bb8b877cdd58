"""Tests of the rolling z-score: `pytest` in this folder."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest
from saltus.testing import Host, PluginFailed, reason_against_inline

CALM = [10.0, 11.0, 9.0, 10.5, 9.5, 10.2, 9.8, 10.1, 9.9, 10.0]


def lines(values: list[float], start: int = 1, host: str = "a") -> str:
    return "\n".join(f"cpu,host={host} usage={value} {start + at}" for at, value in enumerate(values))


def test_a_value_far_from_the_last_ones_is_found(saltus_host: Host) -> None:
    run = saltus_host.load("rolling_zscore.py", args={"field": "usage"}).process_writes(lines([*CALM, 20.0, 10.0]))
    mean, stddev = statistics.mean(CALM), statistics.stdev(CALM)
    approx = pytest.approx
    fields = {"value": 20.0, "mean": approx(mean), "stddev": approx(stddev), "z": approx((20 - mean) / stddev)}
    run.assert_written("anomalies", tags={"table": "cpu"}, fields=fields, time=11)
    assert len(run.points()) == 1


def test_windows_go_on_from_run_to_run_and_are_kept_per_series(saltus_host: Host) -> None:
    trigger = saltus_host.load("rolling_zscore.py", args={"field": "usage", "series": "host", "window": "10"})
    trigger.process_writes(lines(CALM), lines(CALM, host="b"))
    trigger.process_writes(lines([50.0], 11)).assert_written("anomalies", tags={"host": "a"}, time=11)
    trigger.process_writes(lines([10.0], 11, "b")).assert_nothing_written()
    # The high values have become the window, and are nothing special any more.
    trigger.process_writes(lines([50.0] * 10, 12))
    trigger.process_writes(lines([50.0], 30)).assert_nothing_written()


def test_no_score_before_there_are_enough_values(saltus_host: Host) -> None:
    trigger = saltus_host.load("rolling_zscore.py", args={"field": "usage", "min_samples": "3"})
    trigger.process_writes(lines([1.0, 2.0, 99.0])).assert_nothing_written()


def test_rows_that_are_not_newer_are_not_scored_again(saltus_host: Host) -> None:
    trigger = saltus_host.load("rolling_zscore.py", args={"field": "usage"})
    trigger.process_writes(lines([*CALM, 20.0])).assert_written("anomalies", count=1)
    trigger.process_writes(lines([*CALM, 20.0]), attempt=1).assert_nothing_written()


def test_values_that_never_moved_make_any_other_an_anomaly(saltus_host: Host) -> None:
    trigger = saltus_host.load("rolling_zscore.py", args={"field": "usage"})
    trigger.process_writes(lines([5.0] * 10 + [5.1])).assert_written("anomalies", fields={"z": 1e9, "stddev": 0.0})
    trigger = saltus_host.load("rolling_zscore.py", args={"field": "usage", "min_stddev": "0.1"}, name="calm")
    trigger.process_writes(lines([5.0] * 10 + [5.1])).assert_nothing_written()


def test_what_is_no_number_and_its_own_output_are_left_alone(saltus_host: Host) -> None:
    trigger = saltus_host.load("rolling_zscore.py", args={"field": "usage", "min_samples": "2"})
    trigger.process_writes(
        'cpu usage="x" 1\nanomalies usage=1 1\nanomalies usage=1 2\nanomalies usage=9 3'
    ).assert_nothing_written()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "argument field is missing"),
        ({"field": "usage", "window": "1"}, "argument window: '1' is no number from 2 up"),
        ({"field": "usage", "threshold": "nan"}, "argument threshold: 'nan' is no number"),
        ({"field": "usage", "window": "5"}, "min_samples: it cannot be more than window"),
        ({"field": "usage", "series": "host", "series_max": "1"}, "more than 1 series"),
    ],
)
def test_arguments_are_checked(saltus_host: Host, args: dict[str, str], message: str) -> None:
    with pytest.raises(PluginFailed, match=message):
        saltus_host.load("rolling_zscore.py", args=args).process_writes(lines([1.0]), lines([1.0], host="b"))


@pytest.mark.skipif(sys.version_info < (3, 10), reason="the check needs Python 3.10")
def test_it_is_fit_for_the_inline_lane() -> None:
    assert reason_against_inline(Path(__file__).with_name("rolling_zscore.py")) is None
