# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's unit tests, on the whole series and on each patch."""

import concurrent.futures
import json
import os
import shutil

from dctools import build, common, series
from dctools.check.results import Results, logs
from dctools.common import ToolError, git, progress
from dctools.check.built import built
from dctools.process import limited

# Tests that code in the series runs through, or that run through it.
UNIT_TESTS = ["test-aio", "test-aio-multithread", "test-bdrv-drain", "test-bdrv-graph-mod",
              "test-block-backend", "test-block-iothread", "test-blockjob", "test-blockjob-txn",
              "test-coroutine", "test-defer-call", "test-fdmon-epoll", "test-image-locking",
              "test-io-refused",
              "test-thread-pool", "test-throttle", "test-write-threshold"]


def meson_test(prefix, directory, names):
    """Run unit tests through meson, which gives each its timeout and environment."""
    log = logs() / f"{prefix.replace(' ', '-').replace('/', '-')}.log"
    result_file = directory / "meson-logs/testlog.json"
    result_file.unlink(missing_ok=True)
    limited([build.meson(directory), "test", "--no-rebuild", "--print-errorlogs", *names], log, 900,
            cwd=directory, env=build.clean_environment(directory.parent))
    found = {}
    if not result_file.is_file():
        raise ToolError(f"meson ran no test, see {log}")
    for line in result_file.read_text().splitlines():
        result = json.loads(line)
        found[result["name"].split(" / ")[-1]] = result["result"]
    return {name: None if found.get(name) == "OK" else f"{found.get(name, 'did not run')}, see {log}"
            for name in names}


def unit_names(src):
    """The unit tests that this commit has: the new one comes with the series, and QEMU drops some."""
    return [n for n in UNIT_TESTS if (src / f"tests/unit/{n}.c").is_file()]


def run_copies(copies, prefix, env):
    """Run copies of unit tests as meson would; what failed.

    Twice, because some measure time, and the machine is busy; one that is broken fails again.
    """
    def one(test):
        log = logs() / f"{prefix}-{test.name}.log"
        for attempt in range(2):
            if not (status := limited([test, "--tap", "-k"], log, 300, cwd=copies, env=env)):
                break
            if not attempt:
                log.rename(first := log.with_suffix(".first.log"))
                progress(f"{prefix}: {test.name} ended with {status}, see {first}; once more")
        return status and f"{test.name}: {status}, see {log}"
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = list(filter(None, pool.map(one, sorted(copies.iterdir()))))
    shutil.rmtree(copies)
    return failed


def check_patches(results: Results, stack: str) -> None:
    """Each patch must build and pass the unit tests, one after the other."""
    base, tip = series.update_tree(stack)
    repo = common.stack_dir(stack) / "tree"
    commits = git(repo, "rev-list", "--reverse", f"{base.commit}..{tip}").split()
    done = {}           # {test: hash of the binary}: a patch that does not change it need not run it again

    def build_patch(name, commit):
        """Copies of the unit tests that it has changed, and what they have to run with."""
        src = build.checkout(stack, "series", commit)
        names = unit_names(src)
        directory = build.build_side(stack, "series", commit, ["qemu-system-x86_64", "qemu-img", "qemu-io",
                                     *[f"tests/unit/{t}" for t in names]])
        copies = logs() / f"{name.replace(' ', '-')}"
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir(parents=True)
        for t in names:
            binary = directory / "tests/unit" / t
            now = common.sha256(binary)
            if done.get(t) != now:
                done[t] = now
                shutil.copy(binary, copies)
        progress(f"{name}: {len(list(copies.iterdir()))} of {len(names)} unit tests to run, whose binaries it has changed")
        return copies, {**build.clean_environment(directory.parent), "G_TEST_SRCDIR": str(src / "tests/unit"),
                        "G_TEST_BUILDDIR": str(directory / "tests/unit")}

    def finish(title, future):
        try:
            results.add(title, "; ".join(future.result()) or None)
        except ToolError as e:
            results.add(title, str(e))

    # The tests mostly wait, so the next patch is built meanwhile
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        before = None
        for n, commit in enumerate(commits, 1):
            name = f"patch {n:04}"
            title = f"{name} builds, {git(repo, 'log', '-1', '--format=%s', commit).strip()}"
            try:
                copies, env = build_patch(name, commit)
                future = pool.submit(run_copies, copies, copies.name, env)
            except ToolError as e:
                future = concurrent.futures.Future()
                future.set_exception(e)
            if before:
                finish(*before)
            before = title, future
        if before:
            finish(*before)


def check_unit(results: Results, stack: str) -> None:
    src = built(stack).parent / "src"
    names = unit_names(src)
    if "test-defer-call" not in names:
        raise ToolError("the series has no tests/unit/test-defer-call.c")
    directory = built(stack, [f"tests/unit/{t}" for t in names])
    for name, problem in meson_test("unit", directory, names).items():
        results.add(f"unit {name}", problem)
