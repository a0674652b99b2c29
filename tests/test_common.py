# SPDX-License-Identifier: GPL-2.0-or-later
"""common.main(): how each tool answers arguments and trouble, in a line and without a traceback."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tools"))
import common


class Main(unittest.TestCase):
    def tool(self, name, *arguments, **env):
        p = subprocess.run([sys.executable, common.ROOT / "tools" / f"{name}.py", *arguments], text=True,
                           capture_output=True, stdin=subprocess.DEVNULL, env={**os.environ, **env})
        return p.returncode, p.stdout, p.stderr

    def test_help(self):
        for name in ("stress", "build", "ring", "check"):
            status, out, err = self.tool(name, "--help")
            self.assertEqual((status, err), (0, ""))
            doc = (common.ROOT / "tools" / f"{name}.py").read_text().split('"""')[1]
            self.assertEqual(out.strip(), doc.strip())

    def test_arguments_where_variables_are_wanted(self):
        for name in ("bench", "check", "cost", "guest", "soak", "stress"):
            status, out, err = self.tool(name, "unit")
            self.assertEqual((status, out, err.count("\n")), (1, "", 1), err)
            self.assertIn("takes no arguments, but `unit` is one", err)

    def test_trouble_with_a_file_is_a_line(self):
        with tempfile.NamedTemporaryFile() as f:
            status, _, err = self.tool("guest", BUILD_DIR=f"{f.name}/build")
        self.assertEqual((status, err.count("\n")), (1, 1), err)
        self.assertIn(f"guest: {f.name}", err)
        self.assertIn("Not a directory", err)


class Licence(unittest.TestCase):
    def test_each_source_file_names_it(self):
        sources = [common.ROOT / "Makefile"] + [f for d in ("tools", "tests", "ring") for f in (common.ROOT / d).rglob("*")
                                                if f.suffix in (".py", ".c", ".sh")]
        self.assertGreater(len(sources), 30)
        for f in sources:
            with self.subTest(f.name):
                self.assertIn("SPDX-License-Identifier: GPL-2.0-or-later", f.read_text()[:250])


if __name__ == "__main__":
    unittest.main()
