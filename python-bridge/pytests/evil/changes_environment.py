"""Changes what looks like the process.

inline: PermissionError
deferred: PermissionError
process: ok
"""

import os
import sys


def process_writes(influxdb3_local, table_batches, args=None):
    os.environ["PATH"] = "/nowhere"
    os.putenv("HOME", "/nowhere")
    sys.argv.clear()
    os.chdir("/")
