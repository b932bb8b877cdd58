"""Sets a signal handler.

inline: ValueError
deferred: ValueError
process: ok
"""

import signal


def process_writes(influxdb3_local, table_batches, args=None):
    signal.signal(signal.SIGTERM, lambda *_: None)
