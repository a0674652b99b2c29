# SPDX-License-Identifier: GPL-2.0-or-later
"""Each patch builds and passes the unit tests.

patches/<stack>/tested.json has the trees with which that was seen; they are left out later, unless with FULL=1.
Each patch that passes is added at once. It counts only for the same base and the same way to build.
"""

import concurrent.futures
import hashlib
import json
import pathlib
import re
import shutil
from typing import Any

from dctools import base as base_
from dctools import build, common, series
from dctools.check.results import Results, logs
from dctools.check.units import UNIT_TESTS, run_copies, unit_names
from dctools.common import ToolError, git, progress

TARGETS = ["qemu-system-x86_64", "qemu-img", "qemu-io"]
UNREAD = re.compile(r"\ttests/qemu-iotests/\d+(\.out)?$")      # neither the build nor a unit test reads these


def content(repo: pathlib.Path, tree: str) -> str:
    """Names what the build and the unit tests can read of a tree."""
    files = [f for f in git(repo, "ls-tree", "-r", tree).splitlines() if not UNREAD.search(f)]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()[:40]


class Tested:
    """The contents that have passed."""

    def __init__(self, stack: str, base: base_.Base) -> None:
        self.pinned = base.pinned
        self.path = common.patch_dir(stack) / "tested.json"
        # with others the same tree is another test
        how = [base.tree, TARGETS, UNIT_TESTS, build.CONFIGURE, base_.read_pin(stack).get("configure", [])]
        self.key = hashlib.sha256(json.dumps(how).encode()).hexdigest()
        try:
            known = json.loads(self.path.read_text())
            self.known: dict[str, str] = known["trees"] if known["key"] == self.key else {}
        except (OSError, ValueError, KeyError, TypeError):
            self.known = {}

    def add(self, tree: str, subject: str) -> None:
        """It has passed."""
        self.known[tree] = subject
        self.write()

    def write(self) -> None:
        """Nothing for another base than the pinned one."""
        if self.pinned:
            common.write_json(self.path, {"key": self.key, "trees": self.known})


class Patches:
    """The unit tests of one patch after the other; what a patch does not change does not run again."""

    def __init__(self, stack: str) -> None:
        self.stack = stack
        self.done: dict[str, str] = {}          # {test: hash of the binary}

    def build(self, name: str, commit: str) -> tuple[pathlib.Path, dict[str, str]]:
        """Copies of the unit tests that the commit has changed, and what they have to run with."""
        src = build.checkout(self.stack, "series", commit)
        names = unit_names(src)
        directory = build.build_side(self.stack, "series", commit, [*TARGETS, *[f"tests/unit/{t}" for t in names]])
        copies = logs() / name
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir(parents=True)
        for t in names:
            binary = directory / "tests/unit" / t
            now = common.sha256(binary)
            if self.done.get(t) != now:
                self.done[t] = now
                shutil.copy(binary, copies)
        progress(f"{name}: {len(list(copies.iterdir()))} of {len(names)} unit tests to run, "
                 "whose binaries it has changed")
        return copies, {**build.clean_environment(directory.parent), "G_TEST_SRCDIR": str(src / "tests/unit"),
                        "G_TEST_BUILDDIR": str(directory / "tests/unit")}


def finish(results: Results, tested: Tested, tree: str, subject: str, future: concurrent.futures.Future) -> None:
    """Count a patch."""
    title = f"patch builds, {subject}"
    try:
        failed = "; ".join(future.result())
    except ToolError as e:
        failed = str(e)
    results.add(title, failed or None)
    if not failed:
        tested.add(tree, subject)


def test_patches(results: Results, stack: str, tested: Tested, rows: list[tuple[str, str, str]]) -> None:
    """Each of these, (commit, content, subject), in their order."""
    patches, before = Patches(stack), None
    # The tests mostly wait, so the next patch is built meanwhile
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for n, (commit, tree, subject) in enumerate(rows, 1):
            future: concurrent.futures.Future[Any]
            try:
                copies, env = patches.build(f"patch-{n:04}", commit)
                future = pool.submit(run_copies, copies, copies.name, env)
            except ToolError as e:
                future = concurrent.futures.Future()
                future.set_exception(e)
            if before:
                finish(results, tested, *before)
            before = tree, subject, future
        if before:
            finish(results, tested, *before)


def check_patches(results: Results, stack: str) -> None:
    """Each patch must build and pass the unit tests, one after the other."""
    base, tip = series.update_tree(stack)
    repo = common.stack_dir(stack) / "tree"
    log = git(repo, "log", "--reverse", "--format=%H %T %s", f"{base.commit}..{tip}").splitlines()
    rows = [(commit, content(repo, tree), subject) for commit, tree, subject in (line.split(" ", 2) for line in log)]
    tested = Tested(stack, base)
    new = [row for row in rows if common.settings.full or row[1] not in tested.known]
    if len(new) < len(rows):
        results.left_out.append(f"{stack}: {len(rows) - len(new)} of {len(rows)} patches, whose trees have been built "
                                "and tested before")
    test_patches(results, stack, tested, new)
    if not new:
        results.add("patches: the trees of all are those that were tested")
    elif not results.failed:
        tested.known = {tree: subject for _, tree, subject in rows}
        tested.write()
