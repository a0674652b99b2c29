# SPDX-License-Identifier: GPL-2.0-or-later
"""Running other programs: their output, a log, a limit of time."""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


class ToolError(Exception):
    """Something the person can mend; the text says what and how, in a line."""


def run(cmd: Sequence[Any], log: pathlib.Path | None = None, **kw: Any) -> str:
    """Run cmd and return its standard output; failure is a ToolError.

    With log, both outputs go to that file and its end is shown on failure.
    """
    cmd = [str(c) for c in cmd]
    kw.setdefault("stdin", subprocess.DEVNULL)
    try:
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "wb") as out:
                p: Any = subprocess.run(cmd, stdout=out, stderr=subprocess.STDOUT, **kw)
            if p.returncode:
                tail = log.read_text(errors="replace").splitlines()[-15:]
                print("\n".join(tail), file=sys.stderr)
                raise ToolError(f"{cmd[0]} failed with {p.returncode}; all it said is in {log}")
            return ""
        p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True, errors="replace", **kw)
    except FileNotFoundError as e:
        if kw.get("cwd") and not os.path.isdir(kw["cwd"]):
            raise ToolError(f"no directory {kw['cwd']}") from e
        raise ToolError(f"command {cmd[0]} not found; run `make install`") from e
    if p.returncode:
        said = (p.stderr.strip() or p.stdout.strip() or "said nothing").splitlines()
        # git goes on with advice
        why = next((line for line in said if line.startswith("fatal: ")), said[-1])
        raise ToolError(f"{' '.join(cmd[:4])} failed with {p.returncode}: {why}")
    return p.stdout


def limited(cmd: Sequence[Any], log: pathlib.Path, seconds: float, **kw: Any) -> int | str:
    """Run cmd with both outputs in log; its exit status, or "timeout". All that it has started ends with it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as out:
        p = subprocess.Popen([str(c) for c in cmd], stdin=subprocess.DEVNULL, stdout=out,
                             stderr=subprocess.STDOUT, start_new_session=True, **kw)
        try:
            return p.wait(seconds)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            if p.poll() is None:
                os.killpg(p.pid, signal.SIGKILL)
                p.wait()


def end(p: subprocess.Popen) -> None:
    """End a process that we have started, if it has not ended."""
    if p.poll() is None:
        p.terminate()
        p.wait()


def last_lines(path: pathlib.Path, lines: int = 1) -> list[str]:
    """The end of a text, without empty lines; nothing if there is none."""
    try:
        text = path.read_text(errors="replace").replace("\r", "")
    except OSError:
        return []
    return [s for s in text.split("\n") if s.strip()][-lines:]


def said(log: pathlib.Path) -> str:
    """What a program has said last, for the person."""
    last = last_lines(log)
    return f"it said: {last[0]} (log: {log})" if last else f"it said nothing (log: {log})"
