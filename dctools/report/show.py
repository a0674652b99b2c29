# SPDX-License-Identifier: GPL-2.0-or-later
"""Results once more: table, summary and page."""

import dataclasses
import json
import pathlib
from typing import Any

from dctools import common, options
from dctools.common import ToolError
from dctools.report import digest
from dctools.report.infio import FioResults
from dctools.report.loadgen import LoadgenResults
from dctools.report.results import Results, markdown
from dctools.report.uml import UmlResults

KINDS: list[type[Results]] = [LoadgenResults, UmlResults, FioResults]
LATEST = "latest-ring"      # in build/results: the load generator's
LATEST_UML = "latest-uml"


def results(directory: pathlib.Path) -> Results:
    """Those in this directory, of whichever kind they are."""
    if not directory.is_dir():
        raise ToolError(f"{directory}: no such results directory; `make bench` makes one")
    return next((kind for kind in KINDS if (directory / kind.NAME).is_file()), FioResults)(directory)


def _code(info: dict[str, Any]) -> str:
    """Which code of a stack was measured: the patches' own, or this tree, where it is known."""
    if not (tree := info.get("series_tree")):
        return ""
    pin = common.patch_dir(info["stack"]) / "pin.json"
    own = pin.is_file() and json.loads(pin.read_text())["series_tree"]
    return "final" if tree == own else str(tree)[:8]


def index(directory: pathlib.Path) -> list[list[str]]:
    """Directory, what was compared, of which code, when and on what, of each of the results below a directory."""
    lines = []
    for file in sorted(f for kind in KINDS for f in directory.rglob(kind.NAME)):
        try:
            info = json.loads(file.read_text())
            a, b = (f"{binary['label']} ({binary['version'].split()[-1]})" for binary in info["binaries"])
            lines.append([str(file.parent.relative_to(directory)), f"{b} / {a}", _code(info), info["date"],
                          info["host"]["cpu"]])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ToolError(f"{file} is damaged ({type(e).__name__}: {e})") from e
    return lines


def last() -> pathlib.Path:
    """Where `make bench`, `make bench-ring` or `make bench-uml` has put its results last."""
    top = common.settings.build / "results"
    # the names begin with the time
    return max((top / name for name in ("latest", LATEST, LATEST_UML)),
               key=lambda link: link.resolve().name if link.exists() else "")


@dataclasses.dataclass(frozen=True)
class Options:
    directory: str = options.text("", "of results", "the last of build/results", positional="?")
    markdown: str = options.text("", "print a Markdown table of these metrics alone, such as \"iops cpu p99\"")


def main(given: Options) -> None:
    """Table, summary and HTML page of results, of fio in a guest, of that on the export, or of the load generator.

    With --markdown, a table as the documents have it: ratios with their intervals.
    Of a directory with several results, what they are.

    Example: dc results results/ring-v7.2/quick --markdown "iops cpu p99"
    """
    directory = pathlib.Path(given.directory) if given.directory else last()
    if directory.is_dir() and not any((directory / kind.NAME).is_file() for kind in KINDS) \
            and (lines := index(directory)):
        for where, *what in lines:
            print(f"{where}: {', '.join(filter(None, what))}")
        return
    found = results(directory)
    if given.markdown:
        print(markdown([found], given.markdown.split()))
    else:
        digest.show(found)
