# SPDX-License-Identifier: GPL-2.0-or-later
"""Shell scripts for the init of our guest (initramfs/init), and their results, by way of a socket."""

import base64
import hashlib
import re
import secrets
import shlex
import socket
import time

from dctools.common import ToolError


class Late(ToolError):
    """The guest has not answered in time."""


class Jobs:
    """A guest that takes jobs. Whoever starts it gives it the other end of the socket."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._job: socket.socket | None = None
        self._buffer = b""

    def _dead(self, what: str) -> ToolError:
        """A ToolError that tells how the guest fares."""
        raise NotImplementedError

    @property
    def _channel(self) -> socket.socket:
        assert self._job, "the guest has not been started"
        return self._job

    def _receive(self, deadline: float, what: str) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Late(str(self._dead(f"no answer in time from the guest to {what}")))
        self._channel.settimeout(left)
        data: bytes | None
        try:
            data = self._channel.recv(1 << 16)
        except socket.timeout:
            data = None
        except OSError:
            data = b""
        if data == b"":
            raise self._dead(f"the guest went away during {what}")
        self._buffer += data or b""

    def _receive_rest(self) -> None:
        """What has come already, up to the last byte."""
        self._channel.settimeout(0)
        try:
            while data := self._channel.recv(1 << 16):
                self._buffer += data
        except BlockingIOError:
            pass

    def _line(self, deadline: float, what: str) -> str:
        while b"\n" not in self._buffer:
            self._receive(deadline, what)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")

    def begin(self, command: str) -> str:
        """Start a shell script in the guest; finish() has its result. One at a time."""
        job = secrets.token_hex(8)
        script = base64.b64encode(command.encode()).decode()
        try:
            self._channel.settimeout(30)
            self._channel.sendall(f"run {job} {script}\n".encode())
        except OSError as e:
            raise self._dead("the guest takes no job") from e
        return job

    def finish(self, job: str, timeout: float = 60) -> tuple[int, str]:
        """(exit status, output of both streams) of the job that begin() returned."""
        deadline = time.monotonic() + timeout
        while True:
            m = re.fullmatch(r"done ([0-9a-f]{16}) (\d{1,3}) (\d{1,9}) ([0-9a-f]{32})",
                             self._line(deadline, "a job"))
            if not m:
                continue
            while len(self._buffer) < int(m[3]):
                self._receive(deadline, "a job")
            output, self._buffer = self._buffer[:int(m[3])], self._buffer[int(m[3]):]
            if m[1] != job:
                continue                # of a job that was given up
            if hashlib.md5(output).hexdigest() != m[4]:
                raise self._dead("the guest's answer came damaged")
            return int(m[2]), output.decode(errors="replace")

    def run(self, command: str, timeout: float = 60) -> tuple[int, str]:
        """Run a shell script in the guest: (exit status, output of both streams)."""
        return self.finish(self.begin(command), timeout)

    def check(self, command: str, timeout: float = 60) -> str:
        """Like run(), but a status other than 0 is a ToolError; returns the output."""
        status, output = self.run(command, timeout)
        if status:
            last = (output.strip() or "it said nothing").splitlines()[-1]
            raise ToolError(f"{self.label}: {command.split()[0]} failed in the guest with {status}: {last}")
        return output

    def put_file(self, name: str, text: str) -> None:
        """Write a file in the guest."""
        data = base64.b64encode(text.encode()).decode()
        self.check(f"echo {data} | base64 -d >{shlex.quote(name)}")
