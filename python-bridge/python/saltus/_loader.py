"""Plugins that are folders. Each version of each folder is a package of its own, under a name that nobody else has (ADR 17).

A version is a snapshot: the text of all its ``.py`` files. Whatever is imported of it, at once or late, comes out of the snapshot, so
a folder that is being changed is never seen half old and half new. The name of its package is ``<folder>@<path>_<content>``: it
cannot be written in an import statement, so nothing else is shadowed by a folder, whatever it is called.

In the code of a version its folder's own name stands for the version (``import common.who`` in the folder ``common``), unless
it is the name of a standard or an installed module: then it stands for that one.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import linecache
import os
import re
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, ModuleSpec, PathFinder
from types import CodeType, ModuleType
from typing import Any, Optional
from weakref import WeakValueDictionary

from saltus._refusals import is_refusal, packages

# Versions of one folder that can be imported from: one in use, one that a run may still be under way with, and one to spare.
_VERSIONS_MAX = 3
# Seconds after which a version that could not be imported is tried again.
_AGAIN = 10.0
_UNIQUE = re.compile(r"(.*@[0-9a-f]{8})_[0-9a-f]{16}\Z", re.DOTALL)

# By path: the versions that were imported, by digest, the newest last.
_loaded: dict[str, dict[int, ModuleType]] = {}
# By path: the version that could not be imported although an older one could, and when.
_failed: dict[str, tuple[int, float]] = {}
# By unique name: everything of which a module is alive.
_versions: WeakValueDictionary[str, Version] = WeakValueDictionary()
# By the part of the name that all versions of a folder have: the newest.
_newest: dict[str, Version] = {}


def unique_name(path: str, digest: int) -> str:
    """The name of the package of a version."""
    return f"{_stem(path)}_{digest & 0xFFFF_FFFF_FFFF_FFFF:016x}"


def _stem(path: str) -> str:
    own = os.path.basename(path.rstrip("/")).replace(".", "_")
    return f"{own}@{zlib.crc32(path.encode('utf-8', 'surrogateescape')):08x}"


def known(path: str, digest: int) -> ModuleType | None:
    """The package of a version, if this interpreter has it."""
    versions = _loaded.get(path)
    return None if versions is None else versions.get(digest)


def load(path: str, digest: int, files: Mapping[str, str]) -> ModuleType:
    """The package of a version: imported, if need be. ``files`` are the texts by their path in the folder.

    If it cannot be imported and an older version could, that one goes on; the error is said in the log.
    """
    before = known(path, digest)
    if before is not None:
        return before
    older = _loaded.get(path)
    failed = _failed.get(path)
    if older and failed is not None and failed[0] == digest and time.monotonic() - failed[1] < _AGAIN:
        return list(older.values())[-1]
    version = _versions.get(unique_name(path, digest)) or Version(path, digest, files)
    try:
        module = version.bring()
    except Exception as error:
        if not older or is_refusal(error):
            raise
        if failed is None or failed[0] != digest:
            _say_that_the_old_one_goes_on(version, error)
        _failed[path] = (digest, time.monotonic())
        return list(older.values())[-1]
    _failed.pop(path, None)
    versions = _loaded.setdefault(path, {})
    versions[digest] = module
    _newest[version.stem] = version
    while len(versions) > _VERSIONS_MAX:
        gone = versions.pop(next(iter(versions)))
        _forget(gone.__name__)
    return module


def read(path: str) -> dict[str, str]:
    """The texts of a folder's ``.py`` files, by their path in it."""
    texts = {}
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in names:
            if name.endswith(".py") and not name.startswith("."):
                full = os.path.join(folder, name)
                with open(full, encoding="utf-8-sig") as file:
                    texts[os.path.relpath(full, path)] = file.read()
    return texts


def _say_that_the_old_one_goes_on(version: Version, error: Exception) -> None:
    print(  # noqa: T201  (the log of the run)
        f"the new version of the plugin in {version.path} cannot be imported, so its last good one goes on: "
        f"{type(error).__qualname__}: {error}",
        file=sys.stderr,
    )


def _forget(package: str) -> None:
    below = package + "."
    for name in [name for name in list(sys.modules) if name == package or name.startswith(below)]:
        sys.modules.pop(name, None)
    packages.discard(package)


class Version(Loader):
    """One version of a folder; the loader of all its modules, which keep it alive."""

    def __init__(self, path: str, digest: int, files: Mapping[str, str]) -> None:
        self.path = path
        self.own = os.path.basename(path.rstrip("/"))
        self.stem = _stem(path)
        self.name = unique_name(path, digest)
        self.files = dict(files)
        self.folders = {os.path.dirname(name) for name in self.files}
        for folder in list(self.folders):
            while folder:
                folder = os.path.dirname(folder)
                self.folders.add(folder)
        self._taken: Optional[bool] = None

    def bring(self) -> ModuleType:
        """Imports the package."""
        _install()
        _versions[self.name] = self
        packages.add(self.name)
        try:
            return importlib.import_module(self.name)
        except BaseException:
            _forget(self.name)
            raise

    @property
    def taken(self) -> bool:
        """Whether the folder's name is that of a standard or an installed module."""
        if self._taken is None:
            self._taken = _is_taken(self.own, self.path)
        return self._taken

    def spec(self, name: str) -> ModuleSpec:
        """How to make one of its modules; raises ``ModuleNotFoundError`` if it has none of that name."""
        inner = "/".join(name.split(".")[1:])
        below = f"{inner}/__init__.py" if inner else "__init__.py"
        if below in self.files or (inner in self.folders and f"{inner}.py" not in self.files):
            folder = os.path.join(self.path, inner) if inner else self.path
            spec = ModuleSpec(name, self, origin=os.path.join(self.path, below), is_package=True)
            spec.submodule_search_locations = [folder]
            spec.has_location = below in self.files
            return spec
        if f"{inner}.py" in self.files:
            spec = ModuleSpec(name, self, origin=os.path.join(self.path, f"{inner}.py"))
            spec.has_location = True
            return spec
        folder = os.path.join(self.path, os.path.dirname(inner))
        compiled = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES)).find_spec(name)
        if compiled is not None:
            return compiled
        shown = ".".join([self.own, *name.split(".")[1:]])
        raise ModuleNotFoundError(f"No module named {shown!r}", name=name)

    def has(self, dotted: str) -> bool:
        """Whether there is a module of that name below the folder."""
        inner = dotted.replace(".", "/")
        return f"{inner}.py" in self.files or inner in self.folders

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Python's own."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Executes a module's text out of the snapshot."""
        spec = module.__spec__
        code = None if spec is None else self.get_code(spec.name)
        if spec is not None and spec.origin is not None:
            # What it has may be of another version.
            linecache.cache.pop(spec.origin, None)
        # Found before the builtin; an import statement does not look here.
        module.__dict__["__import__"] = self.import_
        if code is not None:
            exec(code, module.__dict__)

    def get_code(self, name: str) -> CodeType | None:
        """The code of a module; ``None`` of a folder without ``__init__.py``."""
        source = self.get_source(name)
        if source is None:
            return None
        origin = self.spec(name).origin or "<plugin>"
        tree = ast.parse(source, origin)
        _OwnName(self).visit(tree)
        return compile(ast.fix_missing_locations(tree), origin, "exec", dont_inherit=True)

    def get_source(self, name: str) -> str | None:
        """The text of a module, for tracebacks."""
        inner = "/".join(name.split(".")[1:])
        below = f"{inner}/__init__.py" if inner else "__init__.py"
        return self.files.get(below, self.files.get(f"{inner}.py"))

    def is_package(self, name: str) -> bool:
        """Whether a module is a package."""
        return self.spec(name).submodule_search_locations is not None

    def get_filename(self, name: str) -> str:
        """Where a module's text was read."""
        return self.spec(name).origin or ""

    def get_data(self, path: str) -> bytes:
        """A file beside the code, as it is now."""
        with open(path, "rb") as file:
            return file.read()

    def resolved(self, name: str) -> str:
        """A module's name as code of this version means it."""
        top, dot, rest = name.partition(".")
        if top != self.own or (self.taken and not (rest and self.has(rest) and not _has_module(top, rest))):
            return name
        return self.name + dot + rest

    def import_(
        self,
        name: str,
        globals: Optional[Mapping[str, Any]] = None,  # noqa: A002
        locals: Optional[Mapping[str, Any]] = None,  # noqa: A002
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        """``__import__`` for code of this version."""
        if level == 0:
            name = self.resolved(name)
        elif globals is None:
            globals = sys._getframe(1).f_globals  # noqa: A001
        return builtins.__import__(name, globals, locals, fromlist, level)


class _OwnName(ast.NodeTransformer):
    """Puts the unique name where import statements have the folder's own."""

    def __init__(self, version: Version) -> None:
        self.version = version

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.level == 0 and node.module is not None:
            node.module = self.version.resolved(node.module)
        return node

    def visit_Import(self, node: ast.Import) -> Any:
        statements: list[ast.stmt] = []
        for alias in node.names:
            name = self.version.resolved(alias.name)
            if name == alias.name:
                statements.append(ast.Import(names=[alias]))
                continue
            bound = alias.asname or self.version.own
            statements.append(ast.Import(names=[ast.alias(name=name, asname=bound)]))
            if alias.asname is None and "." in name:
                # The statement binds the package, not what is below it.
                statements.append(ast.Import(names=[ast.alias(name=self.version.name, asname=bound)]))
        return [ast.copy_location(statement, node) for statement in statements]


class _Finder(MetaPathFinder):
    """Finds the modules of versions by their unique names."""

    def find_spec(
        self,
        fullname: str,
        path: Optional[Sequence[str]] = None,  # noqa: ARG002
        target: Optional[ModuleType] = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """``None`` if it is no plugin's."""
        top = fullname.partition(".")[0]
        if "@" not in top:
            return None
        version = _versions.get(top)
        if version is not None:
            return version.spec(fullname)
        # Of a version that is gone, for instance in what was pickled: the newest stands for it.
        stem = _UNIQUE.match(top)
        newest = _newest.get(stem.group(1)) if stem is not None else None
        if newest is None:
            return None
        return ModuleSpec(fullname, _Alias(newest.name + fullname[len(top) :]))


class _Alias(Loader):
    """Gives the module of another name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.spec: Optional[ModuleSpec] = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself."""
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was executed under its own name."""
        module.__spec__ = self.spec


_finder = _Finder()


def _install() -> None:
    """Has this interpreter's imports find versions; what was taken away is put back."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if importlib.import_module is not _import_module:
        importlib.import_module = _import_module


_plain_import_module = importlib.import_module


def _import_module(name: str, package: Optional[str] = None) -> ModuleType:
    """``importlib.import_module``; in the code of a plugin its folder's name stands for the version that runs."""
    loader = sys._getframe(1).f_globals.get("__loader__")
    if isinstance(loader, Version) and not name.startswith("."):
        name = loader.resolved(name)
    return _plain_import_module(name, package)


def _is_taken(name: str, path: str) -> bool:
    if name in sys.builtin_module_names or name in _standard():
        return True
    try:
        spec = PathFinder.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return False
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        return False
    where = spec.origin or next(iter(spec.submodule_search_locations or ()), "")
    return not where.startswith(path.rstrip("/") + "/") and where.rstrip("/") != path.rstrip("/")


def _has_module(top: str, rest: str) -> bool:
    """Whether the standard or installed module ``top`` has a module ``rest`` itself."""
    module = sys.modules.get(top)
    where = getattr(module, "__path__", None)
    if module is None:
        spec = PathFinder.find_spec(top)
        where = None if spec is None else spec.submodule_search_locations
    return where is not None and PathFinder.find_spec(f"{top}.{rest.partition('.')[0]}", list(where)) is not None


def _standard() -> frozenset[str]:
    # Outside of the server this is read by older Pythons as well.
    return getattr(sys, "stdlib_module_names", frozenset())


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
