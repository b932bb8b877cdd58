"""Never ends, and catches every exception.

inline: unwound overran
deferred: PluginTimeout
process: PluginTimeout
"""

def process_writes(influxdb3_local, table_batches, args=None):
    while True:
        try:
            sum([1, 2])
        except BaseException:
            pass
