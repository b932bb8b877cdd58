"""``time.sleep`` that can be interrupted: outside of a main interpreter no signal and no interrupt reaches CPython's own."""

from __future__ import annotations

import time
from typing import Any

# Seconds between two chances to be interrupted.
_SLICE = 0.05
# Beyond this CPython's own has an error to raise.
_LONGEST = 9e9


class Sleep:
    """Called like ``time.sleep``. No function, so that it is no method where it is kept in a class."""

    __slots__ = ("_monotonic", "_sleep")

    def __init__(self) -> None:
        self._sleep = time.sleep
        self._monotonic = time.monotonic

    def __call__(self, seconds: Any, /) -> None:
        if not isinstance(seconds, (int, float)) or not _SLICE < seconds < _LONGEST:
            return self._sleep(seconds)
        until = self._monotonic() + seconds
        while (left := until - self._monotonic()) > 0:
            self._sleep(min(left, _SLICE))
        return None

    def __repr__(self) -> str:
        return "<built-in function sleep>"


def install() -> None:
    """Once per interpreter."""
    time.sleep = Sleep()
