# SPDX-License-Identifier: GPL-2.0-or-later
"""What the load generator has measured: build/results of `make bench-ring`."""

import collections
import json
import lzma
import math
import pathlib
import statistics
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from dctools import guest
from dctools.common import ToolError
from dctools.measure import plan
from dctools.measure.plan import Config, limit_key
from dctools.report import page, plots
from dctools.report.results import Results, markdown_lines, metric_cell, ratio_text, require_metrics, told
from dctools.report.statistics import ROLES, analyse, middle, stratified, verdict

PER_BATCH = 1.2         # notifications for a batch of completions that the driver finds when it looks, wanted at most


def metrics(run: dict[str, Any]) -> dict[str, float]:
    """The figures of one run."""
    calls = run["syscalls"]["per_io"]

    def of(*names):
        # without tracepoints there is nothing but write and read
        return sum(calls.get(n, 0) for n in names) if run["syscalls"]["source"].startswith("perf") else math.nan

    return {"iops": run["iops"], "cpu": run["cpu_ns_per_io"]["iothread"],
            "process_cpu": run["cpu_ns_per_io"]["process"], "writes": run["per_io"]["writes"],
            "per_batch": run["per_io"]["writes"] * run["batches_seen"]["mean"],
            "p50": run["latency_us"]["p50"], "p99": run["latency_us"]["p99"],
            "p999": run["latency_us"]["p999"], "interrupts": run["per_io"]["interrupts"],
            "kicks": run["per_io"]["kicks"], "submits": of("io_submit", "io_uring_enter"),
            "polls": of("ppoll", "epoll_wait", "epoll_pwait2"),
            "rescheduling": run["syscalls"].get("rescheduling", math.nan)}


def reaction_text(p: dict[str, Any], configs: Collection[Config]) -> str:
    """How long the drivers of these configurations take to see that something is finished."""
    found = {}
    for wait, which in (("irq", "if it waits for interrupts"), ("used", "if it looks all the time")):
        if wait in {c.wait for c in configs}:
            # older results have no jitter at all
            us, jitter = plan.reaction(wait, p["reaction_us"], p.get("jitter", "off"))
            found[which] = f"{us:g} us" + (", at random up to twice that" if jitter == "on" else "")
    if len(set(found.values())) == 1:
        return found.popitem()[1]
    return "; ".join(f"{text}, {which}" for which, text in found.items())


def limits(directory: pathlib.Path) -> dict[tuple[Any, ...], float]:
    """{limit_key(): median IOPS}; empty where fio did not run."""
    found: dict[tuple[Any, ...], list[float]] = collections.defaultdict(list)
    try:
        for line in (directory / "limits.jsonl").read_text().splitlines():
            run = json.loads(line)
            found[tuple(run["key"])].append(run["iops"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ToolError(f"{directory}/limits.jsonl is damaged ({type(e).__name__}: {e})") from e
    return {key: statistics.median(values) for key, values in found.items()}


class LoadgenResults(Results):
    """One row for each configuration and metric, and for groups of configurations."""
    METRICS = {
        "iops": ("IOPS", ",.0f", True),
        "cpu": ("IOThread ns per I/O", ",.0f", False),
        "writes": ("write(2) per I/O", ".4f", False),
        "per_batch": ("write(2) per batch", ".2f", False),
        "p50": ("latency p50 [us]", ",.1f", False),
        "p99": ("latency p99 [us]", ",.1f", False),
        "p999": ("latency p99.9 [us]", ",.1f", False),
        "submits": ("submissions per I/O", ".4f", False),
        "polls": ("polls per I/O", ".4f", False),
        "interrupts": ("interrupts per I/O", ".4f", False),
        "kicks": ("kicks per I/O", ".4f", False),
        "rescheduling": ("rescheduling interrupts per I/O", ".4f", False),
        "process_cpu": ("QEMU ns per I/O", ",.0f", False),
    }
    LATENCY = ["p50", "p99", "p999"]
    TOLD = ["iops", "cpu", "writes", *LATENCY]      # what table and summary have room for
    KIND, GUEST = "the load generator, without a guest", False
    NAME = "ring.json"
    WIDTH = 110

    def load(self) -> None:
        try:
            self.info = json.loads((self.directory / self.NAME).read_text())
            self.info["configs"] = [Config(**c) for c in self.info["parameters"]["configs"]]
            packed = self.directory / "runs.jsonl.xz"
            text = lzma.decompress(packed.read_bytes()).decode() if packed.is_file() else \
                (self.directory / "runs.jsonl").read_text()
            lines = text.splitlines()
        except FileNotFoundError as e:
            raise ToolError(f"{e.filename} is missing; is {self.directory} a directory of `make bench-ring`?") from e
        except (OSError, ValueError, KeyError, TypeError, lzma.LZMAError) as e:
            raise ToolError(f"{self.directory}/ring.json is damaged ({type(e).__name__}: {e})") from e
        for n, line in enumerate(lines, 1):
            try:
                run = json.loads(line)
                run["metrics"] = metrics(run)
                self.info["configs"][run["config"]]
                if run["role"] not in ROLES:
                    raise ValueError(f"role {run['role']}")
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
                raise ToolError(f"{self.directory}/runs.jsonl, line {n} is damaged ({type(e).__name__}: {e}); "
                                f"remove it to go on without it") from e
            self.runs.append(run)
        if not self.runs:
            raise ToolError(f"{self.directory}: nothing measured, runs.jsonl is empty")
        self.limit = limits(self.directory)

    def analyse(self) -> dict[Config, dict[str, Any]]:
        table = {}
        for n, config in enumerate(self.info["configs"]):
            mine = [r for r in self.runs if r["config"] == n]
            if {"base", "series"} <= {r["role"] for r in mine}:
                table[config] = analyse(mine, self.METRICS)
        if not table:
            raise ToolError(f"{self.directory}: no configuration was measured with both binaries")
        return table

    def cells_of(self, metric: str, rest: str) -> dict[tuple[str, int], dict[str, Any]]:
        """{(engine, depth): row of that metric} of the configurations whose other parts are these; in order."""
        require_metrics(self, [metric])
        cells = {(c.aio, c.qd): rows[metric] for c, rows in self.table.items()
                 if str(c).replace(f" {c.aio} qd {c.qd} ", " ", 1) == rest}
        if not cells:
            raise ToolError(f"no configuration of {self.directory.name} has {rest!r}")
        # AIO= and IODEPTH= may have named them in another order
        return dict(sorted(cells.items(), key=lambda cell: (guest.AIO.index(cell[0][0]), cell[0][1])))

    def grid(self, metric: str, rest: str) -> str:
        """A table in Markdown of one metric: engines and depths. What is told from the noise is bold."""
        cells = self.cells_of(metric, rest)
        engines, depths = dict.fromkeys(aio for aio, _ in cells), dict.fromkeys(qd for _, qd in cells)
        return markdown_lines([["depth", *map(str, depths)]] + [
            [aio, *(told(metric_cell(self, {metric: row}, metric), row) if (row := cells.get((aio, qd))) else ""
                    for qd in depths)] for aio in engines])

    @property
    def many(self) -> bool:
        """Whether there are too many configurations to show each."""
        return len(self.table) > plan.MANY

    def groups(self) -> dict[str, dict[str, Any]]:
        """Like table, for all configurations of a storage, engine and EVENT_IDX together."""
        found: dict[str, list[dict[str, Any]]] = {}
        for config, rows in self.table.items():
            # what was interrupted early has no pairs
            if config.main == "irqfd" and rows["iops"]["ab"]["n"]:
                polls = f", polls {config.poll_max_ns} ns" if config.poll_max_ns else ""
                transport = "" if config.transport == "pci" else f", {config.transport}"
                found.setdefault(f"{config.storage} {config.aio}, event_idx {config.event_idx}{polls}{transport}",
                                 []).append(rows)
        whole: dict[str, dict[str, Any]] = {}
        for name, members in found.items():
            if len(members) < 2:
                continue
            rows = whole[f"{name}: {len(members)} configurations together"] = {}
            for m, (_, _, more) in self.METRICS.items():
                ab = stratified([(r[m]["base"], r[m]["series"]) for r in members])
                aa = stratified([r[m]["again"] for r in members])
                base, series = ([middle(r[m][side]) for r in members if r[m]["ab"]["ratio"]]
                                for side in ("base", "series"))
                rows[m] = {"base": base, "series": series, "ab": ab, "aa": aa, "verdict": verdict(ab, aa, more)}
        return whole

    def setup(self) -> Iterator[str]:
        p, host = self.info["parameters"], self.info["host"]
        cpus = p["cpus"]
        busy = sum(r["others"] for r in self.runs) / len(self.runs) / host["cpus"]
        polls = f"poll-max-ns {p['poll_max_ns']}; " if "poll_max_ns" in p else ""
        yield (f"{p['rw']} of {p['bs']} bytes, {p['seconds']:g} s, at random; reaction time of the driver "
               f"{reaction_text(p, self.info['configs'])}; {polls}indirect descriptors {p['indirect']}")
        yield ("fast: tmpfs with O_DIRECT, for io_uring a page-cached file; disk: "
               f"{self.info['disk']} with O_DIRECT")
        yield (f"driver on CPU {cpus['driver']}, IOThread (and the workers of aio=threads) on CPU "
               f"{cpus['iothread']}")
        transports = {c.transport for c in self.info["configs"]}
        if transports != {"vhost-user"}:
            yield ("QEMU's main thread stopped and interrupts taken from the eventfds as KVM does, or (main: ...) on "
                   f"the driver's, the IOThread's or a third CPU ({cpus['other']})")
        if "scsi" in transports:
            yield "scsi: virtio-scsi-pci with a scsi-hd"
        if "vhost-user" in transports:
            yield "vhost-user: the storage daemon's vhost-user-blk export; the driver's own eventfds are its interrupts"
        if any(c.main == "export" for c in self.info["configs"]):
            yield "main: export: its main thread does the I/O, on the IOThread's CPU; there is no IOThread"
        yield from self.host_lines(busy)
        done = max(r["pair"] for r in self.runs)
        turns = f"measured in {p['turns']} turns with the others of its pair" if "turns" in p else "one after the other"
        yield (f"{done} pairs" + (f" of {p['pairs']} planned" if done < p["pairs"] else "") +
               f" of fresh processes, each {turns}, order random (seed {p['seed']}); {self.info['date']}")
        source = self.runs[0]["syscalls"]["source"]
        yield f"system calls counted in a window of their own; {source}"
        checked = "the disk's data is not verified" if p["disk"] else "data verified in each process"
        yield checked + (", before and after" if p["rw"] != "read" else "")
        yield from self.binary_lines()
        yield ("each pair has binaries of its own, with the objects linked in random order; those of A/A differ, too"
               if p.get("layouts") else
               "binaries as they were built: where the code lies makes a percent or two, which A/A does not show")

    def limit_text(self, config: Config, rows: dict[str, Any]) -> str | None:
        """How far QEMU is from what the kernel gives fio with the same engine, image, depth and core."""
        a, b = self.labels
        most = self.limit.get(limit_key(config))
        if not most:
            return None
        part = {label: middle(rows["iops"][side]) / most for label, side in ((a, "base"), (b, "series"))}
        return f"fio on the host: {most:,.0f} IOPS; " + ", ".join(f"{k} {v:.0%}" for k, v in part.items())

    def text(self) -> str:
        a, b = self.labels
        lines = [*self.setup(), ""]
        widths = (18, 9, 9, 22, 6, 22, 8)

        def row(values):
            return " ".join([f"  {values[0]:<{widths[0]}}"] + [f"{v:>{w}}" for v, w in zip(values[1:], widths[1:])])

        lines.append(row(("", a, b, f"{b}/{a} [95 % CI]", "p", "A/A [95 % CI]", "verdict")))
        for name, rows in self.groups().items():
            lines.append(name)
            lines += [row(self.cells(rows, m)) for m in self.TOLD]
        if self.many:
            lines.append("each by itself: in the page")
        for config, rows in () if self.many else self.table.items():
            lines.append(str(config))
            lines += [row(self.cells(rows, m)) for m in self.TOLD]
            if said := self.limit_text(config, rows):
                lines.append(f"  {said}")
        lines += ["", "verdict: none = the interval holds 1, or the ratio is inside the A/A interval"]
        return "\n".join(lines)

    def note(self, metric: str, named: int = 3) -> str:
        """In which configurations the driver is told more often than wanted, if the metric is writes."""
        if metric != "writes":
            return ""
        per_batch = {c: [middle(rows["per_batch"][side]) for side in ("series", "base")]
                     for c, rows in self.table.items()}
        over = sorted((c for c in per_batch if per_batch[c][0] > PER_BATCH), key=lambda c: -per_batch[c][0])
        listed = [f"{c} {per_batch[c][0]:.2f}, {self.labels[0]} {per_batch[c][1]:.2f}" for c in over[:named]]
        if len(over) > named:
            listed.append(f"and {len(over) - named} more")
        return (f"write(2) of {self.labels[1]} per batch of completions that the driver finds: above {PER_BATCH} in "
                f"{len(over)} of {len(self.table)} configurations" + (f" ({'; '.join(listed)})" if over else ""))

    def one_line_each(self, ratio: str) -> str:
        """Ratios alone, for more configurations than anybody wants to see in full."""
        head = ["configuration", *(f"{self.METRICS[m][0].split(' [')[0]}, {ratio}" for m in self.TOLD)]
        lines = [page.line(head, "th")]
        lines += [page.line([str(config), *(ratio_text(rows[m]["ab"]) for m in self.TOLD)])
                  for config, rows in self.table.items()]
        return "<h2>Each configuration</h2>\n<table>" + "\n".join(lines) + "</table>\n"

    def html(self, findings: Sequence[str]) -> str:
        a, b = self.labels

        def one(title: str, rows: dict[str, Any], note: str | None = None) -> str:
            return page.table(title, self.header(), [self.cells(rows, m) for m in self.METRICS], note)
        tables = "".join(one(name, rows) for name, rows in self.groups().items())
        if self.many:
            tables += self.one_line_each(f"{b}/{a}")
        else:
            tables += "".join(one(str(c), rows, self.limit_text(c, rows)) for c, rows in self.table.items())
        figures = page.figures(plots.loadgen(self), page.png if self.many else page.svg)
        return self.fill_page(findings, figures, tables, self.info["command"])

    def told(self, everything: bool = False) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, Any]]:
        """{(title, metric): row} of each configuration, or of the groups if there are many; and the parameters."""
        single, many = {str(c): rows for c, rows in self.table.items()}, self.groups()
        told = {**single, **many} if everything else many if self.many else single
        return {(title, m): rows[m] for title, rows in told.items() for m in self.TOLD}, \
            {k: {"poll_max_ns": 0, **self.info["parameters"],
                 "reaction time": reaction_text(self.info["parameters"], self.info["configs"])}[k] for k in
             ("rw", "bs", "batch", "reaction time", "poll_max_ns", "indirect")}
