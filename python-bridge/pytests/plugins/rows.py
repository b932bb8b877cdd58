"""Logs every row, and checks that the lazy dict cannot be told from a dict."""

import copy
import json


def process_writes(influxdb3_local, table_batches, args=None):
    batch = table_batches[0]
    influxdb3_local.info(list(batch), batch["table_name"], len(batch), isinstance(batch, dict))
    rows = batch["rows"]
    assert type(rows) is list and all(type(row) is dict for row in rows)
    for row in rows:
        influxdb3_local.info(row)
    plain = {"table_name": "cpu", "rows": rows}
    assert batch == plain and plain == batch
    assert batch.get("rows") is rows and batch.get("none", 3) == 3 and "rows" in batch
    assert dict(batch) == plain and {**batch} == plain and batch | {} == plain and {} | batch == plain
    assert list(batch.items()) == list(plain.items()) and list(batch.values()) == list(plain.values())
    assert json.dumps(batch) == json.dumps(plain) and repr(batch) == repr(plain)
    assert copy.copy(dict(batch)) == plain and batch.copy() == plain
    assert (lambda table_name, rows: rows)(**batch) is rows
    batch["rows"] = []
    assert batch["rows"] == [] and batch.pop("rows") == [] and len(batch) == 1
    influxdb3_local.info("all ways to read a dict agree")
