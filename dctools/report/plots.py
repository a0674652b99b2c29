# SPDX-License-Identifier: GPL-2.0-or-later
"""Plots of both kinds of results, each with its caption."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib import figure, lines

from dctools.report.statistics import middle

if TYPE_CHECKING:
    from dctools.measure.plan import Config
    from dctools.report.infio import FioResults
    from dctools.report.loadgen import LoadgenResults

BLUE, ORANGE, GREY = "#33658a", "#e07a1f", "#999999"

Plot = tuple[str, figure.Figure]        # with its caption
Draw = Callable[..., None]              # draw(axes, depths, {depth: rows}, style, shift)


# -- fio in a guest ----------------------------------------------------------------

def fio(results: "FioResults") -> list[Plot]:
    """Those of fio in a guest."""
    matplotlib.rcParams.update({"svg.hashsalt": "defer-call", "font.size": 9,
                                "axes.spines.top": False, "axes.spines.right": False})
    a, b = results.labels
    return [fio_iops(results, a, b), fio_ratios(results, a, b), fio_counts(results, a, b)]


def fio_iops(results: "FioResults", a: str, b: str) -> Plot:
    """Each run, a panel for each engine."""
    engines = list(results.table)
    fig = figure.Figure(figsize=(9, 3.2), layout="constrained")
    axes = fig.subplots(1, len(engines), squeeze=False, sharey=True)[0]
    for ax, engine in zip(axes, engines):
        r = results.table[engine]["iops"]
        for x, y in zip(r["base"], r["series"]):
            ax.plot([0, 1], [x, y], color=GREY, lw=0.8, zorder=1)
        for n, (values, color) in enumerate([(r["base"], BLUE), (r["series"], ORANGE)]):
            ax.scatter([n] * len(values), values, color=color, s=22, zorder=3)
            if values:
                ax.plot([n - .18, n + .18], [middle(values)] * 2, color=color, lw=2.5, zorder=2)
        ax.set(title=f"aio={engine}", xlim=(-.5, 1.5), xticks=[0, 1], xticklabels=[a, b])
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    axes[0].set_ylabel("IOPS")
    return "IOPS of each run; lines join the runs of a pair, bars are geometric means.", fig


def fio_ratios(results: "FioResults", a: str, b: str) -> Plot:
    """Each metric's ratio with its interval, a panel for each engine."""
    engines = list(results.table)
    fig = figure.Figure(figsize=(9, 1 + 0.5 * len(results.METRICS)), layout="constrained")
    axes = fig.subplots(1, len(engines), squeeze=False, sharex=True, sharey=True)[0]
    for ax, engine in zip(axes, engines):
        ax.axvline(1, color="black", lw=0.8)
        for i, m in enumerate(results.METRICS):
            r = results.table[engine][m]
            for which, offset, color in (("aa", .17, GREY), ("ab", -.17, ORANGE)):
                s = r[which]
                if s["ratio"] is None:
                    continue
                if s["low"] is not None:
                    ax.plot([s["low"], s["high"]], [i + offset] * 2, color=color, lw=1.6)
                filled = which == "aa" or r["verdict"] in ("better", "worse")
                ax.plot(s["ratio"], i + offset, "o", ms=5, color=color,
                        markerfacecolor=color if filled else "white")
        ax.set_xscale("log")
        ax.set(title=f"aio={engine}", yticks=range(len(results.METRICS)), ylim=(len(results.METRICS) - .5, -.5),
               yticklabels=[results.METRICS[m][0] for m in results.METRICS])
        ax.grid(axis="x", lw=0.4)
    low, high = axes[0].get_xlim()
    for ax in axes:
        ax.set_xlim(min(low, 1 / 1.3), max(high, 1.3))
        ticks = [t for t in (.01, .02, .05, .1, .2, .5, .8, 1, 1.25, 2, 5, 10, 20, 50, 100)
                 if ax.get_xlim()[0] <= t <= ax.get_xlim()[1]]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks], rotation=60)
        ax.set_xticks([], minor=True)
    return (f"Ratios with 95 % intervals (log scale): {b}/{a} in orange, filled where it is "
            f"outside of the noise floor; the noise floor ({a} against itself) in grey."), fig


def fio_counts(results: "FioResults", a: str, b: str) -> Plot:
    """What is counted per I/O, a panel for each count."""
    engines = list(results.table)
    counts = results.COUNTS
    fig = figure.Figure(figsize=(9, 3), layout="constrained")
    for ax, m in zip(fig.subplots(1, len(counts)), counts):
        for side, shift, color, label in (("base", -.2, BLUE, a), ("series", .2, ORANGE, b)):
            for i, engine in enumerate(engines):
                values = results.table[engine][m][side]
                ax.bar(i + shift, middle(values) if values else 0, .38, color=color,
                       label=label if i == 0 else None)
                ax.scatter([i + shift] * len(values), values, s=7, color="black", zorder=3)
        ax.set(title=results.METRICS[m][0], xticks=range(len(engines)), xticklabels=engines)
        ax.set_ylim(bottom=0)
    fig.get_layout_engine().set(rect=(0, 0.08, 1, 0.92))
    fig.legend(*ax.get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False)
    return "Counts and CPU time per I/O (geometric means, dots are runs).", fig


# -- load generator ----------------------------------------------------------------

def panels(table: Mapping["Config", dict[str, Any]], draw: Draw, ylabel: str, width: float = 9) -> figure.Figure:
    """A figure with a panel for each storage and irq mode (rows) and engine (columns)."""
    rows = list(dict.fromkeys((c.storage, c.irq, c.wait) for c in table))
    engines = list(dict.fromkeys(c.aio for c in table))
    keys = sorted({(c.queues, c.event_idx, c.main, c.poll_max_ns, c.transport) for c in table},
                  key=lambda k: (k[2] != "irqfd", k))
    legend = 0.2 + 0.2 * math.ceil(len(keys) / 2)
    height = 0.5 + 2.1 * len(rows) + legend
    fig = figure.Figure(figsize=(width, height), layout="constrained")
    fig.get_layout_engine().set(rect=(0, legend / height, 1, 1 - legend / height))
    grid = fig.subplots(len(rows), len(engines), squeeze=False, sharex=True, sharey=True)
    depths = sorted({c.qd for c in table})
    styles = {}
    for i, key in enumerate(keys):
        colour = BLUE if key[1] == "on" else ORANGE
        styles[key] = {"color": colour, "marker": "osD^v<>"[i % 7],
                       "ls": "-" if key[0] == min(k[0] for k in keys) else "--",
                       "alpha": 1 if key[2:] == ("irqfd", 0, keys[0][4]) else .5}
    for (storage, irq, wait), line in zip(rows, grid):
        for engine, ax in zip(engines, line):
            for key, style in styles.items():
                mine = {c.qd: rows_ for c, rows_ in table.items()
                        if (c.storage, c.irq, c.wait, c.aio) == (storage, irq, wait, engine)
                        and (c.queues, c.event_idx, c.main, c.poll_max_ns, c.transport) == key}
                if mine:
                    draw(ax, sorted(mine), mine, style, keys.index(key) - (len(keys) - 1) / 2)
            ax.set_xscale("log", base=2)
            ax.set_xticks(depths, depths)
            ax.set_xlim(depths[0] / 1.6, depths[-1] * 1.6)
            if not ax.lines:
                ax.axis("off")
                continue
            ax.set_xticks([], minor=True)
            ax.tick_params(labelbottom=True)
            ax.grid(axis="y", lw=.4)
            ax.set_title(f"{storage}, aio={engine}, irq {irq}", fontsize=8)
        shown = next(ax for ax in line if ax.axison)
        shown.set_ylabel(ylabel)
        shown.tick_params(labelleft=True)
    names = {k: f"{k[0]} queue{'s' if k[0] > 1 else ''}, event_idx {k[1]}" +
             ("" if k[2] == "irqfd" else f", main: {k[2]}") + (f", polls {k[3]} ns" if k[3] else "") +
             ("" if k[4] == "pci" else f", {k[4]}") for k in keys}
    fig.legend([lines.Line2D([], [], **styles[k]) for k in keys], names.values(), loc="lower center", ncols=2,
               frameon=False, fontsize=8)
    return fig


def ratio_drawer(m: str, table: Mapping["Config", dict[str, Any]]) -> Draw:
    """Ratios with their intervals, and those of A/A behind them."""
    # an interval of two noisy pairs knows no bounds
    found = [rows[m]["ab"] for rows in table.values()]
    low = max(.4, min([.95] + [r["low"] or 1 for r in found]))
    high = min(2.5, max([1.05] + [r["high"] or 1 for r in found]))

    def draw(ax, depths, mine, style, shift):
        ax.axhline(1, color="black", lw=.6)
        ax.set_ylim(low, high)
        at = [d * 2 ** (shift * .12) for d in depths]
        for x, d in zip(at, depths):
            ab, aa = mine[d][m]["ab"], mine[d][m]["aa"]
            for r, colour, width, order in ((aa, "#dddddd", 5, 1), (ab, style["color"], 1, 2)):
                if r["low"] is not None:
                    ax.plot([x, x], [r["low"], r["high"]], color=colour, lw=width, zorder=order,
                            solid_capstyle="butt")
        points = [(x, mine[d][m]["ab"]["ratio"]) for x, d in zip(at, depths) if mine[d][m]["ab"]["ratio"]]
        ax.plot([p[0] for p in points], [p[1] for p in points], ms=4, lw=1, zorder=3, **style)
    return draw


def both_drawer(m: str) -> Draw:
    """Absolute values: series filled, base hollow."""
    def draw(ax, depths, mine, style, shift):
        at = [d * 2 ** (shift * .12) for d in depths]
        for side, face in (("base", "white"), ("series", style["color"])):
            values = [middle(mine[d][m][side]) for d in depths]
            points = [(x, v) for x, v in zip(at, values) if v > 0]
            ax.plot([p[0] for p in points], [p[1] for p in points], ms=4, lw=.8, markerfacecolor=face, **style)
        ax.set_yscale("log")
    return draw


def loadgen(results: "LoadgenResults") -> list[Plot]:
    """Those of the load generator."""
    matplotlib.rcParams.update({"svg.hashsalt": "defer-call", "font.size": 8,
                                "axes.spines.top": False, "axes.spines.right": False})
    (a, b), table = results.labels, results.table
    floor = f"lines are 95 % intervals, grey bars the interval of {a} against itself"
    hollow = f"{b} filled, {a} hollow; log scale"
    return [(f"IOPS, ratio {b}/{a} over the queue depth; {floor}.",
             panels(table, ratio_drawer("iops", table), "IOPS ratio")),
            (f"IOThread CPU time per I/O, ratio {b}/{a} over the queue depth; {floor}.",
             panels(table, ratio_drawer("cpu", table), "CPU ratio")),
            (f"write(2) per I/O of the IOThread over the queue depth; {hollow}.",
             panels(table, both_drawer("writes"), "writes per I/O")),
            *((f"Latency {(name := results.METRICS[m][0].split()[1])} over the queue depth; {hollow}.",
               panels(table, both_drawer(m), f"{name} [us]")) for m in results.LATENCY)]
