"""Never ends.

inline: unwound overran
deferred: PluginTimeout
process: PluginTimeout
"""

def process_writes(influxdb3_local, table_batches, args=None):
    while True:
        pass
