"""Prints without end.

inline: unwound overran|unwound blocked
deferred: PluginTimeout
process: PluginTimeout
"""

def process_writes(influxdb3_local, table_batches, args=None):
    while True:
        print("x" * 1000)
