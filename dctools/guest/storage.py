# SPDX-License-Identifier: GPL-2.0-or-later
"""One qemu-storage-daemon: start it, let it export disks as vhost-user-blk, look at its IOThread, end it."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
from typing import Any

from dctools import common, process
from dctools.common import ToolError
from dctools.guest import image
from dctools.guest.disk import Disk, check_direct
from dctools.guest.machine import Hang
from dctools.guest.qemu import ANSWER, Monitor, qemu_python

LONGEST = 107           # bytes in the name of a Unix socket


def on_cpu(cpu: int | None) -> list[str]:
    """What to write before a command, so that all its threads run there."""
    return [] if cpu is None else ["taskset", "-c", str(cpu)]


def scratch() -> pathlib.Path:
    """A new directory for sockets, whose names must be short and without what UML's command line takes apart."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="dc-"))
    if len(os.fsencode(directory)) > LONGEST - 20 or any(c in str(directory) for c in ": ,"):
        directory.rmdir()
        raise ToolError(f"{directory.parent}: too long, or with a colon, comma or space, for the name of a socket; "
                        "set TMPDIR=/tmp")
    return directory


class StorageDaemon:
    """A qemu-storage-daemon that exports disks. Kills it when the with block ends."""

    def __init__(self, binary: pathlib.Path | str, *, label: str = "daemon", log_dir: pathlib.Path | str | None = None,
                 python: pathlib.Path | None = None, cpu: int | None = None, patience: float = 30) -> None:
        self.binary, self.label, self.cpu, self.patience = pathlib.Path(binary), label, cpu, patience
        self.log_dir = pathlib.Path(log_dir or image.place() / "log").resolve()
        self.log = self.log_dir / f"{label}.log"
        self._python = python
        self._process: subprocess.Popen | None = None
        self._monitor: Monitor | None = None
        self._directory: pathlib.Path | None = None

    def start(self) -> "StorageDaemon":
        """Start it, with nothing to export yet."""
        if not os.access(self.binary, os.X_OK) or self.binary.is_dir():
            raise ToolError(f"no qemu-storage-daemon at {self.binary}; run `make build`")
        library = self._python or qemu_python()
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._directory = scratch()
        path = self._directory / "qmp"
        try:
            with open(self.log, "wb") as log:
                self._process = subprocess.Popen(self.arguments(path), stdin=subprocess.DEVNULL, stdout=log,
                                                 stderr=subprocess.STDOUT, start_new_session=True)
            common.wait_until(lambda: self._connect(library, path) or self._running.poll() is not None, self.patience,
                              lambda: f"{self.binary} gave no sign of life within {self.patience} s; {self._said()}",
                              .01)
            if self._running.poll() is not None:
                raise ToolError(f"{self.binary} ended at once with {self._running.poll()}; {self._said()}")
        except BaseException:
            self.kill()
            raise
        return self

    def _connect(self, library: pathlib.Path, path: pathlib.Path) -> bool:
        """Whether its monitor answers by now; the socket is there a little before it does."""
        if path.exists():
            with contextlib.suppress(Exception):
                self._monitor = Monitor(library, path)
        return self._monitor is not None

    def arguments(self, monitor: pathlib.Path) -> list[str]:
        """The command line, for a monitor at this socket."""
        return [*on_cpu(self.cpu), str(self.binary), "--chardev",
                f"socket,id=qmp,path={monitor},server=on,wait=off", "--monitor", "chardev=qmp"]

    def __enter__(self) -> "StorageDaemon":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind:
            self.kill()
        else:
            self.shutdown()

    @property
    def _running(self) -> subprocess.Popen:
        assert self._process, "the daemon is not running"
        return self._process

    @property
    def pid(self) -> int:
        return self._running.pid

    def _said(self) -> str:
        return process.said(self.log)

    def qmp(self, command: str, patience: float = ANSWER, **arguments: Any) -> Any:
        """Run a QMP command (underscores stand for dashes); its answer, or a ToolError."""
        assert self._monitor, "the daemon is not running"
        try:
            answer = self._monitor.qmp(command, {k.replace("_", "-"): v for k, v in arguments.items()}, patience)
        except Exception as e:
            state = "still running" if self._running.poll() is None else f"ended with {self._running.poll()}"
            kind = Hang if self._running.poll() is None else ToolError
            raise kind(f"{self.label}: no answer to QMP {command} within {patience} s ({type(e).__name__}); "
                       f"the daemon is {state}; {self._said()}") from e
        if "error" in answer:
            raise ToolError(f"QMP {command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_event(self, name: str, timeout: float, **data: Any) -> Any:
        """The next QMP event of that name with this data."""
        assert self._monitor, "the daemon is not running"
        try:
            return self._monitor.wait_event(name, timeout, data)
        except Exception as e:
            raise Hang(f"{self.label}: no QMP event {name} within {timeout} s; {self._said()}") from e

    def threads(self) -> set[int]:
        """The ids of its threads."""
        return {int(task.name) for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir()}

    def connections(self) -> int:
        """How many sockets it has open."""
        found = 0
        for fd in pathlib.Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found += os.readlink(fd).startswith("socket:")
        return found

    def add_iothread(self, name: str = "io0", poll_max_ns: int = 0) -> int:
        """Make an IOThread; its thread id, which this program has no command to ask for."""
        before = self.threads()
        self.qmp("object-add", qom_type="iothread", id=name, poll_max_ns=poll_max_ns)
        new = self.threads() - before
        if len(new) != 1:
            raise ToolError(f"{self.label}: object-add has made {len(new)} threads, not one IOThread")
        return new.pop()

    def add_disk(self, disk: Disk, name: str = "disk") -> None:
        """Open the file of this disk, as the node of that name."""
        if disk.cache_direct:
            check_direct(disk.path)
        self.qmp("blockdev-add", **disk.bare(name))

    def export(self, disk: Disk, name: str = "disk", iothread: str = "io0") -> pathlib.Path:
        """Export the node of that name to whoever connects to the socket that is returned."""
        assert self._directory
        path = self._directory / name
        self.qmp("block-export-add", type="vhost-user-blk", id=name, node_name=name, iothread=iothread,
                 addr={"type": "unix", "path": str(path)}, writable=not disk.read_only, num_queues=disk.queues)
        return path

    def shutdown(self, timeout: float = 30, how: str = "quit") -> None:
        """End it by QMP or by SIGTERM; a crash or a hang on the way out is a ToolError."""
        if not self._process:
            return
        if how == "quit":
            with contextlib.suppress(ToolError):        # its answer may get lost with it
                self.qmp("quit", timeout)
        else:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired as e:
            raise Hang(f"{self.label}: the daemon did not end within {timeout} s of `{how}`; {self._said()}") from e
        finally:
            self.kill()
        if code:
            raise ToolError(f"{self.label}: the daemon ended with {code}; {self._said()}")

    def kill(self) -> None:
        """End it whatever state it is in; never fails."""
        if self._monitor:
            self._monitor.close()
            self._monitor = None
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
