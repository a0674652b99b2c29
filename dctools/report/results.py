# SPDX-License-Identifier: GPL-2.0-or-later
"""Results in a directory, whatever made them: as a table, and a page with plots."""

import html
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from dctools.common import ToolError
from dctools.report import page
from dctools.report.statistics import middle


def ratio_text(r: dict[str, Any]) -> str:
    """A ratio with its interval."""
    if r["ratio"] is None:
        return "n/a"
    if r["low"] is None:
        return f"{r['ratio']:.3f} [n/a]"
    return f"{r['ratio']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"


def number_text(values: Sequence[float], form: str) -> str:
    """The mean of these values."""
    v = middle(values)
    return "n/a" if math.isnan(v) else format(v, form)


def metric_cell(found: "Results", rows: dict[str, Any], m: str) -> str:
    """A metric of a configuration in a document: the ratio, or of counts both."""
    if found.METRICS[m][1] != ".4f":
        return ratio_text(rows[m]["ab"])
    return " → ".join(number_text(rows[m][side], ".2f") for side in ("base", "series"))


def told(text: str, row: dict[str, Any]) -> str:
    """This in bold if it is told from the noise."""
    return f"**{text}**" if row["verdict"] in ("better", "worse") else text


def require_metrics(found: "Results", wanted: Sequence[str]) -> None:
    if unknown := [m for m in wanted if m not in found.METRICS]:
        raise ToolError(f"{unknown[0]} is no metric; there are {', '.join(found.METRICS)}")


def markdown_lines(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest])


def markdown(several: Sequence["Results"], wanted: Sequence[str]) -> str:
    """A table in Markdown, of each configuration: ratios, counts of both, and the A/A ratio of IOPS.

    What is told from the noise is bold.
    """
    for found in several:
        require_metrics(found, wanted)
    rows = [(str(name).split(", "), found, row) for found in several for name, row in found.table.items()]
    first = rows[0][0]
    common = [part for part in first if len(rows) > 1 and all(part in name for name, *_ in rows)]
    titles = (several[0].METRICS[m][0].split(" [")[0] for m in wanted)
    return markdown_lines([[", ".join(common), *titles, "A/A: IOPS"]] + [
        [", ".join(part for part in name if part not in common),
         *(told(metric_cell(found, row, m), row[m]) for m in wanted), ratio_text(row["iops"]["aa"])]
        for name, found, row in rows])


class Results:
    """What is common to both kinds; each has its metrics, and says what was measured and what came out."""
    METRICS: dict[str, tuple[str, str, bool]]       # name, unit and digits in the table, and whether more is better
    NAME: str                                       # of the file with the parameters
    KIND: str                                       # what was measured, for the person
    GUEST = True                                    # whether a guest made the load
    DIGEST = ["iops", "p99", "cpu", "writes"]       # metrics of which findings() tells

    def __init__(self, directory: pathlib.Path | str) -> None:
        self.directory = pathlib.Path(directory)
        self.info: dict[str, Any] = {}
        self.runs: list[dict[str, Any]] = []
        self.load()
        self.labels = [b["label"] for b in self.info["binaries"]]
        self.table = self.analyse()

    def load(self) -> None:
        """Fill info and runs; a damaged file is named."""
        raise NotImplementedError

    def analyse(self) -> dict[Any, dict[str, Any]]:
        """{what one table is of: {metric: row}}, a row as statistics.analyse() makes it."""
        raise NotImplementedError

    def setup(self) -> Iterator[str]:
        """What was measured on what, in a few lines."""
        raise NotImplementedError

    def text(self) -> str:
        """The table, below what was measured on what."""
        raise NotImplementedError

    def html(self, findings: Sequence[str]) -> str:
        """The page, which begins with what was found."""
        raise NotImplementedError

    def note(self, metric: str) -> str:
        """What else is to be said of a metric."""
        return ""

    # -- for all kinds

    def host_lines(self, busy: float) -> Iterator[str]:
        """The machine, of which other processes took the part that is busy."""
        host = self.info["host"]
        yield (f"host: {host['cpus']} CPUs ({host['cpu']}), Linux {host['kernel']}; "
               f"other processes took {busy:.0%} of it")

    def binary_lines(self) -> Iterator[str]:
        """What identifies the binaries."""
        for b in self.info["binaries"]:
            daemon = f", its storage daemon {b['daemon_sha256'][:16]}" if b.get("daemon_sha256") else ""
            yield f"{b['label']}: {b['version']}, sha256 {b['sha256'][:16]}{daemon}"
        if tree := self.info.get("series_tree"):        # older results do not say it
            yield f"patches/{self.info['stack']}: tree {tree[:12]}; tools: {self.info['tools'] or 'of no git checkout'}"

    def header(self) -> tuple[str, ...]:
        """The names of the table's columns."""
        a, b = self.labels
        return ("metric", a, b, f"{b}/{a} [95 % CI]", "p", "A/A [95 % CI]", "verdict")

    def cells(self, rows: dict[str, Any], m: str) -> tuple[str, ...]:
        """A metric's line in the table."""
        (title, form, _), r = self.METRICS[m], rows[m]
        return (title, number_text(r["base"], form), number_text(r["series"], form),
                ratio_text(r["ab"]), "n/a" if r["ab"]["p"] is None else f"{r['ab']['p']:.3f}",
                ratio_text(r["aa"]), r["verdict"])

    def fill_page(self, findings: Sequence[str], figures: str, tables: str, command: Sequence[str],
                  job: str = "") -> str:
        """The page, of these parts."""
        e, (a, b) = html.escape, self.labels
        return page.PAGE.format(title=e(f"{self.KIND}: {a} and {b} ({self.info['stack']})"),
                                findings="".join(f"<li>{e(said)}</li>" for said in findings),
                                ratio=e(f"{b}/{a}"), figures=figures, tables=tables,
                                setup="".join(f"<li>{e(line)}</li>" for line in self.setup()),
                                command=e(" ".join(command)), job=job)
