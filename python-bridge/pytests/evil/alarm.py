"""Has its process killed by a timer.

inline: PermissionError
deferred: PermissionError
process: WorkerDied|PluginTimeout
"""

import signal


def process_writes(influxdb3_local, table_batches, args=None):
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    while True:
        pass
