# SPDX-License-Identifier: GPL-2.0-or-later
"""lint.py on a toy repository: every check has a case in which it says no."""

import shutil
import unittest
from unittest import mock

from test_series import BASE, TOPICS, Toy, write

from dctools import common
from dctools import lint
from dctools import series
from dctools.common import git

REAL_TREE = common.settings.build / "v7.2/tree"      # before setUp() points it elsewhere


class TestCheck(Toy):
    def wrong(self, *topics):
        """{name of a check: what it found}."""
        return dict(lint.run_checks("toy", self.base, [t for t in series.pinned_topics("toy") if t.name in topics]))

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
        (self.dir / "tested.json").write_text("{}\n")
        self.test_good_series()

    def test_good_series(self):
        found = self.wrong()
        self.assertEqual({n: w for n, w in found.items() if w}, {})
        self.assertEqual(len(found), 16)
        self.assertEqual(self.run_tool(lint.check), 0)
        self.assertEqual(self.out.getvalue().count("PASS"), 16)
        self.assertFalse((common.stack_dir("toy") / "check").exists())

    def test_exit_status_and_lines(self):
        self.change("1-one/0001", "Why it is so.", "Why it is so. ")
        self.assertEqual(self.run_tool(lint.check), 1)
        self.assertIn("FAIL  no trailing white space\n      1-one/0001", self.out.getvalue())

    def test_gap(self):
        self.add(self.repo, "util/one: fifth", {"util/one.c": "short\n"})
        self.run_tool(series.export)
        self.path("3-three/0001").unlink()
        self.says_no("files", "3-three/0001: no patch has this number")

    def test_number_twice(self):
        shutil.copy(self.path("1-one/0002"), self.dir / "1-one/0002-again.patch")
        self.says_no("files", "1-one/0002: more than one")

    def test_number_in_subject(self):
        self.change("1-one/0001", "[PATCH 1/2]", "[PATCH 1/4]")
        self.says_no("files", "not [PATCH 1/2]")

    def test_other_file(self):
        for name in ("0001-x.patch.orig", "1-x.patch"):
            (self.dir / "2-two" / name).write_text("x\n")
            self.says_no("files", f"2-two/{name}: neither a patch")
            (self.dir / "2-two" / name).unlink()
        (self.dir / "0001-x.patch").write_text("x\n")
        self.says_no("folders", "0001-x.patch: pin.json names no such topic")

    def test_no_cover_letter(self):
        (self.dir / "1-one" / series.COVER).unlink()
        self.says_no("files", "1-one/0000-cover-letter.patch: missing")

    def test_no_patch(self):
        self.path("2-two/0001").unlink()
        self.says_no("files", "2-two/no patch at all")

    def test_cover_letter_without_short_log(self):
        (self.dir / "1-one" / series.COVER).write_text("From: x\nSubject: [PATCH 0/3] toy: x\n\nText only.\n")
        self.says_no("the cover letters", "no short log")

    def test_same_subject(self):
        self.change("2-two/0001", "block/two: third thing", "util/one: first thing")
        self.says_no("subjects", "same subject as 1-one/0001")

    def test_subject_form(self):
        self.change("2-two/0001", "block/two: third thing", "third thing")
        self.says_no("subjects", "part: what")

    def test_cover_subject_not_written(self):
        (self.dir / "1-one" / series.COVER).unlink()
        self.run_tool(series.export)
        self.says_no("subjects", "1-one/0000-cover-letter.patch", "descriptions", "cover letters say")
        self.says_no("descriptions", "1-one/0000-cover-letter.patch: no description", "subjects", "cover letters say")

    def test_empty_description(self):
        self.change("1-one/0002", "Why it is so.\n", "")
        self.says_no("descriptions", "1-one/0002")

    def test_wide_line(self):
        self.change("1-one/0001", "Why it is so.", "word " * 15 + "ab")
        self.says_no("descriptions", "over 76 columns")

    def test_lines_that_may_be_wide(self):
        for text in ["  a table" + " x" * 50, "> quoted" + " x" * 50, "see https://list.example/" + "a b" * 30,
                     "a" * 90, "Fixes: 0123" + " x" * 50]:
            self.change("1-one/0001", "Why it is so.", f"Why it is so.\n{text}")
        self.assertEqual(lint.check_descriptions(self.read_patches()), [])

    def test_white_space_in_code(self):
        self.change("1-one/0001", "+end\n", "+end \n")
        self.says_no("no trailing", "1-one/0001")

    def test_foreign_sender(self):
        self.change("1-one/0001", "From: defer-call series <noreply@localhost>", "From: A B <a@list.example>")
        self.says_no("From", "A B")

    def test_sign_off_and_other_names(self):
        for line in ["Signed-off-by: A B <a@b.example>", "Reviewed-by: A", "Cc: x", "From: A B", "ask a@b.example",
                     "Cc: qemu-stable@nongnu.org, a@b.example"]:
            with self.subTest(line):
                path = self.path("1-one/0001")
                old = path.read_text()
                self.change("1-one/0001", "Why it is so.", f"Why it is so.\n\n{line}")
                self.says_no("From", line)
                path.write_text(old)

    def test_stable_is_no_name(self):
        self.change("1-one/0001", "Why it is so.", "Why it is so.\n\nCc: qemu-stable@nongnu.org")
        self.assertEqual(lint.check_identity(self.read_patches()), [])

    def test_paths_and_registries(self):
        for where, line in [("text", "see /home/me/x"), ("text", "in /tmp/x"), ("text", f"in {self.top}/x"),
                            ("text", "from https://mirror.site.example/x"), ("code", "open(\"/root/x\")")]:
            with self.subTest(line):
                path = self.path("1-one/0001")
                old = path.read_text()
                self.change("1-one/0001", "Why it is so." if where == "text" else "+end\n",
                            f"Why it is so.\n{line}" if where == "text" else f"+{line}\n")
                self.says_no("no path", line)
                path.write_text(old)

    def test_does_not_apply(self):
        self.change("2-two/0001", "-int two30;", "-int two99;")
        self.says_no("plain git am", "2-two/0001-block-two-third-thing.patch does not apply")

    def test_tree_hash(self):
        self.pin(series_tree="0" * 40)
        self.says_no("tree hash", "pin.json says 0000", "none")

    def test_change_of_code_is_seen_by_the_tree_hash(self):
        self.change("1-one/0001", "+end\n", "+END\n")
        self.says_no("tree hash", "pin.json")

    def test_export_would_differ(self):
        self.change("1-one/0001", "Subject: [PATCH 1/2] util", "Subject: [PATCH 1/2]  util")
        self.says_no("another export", "1-one/0001")

    def test_style(self):
        self.add(self.repo, "util/one: fourth", {"util/one.c": "STYLE\n"})
        self.run_tool(series.export)
        self.says_no("checkpatch", "3-three/0002-util-one-fourth.patch:", "none")

    def test_new_file_nobody_maintains(self):
        for name, ok in [("include/x.h", True), ("include/sub/x.h", False), ("hw/x.c", False), ("x.c", False)]:
            git(self.repo, "reset", "-q", "--hard", "series")
            self.assertEqual(lint.maintained(self.repo, name), ok, name)
        self.add(self.repo, "hw: fourth", {"hw/x.c": "\n"})
        self.run_tool(series.export)
        self.says_no("checkpatch", "hw/x.c: no section of MAINTAINERS", "none")

    def test_touches_what_debian_changes(self):
        self.add(self.repo, "block/two: fourth", {
            "block/two.c": BASE["block/two.c"].replace("two30;", "three;").replace("two6;", "six;")})
        self.run_tool(series.export)
        self.says_no("nothing that Debian", "block/two.c", "none")

    @unittest.skipUnless((REAL_TREE / "scripts/checkpatch.pl").is_file(), "needs QEMU's own scripts: make tree")
    def test_style_with_the_real_script(self):
        def style(text):
            self.add(self.repo, "util/one: last", {"util/one.c": text})
            self.run_tool(series.export)
            return lint.check_style(self.repo, base, "series",
                                      [self.read_patches()[-1]])

        # the script looks for these before it takes a directory for QEMU
        for name in ["COPYING", "Makefile", "README.rst"]:
            write(self.repo, {name: ""})
        for name in ["docs", "linux-user", "softmmu"]:
            (self.repo / name).mkdir()
        script = git(REAL_TREE, "show", "base:scripts/checkpatch.pl")
        base = git(self.repo, "commit-tree", "-p", "base", "-m", "x", self.tree_with(script)).strip()
        with mock.patch.object(lint, "maintained", lambda *_: True):
            self.assertEqual(style(BASE["util/one.c"] + "int good;\n"), [])
            self.assertIn("ERROR", "\n".join(style(BASE["util/one.c"] + "int f(void)\n{\n\tif(x) y ();\n}\n")))

    def tree_with(self, script):
        env = {"GIT_INDEX_FILE": str(self.top / "index")}
        git(self.repo, "read-tree", "base", env=env)
        (self.top / "script").write_text(script)
        blob = git(self.repo, "hash-object", "-w", str(self.top / "script")).strip()
        git(self.repo, "update-index", "--cacheinfo", f"100644,{blob},scripts/checkpatch.pl", env=env)
        return git(self.repo, "write-tree", env=env).strip()

    def cover(self, topic, text):
        path = self.dir / topic / series.COVER
        old = series.read_cover(path)
        path.write_text(path.read_text().replace("\n".join(old.message), text))
        self.run_tool(series.export)

    def test_folder_of_no_topic(self):
        (self.dir / "4-new").mkdir()
        self.says_no("folders", "4-new: pin.json names no such topic")

    def test_topic_without_folder(self):
        shutil.rmtree(self.dir / "2-two")
        self.says_no("folders", "2-two: pin.json names this topic, but there is no such folder")

    def test_one_topic(self):
        self.change("2-two/0001", "Why it is so.", "Why it is so. ")
        self.assertEqual([w for w in self.wrong("3-three").values() if w], [])
        self.assertNotIn("tree hash as in pin.json", self.wrong("3-three"))     # 2-two is not below it
        self.assertIn("2-two/0001", self.wrong("2-two")["no trailing white space"][0])
        for topic, status in [("1-one", 0), ("2-two", 1)]:
            common.settings.topic = topic
            self.assertEqual(self.run_tool(lint.check), status)
        common.settings.topic = "2"
        self.refuses(lint.check, "TOPIC=2: no such topic; there is: 1-one, 2-two, 3-three")

    def test_too_many_patches(self):
        for n in range(14):
            self.add(self.repo, f"util/one: {n} more", {"util/one.c": f"{n}\n"})
        self.run_tool(series.export)
        self.assertEqual([w for w in self.wrong().values() if w], [])
        self.add(self.repo, "util/one: too much", {"util/one.c": "short\n"})
        self.run_tool(series.export)
        self.says_no("sizes", "3-three: 16 patches", "none")

    def test_long_cover_letter(self):
        self.cover("2-two", "\n".join(["It applies to v7.2.22.", *["x"] * 79]))
        self.assertEqual([w for w in self.wrong().values() if w], [])
        self.cover("2-two", "\n".join(["It applies to v7.2.22.", *["x"] * 80]))
        self.says_no("sizes", "2-two/0000-cover-letter.patch: 81 lines", "none")

    def test_long_message(self):
        self.change("1-one/0001", "Why it is so.", "\n".join(["x"] * 45))
        self.assertEqual([w for w in self.wrong().values() if w], [])
        self.change("1-one/0001", "\nx\n---\n", "\nx\ny\n---\n")
        self.says_no("sizes", "1-one/0001-util-one-first-thing.patch: 46 lines", "none")

    def test_patch_by_its_number(self):
        for text, wrong in [("see patch 3", True), ("Patches 4 and 5", True), ("in 0003-block-two.patch", True),
                            ("the 3 patches", False), ("patch the 7.2 tree", False), ("dispatch 3 requests", False)]:
            with self.subTest(text):
                path = self.path("1-one/0001")
                old = path.read_text()
                self.change("1-one/0001", "Why it is so.", text)
                if wrong:
                    self.says_no("sizes", f"a patch is called by its number: {text}", "none")
                else:
                    self.assertEqual([w for w in self.wrong().values() if w], [])
                path.write_text(old)
        self.cover("1-one", "It applies to v7.2.22. See patch 1.")
        self.says_no("sizes", "1-one/0000-cover-letter.patch: a patch is called by its number", "none")

    def test_cover_letter_does_not_say_what_it_applies_to(self):
        self.cover("2-two", "It applies to v7.2.22-rc1.")
        self.says_no("cover letters say", "2-two/0000-cover-letter.patch: does not say `applies to v7.2.22`", "none")

    def test_cover_letter_without_based_on(self):
        for text in ("Why.", 'Based-on: the series "toy: changes things"'):
            self.cover("3-three", text)
            self.says_no("cover letters say", 'no line `Based-on: the series "toy: ändert things"`', "none")

    def test_cover_letter_says_more_than_the_pin(self):
        self.cover("3-three", 'Based-on: the series "toy: ändert things"\nBased-on: the series "toy: another"')
        self.says_no("cover letters say",
                     'does not say that the topic needs this: Based-on: the series "toy: another"', "none")
        self.cover("3-three", 'It applies to v7.2.22.\nBased-on: the series "toy: ändert things"')
        self.says_no("cover letters say", "says `applies to v7.2.22`, but the topic needs others", "none")

    def test_topic_that_needs_more_than_it_says(self):
        self.pin(topics=[*TOPICS[:2], {"name": "3-three", "needs": []}])
        self.cover("3-three", "It applies to v7.2.22.")
        self.says_no("each topic applies", "3-three, with nothing but the base below it: "
                     "3-three/0001-util-new-fourth-thing.patch does not apply", "none")


if __name__ == "__main__":
    unittest.main()
