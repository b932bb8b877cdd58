"""
{
    "plugin_type": ["onwrite"],
    "onwrite_args_config": [
        {"name": "output", "example": "comfort", "description": "The table to write. Default comfort.", "required": false},
        {"name": "gust_mph", "example": "40", "description": "Gusts or winds from here on are a risk; 1.5 times that, danger. Default 40.", "required": false},
        {"name": "station_tag", "example": "origin", "description": "The tag that names the station. Default origin.", "required": false}
    ]
}
"""

# What the weather feels like, and what to watch out for, derived on write.
#
# A write trigger on a table of weather observations. For every row it writes one row of table `comfort` with the same
# time and origin:
#
# | column         | kind  | meaning                                                                       |
# |----------------|-------|-------------------------------------------------------------------------------|
# | `origin`       | tag   | the station, as in the input                                                  |
# | `feels_like_f` | float | wind chill, heat index or plain air temperature, degrees Fahrenheit           |
# | `method`       | string| which of the three: `wind_chill`, `heat_index`, `air`                         |
# | `risk`         | string| `none`, or what applies of `icing`, `gust`, `heat`, `cold`, joined with `+`   |
# | `risk_level`   | int   | 0 nothing, 1 take care, 2 danger                                              |
#
# Rows without a temperature have no felt temperature and are counted, not guessed. Values that no weather station can
# have measured (the data set holds a wind of 1048 mph) are treated as missing.
#
# Formulas: wind chill and heat index of the US National Weather Service,
# https://graphical.weather.gov/definitions/defineApparentT.html and
# https://www.wpc.ncep.noaa.gov/html/heatindex_equation.shtml (Rothfusz regression with both adjustments).
#
# Nothing is kept between runs and nothing is imported but types, so it may run in the inline lane.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saltus import InfluxDB3Local, LineBuilder, TableBatch

# Beyond these a value is a fault of the sensor: (lowest, highest) by field.
PLAUSIBLE = {
    "temp": (-130.0, 140.0),
    "humid": (0.0, 100.0),
    "wind_speed": (0.0, 250.0),
    "wind_gust": (0.0, 300.0),
    "precip": (0.0, 20.0),
}


def wind_chill(temp_f: float, wind_mph: float) -> float:
    """Wind chill in Fahrenheit; defined up to 50 F and above 3 mph."""
    power: float = wind_mph**0.16
    return 35.74 + 0.6215 * temp_f - 35.75 * power + 0.4275 * temp_f * power


def heat_index(temp_f: float, humidity: float) -> float:
    """Heat index in Fahrenheit from relative humidity in percent."""
    simple = 0.5 * (temp_f + 61.0 + (temp_f - 68.0) * 1.2 + humidity * 0.094)
    if (simple + temp_f) / 2 < 80.0:
        return (simple + temp_f) / 2
    value = (
        -42.379
        + 2.04901523 * temp_f
        + 10.14333127 * humidity
        - 0.22475541 * temp_f * humidity
        - 0.00683783 * temp_f * temp_f
        - 0.05481717 * humidity * humidity
        + 0.00122874 * temp_f * temp_f * humidity
        + 0.00085282 * temp_f * humidity * humidity
        - 0.00000199 * temp_f * temp_f * humidity * humidity
    )
    if humidity < 13.0 and 80.0 <= temp_f <= 112.0:
        fraction: float = ((17.0 - abs(temp_f - 95.0)) / 17.0) ** 0.5
        value -= (13.0 - humidity) / 4.0 * fraction
    elif humidity > 85.0 and 80.0 <= temp_f <= 87.0:
        value += (humidity - 85.0) / 10.0 * ((87.0 - temp_f) / 5.0)
    return value


def felt(temp_f: float, humidity: float | None, wind_mph: float | None) -> tuple[float, str]:
    """Felt temperature and the name of the formula that gave it."""
    if temp_f <= 50.0 and wind_mph is not None and wind_mph > 3.0:
        return wind_chill(temp_f, wind_mph), "wind_chill"
    if temp_f >= 80.0 and humidity is not None:
        return heat_index(temp_f, humidity), "heat_index"
    return temp_f, "air"


def risks(
    temp_f: float, feels_like_f: float, wind_mph: float | None, precip_in: float | None, gust_mph_min: float
) -> tuple[list[str], int]:
    """What to watch out for, and how much: a list of names and a level from 0 to 2."""
    names: list[str] = []
    level = 0
    if temp_f <= 34.0 and precip_in is not None and precip_in > 0.0:
        names.append("icing")
        level = max(level, 2 if temp_f <= 32.0 else 1)
    if wind_mph is not None and wind_mph >= gust_mph_min:
        names.append("gust")
        level = max(level, 2 if wind_mph >= 1.5 * gust_mph_min else 1)
    if feels_like_f >= 90.0:
        names.append("heat")
        level = max(level, 2 if feels_like_f >= 103.0 else 1)
    if feels_like_f <= 0.0:
        names.append("cold")
        level = max(level, 2 if feels_like_f <= -18.0 else 1)
    return names, level


def measured(row: dict[str, Any], field: str) -> float | None:
    """The value of a field as a float, or None if it is missing, no number, or impossible."""
    value = row.get(field)
    if value is None or isinstance(value, (bool, str)):
        return None
    lowest, highest = PLAUSIBLE[field]
    return float(value) if lowest <= value <= highest else None


def derive(row: dict[str, Any], output: str, station_tag: str, gust_mph_min: float) -> LineBuilder | None:
    """The row of `comfort` for one observation, or None if it has no temperature."""
    temp_f = measured(row, "temp")
    if temp_f is None:
        return None
    wind_mph = measured(row, "wind_speed")
    gust_mph = measured(row, "wind_gust")
    feels_like_f, method = felt(temp_f, measured(row, "humid"), wind_mph)
    strongest = max((speed for speed in (wind_mph, gust_mph) if speed is not None), default=None)
    names, level = risks(temp_f, feels_like_f, strongest, measured(row, "precip"), gust_mph_min)

    line = LineBuilder(output)
    if row.get(station_tag):
        line.tag(station_tag, row[station_tag])
    line.float64_field("feels_like_f", round(feels_like_f, 1))
    line.string_field("method", method)
    line.string_field("risk", "+".join(names) or "none")
    line.int64_field("risk_level", level)
    line.time_ns(row["time"])
    return line


def process_writes(
    influxdb3_local: InfluxDB3Local, table_batches: list[TableBatch], args: dict[str, str] | None = None
) -> None:
    """Called by the host with the rows that were written."""
    args = args or {}
    output = args.get("output", "comfort")
    station_tag = args.get("station_tag", "origin")
    try:
        gust_mph_min = float(args.get("gust_mph", "40"))
    except ValueError:
        raise ValueError(f"argument gust_mph: {args['gust_mph']!r} is no number") from None

    skipped = 0
    for batch in table_batches:
        if batch["table_name"] == output:
            continue
        for row in batch["rows"]:
            line = derive(row, output, station_tag, gust_mph_min)
            if line is None:
                skipped += 1
            else:
                influxdb3_local.write(line)
    if skipped:
        influxdb3_local.warn(f"{skipped} rows have no usable temperature; no felt temperature was derived for them")
