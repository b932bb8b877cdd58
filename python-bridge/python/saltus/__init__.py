"""What plugins may import: ``from saltus import LineBuilder, QueryError``.

Plugins written for InfluxDB 3 import nothing: ``LineBuilder`` is a builtin and everything else is reached through the
first argument of their entry function, an :class:`InfluxDB3Local`.

Outside of the server the same package, installed from PyPI or from a checkout, has the types for editors and
:mod:`saltus.testing` for tests. A plugin file that imports types only where a type checker looks runs on InfluxDB 3 as well::

    from __future__ import annotations

    from typing import TYPE_CHECKING

    if TYPE_CHECKING:
        from saltus import InfluxDB3Local, LineBuilder, TableBatch
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saltus._saltus import Cache, Column, InfluxDB3Local, State, TableBatch
else:
    try:
        from _saltus import Cache, Column, InfluxDB3Local, State, TableBatch
    except ModuleNotFoundError:
        # Outside of the server; inside, there is no `saltus.testing`.
        from saltus.testing import Cache, Column, InfluxDB3Local, State, TableBatch

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
    "Cache",
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
    "State",
    "TableBatch",
]
