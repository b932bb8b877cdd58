"""What a plugin imports, found without running it, and whether a module loads in an interpreter with a GIL of its own.

The server's main interpreter reads the statements (``named``). What it does not have itself is tried (``attempt``) in a process
in which nothing else is done.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from typing import Optional

from saltus._inline import reason_against as reason_against_inline
from saltus._loader import bring, missing
from saltus._refusals import is_refusal
from saltus._type_checking import as_executed
from saltus._versions import Folder

NEEDED = "needed"
"""Executed whenever the code around it is: without the module it fails."""
CAUGHT = "caught"
"""The plugin catches that the module is not there."""
OPTIONAL = "optional"
"""The plugin has another module in its place, or a condition, or a place of its own to look for it."""

_CAUGHT_BY = frozenset(["ImportError", "ModuleNotFoundError", "Exception", "BaseException"])

Import = tuple[str, str]


def named(source: str, path: str, files: Optional[dict[str, str]] = None) -> tuple[list[Import], str | None]:
    """The modules that a plugin imports by statement and that this interpreter has not loaded (``module``, or ``module:name``
    where the name may be a module as well), each with what comes of it if it is not there; and what speaks against the inline
    lane. ``files`` are those of a folder, by their path below ``path``.

    Raises what ``ast.parse`` raises.
    """
    if files is None:
        tree = ast.parse(source)
        found = _Statements().of(tree)
        against = reason_against_inline(tree)
    else:
        found = _of_folder(path, files)
        against = "a directory plugin keeps the state of its modules"
    unknown = set(missing(list(found)))
    return [(what, weight) for what, weight in found.items() if what in unknown], against


def attempt(what: str) -> tuple[str, str, int]:
    """Imports it: ``loads``, ``refused``, ``missing`` with the module that is not there, or ``fails`` with the reason; and how many
    modules this interpreter has then."""
    if missing([what]):
        # It may have been installed since this process looked last.
        importlib.invalidate_caches()
    outcome, text = "loads", ""
    try:
        bring(what)
    except BaseException as error:
        if is_refusal(error):
            outcome = "refused"
        elif isinstance(error, ModuleNotFoundError) and error.name:
            outcome, text = "missing", error.name
        else:
            outcome, text = "fails", f"{type(error).__name__}: {error}"
    return outcome, text, len(sys.modules)


class _Statements(ast.NodeVisitor):
    """The import statements of one module: absolute ones in ``found``, those of its own package in ``own``."""

    def __init__(self, folder: Optional[Folder] = None, package: str = "") -> None:
        self.folder = folder
        self.package = package
        self.found: dict[str, str] = {}
        self.own: list[str] = []
        self.weight = NEEDED
        self.has_own_path = False

    def of(self, tree: ast.Module) -> dict[str, str]:
        self.visit(as_executed(tree))
        return dict.fromkeys(self.found, OPTIONAL) if self.has_own_path else self.found

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._note(alias.name, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level == 0 and node.module is not None:
            for alias in node.names:
                self._note(node.module, f"{node.module}:{alias.name}", alias.name)
        elif self.folder is not None:
            target = self.folder.target(node, self.package)
            if target is not None:
                self.own += [target, *(f"{target}.{alias.name}".lstrip(".") for alias in node.names)]

    def visit_Try(self, node: ast.Try) -> None:
        self._attempt(node)

    def visit_TryStar(self, node: ast.TryStar) -> None:
        self._attempt(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr == "path" and isinstance(node.value, ast.Name) and node.value.id == "sys":
            self.has_own_path = True
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        self._within([*node.body, *node.orelse], OPTIONAL)

    def _attempt(self, node: ast.Try | ast.TryStar) -> None:
        catching = [handler for handler in node.handlers if _catches_imports(handler)]
        replaced = any(isinstance(below, (ast.Import, ast.ImportFrom)) for one in catching for below in ast.walk(one))
        self._within(node.body, OPTIONAL if replaced else CAUGHT if catching else NEEDED)
        for handler in node.handlers:
            self._within(handler.body, OPTIONAL if handler in catching else NEEDED)
        self._within([*node.orelse, *node.finalbody], NEEDED)

    def _within(self, body: list[ast.stmt], weight: str) -> None:
        before = self.weight
        self.weight = _lighter(before, weight)
        for statement in body:
            self.visit(statement)
        self.weight = before

    def _note(self, module: str, what: str, name: str = "") -> None:
        top, _, rest = module.partition(".")
        if self.folder is not None and top == self.folder.own and (not rest or self.folder.has(rest)):
            self.own += [rest, f"{rest}.{name}".lstrip(".")]
            return
        before = self.found.get(what)
        self.found[what] = self.weight if before is None else _heavier(before, self.weight)


_WEIGHTS = (OPTIONAL, CAUGHT, NEEDED)


def _lighter(one: str, other: str) -> str:
    return min(one, other, key=_WEIGHTS.index)


def _heavier(one: str, other: str) -> str:
    return max(one, other, key=_WEIGHTS.index)


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in _CAUGHT_BY for kind in kinds)


def _of_folder(path: str, files: dict[str, str]) -> dict[str, str]:
    """Of all modules that importing the package reaches; tests and scripts that lie beside them are none."""
    trees = {}
    for name, text in files.items():
        try:
            trees[name] = ast.parse(text, os.path.join(path, name))
        except (SyntaxError, ValueError):
            # Not every file of a folder has to be a module.
            continue
    folder = Folder(path, files, trees)
    found: dict[str, str] = {}
    todo, seen = [""], {""}
    while todo:
        module = todo.pop()
        file = folder.modules.get(module)
        tree = None if file is None else trees.get(file)
        if file is None or tree is None:
            continue
        package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
        statements = _Statements(folder, package)
        for what, weight in statements.of(tree).items():
            found[what] = _heavier(found.get(what, weight), weight)
        for own in statements.own:
            parts = own.split(".")
            for upto in range(1, len(parts) + 1):
                above = ".".join(parts[:upto])
                if above not in seen:
                    seen.add(above)
                    todo.append(above)
    return found
