"""A plugin that takes its time: sleeps for the argument ``sleep_ms``, then computes for about ``work_ms``."""

import time


def process_writes(influxdb3_local, table_batches, args=None):
    """The same for every run, whatever it is given."""
    time.sleep(float(args.get("sleep_ms", "0")) / 1000)
    end = time.perf_counter() + float(args.get("work_ms", "0")) / 1000
    total = 0
    while time.perf_counter() < end:
        for number in range(100):
            total = (total + number * number) % 1_000_003
