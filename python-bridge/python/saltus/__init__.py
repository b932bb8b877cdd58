"""What plugins may import: ``from saltus import LineBuilder, QueryError``.

Plugins written for InfluxDB 3 import nothing: ``LineBuilder`` is a builtin and everything else is reached through the
first argument of their entry function, an :class:`InfluxDB3Local`.
"""

from _saltus import Column, InfluxDB3Local, TableBatch

from saltus.errors import (
    InfluxDBError,
    InvalidKeyError,
    InvalidLineError,
    InvalidMeasurementError,
    LaneError,
    LimitError,
    PluginTimeout,
    QueryError,
)
from saltus.line_builder import LineBuilder

__all__ = [
    "Column",
    "InfluxDB3Local",
    "InfluxDBError",
    "InvalidKeyError",
    "InvalidLineError",
    "InvalidMeasurementError",
    "LaneError",
    "LimitError",
    "LineBuilder",
    "PluginTimeout",
    "QueryError",
    "TableBatch",
]
