"""Waits for a lock that nobody will release.

inline: barred
deferred: PluginStuck
process: PluginTimeout
"""

import threading


def process_writes(influxdb3_local, table_batches, args=None):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
