# SPDX-License-Identifier: GPL-2.0-or-later
"""make check: every test of the project, a line each, and a count at the end."""

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from dctools import base, common, options, series
from dctools.check.built import prepare_guest
from dctools.check.exports import check_exports
from dctools.check.guests import check_faults, check_guest, check_soak, check_stress
from dctools.check.instruments import check_cost, check_fuzz, check_loadgen
from dctools.check.patches import check_patches
from dctools.check.qemu import check_iotests, check_qtest
from dctools.check.results import Results, logs
from dctools.check.sanitizers import check_sanitizers, check_tsan
from dctools.check.sources import check_series, check_tools
from dctools.check.units import check_unit
from dctools.common import ToolError, progress

PARTS: dict[str, Callable[[Results, str], None]] = {
    "tools": check_tools, "series": check_series, "patches": check_patches, "unit": check_unit, "soak": check_soak,
    "faults": check_faults, "guest": check_guest, "exports": check_exports, "sanitizers": check_sanitizers,
    "tsan": check_tsan, "qtest": check_qtest, "iotests": check_iotests, "stress": check_stress,
    "loadgen": check_loadgen, "cost": check_cost, "fuzz": check_fuzz}
FORK = multiprocessing.get_context("fork")     # a child has our settings
SIGN_OF_LIFE = 300.     # seconds
LONG = ["fuzz"]         # clang compiles QEMU once more for it: only with FULL=1 or ONLY=
# They build nothing, so they run, one after the other, beside the parts that come next; what
# has to be done before
BESIDE: dict[str, Callable] = {"tools": series.update_tree, "soak": prepare_guest, "faults": prepare_guest,
                               "guest": prepare_guest, "exports": prepare_guest}


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def time_table(times: Sequence[tuple[str, str, float, float]]) -> str:
    """Lines for the person, the part that takes most first."""
    lines = [f"{'part':12}  {'stack':8}  {'CPU s':>6}  {'wall s':>6}"]
    lines += [f"{part:12}  {stack:8}  {cpu:6.0f}  {wall:6.0f}" for stack, part, cpu, wall in
              sorted(times, key=lambda t: -t[2])]
    return "\n".join([*lines, f"{'all':12}  {'-':8}  {sum(t[2] for t in times):6.0f}"])


@contextlib.contextmanager
def signs_of_life(part: str, results: Results) -> Iterator[None]:
    """Say now and then what runs: who finds that it hangs sees where, and whether the machine stood still."""
    start = time.monotonic()

    def say(*_: object) -> None:
        # no print(): the signal may have come in the midst of one
        os.write(2, f"[{time.strftime('%H:%M:%S')}] {common.settings.label}part {part} has run for "
                    f"{(time.monotonic() - start) / 60:.0f} min: {results.running or 'its tests'}\n".encode())
    before = signal.signal(signal.SIGALRM, say)
    signal.setitimer(signal.ITIMER_REAL, SIGN_OF_LIFE, SIGN_OF_LIFE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_part(part: str, stack: str) -> Results:
    results, start, cpu = Results(), time.monotonic(), cpu_seconds()
    progress(f"part {part}: {(PARTS[part].__doc__ or '').strip().partition(chr(10))[0]}")
    try:
        with signs_of_life(part, results):
            PARTS[part](results, stack)
    except ToolError as e:
        results.add(part, str(e))
    except Exception as e:      # whatever it is, the other parts still count
        traceback.print_exc()
        results.add(part, f"{type(e).__name__}: {e}")
    results.times.append((stack, part, cpu_seconds() - cpu, time.monotonic() - start))
    return results


def run_parts(parts: Sequence[str], stack: str) -> Results:
    """Results of all, one after the other but for those that run beside."""
    total = Results()
    with concurrent.futures.ProcessPoolExecutor(1, FORK) as pool:
        beside = {}
        for part in parts:
            if part not in BESIDE:
                total.count(run_part(part, stack))
                continue
            try:
                BESIDE[part](stack)
                beside[part] = pool.submit(run_part, part, stack)
            except (ToolError, concurrent.futures.process.BrokenProcessPool) as e:
                total.add(part, str(e))
        for part, future in beside.items():
            try:
                total.count(future.result())
            except concurrent.futures.process.BrokenProcessPool:
                total.add(part, "its process was killed")
    return total


def wanted_parts(only: Sequence[str], stack: str, full: bool = False) -> list[str]:
    """Those of ONLY=, or all, that make sense for the stack."""
    fit = base.read_pin(stack).get("check", list(PARTS))
    default = [part for part in PARTS if part not in LONG or full]
    return [part for part in only or default if part in fit]


def check_stack(stack: str, parts: Sequence[str], label: str) -> Results:
    """Run the parts of a stack, as a process that knows no other one."""
    common.settings.stack, common.settings.label = stack, label
    logs().mkdir(parents=True, exist_ok=True)
    return run_parts(parts, stack)


def in_a_process(stack: str, parts: Sequence[str]) -> Results:
    """check_stack() there; QEMU's python library, for example, is another for each stack."""
    results = Results()
    with concurrent.futures.ProcessPoolExecutor(1, FORK) as pool:
        try:
            return pool.submit(check_stack, stack, parts, f"{stack}: ").result()
        except concurrent.futures.process.BrokenProcessPool:
            results.add(stack, "its process ended before its last test")
        except Exception as e:      # whatever it is, the other stacks still count
            results.add(stack, f"{type(e).__name__}: {e}")
        except BaseException:       # it shall not go on without us
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return results


@dataclasses.dataclass(frozen=True)
class Options:
    only: tuple[str, ...] = options.words(list(PARTS), (), "some of the parts",
                                           "all that the stack's pin lets, but fuzz")
    full: bool = options.switch(False, "leave nothing out: fuzz, and patches that have passed before")


def main(given: Options) -> int:
    """Every test of the project, a line each, and a count at the end.

    Without --stack, one stack after the other.

    Example: dc check --stack v10.2 --only "unit qtest"
    """
    start, results, one = time.monotonic(), Results(), common.settings.stack
    common.settings.full = given.full
    plan = {stack: parts for stack in ([common.stack_name()] if one else common.stacks())
            if (parts := wanted_parts(given.only, stack, given.full))}
    if not plan:
        raise ToolError(f"ONLY={' '.join(given.only)}: not for {one}; see \"check\" in its pin.json")
    for stack, parts in plan.items():
        results.count(check_stack(stack, parts, "") if one else in_a_process(stack, parts))
    print(time_table(results.times))
    left = [*results.left_out, *([f"parts {' '.join(LONG)}"] if not given.only and not given.full else [])]
    if left:
        progress(f"left out: {'; '.join(left)}. FULL=1 runs them")
    progress(f"took {(time.monotonic() - start) / 60:.1f} min")
    for name in results.failed:
        print(f"failed: {name}")
    print(f"{results.passed} passed, {len(results.failed)} failed", flush=True)
    return 1 if results.failed or not results.passed else 0
