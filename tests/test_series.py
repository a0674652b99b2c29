# SPDX-License-Identifier: GPL-2.0-or-later
"""series.py on a toy repository: every check has a case in which it says no."""

import contextlib
import dataclasses
import email
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from dctools import common
from dctools import series
import source       # noqa: E402
from dctools.common import ToolError, git  # noqa: E402

REAL_TREE = common.settings.build / "v7.2/tree"      # before setUp() points it elsewhere

CHECKPATCH = r"""
use strict;
my $bad = 0;
foreach my $f (@ARGV) {
    next if $f =~ /^-/;
    open(my $in, '<', $f) or die;
    while (<$in>) {
        if (/^\+.*STYLE/) { print "$f:$.: ERROR: bad style\n"; $bad = 1; }
        if (/^new file/) { print "$f:$.: WARNING: added, moved or deleted file(s), does MAINTAINERS need updating?\n"; }
    }
}
exit $bad;
"""
GET_MAINTAINER = r"""
open(my $in, '<', $ARGV[-1]) or die;
my $text = join('', <$in>);
print "Tést Maintainer <maintainer\@list.example>\n" if $text =~ m{^diff --git a/util}m;
print "qemu-toy\@list.example\n";
"""
BASE = {
    "VERSION": "7.2.22\n",
    "MAINTAINERS": "Toy\nF: util/\nF: include/*.h\n\nTHE REST\nF: *\nF: */\n",
    "scripts/checkpatch.pl": CHECKPATCH,
    "scripts/get_maintainer.pl": GET_MAINTAINER,
    "scripts/git.orderfile": "*.h\n*.c\n",
    "util/one.c": "".join(f"line {n}\n" for n in range(40)) + "\n",
    "block/two.c": "".join(f"int two{n};\n" for n in range(40)),
}
SINK = '''
import asyncio, sys
from aiosmtpd.smtp import SMTP
class Sink:
    n = 0
    async def handle_DATA(self, server, session, envelope):
        open(f"{sys.argv[1]}/{Sink.n:04}.eml", "wb").write(envelope.content)
        Sink.n += 1
        return "250 OK"
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Sink()), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
asyncio.run(main())
'''


def write(directory, files):
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


class Toy(unittest.TestCase):
    """A base, and a series of three patches that is exported and in order."""

    @classmethod
    def setUpClass(cls):
        cls.template = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.template)
        with mock.patch.object(common, "ROOT", cls.template), mock.patch.object(common.settings, "build", cls.template / "build"), \
                mock.patch.dict(os.environ, {"STACK": "toy", "FORCE": ""}):
            top = common.stack_dir("toy")
            write(common.patch_dir("toy"), {"pin.json": "{}"})
            source.init_repo(top / "tree")
            write(top / "src", BASE)
            cls.commit = source.commit_directory(top / "tree", top / "src", "base")
            write(top / "src", {"block/two.c": BASE["block/two.c"].replace("two5;", "zwei5;")})
            cls.debian = source.commit_directory(top / "tree", top / "src", "debian", cls.commit)
            shutil.rmtree(top / "src")
            git(top / "tree", "update-ref", "refs/tool/debian", cls.debian)
            tree = git(top / "tree", "rev-parse", f"{cls.commit}^{{tree}}").strip()
            pin = {"package": "toy", "version": "1", "files": {}, "diffs": None, "upstream": "7.2.22",
                   "tag": "v7.2.22", "base_tree": tree, "series_tree": ""}
            write(common.patch_dir("toy"), {"pin.json": json.dumps(pin)})
            cls.base = source.Base("toy", cls.commit, tree, "7.2.22", True, "", cls.debian)
            with mock.patch.object(source, "base", lambda stack: cls.base), \
                    contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                series.tree()
                cls.add(top / "tree", "util/one: first thing", {"util/one.c": BASE["util/one.c"] + "end\n"})
                cls.add(top / "tree", "[second] util/zwölf: thing", {"util/new.c": "int new;\n", "util/new.h": "\n"})
                cls.add(top / "tree", "block/two: third thing",
                        {"block/two.c": BASE["block/two.c"].replace("two30;", "three;")})
                series.export()
                cover = common.patch_dir("toy") / series.COVER
                cover.write_text(cover.read_text().replace("*** SUBJECT HERE ***", "toy: ändert things").replace(
                    "*** BLURB HERE ***", "What it is for.\n\n    a table\n\nAnd an end."))
                series.export()

    def setUp(self):
        self.top = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.top)
        shutil.copytree(self.template, self.top, dirs_exist_ok=True, symlinks=True)
        patches = [mock.patch.object(common, "ROOT", self.top), mock.patch.object(common.settings, "build", self.top / "build"),
                   mock.patch.object(source, "base", lambda stack: self.base)]
        for p in patches:
            p.start()
            self.addCleanup(p.stop)
        env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") and k != "EMAIL"}
        env |= {"HOME": str(self.top), "STACK": "toy", "FORCE": "", "MAIL_SMTP": "", "XDG_CONFIG_HOME": ""}
        p = mock.patch.dict(os.environ, env, clear=True)
        p.start()
        self.addCleanup(p.stop)
        self.repo, self.dir = common.stack_dir("toy") / "tree", common.patch_dir("toy")
        self.out = io.StringIO()

    @staticmethod
    def add(repo, subject, files, body="Why it is so.", date="2001-02-03T04:05:06+0700"):
        write(repo, files)
        git(repo, "add", "-A")
        git(repo, "commit", "-q", "-m", f"{subject}\n\n{body}".strip(), env={"GIT_AUTHOR_DATE": date})

    def run_tool(self, function):
        with contextlib.redirect_stdout(self.out), contextlib.redirect_stderr(self.out):
            return function()

    def refuses(self, function, *texts):
        with self.assertRaises(ToolError) as e:
            self.run_tool(function)
        for text in texts:
            self.assertIn(text, str(e.exception))
        self.assertNotIn("\n", str(e.exception))

    def patches(self):
        return {p.name: p.read_bytes() for p in self.dir.glob("*.patch")}

    def change(self, number, old, new):
        path, = self.dir.glob(f"{number:04}-*.patch")
        text = path.read_text()
        self.assertIn(old, text)
        path.write_text(text.replace(old, new))

    def series_tree(self):
        return json.loads((self.dir / "pin.json").read_text())["series_tree"]


class TestExport(Toy):
    def test_import_then_export_gives_the_same_bytes(self):
        before = self.patches()
        self.assertEqual(len(before), 4)
        shutil.rmtree(common.settings.build / "toy")
        shutil.copytree(self.template / "build/toy", common.settings.build / "toy", ignore=shutil.ignore_patterns("series.json"))
        git(self.repo, "reset", "-q", "--hard", "base")
        self.run_tool(series.tree)
        self.assertEqual(git(self.repo, "rev-parse", "series^{tree}").strip(), self.series_tree())
        self.run_tool(series.export)
        self.assertEqual(before, self.patches())

    def test_configuration_of_the_person_changes_nothing(self):
        before = self.patches()
        (self.top / ".gitconfig").write_text(
            "[format]\nsignature=x\nthread=true\n[diff]\nnoprefix=true\nalgorithm=patience\n[core]\nautocrlf=true\n"
            f"hooksPath={self.top}/hooks\n[diff]\norderFile={self.top}/nowhere\n")
        git(self.repo, "config", "diff.noprefix", "true")
        git(self.repo, "config", "format.signature", "x")
        git(self.repo, "config", "format.useAutoBase", "true")
        git(self.repo, "config", "diff.context", "9")
        git(self.repo, "config", "diff.suppressBlankEmpty", "true")
        for hooks in (self.top / "hooks", self.repo / ".git/hooks"):
            write(hooks, {"pre-applypatch": "#!/bin/sh\nexit 1\n"})
            (hooks / "pre-applypatch").chmod(0o755)
        self.run_tool(series.export)
        git(self.repo, "reset", "-q", "--hard", "base")
        common.settings.force = True
        (common.stack_dir("toy") / "series.json").unlink()
        self.run_tool(series.tree)
        self.run_tool(series.export)
        self.assertEqual(before, self.patches())

    def test_dates_are_kept(self):
        for data in self.patches().values():
            self.assertRegex(data.decode(), "\nDate: (Sat, 3 Feb 2001 04:05:06 \\+0700|Fri, 2 Feb 2001 21:05:06 \\+0000)\n")

    def test_commits_of_an_import_are_the_same_everywhere(self):
        heads = set()
        for _ in range(2):
            with series.worktree(self.repo, self.top / "work", "base") as work:
                heads.add(series.am(work, series.patch_files(self.dir)))
        self.assertEqual(len(heads), 1)
        dates = git(self.repo, "log", "--format=%at %ct", heads.pop(), "^base").split()
        self.assertEqual(dates[::2], dates[1::2])

    def test_cover_letter_keeps_what_is_written(self):
        self.add(self.repo, "util/one: fourth", {"util/one.c": "short\n"})
        self.run_tool(series.export)
        cover = (self.dir / series.COVER).read_text()
        self.assertIn("What it is for.\n\n    a table\n\nAnd an end.\n\ndefer-call series (4):\n", cover)
        self.assertIn("PATCH 0/4", cover)
        self.assertEqual(series.read_cover(self.dir / series.COVER).subject, "toy: ändert things")

    def test_cover_letter_without_short_log(self):
        (self.dir / series.COVER).write_text("From: x\nSubject: [PATCH 0/3] toy: x\n\nText only.\n")
        self.refuses(series.export, "no short log")

    def test_numbers_and_names_follow_the_commits(self):
        before = self.patches()
        git(self.repo, "reset", "-q", "--hard", "series~2")
        self.run_tool(series.export)
        self.assertEqual(sorted(self.patches()), ["0000-cover-letter.patch", "0001-util-one-first-thing.patch"])
        self.assertIn(b"[PATCH 1/1]", self.patches()["0001-util-one-first-thing.patch"])
        self.assertNotEqual(before, self.patches())

    def test_refuses_dirty_tree(self):
        before = self.patches()
        (self.repo / "util/one.c").write_text("mine\n")
        self.refuses(series.export, "not committed")
        self.assertEqual(before, self.patches())
        self.assertEqual((self.repo / "util/one.c").read_text(), "mine\n")

    def test_refuses_wrong_base(self):
        git(self.repo, "checkout", "-q", "--orphan", "other")
        git(self.repo, "commit", "-q", "-m", "else")
        git(self.repo, "checkout", "-q", "-B", "series")
        self.refuses(series.export, "not based on the tag base")

    def test_refuses_moved_tag(self):
        git(self.repo, "tag", "-f", "base", "series~1")
        self.refuses(series.export, "tag base")

    def test_refuses_merge(self):
        git(self.repo, "checkout", "-q", "-b", "side", "base")
        self.add(self.repo, "side: x", {"side.c": "\n"})
        git(self.repo, "checkout", "-q", "series")
        git(self.repo, "merge", "-q", "--no-ff", "-m", "merge", "side")
        self.refuses(series.export, "merge")

    def test_refuses_another_branch(self):
        git(self.repo, "checkout", "-q", "-b", "side", "base")
        self.refuses(series.export, "another commit than the branch series")

    def test_refuses_base_that_is_not_pinned(self):
        self.base = dataclasses.replace(self.base, pinned=False)
        self.refuses(series.export, "not the pinned one")

    def test_refuses_to_overwrite_changed_patches(self):
        self.change(1, "Why it is so.", "Changed by hand.")
        before = self.patches()
        self.add(self.repo, "util/one: fourth", {"util/one.c": "short\n"})
        self.refuses(series.export, "FORCE=1")
        self.assertEqual(before, self.patches())
        common.settings.force = True
        self.run_tool(series.export)
        self.assertEqual(len(self.patches()), 5)

    def test_nothing_to_export(self):
        git(self.repo, "reset", "-q", "--hard", "base")
        before = self.patches()
        self.refuses(series.export, "nothing to export")
        self.assertEqual(before, self.patches())


class TestTree(Toy):
    def test_second_time_does_nothing(self):
        before = git(self.repo, "rev-parse", "HEAD")
        with mock.patch.object(series, "am", side_effect=AssertionError):
            self.run_tool(series.tree)
        self.assertEqual(before, git(self.repo, "rev-parse", "HEAD"))

    def test_follows_the_patches(self):
        self.change(1, "Why it is so.", "Changed by hand.")
        self.run_tool(series.tree)
        self.assertIn("Changed by hand.", git(self.repo, "log", "base..series"))

    def test_no_patches(self):
        for p in self.dir.glob("*.patch"):
            p.unlink()
        self.run_tool(series.tree)
        self.assertEqual(git(self.repo, "rev-parse", "series").strip(), self.commit)

    def test_keeps_commits_not_exported(self):
        self.add(self.repo, "util/one: mine", {"util/one.c": "mine\n"})
        mine = git(self.repo, "rev-parse", "HEAD")
        self.run_tool(series.tree)
        self.assertIn("has commits that", self.out.getvalue())
        self.change(1, "Why it is so.", "Changed by hand.")
        for lost in (False, True):
            if lost:
                (common.stack_dir("toy") / "series.json").unlink()
            self.refuses(series.tree, "not exported", "make export")
            self.assertEqual(mine, git(self.repo, "rev-parse", "HEAD"))

    def test_keeps_changes_not_committed(self):
        self.change(1, "Why it is so.", "Changed by hand.")
        (self.repo / "util/one.c").write_text("mine\n")
        self.refuses(series.tree, "not committed")
        self.assertEqual((self.repo / "util/one.c").read_text(), "mine\n")
        common.settings.force = True
        self.run_tool(series.tree)
        self.assertEqual(git(self.repo, "status", "--porcelain"), "")

    def test_interrupted_half_way(self):
        self.change(1, "Why it is so.", "Changed by hand.")

        def stop(*args, **kw):
            if args[1] == "checkout":
                (self.repo / "util/one.c").write_text("half\n")
                raise KeyboardInterrupt
            return git(*args, **kw)

        with mock.patch.object(series, "git", stop), self.assertRaises(KeyboardInterrupt):
            self.run_tool(series.tree)
        self.run_tool(series.tree)
        self.assertEqual(git(self.repo, "status", "--porcelain"), "")
        self.assertIn("Changed by hand.", git(self.repo, "log", "base..series"))

    def test_patch_that_does_not_apply(self):
        self.change(3, "-int two30;", "-int two99;")
        before = git(self.repo, "rev-parse", "HEAD")
        self.refuses(series.tree, "0003-block-two-third-thing.patch does not apply", "block/two.c")
        self.assertEqual(before, git(self.repo, "rev-parse", "HEAD"))
        self.assertEqual(git(self.repo, "status", "--porcelain"), "")
        self.assertNotIn("am", [p.name for p in common.stack_dir("toy").iterdir()])

    def test_no_fuzz(self):
        self.change(3, " int two28;", " int two99;")        # context only
        self.refuses(series.tree, "does not apply")

    def test_no_3way_merge(self):
        text = BASE["block/two.c"]
        self.add(self.repo, "block/two: fourth", {"block/two.c": (text := text.replace("two30;", "x;").replace("two10;", "x;"))})
        self.add(self.repo, "block/two: fifth", {"block/two.c": text.replace("two13;", "y;")})
        self.run_tool(series.export)
        next(self.dir.glob("0004-*")).unlink()
        self.refuses(series.tree, "0005-block-two-fifth.patch does not apply")

    def test_patch_that_is_no_mail(self):
        path, = self.dir.glob("0002-*")
        path.write_text("nothing\n")
        self.refuses(series.tree, path.name)

    def test_bad_stack(self):
        for name in ("v9.9", "../toy"):
            common.settings.stack = name
            self.refuses(series.tree, f"STACK={name}: no such stack; there is: toy")


class TestCheck(Toy):
    def wrong(self, **kw):
        """{name of a check: what it found}."""
        return dict(series.run_checks(self.dir, self.repo, self.commit, common.stack_dir("toy") / "check",
                                      series_tree=kw.get("series_tree", self.series_tree()), debian=self.debian))

    def says_no(self, name, text, *others):
        """The check says no with that text, and none but it and the others do."""
        found = self.wrong()
        failed = [n for n, w in found.items() if w]
        this = [n for n in failed if n.startswith(name)]
        self.assertTrue(this, f"{name} said yes; {found}")
        self.assertIn(text, "\n".join(found[this[0]]))
        rest = [n for n in failed if n not in this and not n.startswith(others)] if others else []
        self.assertEqual(rest, [])

    def test_hooks_for_tests_may_lie_beside(self):
        (self.dir / "hooks.diff").write_text("x\n")
        self.test_good_series()

    def test_good_series(self):
        found = self.wrong()
        self.assertEqual({n: w for n, w in found.items() if w}, {})
        self.assertEqual(len(found), 12)
        self.assertEqual(self.run_tool(series.check), 0)
        self.assertEqual(self.out.getvalue().count("PASS"), 12)
        self.assertFalse((common.stack_dir("toy") / "check").exists())

    def test_exit_status_and_lines(self):
        self.change(1, "Why it is so.", "Why it is so. ")
        self.assertEqual(self.run_tool(series.check), 1)
        self.assertIn("FAIL  no trailing white space\n      0001", self.out.getvalue())

    def test_gap(self):
        next(self.dir.glob("0002-*")).unlink()
        self.says_no("files", "0002: no patch has this number")

    def test_number_twice(self):
        path, = self.dir.glob("0002-*")
        shutil.copy(path, self.dir / "0002-again.patch")
        self.says_no("files", "0002: more than one")

    def test_number_in_subject(self):
        self.change(1, "[PATCH 1/3]", "[PATCH 1/4]")
        self.says_no("files", "not [PATCH 1/3]")

    def test_other_file(self):
        for name in ("0001-x.patch.orig", "1-x.patch"):
            (self.dir / name).write_text("x\n")
            self.says_no("files", f"{name}: neither a patch")
            (self.dir / name).unlink()

    def test_no_cover_letter(self):
        (self.dir / series.COVER).unlink()
        self.says_no("files", "0000-cover-letter.patch: missing")

    def test_no_patch(self):
        for p in self.dir.glob("*.patch"):
            p.unlink()
        self.assertIn(["no patch at all"], self.wrong().values())

    def test_cover_letter_without_short_log(self):
        (self.dir / series.COVER).write_text("From: x\nSubject: [PATCH 0/3] toy: x\n\nText only.\n")
        self.says_no("the cover letter", "no short log")

    def test_same_subject(self):
        self.change(3, "block/two: third thing", "util/one: first thing")
        self.says_no("subjects", "same subject as 0001")

    def test_subject_form(self):
        self.change(3, "block/two: third thing", "third thing")
        self.says_no("subjects", "part: what")

    def test_cover_subject_not_written(self):
        (self.dir / series.COVER).unlink()
        self.run_tool(series.export)
        self.says_no("subjects", "0000-cover-letter.patch", "descriptions")
        self.says_no("descriptions", "0000-cover-letter.patch: no description", "subjects")

    def test_empty_description(self):
        self.change(2, "Why it is so.\n", "")
        self.says_no("descriptions", "0002")

    def test_wide_line(self):
        self.change(1, "Why it is so.", "word " * 15 + "ab")
        self.says_no("descriptions", "over 76 columns")

    def test_lines_that_may_be_wide(self):
        for text in ["  a table" + " x" * 50, "> quoted" + " x" * 50, "see https://list.example/" + "a b" * 30,
                     "a" * 90, "Fixes: 0123" + " x" * 50]:
            self.change(1, "Why it is so.", f"Why it is so.\n{text}")
        self.assertEqual(series.check_descriptions([series.read_patch(p) for p in series.patch_files(self.dir)]), [])

    def test_white_space_in_code(self):
        self.change(1, "+end\n", "+end \n")
        self.says_no("no trailing", "0001")

    def test_foreign_sender(self):
        self.change(1, "From: defer-call series <noreply@localhost>", "From: A B <a@list.example>")
        self.says_no("From", "A B")

    def test_sign_off_and_other_names(self):
        for line in ["Signed-off-by: A B <a@b.example>", "Reviewed-by: A", "Cc: x", "From: A B", "ask a@b.example",
                     "Cc: qemu-stable@nongnu.org, a@b.example"]:
            with self.subTest(line):
                path, = self.dir.glob("0001-*")
                old = path.read_text()
                self.change(1, "Why it is so.", f"Why it is so.\n\n{line}")
                self.says_no("From", line)
                path.write_text(old)

    def test_stable_is_no_name(self):
        self.change(1, "Why it is so.", "Why it is so.\n\nCc: qemu-stable@nongnu.org")
        self.assertEqual(series.check_identity([series.read_patch(p) for p in series.patch_files(self.dir)]), [])

    def test_paths_and_registries(self):
        for where, line in [("text", "see /home/me/x"), ("text", "in /tmp/x"), ("text", f"in {self.top}/x"),
                            ("text", "from https://mirror.site.example/x"), ("code", "open(\"/root/x\")")]:
            with self.subTest(line):
                path, = self.dir.glob("0001-*")
                old = path.read_text()
                self.change(1, "Why it is so." if where == "text" else "+end\n",
                            f"Why it is so.\n{line}" if where == "text" else f"+{line}\n")
                self.says_no("no path", line)
                path.write_text(old)

    def test_does_not_apply(self):
        self.change(3, "-int two30;", "-int two99;")
        self.says_no("plain git am", "0003-block-two-third-thing.patch does not apply")

    def test_tree_hash(self):
        found = self.wrong(series_tree="0" * 40)
        self.assertIn("pin.json says 0000", found["tree hash as in pin.json"][0])

    def test_change_of_code_is_seen_by_the_tree_hash(self):
        self.change(1, "+end\n", "+END\n")
        self.says_no("tree hash", "pin.json")

    def test_export_would_differ(self):
        self.change(1, "Subject: [PATCH 1/3] util", "Subject: [PATCH 1/3]  util")
        self.says_no("another export", "0001")

    def test_style(self):
        self.add(self.repo, "util/one: fourth", {"util/one.c": "STYLE\n"})
        self.run_tool(series.export)
        self.says_no("checkpatch", "0004-util-one-fourth.patch:", "none")

    def test_new_file_nobody_maintains(self):
        for name, ok in [("include/x.h", True), ("include/sub/x.h", False), ("hw/x.c", False), ("x.c", False)]:
            git(self.repo, "reset", "-q", "--hard", "series")
            self.assertEqual(series.maintained(self.repo, name), ok, name)
        self.add(self.repo, "hw: fourth", {"hw/x.c": "\n"})
        self.run_tool(series.export)
        self.says_no("checkpatch", "hw/x.c: no section of MAINTAINERS", "none")

    def test_touches_what_debian_changes(self):
        self.add(self.repo, "block/two: fourth", {"block/two.c": BASE["block/two.c"].replace("two6;", "six;")})
        self.run_tool(series.export)
        self.says_no("nothing that Debian", "block/two.c", "none")

    @unittest.skipUnless((REAL_TREE / "scripts/checkpatch.pl").is_file(), "needs QEMU's own scripts: make tree")
    def test_style_with_the_real_script(self):
        def style(text):
            self.add(self.repo, "util/one: last", {"util/one.c": text})
            self.run_tool(series.export)
            return series.check_style(self.repo, base, "series",
                                      [series.read_patch(series.patch_files(self.dir)[-1])])

        # the script looks for these before it takes a directory for QEMU
        for name in ["COPYING", "Makefile", "README.rst"]:
            write(self.repo, {name: ""})
        for name in ["docs", "linux-user", "softmmu"]:
            (self.repo / name).mkdir()
        script = git(REAL_TREE, "show", "base:scripts/checkpatch.pl")
        base = git(self.repo, "commit-tree", "-p", "base", "-m", "x", self.tree_with(script)).strip()
        with mock.patch.object(series, "maintained", lambda *_: True):
            self.assertEqual(style(BASE["util/one.c"] + "int good;\n"), [])
            self.assertIn("ERROR", "\n".join(style(BASE["util/one.c"] + "int f(void)\n{\n\tif(x) y ();\n}\n")))

    def tree_with(self, script):
        env = {"GIT_INDEX_FILE": str(self.top / "index")}
        git(self.repo, "read-tree", "base", env=env)
        (self.top / "script").write_text(script)
        blob = git(self.repo, "hash-object", "-w", str(self.top / "script")).strip()
        git(self.repo, "update-index", "--cacheinfo", f"100644,{blob},scripts/checkpatch.pl", env=env)
        return git(self.repo, "write-tree", env=env).strip()


class TestMail(Toy):
    def me(self, name="Tést Sender", mail="me@home.example"):
        subprocess.run(["git", "config", "--global", "user.name", name], check=True)
        subprocess.run(["git", "config", "--global", "user.email", mail], check=True)

    def test_refuses_without_identity(self):
        self.refuses(series.mail, "git does not know who you are")

    def test_refuses_the_identity_of_the_series(self):
        self.me("Me", common.IDENTITY[1])
        self.refuses(series.mail, "set your own")

    def test_refuses_unwritten_cover_letter(self):
        self.me()
        (self.dir / series.COVER).unlink()
        self.refuses(series.mail, "cover letter is not written")

    def test_refuses_real_servers(self):
        self.me()
        for text in ("mail.site.example:25", "127.0.0.1", "127.0.0.1.site.example:25", "10.0.0.1:25"):
            os.environ["MAIL_SMTP"] = text
            self.refuses(series.mail, f"MAIL_SMTP={text}: only for tests")

    def test_refuses_base_without_lists(self):
        self.me()
        with mock.patch.object(series, "recipients", lambda *_: ([], [])):
            self.refuses(series.mail, "names no mailing list")

    def test_dry_run(self):
        self.me()
        before = self.patches()
        self.run_tool(series.mail)
        self.assertIn("Nothing was sent", self.out.getvalue())
        self.assertEqual(before, self.patches())
        log = (common.stack_dir("toy") / "mail.log").read_text()
        self.assertEqual(log.count("Dry-OK"), 4)
        self.assertEqual(log.count("RCPT TO:<qemu-toy@list.example>"), 4)
        self.assertEqual(log.count("RCPT TO:<maintainer@list.example>"), 3)     # cover, 1, 2; not 3
        self.assertNotIn(common.IDENTITY[1], git(self.repo, "log", "--format=%ae %ce %B", "base..mail"))

    def test_what_is_sent_applies_and_is_the_same_tree(self):
        self.me()
        box = self.top / "box"
        box.mkdir()
        with subprocess.Popen(["/usr/bin/python3", "-c", SINK, box], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as sink:
            try:
                os.environ["MAIL_SMTP"] = f"127.0.0.1:{sink.stdout.readline().strip()}"
                self.run_tool(series.mail)
            finally:
                sink.stdin.close()
        mails = sorted(box.glob("*.eml"))
        self.assertEqual(len(mails), 4)
        for path in mails:
            m = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            self.assertEqual(m["from"], "Tést Sender <me@home.example>")
            text = m.get_content()
            if path != mails[0]:
                self.assertIn("Signed-off-by: Tést Sender <me@home.example>\n---\n", text.replace("\r", ""))
                self.assertTrue(m["in-reply-to"])
            self.assertNotIn(common.IDENTITY[1], text)
        with series.worktree(self.repo, self.top / "am", "base") as work:
            # as a maintainer does: no --keep-cr, no option at all
            git(work, "am", "-q", *map(str, mails[1:]))
            self.assertEqual(git(work, "rev-parse", "HEAD^{tree}").strip(), self.series_tree())
            self.assertEqual(git(work, "log", "-1", "--format=%an %ae").strip(), "Tést Sender me@home.example")


if __name__ == "__main__":
    unittest.main()
