"""What a run is for: ``influxdb3_local.event``."""


class Event:
    """The event of a run.

    ``id`` is stable: an event that is delivered again, after a failure or a crash of the server, has the id that it had
    before. Events that waited together are handed over in one run, a table batch each; ``ids`` are those of the batches
    (``batch.event_id``), ``id`` is the first of them. ``attempt`` is 0 the first time, ``run_id`` is different each time.
    """

    __slots__ = ("attempt", "id", "ids", "kind", "run_id", "scheduled_time", "shard", "trigger")

    def __init__(self, kind: str, ids: tuple[str, ...], run_id: int, trigger: str, attempt: int, shard: int) -> None:
        self.kind = kind
        self.ids = ids
        self.id = ids[0] if ids else None
        self.run_id = run_id
        self.trigger = trigger
        self.attempt = attempt
        self.shard = shard
        self.scheduled_time = None

    def __repr__(self) -> str:
        """All of it, for the log."""
        return f"Event({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"
