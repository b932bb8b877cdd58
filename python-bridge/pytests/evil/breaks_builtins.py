"""Takes away what every plugin uses.

inline: barred
deferred: ok
process: ok
"""

import builtins


def process_writes(influxdb3_local, table_batches, args=None):
    builtins.len = None
    del builtins.print
    builtins.LineBuilder = None
