# SPDX-License-Identifier: GPL-2.0-or-later
"""The patch queue: patches/<stack>/*.patch <-> git commits in build/<stack>/tree.

    series.py tree | export | check | mail

docs/series-tools.md says what each does.
"""

import contextlib
import dataclasses
import email
import email.policy
import email.utils
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess

from dctools import base as base_
from dctools import common, environment, options
from dctools.common import ToolError, git, progress
from dctools.process import run

COVER = "0000-cover-letter.patch"
HOOKS = "hooks.diff"        # for tests, no part of the series; see build.py


# -- patch files ---------------------------------------------------------------

def patch_files(directory):
    """The patches without the cover letter, in order."""
    return [p for p in sorted(directory.glob("*.patch")) if p.name != COVER]


@dataclasses.dataclass
class Patch:
    path: pathlib.Path
    sender: str
    subject: str        # without [PATCH n/m]
    number: str         # n/m
    message: list       # lines between the header and `---`
    added: list         # lines that the diff adds

    @property
    def name(self):
        return self.path.name


def read_patch(path):
    text = path.read_bytes().decode(errors="replace")
    mail = email.message_from_string(text, policy=email.policy.default)
    subject = re.sub(r"\s*\n\s*", " ", mail["subject"] or "")
    tag, subject = re.fullmatch(r"(?:\[PATCH ?([^]]*)\] *)?(.*)", subject).groups()
    message, _, diff = text.partition("\n\n")[2].partition("\n---\n")
    return Patch(path, mail["from"] or "", subject, tag or "", message.split("\n"),
                 [s[1:] for s in diff.split("\n") if s.startswith("+") and not s.startswith("+++ ")])


def read_cover(path):
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


def cover_text(directory):
    """Subject, empty line, body: as git wants a branch's description."""
    if not (directory / COVER).is_file():
        return "*** SUBJECT HERE ***\n\n*** BLURB HERE ***\n"
    cover = read_cover(directory / COVER)
    return "\n".join([cover.subject, "", *cover.message, ""])


def patches_key(directory, base_commit):
    """Changes with any byte of the patches (the cover letter is none), and with the base."""
    h = hashlib.sha256(base_commit.encode())
    for p in patch_files(directory):
        h.update(f"{p.name} {common.sha256(p)}\n".encode())
    return h.hexdigest()


# -- tree ----------------------------------------------------------------------

@contextlib.contextmanager
def worktree(repo, work, commit):
    """A worktree of repo that is there for as long as the with block runs."""
    remove_worktree(repo, work)
    git(repo, "worktree", "add", "-q", "--detach", str(work), commit)
    try:
        yield work
    finally:
        remove_worktree(repo, work)


def am(work, patches):
    """git am in work; the commit. Plain: no 3-way, no fuzz, messages as they are, the same hashes everywhere."""
    try:
        if patches:
            git(work, "am", "-q", "--no-3way", "--keep-non-patch", "--keep-cr", "--no-scissors",
                "--no-gpg-sign", "--committer-date-is-author-date", "--whitespace=nowarn",
                *[str(p) for p in patches])
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
        raise ToolError(f"{patch.name} does not apply: {why} (git am without 3-way or fuzz)") from e
    return git(work, "rev-parse", "HEAD").strip()


def remove_worktree(repo, work):
    shutil.rmtree(work, ignore_errors=True)
    git(repo, "worktree", "prune")


def read_state(stack):
    try:
        return json.loads((common.stack_dir(stack) / "series.json").read_text())
    except (OSError, ValueError):
        return {}


def write_state(stack, **state):
    common.write_json(common.stack_dir(stack) / "series.json", state)


def head(repo, name="refs/heads/series"):
    try:
        return git(repo, "rev-parse", "-q", "--verify", f"{name}^{{commit}}").strip()
    except ToolError:
        return None


def uncommitted(repo):
    """What keeps the branch series from being all there is in the tree, or ''."""
    for name in ("rebase-apply", "rebase-merge"):
        if (repo / ".git" / name).exists():
            return "a rebase or git am that is not finished"
    if git(repo, "status", "--porcelain"):
        return "changes that are not committed"
    if head(repo) != head(repo, "HEAD"):
        return "another commit than the branch series checked out"
    return ""


def update_tree(stack):
    """Bring build/<stack>/tree in line with patches/<stack>; its Base and commit."""
    base = base_.base(stack)
    repo = common.stack_dir(stack) / "tree"
    directory = common.patch_dir(stack)
    state, key = read_state(stack), patches_key(directory, base.commit)
    if state.get("key") == key and head(repo):
        return base, head(repo)
    # unfinished: we were interrupted while overwriting what had been looked at already
    if head(repo) and not common.settings.force and not state.get("unfinished"):
        work = uncommitted(repo)
        if not work and head(repo) != (state.get("commit") or head(repo, "refs/tags/base")):
            work = "commits that are not exported"
        if work:
            raise ToolError(f"{repo} has {work}, and patches/{stack} or the base is another now: "
                            f"FORCE=1 make export keeps your commits, FORCE=1 make tree throws them away")
    patches = patch_files(directory)
    progress(f"git am of {len(patches)} patches onto QEMU {base.version}")
    with worktree(repo, common.stack_dir(stack) / "am", base.commit) as work:
        commit = am(work, patches)
    for left in ("rebase-apply", "rebase-merge"):
        shutil.rmtree(repo / ".git" / left, ignore_errors=True)
    write_state(stack, unfinished=True)
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
    try:
        git(repo, "merge-base", "--is-ancestor", base, commit)
    except ToolError as e:
        raise ToolError(f"{repo}: the branch series is not based on the tag base; rebase it onto that") from e
    if git(repo, "rev-list", "--merges", f"{base}..{commit}").strip():
        raise ToolError(f"{repo}: a merge is among the commits; make them a plain row (git rebase base)")
    return git(repo, "rev-list", "--reverse", f"{base}..{commit}").split()


def format_patches(repo, out, cover, base="base", commit="series", env=None):
    """Write base..commit to the directory out; cover is (subject, empty line, body)."""
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
        f"{base}..tool/format", env={"GIT_COMMITTER_DATE": date, **(env or {})})
    git(repo, "update-ref", "-d", "refs/heads/tool/format")
    return sorted(out.glob("*.patch"))


def export():
    stack = common.stack_name()
    base = base_.base(stack)
    repo, directory = common.stack_dir(stack) / "tree", common.patch_dir(stack)
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
    key = read_state(stack).get("key")
    if key != patches_key(directory, base.commit) and not common.settings.force:
        raise ToolError(f"patches/{stack} has changed since the tree was made from it; FORCE=1 make export "
                        f"overwrites that, FORCE=1 make tree throws your commits away")
    out = common.stack_dir(stack) / "export"
    new = format_patches(repo, out, cover_text(directory))
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
    pin = base_.read_pin(stack)
    if pin.get("series_tree") != hashed:
        common.write_json(directory / "pin.json", {**pin, "series_tree": hashed})
    write_state(stack, key=patches_key(directory, base.commit), commit=head(repo))
    print(f"{directory}: {len(new) - 1} patches and the cover letter, {written} files changed, "
          f"{len(gone)} removed, tree {hashed}")
    if "*** SUBJECT HERE ***" in (directory / COVER).read_text():
        print(f"{directory / COVER}: write its subject and text by hand; export keeps them")


# -- check: each returns what is wrong, a line each ----------------------------

def check_numbers(directory):
    names = sorted(p.name for p in directory.iterdir() if p.name not in ("pin.json", HOOKS))
    out = [f"{n}: neither a patch nor the cover letter" for n in names if not re.fullmatch(r"\d{4}-.+\.patch", n)]
    out += [] if COVER in names else [f"{COVER}: missing"]
    numbers = [int(n[:4]) for n in names if n[:4].isdigit() and n != COVER]
    out += [f"{n:04}: more than one patch has this number" for n in sorted(set(numbers)) if numbers.count(n) > 1]
    out += [f"{n:04}: no patch has this number" for n in range(1, max(numbers, default=1) + 1) if n not in numbers]
    width = len(str(len(numbers)))
    for p in directory.glob("[0-9][0-9][0-9][0-9]-*.patch"):
        number, want = read_patch(p).number, f"{int(p.name[:4]):0{width}}/{len(numbers)}"
        out += [] if number == want else [f"{p.name}: its subject says [PATCH {number}], not [PATCH {want}]"]
    return out


def check_subjects(patches):
    seen, out = {}, []
    for p in patches:
        if p.subject in seen:
            out.append(f"{p.name}: same subject as {seen[p.subject]}")
        seen.setdefault(p.subject, p.name)
        if p.path.name != COVER and not re.match(r"\S[^:]*: \S", p.subject):
            out.append(f"{p.name}: the subject is not `part: what it does`")
        if len(p.subject) > 76 or not p.subject or "***" in p.subject:
            out.append(f"{p.name}: the subject is empty, not written yet, or over 76 columns")
    return out


def check_descriptions(patches):
    out = []
    for p in patches:
        text = [s for s in p.message if s.strip()]
        if not text or "*** BLURB HERE ***" in text:
            out.append(f"{p.name}: no description")
        # tables, quoted output, links and `Name: value` may be as wide as they are
        out += [f"{p.name}: over 76 columns: {s}" for s in text if len(s) > 76 and " " in s.strip()
                and not re.match(r"[\s>|]|[A-Z][A-Za-z-]+: ", s) and "://" not in s]
    return out


def check_white_space(patches):
    return [f"{p.name}: trailing white space: {s.rstrip()}" for p in patches
            for s in p.message + p.added if re.search(r"[ \t\r]$", s)]


# How a patch is put forward for QEMU's stable releases; a list, not a person
STABLE = "Cc: qemu-stable@nongnu.org"


def check_identity(patches):
    ours, out = email.utils.formataddr(common.IDENTITY), []
    for p in patches:
        if p.sender != ours:
            out.append(f"{p.name}: From: {p.sender}; the series is kept as {ours}")
        for s in p.message:
            if s == STABLE:
                continue
            if re.match(r"\s*([\w-]+-by|cc|from|to|message-id|change-id):\s", s, re.I):
                out.append(f"{p.name}: no sign-off or other name belongs in it: {s}")
            elif re.search(r"[\w.+-]+@[\w-]+\.[\w.-]+", s):
                out.append(f"{p.name}: an address in the text: {s}")
    return out


def check_machine(patches):
    """Nothing of the machine it was made on, and no address of a package registry or mirror."""
    path = r"(?<![\w.*])/(work|root|home|Users)/\S|" + re.escape(str(common.ROOT))
    host = r"://[^/\s]*\b(deb|archive|mirrors?|registry|proxy|packages|pypi|npm|crates|artifact\w*)\b"
    return [f"{p.name}: a path of one machine, or a package registry: {s.strip()}" for p in patches
            for lines, what in [(p.message, rf"{path}|{host}|(?<![\w.])/tmp/"), (p.added, rf"{path}|{host}")]
            for s in lines if re.search(what, s)]


def check_tree(work, commit, want):
    have = git(work, "rev-parse", f"{commit}^{{tree}}").strip()
    return [] if have == want else [f"the patches give tree {have}, pin.json says {want or 'none'}; "
                                    "if that is meant, make tree and make export"]


def check_export(work, base, commit, directory, out):
    """Import followed by export must give the same bytes."""
    format_patches(work, out, cover_text(directory), base, commit)
    names = sorted({p.name for d in (out, directory) for p in d.glob("*.patch")})
    same = [(out / n).is_file() and (directory / n).is_file()
            and (out / n).read_bytes() == (directory / n).read_bytes() for n in names]
    shutil.rmtree(out)
    return [f"{n}: another export would change it; make tree and make export" for n, s in zip(names, same) if not s]


def maintained(work, name):
    """Whether a section of MAINTAINERS, other than the one for everything, has the file."""
    rules = re.findall(r"^F:\s*(\S+)", (work / "MAINTAINERS").read_text(errors="replace"), re.M)
    return any(name.startswith(r) if r.endswith("/") else
               fnmatch.fnmatchcase(name, r) and r.count("/") == name.count("/")
               for r in rules if r not in ("*", "*/"))


def check_style(work, base, commit, patches):
    """QEMU's own checkpatch.pl, as it is in the base; work has the series applied."""
    script = work / git(work, "rev-parse", "--git-path", "checkpatch.pl").strip()
    script.write_text(git(work, "show", f"{base}:scripts/checkpatch.pl"))
    p = subprocess.run(["perl", script, f"--root={work}", "--no-signoff", "--terse", "--no-summary",
                        *[str(p.path) for p in patches]], cwd=work, text=True, errors="replace",
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    changed = git(work, "diff", "--name-only", "--no-renames", "--diff-filter=A", base, commit).split()
    lost = [n for n in changed if not maintained(work, n)]
    out = [s.removeprefix(f"{patches[0].path.parent}/") for s in p.stdout.splitlines()
           # it asks at each new file; the answer is looked up instead
           if "does MAINTAINERS need updating" not in s]
    out = [s for s in out if s.strip() and not s.endswith("has no obvious style problems and is ready for submission.")]
    out += [f"{n}: no section of MAINTAINERS has this new file" for n in lost]
    return out or ([f"checkpatch.pl ended with {p.returncode}"] if p.returncode > 1 else [])


def check_debian(work, base, commit, debian):
    """The series must also apply where Debian's own patches are: it touches nothing that they change."""
    index, diff = (work / git(work, "rev-parse", "--git-path", n).strip() for n in ("debian-index", "debian.diff"))
    env = {"GIT_INDEX_FILE": str(index)}
    git(work, "diff", "--binary", "--full-index", "--no-renames", f"--output={diff}", base, commit)
    git(work, "read-tree", debian, env=env)
    try:
        git(work, "apply", "--cached", "--check", "--allow-empty", str(diff), env=env)
    except ToolError as e:
        return [f"with Debian's own patches the series does not apply: {str(e).partition(': ')[2]}"]
    return []


def run_checks(directory, repo, base, work, series_tree=None, debian=None):
    """Yield (name, list of what is wrong); base is a commit of repo."""
    yield "files: numbers without gaps, one cover letter", check_numbers(directory)
    patches = patch_files(directory)
    if not patches:
        yield "there is a patch", ["no patch at all"]
        return
    each = [read_patch(p) for p in patches]
    try:
        every = each + ([read_cover(directory / COVER)] if (directory / COVER).is_file() else [])
        yield "the cover letter can be read", []
    except ToolError as e:
        yield "the cover letter can be read", [str(e)]
        return
    yield "subjects: `part: what`, no duplicates", check_subjects(every)
    yield "descriptions: there, and at most 76 columns", check_descriptions(every)
    yield "no trailing white space", check_white_space(every)
    yield f"From: {common.IDENTITY[0]} alone, no sign-off", check_identity(every)
    yield "no path of a machine, no registry", check_machine(every)
    with worktree(repo, work, base):
        try:
            commit = am(work, patches)
        except ToolError as e:
            yield "plain git am onto the base", [f"{e}; what follows from it was not checked"]
            return
        yield "plain git am onto the base", []
        if series_tree is not None:
            yield "tree hash as in pin.json", check_tree(work, commit, series_tree)
        yield "another export gives the same bytes", check_export(work, base, commit, directory, work.with_name("export"))
        yield "checkpatch.pl; new files in MAINTAINERS", check_style(work, base, commit, each)
        if debian:
            yield "nothing that Debian's own patches change", check_debian(work, base, commit, debian)


def report_checks(checks):
    """A line per check, more for one that fails; whether all passed."""
    ok = True
    for name, wrong in checks:
        print(f"{'FAIL' if wrong else 'PASS'}  {name}", flush=True)
        for line in wrong:
            print(f"      {line}")
        ok = ok and not wrong
    return ok


def stack_checks(stack, base):
    top = common.stack_dir(stack)
    return run_checks(common.patch_dir(stack), top / "tree", base.commit, top / "check",
                      base_.read_pin(stack).get("series_tree", "") if base.pinned else None, base.debian)


def check():
    stack = common.stack_name()
    base, top = base_.base(stack), common.stack_dir(stack)
    ok = report_checks(stack_checks(stack, base))
    if not base.pinned:
        print("----  tree hash: not compared, as this is not the pinned base")
    if not base.debian:
        print("----  Debian's own patches: not compared, as the base is QEMU_SRC=")
    known = read_state(stack)
    if known and head(top / "tree") not in (None, known.get("commit")):
        print(f"----  {top / 'tree'} has commits that are not exported; the files in patches/{stack} were checked")
    return 0 if ok else 1


# -- mail ----------------------------------------------------------------------

def sender():
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


def smtp_sink(text):
    """MAIL_SMTP=host:port, for tests; never a real server."""
    if not text:
        return None
    m = re.fullmatch(r"(127\.0\.0\.1|localhost|\[::1\]):(\d{1,5})", text)
    if not m:
        raise ToolError(f"MAIL_SMTP={text}: only for tests with a sink on this machine, such as 127.0.0.1:2525; "
                        "to send for real, use the command that make mail prints")
    return m[1].strip("[]"), m[2]


def sign(repo, base, commit, who):
    """The commits re-authored to who, with their Signed-off-by; the last of them."""
    new = head(repo, base)
    for old in linear(repo, base, commit):
        tree, date, message = git(repo, "show", "-s", "--format=%T%n%aI%n%B", old).split("\n", 2)
        env = {"GIT_AUTHOR_NAME": who[0], "GIT_AUTHOR_EMAIL": who[1], "GIT_AUTHOR_DATE": date,
               "GIT_COMMITTER_NAME": who[0], "GIT_COMMITTER_EMAIL": who[1]}
        text = message.strip("\n") + "\n"
        text = git(repo, "interpret-trailers", "--if-exists=addIfDifferent", "--trailer",
                   f"Signed-off-by: {who[0]} <{who[1]}>", input=text, stdin=None)
        new = git(repo, "commit-tree", tree, "-p", new, env=env, input=text, stdin=None).strip()
    return new


def recipients(work, patch):
    """(lists, people) that get_maintainer.pl names for a patch."""
    said = run(["perl", "scripts/get_maintainer.pl", "--noroles", "--norolestats", "--nogit",
                "--nogit-fallback", patch], cwd=work).splitlines()
    found = [a for a in (email.utils.parseaddr(s) for s in said) if "@" in a[1]]
    return ([email.utils.formataddr(a) for a in found if not a[0]],
            [email.utils.formataddr(a) for a in found if a[0]])


def address(path, lists, people):
    """Put To: and Cc: into a patch mail; git am does not mind them."""
    head_, _, body = path.read_bytes().partition(b"\n\n")
    for name, who in [("To", lists), ("Cc", people)]:
        if who:
            head_ += f"\n{name}: ".encode() + ",\n ".join(who).encode()
    path.write_bytes(head_ + b"\n\n" + body)


def mail(smtp=""):
    stack = common.stack_name()
    who, sink = sender(), smtp_sink(smtp)
    base, top, directory = base_.base(stack), common.stack_dir(stack), common.patch_dir(stack)
    repo, out, cover = top / "tree", top / "mail", cover_text(directory)
    if "***" in cover or not patch_files(directory):
        raise ToolError(f"{directory}: no patches, or the cover letter is not written yet")
    with worktree(repo, top / "mail-tree", base.commit) as work:
        lists, people = {}, {}
        commit = am(work, patch_files(directory))
        signed = sign(work, base.commit, commit, who)
        files = format_patches(work, out, cover, base.commit, signed, env={
            "GIT_COMMITTER_NAME": who[0], "GIT_COMMITTER_EMAIL": who[1]})
        git(work, "checkout", "-q", "--detach", base.commit)
        for path in files[1:]:
            to, cc = recipients(work, path)
            address(path, to, cc)
            lists |= dict.fromkeys(to)
            people |= dict.fromkeys(cc)
    address(files[0], lists, people)
    if not lists:
        raise ToolError("scripts/get_maintainer.pl of the base names no mailing list for these patches")
    git(repo, "update-ref", "refs/heads/mail", signed)
    send = ["git", "send-email", "--confirm=never", "--8bit-encoding=UTF-8", "--suppress-cc=self",
            "--no-chain-reply-to", "--thread", "--no-validate", f"--from={who[0]} <{who[1]}>"]
    env = None
    if sink:
        send += [f"--smtp-server={sink[0]}", f"--smtp-server-port={sink[1]}", "--smtp-encryption=none"]
        # nothing that the person has set for a real server
        env = environment.child({"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
               "GIT_AUTHOR_NAME": who[0], "GIT_AUTHOR_EMAIL": who[1],
               "GIT_COMMITTER_NAME": who[0], "GIT_COMMITTER_EMAIL": who[1]})
    log = top / "mail.log"
    run([*send, *([] if sink else ["--dry-run"]), *files], cwd="/", env=env, log=log)
    print(f"{len(files)} mails by {who[0]} <{who[1]}> in {out}; branch mail in {repo}")
    print(f"To: {', '.join(lists)}\nCc: {', '.join(people)}\n(each patch: only those that it concerns)")
    print("Your sign-off certifies the origin of each line; QEMU declines AI-generated content. "
          "Read docs/series-tools.md, Sending, first.")
    if sink:
        print(f"sent to the sink at {sink[0]}:{sink[1]}")
    else:
        print(f"git send-email --dry-run is content ({log}). Nothing was sent. To send them:\n"
              f"    {shlex.join(s for s in send if s != '--confirm=never')} {out}/*.patch")


@dataclasses.dataclass(frozen=True)
class Options:
    action: str = options.choice(["tree", "export", "check", "mail"], "", "what to do", positional="?")
    mail_smtp: str = options.text("", "for tests: host:port of a sink on this machine")


def main(given: Options) -> int:
    """The patches: patches/STACK/*.patch <-> git commits in build/STACK/tree.

    tree: a git tree, the base and a commit for each patch. export: its commits back to patches/.
    check: lint, git am, export once more, checkpatch. mail: with your sign-off, up to
    git send-email --dry-run.

    Example: dc series check --stack v10.2
    """
    if given.action == "mail":
        return mail(given.mail_smtp)
    commands = {"tree": tree, "export": export, "check": check}
    if given.action not in commands:
        raise ToolError("give one of tree, export, check, mail")
    return commands[given.action]()
