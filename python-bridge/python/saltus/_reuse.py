"""Whether a plugin's module globals may be kept from run to run.

InfluxDB 3 executes a plugin's module body anew for every run. That costs time, and for most plugins it makes no difference: their
bodies only import, define functions and name constants. :func:`reason_against` says whether that is so. It is an allow-list: what is
not known to be harmless is a reason. A body may be kept if

* its statements have no effect but to bind names, and bind the same every time: imports of modules, functions, classes without
  decorators or metaclasses, constants that cannot change, tables of such constants that are only read;
* nothing in it can change what is bound: no ``global``, no default argument that can change, no assignment to an attribute of
  anything that is bound there, no way to the namespaces themselves;
* nothing can tell a function or class of one run from that of another: functions and classes are called, not handed on, and there are
  no classes beside a cache.
"""

from __future__ import annotations

import ast
import sys

from saltus._type_checking import as_executed

# Results that cannot change, of arguments that are constants.
_PURE_CALLS = {
    ("re", "compile"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
    ("decimal", "Decimal"),
    ("fractions", "Fraction"),
    ("logging", "getLogger"),
    ("operator", "itemgetter"),
    ("uuid", "UUID"),
    ("zoneinfo", "ZoneInfo"),
}
_PURE_BUILTINS = frozenset(
    ["abs", "bool", "bytes", "float", "frozenset", "int", "len", "max", "min", "range", "round", "str", "tuple"]
)
# Ways to namespaces, or to the identity of what is in them.
_FORBIDDEN_NAMES = frozenset(
    [
        "__builtins__",
        "__import__",
        "breakpoint",
        "compile",
        "delattr",
        "dir",
        "eval",
        "exec",
        "globals",
        "help",
        "id",
        "getattr",
        "locals",
        "setattr",
        "type",
        "vars",
    ]
)
_FORBIDDEN_MODULES = frozenset(
    [
        "_thread",
        "atexit",
        "builtins",
        "copyreg",
        "ctypes",
        "functools",
        "gc",
        "importlib",
        "inspect",
        "marshal",
        "operator",
        "pickle",
        "runpy",
        "sys",
        "threading",
        "types",
        "unittest",
        "weakref",
    ]
)
# What reads a table of constants and gives nothing away that could change it.
_TABLE_METHODS = frozenset(["copy", "count", "get", "index", "items", "keys", "values"])
_TABLE_READERS = frozenset(
    ["all", "any", "dict", "enumerate", "frozenset", "len", "list", "max", "min", "reversed", "set", "sorted", "sum", "tuple", "zip"]
)
_FRAMES = frozenset(["cr_frame", "f_back", "f_globals", "gi_frame", "tb_frame"])
_DUNDERS = frozenset(["__enter__", "__exit__", "__init__", "__name__"])
_EXCEPTIONS = frozenset(["BaseException", "Exception", "LookupError", "RuntimeError", "TypeError", "ValueError", "object"])
_METHOD_DECORATORS = frozenset(["property"])
# Where a function may stand without being called there.
_TAKES_FUNCTION = frozenset(["filter", "map", "max", "min", "sorted"])
# Builtins on which conclusions rest.
_TRUSTED = _PURE_BUILTINS | _TAKES_FUNCTION | _TABLE_READERS | {"isinstance", "issubclass"} | _METHOD_DECORATORS | _EXCEPTIONS


def reason_against(source: str, file_name: str) -> str | None:
    """Why the module body of ``source`` has to be executed for every run, ``None`` if nobody could tell."""
    try:
        tree = ast.parse(source, file_name)
        _Module(as_executed(tree)).check()
    except (SyntaxError, RecursionError, ValueError) as error:
        return f"it cannot be read: {error}"
    except _Against as against:
        return str(against)
    return None


class _Against(Exception):
    def __init__(self, what: str, node: ast.AST) -> None:
        super().__init__(f"line {getattr(node, 'lineno', 0)}: {what}")


class _Module:
    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.constants: set[str] = set()
        self.tables: set[str] = set()
        self.functions: set[str] = set()
        self.classes: set[str] = set()
        # What stands in classes beside methods: (class, name).
        self.class_constants: set[tuple[str, str]] = set()
        # Name -> module, and name -> (module, its name there).
        self.modules: dict[str, str] = {}
        self.members: dict[str, tuple[str, str]] = {}

    def check(self) -> None:
        for node in self.tree.body:
            self.statement(node)
        self.everything()

    def bind(self, names: set[str], name: str, node: ast.AST) -> None:
        if name in _TRUSTED:
            raise _Against(f"{name} is not the builtin here", node)
        bound = (self.constants, self.tables, self.functions, self.classes, self.modules, self.members)
        if any(name in known for known in bound):
            raise _Against(f"{name} is bound twice", node)
        names.add(name)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                pass
            case ast.Import() | ast.ImportFrom():
                self.imports(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if node.decorator_list:
                    raise _Against(f"{node.name} has a decorator", node)
                self.function(node)
                self.bind(self.functions, node.name, node)
            case ast.ClassDef():
                self.class_(node)
                self.bind(self.classes, node.name, node)
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if self.is_constant(value):
                self.bind(self.constants, name, node)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value) if value and self.is_constant(value):
                self.annotation(annotation)
                self.bind(self.constants, name, node)
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if self.is_table(value):
                self.bind(self.tables, name, node)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value) if value and self.is_table(value):
                self.annotation(annotation)
                self.bind(self.tables, name, node)
            case ast.If(test=test, orelse=[]) if _is_main(test):
                pass
            case _:
                raise _Against(f"a statement that is not known to be harmless ({type(node).__name__})", node)

    def imports(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                if root in _FORBIDDEN_MODULES:
                    raise _Against(f"import of {alias.name}", node)
                if alias.asname is None and "." in alias.name and root in self.modules:
                    continue
                bound = alias.asname or root
                self.bind(set(), bound, node)
                self.modules[bound] = alias.name if alias.asname else root
            return
        module = node.module or ""
        if module == "__future__":
            return
        # A name taken out of a module stays what it was when the module changes; the standard library does not.
        if node.level or module.partition(".")[0] not in sys.stdlib_module_names:
            raise _Against(f"names taken out of {module or 'a package'}", node)
        if module.partition(".")[0] in _FORBIDDEN_MODULES and not _only_itemgetter(node):
            raise _Against(f"import of {module}", node)
        for alias in node.names:
            if alias.name == "*":
                raise _Against("import of *", node)
            bound = alias.asname or alias.name
            self.bind(set(), bound, node)
            self.members[bound] = (module, alias.name)

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        arguments = node.args
        for default in [*arguments.defaults, *(d for d in arguments.kw_defaults if d is not None)]:
            if not self.is_constant(default):
                raise _Against(f"a default argument of {node.name} that is not a constant", default)
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        for argument in every:
            if argument is not None and argument.annotation is not None:
                self.annotation(argument.annotation)
        if node.returns is not None:
            self.annotation(node.returns)
        if getattr(node, "type_params", None):
            raise _Against(f"{node.name} has type parameters", node)

    def class_(self, node: ast.ClassDef) -> None:
        if node.decorator_list or node.keywords or getattr(node, "type_params", None):
            raise _Against(f"class {node.name} has a decorator, a metaclass or type parameters", node)
        for base in node.bases:
            if not (isinstance(base, ast.Name) and (base.id in _EXCEPTIONS or base.id in self.classes)):
                raise _Against(f"a base of class {node.name} that is not known to be harmless", base)
        for inner in node.body:
            match inner:
                case ast.Pass() | ast.Expr(value=ast.Constant()):
                    pass
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    for decorator in inner.decorator_list:
                        if not (isinstance(decorator, ast.Name) and decorator.id in _METHOD_DECORATORS):
                            raise _Against(f"{inner.name} has a decorator", inner)
                    if inner.name.startswith("__") and inner.name not in ("__init__", "__str__", "__repr__", "__eq__", "__hash__"):
                        raise _Against(f"method {inner.name}", inner)
                    self.function(inner)
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if self.is_constant(value):
                    self.class_constants.add((node.name, name))
                case _:
                    raise _Against(f"a statement in class {node.name} that is not known to be harmless", inner)

    def annotation(self, node: ast.expr) -> None:
        for part in ast.walk(node):
            if not isinstance(part, (ast.Name, ast.Attribute, ast.Subscript, ast.Constant, ast.Tuple, ast.List, ast.BinOp, ast.BitOr, ast.Load)):
                raise _Against("an annotation that computes something", node)

    def is_constant(self, node: ast.expr) -> bool:
        """Whether it is the same immutable value whenever it is evaluated."""
        match node:
            case ast.Constant():
                return True
            case ast.Name(id=name):
                return name in self.constants
            case ast.Tuple(elts=parts):
                return all(map(self.is_constant, parts))
            case ast.UnaryOp(op=ast.UAdd() | ast.USub() | ast.Not() | ast.Invert(), operand=operand):
                return self.is_constant(operand)
            case ast.BinOp(left=left, right=right, op=op):
                return isinstance(op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.BitOr)) and (
                    self.is_constant(left) and self.is_constant(right)
                )
            case ast.Call(func=function, args=arguments, keywords=keywords):
                values = [*arguments, *(k.value for k in keywords if k.arg is not None)]
                if len(values) != len(arguments) + len(keywords):
                    return False
                literal = isinstance(function, ast.Name) and function.id == "frozenset"
                return self.is_pure(function) and all(
                    self.is_constant(v) or (literal and self.is_literal_collection(v)) for v in values
                )
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                # Flags such as re.IGNORECASE, and timezone.utc.
                module = self.modules.get(name) or ".".join(self.members.get(name, ()))
                return (module, attribute) in {
                    *(("re", flag) for flag in ("A", "ASCII", "I", "IGNORECASE", "M", "MULTILINE", "S", "DOTALL", "X", "VERBOSE")),
                    ("datetime.timezone", "utc"),
                    ("datetime", "UTC"),
                    *(("math", constant) for constant in ("e", "inf", "nan", "pi", "tau")),
                }
        return False

    def is_table(self, node: ast.expr) -> bool:
        """Whether it is a dict, list or set of nothing but constants."""
        match node:
            case ast.Dict(keys=keys, values=values):
                return all(key is not None and self.is_constant(key) for key in keys) and all(map(self.is_constant, values))
            case ast.List(elts=parts) | ast.Set(elts=parts):
                return all(map(self.is_constant, parts))
        return False

    def is_literal_collection(self, node: ast.expr) -> bool:
        return isinstance(node, (ast.Set, ast.List)) and all(map(self.is_constant, node.elts))

    def is_pure(self, function: ast.expr) -> bool:
        match function:
            case ast.Name(id=name) if name in self.members:
                return self.members[name] in _PURE_CALLS
            case ast.Name(id=name):
                return name in _PURE_BUILTINS and not any(name in own for own in (self.functions, self.classes, self.constants))
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                return (self.modules.get(name), attribute) in _PURE_CALLS
        return False

    def everything(self) -> None:
        """What is anywhere in the module, inside functions too."""
        made = self.functions | self.classes
        bound = self.tables | self.functions | self.classes | self.modules.keys() | self.members.keys() | self.constants
        fine, read = self.places_of_names(), self.places_of_tables()
        defined = {id(part) for node in self.tree.body for part in ast.iter_child_nodes(node)}
        keeps = False
        for node in ast.walk(self.tree):
            match node:
                case ast.Global():
                    raise _Against("global", node)
                case ast.Name(id=name) if name in _FORBIDDEN_NAMES:
                    raise _Against(name, node)
                case ast.Import(names=aliases) if any(a.name.partition(".")[0] in _FORBIDDEN_MODULES for a in aliases):
                    raise _Against("an import in a function of what reaches namespaces", node)
                case ast.ImportFrom(module=module) if (
                    module and module.partition(".")[0] in _FORBIDDEN_MODULES and not _only_itemgetter(node)
                ):
                    raise _Against(f"import of {module}", node)
                case ast.Attribute(attr=attribute) if attribute in _FRAMES or (
                    attribute.startswith("__") and attribute not in _DUNDERS
                ):
                    raise _Against(attribute, node)
                case ast.Attribute(ctx=ast.Store() | ast.Del(), value=value):
                    # Of what a function made or was given; what it was given is never one of the module's (see below).
                    if not (isinstance(value, ast.Name) and value.id not in bound):
                        raise _Against("an assignment to an attribute of what may be bound in the module", node)
                case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name) if name in _TRUSTED:
                    raise _Against(f"{name} is not the builtin here", node)
                case ast.Attribute(attr="cache"):
                    keeps = True
                case ast.Name(id=name, ctx=ast.Store()) if name in made:
                    raise _Against(f"{name} is bound twice", node)
                case ast.Name(id=name) if name in self.tables and id(node) not in read | defined:
                    raise _Against(f"{name} can be changed here", node)
                case ast.Name(id=name, ctx=ast.Load()) if name in made and id(node) not in fine:
                    raise _Against("a function or class as a value", node)
        if self.classes and keeps:
            raise _Against("classes beside a cache: an object of an earlier run would be told apart", self.tree.body[0])

    def places_of_names(self) -> set[int]:
        """The names of functions and classes that stand where nobody can keep or change them."""
        fine: set[int] = set()
        for node in ast.walk(self.tree):
            match node:
                case ast.Call(func=function, args=arguments, keywords=keywords):
                    fine.add(id(function))
                    if isinstance(function, ast.Attribute):
                        # `Class.method(...)`; not called it is a function that somebody could change.
                        fine.add(id(function.value))
                    match function:
                        case ast.Name(id="isinstance" | "issubclass"):
                            fine.update(id(part) for argument in arguments[1:] for part in ast.walk(argument))
                        case ast.Name(id=name) if name in _TAKES_FUNCTION:
                            fine.update(map(id, arguments[:1]))
                            fine.update(id(keyword.value) for keyword in keywords if keyword.arg == "key")
                case ast.Attribute(value=ast.Name(id=name) as value, attr=attribute, ctx=ast.Load()) if (
                    (name, attribute) in self.class_constants
                ):
                    fine.add(id(value))
                case ast.Raise(exc=ast.expr() as raised):
                    fine.add(id(raised))
                case ast.ExceptHandler(type=ast.expr() as caught):
                    fine.update(map(id, ast.walk(caught)))
                case ast.ClassDef(bases=bases):
                    fine.update(map(id, bases))
                case ast.arg(annotation=ast.expr() as annotation) | ast.AnnAssign(annotation=annotation):
                    fine.update(map(id, ast.walk(annotation)))
                case ast.FunctionDef(returns=ast.expr() as returns) | ast.AsyncFunctionDef(returns=ast.expr() as returns):
                    fine.update(map(id, ast.walk(returns)))
        return fine


    def places_of_tables(self) -> set[int]:
        """The expressions that are only read where they stand."""
        read: set[int] = set()
        for node in ast.walk(self.tree):
            match node:
                case ast.Subscript(value=value, ctx=ast.Load()):
                    read.add(id(value))
                case ast.Call(func=ast.Attribute(value=value, attr=attribute)) if attribute in _TABLE_METHODS:
                    read.add(id(value))
                case ast.Call(func=ast.Name(id=name), args=arguments) if name in _TABLE_READERS:
                    read.update(map(id, arguments))
                case ast.Compare(ops=operators, comparators=comparators):
                    for operator, comparator in zip(operators, comparators):
                        if isinstance(operator, (ast.In, ast.NotIn)):
                            read.add(id(comparator))
                case ast.For(iter=iterated) | ast.AsyncFor(iter=iterated) | ast.comprehension(iter=iterated):
                    read.add(id(iterated))
        return read


def _only_itemgetter(node: ast.ImportFrom) -> bool:
    return node.module == "operator" and all(alias.name == "itemgetter" for alias in node.names)


def _is_main(test: ast.expr) -> bool:
    match test:
        case ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()], comparators=[ast.Constant(value="__main__")]):
            return True
    return False
