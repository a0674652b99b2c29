# SPDX-License-Identifier: GPL-2.0-or-later
"""Options of the commands: fields of a dataclass, set by --name VALUE or by the variable NAME=VALUE."""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from dctools.process import ToolError

T = TypeVar("T")


def option(parse: Callable[[str], Any], default: Any, help: str, shown: str | None = None,
           positional: str = "") -> Any:
    """A field. parse() turns text into the value, or says in a ValueError what to give; shown is the default.

    positional: "?" or "*", for an argument without a name.
    """
    if shown is None:
        shown = "on" if default is True else "off" if default is False else \
            " ".join(map(str, default)) if isinstance(default, tuple) else "" if default is None else str(default)
    return dataclasses.field(default=default, metadata={"parse": parse, "help": help, "shown": shown,
                                                        "positional": positional})


# -- kinds of values ---------------------------------------------------------------

def number(default: Any, low: float, high: float, help: str, kind: type = int, shown: str | None = None) -> Any:
    """A number from low to high."""
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise ValueError(f"give {'a whole number' if kind is int else 'a number'} from {low} to {high}")
        return value
    return option(parse, default, help, shown)


def seed(help: str) -> Any:
    """What random choices begin with."""
    return number(None, 0, (1 << 63) - 1, help, shown="another each time")


def switch(default: bool | None, help: str, shown: str | None = None) -> Any:
    """On or off."""
    def parse(text: str) -> bool:
        if text.lower() not in ("on", "off", "1", "0"):
            raise ValueError("give on or off")
        return text.lower() in ("on", "1")
    return option(parse, default, help, shown)


def text(default: str, help: str, shown: str | None = None, positional: str = "") -> Any:
    """Any text."""
    return option(str, default, help, shown, positional)


def choice(known: Collection[str], default: str, help: str, kinds: str = "", positional: str = "") -> Any:
    """One of these words."""
    def parse(word: str) -> str:
        if word not in known:
            raise ValueError(f"{kinds or 'give one of'} {' '.join(known)}")
        return word
    return option(parse, default, f"{help} ({' '.join(known)})", positional=positional)


def words(known: Collection[str], default: tuple[str, ...] | None, help: str, shown: str | None = None) -> Any:
    """One or more of these words, each once."""
    def parse(given: str) -> tuple[str, ...]:
        found = re.split(r"[ ,]+", given.strip())
        if any(word not in known or found.count(word) > 1 for word in found):
            raise ValueError(f"give one or more of {' '.join(known)}, each once")
        return tuple(found)
    help += "" if set(known) == set(default or ()) else f" ({' '.join(known)})"
    return option(parse, default, help, shown)


def numbers(default: tuple[int, ...], most: int, help: str, least: int = 1) -> Any:
    """One or more whole numbers, each once."""
    def parse(given: str) -> tuple[int, ...]:
        found = re.split(r"[ ,]+", given.strip())
        if not all(re.fullmatch(r"0|[1-9]\d{0,9}", v) and least <= int(v) <= most for v in found) \
                or len(set(found)) < len(found):
            raise ValueError(f"give whole numbers from {least} to {most}, each once")
        return tuple(map(int, found))
    return option(parse, default, help)


def size(text: str, most_mib: int) -> int:
    """Bytes of a block size such as 4k."""
    m = re.fullmatch(r"([1-9]\d{0,7})([kKmM]?)", text)
    found = int(m[1]) * {"": 1, "k": 1024, "m": 1 << 20}[m[2].lower()] if m else 0
    if not m or found % 512 or found > most_mib << 20:
        raise ValueError(f"give a multiple of 512 bytes up to {most_mib}m, such as 4k")
    return found


# -- from variables and arguments ----------------------------------------------------

def variable(name: str) -> str:
    """The variable that sets this option."""
    return name.upper()


def flag(name: str) -> str:
    """The argument that sets this option."""
    return "--" + name.replace("_", "-")


def load(cls: type[T], variables: Mapping[str, str], flags: Collection[str] = ()) -> T:
    """The options from their variables; what is empty is the default. flags: those that came as --name."""
    values = {}
    for f in dataclasses.fields(cls):
        name = variable(f.name)
        if given := variables.get(name):
            try:
                values[f.name] = f.metadata["parse"](given)
            except ValueError as e:
                shown = "" if f.metadata["positional"] else f"{flag(f.name)} " if name in flags else f"{name}="
                raise ToolError(f"{shown}{given}: {e}") from None
    result = cls(**values)
    object.__setattr__(result, "given", frozenset(values))
    return result


def given_to(result: Any) -> frozenset[str]:
    """The names of the options that are not left to their defaults, even if they are the same."""
    return getattr(result, "given", frozenset())


def refuse_unknown(given: Collection[str], known: Collection[str], others: Collection[str] = ()) -> None:
    """A ToolError if one of these variables is no option, with the nearest name."""
    for name in given:
        if name not in known and name not in others:
            near = [k for k in sorted(known) if k.startswith(name.upper())] or \
                difflib.get_close_matches(name.upper(), known, 1)
            raise ToolError(f"{name}=: no such variable" + (f"; did you mean {near[0]}=?" if near else
                                                            f"; there is: {' '.join(sorted(known))}"))


class Parser(argparse.ArgumentParser):
    """Which says what is wrong in a line."""

    def error(self, message: str) -> Any:
        raise ToolError(f"{message}; {self.prog} --help says more")


def parser(command: str, about: str, *classes: type) -> argparse.ArgumentParser:
    """What reads the arguments of a command, with help for each of the options."""
    p = Parser(prog=f"dc {command}", description=about, allow_abbrev=False,
               formatter_class=argparse.RawDescriptionHelpFormatter,
               epilog="Each option is a variable of make, too: --name VALUE is NAME=VALUE.")
    for cls in classes:
        for f in dataclasses.fields(cls):
            shown = f.metadata["shown"]
            help = (f.metadata["help"] + (f" [{shown}]" if shown else "")).replace("%", "%%")
            if many := f.metadata["positional"]:
                p.add_argument(f.name, nargs=many, help=help, metavar=f.name.upper())
            else:
                p.add_argument(flag(f.name), dest=f.name, metavar="VALUE", help=help)
    return p


def from_arguments(arguments: argparse.Namespace, *classes: type) -> dict[str, str]:
    """{variable: text} of what the arguments say."""
    found = {}
    for cls in classes:
        for f in dataclasses.fields(cls):
            value = getattr(arguments, f.name)
            if value:
                found[variable(f.name)] = " ".join(value) if isinstance(value, list) else value
    return found
