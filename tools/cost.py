#!/usr/bin/python3
"""make bench-cost: what a section and a deferred call cost, in instructions.

The series' tests/bench/defer-call-bench runs under valgrind's callgrind, which counts
instructions exactly, once with defer_call() and once with an array that is searched for
duplicates from its start. Two numbers of rounds, whose difference leaves out start-up and
the warm-up round. The benchmark's own loop and the called function are counted on both sides.
"""

import re
import shutil

import build
import common
import series
from common import ToolError, progress, run

BENCH = "tests/bench/defer-call-bench"
CALLS = [0, 1, 8, 64, 1024]
ROUNDS = (10, 20)       # as many digits each, so that printing them costs the same
WAYS = {"defer_call()": [], "linear search": ["-l"]}
FEW, MANY, GROWTH = 8, 1024, 1.5    # a call among MANY may cost GROWTH times one among FEW


def valgrind(said, *cmd):
    """Run cmd under valgrind; the number that it prints where `said` has its group."""
    if not shutil.which("valgrind"):
        raise ToolError("valgrind is missing; run `make install`, or install the Debian package valgrind")
    text = run(["valgrind", "--command-line-only=yes", "--log-fd=1", *cmd])
    if not (m := re.search(said, text)):
        raise ToolError(f"valgrind printed nothing like `{said}`")
    return int(m[1].replace(",", ""))


def section(binary, calls, *args):
    """Instructions for a section with that many calls."""
    # from main() on: before it, the dynamic linker's work differs from run to run
    counts = [valgrind(r"Collected : (\d+)", "--tool=callgrind", "--callgrind-out-file=/dev/null",
                       "--toggle-collect=main", binary, "-n", calls, "-r", r, *args) for r in ROUNDS]
    cost = (counts[1] - counts[0]) / (ROUNDS[1] - ROUNDS[0])
    if cost <= 0:
        raise ToolError(f"{counts[0]} instructions in {ROUNDS[0]} rounds, {counts[1]} in {ROUNDS[1]}: "
                        "callgrind did not see the benchmark run")
    return cost


def costs(binary, way, calls):
    """Instructions: the whole section, its share for a call, and for deferring one call again."""
    once = section(binary, calls, *WAYS[way])
    if not calls:
        return once, None, None
    return once, once / calls, (section(binary, calls, "-d", *WAYS[way]) - once) / calls


def allocations(binary):
    """{calls: the program's heap allocations with either number of rounds}"""
    return {n: [valgrind(r"total heap usage: ([\d,]+) allocs", binary, "-n", n, "-r", r, "-d") for r in ROUNDS]
            for n in CALLS}


def judge_growth(few, many):
    for what, a, b in zip(["a call", "a duplicate"], few[1:], many[1:]):
        if b > GROWTH * a:
            raise ToolError(f"{what} costs {b:.0f} instructions among {MANY} calls, {b / a:.1f} times "
                            f"the {a:.0f} among {FEW}; {GROWTH} times are allowed")


def judge_allocations(counts):
    for calls, (a, b) in counts.items():
        if a != b:
            raise ToolError(f"{calls} calls: {a} allocations in {ROUNDS[0]} rounds, {b} in {ROUNDS[1]}")
    # The queue grows in the warm-up round; who does not see that would see nothing in the others.
    if counts[MANY][0] <= counts[FEW][0]:
        raise ToolError("valgrind did not count the allocations of the warm-up round")


def check_growth(binary, way):
    judge_growth(costs(binary, way, FEW), costs(binary, way, MANY))


def check_allocations(binary):
    judge_allocations(allocations(binary))


def table(found):
    """found: {(way, calls): costs()}"""
    lines = ["      " + "".join(f"{way:^34}" for way in WAYS).rstrip(),
             "calls" + f"{'section':>12}{'per call':>10}{'duplicate':>11} " * len(WAYS)]
    for n in CALLS:
        cells = [f"{'-' if c is None else f'{c:,.0f}':>{width}}" + " " * (width == 11)
                 for way in WAYS for c, width in zip(found[way, n], (12, 10, 11))]
        lines.append(f"{n:5}{''.join(cells)}")
    return "\n".join(line.rstrip() for line in lines)


def main():
    stack = common.stack_name()
    binary = build.build_side(stack, "series", series.update_tree(stack)[1], [BENCH]) / BENCH
    found = {}
    for way in WAYS:
        for n in CALLS:
            progress(f"{way}, {n} calls")
            found[way, n] = costs(binary, way, n)
    print(table(found), flush=True)
    check_allocations(binary)
    print("heap allocations after the first section: none")


if __name__ == "__main__":
    common.main(main)
