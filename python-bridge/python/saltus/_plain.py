"""Values that may move between interpreters: plain builtin types, nothing in them twice.

A trigger's cache moves with it from lane to lane, and an inline run that is discarded must leave the cache as it was. Both need values
that can be copied exactly.
"""

from __future__ import annotations

import marshal
import sys
from typing import Any

_SCALARS = frozenset([type(None), bool, int, float, complex, str, bytes])


class NotPlain(Exception):
    """Says what cannot be copied."""


def copy(value: Any, items_max: int) -> Any:
    """An exact copy of ``value``, which may have ``items_max`` items in all, none of the mutable ones in two places."""
    return _Copier(items_max).copy(value)


def dump(space: dict[str, tuple[Any, int | None]], items_max: int) -> bytes:
    """The entries of one trigger's cache as bytes."""
    return marshal.dumps(copy(space, items_max))


def dump_whole(space: dict[str, tuple[Any, int | None]]) -> bytes:
    """The entries of one trigger's cache as bytes, of whatever size; what is in two places stays so."""
    kept, live = dump_what_can_be(space)
    if live:
        raise NotPlain(f"its cache holds live objects, which no other interpreter can have: {', '.join(live)}")
    return kept


def dump_what_can_be(space: dict[str, tuple[Any, int | None]]) -> tuple[bytes, list[str]]:
    """The entries whose values are plain, and the keys of the others. What is in two places stays so."""
    kept: dict[str, tuple[Any, int | None]] = {}
    lost = []
    copier = _Copier(sys.maxsize, places_max=sys.maxsize)
    for key, entry in space.items():
        try:
            kept[key] = copier.copy(entry)
        except (NotPlain, RecursionError):
            lost.append(key)
    return marshal.dumps(kept), lost


def dump_shared(value: Any) -> bytes | None:
    """A plain value as bytes for other interpreters; ``None`` if it is not plain."""
    try:
        return marshal.dumps(_Copier(sys.maxsize, places_max=sys.maxsize).copy(value))
    except (NotPlain, RecursionError, ValueError):
        return None


def sweep(spaces: dict[int, dict[str, tuple[Any, ...]]], now: int, only: int | None) -> None:
    """Removes the entries that have expired at ``now``, of one space or of all, and spaces that are empty then."""
    for trigger, space in list(spaces.items()) if only is None else [(only, spaces.get(only, {}))]:
        for key, entry in list(space.items()):
            if entry[1] is not None and entry[1] <= now and space.get(key) is entry:
                del space[key]
        if not space and only is None:
            spaces.pop(trigger, None)


def load(data: bytes) -> dict[str, tuple[Any, int | None]]:
    """What :func:`dump` was given."""
    entries: dict[str, tuple[Any, int | None]] = marshal.loads(data)
    return entries


class _Copier:
    def __init__(self, items_max: int, places_max: int = 1) -> None:
        self.left = items_max
        self.places_max = places_max
        self.copies: dict[int, Any] = {}

    def copy(self, value: Any) -> Any:
        kind = type(value)
        if kind in _SCALARS:
            return value
        if kind not in (list, tuple, dict, set, frozenset):
            raise NotPlain(f"a {kind.__name__} is no plain value")
        if id(value) in self.copies:
            if self.places_max == 1:
                raise NotPlain("it has a mutable value in two places")
            return self.copies[id(value)]
        self.left -= len(value)
        if self.left < 0:
            raise NotPlain("it has too many items")
        if kind is tuple or kind is frozenset:
            return kind(map(self.copy, value))
        # Known before its items are copied: it may be one of them.
        copied = self.copies[id(value)] = kind()
        if kind is dict:
            copied.update((self.copy(key), self.copy(item)) for key, item in value.items())
        elif kind is set:
            copied.update(map(self.copy, value))
        else:
            copied.extend(map(self.copy, value))
        return copied
