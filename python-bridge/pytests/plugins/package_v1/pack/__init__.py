"""Version 1 of a plugin that is a package."""

from . import helper

runs = 0


def process_writes(influxdb3_local, table_batches, args=None):
    global runs
    runs += 1
    influxdb3_local.info(helper.VERSION, runs)
