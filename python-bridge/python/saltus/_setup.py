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

from saltus._builtins import keep as _keep_builtins
from saltus._refusals import install as _install_refusals
from saltus._sleep import install as _install_sleep
from saltus._threads import install as _install_threads
from saltus.errors import InfluxDBError, InvalidKeyError, InvalidLineError, InvalidMeasurementError
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

    module: Any
    for module in (os, posix):
        module.close = guarded_close
        module.closerange = guarded_closerange
        module.dup2 = guarded_dup2


def _keep_environment_private() -> None:
    """``os.environ`` is a dict of this interpreter's own; only the calls that would reach ``setenv`` are cut."""
    import posix

    def ignore(*_args: Any) -> None:
        return None

    module: Any
    for module in (os, posix):
        module.putenv = ignore
        module.unsetenv = ignore


def _keep_process_alive() -> None:
    import posix

    kill, own = posix.kill, posix.getpid()

    def guarded_kill(pid: int, signal: int, /) -> None:
        # 0 and -1 are groups that this process is in.
        if pid in (own, 0, -1, -own) and signal != 0:
            _refused("os.kill")()
        kill(pid, signal)

    module: Any
    for module in (os, posix):
        module.kill = guarded_kill


def _keep_process_safe() -> None:
    """Cuts what would reach the other interpreters of the process."""
    _refuse("os", "_exit", "abort", "chdir", "fchdir", "chroot", "umask", "killpg", "nice", "setpriority")
    _refuse("os", "setuid", "setgid", "seteuid", "setegid", "setreuid", "setregid", "setresuid", "setresgid")
    _refuse("os", "setgroups", "initgroups", "setpgid", "setsid", "setns", "unshare")
    _refuse("os", "sched_setaffinity", "sched_setscheduler", "sched_setparam")
    _refuse("resource", "setrlimit", "prlimit")
    _keep_process_alive()
    _refuse("signal", "alarm", "setitimer", "raise_signal", "pthread_kill")
    _refuse("time", "tzset")
    _keep_standard_streams_open()
    _keep_environment_private()


def _say_where_it_crashes() -> None:
    """A process that crashes, or is asked by SIGXCPU because it is about to be killed, tells its stack on file descriptor 2."""
    import faulthandler

    faulthandler.enable(2)
    faulthandler.register(signal.SIGXCPU, 2)


def _put_in_main() -> None:
    """InfluxDB 3 executes its builder in ``__main__``, which is where plugins find the classes of its errors."""
    import __main__

    for kind in (InfluxDBError, InvalidMeasurementError, InvalidKeyError, InvalidLineError, LineBuilder):
        setattr(__main__, kind.__name__, kind)


def install(site_packages: list[str], environment: list[str], own_process: bool = False) -> None:
    """Prepares this interpreter. ``environment`` are names and values for ``os.environ``, in turns. With ``own_process``
    nobody but the plugin is hurt by what it does to the process."""
    sys.stdout = sys.__stdout__ = _LogStream(False, "<stdout>")  # type: ignore[assignment, misc]
    sys.stderr = sys.__stderr__ = _LogStream(True, "<stderr>")  # type: ignore[assignment, misc]
    sys.stdin = sys.__stdin__ = io.StringIO("")  # type: ignore[assignment, misc]
    builtins.LineBuilder = LineBuilder  # type: ignore[attr-defined]
    _put_in_main()
    _install_sleep()
    _keep_builtins()
    if own_process:
        _say_where_it_crashes()
    else:
        _keep_process_safe()
        _install_threads()
        _install_refusals()
    os.environ.update(zip(environment[::2], environment[1::2], strict=True))
    for directory in site_packages:
        site.addsitedir(directory)
