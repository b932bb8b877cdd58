"""Lowers a limit of the whole process.

inline: PermissionError
deferred: PermissionError
process: ok
"""

import resource


def process_writes(influxdb3_local, table_batches, args=None):
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
