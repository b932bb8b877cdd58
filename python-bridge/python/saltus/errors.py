"""Every exception class of the plugin API; each exists once per interpreter, so ``isinstance`` works across runs."""

try:
    from _saltus import deadline_message
except ModuleNotFoundError:  # outside of the server

    def deadline_message() -> str:
        """What is said of a run that took too long."""
        return "the run took longer than its deadline"


class InfluxDBError(Exception):
    """Base of what :class:`saltus.LineBuilder` raises."""


class InvalidMeasurementError(InfluxDBError):
    """A measurement name that line protocol cannot carry."""


class InvalidKeyError(InfluxDBError):
    """A tag or field key that line protocol cannot carry."""


class InvalidLineError(InfluxDBError):
    """A line without any field."""


class QueryError(Exception):
    """A query that failed, or that may not be made in this lane."""


class LimitError(InfluxDBError):
    """A run that wants more than it may have. Whoever catches it: the run counts as failed all the same."""


class PluginTimeout(BaseException):
    """The run took longer than its deadline.

    Like ``KeyboardInterrupt`` it is no ``Exception``, so that ``except Exception`` lets it pass. It is raised again
    until the run ends.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(args or (deadline_message(),)))


class LaneError(InfluxDBError):
    """What the run asked for would block the thread that ingests data, and its trigger was told to run there."""


class Unwound(BaseException):
    """The run is discarded and made again elsewhere. Not for plugins: whoever swallows it meets it again."""
