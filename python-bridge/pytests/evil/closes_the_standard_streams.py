"""Closes file descriptors that are everybody's.

inline: PermissionError
deferred: PermissionError
process: ValueError
"""

import os


def process_writes(influxdb3_local, table_batches, args=None):
    for number in range(3):
        try:
            os.close(number)
        except PermissionError:
            continue
        raise ValueError(f"closed {number}")
    os.closerange(0, 3)
    raise PermissionError("as expected")
