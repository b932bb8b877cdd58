"""What a run is for: ``influxdb3_local.event``, and the ``call_time`` of scheduled calls."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo

_NANOSECONDS = 1_000_000_000
# Not `datetime.UTC`: outside of the server this is read by older Pythons as well.
_UTC = timezone.utc  # noqa: UP017


_zones: dict[str, tzinfo | None] = {}


def call_time(seconds: int, utc_offset: int | None, zone: str | None = None) -> datetime:
    """The ``datetime`` of a scheduled call: aware if the trigger has a time zone, which is ``utc_offset`` ahead of UTC then, and
    naive in the server's own without one. With the name of its ``zone`` it knows the zone's changes as well."""
    if utc_offset is None:
        return datetime.fromtimestamp(seconds)  # noqa: DTZ006  (naive local time is what InfluxDB 3 gives)
    ahead = timedelta(seconds=utc_offset)
    known = None if zone is None else _zone(zone)
    if known is not None:
        local = datetime.fromtimestamp(seconds, known)
        # The server has rules of its own, by which the schedule goes.
        if local.utcoffset() == ahead:
            return local
    return datetime.fromtimestamp(seconds, timezone(ahead))


def _zone(name: str) -> tzinfo | None:
    """A zone of the IANA database, as far as this Python has one."""
    if name not in _zones:
        from zoneinfo import ZoneInfo

        try:
            _zones[name] = ZoneInfo(name)
        except Exception:
            _zones[name] = None
    return _zones[name]


def iso_time(time_ns: int, utc_offset: int | None) -> str:
    """RFC 3339, with as many decimals as it needs."""
    seconds, fraction = divmod(time_ns, _NANOSECONDS)
    zone = _UTC if utc_offset is None else timezone(timedelta(seconds=utc_offset))
    local = datetime.fromtimestamp(seconds, zone).isoformat()
    decimals = f".{fraction:09}".rstrip("0") if fraction else ""
    return local[:19] + decimals + ("Z" if utc_offset is None else local[19:])


class Event:
    """The event of a run.

    ``kind`` is ``"write"``, ``"schedule"`` or ``"request"``. ``id`` is stable: an event that is delivered again, after a
    failure or a crash of the server, has the id that it had before. Events that waited together are handed over in one
    run, a table batch each; ``ids`` are those of the batches (``batch.event_id``), ``id`` is the first of them; a request
    has none. ``attempt`` is 0 the first time, ``run_id`` is different each time.

    Of a scheduled call, ``scheduled_time_ns`` is the exact time of the schedule, ``scheduled_time`` the same as text in the
    trigger's time zone, and ``missed`` the number of times of the schedule that were passed over since the last run.
    """

    __slots__ = (
        "attempt",
        "id",
        "ids",
        "kind",
        "missed",
        "run_id",
        "scheduled_time",
        "scheduled_time_ns",
        "shard",
        "trigger",
    )

    def __init__(self, kind: str, ids: tuple[str, ...], run_id: int, trigger: str, attempt: int, shard: int) -> None:
        self.kind = kind
        self.ids = ids
        self.id = ids[0] if ids else None
        self.run_id = run_id
        self.trigger = trigger
        self.attempt = attempt
        self.shard = shard
        self.scheduled_time_ns: int | None = None
        self.scheduled_time: str | None = None
        self.missed = 0

    def of_schedule(self, time_ns: int, utc_offset: int | None, missed: int) -> None:
        """Adds what a scheduled call has."""
        self.scheduled_time_ns = time_ns
        self.scheduled_time = iso_time(time_ns, utc_offset)
        self.missed = missed

    def __repr__(self) -> str:
        """All of it, for the log."""
        return f"Event({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"
