"""Forks, and lets the child go on.

inline: unwound blocked|RuntimeError
deferred: RuntimeError
process: ok
"""

import os


def process_writes(influxdb3_local, table_batches, args=None):
    os.fork()
