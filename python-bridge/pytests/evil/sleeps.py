"""Sleeps for thirty years.

inline: unwound blocked
deferred: PluginTimeout
process: PluginTimeout
"""

import time


def process_writes(influxdb3_local, table_batches, args=None):
    time.sleep(1e9)
