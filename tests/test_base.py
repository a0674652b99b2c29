# SPDX-License-Identifier: GPL-2.0-or-later
"""base.py with a fake apt and a toy source package: what it takes, and what it refuses."""

import contextlib
import difflib
import io
import json
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from dctools import common, process
from dctools import base as module
from dctools.common import ToolError, git  # noqa: E402

LIST = """\
# deb http://commented.example/debian bookworm main
deb http://one.example/debian bookworm main contrib  # why
deb [arch=amd64 signed-by=/k.gpg] http://two.example/debian bookworm-security main
deb-src http://three.example/debian bookworm-updates main
deb http://other.example/apt nodistro main
deb cdrom:[Debian]/ trixie main
"""
SOURCES = """\
# a comment
Types: deb deb-src
URIs: http://one.example/debian
Suites: bookworm other bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 xyz

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://foreign.example/apt
Suites: nodistro
Components: main
"""
APT_GET = """\
#!/bin/sh
echo "$*" >>"$FAKE/called"
for last; do :; done
case " $* " in
*" update "*) [ ! -e "$FAKE/offline" ] || { echo "E: cannot reach it" >&2; exit 100; } ;;
*" source "*) cp "$FAKE/${last#*=}"/* . ;;
*" download "*) cp "$FAKE/$last"/*.deb . ;;
esac
"""
APT_CACHE = """\
#!/bin/sh
for last; do :; done
case " $* " in
*" showsrc "*) sed 's/.*/Version: &\\n/' "$FAKE/versions" ;;
*" show "*) ls -d "$FAKE/$last="* | sed 's/.*=\\(.*\\)/Version: \\1\\n/' ;;
esac
"""


def write(directory, files):
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def diff(name, old, new):
    return "".join(difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"a/{name}", f"b/{name}"))


class TestLists(unittest.TestCase):
    def lists(self, files, *args):
        with tempfile.TemporaryDirectory() as d:
            write(pathlib.Path(d), files)
            return module.source_lists(pathlib.Path(d), "bookworm", *args)

    def test_one_line_format(self):
        self.assertEqual(self.lists({"sources.list": LIST}), {"sources.list": (
            "deb-src http://one.example/debian bookworm main contrib # why\n"
            "deb-src [arch=amd64 signed-by=/k.gpg] http://two.example/debian bookworm-security main\n"
            "deb-src http://three.example/debian bookworm-updates main\n")})

    def test_deb822_format(self):
        self.assertEqual(self.lists({"sources.list.d/debian.sources": SOURCES}), {"debian.sources": (
            "Types: deb-src\nURIs: http://one.example/debian\nSuites: bookworm bookworm-updates\n"
            "Components: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n xyz\n")})

    def test_other_suites_of_the_same_archive(self):
        self.assertEqual(self.lists({"sources.list": LIST}, "deb", ["x", "y"]), {"sources.list": (
            "deb http://one.example/debian x main contrib # why\n"
            "deb http://one.example/debian y main contrib # why\n")})
        self.assertEqual(self.lists({"a.list": LIST, "sources.list.d/debian.sources": SOURCES}, "deb-src", ["x", "y"]),
                         {"debian.sources": (
                             "Types: deb-src\nURIs: http://one.example/debian\nSuites: x y\nComponents: main\n"
                             "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n xyz\n")})

    def test_other_files_are_left_alone(self):
        self.assertEqual(self.lists({"sources.list.d/x.sources.save": SOURCES, "sources.list.d/y.list.off": LIST,
                                     "sources.list.d/z.list": "deb http://x.example/ sid main\n"}), {})


class TestBase(unittest.TestCase):
    def setUp(self):
        self.top = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.top)
        self.fake = self.top / "fake"
        write(self.top, {"bin/apt-get": APT_GET, "bin/apt-cache": APT_CACHE,
                         "os-release": "VERSION_CODENAME=bookworm\n", "etc/sources.list": LIST})
        for p in (self.top / "bin").iterdir():
            p.chmod(0o755)
        for p in [mock.patch.object(common, "ROOT", self.top),
                  mock.patch.multiple(common.settings, build=self.top / "build", stack="", qemu_src="",
                                      force=False),
                  mock.patch.multiple(module, APT_ETC=self.top / "etc", OS_RELEASE=self.top / "os-release"),
                  mock.patch.dict(os.environ, {"PATH": f"{self.top}/bin:{os.environ['PATH']}",
                                               "FAKE": str(self.fake)})]:
            p.start()
            self.addCleanup(p.stop)
        self.package("1", 2)
        (self.fake / "versions").write_text("1\n")
        self.said = io.StringIO()
        self.pin({"package": "qemu", "version": "1", "diffs": "v7.2.{}.diff", "upstream": "7.2.2", "tag": "v7.2.2",
                  "base_tree": "", "files": {p.name: module.sha256(p) for p in (self.fake / "1").iterdir()}})
        with self.assertRaises(ToolError) as e:
            self.base()
        tree = str(e.exception).split("tree ")[1][:40]
        self.pin({**self.pinned, "base_tree": tree})
        self.said = io.StringIO()

    def pin(self, pin):
        self.pinned = pin
        write(self.top, {"patches/v7.2/pin.json": json.dumps(pin)})

    def package(self, version, last, gap=None, release="7.2"):
        """A source package of `last` stable releases and one patch of Debian's own."""
        out = self.fake / version
        work = self.top / "work"
        orig = {"VERSION": f"{release}.0\n", "configure": "#!/bin/sh\n", "a.c": "".join(f"{n}\n" for n in range(20)),
                ".gitignore": "*.o\n", "ignored.o": "x\n", "crlf.c": "x\r\n"}
        write(work / "qemu-7.2.0", orig)
        (work / "qemu-7.2.0/configure").chmod(0o755)
        patches = {"series": "# all\n"}
        for n in range(1, last + 1):
            text = diff("VERSION", f"{release}.{n - 1}\n", f"{release}.{n}\n")
            if n != gap:
                patches[f"v7.2.{n}.diff"] = f"Subject: v7.2.{n}\n\n{text}"
                patches["series"] += f"v7.2.{n}.diff\n"
        patches["own.diff"] = diff("a.c", orig["a.c"], orig["a.c"].replace("7\n", "seven\n", 1))
        patches["series"] += "own.diff\n"
        write(work / "debian/patches", patches)
        out.mkdir(parents=True)
        for name, top in [("qemu_7.2.orig.tar.xz", "qemu-7.2.0"), (f"qemu_{version}.debian.tar.xz", "debian")]:
            with tarfile.open(out / name, "w:xz") as t:
                t.add(work / top, top)
        (out / f"qemu_{version}.dsc").write_text(f"Format: 3.0 (quilt)\nVersion: {version}\n")
        shutil.rmtree(work)

    def base(self):
        with contextlib.redirect_stderr(self.said):
            return module.base(common.stack_name())

    def refuses(self, *texts):
        with self.assertRaises(ToolError) as e:
            self.base()
        for text in texts:
            self.assertIn(text, str(e.exception))
        self.assertNotIn("\n", str(e.exception))
        self.assertFalse((common.stack_dir("v7.2") / "base.json").exists())

    def show(self, what):
        return git(common.stack_dir("v7.2") / "tree", "show", what)

    # -- the pinned package

    def test_upstream_alone(self):
        base = self.base()
        self.assertEqual((base.version, base.pinned, base.note, base.tree),
                         ("7.2.2", True, "", self.pinned["base_tree"]))
        self.assertEqual(self.show(f"{base.commit}:VERSION"), "7.2.2\n")
        self.assertEqual(self.show(f"{base.commit}:ignored.o"), "x\n")
        self.assertNotIn("seven", self.show(f"{base.commit}:a.c"))
        self.assertIn("seven", self.show(f"{base.debian}:a.c"))
        self.assertIn("100755", git(common.stack_dir("v7.2") / "tree", "ls-tree", base.commit, "configure"))
        self.assertFalse((common.stack_dir("v7.2") / "import").exists())

    def test_same_commit_whatever_the_person_has_set(self):
        first = self.base()
        shutil.rmtree(common.stack_dir("v7.2"))
        write(self.top, {".gitconfig": "[core]\nautocrlf=true\nhooksPath=/\nexcludesFile=~/ex\n"
                                       "[user]\nname=x\nemail=y@z\n", "ex": "*.c\n",
                         ".config/git/attributes": "*.c text eol=crlf\n", ".config/git/ignore": "*\n"})
        old = os.umask(0o077)
        try:
            with mock.patch.dict(os.environ, {"HOME": str(self.top), "XDG_CONFIG_HOME": "", "GIT_AUTHOR_NAME": "x",
                                              "TZ": "Asia/Tokyo"}):
                again = self.base()
        finally:
            os.umask(old)
        self.assertEqual(first.commit, again.commit)

    def test_second_time_needs_no_apt(self):
        self.base()
        (self.fake / "offline").touch()
        shutil.rmtree(common.settings.build / "apt")
        self.assertEqual(self.base().version, "7.2.2")

    def test_apt_is_kept_off_the_system(self):
        self.base()
        for call in (self.fake / "called").read_text().splitlines():
            for option in ("Dir::Etc::sourcelist=/dev/null", "Dir::Etc::sourceparts=", "Dir::State::lists=",
                           "Dir::Cache="):
                self.assertIn(option, call)
        self.assertIn("deb-src http://one.example", (common.settings.build / "apt/etc/sources.list").read_text())

    def test_checksum(self):
        path = next((self.fake / "1").glob("*.debian.tar.xz"))
        path.write_bytes(path.read_bytes() + b"x")
        shutil.rmtree(common.settings.build)
        self.refuses(path.name, "pin.json says", "not used")

    def test_damaged_download_is_fetched_again(self):
        path = common.settings.build / "apt/source/qemu_7.2.orig.tar.xz"
        path.write_bytes(b"half")
        self.assertEqual(self.base().tree, self.pinned["base_tree"])

    def test_file_missing(self):
        next((self.fake / "1").glob("*.dsc")).unlink()
        shutil.rmtree(common.settings.build)
        self.refuses("apt did not bring it")

    def test_tree_hash(self):
        self.pin({**self.pinned, "base_tree": "0" * 40})
        self.refuses("pin.json says 7.2.2, 0000", "not used")

    def test_upstream_version(self):
        self.pin({**self.pinned, "upstream": "7.2.3"})
        self.refuses("QEMU 7.2.2", "pin.json says 7.2.3")

    def test_offline(self):
        shutil.rmtree(common.settings.build)
        (self.fake / "offline").touch()
        self.refuses("cannot reach it", "QEMU_SRC=")

    def test_no_debian_sources(self):
        shutil.rmtree(common.settings.build)
        (self.top / "etc/sources.list").unlink()
        self.refuses("no apt source for bookworm", "QEMU_SRC=")

    def test_package_unknown_to_apt(self):
        shutil.rmtree(common.settings.build)
        (self.fake / "versions").write_text("")
        self.refuses("apt knows no source package qemu")

    def test_full_disk(self):
        with mock.patch("shutil.disk_usage", return_value=mock.Mock(free=5 << 20)):
            self.refuses("5 MiB free", "make room")

    def test_pin_that_is_no_json(self):
        (self.top / "patches/v7.2/pin.json").write_text("{")
        self.refuses("cannot be read as JSON")

    def test_pin_that_lacks_something(self):
        self.pin({"package": "qemu"})
        self.refuses("no base_tree, diffs")

    def test_diff_that_does_not_apply(self):
        self.pin({**self.pinned, "version": "9", "files": {}})
        self.package("9", 2)
        with mock.patch.object(module, "diff_names", lambda *_: ["v7.2.2.diff"]):
            (self.fake / "versions").write_text("9\n")
            self.refuses("patch -p1")

    # -- the archive has moved on

    def moved(self, *a, **kw):
        self.package("2", *a, **kw)
        (self.fake / "versions").write_text("2\n")
        shutil.rmtree(common.settings.build)

    def test_archive_moved_on_is_said_each_time(self):
        self.moved(3)
        base = self.base()
        self.assertEqual((base.version, base.pinned), ("7.2.3", False))
        for _ in range(2):
            self.assertIn(f"NOT THE PINNED BASE: the archive has moved on to qemu 2, QEMU 7.2.3, tree {base.tree}",
                          self.said.getvalue())
            self.said = io.StringIO()
            self.base()

    def test_older_version_is_preferred_while_it_is_there(self):
        self.package("2", 3)
        (self.fake / "versions").write_text("1\n2\n")
        shutil.rmtree(common.settings.build)
        self.assertTrue(self.base().pinned)

    def test_archive_moved_on_to_another_release(self):
        self.moved(1, release="8.0")
        self.refuses("moved on to QEMU 8.0.1")

    def test_archive_moved_on_with_a_gap(self):
        self.moved(4, gap=3)
        self.refuses("a gap")

    def test_archive_moved_on_to_another_release_that_is_welcome(self):
        self.moved(1, release="8.0")
        self.pin({**self.pinned, "any_release": True})
        self.assertEqual((self.base().version, self.base().pinned), ("8.0.1", False))
        self.assertIn("NOT THE PINNED BASE", self.said.getvalue())

    def test_listed_but_not_served(self):
        self.moved(3)
        shutil.rmtree(self.fake / "1")
        (self.fake / "versions").write_text("1\n2\n")
        self.assertEqual(self.base().version, "7.2.3")
        self.assertIn("qemu 1 is listed but cannot be had", self.said.getvalue())
        self.assertIn("NOT THE PINNED BASE", self.said.getvalue())

    def test_nothing_is_served(self):
        shutil.rmtree(common.settings.build)
        shutil.rmtree(self.fake / "1")
        self.refuses("apt-get", "QEMU_SRC=")

    def test_same_release_series_first_then_what_is_newest(self):
        for version, release in [("1:7.2.9-1", "7.2"), ("1:7.2.10-1", "7.2"), ("1:8.0.1-1", "8.0")]:
            self.package(version, int(version.split(".")[2][:-2]), release=release)
        (self.fake / "versions").write_text("1:7.2.9-1\n1:8.0.1-1\n1:7.2.10-1\n")
        shutil.rmtree(common.settings.build)
        self.assertEqual(self.base().version, "7.2.10")

    def test_newest_first(self):
        self.assertEqual(module.newest_first(["1.9", "1.10~rc1", "1:1.0", "1.10", "1.9"]),
                         ["1:1.0", "1.10", "1.10~rc1", "1.9"])

    # -- what pin.json says beside

    def test_other_suites_have_a_place_of_their_own(self):
        shutil.rmtree(common.settings.build)
        self.pin({**self.pinned, "suites": ["unstable"]})
        self.assertTrue(self.base().pinned)
        self.assertEqual((common.settings.build / "apt/unstable/etc/sources.list").read_text(),
                         "deb-src http://one.example/debian unstable main contrib # why\n")

    def test_arguments_of_configure_are_not_the_base(self):
        self.base()
        self.pin({**self.pinned, "configure": ["--x"], "python": {}, "check": ["unit"], "gone": ["x"],
                  "series_tree": "0"})
        (self.fake / "offline").touch()
        shutil.rmtree(common.settings.build / "apt")
        self.assertTrue(self.base().pinned)

    def deb(self, package, version, text):
        """What the archive has, and what a pin says of it."""
        work, out = self.top / "deb", self.fake / f"{package}={version}"
        write(work, {"usr/lib/python3/dist-packages/m.py": text, "DEBIAN/control":
                     f"Package: {package}\nVersion: {version}\nArchitecture: all\nMaintainer: x\nDescription: x\n"})
        out.mkdir()
        name = f"{package}_{version}_all.deb"
        process.run(["dpkg-deb", "--build", "--root-owner-group", work, out / name])
        return {"version": version, "file": name, "sha256": module.sha256(out / name)}

    def unpack_python(self, pins):
        self.pin({**self.pinned, "python": {"suites": ["next"], "packages": pins}})
        with contextlib.redirect_stderr(self.said):
            module.unpack_python("v7.2")
        return (module.unpacked_python(common.stack_dir("v7.2")) / "m.py").read_text()

    def test_python_packages_are_unpacked(self):
        pin = self.deb("meson", "1.7-1", "old\n")
        self.deb("meson", "1.8-1", "new\n")
        self.assertEqual(self.unpack_python({"meson": pin}), "old\n")
        self.assertNotIn("NOT THE PINNED", self.said.getvalue())
        (self.fake / "offline").touch()
        self.assertEqual(self.unpack_python({"meson": pin}), "old\n")
        self.pin({**self.pinned, "python": None})
        module.unpack_python("v7.2")
        self.assertFalse((common.stack_dir("v7.2") / "python").exists())

    def test_python_package_that_is_another(self):
        pin = self.deb("meson", "1.7-1", "old\n")
        with self.assertRaisesRegex(ToolError, "pin.json says 0; not used"):
            self.unpack_python({"meson": {**pin, "sha256": "0"}})

    def test_python_package_that_has_moved_on(self):
        self.deb("meson", "1.8-1", "new\n")
        gone = {"version": "1.7-1", "file": "meson_1.7-1_all.deb", "sha256": "0"}
        self.assertEqual(self.unpack_python({"meson": gone}), "new\n")
        self.assertIn("NOT THE PINNED meson: the archive has moved on to 1.8-1 (pinned: 1.7-1)", self.said.getvalue())

    def test_python_package_that_is_unknown(self):
        with self.assertRaisesRegex(ToolError, "apt knows no package meson in next"):
            self.unpack_python({"meson": {"version": "1", "file": "f", "sha256": "0"}})

    # -- QEMU_SRC=

    def checkout(self, tag=None):
        repo = self.top / "theirs"
        write(repo, {"VERSION": "7.2.2\n", "configure": "#!/bin/sh\n", "a.c": "tagged\n"})
        git(self.top, "init", "-q", repo)
        git(repo, "add", "-A")
        git(repo, "commit", "-q", "-m", "x")
        if tag:
            git(repo, "tag", tag)
            write(repo, {"a.c": "later\n"})
            git(repo, "commit", "-q", "-a", "-m", "y")
        write(repo, {"a.c": "not committed\n"})
        common.settings.qemu_src = str(repo)
        return repo

    def test_checkout_at_the_tag(self):
        repo = self.checkout("v7.2.2")
        base = self.base()
        self.assertEqual(self.show(f"{base.commit}:a.c"), "tagged\n")
        self.assertFalse(base.pinned)
        self.assertIn("tag v7.2.2", self.said.getvalue())
        self.assertIn(git(repo, "rev-parse", "HEAD~1").strip(), self.said.getvalue())
        self.assertEqual((repo / "a.c").read_text(), "not committed\n")

    def test_checkout_without_the_tag(self):
        repo = self.checkout()
        base = self.base()
        self.assertIn("its HEAD, as it has no tag v7.2.2", self.said.getvalue())
        self.said = io.StringIO()
        git(repo, "commit", "-q", "-a", "-m", "z")
        self.assertEqual(self.show(f"{self.base().commit}:a.c"), "not committed\n")
        common.settings.qemu_src = ""
        self.assertTrue(self.base().pinned)
        self.assertNotEqual(base.tree, self.pinned["base_tree"])

    def test_checkout_with_submodule(self):
        repo, sub = self.checkout(), self.top / "sub"
        write(sub, {"meson.build": "x\n"})
        git(self.top, "init", "-q", sub)
        git(sub, "add", "-A")
        git(sub, "commit", "-q", "-m", "x")
        git(repo, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(sub), "ui/keycodemapdb")
        git(repo, "commit", "-q", "-a", "-m", "submodule")
        self.assertEqual(self.show(f"{self.base().commit}:ui/keycodemapdb/meson.build"), "x\n")

    def test_checkout_with_subproject(self):
        repo = self.checkout()
        write(repo, {"subprojects/keycodemapdb.wrap": "x\n", ".gitignore": "/subprojects/*/\n"})
        git(repo, "add", "-A")
        git(repo, "commit", "-q", "-m", "wrap")
        write(repo, {"subprojects/keycodemapdb/meson.build": "x\n", "subprojects/keycodemapdb/.git/HEAD": "x\n",
                     "subprojects/other/meson.build": "x\n"})
        base = self.base()
        self.assertEqual(self.show(f"{base.commit}:subprojects/keycodemapdb/meson.build"), "x\n")
        self.assertEqual(git(common.stack_dir("v7.2") / "tree", "ls-tree", "--name-only", base.commit, "subprojects/"),
                         "subprojects/keycodemapdb.wrap\nsubprojects/keycodemapdb\n")

    def test_checkout_that_is_none(self):
        for path in ("nowhere", "fake"):
            common.settings.qemu_src = str(self.top / path)
            self.refuses("QEMU_SRC=", "not a git checkout")

    def test_checkout_of_something_else(self):
        repo = self.checkout()
        git(repo, "rm", "-q", "-f", "configure")
        git(repo, "commit", "-q", "-m", "x")
        self.refuses("no QEMU in it")

    def test_checkout_without_commit(self):
        git(self.top, "init", "-q", "empty")
        common.settings.qemu_src = str(self.top / "empty")
        self.refuses("neither a tag v7.2.2 nor any commit")


if __name__ == "__main__":
    unittest.main()
