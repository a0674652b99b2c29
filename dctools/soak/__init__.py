# SPDX-License-Identifier: GPL-2.0-or-later
"""fio writes and verifies in a guest while its host gives it no rest."""

import dataclasses
import json
import pathlib
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from dctools import build, common, guest, options
from dctools.common import ToolError, progress
from dctools.measure import compared
from dctools.soak.load import AREA_MIB, PATIENCE, console_problem, judge
from dctools.soak.operations import OPS, SABOTAGE, Soak

__all__ = ["AREA_MIB", "OPS", "SABOTAGE", "Options", "Soak", "console_problem", "judge", "main", "must_notice", "soak",
           "table"]


def table(figures: dict[str, Any]) -> str:
    """Lines for the person."""
    did, disks = figures["did"], figures["disks"]
    lines = [f"{'operation':<32}{'survived':>9}"]
    lines += [f"{k:<32}{v:>9}" for k, v in did.items()]
    lines += ["", f"{'disk':<24}{'rounds':>8}{'MiB written':>13}{'MiB verified':>14}{'slowest request':>17}"]
    lines += [f"{d['driver'] + ' ' + d['aio']:<24}{d['rounds']:>8}{d['written_mib']:>13.0f}"
              f"{d['verified_mib']:>14.0f}{d['slowest_s']:>15.2f} s" for d in disks]
    lines += ["", f"{figures['minutes']:.1f} minutes, seed {figures['seed']}: {figures['problem'] or 'no problem'}"]
    return "\n".join(lines)


def soak(binary: pathlib.Path | str, minutes: float, directory: pathlib.Path | str, seed: int | None = None,
         ops: Sequence[str] = OPS, disks: Sequence[tuple[str, str]] | None = None, patience: float = PATIENCE,
         show: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Run it and return its figures, after show(figures). A problem is a ToolError."""
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    directory = pathlib.Path(directory)
    common.need_space(directory, 1500)
    progress(f"soak: seed {seed}, {minutes:g} minutes, {' '.join(ops)}")
    s = Soak(binary, seed, disks or [(d, aio) for d in guest.DRIVERS for aio in guest.AIO], directory, patience)
    start, origin = time.monotonic(), compared.origin(common.stack_name())
    problem: str | None = "interrupted"
    try:
        s.run(minutes, ops)
        problem = None
    except ToolError as e:
        problem = str(e)
        raise
    finally:
        s.vm.kill()
        figures = {"seed": seed, "minutes": (time.monotonic() - start) / 60, "problem": problem,
                   "did": s.did, "disks": s.done, **origin}
        (directory / "soak.json").write_text(json.dumps(figures, indent=1) + "\n")
        if show:
            show(figures)
    for path in [*(d.path for d in s.disks), str(directory / "copy.raw"), str(directory / "overlay.qcow2")]:
        pathlib.Path(path).unlink(missing_ok=True)
    return figures


def must_notice(binary: pathlib.Path | str, op: str, directory: pathlib.Path | str) -> None:
    """A ToolError unless this sabotage of all the disks ends the soak, with the right words."""
    words, drivers, engines = SABOTAGE[op]
    disks = [(driver, aio) for driver in drivers for aio in engines]
    try:
        soak(binary, .01, directory, 1, [op], disks)
    except ToolError as e:
        if not all(re.search(words.format(f"{driver} aio={aio}"), str(e)) for driver, aio in disks):
            raise
    else:
        raise ToolError(f"a soak with the sabotage `{op}` found nothing wrong")


@dataclasses.dataclass(frozen=True)
class Options:
    minutes: float = options.number(30, 0.01, 10 ** 6, "how long", float)
    seed: int | None = options.seed("replays the order of the operations")
    ops: tuple[str, ...] = options.words([*OPS, *SABOTAGE], tuple(OPS), "some of the operations")
    qemu: str = options.text("", "a binary other than the series'")


def main(given: Options) -> None:
    """fio writes and verifies in a guest while its host gives it no rest.

    Six disks, virtio-blk and virtio-scsi with each aio engine, each with an IOThread.
    On the host, in random order: stop and cont, mirror to another file and back, backups
    that are cancelled and one that is not, snapshot to a qcow2 overlay and commit, the
    machine's state saved there and loaded again, limits of IOPS and bandwidth, another
    size and back, hot-unplug and re-plug, also while the guest is paused, unbind and bind
    of the guest's driver, system_reset, also while it is paused, migration to a file and
    back; in the end SIGTERM under load. It fails on a checksum error, an I/O error that
    unplugging does not explain, a request slower than 30 s, a disk without progress
    for 30 s, an IOThread that uses CPU while there are no requests (after each operation),
    a hung task or a panic in the guest, and a QEMU that ends, or does not when it has to.

    The figures are also in build/soak/STACK/soak.json, what the guest's kernel said in
    console.txt beside it.

    Example: dc soak --minutes 5 --ops "mirror migrate"
    """
    binary = build.binary_to_test(common.stack_name(), given.qemu)
    guest.build_image()
    soak(binary, given.minutes, common.logs("soak"), given.seed, given.ops,
         show=lambda f: print(table(f), flush=True))
