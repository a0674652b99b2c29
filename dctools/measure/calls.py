# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls of a thread by their names, counted by tracepoints.

While they are counted each system call of the machine takes a little longer, so nothing else is measured then.
"""

import contextlib
import ctypes
import os
import pathlib
import struct
from collections.abc import Iterator

from dctools import process
from dctools.common import ToolError

NAMES = ["write", "read", "io_submit", "io_getevents", "io_uring_enter", "ppoll", "epoll_wait", "epoll_pwait2", "futex"]
SOURCE = "perf tracepoints"
ROOTS = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
# Where it is not mounted: for this look alone
LOOK = f"""
[ -d {ROOTS[0]}/events/syscalls ] || mount -t tracefs tracefs {ROOTS[0]}
cd {ROOTS[0]}/events/syscalls
for name; do echo "$name $(cat "sys_enter_$name/id" || :)"; done
"""
PERF_EVENT_OPEN = 298       # its number on x86-64
TRACEPOINT, CLOEXEC = 2, 8  # PERF_TYPE_TRACEPOINT, PERF_FLAG_FD_CLOEXEC


class NotCounted(ToolError):
    """This machine does not let us."""


def tracepoints() -> dict[str, int]:
    """{system call: number of its tracepoint}; a kernel that lacks one of the calls has none for it."""
    for root in map(pathlib.Path, ROOTS):
        with contextlib.suppress(OSError):
            if found := {name: int((root / f"events/syscalls/sys_enter_{name}/id").read_text())
                         for name in NAMES if (root / f"events/syscalls/sys_enter_{name}").is_dir()}:
                return found
    try:
        said = process.run(["unshare", "-m", "sh", "-c", LOOK, "sh", *NAMES])
    except ToolError as e:
        raise NotCounted("no syscalls tracepoints (is tracefs mounted, and are we root?)") from e
    return {name: int(number) for name, _, number in (line.partition(" ") for line in said.splitlines()) if number}


def open_counter(tracepoint: int, tid: int) -> int:
    """A descriptor that counts this tracepoint in that thread from now on."""
    # perf_event_attr as it was at first: type, size, config, period, samples, format, flags, wakeup, breakpoint
    attributes = struct.pack("=IIQQQQQIIQ", TRACEPOINT, 64, tracepoint, 0, 0, 0, 0, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(ctypes.c_long(PERF_EVENT_OPEN), attributes, ctypes.c_int(tid), ctypes.c_int(-1),
                      ctypes.c_int(-1), ctypes.c_ulong(CLOEXEC))
    if fd < 0:
        raise NotCounted(f"perf_event_open: {os.strerror(ctypes.get_errno())}")
    return fd


@contextlib.contextmanager
def counted(tid: int, known: dict[str, int]) -> Iterator[dict[str, int]]:
    """Count what this thread calls meanwhile; afterwards it is in the dict. known: from tracepoints()."""
    counts: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        fds = {}
        for name, number in known.items():
            fds[name] = open_counter(number, tid)
            stack.callback(os.close, fds[name])
        yield counts
        for name, fd in fds.items():
            (counts[name],) = struct.unpack("Q", os.read(fd, 8))
