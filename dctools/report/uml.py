# SPDX-License-Identifier: GPL-2.0-or-later
"""What fio in a Linux on the vhost-user-blk export has measured: build/results of `make bench-uml`."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from dctools.report import infio
from dctools.report.infio import FioResults

CALLS = ["io_submit", "io_uring_enter"]        # that are shown


def count_interrupts(lines: Sequence[str]) -> int:
    """Interrupts of the only virtio device in lines of the guest's /proc/interrupts, which has one CPU."""
    return sum(int(line.split()[1]) for line in lines)


def metrics(run: dict[str, Any]) -> dict[str, float]:
    """The figures of one run, from the raw results in its file."""
    before, after = (count_interrupts(run["interrupts"][t]) for t in ("before", "after"))
    found = {**infio.metrics(run), "interrupts": (after - before) / infio.done_by_fio(run),
             **dict.fromkeys(CALLS, math.nan)}
    calls = run["calls"]
    if calls["counts"]:
        ios = infio.done_by_fio({"n": run["n"], "fio": calls["fio"]})
        found |= {name: calls["counts"].get(name, 0) / ios for name in CALLS}
    return found


class UmlResults(FioResults):
    """One row for each aio engine and metric."""
    KIND = "a real Linux on the vhost-user-blk export"
    METRICS = {
        "iops": ("IOPS", ",.0f", True),
        "p50": ("latency p50 [us]", ",.0f", False),
        "p99": ("latency p99 [us]", ",.0f", False),
        "p999": ("latency p99.9 [us]", ",.0f", False),
        "interrupts": ("interrupts per I/O", ".4f", False),
        "writes": ("write(2) per I/O", ".4f", False),
        "io_submit": ("io_submit per I/O", ".4f", False),
        "io_uring_enter": ("ring enters per I/O", ".4f", False),
        "cpu": ("IOThread ns per I/O", ",.0f", False),
    }
    COUNTS = ["interrupts", "writes", "io_submit", "io_uring_enter"]
    DIGEST = ["iops", "p99", "cpu", "interrupts"]
    NAME = "uml.json"
    figures = staticmethod(metrics)

    def workload(self) -> Iterator[str]:
        p, cpus = self.info["parameters"], self.info["cpus"]
        storage = ", ".join(f"{aio} {where}" for aio, where in self.info["storage"].items())
        yield (f"fio: {p['rw']} {p['bs']}, iodepth {p['iodepth']}, {p['batch']} at once, {p['runtime']:g} s; "
               f"poll-max-ns {p['poll_max_ns']}; storage: {storage}")
        # before there was a choice, it was as it is
        asleep = "may sleep through interrupts, as Debian ships it" if p.get("lost_wakeups", True) \
            else "does not sleep through interrupts (preload/idle.c)"
        yield (f"guest: User Mode Linux, no hardware virtualisation needed; it {asleep}" +
               ("; it and the daemon share the only CPU" if None in cpus else
                f", on CPU {cpus[0]}; the daemon with its IOThread (and the workers of aio=threads) on CPU {cpus[1]}"))
        yield f"system calls counted in a run of their own; {self.runs[0]['calls']['source']}"
