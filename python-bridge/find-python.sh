#!/bin/sh
# Prints the path of the CPython to build with: 3.13 or later, with a shared libpython and its headers.
#
# The Makefile runs this before cargo and puts the answer into PYO3_PYTHON, because pyo3-ffi's build script must know
# the interpreter before any build script of ours runs. An interpreter named in PYO3_PYTHON is taken or refused, never
# replaced by another.

usable() {
    "$1" -I -c '
import sys, sysconfig
version = sys.version_info
shared = sysconfig.get_config_var("Py_ENABLE_SHARED")
gil = not sysconfig.get_config_var("Py_GIL_DISABLED")
sys.exit(0 if sys.implementation.name == "cpython" and (3, 13) <= version < (3, 15) and shared and gil else 1)
' >/dev/null 2>&1
}

# The real executable behind a shim, so that the build does not depend on the shim's idea of the day.
answer() {
    "$1" -I -c 'import sys; print(sys.executable)'
    exit 0
}

if [ -n "$PYO3_PYTHON" ]; then
    usable "$PYO3_PYTHON" && answer "$PYO3_PYTHON"
    echo "PYO3_PYTHON=$PYO3_PYTHON is no CPython 3.13 or 3.14 with a shared libpython" >&2
    exit 1
fi

for name in python3.13 python3.14 python3; do
    path=$(command -v "$name") && usable "$path" && answer "$path"
done

for path in \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python3 \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.14*/bin/python3 \
    "${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/uv/python}"/cpython-3.13*/bin/python3 \
    "${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/uv/python}"/cpython-3.14*/bin/python3; do
    [ -x "$path" ] && usable "$path" && answer "$path"
done

cat >&2 <<'END'
No CPython 3.13 or 3.14 with a shared libpython was found. One of these installs it:
  Debian 13, Ubuntu 25.04 or later:  apt install python3-dev libpython3-dev
  uv:     uv python install 3.13
  pyenv:  PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install 3.13
Or name one: export PYO3_PYTHON=/path/to/python3
END
exit 1
