# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's unit tests."""

import concurrent.futures
import json
import os
import pathlib
import shutil

from dctools import build
from dctools.check.results import Results, logs
from dctools.common import ToolError, progress
from dctools.check.built import built
from dctools.process import limited

# Tests that code in the series runs through, or that run through it.
UNIT_TESTS = ["test-aio", "test-aio-multithread", "test-bdrv-drain", "test-bdrv-graph-mod",
              "test-block-backend", "test-block-iothread", "test-blockjob", "test-blockjob-txn",
              "test-coroutine", "test-defer-call", "test-fdmon-epoll", "test-image-locking",
              "test-io-refused",
              "test-thread-pool", "test-throttle", "test-write-threshold"]
# They came later. Not part of the key of tested.json: a tree that has no such file cannot fail it.
LATER_TESTS = ["test-aio-io-uring"]


def meson_test(prefix: str, directory: pathlib.Path, names: list[str]) -> dict[str, str | None]:
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


def unit_names(src: pathlib.Path) -> list[str]:
    """The unit tests that this commit has: the new one comes with the series, and QEMU drops some."""
    return [n for n in UNIT_TESTS + LATER_TESTS if (src / f"tests/unit/{n}.c").is_file()]


def run_copies(copies: pathlib.Path, prefix: str, env: dict[str, str]) -> list[str]:
    """Run copies of unit tests as meson would; what failed.

    Twice, because some measure time, and the machine is busy; one that is broken fails again.
    """
    def one(test: pathlib.Path) -> str:
        log = logs() / f"{prefix}-{test.name}.log"
        for attempt in range(2):
            if not (status := limited([test, "--tap", "-k"], log, 300, cwd=copies, env=env)):
                break
            if not attempt:
                log.rename(first := log.with_suffix(".first.log"))
                progress(f"{prefix}: {test.name} ended with {status}, see {first}; once more")
        return f"{test.name}: {status}, see {log}" if status else ""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = [said for said in pool.map(one, sorted(copies.iterdir())) if said]
    shutil.rmtree(copies)
    return failed


def check_unit(results: Results, stack: str) -> None:
    """QEMU's unit tests that the series can affect, and its own."""
    src = built(stack).parent / "src"
    names = unit_names(src)
    if "test-defer-call" not in names:
        raise ToolError("the series has no tests/unit/test-defer-call.c")
    directory = built(stack, [f"tests/unit/{t}" for t in names])
    for name, problem in meson_test("unit", directory, names).items():
        results.add(f"unit {name}", problem)
