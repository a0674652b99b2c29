# SPDX-License-Identifier: GPL-2.0-or-later
"""What every part needs: where things lie, how to say something, how to fail, files, git."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from dctools import environment, process

T = TypeVar("T")
ROOT = pathlib.Path(__file__).resolve().parent.parent
IDENTITY = ("defer-call series", "noreply@localhost")
ToolError = process.ToolError


@dataclasses.dataclass
class Settings:
    """What all commands have in common; cli.py sets it, once."""
    stack: str = ""             # empty: the oldest, or each
    build: pathlib.Path = ROOT / "build"
    qemu_src: str = ""          # a git checkout in place of Debian's source package
    qemu_python: str = ""       # QEMU's python library, if not that of the base
    force: bool = False         # throw away what is in the way
    topic: str = ""             # of the series: empty: all
    label: str = ""             # before each line of progress and each name of a test
    full: bool = False          # of make check: leave nothing out


settings = Settings()


def progress(text: str) -> None:
    """A line on stderr for the person who waits."""
    print(f"[{time.strftime('%H:%M:%S')}] {settings.label}{text}", file=sys.stderr, flush=True)


# -- where things lie ------------------------------------------------------------

def stacks() -> list[str]:
    """The stacks that there are: directories with a pin. The oldest release is first."""
    return sorted((p.parent.name for p in ROOT.glob("patches/*/pin.json")),
                  key=lambda name: [int(n) for n in re.findall(r"\d+", name)])


def stack_name() -> str:
    """The stack that STACK= names, or the first."""
    name = settings.stack or stacks()[0]
    if name not in stacks():
        raise ToolError(f"STACK={name}: no such stack; there is: {', '.join(stacks())}")
    return name


def logs(what: str) -> pathlib.Path:
    """Where the logs of this process's stack go."""
    return settings.build / what / (settings.stack or stacks()[0])


def patch_dir(stack: str) -> pathlib.Path:
    """Where the patches of a stack are."""
    return ROOT / "patches" / stack


def stack_dir(stack: str) -> pathlib.Path:
    """Where all that is made of a stack goes."""
    return settings.build / stack


# -- waiting ---------------------------------------------------------------------

def wait_until(holds: Callable[[], T], seconds: float, problem: str | Callable[[], str], step: float = .1) -> T:
    """Wait until that returns something true, and return it; when time is over, a ToolError with the problem."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        if time.monotonic() > deadline:
            raise ToolError(problem if isinstance(problem, str) else problem())
        time.sleep(step)
    return value


# -- files -----------------------------------------------------------------------

def write_json(path: pathlib.Path, data: Any) -> None:
    """Whole or not at all, so that Ctrl-C leaves no half file."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(data, indent=2) + "\n")
    new.replace(path)


def sparse(path: pathlib.Path, size: int) -> str:
    """A file of that many bytes, all of it a hole; its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        f.truncate(size)
    return str(path)


def sha256(path: pathlib.Path | str) -> str:
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def need_space(path: pathlib.Path, mib: int) -> None:
    """Fail before a long job rather than in its middle when the disk is full."""
    path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path).free >> 20
    if free < mib:
        raise ToolError(f"{path}: {free} MiB free, {mib} MiB needed; make room or set BUILD_DIR=")


@contextlib.contextmanager
def exclusive(stack: str) -> Iterator[None]:
    """One tool at a time works on a stack's trees; another one waits for it."""
    stack_dir(stack).mkdir(parents=True, exist_ok=True)
    with open(stack_dir(stack) / "lock", "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another tool that builds {stack}")
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


# -- git -------------------------------------------------------------------------

# What the person's git is set to (line endings, signing, hooks, templates)
# must not change what a patch looks like, so none of it is read.
GIT_ENV = {
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1",
    # the first two have a default below the home directory that is read all the same
    "GIT_CONFIG_COUNT": "3",
    "GIT_CONFIG_KEY_0": "core.attributesFile", "GIT_CONFIG_VALUE_0": os.devnull,
    "GIT_CONFIG_KEY_1": "core.excludesFile", "GIT_CONFIG_VALUE_1": os.devnull,
    "GIT_CONFIG_KEY_2": "core.hooksPath", "GIT_CONFIG_VALUE_2": os.devnull,
    "GIT_AUTHOR_NAME": IDENTITY[0], "GIT_AUTHOR_EMAIL": IDENTITY[1],
    "GIT_COMMITTER_NAME": IDENTITY[0], "GIT_COMMITTER_EMAIL": IDENTITY[1],
    "LC_ALL": "C.UTF-8", "TZ": "UTC",
}


def git(tree: pathlib.Path | str, *args: str, env: dict[str, str] | None = None, **kw: Any) -> str:
    """Run git there, without the person's configuration; what it prints."""
    return process.run(["git", "-C", tree, *args], env=environment.child({**GIT_ENV, **(env or {})}, "GIT_"), **kw)
