# SPDX-License-Identifier: GPL-2.0-or-later
"""make mail: each topic as mails with the person's own sign-off; sends nothing.

TOPIC= makes those of one topic. docs/series-tools.md, Sending, is to be read first.
"""

import email.utils
import os
import pathlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable

from dctools import base as base_
from dctools import common, environment, series
from dctools.common import ToolError, git
from dctools.process import run

Person = tuple[str, str]        # name, address


def sender() -> Person:
    """The person's own (name, address), from their git configuration or environment."""
    # from /, so that no repository's own configuration counts
    p = subprocess.run(["git", "-C", "/", "-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT"],
                       stdin=subprocess.DEVNULL, capture_output=True, text=True)
    m = re.fullmatch(r"(.+) <(.+)> \d+ \S+\n", p.stdout)
    if p.returncode or not m:
        raise ToolError("git does not know who you are; set your own with `git config --global user.name` "
                        "and `git config --global user.email`, then make mail")
    if m[1] == common.IDENTITY[0] or m[2] == common.IDENTITY[1]:
        raise ToolError(f"git says that you are {m[1]} <{m[2]}>; the series is kept as that, but a person "
                        "sends it: set your own user.name and user.email")
    return m[1], m[2]


def smtp_sink(text: str) -> tuple[str, str] | None:
    """MAIL_SMTP=host:port, for tests; never a real server."""
    if not text:
        return None
    m = re.fullmatch(r"(127\.0\.0\.1|localhost|\[::1\]):(\d{1,5})", text)
    if not m:
        raise ToolError(f"MAIL_SMTP={text}: only for tests with a sink on this machine, such as 127.0.0.1:2525; "
                        "to send for real, use the command that make mail prints")
    return m[1].strip("[]"), m[2]


def recipients(work: pathlib.Path, patch: pathlib.Path) -> tuple[list[str], list[str]]:
    """(lists, people) that get_maintainer.pl names for a patch."""
    said = run(["perl", "scripts/get_maintainer.pl", "--noroles", "--norolestats", "--nogit",
                "--nogit-fallback", patch], cwd=work).splitlines()
    found = [a for a in (email.utils.parseaddr(s) for s in said) if "@" in a[1]]
    return ([email.utils.formataddr(a) for a in found if not a[0]],
            [email.utils.formataddr(a) for a in found if a[0]])


def address(path: pathlib.Path, lists: Iterable[str], people: Iterable[str]) -> None:
    """Put To: and Cc: into a patch mail; git am does not mind them."""
    head_, _, body = path.read_bytes().partition(b"\n\n")
    for name, who in [("To", lists), ("Cc", people)]:
        if who:
            head_ += f"\n{name}: ".encode() + ",\n ".join(who).encode()
    path.write_bytes(head_ + b"\n\n" + body)


def committer(who: Person) -> dict[str, str]:
    return {"GIT_COMMITTER_NAME": who[0], "GIT_COMMITTER_EMAIL": who[1]}


def sign(work: pathlib.Path, patches: list[pathlib.Path], who: Person, scratch: pathlib.Path) -> str:
    """git am --signoff of the patches, with who as author and committer; the last commit."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    sender_line = f"From: {email.utils.formataddr(who)}".encode()
    for p in patches:
        data = p.read_bytes()
        (scratch / p.name).write_bytes(re.sub(rb"^From: .*", lambda _: sender_line, data, count=1, flags=re.M))
    try:
        return series.am(work, sorted(scratch.iterdir()), "--signoff", env=committer(who))
    finally:
        shutil.rmtree(scratch)


def make_mails(work: pathlib.Path, topic: series.Topic, start: str, tip: str, out: pathlib.Path, who: Person,
               ) -> tuple[list[pathlib.Path], dict[str, None], dict[str, None]]:
    """Write the mails of a topic; (files, lists, people). The files of what is changed are looked up in work."""
    files = series.format_patches(work, out, series.cover_text(topic.directory), start, tip, env=committer(who))
    lists: dict[str, None] = {}
    people: dict[str, None] = {}
    for path in files[1:]:
        to, cc = recipients(work, path)
        address(path, to, cc)
        lists |= dict.fromkeys(to)
        people |= dict.fromkeys(cc)
    if not lists:
        raise ToolError("scripts/get_maintainer.pl of the base names no mailing list for these patches")
    address(files[0], lists, people)
    return files, lists, people


def try_to_send(files: list[pathlib.Path], who: Person, sink: tuple[str, str] | None, log: pathlib.Path) -> str:
    """Let git send-email go over the mails, to the sink if there is one; the command that sends them."""
    send = ["git", "send-email", "--confirm=never", "--8bit-encoding=UTF-8", "--suppress-cc=self",
            "--no-chain-reply-to", "--thread", "--no-validate", f"--from={who[0]} <{who[1]}>"]
    env = None
    if sink:
        send += [f"--smtp-server={sink[0]}", f"--smtp-server-port={sink[1]}", "--smtp-encryption=none"]
        # nothing that the person has set for a real server
        env = environment.child({"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
                                 "GIT_AUTHOR_NAME": who[0], "GIT_AUTHOR_EMAIL": who[1], **committer(who)})
    run([*send, *([] if sink else ["--dry-run"]), *files], cwd="/", env=env, log=log)
    return shlex.join(s for s in send if s != "--confirm=never")


def mail(smtp: str = "") -> None:
    """Make the mails of TOPIC=, or of all topics, and try to send them; smtp is a sink for tests."""
    stack = common.stack_name()
    topics = series.read_topics(stack)
    some = series.wanted(topics)
    who, sink = sender(), smtp_sink(smtp)
    base, top = base_.base(stack), common.stack_dir(stack)
    for topic in some:
        if not topic.patches() or "***" in series.cover_text(topic.directory):
            raise ToolError(f"{topic.directory}: no patches, or the cover letter is not written yet")
    ranges, mails, start, chain = {}, {}, base.commit, series.needed(topics, some)
    with series.worktree(top / "tree", top / "mail-tree", base.commit) as work:
        for topic in chain:
            tip = sign(work, topic.patches(), who, top / "mail-patches")
            ranges[topic.name], start = (start, tip), tip
        git(work, "checkout", "-q", "--detach", base.commit)
        for topic in some:
            mails[topic.name] = make_mails(work, topic, *ranges[topic.name], top / "mail" / topic.name, who)
    git(top / "tree", "update-ref", "refs/heads/mail", start)
    for topic in some:
        files, lists, people = mails[topic.name]
        log, out = top / f"mail-{topic.name}.log", top / "mail" / topic.name
        send = try_to_send(files, who, sink, log)
        print(f"{topic.name}: {len(files)} mails by {who[0]} <{who[1]}> in {out}\n"
              f"To: {', '.join(lists)}\nCc: {', '.join(people)}\n(each patch: only those that it concerns)")
        if sink:
            print(f"sent to the sink at {sink[0]}:{sink[1]}")
        else:
            print(f"git send-email --dry-run is content ({log}). Nothing was sent. To send them:\n"
                  f"    {send} {out}/*.patch")
    print(f"Branch mail in {top / 'tree'} has the signed commits.\n"
          "Your sign-off certifies the origin of each line; QEMU declines AI-generated content. "
          "Read docs/series-tools.md, Sending, first.")
