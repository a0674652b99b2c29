# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents' tables, made from results."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator

from dctools import common
from dctools.common import ToolError
from dctools.report import show
from dctools.report.results import Results, grid, grid_cells, markdown, markdown_lines

MARKER = re.compile(r"<!-- (table|grid): ([^:]*): ([^:]*?)(?:: (.*?))? -->")
WANTED = re.compile(r"<!-- wanted: (\S+) -->")


def documents() -> list[pathlib.Path]:
    return [common.ROOT / "README.md", *sorted((common.ROOT / "docs").glob("*.md"))]


def table(marker: re.Match[str]) -> str:
    """What stands below this marker."""
    kind, directories, metrics, rest = marker.groups()
    found: list[Results] = [show.results(common.ROOT / "results" / d) for d in directories.split()]
    if kind == "grid":
        return grid(found, metrics, rest or "")
    return markdown(found, metrics.split())


def wanted(file: pathlib.Path) -> str:
    """The lower ends of intervals of IOPS, and what this file wants of them; what is met is bold."""
    try:
        rows = json.loads(file.read_text())
        found = {name: show.results(file.parent / name) for name in {row["results"] for row in rows}}
        lines, met, count = [], 0, 0
        for row in rows:
            cells = grid_cells([found[row["results"]]], "iops", row["rest"])
            line = [row["row"]]
            for aio, least in row["iops"].items():
                low = cells[aio, str(row["depth"])]["ab"]["low"]
                count, met = count + 1, met + (low >= least)
                line.append(f"**{low:.3f} of {least:g}**" if low >= least else f"{low:.3f} of {least:g}")
            lines.append(line)
        return markdown_lines([[f"met: {met} of {count}", *rows[0]["iops"]], *lines])
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise ToolError(f"{file.name} does not fit the results ({type(e).__name__}: {e})") from e


def updated(text: str) -> Iterator[str]:
    """The lines of a document, with the table below each marker made once more."""
    lines = iter(text.splitlines())
    for line in lines:
        yield line
        made = ""
        if marker := MARKER.fullmatch(line):
            made = table(marker)
        elif marker := WANTED.fullmatch(line):
            made = wanted(common.ROOT / "results" / marker[1])
        elif line.startswith("<!--"):
            raise ToolError(f"{line}: no such marker; it is <!-- table: DIRECTORY ...: METRIC ... --> or "
                            "<!-- grid: DIRECTORY ...: METRIC: REST --> or <!-- wanted: FILE -->")
        if made:
            yield from made.splitlines()
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
    `./dc results --markdown`; or <!-- grid: DIRECTORY ...: METRIC: REST -->, engines and depths of those
    configurations whose other parts are REST; or <!-- wanted: FILE -->, lower ends of IOPS and what FILE wants.
    """
    for path in documents():
        if (text := update(path)) != path.read_text():
            path.write_text(text)
            print(f"{path.name}: other tables than before")
