# SPDX-License-Identifier: GPL-2.0-or-later
"""fio in a Linux that runs as a program, on a disk that a storage daemon exports; docs/bench.md has the method.

A fresh daemon and a fresh guest for each sample. Each round takes the engines in random order, and
for each of them base, base once more (their ratio is the noise floor, "A/A") and series in random order.
"""

import contextlib
import dataclasses
import pathlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dctools import build, common, fio, guest, options, series
from dctools.common import ToolError
from dctools.measure import calls, compared, generator, infio, plan
from dctools.measure.infio import Round, Runs
from dctools.report.show import LATEST_UML
from dctools.report.statistics import ROLES
from dctools.report.uml import UmlResults

RW = ["read", "write", "randread", "randwrite", "rw", "readwrite", "randrw"]
COUNT = 0.5             # seconds of fio in which system calls are counted, and which warm up
START_UP = 4            # seconds, about, that a sample takes beside what is measured


@dataclasses.dataclass(frozen=True)
class Workload:
    """What fio does in the guest, and how often."""
    aio: tuple[str, ...] = options.words(guest.AIO, tuple(guest.AIO), "engines")
    iodepth: int = options.number(32, 1, 1024, "requests in flight")
    batch: int | None = options.number(None, 1, 1024, "requests that fio submits, and takes, at once",
                                       shown="half of iodepth")
    rw: str = options.choice(RW, "randread", "what fio does", "fio's kinds are")
    bs: str = options.option(infio.block_size, "4k", "block size")
    queues: int = options.number(1, 1, 64, "virtqueues that the export offers; the guest has one CPU and uses one")
    pairs: int = options.number(4, 1, 1000, "pairs of processes, base and series")
    runtime: float = options.number(1.5, 0.5, 3600, "seconds of each sample", float)
    poll_max_ns: int = options.number(0, 0, 10 ** 9, "the IOThread polls so long (QEMU: 32768)")
    lost_wakeups: bool = options.switch(False, "the guest may sleep through interrupts, as Debian ships it")
    seed: int | None = options.seed("replays the order of the runs")
    qemu_a: str = options.text("", "a QEMU binary, with its storage daemon beside it, in place of the base", "base")
    qemu_b: str = options.text("", "likewise, in place of the series", "series")


def checked(p: Workload) -> Workload:
    """These parameters, if they go together; with all that was left open."""
    compared.check_given(p.qemu_a, p.qemu_b)
    if (p.batch or 1) > p.iodepth:
        raise ToolError(f"BATCH={p.batch}: no more than IODEPTH={p.iodepth} are in flight")
    # all of them at once, and guest and IOThread would take turns: one works, the other waits
    return dataclasses.replace(p, batch=p.batch or max(1, p.iodepth // 2),
                               seed=random.SystemRandom().randrange(1 << 31) if p.seed is None else p.seed)


def rounds(p: Workload) -> list[Round]:
    """The order of all samples, fixed beforehand: those that are compared follow one another."""
    rng = random.Random(p.seed)
    return [(pair, role, [engine]) for pair in range(1, p.pairs + 1)
            for engine in rng.sample(p.aio, len(p.aio)) for role in rng.sample(ROLES, len(ROLES))]


def cpus() -> tuple[int | None, int | None]:
    """A CPU for the guest and one for the daemon, on cores of their own; none if there is but one."""
    found = plan.cpu_list()
    return (found[0], found[1]) if len(found) > 1 else (None, None)


def job_file(p: Workload, device: str, seconds: float) -> str:
    """The fio job. It submits and takes many requests at once: a system call takes long in this guest."""
    return "\n".join(["[bench]", f"filename={device}", "ioengine=libaio", "direct=1", f"rw={p.rw}", f"bs={p.bs}",
                      f"iodepth={p.iodepth}", f"iodepth_batch_submit={p.batch}", "iodepth_batch_complete_min=1",
                      f"iodepth_batch_complete_max={p.batch}", "norandommap", "unified_rw_reporting=mixed",
                      "time_based", f"runtime={round(seconds * 1000)}ms", ""])


def run_fio(linux: guest.Uml, p: Workload, device: str, seconds: float) -> dict[str, Any]:
    """Run fio in the guest; its result, and the lines of /proc/interrupts before and after it."""
    linux.put_file("/tmp/job.fio", job_file(p, device, seconds))
    status, output = linux.run("grep virtio /proc/interrupts >/tmp/before\n"
                               "fio --output-format=json --output=/tmp/fio.json /tmp/job.fio; status=$?\n"
                               "grep virtio /proc/interrupts >/tmp/after; exit $status", timeout=seconds * 2 + 60)
    if status:
        said = (output.strip() or "it said nothing").splitlines()[0]
        raise ToolError(f"fio failed in the guest with {status}: {said}")
    interrupts = {name: linux.check(f"cat /tmp/{name}").splitlines() for name in ("before", "after")}
    return {"fio": fio.result(linux.check("cat /tmp/fio.json")), "interrupts": interrupts}


def counters(daemon: guest.StorageDaemon, linux: guest.Uml, tid: int) -> dict[str, float]:
    """What the kernel has counted for the IOThread, and for the machine as a whole; the guest is ours, too."""
    found = infio.counters(daemon.pid, tid)
    found["qemu_cpu_s"] += linux.cpu_seconds()
    return found


def count_calls(linux: guest.Uml, p: Workload, device: str, tid: int) -> dict[str, Any]:
    """The IOThread's system calls in a run of their own, where tracepoints may be used."""
    with contextlib.ExitStack() as stack:
        source = calls.SOURCE
        counts: dict[str, int] = {}
        try:
            counts = stack.enter_context(calls.counted(tid, calls.tracepoints()))
        except calls.NotCounted as e:
            source = str(e)
        ran = run_fio(linux, p, device, COUNT)
    return {"source": source, "fio": ran["fio"], "counts": counts}


def run_sample(binary: compared.Binary, image: generator.Image, engine: str, p: Workload, label: str,
               log_dir: pathlib.Path) -> dict[str, Any]:
    """One fresh daemon and guest; the raw result."""
    cpu_guest, cpu_daemon = cpus()
    disk = guest.Disk(image.path, aio=engine, cache_direct=image.direct, queues=p.queues)
    with guest.StorageDaemon(compared.storage_daemon(binary.path), label=f"{label}-{engine}-daemon", log_dir=log_dir,
                             cpu=cpu_daemon) as daemon:
        tid = daemon.add_iothread(poll_max_ns=p.poll_max_ns)
        daemon.add_disk(disk)
        with guest.Uml([daemon.export(disk)], label=f"{label}-{engine}", log_dir=log_dir, cpu=cpu_guest,
                       lost_wakeups=p.lost_wakeups) as linux:
            linux.wait_ready()
            device, virtio = linux.disk()
            counted = count_calls(linux, p, device, tid)
            before = counters(daemon, linux, tid)
            ran = run_fio(linux, p, device, p.runtime)
            after = counters(daemon, linux, tid)
            found = {"command": linux.command, "device": device, "virtio": virtio, **ran,
                     "counters": {"before": before, "after": after}, "calls": counted}
        if binary.label == "base":
            try:
                daemon.shutdown()
            except guest.Hang as e:     # 7.2.22 may; that no series does is for `make check`
                common.progress(f"{e}. It is killed; what was measured counts")
        return found


@contextlib.contextmanager
def images(engines: Sequence[str]) -> Iterator[dict[str, generator.Image]]:
    """{engine: Image}, of storage that answers at once, or of the disk where the kernel cannot do that."""
    slow = [] if generator.memory_has_direct() else [aio for aio in engines if aio != "io_uring"]
    with generator.fast_images([aio for aio in engines if aio not in slow]) as found:
        if slow:
            common.progress(f"tmpfs has no O_DIRECT with this kernel: aio={' and '.join(slow)} from the disk")
            path = generator.our_file("disk.raw", generator.DISK_MIB)
            guest.check_direct(path)
            found |= {aio: generator.Image(path, True, "none") for aio in slow}
        yield found


def where(image: generator.Image) -> str:
    """What kind of storage that is, for the person."""
    return "from the page cache" if not image.direct else "from memory" if image.path.startswith("/proc/") else \
        "from the disk"


def bench(p: Workload, sample: Callable[..., dict[str, Any]] = run_sample) -> UmlResults:
    """Measure with parameters that are checked(), and show what was measured, even if that was interrupted."""
    stack = common.stack_name()
    both = compared.binaries(p.qemu_a, p.qemu_b, stack)
    compared.identify_daemons(both)
    guest.qemu_python(stack)
    guest.build_image()
    common.need_space(common.settings.build / "results", 64)
    steps = rounds(p)
    with images(p.aio) as found:
        out = compared.new_directory("uml-" + ("A-B" if p.qemu_a else stack), LATEST_UML)
        compared.keep(out / UmlResults.NAME, {
            **compared.about(p, stack, both), "cpus": cpus(),
            "storage": {aio: where(found[aio]) for aio in p.aio}})
        common.progress(f"a real Linux on the vhost-user-blk export: {p.pairs} pairs x {len(p.aio)} engines x (base, "
                        f"base again, series), {p.runtime:g} s each, about "
                        f"{len(steps) * (p.runtime + START_UP) / 60:.0f} min, seed {p.seed}; results in {out}")

        def run(binary: compared.Binary, engines: Sequence[str], label: str, log_dir: pathlib.Path) -> Runs:
            for engine in engines:
                yield engine, sample(binary, found[engine], engine, p, label, log_dir)
        return infio.measured(out, lambda: infio.measure(steps, both, out, run), UmlResults)


@dataclasses.dataclass(frozen=True)
class Options(Workload):
    pass


def main(given: Options) -> None:
    """fio in a real Linux on QEMU's vhost-user-blk export, base and series in pairs.

    The guest is User Mode Linux: a program of this machine, so its kernel and its virtio-blk driver run
    nearly as fast as the machine's own without hardware virtualisation. QEMU's storage daemon is the device.
    docs/bench.md has the method.

    Example: dc uml --aio native --iodepth 64 --pairs 12
    """
    p = checked(given)          # nonsense shall not wait until QEMU is built
    stack = common.stack_name()
    if p.qemu_a:
        series.update_tree(stack)       # for QEMU's python library
    else:
        build.build_both(stack)
    bench(p)
