# SPDX-License-Identifier: GPL-2.0-or-later
"""Stop and continue two loaded guests until one loses a notification."""

import dataclasses
import pathlib
import time
from collections.abc import Sequence

from dctools import build, common, environment, guest, options
from dctools.common import ToolError, progress

DISK_MIB = 64
PATIENCE = 30           # seconds without progress that count as a hang
LATE = {"DEFER_CALL_DELAY": "20000/64"}     # for tests/hooks.patch: us/every so many sections
LATE_ROUNDS = 500
LOOK_EVERY = 25         # rounds
LOAD = ("fio --name=load --filename={} --ioengine=libaio --direct=1 --rw=randread --bs=4k "
        "--iodepth=64 --time_based --runtime=100000 --eta=never --output=/dev/null")


def reads(vm: guest.Guest) -> int:
    """How many reads the disk has done so far."""
    return sum(b["stats"]["rd_operations"] for b in vm.qmp("query-blockstats"))


def wait_for_progress(vm: guest.Guest, before: int, round_: int, patience: float = PATIENCE) -> int:
    """Until it has read more than that; how many reads it has done."""
    return common.wait_until(lambda: (now := reads(vm)) != before and now, patience,
                             f"{vm.label}: the disk hangs: no read for {patience} s after {round_} rounds")


def logs() -> pathlib.Path:
    return common.logs("stress")


def our_disk() -> pathlib.Path:
    """With data in all of it: reads of a hole would never reach the disk."""
    disk = logs() / "disk.raw"
    if not disk.is_file():
        common.need_space(logs(), DISK_MIB)
        disk.write_bytes(bytes(DISK_MIB << 20))
    return disk


def stress(binary: pathlib.Path | str, aio: str, driver: str, rounds: int) -> int:
    """Stop and continue two guests that read at depth 64; the number of reads that they did."""
    disk = our_disk()
    vms = [guest.Guest(binary, [guest.Disk(str(disk), aio=aio, driver=driver, read_only=True, locking=False)],
                       label=f"stress{n}-{aio}-{driver}", log_dir=logs()) for n in range(2)]
    try:
        for vm in vms:
            vm.start()
        for vm in vms:
            vm.wait_ready()
            vm.begin(LOAD.format(vm.disk()[0]))
        seen = [wait_for_progress(vm, reads(vm), 0) for vm in vms]
        for n in range(1, rounds + 1):
            for vm in vms:
                vm.qmp("stop")
                vm.qmp("cont")
            if n % LOOK_EVERY == 0:
                seen = [wait_for_progress(vm, s, n) for vm, s in zip(vms, seen)]
        # not since some rounds ago, but from now on
        return sum(wait_for_progress(vm, reads(vm), rounds) for vm in vms)
    finally:
        for vm in vms:
            vm.kill()


def run_all(binary: pathlib.Path | str, engines: Sequence[str], drivers: Sequence[str], rounds: int,
            how: str = "") -> int:
    """Print a line for each device and engine; how many of them failed."""
    bad = 0
    for driver in drivers:
        for aio in engines:
            what, start = f"{driver} aio={aio}{how}", time.monotonic()
            progress(f"{what}: {rounds} rounds")
            try:
                done = stress(binary, aio, driver, rounds)
                print(f"{what}: {rounds} rounds, {done} reads, {time.monotonic() - start:.0f} s, no hang", flush=True)
            except ToolError as e:
                bad += 1
                print(f"{what}: {e}", flush=True)
    return bad


@dataclasses.dataclass(frozen=True)
class Options:
    rounds: int = options.number(2000, 1, 10 ** 9, "rounds of stop and cont, with each device and engine")
    aio: tuple[str, ...] = options.words(guest.AIO, tuple(guest.AIO), "engines")
    driver: tuple[str, ...] = options.words(guest.DRIVERS, tuple(guest.DRIVERS), "devices")
    qemu: str = options.text("", "a binary other than the series'")


def main(given: Options) -> int:
    """Stop and continue two loaded guests until one loses a notification.

    Stopping drains the requests and closes the guest notifiers. A used buffer
    notification that is deferred beyond that is lost, and the guest's disk hangs:
    its driver waits for ever for a request that is long done. Two guests on few
    cores make the window wide, because the IOThread is often not running.

    Without --qemu there are 500 rounds more with a sanitizer build in which every
    64th section ends 20 ms late (tests/hooks.patch).

    Example: dc stress --rounds 500 --aio threads
    """
    stack = common.stack_name()
    binary = build.binary_to_test(stack, given.qemu)
    guest.build_image()
    bad = run_all(binary, given.aio, given.driver, given.rounds)
    if not given.qemu:
        late = build.sanitized(stack) / "qemu-system-x86_64"
        with environment.setenv(**LATE):
            bad += run_all(late, given.aio, given.driver, min(given.rounds, LATE_ROUNDS), ", sections end late")
    return 1 if bad else 0
