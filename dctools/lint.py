# SPDX-License-Identifier: GPL-2.0-or-later
"""make series-check: what can be wrong with patches and cover letters.

A line for each check, and TOPIC= for one topic with what it needs.
"""

import email.utils
import fnmatch
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from dctools import base as base_
from dctools import common, series
from dctools.common import ToolError, git
from dctools.series import COVER, HOOKS, Patch, Topic, read_cover, read_patch

Checks = Iterator[tuple[str, list[str]]]        # its name, what is wrong, a line each

MAX_PATCHES, MAX_COVER, MAX_MESSAGE = 15, 80, 45


# -- check: each returns what is wrong, a line each ----------------------------

def check_folders(directory: pathlib.Path, topics: Sequence[Topic]) -> list[str]:
    """Nothing but the topics' folders and what belongs to the stack."""
    names = {p.name for p in directory.iterdir()} - {"pin.json", "tested.json", HOOKS} - {t.name for t in topics}
    missing = [t.name for t in topics if not t.directory.is_dir()]
    return [f"{n}: pin.json names no such topic" for n in sorted(names)] + \
        [f"{n}: pin.json names this topic, but there is no such folder" for n in missing]


def check_numbers(topic: Topic) -> list[str]:
    names = sorted(p.name for p in topic.directory.iterdir())
    out = [f"{n}: neither a patch nor the cover letter" for n in names if not re.fullmatch(r"\d{4}-.+\.patch", n)]
    out += [] if COVER in names else [f"{COVER}: missing"]
    numbers = [int(n[:4]) for n in names if n[:4].isdigit() and n != COVER]
    out += [] if numbers else ["no patch at all"]
    out += [f"{n:04}: more than one patch has this number" for n in sorted(set(numbers)) if numbers.count(n) > 1]
    out += [f"{n:04}: no patch has this number" for n in range(1, max(numbers, default=1) + 1) if n not in numbers]
    width = len(str(len(numbers)))
    for p in topic.directory.glob("[0-9][0-9][0-9][0-9]-*.patch"):
        number, want = read_patch(p).number, f"{int(p.name[:4]):0{width}}/{len(numbers)}"
        out += [] if number == want else [f"{p.name}: its subject says [PATCH {number}], not [PATCH {want}]"]
    return [f"{topic.name}/{s}" for s in out]


def lines(message: Sequence[str]) -> int:
    """How many lines a message has."""
    return len("\n".join(message).strip("\n").split("\n"))


def check_sizes(topics: Sequence[Topic], patches: Sequence[Patch]) -> list[str]:
    """Of topics, cover letters before the list of patches, and messages; and numbers of patches, since these move."""
    out = []
    for topic in topics:
        own = [p for p in patches if p.path.parent == topic.directory and p.path.name != COVER]
        if len(own) > MAX_PATCHES:
            out.append(f"{topic.name}: {len(own)} patches, and at most {MAX_PATCHES} in a topic")
    for p in patches:
        most = MAX_COVER if p.path.name == COVER else MAX_MESSAGE
        if lines(p.message) > most:
            out.append(f"{p.name}: {lines(p.message)} lines, and at most {most}")
        out += [f"{p.name}: a patch is called by its number: {s.strip()}" for s in p.message
                if re.search(r"\bpatch(es)? #?\d|\[PATCH|\b\d{4}-[\w-]+\.patch\b", s, re.I)]
    return out


def check_needs(topics: Sequence[Topic], covers: dict[str, Patch], pin: dict[str, Any]) -> list[str]:
    """A cover letter says what its topic applies to: {topic: cover letter}."""
    out = []
    for topic in topics:
        if topic.name not in covers:
            continue
        text = covers[topic.name].message
        have = [s for s in text if s.startswith("Based-on:")]
        want = [f'Based-on: the series "{covers[n].subject}"' for n in topic.needs if n in covers]
        name = f"{topic.name}/{COVER}"
        out += [f"{name}: no line `{s}`" for s in want if s not in have]
        out += [f"{name}: pin.json does not say that the topic needs this: {s}" for s in have if s not in want]
        alone = f"applies to {pin['tag']}"
        if bool(topic.needs) == bool(re.search(rf"{re.escape(alone)}(?![\w-])", " ".join(text), re.I)):
            out.append(f"{name}: says `{alone}`, but the topic needs others" if topic.needs else
                       f"{name}: does not say `{alone}`")
    return out


def check_subjects(patches: Sequence[Patch]) -> list[str]:
    seen: dict[str, str] = {}
    out = []
    for p in patches:
        if p.subject in seen:
            out.append(f"{p.name}: same subject as {seen[p.subject]}")
        seen.setdefault(p.subject, p.name)
        if p.path.name != COVER and not re.match(r"\S[^:]*: \S", p.subject):
            out.append(f"{p.name}: the subject is not `part: what it does`")
        if len(p.subject) > 76 or not p.subject or "***" in p.subject:
            out.append(f"{p.name}: the subject is empty, not written yet, or over 76 columns")
    return out


def check_descriptions(patches: Sequence[Patch]) -> list[str]:
    out = []
    for p in patches:
        text = [s for s in p.message if s.strip()]
        if not text or "*** BLURB HERE ***" in text:
            out.append(f"{p.name}: no description")
        # tables, quoted output, links and `Name: value` may be as wide as they are
        out += [f"{p.name}: over 76 columns: {s}" for s in text if len(s) > 76 and " " in s.strip()
                and not re.match(r"[\s>|]|[A-Z][A-Za-z-]+: ", s) and "://" not in s]
    return out


def check_white_space(patches: Sequence[Patch]) -> list[str]:
    return [f"{p.name}: trailing white space: {s.rstrip()}" for p in patches
            for s in p.message + p.added if re.search(r"[ \t\r]$", s)]


# How a patch is put forward for QEMU's stable releases; a list, not a person
STABLE = "Cc: qemu-stable@nongnu.org"


def check_identity(patches: Sequence[Patch]) -> list[str]:
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


def check_machine(patches: Sequence[Patch]) -> list[str]:
    """Nothing of the machine it was made on, and no address of a package registry or mirror."""
    path = r"(?<![\w.*])/(work|root|home|Users)/\S|" + re.escape(str(common.ROOT))
    host = r"://[^/\s]*\b(deb|archive|mirrors?|registry|proxy|packages|pypi|npm|crates|artifact\w*)\b"
    return [f"{p.name}: a path of one machine, or a package registry: {s.strip()}" for p in patches
            for lines, what in [(p.message, rf"{path}|{host}|(?<![\w.])/tmp/"), (p.added, rf"{path}|{host}")]
            for s in lines if re.search(what, s)]


def check_tree(work: pathlib.Path, commit: str, want: str) -> list[str]:
    have = git(work, "rev-parse", f"{commit}^{{tree}}").strip()
    return [] if have == want else [f"the patches give tree {have}, pin.json says {want or 'none'}; "
                                    "if that is meant, make tree and make export"]


def check_export(work: pathlib.Path, topics: Sequence[Topic], starts: dict[str, str], tips: dict[str, str],
                 out: pathlib.Path) -> list[str]:
    """Import followed by export must give the same bytes."""
    wrong = []
    for topic in topics:
        series.format_patches(work, out, series.cover_text(topic.directory), starts[topic.name], tips[topic.name])
        changed, gone = series.changed_files(out, topic.directory)
        wrong += [f"{topic.name}/{p.name}" for p in sorted(changed + gone, key=lambda p: p.name)]
        shutil.rmtree(out)
    return [f"{n}: another export would change it; make tree and make export" for n in wrong]


def check_alone(repo: pathlib.Path, work: pathlib.Path, base: str, topics: Sequence[Topic], some: Sequence[Topic],
                ) -> list[str]:
    """A topic must apply to what it needs, where other topics lie between or before it."""
    out = []
    for topic in some:
        chain = series.needed(topics, [topic])
        if chain == topics[:len(chain)]:
            continue            # it lies on just that
        with series.worktree(repo, work, base):
            try:
                series.am_topics(work, chain)
            except ToolError as e:
                out.append(f"{topic.name}, with nothing but {' and '.join(topic.needs) or 'the base'} below it: {e}")
    return out


def maintained(work: pathlib.Path, name: str) -> bool:
    """Whether a section of MAINTAINERS, other than the one for everything, has the file."""
    rules = re.findall(r"^F:\s*(\S+)", (work / "MAINTAINERS").read_text(errors="replace"), re.M)
    return any(name.startswith(r) if r.endswith("/") else
               fnmatch.fnmatchcase(name, r) and r.count("/") == name.count("/")
               for r in rules if r not in ("*", "*/"))


def check_style(work: pathlib.Path, base: str, commit: str, patches: Sequence[Patch]) -> list[str]:
    """QEMU's own checkpatch.pl, as it is in the base; work has the series applied."""
    script = work / git(work, "rev-parse", "--git-path", "checkpatch.pl").strip()
    script.write_text(git(work, "show", f"{base}:scripts/checkpatch.pl"))
    p = subprocess.run(["perl", script, f"--root={work}", "--no-signoff", "--terse", "--no-summary",
                        *[str(p.path) for p in patches]], cwd=work, text=True, errors="replace",
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    changed = git(work, "diff", "--name-only", "--no-renames", "--diff-filter=A", base, commit).split()
    lost = [n for n in changed if not maintained(work, n)]
    out = [s.removeprefix(f"{patches[0].path.parent.parent}/") for s in p.stdout.splitlines()
           # it asks at each new file; the answer is looked up instead
           if "does MAINTAINERS need updating" not in s]
    out = [s for s in out if s.strip() and not s.endswith("has no obvious style problems and is ready for submission.")]
    out += [f"{n}: no section of MAINTAINERS has this new file" for n in lost]
    return out or ([f"checkpatch.pl ended with {p.returncode}"] if p.returncode > 1 else [])


def check_debian(work: pathlib.Path, base: str, commit: str, debian: str) -> list[str]:
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


def check_texts(topics: Sequence[Topic], some: Sequence[Topic], pin: dict[str, Any], every: Sequence[Patch]) -> Checks:
    """Yield (name, what is wrong) of what can be seen without git; every: their patches and cover letters."""
    yield "subjects: `part: what`, no duplicates", check_subjects(every)
    yield "descriptions: there, and at most 76 columns", check_descriptions(every)
    yield "no trailing white space", check_white_space(every)
    yield f"From: {common.IDENTITY[0]} alone, no sign-off", check_identity(every)
    yield "no path of a machine, no registry", check_machine(every)
    yield "sizes of topics, covers and messages; no patch by its number", check_sizes(some, every)
    covers = {t.name: read_cover(t.directory / COVER) for t in series.needed(topics, some)
              if (t.directory / COVER).is_file()}
    yield "cover letters say what their topic needs", check_needs(some, covers, pin)


def check_applied(topics: Sequence[Topic], some: Sequence[Topic], pin: dict[str, Any] | None, repo: pathlib.Path,
                  base: str, work: pathlib.Path, each: Sequence[Patch], debian: str) -> Checks:
    """Yield (name, what is wrong) of what git has to apply for."""
    chain = series.needed(topics, some)
    with series.worktree(repo, work, base):
        try:
            tips = series.am_topics(work, chain)
        except ToolError as e:
            yield "plain git am onto the base", [f"{e}; what follows from it was not checked"]
            return
        yield "plain git am onto the base", []
        starts = dict(zip(tips, [base, *tips.values()]))
        commit = list(tips.values())[-1]
        if pin and len(chain) == len(topics):
            yield "tree hash as in pin.json", check_tree(work, commit, pin.get("series_tree", ""))
        yield "another export gives the same bytes", check_export(work, some, starts, tips, work.with_name("export"))
        yield "checkpatch.pl; new files in MAINTAINERS", check_style(work, base, commit, each)
        if debian:
            yield "nothing that Debian's own patches change", check_debian(work, base, commit, debian)
    yield "each topic applies to what it needs, without the others", check_alone(repo, work, base, topics, some)


def run_checks(stack: str, base: base_.Base, some: Sequence[Topic] | None = None) -> Checks:
    """Yield (name of a check, list of what is wrong), for these topics, or for all."""
    directory, top, pin = common.patch_dir(stack), common.stack_dir(stack), base_.read_pin(stack)
    topics = series.pinned_topics(stack)
    some = some or topics
    wrong = check_folders(directory, topics)
    yield "folders: those of the topics in pin.json", wrong
    if wrong:
        return
    yield "files: numbers without gaps, one cover letter", [s for t in some for s in check_numbers(t)]
    each = [read_patch(p) for t in some for p in t.patches()]
    try:
        every = each + [read_cover(t.directory / COVER) for t in some if (t.directory / COVER).is_file()]
        [series.cover_text(t.directory) for t in series.needed(topics, some)]
        yield "the cover letters can be read", []
    except ToolError as e:
        yield "the cover letters can be read", [str(e)]
        return
    yield from check_texts(topics, some, pin, every)
    if all(t.patches() for t in series.needed(topics, some)):
        yield from check_applied(topics, some, pin if base.pinned else None, top / "tree", base.commit, top / "check",
                                 each, base.debian)


def report_checks(checks: Checks) -> bool:
    """A line per check, more for one that fails; whether all passed."""
    ok = True
    for name, wrong in checks:
        print(f"{'FAIL' if wrong else 'PASS'}  {name}", flush=True)
        for line in wrong:
            print(f"      {line}")
        ok = ok and not wrong
    return ok


def check() -> int:
    """All of them, for TOPIC= or the whole stack; 1 if something is wrong."""
    stack = common.stack_name()
    some = series.wanted(series.pinned_topics(stack))
    base, top = base_.base(stack), common.stack_dir(stack)
    ok = report_checks(run_checks(stack, base, some))
    if not base.pinned:
        print("----  tree hash: not compared, as this is not the pinned base")
    if not base.debian:
        print("----  Debian's own patches: not compared, as the base is QEMU_SRC=")
    known = series.read_state(stack)
    if known and series.head(top / "tree") not in (None, known.get("commit")):
        print(f"----  {top / 'tree'} has commits that are not exported; the files in patches/{stack} were checked")
    return 0 if ok else 1
