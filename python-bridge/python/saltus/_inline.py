"""Whether a plugin may run on the thread that ingests data.

What an inline run reaches for is watched, and a run that takes too long is interrupted between two bytecodes. This check refuses what
neither can stop: single operations that take as long as their operands are large, waiting that raises no audit event, and state that
a discarded run would leave behind. It is an allow-list of modules, and a list of what is unbounded in the language itself.
"""

from __future__ import annotations

import ast
import re

from saltus._type_checking import as_executed

_MODULES = frozenset(
    [
        "__future__",
        "abc",
        "array",
        "base64",
        "binascii",
        "bisect",
        "calendar",
        "cmath",
        "collections",
        "collections.abc",
        "colorsys",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "hmac",
        "html",
        "ipaddress",
        "itertools",
        "json",
        "logging",
        "math",
        "numbers",
        "operator",
        "os",
        "os.path",
        "random",
        "re",
        "saltus",
        "statistics",
        "string",
        "struct",
        "textwrap",
        "time",
        "typing",
        "unicodedata",
        "urllib.parse",
        "uuid",
        "zoneinfo",
    ]
)
# Of these modules, not everything.
_NOT_OF_MODULES = {
    "hashlib": {"pbkdf2_hmac", "scrypt", "file_digest"},
    "itertools": {
        "combinations",
        "combinations_with_replacement",
        "count",
        "cycle",
        "permutations",
        "product",
        "repeat",
    },
    "logging": {"basicConfig", "config", "handlers", "FileHandler"},
    "math": {"comb", "factorial", "perm"},
    "operator": {"attrgetter", "imul", "ilshift", "ipow", "lshift", "methodcaller", "mul", "pow"},
    "random": {"choices", "randbytes"},
    "time": {"sleep"},
}
_ONLY_OF_MODULES = {
    "os": {"environ", "getenv", "path", "sep", "linesep"},
    "os.path": {"basename", "dirname", "join", "normpath", "split", "splitext"},
    "re": {"compile", "escape", "fullmatch", "match", "findall", "finditer", "search", "split", "sub", "subn"},
}
_FLAGS = frozenset("A ASCII I IGNORECASE M MULTILINE S DOTALL X VERBOSE NOFLAG Match Pattern error".split())
_BUILTINS = frozenset(
    [
        "__builtins__",
        "__import__",
        "breakpoint",
        "compile",
        "eval",
        "exec",
        "exit",
        "getattr",
        "globals",
        "help",
        "input",
        "locals",
        "memoryview",
        "open",
        "pow",
        "quit",
        "vars",
    ]
)
# Builtins that read an iterable to its end in one operation.
_CONSUMES = frozenset(
    "all any bytearray bytes deque dict frozenset list max min set sorted sum tuple Counter fsum prod".split()
)
# Methods whose result is as long as a number says.
_PADS = frozenset(["center", "expandtabs", "ljust", "rjust", "zfill"])
# Of the API and of what plugins hold: what waits.
_WAITS = frozenset(["acquire", "query", "sleep", "write_sync", "write_sync_to_db"])
# What does not wait if it is told so; by how many arguments come before that.
_SYNC_WRITES = {"write_sync": 1, "write_sync_to_db": 2}
_DUNDERS = frozenset(["__doc__", "__enter__", "__exit__", "__init__", "__name__", "__post_init__"])
_FRAMES = frozenset("ag_frame cr_frame f_back f_builtins f_globals f_locals gi_frame tb_frame tb_next".split())
_LENGTH_MAX = 1000
_RANGE_MAX = 100_000


class _Against(Exception):
    def __init__(self, what: str, node: ast.AST) -> None:
        line = getattr(node, "lineno", None)
        super().__init__(what if line is None else f"{what} (line {line})")


def reason_against(tree: ast.Module) -> str | None:
    """Why a plugin with this body may not run inline, with the line; ``None`` if nothing speaks against it."""
    try:
        _Check(as_executed(tree)).check()
    except _Against as against:
        return str(against)
    return None


class _Check:
    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        # What names stand for: a module's name, or "module.function".
        self.names: dict[str, str] = {}
        # Calls that do not wait, though their names say so.
        self.at_once: set[int] = set()

    def check(self) -> None:
        for node in ast.walk(self.tree):
            self.imported(node)
        for node in ast.walk(self.tree):
            self.node(node)

    def imported(self, node: ast.AST) -> None:
        match node:
            case ast.Import(names=aliases):
                for alias in aliases:
                    self.module(alias.name, node)
                    name = alias.name if alias.asname else alias.name.partition(".")[0]
                    self.names[alias.asname or name] = name
            case ast.ImportFrom(module=str(module), names=aliases, level=0):
                self.module(module, node)
                for alias in aliases:
                    self.of_module(module, alias.name, node)
                    self.names[alias.asname or alias.name] = f"{module}.{alias.name}"
            case ast.ImportFrom():
                raise _Against("a relative import", node)

    def module(self, name: str, node: ast.AST) -> None:
        if name not in _MODULES:
            raise _Against(f"import of {name}, which is not known to be harmless", node)

    def of_module(self, module: str, name: str, node: ast.AST) -> None:
        only = _ONLY_OF_MODULES.get(module)
        refused = name in _NOT_OF_MODULES.get(module, ()) or name == "*"
        if refused or (only is not None and name not in only and not (module == "re" and name in _FLAGS)):
            raise _Against(f"{module}.{name}", node)

    def full_name(self, node: ast.expr) -> str | None:
        """`module.name` of what is taken from a module."""
        match node:
            case ast.Name(id=name):
                return self.names.get(name)
            case ast.Attribute(value=value, attr=attribute):
                before = self.full_name(value)
                return None if before is None else f"{before}.{attribute}"
        return None

    def node(self, node: ast.AST) -> None:
        match node:
            case ast.Name(id=name) if name in _BUILTINS:
                raise _Against(name, node)
            case ast.AsyncFunctionDef():
                raise _Against("async def needs an event loop, which waits", node)
            case ast.FunctionDef(name="__del__"):
                raise _Against("__del__ runs at any time", node)
            case ast.Attribute(value=value, attr=attribute):
                self.attribute(value, attribute, node)
            case ast.BinOp(left=left, op=operator, right=right):
                self.operation(left, operator, right, node)
            case ast.AugAssign(target=target, op=operator, value=value):
                self.operation(target, operator, value, node)
            case ast.Call():
                self.call(node)
            case ast.FormattedValue(format_spec=ast.JoinedStr(values=parts)):
                if any(isinstance(part, ast.FormattedValue) for part in parts) or _wide("".join(map(_text, parts))):
                    raise _Against("a format that is as wide as a value says", node)

    def attribute(self, value: ast.expr, attribute: str, node: ast.AST) -> None:
        if attribute in _WAITS and id(node) not in self.at_once:
            raise _Against(f"{attribute}() waits", node)
        if attribute in _FRAMES or (attribute.startswith("__") and attribute not in _DUNDERS):
            raise _Against(attribute, node)
        module = self.full_name(value)
        if module is not None:
            self.of_module(module, attribute, node)

    def operation(self, left: ast.expr, operator: ast.operator, right: ast.expr, node: ast.AST) -> None:
        match operator:
            case ast.Pow():
                small = _number(right) is not None and abs(_number(right) or 0) <= 8
                if not small and not isinstance(_number(left), float):
                    raise _Against("** with a variable exponent", node)
            case ast.LShift():
                number = _number(right)
                if number is None or not 0 <= number <= 64:
                    raise _Against("<< by a variable number", node)
            case ast.Mult():
                for sequence, times in ((left, right), (right, left)):
                    number = _number(times)
                    if _is_sequence(sequence) and not (number is not None and number <= _LENGTH_MAX):
                        raise _Against("repetition by a variable number", node)
            case ast.Mod():
                text = _text(left)
                if "*" in text or _wide(text):
                    raise _Against("a format that is as wide as a value says", node)

    def call(self, node: ast.Call) -> None:
        if any(keyword.arg == "use_global" for keyword in node.keywords):
            raise _Against("the global cache", node)
        full_name = self.full_name(node.func) or ""
        if full_name.startswith("re.") and full_name != "re.escape":
            self.pattern(node, anchored=full_name in ("re.match", "re.fullmatch"))
        name = node.func.id if isinstance(node.func, ast.Name) else None
        method = node.func.attr if isinstance(node.func, ast.Attribute) else None
        if method in _SYNC_WRITES and _says_no_sync(node, _SYNC_WRITES[method]):
            # Parents are visited before their children.
            self.at_once.add(id(node.func))
        if method in _PADS and node.args and not _small(node.args[0]):
            raise _Against(f"{method}() to a variable width", node)
        if name in ("bytes", "bytearray") and len(node.args) == 1 and not isinstance(node.args[0], ast.Constant):
            raise _Against(f"{name}() of a variable", node)
        text = _text(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        if method == "format" and "{" in text.replace("{", "", 1) and ":{" in text:
            raise _Against("a format that is as wide as a value says", node)
        consumes = name in _CONSUMES or method in _CONSUMES or method in ("extend", "join", "update")
        if consumes and any(_long_range(argument) for argument in node.args):
            raise _Against(f"{name or method}() of a range of variable length", node)

    def pattern(self, node: ast.Call, *, anchored: bool) -> None:
        pattern = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if not isinstance(pattern, (str, bytes)):
            raise _Against("a regular expression that is not a constant", node)
        if len(node.args) > 1 and any(keyword.arg == "flags" for keyword in node.keywords):
            raise _Against("flags of a regular expression", node)
        repeats = _unbounded_repeats(pattern)
        if repeats > int(anchored):
            raise _Against("a regular expression whose time may grow faster than its input", node)


def _unbounded_repeats(pattern: str | bytes) -> int:
    """How many repetitions without a small bound there are, those within another one counted twice; backreferences count."""
    parser = re._parser  # type: ignore[attr-defined]
    try:
        parsed = parser.parse(pattern)
    except Exception:
        return 2

    def count(items: object, weight: int) -> int:
        found = 0
        for item in items if isinstance(items, (list, tuple, parser.SubPattern)) else ():
            operator, value = item if isinstance(item, tuple) and len(item) == 2 else (None, item)
            name = str(operator)
            if name.endswith("_REPEAT"):
                _, most, inner = value
                many = most is parser.MAXREPEAT or most > 64
                found += weight * int(many) + count(inner, 2 if many else weight)
            elif name.startswith("GROUPREF"):
                found += 2
            else:
                found += count(value, weight)
        return found

    return count(parsed, 1)


def _says_no_sync(node: ast.Call, before: int) -> bool:
    given = [keyword.value for keyword in node.keywords if keyword.arg == "no_sync"] + node.args[before : before + 1]
    return len(given) == 1 and isinstance(given[0], ast.Constant) and given[0].value is True


def _number(node: ast.expr) -> float | int | None:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    return None


def _small(node: ast.expr) -> bool:
    number = _number(node)
    return number is not None and number <= _LENGTH_MAX


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _wide(text: str) -> bool:
    return any(int(number) > _LENGTH_MAX for number in re.findall(r"\d+", text[:10_000]))


def _is_sequence(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (str, bytes))
    return isinstance(node, (ast.List, ast.Tuple, ast.JoinedStr, ast.ListComp))


def _long_range(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="range"), args=arguments):
            return not all((number := _number(a)) is not None and abs(number) <= _RANGE_MAX for a in arguments)
    return False
