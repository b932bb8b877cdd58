"""Writes a million lines to the log.

inline: unwound overran|unwound blocked
deferred: PluginTimeout|ok
process: PluginTimeout|ok
"""

def process_writes(influxdb3_local, table_batches, args=None):
    for number in range(1_000_000):
        influxdb3_local.info(f"line {number}")
