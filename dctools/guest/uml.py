# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux as a program of this machine (User Mode Linux), whose virtio-blk driver has disks that a daemon exports.

It needs no hardware virtualisation, and its kernel runs nearly as fast as the machine's own. A system call
of a program in it is slow, though: ptrace(2) takes it to the kernel.

    with StorageDaemon(binary) as daemon:
        ...
        with Uml([daemon.export(disk)]) as linux:
            linux.wait_ready()
            status, output = linux.run("fio --version")
"""

import contextlib
import mmap
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from dctools import environment, process
from dctools.common import ToolError
from dctools.guest import image as image_
from dctools.guest.jobs import Jobs
from dctools.guest.storage import on_cpu, scratch

BLOCK = 2               # virtio's number for a disk


def can_hold(directory: pathlib.Path, mib: int) -> bool:
    """Whether a file there may hold the guest's memory: it is executed, and must not run out of space."""
    try:
        with tempfile.TemporaryFile(dir=directory) as f:
            f.truncate(mmap.PAGESIZE)
            mmap.mmap(f.fileno(), mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_EXEC).close()
        return shutil.disk_usage(directory).free >> 20 >= mib
    except OSError:
        return False


def memory_place(mib: int, places: Sequence[pathlib.Path]) -> pathlib.Path:
    """The first of these directories that can hold the guest's memory."""
    for place in places:
        if can_hold(place, mib):
            return place
    raise ToolError(f"no room for a guest of {mib} MiB in {', '.join(map(str, places))}: noexec, or too small")


class Uml(Jobs):
    """One User Mode Linux with our initramfs. Kills it when the with block ends.

    With lost_wakeups it is as Debian ships it: it may sleep through an interrupt until its timer ends.
    """

    def __init__(self, disks: Sequence[pathlib.Path] = (), *, memory: int = 512, label: str = "uml",
                 log_dir: pathlib.Path | str | None = None, image: pathlib.Path | str | None = None,
                 cpu: int | None = None, lost_wakeups: bool = False) -> None:
        super().__init__(label)
        self.disks, self.memory, self.cpu = list(disks), memory, cpu
        self.log_dir = pathlib.Path(log_dir or image_.place() / "log").resolve()
        self.console = self.log_dir / f"{label}.console"
        self.command: list[str] = []        # that it was started with
        self._preloads = ["xstate.so", *([] if lost_wakeups else ["idle.so"])]
        self._image = pathlib.Path(image or image_.place())
        self._process: subprocess.Popen | None = None
        self._directory: pathlib.Path | None = None

    def arguments(self, directory: pathlib.Path | str, job: int) -> list[str]:
        """The command line: a directory for its own files, and the descriptor that is the job channel."""
        return [*on_cpu(self.cpu), str(self._image / "linux.uml"), f"mem={self.memory}M",
                f"initrd={self._image / 'initrd.img'}", "rdinit=/init", "quiet", "panic=-1",
                "con=null", "con0=null,fd:1", "ssl=null", f"ssl0=fd:{job}", "job=ttyS0",
                f"uml_dir={directory}/", "umid=uml",
                *(f"virtio_uml.device={path}:{BLOCK}:{n}" for n, path in enumerate(self.disks, 1))]

    def start(self) -> "Uml":
        """Start it; wait_ready() waits until it takes jobs."""
        for name in ["linux.uml", *self._preloads, "initrd.img"]:
            if not (self._image / name).is_file():
                raise ToolError(f"no guest image: {self._image / name} is missing; run `make image`")
        # the memory is a file without a name; in /dev/shm the kernel does not write it to a disk
        memory = memory_place(self.memory, [pathlib.Path("/dev/shm"), pathlib.Path(tempfile.gettempdir()), self._image])
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._directory = scratch()
        try:
            self._job, theirs = socket.socketpair()
            self.command = self.arguments(self._directory, theirs.fileno())
            preloads = ":".join(str(self._image / name) for name in self._preloads)
            env = environment.child({"TMPDIR": str(memory), "LD_PRELOAD": preloads})
            with theirs, open(self.console, "wb") as console:
                self._process = subprocess.Popen(
                    self.command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL, stdout=console,
                    stderr=subprocess.STDOUT, start_new_session=True)
        except BaseException:
            self.kill()
            raise
        return self

    def __enter__(self) -> "Uml":
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self._process, "the guest is not running"
        return self._process.pid

    def wait_ready(self, timeout: float = 60) -> None:
        """Wait until its init takes jobs, which is a second or two."""
        deadline = time.monotonic() + timeout
        while self._line(deadline, "its start") != "ready":
            pass

    def disk(self, n: int = 0) -> tuple[str, str]:
        """(device node, virtio name) of disk n, such as /dev/vda, virtio0."""
        top = f"/sys/bus/platform/devices/virtio-uml.{n + 1}"
        out = self.check(f"cd {top}/virtio* && pwd -P && find . -path '*/block/*' -prune -print").split()
        if len(out) != 2:
            raise ToolError(f"{self.label}: the guest sees no disk {n} at {top}")
        return "/dev/" + out[1].rsplit("/", 1)[1], out[0].rsplit("/", 1)[1]

    def power_off(self, timeout: float = 30) -> None:
        """Let it end itself; a ToolError if it does not."""
        self.begin("poweroff -f")
        try:
            assert self._process, "the guest is not running"
            self._process.wait(timeout)
        except subprocess.TimeoutExpired as e:
            raise self._dead(f"poweroff did not end it within {timeout:g} s") from e

    def cpu_seconds(self) -> float:
        """What it has used so far, with the processes that its programs are."""
        ticks = 0
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.pid:
                    ticks += sum(map(int, fields[11:15]))       # utime, stime, and those of its dead children
        return ticks / os.sysconf("SC_CLK_TCK")

    def _dead(self, what: str) -> ToolError:
        for line in process.last_lines(self.console, 8):
            print(f"  {self.label}: {line}", file=sys.stderr)
        code = self._process and self._process.poll()
        state = "it is still running" if code is None else f"it ended with {code}"
        return ToolError(f"{self.label}: {what}; {state}; console: {self.console}")

    def kill(self) -> None:
        """End it, with the processes that it has made for its programs; never fails."""
        if self._process:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait()
            self._process = None
        if self._job:
            self._job.close()
            self._job = None
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
