"""Calls itself without end, with fewer arguments than it takes: CPython 3.13.0 does not count such calls.

inline: MemoryError|PluginTimeout|unwound overran
deferred: MemoryError|PluginTimeout|PluginStuck
process: RecursionError|PluginTimeout|MemoryError|WorkerDied
"""

def process_writes(influxdb3_local, table_batches, args=None):
    process_writes(influxdb3_local, table_batches)
