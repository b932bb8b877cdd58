"""What only type checkers read of a plugin: the bodies of ``if TYPE_CHECKING:``.

They are never executed, so they neither speak against a plugin nor name modules that it needs.
"""

from __future__ import annotations

import ast

_NAME = "TYPE_CHECKING"


def as_executed(tree: ast.Module) -> ast.Module:
    """The module without such blocks, as far as they stand at its top level and the name means that of ``typing``."""
    if not _means_typings(tree):
        return tree
    body: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == _NAME:
            body.extend(node.orelse)
        else:
            body.append(node)
    return ast.Module(body, tree.type_ignores)


def _means_typings(tree: ast.Module) -> bool:
    """Whether the name is taken out of ``typing`` at the top level, and bound nowhere else."""
    taken = [node for node in tree.body if isinstance(node, ast.ImportFrom) and _takes(node)]
    if len(taken) != 1 or taken[0].module != "typing" or taken[0].level:
        return False
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if node is not taken[0] and any(_NAME in (alias.asname, alias.name) for alias in node.names):
                return False
        elif isinstance(node, ast.Name):
            if node.id == _NAME and not isinstance(node.ctx, ast.Load):
                return False
        elif isinstance(node, ast.alias):
            continue
        elif _NAME in (getattr(node, "name", None), getattr(node, "arg", None), getattr(node, "rest", None)):
            return False
        elif isinstance(node, (ast.Global, ast.Nonlocal)) and _NAME in node.names:
            return False
    return True


def _takes(node: ast.ImportFrom) -> bool:
    return any(alias.name == _NAME and alias.asname is None for alias in node.names)
