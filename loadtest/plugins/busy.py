"""Keeps its processor busy for some milliseconds, and says once on which shard."""


def process_writes(influxdb3_local, table_batches, args=None):
    """The same work for every run, whatever it is given."""
    loops = int(args["loops"])
    if any(row.get("warm") for batch in table_batches for row in batch["rows"]):
        influxdb3_local.info(f"shard {influxdb3_local.event.shard}")
        return
    total = 0
    for number in range(loops):
        total = (total + number * number) % 1_000_003
