"""Sends SIGKILL to its own process, and to its group.

inline: PermissionError
deferred: PermissionError
process: WorkerDied
"""

import os
import signal


def process_writes(influxdb3_local, table_batches, args=None):
    try:
        os.killpg(os.getpgid(0), 0)
    except PermissionError:
        pass
    os.kill(os.getpid(), signal.SIGKILL)
