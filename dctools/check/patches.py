# SPDX-License-Identifier: GPL-2.0-or-later
"""Each patch builds and passes the unit tests.

patches/<stack>/tested.json has the trees with which that was seen; they are left out later, unless with FULL=1.
It is renewed by each run in which all patches pass, and counts only for the same base and the same way to build.
"""

import concurrent.futures
import hashlib
import json
import pathlib
import shutil
from typing import Any

from dctools import base as base_
from dctools import build, common, series
from dctools.check.results import Results, logs
from dctools.check.units import UNIT_TESTS, run_copies, unit_names
from dctools.common import ToolError, git, progress

TARGETS = ["qemu-system-x86_64", "qemu-img", "qemu-io"]


class Tested:
    """The trees that have passed."""

    def __init__(self, stack: str, base_tree: str) -> None:
        self.path = common.patch_dir(stack) / "tested.json"
        # with others the same tree is another test
        how = [base_tree, TARGETS, UNIT_TESTS, build.CONFIGURE, base_.read_pin(stack).get("configure", [])]
        self.key = hashlib.sha256(json.dumps(how).encode()).hexdigest()
        try:
            known = json.loads(self.path.read_text())
            self.trees: dict[str, str] = known["trees"] if known["key"] == self.key else {}
        except (OSError, ValueError, KeyError, TypeError):
            self.trees = {}

    def write(self, trees: dict[str, str]) -> None:
        """These, {tree: subject}, and no others."""
        common.write_json(self.path, {"key": self.key, "trees": trees})


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


def finish(results: Results, title: str, future: concurrent.futures.Future) -> None:
    """Count a patch."""
    try:
        results.add(title, "; ".join(future.result()) or None)
    except ToolError as e:
        results.add(title, str(e))


def test_patches(results: Results, stack: str, commits: list[tuple[str, str]]) -> None:
    """Each of these, (title, commit), in their order."""
    patches, before = Patches(stack), None
    # The tests mostly wait, so the next patch is built meanwhile
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for n, (title, commit) in enumerate(commits, 1):
            future: concurrent.futures.Future[Any]
            try:
                copies, env = patches.build(f"patch-{n:04}", commit)
                future = pool.submit(run_copies, copies, copies.name, env)
            except ToolError as e:
                future = concurrent.futures.Future()
                future.set_exception(e)
            if before:
                finish(results, *before)
            before = title, future
        if before:
            finish(results, *before)


def check_patches(results: Results, stack: str) -> None:
    """Each patch must build and pass the unit tests, one after the other."""
    base, tip = series.update_tree(stack)
    repo = common.stack_dir(stack) / "tree"
    rows = [line.split(" ", 2) for line in
            git(repo, "log", "--reverse", "--format=%H %T %s", f"{base.commit}..{tip}").splitlines()]
    tested = Tested(stack, base.tree)
    known = {} if common.settings.full else tested.trees
    new = [(f"patch builds, {subject}", commit) for commit, tree, subject in rows if tree not in known]
    if len(new) < len(rows):
        results.left_out.append(f"{stack}: {len(rows) - len(new)} of {len(rows)} patches, whose trees have been built "
                                "and tested before")
    failed = len(results.failed)
    test_patches(results, stack, new)
    if new and len(results.failed) == failed and base.pinned:
        tested.write({tree: subject for _, tree, subject in rows})
    elif not new:
        results.add("patches: the trees of all are those that were tested")
