# SPDX-License-Identifier: GPL-2.0-or-later
"""install.sh with fake package tools."""

import pathlib
import re
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
INSTALL = ROOT / "install.sh"

FAKES = {
    "dpkg-query": 'for p; do :; done\n'
                  'grep -qx "$p" "$FAKE/installed" && echo installed || { echo not-installed; exit 1; }',
    "apt-get": 'echo "$*" >>"$FAKE/called"\n[ ! -e "$FAKE/broken" ] || { echo "E: disk on fire" >&2; exit 100; }',
    "id": 'cat "$FAKE/uid"',
}


class TestInstall(unittest.TestCase):
    def setUp(self):
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.top = pathlib.Path(tmp.name)
        self.bin = self.top / "bin"
        self.bin.mkdir()
        for name, text in FAKES.items():
            (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.bin / name).chmod(0o755)
        # nothing else that is installed may be found instead of the fakes
        for name in ("sh", "sed", "grep", "cat", "dirname", "mktemp", "rm", "tail"):
            (self.bin / name).symlink_to(f"/usr/bin/{name}")
        (self.top / "list").write_text("# comment\none\ntwo  # why\n\nthree\n")
        (self.top / "installed").write_text("one\n")
        (self.top / "uid").write_text("0\n")

    def install(self, name="list"):
        return subprocess.run(["/bin/sh", INSTALL, self.top / name], text=True, capture_output=True,
                              env={"PATH": str(self.bin), "FAKE": str(self.top), "TMPDIR": str(self.top)})

    def called(self):
        path = self.top / "called"
        return path.read_text() if path.exists() else ""

    def test_installs_what_is_missing_only(self):
        p = self.install()
        self.assertEqual((p.returncode, p.stderr), (0, ""))
        self.assertEqual(self.called(), "-q update\n-q -y install --no-install-recommends two three\n")

    def test_nothing_missing(self):
        (self.top / "installed").write_text("one\ntwo\nthree\n")
        p = self.install()
        self.assertEqual((p.returncode, p.stdout, p.stderr, self.called()), (0, "", "", ""))

    def test_not_root(self):
        (self.top / "uid").write_text("1000\n")
        p = self.install()
        self.assertEqual((p.returncode, self.called()), (1, ""))
        self.assertEqual(p.stderr, "install: missing packages; as root run: "
                                   "apt-get install --no-install-recommends two three\n")

    def test_not_root_but_nothing_missing(self):
        (self.top / "uid").write_text("1000\n")
        (self.top / "installed").write_text("one\ntwo\nthree\n")
        self.assertEqual(self.install().returncode, 0)

    def test_apt_fails(self):
        (self.top / "broken").touch()
        p = self.install()
        self.assertEqual(p.returncode, 1)
        self.assertIn("disk on fire", p.stderr)
        self.assertIn("repair apt", p.stderr)

    def test_no_apt(self):
        (self.bin / "apt-get").unlink()
        p = self.install()
        self.assertEqual(p.returncode, 1)
        self.assertIn("no apt-get here", p.stderr)

    def test_no_list(self):
        p = self.install("nowhere")
        self.assertEqual(p.returncode, 1)
        self.assertIn("cannot read the package list", p.stderr)

    def test_own_list(self):
        names = [s.split("#")[0].strip() for s in (ROOT / "packages.txt").read_text().splitlines()]
        names = [n for n in names if n]
        self.assertEqual(len(names), len(set(names)))
        for n in names:
            self.assertTrue(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", n), n)


if __name__ == "__main__":
    unittest.main()
