"""Prints in every way."""

import sys


def process_writes(influxdb3_local, table_batches, args=None):
    print("one")
    print("two", "three")
    print("wrong", file=sys.stderr)
    influxdb3_local.warn(1, None)
    print("unfinished", end="")
