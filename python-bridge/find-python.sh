#!/usr/bin/env bash
# Prints the executable of the CPython to embed: 3.13 or 3.14, with a GIL and a shared libpython.
#
# Looked at in this order; the first that fits is taken:
#   1. PYO3_PYTHON, if set; if it does not fit, that is an error, nothing else is tried
#   2. python3.13, python3.14 and python3 in PATH
#   3. what pyenv has installed (PYENV_ROOT, ~/.pyenv)
#   4. what uv has installed (UV_PYTHON_INSTALL_DIR, ~/.local/share/uv/python)
#
# Where nothing fits it says on stderr what was looked at and why it was refused, and fails.
set -euo pipefail
shopt -s nullglob

# Prints the resolved executable, or fails with the reason on stdout.
examine='
import os, sys, sysconfig
get = sysconfig.get_config_var
if sys.implementation.name != "cpython":
    sys.exit(print("not CPython") or 1)
if sys.version_info[:2] not in ((3, 13), (3, 14)):
    sys.exit(print("is %d.%d, needed is 3.13 or 3.14" % sys.version_info[:2]) or 1)
if get("Py_GIL_DISABLED"):
    sys.exit(print("is a free-threaded build") or 1)
if not get("Py_ENABLE_SHARED"):
    sys.exit(print("has no shared libpython") or 1)
folders = (get("LIBDIR") or "", os.path.join(sys.base_prefix, "lib"))
names = [name for name in (get("INSTSONAME"), get("LDLIBRARY")) if name]
if not any(os.path.exists(os.path.join(folder, name)) for folder in folders for name in names):
    sys.exit(print("its libpython is not in " + " or ".join(folders)) or 1)
if not os.path.exists(os.path.join(get("LIBDIR") or "", get("LDLIBRARY") or "-")):
    sys.exit(print("its library has no file to link with; install the -dev package") or 1)
print(os.path.realpath(sys.executable))
'

refused=()
try() {
    local answer
    if answer=$("$1" -I -c "$examine" 2>/dev/null); then
        printf '%s\n' "$answer"
        exit 0
    fi
    refused+=("$1: ${answer:-does not run}")
}

if [ -n "${PYO3_PYTHON:-}" ]; then
    try "$PYO3_PYTHON"
else
    for name in python3.13 python3.14 python3; do
        if command -v "$name" >/dev/null; then try "$name"; fi
    done
    home=${HOME:-/nonexistent}
    for version in 3.13 3.14; do
        for python in "${PYENV_ROOT:-$home/.pyenv}/versions/$version".*/bin/"python$version" \
            "${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-$home/.local/share}/uv/python}/cpython-$version".*/bin/"python$version"; do
            try "$python"
        done
    done
fi

echo "no CPython 3.13 or 3.14 with a shared libpython was found" >&2
for line in "${refused[@]}"; do
    echo "  $line" >&2
done
exit 1
