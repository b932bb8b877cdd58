"""Says how far from its time it is entered.

Where the host knows the exact time of the schedule (``event.scheduled_time_ns``), that is taken; elsewhere ``call_time``, which has
whole seconds and is UTC. What was measured becomes a row of the table that the argument ``samples`` names, four times a second:
pairs of 64-bit numbers in hexadecimal digits, the scheduled time and the nanoseconds from it to the entry.
"""

import array
import datetime
import time


def process_scheduled_call(influxdb3_local, call_time, args=None):
    """Take the time first."""
    entered = time.time_ns()
    event = getattr(influxdb3_local, "event", None)
    due = getattr(event, "scheduled_time_ns", None)
    if due is None:
        due = int(call_time.replace(tzinfo=datetime.timezone.utc).timestamp()) * 1_000_000_000
    samples = influxdb3_local.cache.get("samples")
    if samples is None:
        samples = []
        influxdb3_local.cache.put("samples", samples)
    samples.append(due)
    samples.append(entered - due)
    if entered - samples[0] >= 250_000_000:
        text = array.array("q", samples).tobytes().hex()
        influxdb3_local.write(LineBuilder(args["samples"]).int64_field("count", len(samples) // 2).string_field("samples", text))
        samples.clear()
