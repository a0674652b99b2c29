# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents' tables, made from results."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterator

from dctools import common
from dctools.common import ToolError
from dctools.report import show
from dctools.report.loadgen import LoadgenResults
from dctools.report.results import Results, markdown, markdown_lines


def documents() -> list[pathlib.Path]:
    return [common.ROOT / "README.md", *sorted((common.ROOT / "docs").glob("*.md"))]


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


def wanted(name: str) -> str:
    """The lower ends of intervals of IOPS, and what this file wants of them; what is met is bold."""
    file = common.ROOT / "results" / name
    try:
        rows = json.loads(file.read_text())
        lines, met, count = [], 0, 0
        for row in rows:
            cells = loadgen_results(str(file.parent / row["results"])).cells_of("iops", row["rest"])
            line = [row["row"]]
            for aio, least in row["iops"].items():
                low = cells[aio, row["depth"]]["ab"]["low"]
                count, met = count + 1, met + (low >= least)
                line.append(f"**{low:.3f} of {least:g}**" if low >= least else f"{low:.3f} of {least:g}")
            lines.append(line)
        return markdown_lines([[f"met: {met} of {count}", *rows[0]["iops"]], *lines])
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise ToolError(f"{file.name} does not fit the results ({type(e).__name__}: {e})") from e


MARKERS: dict[re.Pattern[str], Callable[..., str]] = {
    re.compile(r"<!-- table: ([^:]+): ([^:]+) -->"): table,
    re.compile(r"<!-- grid: ([^:]+): ([^:]+): ([^:]+) -->"): grid,
    re.compile(r"<!-- wanted: ([^:]+) -->"): wanted,
}


def made(marker: str) -> str:
    """The table that stands below this marker."""
    for pattern, make in MARKERS.items():
        if m := pattern.fullmatch(marker):
            return make(*m.groups())
    raise ToolError(f"{marker}: no such marker; it is <!-- table: DIRECTORY ...: METRIC ... -->, "
                    "<!-- grid: DIRECTORY: METRIC: REST --> or <!-- wanted: FILE -->")


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


@dataclasses.dataclass(frozen=True)
class Options:
    pass


def main(_: Options) -> None:
    """Make the tables in README.md and docs/ once more, from results/.

    Above each stands how: <!-- table: DIRECTORY ...: METRIC ... -->, a line for each configuration, as of
    `./dc results --markdown`; or <!-- grid: DIRECTORY: METRIC: REST -->, engines and depths of those
    configurations whose other parts are REST; or <!-- wanted: FILE -->, lower ends of IOPS and what FILE wants.
    """
    for path in documents():
        if (text := update(path)) != path.read_text():
            path.write_text(text)
            print(f"{path.name}: other tables than before")
