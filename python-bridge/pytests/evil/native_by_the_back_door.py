"""Loads ctypes by its loader, past everything in sys.

inline: unwound blocked|refused
deferred: refused
process: ok
"""

import importlib.machinery
import importlib.util
import os


def process_writes(influxdb3_local, table_batches, args=None):
    folder = os.path.dirname(os.__file__) + "/lib-dynload"
    name = next(name for name in os.listdir(folder) if name.startswith("_ctypes.") and name.endswith(".so"))
    loader = importlib.machinery.ExtensionFileLoader("_ctypes", f"{folder}/{name}")
    spec = importlib.util.spec_from_file_location("_ctypes", loader=loader)
    importlib.util.module_from_spec(spec)
