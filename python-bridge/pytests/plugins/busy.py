"""A bit of everything, for runs in great number."""


def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        total = sum(row["n"] for row in batch["rows"]) + sum(memoryview(batch.columns["n"]))
        batch.__arrow_c_array__()
        influxdb3_local.write(LineBuilder(batch["table_name"]).int64_field("total", total))
    try:
        raise ValueError("caught")
    except ValueError:
        pass
