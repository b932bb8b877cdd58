"""What the example plugins say of themselves: metadata, README and code name the same arguments."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples" / "plugins"
ENTRY_POINTS = {"onwrite": "process_writes", "scheduled": "process_scheduled_call", "http": "process_request"}
NAMES = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))


def source_of(name: str) -> Path:
    """The file with the entry point: `name/name.py`, or `name/name/__init__.py`."""
    file = EXAMPLES / name / f"{name}.py"
    return file if file.exists() else EXAMPLES / name / name / "__init__.py"


def metadata_of(name: str) -> Any:
    return json.loads(ast.get_docstring(ast.parse(source_of(name).read_text())) or "")


def arguments_of(name: str) -> dict[str, Any]:
    metadata = metadata_of(name)
    lists = [metadata[f"{kind}_args_config"] for kind in metadata["plugin_type"]]
    return {argument["name"]: argument for arguments in lists for argument in arguments}


def test_there_are_examples() -> None:
    assert len(NAMES) >= 11


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_is_the_metadata_that_others_read(name: str) -> None:
    metadata = metadata_of(name)
    functions = {node.name for node in ast.parse(source_of(name).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert {ENTRY_POINTS[kind] for kind in metadata["plugin_type"]} == functions & set(ENTRY_POINTS.values())
    for argument in arguments_of(name).values():
        assert set(argument) == {"name", "example", "description", "required"}
        assert isinstance(argument["required"], bool)
        assert argument["description"].endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_metadata_readme_and_code_name_the_same_arguments(name: str) -> None:
    arguments = arguments_of(name)
    readme = (EXAMPLES / name / "README.md").read_text()
    table = readme[readme.index("| argument") :].split("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` +\| ([^|]+?) +\|", table, re.MULTILINE))
    assert set(rows) == set(arguments)
    assert {key for key, default in rows.items() if default == "required"} == {
        key for key, argument in arguments.items() if argument["required"]
    }
    source = source_of(name).read_text()
    assert [key for key in arguments if f'"{key}"' not in source.split('"""', 2)[2]] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_readme_shows_how_to_create_the_trigger(name: str) -> None:
    readme = (EXAMPLES / name / "README.md").read_text()
    commands = readme.replace("\\\n", " ")
    path = source_of(name).relative_to(EXAMPLES)
    target = path.parent if path.name == "__init__.py" else path
    assert "saltus create trigger --database" in commands
    assert f" --path {target} " in commands
    assert "InfluxDB 3" in readme, "whether it runs there as well"


def test_the_book_and_the_index_have_all_of_them() -> None:
    index = (EXAMPLES / "README.md").read_text()
    page = (EXAMPLES.parents[1] / "book" / "src" / "examples.md").read_text()
    for name in NAMES:
        assert f"({name}/README.md)" in index
        assert f"docs/examples/plugins/{name}" in page


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_manifests_follow_the_schema() -> None:
    import tomllib

    manifests = list(EXAMPLES.glob("*/*/manifest.toml"))
    assert manifests
    for path in manifests:
        manifest = tomllib.loads(path.read_text())
        plugin = manifest["plugin"]
        assert manifest["manifest_schema_version"] == "1.3"
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", plugin["name"])
        assert re.fullmatch(r"\d+\.\d+\.\d+", plugin["version"])
        assert 1 <= len(plugin["description"]) <= 200
        assert set(plugin["triggers"]) <= set(ENTRY_POINTS.values())


def test_what_is_used_outside_of_the_server_can_be_read_by_python_39() -> None:
    script = (
        "import sys, saltus.testing.pytest_plugin, saltus.request, saltus._response\n"
        "for name, module in sys.modules.items():\n"
        "    if name.partition('.')[0] == 'saltus':\n"
        "        print(module.__file__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    files = [Path(line) for line in done.stdout.split()]
    assert len(files) > 12
    for path in files:
        tree = ast.parse(path.read_text(), str(path), feature_version=(3, 9))
        later = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
        unions = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)]
        assert later or not unions, f"{path.name}: `X | Y` in annotations needs `from __future__ import annotations`"
