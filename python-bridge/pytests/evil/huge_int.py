"""One operation of many minutes.

inline: barred
deferred: PluginStuck|MemoryError
process: PluginTimeout|MemoryError
"""

def process_writes(influxdb3_local, table_batches, args=None):
    base = 3
    base ** (10**9)
