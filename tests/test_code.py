# SPDX-License-Identifier: GPL-2.0-or-later
"""The tools' own code: types, style, size, no circles, and one place that reads the environment."""

import ast
import pathlib
import subprocess

import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dctools"
MOST_LINES, MOST_OF_FUNCTION = 600, 60


def modules(package):
    """{name: path} of a package, with its directory's name first."""
    return {".".join(p.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): p
            for p in sorted(package.rglob("*.py"))}


def imports(path, known):
    """The modules of the package that one imports when it is loaded."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module
                      for a in node.names}
    return found & known.keys()


def circles(package):
    """Lines such as `a -> b -> a`."""
    known = modules(package)
    graph = {name: imports(path, known) - {name} for name, path in known.items()}
    found = set()

    def follow(name, way):
        if name in way:
            circle = way[way.index(name):]
            start = circle.index(min(circle))
            found.add(" -> ".join([*circle[start:], *circle[:start], min(circle)]))
        elif name not in done:
            for other in graph[name]:
                follow(other, [*way, name])
            done.add(name)
    done = set()
    for name in graph:
        follow(name, [])
    return sorted(found)


def too_long(path):
    """Functions with too many lines, and the file itself."""
    text = path.read_text()
    found = [f"{path.name}: {text.count(chr(10))} lines"] if text.count("\n") > MOST_LINES else []
    return found + [f"{path.name}: {n.name}() has {n.end_lineno - n.lineno + 1} lines"
                    for n in ast.walk(ast.parse(text))
                    if isinstance(n, ast.FunctionDef) and n.end_lineno - n.lineno + 1 > MOST_OF_FUNCTION]


def untyped(path):
    """Public functions, of the module or of a class, that lack the type of a parameter or of what they return."""
    tree = ast.parse(path.read_text())
    bodies = [tree.body, *(n.body for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]
    found = []
    for n in (n for body in bodies for n in body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")):
        a = n.args
        parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
        if not n.returns or any(not p.annotation and p.arg not in ("self", "cls") for p in parameters):
            found.append(f"{path.name}: {n.name}() has no types")
    return found


def environment_readers(package):
    return [name for name, path in modules(package).items() if "os.environ" in path.read_text()]


class Code(unittest.TestCase):
    def tool(self, *cmd):
        p = subprocess.run(cmd, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(p.returncode, 0, p.stdout)

    def test_style(self):
        self.tool("flake8", "dctools", "tests", "dc")

    def test_types(self):
        with tempfile.TemporaryDirectory() as d:
            self.tool("mypy", "--cache-dir", d, "dctools")

    def test_no_circles(self):
        self.assertEqual(circles(PACKAGE), [])

    def test_size(self):
        self.assertEqual([s for p in modules(PACKAGE).values() for s in too_long(p)], [])
        self.assertEqual([s for p in (ROOT / "tests").glob("*.py") for s in too_long(p) if "()" in s], [])

    def test_public_functions_have_types(self):
        self.assertEqual([s for p in modules(PACKAGE).values() for s in untyped(p)], [])

    def test_one_place_reads_the_environment(self):
        self.assertEqual(environment_readers(PACKAGE), ["dctools.environment"])

    def test_each_source_file_names_its_licence(self):
        sources = [ROOT / "Makefile", ROOT / "dc", *(f for d in ("dctools", "tests", "loadgen")
                                                    for f in (ROOT / d).rglob("*")
                                                    if f.suffix in (".py", ".c", ".h", ".sh"))]
        self.assertGreater(len(sources), 30)
        for f in sources:
            with self.subTest(f.name):
                self.assertIn("SPDX-License-Identifier: GPL-2.0-or-later", f.read_text()[:250])


class SaysNo(unittest.TestCase):
    """Each of these looks finds what it looks for."""

    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.package = pathlib.Path(d.name, "toy")
        self.package.mkdir()

    def write(self, name, text):
        (self.package / f"{name}.py").write_text(text)
        return self.package / f"{name}.py"

    def test_circles(self):
        self.write("a", "from toy import b\n")
        self.write("b", "import toy.c\n")
        self.write("c", "from toy.a import x\n")
        self.write("d", "from toy import a, b\n")
        self.assertEqual(circles(self.package), ["toy.a -> toy.b -> toy.c -> toy.a"])
        self.write("c", "def f():\n    from toy.a import x\n")
        self.assertEqual(circles(self.package), [])

    def test_size(self):
        path = self.write("a", "def f():\n" + "    x = 1\n" * MOST_OF_FUNCTION + "\n" * MOST_LINES)
        self.assertEqual(too_long(path), ["a.py: 661 lines", "a.py: f() has 61 lines"])

    def test_types(self):
        path = self.write("a", "def f(a: int): pass\ndef g(a) -> int: pass\ndef _h(a): pass\n"
                               "class C:\n    def m(self, *a) -> None: pass\n    def n(self) -> None: pass\n")
        self.assertEqual(untyped(path), [f"a.py: {name}() has no types" for name in "fgm"])
        wrong = self.write("b", "def f() -> int:\n    return 'x'\n")
        p = subprocess.run(["mypy", "--cache-dir", self.package / "cache", wrong],
                           cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.assertIn("Incompatible return value", p.stdout)

    def test_style(self):
        path = self.write("a", "import os\nx = y\n")
        p = subprocess.run(["flake8", path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.assertRegex(p.stdout, "(?s)F401.*F821")

    def test_environment(self):
        self.write("a", "import os\nos.environ.get('X')\n")
        self.assertEqual(environment_readers(self.package), ["toy.a"])


if __name__ == "__main__":
    unittest.main()
