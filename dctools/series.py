# SPDX-License-Identifier: GPL-2.0-or-later
"""The patch queue: patches/<stack>/<topic>/*.patch <-> git commits in build/<stack>/tree.

docs/series-tools.md says what each does; check is lint.py, mail is mail.py.
"""

import contextlib
import dataclasses
import email
import email.policy
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dctools import base as base_
from dctools import common
from dctools.common import ToolError, git, progress

COVER = "0000-cover-letter.patch"
HOOKS = "hooks.diff"        # for tests, no part of the series; see build.py
BRANCHES = "refs/heads/topic/"


# -- topics --------------------------------------------------------------------

@dataclasses.dataclass
class Topic:
    """What can be sent alone: a folder with patches and a cover letter."""
    name: str
    needs: list[str]        # names of topics before it
    directory: pathlib.Path

    def patches(self) -> list[pathlib.Path]:
        """The patches without the cover letter, in order."""
        return [p for p in sorted(self.directory.glob("*.patch")) if p.name != COVER]


def pinned_topics(stack: str) -> list[Topic]:
    """The topics that pin.json names, in order; whether their folders are there is not looked at."""
    path = common.patch_dir(stack) / "pin.json"
    found: list[Topic] = []
    for about in base_.read_pin(stack).get("topics") or []:
        if set(about) != {"name", "needs"}:
            raise ToolError(f"{path}: a topic has a name, and what it needs, in a list: {json.dumps(about)}")
        name, needs = about["name"], about["needs"]
        unknown = [n for n in needs if n not in [t.name for t in found]]
        if unknown:
            raise ToolError(f"{path}: the topic {name} needs {unknown[0]}, but no topic before it has that name")
        if not re.fullmatch(r"\w[\w.-]*", name) or name in [t.name for t in found]:
            raise ToolError(f"{path}: the topic {name} is there twice, or that is no name for a folder")
        found.append(Topic(name, needs, path.parent / name))
    if not found:
        raise ToolError(f"{path}: no topics in it")
    return found


def read_topics(stack: str) -> list[Topic]:
    """The topics that pin.json names, and there must be a folder for each, and no other."""
    found = pinned_topics(stack)
    no_other_folder(stack, found)
    for topic in found:
        if not topic.directory.is_dir():
            raise ToolError(f"{topic.directory}: pin.json names this topic, but there is no such folder; make export "
                            f"writes it, if a branch of build/{stack}/tree says which commits it has")
    return found


def no_other_folder(stack: str, topics: Iterable[Topic]) -> None:
    """A ToolError if there is a folder that is no topic."""
    names = [t.name for t in topics]
    for p in sorted(common.patch_dir(stack).iterdir()):
        if p.is_dir() and p.name not in names:
            raise ToolError(f"{p}: pin.json names no such topic; name it there, or remove the folder")


def wanted(topics: Sequence[Topic]) -> list[Topic]:
    """Those that TOPIC= asks for: one, or all."""
    name = common.settings.topic
    found = [t for t in topics if name in ("", t.name)]
    if not found:
        raise ToolError(f"TOPIC={name}: no such topic; there is: {', '.join(t.name for t in topics)}")
    return found


def needed(topics: Sequence[Topic], some: Iterable[Topic]) -> list[Topic]:
    """These topics and what they need, in order."""
    names = {t.name for t in some}
    for topic in reversed(topics):
        if topic.name in names:
            names.update(topic.needs)
    return [t for t in topics if t.name in names]


# -- patch files ---------------------------------------------------------------

@dataclasses.dataclass
class Patch:
    path: pathlib.Path
    sender: str
    subject: str        # without [PATCH n/m]
    number: str         # n/m
    message: list[str]  # lines between the header and `---`
    added: list[str]    # lines that the diff adds

    @property
    def name(self) -> str:
        """topic/file"""
        return f"{self.path.parent.name}/{self.path.name}"


def read_patch(path: pathlib.Path) -> Patch:
    text = path.read_bytes().decode(errors="replace")
    mail = email.message_from_string(text, policy=email.policy.default)
    subject = re.sub(r"\s*\n\s*", " ", mail["subject"] or "")
    m = re.fullmatch(r"(?:\[PATCH ?([^]]*)\] *)?(.*)", subject)
    tag, subject = m.groups() if m else ("", subject)
    message, _, diff = text.partition("\n\n")[2].partition("\n---\n")
    return Patch(path, mail["from"] or "", subject, tag or "", message.split("\n"),
                 [s[1:] for s in diff.split("\n") if s.startswith("+") and not s.startswith("+++ ")])


def read_cover(path: pathlib.Path) -> Patch:
    """The cover letter; message is what is written by hand in it."""
    cover = read_patch(path)
    # git's part begins with the short log: `name (number of patches):`
    log = re.escape(common.IDENTITY[0]) + r" \(\d+\):"
    starts = [n for n, s in enumerate(cover.message) if re.fullmatch(log, s)]
    if not starts:
        raise ToolError(f"{path}: no short log in it; put `{common.IDENTITY[0]} (0):` on the last line, "
                        "`make export` does the rest")
    cover.message = "\n".join(cover.message[:starts[-1]]).strip("\n").split("\n")
    return cover


def cover_text(directory: pathlib.Path) -> str:
    """Subject, empty line, body: as git wants a branch's description."""
    if not (directory / COVER).is_file():
        return "*** SUBJECT HERE ***\n\n*** BLURB HERE ***\n"
    cover = read_cover(directory / COVER)
    return "\n".join([cover.subject, "", *cover.message, ""])


def patches_key(topics: Iterable[Topic], base_commit: str) -> str:
    """Changes with any byte of the patches (the cover letters are none), with their topics, and with the base."""
    h = hashlib.sha256(base_commit.encode())
    for topic in topics:
        for p in topic.patches():
            h.update(f"{topic.name}/{p.name} {common.sha256(p)}\n".encode())
    return h.hexdigest()


# -- tree ----------------------------------------------------------------------

@contextlib.contextmanager
def worktree(repo: pathlib.Path, work: pathlib.Path, commit: str) -> Iterator[pathlib.Path]:
    """A worktree of repo that is there for as long as the with block runs."""
    remove_worktree(repo, work)
    git(repo, "worktree", "add", "-q", "--detach", str(work), commit)
    try:
        yield work
    finally:
        remove_worktree(repo, work)


def am(work: pathlib.Path, patches: Sequence[pathlib.Path], *options: str, env: dict[str, str] | None = None) -> str:
    """git am in work; the commit. Plain: no 3-way, no fuzz, messages as they are, the same hashes everywhere."""
    try:
        if patches:
            git(work, "am", "-q", "--no-3way", "--keep-non-patch", "--keep-cr", "--no-scissors",
                "--no-gpg-sign", "--committer-date-is-author-date", "--whitespace=nowarn", *options,
                *[str(p) for p in patches], env=env)
    except ToolError as e:
        state = work / git(work, "rev-parse", "--git-path", "rebase-apply/next").strip()
        if not state.is_file():
            raise
        patch = patches[int(state.read_text()) - 1]
        try:
            git(work, "apply", "--check", str(patch))
            why = "git am does not like it as a mail"
        except ToolError as e2:
            why = str(e2).partition(": ")[2].removeprefix("error: ")
        raise ToolError(f"{patch.parent.name}/{patch.name} does not apply: {why} (git am without 3-way or fuzz)") from e
    return git(work, "rev-parse", "HEAD").strip()


def am_topics(work: pathlib.Path, topics: Iterable[Topic]) -> dict[str, str]:
    """git am of one topic after the other: {name: its last commit}."""
    return {t.name: am(work, t.patches()) for t in topics}


def remove_worktree(repo: pathlib.Path, work: pathlib.Path) -> None:
    """Whatever state it is in."""
    shutil.rmtree(work, ignore_errors=True)
    git(repo, "worktree", "prune")


def read_state(stack: str) -> dict[str, Any]:
    """What was imported or exported last."""
    try:
        return json.loads((common.stack_dir(stack) / "series.json").read_text())
    except (OSError, ValueError):
        return {}


def write_state(stack: str, **state: Any) -> None:
    common.write_json(common.stack_dir(stack) / "series.json", state)


def head(repo: pathlib.Path, name: str = "refs/heads/series") -> str | None:
    """The commit that a name stands for, if there is one."""
    try:
        return git(repo, "rev-parse", "-q", "--verify", f"{name}^{{commit}}").strip()
    except ToolError:
        return None


def branches(repo: pathlib.Path) -> dict[str, str]:
    """{topic: the commit that its branch says is its last}; the last topic ends where the branch series does."""
    lines = git(repo, "for-each-ref", "--format=%(refname) %(objectname)", BRANCHES).splitlines()
    return {name.removeprefix(BRANCHES): commit for name, commit in (s.split() for s in lines)}


def put_branches(repo: pathlib.Path, tips: dict[str, str]) -> None:
    """Branches where topics end, for all but the last topic; git rebase -i takes them along."""
    for name in branches(repo):
        git(repo, "update-ref", "-d", f"{BRANCHES}{name}")
    for name, commit in list(tips.items())[:-1]:
        git(repo, "update-ref", f"{BRANCHES}{name}", commit)
    git(repo, "config", "rebase.updateRefs", "true")


def uncommitted(repo: pathlib.Path) -> str:
    """What keeps the branch series from being all there is in the tree, or ''."""
    for name in ("rebase-apply", "rebase-merge"):
        if (repo / ".git" / name).exists():
            return "a rebase or git am that is not finished"
    if git(repo, "status", "--porcelain"):
        return "changes that are not committed"
    if head(repo) != head(repo, "HEAD"):
        return "another commit than the branch series checked out"
    return ""


def unexported(repo: pathlib.Path, state: dict[str, Any]) -> str:
    """What of the tree is not in the patches, or ''."""
    if work := uncommitted(repo):
        return work
    if head(repo) != (state.get("commit") or head(repo, "refs/tags/base")):
        return "commits that are not exported"
    return "branches of topics that are not exported" if branches(repo) != state.get("branches", {}) else ""


def update_tree(stack: str) -> tuple[base_.Base, str]:
    """Bring build/<stack>/tree in line with patches/<stack>; its Base and commit."""
    topics = read_topics(stack)
    base = base_.base(stack)
    repo = common.stack_dir(stack) / "tree"
    state, key = read_state(stack), patches_key(topics, base.commit)
    if state.get("key") == key and (tip := head(repo)):
        return base, tip
    # unfinished: we were interrupted while overwriting what had been looked at already
    if head(repo) and not common.settings.force and not state.get("unfinished"):
        if left := unexported(repo, state):
            raise ToolError(f"{repo} has {left}, and patches/{stack} or the base is another now: "
                            f"FORCE=1 make export keeps your commits, FORCE=1 make tree throws them away")
    progress(f"git am of {sum(len(t.patches()) for t in topics)} patches onto QEMU {base.version}")
    with worktree(repo, common.stack_dir(stack) / "am", base.commit) as work:
        tips = am_topics(work, topics)
        commit = git(work, "rev-parse", "HEAD").strip()
    for unfinished in ("rebase-apply", "rebase-merge"):
        shutil.rmtree(repo / ".git" / unfinished, ignore_errors=True)
    write_state(stack, unfinished=True)
    git(repo, "tag", "-f", "base", base.commit)
    git(repo, "checkout", "-q", "-f", "-B", "series", commit)
    put_branches(repo, tips)
    write_state(stack, key=key, commit=commit, branches=branches(repo))
    return base, commit


def tree() -> None:
    """Make the tree, and say where it is."""
    stack = common.stack_name()
    some = wanted(pinned_topics(stack))
    base, commit = update_tree(stack)
    repo = common.stack_dir(stack) / "tree"
    commits, hashed = linear(repo, "base", commit), git(repo, "rev-parse", f"{commit}^{{tree}}").strip()
    print(f"{repo}: branch series, {len(commits)} patches on QEMU {base.version}, tree {hashed}")
    if work := unexported(repo, read_state(stack)):
        print(f"{repo} has {work}; `make export` writes what is committed to patches/{stack}")
    try:
        ranges = topic_ranges(repo, pinned_topics(stack)) if commits else {}
    except ToolError as e:
        print(e)        # the tree is good all the same
        return
    for topic in some if ranges else ():
        start, end = ranges[topic.name]
        print(f"    {topic.name}: {len(linear(repo, start, end))} patches, {start[:12]}..{end[:12]}")


# -- export --------------------------------------------------------------------

def linear(repo: pathlib.Path, base: str, commit: str) -> list[str]:
    """The commits from base to commit, in order; only a plain row of patches will do."""
    try:
        git(repo, "merge-base", "--is-ancestor", base, commit)
    except ToolError as e:
        raise ToolError(f"{repo}: the branch series is not based on the tag base; rebase it onto that") from e
    if git(repo, "rev-list", "--merges", f"{base}..{commit}").strip():
        raise ToolError(f"{repo}: a merge is among the commits; make them a plain row (git rebase base)")
    return git(repo, "rev-list", "--reverse", f"{base}..{commit}").split()


def topic_ranges(repo: pathlib.Path, topics: Sequence[Topic]) -> dict[str, tuple[str, str]]:
    """{topic: (commit that it starts on, its last commit)} of the branch series."""
    commits = [head(repo, "refs/tags/base") or "", *linear(repo, "base", "series")]
    have = branches(repo)
    for name in have:
        if name not in [t.name for t in topics[:-1]]:
            raise ToolError(f"{repo}: the branch topic/{name} is of no topic in pin.json that another follows; "
                            f"git branch -D topic/{name}, or name the topic there")
    place = {commit: n for n, commit in enumerate(commits)}
    last, found = 0, {}
    for topic in topics:
        tip = have.get(topic.name) if topic is not topics[-1] else commits[-1]
        where = f"{repo}: the branch topic/{topic.name}"
        if tip is None:
            raise ToolError(f"{where} is not there; git branch topic/{topic.name} COMMIT, with the topic's last commit")
        if tip not in place:
            raise ToolError(f"{where} is no commit between base and series; git branch -f topic/{topic.name} COMMIT, "
                            "with the topic's last commit")
        if place[tip] < last:
            raise ToolError(f"{where} ends before the topic in front of it does; git branch -f moves it")
        if place[tip] == last:
            raise ToolError(f"{repo}: the topic {topic.name} has no commit; commit something, or take it out of "
                            "pin.json")
        found[topic.name] = commits[last], tip
        last = place[tip]
    return found


def format_patches(repo: pathlib.Path, out: pathlib.Path, cover: str, base: str = "base", commit: str = "series",
                   env: dict[str, str] | None = None, more: Sequence[str] = ()) -> list[pathlib.Path]:
    """Write base..commit to the directory out; cover is (subject, empty line, body), more is for git format-patch."""
    commits = linear(repo, base, commit)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if not commits:
        return []
    date = max(git(repo, "show", "-s", "--format=%at +0000", c).strip() for c in commits)
    # a branch, because only that has a description
    git(repo, "update-ref", "refs/heads/tool/format", commits[-1])
    order = ["-Oscripts/git.orderfile"] if (repo / "scripts/git.orderfile").is_file() else []
    # all that configuration could change is said here
    git(repo, "-c", f"branch.tool/format.description={cover}",
        "-c", "diff.suppressBlankEmpty=false", "-c", "diff.interHunkContext=0",
        "format-patch", "-q", "-o", str(out), "--cover-letter", "--cover-from-description=subject",
        "--zero-commit", "--full-index", "--no-signature", "--no-base", "--no-attach", "--no-thread",
        "--no-notes", "--no-to", "--no-cc", "--no-add-header", "--numbered", "--subject-prefix=PATCH",
        "--suffix=.patch", "--encode-email-headers", "--no-signoff", "--no-force-in-body-from",
        "--stat=72", "--summary", "-p", "-U3", "-M", "--diff-algorithm=myers", "--no-ext-diff",
        "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/", *order,
        *more, f"{base}..tool/format", env={"GIT_COMMITTER_DATE": date, **(env or {})})
    git(repo, "update-ref", "-d", "refs/heads/tool/format")
    return sorted(out.glob("*.patch"))


def ready_to_export(stack: str, base: base_.Base) -> None:
    """Whether the tree may be written over the patches; if not, an error says why."""
    repo = common.stack_dir(stack) / "tree"
    if not head(repo):
        raise ToolError(f"{repo}: no branch series; run `make tree` first")
    if not base.pinned:
        raise ToolError("the base is not the pinned one, so these patches would not be the series; "
                        f"export without QEMU_SRC=, or change patches/{stack}/pin.json first")
    if head(repo, "refs/tags/base") != base.commit:
        raise ToolError(f"{repo}: the tag base is not the base {base.commit}; git tag -f base {base.commit}")
    work = uncommitted(repo)
    if work:
        raise ToolError(f"{repo} has {work}; only commits of the branch series are exported")
    if not linear(repo, "base", "series"):
        raise ToolError(f"{repo}: no commit on top of base; nothing to export")


def changed_files(new: pathlib.Path, directory: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """(files of the export in the directory new that are not the same in the other one, patches only there)."""
    changed = [p for p in sorted(new.glob("*.patch")) if not (directory / p.name).is_file()
               or (directory / p.name).read_bytes() != p.read_bytes()]
    return changed, [p for p in directory.glob("*.patch") if not (new / p.name).is_file()]


def export() -> None:
    """Write the tree's commits back to patches/."""
    stack = common.stack_name()
    topics = pinned_topics(stack)
    some = wanted(topics)
    no_other_folder(stack, topics)
    base = base_.base(stack)
    repo, directory = common.stack_dir(stack) / "tree", common.patch_dir(stack)
    ready_to_export(stack, base)
    if read_state(stack).get("key") != patches_key(topics, base.commit) and not common.settings.force:
        raise ToolError(f"patches/{stack} has changed since the tree was made from it; FORCE=1 make export "
                        f"overwrites that, FORCE=1 make tree throws your commits away")
    out, found = common.stack_dir(stack) / "export", {}
    shutil.rmtree(out, ignore_errors=True)
    for topic in topics:
        format_patches(repo, out / topic.name, cover_text(topic.directory), *topic_ranges(repo, topics)[topic.name])
        found[topic.name] = changed_files(out / topic.name, topic.directory)
    others = [t.name for t in topics if t not in some and any(found[t.name])]
    if others:
        raise ToolError(f"{', '.join(others)} would change, too; make export without TOPIC= writes all")
    for topic in topics:
        topic.directory.mkdir(exist_ok=True)
        changed, gone = found[topic.name]
        for path in changed:
            os.replace(shutil.copyfile(path, topic.directory / (path.name + ".new")), topic.directory / path.name)
        for p in gone:
            p.unlink()
    hashed = git(repo, "rev-parse", "series^{tree}").strip()
    pin = base_.read_pin(stack)
    if pin.get("series_tree") != hashed:
        common.write_json(directory / "pin.json", {**pin, "series_tree": hashed})
    write_state(stack, key=patches_key(topics, base.commit), commit=head(repo), branches=branches(repo))
    for topic in some:
        changed, gone = found[topic.name]
        print(f"{topic.directory}: {len(topic.patches())} patches and the cover letter, {len(changed)} files changed, "
              f"{len(gone)} removed")
        if "*** SUBJECT HERE ***" in (topic.directory / COVER).read_text():
            print(f"{topic.directory / COVER}: write its subject and text by hand; export keeps them")
    shutil.rmtree(out)
    print(f"{directory}: tree {hashed}")
