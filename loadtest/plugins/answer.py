"""Answers with the moment at which it was entered, by the machine's monotonic clock, and how long the body was."""

import time


def process_request(influxdb3_local, query_parameters, request_headers, request_body, args=None):
    """Take the time first."""
    entered = time.monotonic_ns()
    return {"entered": entered, "bytes": len(request_body)}
