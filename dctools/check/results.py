# SPDX-License-Identifier: GPL-2.0-or-later
"""Counting tests, a line each."""

import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from dctools import common
from dctools.common import ToolError


def logs() -> pathlib.Path:
    return common.logs("check")


class Results:
    """What has passed and what has failed; the label of this process stands before each name."""

    def __init__(self) -> None:
        self.passed: int = 0
        self.failed: list[str] = []
        self.left_out: list[str] = []       # said at the end
        self.times: list[tuple[str, str, float, float]] = []    # (stack, part, CPU seconds, wall seconds)
        self.running = ""                   # what do() runs

    def count(self, others: "Results") -> None:
        """Add what others have."""
        self.passed += others.passed
        self.failed += others.failed
        self.left_out += others.left_out
        self.times += others.times

    def add(self, name: str, problem: str | None = None, seconds: float | None = None) -> None:
        """Count one test."""
        name = common.settings.label.replace(":", "") + name
        took = f" ({seconds:.0f} s)" if seconds and seconds >= 1 else ""
        if problem:
            self.failed.append(name)
            print(f"FAIL {name}{took}: {problem}", flush=True)
        else:
            self.passed += 1
            print(f"ok   {name}{took}", flush=True)

    def do(self, name: str, function: Callable, *args: Any) -> None:
        """Count one test that is a function: a ToolError is its failure."""
        start, problem, self.running = time.monotonic(), None, name
        try:
            function(*args)
        except ToolError as e:
            problem = str(e)
        self.running = ""
        self.add(name, problem, time.monotonic() - start)

    def tap(self, prefix: str, log: pathlib.Path, wanted: Sequence[str] = ()) -> None:
        """Count the lines of a TAP log; what was wanted and is not there has failed."""
        seen = set()
        for m in re.finditer(r"^(not )?ok \d+ (\S+)(.*)$", log.read_text(errors="replace"), re.M):
            seen.add(m[2])
            skipped = "# SKIP" in m[3]
            self.add(f"{prefix} {m[2]}", (m[1] and f"see {log}") or (skipped and "skipped") or None)
        for name in wanted:
            if name not in seen:
                self.add(f"{prefix} {name}", f"did not run, see {log}")
        if not seen:
            self.add(prefix, f"no test ran, see {log}")


def must_fail(said: str, function: Callable, *args: Any) -> None:
    """The function has to find something wrong, and to say so."""
    try:
        function(*args)
    except ToolError as e:
        if said in str(e):
            return
        raise
    raise ToolError(f"nothing was found wrong, but `{said}` was expected")


def must_say(results: Results, name: str, log: pathlib.Path, said: str) -> None:
    """Count a test of something wrong, which its log has to name."""
    found = re.search(said, log.read_text(errors="replace"))
    results.add(name, None if found else f"no `{said}`, so it noticed nothing, see {log}")
