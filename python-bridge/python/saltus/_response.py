"""What a request plugin returns, as an HTTP answer (reference, 1.7).

The first rule that fits decides:

1. an object whose ``__flask_response__()`` is ``True``: ``status_code``, ``get_data()`` and ``headers``;
2. a tuple of one to three items: body, then status or headers, then headers; a status in front of something else is an error;
3. ``str``: ``text/html``;
4. ``dict`` or ``list``: ``application/json``, by :mod:`saltus._json`;
5. bytes: ``application/octet-stream``; a response of Flask, Werkzeug or Starlette: what it says; an iterator: streamed as
   ``text/html`` while it runs; anything else that can be iterated: its texts and bytes in one body, ``text/html``;
6. anything else is an error.

Beyond InfluxDB 3: bytes, iterators, a status alone as ``(404,)``, and lists as header values, which make several headers of one
name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, Union

from saltus._json import encode

_HTML = "text/html"
_JSON = "application/json"
_TEXT = "text/plain"
_BYTES = "application/octet-stream"

_Headers = dict[str, Union[str, list[str]]]
# What a body is: bytes, or an iterator whose pieces are still to come.
_Body = Union[bytes, Iterator[Any]]
# Status, headers in order, and the body.
Whole = tuple[int, list[tuple[str, str]], bytes]


class ResponseError(Exception):
    """What was returned is no answer; shown without this name, as in InfluxDB 3."""


class Stream(Protocol):
    """The way to the client while the run goes on; ``_saltus.AnswerStream``."""

    def open(self) -> bool:
        """Whether pieces can be sent; if not, they are collected."""

    def begin(self, status: int, headers: list[tuple[str, str]]) -> bool:
        """Sends status and headers; false if nobody waits for them any more."""

    def send(self, piece: bytes) -> bool | None:
        """Sends a piece; ``False`` if there was no room for it in a while, ``None`` if nobody takes it any more."""

    def check(self, length: int) -> None:
        """Raises if an answer may not be so long."""


def respond(result: Any, stream: Stream) -> Whole | None:
    """The whole answer; ``None`` if it was streamed."""
    try:
        status, headers, body = _convert(result)
        pairs = [(name, value) for name, values in headers.items() for value in _values(name, values)]
    except ResponseError:
        raise
    except Exception as error:
        raise ResponseError(f"{type(error).__qualname__}: {error}") from error
    if not 200 <= status <= 999:
        status = 500
    if isinstance(body, bytes):
        stream.check(len(body))
        return status, pairs, body
    if stream.open():
        return _streamed(status, pairs, body, stream)
    return status, pairs, _collected(body, stream)


def _convert(result: Any) -> tuple[int, _Headers, _Body]:
    flask = getattr(result, "__flask_response__", None)
    if flask is not None and flask() is True:
        return _response_object(result, result.get_data())
    if isinstance(result, tuple) and 1 <= len(result) <= 3:
        return _tuple(result)
    if isinstance(result, (str, dict, list, bytes, bytearray, memoryview)):
        body, content_type = _body(result)
        return 200, {"Content-Type": content_type}, body
    if hasattr(result, "status_code") and hasattr(result, "headers"):
        data = result.get_data() if hasattr(result, "get_data") else getattr(result, "body", b"")
        return _response_object(result, data)
    if hasattr(type(result), "__next__"):
        return 200, {"Content-Type": _HTML}, result
    if hasattr(type(result), "__iter__"):
        return 200, {"Content-Type": _HTML}, b"".join(map(_piece, result))
    raise ResponseError("Unsupported return type from Python function")


def _tuple(result: tuple[Any, ...]) -> tuple[int, _Headers, _Body]:
    first = result[0]
    if len(result) > 1 and _is_status(first) and not (result[1] is None or isinstance(result[1], int)):
        raise ResponseError(_order(result))
    if len(result) == 1 and type(first) is int and 100 <= first <= 999:
        return first, {}, b""
    body, content_type = _body(first)
    status = 200
    headers: _Headers = {"Content-Type": content_type}
    if len(result) > 1:
        if isinstance(result[1], int):
            status = int(result[1])
        elif isinstance(result[1], dict):
            headers.update(result[1])
    if len(result) > 2:
        if not isinstance(result[2], dict):
            raise ResponseError(f"expected a dictionary in header item: {_order(result)}")
        headers.update(result[2])
    return status, headers, body


def _is_status(value: object) -> bool:
    """Whether it is no body but a status that stands in the wrong place."""
    return type(value) is int and 100 <= value <= 599


def _order(result: tuple[Any, ...]) -> str:
    got = ", ".join(type(item).__name__ for item in result)
    return f"(body, status, headers), (body, status) or (body, headers) is expected, got ({got})"


def _body(value: Any) -> tuple[_Body, str]:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape"), _HTML
    if isinstance(value, (dict, list)):
        return encode(value), _JSON
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value), _BYTES
    if hasattr(type(value), "__next__"):
        return value, _HTML
    return str(value).encode("utf-8", "surrogateescape"), _TEXT


def _response_object(result: Any, data: Any) -> tuple[int, _Headers, _Body]:
    status = result.status_code
    if not isinstance(status, int):
        raise TypeError(f"status_code must be int, not {type(status).__name__}")
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")
    elif isinstance(data, (bytearray, memoryview)):
        data = bytes(data)
    elif not isinstance(data, bytes):
        raise TypeError(f"the response's data must be str or bytes, not {type(data).__name__}")
    headers: dict[str, list[str]] = {}
    for name, value in result.headers.items():
        headers.setdefault(name, []).append(value)
    return status, dict(headers), data


def _values(name: object, values: object) -> Iterable[str]:
    if not isinstance(name, str):
        raise TypeError(f"the name of a header must be str, not {type(name).__name__}")
    if isinstance(values, str):
        return (values,)
    if isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values):
        return values
    raise TypeError(f"header {name!r} must be str or a list of str, not {type(values).__name__}")


def _piece(item: object) -> bytes:
    if isinstance(item, str):
        return item.encode("utf-8", "surrogateescape")
    return bytes(item) if isinstance(item, (bytes, bytearray, memoryview)) else b""


def _collected(items: Iterator[Any], stream: Stream) -> bytes:
    whole = bytearray()
    for item in items:
        whole += _piece(item)
        stream.check(len(whole))
    return bytes(whole)


def _streamed(status: int, headers: list[tuple[str, str]], items: Iterator[Any], stream: Stream) -> Whole | None:
    """Sends piece by piece. Nothing is sent before the first piece is there: until then a failure is an answer of its own."""
    begun = False
    for item in items:
        piece = _piece(item)
        if not piece:
            continue
        goes_on = begun or stream.begin(status, headers)
        begun = True
        while goes_on and (taken := stream.send(piece)) is not True:
            goes_on = taken is not None
        if not goes_on:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            break
    return None if begun else (status, headers, b"")
