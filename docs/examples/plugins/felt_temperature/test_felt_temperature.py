"""Tests of the felt temperature plugin, with `unittest`: `python3 -m unittest` in this folder, or `pytest`."""

from __future__ import annotations

import unittest
from pathlib import Path

import felt_temperature as plugin
from saltus.testing import Host, PluginFailed, Run

HOUR_NS = 1_357_020_000_000_000_000


def run(*lines: str, args: dict[str, str] | None = None, check: bool = True) -> Run:
    """One run over rows of line protocol."""
    trigger = Host().load(Path(__file__).with_name("felt_temperature.py"), args=args)
    return trigger.process_writes("\n".join(lines), check=check)


class FeltTemperature(unittest.TestCase):
    def test_wind_chill_agrees_with_the_published_chart(self) -> None:
        for temp_f, wind_mph, charted in ((40, 5, 36), (30, 10, 21), (0, 15, -19), (-10, 30, -39), (-45, 60, -98)):
            self.assertEqual(round(plugin.wind_chill(temp_f, wind_mph)), charted)

    def test_heat_index_agrees_with_the_published_chart(self) -> None:
        for temp_f, humidity, charted in ((80, 40, 80), (90, 70, 105), (96, 50, 108), (86, 90, 105), (100, 45, 114)):
            self.assertAlmostEqual(plugin.heat_index(temp_f, humidity), charted, delta=1.0)

    def test_each_kind_of_weather_has_its_formula(self) -> None:
        self.assertEqual(plugin.felt(39.0, 60.0, 10.0)[1], "wind_chill")
        self.assertEqual(plugin.felt(39.0, 60.0, 2.0), (39.0, "air"))
        self.assertEqual(plugin.felt(39.0, 60.0, None), (39.0, "air"))
        self.assertEqual(plugin.felt(65.0, 60.0, 10.0), (65.0, "air"))
        self.assertEqual(plugin.felt(90.0, 70.0, 10.0)[1], "heat_index")
        self.assertEqual(plugin.felt(90.0, None, 10.0), (90.0, "air"))

    def test_a_row_becomes_a_row_of_comfort_with_its_time_and_station(self) -> None:
        done = run(f"weather,origin=EWR temp=39.02,humid=59.37,wind_speed=10.35702 {HOUR_NS}")
        fields = {"method": "wind_chill", "risk": "none", "risk_level": 0}
        (point,) = done.assert_written("comfort", tags={"origin": "EWR"}, fields=fields, time=HOUR_NS, count=1)
        self.assertAlmostEqual(float(point.fields["feels_like_f"]), 32.0, delta=0.5)
        self.assertEqual(done.logs, [])

    def test_risks_add_up_and_the_worst_sets_the_level(self) -> None:
        done = run("weather temp=33.0,wind_speed=20.0,wind_gust=62.0,precip=0.1 1")
        done.assert_written("comfort", fields={"risk": "icing+gust", "risk_level": 2})

    def test_a_row_without_temperature_is_counted_and_the_others_are_derived(self) -> None:
        done = run("weather humid=50.0 1", 'weather note="x" 2', "weather temp=70.0 3")
        self.assertEqual([point.time for point in done.points("comfort")], [3])
        done.assert_logged("2 rows have no usable temperature", "WARN")

    def test_an_impossible_wind_is_no_wind(self) -> None:
        done = run("weather temp=30.0,wind_speed=1048.36 1")
        done.assert_written("comfort", fields={"method": "air", "feels_like_f": 30.0, "risk": "none"})

    def test_arguments_name_the_table_the_tag_and_the_limit(self) -> None:
        args = {"output": "felt", "station_tag": "station", "gust_mph": "10"}
        done = run("weather,station=S1 temp=60.0,wind_speed=12.0 1", args=args)
        done.assert_written("felt", tags={"station": "S1"}, fields={"risk": "gust", "risk_level": 1})

    def test_a_bad_argument_is_an_error_that_names_it(self) -> None:
        with self.assertRaisesRegex(PluginFailed, "argument gust_mph: 'strong' is no number"):
            run("weather temp=60.0 1", args={"gust_mph": "strong"})

    def test_its_own_output_is_left_alone(self) -> None:
        run("comfort temp=60.0 1").assert_nothing_written()


if __name__ == "__main__":
    unittest.main()
