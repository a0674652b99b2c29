# SPDX-License-Identifier: GPL-2.0-or-later
"""fio in a guest under two QEMU binaries, in pairs; docs/bench.md has the method.

One fresh QEMU process per sample. Each round starts three of them in random
order: base, base once more (their ratio is the noise floor, "A/A"), series.
A process has one disk and one IOThread per aio engine; fio runs on one after
the other, in an order that is random but the same within the round.
"""

import contextlib
import dataclasses
import os
import pathlib
import random
import re
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from dctools import common, fio, guest, options
from dctools.common import ToolError
from dctools.measure import compared
from dctools.measure.plan import cpu_list
from dctools.report import digest
from dctools.report import infio as report
from dctools.report.statistics import ROLES

RW = ["read", "write", "randread", "randwrite", "rw", "readwrite", "randrw",
      "trim", "randtrim", "trimwrite"]
DISK_MIB = 512
WARM_UP = 0.5           # seconds of fio in each guest before anything is counted
MOST_STUCK = 2          # guests of a run that may get stuck, see guest.Stuck

Runs = Generator[tuple[str, dict[str, Any]], None, None]        # (engine, raw result), as they are measured
Shown = TypeVar("Shown", bound=report.FioResults)
Round = tuple[int, str, list[str]]                              # pair, role, engines


# -- parameters ----------------------------------------------------------------

def block_size(text: str) -> str:
    """The same text, if it is a block size that fio can use."""
    options.size(text, 16)
    return text


def own_job(name: str) -> str:
    """The text of the person's fio job file."""
    try:
        text = pathlib.Path(name).read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"cannot be read ({getattr(e, 'strerror', 'not text')})") from e
    if not re.search(r"^\s*\[(?!global\])[^\]]+\]", text, re.M):
        raise ValueError("no [job] section in it; is it a fio job file?")
    m = re.search(r"^\s*((?:filename|directory)\s*=\s*(?!\$\{DISK\}\s*$).*|include\s.*)$", text, re.M)
    if m:
        raise ValueError(f"`{m[1].strip()}` is not in the guest; leave it out or "
                         f"write filename=${{DISK}}")
    if re.search(r"^\s*ramp_time\s*=", text, re.M):
        raise ValueError("leave ramp_time out; the counts per I/O take in all of the "
                         "run, and the guest is warmed up before it")
    return text


@dataclasses.dataclass(frozen=True)
class Workload:
    """What fio does in the guest, and how often."""
    aio: tuple[str, ...] = options.words(guest.AIO, tuple(guest.AIO), "engines")
    iodepth: int = options.number(64, 1, 1024, "requests in flight of each fio job")
    numjobs: int = options.number(1, 1, 64, "fio jobs")
    rw: str = options.choice(RW, "randread", "what fio does", "fio's kinds are")
    bs: str = options.option(block_size, "4k", "block size")
    pairs: int = options.number(6, 1, 1000, "pairs of processes, base and series")
    runtime: float = options.number(2, 0.5, 3600, "seconds of each sample", float)
    vcpus: int = options.number(max(1, min(2, len(os.sched_getaffinity(0)) - 1)), 1, 64, "CPUs of the guest",
                                shown="2; 1 on a machine of two CPUs")
    queues: int = options.number(1, 1, 1024, "virtqueues of each disk")
    event_idx: bool = options.switch(True, "whether the device offers EVENT_IDX")
    seed: int | None = options.seed("replays the order of the runs")
    disk: str = options.text("", "a block device or file to do I/O on", "a file of 512 MiB below build/")
    write_ok: bool = options.switch(False, "let that disk be overwritten")
    fio_job: str = options.option(own_job, "", "a fio job file of your own")
    qemu_a: str = options.text("", "a QEMU binary in place of the base", "base")
    qemu_b: str = options.text("", "a QEMU binary in place of the series", "series")

    @property
    def writes(self) -> bool:
        """Whether fio may write; nobody knows of a job file of the person's own."""
        return bool(self.fio_job) or bool(re.search("write|rw|trim", self.rw))

    @property
    def read_only(self) -> bool:
        """What is not ours is given to the guest read-only unless WRITE_OK=1 says otherwise."""
        return not self.writes or bool(self.disk and not self.write_ok)


def checked(p: Workload) -> Workload:
    """These parameters, if they go together; with a seed, and the disk's real path."""
    if p.queues > p.vcpus:
        raise ToolError(f"QUEUES={p.queues}: a Linux guest uses no more queues than it has CPUs; "
                        f"give VCPUS={p.queues} too")
    compared.check_given(p.qemu_a, p.qemu_b)
    if p.disk:
        p = dataclasses.replace(p, disk=compared.own_disk(p.disk, p.writes, p.write_ok, "" if p.fio_job else p.rw))
    return dataclasses.replace(p, seed=random.SystemRandom().randrange(1 << 31) if p.seed is None else p.seed)


def our_disk() -> str:
    """A file with data in all of it: reads of a hole would never reach the disk."""
    path = common.settings.build / "bench" / "disk.raw"
    if not path.is_file() or path.stat().st_size != DISK_MIB << 20:
        common.need_space(path.parent, DISK_MIB + 64)
        common.progress(f"writing {path} ({DISK_MIB} MiB)")
        new = path.with_suffix(".new")
        block = os.urandom(1 << 20)
        with open(new, "wb") as f:
            for _ in range(DISK_MIB):
                f.write(block)
            f.flush()
            os.fsync(f.fileno())
        new.rename(path)
    return str(path)


def plan(p: Workload) -> list[Round]:
    """The order of all processes and of the engines within them, fixed beforehand: [(pair, role, engines)]."""
    rng = random.Random(p.seed)
    rounds: list[Round] = []
    for pair in range(1, p.pairs + 1):
        engines = rng.sample(p.aio, len(p.aio))
        rounds += [(pair, role, engines) for role in rng.sample(ROLES, len(ROLES))]
    return rounds


# -- one process ---------------------------------------------------------------

def job_file(p: Workload, device: str, runtime: float) -> str:
    """The fio job; ours, or the person's with the disk's name put before it."""
    if p.fio_job:
        return f"[global]\nfilename={device}\n{p.fio_job}"
    return "\n".join(["[bench]", f"filename={device}", "ioengine=libaio", "direct=1",
                      f"rw={p.rw}", f"bs={p.bs}", f"iodepth={p.iodepth}",
                      f"numjobs={p.numjobs}", "group_reporting", "unified_rw_reporting=mixed",
                      "time_based", f"runtime={round(runtime * 1000)}ms", ""])


def counters(pid: int | None, tid: int) -> dict[str, float]:
    """What the kernel has counted for one thread, and for the machine as a whole."""
    task = pathlib.Path(f"/proc/{pid}/task/{tid}")
    io = dict(line.split(": ") for line in (task / "io").read_text().splitlines())
    tick = os.sysconf("SC_CLK_TCK")
    own = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {"time": time.monotonic(), "syscw": int(io["syscw"]),
            "cpu_ns": int((task / "schedstat").read_text().split()[0]),
            "machine_cpu_s": compared.busy_seconds(),
            "qemu_cpu_s": (int(own[11]) + int(own[12])) / tick}


def warm_up(vm: guest.Guest, n: int, p: Workload) -> None:
    """Let TCG translate the I/O path of the guest before anything is counted."""
    device, _ = vm.disk(n)
    if p.fio_job:           # not twice, if it writes
        vm.check(f"dd if={device} of=/dev/null bs=4k count=5000 iflag=direct")
    else:
        vm.put_file("/tmp/warm.fio", job_file(p, device, WARM_UP))
        vm.check("fio --output=/dev/null /tmp/warm.fio")


def run_fio(vm: guest.Guest, n: int, p: Workload) -> dict[str, Any]:
    """Run fio on disk n of the guest; raw results and counters around it."""
    device, virtio = vm.disk(n)
    tid = vm.iothread_tid(n)
    command = f"export DISK={device}; fio --output-format=json --output=/tmp/fio.json "
    vm.put_file("/tmp/job.fio", job_file(p, device, p.runtime))
    before = counters(vm.pid, tid)
    status, output = vm.run(
        f"cat /proc/interrupts >/tmp/before; {command} /tmp/job.fio; status=$?; "
        "cat /proc/interrupts >/tmp/after; exit $status",
        timeout=3600 if p.fio_job else p.runtime * 2 + 60)
    after = counters(vm.pid, tid)
    if status:
        said = (output.strip() or vm.run("grep -v '^[{} ]' /tmp/fio.json")[1].strip()
                or "it said nothing").splitlines()[0]
        raise ToolError(f"fio failed in the guest with {status}: {said}")
    text = vm.check("cat /tmp/fio.json")
    result = fio.result(text)
    interrupts = {name: [line for line in vm.check(f"cat /tmp/{name}").splitlines() if virtio in line]
                  for name in ("before", "after")}
    return {"device": device, "virtio": virtio, "fio": result, "interrupts": interrupts,
            "counters": {"before": before, "after": after}}


def run_process(binary: compared.Binary, engines: Sequence[str], p: Workload, disk: str, label: str,
                log_dir: pathlib.Path) -> Runs:
    """One fresh QEMU process: yields (engine, raw result) as they are measured."""
    disks = [guest.Disk(disk, aio=engine, queues=p.queues, event_idx=p.event_idx,
                        read_only=p.read_only, locking=p.read_only or n == 0)
             for n, engine in enumerate(p.aio)]
    with guest.Guest(binary.path, disks, vcpus=p.vcpus, label=label, log_dir=log_dir) as vm:
        vm.wait_ready()
        vm.pin(cpu_list())
        warm_up(vm, p.aio.index(engines[0]), p)
        for engine in engines:
            yield engine, {"command": [binary.path, *vm.arguments()], **run_fio(vm, p.aio.index(engine), p)}


# -- all of them ---------------------------------------------------------------

def measure(rounds: Sequence[Round], both: Sequence[compared.Binary], out: pathlib.Path,
            run: Callable[[compared.Binary, Sequence[str], str, pathlib.Path], Runs]) -> None:
    """Run the plan; each result is on disk before the next begins. run(binary, engines, label, log_dir)."""
    total, pairs = sum(len(engines) for _, _, engines in rounds), max(pair for pair, _, _ in rounds)
    start, n, stuck = time.monotonic(), 0, 0
    again = [(*each, f"{each[0]:03}-{each[1]}") for each in reversed(rounds)]
    while again:
        pair, role, engines, label = again.pop()
        binary, before = both[1] if role == "series" else both[0], n
        process = run(binary, engines, label, out / "log")
        try:
            with contextlib.closing(process):       # ends QEMU whatever happens in between
                for engine, raw in process:
                    n += 1
                    result = {"n": n, "pair": pair, "role": role, "engine": engine,
                              "binary": dataclasses.asdict(binary), **raw}
                    compared.keep(out / f"run-{n:03}.json", result)
                    left = (time.monotonic() - start) / n * (total - n)
                    name = binary.label + (" again" if role == "base2" else "")
                    iops = report.fio_figures(result)["iops"]
                    common.progress(f"run {n} of {total}: pair {pair} of {pairs}, {name}, aio={engine}: "
                                    f"{iops:,.0f} IOPS; {int(left) // 60}:{int(left) % 60:02} left")
        except guest.Stuck as e:
            stuck += 1
            if stuck > MOST_STUCK:
                raise
            while n > before:       # another process does all of it
                (out / f"run-{n:03}.json").unlink()
                n -= 1
            with open(out / report.STUCK, "a") as notes:
                print(e, file=notes)
            common.progress(f"{e}; another one takes its place")
            again.append((pair, role, engines, f"{label}-again"))


def measured(out: pathlib.Path, work: Callable[[], None], kind: type[Shown]) -> Shown:
    """Do this work, and show what was measured, even if that was interrupted."""
    stopped: BaseException | None = None
    try:
        work()
    except (KeyboardInterrupt, ToolError) as e:
        stopped = e
        common.progress("stopped; what is measured so far:")
    if stopped and not any(out.glob("run-*.json")):
        raise stopped
    results = kind(out)
    digest.show(results)
    if stopped:
        raise stopped
    return results


def bench(p: Workload, run: Callable[..., Runs] = run_process) -> report.FioResults:
    """Measure with parameters that are checked(), and show what was measured, even if that was interrupted."""
    stack = common.stack_name()
    both = compared.binaries(p.qemu_a, p.qemu_b, stack)
    guest.qemu_python(stack)
    guest.build_image()
    disk = p.disk or our_disk()
    guest.check_direct(disk)
    common.need_space(common.settings.build / "results", 64)
    out = compared.new_directory("A-B" if p.qemu_a else stack)
    compared.keep(out / "bench.json", {**compared.about(p, stack, both), "disk": disk})
    common.progress(f"{p.pairs} pairs x {len(p.aio)} engines x (base, base again, series), "
                    f"{p.runtime:g} s each, seed {p.seed}; results in {out}")
    return measured(out, lambda: measure(
        plan(p), both, out, lambda binary, engines, *rest: run(binary, engines, p, disk, *rest)), report.FioResults)
