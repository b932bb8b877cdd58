"""The builtins of an interpreter are everybody's who runs in it: what a run takes away or replaces is put back when it is over."""

from __future__ import annotations

import builtins

_NOW = vars(builtins)
_KEPT: dict[str, object] = {}


def keep() -> None:
    """Whatever is there now is put back later."""
    _KEPT.update(_NOW)


def restore() -> str:
    """Puts them back; the names that needed it, separated by commas. Uses none of them."""
    broken = ""
    for name in _KEPT:
        value = _KEPT[name]
        if name not in _NOW or _NOW[name] is not value:
            _NOW[name] = value
            broken = f"{broken}, {name}" if broken else name
    return broken
