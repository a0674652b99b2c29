# SPDX-License-Identifier: GPL-2.0-or-later
"""Link a QEMU, or a storage daemon, once more, with its objects in another order."""

import json
import pathlib
import random
import shlex

from dctools import build
from dctools.common import ToolError
from dctools.process import run


class Objects:
    """What a binary was linked from, to be linked in another order.

    Where code lies makes it faster or slower by a percent or two. Measured with one layout that looks like
    a difference; with many it is noise, and the interval knows of it.
    """

    def __init__(self, binary: pathlib.Path | str, scratch: pathlib.Path | str) -> None:
        self.binary = pathlib.Path(binary).resolve()
        found = [parent for parent in self.binary.parents if (parent / "build.ninja").is_file()]
        if not found:
            raise ToolError(f"LAYOUTS=on links {self.binary} anew, but it is not where it was built; give LAYOUTS=off")
        self.directory = found[0]
        self.target = str(self.binary.relative_to(self.directory))
        command = self._command()
        first = next(n for n, word in enumerate(command) if word.endswith(".o"))
        self.before, self.objects = command[:first], [word for word in command if word.endswith(".o")]
        self.after = [word for word in command[first:] if not word.endswith(".o")]
        same = pathlib.Path(scratch) / "same"
        self.link(None, same)
        if same.read_bytes() != self.binary.read_bytes():
            raise ToolError(f"{self.binary} is not what its objects give; run ninja in {self.directory}")
        same.unlink()

    def _run(self, *words: str) -> str:
        return run(words, cwd=self.directory, env=build.clean_environment(self.directory.parent))

    def _command(self) -> list[str]:
        """What ninja links it with, an argument each; archives that are taken whole are their objects."""
        command = next((e["command"] for e in json.loads(self._run("ninja", "-t", "compdb", "-x"))
                        if e["output"] == self.target), None)
        if not command:
            raise ToolError(f"ninja in {self.directory} does not say how {self.target} is linked")
        found: list[str] = []
        whole = False
        for word in shlex.split(command):
            if word in ("-Wl,--whole-archive", "-Wl,--no-whole-archive"):
                whole = word == "-Wl,--whole-archive"
            elif whole and (self.directory / word).is_file():
                members = self._run("ar", "t", word).split()
                # only a thin archive says where its members lie
                found += members if all((self.directory / m).is_file() for m in members) else \
                    ["-Wl,--whole-archive", word, "-Wl,--no-whole-archive"]
            else:
                found.append(word)
        return found

    def link(self, seed: str | None, output: pathlib.Path | str) -> None:
        """Link them in the order that the seed makes; None leaves them as they are."""
        objects = list(self.objects)
        if seed is not None:
            random.Random(seed).shuffle(objects)
        words = self.before + objects + self.after
        words[words.index("-o") + 1] = str(output)
        self._run(*words)
