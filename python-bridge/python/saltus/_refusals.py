"""Imports that an interpreter with a GIL of its own refuses, and plugins that catch the refusal.

A module that does not know subinterpreters is refused with an ``ImportError``. If that ends a run, its trigger moves to a
process of its own. But many plugins catch it, as they would if the package was not installed::

    try:
        import numpy as np
    except ImportError:
        np = None

So refusals are noted when they come: which modules plugins were importing then, by their own statements. What of these is not
there when the run has ended was refused to the plugin. What a library does without (an accelerator beside its slower way) is
there, and is no matter of the plugin's.

Some packages are compiled from their own Python source, which they bring along for where nothing is compiled. That is executed
in place of an extension that is refused.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from threading import get_ident
from types import FrameType, ModuleType
from typing import Any

_WORDS = " does not support loading in subinterpreters"
# Threads of plugins' own leave their notes behind.
_NOTES_MAX = 256

noted: dict[int | str, dict[str, str]] = {}
"""By thread for the statements of a file, by name for those of a directory, whose body may have been executed before the
run: the module imported, and the module refused."""

packages: set[str] = set()
"""The packages of plugins that are directories, by their unique names."""


def is_refusal(error: BaseException) -> bool:
    """Whether an import failed because a module was refused, perhaps in a library's own words."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ImportError) and _WORDS in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def install() -> None:
    """Listens to refusals in this interpreter."""
    create = ExtensionFileLoader.create_module

    def create_module(self: ExtensionFileLoader, spec: Any) -> ModuleType | None:
        try:
            return create(self, spec)
        except ImportError as refusal:
            if _WORDS not in str(refusal):
                raise
            source = _source_beside(spec)
            if source is None:
                note(spec.name)
                raise
            # Whoever loads the module asks the spec again for who executes it.
            spec.loader, spec.origin, spec.cached = SourceFileLoader(spec.name, source), source, None
            return None

    # By name: what a checker says of an assigned method depends on its version.
    setattr(ExtensionFileLoader, "create_module", create_module)


def _source_beside(spec: Any) -> str | None:
    """The Python source that an extension was compiled from."""
    source = os.path.join(os.path.dirname(spec.origin), spec.name.rpartition(".")[2] + ".py")
    return source if os.path.isfile(source) else None


def note(refused: str, importing: str | None = None) -> None:
    """Notes what plugins are importing, on this thread, now that ``refused`` is refused to the import of ``importing``."""
    if len(noted) >= _NOTES_MAX:
        noted.clear()
    frame: FrameType | None = sys._getframe(1)
    importing = importing or refused
    imports = True
    while frame is not None:
        if not _is_machinery(frame.f_code.co_filename):
            plugin = _plugin_of(frame) if imports else None
            if plugin is not None:
                noted.setdefault(plugin, {})[importing] = refused
            # The body of a module: whoever is next imports it.
            imports = frame.f_code.co_name == "<module>"
            if imports:
                importing = frame.f_globals.get("__name__", importing)
        frame = frame.f_back


def _is_machinery(file_name: str) -> bool:
    return file_name.startswith(("<frozen importlib", "<saltus")) or file_name == importlib.__file__


def _plugin_of(frame: FrameType) -> int | str | None:
    """Whose frame it is: this thread stands for a file, which has no spec, a name for a directory; ``None`` is a library's."""
    spec = frame.f_globals.get("__spec__")
    if spec is None:
        return get_ident()
    package: str = spec.name.partition(".")[0]
    return package if package in packages else None


def refused_to(package: str | None) -> str | None:
    """The module whose refusal the plugin that has run on this thread has caught; asked once per run."""
    imports = noted.pop(get_ident(), {})
    if package is not None:
        imports = imports | noted.get(package, {})
    return next((refused for module, refused in imports.items() if module not in sys.modules), None)
