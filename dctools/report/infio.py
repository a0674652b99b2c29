# SPDX-License-Identifier: GPL-2.0-or-later
"""What fio in a guest has measured: build/results of `make bench`."""

import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from dctools.common import ToolError
from dctools.report import page, plots
from dctools.report.results import Results
from dctools.report.statistics import ROLES, analyse

STUCK = "stuck.txt"     # of which guests another took the place, see guest.Stuck
SIDES = ["read", "write", "trim", "mixed"]      # of a job in fio's JSON


def count_interrupts(lines: Sequence[str], virtio: str) -> int:
    """Interrupts of the request queues of one virtio device in lines of /proc/interrupts."""
    total = 0
    for line in lines:
        fields = line.split()
        # "virtio1-req.0", "virtio1-request", "virtio1-virtqueues" (shared vector) or, with
        # INTx, "virtio1"; not virtio10-..., and not what is no queue of requests
        if not any(re.fullmatch(rf"{virtio}(-(?!config|control|event).*)?", f.rstrip(","))
                   for f in fields):
            continue
        for f in fields[1:]:            # one column per processor, then words
            if not f.isdigit():
                break
            total += int(f)
    return total


def done_by_fio(run: dict[str, Any]) -> int:
    """How many requests fio has done in a run."""
    ios = sum(job[side]["total_ios"] for job in run["fio"]["jobs"] for side in SIDES if job.get(side))
    if not ios:
        raise ToolError(f"run {run['n']}: fio did no I/O")
    return ios


def fio_figures(run: dict[str, Any]) -> dict[str, float]:
    """What fio itself says."""
    done_by_fio(run)
    sides = [job[side] for job in run["fio"]["jobs"] for side in SIDES if job.get(side, {}).get("total_ios")]

    def percentile(q):
        # Percentiles do not add up; of several jobs in a file of the person's own
        # the worst is shown. Our own job has one.
        found = [s["clat_ns"]["percentile"][q] for s in sides
                 if q in s.get("clat_ns", {}).get("percentile", {})]
        return max(found) / 1000 if found else math.nan
    return {"iops": sum(s["iops"] for s in sides),
            "p50": percentile("50.000000"), "p99": percentile("99.000000"), "p999": percentile("99.900000")}


def metrics(run: dict[str, Any]) -> dict[str, float]:
    """The figures of one run, from the raw results in its file."""
    ios, before, after = done_by_fio(run), run["counters"]["before"], run["counters"]["after"]
    interrupts = [count_interrupts(run["interrupts"][t], run["virtio"]) for t in ("before", "after")]
    return {**fio_figures(run), "interrupts": (interrupts[1] - interrupts[0]) / ios,
            "writes": (after["syscw"] - before["syscw"]) / ios,
            "cpu": (after["cpu_ns"] - before["cpu_ns"]) / ios}


class FioResults(Results):
    """One row for each aio engine and metric."""
    KIND = "fio in a guest of QEMU"
    METRICS = {
        "iops": ("IOPS", ",.0f", True),
        "p50": ("latency p50 [us]", ",.0f", False),
        "p99": ("latency p99 [us]", ",.0f", False),
        "p999": ("latency p99.9 [us]", ",.0f", False),
        "interrupts": ("interrupts per I/O", ".4f", False),
        "writes": ("write(2) per I/O", ".4f", False),
        "cpu": ("IOThread ns per I/O", ",.0f", False),
    }
    COUNTS = ["writes", "interrupts", "cpu"]        # that have a plot
    NAME = "bench.json"
    figures = staticmethod(metrics)

    def load(self) -> None:
        def read(path):
            try:
                return json.loads(path.read_text())
            except FileNotFoundError as e:
                raise ToolError(f"{path} is missing; is {self.directory} a results directory?") from e
            except (OSError, ValueError) as e:
                raise ToolError(f"{path} is damaged ({e}); remove it to go on without it") from e

        self.info = read(self.directory / self.NAME)
        for path in sorted(self.directory.glob("run-*.json")):
            run = read(path)
            try:
                run["metrics"] = self.figures(run)
                if run["role"] not in ROLES:
                    raise ValueError(f"role {run['role']}")
            except (KeyError, TypeError, ValueError, AttributeError) as e:
                raise ToolError(f"{path} is damaged ({type(e).__name__}: {e}); "
                                f"remove it to go on without it") from e
            self.runs.append(run)
        if not self.runs:
            raise ToolError(f"{self.directory}: nothing measured, no run-*.json in it")

    def analyse(self) -> dict[str, dict[str, Any]]:
        return {engine: analyse([r for r in self.runs if r["engine"] == engine], self.METRICS)
                for engine in sorted({r["engine"] for r in self.runs})}

    def complete(self) -> int:
        """How many pairs are measured on both sides, for the engine that has fewest."""
        def pairs(engine, role):
            return {r["pair"] for r in self.runs if r["engine"] == engine and r["role"] == role}
        return min(len(pairs(e, "base") & pairs(e, "series")) for e in self.table)

    def workload(self) -> Iterator[str]:
        """What fio did, and in what guest."""
        p, host = self.info["parameters"], self.info["host"]
        job = "own fio job" if p["fio_job"] else \
            f"{p['rw']} {p['bs']}, iodepth {p['iodepth']}, numjobs {p['numjobs']}, {p['runtime']:g} s"
        accel = "KVM" if host["accelerator"] == "kvm" else \
            "TCG (no hardware virtualisation: the vCPU is the bottleneck)"
        yield f"fio: {job}; disk {self.info['disk']}"
        yield (f"guest: {p['vcpus']} vCPUs, {p['queues']} queues per disk, event_idx "
               f"{'on' if p['event_idx'] else 'off'}, accelerator {accel}")

    def setup(self) -> Iterator[str]:
        p, done = self.info["parameters"], self.complete()
        yield from self.workload()
        yield from self.host_lines(self.others() / self.info["host"]["cpus"])
        notes = self.directory / STUCK
        if notes.is_file():
            stuck = notes.read_text().splitlines()
            yield (f"guests that got stuck under TCG, and others took their places: "
                   f"{', '.join(line.partition(':')[0] for line in stuck)}; {notes}")
        yield (f"{done} pairs" + (f" of {p['pairs']} planned" if done < p["pairs"] else "") +
               f" of fresh processes, order random (seed {p['seed']}); {self.info['date']}")
        yield from self.binary_lines()

    def others(self) -> float:
        """Processors that were neither idle nor busy with this QEMU while fio ran, on average."""
        share = []
        for r in self.runs:
            d = {k: r["counters"]["after"][k] - r["counters"]["before"][k]
                 for k in ("time", "machine_cpu_s", "qemu_cpu_s")}
            share.append((d["machine_cpu_s"] - d["qemu_cpu_s"]) / d["time"])
        return max(0, sum(share) / len(share))

    def text(self) -> str:
        widths = (19, 9, 9, 22, 5, 22, 7)

        def row(values):
            return " ".join([f"{values[0]:<{widths[0]}}"] + [f"{v:>{w}}" for v, w in zip(values[1:], widths[1:])])
        lines = [*self.setup()]
        for engine, rows in self.table.items():
            lines += ["", f"aio={engine}", row(self.header()), "-" * 99]
            lines += [row(self.cells(rows, m)) for m in self.METRICS]
        lines += ["", "verdict: none = the interval holds 1, or the ratio is inside the A/A interval"]
        return "\n".join(lines)

    def html(self, findings: Sequence[str]) -> str:
        tables = "".join(page.table(f"aio={engine}", self.header(), [self.cells(rows, m) for m in self.METRICS])
                         for engine, rows in self.table.items())
        job = self.info["parameters"].get("fio_job")
        return self.fill_page(findings, page.figures(plots.fio(self)), tables, self.runs[0]["command"],
                              f"<h2>fio job</h2><pre>{html.escape(job)}</pre>" if job else "")
