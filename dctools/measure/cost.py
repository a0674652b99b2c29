# SPDX-License-Identifier: GPL-2.0-or-later
"""What a section, a call and a request cost, in instructions: valgrind counts them, on any machine alike."""

import dataclasses
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from dctools import build, common, guest, series
from dctools.common import ToolError, progress
from dctools.measure import generator, plan
from dctools.process import run

BENCH = "tests/bench/defer-call-bench"
CALLS = [0, 1, 8, 64, 1024]
ROUNDS = (10, 20)       # as many digits each, so that printing them costs the same
WAYS: dict[str, list[str]] = {"defer_call()": [], "linear search": ["-l"]}
COLUMNS = [("section", 9), ("per call", 8), ("duplicate", 9), ("array: section", 14), ("per call", 8), ("duplicate", 9)]
FEW, MANY, GROWTH = 8, 1024, 1.5    # a call among MANY may cost GROWTH times one among FEW
# Called by the IOThread once per request, in all releases
PER_REQUEST = "virtqueue_push"
DUMP_EACH = 3_000_000   # basic blocks, which are some hundred requests

Costs = tuple[float, float | None, float | None]        # of a section, of a call, of the same call again


def need_valgrind() -> None:
    """A ToolError if there is none."""
    if not shutil.which("valgrind"):
        raise ToolError("valgrind is missing; run `make install`, or install the Debian package valgrind")


def valgrind(said: str, *cmd: Any) -> int:
    """Run cmd under valgrind; the number that it prints where `said` has its group."""
    need_valgrind()
    text = run(["valgrind", "--command-line-only=yes", "--log-fd=1", *cmd])
    if not (m := re.search(said, text)):
        raise ToolError(f"valgrind printed nothing like `{said}`")
    return int(m[1].replace(",", ""))


def section(binary: pathlib.Path, calls: int, *args: str) -> float:
    """Instructions for a section with that many calls."""
    # from main() on: before it, the dynamic linker's work differs from run to run
    counts = [valgrind(r"Collected : (\d+)", "--tool=callgrind", "--callgrind-out-file=/dev/null",
                       "--toggle-collect=main", binary, "-n", calls, "-r", r, *args) for r in ROUNDS]
    cost = (counts[1] - counts[0]) / (ROUNDS[1] - ROUNDS[0])
    if cost <= 0:
        raise ToolError(f"{counts[0]} instructions in {ROUNDS[0]} rounds, {counts[1]} in {ROUNDS[1]}: "
                        "callgrind did not see the benchmark run")
    return cost


def costs(binary: pathlib.Path, way: str, calls: int) -> Costs:
    """Instructions: the whole section, its share for a call, and for deferring one call again."""
    once = section(binary, calls, *WAYS[way])
    if not calls:
        return once, None, None
    return once, once / calls, (section(binary, calls, "-d", *WAYS[way]) - once) / calls


def allocations(binary: pathlib.Path) -> dict[int, list[int]]:
    """{calls: the program's heap allocations with either number of rounds}"""
    return {n: [valgrind(r"total heap usage: ([\d,]+) allocs", binary, "-n", n, "-r", r, "-d") for r in ROUNDS]
            for n in CALLS}


def judge_growth(few: Costs, many: Costs) -> None:
    """A ToolError if a call costs too much more among many calls than among few."""
    for what, a, b in zip(["a call", "a duplicate"], few[1:], many[1:]):
        assert a is not None and b is not None
        if b > GROWTH * a:
            raise ToolError(f"{what} costs {b:.0f} instructions among {MANY} calls, {b / a:.1f} times "
                            f"the {a:.0f} among {FEW}; {GROWTH} times are allowed")


def judge_allocations(counts: Mapping[int, Sequence[int]]) -> None:
    """A ToolError if sections after the first allocate memory."""
    for calls, (a, b) in counts.items():
        if a != b:
            raise ToolError(f"{calls} calls: {a} allocations in {ROUNDS[0]} rounds, {b} in {ROUNDS[1]}")
    # The queue grows in the warm-up round; who does not see that would see nothing in the others.
    if counts[MANY][0] <= counts[FEW][0]:
        raise ToolError("valgrind did not count the allocations of the warm-up round")


def check_growth(binary: pathlib.Path, way: str) -> None:
    """A ToolError if a call costs more the more calls there are."""
    judge_growth(costs(binary, way, FEW), costs(binary, way, MANY))


def check_allocations(binary: pathlib.Path) -> None:
    """A ToolError if sections after the first allocate memory."""
    judge_allocations(allocations(binary))


def table(found: Mapping[tuple[str, int], Costs]) -> str:
    """Lines for the person, of {(way, calls): costs()}."""
    lines = ["calls" + "".join(f"  {name:>{width}}" for name, width in COLUMNS)]
    for n in CALLS:
        cells = ["-" if c is None else f"{c:,.0f}" for way in WAYS for c in found[way, n]]
        lines.append(f"{n:5}" + "".join(f"  {cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS)))
    return "\n".join(lines)


def read_dump(text: str) -> tuple[int, int]:
    """(instructions, calls of PER_REQUEST) of a file of callgrind's, which names a function once and then by number."""
    total = re.search(r"^totals: (\d+)$", text, re.M)
    if not total:
        raise ToolError("callgrind did not finish a dump: it has no `totals:`")
    number = re.search(rf"fn=\((\d+)\) {PER_REQUEST}$", text, re.M)
    calls = re.findall(rf"^cfn=\({number[1]}\).*\ncalls=(\d+)", text, re.M) if number else []
    return int(total[1]), sum(map(int, calls))


def per_request(dumps: Sequence[tuple[int, int]]) -> float:
    """Instructions of the IOThread per request, from read_dump() of its dumps in their order."""
    found = [(n, calls) for n, calls in dumps if calls]
    if len(found) < 3:
        raise ToolError(f"callgrind saw requests in {len(found)} of its dumps, too few to tell what one costs")
    # the first has the start, too
    instructions, requests = map(sum, zip(*found[1:]))
    return instructions / requests


def io_cost(binary: pathlib.Path, image: generator.Image, p: plan.Parameters) -> float:
    """Instructions of the IOThread for a request by itself."""
    need_valgrind()
    with tempfile.TemporaryDirectory() as directory:
        out = pathlib.Path(directory) / "callgrind"
        # fair: else the thread that runs keeps the others from it. Nothing may be stopped with ptrace, it might
        # be the thread that runs.
        script = (f'exec valgrind --tool=callgrind --fair-sched=yes --separate-threads=yes --log-file={out}.log '
                  f'--dump-every-bb={DUMP_EACH} --callgrind-out-file={out} "{binary}" "$@"')
        with generator.wrapped(script) as wrapper:
            generator.run_load([*generator.command(wrapper, p.configs[0], p, image, 1), "--kick", "qtest",
                                "--verify", "none"], 300)
        # files are callgrind.DUMP-THREAD
        threads: dict[str, list[tuple[int, int]]] = {}
        for f in sorted(out.parent.glob("callgrind.*-*"), key=lambda f: int(f.name.split(".")[1].split("-")[0])):
            threads.setdefault(f.name.rpartition("-")[2], []).append(read_dump(f.read_text()))
        busy = [dumps for dumps in threads.values() if any(calls for _, calls in dumps)]
        if len(busy) != 1:
            raise ToolError(f"{len(busy)} threads call {PER_REQUEST}(), the IOThread alone should")
        return per_request(busy[0])


def io_costs(stack: str) -> dict[str, list[float]]:
    """{engine: [base, series]}"""
    found: dict[str, list[float]] = {}
    for aio in guest.AIO:
        p = plan.parameters(plan.Options(aio=(aio,), iodepth=(1,), queues=(1,), event_idx=("on",), irq=("each",),
                                         wait=("irq",), storage=("fast",), main=("driver",), seconds=8))
        with generator.images(p) as images:
            found[aio] = []
            for side in ("base", "series"):
                progress(f"{aio}, one request at a time, {side}")
                found[aio].append(io_cost(common.stack_dir(stack) / side / "build/qemu-system-x86_64",
                                          images["fast", aio], p))
    return found


def io_table(found: Mapping[str, Sequence[float]]) -> str:
    """Lines for the person, of io_costs()."""
    lines = [f"{'IOThread, per request at depth 1':34}{'base':>8}{'series':>9}"]
    lines += [f"{aio:34}{a:8,.0f}{b:9,.0f}{b - a:+8,.0f}{(b / a - 1):+8.1%}" for aio, (a, b) in found.items()]
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Options:
    pass


def main(_: Options) -> None:
    """What deferred calls and requests cost, in instructions.

    The series' tests/bench/defer-call-bench runs under valgrind's callgrind, which counts
    instructions exactly, once with defer_call() and once with an array that is searched for
    duplicates from its start. Two numbers of rounds, whose difference leaves out start-up and
    the warm-up round. The benchmark's own loop and the called function are counted on both sides.

    Then the load generator has base and series under callgrind do I/O, one request at a time, where
    nothing follows that a deferred call could wait for: what does the IOThread execute for each?
    """
    stack = common.stack_name()
    tip = series.update_tree(stack)[1]
    if not common.git(common.stack_dir(stack) / "tree", "ls-tree", tip, f"{BENCH}.c"):
        raise ToolError(f"patches/{stack} brings no {BENCH}; give another STACK=")
    build.build_both(stack)
    print(io_table(io_costs(stack)), flush=True)
    binary = build.build_side(stack, "series", tip, [BENCH]) / BENCH
    found = {}
    for way in WAYS:
        for n in CALLS:
            progress(f"{way}, {n} calls")
            found[way, n] = costs(binary, way, n)
    print(table(found), flush=True)
    check_allocations(binary)
    print("heap allocations after the first section: none")
