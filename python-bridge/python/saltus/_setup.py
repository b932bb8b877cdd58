"""Makes a fresh interpreter fit to live inside a database: its streams, its builtins, and what it may not touch.

Called once per interpreter, before any plugin code.
"""

from __future__ import annotations

import builtins
import io
import os
import signal  # noqa: F401  (loaded now, so that its functions are replaced)
import site
import sys
import threading  # noqa: F401  (loaded now, so that its main thread is the one that runs plugins)
import time  # noqa: F401
from collections.abc import Callable
from typing import Any, NoReturn

import _saltus

from saltus.line_builder import LineBuilder


class _LogStream(io.TextIOBase):
    """A text stream whose lines go to the log of the run that writes them."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, is_error: bool, name: str) -> None:
        self._is_error = is_error
        self.name = name

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        _saltus.emit(self._is_error, text)
        return len(text)


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(*_args: object, **_kwargs: object) -> NoReturn:
        raise PermissionError(f"{name} would affect the whole database process and is not allowed in plugins")

    refuse.__name__ = name.rpartition(".")[2]
    return refuse


def _refuse(module_name: str, *names: str) -> None:
    """Replaces functions in a public module and in the C module that it takes them from."""
    for target in {module_name, {"os": "posix", "signal": "_signal"}.get(module_name, module_name)}:
        module = sys.modules.get(target) or __import__(target)
        for name in names:
            if hasattr(module, name):
                setattr(module, name, _refused(f"{module_name}.{name}"))


def _keep_standard_streams_open() -> None:
    import posix

    close, closerange, dup2 = posix.close, posix.closerange, posix.dup2

    def guarded_close(fd: int) -> None:
        if 0 <= fd <= 2:
            _refused("os.close")()
        close(fd)

    def guarded_closerange(fd_low: int, fd_high: int, /) -> None:
        closerange(max(fd_low, 3), fd_high)

    def guarded_dup2(fd: int, fd2: int, inheritable: bool = True) -> int:
        if 0 <= fd2 <= 2:
            _refused("os.dup2")()
        return dup2(fd, fd2, inheritable)

    for module in (os, posix):
        module.close = guarded_close  # type: ignore[assignment]
        module.closerange = guarded_closerange
        module.dup2 = guarded_dup2


def _keep_environment_private() -> None:
    """``os.environ`` is a dict of this interpreter's own; only the calls that would reach ``setenv`` are cut."""
    import posix

    def ignore(*_args: Any) -> None:
        return None

    for module in (os, posix):
        module.putenv = ignore
        module.unsetenv = ignore


def _keep_process_safe() -> None:
    """Cuts what would reach the other interpreters of the process."""
    _refuse("os", "_exit", "abort", "chdir", "fchdir", "chroot", "umask")
    _refuse("signal", "alarm", "setitimer", "raise_signal", "pthread_kill")
    _refuse("time", "tzset")
    _keep_standard_streams_open()
    _keep_environment_private()


def _say_where_it_crashes() -> None:
    """A process that crashes, or is asked by SIGXCPU because it is about to be killed, tells its stack on file descriptor 2."""
    import faulthandler

    faulthandler.enable(2)
    faulthandler.register(signal.SIGXCPU, 2)


def install(site_packages: list[str], own_process: bool = False) -> None:
    """Prepares this interpreter. With ``own_process`` nobody but the plugin is hurt by what it does to the process."""
    sys.stdout = sys.__stdout__ = _LogStream(False, "<stdout>")  # type: ignore[assignment, misc]
    sys.stderr = sys.__stderr__ = _LogStream(True, "<stderr>")  # type: ignore[assignment, misc]
    sys.stdin = sys.__stdin__ = io.StringIO("")  # type: ignore[assignment, misc]
    builtins.LineBuilder = LineBuilder  # type: ignore[attr-defined]
    if own_process:
        _say_where_it_crashes()
    else:
        _keep_process_safe()
    for directory in site_packages:
        site.addsitedir(directory)
