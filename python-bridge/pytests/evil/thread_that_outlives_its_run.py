"""Uses its API when its run is over.

inline: unwound blocked
deferred: ok
process: ok
"""

import threading
import time


def process_writes(influxdb3_local, table_batches, args=None):
    def later():
        time.sleep(0.2)
        influxdb3_local.info("late")
        influxdb3_local.write("nonsense")

    threading.Thread(target=later).start()
