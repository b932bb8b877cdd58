"""Honest work: queries all day, one query after the other that takes a processor for a while."""

SQL = "SELECT sum(a.value % b.value) AS s FROM generate_series(1, 1500) AS a CROSS JOIN generate_series(1, 1500) AS b"


def process_writes(influxdb3_local, table_batches, args=None):
    """Ask five times."""
    for _ in range(5):
        influxdb3_local.query(SQL)
