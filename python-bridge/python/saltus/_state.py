"""The values of ``influxdb3_local.state`` as text: JSON, and marks for what JSON has not.

``{"$bytes": base64}``, ``{"$tuple": [...]}``, ``{"$float": "nan"}``, and ``{"$dict": [[key, value], ...]}`` for a dict that has a
key which begins with ``$``. The text is what ``system.trigger_state`` shows.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

# How deep values may be nested.
_DEPTH_MAX = 100


def encode(key: str, value: Any) -> str:
    """The text of a value; ``TypeError`` names what in it cannot be kept."""
    return json.dumps(_marked(value, f"state[{key!r}]", 0), ensure_ascii=False, separators=(",", ":"))


def decode(text: str) -> Any:
    """The value, made anew each time."""
    return json.loads(text, object_hook=_unmarked)


def _marked(value: Any, where: str, depth: int) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if depth >= _DEPTH_MAX:
        raise ValueError(f"{where} is nested more than {_DEPTH_MAX} deep")
    if kind is list or kind is tuple:
        items = [_marked(item, f"{where}[{at}]", depth + 1) for at, item in enumerate(value)]
        return items if kind is list else {"$tuple": items}
    if kind is dict:
        for name in value:
            if type(name) is not str:
                raise TypeError(f"{where} has a key of type {type(name).__name__}: only str can be kept")
        marked = {name: _marked(item, f"{where}[{name!r}]", depth + 1) for name, item in value.items()}
        return {"$dict": [list(item) for item in marked.items()]} if any(n.startswith("$") for n in marked) else marked
    raise TypeError(
        f"{where} is a {kind.__name__}, which cannot be kept: use None, bool, int, float, str, bytes, list, tuple or dict "
        "with str keys; live objects belong into influxdb3_local.cache"
    )


def _unmarked(pairs: dict[str, Any]) -> Any:
    if len(pairs) == 1:
        ((name, value),) = pairs.items()
        if name == "$bytes":
            return base64.b64decode(value)
        if name == "$tuple":
            return tuple(value)
        if name == "$float":
            return float(value)
        if name == "$dict":
            return {key: item for key, item in value}
    return pairs
