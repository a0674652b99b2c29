#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Statistics, table and HTML page from a directory of bench.py's results.

    tools/report.py [DIRECTORY]       default: build/results/latest
"""

import base64
import html
import io
import json
import math
import pathlib
import re
import sys
import textwrap

import numpy
import scipy.stats

import common
from common import ToolError

# name, unit and digits in the table, and whether more of it is better
METRICS = {
    "iops": ("IOPS", ",.0f", True),
    "p50": ("latency p50 [us]", ",.0f", False),
    "p99": ("latency p99 [us]", ",.0f", False),
    "p999": ("latency p99.9 [us]", ",.0f", False),
    "interrupts": ("interrupts per I/O", ".4f", False),
    "writes": ("write(2) per I/O", ".4f", False),
    "cpu": ("IOThread ns per I/O", ",.0f", False),
}
ROLES = ["base", "base2", "series"]
CONFIDENCE = 0.95


# -- one run -------------------------------------------------------------------

def count_interrupts(lines, virtio):
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


def metrics(run):
    """The figures of one run, from the raw results in its file."""
    sides = [job[side] for job in run["fio"]["jobs"] for side in ("read", "write", "trim", "mixed")
             if job.get(side, {}).get("total_ios")]
    ios = sum(s["total_ios"] for s in sides)
    if not ios:
        raise ToolError(f"run {run['n']}: fio did no I/O")
    # Percentiles do not add up; of several jobs in a file of the person's own
    # the worst is shown. Our own job has one.
    def percentile(q):
        found = [s["clat_ns"]["percentile"][q] for s in sides
                 if q in s.get("clat_ns", {}).get("percentile", {})]
        return max(found) / 1000 if found else math.nan
    before, after = run["counters"]["before"], run["counters"]["after"]
    interrupts = [count_interrupts(run["interrupts"][t], run["virtio"]) for t in ("before", "after")]
    return {"iops": sum(s["iops"] for s in sides),
            "p50": percentile("50.000000"), "p99": percentile("99.000000"), "p999": percentile("99.900000"),
            "interrupts": (interrupts[1] - interrupts[0]) / ios,
            "writes": (after["syscw"] - before["syscw"]) / ios,
            "cpu": (after["cpu_ns"] - before["cpu_ns"]) / ios}


def load(directory):
    """(bench.json, list of runs with their metrics); a damaged file is named."""
    directory = pathlib.Path(directory)

    def read(path):
        try:
            return json.loads(path.read_text())
        except FileNotFoundError as e:
            raise ToolError(f"{path} is missing; is {directory} a results directory?") from e
        except (OSError, ValueError) as e:
            raise ToolError(f"{path} is damaged ({e}); remove it to go on without it") from e

    bench = read(directory / "bench.json")
    runs = []
    for path in sorted(directory.glob("run-*.json")):
        run = read(path)
        try:
            run["metrics"] = metrics(run)
            if run["role"] not in ROLES:
                raise ValueError(f"role {run['role']}")
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise ToolError(f"{path} is damaged ({type(e).__name__}: {e}); "
                            f"remove it to go on without it") from e
        runs.append(run)
    if not runs:
        raise ToolError(f"{directory}: nothing measured, no run-*.json in it")
    return bench, runs


# -- statistics ----------------------------------------------------------------

def paired(a, b):
    """Ratio b/a of pairs: estimate, interval, sign-flip p; None where it is undefined."""
    none = {"n": len(a), "ratio": None, "low": None, "high": None, "p": None}
    if not len(a) or not all(x > 0 for x in [*a, *b]):      # nan too
        return none
    d = numpy.log(b) - numpy.log(a)
    result = {**none, "ratio": float(numpy.exp(d.mean()))}
    if len(d) < 2:
        return result
    if numpy.ptp(d) < 1e-12:                                # all ratios alike
        result["low"] = result["high"] = result["ratio"]
    else:
        low, high = scipy.stats.t.interval(CONFIDENCE, len(d) - 1, d.mean(), scipy.stats.sem(d))
        result |= {"low": float(numpy.exp(low)), "high": float(numpy.exp(high))}
    # all 2^n sign flips where that is few, else a fixed sample of them
    result["p"] = float(scipy.stats.permutation_test(
        (d,), lambda x, axis: numpy.mean(x, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=numpy.inf if len(d) <= 14 else 20000, random_state=0).pvalue)
    return result


def verdict(ab, aa, more_is_better):
    """better, worse, none; n/a where one of the intervals is missing."""
    if ab["low"] is None or aa["low"] is None:
        return "n/a"
    floor = min(aa["low"], 1), max(aa["high"], 1)
    if ab["low"] <= 1 <= ab["high"] or floor[0] <= ab["ratio"] <= floor[1]:
        return "none"
    return "better" if (ab["ratio"] > 1) == more_is_better else "worse"


def middle(values):
    """Geometric mean, which fits the ratios; the plain one where there are zeros."""
    if not len(values):
        return math.nan
    return float(scipy.stats.gmean(values) if all(v > 0 for v in values) else numpy.mean(values))


def analyse(runs):
    """Per engine and metric: values in matched pairs, A/B and A/A ratio, verdict."""
    table = {}
    for engine in dict.fromkeys(sorted(r["engine"] for r in runs)):
        by_role = {role: {r["pair"]: r["metrics"] for r in runs
                          if r["engine"] == engine and r["role"] == role} for role in ROLES}
        rows = {}
        for m, (_, _, more) in METRICS.items():
            def pick(role, other):
                pairs = sorted(by_role[role].keys() & by_role[other].keys())
                return [by_role[role][p][m] for p in pairs]
            base, series = pick("base", "series"), pick("series", "base")
            ab = paired(base, series)
            if not base:        # interrupted early: show what there is
                base, series = ([v[m] for v in by_role[r].values()] for r in ("base", "series"))
            aa = paired(pick("base", "base2"), pick("base2", "base"))
            rows[m] = {"base": base, "series": series, "ab": ab, "aa": aa,
                       "verdict": verdict(ab, aa, more)}
        table[engine] = rows
    return table


# -- text ----------------------------------------------------------------------

def ratio_text(r):
    if r["ratio"] is None:
        return "n/a"
    if r["low"] is None:
        return f"{r['ratio']:.3f} [n/a]"
    return f"{r['ratio']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"


def number_text(values, form):
    v = middle(values)
    return "n/a" if math.isnan(v) else format(v, form)


def labels(bench):
    return [b["label"] for b in bench["binaries"]]


def cells(bench, rows):
    for m, (title, form, _) in METRICS.items():
        r = rows[m]
        yield (title, number_text(r["base"], form), number_text(r["series"], form),
               ratio_text(r["ab"]), "n/a" if r["ab"]["p"] is None else f"{r['ab']['p']:.3f}",
               ratio_text(r["aa"]), r["verdict"])


def header(bench):
    a, b = labels(bench)
    return ("metric", a, b, f"{b}/{a} [95 % CI]", "p", "A/A [95 % CI]", "verdict")


def complete(runs):
    """How many pairs are measured on both sides, for the engine that has fewest."""
    engines = {r["engine"] for r in runs}
    return min(len({r["pair"] for r in runs if r["engine"] == e and r["role"] == "base"}
                   & {r["pair"] for r in runs if r["engine"] == e and r["role"] == "series"})
               for e in engines)


def setup(bench, runs):
    """What was measured on what, in a few lines."""
    p, host = bench["parameters"], bench["host"]
    job = "own fio job" if p["fio_job"] else \
        f"{p['rw']} {p['bs']}, iodepth {p['iodepth']}, numjobs {p['numjobs']}, {p['runtime']:g} s"
    accel = host["accelerator"]
    accel = "KVM" if accel == "kvm" else "TCG (no hardware virtualisation: the vCPU is the bottleneck)"
    busy = others(runs) / host["cpus"]
    yield f"fio: {job}; disk {bench['disk']}"
    yield (f"guest: {p['vcpus']} vCPUs, {p['queues']} queues per disk, event_idx "
           f"{'on' if p['event_idx'] else 'off'}, accelerator {accel}")
    yield (f"host: {host['cpus']} CPUs ({host['cpu']}), Linux {host['kernel']}; "
           f"other processes took {busy:.0%} of it")
    done = complete(runs)
    yield (f"{done} pairs" + (f" of {p['pairs']} planned" if done < p["pairs"] else "") +
           f" of fresh processes, order random (seed {p['seed']}); {bench['date']}")
    for b in bench["binaries"]:
        yield f"{b['label']}: {b['version']}, sha256 {b['sha256'][:16]}"


def others(runs):
    """Processors that were neither idle nor busy with this QEMU while fio ran, on average."""
    share = []
    for r in runs:
        d = {k: r["counters"]["after"][k] - r["counters"]["before"][k]
             for k in ("time", "machine_cpu_s", "qemu_cpu_s")}
        share.append((d["machine_cpu_s"] - d["qemu_cpu_s"]) / d["time"])
    return max(0, sum(share) / len(share))


def summary(bench, table):
    """The paragraph that says what is outside of the noise floor and what is not."""
    a, b = labels(bench)
    found = {v: {} for v in ("better", "worse", "none", "n/a")}
    odd, count = {}, 0
    for engine, rows in table.items():
        for m, r in rows.items():
            name = METRICS[m][0].split(" [")[0]
            if r["verdict"] in ("better", "worse"):
                name += f" {r['ab']['ratio'] - 1:+.1%} [{r['ab']['low'] - 1:+.1%}, {r['ab']['high'] - 1:+.1%}]"
            found[r["verdict"]].setdefault(engine, []).append(name)
            count += 1
            if r["aa"]["low"] is not None and not r["aa"]["low"] <= 1 <= r["aa"]["high"]:
                odd.setdefault(engine, []).append(METRICS[m][0].split(" [")[0])

    def listed(names):
        return "; ".join(f"aio={engine}: {', '.join(n)}" for engine, n in names.items())

    text = []
    for v, start in [("better", f"Outside of the noise floor, {b} better than {a}: "),
                     ("worse", f"Outside of the noise floor, {b} worse than {a}: "),
                     ("none", "No difference that this run can tell from noise: "),
                     ("n/a", "Not decided (zeros, or fewer than two pairs): ")]:
        if found[v]:
            text.append(start + listed(found[v]) + ".")
    if found["none"] and not found["better"] and not found["worse"]:
        text.insert(0, f"Nothing is outside of the noise floor: {a} and {b} are not told apart.")
    text.append(f"Of {count} comparisons at 95 %, about one in twenty leaves its interval by chance" +
                (f"; the A/A run, where nothing differs, did so in {listed(odd)}." if odd else "."))
    return " ".join(text)


def text(bench, runs, table):
    widths = (19, 9, 9, 22, 5, 22, 7)
    def row(values):
        return " ".join([f"{values[0]:<{widths[0]}}"] +
                        [f"{v:>{w}}" for v, w in zip(values[1:], widths[1:])])
    lines = [*setup(bench, runs)]
    for engine, rows in table.items():
        lines += ["", f"aio={engine}", row(header(bench)), "-" * 99]
        lines += [row(c) for c in cells(bench, rows)]
    lines += ["", "verdict: none = the interval holds 1, or the ratio is inside the A/A interval"]
    return "\n".join(lines)


# -- plots ---------------------------------------------------------------------

BLUE, ORANGE, GREY = "#33658a", "#e07a1f", "#999999"


def svg(figure):
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()[out.getvalue().index("<svg"):]


def png(figure):
    """For figures of thousands of lines, which are big as SVG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90, metadata={"Software": None})
    return f'<img src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'


def plots(bench, table):
    """[(caption, figure)]; matplotlib is slow to load, so only here."""
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams.update({"svg.hashsalt": "defer-call", "font.size": 9,
                                "axes.spines.top": False, "axes.spines.right": False})
    a, b = labels(bench)
    engines = list(table)
    result = []

    fig = Figure(figsize=(9, 3.2), layout="constrained")
    axes = fig.subplots(1, len(engines), squeeze=False, sharey=True)[0]
    for ax, engine in zip(axes, engines):
        r = table[engine]["iops"]
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
    result.append(("IOPS of each run; lines join the runs of a pair, bars are geometric means.", fig))

    fig = Figure(figsize=(9, 1 + 0.5 * len(METRICS)), layout="constrained")
    axes = fig.subplots(1, len(engines), squeeze=False, sharex=True, sharey=True)[0]
    for ax, engine in zip(axes, engines):
        ax.axvline(1, color="black", lw=0.8)
        for i, m in enumerate(METRICS):
            r = table[engine][m]
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
        ax.set(title=f"aio={engine}", yticks=range(len(METRICS)), ylim=(len(METRICS) - .5, -.5),
               yticklabels=[METRICS[m][0] for m in METRICS])
        ax.grid(axis="x", lw=0.4)
    low, high = axes[0].get_xlim()
    for ax in axes:
        ax.set_xlim(min(low, 1 / 1.3), max(high, 1.3))
        ticks = [t for t in (.01, .02, .05, .1, .2, .5, .8, 1, 1.25, 2, 5, 10, 20, 50, 100)
                 if ax.get_xlim()[0] <= t <= ax.get_xlim()[1]]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks], rotation=60)
        ax.set_xticks([], minor=True)
    result.append((f"Ratios with 95 % intervals (log scale): {b}/{a} in orange, filled where it is "
                   f"outside of the noise floor; the noise floor ({a} against itself) in grey.", fig))

    counts = ["writes", "interrupts", "cpu"]
    fig = Figure(figsize=(9, 3), layout="constrained")
    for ax, m in zip(fig.subplots(1, len(counts)), counts):
        for side, shift, color, label in (("base", -.2, BLUE, a), ("series", .2, ORANGE, b)):
            for i, engine in enumerate(engines):
                values = table[engine][m][side]
                ax.bar(i + shift, middle(values) if values else 0, .38, color=color,
                       label=label if i == 0 else None)
                ax.scatter([i + shift] * len(values), values, s=7, color="black", zorder=3)
        ax.set(title=METRICS[m][0], xticks=range(len(engines)), xticklabels=engines)
        ax.set_ylim(bottom=0)
    fig.get_layout_engine().set(rect=(0, 0.08, 1, 0.92))
    fig.legend(*ax.get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False)
    result.append(("Counts and CPU time per I/O (geometric means, dots are runs).", fig))
    return result


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; font-size: 13px; margin: 0 0 1.5em; display: block; overflow-x: auto }}
th, td {{ padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }}
.better {{ background: #dff0d8 }} .worse {{ background: #f7dddd }}
svg {{ max-width: 100%; height: auto }} pre {{ white-space: pre-wrap; font-size: 12px }}
figure {{ margin: 0 0 2em }} figcaption {{ color: #555; font-size: 13px }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
{figures}
{tables}
<p>Ratios are geometric means over pairs with a 95 % t interval on their logarithms; p is the
sign-flip permutation test. A/A is the same binary against itself, measured in the same rounds.
Verdict <em>none</em>: the interval holds 1, or the ratio is inside the A/A interval.</p>
<h2>Setup</h2><ul>{setup}</ul>
<h2>Command line of the first run</h2><pre>{command}</pre>
{job}
</body></html>
"""


def page(bench, runs, table):
    e = html.escape
    a, b = labels(bench)
    tables = ""
    for engine, rows in table.items():
        tables += f"<h2>aio={e(engine)}</h2>\n<table><tr>" + \
            "".join(f"<th>{e(h)}</th>" for h in header(bench)) + "</tr>\n"
        for c in cells(bench, rows):
            tables += f'<tr class="{c[-1]}">' + "".join(f"<td>{e(v)}</td>" for v in c) + "</tr>\n"
        tables += "</table>\n"
    figures = "".join(f"<figure>{svg(f)}<figcaption>{e(caption)}</figcaption></figure>\n"
                      for caption, f in plots(bench, table))
    job = bench["parameters"]["fio_job"]
    return PAGE.format(title=e(f"{a} and {b} ({bench['stack']})"), summary=e(summary(bench, table)),
                       figures=figures, tables=tables,
                       setup="".join(f"<li>{e(line)}</li>" for line in setup(bench, runs)),
                       command=e(" ".join(runs[0]["command"])),
                       job=f"<h2>fio job</h2><pre>{e(job)}</pre>" if job else "")


def page_path(directory):
    """Where the HTML page of results goes: beside them, but nothing is written to results/, which git tracks."""
    directory = pathlib.Path(directory).resolve()
    if not directory.is_relative_to(common.ROOT / "results"):
        return directory / "report.html"
    pages = common.BUILD / "report"
    pages.mkdir(parents=True, exist_ok=True)
    return pages / f"{directory.name}.html"


def show(directory):
    """Print the table and write the HTML page."""
    bench, runs = load(directory)
    table = analyse(runs)
    print(text(bench, runs, table))
    print("\n" + textwrap.fill(summary(bench, table), 100))
    out = page_path(directory)
    out.write_text(page(bench, runs, table))
    print(f"\nwith plots: {out}")


def main():
    if len(sys.argv) > 2:
        raise ToolError("usage: report.py [DIRECTORY]")
    directory = pathlib.Path(sys.argv[1] if len(sys.argv) == 2 else common.BUILD / "results/latest")
    if not directory.is_dir():
        raise ToolError(f"{directory}: no such results directory; `make bench` makes one")
    show(directory)


if __name__ == "__main__":
    common.main(main, arguments=True)
