"""Asks the interpreter to exit.

inline: SystemExit
deferred: SystemExit
process: SystemExit
"""

import sys


def process_writes(influxdb3_local, table_batches, args=None):
    sys.exit(3)
