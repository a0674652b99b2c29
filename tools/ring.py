#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The load generator (ring/ringload.c) under two QEMU binaries, in pairs.

    ring.py                     measure; the parameters are variables, see parameters()
    ring.py show [DIRECTORY]    table and HTML page again from old results
    ring.py signs CLAIMED [DIRECTORY]
                                are the differences that the results in CLAIMED show, perhaps from another
                                machine, found in DIRECTORY (otherwise in the last results) too?

One fresh QEMU process per sample and configuration. A round goes through all
configurations in random order; for each it starts three processes: base, base once
more (their ratio is the noise floor, "A/A"), series. They live side by side and are
measured in many short turns in random order, one at a time, so that what the machine
does meanwhile happens to all of them. In the end fio does the same on the host,
without QEMU: how far is that limit?
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime
import functools
import html
import itertools
import json
import lzma
import math
import os
import pathlib
import random
import re
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time

import numpy
import scipy.stats

import bench
import build
import common
import guest
import report
from common import ToolError

SOURCE = common.ROOT / "ring" / "ringload.c"
ROLES = report.ROLES
LATEST = "latest-ring"
IMAGE_MIB = 64
DISK_MIB = 256
WARM_UP = 0.15
TURN = 0.05             # seconds that one process is measured before it is another's turn
COUNT = 0.15            # seconds of the window in which system calls are counted
START_UP = 0.45         # seconds, about, to start QEMU and to verify its data
LIMIT_RUNS = 3          # of fio on the host, of which the median is shown
MANY = 40               # configurations: more are too long for a terminal

CHOICES = {"AIO": guest.AIO, "EVENT_IDX": ["on", "off"], "IRQ": ["each", "batch", "off"],
           "WAIT": ["used", "irq"], "MAIN": ["irqfd", "driver", "iothread", "other"],
           "STORAGE": ["fast", "disk"]}
# What a guest does: an interrupt handler takes all there is; a vCPU that runs in
# parallel anyway sees each entry; one that polls wants no interrupt.
NATURAL_WAIT = {"each": "used", "batch": "irq", "off": "used"}

# name, unit and digits in the table, and whether more of it is better
METRICS = {
    "iops": ("IOPS", ",.0f", True),
    "cpu": ("IOThread ns per I/O", ",.0f", False),
    "writes": ("write(2) per I/O", ".4f", False),
    "per_batch": ("write(2) per batch", ".2f", False),
    "p50": ("latency p50 [us]", ",.1f", False),
    "p99": ("latency p99 [us]", ",.1f", False),
    "p999": ("latency p99.9 [us]", ",.1f", False),
    "submits": ("submissions per I/O", ".4f", False),
    "polls": ("polls per I/O", ".4f", False),
    "interrupts": ("interrupts per I/O", ".4f", False),
    "kicks": ("kicks per I/O", ".4f", False),
    "process_cpu": ("QEMU ns per I/O", ",.0f", False),
}
LATENCY = ["p50", "p99", "p999"]
TOLD = ["iops", "cpu", "writes", *LATENCY]      # what table and summary have room for
PER_BATCH = 1.2         # notifications for a batch of completions that the driver finds when it looks, wanted at most


# -- parameters ----------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Config:
    storage: str
    aio: str
    qd: int
    queues: int
    event_idx: str
    irq: str
    wait: str
    main: str

    def __str__(self):
        return (f"{self.storage} {self.aio} qd {self.qd} x {self.queues}, event_idx {self.event_idx}, "
                f"irq {self.irq}" + (", waits for it" if self.wait == "irq" else "") +
                ("" if self.main == "irqfd" else f", main: {self.main}"))


@dataclasses.dataclass
class Parameters:
    configs: list
    pairs: int
    seconds: float      # measured of each process
    turns: int          # in which they are measured
    min_ios: int        # a crowded machine may finish too few in the time given
    rw: str
    bs: int
    batch: int
    reaction_us: float
    jitter: str         # of the reaction time, from 0 to twice as much
    poll_max_ns: int
    layouts: bool       # each pair has binaries of its own, the same objects linked in another order
    indirect: str
    machine: str
    seed: int
    quick: bool
    disk: str           # empty: our own file
    write_ok: bool
    cpus: dict          # role of a thread: CPU
    qemu_a: str
    qemu_b: str


def quick_plan():
    """What the project has set itself targets for, and the main thread's other places."""
    def config(storage, aio, qd=64, queues=1, event_idx="on", irq="each", main="irqfd"):
        return Config(storage, aio, qd, queues, event_idx, irq, NATURAL_WAIT[irq], main)
    return [config("fast", "native"), config("fast", "native", queues=4),
            config("fast", "native", event_idx="off", irq="batch"),
            config("fast", "io_uring"), config("fast", "io_uring", event_idx="off", irq="batch"),
            config("fast", "io_uring", queues=4), config("disk", "io_uring", queues=4),
            config("fast", "threads"),
            *(config("fast", aio, qd=1) for aio in guest.AIO),
            config("fast", "native", main="driver"), config("fast", "native", main="iothread")]


def full_plan(env, others):
    def several(name, default):
        text = env.get(name) or default
        found = re.split(r"[ ,]+", text.strip())
        for value in found:
            if value not in CHOICES[name] or found.count(value) > 1:
                raise ToolError(f"{name}={text}: give one or more of {' '.join(CHOICES[name])}, each once")
        return found

    def numbers(name, default, most):
        text = env.get(name) or default
        found = re.split(r"[ ,]+", text.strip())
        if not all(re.fullmatch(r"[1-9]\d{0,5}", v) and int(v) <= most for v in found) or \
                len(set(found)) < len(found):
            raise ToolError(f"{name}={text}: give whole numbers from 1 to {most}, each once")
        return [int(v) for v in found]

    storage, aio = several("STORAGE", "fast disk"), several("AIO", " ".join(guest.AIO))
    qd, queues = numbers("IODEPTH", "1 4 16 64 256", 1024), numbers("QUEUES", "1 4", 64)
    event_idx, irq = several("EVENT_IDX", "on off"), several("IRQ", "each batch off")
    main = several("MAIN", "irqfd")
    if "other" in main and others < 3:
        raise ToolError("MAIN=other: needs a third CPU; give driver or iothread")
    wait = several("WAIT", "") if env.get("WAIT") else None
    if wait and "irq" in wait and "off" in irq:
        raise ToolError("WAIT=irq and IRQ=off: no interrupt would come; give IRQ= as well")
    found = [Config(s, a, d, q, e, i, w, m) for s, a, d, q, e, i, m in
             itertools.product(storage, aio, qd, queues, event_idx, irq, main)
             for w in wait or [NATURAL_WAIT[i]]]
    if "MAIN" not in env and (irq, event_idx) == (CHOICES["IRQ"], CHOICES["EVENT_IDX"]):
        # the main thread's other places, shown where they matter most
        found += [dataclasses.replace(c, main=m) for c in found for m in ("driver", "iothread")
                  if (c.storage, c.qd, c.queues, c.event_idx, c.irq) == ("fast", 64, 1, "on", "each")]
    return found


def cpu_list():
    """The CPUs that we may use, one of each core first."""
    cpus, cores = sorted(os.sched_getaffinity(0)), collections.Counter()
    def turn(cpu):
        try:
            core = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            core = str(cpu)
        cores[core] += 1
        return cores[core]
    return [cpu for _, cpu in sorted((turn(cpu), cpu) for cpu in cpus)]


def parameters(env):
    env = {k: v for k, v in env.items() if v}
    number, switch = functools.partial(common.number, env), functools.partial(common.switch, env)
    cpus = cpu_list()
    if env.get("CPUS"):
        given = re.split(r"[ ,]+", env["CPUS"].strip())
        if not 2 <= len(given) <= 3 or not all(c.isdigit() and int(c) in cpus for c in given) \
                or len(set(given)) < len(given):
            raise ToolError(f"CPUS={env['CPUS']}: give two or three of {' '.join(map(str, sorted(cpus)))}: "
                            f"for the driver, the IOThread and (optional) the main thread")
        cpus = [int(c) for c in given]
    if len(cpus) < 2:
        raise ToolError("one CPU is not enough: driver and IOThread need one each")
    quick = switch("QUICK", "off")
    if quick:
        for name in [*CHOICES, "IODEPTH", "QUEUES"]:
            if name in env:
                raise ToolError(f"QUICK=1 has its own configurations; leave {name}= or QUICK= out")
    rw = env.get("RW", "read")
    m = re.fullmatch(r"read|write|mix:(\d{1,3})", rw)
    if not m or int(m[1] or 0) > 100:
        raise ToolError(f"RW={rw}: give read, write or mix:PERCENT_WRITES")
    _, size = common.block_size(env, 1)
    indirect = "on" if switch("INDIRECT", "on") else "off"
    qemu_a, qemu_b = bench.given_binaries(env)
    configs = quick_plan() if quick else full_plan(env, len(cpus))
    if indirect == "off" and max(c.qd for c in configs) > 341:
        raise ToolError("INDIRECT=off: at most 341 requests fit in a queue; give IODEPTH=")
    many = len(configs) > MANY
    seconds = number("SECONDS", 0.3 if many else 0.7, 0.05, 3600, float)
    p = Parameters(
        configs=configs, quick=quick, rw=rw, bs=size, indirect=indirect,
        # the full plan has hundreds of configurations, and is read group by group
        pairs=number("PAIRS", 2 if many else 8, 1, 10000),
        seconds=seconds, turns=min(1000, round(seconds / TURN)),
        min_ios=number("MIN_IOS", 200, 1, 10 ** 9),
        batch=number("BATCH", 64, 1, 1024),
        reaction_us=number("REACTION_US", 0.2, 0, 1e6, float),
        jitter="on" if switch("JITTER", "off") else "off",
        poll_max_ns=number("POLL_MAX_NS", 0, 0, 10 ** 9),
        layouts=switch("LAYOUTS", "off" if qemu_a else "on"),
        machine=env.get("MACHINE", guest.MACHINE),
        seed=number("SEED", random.SystemRandom().randrange(1 << 31), 0, (1 << 63) - 1),
        disk=env.get("DISK", ""), write_ok=switch("WRITE_OK", "off"),
        cpus={"driver": cpus[0], "iothread": cpus[1], "other": cpus[2] if len(cpus) > 2 else None},
        qemu_a=qemu_a, qemu_b=qemu_b)
    if p.disk:
        if not any(c.storage == "disk" for c in p.configs):
            raise ToolError("DISK= is given, but STORAGE= leaves the disk out")
        p.disk = bench.own_disk(p.disk, p.rw != "read", p.write_ok, p.rw)
    return p


# -- the load generator and its images -------------------------------------------

def ringload():
    """The program, compiled if its source is newer, and no more than once in a measurement."""
    return compiled(common.BUILD / "ring" / "ringload")


@functools.cache
def compiled(program):
    compile_c(SOURCE, program, [])
    return program


def compile_c(source, output, arguments):
    if output.is_file() and output.stat().st_mtime > source.stat().st_mtime:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    new = output.with_suffix(".new")
    common.run(["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", *arguments, "-o", new, source])
    new.replace(output)


@dataclasses.dataclass
class Image:
    path: str
    direct: bool
    verify: str         # what ringload verifies: "all", a number of blocks, "none"


@contextlib.contextmanager
def images(p):
    """(storage, engine) -> Image, for the configurations of the plan.

    "fast" answers at once: for native and threads a file in memory (a memfd is
    tmpfs), for io_uring, which hands tmpfs to worker threads, one in the page cache.
    """
    program, found, fds = ringload(), {}, []
    directory = common.BUILD / "ring"
    wanted = {(c.storage, c.aio) for c in p.configs}

    def filled(path):
        common.run([program, "--fill", "--image", path])
        return path

    def our_file(name, mib):
        path = directory / name
        common.need_space(directory, mib + 64)
        with open(path, "wb") as f:
            f.truncate(mib << 20)
        return filled(str(path))
    try:
        if wanted & {("fast", "native"), ("fast", "threads")}:
            fds.append(os.memfd_create("ring-image"))
            os.truncate(fds[0], IMAGE_MIB << 20)
            path = f"/proc/{os.getpid()}/fd/{fds[0]}"
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
            except OSError as e:
                raise ToolError("tmpfs has no O_DIRECT with this kernel (Linux 6.6 brought it); "
                                "give STORAGE=disk") from e
            filled(path)
            for aio in ("native", "threads"):
                found["fast", aio] = Image(path, True, "all")
        if ("fast", "io_uring") in wanted:
            found["fast", "io_uring"] = Image(our_file("cached.raw", IMAGE_MIB), False, "all")
        if any(storage == "disk" for storage, _ in wanted):
            disk = p.disk or our_file("disk.raw", DISK_MIB)
            guest.check_direct(disk)
            for aio in guest.AIO:
                found["disk", aio] = Image(disk, True, "none" if p.disk else "1024")
        yield found
    finally:
        for fd in fds:
            os.close(fd)


def placement(config, cpus):
    arguments = ["--driver-cpu", cpus["driver"], "--iothread-cpu", cpus["iothread"]]
    if config.main == "irqfd":
        return arguments + ["--irqfd", "on", "--main-cpu", cpus["driver"]]
    return arguments + ["--main-cpu", cpus[config.main]]


def command(binary, config, p, image, seed):
    """ringload's command line for one sample."""
    return [str(a) for a in [
        ringload(), "--qemu", binary, "--image", image.path, "--aio", config.aio,
        "--cache-direct", "on" if image.direct else "off", "--qd", config.qd, "--queues", config.queues,
        "--event-idx", config.event_idx, "--irq", config.irq, "--wait", config.wait,
        *placement(config, p.cpus), "--reaction-us", p.reaction_us, "--jitter", p.jitter, "--batch", p.batch,
        "--poll-max-ns", p.poll_max_ns, "--indirect", p.indirect, "--rw", p.rw, "--bs", p.bs,
        "--machine", p.machine, "--seconds", p.seconds, "--min-ios", p.min_ios, "--warmup", WARM_UP, "--count-seconds", COUNT,
        "--verify", image.verify, "--seed", seed]]


class TryAgain(ToolError):
    """The next ringload will do."""


class Load:
    """One ringload. It ends its QEMU whatever happens to it."""

    def __init__(self, arguments, timeout):
        self.timeout = timeout
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, bufsize=0, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            file.close()

    def said(self):
        """What it says next; nothing when it has ended."""
        if not select.select([self.process.stdout], [], [], self.timeout)[0]:
            raise ToolError(f"ringload said nothing for {self.timeout:.0f} s")
        return self.process.stdout.read(65536)

    def turn(self):
        """Let it measure."""
        with contextlib.suppress(BrokenPipeError):      # result() will tell why
            self.process.stdin.write(b"\n")

    def wait_idle(self):
        said = self.said()
        if not said:
            self.result()       # knows why
        if said != b"idle\n":
            raise ToolError(f"ringload should be idle, but says: {said[:200]!r}")

    def result(self):
        """What it has measured, at its end."""
        text = b"".join(iter(self.said, b""))
        if self.process.wait():
            self.errors.seek(0)
            errors = self.errors.read().decode(errors="replace").strip().splitlines()
            kind = TryAgain if self.process.returncode == os.EX_TEMPFAIL else ToolError
            raise kind((errors or [f"ringload ended with {self.process.returncode}"])[-1])
        try:
            return json.loads(text)
        except ValueError as e:
            raise ToolError(f"ringload gave no JSON, but: {text[:200]!r}") from e


def again(what):
    """what(), up to twice more if ringload asks for it."""
    for last in (False, False, True):
        try:
            return what()
        except TryAgain as e:
            if last:
                raise
            common.progress(f"{e}; nothing was measured, trying again")


def run_load(arguments, timeout):
    """Run ringload to its end; what it prints."""
    def once():
        with Load(arguments, timeout) as load:
            return load.result()
    return again(once)


def run_turns(arguments, order, timeout):
    """One ringload of each role, measured in turns; what they print.

    arguments: role -> command line. order: the roles of each turn, of which the last is
    the one that counts system calls.
    """
    with contextlib.ExitStack() as stack:
        def idle(role):
            load = stack.enter_context(Load([*arguments[role], "--turns", str(len(order) - 1)], timeout))
            load.wait_idle()
            return load
        loads = {role: again(functools.partial(idle, role)) for role in order[0]}
        for turn in order[:-1]:
            for role in turn:
                loads[role].turn()
                loads[role].wait_idle()
        results = {}
        for role in order[-1]:
            loads[role].turn()
            results[role] = loads[role].result()
        return results


def kept(run):
    """What is kept of run()'s results, with the CPUs that other processes took meanwhile."""
    def machine():
        ticks = [int(n) for n in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")

    def own():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime
    before = machine(), own(), time.monotonic()
    results = run()
    busy, ours, took = (b - a for a, b in zip(before, (machine(), own(), time.monotonic())))
    for raw in results.values():
        raw.pop("parameters")
        calls = raw["syscalls"]["per_io"]
        raw["syscalls"]["per_io"] = {k: v for k, v in calls.items() if v}
        raw["took"], raw["others"] = round(took, 3), round(max(0, busy - ours) / took, 4)
    return results


def patience(p):
    """Seconds after which a silent ringload is no use."""
    return p.seconds * 3 + 120


def sample(binary, config, p, image, seed):
    """One fresh process by itself."""
    return kept(lambda: {"": run_load(command(binary, config, p, image, seed), patience(p))})[""]


def compare(binaries, config, p, image, seed, order):
    """A fresh process for each role, of {role: binary}."""
    arguments = {role: command(binary, config, p, image, seed) for role, binary in binaries.items()}
    return kept(lambda: run_turns(arguments, order, patience(p)))


# -- all of them ---------------------------------------------------------------

def plan(p):
    """The order of everything, fixed beforehand: [(pair, number of the configuration, roles of each turn)]."""
    rng = random.Random(p.seed)
    return [(pair, n, [rng.sample(ROLES, len(ROLES)) for _ in range(p.turns + 1)])
            for pair in range(1, p.pairs + 1) for n in rng.sample(range(len(p.configs)), len(p.configs))]


def write_run(file, data):
    file.write(json.dumps(data, separators=(",", ":")) + "\n")
    file.flush()


def left_text(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


@contextlib.contextmanager
def binaries_of_pairs(p, both):
    """A function that gives the binaries of a pair, {role: path}; what it gave before may be gone then."""
    if not p.layouts:
        yield lambda pair: {role: both[role == "series"].path for role in ROLES}
        return
    directory = common.BUILD / "ring"
    common.need_space(directory, 5 * max(os.path.getsize(b.path) for b in both) >> 20)
    with tempfile.TemporaryDirectory(dir=directory, prefix="layouts-") as scratch, \
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [build.Objects(b.path, scratch) for b in both]

        @functools.lru_cache(1)
        def linked(pair):
            found = {role: os.path.join(scratch, role) for role in ROLES}
            # in random order: who comes last may get other memory for its file
            for done in [pool.submit(objects[role == "series"].link, f"{p.seed} {pair} {role}", found[role])
                         for role in random.Random(f"{p.seed} {pair}").sample(ROLES, len(ROLES))]:
                done.result()
            return found
        yield linked


def measure(p, both, found, out, run=compare):
    """Run the plan; each result is on disk before the next begins."""
    steps, start = plan(p), time.monotonic()
    with open(out / "runs.jsonl", "w") as file, binaries_of_pairs(p, both) as binaries:
        for n, (pair, config_number, order) in enumerate(steps, 1):
            config = p.configs[config_number]
            # the same blocks in the same order within a pair
            results = run(binaries(pair), config, p, found[config.storage, config.aio], p.seed + pair, order)
            for role in order[0]:
                write_run(file, {"pair": pair, "config": config_number, "role": role, **results[role]})
            left = (time.monotonic() - start) / n * (len(steps) - n)
            iops = ", ".join(f"{results[role]['iops']:,.0f}" for role in ROLES)
            common.progress(f"{n} of {len(steps)}: pair {pair}, {config}: {iops} IOPS ({both[0].label}, again, "
                            f"{both[1].label}); {left_text(left)} left")


# -- fio without QEMU ------------------------------------------------------------

def limit_key(config):
    """What the host's fio can know of a configuration."""
    return config.storage, config.aio, config.qd * config.queues


def fio_command(p, key, image):
    """fio with the same engine, image and depth, on the IOThread's CPU alone."""
    _, aio, depth = key
    rw, _, percent = p.rw.partition(":")
    threads = aio == "threads"
    return ["fio", "--name=limit", f"--filename={image.path}", f"--direct={int(image.direct)}", "--invalidate=0",
            f"--ioengine={ {'native': 'libaio', 'threads': 'psync'}.get(aio, aio)}",
            *(["--thread", f"--numjobs={min(depth, 64)}", "--group_reporting"] if threads else
              [f"--iodepth={depth}", f"--iodepth_batch_submit={min(depth, 64)}", "--iodepth_batch_complete_min=1",
               f"--iodepth_batch_complete_max={depth}"]),
            f"--rw=rand{ {'mix': 'rw'}.get(rw, rw)}", *([f"--rwmixwrite={percent}"] if percent else []),
            f"--bs={p.bs}", "--norandommap", "--gtod_reduce=1", f"--cpus_allowed={p.cpus['iothread']}",
            "--time_based", f"--runtime={round(p.seconds * 1000)}ms", "--output-format=json"]


def measure_limits(p, found, out):
    """IOPS of fio on the host, for each engine, image and depth of the plan."""
    keys = list(dict.fromkeys(limit_key(c) for c in p.configs))
    common.progress(f"the same without QEMU: fio on the host, {len(keys)} x {LIMIT_RUNS} runs")
    with open(out / "limits.jsonl", "w") as file:
        for _ in range(LIMIT_RUNS):
            for key in random.Random(p.seed).sample(keys, len(keys)):
                text = common.run(fio_command(p, key, found[key[:2]]))
                try:
                    job = json.loads(text[text.index("{"):])["jobs"][0]
                except (ValueError, KeyError, IndexError) as e:
                    raise ToolError(f"fio gave no JSON, but: {text[:200]!r}") from e
                write_run(file, {"key": key, "iops": round(job["read"]["iops"] + job["write"]["iops"], 1)})


def limits(directory):
    """{limit_key(): median IOPS}; empty where fio did not run."""
    found = collections.defaultdict(list)
    try:
        for line in (pathlib.Path(directory) / "limits.jsonl").read_text().splitlines():
            run = json.loads(line)
            found[tuple(run["key"])].append(run["iops"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ToolError(f"{directory}/limits.jsonl is damaged ({type(e).__name__}: {e})") from e
    return {key: statistics.median(values) for key, values in found.items()}


def bench_ring(env=os.environ, run=compare):
    p = parameters(env)
    stack = common.stack_name()
    both = bench.binaries(p, stack)
    common.need_space(common.BUILD / "results", 64)
    stopped, out = None, None
    with images(p) as found:
        out = bench.new_directory("ring-" + ("A-B" if p.qemu_a else stack), LATEST)
        first = p.configs[0]
        info = {
            "parameters": dataclasses.asdict(p), "stack": stack,
            "disk": p.disk or "a file of our own", "binaries": [dataclasses.asdict(b) for b in both],
            "host": bench.host(), "date": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %z}",
            "command": command(both[0].path, first, p, found[first.storage, first.aio], p.seed)}
        # without the paths of this machine, to be shown elsewhere
        common.write_json(out / "ring.json", json.loads(json.dumps(info).replace(f"{common.ROOT}/", "")))
        processes = p.pairs * len(p.configs) * len(ROLES)
        common.progress(f"{len(p.configs)} configurations x {p.pairs} pairs x (base, base again, series), "
                        f"{p.seconds:g} s each, {left_text(processes * (p.seconds + WARM_UP + COUNT + START_UP))} "
                        f"in all, seed {p.seed}; results in {out}")
        try:
            measure(p, both, found, out, run)
            measure_limits(p, found, out)
        except (KeyboardInterrupt, ToolError) as e:
            stopped = e
            common.progress(f"stopped{': ' if str(e) else ''}{e}; what is measured so far:")
    if not stopped or (out / "runs.jsonl").stat().st_size:
        show(out)
    if stopped:
        raise stopped


# -- the results -----------------------------------------------------------------

def metrics(run):
    calls = run["syscalls"]["per_io"]
    def of(*names):
        # without tracepoints there is nothing but write and read
        return sum(calls.get(n, 0) for n in names) if run["syscalls"]["source"].startswith("perf") else math.nan
    return {"iops": run["iops"], "cpu": run["cpu_ns_per_io"]["iothread"],
            "process_cpu": run["cpu_ns_per_io"]["process"], "writes": run["per_io"]["writes"],
            "per_batch": run["per_io"]["writes"] * run["batches_seen"]["mean"],
            "p50": run["latency_us"]["p50"], "p99": run["latency_us"]["p99"],
            "p999": run["latency_us"]["p999"], "interrupts": run["per_io"]["interrupts"],
            "kicks": run["per_io"]["kicks"], "submits": of("io_submit", "io_uring_enter"),
            "polls": of("ppoll", "epoll_wait", "epoll_pwait2")}


def load(directory):
    """(ring.json, list of runs with their metrics)."""
    directory = pathlib.Path(directory)
    try:
        info = json.loads((directory / "ring.json").read_text())
        info["configs"] = [Config(**c) for c in info["parameters"]["configs"]]
        packed = directory / "runs.jsonl.xz"
        text = lzma.decompress(packed.read_bytes()).decode() if packed.is_file() else \
            (directory / "runs.jsonl").read_text()
        lines = text.splitlines()
    except FileNotFoundError as e:
        raise ToolError(f"{e.filename} is missing; is {directory} a directory of `make bench-ring`?") from e
    except (OSError, ValueError, KeyError, TypeError, lzma.LZMAError) as e:
        raise ToolError(f"{directory}/ring.json is damaged ({type(e).__name__}: {e})") from e
    runs = []
    for n, line in enumerate(lines, 1):
        try:
            run = json.loads(line)
            run["metrics"] = metrics(run)
            info["configs"][run["config"]]
            if run["role"] not in ROLES:
                raise ValueError(f"role {run['role']}")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
            raise ToolError(f"{directory}/runs.jsonl, line {n} is damaged ({type(e).__name__}: {e}); "
                            f"remove it to go on without it") from e
        runs.append(run)
    if not runs:
        raise ToolError(f"{directory}: nothing measured, runs.jsonl is empty")
    return info, runs


def analyse(info, runs):
    """Config -> metric -> values in matched pairs, A/B and A/A ratio, verdict."""
    table = {}
    for n, config in enumerate(info["configs"]):
        by_role = {role: {r["pair"]: r["metrics"] for r in runs if r["config"] == n and r["role"] == role}
                   for role in ROLES}
        if not by_role["base"] or not by_role["series"]:
            continue
        rows = {}
        for m, (_, _, more) in METRICS.items():
            def pick(role, other):
                pairs = sorted(by_role[role].keys() & by_role[other].keys())
                return [by_role[role][p][m] for p in pairs]
            base, series = pick("base", "series"), pick("series", "base")
            again = pick("base", "base2"), pick("base2", "base")
            ab, aa = report.paired(base, series), report.paired(*again)
            rows[m] = {"base": base, "series": series, "again": again, "ab": ab, "aa": aa,
                       "verdict": report.verdict(ab, aa, more)}
        table[config] = rows
    return table


def stratified(members):
    """Ratio b/a over several configurations, each with pairs of its own: [(values a, values b)].

    The mean of the configurations' means. How much they differ among each other is no
    error of it: they are all that there are, not a sample.
    """
    logs = [numpy.log(b) - numpy.log(a) for a, b in members if len(a) and all(x > 0 for x in [*a, *b])]
    result = {"n": sum(map(len, logs)), "ratio": None, "low": None, "high": None, "p": None}
    if not logs:
        return result
    mean = float(numpy.mean([d.mean() for d in logs]))
    result["ratio"] = math.exp(mean)
    if min(map(len, logs)) < 2:
        return result
    parts = numpy.array([d.var(ddof=1) / len(d) for d in logs])
    if parts.sum() < 1e-24:
        return {**result, "low": result["ratio"], "high": result["ratio"]}
    df = parts.sum() ** 2 / sum(v ** 2 / (len(d) - 1) for v, d in zip(parts, logs))       # Welch, Satterthwaite
    reach = scipy.stats.t.ppf((1 + report.CONFIDENCE) / 2, df) * math.sqrt(parts.sum()) / len(logs)
    result |= {"low": math.exp(mean - reach), "high": math.exp(mean + reach)}
    weighted = numpy.concatenate([d / len(d) for d in logs])
    result["p"] = float(scipy.stats.permutation_test(
        (weighted,), lambda x, axis: numpy.sum(x, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=numpy.inf if len(weighted) <= 14 else 20000, random_state=0).pvalue)
    return result


def groups(table):
    """Like analyse(), for all configurations of a storage, engine and EVENT_IDX together."""
    found = {}
    for config, rows in table.items():
        if config.main == "irqfd":
            found.setdefault(f"{config.storage} {config.aio}, event_idx {config.event_idx}", []).append(rows)
    whole = {}
    for name, members in found.items():
        if len(members) < 2:
            continue
        rows = whole[f"{name}: {len(members)} configurations together"] = {}
        for m, (_, _, more) in METRICS.items():
            def values(side):
                return [report.middle(r[m][side]) for r in members if r[m]["ab"]["ratio"]]
            ab = stratified([(r[m]["base"], r[m]["series"]) for r in members])
            aa = stratified([r[m]["again"] for r in members])
            rows[m] = {"base": values("base"), "series": values("series"), "ab": ab, "aa": aa,
                       "verdict": report.verdict(ab, aa, more)}
    return whole


def setup(info, runs):
    p, host = info["parameters"], info["host"]
    cpus = p["cpus"]
    busy = sum(r["others"] for r in runs) / len(runs) / host["cpus"]
    jitter = ", at random up to twice that" if p.get("jitter") == "on" else ""
    yield (f"{p['rw']} of {p['bs']} bytes, {p['seconds']:g} s, at random; reaction time of the driver "
           f"{p['reaction_us']:g} us{jitter}; poll-max-ns {p['poll_max_ns']}; indirect descriptors {p['indirect']}")
    yield ("fast: tmpfs with O_DIRECT, for io_uring a page-cached file; disk: "
           f"{info['disk']} with O_DIRECT")
    yield (f"driver on CPU {cpus['driver']}, IOThread (and the workers of aio=threads) on CPU "
           f"{cpus['iothread']}; QEMU's main thread stopped and interrupts taken from the eventfds as KVM "
           f"does, or (main: ...) on the driver's, the IOThread's or a third CPU ({cpus['other']})")
    yield (f"host: {host['cpus']} CPUs ({host['cpu']}), Linux {host['kernel']}; "
           f"other processes took {busy:.0%} of it")
    done = max(r["pair"] for r in runs)
    turns = f"measured in {p['turns']} turns with the others of its pair" if "turns" in p else "one after the other"
    yield (f"{done} pairs" + (f" of {p['pairs']} planned" if done < p["pairs"] else "") +
           f" of fresh processes, each {turns}, order random (seed {p['seed']}); {info['date']}")
    source = runs[0]["syscalls"]["source"]
    yield f"system calls counted in a window of their own; {source}"
    checked = "the disk's data is not verified" if p["disk"] else "data verified in each process"
    yield checked + (", before and after" if p["rw"] != "read" else "")
    for b in info["binaries"]:
        yield f"{b['label']}: {b['version']}, sha256 {b['sha256'][:16]}"
    yield ("each pair has binaries of its own, with the objects linked in random order; those of A/A differ, too"
           if p.get("layouts") else
           "binaries as they were built: where the code lies makes a percent or two, which A/A does not show")


def cells(rows, m):
    form, r = METRICS[m][1], rows[m]
    return (report.number_text(r["base"], form), report.number_text(r["series"], form),
            report.ratio_text(r["ab"]), "n/a" if r["ab"]["p"] is None else f"{r['ab']['p']:.3f}",
            report.ratio_text(r["aa"]), r["verdict"])


def limit_text(info, config, rows, limit):
    """How far QEMU is from what the kernel gives fio with the same engine, image, depth and core."""
    a, b = report.labels(info)
    most = limit.get(limit_key(config))
    if not most:
        return None
    part = {label: report.middle(rows["iops"][side]) / most for label, side in ((a, "base"), (b, "series"))}
    return f"fio on the host: {most:,.0f} IOPS; " + ", ".join(f"{k} {v:.0%}" for k, v in part.items())


def text(info, runs, table, together, limit):
    a, b = report.labels(info)
    lines = [*setup(info, runs), ""]
    widths = (18, 9, 9, 22, 6, 22, 8)
    def row(values):
        return " ".join([f"  {values[0]:<{widths[0]}}"] + [f"{v:>{w}}" for v, w in zip(values[1:], widths[1:])])
    lines.append(row(("", a, b, f"{b}/{a} [95 % CI]", "p", "A/A [95 % CI]", "verdict")))
    for name, rows in together.items():
        lines.append(name)
        lines += [row((METRICS[m][0], *cells(rows, m))) for m in TOLD]
    if len(table) > MANY:
        lines.append("each by itself: in the page")
    for config, rows in table.items() if len(table) <= MANY else ():
        lines.append(str(config))
        lines += [row((METRICS[m][0], *cells(rows, m))) for m in TOLD]
        if said := limit_text(info, config, rows, limit):
            lines.append(f"  {said}")
    lines += ["", "verdict: none = the interval holds 1, or the ratio is inside the A/A interval"]
    return "\n".join(lines)


def summary(info, table, most=6):
    """The paragraph that says what is outside of the noise floor and what is not."""
    a, b = report.labels(info)
    text, count, odd = [], 0, 0
    for m in TOLD:
        name = METRICS[m][0].split(" [")[0]
        by_verdict = collections.defaultdict(list)
        for config, rows in table.items():
            by_verdict[rows[m]["verdict"]].append((config, rows[m]))
        parts = []
        for v in ("better", "worse"):
            found = by_verdict[v]
            found.sort(key=lambda item: -abs(math.log(item[1]["ab"]["ratio"])))
            if found:
                named = "; ".join(f"{c} {report.ratio_text(r['ab'])}" for c, r in found[:most])
                more = f"; and {len(found) - most} more" if len(found) > most else ""
                parts.append(f"{b} {v} in {len(found)} of {len(table)} configurations ({named}{more})")
        if by_verdict["none"]:
            parts.append(f"no difference outside of the noise in {len(by_verdict['none'])}")
        if by_verdict["n/a"]:
            parts.append(f"not decided (zeros, or fewer than two pairs) in {len(by_verdict['n/a'])}")
        text.append(f"{name}: {', '.join(parts)}.")
        for rows in table.values():
            aa = rows[m]["aa"]
            count += aa["low"] is not None
            odd += aa["low"] is not None and not aa["low"] <= 1 <= aa["high"]
    per_batch = {c: [report.middle(rows["per_batch"][side]) for side in ("series", "base")]
                 for c, rows in table.items()}
    over = sorted((c for c in per_batch if per_batch[c][0] > PER_BATCH), key=lambda c: -per_batch[c][0])
    named = [f"{c} {per_batch[c][0]:.2f}, {a} {per_batch[c][1]:.2f}" for c in over[:most]]
    more = [f"and {len(over) - most} more"] if len(over) > most else []
    text.append(f"write(2) of {b} per batch of completions that the driver finds: above {PER_BATCH} in {len(over)} of "
                f"{len(table)} configurations" + (f" ({'; '.join(named + more)})." if over else "."))
    text.append(f"In the A/A run, where nothing differs, {odd} of {count} intervals leave 1 out "
                f"(one in twenty is expected).")
    return " ".join(text)


# -- plots ---------------------------------------------------------------------

def panels(table, draw, ylabel, width=9):
    """A figure with a panel for each storage and irq mode (rows) and engine (columns)."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    rows = list(dict.fromkeys((c.storage, c.irq, c.wait) for c in table))
    engines = list(dict.fromkeys(c.aio for c in table))
    keys = sorted({(c.queues, c.event_idx, c.main) for c in table}, key=lambda k: (k[2] != "irqfd", k))
    legend = 0.2 + 0.2 * math.ceil(len(keys) / 2)
    height = 0.5 + 2.1 * len(rows) + legend
    fig = Figure(figsize=(width, height), layout="constrained")
    fig.get_layout_engine().set(rect=(0, legend / height, 1, 1 - legend / height))
    grid = fig.subplots(len(rows), len(engines), squeeze=False, sharex=True, sharey=True)
    depths = sorted({c.qd for c in table})
    styles = {}
    for i, key in enumerate(keys):
        colour = report.BLUE if key[1] == "on" else report.ORANGE
        styles[key] = {"color": colour, "marker": "osD^v<>"[i % 7],
                       "ls": "-" if key[0] == min(k[0] for k in keys) else "--",
                       "alpha": 1 if key[2] == "irqfd" else .5}
    for (storage, irq, wait), line in zip(rows, grid):
        for engine, ax in zip(engines, line):
            for key, style in styles.items():
                mine = {c.qd: rows_ for c, rows_ in table.items()
                        if (c.storage, c.irq, c.wait, c.aio) == (storage, irq, wait, engine)
                        and (c.queues, c.event_idx, c.main) == key}
                if mine:
                    draw(ax, sorted(mine), mine, style, keys.index(key) - (len(keys) - 1) / 2)
            ax.set_xscale("log", base=2)
            ax.set_xticks(depths, depths)
            ax.set_xlim(depths[0] / 1.6, depths[-1] * 1.6)
            if not ax.lines:
                ax.axis("off")
                continue
            ax.set_xticks([], minor=True)
            ax.tick_params(labelbottom=True)
            ax.grid(axis="y", lw=.4)
            ax.set_title(f"{storage}, aio={engine}, irq {irq}", fontsize=8)
        shown = next(ax for ax in line if ax.axison)
        shown.set_ylabel(ylabel)
        shown.tick_params(labelleft=True)
    names = {k: f"{k[0]} queue{'s' if k[0] > 1 else ''}, event_idx {k[1]}" +
             ("" if k[2] == "irqfd" else f", main: {k[2]}") for k in keys}
    fig.legend([Line2D([], [], **styles[k]) for k in keys], names.values(), loc="lower center", ncols=2,
               frameon=False, fontsize=8)
    return fig


def ratio_drawer(m, table):
    # an interval of two noisy pairs knows no bounds
    found = [rows[m]["ab"] for rows in table.values()]
    low = max(.4, min([.95] + [r["low"] or 1 for r in found]))
    high = min(2.5, max([1.05] + [r["high"] or 1 for r in found]))

    def draw(ax, depths, mine, style, shift):
        ax.axhline(1, color="black", lw=.6)
        ax.set_ylim(low, high)
        at = [d * 2 ** (shift * .12) for d in depths]
        for x, d in zip(at, depths):
            ab, aa = mine[d][m]["ab"], mine[d][m]["aa"]
            for r, colour, width, order in ((aa, "#dddddd", 5, 1), (ab, style["color"], 1, 2)):
                if r["low"] is not None:
                    ax.plot([x, x], [r["low"], r["high"]], color=colour, lw=width, zorder=order,
                            solid_capstyle="butt")
        points = [(x, mine[d][m]["ab"]["ratio"]) for x, d in zip(at, depths) if mine[d][m]["ab"]["ratio"]]
        ax.plot([p[0] for p in points], [p[1] for p in points], ms=4, lw=1, zorder=3, **style)
    return draw


def both_drawer(m):
    """Absolute values: series filled, base hollow."""
    def draw(ax, depths, mine, style, shift):
        at = [d * 2 ** (shift * .12) for d in depths]
        for side, face in (("base", "white"), ("series", style["color"])):
            values = [report.middle(mine[d][m][side]) for d in depths]
            points = [(x, v) for x, v in zip(at, values) if v > 0]
            ax.plot([p[0] for p in points], [p[1] for p in points], ms=4, lw=.8, markerfacecolor=face, **style)
        ax.set_yscale("log")
    return draw


def plots(info, table):
    """[(caption, figure)]; matplotlib is slow to load, so only here."""
    import matplotlib
    matplotlib.rcParams.update({"svg.hashsalt": "defer-call", "font.size": 8,
                                "axes.spines.top": False, "axes.spines.right": False})
    a, b = report.labels(info)
    floor = f"lines are 95 % intervals, grey bars the interval of {a} against itself"
    hollow = f"{b} filled, {a} hollow; log scale"
    return [(f"IOPS, ratio {b}/{a} over the queue depth; {floor}.",
             panels(table, ratio_drawer("iops", table), "IOPS ratio")),
            (f"IOThread CPU time per I/O, ratio {b}/{a} over the queue depth; {floor}.",
             panels(table, ratio_drawer("cpu", table), "CPU ratio")),
            (f"write(2) per I/O of the IOThread over the queue depth; {hollow}.",
             panels(table, both_drawer("writes"), "writes per I/O")),
            *((f"Latency {(name := METRICS[m][0].split()[1])} over the queue depth; {hollow}.",
               panels(table, both_drawer(m), f"{name} [us]")) for m in LATENCY)]


def one_line_each(table, ratio):
    """Ratios alone, for more configurations than anybody wants to see in full."""
    head = ["configuration", *(f"{METRICS[m][0].split(' [')[0]}, {ratio}" for m in TOLD)]
    lines = ["<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in head) + "</tr>"]
    for config, rows in table.items():
        cells_ = [str(config), *(report.ratio_text(rows[m]["ab"]) for m in TOLD)]
        lines.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells_) + "</tr>")
    return "<h2>Each configuration</h2>\n<table>" + "\n".join(lines) + "</table>\n"


def page(info, runs, table, together, limit):
    e = html.escape
    a, b = report.labels(info)
    head = ("metric", a, b, f"{b}/{a} [95 % CI]", "p", "A/A [95 % CI]", "verdict")
    def one(title, rows, note=None):
        text = f"<h2>{e(title)}</h2>\n<table><tr>" + "".join(f"<th>{e(h)}</th>" for h in head) + "</tr>\n"
        for m in METRICS:
            line = (METRICS[m][0], *cells(rows, m))
            text += f'<tr class="{line[-1]}">' + "".join(f"<td>{e(v)}</td>" for v in line) + "</tr>\n"
        return text + "</table>\n" + (f"<p>{e(note)}</p>\n" if note else "")
    tables = "".join(one(name, rows) for name, rows in together.items())
    if len(table) <= MANY:
        tables += "".join(one(str(c), rows, limit_text(info, c, rows, limit)) for c, rows in table.items())
    else:
        tables += one_line_each(table, f"{b}/{a}")
    draw = report.svg if len(table) <= MANY else report.png
    figures = "".join(f"<figure>{draw(f)}<figcaption>{e(caption)}</figcaption></figure>\n"
                      for caption, f in plots(info, table))
    return report.PAGE.format(title=e(f"Load generator: {a} and {b} ({info['stack']})"),
                              summary=e(summary(info, table, 100)), figures=figures, tables=tables,
                              setup="".join(f"<li>{e(line)}</li>" for line in setup(info, runs)),
                              command=e(" ".join(info["command"])), job="")


def show(directory):
    """Print the table and write the HTML page."""
    info, runs = load(directory)
    table = analyse(info, runs)
    if not table:
        raise ToolError(f"{directory}: no configuration was measured with both binaries")
    together, limit = groups(table), limits(directory)
    print(text(info, runs, table, together, limit))
    print("\n" + textwrap.fill(summary(info, table), 110))
    out = report.page_path(directory)
    out.write_text(page(info, runs, table, together, limit))
    print(f"\nwith plots: {out}")


def rows_told(directory, everything=False):
    """{(title, metric): row} of each configuration, or of the groups if there are many; and the parameters."""
    info, runs = load(directory)
    table = analyse(info, runs)
    single, many = {str(c): rows for c, rows in table.items()}, groups(table)
    told = {**single, **many} if everything else many if len(table) > MANY else single
    return {(title, m): rows[m] for title, rows in told.items() for m in TOLD}, \
        {k: {"jitter": "off", **info["parameters"]}[k] for k in
         ("rw", "bs", "batch", "reaction_us", "jitter", "poll_max_ns", "indirect")}


def signs(claimed, directory):
    """Say of each difference outside of the noise in one directory whether another has it, too."""
    rows, ours = rows_told(claimed)
    found, theirs = rows_told(directory, everything=True)
    if ours != theirs:
        raise ToolError(f"{claimed} and {directory} are not comparable: " + ", ".join(
            f"{k} {ours[k]} and {theirs[k]}" for k in ours if ours[k] != theirs[k]))
    claims = {key: row for key, row in rows.items() if row["verdict"] in ("better", "worse")}
    count = collections.Counter()
    for (title, m), row in claims.items():
        other = found.get((title, m))
        if not other or other["verdict"] == "n/a":
            word = "not measured"
        elif other["verdict"] == row["verdict"]:
            word = "reproduced"
        elif other["verdict"] == "none":
            same = (other["ab"]["ratio"] > 1) == (row["ab"]["ratio"] > 1)
            word = f"{'same' if same else 'other'} sign, inside the noise"
        else:
            word = "CONTRADICTED"
        count[word] += 1
        print(f"{word}: {title}: {METRICS[m][0].split(' [')[0]} {report.ratio_text(row['ab'])}" +
              (f", there {report.ratio_text(other['ab'])}" if other else ""))
    print(f"{len(claims)} differences outside of the noise in {claimed}; in {directory}: " +
          (", ".join(f"{n} {word}" for word, n in count.most_common()) or "nothing to look for"))
    if count["CONTRADICTED"]:
        raise ToolError(f"{count['CONTRADICTED']} of them go the other way, outside of the noise")


# -- tests of the instrument, for check.py -----------------------------------------

WRAPS = 4       # times 65,536 requests
DOUBLE_WRITES = common.ROOT / "ring" / "doublewrite.c"
BATCHES = common.ROOT / "ring" / "batches.c"
# aio-max-batch of the IOThread and of the file, and the most that QEMU then submits at once
BATCH_LIMITS = [(0, 0, 32), (4, 0, 4), (0, 4, 4), (8, 4, 4), (4, 8, 4)]


def _small(**kw):
    """Parameters of a short run whose counts do not depend on the machine.

    One request at a time and no EVENT_IDX: a notification for each, however late
    the driver is.
    """
    env = {"PAIRS": "3", "SECONDS": "0.3", "SEED": "1", "AIO": "threads", "IODEPTH": "1", "QUEUES": "1",
           "EVENT_IDX": "off", "IRQ": "each", "STORAGE": "fast", "MAIN": "irqfd",
           "MIN_IOS": "3000"}
    return parameters({**env, **kw})


def _writes(p, found, binaries):
    """Ratio of write(2) per I/O, second binary to first, and the interval over the pairs."""
    values = [[], []]
    config = p.configs[0]
    image = found[config.storage, config.aio]
    for pair in range(p.pairs):
        for n in random.Random(pair).sample((0, 1), 2):
            values[n].append(sample(binaries[n], config, p, image, pair)["per_io"]["writes"])
    return report.paired(*values)


def check_same(binary):
    """A/A: one binary against itself shows no difference."""
    p = _small()
    with images(p) as found:
        r = _writes(p, found, [binary, binary])
    if r["ratio"] is None or not .98 < r["ratio"] < 1.02:
        raise ToolError(f"a binary against itself: write(2) per I/O {report.ratio_text(r)}, 1 expected")


@contextlib.contextmanager
def wrapped(script):
    """A shell script in place of QEMU."""
    with tempfile.TemporaryDirectory() as directory:
        wrapper = pathlib.Path(directory) / "qemu-wrapped"
        wrapper.write_text(f"#!/bin/sh\n{script}\n")
        wrapper.chmod(0o755)
        yield str(wrapper)


def check_batches(binary, limits=BATCH_LIMITS):
    """Linux AIO submits as many requests at once as aio-max-batch lets it, and no more."""
    p = _small(AIO="native", IODEPTH="64", IRQ="batch", WAIT="irq")
    config = p.configs[0]
    shim, most = common.BUILD / "ring" / "batches.so", common.BUILD / "ring" / "batches"
    compile_c(BATCHES, shim, ["-shared", "-fPIC"])
    for iothread, file, wanted in limits:
        script = f'''
for a; do
    shift
    case "$a" in
    iothread,*) a="$a,aio-max-batch={iothread}" ;;
    *'"driver":"file",'*) a="${{a%?}},\\"aio-max-batch\\":{file}}}" ;;
    esac
    set -- "$@" "$a"
done
MOST_SUBMITTED="{most}" LD_PRELOAD="{shim}" exec "{binary}" "$@"'''
        most.write_text("0")
        with images(p) as found, wrapped(script) as wrapper:
            sample(wrapper, config, p, found[config.storage, config.aio], 1)
        if (got := int(most.read_text())) != wanted:
            raise ToolError(f"aio-max-batch={iothread}, of the file {file}: {got} requests at once, {wanted} expected")


def check_slowed(binary):
    """A binary with an extra write for each notification is found."""
    p = _small()
    shim = common.BUILD / "ring" / "doublewrite.so"
    compile_c(DOUBLE_WRITES, shim, ["-shared", "-fPIC"])
    with images(p) as found, wrapped(f'LD_PRELOAD="{shim}" exec "{binary}" "$@"') as slowed:
        r = _writes(p, found, [binary, slowed])
    if r["low"] is None or not 1.9 < r["ratio"] < 2.1 or r["low"] <= 1:
        raise ToolError(f"a doubled write was not found: write(2) per I/O {report.ratio_text(r)}, 2 expected")


def check_wraps(binary):
    """No notification is lost while the used index wraps: the driver takes nothing without an interrupt."""
    p = _small(AIO="native io_uring", IODEPTH="7 64", EVENT_IDX="on", IRQ="each batch", WAIT="irq",
               MIN_IOS=str(WRAPS << 16))
    with images(p) as found:
        for config in p.configs:
            done = sample(binary, config, p, found[config.storage, config.aio], 1)["ios"]
            if done < WRAPS << 16:
                raise ToolError(f"{config}: {done} requests, {WRAPS << 16} were wanted")


def check_writes(binary, most=PER_BATCH):
    """There are few notifications for a batch of completions that a waiting driver finds.

    A machine with more to do makes more of them, not fewer, so one of three runs will do.
    """
    p = _small(AIO="native io_uring", IODEPTH="64", QUEUES="1 4", EVENT_IDX="on off", IRQ="batch", WAIT="irq")
    with images(p) as found:
        for config in p.configs:
            for seed in range(3):
                run = sample(binary, config, p, found[config.storage, config.aio], seed)
                if (seen := metrics(run)["per_batch"]) <= most:
                    break
            else:
                raise ToolError(f"{config}: {seen:.2f} write(2) per batch of completions, {most} allowed")


def trace_events(trace):
    """What a trace says of the virtqueue: U for a used buffer, N for a notification, R for a deferred call.

    Up to the last notification; QEMU may have been killed after that.
    """
    found = re.findall(r"^(virtio_notify_irqfd(?:_send)?|defer_call_run) .* (\S+)$", trace, re.M)
    queues = {pointer for event, pointer in found if event == "virtio_notify_irqfd"}
    letter = {"virtio_notify_irqfd": "U", "virtio_notify_irqfd_send": "N", "defer_call_run": "R"}
    events = "".join(letter[event] for event, pointer in found if pointer in queues)
    return events[:events.rfind("N") + 1]


def judge_rows(events, event_idx, least=10):
    """One deferred call for a row of used buffers; with EVENT_IDX its first buffer does not wait for that.

    Without EVENT_IDX the driver always wants to be notified; with it only sometimes, so not each N is there.
    """
    row = "UN?(?:U+RN?)?" if event_idx else "U+RN"
    good = re.match(f"(?:{row})*", events)[0]
    if good != events:
        at = len(good)
        raise ToolError(f"rows of used buffers are not notified of as they should be: "
                        f"{events[max(0, at - 20):at]} and then {events[at:at + 40]}")
    wanted = {"notifications for the first buffer of a row": "UN", "deferred calls": "R"} if event_idx else \
        {"rows of more than one used buffer": "UUR"}
    for what, pattern in wanted.items():
        if (n := len(re.findall(pattern, events))) < least:
            raise ToolError(f"{n} {what}, {least} were wanted")


def check_rows(binary, event_idx):
    """A driver gets one notification for a row of used buffers; with EVENT_IDX one more, at once, for the first."""
    p = _small(AIO="native", IODEPTH="16", EVENT_IDX=event_idx, IRQ="batch" if event_idx == "on" else "each",
               WAIT="irq")
    config, trace = p.configs[0], common.BUILD / "ring" / "trace.log"
    with images(p) as found:
        events = [a for e in ["virtio_notify_irqfd*", "defer_call_run"] for a in ("-trace", e)]
        run_load(command(binary, config, p, found[config.storage, config.aio], 1) +
                 [a for q in [*events, "-D", str(trace)] for a in ("--qemu-arg", q)], 120)
    judge_rows(trace_events(trace.read_text(errors="replace")), event_idx == "on")


def check_jitter(binary, jitter="on"):
    """The driver's reaction time varies: some requests take much less than it is, some much more."""
    reaction = 2000
    p = _small(REACTION_US=str(reaction), JITTER=jitter, MIN_IOS="300")
    with images(p) as found:
        # each of these requests takes milliseconds, and others have verified all of the image
        image = dataclasses.replace(found["fast", "threads"], verify="100")
        seen = sample(binary, p.configs[0], p, image, 1)["latency_us"]
    if seen["min"] > reaction / 2 or seen["p99"] < reaction * 1.5:
        raise ToolError(f"latencies from {seen['min']:.0f} to (p99) {seen['p99']:.0f} us do not vary as a reaction time "
                        f"from 0 to {2 * reaction} us does")


def check_corruption(binary):
    """One wrong byte in the image is found, and its sector is named."""
    p = _small(IODEPTH="16", QUEUES="2")
    config, sector = p.configs[0], 4711
    with images(p) as found:
        image = found[config.storage, config.aio]
        fd = os.open(image.path, os.O_RDWR)
        try:
            byte = os.pread(fd, 1, sector * 512 + 99)
            os.pwrite(fd, bytes([byte[0] ^ 1]), sector * 512 + 99)
        finally:
            os.close(fd)
        try:
            sample(binary, config, p, image, 1)
        except ToolError as e:
            if f"data corruption: sector {sector} " not in str(e):
                raise
            return
    raise ToolError(f"a wrong byte in sector {sector} of the image was not found")


def main():
    if sys.argv[1:2] == ["show"] and len(sys.argv) <= 3:
        directory = pathlib.Path(sys.argv[2] if len(sys.argv) == 3 else common.BUILD / "results" / LATEST)
        return show(directory)
    if sys.argv[1:2] == ["signs"] and 3 <= len(sys.argv) <= 4:
        return signs(sys.argv[2], (sys.argv[3:] or [str(common.BUILD / "results" / LATEST)])[0])
    if len(sys.argv) > 1:
        raise ToolError("usage: ring.py, ring.py show [DIRECTORY], or ring.py signs CLAIMED [DIRECTORY]")
    p = parameters(os.environ)          # nonsense shall not wait until QEMU is built
    if not p.qemu_a:
        common.stack_name()
        build.main()
    return bench_ring()


if __name__ == "__main__":
    common.main(main, arguments=True)
