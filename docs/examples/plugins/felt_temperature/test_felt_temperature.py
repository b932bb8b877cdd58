"""Tests of the felt temperature plugin, without a server.

Run them with `python3 -m unittest` in this folder, or from anywhere with
`python3 -m unittest discover -s docs/examples/plugins/felt_temperature`.

The host is played by two small fakes: `FakeLocal` records what the plugin asks for, `FakeLine` is as much of
LineBuilder as the plugin uses.
"""

import builtins
import unittest

import felt_temperature as plugin

HOUR_NS = 1_357_020_000_000_000_000


class FakeLine:
    """Keeps what was set, so that a test can look at it."""

    def __init__(self, table):
        self.table = table
        self.tags = {}
        self.fields = {}
        self.time = None

    def tag(self, key, value):
        self.tags[key] = value
        return self

    def field(self, key, value):
        self.fields[key] = value
        return self

    float64_field = string_field = int64_field = field

    def time_ns(self, time):
        self.time = time
        return self


class FakeLocal:
    """The API object of a run."""

    def __init__(self):
        self.lines = []
        self.logs = []

    def write(self, line):
        self.lines.append(line)

    def warn(self, *parts):
        self.logs.append(("warn", " ".join(map(str, parts))))

    def error(self, *parts):
        self.logs.append(("error", " ".join(map(str, parts))))


def run(*rows, args=None, table="weather"):
    """One run over the given rows."""
    local = FakeLocal()
    plugin.process_writes(local, [{"table_name": table, "rows": list(rows)}], args)
    return local


class FeltTemperature(unittest.TestCase):
    def setUp(self):
        builtins.LineBuilder = FakeLine
        self.addCleanup(delattr, builtins, "LineBuilder")

    def test_wind_chill_agrees_with_the_published_chart(self):
        for temp_f, wind_mph, charted in ((40, 5, 36), (30, 10, 21), (0, 15, -19), (-10, 30, -39), (-45, 60, -98)):
            self.assertEqual(round(plugin.wind_chill(temp_f, wind_mph)), charted)

    def test_heat_index_agrees_with_the_published_chart(self):
        for temp_f, humidity, charted in ((80, 40, 80), (90, 70, 105), (96, 50, 108), (86, 90, 105), (100, 45, 114)):
            self.assertAlmostEqual(plugin.heat_index(temp_f, humidity), charted, delta=1.0)

    def test_each_kind_of_weather_has_its_formula(self):
        self.assertEqual(plugin.felt(39.0, 60.0, 10.0)[1], "wind_chill")
        self.assertEqual(plugin.felt(39.0, 60.0, 2.0), (39.0, "air"))
        self.assertEqual(plugin.felt(39.0, 60.0, None), (39.0, "air"))
        self.assertEqual(plugin.felt(65.0, 60.0, 10.0), (65.0, "air"))
        self.assertEqual(plugin.felt(90.0, 70.0, 10.0)[1], "heat_index")
        self.assertEqual(plugin.felt(90.0, None, 10.0), (90.0, "air"))

    def test_a_row_becomes_a_row_of_comfort_with_its_time_and_station(self):
        local = run({"origin": "EWR", "temp": 39.02, "humid": 59.37, "wind_speed": 10.35702, "time": HOUR_NS})
        (line,) = local.lines
        self.assertEqual((line.table, line.tags, line.time), ("comfort", {"origin": "EWR"}, HOUR_NS))
        self.assertEqual(line.fields["method"], "wind_chill")
        self.assertAlmostEqual(line.fields["feels_like_f"], 32.0, delta=0.5)
        self.assertEqual((line.fields["risk"], line.fields["risk_level"]), ("none", 0))
        self.assertEqual(local.logs, [])

    def test_risks_add_up_and_the_worst_sets_the_level(self):
        local = run({"temp": 33.0, "wind_speed": 20.0, "wind_gust": 62.0, "precip": 0.1, "time": HOUR_NS})
        fields = local.lines[0].fields
        self.assertEqual((fields["risk"], fields["risk_level"]), ("icing+gust", 2))

    def test_a_row_without_temperature_is_counted_and_the_others_are_derived(self):
        local = run({"humid": 50.0, "time": 1}, {"temp": None, "time": 2}, {"temp": 70.0, "time": 3})
        self.assertEqual([line.time for line in local.lines], [3])
        self.assertEqual(len(local.logs), 1)
        self.assertIn("2 rows", local.logs[0][1])

    def test_an_impossible_wind_is_no_wind(self):
        local = run({"temp": 30.0, "wind_speed": 1048.36, "time": HOUR_NS})
        fields = local.lines[0].fields
        self.assertEqual((fields["method"], fields["feels_like_f"], fields["risk"]), ("air", 30.0, "none"))

    def test_arguments_name_the_table_the_tag_and_the_limit(self):
        row = {"station": "S1", "temp": 60.0, "wind_speed": 12.0, "time": HOUR_NS}
        local = run(row, args={"output": "felt", "station_tag": "station", "gust_mph": "10"})
        (line,) = local.lines
        self.assertEqual((line.table, line.tags), ("felt", {"station": "S1"}))
        self.assertEqual((line.fields["risk"], line.fields["risk_level"]), ("gust", 1))

    def test_a_bad_argument_is_reported_and_nothing_is_written(self):
        local = run({"temp": 60.0, "time": HOUR_NS}, args={"gust_mph": "strong"})
        self.assertEqual(local.lines, [])
        self.assertEqual(local.logs[0][0], "error")

    def test_its_own_output_is_left_alone(self):
        self.assertEqual(run({"temp": 60.0, "time": HOUR_NS}, table="comfort").lines, [])


if __name__ == "__main__":
    unittest.main()
