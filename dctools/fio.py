# SPDX-License-Identifier: GPL-2.0-or-later
"""What fio says with --output-format=json."""

import json
import re
from typing import Any

from dctools.common import ToolError


def result(text: str) -> dict[str, Any]:
    """The JSON in fio's output, which may have warnings before and after it."""
    start = re.search(r"^\{", text, re.M)
    try:
        found = json.loads(text[start.start():text.rindex("}") + 1] if start else "")
        if not found["jobs"]:
            raise ValueError("no job")
    except (ValueError, KeyError) as e:
        raise ToolError(f"fio gave no JSON, but: {text.strip()[-200:]!r}") from e
    return found


def jobs(text: str) -> list[dict[str, Any]]:
    """The results of its jobs."""
    return result(text)["jobs"]
