"""Exceptions as plain text, since no Python object may leave its interpreter."""

from __future__ import annotations

import ast
import linecache
import traceback


def describe(error: BaseException, file_name: str, source: str) -> tuple[str, str, str]:
    """The type's name, ``"{TypeName}: {message}"``, and the traceback with the plugin's own lines in it."""
    kind = type(error).__qualname__
    try:
        message = f"{kind}: {error}"
    except Exception:
        message = f"{kind}: <exception str() failed>"
    linecache.cache[file_name] = (len(source), None, source.splitlines(keepends=True), file_name)
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:
        text = ""
    finally:
        linecache.cache.pop(file_name, None)
    return kind, message, text


def entry_points(source: str, file_name: str) -> list[str]:
    """The names that the top level of a module binds, without running it; raises what ``compile`` raises."""
    tree = ast.parse(source, file_name)
    compile(tree, file_name, "exec")
    names: list[str] = []
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.append(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names.extend((alias.asname or alias.name).partition(".")[0] for alias in aliases)
            case ast.Assign(targets=targets):
                names.extend(target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                names.append(name)
            case ast.If() | ast.Try() | ast.With():
                names.extend(n.name for n in ast.walk(node) if isinstance(n, ast.FunctionDef))
    return names
