"""Entry functions that are ``async def``: their coroutine is run to its end before the run ends.

Each run has an event loop of its own, which is closed with it: tasks that are left are cancelled. What a deadline interrupts is
the loop itself, so its waiting is cut into slices: outside of a main interpreter no signal reaches a system call.
"""

from __future__ import annotations

import selectors
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

# Seconds between two chances to be interrupted.
_SLICE = 0.05


class _Selector(selectors.DefaultSelector):
    """Waits like its base, a slice at a time."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        left = float("inf") if timeout is None else timeout
        while True:
            ready = super().select(min(left, _SLICE))
            left -= _SLICE
            if ready or left <= 0:
                return ready


def new_loop() -> asyncio.AbstractEventLoop:
    """An event loop that can be interrupted."""
    import asyncio

    return asyncio.SelectorEventLoop(_Selector())


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What the coroutine returns."""
    import asyncio

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(coroutine)


def run_without_waiting(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
    """What the coroutine returns, alone in a tuple; an empty one if it would wait, and then it is closed."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return (end.value,)
    coroutine.close()
    return ()
