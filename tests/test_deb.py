# SPDX-License-Identifier: GPL-2.0-or-later
"""deb.py on toy packages and a toy chroot: what is built, what is refused, and what is left behind."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from dctools import base
from dctools import common
from dctools import deb
from dctools import process
from dctools import quilt
from dctools.common import ToolError

VERSION = "1:7.2.22+ds-3+defercall1"
CONTROL = """\
# a comment
Source: toy
Build-Depends: debhelper

Package: qemu-system
Architecture: any
Depends: qemu-system-arm

Package: qemu-system-x86
Architecture: any
# another one
Depends: qemu-system-common (= ${binary:Version}), qemu-system-data (>> ${source:Upstream-Version}~),
Recommends: qemu-system-gui (= ${binary:Version}), qemu-utils,

Package: qemu-system-common
Architecture: any

Package: qemu-system-gui
Architecture: any
Depends: qemu-system-arm (= ${binary:Version})
\t| qemu-system-x86 (= ${binary:Version}),

Package: qemu-block-extra
Architecture: any
Depends: qemu-utils (= ${binary:Version})

Package: qemu-utils
Architecture: any
"""
RULES = """\
enable_system = $(if x,enable,disable)
enable_linux_user = disable
ifeq (${enable_system},enable)
systems = x86 misc
else
systems =
endif
qemu-builds :=
\tconfigure ${QEMU_CONFIGURE_OPTIONS}
\tconfigure ${QEMU_MICROVM_CONFIGURE_OPTIONS}
"""


class Directory(unittest.TestCase):
    def setUp(self):
        self.top = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.top)
        p = mock.patch.multiple(common.settings, build=self.top / "build", stack="v7.2", qemu_src="", topic="")
        p.start()
        self.addCleanup(p.stop)
        p = mock.patch("sys.stderr.write")
        self.said = p.start()
        self.addCleanup(p.stop)
        self.package = quilt.Package(self.top / "source/toy-7.2", "toy", VERSION)
        (self.package.tree / "debian").mkdir(parents=True)
        self.debian({"control": CONTROL, "rules": RULES})

    def debian(self, files):
        for name, text in files.items():
            (self.package.tree / "debian" / name).write_text(text)

    def shown(self):
        return "".join(c.args[0] for c in self.said.call_args_list)


class Selection(Directory):
    def test_what_is_left_out(self):
        self.assertEqual(deb.left_out(self.package), ["qemu-system"])
        env = deb.build_environment(["qemu-system", "qemu-user"], 3)
        self.assertEqual(env["DH_OPTIONS"], "-Nqemu-system -Nqemu-user")
        self.assertIn(" parallel=3", env["DEB_BUILD_OPTIONS"])

    def test_make_heeds_the_variables(self):
        makefile = self.top / "rules.mk"
        makefile.write_text(deb.rules())
        for given, said in [(deb.rules(), "x86 qemu microvm"), ("", "x86 misc")]:
            makefile.write_text(given)
            p = subprocess.run(["make", "-sf", "-", "show"],
                               env={"PATH": os.environ["PATH"], "MAKEFILES": str(makefile)},
                               input="systems = x86 misc\nqemu-builds :=\nshow:; @echo ${systems} ${qemu-builds}\n",
                               stdout=subprocess.PIPE, text=True)
            self.assertEqual(p.stdout, f"{said}\n")

    def test_says_no(self):
        for name, old, new, said in [
                ("control", "Package: qemu-utils", "Package: utils", "has no package qemu-utils"),
                ("control", "qemu-utils (=", "qemu-tools (=", "qemu-block-extra needs qemu-tools of the same version"),
                ("control", "qemu-system-gui (=", "qemu-gui (=", "qemu-system-x86 needs qemu-gui of the same version"),
                ("rules", "enable_linux_user", "enable-user", "has no variable enable_linux_user"),
                ("rules", "systems =", "# systems of", "has no variable systems"),
                ("rules", "QEMU_CONFIG", "CONFIG", "has no variable QEMU_CONFIGURE_OPTIONS")]:
            with self.subTest(said):
                self.debian({"control": CONTROL, "rules": RULES}
                            | {name: {"control": CONTROL, "rules": RULES}[name].replace(old, new)})
                with self.assertRaisesRegex(ToolError, said):
                    deb.left_out(self.package)


class Refusals(Directory):
    def refuses(self, said, what=lambda: deb.main(deb.Options())):
        with self.assertRaises(ToolError) as e:
            what()
        self.assertIn(said, str(e.exception))
        self.assertNotIn("\n", str(e.exception))
        self.assertFalse(list(self.top.glob("build/v*/deb/*/*")))

    def test_stacks(self):
        common.settings.stack = "v10.2"
        self.refuses("STACK=v10.2: its build needs packages that only Debian unstable has; make quilt STACK=v10.2")
        common.settings.stack = "v1"
        self.refuses("STACK=v1: no such stack; there is: v7.2, v10.2")
        common.settings.stack, common.settings.qemu_src = "v7.2", "/x"
        self.refuses("QEMU_SRC= is no source package")

    def test_topic(self):
        self.refuses("TOPIC=1: no such topic; there is: 1-fixes", lambda: deb.main(deb.Options(topic="1")))

    def test_machine(self):
        with mock.patch("os.geteuid", return_value=1000):
            self.refuses("only root may; run it as root")
        with mock.patch("os.geteuid", return_value=0), mock.patch.object(deb, "run", return_value="arm64\n"):
            self.refuses("this is arm64; the packages are built on amd64 only")
        with mock.patch("os.geteuid", return_value=0), mock.patch("shutil.which", return_value=None):
            self.refuses("run: apt-get install --no-install-recommends mmdebstrap")
        with mock.patch("os.geteuid", return_value=0), mock.patch("shutil.which", return_value="/x"), \
                mock.patch.object(deb, "NAMESPACE", ["false"]):
            self.refuses("no mounts are allowed here")

    def test_disk(self):
        with mock.patch.object(deb, "need_machine"), \
                mock.patch("shutil.disk_usage", return_value=mock.Mock(free=2 << 30)):
            self.refuses("2048 MiB free, 3000 MiB needed; make room or set BUILD_DIR=")


class Work(Directory):
    def work(self, script, **kw):
        deb.work(["sh", "-c", script], self.top / "log", "building", **kw)

    def test_a_sign_of_life(self):
        self.work("echo '[7/9] Compiling'; sleep .5; echo '[8/9] Linking'", every=.2)
        self.assertIn("building: 0 minutes, step 7/9\n", self.shown())

    def test_a_failure_shows_errors_and_the_log(self):
        with self.assertRaisesRegex(ToolError, "building fails with 3; all it said is in .*/log"):
            self.work("echo 'FAILED: one.o'; echo 'one.c:1:1: error: why'; seq 100; exit 3")
        self.assertIn("FAILED: one.o\none.c:1:1: error: why\n", self.shown())
        self.assertNotIn("99", self.shown())
        with self.assertRaises(ToolError):
            self.work("seq 100 199; exit 3")
        self.assertIn("192\n193", self.shown())

    def test_it_ends_with_the_tool(self):
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, .3)
        with self.assertRaises(KeyboardInterrupt):
            self.work("echo $$; exec sleep 60")
        with self.assertRaises(ProcessLookupError):
            os.kill(int((self.top / "log").read_text()), 0)


class Chroot(Directory):
    """In a chroot that has a shell and little else; only root may."""

    def setUp(self):
        super().setUp()
        self.root, self.here = self.top / "chroot", self.top / "it is here"
        for directory in (self.root / "bin", self.root / "proc", self.root / "build", self.here):
            directory.mkdir(parents=True)
        shutil.copy("/bin/busybox", self.root / "bin/busybox")
        for name in ("sh", "env", "ls", "sleep"):
            (self.root / "bin" / name).symlink_to("busybox")
        (self.here / "file").touch()

    def inside(self, script):
        return deb.inside(self.root, {"/build": self.here}, {"PATH": "/bin", "A": "b c"}, script)

    @unittest.skipIf(os.geteuid(), "not root")
    def test_directories_and_environment_and_nothing_is_left(self):
        deb.work(self.inside('ls / /build; echo "$A${HOME-.}"; [ -e /proc/1/stat ] && > /build/made'),
                 self.top / "log", "it")
        self.assertEqual((self.top / "log").read_text(), "/:\nbin\nbuild\nproc\n\n/build:\nfile\nb c.\n")
        self.assertTrue((self.here / "made").is_file())
        self.assertNotIn(str(self.root), deb.MOUNTS.read_text())
        with self.assertRaises(ToolError):
            deb.work(self.inside("exit 2"), self.top / "log", "it")

    @unittest.skipIf(os.geteuid(), "not root")
    def test_all_that_runs_there_ends_with_it(self):
        ticks = self.here / "ticks"
        p = subprocess.Popen(self.inside("sh -c 'while :; do echo >> /build/ticks; sleep .05; done'; echo"))
        common.wait_until(ticks.exists, 10, "nothing runs")
        p.kill()
        p.wait()
        time.sleep(.3)
        before = ticks.stat().st_size
        time.sleep(.3)
        self.assertEqual(ticks.stat().st_size, before)

    def test_what_is_mounted_there_is_not_removed(self):
        mounts = self.top / "mounts"
        mounts.write_text(f"1 2 0:3 / {self.root}/dev rw - tmpfs none rw\n")
        with mock.patch.object(deb, "MOUNTS", mounts):
            with self.assertRaisesRegex(ToolError, "chroot/dev is mounted; unmount it first"):
                deb.remove(self.root)
            self.assertTrue((self.root / "bin/busybox").is_file())
            mounts.write_text("1 2 0:3 / / rw - tmpfs none rw\n")
            deb.remove(self.root)
        self.assertFalse(self.root.exists())

    def test_it_is_made_from_the_machines_own_sources(self):
        known = ('Acquire::http::Proxy "http://proxy.example";\nAcquire::Languages "xx";\n'
                 'Acquire::Check-Valid-Until "false";\nAPT::Color "1";\n')
        called = []

        def mmdebstrap(cmd, log, what, env):
            called.extend(cmd)
            (self.top / "chroot").mkdir()
        with mock.patch.object(deb, "work", mmdebstrap), mock.patch.object(deb, "run", return_value=known), \
                mock.patch.object(base, "own_sources", return_value={"a.list": "deb http://one.example toy main\n"}), \
                mock.patch.object(base, "codename", return_value="toy"):
            self.assertEqual(deb.make_chroot(self.package, self.top), self.root)
        self.assertEqual(called[-3:], ["toy", self.root, self.top / "apt/a.list"])
        self.assertEqual((self.top / "apt/a.list").read_text(), "deb http://one.example toy main\n")
        self.assertEqual((self.top / "apt/reach").read_text(),
                         'Acquire::http::Proxy "http://proxy.example";\nAcquire::Check-Valid-Until "false";\n')
        self.assertEqual(sorted(p.name for p in self.root.iterdir()), ["build", "ccache"])


class Collect(Directory):
    def make(self, *names, version=VERSION):
        for name in names:
            tree = self.top / "deb" / name
            (tree / "DEBIAN").mkdir(parents=True)
            (tree / "DEBIAN/control").write_text(f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
                                                 "Maintainer: Toy <toy@list.example>\nDescription: toy\n")
            process.run(["dpkg-deb", "--build", tree, self.package.top / f"{name}_7.2_amd64.deb"])

    def setUp(self):
        super().setUp()
        self.old = self.top / "old_1.deb"
        self.old.touch()

    def test_all_are_there(self):
        self.make(*deb.PACKAGES)
        found = deb.collect(self.package, self.top)
        self.assertEqual(sorted(self.top.glob("*.deb")), found)
        self.assertEqual([p.name for p in found], sorted(f"{p}_7.2_amd64.deb" for p in deb.PACKAGES))

    def test_says_no_and_older_ones_stay(self):
        for names, version, said in [(["qemu-utils"], "1:2", "its version is 1:2, not 1:7.2"),
                                     (["qemu-utils"], VERSION, "it made qemu-utils; wanted: qemu-block-extra, "),
                                     ([*deb.PACKAGES, "qemu-user"], VERSION, "qemu-user, qemu-utils; wanted: "),
                                     ([], VERSION, "it made nothing")]:
            with self.subTest(said):
                self.make(*names, version=version)
                with self.assertRaisesRegex(ToolError, said):
                    deb.collect(self.package, self.top)
                self.assertTrue(self.old.is_file())
            shutil.rmtree(self.top / "deb", ignore_errors=True)
            for path in self.package.top.glob("*.deb"):
                path.unlink()


class Page(unittest.TestCase):
    def test_the_command_that_brings_debians_back_names_all_packages(self):
        for name in ("README.md", "docs/distributors.md"):
            self.assertTrue(deb.BACK in (common.ROOT / name).read_text(), name)
        names = process.run(["bash", "-c", f"printf '%s\\n' {deb.BACK.split()[-1]}"]).split()
        self.assertEqual(names, [f"{p}/bookworm" for p in deb.PACKAGES])


if __name__ == "__main__":
    unittest.main()
