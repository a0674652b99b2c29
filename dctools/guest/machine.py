# SPDX-License-Identifier: GPL-2.0-or-later
"""One QEMU with our guest in it: start it, run commands in it, look at its threads, end it."""

import contextlib
import fcntl
import os
import pathlib
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dctools import common, process
from dctools.common import ToolError
from dctools.guest import image as image_
from dctools.guest.disk import FIRST_SLOT, MOST_DISKS, Disk, check_direct
from dctools.guest.jobs import Jobs, Late
from dctools.guest.qemu import Qemu, qemu_python
from dctools.guest.rings import Ring, rings, word_of

# One machine type whatever the binary, so that two of them can be compared.
MACHINE = "pc-i440fx-7.2"
CRASH_FRAMES = 20       # of the thread that crashed, for whoever has only the log


def accelerator() -> str:
    """"kvm" where the processor can do it and we may use it, else "tcg"."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    # /dev/kvm alone is no proof: some cloud kernels have it without vmx or svm.
    if re.search(r"^flags\s*:.*\b(vmx|svm)\b", cpu, re.M) and os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "kvm"
    return "tcg"


class Hang(ToolError):
    """QEMU, or its storage daemon, does not end or gives no answer."""


class Stuck(ToolError):
    """A guest under TCG gives no answer: a vCPU does not get on, and its disks wait for nothing."""


class Guest(Jobs):
    """One QEMU process with our guest in it. Kills it when the with block ends."""

    def __init__(self, binary: pathlib.Path | str, disks: Sequence[Disk] = (), *, vcpus: int = 2, memory: int = 512,
                 label: str = "guest", log_dir: pathlib.Path | str | None = None, python: pathlib.Path | None = None,
                 args: Sequence[str] = (), image: pathlib.Path | str | None = None, qmp_timeout: float = 30) -> None:
        super().__init__(label)
        self.binary, self.disks = pathlib.Path(binary), list(disks)
        self.vcpus = vcpus
        self.log_dir = pathlib.Path(log_dir or image_.place() / "log").resolve()
        self.console = self.log_dir / f"{label}.console"
        self.qemu_log = self.log_dir / f"{label}.log"
        self.accel = accelerator()
        self._python, self._image = python, pathlib.Path(image or image_.place())
        self._memory, self._args, self._qmp_timeout = memory, list(args), qmp_timeout
        self._qemu: Qemu | None = None
        self._stopping = False

    def arguments(self) -> list[str]:
        """QEMU's arguments, without the ends of the monitor and the job channel."""
        # no self-tests: a vCPU has got stuck in alg_test() (docs/tests.md)
        kernel = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on nokaslr cryptomgr.notests"
        cpus = str(self.vcpus)
        if self.accel == "kvm":
            accel = ["-accel", "kvm", "-cpu", "host"]
        else:
            accel = ["-accel", "tcg,thread=multi", "-cpu", "max"]
            # with one at most, TCG drops the guest's memory barriers, and notifications get lost (docs/tests.md)
            cpus += f",maxcpus={max(2, self.vcpus)}"
            kernel += " tsc=reliable no_timer_check"
        args = ["-machine", f"{MACHINE},dump-guest-core=off", *accel, "-smp", cpus, "-m", str(self._memory),
                "-nodefaults", "-no-user-config", "-no-reboot", "-L", str(self._image / "firmware"),
                "-kernel", str(self._image / "vmlinuz"), "-initrd", str(self._image / "initrd.img"),
                "-append", kernel, "-chardev", f"file,id=console,path={str(self.console).replace(',', ',,')},append=on",
                "-serial", "chardev:console",
                "-device", "virtio-serial-pci,addr=0x4",
                "-device", "virtserialport,chardev=job,name=job"]
        for n, disk in enumerate(self.disks):
            args += disk.arguments(n)
        return args + self._args

    def start(self, incoming: str | None = None) -> "Guest":
        """Start QEMU; with incoming, what migrate() has saved is what runs in it."""
        if not os.access(self.binary, os.X_OK) or self.binary.is_dir():
            raise ToolError(f"no QEMU at {self.binary}; run `make build`")
        for name in ["vmlinuz", "initrd.img", "firmware/bios-256k.bin", "firmware/linuxboot_dma.bin"]:
            if not (self._image / name).is_file():
                raise ToolError(f"no guest image: {self._image / name} is missing; "
                                f"run `make image`")
        if len(self.disks) > MOST_DISKS:
            raise ToolError(f"{len(self.disks)} disks: no more than {MOST_DISKS} fit into the guest")
        for disk in self.disks:
            if disk.cache_direct:
                check_direct(disk.path)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        for old in self.log_dir.glob("core*"):
            old.unlink()
        if not incoming:
            self.console.unlink(missing_ok=True)
        more = ["-incoming", incoming] if incoming else []
        library = self._python or qemu_python()
        self._job, theirs = socket.socketpair()
        with theirs:
            theirs.set_inheritable(True)
            arguments = [*self.arguments(), *more, "-chardev", f"socket,id=job,fd={theirs.fileno()}"]
            self._qemu = Qemu(library, self.binary, arguments, self.label, self.log_dir, self._qmp_timeout)
            try:
                self._qemu.launch()
            except Exception as e:
                code = self._qemu.code
                self.kill()
                if code is None or code == -9:
                    raise ToolError(f"{self.binary} gave no sign of life within "
                                    f"{self._qmp_timeout} s; {self._said()}") from e
                raise ToolError(f"{self.binary} ended at once with {code}; {self._said()}{self._crash(code)}") from e
            except BaseException:
                self.kill()
                raise
        return self

    def __enter__(self) -> "Guest":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind:
            self.kill()
        else:
            self.shutdown()

    # -- the process

    @property
    def _monitor(self) -> Qemu:
        assert self._qemu, "the guest is not running"
        return self._qemu

    @property
    def pid(self) -> int | None:
        return self._qemu.pid if self._qemu else None

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command (underscores stand for dashes); its answer, or a ToolError."""
        try:
            answer = self._monitor.qmp(command, **arguments)
        except Exception as e:
            raise self._dead(f"QMP {command} failed ({type(e).__name__})") from e
        if "error" in answer:
            raise ToolError(f"QMP {command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_event(self, name: str, timeout: float = 60, match: dict[str, Any] | None = None) -> Any:
        """The next QMP event of that name; match is a part that its dict must have."""
        try:
            return self._monitor.wait_event(name, timeout, match)
        except Exception as e:
            raise self._dead(f"no QMP event {name} within {timeout} s") from e

    def events(self) -> list[dict[str, Any]]:
        """The QMP events that nobody has waited for."""
        return self._monitor.events()

    def iothread_tid(self, n: int = 0) -> int:
        """Thread id of disk n's IOThread (of the main loop if it has none)."""
        if not self.disks[n].iothread:
            assert self.pid
            return self.pid
        return next(t["thread-id"] for t in self.qmp("query-iothreads") if t["id"] == f"iothread{n}")

    def pin(self, cpus: Sequence[int]) -> None:
        """Give each vCPU a CPU of its own, then the IOThreads one, then the main thread, as far as there are CPUs."""
        assert self.pid
        vcpus = [cpu["thread-id"] for cpu in self.qmp("query-cpus-fast")]
        iothreads = [t["thread-id"] for t in self.qmp("query-iothreads")]
        rest = cpus[len(vcpus):]
        if rest:                # else nothing can be kept apart
            for tid, cpu in [*zip(vcpus, cpus), *((tid, rest[0]) for tid in iothreads),
                             (self.pid, rest[min(1, len(rest) - 1)])]:
                os.sched_setaffinity(tid, {cpu})

    def requests(self) -> list[int]:
        """How many requests each disk has done."""
        stats = {b.get("qdev"): b["stats"] for b in self.qmp("query-blockstats")}
        names = [disk.qdev(n) for n, disk in enumerate(self.disks)]
        for name in names:
            if name not in stats:
                raise ToolError(f"{self.label}: query-blockstats does not list {name}")
        return [stats[name]["rd_operations"] + stats[name]["wr_operations"] for name in names]

    def limit(self, n: int, **limits: int) -> None:
        """Throttle a disk, or, without limits, do not any more."""
        none = dict.fromkeys(["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"], 0)
        self.qmp("block_set_io_throttle", args_dict={"id": self.disks[n].qdev(n), **none, **limits})

    def shutdown(self, timeout: float = 30, how: str = "quit") -> None:
        """End QEMU by QMP or by SIGTERM; a crash or a hang on the way out is a ToolError.

        If SIGTERM does not end it, what its threads do is noted in a file, if there is gdb.
        """
        if not self._qemu:
            return
        qemu, self._qemu = self._qemu, None
        try:
            if how == "SIGTERM":
                pid = qemu.pid
                assert pid
                os.kill(pid, signal.SIGTERM)
                try:
                    qemu.wait(timeout)
                except subprocess.TimeoutExpired:
                    self._note_stacks("-p", str(pid))
                    raise
                qemu.ended()
            else:
                qemu.quit(timeout)
        except BaseException as e:
            qemu.kill_running()
            if not isinstance(e, Exception):
                raise
        finally:
            self._channel.close()
        code = qemu.code
        if code == -9:
            raise Hang(f"{self.label}: QEMU did not end within {timeout} s of `{how}` "
                       f"and was killed; {self._said()}")
        if code:
            raise ToolError(f"{self.label}: QEMU ended with {code}; {self._said()}{self._crash(code)}")

    def _note_stacks(self, *process_or_core: str) -> pathlib.Path:
        path = self.log_dir / f"{self.label}.stacks"
        with open(path, "w") as out, contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["gdb", *process_or_core, "-batch", "-ex", "bt", "-ex", "thread apply all bt"],
                           stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, timeout=60)
        return path

    def _crash(self, code: int) -> str:
        """Where QEMU was when a signal ended it: what its core file tells, if there are one and gdb."""
        cores = list(self.log_dir.glob("core*")) if code < 0 else []
        if not cores:
            return ""
        stacks = self._note_stacks(str(self.binary), str(cores[0]))
        crashed = stacks.read_text(errors="replace").partition("\nThread ")[0]
        frames = [line for line in crashed.splitlines() if line.startswith("#")]
        if not frames:          # no gdb, or it has failed: the person may have one
            return f"; its core: {cores[0]}"
        for core in cores:
            core.unlink()
        print(*(f"  {self.label}: {frame}" for frame in frames[:CRASH_FRAMES]), sep="\n", file=sys.stderr)
        return f"; its threads: {stacks}"

    def kill(self) -> None:
        """End QEMU whatever state it is in; never fails."""
        qemu, self._qemu = self._qemu, None
        if qemu:
            qemu.kill()
        if self._job:
            self._job.close()

    def reset(self, timeout: float = 60, paused: bool = False) -> None:
        """Push the reset button, perhaps while the guest is paused, and wait until it takes jobs again."""
        with self.paused() if paused else contextlib.nullcontext():
            self._press_reset()
        self.wait_ready(timeout)
        self.qmp("set-action", reboot="shutdown")   # not before: SeaBIOS resets a second time

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The guest does not run meanwhile."""
        self.qmp("stop")
        yield
        self.qmp("cont")

    def _press_reset(self) -> None:
        self.qmp("set-action", reboot="reset")      # -no-reboot is for a guest that panics
        self.qmp("system_reset")
        self.wait_event("RESET", match={"data": {"reason": "host-qmp-system-reset"}})
        self._receive_rest()
        self._buffer = b""                          # what was said before the reset

    def migrate(self, path: pathlib.Path, timeout: float = 60, patience: float = 5) -> None:
        """Go on in another QEMU, by way of a file; what runs in the guest goes on there.

        A guest that makes memory dirty faster than it is saved is stopped after some seconds.
        """
        self.save(path, timeout, patience)
        self.resume(path, timeout)

    def save(self, path: pathlib.Path, timeout: float = 60, patience: float = 5) -> None:
        """Save the guest to a file and end QEMU."""
        deadline = time.monotonic() + timeout
        # what QEMU has not read of the job channel would be lost with its end
        while struct.unpack("i", fcntl.ioctl(self._channel, termios.TIOCOUTQ, bytes(4)))[0]:
            if time.monotonic() > deadline:
                raise self._dead("the guest takes no job")
            time.sleep(.01)
        self.qmp("migrate-set-parameters", max_bandwidth=1 << 33)
        self.qmp("migrate", uri=f"exec:cat >{shlex.quote(str(path))}")
        self._wait_migrated(deadline, time.monotonic() + patience)
        self._receive_rest()
        self.shutdown()

    def resume(self, path: pathlib.Path, timeout: float = 60) -> None:
        """Start QEMU with the guest that save() has saved."""
        self.start(f"exec:cat {shlex.quote(str(path))}")
        self._wait_migrated(time.monotonic() + timeout)
        self.qmp("cont")

    def _wait_migrated(self, deadline: float, stop_at: float | None = None) -> None:
        while (now := self.qmp("query-migrate")).get("status") != "completed":
            if now.get("status") == "failed" or time.monotonic() > deadline:
                raise self._dead(f"migration: {now.get('error-desc') or now.get('status') or 'nothing came'}")
            if stop_at and time.monotonic() > stop_at:
                self.qmp("stop")
                stop_at = None
            time.sleep(.05)

    # -- what went wrong

    def finish(self, job: str, timeout: float = 60) -> tuple[int, str]:
        """(exit status, output of both streams) of the job; without an answer, what QEMU does is noted first."""
        said_before = self._console_size()
        try:
            return super().finish(job, timeout)
        except Late as e:
            if not self._qemu or self._qemu.code is not None:
                raise
            waits = self._waits_for()       # before a look wakes QEMU up, which may be what it lacks
            slow, why = self._state(self._examine(), said_before)
            if self.pid:
                self._note_stacks("-p", str(self.pid))
            common.progress(f"{self.label}: what QEMU does stands in {self.log_dir / self.label}.hang and .stacks")
            kind = Stuck if slow and not waits and self.accel == "tcg" else ToolError
            raise kind(f"{e}; {why}; {waits or 'no disk waits for QEMU'}") from None

    def _state(self, busy: float, said_before: int) -> tuple[bool, str]:
        """Whether it is TCG that keeps the guest from getting on, and what its vCPUs do."""
        if busy >= .5:
            return True, f"a vCPU is busy ({busy:.0%}) and does not get on"
        if self._stalls(said_before):
            return True, "a vCPU gets no timer interrupts"
        return False, "its vCPUs are idle"

    def _said(self) -> str:
        return process.said(self.qemu_log)

    def _dead(self, what: str) -> ToolError:
        """A ToolError that tells whether QEMU lives and what the guest said last."""
        for line in process.last_lines(self.console, 8):
            print(f"  {self.label}: {line}", file=sys.stderr)
        try:
            code = self._qemu.wait(1) if self._qemu else None
        except subprocess.TimeoutExpired:
            code = None
        state = "QEMU is still running"
        if code is not None:
            state = f"QEMU ended with {code}, {self._said()}{self._crash(code)}"
        return ToolError(f"{self.label}: {what}; {state}; console: {self.console}")

    # -- its start

    def wait_ready(self, timeout: float = 60) -> None:
        """Wait until the guest's init takes jobs; it needs about 4 s under TCG.

        Time in which QEMU's threads wanted a CPU and got none does not count: with ten
        busy loops beside it, it needs a minute and a half. A vCPU that runs and does not
        get on, or gets no timer interrupts, is TCG's fault (docs/tests.md), and the guest
        gets a second and a third chance.
        """
        for chance in reversed(range(3)):
            said_before = self._console_size()
            try:
                self._wait_for_init(timeout)
                break
            except ToolError as e:
                slow, why = self._state(self._examine(), said_before)
                with contextlib.suppress(ToolError):        # was it only slow?
                    self._wait_for_init(.1)
                    break
                if self.accel != "tcg" or not chance or not slow:
                    raise ToolError(f"{e}; {why}") from None
                common.progress(f"{self.label}: {why}; resetting the guest")
                self._press_reset()
        if chance < 2:
            self.qmp("set-action", reboot="shutdown")

    def _console_size(self) -> int:
        try:
            return self.console.stat().st_size
        except OSError:
            return 0

    def _stalls(self, start: int) -> bool:
        """Whether the guest's kernel has said since then that RCU stalls because a timer does not come."""
        try:
            return b"kthread timer wakeup didn't happen" in self.console.read_bytes()[start:]
        except OSError:
            return False

    def _wait_for_init(self, timeout: float) -> None:
        starved, deadline = self.starved(), time.monotonic() + timeout
        while True:
            try:
                while self._line(deadline, "its start") != "ready":
                    pass
                return
            except ToolError:
                more = self.starved() - starved
                if time.monotonic() < deadline or more < 1:
                    raise
                starved += more
                deadline = time.monotonic() + more

    def _scheduled(self, column: int) -> dict[int, float]:
        """{thread id: seconds} of QEMU's threads: column 0, on a CPU; 1, waiting for one."""
        found = {}
        for stat in pathlib.Path(f"/proc/{self.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                found[int(stat.parent.name)] = int(stat.read_text().split()[column]) / 1e9
        return found

    def starved(self) -> float:
        """For how many seconds the thread that fared worst has waited for a CPU."""
        return max(self._scheduled(1).values(), default=0)

    def _watch(self) -> Callable[[], tuple[dict[int, float], float]]:
        """Look at QEMU's threads from now on.

        The function that it returns says which part of the time each has run, or would have but for
        other threads, {thread id: part}, and how many seconds that was.
        """
        start, before = time.monotonic(), [self._scheduled(0), self._scheduled(1)]

        def wanted():
            after, seconds = [self._scheduled(0), self._scheduled(1)], time.monotonic() - start
            return {tid: sum(after[n].get(tid, 0) - before[n].get(tid, 0) for n in range(2)) / seconds
                    for tid in after[0]}, seconds
        return wanted

    def busy(self, seconds: float) -> list[float]:
        """Which part of this time the IOThread of each disk has run, or would have but for other threads."""
        wanted = self._watch()
        time.sleep(seconds)
        parts = wanted()[0]
        return [parts[self.iothread_tid(n)] for n in range(len(self.disks))]

    def _rings(self) -> list[Ring]:
        """The virtqueues that the guest has set up."""
        return list(rings(self.qmp, lambda address: word_of(self._hmp(f"xp /1xh {address:#x}"))))

    def _waits_for(self) -> str | None:
        """What the guest's disks wait for; None if for nothing."""
        if any(disk.driver != "virtio-blk-pci" or not disk.event_idx for disk in self.disks):
            return "not every disk is virtio-blk with EVENT_IDX, so it may wait for one"
        try:
            found = [r for r in self._rings() if r.status["name"] == "virtio-blk"]
        except (ToolError, ValueError, LookupError) as e:
            return f"it may wait for a disk: {e}"
        if len({r.path for r in found}) < len(self.disks):
            return "not every disk has a virtqueue"
        return next(filter(None, (r.waits_for() for r in found)), None)

    def _hmp(self, command: str) -> str:
        try:
            said = self._monitor.qmp("human-monitor-command", command_line=command)
        except Exception as e:
            return f"no answer ({type(e).__name__})"
        return said.get("return", str(said))

    def _examine(self) -> float:
        """Note in a file what QEMU does whose guest does not boot, or gives no answer; never fails.

        Returns which part of the time the busiest vCPU ran, or would have but for other threads.
        """
        commands = ["info status", "info registers -a", "info pic", "info lapic", "info blockstats",
                    "info iothreads", "info registers -a", "info blockstats"]       # twice: does it get on?
        try:
            vcpus = [cpu["thread-id"] for cpu in self.qmp("query-cpus-fast")]
        except ToolError:
            vcpus = []
        watch = self._watch()
        with open(self.log_dir / f"{self.label}.hang", "w") as out:
            for command in commands if vcpus else []:       # a monitor that answers
                print(f"== {command}\n{self._hmp(command)}", file=out)
                time.sleep(0.5)
            wanted, seconds = watch()
            try:
                print("== virtqueues", *(self._rings() if vcpus else []), sep="\n", file=out)
            except (ToolError, ValueError, LookupError) as e:
                print(e, file=out)
            for tid, part in wanted.items():
                print(f"{'vCPU' if tid in vcpus else 'thread'} {tid}: {part:.0%} of {seconds:.1f} s", file=out)
        return max((wanted.get(tid, 0) for tid in vcpus), default=0)

    def disk(self, n: int = 0) -> tuple[str, str]:
        """(device node, name) of disk n in the guest, such as /dev/vda, virtio1 or /dev/nvme0n1, nvme0."""
        top = f"/sys/bus/pci/devices/0000:00:{FIRST_SLOT + n:02x}.0"
        out = self.check(f"cd {top}/virtio* 2>/dev/null || cd {top}/nvme/* && pwd -P && "
                         "find . \\( -path '*/block/*' -o -name 'nvme*n*' \\) -prune -print").split()
        if len(out) != 2:
            raise ToolError(f"{self.label}: the guest sees no disk {n} at {top}")
        return "/dev/" + out[1].rsplit("/", 1)[1], out[0].rsplit("/", 1)[1]
