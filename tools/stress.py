#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""make stress: stop and continue two loaded guests until one loses a notification.

Stopping drains the requests and closes the guest notifiers. A used buffer
notification that is deferred beyond that is lost, and the guest's disk hangs:
its driver waits for ever for a request that is long done. Two guests on few
cores make the window wide, because the IOThread is often not running.

ROUNDS= (2000), AIO= (all three engines), DRIVER= (virtio-blk-pci virtio-scsi-pci),
QEMU= (a binary other than the series'). Without QEMU= there are 500 rounds more with
a sanitizer build in which every 64th section ends 20 ms late (tests/hooks.patch).
"""

import os
import time

import build
import common
import guest
from common import ToolError, progress

LOGS = common.logs("stress")
DISK_MIB = 64
PATIENCE = 30           # seconds without progress that count as a hang
LATE = {"DEFER_CALL_DELAY": "20000/64"}     # for tests/hooks.patch: us/every so many sections
LATE_ROUNDS = 500
LOOK_EVERY = 25         # rounds
LOAD = ("fio --name=load --filename={} --ioengine=libaio --direct=1 --rw=randread --bs=4k "
        "--iodepth=64 --time_based --runtime=100000 --eta=never --output=/dev/null")


def reads(vm):
    """How many reads the disk has done so far."""
    return sum(b["stats"]["rd_operations"] for b in vm.qmp("query-blockstats"))


def wait_for_progress(vm, before, round_, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while True:
        now = reads(vm)
        if now != before:
            return now
        if time.monotonic() > deadline:
            raise ToolError(f"{vm.label}: the disk hangs: no read for {patience} s after {round_} rounds")
        time.sleep(0.1)


def stress(binary, aio, driver, rounds):
    """Stop and continue two guests that read at depth 64; the number of reads that they did."""
    LOGS.mkdir(parents=True, exist_ok=True)
    disk = LOGS / "disk.raw"
    if not disk.is_file():
        common.need_space(LOGS, DISK_MIB)
        disk.write_bytes(bytes(DISK_MIB << 20))
    vms = [guest.Guest(binary, [guest.Disk(str(disk), aio=aio, driver=driver, read_only=True, locking=False)],
                       label=f"stress{n}-{aio}-{driver}", log_dir=LOGS) for n in range(2)]
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


def words(name, known):
    given = (os.environ.get(name) or "").split() or known
    for w in given:
        if w not in known:
            raise ToolError(f"{name}={w}: one or more of {' '.join(known)}")
    return given


def main():
    stack = common.stack_name()
    rounds = common.number(os.environ, "ROUNDS", 2000, 1, 10 ** 9)
    engines, drivers = words("AIO", guest.AIO), words("DRIVER", guest.DRIVERS)
    binary = build.binary_to_test(stack)
    guest.build_image()
    bad = run_all(binary, engines, drivers, rounds)
    if not os.environ.get("QEMU"):
        binary = build.sanitized(stack) / "qemu-system-x86_64"
        with common.setenv(**LATE):
            bad += run_all(binary, engines, drivers, min(rounds, LATE_ROUNDS), ", sections end late")
    return 1 if bad else 0


def run_all(binary, engines, drivers, rounds, how=""):
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


if __name__ == "__main__":
    common.main(main)
