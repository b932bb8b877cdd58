"""Queues writes for two databases; anything with ``build()`` will do."""


class Lines:
    """Several lines at once."""

    def build(self):
        return "x y=1\nz y=2"


def process_writes(influxdb3_local, table_batches, args=None):
    influxdb3_local.write(LineBuilder("m").tag("t", "a").int64_field("v", 1).time_ns(5))
    influxdb3_local.write_to_db("other", Lines())
    influxdb3_local.write(line_builder=LineBuilder("m").int64_field("v", 2))
