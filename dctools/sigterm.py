# SPDX-License-Identifier: GPL-2.0-or-later
"""Does QEMU end by SIGTERM while its disks are loaded?"""

import dataclasses
import itertools
import pathlib
import random
import time

from dctools import build, common, guest, options
from dctools.common import progress

DISKS = 8
PATIENCE = 30           # seconds
LOAD = ("fio --name=load --filename={} --ioengine=libaio --direct=1 --rw=randread --bs=4k "
        "--iodepth=16 --time_based --runtime=100000 --eta=never >/dev/null 2>&1 &\n")


def wait_for_reads(vm: guest.Guest) -> None:
    """Until each disk has read something."""
    reads: list[int] = []

    def all_have():
        reads[:] = vm.requests()
        return all(reads)
    common.wait_until(all_have, 4 * PATIENCE, lambda: f"{vm.label}: disk {reads.index(0)} does not read", .02)


def hangs(vm: guest.Guest, state: pathlib.Path) -> bool:
    """Resume the guest and end it; whether that hangs."""
    vm.resume(state)
    wait_for_reads(vm)
    time.sleep(random.random() * .2)
    try:
        vm.shutdown(PATIENCE, "SIGTERM")
    except guest.Hang:
        return True
    return False


def rounds(binary: str, count: int, directory: pathlib.Path) -> int:
    """How many of so many rounds have hung."""
    directory.mkdir(parents=True, exist_ok=True)
    disk, state = directory / "disk.raw", directory / "state"
    disk.write_bytes(bytes(64 << 20))
    disks = [guest.Disk(str(disk), aio=aio, read_only=True, locking=False)
             for aio in itertools.islice(itertools.cycle(guest.AIO), DISKS)]
    vm = guest.Guest(binary, disks, label="sigterm", log_dir=directory)
    hung = 0
    try:
        vm.start()
        vm.wait_ready()
        vm.check("".join(LOAD.format(vm.disk(n)[0]) for n in range(DISKS)))
        wait_for_reads(vm)
        vm.save(state)
        for n in range(1, count + 1):
            hung += hangs(vm, state)
            progress(f"round {n}: hung in {hung}")
    finally:
        vm.kill()
    return hung


@dataclasses.dataclass(frozen=True)
class Options:
    rounds: int = options.number(20, 1, 10 ** 6, "how often")
    qemu: str = options.text("", "a binary other than the series'")


def main(given: Options) -> int:
    """Does QEMU end by SIGTERM while its disks are loaded?

    Eight virtio-blk disks with all engines, each with an IOThread, and fio that reads at
    depth 16 from each in a guest. The loaded guest is saved once; each round resumes it in
    a fresh QEMU, waits until each disk has read, and sends SIGTERM. What has not ended
    after 30 s has hung, and what its threads did is in build/sigterm/STACK/sigterm.stacks.

    Example: dc sigterm --rounds 100
    """
    binary = build.binary_to_test(common.stack_name(), given.qemu)
    guest.build_image()
    hung = rounds(binary, given.rounds, common.logs("sigterm"))
    print(f"hung in {hung} of {given.rounds}", flush=True)
    return 1 if hung else 0
