"""What numpy, pandas and pyarrow make of a batch; nothing of it is a copy."""

import re

import numpy
import pandas
import pyarrow


def _inside(first, address):
    """Whether an address is in the same piece of memory as the first one: a mapping of many rows, or what a packet was copied to."""
    with open("/proc/self/maps") as maps:
        lines = [line for line in maps if "memfd:saltus-rows" in line]
    ranges = [[int(bound, 16) for bound in re.match(r"([0-9a-f]+)-([0-9a-f]+)", line).groups()] for line in lines]
    mapped = next((range for range in ranges if range[0] <= first < range[1]), None)
    return mapped[0] <= address < mapped[1] if mapped else abs(address - first) < 32 * 1024


def process_writes(influxdb3_local, table_batches, args=None):
    batch = table_batches[0]
    n = numpy.frombuffer(batch.columns["n"], dtype=numpy.int64)
    inside = lambda address: _inside(n.ctypes.data, address)
    # pyarrow.record_batch(batch) would take the batch for the dict of rows that it is as well.
    records = pyarrow.RecordBatchReader.from_stream(batch).read_next_batch()
    for form in (records, pyarrow.record_batch(batch.columns)):
        assert form.schema.names == list(batch.columns) and form.columns == records.columns
        assert all(inside(b.address) for column in form.columns for b in column.buffers() if b is not None)
    of_arrow = records["n"].to_numpy(zero_copy_only=True)
    assert of_arrow.ctypes.data == n.ctypes.data
    frame = records.to_pandas()
    influxdb3_local.info(n.sum(), records.num_rows, list(frame.columns), frame["f"].mean(), frame["host"].tolist())
