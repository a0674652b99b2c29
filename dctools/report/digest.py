# SPDX-License-Identifier: GPL-2.0-or-later
"""What measurements can show on this machine, and what they show, in a few lines."""

import math
import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from dctools.report import page
from dctools.report.results import Results, number_text
from dctools.report.statistics import middle, resolution

WIDTH = 110
FEW = 3             # configurations that all have names; of more the one that differs most
BUSY = 0.4          # of the time: an IOThread that works less than that mostly waits for its guest


def resolutions(results: Results) -> list[float]:
    """For each configuration, by what part IOPS must differ for this run to tell it from noise."""
    return [r for rows in results.table.values() if (r := resolution(rows["iops"])) is not None]


def busy(results: Results) -> float:
    """Which part of the time the base's IOThread worked, in the configuration in which it did most."""
    return max(middle(rows["iops"]["base"]) * middle(rows["cpu"]["base"]) / 1e9 for rows in results.table.values())


def waits(results: Results) -> bool:
    """Whether a guest limits IOPS, and not QEMU: the IOThread mostly waits, and no difference is seen."""
    seen = any(rows["iops"]["verdict"] in ("better", "worse") for rows in results.table.values())
    return results.GUEST and not seen and busy(results) < BUSY


def percent_range(parts: Sequence[float]) -> str:
    """Such as 2 to 5 %; two noisy pairs know no bounds."""
    low, high = (f"{p:.1%}" if p < .1 else f"{min(p, 1):.0%}" for p in (min(parts), max(parts)))
    return (low if low == high else f"{low} to {high}").replace("%", " %").replace(" % to", " to")


def ability(results: Results) -> str:
    """What it can show."""
    found = resolutions(results)
    tells = "fewer than two pairs: nothing is told from noise" if not found else \
        "too noisy: IOPS that differ by less than 100 % are not told from noise" if min(found) >= 1 else \
        f"IOPS that differ by {percent_range(found)} or more are told from noise"
    if waits(results):
        return (f"the guest is the bottleneck (the IOThread worked {busy(results):.0%} of the time), so IOPS hardly "
                f"depend on QEMU; {tells}")
    return tells


def value(results: Results, m: str, row: dict[str, Any]) -> str:
    """A ratio with its interval, or for what is counted per I/O both counts."""
    if results.METRICS[m][1] == ".4f":
        return " → ".join(number_text(row[side], ".3f") for side in ("base", "series"))
    return f"{row['ab']['ratio']:.2f} [{row['ab']['low']:.2f}, {row['ab']['high']:.2f}]"


def most(results: Results, m: str, members: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Of those that differ, the one that differs most."""
    name, row = max(members, key=lambda each: abs(math.log(each[1]["ab"]["ratio"])))
    return f"most in {name}: {value(results, m, row)}"


def finding(results: Results, m: str) -> str:
    """What it shows of one metric; empty if that is nothing and there is no note, but of IOPS it is said."""
    by_verdict: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for config, rows in results.table.items():
        by_verdict.setdefault(rows[m]["verdict"], []).append((str(config), rows[m]))
    told = [v for v in ("better", "worse") if v in by_verdict]
    note = results.note(m)
    if not told and m != "iops":
        return note
    parts = []
    for verdict in told:
        members = by_verdict[verdict]
        if len(results.table) <= FEW:
            parts.append(f"{verdict}: " + ", ".join(f"{name} {value(results, m, row)}" for name, row in members))
        else:
            parts.append(f"{verdict} in {len(members)} of {len(results.table)} configurations, "
                         f"{most(results, m, members)}")
    if len(told) == 0:
        parts.append("no difference outside of the noise")
    text = f"{results.METRICS[m][0].split(' [')[0]} {'; '.join(parts)}"
    return f"{text}; {note}" if note else text


def chance(results: Results) -> str:
    """How often nothing looked like a difference."""
    found = [row["aa"] for rows in results.table.values() for row in rows.values() if row["aa"]["low"] is not None]
    odd = sum(not aa["low"] <= 1 <= aa["high"] for aa in found)
    return f"by chance {odd} of {len(found)} A/A intervals leave 1 out" if found else "no A/A run"


def other_losses(results: Results) -> str:
    """What else is worse."""
    parts = []
    for m, (title, *_) in results.METRICS.items():
        lost = [(str(config), rows[m]) for config, rows in results.table.items() if rows[m]["verdict"] == "worse"]
        if lost and m not in results.DIGEST:
            parts.append(f"{title.split(' [')[0]} in {len(lost)} of {len(results.table)}, {most(results, m, lost)}")
    return f"worse, too: {'; '.join(parts)}" if parts else ""


def findings(results: Results) -> list[str]:
    """A few lines: what it can show, and what it shows."""
    return [f"{ability(results)}; {chance(results)}",
            *filter(None, (*(finding(results, m) for m in results.DIGEST), other_losses(results)))]


def digest(measured: Sequence[Results]) -> str:
    """The lines. What can show most is first."""
    order = sorted(measured, key=lambda r: (waits(r), statistics.median(resolutions(r) or [9])))
    lines = []
    for results in order:
        a, b = results.labels
        can, *found = findings(results)
        lines += textwrap.wrap(f"* {results.KIND}: {can}.", WIDTH, subsequent_indent="  ")
        for said in found:
            lines += textwrap.wrap(said, WIDTH, initial_indent="    ", subsequent_indent="      ")
    if not lines:
        return ""
    return "\n".join([f"What this run can show, and what it shows ({b}/{a}, 95 % intervals; the tables have the rest):",
                      *lines])


def show(results: Results) -> None:
    """Print what was found and the table, and write the HTML page."""
    a, b = results.labels
    found = findings(results)
    print(f"{results.KIND}, {b}/{a} with 95 % intervals:")
    for said in found:
        print(textwrap.fill(said, WIDTH, initial_indent="* ", subsequent_indent="  "))
    print(f"\n{results.text()}")
    out = page.page_path(results.directory)
    out.write_text(results.html(found))
    print(f"\nwith plots: {out}")
