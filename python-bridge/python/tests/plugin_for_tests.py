"""Does what its arguments say, for ``test_host.py``."""

SEEN = []


def act(influxdb3_local, args):
    for key, value in (args or {}).items():
        if key == "write":
            influxdb3_local.write(LineBuilder(value).int64_field("f", 1))
        elif key == "raw":
            influxdb3_local.write(Raw(value))
        elif key == "write_to":
            influxdb3_local.write_to_db(value, LineBuilder("out").int64_field("f", 1))
        elif key == "write_sync":
            influxdb3_local.write_sync(Raw(value), no_sync=True)
        elif key == "query":
            influxdb3_local.info(influxdb3_local.query(value))
        elif key == "swallowed_query":
            try:
                influxdb3_local.query(value)
            except BaseException:
                influxdb3_local.info("swallowed")
        elif key == "count":
            count = influxdb3_local.state.get("count", 0) + 1
            influxdb3_local.state.put("count", count)
            influxdb3_local.info("count", count)
        elif key == "print":
            print(value, end="")
        elif key == "raise":
            raise ValueError(value)


class Raw:
    def __init__(self, text):
        self.text = text

    def build(self):
        return self.text


def process_writes(influxdb3_local, table_batches, args=None):
    SEEN.append(1)
    for batch in table_batches:
        influxdb3_local.info(batch["table_name"], batch["rows"], len(SEEN), __name__)
    act(influxdb3_local, args)


def process_scheduled_call(influxdb3_local, call_time, args=None):
    influxdb3_local.info(call_time, influxdb3_local.event.scheduled_time_ns)
    act(influxdb3_local, args)


def process_request(influxdb3_local, query_parameters, request_headers, request_body, args=None):
    act(influxdb3_local, args)
    kind = query_parameters.get("kind")
    if kind == "stream":
        return (part for part in ("a", "b"))
    if kind == "none":
        return None
    return {"query": query_parameters, "headers": request_headers, "body": request_body.decode()}, 201
