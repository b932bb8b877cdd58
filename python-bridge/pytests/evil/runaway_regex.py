"""A match that takes longer than the universe has.

inline: barred
deferred: PluginStuck
process: PluginTimeout
"""

import re


def process_writes(influxdb3_local, table_batches, args=None):
    re.match(r"(a+)+$", "a" * 64 + "b")
