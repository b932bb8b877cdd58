"""Says how long after it was due each row reached this plugin.

A row carries its number, ``n``, and the moment at which it was meant to be sent, ``due``, by the clock of the same machine.
"""

import time


def process_writes(influxdb3_local, table_batches, args=None):
    """Take the time first."""
    entered = time.monotonic_ns()
    for batch in table_batches:
        for row in batch["rows"]:
            influxdb3_local.info(f"{row['n']} {entered - row['due']}")
