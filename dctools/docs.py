# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of documents, cover letters and commit messages, made from results."""

import dataclasses
import functools
import json
import math
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from dctools import base, common, series
from dctools.common import ToolError
from dctools.measure.plan import Config
from dctools.report import show
from dctools.report.loadgen import LoadgenResults
from dctools.report.results import Results, markdown, markdown_lines, metric_cell, ratio_text, told

LOSSES = ["iops", "cpu", "p50", "p99", "p999"]      # of what a loss is told


def documents() -> list[pathlib.Path]:
    return [common.ROOT / "README.md", *sorted((common.ROOT / "docs").glob("*.md")), common.ROOT / "results/README.md"]


@functools.cache
def results(directory: str) -> Results:
    return show.results(common.ROOT / "results" / directory)


def loadgen_results(directory: str) -> LoadgenResults:
    found = results(directory)
    if not isinstance(found, LoadgenResults):
        raise ToolError(f"{directory} is not of the load generator")
    return found


def table(directories: str, metrics: str) -> str:
    """A line for each configuration."""
    return markdown([results(d) for d in directories.split()], metrics.split())


def grid(directory: str, metric: str, rest: str) -> str:
    """Engines and depths."""
    return loadgen_results(directory).grid(metric, rest)


def step_rows(directory: str, metric: str, rest: str, cell: Callable[[dict[str, Any]], str],
              only: Sequence[str] = ()) -> list[list[str]]:
    """Engines and depths, and a column for each of the results in this directory, or for only some."""
    top = common.ROOT / "results" / directory
    names = sorted(p.name for p in top.iterdir() if p.is_dir()) if top.is_dir() else []
    names = [name for name in names if not only or name.partition("-")[2] in only]
    if not names or len(names) < len(only):
        raise ToolError(f"{top}: no results in there" + (f" of each of {', '.join(only)}" if only else ""))
    columns = [loadgen_results(f"{directory}/{name}").cells_of(metric, rest) for name in names]
    return [["depth", "engine", *(name.partition("-")[2] for name in names)]] + [
        [str(qd), aio, *(cell(cells[aio, qd]) if (aio, qd) in cells else "" for cells in columns)]
        for aio, qd in columns[0]]


def steps(directory: str, metric: str, rest: str) -> str:
    """What each of the steps that this directory has results of, in the order of their names, makes of a metric."""
    return markdown_lines(step_rows(directory, metric, rest, lambda row: told(ratio_text(row["ab"]), row)))


def index() -> str:
    """What results there are."""
    return markdown_lines([["directory", "compared", "code", "date", "CPU"], *show.index(common.ROOT / "results")])


def worse(directories: Iterable[str]) -> list[tuple[str, Any, str, dict[str, Any]]]:
    """What is worse outside of the noise, the worst first: results, configuration, metric and its row."""
    found = [(d, config, m, row[m]) for d in directories for config, row in results(d).table.items() for m in LOSSES
             if row[m]["verdict"] == "worse"]
    return sorted(found, key=lambda each: -abs(math.log(each[3]["ab"]["ratio"])))


def losses(directories: str) -> str:
    """A document's table of what is worse."""
    lines = [[d.rpartition("/")[2], str(config), results(d).METRICS[m][0].split(" [")[0], ratio_text(row["ab"]),
              ratio_text(row["aa"])] for d, config, m, row in worse(directories.split())]
    return markdown_lines([["results", "configuration", "what", "ratio", "A/A"],
                           *(lines or [["", "none", "", "", ""]])])


def wanted(name: str, directory: str) -> str:
    """The lower ends of intervals of IOPS in these results, and what this file wants of them; what is met is bold."""
    file = common.ROOT / "results" / name
    try:
        rows = json.loads(file.read_text())
        lines, met, count = [], 0, 0
        for row in rows:
            cells = loadgen_results(f"{directory}/{row['results']}").cells_of("iops", row["rest"])
            line = [row["row"]]
            for aio in rows[0]["iops"]:
                if (least := row["iops"].get(aio)) is None:
                    line.append("")
                    continue
                low = cells[aio, row["depth"]]["ab"]["low"]
                count, met = count + 1, met + (low >= least)
                line.append(f"**{low:.3f} of {least:g}**" if low >= least else f"{low:.3f} of {least:g}")
            lines.append(line)
        return markdown_lines([[f"met: {met} of {count}", *rows[0]["iops"]], *lines])
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise ToolError(f"{file.name} does not fit the results ({type(e).__name__}: {e})") from e


def printed(name: str) -> list[list[str]]:
    """What a command has printed: columns that have a tab or two spaces between them."""
    try:
        lines = (common.ROOT / "results" / name).read_text().splitlines()
    except OSError as e:
        raise ToolError(f"results/{name}: {e.strerror}") from e
    cells = [re.split(r"\t| {2,}", line.strip()) for line in lines]
    width = max(map(len, cells), default=0)
    return [line + [""] * (width - len(line)) for line in cells]


def columns(name: str) -> str:
    """A document's table of that."""
    return markdown_lines(printed(name))


def survived(names: str) -> str:
    """What soaks have survived, a column for each of these files."""
    try:
        runs = [json.loads((common.ROOT / "results" / name).read_text()) for name in names.split()]
        disks = [run["disks"] for run in runs]
        slowest = [max(each, key=lambda disk: disk["slowest_s"]) for each in disks]
        lines = [["", *(run["stack"] for run in runs)],
                 ["tree of the series", *(run["series_tree"][:12] for run in runs)],
                 ["CPU", *(run["host"]["cpu"] for run in runs)],
                 ["day, minutes", *(f"{run['date'][:10]}, {run['minutes']:.0f}" for run in runs)],
                 *([what, *(str(run["did"][what]) for run in runs)] for what in runs[0]["did"]),
                 *([f"MiB {how}", *(f"{sum(disk[f'{how}_mib'] for disk in each):.0f}" for each in disks)]
                   for how in ["written", "verified"]),
                 ["slowest request", *(f"{d['slowest_s']:.2f} s ({d['driver']}, {d['aio']})" for d in slowest)],
                 ["problem", *(run["problem"] or "none" for run in runs)]]
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise ToolError(f"{names}: not what `make soak` writes ({type(e).__name__}: {e})") from e
    return markdown_lines(lines)


MARKERS: dict[re.Pattern[str], Callable[..., str]] = {
    re.compile(r"<!-- table: ([^:]+): ([^:]+) -->"): table,
    re.compile(r"<!-- grid: ([^:]+): ([^:]+): (.+) -->"): grid,
    re.compile(r"<!-- steps: ([^:]+): ([^:]+): (.+) -->"): steps,
    re.compile(r"<!-- index -->"): index,
    re.compile(r"<!-- columns: ([^:]+) -->"): columns,
    re.compile(r"<!-- losses: ([^:]+) -->"): losses,
    re.compile(r"<!-- soak: ([^:]+) -->"): survived,
    re.compile(r"<!-- wanted: ([^:]+): ([^:]+) -->"): wanted,
}


def made(marker: str) -> str:
    """The table that stands below this marker."""
    for pattern, make in MARKERS.items():
        if m := pattern.fullmatch(marker):
            return make(*m.groups())
    raise ToolError(f"{marker}: no such marker; it is <!-- table: DIRECTORY ...: METRIC ... -->, "
                    "<!-- grid: DIRECTORY: METRIC: REST -->, <!-- steps: DIRECTORY: METRIC: REST -->, "
                    "<!-- losses: DIRECTORY ... -->, <!-- wanted: FILE: DIRECTORY -->, <!-- columns: FILE -->, "
                    "<!-- soak: FILE ... --> or <!-- index -->")


def updated(text: str) -> Iterator[str]:
    """The lines of a document, with the table below each marker made once more."""
    lines = iter(text.splitlines())
    for line in lines:
        yield line
        if line.startswith("<!--"):
            yield from made(line).splitlines()
            yield next((s for s in lines if not s.startswith("|")), "")


def update(path: pathlib.Path) -> str:
    """The document's text as it should be."""
    try:
        return "\n".join(updated(path.read_text())) + "\n"
    except ToolError as e:
        raise ToolError(f"{path.name}: {e}") from e


# -- mails ---------------------------------------------------------------

def short(text: str) -> str:
    """With as many digits as a mail has room for."""
    return re.sub(r"\d+\.\d{3}", lambda m: f"{float(m[0]):.2f}", text)


def mail_cell(found: Results, rows: dict[str, Any], metric: str) -> str:
    """Like a document's, but shorter."""
    return short(metric_cell(found, rows, metric)).replace(" → ", ", ")


def mail_grid(directory: str, rest: str, metric: str = "iops") -> list[list[str]]:
    """A metric by depth and engine."""
    found = loadgen_results(directory)
    cells = found.cells_of(metric, rest)
    engines, depths = list(dict.fromkeys(aio for aio, _ in cells)), dict.fromkeys(qd for _, qd in cells)
    return [["depth", *engines]] + [
        [str(qd), *(mail_cell(found, {metric: cells[aio, qd]}, metric) for aio in engines)] for qd in depths]


def mail_steps(steps: str, rest: str, only: Sequence[str] = ()) -> list[list[str]]:
    """IOPS by depth, engine and step; a line has room for the intervals of three."""
    lines = step_rows(steps, "iops", rest, lambda row: short(ratio_text(row["ab"])), only)
    return lines if len(lines[0]) <= 5 else [[cell.partition(" [")[0] for cell in line] for line in lines]


def mail_name(config: Config) -> list[str]:
    """Depth, and what else tells it from the others of a table."""
    return [str(config.qd) + (f" x {config.queues}" if config.queues > 1 else ""),
            config.aio + (", waits" if config.wait == "irq" else ", looks") +
            (", polls" if config.poll_max_ns else "") + (", off" if config.event_idx == "off" else "") +
            (", disk" if config.storage == "disk" else "")]


def mail_rows(directories: Sequence[str], metrics: Sequence[str]) -> list[list[str]]:
    """A line for each configuration with an irqfd, by depth; of User Mode Linux for each engine."""
    found = [(config, results(d), rows) for d in directories for config, rows in results(d).table.items()]
    depths = isinstance(found[0][0], Config)
    if depths:
        found = sorted((each for each in found if each[0].main in ("irqfd", "export")),
                       key=lambda each: (each[0].qd, each[0].queues))
    return [[*(["depth", ""] if depths else ["engine"]), *(MAIL_TITLES[m] for m in metrics)]] + [
        [*(mail_name(config) if depths else [str(config)]), *(mail_cell(source, rows, m) for m in metrics)]
        for config, source, rows in found]


def mail_losses(losses: Sequence[str]) -> list[list[str]]:
    """A line for each that is worse outside of the noise, the worst first."""
    lines = [[*mail_name(config), MAIL_TITLES[m], short(ratio_text(row["ab"]))] for _, config, m, row in worse(losses)]
    return [["depth", "", "worse", "ratio"], *(lines or [["", "", "none", ""]])]


MAIL_TITLES = {"iops": "IOPS", "cpu": "CPU per I/O", "p50": "p50", "p99": "p99", "p999": "p99.9",
               "submits": "submissions", "writes": "write(2)", "rescheduling": "interrupts",
               "interrupts": "interrupts", "io_submit": "io_submit"}


# By what tells them from each other
MAIL_TABLES: dict[str, Callable[..., list[list[str]]]] = {
    "steps": mail_steps, "rest": mail_grid, "metrics": mail_rows, "losses": mail_losses, "name": printed}


def mail_table(about: dict[str, Any]) -> str:
    """The table of a mail of which pin.json says this."""
    make = MAIL_TABLES[next((key for key in MAIL_TABLES if key in about), "metrics")]
    try:
        lines = make(**about)
    except (LookupError, TypeError) as e:
        raise ToolError(f"{json.dumps(about)}: a table is of a \"directory\" or \"steps\" and the \"rest\" of its "
                        f"configurations, of \"directories\" and \"metrics\" ({', '.join(MAIL_TITLES)}), of "
                        "\"losses\", a list of directories, or of the \"name\" of what a command has printed") from e
    right = {"depth": 1, "calls": len(lines[0])}.get(lines[0][0], 0)        # so many columns are of numbers
    columns = [[c.rjust(max(map(len, column))) if n < right else c.ljust(max(map(len, column)))
                for c in column] for n, column in enumerate(zip(*lines))]
    return "".join(f"  {'  '.join(line)}".rstrip() + "\n" for line in zip(*columns))


def mail(path: pathlib.Path, tables: Sequence[dict[str, Any]]) -> str:
    """The mail with these tables, in this order, in place of the first that it has."""
    made = iter(tables)

    def make(_: re.Match[str]) -> str:
        return mail_table(next(made))
    text, count = re.subn(r"(?m)^ +(?:depth|engine|calls)  .*\n(?: .*\n)+", make, path.read_text(), count=len(tables))
    if count < len(tables):
        raise ToolError(f"{path}: {count} tables that begin with \"depth\", \"engine\" or \"calls\", but pin.json "
                        f"says how to make {len(tables)}")
    return text


RAW = "Raw data: "


def raw_data(path: pathlib.Path, text: str, tables: Sequence[dict[str, Any]]) -> str:
    """The cover letter, with a paragraph that says where the results are that its tables come from."""
    names = dict.fromkeys(name for about in tables for key in ("directory", "steps", "directories", "losses")
                          for name in ([about[key]] if isinstance(about.get(key), str) else about.get(key, [])))
    if not names:
        return text
    tops: dict[str, list[str]] = {}
    for name in names:
        top, _, rest = name.partition("/")
        tops.setdefault(top, []).append(rest)
    places = [f"results/{top}/" + (rests[0] if len(rests) == 1 else f"{{{', '.join(rests)}}}")
              for top, rests in tops.items()]
    paragraph = textwrap.fill(RAW + ", ".join(places), 76, break_on_hyphens=False) + "\n"
    text, count = re.subn(rf"(?m)^{RAW}.*\n(?:\S.*\n)*", lambda _: paragraph, text, count=1)
    if not count:
        raise ToolError(f"{path}: no paragraph that begins with \"{RAW}\"; put one below the tables, `make docs` "
                        "writes the rest")
    return text


def mails() -> Iterator[tuple[pathlib.Path, str]]:
    """Each cover letter and patch that has tables, and its text as it should be."""
    for stack in common.stacks():
        top = common.patch_dir(stack)
        tables = base.read_pin(stack).get("tables", {})
        paths = {path.parent.name if path.name == series.COVER else series.read_patch(path).subject: path
                 for path in sorted(top.glob("*/*.patch"))}
        for name in tables:
            if name not in paths:
                raise ToolError(f"{stack}/pin.json: tables of \"{name}\", which is neither a topic nor a patch's "
                                "subject")
            path, text = paths[name], mail(paths[name], tables[name])
            yield path, raw_data(path, text, tables[name]) if path.name == series.COVER else text


@dataclasses.dataclass(frozen=True)
class Options:
    pass


def main(_: Options) -> None:
    """Make the tables in README.md, docs/, cover letters and messages once more, from results/.

    Above each stands how: <!-- table: DIRECTORY ...: METRIC ... -->, a line for each configuration, as of
    `./dc results --markdown`; or <!-- grid: DIRECTORY: METRIC: REST -->, engines and depths of those
    configurations whose other parts are REST; or <!-- steps: DIRECTORY: METRIC: REST -->, the same with a column
    for each of the results in DIRECTORY; or <!-- losses: DIRECTORY ... -->, what is worse outside of the noise;
    <!-- wanted: FILE: DIRECTORY -->, lower ends of IOPS and what FILE wants; or <!-- columns: FILE -->, what a
    command has printed; or <!-- soak: FILE ... -->, what `make soak` has survived; or <!-- index -->, the results
    that there are. pin.json has the tables of topics' cover letters, and of patches by their subjects.
    """
    for path, text in [*((path, update(path)) for path in documents()), *mails()]:
        if text != path.read_text():
            path.write_text(text)
            print(f"{path.relative_to(common.ROOT)}: other tables than before")
