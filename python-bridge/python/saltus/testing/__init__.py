"""Tests of plugins without a server.

A :class:`Host` loads a plugin the way the server does and runs it on line protocol, at a time, or for a request::

    def test_hot_rooms_raise_an_alarm(saltus_host):
        trigger = saltus_host.load("alarm.py", args={"limit": "24"})
        run = trigger.process_writes("room,name=kitchen temp=25.0 1000")
        run.assert_written("alarm", tags={"name": "kitchen"}, fields={"temp": 25.0}, time=1000)

``saltus_host`` is a pytest fixture that comes with the package; with ``unittest``, make a ``Host()``.

What is the same as in the server: fresh globals for every run of a file, ``LineBuilder`` in builtins, rows as dicts, line
protocol with its errors, types of columns, what is queued and what takes effect at once, cache, state, events, conversion of
responses, words of errors. What is not there: SQL (answers are registered with ``Host.on_query``), lanes and their
deadlines, and what several threads do at once.
"""

from __future__ import annotations

from saltus.testing._clock import Clock
from saltus.testing._host import Host, MissingFunction, Trigger, UnexpectedQuery, WriteBackFailed, reason_against_inline
from saltus.testing._lines import LineProtocolError
from saltus.testing._local import Cache, Column, InfluxDB3Local, LogLine, Query, State, TableBatch
from saltus.testing._run import PluginFailed, Response, Run
from saltus.testing._tables import Database, Point

__all__ = [
    "Cache",
    "Clock",
    "Column",
    "Database",
    "Host",
    "InfluxDB3Local",
    "LineProtocolError",
    "LogLine",
    "MissingFunction",
    "PluginFailed",
    "Point",
    "Query",
    "Response",
    "Run",
    "State",
    "TableBatch",
    "Trigger",
    "UnexpectedQuery",
    "WriteBackFailed",
    "reason_against_inline",
]
