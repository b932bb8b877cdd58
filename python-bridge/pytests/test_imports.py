"""What a plugin is found to import, and what comes of a module that is not there."""

import importlib.util
import os
import unittest

# No plugin has it, so it is not among the modules of its interpreter.
_HERE = os.path.dirname(os.path.abspath(__file__))
_SPEC = importlib.util.spec_from_file_location(
    "saltus._imports", os.path.join(_HERE, "..", "python", "saltus", "_imports.py")
)
_imports = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_imports)


def named(source, files=None, path="/plugins/own"):
    found, _ = _imports.named(source, path, files)
    return dict(found)


class NamedImports(unittest.TestCase):
    def test_statements_are_found_wherever_they_stand(self):
        source = "import aa.bb\nfrom cc import dd\nasync def f():\n    with x:\n        import ee as ff\n"
        self.assertEqual(named(source), {"aa.bb": "needed", "cc:dd": "needed", "ee": "needed"})

    def test_what_is_there_is_not_named(self):
        self.assertEqual(named("import sys, os.path\nfrom json import loads\nimport json.no_such"), {"json.no_such": "needed"})

    def test_type_checkers_alone_need_nothing(self):
        self.assertEqual(named("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import aa\n"), {})

    def test_a_module_that_is_caught_is_told_from_one_that_has_another_in_its_place(self):
        for handler, weight in [
            ("except ImportError:\n    aa = None", "caught"),
            ("except (ValueError, ModuleNotFoundError):\n    aa = None", "caught"),
            ("except:\n    aa = None", "caught"),
            ("except ValueError:\n    aa = None", "needed"),
            ("except ImportError:\n    import json as aa", "optional"),
            ("finally:\n    pass", "needed"),
        ]:
            self.assertEqual(named(f"try:\n    import aa\n{handler}\n"), {"aa": weight}, handler)
        self.assertEqual(named("try:\n    import json\nexcept ImportError:\n    import aa\n"), {"aa": "optional"})
        self.assertEqual(named("if x:\n    import aa\nelse:\n    import bb"), {"aa": "optional", "bb": "optional"})
        self.assertEqual(named("try:\n    import aa\nexcept ImportError:\n    pass\nimport aa"), {"aa": "needed"})

    def test_a_plugin_with_a_path_of_its_own_may_find_what_others_do_not(self):
        self.assertEqual(named("import sys\nsys.path.insert(0, 'x')\nimport aa"), {"aa": "optional"})

    def test_of_a_folder_what_its_import_reaches(self):
        files = {
            "__init__.py": "from .a import f\nimport own.b\nfrom own import c\nimport ii\n",
            "a.py": "import jj\nfrom . import d\n",
            "b.py": "import kk\n",
            "c.py": "import ll\n",
            "d/__init__.py": "from ..e import z\n",
            "e.py": "import mm\n",
            "tests/test_a.py": "import nn\n",
            "broken.py": "x =\n",
        }
        self.assertEqual(set(named("", files)), {"ii", "jj", "kk", "ll", "mm"})


class TriedImports(unittest.TestCase):
    def test_each_outcome_has_its_name(self):
        for what, outcome in [
            ("json", ("loads", "")),
            ("json:no_such", ("loads", "")),
            ("no_such.module", ("missing", "no_such")),
            ("json.no_such", ("missing", "json.no_such")),
        ]:
            self.assertEqual(_imports.attempt(what)[:2], outcome)


if __name__ == "__main__":
    unittest.main()
