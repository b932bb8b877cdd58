"""The check that lets module globals be kept, proved on a table of module bodies.

Each body is run three times both ways: with fresh globals each time, as InfluxDB 3 does, and with globals that are kept. A body that the
check lets pass must give the same both ways. A body that gives something else must be refused; such bodies are marked ``noticed``, and
the test makes sure that they really are.
"""

from __future__ import annotations

import unittest
from pathlib import Path

from saltus._reuse import reason_against

RUNS = 3

# What kept globals cannot tell from fresh ones.
PASS = {
    "nothing": "",
    "a docstring and constants": '"""Doc."""\nLIMIT = 22.5\nNAMES = ("a", b"b", None, -1)\nSEVEN = 3 * 2 + 1\n',
    "constants of constants": "HOUR = 60 * 60\nDAY: int = 24 * HOUR\n",
    "tables that are only read": "UNITS = {'C': 1.0, 'F': 1.8}\nORDER: list[str] = ['a', 'b']\ndef f(x):\n    if x in UNITS:\n"
    "        return UNITS[x]\n    return [UNITS.get(k, 0) for k in ORDER], len(ORDER), sorted(UNITS.items())\n",
    "imports": "import json\nimport os.path\nimport datetime as dt\nfrom collections import defaultdict\nimport math\n",
    "pure calls": "import re\nfrom datetime import timedelta\nWORD = re.compile(r'\\w+', re.IGNORECASE)\n"
    "PAUSE = timedelta(seconds=5)\nKINDS = frozenset({'a', 'b'})\n",
    "a logger": "import logging\nlog = logging.getLogger('plugin')\n",
    "helpers with harmless defaults": "LIMIT = 3\ndef above(x, limit=LIMIT, *, names=('a',)):\n    return x > limit\n",
    "annotations": "from typing import Any\ndef f(x: dict[str, Any], y: 'int | None' = None) -> list[str]:\n    return []\n",
    "state of a call": "def f():\n    seen = []\n    def add(x, into=[]):\n        into.append(x)\n        return into\n    seen.extend(add(1))\n"
    "    return seen\n",
    "a function as a key": "def by(row):\n    return -row\nout.append(0) if False else None\n".splitlines()[0]
    + "\n    return -row\ndef g(rows):\n    return sorted(rows, key=by)\n",
    "an exception class": "class TooHot(Exception):\n    pass\ndef f(x):\n    if x > 5:\n        raise TooHot(x)\n",
    "a class with methods": "class Window:\n    SIZE = 3\n    def __init__(self):\n        self.rows = []\n    def add(self, row):\n"
    "        self.rows.append(row)\n        return len(self.rows)\ndef f():\n    w = Window()\n    w.label = 'x'\n"
    "    return w.add(1) + Window.SIZE + Window.add(w, 2)\n",
    "types": "from __future__ import annotations\nfrom typing import TYPE_CHECKING, Any\nif TYPE_CHECKING:\n    import functools\n"
    "    from saltus import LineBuilder\nelse:\n    LIMIT = 1\ndef f(x: LineBuilder) -> Any:\n    return LIMIT\n",
    "main": "def f():\n    pass\nif __name__ == '__main__':\n    f()\n",
    "a cache of plain values": "def f(api):\n    n = api.cache.get('n', 0) + 1\n    api.cache.put('n', n)\n    return n\n",
}

# What kept globals can tell, or what is not known to be harmless. The body, and whether it is noticed.
REFUSED = {
    "a list": ("SEEN = []\ndef step(api):\n    SEEN.append(1)\n    return len(SEEN)\n", True),
    "a TYPE_CHECKING of its own": (
        "TYPE_CHECKING = True\nif TYPE_CHECKING:\n    SEEN = []\ndef step(api):\n    SEEN.append(1)\n    return len(SEEN)\n",
        True,
    ),
    "a TYPE_CHECKING that is bound again": (
        "from typing import TYPE_CHECKING\nfor TYPE_CHECKING in (1,):\n    pass\nif TYPE_CHECKING:\n    SEEN = []\n"
        "def step(api):\n    SEEN.append(1)\n    return len(SEEN)\n",
        True,
    ),
    "a table of lists": ("SEEN = {'a': []}\ndef step(api):\n    SEEN['a'].append(1)\n    return len(SEEN['a'])\n", True),
    "a table that is written to": ("N = {'n': 0}\ndef step(api):\n    N['n'] += 1\n    return N['n']\n", True),
    "a table by another name": ("N = [0]\ndef step(api):\n    n = N\n    n[0] += 1\n    return N[0]\n", True),
    "a table that is handed on": ("N = [0]\ndef up(n):\n    n.append(0)\ndef step(api):\n    up(N)\n    return len(N)\n", True),
    "a table that is returned": ("N = [0]\ndef get():\n    return N\ndef step(api):\n    get().append(1)\n    return len(get())\n", True),
    "a table in a cache": (
        "N = [0]\ndef step(api):\n    same = api.cache.get('n') is N\n    api.cache.put('n', N)\n    return same\n",
        True,
    ),
    "a table from which is removed": ("N = [1, 2, 3, 4]\ndef step(api):\n    del N[0]\n    return len(N)\n", True),
    "a table rebound in a loop": ("N = [1, 2]\ndef step(api):\n    for N[0] in range(5):\n        pass\n    N[1] += N[0]\n    return N[1]\n", True),
    "a builtin that is none": ("N = [0]\ndef len(n):\n    n.append(1)\n    return n[-1] + n.index(1)\ndef step(api):\n    len(N)\n    return N.count(1)\n", True),
    "a parameter named like a builtin": (
        "N = [0]\ndef up(sorted):\n    sorted(N)\ndef step(api):\n    up(lambda n: n.append(1))\n    return len(N)\n",
        True,
    ),
    "a dict": ("STATE = {}\ndef step(api):\n    STATE['n'] = STATE.get('n', 0) + 1\n    return STATE['n']\n", True),
    "global": ("n = 0\ndef step(api):\n    global n\n    n += 1\n    return n\n", True),
    "a mutable default": ("def step(api, seen=[]):\n    seen.append(1)\n    return len(seen)\n", True),
    "a mutable keyword default": ("def step(api, *, seen={}):\n    seen[len(seen)] = 1\n    return len(seen)\n", True),
    "an attribute of a function": ("def step(api):\n    step.n = getattr(step, 'n', 0) + 1\n    return step.n\n", True),
    "an attribute of a class": ("class C:\n    n = 0\ndef step(api):\n    C.n += 1\n    return C.n\n", True),
    "an attribute of a class by its method": (
        "class C:\n    n = 0\n    @classmethod\n    def up(klass):\n        klass.n += 1\n        return klass.n\ndef step(api):\n    return C.up()\n",
        True,
    ),
    "an attribute of a class by its object": (
        "class C:\n    n = 0\n    def up(self):\n        type(self).n += 1\n        return self.n\ndef step(api):\n    return C().up()\n",
        True,
    ),
    "an attribute of a class by another name": ("class C:\n    n = 0\ndef up(c):\n    c.n += 1\n    return c.n\ndef step(api):\n    return up(C)\n", True),
    "an attribute of a method": (
        "class C:\n    def m(self):\n        pass\ndef step(api):\n    m = C.m\n    try:\n        m.n += 1\n    except AttributeError:\n"
        "        m.n = 1\n    return m.n\n",
        True,
    ),
    "an attribute of a static method by its object": (
        "class C:\n    @staticmethod\n    def m():\n        pass\ndef step(api):\n    m = C().m\n    try:\n        m.n += 1\n"
        "    except AttributeError:\n        m.n = 1\n    return m.n\n",
        True,
    ),
    "an attribute of __init__": (
        "class C:\n    def __init__(self):\n        pass\ndef step(api):\n    m = C.__init__\n    try:\n        m.n += 1\n"
        "    except AttributeError:\n        m.n = 1\n    return m.n\n",
        True,
    ),
    "a mutable class attribute": ("class C:\n    seen = []\ndef step(api):\n    C.seen.append(1)\n    return len(C.seen)\n", True),
    "a decorator that caches": (
        "import functools\ncalls = 0\n@functools.lru_cache\ndef first(x):\n    return object()\ndef step(api):\n    api.ids.append(first(1))\n"
        "    return len({hash(i) for i in api.ids})\n",
        True,
    ),
    "globals()": ("def step(api):\n    g = globals()\n    g['n'] = g.get('n', 0) + 1\n    return g['n']\n", True),
    "globals by a function": ("def step(api):\n    g = step.__globals__\n    g['n'] = g.get('n', 0) + 1\n    return g['n']\n", True),
    "exec": ("def step(api):\n    space = {}\n    exec('x = 1', space)\n    return space['x']\n", False),
    "a frame": (
        "import sys\ndef step(api):\n    g = sys._getframe().f_globals\n    g['n'] = g.get('n', 0) + 1\n    return g['n']\n",
        True,
    ),
    "setattr": ("def step(api):\n    setattr(step, 'n', getattr(step, 'n', 0) + 1)\n    return step.n\n", True),
    "a clock": ("import time\nSTART = time.perf_counter_ns()\ndef step(api):\n    api.ids.append(START)\n    return len(set(api.ids))\n", True),
    "a statement with an effect": ("out.append('body')\ndef step(api):\n    return len(out)\n", True),
    "a conditional import": ("try:\n    import json as fast\nexcept ImportError:\n    fast = None\n", False),
    "a loop": ("TOTAL = 0\nfor i in range(3):\n    TOTAL += i\n", False),
    "a lambda": ("f = lambda x: x\n", False),
    "import *": ("from math import *\n", False),
    "names out of somebody's module": ("from saltus.errors import QueryError\n", False),
    "a class whose objects are kept": (
        "class Window:\n    pass\ndef step(api):\n    before = api.cache.get('w')\n    same = isinstance(before, Window)\n"
        "    api.cache.put('w', Window())\n    return same\n",
        True,
    ),
    "a function that is kept": (
        "def key(x):\n    return x\ndef step(api):\n    same = api.cache.get('f') is key\n    api.cache.put('f', key)\n    return same\n",
        True,
    ),
    "a generator that is kept": ("def gen():\n    yield 1\nG = gen()\ndef step(api):\n    return next(G, 'over')\n", True),
    "rebinding a function": ("def f():\n    return 1\nf = 2\n", False),
    "a walrus": ("X = (Y := 3)\n", False),
    "a metaclass": ("class C(metaclass=type):\n    pass\n", False),
    "a dataclass": ("from dataclasses import dataclass\n@dataclass\nclass C:\n    x: int = 0\n", False),
    "__class_getitem__ and its like": ("class C:\n    def __init_subclass__(cls):\n        pass\n", False),
    "attrgetter": ("from operator import attrgetter\ndef step(api):\n    return 1\n", False),
    "an import inside": ("def step(api):\n    import gc\n    return 1\n", False),
    "not Python": ("def (:\n", False),
}


class Cache:
    def __init__(self) -> None:
        self.values: dict[str, object] = {}

    def get(self, key: str, default: object = None) -> object:
        return self.values.get(key, default)

    def put(self, key: str, value: object) -> None:
        self.values[key] = value


class Api:
    """What outlives a run."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.ids: list[object] = []


def outcomes(body: str, kept: bool) -> list[object]:
    code = compile(body, "plugin.py", "exec")
    api, out = Api(), []
    builtins = {**__builtins__} if isinstance(__builtins__, dict) else vars(__builtins__).copy()
    builtins["out"] = out
    space: dict[str, object] = {}
    results: list[object] = []
    for run in range(RUNS):
        if run == 0 or not kept:
            space = {"__builtins__": builtins}
            exec(code, space)
        step = space.get("step")
        results.append(step(api) if step else None)
    return results


class Reuse(unittest.TestCase):
    def test_what_passes_gives_the_same_both_ways(self) -> None:
        for name, body in PASS.items():
            with self.subTest(name):
                self.assertIsNone(reason_against(body, "plugin.py"))
                tested = body + "\ndef step(api):\n    return f(api) if False else 1\n"
                self.assertEqual(outcomes(tested, kept=False), outcomes(tested, kept=True))

    def test_what_can_be_noticed_is_refused(self) -> None:
        for name, (body, noticed) in REFUSED.items():
            with self.subTest(name):
                self.assertIsNotNone(reason_against(body, "plugin.py"))
                if noticed:
                    self.assertNotEqual(outcomes(body, kept=False), outcomes(body, kept=True), "an entry that proves nothing")

    def test_the_reason_names_the_line(self) -> None:
        self.assertEqual(
            reason_against("import json\n\nSEEN = []\ndef f():\n    SEEN.append(1)\n", "plugin.py"),
            "line 5: SEEN can be changed here",
        )

    def test_the_example_plugins_for_the_inline_lane_pass(self) -> None:
        examples = Path(__file__).resolve().parents[2] / "docs" / "examples" / "plugins"
        for name in ("felt_temperature", "rolling_zscore"):
            with self.subTest(name):
                plugin = examples / name / f"{name}.py"
                self.assertIsNone(reason_against(plugin.read_text(), plugin.name))


if __name__ == "__main__":
    unittest.main()
