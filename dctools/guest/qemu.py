# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU and its monitor, by QEMU's own python library, of which each release has another. The differences end here."""

import contextlib
import inspect
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

from dctools import common
from dctools.common import ToolError

ANSWER = 60         # seconds; by default the library waits for ever for the answer to a command


def qemu_python(stack: str | None = None) -> pathlib.Path:
    """Where QEMU's own python library is: in the source of the base."""
    if common.settings.qemu_python:
        places = [pathlib.Path(common.settings.qemu_python)]
    else:
        d = common.stack_dir(stack or common.stack_name())
        places = [d / "base/src/python", d / "tree/python"]
    for p in places:
        if (p / "qemu/machine/machine.py").is_file():
            return p
    raise ToolError(f"no QEMU python library in {places[0]}; run `make tree`")


def use_library(library: pathlib.Path) -> None:
    """Let its modules be imported."""
    if str(library) not in sys.path:
        sys.path.insert(0, str(library))


def cores_stay_here() -> bool:
    """Whether the kernel writes core files to the working directory, so that no crash leaves one elsewhere."""
    return pathlib.Path("/proc/sys/kernel/core_pattern").read_text()[:1] not in "/|"


def machine_class(library: pathlib.Path) -> type:
    """QEMUMachine, with one thing mended."""
    use_library(library)
    from qemu.machine import QEMUMachine

    class Machine(QEMUMachine):
        def _post_launch(self):
            try:
                super()._post_launch()
            except BaseException:
                # launch() would wait half a minute for a QEMU without a monitor
                self._user_killed = True
                self._popen.kill()
                raise
    return Machine


class Qemu:
    """What we need of the library."""

    def __init__(self, library: pathlib.Path, binary: pathlib.Path, arguments: list[str], name: str,
                 directory: pathlib.Path, patience: float) -> None:
        cls = machine_class(library)
        # otherwise it makes directories in /var/tmp; since 8.1 the monitor's socket has no name
        directories = {d: str(directory) for d in ("log_dir", "base_temp_dir", "sock_dir")
                       if d in inspect.signature(cls).parameters}
        self._directory = directory
        self._machine = cls(str(binary.absolute()), name=name, **directories, qmp_timer=patience, args=arguments)

    def launch(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
        if cores_stay_here():
            resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        try:
            with contextlib.chdir(self._directory):     # where its core file goes; no other thread starts guests
                self._machine.launch()
        finally:
            resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
        self._machine._qmp.settimeout(ANSWER)

    @property
    def pid(self) -> int | None:
        return self._machine.get_pid()

    @property
    def code(self) -> int | None:
        """Its exit status, once it has ended."""
        return self._machine.exitcode()

    def qmp(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Its answer to a QMP command, which may be an error."""
        return self._machine.qmp(command, **arguments)

    def wait_event(self, name: str, timeout: float, match: dict[str, Any] | None) -> Any:
        """The next QMP event of that name; match is a part that its dict must have."""
        # an int would mean: for ever
        return self._machine.event_wait(name, float(timeout), match)

    def events(self) -> list[dict[str, Any]]:
        """The QMP events that nobody has waited for."""
        return self._machine.get_qmp_events()

    def wait(self, timeout: float) -> int:
        """Until it has ended; subprocess.TimeoutExpired otherwise."""
        return self._machine._popen.wait(timeout)

    def ended(self) -> None:
        """It has ended by itself."""
        self._machine.wait()

    def quit(self, timeout: float) -> None:
        """End it by QMP, or kill it after that time."""
        self._machine.shutdown(timeout=timeout)

    def kill_running(self) -> None:
        """Kill it, unless it has ended."""
        if self._machine.is_running():
            self._machine.kill()

    def kill(self) -> None:
        """End it whatever state it is in; never fails."""
        process: subprocess.Popen | None = self._machine._popen     # launch() may have failed half way
        try:
            self._machine.kill()
        except Exception:
            pass
        if process and process.poll() is None:
            process.kill()
            process.wait()


class Monitor:
    """The monitor of a program that is no emulator, and listens on a socket."""

    def __init__(self, library: pathlib.Path, path: pathlib.Path) -> None:
        use_library(library)
        from qemu.qmp.legacy import QEMUMonitorProtocol
        self._qmp = QEMUMonitorProtocol(str(path))
        self._qmp.connect()

    def qmp(self, command: str, arguments: dict[str, Any], patience: float = ANSWER) -> dict[str, Any]:
        """Its answer to a command, which may be an error."""
        self._qmp.settimeout(patience)
        return self._qmp.cmd_obj({"execute": command, "arguments": arguments})

    def wait_event(self, name: str, timeout: float, match: dict[str, Any]) -> Any:
        """The next event of that name whose data has these values; what else comes is forgotten."""
        deadline = time.monotonic() + timeout
        while True:
            # an int would mean: for ever
            event = self._qmp.pull_event(max(.001, deadline - time.monotonic()))
            if event["event"] == name and match.items() <= event.get("data", {}).items():
                return event

    def close(self) -> None:
        """Let go of it, even if it has gone; never fails."""
        with contextlib.suppress(Exception):
            self._qmp.close()
