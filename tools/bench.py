#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""fio in a guest under two QEMU binaries, in pairs; docs/bench.md has the method.

One fresh QEMU process per sample. Each round starts three of them in random
order: base, base once more (their ratio is the noise floor, "A/A"), series.
A process has one disk and one IOThread per aio engine; fio runs on one after
the other, in an order that is random but the same within the round.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import functools
import json
import os
import pathlib
import platform
import random
import re
import stat
import time

import build
import common
import guest
import report
import series
from common import ToolError

RW = ["read", "write", "randread", "randwrite", "rw", "readwrite", "randrw",
      "trim", "randtrim", "trimwrite"]
ROLES = report.ROLES
DISK_MIB = 512
WARM_UP = 0.5           # seconds of fio in each guest before anything is counted
# Who chooses a workload wants to see that one; else the load generator follows
WORKLOAD = ["AIO", "IODEPTH", "NUMJOBS", "RW", "BS", "VCPUS", "QUEUES", "EVENT_IDX", "DISK", "FIO_JOB"]
RING = {"IODEPTH": "64", "QUEUES": "1", "EVENT_IDX": "on", "IRQ": "each", "STORAGE": "fast", "MAIN": "irqfd",
        "PAIRS": "5", "SECONDS": "0.5"}


# -- parameters ----------------------------------------------------------------

@dataclasses.dataclass
class Parameters:
    aio: list
    iodepth: int
    numjobs: int
    rw: str
    bs: str
    pairs: int
    runtime: float
    vcpus: int
    queues: int
    event_idx: bool
    seed: int
    disk: str           # empty: our own file
    write_ok: bool
    fio_job: str        # text of the person's own job file, else empty
    qemu_a: str
    qemu_b: str

    @property
    def writes(self):
        return bool(self.fio_job) or bool(re.search("write|rw|trim", self.rw))

    @property
    def read_only(self):
        """What is not ours is given to the guest read-only unless WRITE_OK=1 says otherwise."""
        return not self.writes or bool(self.disk and not self.write_ok)


def parameters(env):
    number, switch = functools.partial(common.number, env), functools.partial(common.switch, env)
    aio = re.split(r"[ ,]+", (env.get("AIO") or " ".join(guest.AIO)).strip())
    for engine in aio:
        if engine not in guest.AIO or aio.count(engine) > 1:
            raise ToolError(f"AIO={env['AIO']}: give one or more of {' '.join(guest.AIO)}, each once")
    rw = env.get("RW") or "randread"
    if rw not in RW:
        raise ToolError(f"RW={rw}: fio's kinds are {' '.join(RW)}")
    bs, _ = common.block_size(env, 16)
    vcpus = number("VCPUS", 2, 1, 64)
    queues = number("QUEUES", 1, 1, 1024)
    if queues > vcpus:
        raise ToolError(f"QUEUES={queues}: a Linux guest uses no more queues than it has CPUs; give VCPUS={queues} too")
    qemu_a, qemu_b = given_binaries(env)
    p = Parameters(
        aio=aio, rw=rw, bs=bs, vcpus=vcpus,
        iodepth=number("IODEPTH", 64, 1, 1024),
        numjobs=number("NUMJOBS", 1, 1, 64),
        pairs=number("PAIRS", 6, 1, 1000),
        runtime=number("RUNTIME", 2, 0.5, 3600, float),
        queues=queues,
        event_idx=switch("EVENT_IDX", "on"),
        seed=number("SEED", random.SystemRandom().randrange(1 << 31), 0, (1 << 63) - 1),
        disk=env.get("DISK") or "",
        write_ok=switch("WRITE_OK", "off"),
        fio_job=own_job(env["FIO_JOB"]) if env.get("FIO_JOB") else "",
        qemu_a=qemu_a, qemu_b=qemu_b)
    if p.disk:
        p.disk = own_disk(p.disk, p.writes, p.write_ok, "" if p.fio_job else p.rw)
    return p


def given_binaries(env):
    both = env.get("QEMU_A") or "", env.get("QEMU_B") or ""
    if bool(both[0]) != bool(both[1]):
        raise ToolError("QEMU_A= and QEMU_B= go together: give both binaries or none")
    return both


def own_job(name):
    """The text of the person's fio job file."""
    try:
        text = pathlib.Path(name).read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise ToolError(f"FIO_JOB={name}: cannot be read ({getattr(e, 'strerror', 'not text')})") from e
    if not re.search(r"^\s*\[(?!global\])[^\]]+\]", text, re.M):
        raise ToolError(f"FIO_JOB={name}: no [job] section in it; is it a fio job file?")
    m = re.search(r"^\s*((?:filename|directory)\s*=\s*(?!\$\{DISK\}\s*$).*|include\s.*)$", text, re.M)
    if m:
        raise ToolError(f"FIO_JOB={name}: `{m[1].strip()}` is not in the guest; leave it out or "
                        f"write filename=${{DISK}}")
    if re.search(r"^\s*ramp_time\s*=", text, re.M):
        raise ToolError(f"FIO_JOB={name}: leave ramp_time out; the counts per I/O take in all of the "
                        f"run, and the guest is warmed up before it")
    return text


def own_disk(name, writes, write_ok, rw=""):
    """The real path of DISK=, after checks that it can be used the way it will be.

    With rw, a workload that writes without WRITE_OK=1 is refused and called that; without rw the disk is read-only then.
    """
    path = pathlib.Path(name).resolve()
    try:
        mode = path.stat().st_mode
    except OSError as e:
        raise ToolError(f"DISK={name}: {e.strerror}") from e
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise ToolError(f"DISK={name}: neither a file nor a block device")
    if rw and writes and not write_ok:
        raise ToolError(f"RW={rw} would overwrite DISK={name}; if that is meant, add WRITE_OK=1")
    read_only = not (writes and write_ok)
    # O_EXCL on a block device fails when it is mounted or otherwise taken
    flags = os.O_RDONLY if read_only else os.O_RDWR | (os.O_EXCL if stat.S_ISBLK(mode) else 0)
    try:
        fd = os.open(path, flags)
    except OSError as e:
        raise ToolError(f"DISK={name}: cannot be opened for {'reading' if read_only else 'writing'} "
                        f"({e.strerror})") from e
    try:
        if os.lseek(fd, 0, os.SEEK_END) < 1 << 20:
            raise ToolError(f"DISK={name}: smaller than 1 MiB")
    finally:
        os.close(fd)
    return str(path)


def our_disk():
    """A file with data in all of it: reads of a hole would never reach the disk."""
    path = common.BUILD / "bench" / "disk.raw"
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


# -- what is compared ----------------------------------------------------------

@dataclasses.dataclass
class Binary:
    label: str
    path: str
    version: str = ""
    sha256: str = ""


def binaries(p, stack):
    """The two binaries, base first, with what identifies them."""
    if p.qemu_a:
        both = [Binary("A", p.qemu_a), Binary("B", p.qemu_b)]
    else:
        both = [Binary(side, str(common.stack_dir(stack) / side / "build/qemu-system-x86_64"))
                for side in ("base", "series")]
    for b in both:
        if not os.path.isfile(b.path) or not os.access(b.path, os.X_OK):
            raise ToolError(f"no QEMU at {b.path}; " +
                            (f"is QEMU_{b.label}= right?" if p.qemu_a else "run `make build`"))
        b.path = str(pathlib.Path(b.path).resolve())
        b.version = common.run([b.path, "--version"]).partition("\n")[0]
        b.sha256 = hashlib.sha256(pathlib.Path(b.path).read_bytes()).hexdigest()
    return both


def host():
    # a name such as "AMD EPYC" is that of several generations
    cpu = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M))
    name = cpu.get("model name", platform.machine())
    if "cpu family" in cpu and "model" in cpu:
        name += f", family {cpu['cpu family']}, model {cpu['model']}"
    return {"cpus": len(os.sched_getaffinity(0)), "cpu": name,
            "kernel": platform.release(), "accelerator": guest.accelerator()}


def plan(p):
    """The order of all processes and of the engines within them, fixed beforehand."""
    rng = random.Random(p.seed)
    rounds = []
    for pair in range(1, p.pairs + 1):
        engines = rng.sample(p.aio, len(p.aio))
        rounds += [(pair, role, engines) for role in rng.sample(ROLES, len(ROLES))]
    return rounds


# -- one process ---------------------------------------------------------------

def job_file(p, device, runtime):
    """The fio job; ours, or the person's with the disk's name put before it."""
    if p.fio_job:
        return f"[global]\nfilename={device}\n{p.fio_job}"
    return "\n".join(["[bench]", f"filename={device}", "ioengine=libaio", "direct=1",
                      f"rw={p.rw}", f"bs={p.bs}", f"iodepth={p.iodepth}",
                      f"numjobs={p.numjobs}", "group_reporting", "unified_rw_reporting=mixed",
                      "time_based", f"runtime={round(runtime * 1000)}ms", ""])


def counters(pid, tid):
    """What the kernel has counted for one thread, and for the machine as a whole."""
    task = pathlib.Path(f"/proc/{pid}/task/{tid}")
    io = dict(line.split(": ") for line in (task / "io").read_text().splitlines())
    tick = os.sysconf("SC_CLK_TCK")
    # all but idle and iowait; guest time is already part of user time
    cpu = [int(n) for n in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    own = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {"time": time.monotonic(), "syscw": int(io["syscw"]),
            "cpu_ns": int((task / "schedstat").read_text().split()[0]),
            "machine_cpu_s": (sum(cpu) - cpu[3] - cpu[4]) / tick,
            "qemu_cpu_s": (int(own[11]) + int(own[12])) / tick}


def warm_up(vm, n, p):
    """Let TCG translate the I/O path of the guest before anything is counted."""
    device, _ = vm.disk(n)
    if p.fio_job:           # not twice, if it writes
        vm.check(f"dd if={device} of=/dev/null bs=4k count=5000 iflag=direct")
    else:
        vm.put_file("/tmp/warm.fio", job_file(p, device, WARM_UP))
        vm.check("fio --output=/dev/null /tmp/warm.fio")


def fio(vm, n, p):
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
    try:
        # warnings of fio go to the same file, before the JSON
        result = json.loads(text[text.index("{"):])
    except ValueError as e:
        raise ToolError(f"fio gave no JSON, but: {text[:200]!r}") from e
    interrupts = {name: [line for line in vm.check(f"cat /tmp/{name}").splitlines() if virtio in line]
                  for name in ("before", "after")}
    return {"device": device, "virtio": virtio, "fio": result, "interrupts": interrupts,
            "counters": {"before": before, "after": after}}


def run_process(binary, engines, p, disk, label, log_dir):
    """One fresh QEMU process: yields (engine, raw result) as they are measured."""
    disks = [guest.Disk(disk, aio=engine, queues=p.queues, event_idx=p.event_idx,
                        read_only=p.read_only, locking=p.read_only or n == 0)
             for n, engine in enumerate(p.aio)]
    with guest.Guest(binary.path, disks, vcpus=p.vcpus, label=label, log_dir=log_dir) as vm:
        vm.wait_ready()
        warm_up(vm, p.aio.index(engines[0]), p)
        for engine in engines:
            yield engine, {"command": [binary.path, *vm.arguments()], **fio(vm, p.aio.index(engine), p)}


# -- all of them ---------------------------------------------------------------

def new_directory(name, newest="latest"):
    """For results, and the link to it."""
    results = common.BUILD / "results"
    results.mkdir(parents=True, exist_ok=True)
    out = results / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{name}"
    out.mkdir()
    link = results / f"{newest}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(out.name)
    link.replace(results / newest)
    return out


def measure(p, both, disk, out, run=run_process):
    """Run the plan; each result is on disk before the next begins."""
    rounds = plan(p)
    total = len(rounds) * len(p.aio)
    start, n = time.monotonic(), 0
    for i, (pair, role, engines) in enumerate(rounds):
        binary = both[1] if role == "series" else both[0]
        process = run(binary, engines, p, disk, f"{pair:03}-{role}", out / "log")
        with contextlib.closing(process):       # ends QEMU whatever happens in between
            for engine, raw in process:
                n += 1
                result = {"n": n, "pair": pair, "role": role, "engine": engine,
                          "binary": dataclasses.asdict(binary), **raw}
                common.write_json(out / f"run-{n:03}.json", result)
                left = (time.monotonic() - start) / n * (total - n)
                name = binary.label + (" again" if role == "base2" else "")
                common.progress(f"run {n} of {total}: pair {pair} of {p.pairs}, {name}, aio={engine}: "
                                f"{report.metrics(result)['iops']:,.0f} IOPS; "
                                f"{int(left) // 60}:{int(left) % 60:02} left")


def bench(env=os.environ, run=run_process):
    p = parameters(env)
    stack = common.stack_name()
    both = binaries(p, stack)
    guest.qemu_python(stack)
    guest.build_image()
    disk = p.disk or our_disk()
    guest.check_direct(disk)
    common.need_space(common.BUILD / "results", 64)
    out = new_directory("A-B" if p.qemu_a else stack)
    common.write_json(out / "bench.json", {
        "parameters": dataclasses.asdict(p), "stack": stack, "disk": disk,
        "binaries": [dataclasses.asdict(b) for b in both], "host": host(),
        "date": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %z}"})
    common.progress(f"{p.pairs} pairs x {len(p.aio)} engines x (base, base again, series), "
                    f"{p.runtime:g} s each, seed {p.seed}; results in {out}")
    stopped = None
    try:
        measure(p, both, disk, out, run)
    except (KeyboardInterrupt, ToolError) as e:
        stopped = e
        common.progress("stopped; what is measured so far:")
    if not stopped or any(out.glob("run-*.json")):
        report.show(out)
    if stopped:
        raise stopped


def generator_variables():
    """What the load generator will be given; a machine that is too small is told so now, not at the end."""
    import ring         # which needs this module in turn
    given = {**{name: os.environ.get(name, "") for name in ("QEMU_A", "QEMU_B", "SEED")}, **RING}
    try:
        ring.parameters(given)
    except ToolError as e:
        raise ToolError(f"{e}; RING=off does without the load generator") from None
    return given


def load_generator(given):
    """A guest without hardware virtualisation shows little of the IOThread: the load generator shows it."""
    import ring
    common.progress("now without a guest, by the load generator; docs/ring.md")
    ring.bench_ring(given)


def main():
    p = parameters(os.environ)          # nonsense shall not wait until QEMU is built
    with_ring = common.switch(os.environ, "RING", "off" if any(map(os.environ.get, WORKLOAD)) else "on")
    given = generator_variables() if with_ring else None
    stack = common.stack_name()
    if p.qemu_a:
        series.update_tree(stack)       # for QEMU's python library
    else:
        build.main()
    bench()
    if given:
        load_generator(given)
    elif not os.environ.get("RING"):
        chosen = next(name for name in WORKLOAD if os.environ.get(name))
        common.progress(f"{chosen}= chooses a workload in the guest, so the load generator was left out; RING=on adds it")


if __name__ == "__main__":
    common.main(main)
