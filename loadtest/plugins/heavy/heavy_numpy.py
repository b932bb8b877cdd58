"""Honest work: computes for a fifth of a second of CPU time, with numpy."""

import time

import numpy


def process_writes(influxdb3_local, table_batches, args=None):
    """Take a fifth of a second."""
    until = time.thread_time() + 0.2
    series = numpy.linspace(0.0, 1.0, 65536)
    while time.thread_time() < until:
        series = numpy.sort(numpy.abs(numpy.fft.rfft(series, 131072).real))[:65536]
    influxdb3_local.cache.put("last", float(series[-1]))
