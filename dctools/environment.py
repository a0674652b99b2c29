# SPDX-License-Identifier: GPL-2.0-or-later
"""The one place where the environment is read: for options, and for the programs that are started."""

import contextlib
import os
from collections.abc import Iterator, Mapping


def variables() -> dict[str, str]:
    """Those that are set and not empty."""
    return {k: v for k, v in os.environ.items() if v}


def child(changes: Mapping[str, str] | None = None, without: str = "") -> dict[str, str]:
    """For a program that is started: ours with these changes, without those that begin like that."""
    kept = {k: v for k, v in os.environ.items() if not (without and k.startswith(without))}
    return {**kept, **(changes or {})}


@contextlib.contextmanager
def setenv(**changes: str) -> Iterator[None]:
    """Set for every process that is started meanwhile."""
    old = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in old.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
