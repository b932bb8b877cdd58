"""Wants more memory than there is.

inline: MemoryError|PluginTimeout|unwound overran
deferred: MemoryError|PluginTimeout
process: MemoryError|PluginTimeout
"""

def process_writes(influxdb3_local, table_batches, args=None):
    rows = []
    while len(rows) < 10 * 1024:
        rows.append(bytearray(1024 * 1024))
