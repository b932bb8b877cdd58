"""What is found out about a plugin before it runs, once per version of its code, in the main interpreter."""

from __future__ import annotations

import ast
import marshal

from saltus._inline import reason_against as reason_against_inline
from saltus._report import describe
from saltus._reuse import reason_against as reason_against_reuse
from saltus._type_checking import as_executed

Failure = tuple[str, str, str]


def prepare(source: str, file_name: str, directory: bool) -> tuple[Failure | None, bytes, bool, str | None, list[str]]:
    """Why it does not compile; else the marshalled code, whether its globals may be kept, what speaks against the inline
    lane, and the modules that it imports."""
    try:
        tree = ast.parse(source, file_name)
        code = compile(source, file_name, "exec", dont_inherit=True)
    except Exception as error:
        return describe(error.with_traceback(None), file_name, source), b"", False, None, []
    against = "a directory plugin keeps the state of its modules" if directory else reason_against_inline(tree)
    # What a folder imports is imported with it, from its snapshot.
    imports = [] if directory else _imports(tree)
    return None, marshal.dumps(code), reason_against_reuse(source, file_name) is None, against, imports


def _imports(tree: ast.Module) -> list[str]:
    """What import statements name: ``module``, or ``module:name`` where the name may be a module as well."""
    names: dict[str, None] = {}
    for node in ast.walk(as_executed(tree)):
        match node:
            case ast.Import(names=aliases):
                names.update((alias.name, None) for alias in aliases)
            case ast.ImportFrom(module=str(module), names=aliases, level=0):
                names.update((f"{module}:{alias.name}", None) for alias in aliases)
    return list(names)
