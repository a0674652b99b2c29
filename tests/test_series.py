# SPDX-License-Identifier: GPL-2.0-or-later
"""series.py on a toy repository, which test_lint.py and test_mail.py use, too."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from dctools import common
from dctools import series
from dctools import base as module
from dctools.common import ToolError, git  # noqa: E402

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
TOPICS = [{"name": "1-one", "needs": []}, {"name": "2-two", "needs": []}, {"name": "3-three", "needs": ["1-one"]}]
COVERS = {
    "1-one": ("toy: ändert things", "What it is for.\n\n    a table\n\nIt applies to v7.2.22."),
    "2-two": ("toy: another", "It applies to\nv7.2.22."),
    "3-three": ("toy: third", 'Why.\n\nBased-on: the series "toy: ändert things"'),
}


def write(directory, files):
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


class Toy(unittest.TestCase):
    """A base, and three topics of four patches in all that are exported and in order."""

    @classmethod
    def setUpClass(cls):
        cls.template = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.template)
        with mock.patch.object(common, "ROOT", cls.template), \
                mock.patch.multiple(common.settings, build=cls.template / "build", stack="toy", force=False, topic=""):
            top = common.stack_dir("toy")
            module.init_repo(top / "tree")
            write(top / "src", BASE)
            cls.commit = module.commit_directory(top / "tree", top / "src", "base")
            write(top / "src", {"block/two.c": BASE["block/two.c"].replace("two5;", "zwei5;")})
            cls.debian = module.commit_directory(top / "tree", top / "src", "debian", cls.commit)
            shutil.rmtree(top / "src")
            git(top / "tree", "update-ref", "refs/tool/debian", cls.debian)
            tree = git(top / "tree", "rev-parse", f"{cls.commit}^{{tree}}").strip()
            pin = {"package": "toy", "version": "1", "files": {}, "diffs": None, "upstream": "7.2.22",
                   "tag": "v7.2.22", "base_tree": tree, "topics": TOPICS, "series_tree": ""}
            write(common.patch_dir("toy"), {"pin.json": json.dumps(pin), **{f"{t}/.keep": "" for t in COVERS}})
            cls.base = module.Base("toy", cls.commit, tree, "7.2.22", True, "", cls.debian)
            with mock.patch.object(module, "base", lambda stack: cls.base), \
                    contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                series.tree()
                cls.add(top / "tree", "util/one: first thing", {"util/one.c": BASE["util/one.c"] + "end\n"})
                cls.add(top / "tree", "[second] util/zwölf: thing", {"util/new.c": "int new;\n", "util/new.h": "\n"})
                git(top / "tree", "branch", "-f", "topic/1-one")
                cls.add(top / "tree", "block/two: third thing",
                        {"block/two.c": BASE["block/two.c"].replace("two30;", "three;")})
                git(top / "tree", "branch", "-f", "topic/2-two")
                cls.add(top / "tree", "util/new: fourth thing", {"util/new.c": "int new;\nint newer;\n"})
                series.export()
                for topic, (subject, text) in COVERS.items():
                    (common.patch_dir("toy") / topic / ".keep").unlink()
                    cover = common.patch_dir("toy") / topic / series.COVER
                    cover.write_text(cover.read_text().replace("*** SUBJECT HERE ***", subject).replace(
                        "*** BLURB HERE ***", text))
                series.export()

    def setUp(self):
        self.top = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.top)
        shutil.copytree(self.template, self.top, dirs_exist_ok=True, symlinks=True)
        patches = [mock.patch.object(common, "ROOT", self.top),
                   mock.patch.multiple(common.settings, build=self.top / "build", stack="toy", force=False, topic=""),
                   mock.patch.object(module, "base", lambda stack: self.base)]
        for p in patches:
            p.start()
            self.addCleanup(p.stop)
        env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") and k != "EMAIL"}
        env |= {"HOME": str(self.top), "XDG_CONFIG_HOME": ""}
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
        return {str(p.relative_to(self.dir)): p.read_bytes() for p in self.dir.glob("*/*.patch")}

    def path(self, name):
        """The file of the patch that begins with `topic/number`."""
        found, = self.dir.glob(f"{name}-*.patch")
        return found

    def read_patches(self):
        return [series.read_patch(p) for t in series.read_topics("toy") for p in t.patches()]

    def change(self, name, old, new):
        path = self.path(name)
        text = path.read_text()
        self.assertIn(old, text)
        path.write_text(text.replace(old, new))

    def pin(self, **changes):
        """pin.json, with these changes written to it."""
        pin = json.loads((self.dir / "pin.json").read_text()) | changes
        (self.dir / "pin.json").write_text(json.dumps(pin))
        return pin

    def series_tree(self):
        return self.pin()["series_tree"]


class TestExport(Toy):
    def test_import_then_export_gives_the_same_bytes(self):
        before = self.patches()
        self.assertEqual(len(before), 7)
        shutil.rmtree(common.settings.build / "toy")
        shutil.copytree(self.template / "build/toy", common.settings.build / "toy",
                        ignore=shutil.ignore_patterns("series.json"))
        for branch in ("topic/1-one", "topic/2-two"):
            git(self.repo, "branch", "-D", branch)
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
            self.assertRegex(data.decode(),
                             "\nDate: (Sat, 3 Feb 2001 04:05:06 \\+0700|Fri, 2 Feb 2001 21:05:06 \\+0000)\n")

    def test_commits_of_an_import_are_the_same_everywhere(self):
        heads = set()
        for _ in range(2):
            with series.worktree(self.repo, self.top / "work", "base") as work:
                heads.add(series.am_topics(work, series.read_topics("toy"))["3-three"])
        self.assertEqual(len(heads), 1)
        dates = git(self.repo, "log", "--format=%at %ct", heads.pop(), "^base").split()
        self.assertEqual(dates[::2], dates[1::2])

    def test_cover_letter_keeps_what_is_written(self):
        self.add(self.repo, "util/one: fourth", {"util/one.c": "short\n"})
        self.run_tool(series.export)
        cover = (self.dir / "3-three" / series.COVER).read_text()
        self.assertIn('Why.\n\nBased-on: the series "toy: ändert things"\n\ndefer-call series (2):\n',
                      cover.replace("=C3=A4", "ä"))
        self.assertIn("PATCH 0/2", cover)
        for topic, (subject, text) in COVERS.items():
            cover = series.read_cover(self.dir / topic / series.COVER)
            self.assertEqual((cover.subject, "\n".join(cover.message)), (subject, text))

    def test_cover_letter_without_short_log(self):
        (self.dir / "1-one" / series.COVER).write_text("From: x\nSubject: [PATCH 0/3] toy: x\n\nText only.\n")
        self.refuses(series.export, "no short log")

    def test_numbers_and_names_follow_the_commits(self):
        self.rebase("drop", "util/one: first thing")
        self.run_tool(series.export)
        self.assertEqual(sorted(self.patches())[:2], ["1-one/0000-cover-letter.patch",
                                                      "1-one/0001-second-util-zw-lf-thing.patch"])
        self.assertIn(b"[PATCH 1/1]", self.patches()["1-one/0001-second-util-zw-lf-thing.patch"])
        self.assertEqual(len(self.patches()), 6)

    def rebase(self, action, subject, *options):
        """git rebase -i, as a person does it: the line of that patch gets another action."""
        editor = f"sed -i 's|^pick \\([0-9a-f]*\\) {subject}|{action} \\1 {subject}|'"
        git(self.repo, "rebase", "-q", "-i", *options, "base",
            env={"GIT_SEQUENCE_EDITOR": editor, "GIT_EDITOR": "true"})

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
        self.change("1-one/0001", "Why it is so.", "Changed by hand.")
        before = self.patches()
        self.add(self.repo, "util/one: fourth", {"util/one.c": "short\n"})
        self.refuses(series.export, "FORCE=1")
        self.assertEqual(before, self.patches())
        common.settings.force = True
        self.run_tool(series.export)
        self.assertEqual(len(self.patches()), 8)

    def test_nothing_to_export(self):
        git(self.repo, "reset", "-q", "--hard", "base")
        before = self.patches()
        self.refuses(series.export, "nothing to export")
        self.assertEqual(before, self.patches())


class TestTopics(Toy):
    rebase = TestExport.rebase

    def numbers(self):
        return {name: len([p for p in self.patches() if p.startswith(name)]) - 1 for name in COVERS}

    def test_rebase_takes_the_branches_along(self):
        self.add(self.repo, "fixup! util/one: first thing", {"util/one.c": BASE["util/one.c"] + "THE END\n"}, "")
        self.rebase("pick", "util/one: first thing", "--autosquash")
        self.run_tool(series.export)
        self.assertEqual(self.numbers(), {"1-one": 2, "2-two": 1, "3-three": 1})
        self.assertIn(b"+THE END", self.path("1-one/0001").read_bytes())

    def test_moved_branch_moves_patches(self):
        git(self.repo, "branch", "-f", "topic/1-one", "series~3")
        self.run_tool(series.export)
        self.assertEqual(self.numbers(), {"1-one": 1, "2-two": 2, "3-three": 1})
        self.assertEqual(self.path("2-two/0001").name, "0001-second-util-zw-lf-thing.patch")

    def test_moved_branch_is_work_that_is_not_lost(self):
        git(self.repo, "branch", "-f", "topic/1-one", "series~3")
        self.change("2-two/0001", "Why it is so.", "Changed by hand.")
        self.refuses(series.tree, "branches of topics that are not exported")
        common.settings.force = True
        self.run_tool(series.tree)
        self.assertEqual(git(self.repo, "rev-parse", "topic/1-one"), git(self.repo, "rev-parse", "series~2"))

    def test_new_topic(self):
        self.pin(topics=[*TOPICS, {"name": "4-new", "needs": []}])
        self.refuses(series.tree, "4-new: pin.json names this topic, but there is no such folder")
        git(self.repo, "branch", "topic/3-three")
        self.add(self.repo, "util/one: new", {"util/one.c": "short\n"})
        self.run_tool(series.export)
        self.assertIn("write its subject", self.out.getvalue())
        self.assertEqual(self.path("4-new/0001").name, "0001-util-one-new.patch")
        self.run_tool(series.tree)

    def test_one_topic_is_exported(self):
        before = self.patches()
        git(self.repo, "commit", "-q", "--amend", "-m", "util/new: fourth thing\n\nBetter.")
        common.settings.topic = "2-two"
        self.refuses(series.export, "3-three would change, too")
        self.assertEqual(before, self.patches())
        common.settings.topic = "3-three"
        self.run_tool(series.export)
        self.assertEqual([n for n, b in self.patches().items() if b != before[n]],
                         ["3-three/0001-util-new-fourth-thing.patch"])

    def test_tree_says_where_topics_are(self):
        self.run_tool(series.tree)
        self.assertIn("2-two: 1 patches, ", self.out.getvalue())
        common.settings.topic = "1-one"
        self.out.truncate(0)
        self.run_tool(series.tree)
        self.assertIn("1-one: 2 patches, ", self.out.getvalue())
        self.assertNotIn("2-two", self.out.getvalue())

    def test_no_such_topic(self):
        common.settings.topic = "5"
        for function in (series.tree, series.export):
            self.refuses(function, "TOPIC=5: no such topic; there is: 1-one, 2-two, 3-three")

    def test_folder_that_the_pin_does_not_name(self):
        (self.dir / "4-new").mkdir()
        for function in (series.tree, series.export):
            self.refuses(function, "4-new: pin.json names no such topic")

    def test_topic_without_folder(self):
        shutil.rmtree(self.dir / "2-two")
        self.refuses(series.tree, "2-two: pin.json names this topic, but there is no such folder")

    def test_bad_pins(self):
        for topics, text in [([], "no topics"), ([TOPICS[2]], "3-three needs 1-one, but no topic before it"),
                             ([TOPICS[0], TOPICS[0]], "1-one is there twice"),
                             ([{"name": "../1", "needs": []}], "no name for a folder"),
                             ([{"name": "1-one"}], "what it needs, in a list")]:
            self.pin(topics=topics)
            self.refuses(series.tree, text)

    def test_branch_is_missing(self):
        git(self.repo, "branch", "-D", "topic/2-two")
        self.refuses(series.export, "topic/2-two is not there", "git branch topic/2-two COMMIT")

    def test_branch_is_left_behind(self):
        self.add(self.repo, "fixup! util/one: first thing", {"util/one.c": BASE["util/one.c"] + "THE END\n"}, "")
        self.rebase("pick", "util/one: first thing", "--autosquash", "--no-update-refs")
        self.refuses(series.export, "topic/1-one is no commit between base and series", "git branch -f")

    def test_branches_out_of_order(self):
        git(self.repo, "branch", "-f", "topic/2-two", "series~3")
        self.refuses(series.export, "topic/2-two ends before the topic in front of it")

    def test_topic_without_commit(self):
        git(self.repo, "branch", "-f", "topic/2-two", "topic/1-one")
        self.refuses(series.export, "the topic 2-two has no commit")
        git(self.repo, "branch", "-f", "topic/2-two", "series")
        self.refuses(series.export, "the topic 3-three has no commit")

    def test_branch_of_no_topic(self):
        git(self.repo, "branch", "topic/4-new")
        self.refuses(series.export, "topic/4-new is of no topic")

    def test_what_a_topic_needs(self):
        topics = [series.Topic(n, needs, None) for n, needs in [("a", []), ("b", ["a"]), ("c", []), ("d", ["b"])]]
        self.assertEqual([t.name for t in series.needed(topics, topics[3:])], ["a", "b", "d"])
        self.assertEqual([t.name for t in series.needed(topics, topics[2:3])], ["c"])


class TestTree(Toy):
    def test_second_time_does_nothing(self):
        before = git(self.repo, "rev-parse", "HEAD")
        with mock.patch.object(series, "am", side_effect=AssertionError):
            self.run_tool(series.tree)
        self.assertEqual(before, git(self.repo, "rev-parse", "HEAD"))

    def test_follows_the_patches(self):
        self.change("1-one/0001", "Why it is so.", "Changed by hand.")
        self.run_tool(series.tree)
        self.assertIn("Changed by hand.", git(self.repo, "log", "base..series"))

    def test_no_patches(self):
        for p in self.dir.glob("*/*.patch"):
            p.unlink()
        self.run_tool(series.tree)
        self.assertEqual(git(self.repo, "rev-parse", "series").strip(), self.commit)

    def test_keeps_commits_not_exported(self):
        self.add(self.repo, "util/one: mine", {"util/one.c": "mine\n"})
        mine = git(self.repo, "rev-parse", "HEAD")
        self.run_tool(series.tree)
        self.assertIn("has commits that", self.out.getvalue())
        self.change("1-one/0001", "Why it is so.", "Changed by hand.")
        for lost in (False, True):
            if lost:
                (common.stack_dir("toy") / "series.json").unlink()
            self.refuses(series.tree, "not exported", "make export")
            self.assertEqual(mine, git(self.repo, "rev-parse", "HEAD"))

    def test_keeps_changes_not_committed(self):
        self.change("1-one/0001", "Why it is so.", "Changed by hand.")
        (self.repo / "util/one.c").write_text("mine\n")
        self.refuses(series.tree, "not committed")
        self.assertEqual((self.repo / "util/one.c").read_text(), "mine\n")
        common.settings.force = True
        self.run_tool(series.tree)
        self.assertEqual(git(self.repo, "status", "--porcelain"), "")

    def test_interrupted_half_way(self):
        self.change("1-one/0001", "Why it is so.", "Changed by hand.")

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
        self.change("2-two/0001", "-int two30;", "-int two99;")
        before = git(self.repo, "rev-parse", "HEAD")
        self.refuses(series.tree, "2-two/0001-block-two-third-thing.patch does not apply", "block/two.c")
        self.assertEqual(before, git(self.repo, "rev-parse", "HEAD"))
        self.assertEqual(git(self.repo, "status", "--porcelain"), "")
        self.assertNotIn("am", [p.name for p in common.stack_dir("toy").iterdir()])

    def test_no_fuzz(self):
        self.change("2-two/0001", " int two28;", " int two99;")        # context only
        self.refuses(series.tree, "does not apply")

    def test_no_3way_merge(self):
        text = BASE["block/two.c"].replace("two30;", "three;")
        self.add(self.repo, "block/two: fourth", {
            "block/two.c": (text := text.replace("three;", "x;").replace("two10;", "x;"))})
        self.add(self.repo, "block/two: fifth", {"block/two.c": text.replace("two13;", "y;")})
        self.run_tool(series.export)
        self.path("3-three/0002").unlink()
        self.refuses(series.tree, "3-three/0003-block-two-fifth.patch does not apply")

    def test_patch_that_is_no_mail(self):
        path = self.path("1-one/0002")
        path.write_text("nothing\n")
        self.refuses(series.tree, path.name)

    def test_bad_stack(self):
        for name in ("v9.9", "../toy"):
            common.settings.stack = name
            self.refuses(series.tree, f"STACK={name}: no such stack; there is: toy")


if __name__ == "__main__":
    unittest.main()
