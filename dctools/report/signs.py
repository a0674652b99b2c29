# SPDX-License-Identifier: GPL-2.0-or-later
"""Are the differences that some results show found in others?"""

import collections
import dataclasses

from dctools import common, options
from dctools.common import ToolError
from dctools.report.loadgen import LoadgenResults
from dctools.report.results import ratio_text
from dctools.report.show import LATEST


def signs(claimed: str, directory: str) -> None:
    """Say of each difference outside of the noise in one directory whether another has it, too."""
    results = LoadgenResults(claimed)
    rows, ours = results.told()
    found, theirs = LoadgenResults(directory).told(everything=True)
    if ours != theirs:
        raise ToolError(f"{claimed} and {directory} are not comparable: " + ", ".join(
            f"{k} {ours[k]} and {theirs[k]}" for k in ours if ours[k] != theirs[k]))
    claims = {key: row for key, row in rows.items() if row["verdict"] in ("better", "worse")}
    count: collections.Counter[str] = collections.Counter()
    for (title, m), row in claims.items():
        other = found.get((title, m))
        if not other or other["verdict"] == "n/a":
            word = "not measured"
        elif other["verdict"] == row["verdict"]:
            word = "reproduced"
        elif other["verdict"] == "none":
            same = (other["ab"]["ratio"] > 1) == (row["ab"]["ratio"] > 1)
            word = f"{'same' if same else 'other'} sign, inside the noise"
        else:
            word = "CONTRADICTED"
        count[word] += 1
        print(f"{word}: {title}: {results.METRICS[m][0].split(' [')[0]} {ratio_text(row['ab'])}" +
              (f", there {ratio_text(other['ab'])}" if other else ""))
    print(f"{len(claims)} differences outside of the noise in {claimed}; in {directory}: " +
          (", ".join(f"{n} {word}" for word, n in count.most_common()) or "nothing to look for"))
    if count["CONTRADICTED"]:
        raise ToolError(f"{count['CONTRADICTED']} of them go the other way, outside of the noise")


@dataclasses.dataclass(frozen=True)
class Options:
    claimed: str = options.text("", "directory of the results that show differences", positional="?")
    directory: str = options.text("", "directory of the others", "the last results of the load generator",
                                  positional="?")


def main(given: Options) -> None:
    """Are the differences that the load generator's results in CLAIMED show found elsewhere, too?

    CLAIMED may be from another machine.

    Example: dc signs results/ring-v7.2/quick build/results/latest-ring
    """
    if not given.claimed:
        raise ToolError("CLAIMED= gives the directory of the claimed results, and DIRECTORY= perhaps another one")
    signs(given.claimed, given.directory or str(common.settings.build / "results" / LATEST))
