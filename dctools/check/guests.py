# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that write and verify, with faults below them, under stop and cont, and without rest."""

import errno
import os
import pathlib
import shutil

from dctools import build, common, environment, faults, fio, guest, soak, stress
from dctools.check.results import Results, logs, must_fail
from dctools.common import ToolError
from dctools.check.built import binary_of, built, preload
from dctools.guest.jobs import Jobs
from dctools.process import limited

# Operations of make soak that fit into the time; each comes once.
SOAK_OPS = ["stops", "mirror", "commit", "unplug", "reset_paused", "migrate"]


def refused(directory: pathlib.Path, library: pathlib.Path, engine: str, every: int, depth: int,
            patience: float = 30) -> None:
    """Read while the kernel refuses every Nth submission: all must be done nevertheless."""
    image, log = logs() / "refused.raw", logs() / "refused.log"
    common.sparse(image, 64 << 20)
    option = {"native": ["-n"], "io_uring": ["-i", "io_uring"]}[engine]
    with environment.setenv(LD_PRELOAD=str(library), REFUSE_EVERY=str(every)):
        status = limited([directory / "qemu-img", "bench", "-t", "none", *option, "-d", str(depth), "-c", "2000",
                          "-f", "raw", image], log, patience)
    if status:
        raise ToolError("the requests never end" if status == "timeout" else f"qemu-img ended with {status}, see {log}")


def check_faults(results: Results, stack: str) -> None:
    """Errors from the disk and from the kernel: the guest sees them, and the disk goes on."""
    directory = binary_of(stack).parent
    library = preload("refuse")
    for engine in ["native", "io_uring"]:
        for depth in [1, 16, 200]:
            results.do(f"faults {engine}: every third submission is refused, depth {depth}",
                       refused, directory, library, engine, 3, depth)

    results.do("faults: requests that never end are noticed",
               must_fail, "never end", refused, directory, library, "native", 1, 16, 3)
    faults.check_faults(results, directory / "qemu-system-x86_64", logs())


# -- a guest that writes and verifies --------------------------------------------

SMOKE_SIZE = 24         # MiB a disk
STRESS_ROUNDS = 250     # without its barrier, aio=threads hung within 100 in 10 of 10 runs; 10.2.2 within 125

SMOKE_JOB = """
[global]
ioengine=libaio
direct=1
size={size}m
bsrange=4k-64k
bs_unaligned=0
iodepth=32
verify=crc32c
verify_fatal=1
rw=randwrite
{phase}
"""
SMOKE_WRITE, SMOKE_READ = (SMOKE_JOB.format(size=SMOKE_SIZE, phase=phase)
                           for phase in ("do_verify=1", "verify_only=1"))


def smoke_disks(directory: pathlib.Path, aio: str) -> list[guest.Disk]:
    """virtio-blk and virtio-scsi, EVENT_IDX on and off, 1 and 4 queues."""
    directory.mkdir(parents=True, exist_ok=True)
    disks: list[guest.Disk] = []
    for driver in guest.DRIVERS:
        for event_idx in [True, False]:
            for queues in [1, 4]:
                path = directory / f"disk{len(disks)}.raw"
                disks.append(guest.Disk(common.sparse(path, SMOKE_SIZE << 20), aio=aio, driver=driver,
                                        event_idx=event_idx, queues=queues))
    return disks


def fio_errors(vm: Jobs, job: str, devices: list[str], kinds: list[str]) -> dict[str, str | None]:
    """Run fio on the devices; {device: problem or None}. Each kind of I/O must have been done."""
    for dev in devices:
        job += f"\n[{pathlib.Path(dev).name}]\nfilename={dev}\n"
    vm.put_file("/smoke.fio", job)
    _, output = vm.run("fio --output-format=json /smoke.fio", timeout=300)
    jobs = fio.jobs(output)
    found = {}
    for dev, j in zip(devices, jobs):
        idle = [k for k in kinds if not j[k]["total_ios"]]
        found[dev] = f"error {j['error']}" if j["error"] else f"no {' and no '.join(idle)}" if idle else None
    return found


def notices_damage(vm: Jobs, job: str, device: str, path: str, mib: int) -> None:
    """The job that verifies has to say no when the data in the disk's file is wrong, and only then."""
    if problem := fio_errors(vm, job, [device], ["read"])[device]:
        raise ToolError(f"fio does not verify what it wrote: {problem}")
    with open(path, "r+b") as f:
        f.seek(mib << 19)
        f.write(os.urandom(64 << 10))
        os.fsync(f.fileno())
    if (problem := fio_errors(vm, job, [device], [])[device]) != f"error {errno.EILSEQ}":
        raise ToolError(f"fio did not notice a damaged block, but: {problem}")


NVME_JOB = """
[global]
ioengine=libaio
direct=1
rw=randread
bs=4k
iodepth={depth}
iodepth_batch_submit={depth}
iodepth_batch_complete_min={depth}
number_ios={requests}
"""
NVME_REQUESTS = 4096
MOST_SUBMISSIONS = .1       # for each request, at depth 64


def submissions(vm: guest.Guest, device: str, depth: int, counter: pathlib.Path) -> None:
    """A ToolError if QEMU submits each request that the guest has by itself."""
    def count() -> int:
        return int.from_bytes(counter.read_bytes(), "little")
    before = count()
    job = NVME_JOB.format(depth=depth, requests=NVME_REQUESTS)
    if problem := fio_errors(vm, job, [device], ["read"])[device]:
        raise ToolError(problem)
    each = (count() - before) / NVME_REQUESTS
    common.progress(f"nvme, depth {depth}: {each:.3f} submissions per I/O")
    if each > MOST_SUBMISSIONS:
        raise ToolError(f"{each:.3f} submissions per I/O at depth {depth}, {MOST_SUBMISSIONS} are allowed")


def nvme(results: Results, binary: pathlib.Path) -> None:
    """Emulated NVMe, which runs in the main loop: a disk with each engine."""
    directory = logs() / "disks"
    directory.mkdir(parents=True, exist_ok=True)
    counter = directory / "submitted"
    counter.write_bytes(bytes(8))
    disks = [guest.Disk(common.sparse(directory / f"nvme-{aio}.raw", SMOKE_SIZE << 20), aio=aio, driver="nvme",
                        iothread=False) for aio in guest.AIO]
    with environment.setenv(LD_PRELOAD=str(preload("submitted")), SUBMITTED=str(counter)), \
            guest.Guest(binary, disks, label="nvme", log_dir=logs()) as vm:
        vm.wait_ready()
        devices = [vm.disk(n)[0] for n in range(len(disks))]
        found = fio_errors(vm, SMOKE_WRITE, devices, ["read", "write"])
        for disk, device in zip(disks, devices):
            results.add(f"guest {disk.aio} nvme: fio writes and verifies", found[device])
        results.do("guest native nvme: few submissions for many requests", submissions, vm, devices[0], 64, counter)
        results.do("guest native nvme: one for each is noticed", must_fail, "submissions per I/O at depth 1",
                   submissions, vm, devices[0], 1, counter)
        notices_damage(vm, SMOKE_READ, devices[0], disks[0].path, SMOKE_SIZE)
    shutil.rmtree(directory)


def check_guest(results: Results, stack: str) -> None:
    """In a guest: write and verify, and notice a block that is not what was written."""
    binary = binary_of(stack)
    for aio in guest.AIO:
        directory = logs() / "disks"
        disks = smoke_disks(directory, aio)

        def smoke():
            # Linux uses no more queues than there are CPUs
            with guest.Guest(binary, disks, vcpus=4, label=f"smoke-{aio}", log_dir=logs()) as vm:
                vm.wait_ready()
                devices = [vm.disk(n)[0] for n in range(len(disks))]
                for d, dev in zip(disks, devices):
                    queues = len(vm.check(f"ls /sys/block/{pathlib.Path(dev).name}/mq").split())
                    if queues != d.queues:
                        raise ToolError(f"{dev} has {queues} queues in the guest, not {d.queues}")
                found = fio_errors(vm, SMOKE_WRITE, devices, ["read", "write"])
                for n, (d, dev) in enumerate(zip(disks, devices)):
                    results.add(f"guest {aio} {d.driver} event_idx={'on' if d.event_idx else 'off'} "
                                f"queues={d.queues}: fio writes and verifies", found[dev])
                notices_damage(vm, SMOKE_READ, devices[0], disks[0].path, SMOKE_SIZE)
        results.do(f"guest {aio}: boots, ends, and fio notices a damaged block", smoke)
        shutil.rmtree(directory)
    results.do("guest nvme: boots, ends, and fio notices a damaged block", nvme, results, binary)


def no_answer(binary: pathlib.Path) -> None:
    """A job without an answer: what it waits for has to be named, a disk with any engine, or none."""
    disk = str(stress.our_disk())
    disks = [guest.Disk(disk, aio=aio, read_only=True) for aio in guest.AIO]
    with guest.Guest(binary, disks, label="no-answer", log_dir=logs()) as vm:
        vm.wait_ready()
        for n in range(len(disks)):
            read = f"dd if={vm.disk(n)[0]} of=/dev/null bs=4k count=2 iflag=direct"
            vm.check(read)
            vm.limit(n, bps=1)
            must_fail(f"disk{n}/virtio-backend, queue 0: 1 requests do not complete", vm.run, read, 2)
            vm.limit(n)
            vm.check(read)
        must_fail("its vCPUs are idle; no disk waits for QEMU", vm.run, "sleep 4", 1)
        must_fail("a vCPU is busy", vm.run, "while :; do :; done", 5)


def check_stress(results: Results, stack: str) -> None:
    """Stop and continue loaded guests: no notification may be lost."""
    guest.build_image()
    binary = built(stack) / "qemu-system-x86_64"
    for driver in guest.DRIVERS:   # the other engines lost none, see docs/tests.md
        results.do(f"stress {driver} threads: {STRESS_ROUNDS} rounds of stop and cont",
                   stress.stress, binary, "threads", driver, STRESS_ROUNDS)

    with environment.setenv(**stress.LATE):
        results.do(f"stress virtio-blk-pci threads: {STRESS_ROUNDS} rounds, every 64th section ends 20 ms late, "
                   f"with sanitizers", stress.stress, build.sanitized(stack) / "qemu-system-x86_64", "threads",
                   "virtio-blk-pci", STRESS_ROUNDS)

    def notices():
        disk = stress.our_disk()
        with guest.Guest(binary, [guest.Disk(str(disk), aio="threads", read_only=True)],
                         label="stress-hang", log_dir=logs()) as vm:
            vm.wait_ready()
            vm.begin(stress.LOAD.format(vm.disk()[0]))
            stress.wait_for_progress(vm, stress.reads(vm), 0)
            vm.qmp("stop")              # and no cont: from now on it hangs
            must_fail("the disk hangs", stress.wait_for_progress, vm, stress.reads(vm), 1, 2)
    results.do("stress: a disk that hangs is noticed", notices)
    results.do("stress: a guest without an answer, what it waits for is named", no_answer, binary)


def check_soak(results: Results, stack: str) -> None:
    """Some operations of make soak, and what it must notice."""
    binary = binary_of(stack)
    results.do(f"soak: {', '.join(SOAK_OPS)}, SIGTERM", soak.soak, binary, .01, common.logs("soak"), None, SOAK_OPS)
    for sabotage in soak.SABOTAGE:
        results.do(f"soak: {sabotage} is noticed", soak.must_notice, binary, sabotage, common.logs("soak") / "sabotage")
