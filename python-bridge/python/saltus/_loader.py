"""Plugins that are directories: imported as packages from their parent, and again when their content changes."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

from saltus._refusals import packages

_loaded: dict[str, tuple[int, ModuleType]] = {}
_owners: dict[str, str] = {}


def load_directory(path: str, digest: int) -> ModuleType:
    """The package in the directory ``path``, whose content has the hash ``digest``."""
    known = _loaded.get(path)
    if known is not None and known[0] == digest:
        return known[1]
    parent, name = os.path.split(path.rstrip("/"))
    if name in sys.modules and name not in _owners:
        raise ImportError(f"Failed to import plugin module '{name}': the name is taken by another module")
    _purge(name)
    importlib.invalidate_caches()
    packages.add(name)
    sys.path.insert(0, parent)
    try:
        module = importlib.import_module(name)
    except BaseException:
        _purge(name)
        raise
    finally:
        sys.path.remove(parent)
    _loaded[path] = (digest, module)
    _owners[name] = path
    return module


def _purge(name: str) -> None:
    for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
        del sys.modules[loaded]


def missing(imports: list[str]) -> list[str]:
    """Those of ``imports`` (see ``saltus._prepare``) that are not there yet."""

    def is_there(what: str) -> bool:
        module, _, name = what.partition(":")
        loaded = sys.modules.get(module)
        return loaded is not None and (name in ("", "*") or hasattr(loaded, name))

    return [what for what in imports if not is_there(what)]


def bring(what: str) -> None:
    """Imports one of them; a name that is no module is left to the statement, which knows what to say of it."""
    name, _, member = what.partition(":")
    module = importlib.import_module(name)
    if member not in ("", "*") and not hasattr(module, member) and hasattr(module, "__path__"):
        try:
            importlib.import_module(f"{name}.{member}")
        except ModuleNotFoundError:
            pass
