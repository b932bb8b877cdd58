"""Makes a request while it runs.

inline: unwound blocked
deferred: ConnectionRefusedError
process: ConnectionRefusedError
"""

import socket


def process_writes(influxdb3_local, table_batches, args=None):
    socket.create_connection(("127.0.0.1", 1), timeout=1)
