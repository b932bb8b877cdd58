"""Ends the process.

inline: PermissionError
deferred: PermissionError
process: WorkerDied
"""

import os


def process_writes(influxdb3_local, table_batches, args=None):
    os._exit(3)
