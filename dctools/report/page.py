# SPDX-License-Identifier: GPL-2.0-or-later
"""An HTML page that needs nothing beside it."""

import base64
import html
import io
import pathlib
from collections.abc import Callable, Iterable, Sequence

from matplotlib.figure import Figure

from dctools import common

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
<p>{ratio}, with 95 % intervals:</p>
<ul>{findings}</ul>
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


def svg(figure: Figure) -> str:
    """A figure as HTML."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()[out.getvalue().index("<svg"):]


def png(figure: Figure) -> str:
    """For figures of thousands of lines, which are big as SVG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90, metadata={"Software": None})
    return f'<img src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'


def figures(plots: Iterable[tuple[str, Figure]], draw: Callable[[Figure], str] = svg) -> str:
    """[(caption, figure)] as HTML."""
    return "".join(f"<figure>{draw(f)}<figcaption>{html.escape(caption)}</figcaption></figure>\n"
                   for caption, f in plots)


def line(cells: Sequence[str], tag: str = "td", kind: str = "") -> str:
    """A row of a table."""
    return f"<tr{kind}>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], note: str | None = None) -> str:
    """A heading and a table, of whose rows the last cell is the verdict."""
    text = f"<h2>{html.escape(title)}</h2>\n<table>{line(head, 'th')}\n"
    text += "".join(line(row, kind=f' class="{row[-1]}"') + "\n" for row in rows)
    return text + "</table>\n" + (f"<p>{html.escape(note)}</p>\n" if note else "")


def page_path(directory: pathlib.Path) -> pathlib.Path:
    """Where the HTML page of results goes: beside them, but nothing is written to results/, which git tracks."""
    directory = directory.resolve()
    if not directory.is_relative_to(common.ROOT / "results"):
        return directory / "report.html"
    pages = common.settings.build / "report"
    pages.mkdir(parents=True, exist_ok=True)
    return pages / f"{directory.name}.html"
