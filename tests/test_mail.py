# SPDX-License-Identifier: GPL-2.0-or-later
"""mail.py on a toy repository; what it sends goes to a sink in this process's child."""

import email
import email.policy
import functools
import subprocess
import unittest
from unittest import mock

from test_series import Toy

from dctools import common
from dctools import mail
from dctools import series
from dctools.common import git

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


class TestMail(Toy):
    def me(self, name="Tést Sender", mail="me@home.example"):
        subprocess.run(["git", "config", "--global", "user.name", name], check=True)
        subprocess.run(["git", "config", "--global", "user.email", mail], check=True)

    def test_refuses_without_identity(self):
        self.refuses(mail.mail, "git does not know who you are")

    def test_refuses_the_identity_of_the_series(self):
        self.me("Me", common.IDENTITY[1])
        self.refuses(mail.mail, "set your own")

    def test_refuses_unwritten_cover_letter(self):
        self.me()
        (self.dir / "2-two" / series.COVER).unlink()
        self.refuses(mail.mail, "cover letter is not written")

    def test_refuses_real_servers(self):
        self.me()
        for text in ("mail.site.example:25", "127.0.0.1", "127.0.0.1.site.example:25", "10.0.0.1:25"):
            self.refuses(functools.partial(mail.mail, text), f"MAIL_SMTP={text}: only for tests")

    def test_refuses_base_without_lists(self):
        self.me()
        with mock.patch.object(mail, "recipients", lambda *_: ([], [])):
            self.refuses(mail.mail, "names no mailing list")

    def test_dry_run(self):
        self.me()
        before = self.patches()
        self.run_tool(mail.mail)
        self.assertIn("Nothing was sent", self.out.getvalue())
        self.assertEqual(before, self.patches())
        # the maintainer is of 1-one and 3-three, not of 2-two
        for topic, mails, maintained in [("1-one", 3, 3), ("2-two", 2, 0), ("3-three", 2, 2)]:
            log = (common.stack_dir("toy") / f"mail-{topic}.log").read_text()
            self.assertEqual(log.count("Dry-OK"), mails)
            self.assertEqual(log.count("RCPT TO:<qemu-toy@list.example>"), mails)
            self.assertEqual(log.count("RCPT TO:<maintainer@list.example>"), maintained)
            self.assertEqual(len(list((common.stack_dir("toy") / "mail" / topic).iterdir())), mails)
            self.assertIn(f"mail/{topic}/*.patch", self.out.getvalue())
        self.assertNotIn(common.IDENTITY[1], git(self.repo, "log", "--format=%ae %ce %B", "base..mail"))

    def test_one_topic(self):
        self.me()
        common.settings.topic = "3-three"
        self.run_tool(mail.mail)
        self.assertEqual([p.name for p in (common.stack_dir("toy") / "mail").iterdir()], ["3-three"])
        # signed on top of what it needs, and of nothing else
        self.assertEqual(git(self.repo, "log", "--reverse", "--format=%s", "base..mail").splitlines(),
                         ["util/one: first thing", "[second] util/zwölf: thing", "util/new: fourth thing"])
        text = next((common.stack_dir("toy") / "mail/3-three").glob("0001-*")).read_text()
        self.assertIn("[PATCH 1/1] util/new: fourth thing", text)
        common.settings.topic = "3"
        self.refuses(mail.mail, "TOPIC=3: no such topic; there is: 1-one, 2-two, 3-three")

    def test_patches_keep_their_dates(self):
        self.me()
        self.run_tool(mail.mail)
        self.assertEqual(git(self.repo, "log", "--format=%ai", "base..mail"),
                         git(self.repo, "log", "--format=%ai", "base..series"))

    def test_what_is_sent_applies_and_is_the_same_tree(self):
        self.me()
        box = self.top / "box"
        box.mkdir()
        with subprocess.Popen(["/usr/bin/python3", "-c", SINK, box], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as sink:
            try:
                self.run_tool(functools.partial(mail.mail, f"127.0.0.1:{sink.stdout.readline().strip()}"))
            finally:
                sink.stdin.close()
        mails = sorted(box.glob("*.eml"))
        self.assertEqual(len(mails), 7)
        covers, patches = [], []
        for path in mails:
            m = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            self.assertEqual(m["from"], "Tést Sender <me@home.example>")
            text = m.get_content()
            (covers if " 0/" in m["subject"] else patches).append(path)
            if path not in covers:
                self.assertIn("Signed-off-by: Tést Sender <me@home.example>\n---\n", text.replace("\r", ""))
                self.assertTrue(m["in-reply-to"])
            self.assertNotIn(common.IDENTITY[1], text)
        self.assertEqual(len(covers), 3)
        with series.worktree(self.repo, self.top / "am", "base") as work:
            # as a maintainer does: no --keep-cr, no option at all
            git(work, "am", "-q", *map(str, patches))
            self.assertEqual(git(work, "rev-parse", "HEAD^{tree}").strip(), self.series_tree())
            self.assertEqual(git(work, "log", "-1", "--format=%an %ae").strip(), "Tést Sender me@home.example")

    def test_another_version_has_a_range_diff(self):
        self.me()
        git(self.top, "init", "-q")
        git(self.top, "add", "patches")
        git(self.top, "commit", "-q", "-m", "sent")
        git(self.top, "tag", "sent-v1")
        git(self.repo, "commit", "-q", "--amend", "-m", "util/new: fourth thing\n\nWhy it is really so.")
        self.run_tool(series.export)
        self.run_tool(functools.partial(mail.mail, version=2, since="sent-v1"))
        for topic, changed in ("1-one", False), ("3-three", True):
            files = sorted((common.stack_dir("toy") / "mail" / topic).iterdir())
            self.assertTrue(all(p.name.startswith("v2-") and "[PATCH v2 " in p.read_text() for p in files))
            cover = files[0].read_text()
            self.assertIn("Range-diff against v1:\n1:  ", cover)
            self.assertEqual("-    Why it is so." in cover and "+    Why it is really so." in cover, changed)
        log = (common.stack_dir("toy") / "mail-3-three.log").read_text()
        self.assertEqual(log.count("Dry-OK"), 2)

    def test_refuses_a_version_that_it_cannot_compare(self):
        self.me()
        for version, since in (2, ""), (1, "sent"):
            self.refuses(functools.partial(mail.mail, version=version, since=since), "V= and SINCE= go together")
        git(self.top, "init", "-q")
        git(self.top, "commit", "-q", "--allow-empty", "-m", "empty")
        self.refuses(functools.partial(mail.mail, version=2, since="HEAD"),
                     "SINCE=HEAD: no commit or tag of this project with patches/toy")

    def test_refuses_a_version_of_a_topic_that_was_not_there(self):
        self.me()
        git(self.top, "init", "-q")
        git(self.top, "add", "patches/toy/1-one")
        git(self.top, "commit", "-q", "-m", "sent")
        self.refuses(functools.partial(mail.mail, version=2, since="HEAD"), "SINCE=HEAD: the topic 2-two was not there")

    def test_mbox_is_the_topic(self):
        self.run_tool(mail.mbox)
        with series.worktree(self.repo, self.top / "am", "base") as work:
            for topic, mails in [("1-one", 3), ("2-two", 2), ("3-three", 2)]:
                path = common.stack_dir("toy") / "mbox" / f"{topic}.mbox"
                self.assertIn(f"{topic}.mbox: {mails} mails", self.out.getvalue())
                git(work, "am", "-q", "--empty=drop", str(path))
            self.assertEqual(git(work, "rev-parse", "HEAD^{tree}").strip(), self.series_tree())
            self.assertEqual(git(work, "rev-list", "--count", "base..HEAD").strip(), "4")


if __name__ == "__main__":
    unittest.main()
