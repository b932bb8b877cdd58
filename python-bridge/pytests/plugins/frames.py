"""What numpy, pandas and pyarrow make of a batch; nothing of it is a copy."""

import re

import numpy
import pandas
import pyarrow


def _inside(address):
    with open("/proc/self/maps") as maps:
        lines = [line for line in maps if "memfd:saltus-rows" in line]
    ranges = [re.match(r"([0-9a-f]+)-([0-9a-f]+)", line).groups() for line in lines]
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


def process_writes(influxdb3_local, table_batches, args=None):
    batch = table_batches[0]
    n = numpy.frombuffer(batch.columns["n"], dtype=numpy.int64)
    assert _inside(n.ctypes.data)
    # pyarrow.record_batch(batch) would take the batch for the dict of rows that it is as well.
    records = pyarrow.RecordBatchReader.from_stream(batch).read_next_batch()
    for form in (records, pyarrow.record_batch(batch.columns)):
        assert form.schema.names == list(batch.columns) and form.columns == records.columns
        assert all(_inside(b.address) for column in form.columns for b in column.buffers() if b is not None)
    of_arrow = records["n"].to_numpy(zero_copy_only=True)
    assert of_arrow.ctypes.data == n.ctypes.data
    frame = records.to_pandas()
    influxdb3_local.info(n.sum(), records.num_rows, list(frame.columns), frame["f"].mean(), frame["host"].tolist())
