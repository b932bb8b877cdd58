"""Lifts the limit of recursion first.

inline: MemoryError|PluginTimeout|unwound overran
deferred: MemoryError|PluginTimeout|PluginStuck
process: PluginTimeout|MemoryError|WorkerDied
"""

import sys


def deeper(n):
    return deeper(n + 1)


def process_writes(influxdb3_local, table_batches, args=None):
    sys.setrecursionlimit(10**9)
    try:
        deeper(0)
    finally:
        sys.setrecursionlimit(1000)
