# SPDX-License-Identifier: GPL-2.0-or-later
"""quilt.py on the toy repository, as a toy Debian source package."""

import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest
from unittest import mock

from test_series import BASE, Toy, write

from dctools import base
from dctools import common
from dctools import quilt
from dctools import series

VERSION = "1:7.2.22+ds-3"
DEBIAN = {
    "control": "Source: toy\nMaintainer: Toy <toy@list.example>\nStandards-Version: 4.6.2\n\n"
               "Package: toy\nArchitecture: all\nDescription: toy\n",
    "changelog": f"toy ({VERSION}) unstable; urgency=medium\n\n  * Toy.\n\n"
                 " -- Toy <toy@list.example>  Thu, 01 Feb 2001 04:05:06 +0000\n",
    "rules": "#!/usr/bin/make -f\n",
    "source/format": "3.0 (quilt)\n",
    "patches/series": "own.diff\n#off.diff",
    "patches/own.diff": "--- a/block/two.c\n+++ b/block/two.c\n@@ -6,2 +6,3 @@\n int two5;\n+int own;\n int two6;\n",
}


def sh(*cmd, cwd):
    subprocess.run(cmd, cwd=cwd, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


class TestQuilt(Toy):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.files = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.files)
        write(cls.files / "toy", BASE)
        sh("tar", "-czf", "toy_7.2.22+ds.orig.tar.gz", "toy", cwd=cls.files)
        write(cls.files / "toy/debian", DEBIAN)
        sh("dpkg-source", "--build", "toy", cwd=cls.files)
        shutil.rmtree(cls.files / "toy")

    def setUp(self):
        super().setUp()
        self.pin(version=VERSION)
        p = mock.patch.object(base, "download", lambda pin, apt: (self.files, VERSION))
        p.start()
        self.addCleanup(p.stop)
        self.made = common.stack_dir("toy") / "quilt"
        self.tree = self.made / "toy-7.2.22+ds"

    def names(self):
        return (self.tree / "debian/patches/series").read_text().splitlines()

    def test_what_is_made_has_the_series_in_order(self):
        self.run_tool(quilt.source_package)
        self.assertEqual(self.names(), ["own.diff", "#off.diff", *(
            f"defer-call/{t.name}/{p.name}" for t in series.read_topics("toy") for p in t.patches())])
        self.assertIn("toy 1:7.2.22+ds-3+defercall1, 4 patches of 1-one 2-two 3-three", self.out.getvalue())
        log = (self.tree / "debian/changelog").read_text()
        self.assertTrue(log.startswith(f"toy ({VERSION}+defercall1) UNRELEASED; urgency=medium\n\n"
                                       "  * d/patches/defer-call/1-one: 2 patches\n"))
        self.assertIn("\n -- defer-call series <noreply@localhost>  Sat, 03 Feb 2001 ", log)
        self.assertTrue(log.endswith(f"\n\n{DEBIAN['changelog']}"))
        # and what dpkg-source makes of that
        sh("dpkg-source", "-x", self.made / "toy_7.2.22+ds-3+defercall1.dsc", "again", cwd=self.made)
        for name in ("util/one.c", "util/new.c", "util/new.h"):
            self.assertEqual((self.made / "again" / name).read_text(), (self.repo / name).read_text())
        self.assertEqual((self.made / "again/block/two.c").read_text(),
                         (self.repo / "block/two.c").read_text().replace("two5;\n", "two5;\nint own;\n"))
        self.assertEqual(quilt.contents(self.made / "again"), quilt.contents(self.tree))

    def test_header(self):
        self.change("1-one/0002", "Why it is so.", "Why it\nis so.\n\nÄnd more.")
        subject, date, text = quilt.with_header(self.path("1-one/0002"))
        self.assertEqual(subject, "[second] util/zwölf: thing")
        header, _, diff = text.decode().partition("\n\n")
        self.assertEqual(header, "Description: [second] util/zwölf: thing\n Why it\n is so.\n .\n Änd more.\n"
                                 "Author: defer-call series <noreply@localhost>\nForwarded: no\n"
                                 f"Last-Update: {date:%Y-%m-%d}")
        self.assertTrue(diff.startswith("diff --git a/util/new.h b/util/new.h\n"))
        self.assertTrue(self.path("1-one/0002").read_text().endswith(diff))

    def test_one_topic_and_what_it_needs(self):
        common.settings.topic = "3-three"
        self.run_tool(quilt.source_package)
        self.assertEqual([n.split("/")[1] for n in self.names() if "/" in n], ["1-one", "1-one", "3-three"])
        common.settings.topic = "3"
        self.refuses(quilt.source_package, "TOPIC=3: no such topic; there is: 1-one, 2-two, 3-three")

    def test_a_patch_that_does_not_apply_is_named(self):
        for old, new in (" int two27;", " int zwei27;"), ("\n@@ ", "\n@@@ "):
            with self.subTest(new):
                before = self.path("2-two/0001").read_text()
                self.change("2-two/0001", old, new)
                self.refuses(quilt.source_package, '"block/two: third thing" (defer-call/2-two/0001-', "does not apply")
                self.path("2-two/0001").write_text(before)

    def test_a_patch_that_leaves_something_behind(self):
        with mock.patch.object(quilt, "contents", side_effect=[{"a": 1, "b": 2}, {"a": 1, "b": 3}]):
            self.refuses(quilt.source_package, "1 files are not as they were: b")

    def test_refuses_what_is_no_patch(self):
        self.change("1-one/0001", "Date: ", "Day: ")
        self.refuses(quilt.source_package, "1-one/0001-", "no mail as git format-patch writes it")
        with mock.patch.object(common.settings, "qemu_src", "/x"):
            self.refuses(quilt.source_package, "QEMU_SRC= is no source package")

    def test_configuration_of_the_person_changes_nothing(self):
        (self.top / ".quiltrc").write_text("QUILT_PATCHES=elsewhere\n")
        self.run_tool(quilt.source_package)

    def test_the_archive_has_moved_on(self):
        self.pin(version="1:7.2.21+ds-1")
        self.run_tool(quilt.source_package)
        self.assertIn(f"NOT THE PINNED PACKAGE: the archive has moved on to toy {VERSION}", self.out.getvalue())


class Page(unittest.TestCase):
    def test_it_has_the_topics_of_all_stacks(self):
        text = (common.ROOT / "docs/distributors.md").read_text()
        topics = {str(p.relative_to(common.ROOT)) for p in common.ROOT.glob(f"patches/*/*/{series.COVER}")}
        self.assertEqual(set(re.findall(r"\(\.\./(patches/[^)]+)\)", text)), topics)


if __name__ == "__main__":
    unittest.main()
