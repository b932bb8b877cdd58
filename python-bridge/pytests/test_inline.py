"""The check that lets a plugin run on the thread that ingests data."""

from __future__ import annotations

import ast
import unittest

from saltus._inline import reason_against

PASS = {
    "arithmetic": "def f(x):\n    return x * 2 + x ** 2 - (x << 3) / 1.5 ** x\n",
    "rows": "import json\nimport math\nfrom datetime import datetime, timezone\nfrom collections import defaultdict, deque\n"
    "def process_writes(api, batches, args):\n    seen = defaultdict(float)\n    for batch in batches:\n        for row in batch['rows']:\n"
    "            seen[row['host']] += row['usage'] * 1.8\n    for host, value in sorted(seen.items()):\n"
    "        api.write(LineBuilder('out').tag('host', host).float64_field('v', value))\n    api.info(f'{len(seen)} hosts, {value:.2f}')\n",
    "cache": "def f(api):\n    api.cache.put('n', api.cache.get('n', 0) + 1, ttl=60)\n",
    "state": "def f(api):\n    api.state.put('n', api.state.get('n', 0) + 1)\n    return api.state.items()\n",
    "writes that do not wait": "def f(api, line):\n    api.write_sync(line, no_sync=True)\n    api.write_sync(line, True)\n"
    "    api.write_sync_to_db('other', line, True)\n    api.write_sync_to_db('other', line, no_sync=True)\n",
    "loops": "def f(rows):\n    while rows:\n        rows.pop()\n    return [x for x in range(len(rows))], sum(range(100))\n",
    "environment": "import os\nLIMIT = os.environ.get('LIMIT', '1')\nname = os.path.join('a', 'b')\n",
    "anchored pattern": "import re\ndef f(x):\n    return re.fullmatch(r'[a-z]+', x) or re.match(r'\\d{1,3}', x)\n",
    "bounded search": "import re\nP = re.compile(r'\\d{1,3}-[ab]?')\ndef f(x):\n    return P.search(x)\n",
    "text": "def f(x):\n    return '%5.1f' % x + '-' * 20 + x.rjust(8) + '{:>8}'.format(x) + ', '.join(map(str, x))\n",
    "exceptions": "def f(x):\n    try:\n        return int(x)\n    except (ValueError, TypeError) as error:\n        raise RuntimeError(x) from error\n",
    "a class": "class Window:\n    def __init__(self):\n        self.n = 0\n    def add(self, x):\n        self.n += x\n",
    "types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas\n",
    "logging": "import logging\nlog = logging.getLogger('p')\ndef f(x):\n    log.info('%s', x)\n",
}

REFUSED = {
    "an unknown module": ("import requests\n", "import of requests"),
    "types that are not only types": (
        "from typing import TYPE_CHECKING\nTYPE_CHECKING = 1\nif TYPE_CHECKING:\n    import pandas\n",
        "import of pandas",
    ),
    "threads": ("import threading\n", "import of threading"),
    "a queue": ("from queue import Queue\n", "import of queue"),
    "select": ("def f():\n    import select\n", "import of select, which is not known to be harmless (line 2)"),
    "files by os": ("import os\ndef f():\n    os.read(0, 1)\n", "os.read"),
    "files by os, from": ("from os import read\n", "os.read"),
    "files by os, other name": ("import os as o\ndef f():\n    o.read(0, 1)\n", "os.read"),
    "everything": ("from json import *\n", "json.*"),
    "open": ("def f():\n    return open('x')\n", "open (line 2)"),
    "open by another name": ("o = open\n", "open"),
    "sleep": ("import time\ntime.sleep(1)\n", "sleep"),
    "sleep, from": ("from time import sleep\n", "time.sleep"),
    "a query": ("def f(api):\n    return api.query('x')\n", "query() waits"),
    "a write that waits": ("def f(api, line):\n    api.write_sync(line, no_sync=False)\n", "write_sync() waits"),
    "a write that may wait": ("def f(api, line, x):\n    api.write_sync_to_db('d', line, x)\n", "write_sync_to_db() waits"),
    "a write that waits, by another name": ("def f(api):\n    return api.write_sync\n", "write_sync() waits"),
    "a lock": ("def f(x):\n    x.acquire()\n", "acquire() waits"),
    "power": ("def f(x, y):\n    return x ** y\n", "** with"),
    "power in place": ("def f(x, y):\n    x **= y\n", "** with"),
    "a large power": ("def f(x):\n    return x ** 100000\n", "** with"),
    "pow": ("def f(x, y):\n    return pow(x, y)\n", "pow"),
    "shift": ("def f(x, y):\n    return 1 << y\n", "<< by"),
    "a large shift": ("x = 1 << 10 ** 3\n", "<< by"),
    "repetition": ("def f(n):\n    return 'x' * n\n", "repetition"),
    "repetition of a list": ("def f(n):\n    return n * [0]\n", "repetition"),
    "a large repetition": ("x = 'x' * 100000000\n", "repetition"),
    "padding": ("def f(x, n):\n    return x.ljust(n)\n", "ljust() to"),
    "a width": ("def f(x, n):\n    return f'{x:{n}}'\n", "wide"),
    "a constant width": ("def f(x):\n    return f'{x:99999999}'\n", "wide"),
    "a width by %": ("def f(x, n):\n    return '%*d' % (n, x)\n", "wide"),
    "a sum": ("def f(n):\n    return sum(range(n))\n", "sum() of"),
    "a list": ("def f(n):\n    return list(range(0, n))\n", "list() of"),
    "an endless iterator": ("import itertools\ndef f():\n    return sum(itertools.count())\n", "itertools.count"),
    "an endless iterator, from": ("from itertools import cycle\n", "itertools.cycle"),
    "factorial": ("from math import factorial\n", "math.factorial"),
    "bytes": ("def f(n):\n    return bytes(n)\n", "bytes() of"),
    "search": ("import re\ndef f(x):\n    return re.search(r'a+b', x)\n", "regular expression"),
    "nested repeats": ("import re\ndef f(x):\n    return re.match(r'(a+)+b', x)\n", "regular expression"),
    "two repeats": ("import re\ndef f(x):\n    return re.match(r'a*a*b', x)\n", "regular expression"),
    "a back reference": ("import re\ndef f(x):\n    return re.match(r'(.)\\1', x)\n", "regular expression"),
    "a variable pattern": ("import re\ndef f(p, x):\n    return re.match(p, x)\n", "regular expression"),
    "a compiled pattern": ("from re import compile as c\nP = c('a+')\n", "regular expression"),
    "eval": ("def f(x):\n    return eval(x)\n", "eval"),
    "getattr": ("def f(x, y):\n    return getattr(x, y)()\n", "getattr"),
    "classes of objects": ("def f(x):\n    return x.__class__.__subclasses__()\n", "__"),
    "frames": ("def f(x):\n    return x.gi_frame\n", "gi_frame"),
    "finalizers": ("class A:\n    def __del__(self):\n        pass\n", "__del__"),
    "await": ("async def f(x):\n    await x\n", "async def"),
    "the global cache": ("def f(api):\n    api.cache.get('x', use_global=True)\n", "the global cache"),
    "a relative import": ("from . import x\n", "relative"),
}


class Inline(unittest.TestCase):
    def test_plain_plugins_pass(self) -> None:
        for name, body in PASS.items():
            with self.subTest(name):
                self.assertIsNone(reason_against(ast.parse(body)))

    def test_what_neither_audit_nor_interrupt_can_stop_is_refused_by_name(self) -> None:
        for name, (body, reason) in REFUSED.items():
            with self.subTest(name):
                self.assertIn(reason, reason_against(ast.parse(body)) or "nothing")
