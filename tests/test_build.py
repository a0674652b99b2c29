# SPDX-License-Identifier: GPL-2.0-or-later
"""build.py on a toy tree, with a fake configure and a real ninja."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from dctools import build
from dctools import common, process
from dctools import base, relink
from dctools.common import ToolError, git  # noqa: E402

CONFIGURE = """#!/bin/sh
echo "$*" >>../configured
[ "$1" != bad ] || { echo "ERROR: no such option"; exit 1; }
cat >build.ninja <<'END'
rule cp
  command = cat $in >$out && test -s $in
build out: cp ../src/a.c
END
"""


class TestBuild(unittest.TestCase):
    def setUp(self):
        self.top = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.top)
        for p in [mock.patch.object(common, "ROOT", self.top),
                  mock.patch.multiple(common.settings, build=self.top / "build", force=False),
                  mock.patch.dict(os.environ, {"CCACHE_DIR": ""})]:
            p.start()
            self.addCleanup(p.stop)
        self.stack = common.stack_dir("toy")
        self.repo, self.src = self.stack / "tree", self.stack / "base/src"
        base.init_repo(self.repo)
        self.first = self.commit({"a.c": "one\n", "b.c": "b\n", "configure": CONFIGURE, "pc-bios/README": "x\n",
                                  "scripts/meson-buildoptions.sh": "\n", "ui/keycodemapdb/meson.build": "\n"})
        self.said = io.StringIO()
        self.pin()

    def pin(self, **more):
        path = self.top / "patches/toy/pin.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**dict.fromkeys(["package", "version", "files", "diffs", "upstream", "tag",
                                                     "base_tree"], ""), **more}))

    def commit(self, files):
        for name, text in files.items():
            (self.repo / name).parent.mkdir(parents=True, exist_ok=True)
            (self.repo / name).write_text(text)
        (self.repo / "configure").chmod(0o755)
        git(self.repo, "add", "-A")
        git(self.repo, "commit", "-q", "-m", "x")
        return git(self.repo, "rev-parse", "HEAD").strip()

    def build(self, commit, args=("good",)):
        with contextlib.redirect_stderr(self.said):
            return build.build_side("toy", "base", commit, ["out"], list(args))

    def refuses(self, commit, *texts, args=("good",)):
        with self.assertRaises(ToolError) as e:
            self.build(commit, args)
        for text in texts:
            self.assertIn(text, str(e.exception))

    def configured(self):
        return (self.stack / "base/configured").read_text().splitlines()

    def test_builds_and_then_does_nothing(self):
        out = self.build(self.first) / "out"
        self.assertEqual(out.read_text(), "one\n")
        before = out.stat().st_mtime_ns
        self.build(self.first)
        self.assertEqual(out.stat().st_mtime_ns, before)
        self.assertEqual(self.configured(), ["good"])

    def test_only_what_changes_is_new(self):
        self.build(self.first)
        before = (self.src / "b.c").stat().st_mtime_ns
        second = self.commit({"a.c": "two\n"})
        self.assertEqual((self.build(second) / "out").read_text(), "two\n")
        self.assertEqual((self.src / "b.c").stat().st_mtime_ns, before)
        self.assertEqual(self.configured(), ["good"])

    def test_configures_again_when_it_has_to(self):
        self.build(self.first)
        self.build(self.first, ["other"])
        self.build(self.commit({"configure": CONFIGURE + "# more\n"}), ["other"])
        self.assertEqual(self.configured(), ["good", "other", "other"])

    def test_failed_configure_is_tried_again(self):
        self.refuses(self.first, "configure failed with 1", args=["bad"])
        self.refuses(self.first, "configure failed with 1", args=["bad"])
        self.assertEqual(len(self.configured()), 2)

    def test_failed_compilation(self):
        self.refuses(self.commit({"a.c": ""}), "ninja failed", "ninja.log")

    def test_placeholders_leave_the_tree_clean(self):
        self.build(self.commit({"pc-bios/meson.build": "fds = [ 'edk2-arm-vars.fd', 'edk2-x86_64-code.fd' ]\n",
                                "pc-bios/dtb/meson.build": "dtbs = [ 'bamboo.dtb' ]\n"}))
        for name in ["edk2-arm-vars.fd.bz2", "edk2-x86_64-code.fd.bz2", "dtb/bamboo.dtb"]:
            self.assertTrue((self.src / "pc-bios" / name).is_file(), name)
        self.assertEqual(git(self.src, "status", "--porcelain"), "")

    def test_arguments_of_pin_json_are_added(self):
        self.pin(configure=["--more", "--x=a b"])
        self.build(self.first)
        self.assertEqual(self.configured(), ["good --more --x=a b"])

    def test_arguments_that_a_release_knows_no_longer(self):
        args = ["--meson=/usr/bin/meson", "--enable-sanitizers", "--cc=x"]
        self.build(self.first, args)
        self.build(self.commit({"configure": CONFIGURE + "case x in\n  --meson=*) ;;\n"
                                                         "  --enable-sanitizers) ;;\nesac\n"}), args)
        self.assertEqual(self.configured(), ["--enable-asan --enable-ubsan --cc=x", " ".join(args)])

    def test_python_packages_are_found(self):
        self.assertNotIn("PYTHONPATH", build.clean_environment(self.stack / "base"))
        path = base.unpacked_python(self.stack)
        path.mkdir(parents=True)
        self.assertEqual(build.clean_environment(self.stack / "base")["PYTHONPATH"], str(path))

    def test_meson_of_the_build(self):
        self.assertEqual(build.meson(self.stack), "meson")
        (self.stack / "pyvenv/bin").mkdir(parents=True)
        (self.stack / "pyvenv/bin/meson").touch()
        self.assertEqual(build.meson(self.stack), str(self.stack / "pyvenv/bin/meson"))

    def test_changes_in_the_source_are_not_lost(self):
        self.build(self.first)
        (self.src / "a.c").write_text("mine\n")
        self.refuses(self.first, "has changes of its own")
        self.assertEqual((self.src / "a.c").read_text(), "mine\n")
        common.settings.force = True
        self.assertEqual((self.build(self.first) / "out").read_text(), "one\n")

    def test_repository_that_is_new(self):
        self.build(self.first)
        shutil.rmtree(self.repo)
        base.init_repo(self.repo)
        again = self.commit({"a.c": "new\n", "configure": CONFIGURE, "pc-bios/README": "x\n",
                             "scripts/meson-buildoptions.sh": "\n", "ui/keycodemapdb/meson.build": "\n"})
        self.assertEqual((self.build(again) / "out").read_text(), "new\n")

    def test_submodule_missing(self):
        git(self.repo, "rm", "-q", "-r", "ui")
        self.refuses(self.commit({}), "git submodule update --init ui/keycodemapdb")

    def test_subproject_missing(self):
        self.refuses(self.commit({"subprojects/keycodemapdb.wrap": "x\n"}), "meson subprojects download keycodemapdb")

    def test_hooks_of_the_stack(self):
        (self.repo / "a.c").write_text("hooked\n")
        (self.top / "patches/toy/hooks.diff").write_text(git(self.repo, "diff"))
        git(self.repo, "checkout", "-q", ".")
        self.assertEqual(git(self.repo, "show", f"{build.hooked('toy', self.first)}:a.c"), "hooked\n")

    def test_one_tool_at_a_time(self):
        built = []
        other = threading.Thread(target=lambda: built.append(self.build(self.first)))
        with common.exclusive("toy"):
            other.start()
            other.join(.5)
            self.assertEqual(built, [])
        other.join()
        self.assertEqual(len(built), 1)

    def test_full_disk(self):
        with mock.patch("shutil.disk_usage", return_value=mock.Mock(free=5 << 20)):
            self.refuses(self.first, "5 MiB free")

    def test_compiler_and_flags_of_the_person_do_not_count(self):
        with mock.patch.dict(os.environ, {"CFLAGS": "-O0", "CC": "clang", "CCACHE_DIR": "/elsewhere"}):
            env = build.clean_environment(self.top)
        self.assertEqual((env.get("CFLAGS"), env.get("CC"), env["PATH"]), (None, None, "/usr/bin:/bin"))
        self.assertEqual(env["CCACHE_DIR"], "/elsewhere")

    def test_ccache_counts(self):
        log = self.top / "log"
        log.write_text("# a.c\ndirect_cache_miss\ncache_miss\n# b.c\ndirect_cache_hit\n# c.c\npreprocessed_cache_hit\n")
        self.assertEqual(build.ccache_counts(log), (2, 1))


class Objects(unittest.TestCase):
    """A program of real objects, some of them in an archive that is taken whole."""

    NINJA = """rule cc
  command = gcc -c $in -o $out
rule ar
  command = rm -f $out && ar csrD$kind $out $in
rule link
  command = gcc @$out.rsp
  rspfile = $out.rsp
  rspfile_content = -o $out $in -Wl,--whole-archive whole.fa -Wl,--no-whole-archive
build whole.fa: ar f5.o f6.o f7.o
  kind = %s
build %s: link main.o f0.o f1.o f2.o f3.o f4.o | whole.fa
"""

    def setUp(self):
        self.top = pathlib.Path(tempfile.mkdtemp()).resolve()
        self.addCleanup(shutil.rmtree, self.top)
        self.binary = self.top / "build/prog"

    def program(self, kind="T", target="prog"):
        self.binary.parent.mkdir()
        names = [f"f{n}" for n in range(8)]
        sources = {name: f"int {name}(void) {{ return {n}; }}" for n, name in enumerate(names)}
        sources["main"] = "#include <stdio.h>\n" + "".join(f"int {n}(void);" for n in names) + \
            f"int main(void) {{ return !printf(\"%d\", {' + '.join(f'{n}()' for n in names)}); }}"
        for name, text in sources.items():
            (self.binary.parent / f"{name}.c").write_text(text + "\n")
        (self.binary.parent / "build.ninja").write_text(
            self.NINJA % (kind, target) + "".join(f"build {name}.o: cc {name}.c\n" for name in sources))
        process.run(["ninja", target], cwd=self.binary.parent)
        return self.binary

    @staticmethod
    def order(binary):
        return [line.split()[-1] for line in process.run(["nm", "-n", binary]).splitlines()
                if line.split()[-1][0] == "f" and line.split()[-1][1:].isdigit()]

    def link(self, *seeds):
        objects, found = relink.Objects(self.binary, self.top), [self.top / f"{seed}" for seed in seeds]
        for seed, path in zip(seeds, found):
            objects.link(seed, path)
        return found

    def test_same_functions_in_other_orders(self):
        found = [self.program(), *self.link("1", "2", "3")]
        orders = [self.order(f) for f in found]
        self.assertEqual(len({tuple(o) for o in orders}), 4)
        for f, o in zip(found, orders):
            self.assertEqual(sorted(o), [f"f{n}" for n in range(8)])
            self.assertEqual(process.run([f]), "28")
        self.assertLess(min(o.index(f) for o in orders for f in ("f5", "f6", "f7")), 5,
                        "the archive's have stayed behind")

    def test_seed_decides(self):
        self.program()
        self.assertEqual(*[self.link("1")[0].read_bytes() for _ in range(2)])

    def test_archive_that_is_not_thin(self):
        self.program(kind="")
        self.assertEqual([process.run([f]) for f in self.link("1", "2")], ["28", "28"])

    def test_binary_in_a_directory_of_its_own(self):
        self.program(target="daemon/prog")
        self.binary = self.binary.parent / "daemon/prog"
        found = [self.binary, *self.link("1", "2")]
        self.assertEqual(len({tuple(self.order(f)) for f in found}), 3)
        self.assertEqual([process.run([f]) for f in found], ["28"] * 3)

    def test_objects_of_another_binary(self):
        self.program()
        (self.binary.parent / "f0.c").write_text("int f0(void) { return 100; }\n")
        process.run(["ninja", "f0.o"], cwd=self.binary.parent)
        with self.assertRaisesRegex(ToolError, "is not what its objects give; run ninja"):
            self.link()

    def test_not_where_it_was_built(self):
        with self.assertRaisesRegex(ToolError, "is not where it was built; give LAYOUTS=off"):
            relink.Objects("/bin/true", self.top)

    def test_not_a_target(self):
        (self.program().parent / "other").write_text("x")
        with self.assertRaisesRegex(ToolError, "does not say how other is linked"):
            relink.Objects(self.binary.with_name("other"), self.top)


if __name__ == "__main__":
    unittest.main()
