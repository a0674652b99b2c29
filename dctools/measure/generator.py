# SPDX-License-Identifier: GPL-2.0-or-later
"""The load generator (loadgen/): compile it, give it a disk, run it, take turns."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import resource
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from dctools import common, guest, process
from dctools.common import ToolError
from dctools.measure import compared
from dctools.measure.plan import Config, Parameters

T = TypeVar("T")
Raw = dict[str, Any]    # what loadgen prints
SOURCES = common.ROOT / "loadgen"
IMAGE_MIB = 64
DISK_MIB = 256
WARM_UP = 0.15
COUNT = 0.15            # seconds of the window in which system calls are counted


def place() -> pathlib.Path:
    """Where the program lies, and its images."""
    return common.settings.build / "loadgen"


def program() -> pathlib.Path:
    """The program, compiled if one of its sources is newer, and no more than once in a measurement."""
    return compiled(place() / "loadgen")


@functools.cache
def compiled(output: pathlib.Path) -> pathlib.Path:
    """The program there, looked at once in a process."""
    compile_c(sorted(SOURCES.glob("*.c")), output, [])
    return output


def compile_c(sources: Sequence[pathlib.Path], output: pathlib.Path, arguments: Sequence[str]) -> None:
    """One output of all sources, unless it is newer than these and the headers beside them."""
    headers = {header for source in sources for header in source.parent.glob("*.h")}
    if output.is_file() and output.stat().st_mtime > max(f.stat().st_mtime for f in {*sources, *headers}):
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    new = output.with_suffix(".new")
    process.run(["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", *arguments, "-o", new, *sources])
    new.replace(output)


@dataclasses.dataclass
class Image:
    """What the disk of a load generator is."""
    path: str
    direct: bool
    verify: str         # what is verified: "all", a number of blocks, "none"


def filled(path: str) -> str:
    """The same file, with data in all of it that loadgen can verify."""
    process.run([program(), "--fill", "--image", path])
    return path


def our_file(name: str, mib: int) -> str:
    """A file of ours on the disk, filled."""
    common.need_space(place(), mib + 64)
    return filled(common.sparse(place() / name, mib << 20))


def memory_has_direct() -> bool:
    """Whether this kernel has O_DIRECT for files in memory."""
    fd = os.memfd_create("probe")
    try:
        os.close(os.open(f"/proc/{os.getpid()}/fd/{fd}", os.O_RDONLY | os.O_DIRECT))
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


@contextlib.contextmanager
def fast_images(engines: Collection[str]) -> Iterator[dict[str, Image]]:
    """{engine: Image} of storage that answers at once.

    For native and threads a file in memory (a memfd is tmpfs), for io_uring, which hands tmpfs to
    worker threads, one in the page cache.
    """
    found: dict[str, Image] = {}
    with contextlib.ExitStack() as stack:
        if {"native", "threads"} & set(engines):
            if not memory_has_direct():
                raise ToolError("tmpfs has no O_DIRECT with this kernel (Linux 6.6 brought it); give STORAGE=disk")
            fd = os.memfd_create("ring-image")
            stack.callback(os.close, fd)
            os.truncate(fd, IMAGE_MIB << 20)
            path = filled(f"/proc/{os.getpid()}/fd/{fd}")
            for aio in ("native", "threads"):
                found[aio] = Image(path, True, "all")
        if "io_uring" in engines:
            found["io_uring"] = Image(our_file("cached.raw", IMAGE_MIB), False, "all")
        yield found


@contextlib.contextmanager
def images(p: Parameters) -> Iterator[dict[tuple[str, str], Image]]:
    """{(storage, engine): Image}, for the configurations of the plan."""
    wanted = {(c.storage, c.aio) for c in p.configs}
    found: dict[tuple[str, str], Image] = {}
    with contextlib.ExitStack() as stack:
        fast = stack.enter_context(fast_images([aio for storage, aio in wanted if storage == "fast"]))
        found |= {("fast", aio): image for aio, image in fast.items()}
        if any(storage == "disk" for storage, _ in wanted):
            disk = p.disk or our_file("disk.raw", DISK_MIB)
            guest.check_direct(disk)
            for aio in guest.AIO:
                found["disk", aio] = Image(disk, True, "none" if p.disk else "1024")
        yield found


def placement(config: Config, cpus: Mapping[str, int | None]) -> list[Any]:
    """loadgen's arguments for the CPU of each thread."""
    arguments: list[Any] = ["--driver-cpu", cpus["driver"], "--iothread-cpu", cpus["iothread"]]
    if config.main == "export":
        return arguments + ["--main-cpu", cpus["iothread"], "--iothread", "off"]
    if config.transport == "vhost-user":
        return arguments + ["--main-cpu", cpus["driver"]]
    if config.main == "irqfd":
        return arguments + ["--irqfd", "on", "--main-cpu", cpus["driver"]]
    return arguments + ["--main-cpu", cpus[config.main]]


def command(binary: pathlib.Path | str, config: Config, p: Parameters, image: Image, seed: int) -> list[str]:
    """loadgen's command line for one sample; binary is the QEMU, also of a daemon that was built with it."""
    reaction_us, jitter = p.reaction(config)
    device = ["--qemu", binary, "--machine", p.machine] if config.transport != "vhost-user" else \
        ["--qemu", compared.storage_daemon(str(binary))]
    return [str(a) for a in [
        program(), *device, "--transport", config.transport, "--image", image.path, "--aio", config.aio,
        "--cache-direct", "on" if image.direct else "off", "--qd", config.qd, "--queues", config.queues,
        "--event-idx", config.event_idx, "--irq", config.irq, "--wait", config.wait,
        *placement(config, p.cpus), "--reaction-us", reaction_us, "--jitter", jitter, "--batch", p.batch,
        "--poll-max-ns", config.poll_max_ns, "--indirect", p.indirect, "--rw", p.rw, "--bs", p.bs,
        "--seconds", p.seconds, "--min-ios", p.min_ios, "--warmup", WARM_UP,
        "--count-seconds", COUNT, "--verify", image.verify, "--seed", seed]]


class TryAgain(ToolError):
    """This process could not measure; another one will."""


class Load:
    """One load generator. It ends its QEMU whatever happens to it."""

    def __init__(self, arguments: Sequence[str], timeout: float) -> None:
        self.timeout = timeout
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, bufsize=0, start_new_session=True)
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
        for file in (self.stdin, self.stdout, self.errors):
            file.close()

    def said(self) -> bytes:
        """What it says next; nothing when it has ended."""
        if not select.select([self.stdout], [], [], self.timeout)[0]:
            raise ToolError(f"loadgen said nothing for {self.timeout:.0f} s")
        return self.stdout.read(65536)

    def turn(self) -> None:
        """Let it measure."""
        with contextlib.suppress(BrokenPipeError):      # result() will tell why
            self.stdin.write(b"\n")

    def wait_idle(self) -> None:
        """Wait until it has measured its turn, or is ready for the first."""
        said = self.said()
        if not said:
            self.result()       # knows why
        if said != b"idle\n":
            raise ToolError(f"loadgen should be idle, but says: {said[:200]!r}")

    def result(self) -> Raw:
        """What it has measured, at its end."""
        text = b"".join(iter(self.said, b""))
        if self.process.wait():
            self.errors.seek(0)
            errors = self.errors.read().decode(errors="replace").strip().splitlines()
            kind = TryAgain if self.process.returncode == os.EX_TEMPFAIL else ToolError
            raise kind((errors or [f"loadgen ended with {self.process.returncode}"])[-1])
        try:
            return json.loads(text)
        except ValueError as e:
            raise ToolError(f"loadgen gave no JSON, but: {text[:200]!r}") from e


def again(what: Callable[[], T]) -> T:
    """what(), up to twice more if loadgen asks for it."""
    for _ in range(2):
        try:
            return what()
        except TryAgain as e:
            common.progress(f"{e}; nothing was measured, trying again")
    return what()


def run_load(arguments: Sequence[str], timeout: float) -> Raw:
    """Run loadgen to its end; what it prints."""
    def once():
        with Load(arguments, timeout) as load:
            return load.result()
    return again(once)


def run_turns(arguments: Mapping[str, Sequence[str]], order: Sequence[Sequence[str]], timeout: float) -> dict[str, Raw]:
    """One loadgen of each role, measured in turns; what they print.

    arguments: role -> command line. order: the roles of each turn, of which the last is
    the one that counts system calls.
    """
    results = {}
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
        for role in order[-1]:
            loads[role].turn()
            results[role] = loads[role].result()
    return results


def kept(run: Callable[[], dict[str, Raw]]) -> dict[str, Raw]:
    """What is kept of run()'s results, with the CPUs that other processes took meanwhile."""
    def own():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime
    before = compared.busy_seconds(), own(), time.monotonic()
    results = run()
    busy, ours, took = (b - a for a, b in zip(before, (compared.busy_seconds(), own(), time.monotonic())))
    for raw in results.values():
        raw.pop("parameters")
        calls = raw["syscalls"]["per_io"]
        raw["syscalls"]["per_io"] = {k: v for k, v in calls.items() if v}
        raw["took"], raw["others"] = round(took, 3), round(max(0, busy - ours) / took, 4)
    return results


def patience(p: Parameters) -> float:
    """Seconds after which a silent loadgen is no use."""
    return p.seconds * 3 + 120


def sample(binary: pathlib.Path | str, config: Config, p: Parameters, image: Image, seed: int) -> Raw:
    """One fresh process by itself."""
    return kept(lambda: {"": run_load(command(binary, config, p, image, seed), patience(p))})[""]


def compare(binaries: Mapping[str, str], config: Config, p: Parameters, image: Image, seed: int,
            order: Sequence[Sequence[str]]) -> dict[str, Raw]:
    """A fresh process for each role, of {role: binary}."""
    arguments = {role: command(binary, config, p, image, seed) for role, binary in binaries.items()}
    return kept(lambda: run_turns(arguments, order, patience(p)))


@contextlib.contextmanager
def wrapped(script: str, name: str = "qemu-wrapped") -> Iterator[str]:
    """A shell script in place of QEMU."""
    with tempfile.TemporaryDirectory() as directory:
        wrapper = pathlib.Path(directory) / name
        wrapper.write_text(f"#!/bin/sh\n{script}\n")
        wrapper.chmod(0o755)
        yield str(wrapper)
