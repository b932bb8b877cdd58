"""Leaves a thread behind that never ends.

inline: RuntimeError|unwound blocked
deferred: ok
process: ok
"""

import threading


def spin():
    while True:
        pass


def process_writes(influxdb3_local, table_batches, args=None):
    threading.Thread(target=spin, daemon=True).start()
