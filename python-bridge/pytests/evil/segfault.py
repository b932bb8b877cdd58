"""Reads where there is nothing. Only a process of its own survives that: --python-hardened keeps ctypes out of the others.

inline: refused
deferred: refused
process: WorkerDied
"""

import ctypes


def process_writes(influxdb3_local, table_batches, args=None):
    ctypes.string_at(0)
