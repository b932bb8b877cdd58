"""Calls itself without end.

inline: RecursionError
deferred: RecursionError
process: RecursionError
"""

def deeper(n):
    return deeper(n + 1)


def process_writes(influxdb3_local, table_batches, args=None):
    deeper(0)
