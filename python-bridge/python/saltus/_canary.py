"""Whether an interpreter is sound after one of its runs was interrupted, or does not end.

An interrupt can be raised within a library, between the acquisition of a lock and the block that would release it. Whoever calls
``check`` gives it a deadline: a lock that is stuck is met by waiting for it.
"""

from __future__ import annotations

import importlib
import logging
import queue
import sys
import threading

# A small module of the standard library, for the sake of importing it.
_PROBE = "_compat_pickle"


def check() -> None:
    """Raises, or waits for ever, if something that every plugin relies on does not work."""
    sys.modules.pop(_PROBE, None)
    importlib.import_module(_PROBE)
    # The lock of the module and that of every handler.
    logging.getLogger("saltus.canary")
    for reference in list(getattr(logging, "_handlerList", ())):
        handler = reference()
        if handler is not None:
            handler.acquire()
            handler.release()
    threading.enumerate()
    event = threading.Event()
    thread = threading.Thread(target=event.set, daemon=True)
    thread.start()
    event.wait()
    thread.join()
    box: queue.Queue[int] = queue.Queue()
    box.put(1)
    box.get()
    futures = sys.modules.get("concurrent.futures.thread")
    lock = getattr(futures, "_global_shutdown_lock", None)
    if lock is not None:
        lock.acquire()
        lock.release()
