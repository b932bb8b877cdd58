"""The request that a run answers: ``influxdb3_local.request``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class MultiDict(Mapping[str, str]):
    """Names and texts in the order in which they came, a name perhaps more than once.

    ``params["name"]`` is the last value, as in the plain dict that plugins get as an argument; ``getall`` has all of them.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = tuple((self._key(name), value) for name, value in pairs)

    @staticmethod
    def _key(name: str) -> str:
        return name

    def __getitem__(self, name: str) -> str:
        """The last value of that name."""
        values = self.getall(name)
        if not values:
            raise KeyError(name)
        return values[-1]

    def __iter__(self) -> Iterator[str]:
        """The names, each once."""
        return iter(dict(self._pairs))

    def __len__(self) -> int:
        """How many different names there are."""
        return len(dict(self._pairs))

    def getall(self, name: str) -> list[str]:
        """Every value of that name, in order; empty if there is none."""
        key = self._key(name)
        return [value for other, value in self._pairs if other == key]

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every name with its value, in order."""
        return self._pairs

    def __repr__(self) -> str:
        """All of it, for the log."""
        return f"{type(self).__name__}({list(self._pairs)!r})"


class Headers(MultiDict):
    """Headers: names are lower-case, and found in any case."""

    __slots__ = ()

    @staticmethod
    def _key(name: str) -> str:
        return name.lower()


class Request:
    """What a client sent to ``/api/v3/engine/...``.

    ``path`` is what stands behind that prefix, byte for byte; ``route`` is the part of it that the trigger is named after, and
    ``tail`` the rest of a trigger that ends in ``/*``, percent-decoded and without the slash. ``query`` and ``headers`` keep
    repeated names; the header ``authorization`` is not in them. ``body`` is decompressed. ``client`` is the address of the peer.
    """

    __slots__ = ("body", "client", "headers", "method", "path", "query", "query_string", "route", "tail")

    def __init__(
        self,
        method: str,
        path: str,
        route: str,
        tail: str,
        query_string: str,
        query: list[tuple[str, str]],
        headers: list[tuple[str, str]],
        body: bytes,
        client: str | None,
    ) -> None:
        self.method = method
        self.path = path
        self.route = route
        self.tail = tail
        self.query_string = query_string
        self.query = MultiDict(query)
        self.headers = Headers(headers)
        self.body = body
        self.client = client

    def text(self) -> str:
        """The body as UTF-8 text; raises ``UnicodeDecodeError`` if it is none."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON; raises ``json.JSONDecodeError`` if it is none."""
        return json.loads(self.body)

    def __repr__(self) -> str:
        """What tells requests apart in a log."""
        return f"Request({self.method} {self.path!r}, {len(self.body)} bytes)"
