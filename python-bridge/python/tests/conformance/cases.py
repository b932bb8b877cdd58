"""Small plugins that do the same in ``saltus.testing`` and in the server; ``compare.py`` runs them in both.

Each says with ``info`` what it saw. What differs from run to run by its nature (times, addresses, ids) is not said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Case:
    """A plugin and what it is given."""

    name: str
    source: str
    #: Texts of line protocol, a run each.
    writes: tuple[str, ...] = ()
    #: How often it is called by a schedule.
    calls: int = 0
    #: Requests: query string, headers, body.
    requests: tuple[tuple[str, dict[str, str], bytes], ...] = ()
    args: Optional[dict[str, str]] = None
    #: Rows without a timestamp get the clock's: they are compared without.
    timed: bool = True
    #: The setting of the trigger.
    missing_columns: str = "absent"


def runs(*bodies: str) -> str:
    """A plugin whose n-th run does the n-th body."""
    source = (
        "def process_writes(influxdb3_local, table_batches, args=None):\n    n = table_batches[0]['rows'][0]['n']\n"
    )
    for n, body in enumerate(bodies):
        source += f"    if n == {n}:\n" + "".join(f"        {line}\n" for line in body.strip().splitlines())
    return source


def numbered(count: int) -> tuple[str, ...]:
    """One write for each run."""
    return tuple(f"in n={n}i {n + 1}" for n in range(count))


TRY = """
def attempt(api, what):
    try:
        api.info("gave", repr(what()))
    except Exception as error:
        api.info(type(error).__name__, str(error))
"""

ROWS = Case(
    "rows",
    """
def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        influxdb3_local.info(type(table_batches).__name__, list(batch), len(batch), isinstance(batch, dict), batch.row_count)
        for row in batch["rows"]:
            influxdb3_local.info(type(row).__name__, row, [type(value).__name__ for value in row.values()])
    influxdb3_local.info(repr(args), __name__, "__file__" in globals())
""",
    writes=(
        'm,b=x,a=y\\ z f=1.5,i=2i,u=3u,s="q\\"",t=true 5\nm,c=w g=1,f=2 -6',
        "m f=1 1\nn,k=v x=f 2\nm f=2 3",
        "m,b=x i=-9223372036854775808i,u=18446744073709551615u 7",
    ),
)

EVERY_COLUMN = Case(
    "every_column",
    """
def process_writes(influxdb3_local, table_batches, args=None):
    influxdb3_local.info(table_batches[0]["rows"])
""",
    writes=("m,t=x f=1 1", "m g=1i 2", "m,u=y,t=x f=2 3\nm,t=y g=2i 4"),
    missing_columns="none",
)

COLUMNS = Case(
    "columns",
    """
def process_writes(influxdb3_local, table_batches, args=None):
    for name, column in table_batches[0].columns.items():
        influxdb3_local.info(name, column.name, column.kind, column.null_count, column.to_list(), len(column))
        if column.null_count == 0 and column.kind not in ("tag", "string"):
            view = memoryview(column)
            influxdb3_local.info(view.format, view.readonly, view.tolist())
        if column.kind == "string":
            try:
                memoryview(column)
            except BufferError as error:
                influxdb3_local.info(error)
    influxdb3_local.info(table_batches[0].columns["f"].dictionary)
""",
    writes=('m,a=x f=1.5,i=2i,u=3u,t=true,s="q" 5\nm,a=y f=2,i=4i,u=5u,t=false,p=1 6',),
)

GLOBALS = Case(
    "globals",
    """
SEEN = []
COUNT = 0

def process_writes(influxdb3_local, table_batches, args=None):
    global COUNT
    COUNT += 1
    SEEN.append(1)
    influxdb3_local.info(COUNT, len(SEEN), sorted(args.items()))
    args["added"] = "x"
    table_batches[0]["rows"].clear()
""",
    writes=("m f=1 1", "m f=1 2"),
    args={"a": "1", "b": "two"},
)

LINE_BUILDER = Case(
    "line_builder",
    TRY
    + """
def process_writes(influxdb3_local, table_batches, args=None):
    line = LineBuilder("t,1").tag("k", "a b=c,d\\\\e").int64_field("i", 1).uint64_field("u", 2).float64_field("f", 3)
    line.string_field("s", 'say "x"').bool_field("b", 0).time_ns(7)
    influxdb3_local.info(line.build(), line.measurement, dict(line.tags), dict(line.fields))
    attempt(influxdb3_local, lambda: LineBuilder("a b"))
    attempt(influxdb3_local, lambda: LineBuilder("a").build())
    attempt(influxdb3_local, lambda: LineBuilder("a").tag("", 1))
    attempt(influxdb3_local, lambda: LineBuilder("a").tag("a b", 1))
    attempt(influxdb3_local, lambda: LineBuilder("a").int64_field("a=", 1))
    attempt(influxdb3_local, lambda: LineBuilder("a").uint64_field("a", -1))
    attempt(influxdb3_local, lambda: LineBuilder("a").float64_field("a", 1e300).build())
    attempt(influxdb3_local, lambda: LineBuilder("a").tag("n", None).float64_field("a", 1e-7).build())
    influxdb3_local.write(line)
""",
    writes=("m f=1 1",),
)

WRITES = Case(
    "writes",
    TRY
    + """
class Raw:
    def __init__(self, text):
        self.text = text

    def build(self):
        return self.text
"""
    + runs(
        "influxdb3_local.write(LineBuilder('out').int64_field('n', 0).time_ns(1))\n"
        "influxdb3_local.write(Raw('out n=1i 2\\nout,k=v n=2i 2'))\n"
        "influxdb3_local.write(Raw(''))",
        "influxdb3_local.write(LineBuilder('lost').int64_field('n', 0).time_ns(1))\nraise KeyError('gone')",
        "attempt(influxdb3_local, lambda: influxdb3_local.write(Raw(5)))\n"
        "attempt(influxdb3_local, lambda: influxdb3_local.write_to_db(5, Raw('x')))\n"
        "attempt(influxdb3_local, lambda: influxdb3_local.write(LineBuilder('none')))",
        "influxdb3_local.write(Raw('good n=1i 1\\ngood n=1 2'))\ninfluxdb3_local.info('queued')",
        "influxdb3_local.write_to_db('not a name', Raw('x n=1i 1'))",
    ),
    writes=numbered(5),
)

WRITE_SYNC = Case(
    "write_sync",
    TRY
    + "class Raw:\n    def __init__(self, text):\n        self.text = text\n    def build(self):\n        return self.text\n"
    + runs(
        "influxdb3_local.write_sync(LineBuilder('out').int64_field('n', 1).time_ns(1), no_sync=True)\n"
        "influxdb3_local.write_sync(LineBuilder('out').int64_field('n', 2).time_ns(2), False)\n"
        "attempt(influxdb3_local, lambda: influxdb3_local.write_sync(Raw('out n=1 3'), False))\n"
        "attempt(influxdb3_local, lambda: influxdb3_local.write_sync(Raw('bad'), no_sync=True))\n"
        "attempt(influxdb3_local, lambda: influxdb3_local.write_sync_to_db('not a name', Raw('x n=1i 1'), False))",
        "influxdb3_local.write_sync(LineBuilder('out').int64_field('n', 3).time_ns(3), no_sync=False)\nraise ValueError('after')",
    ),
    writes=numbered(2),
)

INTERNAL = Case(
    "internal",
    TRY
    + """
import __main__

def process_writes(influxdb3_local, table_batches, args=None):
    line = LineBuilder("x").int64_field("n", 1)
    attempt(influxdb3_local, lambda: influxdb3_local.write_to_db("_internal", line))
    attempt(influxdb3_local, lambda: influxdb3_local.write_sync_to_db("_internal", line, True))
    try:
        LineBuilder("x").build()
    except __main__.InvalidLineError as error:
        influxdb3_local.info("found in __main__")
""",
    writes=("m f=1 1",),
)

CACHE = Case(
    "cache",
    TRY
    + runs(
        "cache = influxdb3_local.cache\n"
        "influxdb3_local.info(cache.get('k'), cache.get('k', 5), cache.delete('k'))\n"
        "held = [1]\n"
        "cache.put('k', held)\n"
        "influxdb3_local.info(cache.get('k') is held)\n"
        "held.append(2)\n"
        "cache.put('none', None)\n"
        "influxdb3_local.info(cache.get('none', 'default'))\n"
        "cache.put('gone', 1, ttl=0)\n"
        "influxdb3_local.info(cache.get('gone', 'expired'))\n"
        "cache.put('long', 1, ttl=3600.5)",
        "cache = influxdb3_local.cache\n"
        "influxdb3_local.info(cache.get('k'), cache.get('long'), cache.delete('k'), cache.get('k'))\n"
        "attempt(influxdb3_local, lambda: cache.put('x', 1, -1))\n"
        "attempt(influxdb3_local, lambda: cache.put('x', 1, float('nan')))\n"
        "attempt(influxdb3_local, lambda: cache.put('x', 1, 1e30))\n"
        "attempt(influxdb3_local, lambda: cache.put(5, 1))\n"
        "attempt(influxdb3_local, lambda: cache.get(5))",
        "influxdb3_local.cache.put('before', 1)\nraise ValueError('a failing run keeps what it put')",
        "influxdb3_local.info(influxdb3_local.cache.get('before'))",
    ),
    writes=numbered(4),
)

STATE = Case(
    "state",
    TRY
    + runs(
        "state = influxdb3_local.state\n"
        "influxdb3_local.info(state.get('k'), state.get('k', 5), state.delete('k'), state.keys(), state.items())\n"
        "value = {'a': [1, 2.5, None, True], 'b': ('x', b'y'), '$c': float('inf')}\n"
        "state.put('k', value)\n"
        "value['a'].append(3)\n"
        "state.put('b', 1)\n"
        "influxdb3_local.info(state.get('k'), state.keys())",
        "state = influxdb3_local.state\n"
        "influxdb3_local.info(state.items())\n"
        "state.get('k')['a'].append(9)\n"
        "influxdb3_local.info(state.get('k')['a'], state.delete('b'), state.delete('b'), state.keys())\n"
        "attempt(influxdb3_local, lambda: state.put('x', object()))\n"
        "attempt(influxdb3_local, lambda: state.put('x', {1: 2}))\n"
        "attempt(influxdb3_local, lambda: state.put('x', [set()]))\n"
        "attempt(influxdb3_local, lambda: state.put('k' * 2000, 1))\n"
        "attempt(influxdb3_local, lambda: state.put('large', 'x' * (1 << 20)))\n"
        "attempt(influxdb3_local, lambda: state.get(5))",
        "influxdb3_local.state.put('lost', 1)\nraise ValueError('a failing run keeps nothing')",
        "influxdb3_local.info(influxdb3_local.state.keys())",
    ),
    writes=numbered(4),
)

LOGS = Case(
    "logs",
    runs(
        "influxdb3_local.info('a', 1, None, [2], {'b': 3})\n"
        "influxdb3_local.warn()\n"
        "influxdb3_local.error('x', sep='y') if False else influxdb3_local.error('two\\nlines')\n"
        "print('one', 2)\n"
        "print('three\\nfour', end='')\n"
        "import sys\n"
        "sys.stderr.write('to stderr\\n')",
        "class Bad(Exception):\n    def __str__(self):\n        raise TypeError('no')\nraise Bad()",
        "raise SystemExit(3)",
        "raise BaseException('bare')",
        "def deep():\n    raise LookupError('deep')\ntry:\n    deep()\nexcept LookupError as error:\n    raise ValueError('outer') from error",
        "1 / 0",
    ),
    writes=numbered(6),
)

KINDS_OF_ERRORS = Case(
    "kinds_of_errors",
    """
def attempt(api, what):
    try:
        what()
        api.info("gave")
    except BaseException as error:
        api.info(type(error).__name__)

def process_writes(influxdb3_local, table_batches, args=None):
    attempt(influxdb3_local, lambda: influxdb3_local.info(x=1))
    attempt(influxdb3_local, lambda: influxdb3_local.write())
    attempt(influxdb3_local, lambda: influxdb3_local.write(5))
    attempt(influxdb3_local, lambda: influxdb3_local.write_sync(5))
    attempt(influxdb3_local, lambda: influxdb3_local.query(5))
    attempt(influxdb3_local, lambda: influxdb3_local.query("SELECT 1", args=[1]))
    attempt(influxdb3_local, lambda: influxdb3_local.query("SELECT 1", {"a": object()}))
    attempt(influxdb3_local, lambda: influxdb3_local.query("SELECT 1", database="not a name"))
    attempt(influxdb3_local, lambda: influxdb3_local.query("SELECT $missing"))
    attempt(influxdb3_local, lambda: influxdb3_local.nothing)
    attempt(influxdb3_local, lambda: influxdb3_local.cache.nothing)
    attempt(influxdb3_local, lambda: table_batches[0].nothing)
    attempt(influxdb3_local, lambda: influxdb3_local.cache.put("k", 1, "soon"))
""",
    writes=("m f=1 1",),
)

EVENT = Case(
    "event",
    """
def process_writes(influxdb3_local, table_batches, args=None):
    event = influxdb3_local.event
    influxdb3_local.info(event.kind, event.trigger, event.attempt, event.id == event.ids[0], len(event.ids))
    influxdb3_local.info(event.id == table_batches[0].event_id, type(event.run_id).__name__, event.id.count("-"))
    influxdb3_local.info(event.scheduled_time, event.scheduled_time_ns, event.missed, influxdb3_local.request)
""",
    writes=("m f=1 1",),
)

MISSING = Case("missing", "def process_request(a, b, c, d, e):\n    pass\n", writes=("m f=1 1",))

ARITY = Case("arity", "def process_writes(influxdb3_local, table_batches):\n    pass\n", writes=("m f=1 1",))

SCHEDULE = Case(
    "schedule",
    """
def process_scheduled_call(influxdb3_local, call_time, args=None):
    event = influxdb3_local.event
    exact = call_time.timestamp() == event.scheduled_time_ns // 10**9
    influxdb3_local.info(type(call_time).__name__, call_time.tzinfo, call_time.microsecond, exact, args)
    influxdb3_local.info(event.kind, len(event.ids), event.scheduled_time.endswith("Z"), event.missed, event.attempt)
    influxdb3_local.write(LineBuilder("out").int64_field("n", 1).time_ns(1))
""",
    calls=1,
)

COROUTINE = Case(
    "coroutine",
    """
import asyncio

async def process_writes(influxdb3_local, table_batches, args=None):
    await asyncio.sleep(0)
    influxdb3_local.info("ran")
    influxdb3_local.write(LineBuilder("out").int64_field("n", 1).time_ns(1))
""",
    writes=("m f=1 1",),
)

RESPONSES = """
class Flask:
    status_code = 202
    headers = {"Content-Type": "text/x", "X-A": "b"}
    def __flask_response__(self):
        return True
    def get_data(self):
        return "flask"

class Starlette:
    status_code = 203
    headers = {"content-type": "text/y"}
    body = b"starlette"

def parts():
    yield "a"
    yield b"b"
    yield 5
    yield ""
    yield "c"

def fails():
    yield "begun"
    raise ValueError("within")

def fails_at_once():
    raise ValueError("at once")
    yield

ANSWERS = {
    "text": lambda: "text",
    "dict": lambda: {"a": [1, None]},
    "list": lambda: [1],
    "bytes": lambda: b"raw",
    "empty": lambda: "",
    "status": lambda: ("text", 201),
    "headers": lambda: ("text", {"X-A": "b"}),
    "both": lambda: ({"a": 1}, 418, {"X-A": "b", "Content-Type": "text/z"}),
    "lower": lambda: ("text", 200, {"content-type": "text/w"}),
    "ignored": lambda: ("text", None, {"X-A": "b"}),
    "wrong": lambda: ("text", 200, "no"),
    "one": lambda: ("text",),
    "number": lambda: (5, 200),
    "none_in_tuple": lambda: (None, 200),
    "bytes_in_tuple": lambda: (b"raw", 200),
    "bool": lambda: ("text", True),
    "low": lambda: ("text", 5),
    "none": lambda: None,
    "int": lambda: 5,
    "set": lambda: {"x"},
    "four": lambda: ("a", "b", "c", "d"),
    "generator": lambda: parts(),
    "generator_with_status": lambda: (parts(), 206),
    "fails": lambda: fails_at_once(),
    "flask": lambda: Flask(),
    "starlette": lambda: Starlette(),
    "header_that_is_no_text": lambda: ("text", {"X-A": 5}),
    "not_json": lambda: {"a": object()},
}

def process_request(influxdb3_local, query_parameters, request_headers, request_body, args=None):
    return ANSWERS[query_parameters["answer"]]()
"""

ANSWERS = (
    "text dict list bytes empty status headers both lower ignored wrong one number none_in_tuple bytes_in_tuple bool low none "
    "int set four generator generator_with_status fails flask starlette header_that_is_no_text not_json unknown"
).split()

RESPONSE = Case("response", RESPONSES, requests=tuple((f"answer={name}", {}, b"") for name in ANSWERS))

REQUEST = Case(
    "request",
    """
def process_request(influxdb3_local, query_parameters, request_headers, request_body, args=None):
    request = influxdb3_local.request
    influxdb3_local.write(LineBuilder("out").int64_field("n", len(request_body)).time_ns(1))
    return {
        "query": query_parameters,
        "header": request_headers.get("x-a"),
        "authorization": "authorization" in request_headers,
        "body": request_body.decode(),
        "types": [type(v).__name__ for v in (query_parameters, request_headers, request_body)],
        "args": args,
        "method": request.method,
        "all": request.query.getall("a"),
        "query_string": request.query_string,
        "lower": request.headers["X-A"],
        "tail": request.tail,
        "json": request.json(),
    }
""",
    requests=(("a=1&a=2&b=%20+x&c=", {"X-A": "v", "Authorization": "Bearer x"}, b'{"k": 1}'),),
    args={"k": "v"},
)

CASES: list[Case] = [value for value in list(globals().values()) if isinstance(value, Case)]
