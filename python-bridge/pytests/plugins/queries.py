"""Asks in every way."""


def process_writes(influxdb3_local, table_batches, args=None):
    influxdb3_local.info(influxdb3_local.query("SELECT 1", {"a": "b"}))
    influxdb3_local.info(influxdb3_local.query("x", database="other")[0]["text"])
    for query, arguments in (("bad", None), ("x", {"n": [1]})):
        try:
            influxdb3_local.query(query, args=arguments)
        except Exception as error:
            influxdb3_local.info(type(error).__name__, error)
