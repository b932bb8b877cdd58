"""Exceptions as plain text, since no Python object may leave its interpreter."""

from __future__ import annotations

import ast
import linecache
import re
import traceback
from types import TracebackType

# What makes the name of a folder's version unique (`saltus._loader`): readers know the folder by its own name.
_VERSION = re.compile(r"@[0-9a-f]{8}_[0-9a-f]{16}")


def describe(error: BaseException, file_name: str, source: str) -> tuple[str, str, str]:
    """The type's name, ``"{TypeName}: {message}"``, and the traceback with the plugin's own lines in it."""
    kind = type(error).__qualname__
    try:
        message = f"{kind}: {error}"
    except Exception:
        message = f"{kind}: <exception str() failed>"
    # The lines that were executed: what is on the disk may be newer.
    texts = {file_name: source, **_texts_of(error.__traceback__)}
    for name, text in texts.items():
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:
        text = ""
    finally:
        for name in texts:
            linecache.cache.pop(name, None)
    return kind, _VERSION.sub("", message), _VERSION.sub("", text)


def _texts_of(where: TracebackType | None) -> dict[str, str]:
    """The texts of the modules of folder plugins that a traceback leads through, by file."""
    texts: dict[str, str] = {}
    while where is not None:
        frame = where.tb_frame
        spec, name = frame.f_globals.get("__spec__"), frame.f_code.co_filename
        if spec is not None and "@" in spec.name and name not in texts:
            text = getattr(spec.loader, "get_source", lambda _: None)(spec.name)
            if isinstance(text, str):
                texts[name] = text
        where = where.tb_next
    return texts


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
