"""The host's clock: the machine's, until a test sets it."""

from __future__ import annotations

import datetime
import time
from typing import Optional, Union

Instant = Union[int, float, str, datetime.datetime]

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_time_ns = time.time_ns


def nanoseconds(instant: Instant) -> int:
    """``int``: nanoseconds since 1970. ``float``: seconds. ``str``: ISO 8601. A naive ``datetime`` is in local time, a
    naive ``str`` in UTC."""
    if isinstance(instant, bool):
        raise TypeError("an instant is int, float, str or datetime, not bool")
    if isinstance(instant, int):
        return instant
    if isinstance(instant, float):
        return round(instant * 1e9)
    if isinstance(instant, str):
        instant = datetime.datetime.fromisoformat(instant[:-1] + "+00:00" if instant.endswith("Z") else instant)
        if instant.tzinfo is None:
            instant = instant.replace(tzinfo=datetime.timezone.utc)
    since = instant.astimezone(datetime.timezone.utc) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


class Clock:
    """What the server's clock says: it dates rows without a timestamp, lets cache entries expire, and is what
    ``time.time()`` and ``time.time_ns()`` give to plugins while it is set.

    ``datetime.now()`` is the machine's: use ``call_time``, ``time.time()``, or a package that replaces ``datetime``.
    """

    def __init__(self) -> None:
        self._set: Optional[int] = None

    @property
    def is_set(self) -> bool:
        """Whether it stands still."""
        return self._set is not None

    def now_ns(self) -> int:
        """Nanoseconds since 1970."""
        return _time_ns() if self._set is None else self._set

    def now(self) -> datetime.datetime:
        """The same in UTC, cut to microseconds."""
        return _EPOCH + datetime.timedelta(microseconds=self.now_ns() // 1000)

    def set(self, instant: Instant) -> None:
        """Stops it at an instant."""
        self._set = nanoseconds(instant)

    def advance(self, seconds: float) -> None:
        """Puts it forward; it is stopped then."""
        self._set = self.now_ns() + round(seconds * 1e9)
