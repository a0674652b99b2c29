# SPDX-License-Identifier: GPL-2.0-or-later
"""make mail: each topic as mails with the person's own sign-off; sends nothing. make mbox: each as one file, unsigned.

TOPIC= makes those of one topic. docs/series-tools.md, Sending, is to be read first.
"""

import email.utils
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence

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
               version: Sequence[str]) -> tuple[list[pathlib.Path], dict[str, None], dict[str, None]]:
    """Write the mails of a topic; (files, lists, people). The files of what is changed are looked up in work."""
    files = series.format_patches(work, out, series.cover_text(topic.directory), start, tip, env=committer(who),
                                  more=version)
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


def sign_chain(work: pathlib.Path, chain: Iterable[series.Topic], start: str, who: Person, scratch: pathlib.Path,
               ) -> dict[str, tuple[str, str]]:
    """Sign these topics, one on top of the other: {name: its (start, tip)}."""
    ranges = {}
    git(work, "checkout", "-q", "--detach", start)
    for topic in chain:
        tip = sign(work, topic.patches(), who, scratch)
        ranges[topic.name], start = (start, tip), tip
    return ranges


def sent_before(work: pathlib.Path, chain: Iterable[series.Topic], since: str, start: str, who: Person,
                scratch: pathlib.Path) -> dict[str, tuple[str, str]]:
    """sign_chain() of the topics as they were in that commit or tag of this project."""
    patches = common.patch_dir(common.stack_name()).relative_to(common.ROOT)
    with tempfile.TemporaryDirectory() as tmp:
        try:
            git(common.ROOT, "archive", "--format=tar", "-o", f"{tmp}/then.tar", since, str(patches))
        except ToolError as e:
            raise ToolError(f"SINCE={since}: no commit or tag of this project with {patches} in it; give the one that "
                            "was sent before") from e
        shutil.unpack_archive(f"{tmp}/then.tar", tmp)
        then = [series.Topic(t.name, t.needs, pathlib.Path(tmp) / patches / t.name) for t in chain]
        for topic in then:
            if not topic.patches():
                raise ToolError(f"SINCE={since}: the topic {topic.name} was not there")
        return sign_chain(work, then, start, who, scratch)


def mbox() -> None:
    """Each topic, or that of TOPIC=, as one file, as it is in patches/."""
    stack = common.stack_name()
    out = common.stack_dir(stack) / "mbox"
    out.mkdir(parents=True, exist_ok=True)
    for topic in series.wanted(series.read_topics(stack)):
        mails = [topic.directory / series.COVER, *topic.patches()]
        path = out / f"{topic.name}.mbox"
        path.write_bytes(b"\n".join(p.read_bytes().rstrip(b"\n") + b"\n" for p in mails))
        print(f"{path}: {len(mails)} mails; `git am --empty=drop` takes it")


def mail(smtp: str = "", version: int = 1, since: str = "") -> None:
    """Make the mails of TOPIC=, or of all topics, and try to send them; smtp is a sink for tests.

    Those of another version have a range-diff against the one before, which since is a commit or tag of.
    """
    if (version > 1) != bool(since):
        raise ToolError("V= and SINCE= go together: V=2 SINCE=v1 is for version 2 of what the tag v1 of this project "
                        "had")
    stack = common.stack_name()
    topics = series.read_topics(stack)
    some = series.wanted(topics)
    who, sink = sender(), smtp_sink(smtp)
    base, top = base_.base(stack), common.stack_dir(stack)
    for topic in some:
        if not topic.patches() or "***" in series.cover_text(topic.directory):
            raise ToolError(f"{topic.directory}: no patches, or the cover letter is not written yet")
    mails, chain, scratch = {}, series.needed(topics, some), top / "mail-patches"
    with series.worktree(top / "tree", top / "mail-tree", base.commit) as work:
        then = sent_before(work, chain, since, base.commit, who, scratch) if since else {}
        ranges = sign_chain(work, chain, base.commit, who, scratch)
        git(work, "checkout", "-q", "--detach", base.commit)
        for topic in some:
            more = [f"-v{version}", f"--range-diff={'..'.join(then[topic.name])}"] if since else []
            mails[topic.name] = make_mails(work, topic, *ranges[topic.name], top / "mail" / topic.name, who, more)
    git(top / "tree", "update-ref", "refs/heads/mail", ranges[chain[-1].name][1])
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
