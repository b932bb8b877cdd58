"""Raises where nobody can catch it.

inline: ok|unwound blocked
deferred: ok
process: ok
"""

class Grave:
    def __del__(self):
        raise ValueError("from the grave")


def process_writes(influxdb3_local, table_batches, args=None):
    for _ in range(100):
        Grave()
