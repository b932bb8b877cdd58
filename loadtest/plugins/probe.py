"""Says how soon it is entered: keeps that in its cache until somebody asks.

A row carries the moment at which it was due, ``due``, by the monotonic clock of the same machine; rows without it are passed over.
A row with ``flush`` asks, and says with ``have`` how many samples it has been given so far. These are forgotten; the oldest of the
others become rows of the table that the argument ``samples`` names, and ``rest`` says how many are left for the next time. So nothing
is lost if a run does not come to its end, which may be interrupted anywhere.

A sample is two 64-bit numbers in hexadecimal digits: when it was due, and the nanoseconds to the entry.
"""

import array
import time

PART = 500  # samples in a row
PARTS = 8  # rows in a run, which must stay short


def process_writes(influxdb3_local, table_batches, args=None):
    """Take the time first."""
    entered = time.monotonic_ns()
    kept = influxdb3_local.cache.get("kept")
    if kept is None:
        kept = {"forgotten": 0, "samples": []}
        influxdb3_local.cache.put("kept", kept)
    samples = kept["samples"]
    for batch in table_batches:
        for row in batch["rows"]:
            due = row.get("due")
            if due is not None:
                samples += (due, entered - due)
            elif row.get("flush") is not None:
                flush(influxdb3_local, kept, row, args["samples"])


def flush(influxdb3_local, kept, row, table):
    """Hand over the oldest."""
    first = max(row["have"] - kept["forgotten"], 0)
    samples = kept["samples"][2 * first :]
    kept.update(forgotten=kept["forgotten"] + first, samples=samples)
    taken = samples[: 2 * PART * PARTS]
    parts = range(0, max(len(taken), 1), 2 * PART)
    for index, start in enumerate(parts):
        text = array.array("q", taken[start : start + 2 * PART]).tobytes().hex()
        line = LineBuilder(table).tag("part", str(index)).int64_field("flush", row["flush"]).int64_field("parts", len(parts))
        influxdb3_local.write(line.int64_field("rest", (len(samples) - len(taken)) // 2).string_field("samples", text))
