"""Reads `cargo metadata` from stdin and refuses packages whose licence is not on the list below.

A licence expression is satisfied if one of its alternatives is wholly on the list. A package without an expression is
refused unless it is named in BY_FILE, with what its licence file says.
"""

import json
import re
import sys

ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0",
    "CC0-1.0", "CDLA-Permissive-2.0", "ISC", "MIT", "MIT-0", "MPL-2.0", "MPL-2.0+", "Unicode-3.0", "Unicode-DFS-2016",
    "Unlicense", "Zlib", "bzip2-1.0.6",
}  # fmt: skip
BY_FILE = {}


def satisfied(expression):
    """Whether an SPDX expression can be met with the licences on the list."""
    text = expression.replace("/", " OR ")
    tokens = re.findall(r"\(|\)|[^\s()]+(?:\s+WITH\s+[^\s()]+)?", text)
    words = {"(": "(", ")": ")", "AND": "and", "OR": "or"}
    # Only parentheses, and, or, True and False are left of the text.
    return eval(" ".join(words.get(token.upper()) or str(" ".join(token.split()) in ALLOWED) for token in tokens))


def main():
    packages = json.load(sys.stdin)["packages"]
    refused = []
    for package in packages:
        expression = package["license"] or BY_FILE.get(package["name"])
        if expression is None or not satisfied(expression):
            refused.append(f"{package['name']} {package['version']}: {expression or 'no licence given'}")
    for line in sorted(refused):
        print(line, file=sys.stderr)
    print(f"licences: {len(packages)} packages, {len(refused)} refused")
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
