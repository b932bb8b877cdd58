"""Parameters of queries that are no plain numbers or text."""

from __future__ import annotations

import datetime

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def timestamp_ns(value: object) -> int | None:
    """Nanoseconds since 1970 of a ``datetime``; ``None`` for anything else.

    One without a time zone is local time, as everywhere in Python, and as the ``call_time`` of scheduled calls.
    """
    if not isinstance(value, datetime.datetime):
        return None
    since = value.astimezone(datetime.UTC) - _EPOCH
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    # pandas has a finer class of its own.
    return microseconds * 1_000 + int(getattr(value, "nanosecond", 0))
