# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands, and how they get their options. ./dc COMMAND --help says what each does."""

import dataclasses
import importlib
import inspect
import pathlib
import re
import signal
import sys
from collections.abc import Callable

from dctools import common, environment, options
from dctools.common import ToolError


@dataclasses.dataclass(frozen=True)
class Command:
    about: str          # in a line
    module: str         # which has main() and Options
    target: str = ""    # of the Makefile, if it is called otherwise there


COMMANDS = {
    "series": Command("the patches: to git commits and back, checks, mails, packages", "dctools.queue",
                      "tree export series-check mail mbox quilt"),
    "build": Command("QEMU without and with the series", "dctools.build"),
    "deb": Command("Debian packages with the series", "dctools.deb"),
    "bench": Command("fio in a guest, base and series side by side", "dctools.measure.bench"),
    "loadgen": Command("a load generator instead of a guest, base and series side by side",
                       "dctools.measure.loadgen", "bench-ring"),
    "uml": Command("fio in a real Linux on the vhost-user-blk export, base and series side by side",
                   "dctools.measure.uml", "bench-uml"),
    "cost": Command("what a request and a deferred call cost, in instructions", "dctools.measure.cost", "bench-cost"),
    "results": Command("table and plots of results once more", "dctools.report.show"),
    "docs": Command("the documents' tables once more, from results/", "dctools.docs"),
    "signs": Command("do other results show the same differences?", "dctools.report.signs"),
    "stress": Command("stop and continue loaded guests: is a notification lost?", "dctools.stress"),
    "soak": Command("fio verifies while the host stops, drains, unplugs, resets, migrates", "dctools.soak"),
    "sigterm": Command("does QEMU end by SIGTERM while its disks are loaded?", "dctools.sigterm"),
    "fuzz": Command("QEMU's generic-fuzz against disks on an IOThread", "dctools.fuzz"),
    "image": Command("the guest that benchmarks and tests run in", "dctools.guest.image"),
    "check": Command("all the tests", "dctools.check"),
}
# What the Makefile and the programs behind it take, and no command
OTHERS = ["PYTHON", "SKIP_INSTALL", "CI", "TMPDIR", "SHELL"]
FOR_PROGRAMS = re.compile("CCACHE_|DEFER_CALL_|ASAN_|UBSAN_|TSAN_")


@dataclasses.dataclass(frozen=True)
class General:
    """Options that each command has."""
    stack: str = options.text("", "the stack, a directory below patches/", "the oldest; check: each")
    build_dir: str = options.text("", "where all that is made lies", "build")
    qemu_src: str = options.text("", "a QEMU git checkout to take the base from", "Debian's source package")
    qemu_python: str = options.text("", "QEMU's python library", "that of the base")
    force: bool = options.switch(False, "throw away what is in the way: changes in a tree, or of the patches")


def usage() -> str:
    lines = ["usage: dc COMMAND [--option VALUE ...]; dc COMMAND --help says more", ""]
    lines += [f"  {name:10} {c.about}" + (f" (make {c.target})" if c.target else "") for name, c in COMMANDS.items()]
    return "\n".join(lines)


def about(command: str, function: Callable) -> str:
    """What its --help begins with: the docstring of its main()."""
    return inspect.cleandoc(function.__doc__ or COMMANDS[command].about)


def use(general: General) -> None:
    """Let the settings of the process be these."""
    s = common.settings
    s.stack, s.qemu_src, s.qemu_python, s.force = general.stack, general.qemu_src, general.qemu_python, general.force
    s.build = pathlib.Path(general.build_dir or common.ROOT / "build").resolve()


def names(commands: list[str]) -> set[str]:
    """The variables of these commands, or of all."""
    classes = [General, *(importlib.import_module(COMMANDS[c].module).Options for c in commands or COMMANDS)]
    return {options.variable(f.name) for cls in classes for f in dataclasses.fields(cls)}


def make_variables(argv: list[str]) -> list[str]:
    """Take `--make "VARIABLE ..." "TARGET ..."` from the front: what was given to make, and is checked here."""
    if argv[:1] != ["--make"]:
        return argv
    given, targets = [v for v in argv[1].split() if not FOR_PROGRAMS.match(v)], argv[2].split()
    behind = {t: name for name, c in COMMANDS.items() for t in (c.target or name).split()}
    options.refuse_unknown(given, names([behind[t] for t in targets if t in behind]), OTHERS)
    return argv[3:]


def run(argv: list[str]) -> int:
    argv = make_variables(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    name, *rest = argv
    if name not in COMMANDS:
        behind = [c for c, about in COMMANDS.items() if name in about.target.split()]
        raise ToolError(f"{name}: no such command; " + (f"it is {behind[0]}" if behind else
                                                        f"there is: {' '.join(COMMANDS)}"))
    module = importlib.import_module(COMMANDS[name].module)
    arguments = options.parser(name, about(name, module.main), module.Options, General).parse_args(rest)
    flags = options.from_arguments(arguments, module.Options, General)
    variables = {**environment.variables(), **flags}
    use(options.load(General, variables, flags))
    return module.main(options.load(module.Options, variables, flags)) or 0


def main() -> None:
    """Run a command: one line and exit status 1 on failure, 130 on Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    name = next((a for a in sys.argv[1:] if a in COMMANDS), "dc")
    try:
        sys.exit(run(sys.argv[1:]))
    except ToolError as e:
        print(f"{name}: {e}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as e:
        print(f"{name}: no Python module {e.name}; run `make install`, or use /usr/bin/python3", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as e:
        print(f"{name}: {f'{e.filename}: ' if e.filename else ''}{e.strerror or e}", file=sys.stderr)
        sys.exit(1)
