# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults below a guest's disks: it sees clean errors, or none, and the disks go on.

One guest for each aio engine, with a disk for each case and device. After each case fio
writes and verifies on a good part of the disk.
"""

import collections
import concurrent.futures
import errno
import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dctools import common, guest, process
from dctools import fio as fio_
from dctools.common import ToolError

if TYPE_CHECKING:
    from dctools.check.results import Results

MIB = 1 << 20
SIZE = 8                                # MiB a disk; faults are in its first half
BAD = [0, 1, 2, 3]                      # faulty places, in MiB from its start
# Not a multiple of a sector or of a request, and in the middle of one of 64 KiB
ODD_SIZE = 2 * MIB + 20 * 1024 + 1000
LOOPS = 500
RINGS_JOBS = 4                          # writers, each with a queue of its own
FIO = "fio --name=x --filename={dev} --ioengine=libaio --direct=1 --bs=4k --iodepth=64 --output-format=json "
HALF = f"--size={SIZE // 2}m "
VERIFY = "--rw=randwrite --verify=crc32c --verify_fatal=1 "

Figures = dict[str, float]              # what was injected and seen, by its name


def run(vm: guest.Guest, command: str, timeout: float = 300) -> tuple[int, str]:
    """Like vm.run(), but a command that hangs does not keep the guest from other jobs."""
    vm.check(f"rm -f /status; {{ {command}\necho $? >/status; }} >/said 2>&1 &")
    status = common.wait_until(
        lambda: (said := vm.run("cat /status 2>/dev/null", timeout)[1]).endswith("\n") and said, timeout,
        f"the disk hangs: {command.split()[0]} did not end within {timeout} s", .3)
    return int(status), vm.check("cat /said")


def fio(vm: guest.Guest, dev: str, arguments: str) -> dict[str, int]:
    """Run fio in the guest; what its JSON says of all the jobs together."""
    _, output = run(vm, FIO.format(dev=dev) + arguments)
    jobs = fio_.jobs(output)
    return {"error": max(j["error"] for j in jobs), "errors": sum(j.get("total_err", 0) for j in jobs),
            "first": max(j.get("first_error", 0) for j in jobs),
            "written": sum(j["write"]["io_bytes"] for j in jobs),
            "read": sum(j["read"]["io_bytes"] for j in jobs)}


def must_verify(done: dict[str, int], mib: int) -> None:
    """These figures of fio must be those of mib MiB, written and verified without an error."""
    if done["error"]:
        raise ToolError(f"fio writes and verifies: {os.strerror(done['error'])}")
    if done["written"] != mib * MIB or done["read"] != mib * MIB:
        raise ToolError(f"fio wrote {done['written']} and verified {done['read']} bytes of {mib} MiB")


def good_part(vm: guest.Guest, dev: str) -> None:
    """Write and verify where no faults are."""
    must_verify(fio(vm, dev, VERIFY + HALF + f"--offset={SIZE // 2}m"), SIZE // 2)


def bad_places(once: bool) -> list[dict[str, Any]]:
    """blkdebug's rules: at each place a read fails with EIO and, 64 KiB on, a write with ENOSPC."""
    return [{"event": f"{io}_aio", "iotype": io, "errno": number, "sector": (mib * MIB + offset) // 512, "once": once}
            for mib in BAD for io, number, offset in [("read", errno.EIO, 0), ("write", errno.ENOSPC, 64 << 10)]]


def blkdebug(disk: guest.Disk, rules: list[dict[str, Any]]) -> guest.Disk:
    """This disk, with these faults."""
    disk.node = {"file": {"driver": "blkdebug", "image": disk.file(), "inject-error": rules}}
    return disk


# -- the cases: make the disk, then do it ----------------------------------------

class Case:
    """One disk with a fault below it. The docstring of each is the name of its test."""
    disk: guest.Disk

    def __init__(self, directory: pathlib.Path, aio: str, driver: str, qemu_img: pathlib.Path) -> None:
        raise NotImplementedError

    def run(self, vm: guest.Guest, dev: str, figures: Figures) -> None:
        """Do I/O on the disk, which is dev in the guest; a ToolError if it sees what it should not."""
        raise NotImplementedError


class Report(Case):
    """EIO and ENOSPC reach the guest, those that were injected and no more"""

    def __init__(self, directory: pathlib.Path, aio: str, driver: str, qemu_img: pathlib.Path) -> None:
        disk = guest.Disk(common.sparse(directory / f"report-{driver}.raw", SIZE * MIB), aio=aio, driver=driver,
                          on_error={"werror": "report", "rerror": "report"})
        self.disk = blkdebug(disk, bad_places(False))
        if driver == "virtio-blk-pci":      # two requests in one would fail together
            self.disk.options = {"request-merging": "off"}

    def run(self, vm: guest.Guest, dev: str, figures: Figures) -> None:
        vm.check(f"echo 2 >/sys/block/{pathlib.Path(dev).name}/queue/nomerges")
        each_eio = (len(BAD), errno.EIO, errno.EIO)
        # virtio-blk has one status for all errors; at ENOSPC fio ends, without counting it
        no_space = each_eio if self.disk.driver == "virtio-blk-pci" else (0, 0, errno.ENOSPC)
        for rw, wanted in [("randwrite", no_space), ("randread", each_eio)]:
            done = fio(vm, dev, f"--rw={rw} --continue_on_error=all " + HALF)
            if (done["errors"], done["first"], done["error"]) != wanted:
                raise ToolError(f"{rw}: the guest saw {done['errors']} errors, the first of them "
                                f"{os.strerror(done['first'])}, and fio ended with {os.strerror(done['error'])}; "
                                f"{wanted[0]} and {os.strerror(wanted[2])} were expected")
            figures["errors reported to the guest"] += wanted[0] or 1


class Stop(Case):
    """EIO and ENOSPC stop QEMU, cont tries again, the guest sees nothing"""

    def __init__(self, directory: pathlib.Path, aio: str, driver: str, qemu_img: pathlib.Path) -> None:
        disk = guest.Disk(common.sparse(directory / f"stop-{driver}.raw", SIZE * MIB), aio=aio, driver=driver,
                          on_error={"werror": "enospc", "rerror": "stop"})
        self.disk = blkdebug(disk, bad_places(True))

    def run(self, vm: guest.Guest, dev: str, figures: Figures) -> None:
        node = f"drive{vm.disks.index(self.disk)}"
        with concurrent.futures.ThreadPoolExecutor() as pool:
            job = pool.submit(fio, vm, dev, VERIFY + HALF)
            stops = 0
            while not job.done():
                if vm.qmp("query-status")["status"] == "io-error":
                    stops += 1
                    vm.qmp("cont")
                time.sleep(.02)
        must_verify(job.result(), SIZE // 2)
        errors = [e["data"] for e in vm.events() if e["event"] == "BLOCK_IO_ERROR" and e["data"]["node-name"] == node]
        if wrong := [e for e in errors if e["action"] != "stop"]:
            raise ToolError(f"BLOCK_IO_ERROR has action {wrong[0]['action']}, not stop")
        # How many depends on which requests QEMU merges
        for operation, no_space in [("write", True), ("read", False)]:
            if not any(e["operation"] == operation and e["nospace"] == no_space for e in errors):
                raise ToolError(f"no BLOCK_IO_ERROR by a {operation}")
        if not stops:
            raise ToolError("QEMU never stopped")
        figures["errors that stopped QEMU"] += len(errors)
        figures["stops by errors"] += stops


class Rings(Case):
    """more requests than the rings hold (128 for io_uring, 1024 for Linux AIO)"""

    def __init__(self, directory: pathlib.Path, aio: str, driver: str, qemu_img: pathlib.Path) -> None:
        self.disk = guest.Disk(common.sparse(directory / f"rings-{driver}.raw", RINGS_JOBS * SIZE * MIB), aio=aio,
                               driver=driver, queues=RINGS_JOBS)
        if driver == "virtio-blk-pci":
            self.disk.options, self.least = {"queue-size": "1024"}, 1025
        else:           # Linux gives a LUN no more
            self.disk.options, self.least = {"virtqueue_size": "1024", "cmd_per_lun": "1024"}, 513

    def run(self, vm: guest.Guest, dev: str, figures: Figures) -> None:
        # An IOThread that seldom runs finds full queues
        n = vm.disks.index(self.disk)
        os.setpriority(os.PRIO_PROCESS, vm.iothread_tid(n), 19)
        name = pathlib.Path(dev).name
        vm.put_file("/watch.sh", f"while :; do cat /sys/block/{name}/inflight; sleep 0.02; done >/inflight")
        vm.check("sh /watch.sh >/dev/null 2>&1 & echo $! >/watch")
        done = fio(vm, dev, VERIFY + f"--size={SIZE}m --offset_increment={SIZE}m --numjobs={RINGS_JOBS} "
                                     f"--iodepth=2048 --group_reporting=0")
        lines = vm.check("kill $(cat /watch); cat /inflight").split("\n")
        must_verify(done, RINGS_JOBS * SIZE)
        most = max(sum(map(int, line.split())) for line in lines if line.strip())
        if most < self.least:
            raise ToolError(f"no more than {most} requests were in flight, {self.least} were wanted")
        figures["most requests in flight"] = max(most, figures["most requests in flight"])


def cut_and_read(vm: guest.Guest, dev: str, path: pathlib.Path, figures: Figures) -> None:
    """Cut this file short under the guest, which must read what is left, and zeros."""
    os.truncate(path, ODD_SIZE)
    wanted = hashlib.md5(path.read_bytes() + bytes(SIZE * MIB - ODD_SIZE)).hexdigest()
    for bs in ["4k", "64k", "1M"]:
        said = run(vm, f"dd if={dev} bs={bs} iflag=direct 2>/err | md5sum; cat /err")[1]
        if "error" in said or not said.startswith(wanted):
            raise ToolError(f"in pieces of {bs} it read other data than the file's and zeros: "
                            f"{' '.join(said.split())[:200]}")
    # All of it; then, again and again, the one request that is cut in two
    start = ODD_SIZE // (64 << 10) * 64
    for what, size in [(f"--size={SIZE}m", SIZE * MIB),
                       (f"--bs=64k --iodepth=1 --offset={start}k --size=64k --io_size={LOOPS * 64}k", LOOPS << 16)]:
        done = fio(vm, dev, "--rw=randread " + what)
        if done["error"] or done["read"] != size:
            raise ToolError(f"fio read {done['read']} of {size} bytes and ended with {os.strerror(done['error'])}")
    figures["MiB read beyond the end of a file"] += 4 * (SIZE - ODD_SIZE / MIB)
    figures["reads across the end of a file"] += LOOPS + 3


class Short(Case):
    """of a file that is cut short it reads the data that is left, and zeros"""

    def __init__(self, directory: pathlib.Path, aio: str, driver: str, qemu_img: pathlib.Path) -> None:
        self.path = directory / f"short-{driver}.raw"
        self.disk = guest.Disk(common.sparse(self.path, SIZE * MIB), aio=aio, driver=driver, node={"size": SIZE * MIB})

    def run(self, vm: guest.Guest, dev: str, figures: Figures) -> None:
        must_verify(fio(vm, dev, VERIFY + f"--size={SIZE}m"), SIZE)
        cut_and_read(vm, dev, self.path, figures)


class Backing(Case):
    """of a backing file that is cut short it reads the data that is left, and zeros"""

    def __init__(self, directory: pathlib.Path, aio: str, driver: str, qemu_img: pathlib.Path) -> None:
        self.path = directory / f"backing-{driver}.raw"
        self.path.write_bytes(os.urandom(SIZE * MIB))
        overlay = directory / f"overlay-{driver}.qcow2"
        process.run([qemu_img, "create", "-q", "-f", "qcow2", overlay, f"{SIZE}M"])
        lower = {"driver": "raw", "read-only": True, "file": guest.Disk(str(self.path), aio=aio).file()}
        self.disk = guest.Disk(str(overlay), aio=aio, driver=driver, node={"driver": "qcow2", "backing": lower})

    def run(self, vm: guest.Guest, dev: str, figures: Figures) -> None:
        cut_and_read(vm, dev, self.path, figures)


# What a device does with errors is its own matter; the rest is the engine's
ERRORS: list[type[Case]] = [Report, Stop]
CASES: list[type[Case]] = [*ERRORS, Rings, Short, Backing]


def check_faults(results: "Results", binary: pathlib.Path | str, logs: pathlib.Path,
                 engines: Sequence[str] = guest.AIO, cases: Sequence[type[Case]] = CASES) -> Figures:
    """Each case with each engine and device; what was injected, as figures."""
    guest.build_image()
    figures: Figures = collections.defaultdict(int)
    for aio in engines:
        directory = logs / "faults"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        made = [case(directory, aio, driver, pathlib.Path(binary).parent / "qemu-img")
                for driver in guest.DRIVERS for case in cases
                if (driver == "virtio-blk-pci" or case in ERRORS) and (aio, case) != ("threads", Rings)]

        def all_cases():
            with guest.Guest(binary, [c.disk for c in made], vcpus=RINGS_JOBS, memory=1024,
                             label=f"faults-{aio}", log_dir=logs) as vm:
                vm.wait_ready()
                for n, c in enumerate(made):
                    def one():
                        dev = vm.disk(n)[0]
                        c.run(vm, dev, figures)
                        good_part(vm, dev)
                    results.do(f"faults {aio} {c.disk.driver}: {c.__doc__}", one)
        results.do(f"faults {aio}: the guest boots and ends", all_cases)
        shutil.rmtree(directory)
    common.progress("; ".join(f"{k}: {v:.0f}" for k, v in figures.items()))
    return dict(figures)
