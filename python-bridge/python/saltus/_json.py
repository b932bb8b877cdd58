"""What a plugin answers, as JSON that every reader takes (RFC 8259).

A float that JSON does not have (NaN, an infinity) becomes ``null``, as in the results of queries. Anything else that is not JSON is an
error that says where in the value it is.
"""

from __future__ import annotations

import json
from typing import Any

# Containers within containers; Python's own limit is near.
_DEPTH_MAX = 500
_REMEDIES = {
    "datetime": "use .isoformat()",
    "date": "use .isoformat()",
    "time": "use .isoformat()",
    "timedelta": "use .total_seconds()",
    "Decimal": "use float(...) or str(...)",
    "UUID": "use str(...)",
    "bytes": "use .decode() or base64",
    "bytearray": "use .decode() or base64",
    "memoryview": "use .tolist(), or return bytes as the body",
    "set": "use list(...) or sorted(...)",
    "frozenset": "use list(...) or sorted(...)",
    "generator": "use list(...)",
    "ndarray": "use .tolist()",
    "Timestamp": "use .isoformat()",
    "DataFrame": "use .to_dict('records')",
    "Series": "use .tolist()",
}


def encode(value: Any) -> bytes:
    """The JSON of a value; ``TypeError`` or ``ValueError`` names the place that cannot be written."""
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return json.dumps(_plain(value, "result", []), allow_nan=False).encode()


def _plain(value: Any, where: str, above: list[int]) -> Any:
    """The same without what JSON does not have."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, int):
        return _number(value, where)
    if not isinstance(value, (dict, list, tuple)):
        kind = type(value).__name__
        remedy = _REMEDIES.get(kind) or ("use .item()" if hasattr(value, "item") else "use str(...), or a dict of what is in it")
        raise TypeError(f"Object of type {kind} is not JSON serializable: {where}; {remedy}")
    if id(value) in above:
        raise ValueError(f"Circular reference detected: {where} is in itself")
    if len(above) >= _DEPTH_MAX:
        raise ValueError(f"containers within containers, more than {_DEPTH_MAX} deep, cannot be written as JSON: {where[:200]}...")
    above.append(id(value))
    try:
        if isinstance(value, dict):
            return {_key(key, where): _plain(item, _below(where, key), above) for key, item in value.items()}
        return [_plain(item, f"{where}[{at}]", above) for at, item in enumerate(value)]
    finally:
        above.pop()


def _number(value: int, where: str) -> int:
    try:
        int.__repr__(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return value


def _key(key: Any, where: str) -> Any:
    if isinstance(key, float) and key - key != 0:
        return "NaN" if key != key else "Infinity" if key > 0 else "-Infinity"
    if key is None or isinstance(key, (str, int, float, bool)):
        return key
    raise TypeError(f"keys must be str, int, float, bool or None, not {type(key).__name__}: {key!r:.100} in {where}")


def _below(where: str, key: Any) -> str:
    return f"{where}.{key}" if isinstance(key, str) and key.isidentifier() else f"{where}[{key!r:.100}]"
