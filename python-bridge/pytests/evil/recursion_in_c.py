"""Recursion through C code.

inline: RecursionError
deferred: RecursionError
process: RecursionError
"""

import functools


def deep(value):
    return functools.reduce(lambda a, b: deep(a), [value, value])


def process_writes(influxdb3_local, table_batches, args=None):
    deep(1)
