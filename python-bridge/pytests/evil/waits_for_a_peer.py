"""Waits for what nobody will send.

inline: barred
deferred: PluginStuck
process: PluginTimeout
"""

import socket


def process_writes(influxdb3_local, table_batches, args=None):
    ours, theirs = socket.socketpair()
    ours.recv(1)
