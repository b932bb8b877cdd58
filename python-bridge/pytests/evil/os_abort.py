"""Ends the process with a core.

inline: PermissionError
deferred: PermissionError
process: WorkerDied
"""

import os


def process_writes(influxdb3_local, table_batches, args=None):
    os.abort()
