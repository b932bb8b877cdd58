"""Whether a new version of a plugin may take the place of the one that runs.

Files come one after the other, and an editor writes a file in pieces. A version that cannot be right is not taken: a file that
does not compile, and in a folder an import from its own modules that finds no such module or name. Nothing is executed here, and what cannot be
known without executing it is not held against a version.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES

from saltus._report import describe

Failure = tuple[str, str, str]

# A module that uses one of these may have names that stand nowhere in it.
_DYNAMIC = frozenset(["__getattr__", "eval", "exec", "globals", "locals", "modules", "setattr", "vars"])


def reason_against(path: str, files: dict[str, str], before: dict[str, str]) -> Failure | None:
    """What is wrong with the files of a version, by their path below ``path`` (a file that is no folder: ``""``), given those of
    the version that runs; ``None`` if nothing is known to be."""
    trees: dict[str, ast.Module] = {}
    for name, text in sorted(files.items()):
        full = os.path.join(path, name) if name else path
        try:
            trees[name] = ast.parse(text, full)
            compile(text, full, "exec", dont_inherit=True)
        except Exception as error:
            trees.pop(name, None)
            # Not every file of a folder has to be a module: a template was none before.
            if name not in before or _compiles(before[name]):
                return describe(error.with_traceback(None), full, text)
    if "" in files:
        return None
    try:
        Folder(path, files, trees).check()
    except ImportError as error:
        return describe(error.with_traceback(None), path, "")
    return None


def _compiles(text: str) -> bool:
    try:
        compile(text, "<before>", "exec", dont_inherit=True)
    except Exception:
        return False
    return True


class Folder:
    """The files of a plugin that is a folder, as import statements name them."""

    def __init__(self, path: str, files: dict[str, str], trees: dict[str, ast.Module]) -> None:
        self.path = path
        self.own = os.path.basename(path.rstrip("/"))
        self.trees = trees
        self.modules = {_dotted(name): name for name in files}
        self.folders = {"", *(_dotted(name).rpartition(".")[0] for name in files)}

    def check(self) -> None:
        """Follows the imports that are made when the package is imported."""
        todo, seen = [""], {""}
        while todo:
            module = todo.pop()
            name = self.modules.get(module)
            tree = None if name is None else self.trees.get(name)
            if tree is None:
                continue
            package = module if name is not None and name.endswith("__init__.py") else module.rpartition(".")[0]
            for imported in self.imports(tree, package):
                parts = imported.split(".")
                for upto in range(1, len(parts) + 1):
                    above = ".".join(parts[:upto])
                    if above not in seen:
                        seen.add(above)
                        todo.append(above)

    def imports(self, tree: ast.Module, package: str) -> Iterator[str]:
        """The modules of the folder that a body imports in any case."""
        for node in tree.body:
            if not isinstance(node, ast.ImportFrom):
                continue
            target = self.target(node, package)
            if target is None:
                continue
            if not self.has(target):
                raise ImportError(f"No module named '{self.shown(target)}' ({self.path}, line {node.lineno} of {self.shown(package)})")
            yield target
            for alias in node.names:
                below = f"{target}.{alias.name}".lstrip(".")
                if self.has(below):
                    yield below
                elif not self.may_bind(target, alias.name):
                    where = self.modules.get(target, target)
                    raise ImportError(
                        f"cannot import name '{alias.name}' from '{self.shown(target)}' ({os.path.join(self.path, where)})"
                    )

    def target(self, node: ast.ImportFrom, package: str) -> str | None:
        """The module that it names, below the folder; ``None`` if it is not in the folder."""
        if node.level == 0:
            return None
        parts = package.split(".") if package else []
        if node.level - 1 > len(parts):
            return None
        base = parts[: len(parts) - (node.level - 1)]
        return ".".join([*base, node.module] if node.module else base)

    def has(self, module: str) -> bool:
        """Whether there is a module of that name, or may be one that is no text."""
        if module in self.modules or module in self.folders or any(f.startswith(module + ".") for f in self.folders):
            return True
        full = os.path.join(self.path, *module.split("."))
        return any(os.path.exists(full + suffix) for suffix in EXTENSION_SUFFIXES)

    def may_bind(self, module: str, name: str) -> bool:
        """Whether a module's body may bind a name."""
        file = self.modules.get(module)
        tree = None if file is None else self.trees.get(file)
        if tree is None or name == "*" or (name.startswith("__") and name.endswith("__")):
            return True
        for node in ast.walk(tree):
            match node:
                case ast.ImportFrom(names=aliases) if any(alias.name == "*" for alias in aliases):
                    return True
                case ast.Name(id=used) | ast.Attribute(attr=used) if used in _DYNAMIC:
                    return True
                case ast.FunctionDef(name=bound) | ast.AsyncFunctionDef(name=bound) | ast.ClassDef(name=bound) if bound in (name, "__getattr__"):
                    return True
                case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                    if any((alias.asname or alias.name.partition(".")[0]) == name for alias in aliases):
                        return True
                case ast.Name(id=bound, ctx=ast.Store()) if bound == name:
                    return True
                case ast.Global(names=names) if name in names:
                    return True
                case ast.ExceptHandler(name=bound) | ast.MatchAs(name=bound) | ast.MatchStar(name=bound) if bound == name:
                    return True
                case ast.MatchMapping(rest=bound) if bound == name:
                    return True
        return "TypeAlias" in {type(node).__name__ for node in tree.body}

    def shown(self, module: str) -> str:
        """A module's name as authors know it."""
        return ".".join(part for part in (self.own, module) if part)


def _dotted(name: str) -> str:
    stem = name[: -len(".py")]
    if stem == "__init__":
        return ""
    return stem.removesuffix("/__init__").replace("/", ".")
