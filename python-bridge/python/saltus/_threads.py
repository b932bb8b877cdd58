"""Threads that plugins start: what they allocate is charged to the trigger whose run has started them."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import Any

import _saltus


def _charged(function: Callable[..., Any]) -> Callable[..., Any]:
    account = _saltus.charged_account()
    if account == 0:
        return function

    def charged(*args: Any, **kwargs: Any) -> Any:
        _saltus.charge_thread(account)
        return function(*args, **kwargs)

    return charged


def install() -> None:
    """Once per interpreter."""
    start_new, start_joinable = _thread.start_new_thread, _thread.start_joinable_thread

    def start_new_thread(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any = None, /) -> int:
        if kwargs is None:
            return start_new(_charged(function), args)
        return start_new(_charged(function), args, kwargs)

    def start_joinable_thread(function: Callable[..., Any], handle: Any = None, daemon: bool = True) -> Any:
        return start_joinable(_charged(function), handle=handle, daemon=daemon)

    _thread.start_new_thread = _thread.start_new = start_new_thread
    _thread.start_joinable_thread = start_joinable_thread
    threading._start_joinable_thread = start_joinable_thread  # type: ignore[attr-defined]
