#!/usr/bin/python3
"""The patch queue: patches/<stack>/*.patch <-> git commits in build/<stack>/tree.

    series.py tree | export | check | mail

docs/series-tools.md says what each does.
"""

import email
import email.policy
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys

import common
import source
from common import ToolError, git, progress

COVER = "0000-cover-letter.patch"


# -- patch files ---------------------------------------------------------------

def patch_files(directory):
    """The patches without the cover letter, in order."""
    return [p for p in sorted(directory.glob("*.patch")) if p.name != COVER]


def parse(path):
    """(headers, body) of a patch mail."""
    mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    return mail, mail.get_content() if mail.get_content_maintype() == "text" else ""


def subject_of(mail):
    """The subject without its [PATCH n/m]."""
    return re.sub(r"^\[PATCH[^]]*\]\s*", "", re.sub(r"\s*\n\s*", " ", mail["subject"] or ""))


def cover_text(path):
    """What is written by hand in a cover letter: subject, empty line, body."""
    mail, body = parse(path)
    lines = body.split("\n")
    # git's part begins with the short log: `name (number of patches):`
    starts = [n for n, s in enumerate(lines) if s == f"{common.IDENTITY[0]} ({s[:-2].rpartition('(')[2]}):"
              and re.search(r"\(\d+\):$", s)]
    if not starts:
        raise ToolError(f"{path}: no short log of `{common.IDENTITY[0]}` in it; `make export` puts it "
                        f"after a line `{common.IDENTITY[0]} (0):`")
    return subject_of(mail) + "\n\n" + "\n".join(lines[:starts[-1]]).strip("\n") + "\n"


def patches_key(directory, base_commit):
    """Changes with any byte of the patches (the cover letter is none), and with the base."""
    h = hashlib.sha256(base_commit.encode())
    for p in patch_files(directory):
        h.update(f"{p.name} {source.sha256(p)}\n".encode())
    return h.hexdigest()


# -- tree ----------------------------------------------------------------------

def apply(repo, base, patches, work):
    """Plain git am of patches onto base in a worktree of its own; the new commit."""
    remove_worktree(repo, work)
    git(repo, "worktree", "add", "-q", "--detach", str(work), base)
    try:
        if patches:
            am(work, patches)
        return git(work, "rev-parse", "HEAD").strip()
    finally:
        remove_worktree(repo, work)


def am(work, patches):
    """Plain: no 3-way merge and no fuzz; the message as it is; the same hashes everywhere."""
    try:
        git(work, "am", "-q", "--no-3way", "--keep-non-patch", "--keep-cr", "--no-scissors",
            "--no-gpg-sign", "--committer-date-is-author-date", "--whitespace=nowarn",
            *[str(p) for p in patches])
    except ToolError as e:
        patch = work_state(work, "next")
        name = patches[int(patch) - 1].name if patch else "a patch"
        why = git_apply_error(work, patches[int(patch) - 1]) if patch else str(e)
        raise ToolError(f"{name} does not apply: {why}; `git am` was plain, without 3-way or fuzz") from e


def work_state(work, name):
    """A file of a git am that stopped."""
    path = work / git(work, "rev-parse", "--git-path", f"rebase-apply/{name}").strip()
    return path.read_text().strip() if path.is_file() else None


def git_apply_error(work, patch):
    try:
        git(work, "apply", "--check", str(patch))
    except ToolError as e:
        return re.sub(r"^.*?: (?:error: )?", "", str(e), count=1)
    return "git am does not like it as a mail"


def remove_worktree(repo, work):
    shutil.rmtree(work, ignore_errors=True)
    git(repo, "worktree", "prune")


def read_state(stack):
    try:
        return json.loads((common.stack_dir(stack) / "series.json").read_text())
    except (OSError, ValueError):
        return {}


def write_state(stack, **state):
    source.write_json(common.stack_dir(stack) / "series.json", state)


def head(repo, name="refs/heads/series"):
    try:
        return git(repo, "rev-parse", "-q", "--verify", f"{name}^{{commit}}").strip()
    except ToolError:
        return None


def unsaved(repo, exported):
    """What a person has done in the tree that is not in patches/, or ''."""
    if (repo / ".git/rebase-apply").exists() or (repo / ".git/rebase-merge").exists():
        return "a rebase or git am that is not finished"
    if git(repo, "status", "--porcelain"):
        return "changes that are not committed"
    if exported and exported not in (head(repo), head(repo, "HEAD")):
        return "commits that are not exported"
    if head(repo) != head(repo, "HEAD"):
        return "another branch checked out"
    return ""


def update_tree(stack):
    """Bring build/<stack>/tree in line with patches/<stack>; its Base and commit."""
    base = source.base(stack)
    repo = common.stack_dir(stack) / "tree"
    directory = common.patch_dir(stack)
    state, key = read_state(stack), patches_key(directory, base.commit)
    if state.get("key") == key and head(repo):
        return base, head(repo)
    if head(repo) and os.environ.get("FORCE") != "1":
        work = unsaved(repo, state.get("commit"))
        if work:
            raise ToolError(f"{repo} has {work}, and patches/{stack} or the base is another now: "
                            f"FORCE=1 make export keeps your commits, FORCE=1 make tree throws them away")
    patches = patch_files(directory)
    progress(f"git am of {len(patches)} patches onto QEMU {base.version}")
    commit = apply(repo, base.commit, patches, common.stack_dir(stack) / "am")
    for left in ("rebase-apply", "rebase-merge"):
        shutil.rmtree(repo / ".git" / left, ignore_errors=True)
    git(repo, "tag", "-f", "base", base.commit)
    git(repo, "checkout", "-q", "-f", "-B", "series", commit)
    write_state(stack, key=key, commit=commit)
    return base, commit


def count(repo, commit, base="base"):
    return int(git(repo, "rev-list", "--count", f"{base}..{commit}"))


def tree():
    stack = common.stack_name()
    base, commit = update_tree(stack)
    repo = common.stack_dir(stack) / "tree"
    n, hashed = count(repo, commit), git(repo, "rev-parse", f"{commit}^{{tree}}").strip()
    print(f"{repo}: branch series, {n} patches on QEMU {base.version}, tree {hashed}")
    if commit != read_state(stack).get("commit"):
        print(f"{repo}: has commits that patches/{stack} has not; `make export` writes them")


# -- export --------------------------------------------------------------------

def linear(repo, base, commit):
    """The commits from base to commit, in order; only a plain row of patches will do."""
    if git(repo, "merge-base", base, commit).strip() != head(repo, base):
        raise ToolError(f"{repo}: the branch series is not based on the tag base; rebase it onto that")
    if git(repo, "rev-list", "--merges", f"{base}..{commit}").strip():
        raise ToolError(f"{repo}: a merge is among the commits; make them a plain row (git rebase base)")
    return git(repo, "rev-list", "--reverse", f"{base}..{commit}").split()


def format_patches(repo, out, cover, base="base", commit="series"):
    """Write base..commit to the directory out; cover is (subject, empty line, body)."""
    commits = linear(repo, base, commit)
    if not commits:
        return []
    date = max(git(repo, "show", "-s", "--format=%at +0000", c).strip() for c in commits)
    order = ["-Oscripts/git.orderfile"] if (repo / "scripts/git.orderfile").is_file() else []
    git(repo, "-c", f"branch.series.description={cover}",
        "format-patch", "-q", "-o", str(out), "--cover-letter", "--cover-from-description=subject",
        "--zero-commit", "--full-index", "--no-signature", "--no-base", "--no-attach", "--no-thread",
        "--no-notes", "--no-to", "--no-cc", "--no-add-header", "--numbered", "--subject-prefix=PATCH",
        "--suffix=.patch", "--encode-email-headers", "--no-signoff", "--no-force-in-body-from",
        "--stat=72", "--summary", "-p", "-U3", "-M", "--diff-algorithm=myers", "--no-ext-diff",
        "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/", *order,
        f"{base}..{commit}", env={"GIT_COMMITTER_DATE": date})
    return sorted(out.glob("*.patch"))


def format_series(repo, directory, out, commit="series"):
    """format_patches with the cover letter of directory."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    cover = directory / COVER
    text = cover_text(cover) if cover.is_file() else "*** SUBJECT HERE ***\n\n*** BLURB HERE ***\n"
    return format_patches(repo, out, text, commit=commit)


def export():
    stack = common.stack_name()
    base = source.base(stack)
    repo, directory = common.stack_dir(stack) / "tree", common.patch_dir(stack)
    if not head(repo):
        raise ToolError(f"{repo}: no branch series; run `make tree` first")
    if not base.pinned:
        raise ToolError("the base is not the pinned one, so these patches would not be the series; "
                        f"export without QEMU_SRC=, or change patches/{stack}/pin.json first")
    if head(repo, "refs/tags/base") != base.commit:
        raise ToolError(f"{repo}: the tag base is not the base {base.commit}; git tag -f base {base.commit}")
    work = unsaved(repo, None)
    if work:
        raise ToolError(f"{repo} has {work}; only commits of the branch series are exported")
    key = read_state(stack).get("key")
    if key != patches_key(directory, base.commit) and os.environ.get("FORCE") != "1":
        raise ToolError(f"patches/{stack} has changed since the tree was made from it; FORCE=1 make export "
                        f"overwrites that, FORCE=1 make tree throws your commits away")
    out = common.stack_dir(stack) / "export"
    new = format_series(repo, directory, out)
    if not new:
        raise ToolError(f"{repo}: no commit on top of base; nothing to export")
    written = 0
    for path in new:
        old = directory / path.name
        if not old.is_file() or old.read_bytes() != path.read_bytes():
            os.replace(shutil.copyfile(path, directory / (path.name + ".new")), old)
            written += 1
    gone = [p for p in directory.glob("*.patch") if not (out / p.name).is_file()]
    for p in gone:
        p.unlink()
    shutil.rmtree(out)
    hashed = git(repo, "rev-parse", "series^{tree}").strip()
    pin = source.read_pin(stack)
    if pin.get("series_tree") != hashed:
        source.write_json(directory / "pin.json", {**pin, "series_tree": hashed})
    write_state(stack, key=patches_key(directory, base.commit), commit=head(repo))
    print(f"{directory}: {len(new) - 1} patches and the cover letter, {written} files changed, "
          f"{len(gone)} removed, tree {hashed}")
    if "*** SUBJECT HERE ***" in (directory / COVER).read_text():
        print(f"{directory / COVER}: write its subject and text by hand; export keeps them")


def main():
    commands = {"tree": tree, "export": export, "check": check, "mail": mail}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        raise ToolError(f"give one of {', '.join(commands)}")
    return commands[sys.argv[1]]()


def check():
    raise ToolError("not yet")


def mail():
    raise ToolError("not yet")


if __name__ == "__main__":
    common.main(main)
